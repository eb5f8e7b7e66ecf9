//! Measures the resources of this machine. It reads a few files of `/proc` and `/sys`, which takes some hundred microseconds
//! and never waits for a disk.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::memory;
use crate::open_files::DescriptorBudget;
use crate::state::shared::SharedState;

#[cfg(target_os = "linux")]
use super::cpu::CpuMeter;
use super::resources::{MeasureResources, Resource, ResourceUse};

/// Measures the resources of this process.
pub(crate) struct MachineMeter<F> {
    state: SharedState,
    config: watch::Receiver<Arc<Config>>,
    /// Returns the number of connections that are not paired.
    pending: F,
    #[cfg(target_os = "linux")]
    cpu: CpuMeter,
    /// How many bytes had been moved, and when.
    moved: Option<(Instant, u64)>,
}

impl<F: Fn() -> u64 + Send> MachineMeter<F> {
    /// Creates a meter. `pending` returns the number of connections that are not paired.
    pub(crate) fn new(
        state: SharedState,
        config: watch::Receiver<Arc<Config>>,
        pending: F,
    ) -> Self {
        Self {
            state,
            config,
            pending,
            #[cfg(target_os = "linux")]
            cpu: CpuMeter::default(),
            moved: None,
        }
    }

    #[cfg(target_os = "linux")]
    fn measure_cpu(&mut self, now: Instant) -> Option<f64> {
        self.cpu.measure(now)
    }

    /// Returns `None`: the CPU time cannot be read on this system.
    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, reason = "the same call on all systems")]
    fn measure_cpu(&mut self, _now: Instant) -> Option<f64> {
        None
    }

    /// Returns which share of `TotalBandwidth` was used since the last call.
    fn measure_bandwidth(&mut self, now: Instant) -> Option<f64> {
        let limit = self.config.borrow().total_bandwidth.map(|limit| limit.0.get());
        let Some(limit) = limit else {
            // Counting the bytes looks at every session, so it is done only if there is a limit.
            self.moved = None;
            return None;
        };
        let (_, bytes) = self.state.refresh_metrics();
        let (last, before) = self.moved.replace((now, bytes))?;
        let elapsed = now.saturating_duration_since(last).as_secs_f64();
        let allowed = to_f64(limit) * elapsed;
        (allowed > 0.0).then(|| (to_f64(bytes.saturating_sub(before)) / allowed).min(1.0))
    }

    /// Returns which share of the descriptors for peers is in use. They are counted and not looked up: a directory with
    /// 200 000 entries takes a while.
    fn measure_descriptors(&self) -> Option<f64> {
        let workers = self.config.borrow().startup.worker_count();
        let budget = DescriptorBudget::of_process(workers)?.peers;
        let used = 2 * self.state.counts().active as u64 + (self.pending)();
        Some((to_f64(used) / to_f64(budget.max(1))).min(1.0))
    }
}

impl<F: Fn() -> u64 + Send> MeasureResources for MachineMeter<F> {
    fn measure(&mut self, now: Instant) -> ResourceUse {
        ResourceUse {
            cpu: self.measure_cpu(now),
            bandwidth: self.measure_bandwidth(now),
            descriptors: self.measure_descriptors(),
            memory: memory::used_share(),
        }
    }
}

/// Returns a sentence on what `OfferByLoad` cannot take into account, because this system does not report it; `None` if all is
/// well, or `OfferByLoad` is off.
pub fn unmeasured_warning(config: &Config) -> Option<String> {
    if !config.offer_by_load {
        return None;
    }
    let unmeasured = list_unmeasured();
    let names: Vec<_> = unmeasured.iter().map(|resource| resource.name()).collect();
    (!names.is_empty()).then(|| describe_unmeasured(&names.join(" and ")))
}

fn list_unmeasured() -> Vec<Resource> {
    let cpu = cfg!(not(target_os = "linux")).then_some(Resource::Cpu);
    let memory = memory::used_share().is_none().then_some(Resource::Memory);
    cpu.into_iter().chain(memory).collect()
}

fn describe_unmeasured(names: &str) -> String {
    format!(
        "OfferByLoad: this system does not report how much {names} is left, so the keys on offer do not follow it. Set \
         MaxPeerCount to what the machine can carry"
    )
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no exact numbers")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::time::Duration;

    use prometheus::Registry;

    use super::*;
    use crate::config::testing::config;
    use crate::state::metrics::StateMetrics;

    fn meter(settings: &[(&str, &str)], pending: u64) -> MachineMeter<impl Fn() -> u64 + Send> {
        let metrics = StateMetrics::new(&Registry::new()).unwrap();
        let settings = watch::Sender::new(Arc::new(config(settings)));
        MachineMeter::new(SharedState::new(10, 0, metrics), settings.subscribe(), move || pending)
    }

    #[test]
    fn everything_that_has_a_limit_is_measured() {
        let mut meter = meter(&[("TOTAL_BANDWIDTH", "1MiB/s")], 0);
        let now = Instant::now();
        let first = meter.measure(now);
        assert_eq!((first.cpu, first.bandwidth), (None, None), "rates need two measurements");
        assert!(first.memory.is_some_and(|used| used > 0.0 && used <= 1.0), "{first:?}");
        let second = meter.measure(now + Duration::from_secs(1));
        assert!(second.cpu.is_some_and(|used| (0.0..=1.0).contains(&used)), "{second:?}");
        assert_eq!(second.bandwidth, Some(0.0));
        if DescriptorBudget::of_process(1).is_some() {
            assert_eq!(second.descriptors, Some(0.0));
        }
    }

    #[test]
    fn bandwidth_without_a_limit_does_not_count() {
        let mut meter = meter(&[], u64::MAX);
        let now = Instant::now();
        meter.measure(now);
        let measured = meter.measure(now + Duration::from_secs(1));
        assert_eq!(measured.bandwidth, None);
        if DescriptorBudget::of_process(1).is_some() {
            assert_eq!(measured.descriptors, Some(1.0), "pending connections have descriptors");
        }
    }

    #[test]
    fn what_is_not_reported_is_named() {
        assert_eq!(unmeasured_warning(&config(&[])), None);
        assert_eq!(unmeasured_warning(&config(&[("OFFER_BY_LOAD", "false")])), None);
        assert!(describe_unmeasured("CPU and memory").contains("CPU and memory"));
    }
}
