//! Deadlines that take into account that the process may not run for a while: stopped (SIGSTOP, `docker pause`), starved or
//! suspended.
//!
//! When such a process runs again, every deadline has passed according to the clock, while data that arrived in time is
//! still unread in its sockets. So a deadline that is noticed late is extended, to read what has arrived first.

use std::time::Duration;

use tokio::time::Instant;

/// A deadline that is noticed this late passed while the process did not run. Timers of a running process are a few
/// milliseconds late.
const PAUSE_THRESHOLD: Duration = Duration::from_millis(250);
/// How long a deadline is extended, to read what arrived while the process did not run: enough for the accept queue and for
/// every socket.
const EXTENSION: Duration = Duration::from_secs(2);
/// How many times one deadline can be extended: even in a process that is starved permanently, deadlines must pass.
const MAX_EXTENSIONS: u32 = 3;

/// The deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Waits until `deadline` has passed, and [`EXTENSION`] longer if the process was not running when it passed.
pub async fn sleep_until(deadline: Instant) {
    let mut deadline = deadline;
    for _ in 0..=MAX_EXTENSIONS {
        tokio::time::sleep_until(deadline).await;
        if deadline.elapsed() < PAUSE_THRESHOLD {
            return;
        }
        deadline = Instant::now() + EXTENSION;
    }
}

/// Returns the output of `work`, unless `deadline` passes first; see [`sleep_until`].
///
/// # Errors
/// [`Elapsed`] if the deadline has passed.
pub async fn timeout_at<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    tokio::select! {
        biased;
        output = work => Ok(output),
        () = sleep_until(deadline) => Err(Elapsed),
    }
}

/// Returns the output of `work`, unless it takes longer than `limit`; see [`sleep_until`].
///
/// # Errors
/// [`Elapsed`] if it takes longer.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    timeout_at(Instant::now() + limit, work).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, sleep};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn deadline_is_exact_in_a_running_process() {
        let start = Instant::now();
        assert_eq!(timeout(10 * SECOND, sleep(11 * SECOND)).await, Err(Elapsed));
        assert!(start.elapsed() < 10 * SECOND + PAUSE_THRESHOLD, "{:?}", start.elapsed());
        assert_eq!(timeout(10 * SECOND, sleep(9 * SECOND)).await, Ok(()));
    }

    /// The clock advances while nothing runs, as if the process were stopped for a minute.
    #[tokio::test(start_paused = true)]
    async fn deadline_is_extended_after_a_pause_of_the_process() {
        let mut waiting = Box::pin(timeout(10 * SECOND, sleep(65 * SECOND)));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("not yet due"),
            () = std::future::ready(()) => {}
        }
        advance(64 * SECOND).await;
        // The output is ready a second after the pause.
        assert_eq!(waiting.await, Ok(()));
        // Without any output, the deadline passes a little later.
        let deadline = Instant::now() + 10 * SECOND;
        let mut waiting = Box::pin(sleep_until(deadline));
        tokio::select! {
            biased;
            () = &mut waiting => panic!("not yet due"),
            () = std::future::ready(()) => {}
        }
        advance(60 * SECOND).await;
        waiting.await;
        assert!(
            deadline.elapsed() < 50 * SECOND + EXTENSION + PAUSE_THRESHOLD,
            "{:?}",
            deadline.elapsed()
        );
    }
}
