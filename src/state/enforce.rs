//! The task that enforces the limits on the time of sessions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::Instant;
use tracing::warn;

use crate::config::Config;

use super::overdue::{OverdueCheck, STAGGER_WINDOW, SessionLimits};
use super::pauses::OBSERVATION_INTERVAL;
use super::shared::{SessionCursor, SharedState};

/// The minimum time between two checks. Sessions may end this much later than they should, because they are checked together.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Asks sessions that exceed the limits in force to end. Never returns; one task runs it. Sessions have no timers for these limits:
/// each would cost memory, and its thread would have to set one more timer whenever it waits.
pub async fn enforce_session_limits(state: &SharedState, mut config: watch::Receiver<Arc<Config>>) {
    let mut check = OverdueCheck::new(limits(&config.borrow_and_update()));
    let mut next = Instant::now();
    loop {
        let now = Instant::now();
        let pause = state.lock_at(now).pauses.take_unreported();
        if next <= now {
            next = check_all(state, &mut check, now).await.max(now + CHECK_INTERVAL);
        }
        if !pause.is_zero() {
            warn!(
                seconds = pause.as_secs_f32().ceil(),
                "the relay did not run for a while: it was stopped or suspended, or got no CPU; that time counts neither \
                 as idle time of sessions nor for keys"
            );
        }
        tokio::select! {
            // The clock is observed at least this often, so that a pause of the process is noticed.
            () = tokio::time::sleep_until(next.min(now + OBSERVATION_INTERVAL)) => {}
            Ok(()) = config.changed() => {
                let limits = limits(&config.borrow_and_update());
                apply_limits(state, &mut check, limits).await;
                next = Instant::now();
            }
            () = state.events().session_adopted.notified() => next = Instant::now(),
        }
    }
}

fn limits(config: &Config) -> SessionLimits {
    SessionLimits { idle: config.peer_idle_timeout, longest: config.max_session_duration }
}

/// Checks all sessions once, page by page. Returns when to check again.
async fn check_all(state: &SharedState, check: &mut OverdueCheck, now: Instant) -> Instant {
    let mut check_at = check.begin(now);
    let mut next = SessionCursor::start();
    while let Some(cursor) = next {
        let (sessions, pauses);
        (sessions, pauses, next) = state.list(cursor);
        check_at =
            check.stop_overdue(&sessions, &pauses, now).map_or(check_at, |at| at.min(check_at));
        if next.is_some() {
            yield_now().await;
        }
    }
    check_at
}

/// Applies other limits from now on.
async fn apply_limits(state: &SharedState, check: &mut OverdueCheck, limits: SessionLimits) {
    let Some(earlier) = check.set_limits(limits) else { return };
    let (now, mut over, mut next) = (Instant::now(), Vec::new(), SessionCursor::start());
    while let Some(cursor) = next {
        let (sessions, pauses);
        (sessions, pauses, next) = state.list(cursor);
        over.extend(check.list_newly_over(earlier, &sessions, &pauses, now));
        if next.is_some() {
            yield_now().await;
        }
    }
    check.stagger(&over, now);
    warn_of_stricter_limits(limits, over.len());
}

/// Warns of sessions that already exceed the new, stricter limits.
fn warn_of_stricter_limits(limits: SessionLimits, over: usize) {
    if over > 0 {
        warn!(
            sessions = over,
            "these sessions already exceed the new, stricter limits (PeerIdleTimeout {} s, MaxSessionDuration {}): they end \
             within {} s, one after the other",
            limits.idle.as_secs(),
            limits.longest.map_or("none".to_owned(), |longest| format!("{} s", longest.as_secs())),
            STAGGER_WINDOW.as_secs()
        );
    }
}
