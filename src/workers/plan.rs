//! What a worker thread tells its sessions: how much work should move elsewhere in this period, and where to.

use crate::sync::atomic::{AtomicU64, Ordering};

/// The plan of a thread for one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MovePlan {
    /// Work that should move elsewhere, in microseconds a period; not positive if there is none.
    pub(super) surplus_us: i32,
    /// The number of the thread that gets it.
    pub(super) to: u16,
    /// Counts periods.
    pub(super) period: u16,
}

impl MovePlan {
    /// The surplus of a thread all of whose sessions should move.
    pub(super) const EVERYTHING: i32 = i32::MAX;

    fn to_bits(self) -> u64 {
        u64::from(self.surplus_us.cast_unsigned()) << 32
            | u64::from(self.to) << 16
            | u64::from(self.period)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the parts are what they were packed from")]
    fn from_bits(bits: u64) -> Self {
        let surplus_us = ((bits >> 32) as u32).cast_signed();
        Self { surplus_us, to: (bits >> 16) as u16, period: bits as u16 }
    }
}

/// A [`MovePlan`] that a thread reads each time a session has worked, and that the balancer replaces. It is one atomic value,
/// so that no session sees parts of two plans, and reading it takes one load.
#[derive(Debug, Default)]
pub(super) struct SharedPlan(AtomicU64);

impl SharedPlan {
    pub(super) fn load(&self) -> MovePlan {
        MovePlan::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn store(&self, plan: MovePlan) {
        self.0.store(plan.to_bits(), Ordering::Relaxed);
    }

    /// Lowers the surplus by the work of a session that moves. If the balancer has just replaced the plan, the new surplus is
    /// lowered instead, for one period.
    pub(super) fn reduce(&self, micros: i64) {
        // The surplus is in the highest bits: an overflow reaches no other part.
        let micros = u64::try_from(micros).unwrap_or(0);
        self.0.fetch_sub(micros << 32, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_survives_packing() {
        let shared = SharedPlan::default();
        assert_eq!(shared.load(), MovePlan::default());
        for surplus_us in [0, 1, -1, MovePlan::EVERYTHING, i32::MIN] {
            for (to, period) in [(0, 0), (u16::MAX, 0), (0, u16::MAX), (3, 7)] {
                let plan = MovePlan { surplus_us, to, period };
                shared.store(plan);
                assert_eq!(shared.load(), plan);
            }
        }
    }

    #[test]
    fn reducing_the_surplus_leaves_the_rest_of_the_plan() {
        let shared = SharedPlan::default();
        let plan = MovePlan { surplus_us: 45, to: u16::MAX, period: u16::MAX };
        shared.store(plan);
        shared.reduce(20);
        assert_eq!(shared.load(), MovePlan { surplus_us: 25, ..plan });
        shared.reduce(30);
        assert_eq!(shared.load(), MovePlan { surplus_us: -5, ..plan });
    }
}
