//! A pool of pipes that threads share, whatever a pipe is.

use prometheus::IntGauge;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A pool of at most `limit` pipes. A pipe counts until it is closed, so that there are never more.
#[derive(Debug)]
pub(super) struct PipePool<P> {
    limit: usize,
    /// How many unused pipes are kept open.
    max_idle: usize,
    /// Pipes in use and idle ones.
    open: AtomicUsize,
    idle: Mutex<Vec<P>>,
    /// Whether pipes are of no use.
    is_refused: AtomicBool,
    gauge: IntGauge,
}

impl<P> PipePool<P> {
    /// Creates an empty pool, whose open pipes `gauge` counts.
    pub(super) fn new(limit: usize, max_idle: usize, gauge: IntGauge) -> Self {
        Self {
            limit,
            max_idle,
            open: AtomicUsize::new(0),
            idle: Mutex::default(),
            is_refused: AtomicBool::new(false),
            gauge,
        }
    }

    /// Returns an idle pipe or a new one; `None` if the limit is reached, pipes are of no use, or none can be opened. The
    /// caller has to release or close it.
    pub(super) fn acquire(&self, open: impl FnOnce() -> Option<P>) -> Option<P> {
        if self.is_refused() {
            return None;
        }
        let idle = self.idle.lock().pop();
        idle.or_else(|| self.open(open))
    }

    /// Takes back an empty pipe.
    pub(super) fn release(&self, pipe: P) {
        let mut idle = self.idle.lock();
        if idle.len() < self.max_idle && !self.is_refused() {
            idle.push(pipe);
            return;
        }
        drop(idle);
        self.close(pipe);
    }

    /// Closes a pipe.
    pub(super) fn close(&self, pipe: P) {
        // Before it is no longer counted: another thread may open one at once.
        drop(pipe);
        self.open.fetch_sub(1, Ordering::Release);
        self.gauge.dec();
    }

    /// Gives up pipes for good, because they are of no use, and closes the idle ones. Returns whether this is the first time.
    pub(super) fn refuse(&self) -> bool {
        let is_first = !self.is_refused.swap(true, Ordering::Relaxed);
        // A pipe that is released after this is closed: whoever holds the lock sees what was stored before it was released.
        let idle = std::mem::take(&mut *self.idle.lock());
        idle.into_iter().for_each(|pipe| self.close(pipe));
        is_first
    }

    fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    fn open(&self, open: impl FnOnce() -> Option<P>) -> Option<P> {
        let increment = |open| (open < self.limit).then_some(open + 1);
        self.open.fetch_update(Ordering::Acquire, Ordering::Relaxed, increment).ok()?;
        let pipe = open();
        if pipe.is_some() {
            self.gauge.inc();
        } else {
            self.open.fetch_sub(1, Ordering::Release);
        }
        pipe
    }
}
