//! The slot of a session on a worker thread, which measures the session's work and decides when the session should move.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::balance;
use super::busy::BusyMeter;
use super::plan::{MovePlan, SharedPlan};

/// What a thread, its sessions and the balancer share. While no session should move, sessions only read it.
#[derive(Debug, Default)]
pub(super) struct WorkerState {
    pub(super) number: usize,
    pub(super) sessions: AtomicUsize,
    /// How many times a session has moved elsewhere.
    pub(super) migrations: AtomicUsize,
    pub(super) busy: BusyMeter,
    /// How busy the thread was in the last period, in thousandths.
    pub(super) load: AtomicU32,
    pub(super) plan: SharedPlan,
}

impl WorkerState {
    pub(super) fn new(number: usize) -> Self {
        Self { number, ..Self::default() }
    }
}

/// The slot of a session on a thread, counted until it is dropped.
#[derive(Debug)]
pub struct WorkerSlot {
    worker: Arc<WorkerState>,
    effort: Effort,
}

impl WorkerSlot {
    pub(super) fn new(worker: Arc<WorkerState>) -> Self {
        worker.sessions.fetch_add(1, Ordering::Relaxed);
        Self { worker, effort: Effort::default() }
    }

    /// Records that the session has worked for this long, and perhaps moved bytes. If the session should move, returns the
    /// number of its new thread.
    pub fn record_work(&mut self, work: Duration, has_moved: bool) -> Option<usize> {
        let plan = self.worker.plan.load();
        let effort = self.effort.add(plan.period, work);
        if !has_moved || !balance::should_move(effort, plan.surplus_us.into()) {
            return None;
        }
        if plan.surplus_us != MovePlan::EVERYTHING {
            if self.worker.sessions.load(Ordering::Relaxed) < 2 {
                // Other work of the thread is no reason to move its only session back and forth.
                return None;
            }
            self.worker.plan.reduce(effort);
        }
        let to = usize::from(plan.to);
        if to == self.worker.number {
            return None;
        }
        self.worker.migrations.fetch_add(1, Ordering::Relaxed);
        Some(to)
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.worker.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a session worked in this period and in the one before, in microseconds.
#[derive(Debug, Default)]
struct Effort {
    period: u16,
    now: u32,
    before: u32,
}

impl Effort {
    /// Adds work of this period. Returns how many microseconds the session works in a period.
    fn add(&mut self, period: u16, work: Duration) -> i64 {
        if period != self.period {
            let is_next = period.wrapping_sub(self.period) == 1;
            self.before = if is_next { self.now } else { 0 };
            (self.period, self.now) = (period, 0);
        }
        let micros = u32::try_from(work.as_nanos().div_ceil(1000)).unwrap_or(u32::MAX);
        self.now = self.now.saturating_add(micros);
        self.now.max(self.before).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_is_that_of_the_busier_of_two_periods() {
        let mut effort = Effort::default();
        assert_eq!(effort.add(7, Duration::from_micros(30)), 30);
        assert_eq!(effort.add(7, Duration::from_micros(30)), 60);
        assert_eq!(effort.add(8, Duration::from_nanos(1)), 60);
        assert_eq!(effort.add(9, Duration::from_micros(5)), 5);
        // Work of long ago does not count.
        assert_eq!(effort.add(12, Duration::from_micros(2)), 2);
        // Periods are counted modulo 2^16.
        assert_eq!(effort.add(u16::MAX, Duration::from_micros(9)), 9);
        assert_eq!(effort.add(0, Duration::from_micros(1)), 9);
    }

    #[test]
    fn sessions_move_until_the_surplus_has_moved() {
        let worker = Arc::new(WorkerState::default());
        let mut slots: Vec<_> = (0..4).map(|_| WorkerSlot::new(worker.clone())).collect();
        let work = Duration::from_millis(20);
        assert!(slots.iter_mut().all(|slot| slot.record_work(work, true).is_none()));
        worker.plan.store(MovePlan { surplus_us: 45_000, to: 3, period: 0 });
        let mut moving = |has_moved| -> Vec<usize> {
            let worked = |slot: &mut WorkerSlot| slot.record_work(Duration::ZERO, has_moved);
            slots.iter_mut().filter_map(worked).collect()
        };
        assert!(moving(false).is_empty());
        assert_eq!(moving(true), [3, 3]);
        assert_eq!(worker.sessions.load(Ordering::Relaxed), 4);
        drop(slots);
        assert_eq!(worker.sessions.load(Ordering::Relaxed), 0);
    }
}
