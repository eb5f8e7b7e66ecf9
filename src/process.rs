//! The process itself: its metrics, the protection of its memory, and its one capability.

#[cfg(target_os = "linux")]
use prometheus::core::{Collector, Desc};
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
#[cfg(target_os = "linux")]
use prometheus::proto::MetricFamily;

/// Keeps the memory of this process, which holds keys and tokens, out of core dumps, and on Linux also away from other
/// processes of the same user. Must be called before there is any secret. Errors are ignored: a system call filter may
/// forbid it, and a service manager that sets such a filter limits core dumps itself.
pub fn keep_memory_private() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};

        let none = Rlimit { current: Some(0), maximum: Some(0) };
        let _ = setrlimit(Resource::Core, none);
    }
    // The limit does not apply if core dumps are piped to a program (`|` in /proc/sys/kernel/core_pattern).
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};

        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// Makes the capability to listen on ports below 1024 effective, if this process is permitted to have it. Must be called before
/// there are other threads, which inherit it.
///
/// In a container a process that is not root keeps no capability when a program starts, except those of the program's file.
/// In the image that file only *permits* the capability: with an effective one, the kernel would refuse to start the program
/// wherever the container has no capabilities, which is the usual case. Errors are ignored: listening will report them.
pub fn use_bind_capability() {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

        let bind = CapabilitySet::NET_BIND_SERVICE;
        if let Ok(mut sets) = capabilities(None)
            && sets.permitted.contains(bind)
            && !sets.effective.contains(bind)
        {
            sets.effective |= bind;
            let _ = set_capabilities(None, sets);
        }
    }
}

/// The usual metrics of a process (`process_*`), with the CPU time at the kernel's full resolution. The library's own
/// collector reports whole seconds.
#[cfg(target_os = "linux")]
pub struct ProcessMetrics(ProcessCollector);

#[cfg(target_os = "linux")]
impl ProcessMetrics {
    /// Creates the collector for this process.
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
            counter.set_value(cpu_time().as_secs_f64());
            metric.set_counter(counter);
        }
        families
    }
}

/// Returns the CPU time that all threads of this process have used.
#[cfg(target_os = "linux")]
pub fn cpu_time() -> std::time::Duration {
    use rustix::time::{ClockId, clock_gettime};

    let time = clock_gettime(ClockId::ProcessCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn cpu_time_has_fractions_of_a_second() {
        let registry = Registry::new();
        registry.register(Box::new(ProcessMetrics::for_self())).unwrap();
        let read = || {
            let families = registry.gather();
            let family =
                families.iter().find(|family| family.name() == "process_cpu_seconds_total");
            family.unwrap().get_metric()[0].get_counter().get_value()
        };
        let before = read();
        assert!(before > 0.0, "{before}");
        // Some milliseconds of work: a counter of whole seconds would not change.
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed() < std::time::Duration::from_millis(20) || read() <= before {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let after = read();
        assert!(after > before && after.fract() != 0.0, "{before} {after}");
    }

    #[test]
    fn other_metrics_are_those_of_the_library() {
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
