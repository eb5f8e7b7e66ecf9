//! The keep-alive of a link: when a ping is due, and which pong answers it (docs/protocol.md, "Service frames and
//! keep-alive" and "Frames of the 3.0 dialect").

use std::time::Duration;

use tokio::time::Instant;

use super::dialect::PingSchedule;

/// The time within which the pong must arrive.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the relay reads on after [`PONG_TIMEOUT`] before it closes the link. The pong may have arrived in time: the
/// process itself may have been stopped for a while.
const GRACE_PERIOD: Duration = Duration::from_millis(500);

/// What to do when the deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAliveAction {
    /// Do nothing.
    None,
    /// Send a ping with this data.
    SendPing([u8; 4]),
    /// The pong is late: read what the Router has sent, then check again.
    ReadReceived,
}

/// Why the keep-alive ends the link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeepAliveError {
    /// The Router did not answer a ping in time.
    #[error("the Router did not answer a ping within {} s", PONG_TIMEOUT.as_secs())]
    NoPong,
    /// A pong arrived without a ping in flight.
    #[error("the Router answered a ping that was never sent")]
    UnexpectedPong,
    /// A pong does not carry the data of the ping.
    #[error("the Router answered a ping with the wrong data")]
    WrongData,
}

/// The relay's own pings on one link.
#[derive(Debug)]
pub struct KeepAlive {
    schedule: PingSchedule,
    counter: u32,
    next_check: Instant,
    /// Whether anything was received since the last check.
    has_received: bool,
    in_flight: Option<PingInFlight>,
}

#[derive(Debug)]
struct PingInFlight {
    data: [u8; 4],
    sent: Instant,
    /// When the pong must have arrived.
    due: Instant,
    /// Whether the pong is late and the grace period has begun.
    is_late: bool,
}

/// The state of a [`KeepAlive`] as plain data, so that another process can continue it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAliveSnapshot {
    /// The data of the next ping.
    pub counter: u32,
    /// When the next ping is due, or the next check whether one is needed.
    pub next_check: Instant,
    /// Whether anything was received since the last check.
    pub has_received: bool,
    /// The data of a ping that is not answered yet, and when it was sent.
    pub in_flight: Option<([u8; 4], Instant)>,
}

impl KeepAlive {
    /// Returns the state as plain data.
    pub fn snapshot(&self) -> KeepAliveSnapshot {
        KeepAliveSnapshot {
            counter: self.counter,
            next_check: self.next_check,
            has_received: self.has_received,
            in_flight: self.in_flight.as_ref().map(|ping| (ping.data, ping.sent)),
        }
    }

    /// Continues the schedule of a link. A pong that is late by now is still waited for: it may have arrived while no process
    /// read from the link.
    pub fn resume(schedule: PingSchedule, snapshot: &KeepAliveSnapshot) -> Self {
        let KeepAliveSnapshot { counter, next_check, has_received, in_flight } = *snapshot;
        let in_flight = in_flight.map(|(data, sent)| PingInFlight {
            data,
            sent,
            due: sent + PONG_TIMEOUT,
            is_late: false,
        });
        Self { schedule, counter, next_check, has_received, in_flight }
    }

    /// Starts the schedule of a link that was established at `now`.
    pub fn new(schedule: PingSchedule, now: Instant) -> Self {
        let (PingSchedule::Every(time) | PingSchedule::WhenIdle(time)) = schedule;
        Self { schedule, counter: 0, next_check: now + time, has_received: false, in_flight: None }
    }

    /// Records that bytes were received from the Router, of whatever kind.
    pub fn on_bytes(&mut self) {
        self.has_received = true;
    }

    /// Returns when [`Self::on_deadline`] must be called next.
    pub fn deadline(&self) -> Instant {
        match &self.in_flight {
            Some(ping) => ping.due,
            None => self.next_check,
        }
    }

    /// Returns what to do at `now`.
    ///
    /// # Errors
    /// [`KeepAliveError::NoPong`] if the last ping was not answered.
    pub fn on_deadline(&mut self, now: Instant) -> Result<KeepAliveAction, KeepAliveError> {
        if now < self.deadline() {
            return Ok(KeepAliveAction::None);
        }
        if let Some(ping) = &mut self.in_flight {
            if ping.is_late {
                return Err(KeepAliveError::NoPong);
            }
            ping.is_late = true;
            ping.due = now + GRACE_PERIOD;
            return Ok(KeepAliveAction::ReadReceived);
        }
        let has_received = std::mem::take(&mut self.has_received);
        match self.schedule {
            PingSchedule::Every(time) => self.next_check = now + time,
            PingSchedule::WhenIdle(time) => {
                self.next_check = now + time;
                if has_received {
                    return Ok(KeepAliveAction::None);
                }
            }
        }
        let data = self.counter.to_be_bytes();
        self.counter = self.counter.wrapping_add(1);
        self.in_flight =
            Some(PingInFlight { data, sent: now, due: now + PONG_TIMEOUT, is_late: false });
        Ok(KeepAliveAction::SendPing(data))
    }

    /// Processes a pong. Returns the time from the ping to the pong.
    ///
    /// # Errors
    /// [`KeepAliveError::UnexpectedPong`] or [`KeepAliveError::WrongData`].
    pub fn on_pong(&mut self, data: &[u8], now: Instant) -> Result<Duration, KeepAliveError> {
        let ping = self.in_flight.take().ok_or(KeepAliveError::UnexpectedPong)?;
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
    const EVERY_MINUTE: PingSchedule = PingSchedule::Every(Duration::from_secs(60));

    #[test]
    fn pings_are_sent_every_minute_and_carry_a_counter() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(EVERY_MINUTE, start);
        assert_eq!(keep_alive.on_deadline(start + 59 * SECOND), Ok(KeepAliveAction::None));
        for minute in 1..4u32 {
            let due = start + 60 * minute * SECOND;
            assert_eq!(keep_alive.deadline(), due);
            let data = (minute - 1).to_be_bytes();
            assert_eq!(keep_alive.on_deadline(due), Ok(KeepAliveAction::SendPing(data)));
            assert_eq!(keep_alive.on_pong(&data, due + 2 * SECOND), Ok(2 * SECOND));
        }
    }

