//! The process itself: what it costs, and that its memory is written nowhere.

#[cfg(target_os = "linux")]
use prometheus::core::{Collector, Desc};
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
#[cfg(target_os = "linux")]
use prometheus::proto::MetricFamily;

/// Keeps the memory of this process, which holds keys and tokens, out of core dumps, and on Linux also from other processes of
/// the same user. To be called before there is any secret. What cannot be done is left: a filter of system calls may forbid
/// it, whose service manager limits core dumps itself.
pub fn keep_memory_private() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};

        let none = Rlimit { current: Some(0), maximum: Some(0) };
        let _ = setrlimit(Resource::Core, none);
    }
    // The limit does not hold where core dumps go to a program (`|` in /proc/sys/kernel/core_pattern).
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};

        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// The usual metrics of a process (`process_*`), with all that the kernel knows of the processor time: the collector of the
/// library counts whole seconds.
#[cfg(target_os = "linux")]
pub struct ProcessMetrics(ProcessCollector);

#[cfg(target_os = "linux")]
impl ProcessMetrics {
    /// Those of this process.
    pub fn for_self() -> Self {
        Self(ProcessCollector::for_self())
    }
}

#[cfg(target_os = "linux")]
impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        let cpu = families.iter_mut().filter(|family| family.name() == "process_cpu_seconds_total");
        for metric in cpu.flat_map(|family| family.mut_metric().iter_mut()) {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(cpu_seconds());
            metric.set_counter(counter);
        }
        families
    }
}

/// Processor time of all threads, in seconds.
#[cfg(target_os = "linux")]
fn cpu_seconds() -> f64 {
    use rustix::time::{ClockId, clock_gettime};

    let time = clock_gettime(ClockId::ProcessCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn processor_time_is_counted_in_fractions_of_a_second() {
        let registry = Registry::new();
        registry.register(Box::new(ProcessMetrics::for_self())).unwrap();
        let read = || {
            let families = registry.gather();
            let family = families.iter().find(|one| one.name() == "process_cpu_seconds_total");
            family.unwrap().get_metric()[0].get_counter().get_value()
        };
        let before = read();
        assert!(before > 0.0, "{before}");
        // Some milliseconds of work, which a count of seconds would not show.
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed() < std::time::Duration::from_millis(20) || read() <= before {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let after = read();
        assert!(after > before && after.fract() != 0.0, "{before} {after}");
    }

    #[test]
    fn the_other_metrics_are_the_librarys() {
        let names = |families: Vec<MetricFamily>| -> Vec<String> {
            families.iter().map(|family| family.name().to_owned()).collect()
        };
        let ours = names(ProcessMetrics::for_self().collect());
        assert_eq!(ours, names(ProcessCollector::for_self().collect()));
        for name in ["process_open_fds", "process_resident_memory_bytes", "process_threads"] {
            assert!(ours.iter().any(|ours| ours == name), "{name}: {ours:?}");
        }
    }
}
