//! Measures how busy a thread is.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, Ordering};

/// The time from which nanoseconds are counted.
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the nanoseconds since [`ZERO`]; never 0.
fn now() -> u64 {
    u64::try_from(ZERO.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Measures the time during which a thread has nothing to do. The rest of the time it works or waits for a processor, which
/// makes no difference to its sessions. Only the thread itself calls [`Self::park`] and [`Self::unpark`].
#[derive(Debug, Default)]
pub(super) struct BusyMeter {
    /// Idle time in nanoseconds, without the time since the thread was last parked.
    idle: AtomicU64,
    /// When the thread was parked; 0 if it is not parked.
    parked: AtomicU64,
    /// The idle time at the latest call of [`Self::measure_load`].
    seen: AtomicU64,
}

impl BusyMeter {
    /// Notes that the thread has nothing to do.
    pub(super) fn park(&self) {
        self.parked.store(now(), Ordering::Relaxed);
    }

    /// Notes that the thread has something to do.
    pub(super) fn unpark(&self) {
        let parked = self.parked.swap(0, Ordering::Relaxed);
        if parked != 0 {
            let idle = self.idle.load(Ordering::Relaxed) + now().saturating_sub(parked);
            self.idle.store(idle, Ordering::Relaxed);
        }
    }

    /// Returns how much of the `period` since the last call the thread was busy, in thousandths. Only one task may call this.
    pub(super) fn measure_load(&self, period: Duration) -> u32 {
        // The idle time of a thread that is unparked between these two loads is counted twice, in this period only.
        let parked = self.parked.load(Ordering::Relaxed);
        let still_parked = if parked == 0 { 0 } else { now().saturating_sub(parked) };
        let idle = self.idle.load(Ordering::Relaxed) + still_parked;
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
    fn parked_thread_is_idle_and_one_that_never_parks_is_busy() {
        let busy = BusyMeter::default();
        assert_eq!(busy.measure_load(Duration::from_millis(1)), 1000);
        busy.park();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        // Parked at least as long as the period.
        assert_eq!(busy.measure_load(Duration::from_millis(5)), 0);
        busy.unpark();
        let _ = busy.measure_load(Duration::from_millis(1));
        assert_eq!(busy.measure_load(Duration::from_millis(1)), 1000);
    }
}
