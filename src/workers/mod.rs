//! The threads on which sessions run.
//!
//! Both directions of a session run on the same thread. While its bytes move, a session shares no lock, no cache line and no
//! wake-up with sessions of other threads, except for the pool of pipes when a direction takes a pipe or gives one back, and
//! for the account of a limit on bandwidth. Everything else (accepting, first messages, the Router link, HTTP) runs on a
//! thread of its own, so that a session never waits until such work yields.
//!
//! Sessions are packed: they go to the first thread with little load, and some of them move only if a thread is overloaded.
//! A busy thread finds several messages each time it wakes up, whereas two half-idle threads find one each, so the same
//! sessions cost a tenth to a quarter less.

mod balance;
mod busy;
mod plan;
mod slot;
mod thread;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use balance::{ALL_SESSIONS, Balancer, LoadMove};
use plan::MovePlan;
use slot::WorkerState;
use thread::WorkerThread;

pub use slot::WorkerSlot;

/// How often loads are measured and balanced. Long enough for a meaningful figure, and short enough that, if one session
/// suddenly takes a whole thread, the others on that thread do not wait for long.
const PERIOD: Duration = Duration::from_millis(200);

/// The threads on which sessions run. Clones share the same threads, which end with the last clone.
#[derive(Debug, Clone)]
pub struct Workers(Arc<WorkerPool>);

#[derive(Debug)]
struct WorkerPool {
    threads: Vec<WorkerThread>,
    /// For sessions that run on the current runtime.
    current: Arc<WorkerState>,
    stop: CancellationToken,
}

impl Workers {
    /// Creates workers without threads: sessions run on the runtime on which they begin. This is how a relay is embedded into a
    /// program that already has a runtime, as the doctor does.
    pub fn on_current_runtime() -> Self {
        Self(Arc::new(WorkerPool::new(Vec::new(), CancellationToken::new())))
    }

    /// Starts `count` threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(count: usize) -> io::Result<Self> {
        // If a thread cannot be started, dropping the pool ends and joins the others.
        let mut pool = WorkerPool::new(Vec::new(), CancellationToken::new());
        for number in 0..count {
            pool.threads.push(WorkerThread::start(number, pool.stop.clone())?);
        }
        pool.current = Arc::new(WorkerState::new(count));
        Ok(Self(Arc::new(pool)))
    }

    /// Runs a session to its end, on the first thread with little load. The session holds its slot as long as it runs there.
    pub fn spawn<F>(&self, session: impl FnOnce(WorkerSlot) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let loads = self.0.threads.iter().map(|thread| {
            let state = &thread.state;
            (state.load.load(Ordering::Relaxed), state.sessions.load(Ordering::Relaxed))
        });
        self.spawn_at(balance::choose_thread(loads), session);
    }

    /// Runs a session on the thread with this number, or on the current runtime if there is no such thread.
    pub fn spawn_at<F>(&self, number: usize, session: impl FnOnce(WorkerSlot) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(thread) = self.0.threads.get(number) else {
            tokio::spawn(session(WorkerSlot::new(self.0.current.clone())));
            return;
        };
        thread.runtime.spawn(session(WorkerSlot::new(thread.state.clone())));
    }

    /// Moves sessions from overloaded threads, and merges threads with little load. Never returns.
    pub async fn balance(&self) {
        if self.0.threads.len() < 2 {
            return std::future::pending().await;
        }
        // Not at once: a period that has hardly begun says nothing.
        let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut balancer = Balancer::new(self.0.threads.len());
        let mut last = Instant::now();
        loop {
            ticks.tick().await;
            // The instant that the tick returns is the scheduled one, which may have passed a while ago.
            let now = Instant::now();
            let period = now - std::mem::replace(&mut last, now);
            let states = self.0.threads.iter().map(|thread| &thread.state);
            let loads: Vec<u32> =
                states.clone().map(|state| state.busy.measure_load(period)).collect();
            let moves = balancer.plan_moves(&loads);
            for ((state, load), load_move) in states.zip(loads).zip(moves) {
                state.load.store(load, Ordering::Relaxed);
                begin_period(state, load_move, period);
            }
        }
    }

    /// Makes the sessions of thread `from` move to thread `to` as soon as they move bytes, until the balancer plans the next
    /// period. If there is no thread `from`, this applies to the current runtime, and permanently.
    pub fn evacuate(&self, from: usize, to: usize) {
        let state = self.0.threads.get(from).map_or(&self.0.current, |thread| &thread.state);
        let to = u16::try_from(to).unwrap_or(u16::MAX);
        let plan = MovePlan { surplus_us: MovePlan::EVERYTHING, to, ..state.plan.load() };
        state.plan.store(plan);
    }

    /// Returns when every thread has run a task for the caller; never, if one of them hangs.
    pub async fn ping(&self) {
        for thread in &self.0.threads {
            // A thread that has ended, as all do when the relay stops, no longer runs tasks.
            let _ = thread.runtime.spawn(async {}).await;
        }
    }

    /// Returns how many times a session has moved from one thread to another.
    pub fn migrations(&self) -> usize {
        let threads = self.0.threads.iter().map(|thread| &thread.state);
        let states = threads.chain([&self.0.current]);
        states.map(|state| state.migrations.load(Ordering::Relaxed)).sum()
    }

    /// Returns the number of sessions on each thread.
    pub fn sessions(&self) -> Vec<usize> {
        let sessions = |thread: &WorkerThread| thread.state.sessions.load(Ordering::Relaxed);
        self.0.threads.iter().map(sessions).collect()
    }
}

