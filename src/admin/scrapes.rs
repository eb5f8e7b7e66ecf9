//! Gathering the metrics where that holds up nothing else.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Gathering is followed by a pause of this many times the time that it took.
const PAUSE: u32 = 9;

/// One scrape at a time, and at most a tenth of the time, whoever scrapes how often.
#[derive(Debug, Clone)]
pub(super) struct Scrapes(Arc<Semaphore>);

impl Default for Scrapes {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Scrapes {
    /// Gathers when it is time, on a thread that does not forward. In a task of its own: whoever asks and goes away must
    /// not cut the pause short. `None` where gathering fails.
    pub(super) async fn gather<T: Send + 'static>(
        &self,
        gather: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let scrapes = self.0.clone();
        let gathering = tokio::spawn(async move {
            let permit = scrapes.acquire_owned().await.ok()?;
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
    async fn one_that_fails_holds_up_nobody() {
        let scrapes = Scrapes::default();
        assert_eq!(scrapes.gather(|| panic!("a failure, for this test")).await, None::<()>);
        assert_eq!(scrapes.gather(|| 7).await, Some(7));
    }
}
