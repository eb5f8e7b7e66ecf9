//! When a ping is due, and which pong answers it (sections 2 and 7 of the protocol notes).

use std::time::Duration;

use tokio::time::Instant;

use super::dialect::Pings;

/// Time within which the pong must come.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(30);

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
            Some(ping) => ping.sent + PONG_TIMEOUT,
            None => self.next,
        }
    }

    /// The data of the ping to send, if one is due at `now`.
    ///
    /// # Errors
    /// [`KeepAliveError::NoPong`] when the last one stayed without an answer.
    pub fn on_deadline(&mut self, now: Instant) -> Result<Option<[u8; 4]>, KeepAliveError> {
        if now < self.deadline() {
            return Ok(None);
        }
        if self.in_flight.is_some() {
            return Err(KeepAliveError::NoPong);
        }
        let heard = std::mem::take(&mut self.heard);
        match self.pings {
            Pings::Every(time) => self.next = now + time,
            Pings::WhenIdle(time) => {
                self.next = now + time;
                if heard {
                    return Ok(None);
                }
            }
        }
        let data = self.counter.to_be_bytes();
        self.counter = self.counter.wrapping_add(1);
        self.in_flight = Some(InFlight { data, sent: now });
        Ok(Some(data))
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
        assert_eq!(keep_alive.on_deadline(start + 59 * SECOND), Ok(None));
        for minute in 1..4u32 {
            let due = start + 60 * minute * SECOND;
            assert_eq!(keep_alive.deadline(), due);
            let data = (minute - 1).to_be_bytes();
            assert_eq!(keep_alive.on_deadline(due), Ok(Some(data)));
            assert_eq!(keep_alive.on_pong(&data, due + 2 * SECOND), Ok(2 * SECOND));
        }
    }

    #[test]
    fn a_missing_pong_ends_the_link_after_30_s() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(MINUTE, start);
        keep_alive.on_deadline(start + 60 * SECOND).unwrap();
        assert_eq!(keep_alive.on_deadline(start + 89 * SECOND), Ok(None));
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Err(KeepAliveError::NoPong));
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
        assert_eq!(keep_alive.on_deadline(start + 30 * SECOND), Ok(None));
        // Nothing since that look.
        let ping = keep_alive.on_deadline(start + 60 * SECOND).unwrap().unwrap();
        assert_eq!(ping, [0; 4]);
        // Other frames are no answer; the answer is something heard.
        keep_alive.on_bytes();
        assert_eq!(keep_alive.deadline(), start + 90 * SECOND);
        keep_alive.on_pong(&ping, start + 61 * SECOND).unwrap();
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Ok(None));
        assert_eq!(keep_alive.on_deadline(start + 120 * SECOND), Ok(Some([0, 0, 0, 1])));
        keep_alive.on_bytes();
        assert_eq!(keep_alive.on_deadline(start + 150 * SECOND), Err(KeepAliveError::NoPong));
    }
}
