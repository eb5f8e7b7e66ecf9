//! The pool of pipes: the limit holds at every moment, and no pipe is forgotten or counted twice.

#[path = "../../../src/forward/pool.rs"]
mod pipes;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use prometheus::IntGauge;

use pipes::PipePool;

crate::models! {
    pipe_that_cannot_be_opened_does_not_count,
    ;
    limit_holds_and_no_pipe_is_forgotten,
    pipes_beyond_the_idle_ones_are_closed,
    no_pipe_is_kept_after_a_refusal,
}

/// A pipe, which counts as open from its creation until it is dropped.
struct Pipe(Arc<AtomicUsize>);

impl Drop for Pipe {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pool with what the system knows of its pipes.
struct Pipes {
    pool: PipePool<Pipe>,
    limit: usize,
    open: Arc<AtomicUsize>,
    gauge: IntGauge,
}

impl Pipes {
    fn new(limit: usize, max_idle: usize) -> Arc<Self> {
        let gauge = IntGauge::new("pipes", "Open pipes.").unwrap();
        let pool = PipePool::new(limit, max_idle, gauge.clone());
        Arc::new(Self { pool, limit, open: Arc::default(), gauge })
    }

    fn acquire(&self) -> Option<Pipe> {
        self.pool.acquire(|| {
            let before = self.open.fetch_add(1, Ordering::Relaxed);
            assert!(before < self.limit, "{} open pipes of at most {}", before + 1, self.limit);
            Some(Pipe(self.open.clone()))
        })
    }

    /// Returns the number of open pipes, on which all three counts agree once nothing moves.
    fn count(&self) -> usize {
        let open = self.open.load(Ordering::Relaxed);
        assert_eq!(self.gauge.get(), i64::try_from(open).unwrap());
        // As many can be opened as are missing, and no more.
        let mut held = Vec::new();
        while let Some(pipe) = self.acquire() {
            held.push(pipe);
        }
        held.into_iter().for_each(|pipe| self.pool.close(pipe));
        assert_eq!((self.open.load(Ordering::Relaxed), self.gauge.get()), (0, 0));
        open
    }
}

/// Uses pipes in two threads: one releases its pipe, the other loses its own, as a session does that ends with bytes in it.
fn limit_holds_and_no_pipe_is_forgotten() {
    let pipes = Pipes::new(1, 1);
    let users = [true, false].map(|releases| {
        let pipes = pipes.clone();
        thread::spawn(move || {
            for _ in 0..2 {
                match pipes.acquire() {
                    Some(pipe) if releases => pipes.pool.release(pipe),
                    Some(pipe) => pipes.pool.close(pipe),
                    None => {}
                }
            }
        })
    });
    for user in users {
        user.join().unwrap();
    }
    let pipe = pipes.acquire().expect("no pipe is in use");
    assert!(pipes.acquire().is_none(), "the limit is 1");
    pipes.pool.release(pipe);
    assert_eq!(pipes.count(), 1);
}

fn pipes_beyond_the_idle_ones_are_closed() {
    let pipes = Pipes::new(2, 1);
    let users = [0, 1].map(|_| {
        let pipes = pipes.clone();
        thread::spawn(move || {
            for _ in 0..2 {
                let pipe = pipes.acquire().expect("there is one for each");
                pipes.pool.release(pipe);
            }
        })
    });
    for user in users {
        user.join().unwrap();
    }
    assert_eq!(pipes.count(), 1);
}

fn no_pipe_is_kept_after_a_refusal() {
    let pipes = Pipes::new(2, 2);
    let user = {
        let pipes = pipes.clone();
        thread::spawn(move || {
            if let Some(pipe) = pipes.acquire() {
                pipes.pool.release(pipe);
            }
        })
    };
    let refusal = {
        let pipes = pipes.clone();
        thread::spawn(move || usize::from(pipes.pool.refuse()))
    };
    let first = usize::from(pipes.pool.refuse());
    assert_eq!(first + refusal.join().unwrap(), 1, "one is the first");
    user.join().unwrap();
    assert!(pipes.acquire().is_none());
    assert_eq!(pipes.count(), 0);
}

fn pipe_that_cannot_be_opened_does_not_count() {
    let pipes = Pipes::new(1, 1);
    let failing = {
        let pipes = pipes.clone();
        thread::spawn(move || {
            if let Some(pipe) = pipes.pool.acquire(|| None) {
                pipes.pool.release(pipe);
            }
        })
    };
    if let Some(pipe) = pipes.acquire() {
        pipes.pool.release(pipe);
    }
    failing.join().unwrap();
    let pipe = pipes.acquire().expect("no pipe is in use");
    pipes.pool.release(pipe);
    assert_eq!(pipes.count(), 1);
}
