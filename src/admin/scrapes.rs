//! Gathering what looks at all sessions, where that holds up nothing else.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Gathering is followed by a pause of this many times the time that it took.
const PAUSE: u32 = 9;

/// One gathering at a time, and at most a tenth of the time, whoever asks how often.
#[derive(Debug, Clone)]
pub(super) struct Scrapes(Arc<Semaphore>);

impl Default for Scrapes {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Scrapes {
    /// Gathers when it is time, on a thread that does not forward. Whoever goes away while waiting is forgotten; once it
    /// has begun, it goes on in a task of its own: going away must not cut the pause short. `None` where gathering fails.
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
                sleep(took * PAUSE).await;
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
    async fn it_uses_a_tenth_of_the_time_even_when_nobody_waits_for_the_answer() {
        let scrapes = Scrapes::default();
        for gone in [false, true] {
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            let (finish, finished) = mpsc::channel();
            let gathering = tokio::spawn({
                let scrapes = scrapes.clone();
                async move {
                    let gather = move || {
                        begun.send(()).unwrap();
                        finished.recv().unwrap();
                    };
                    scrapes.gather(gather).await
                }
            });
            has_begun.await.unwrap();
            if gone {
                gathering.abort();
            }
            tokio::time::advance(2 * SECOND).await;
            let began = Instant::now();
            finish.send(()).unwrap();
            assert_eq!(scrapes.gather(Instant::now).await, Some(began + 18 * SECOND), "{gone}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_away_while_waiting_is_forgotten() {
        let scrapes = Scrapes::default();
        let gathered = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let gather = || {
            let gathered = gathered.clone();
            move || gathered.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        };
        let first = scrapes.0.clone().acquire_owned().await.unwrap();
        let mut gone = Vec::new();
        for _ in 0..1000 {
            let (scrapes, gather) = (scrapes.clone(), gather());
            gone.push(tokio::spawn(async move { scrapes.gather(gather).await }));
        }
        tokio::task::yield_now().await;
        for task in gone {
            task.abort();
            let _ = task.await;
        }
        drop(first);
        assert_eq!(scrapes.gather(gather()).await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_holds_up_nobody() {
        let scrapes = Scrapes::default();
        assert_eq!(scrapes.gather(|| panic!("a failure, for this test")).await, None::<()>);
        assert_eq!(scrapes.gather(|| 7).await, Some(7));
    }
}
