//! How busy a thread is.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What times are counted from.
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since [`ZERO`]; never 0.
fn now() -> u64 {
    u64::try_from(ZERO.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Time that a thread had nothing to do; the rest it worked, or waited for a processor, which for its sessions is the
/// same. Only the thread itself writes while it runs.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Nanoseconds, without the time that it is parked now.
    idle: AtomicU64,
    /// Since when it is parked; 0 when it is not.
    parked: AtomicU64,
    /// What was idle time when somebody last looked.
    seen: AtomicU64,
}

impl Busy {
    /// It has nothing to do.
    pub(super) fn park(&self) {
        self.parked.store(now(), Ordering::Relaxed);
    }

    /// It has something to do.
    pub(super) fn unpark(&self) {
        let parked = self.parked.swap(0, Ordering::Relaxed);
        if parked != 0 {
            let idle = self.idle.load(Ordering::Relaxed) + now().saturating_sub(parked);
            self.idle.store(idle, Ordering::Relaxed);
        }
    }

    /// The part of the `period` since the last call in which it was busy, in thousandths. For one caller.
    pub(super) fn since_last(&self, period: Duration) -> u32 {
        // A thread that goes on between these two is counted as parked twice, for once; it was idle then.
        let parked = self.parked.load(Ordering::Relaxed);
        let waits = if parked == 0 { 0 } else { now().saturating_sub(parked) };
        let idle = self.idle.load(Ordering::Relaxed) + waits;
        let seen = self.seen.swap(idle, Ordering::Relaxed);
        let idle = Duration::from_nanos(idle.saturating_sub(seen)).min(period);
        let idle = idle.as_nanos() * 1000 / period.as_nanos().max(1);
        1000 - u32::try_from(idle).unwrap_or(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_thread_is_idle_and_one_that_never_parks_is_busy() {
        let busy = Busy::default();
        assert_eq!(busy.since_last(Duration::from_millis(1)), 1000);
        busy.park();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        // Parked at least as long as the period.
        assert_eq!(busy.since_last(Duration::from_millis(5)), 0);
        busy.unpark();
        let _ = busy.since_last(Duration::from_millis(1));
        assert_eq!(busy.since_last(Duration::from_millis(1)), 1000);
    }
}
