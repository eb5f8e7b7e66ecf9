//! When a ping is due, and which pong answers it (sections 2 and 7 of the protocol notes).

use std::time::Duration;

use tokio::time::Instant;

use super::dialect::Pings;

/// Time within which the pong must come.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(30);

/// Time to read what the Router sent before the link is given up: by the clock alone nothing is certain, since the process
/// may have been stopped for a while.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// What is to be done when the time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// A ping with this data is to be sent.
    Ping([u8; 4]),
    /// The pong is missing: what the Router has sent is to be read, and then the time to be looked at again.
    LastLook,
}

/// Why the keep-alive ends the link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeepAliveError {
    /// The Router does not answer.
    #[error("the Router did not answer a ping within {} s", PONG_TIMEOUT.as_secs())]
    NoPong,
    /// A pong came that answers no ping.
    #[error("the Router answered a ping that was never sent")]
    NotAsked,
    /// A pong has other data than the ping.
    #[error("the Router answered a ping with other data than it was sent")]
    WrongData,
}

/// The relay's own pings on one link.
#[derive(Debug)]
pub struct KeepAlive {
    pings: Pings,
    counter: u32,
    /// When a ping is due, or may be.
    next: Instant,
    /// Whether anything was received since the last look.
    heard: bool,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    data: [u8; 4],
    sent: Instant,
    /// When the pong must be here.
    due: Instant,
    /// Whether there was a last look at what has come.
    was_looked_for: bool,
}

impl KeepAlive {
    /// Starts counting on a link that is ready at `now`.
    pub fn new(pings: Pings, now: Instant) -> Self {
        let (Pings::Every(time) | Pings::WhenIdle(time)) = pings;
        Self { pings, counter: 0, next: now + time, heard: false, in_flight: None }
    }

    /// Something came from the Router, whatever it was.
    pub fn on_bytes(&mut self) {
        self.heard = true;
    }

    /// When [`Self::on_deadline`] is to be called next.
    pub fn deadline(&self) -> Instant {
        match &self.in_flight {
            Some(ping) => ping.due,
            None => self.next,
        }
    }

    /// What is to be done at `now`.
    ///
    /// # Errors
    /// [`KeepAliveError::NoPong`] when the last ping stayed without an answer.
    pub fn on_deadline(&mut self, now: Instant) -> Result<Due, KeepAliveError> {
        if now < self.deadline() {
            return Ok(Due::Nothing);
        }
        if let Some(ping) = &mut self.in_flight {
            if ping.was_looked_for {
                return Err(KeepAliveError::NoPong);
            }
            ping.was_looked_for = true;
            ping.due = now + LAST_LOOK;
            return Ok(Due::LastLook);
        }
        let heard = std::mem::take(&mut self.heard);
        match self.pings {
            Pings::Every(time) => self.next = now + time,
            Pings::WhenIdle(time) => {
                self.next = now + time;
                if heard {
                    return Ok(Due::Nothing);
                }
            }
        }
        let data = self.counter.to_be_bytes();
        self.counter = self.counter.wrapping_add(1);
        self.in_flight =
            Some(InFlight { data, sent: now, due: now + PONG_TIMEOUT, was_looked_for: false });
        Ok(Due::Ping(data))
    }

    /// Takes a pong; gives the time that the Router took.
    ///
    /// # Errors
    /// [`KeepAliveError::NotAsked`] or [`KeepAliveError::WrongData`].
    pub fn on_pong(&mut self, data: &[u8], now: Instant) -> Result<Duration, KeepAliveError> {
        let ping = self.in_flight.take().ok_or(KeepAliveError::NotAsked)?;
        if ping.data != data {
            return Err(KeepAliveError::WrongData);
        }
        Ok(now.duration_since(ping.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Pings = Pings::Every(Duration::from_secs(60));

    #[test]
    fn a_ping_every_minute_with_a_counter() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(MINUTE, start);
        assert_eq!(keep_alive.on_deadline(start + 59 * SECOND), Ok(Due::Nothing));
        for minute in 1..4u32 {
            let due = start + 60 * minute * SECOND;
            assert_eq!(keep_alive.deadline(), due);
            let data = (minute - 1).to_be_bytes();
            assert_eq!(keep_alive.on_deadline(due), Ok(Due::Ping(data)));
            assert_eq!(keep_alive.on_pong(&data, due + 2 * SECOND), Ok(2 * SECOND));
        }
    }

    #[test]
    fn a_missing_pong_ends_the_link_after_30_s() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(MINUTE, start);
        keep_alive.on_deadline(start + 60 * SECOND).unwrap();
        assert_eq!(keep_alive.on_deadline(start + 89 * SECOND), Ok(Due::Nothing));
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Ok(Due::LastLook));
        assert_eq!(keep_alive.deadline(), start + 90 * SECOND + LAST_LOOK);
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Ok(Due::Nothing));
        assert_eq!(keep_alive.on_deadline(start + 91 * SECOND), Err(KeepAliveError::NoPong));
    }

    #[test]
    fn a_pong_that_came_while_the_process_was_stopped_counts() {
        let start = Instant::now();
        for stopped in [31, 600, 86_400] {
            let mut keep_alive = KeepAlive::new(MINUTE, start);
            let Ok(Due::Ping(data)) = keep_alive.on_deadline(start + 60 * SECOND) else {
                panic!("a ping is due");
            };
            let again = start + (60 + stopped) * SECOND;
            assert_eq!(keep_alive.on_deadline(again), Ok(Due::LastLook));
            assert!(keep_alive.on_pong(&data, again).is_ok());
            // The next ping has all its time.
            let Ok(Due::Ping(_)) = keep_alive.on_deadline(keep_alive.deadline().max(again)) else {
                panic!("a ping is due");
            };
            assert!(keep_alive.deadline() >= again + PONG_TIMEOUT);
        }
    }

    #[test]
    fn pongs_must_answer_the_ping_in_flight() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(MINUTE, start);
        assert_eq!(keep_alive.on_pong(&[0; 4], start), Err(KeepAliveError::NotAsked));
        keep_alive.on_deadline(start + 60 * SECOND).unwrap();
        assert_eq!(keep_alive.on_pong(&[1; 4], start), Err(KeepAliveError::WrongData));
        let mut keep_alive = KeepAlive::new(MINUTE, start);
        keep_alive.on_deadline(start + 60 * SECOND).unwrap();
        assert_eq!(keep_alive.on_pong(&[0; 5], start), Err(KeepAliveError::WrongData));
    }

    #[test]
    fn a_link_that_is_not_idle_needs_no_ping() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(Pings::WhenIdle(30 * SECOND), start);
        keep_alive.on_bytes();
        assert_eq!(keep_alive.on_deadline(start + 30 * SECOND), Ok(Due::Nothing));
        // Nothing since that look.
        let ping = [0; 4];
        assert_eq!(keep_alive.on_deadline(start + 60 * SECOND), Ok(Due::Ping(ping)));
        // Other frames are no answer; the answer is something heard.
        keep_alive.on_bytes();
        assert_eq!(keep_alive.deadline(), start + 90 * SECOND);
        keep_alive.on_pong(&ping, start + 61 * SECOND).unwrap();
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Ok(Due::Nothing));
        assert_eq!(keep_alive.on_deadline(start + 120 * SECOND), Ok(Due::Ping([0, 0, 0, 1])));
        keep_alive.on_bytes();
        assert_eq!(keep_alive.on_deadline(start + 150 * SECOND), Ok(Due::LastLook));
        assert_eq!(keep_alive.on_deadline(start + 151 * SECOND), Err(KeepAliveError::NoPong));
    }
}
