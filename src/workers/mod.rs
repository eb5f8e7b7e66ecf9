//! The threads on which sessions live.
//!
//! A session is on one thread with both of its directions: no lock, no cache line and no wake-up is shared with
//! another thread while bytes move. Everything else (accepting, first messages, the Router link, HTTP) has a thread of
//! its own, whose work therefore never stands between two bytes of a session.
//!
//! Sessions are packed: they go to the first thread that has time for them, and only when one has too little, some move
//! on. One busy thread finds several messages each time it wakes up where two half-idle ones find one, and the same
//! sessions cost a tenth to a quarter less.

mod balance;
mod busy;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use balance::Balance;
use busy::Busy;

/// How often it is looked how busy threads are. Long enough for a figure that means something, and short enough that
/// sessions beside one that suddenly takes a whole thread do not wait for long.
const PERIOD: Duration = Duration::from_millis(200);

/// The threads on which sessions live; a clone is the same ones. They end with the last clone.
#[derive(Debug, Clone)]
pub struct Workers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    workers: Vec<Worker>,
    stop: CancellationToken,
    /// For sessions where there are no threads.
    here: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a thread, its sessions and those who look at them share. While nothing is wrong, sessions only read it.
#[derive(Debug, Default)]
struct Shared {
    number: usize,
    sessions: AtomicUsize,
    /// Sessions that have moved elsewhere.
    moves: AtomicUsize,
    busy: Busy,
    /// How busy it was in the last period, in thousandths.
    load: AtomicU32,
    /// Counts periods.
    period: AtomicU32,
    /// Work that is to move elsewhere, in nanoseconds a period; not positive where there is none.
    surplus: AtomicI64,
    /// Where it is to move.
    to: AtomicUsize,
}

impl Workers {
    /// No threads: sessions live where they begin, on the runtime of the relay. For tests, whose time is paused.
    pub fn here() -> Self {
        Self(Arc::new(Inner { workers: Vec::new(), stop: CancellationToken::new(), here: None }))
    }

    /// The same, and sessions leave their place for another one each time they have moved bytes: wherever those are, it
    /// can be done. For tests, too.
    pub fn here_and_restless() -> Self {
        let here = Shared {
            surplus: AtomicI64::new(i64::MAX),
            to: AtomicUsize::new(1),
            ..Shared::default()
        };
        let here = Some(Arc::new(here));
        Self(Arc::new(Inner { workers: Vec::new(), stop: CancellationToken::new(), here }))
    }

