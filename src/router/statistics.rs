//! The statistics that are sent to the Router.

use std::sync::Arc;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::config::Config;
use crate::link::dialect::{Dialect, SessionStatistics};
use crate::state::sessions::Session;

/// Bytes of a frame that are reserved for what surrounds the list of sessions.
const FRAME_MARGIN: usize = 1024;

/// Creates the timer of the statistics, if they are enabled.
pub(super) fn create_timer(config: &Config) -> Option<Interval> {
    config.statistics_period().map(|period| {
        let mut timer = interval_at(Instant::now() + period, period);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer
    })
}

/// Waits for the next tick; waits for ever if statistics are disabled.
pub(super) async fn wait_for_tick(timer: &mut Option<Interval>) {
    match timer {
        None => std::future::pending().await,
        Some(timer) => {
            timer.tick().await;
        }
    }
}

/// Encodes the statistics. Returns the message and the number of sessions that did not fit in it.
pub(super) fn encode(
    dialect: &dyn Dialect,
    sessions: &[Arc<Session>],
    started: Instant,
    now: Instant,
) -> (Vec<u8>, usize) {
    let seconds = |since: Instant| now.saturating_duration_since(since).as_secs();
    let entries: Vec<_> = sessions
        .iter()
        .map(|session| SessionStatistics {
            id: session.id.0,
            client_address: session.identity.client_address(),
            client_user_name: session.identity.client_user_name(),
            host_address: session.identity.host_address(),
            host_id: session.identity.host_id,
            bytes: session.traffic.bytes(),
            duration: seconds(session.started),
            idle: seconds(session.traffic.last_moved()),
        })
        .collect();
    let available = dialect.max_frame_len() - FRAME_MARGIN;
    let (message, listed) = dialect.encode_statistics(&entries, seconds(started), available);
    (message, entries.len() - listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::DIALECTS;
    use crate::state::sessions::{PeerIdentity, SessionTable};

    #[test]
    fn statistics_of_any_number_of_sessions_fit_in_a_frame() {
        let text = "x".repeat(256);
        let identity = PeerIdentity::new(&text, &text, &text, u64::MAX);
        let mut sessions = SessionTable::default();
        let now = Instant::now();
        let address = ([127, 0, 0, 1], 1).into();
        let sessions: Vec<_> =
            (0..10_000).map(|_| sessions.start(identity.clone(), [address; 2], now)).collect();
        for dialect in DIALECTS {
            let longest = dialect.max_frame_len();
            let (message, left_out) = encode(dialect, &sessions, now, now);
            assert!(left_out > 0);
            assert!(message.len() < longest - 64, "{}", message.len());
            // It is not much shorter than the limit either.
            assert!(message.len() > longest / 100 * 99, "{}", message.len());
            let (few, _) = encode(dialect, &sessions[..1000], now, now);
            assert!(few.len() > 1000 * 3 * 256, "{}", few.len());
        }
    }
}
