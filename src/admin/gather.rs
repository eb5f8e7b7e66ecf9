//! Limits how much time is spent on responses that look at all sessions, so that they delay nothing else.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Each gathering is followed by a pause of this many times its duration.
const PAUSE_FACTOR: u32 = 9;

/// Allows one gathering at a time, for at most a tenth of the time, however often it is requested.
#[derive(Debug, Clone)]
pub(super) struct GatherGate(Arc<Semaphore>);

impl Default for GatherGate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl GatherGate {
    /// Runs `gather` when its turn comes, on a thread that does not forward. A caller that gives up while it waits is
    /// forgotten. Gathering that has begun continues in a task of its own, so that a caller that gives up does not cut
    /// the pause short. `None` if `gather` panics.
    pub(super) async fn gather<T: Send + 'static>(
        &self,
        gather: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let permit = self.0.clone().acquire_owned().await.ok()?;
        let gathering = tokio::spawn(async move {
            let gather = move || {
                let began = Instant::now();
                (gather(), began.elapsed())
            };
            let (gathered, took) = tokio::task::spawn_blocking(gather).await.ok()?;
            tokio::spawn(async move {
                sleep(took * PAUSE_FACTOR).await;
                drop(permit);
            });
            Some(gathered)
        });
        gathering.await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn gathering_uses_a_tenth_of_the_time_even_if_the_caller_goes_away() {
        let gate = GatherGate::default();
        for gone in [false, true] {
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            let (finish, finished) = mpsc::channel();
            let gathering = tokio::spawn({
                let gate = gate.clone();
                async move {
                    let gather = move || {
                        begun.send(()).unwrap();
                        finished.recv().unwrap();
                    };
                    gate.gather(gather).await
                }
            });
            has_begun.await.unwrap();
            if gone {
                gathering.abort();
            }
            tokio::time::advance(2 * SECOND).await;
            let began = Instant::now();
            finish.send(()).unwrap();
            assert_eq!(gate.gather(Instant::now).await, Some(began + 18 * SECOND), "{gone}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_while_waiting_is_forgotten() {
        let gate = GatherGate::default();
        let gathered = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let gather = || {
            let gathered = gathered.clone();
            move || gathered.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        };
        let first = gate.0.clone().acquire_owned().await.unwrap();
        let mut gone = Vec::new();
        for _ in 0..1000 {
            let (gate, gather) = (gate.clone(), gather());
            gone.push(tokio::spawn(async move { gate.gather(gather).await }));
        }
        tokio::task::yield_now().await;
        for task in gone {
            task.abort();
            let _ = task.await;
        }
        drop(first);
        assert_eq!(gate.gather(gather()).await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_gathering_does_not_block_the_next() {
        let gate = GatherGate::default();
        assert_eq!(gate.gather(|| panic!("a failure, for this test")).await, None::<()>);
        assert_eq!(gate.gather(|| 7).await, Some(7));
    }
}
