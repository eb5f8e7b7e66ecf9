//! CPU, memory and descriptors of processes, and CPU of the machine, from `/proc`.

use std::fs;
use std::path::Path;
use std::time::Instant;

/// Resources that processes have used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Meter {
    /// CPU time of all their threads, in seconds.
    pub(crate) cpu: f64,
    /// Private memory and their share of shared memory, in bytes, without the kernel's.
    pub(crate) pss: f64,
    /// Open descriptors.
    pub(crate) files: f64,
}

impl Meter {
    pub(crate) fn of(pids: &[u32]) -> Self {
        pids.iter().flat_map(|pid| family(*pid)).fold(Self::default(), |sum, pid| Self {
            cpu: sum.cpu + cpu(pid),
            pss: sum.pss + pss(pid),
            files: sum.files + entries(format!("/proc/{pid}/fd")).len() as f64,
        })
    }
}

fn entries(path: impl AsRef<Path>) -> Vec<String> {
    fs::read_dir(path)
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
        })
        .unwrap_or_default()
}

/// A process and its children, such as nginx's workers.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    for thread in entries(format!("/proc/{pid}/task")) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
        let children = children.unwrap_or_default();
        family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    family
}

/// CPU time of one process without its children, in seconds.
pub(crate) fn cpu_of(pid: u32) -> f64 {
    cpu(pid)
}

/// The first figure of `schedstat` is the time on a processor, in nanoseconds.
fn cpu(pid: u32) -> f64 {
    let of = |thread: &String| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    entries(format!("/proc/{pid}/task")).iter().filter_map(of).sum::<f64>() / 1e9
}

/// Ticks per second of `/proc/stat`, on all architectures but Alpha.
const TICKS: f64 = 100.0;

/// What the whole machine has done so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    at: Instant,
    /// Time in which its processors worked for nobody here: idle, waiting for a disk, or given to another virtual machine; in
    /// seconds.
    unused: f64,
    processors: f64,
}

impl Machine {
    pub(super) fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> Self {
        let sum = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        let ticks: Vec<f64> = sum.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [idle, iowait, steal] = [3, 4, 7].map(|column| ticks.get(column).unwrap_or(&0.0));
        let processors = stat.lines().filter(|line| line.starts_with("cpu")).count();
        Self {
            at: Instant::now(),
            unused: (idle + iowait + steal) / TICKS,
            processors: processors.saturating_sub(1) as f64,
        }
    }

    /// CPU time that everything on the machine has used since `before`, in seconds. It is what remains of the time that has
    /// passed, because Linux (with tickless idle) measures idle time, but only samples the other columns at each tick. Those
    /// stayed at zero while 10 desktop sessions were forwarded.
    pub(super) fn cpu_since(&self, before: &Self) -> f64 {
        let passed = self.at.duration_since(before.at).as_secs_f64() * self.processors;
        (passed - (self.unused - before.unused)).max(0.0)
    }
}

fn pss(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    number.unwrap_or(0.0) * 1024.0
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn idle_time_is_not_cpu_time_of_the_machine() {
        let stat = "cpu  1 2 3 400 50 6 7 8 9 10\ncpu0 1 2 3 4\ncpu1 5 6 7 8\nintr 5 5 5\n";
        let mut before = Machine::parse(stat);
        assert_eq!((before.processors, before.unused), (2.0, 4.58));
        let mut after = Machine { at: before.at + Duration::from_secs(3), ..before };
        assert_eq!(after.cpu_since(&before), 6.0);
        after.unused += 4.5;
        assert_eq!(after.cpu_since(&before), 1.5);
        after.unused += 10.0;
        assert_eq!(after.cpu_since(&before), 0.0, "the clocks differ a little");
        before = Machine::now();
        assert!(before.processors >= 1.0 && before.unused > 0.0, "{before:?}");
        let mut sum = 0_u64;
        while Machine::now().cpu_since(&before) < 0.05 {
            sum = std::hint::black_box(sum + 1);
        }
    }

    #[test]
    fn resources_of_this_process_are_measured() {
        let before = Meter::of(&[std::process::id()]);
        assert!(before.pss > 0.0 && before.files > 2.0, "{before:?}");
        let mut sum = 0_u64;
        while Meter::of(&[std::process::id()]).cpu <= before.cpu {
            sum = std::hint::black_box(sum + 1);
        }
        assert_eq!(Meter::of(&[u32::MAX]), Meter::default());
    }
}