/// Begins a period of a thread, with the load that should move during the period.
fn begin_period(state: &WorkerState, load_move: LoadMove, period: Duration) {
    let (share, to) = load_move.unwrap_or((0, state.number));
    let surplus_us = if share == ALL_SESSIONS {
        MovePlan::EVERYTHING
    } else {
        let micros = period.as_micros() * u128::from(share) / 1000;
        i32::try_from(micros).unwrap_or(i32::MAX - 1)
    };
    let to = u16::try_from(to).unwrap_or(u16::MAX);
    let period = state.plan.load().period.wrapping_add(1);
    state.plan.store(MovePlan { surplus_us, to, period });
}

impl WorkerPool {
    fn new(threads: Vec<WorkerThread>, stop: CancellationToken) -> Self {
        let current = Arc::new(WorkerState::new(threads.len()));
        Self { threads, current, stop }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.stop.cancel();
        self.threads.iter_mut().for_each(WorkerThread::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn thread_that_hangs_does_not_answer_a_ping() {
        let workers = Workers::start(2).unwrap();
        workers.ping().await;
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (hangs, does_hang) = tokio::sync::oneshot::channel();
        workers.spawn_at(1, |_slot| async move {
            let _ = hangs.send(());
            let _ = released.recv();
        });
        does_hang.await.unwrap();
        let ping = tokio::spawn({
            let workers = workers.clone();
            async move { workers.ping().await }
        });
        // The other thread answers in the meantime.
        workers.0.threads[0].runtime.spawn(async {}).await.unwrap();
        assert!(!ping.is_finished());
        drop(release);
        ping.await.unwrap();
    }

    #[tokio::test]
    async fn new_session_runs_on_the_first_thread_with_little_load() {
        let workers = Workers::start(2).unwrap();
        let thread = async |workers: &Workers| {
            let (tell, told) = tokio::sync::oneshot::channel();
            workers.spawn(|slot| async move {
                let name = std::thread::current().name().map(str::to_owned);
                let _ = tell.send(name);
                drop(slot);
            });
            told.await.unwrap().unwrap()
        };
        assert_eq!(thread(&workers).await, "forward-0");
        assert_eq!(thread(&workers).await, "forward-0");
        workers.0.threads[0].state.load.store(990, Ordering::Relaxed);
        assert_eq!(thread(&workers).await, "forward-1");
    }

    #[test]
    fn each_period_has_a_plan_of_its_own() {
        let state = WorkerState::new(1);
        begin_period(&state, Some((500, 0)), PERIOD);
        assert_eq!(state.plan.load(), MovePlan { surplus_us: 100_000, to: 0, period: 1 });
        begin_period(&state, Some((ALL_SESSIONS, 0)), PERIOD);
        assert_eq!(state.plan.load().surplus_us, MovePlan::EVERYTHING);
        begin_period(&state, None, PERIOD);
        assert_eq!(state.plan.load(), MovePlan { surplus_us: 0, to: 1, period: 3 });
    }
}
