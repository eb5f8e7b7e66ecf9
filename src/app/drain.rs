//! The drain: no new peers, and time for the sessions that are left.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::handle::Handle;
use crate::state::sessions::EndCause;
use crate::state::shared::SharedState;

use super::stop::Stopped;

/// Sessions that are left at the end of the drain timeout are ended during this last part of it, one after the other,
/// so that their peers do not all come back at the same moment.
const CLOSING_WINDOW: Duration = Duration::from_secs(1);

/// Closes the link, then waits until all sessions have ended, or ends those that are left when `DrainTimeout` is over.
pub(super) async fn drain<T>(
    handle: &Handle,
    link: &CancellationToken,
    router: &mut JoinHandle<T>,
) -> Stopped {
    // Closing the link withdraws the keys on offer: the Router sends no new peers here.
    link.cancel();
    let timeout = handle.config().drain_timeout;
    let deadline = Instant::now() + timeout;
    if timeout_at(deadline, &mut *router).await.is_err() {
        router.abort();
    }
    let counts = handle.state().counts();
    info!(
        sessions = counts.active,
        keys_handed_out = counts.handed_out,
        "stopping: no new peers; active sessions get {} s",
        timeout.as_secs()
    );
    tokio::select! {
        () = handle.state().wait_until_empty() => Stopped::Drained,
        () = end_sessions(handle.state(), deadline, timeout.min(CLOSING_WINDOW)) => Stopped::TimedOut,
    }
}

/// Ends the sessions that are left, evenly over the last `window` before the deadline.
async fn end_sessions(state: &SharedState, deadline: Instant, window: Duration) {
    let begin = deadline - window;
    sleep_until(begin).await;
    let left = state.sessions();
    if !left.is_empty() {
        warn!(sessions = left.len(), "DrainTimeout is over: ending the sessions that are left");
    }
    let count = u32::try_from(left.len()).unwrap_or(u32::MAX);
    for (number, session) in (1..).zip(&left) {
        sleep_until(begin + window * number / count).await;
        state.stop_session(session.id, EndCause::Drain);
    }
    sleep_until(deadline).await;
}