    /// Starts so many threads.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut inner = Inner { workers: Vec::new(), stop: stop.clone(), here: None };
        for number in 0..count {
            inner.workers.push(Worker::start(number, stop.clone())?);
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Runs a session to its end, on the first thread that has time for it. It holds its place as long as it is there.
    pub fn spawn<F>(&self, session: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let loads = self.0.workers.iter().map(|worker| {
            let shared = &worker.shared;
            (shared.load.load(Ordering::Relaxed), shared.sessions.load(Ordering::Relaxed))
        });
        self.spawn_at(balance::place(loads), session);
    }

    /// The same on a certain thread; on this one where there is none of this number.
    pub fn spawn_at<F>(&self, number: usize, session: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(worker) = self.0.workers.get(number) else {
            tokio::spawn(session(Place::new(self.0.here.clone())));
            return;
        };
        worker.runtime.spawn(session(Place::new(Some(worker.shared.clone()))));
    }

    /// Has sessions move where one thread is too busy, or two could be one; for ever.
    pub async fn keep_balanced(&self) {
        if self.0.workers.len() < 2 {
            return std::future::pending().await;
        }
        // Not at once: a period that has hardly begun says nothing.
        let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut balance = Balance::new(self.0.workers.len());
        let mut last = Instant::now();
        loop {
            ticks.tick().await;
            // A tick gives the time for which it was planned.
            let now = Instant::now();
            let period = now - std::mem::replace(&mut last, now);
            let shared = self.0.workers.iter().map(|worker| &worker.shared);
            let loads: Vec<u32> = shared.map(|shared| shared.busy.since_last(period)).collect();
            let moves = balance.moves(&loads);
            for (worker, load) in self.0.workers.iter().zip(&loads) {
                worker.shared.load.store(*load, Ordering::Relaxed);
            }
            self.share_out(|number| {
                let (share, to) = moves[number]?;
                if share == balance::ALL {
                    return Some((i64::MAX, to));
                }
                let nanos = period.as_nanos() * u128::from(share) / 1000;
                Some((i64::try_from(nanos).unwrap_or(i64::MAX), to))
            });
        }
    }

    /// Has the sessions of a thread move to another one as soon as they move bytes, until the next period begins.
    /// For tests.
    pub fn empty(&self, from: usize, to: usize) {
        if let Some(Worker { shared, .. }) = self.0.workers.get(from) {
            shared.to.store(to, Ordering::Relaxed);
            shared.surplus.store(i64::MAX, Ordering::Relaxed);
        }
    }

    /// Returns when every thread has done something for whoever asks: where one hangs, never.
    pub async fn answer(&self) {
        for worker in &self.0.workers {
            // A thread that has ended, as all do at the end, has nothing to say any more.
            let _ = worker.runtime.spawn(async {}).await;
        }
    }

    /// How often sessions have moved.
    pub fn moves(&self) -> usize {
        let threads = self.0.workers.iter().map(|worker| &worker.shared).chain(&self.0.here);
        threads.map(|shared| shared.moves.load(Ordering::Relaxed)).sum()
    }

    /// The numbers of sessions on each thread.
    pub fn sessions(&self) -> Vec<usize> {
        let sessions = |worker: &Worker| worker.shared.sessions.load(Ordering::Relaxed);
        self.0.workers.iter().map(sessions).collect()
    }

    /// Begins a period in which these surpluses are to move.
    fn share_out(&self, surplus: impl Fn(usize) -> Option<(i64, usize)>) {
        for (number, Worker { shared, .. }) in self.0.workers.iter().enumerate() {
            let (surplus, to) = surplus(number).unwrap_or((0, number));
            shared.to.store(to, Ordering::Relaxed);
            shared.surplus.store(surplus, Ordering::Relaxed);
            shared.period.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The place of a session on a thread, counted until it is dropped.
#[derive(Debug)]
pub struct Place {
    on: Option<Arc<Shared>>,
    effort: Effort,
}

impl Place {
    fn new(on: Option<Arc<Shared>>) -> Self {
        if let Some(shared) = &on {
            shared.sessions.fetch_add(1, Ordering::Relaxed);
        }
        Self { on, effort: Effort::default() }
    }

    /// The session has worked for so long, and perhaps moved bytes. The number of the thread that it is to go
    /// to, if it is.
    pub fn worked(&mut self, work: Duration, has_moved: bool) -> Option<usize> {
        let shared = self.on.as_ref()?;
        let effort = self.effort.add(shared.period.load(Ordering::Relaxed), work);
        let surplus = shared.surplus.load(Ordering::Relaxed);
        if !has_moved || !balance::is_to_move(effort, surplus) {
            return None;
        }
        if surplus != i64::MAX {
            if shared.sessions.load(Ordering::Relaxed) < 2 {
                // What a thread does beside is no reason to send its only session to and fro.
                return None;
            }
            shared.surplus.fetch_sub(effort, Ordering::Relaxed);
        }
        let to = shared.to.load(Ordering::Relaxed);
        if to == shared.number {
            return None;
        }
        shared.moves.fetch_add(1, Ordering::Relaxed);
        Some(to)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(shared) = &self.on {
            shared.sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How long a session worked in this period and in the one before, in microseconds.
#[derive(Debug, Default)]
struct Effort {
    period: u32,
    now: u32,
    before: u32,
}

impl Effort {
    /// Adds work of this period. Gives what the session does in one, in nanoseconds.
    fn add(&mut self, period: u32, work: Duration) -> i64 {
        if period != self.period {
            let is_next = period.wrapping_sub(self.period) == 1;
            self.before = if is_next { self.now } else { 0 };
            (self.period, self.now) = (period, 0);
        }
        let micros = u32::try_from(work.as_nanos().div_ceil(1000)).unwrap_or(u32::MAX);
        self.now = self.now.saturating_add(micros);
        i64::from(self.now.max(self.before)) * 1000
    }
}

impl Worker {
    fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let shared = Arc::new(Shared { number, ..Shared::default() });
        let (parks, unparks) = (shared.clone(), shared.clone());
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .on_thread_park(move || parks.busy.park())
            .on_thread_unpark(move || unparks.busy.unpark())
            .build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new()
            .name(format!("forward-{number}"))
            .spawn(move || runtime.block_on(stop.cancelled()))?;
        Ok(Self { runtime: handle, shared, thread: Some(thread) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_is_that_of_the_busier_of_two_periods() {
        let mut effort = Effort::default();
        assert_eq!(effort.add(7, Duration::from_micros(30)), 30_000);
        assert_eq!(effort.add(7, Duration::from_micros(30)), 60_000);
        assert_eq!(effort.add(8, Duration::from_nanos(1)), 60_000);
        assert_eq!(effort.add(9, Duration::from_micros(5)), 5_000);
        // What was done long ago says nothing.
        assert_eq!(effort.add(12, Duration::from_micros(2)), 2_000);
    }

    #[test]
    fn sessions_move_until_the_surplus_has() {
        let shared = Arc::new(Shared::default());
        let mut places: Vec<Place> = (0..4).map(|_| Place::new(Some(shared.clone()))).collect();
        let work = Duration::from_millis(20);
        assert!(places.iter_mut().all(|place| place.worked(work, true).is_none()));
        shared.to.store(3, Ordering::Relaxed);
        shared.surplus.store(45_000_000, Ordering::Relaxed);
        let mut moving = |has_moved| -> Vec<usize> {
            let worked = |place: &mut Place| place.worked(Duration::ZERO, has_moved);
            places.iter_mut().filter_map(worked).collect()
        };
        assert!(moving(false).is_empty());
        assert_eq!(moving(true), [3, 3]);
        assert_eq!(shared.sessions.load(Ordering::Relaxed), 4);
        drop(places);
        assert_eq!(shared.sessions.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_thread_that_hangs_does_not_answer() {
        let workers = Workers::start(2).unwrap();
        workers.answer().await;
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (hangs, does_hang) = tokio::sync::oneshot::channel();
        workers.spawn_at(1, |_place| async move {
            let _ = hangs.send(());
            let _ = released.recv();
        });
        does_hang.await.unwrap();
        let answer = tokio::spawn({
            let workers = workers.clone();
            async move { workers.answer().await }
        });
        // The other thread answers in the meantime.
        workers.0.workers[0].runtime.spawn(async {}).await.unwrap();
        assert!(!answer.is_finished());
        drop(release);
        answer.await.unwrap();
    }

    #[tokio::test]
    async fn a_new_session_goes_to_the_first_thread_that_has_time() {
        let workers = Workers::start(2).unwrap();
        let thread = async |workers: &Workers| {
            let (tell, told) = tokio::sync::oneshot::channel();
            workers.spawn(|place| async move {
                let name = std::thread::current().name().map(str::to_owned);
                let _ = tell.send(name);
                drop(place);
            });
            told.await.unwrap().unwrap()
        };
        assert_eq!(thread(&workers).await, "forward-0");
        assert_eq!(thread(&workers).await, "forward-0");
        workers.0.workers[0].shared.load.store(990, Ordering::Relaxed);
        assert_eq!(thread(&workers).await, "forward-1");
    }
}