    #[test]
    fn missing_pong_ends_the_link_after_30_s() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(EVERY_MINUTE, start);
        keep_alive.on_deadline(start + 60 * SECOND).unwrap();
        assert_eq!(keep_alive.on_deadline(start + 89 * SECOND), Ok(KeepAliveAction::None));
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Ok(KeepAliveAction::ReadReceived));
        assert_eq!(keep_alive.deadline(), start + 90 * SECOND + GRACE_PERIOD);
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Ok(KeepAliveAction::None));
        assert_eq!(keep_alive.on_deadline(start + 91 * SECOND), Err(KeepAliveError::NoPong));
    }

    #[test]
    fn pong_that_arrived_while_the_process_was_stopped_counts() {
        let start = Instant::now();
        for stopped in [31, 600, 86_400] {
            let mut keep_alive = KeepAlive::new(EVERY_MINUTE, start);
            let Ok(KeepAliveAction::SendPing(data)) = keep_alive.on_deadline(start + 60 * SECOND)
            else {
                panic!("a ping is due");
            };
            let again = start + (60 + stopped) * SECOND;
            assert_eq!(keep_alive.on_deadline(again), Ok(KeepAliveAction::ReadReceived));
            assert!(keep_alive.on_pong(&data, again).is_ok());
            // The next ping has its full time.
            let Ok(KeepAliveAction::SendPing(_)) =
                keep_alive.on_deadline(keep_alive.deadline().max(again))
            else {
                panic!("a ping is due");
            };
            assert!(keep_alive.deadline() >= again + PONG_TIMEOUT);
        }
    }

    #[test]
    fn resumed_schedule_awaits_the_pong_of_the_ping_in_flight() {
        let start = Instant::now();
        let mut before = KeepAlive::new(EVERY_MINUTE, start);
        before.on_deadline(start + 60 * SECOND).unwrap();
        for resumed_at in [61, 89, 95] {
            let mut after = KeepAlive::resume(EVERY_MINUTE, &before.snapshot());
            let now = start + resumed_at * SECOND;
            assert_eq!(after.snapshot(), before.snapshot());
            assert_eq!(after.deadline(), start + 90 * SECOND);
            let due = if resumed_at >= 90 {
                KeepAliveAction::ReadReceived
            } else {
                KeepAliveAction::None
            };
            assert_eq!(after.on_deadline(now), Ok(due));
            assert_eq!(after.on_pong(&[0; 4], now), Ok((resumed_at - 60) * SECOND));
            assert_eq!(after.deadline(), start + 120 * SECOND);
            let second = after.on_deadline(start + 120 * SECOND);
            assert_eq!(second, Ok(KeepAliveAction::SendPing([0, 0, 0, 1])));
        }
        let mut after = KeepAlive::resume(EVERY_MINUTE, &before.snapshot());
        assert_eq!(after.on_deadline(start + 90 * SECOND), Ok(KeepAliveAction::ReadReceived));
        assert_eq!(after.on_deadline(start + 91 * SECOND), Err(KeepAliveError::NoPong));
    }

    #[test]
    fn pong_must_answer_the_ping_in_flight() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(EVERY_MINUTE, start);
        assert_eq!(keep_alive.on_pong(&[0; 4], start), Err(KeepAliveError::UnexpectedPong));
        keep_alive.on_deadline(start + 60 * SECOND).unwrap();
        assert_eq!(keep_alive.on_pong(&[1; 4], start), Err(KeepAliveError::WrongData));
        let mut keep_alive = KeepAlive::new(EVERY_MINUTE, start);
        keep_alive.on_deadline(start + 60 * SECOND).unwrap();
        assert_eq!(keep_alive.on_pong(&[0; 5], start), Err(KeepAliveError::WrongData));
    }

    #[test]
    fn no_ping_is_sent_while_the_link_is_not_idle() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(PingSchedule::WhenIdle(30 * SECOND), start);
        keep_alive.on_bytes();
        assert_eq!(keep_alive.on_deadline(start + 30 * SECOND), Ok(KeepAliveAction::None));
        // Nothing was received since that check.
        let ping = [0; 4];
        assert_eq!(
            keep_alive.on_deadline(start + 60 * SECOND),
            Ok(KeepAliveAction::SendPing(ping))
        );
        // Other frames do not answer the ping. The pong counts as received bytes.
        keep_alive.on_bytes();
        assert_eq!(keep_alive.deadline(), start + 90 * SECOND);
        keep_alive.on_pong(&ping, start + 61 * SECOND).unwrap();
        assert_eq!(keep_alive.on_deadline(start + 90 * SECOND), Ok(KeepAliveAction::None));
        assert_eq!(
            keep_alive.on_deadline(start + 120 * SECOND),
            Ok(KeepAliveAction::SendPing([0, 0, 0, 1]))
        );
        keep_alive.on_bytes();
        assert_eq!(keep_alive.on_deadline(start + 150 * SECOND), Ok(KeepAliveAction::ReadReceived));
        assert_eq!(keep_alive.on_deadline(start + 151 * SECOND), Err(KeepAliveError::NoPong));
    }
}
