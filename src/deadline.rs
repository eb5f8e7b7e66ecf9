//! Deadlines in a process that may not run for a while: stopped (SIGSTOP, `docker pause`), starved, suspended.
//!
//! When such a process runs again, the clock says that every deadline is over, while what should have come in time waits in
//! its sockets. So a deadline that is noticed late is no verdict: what waits is looked at first.

use std::time::Duration;

use tokio::time::Instant;

/// A deadline that is noticed this much after its time was over while the process did not run. Timers of a process that
/// runs are some milliseconds late.
pub const LATE: Duration = Duration::from_millis(250);
/// Time to take what came while the process did not run: enough for the accept queue and for every socket.
pub const LAST_LOOK: Duration = Duration::from_secs(2);
/// How often one deadline may be put off. A process that is starved for good must end things, too.
const LAST_LOOKS: u32 = 3;

/// The deadline is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub struct Elapsed;

/// Waits until `deadline` is over, and [`LAST_LOOK`] longer where the process did not run at that time.
pub async fn sleep_until(deadline: Instant) {
    let mut deadline = deadline;
    for _ in 0..=LAST_LOOKS {
        tokio::time::sleep_until(deadline).await;
        if deadline.elapsed() < LATE {
            return;
        }
        deadline = Instant::now() + LAST_LOOK;
    }
}

/// The output of `work`, unless `deadline` is over before; see [`sleep_until`].
///
/// # Errors
/// [`Elapsed`].
pub async fn timeout_at<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    tokio::select! {
        biased;
        output = work => Ok(output),
        () = sleep_until(deadline) => Err(Elapsed),
    }
}

/// The output of `work`, unless it takes longer than `limit`; see [`sleep_until`].
///
/// # Errors
/// [`Elapsed`].
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    timeout_at(Instant::now() + limit, work).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, sleep};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn in_a_process_that_runs_the_time_is_exact() {
        let start = Instant::now();
        assert_eq!(timeout(10 * SECOND, sleep(11 * SECOND)).await, Err(Elapsed));
        assert!(start.elapsed() < 10 * SECOND + LATE, "{:?}", start.elapsed());
        assert_eq!(timeout(10 * SECOND, sleep(9 * SECOND)).await, Ok(()));
    }

    /// What a process finds that was stopped for a minute: the clock has moved, and nothing has run meanwhile.
    #[tokio::test(start_paused = true)]
    async fn after_a_pause_there_is_time_to_look() {
        let mut waiting = Box::pin(timeout(10 * SECOND, sleep(65 * SECOND)));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("nothing is over yet"),
            () = std::future::ready(()) => {}
        }
        advance(64 * SECOND).await;
        // It comes a second after the pause.
        assert_eq!(waiting.await, Ok(()));
        // Where nothing comes, that is the end all the same, a little later.
        let deadline = Instant::now() + 10 * SECOND;
        let mut waiting = Box::pin(sleep_until(deadline));
        tokio::select! {
            biased;
            () = &mut waiting => panic!("nothing is over yet"),
            () = std::future::ready(()) => {}
        }
        advance(60 * SECOND).await;
        waiting.await;
        assert!(deadline.elapsed() < 50 * SECOND + LAST_LOOK + LATE, "{:?}", deadline.elapsed());
    }
}
