//! The threads on which sessions live.
//!
//! A session stays on one thread with both of its directions: no lock, no cache line and no wake-up is shared with
//! another thread while bytes move. Everything else (accepting, first messages, the Router link, HTTP) has a thread of
//! its own, whose work therefore never stands between two bytes of a session.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// The threads on which sessions live; a clone is the same ones. They end with the last clone.
#[derive(Debug, Clone)]
pub struct Workers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    workers: Vec<Worker>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    sessions: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// As many threads as this process may use processors, by its affinity and by the quotas of its control groups (both
/// versions).
pub fn default_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Workers {
    /// No threads: sessions live where they begin, on the runtime of the relay. For tests, whose time is paused.
    pub fn here() -> Self {
        Self(Arc::new(Inner { workers: Vec::new(), stop: CancellationToken::new() }))
    }

    /// Starts so many threads.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut inner = Inner { workers: Vec::new(), stop: stop.clone() };
        for number in 0..count {
            inner.workers.push(Worker::start(number, stop.clone())?);
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Runs a session to its end, on the thread that has the fewest. It holds its place as long as it is there.
    pub fn spawn<F>(&self, session: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let least =
            self.0.workers.iter().min_by_key(|worker| worker.sessions.load(Ordering::Relaxed));
        let Some(worker) = least else {
            tokio::spawn(session(Place(None)));
            return;
        };
        worker.sessions.fetch_add(1, Ordering::Relaxed);
        worker.runtime.spawn(session(Place(Some(worker.sessions.clone()))));
    }
}

/// The place of a session on a thread, counted until it is dropped.
#[derive(Debug)]
pub struct Place(Option<Arc<AtomicUsize>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(sessions) = &self.0 {
            sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Worker {
    fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new()
            .name(format!("forward-{number}"))
            .spawn(move || runtime.block_on(stop.cancelled()))?;
        Ok(Self { runtime: handle, sessions: Arc::default(), thread: Some(thread) })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.workers.iter_mut().filter_map(|worker| worker.thread.take()) {
            // The last one to hold this may be a session itself.
            if thread.thread().id() != std::thread::current().id() {
                // A thread that panicked has said so.
                let _ = thread.join();
            }
        }
    }
}
