//! Measures how much of the CPU time that this process may use is in use. Linux only.
//!
//! Two limits apply: the processors of the affinity mask, and the quotas of the control groups (both versions). The time of
//! the process itself counts against the lowest of them. The time of a group with a quota counts against that quota as well,
//! since other processes of the group use it up too. A group without a quota limits nobody.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::{FromRead, ProcessCGroups};
use tokio::time::Instant;

use crate::memory::list_paths_up_to_root;
use crate::process;

/// A control group with a quota.
#[derive(Debug, PartialEq)]
struct QuotaGroup {
    path: PathBuf,
    /// How many processors the group may use on average.
    quota: f64,
    /// The CPU time of its processes; `None` if it cannot be read.
    used: Option<Duration>,
}

/// CPU times at one moment.
struct CpuTimes {
    at: Instant,
    own: Duration,
    groups: HashMap<PathBuf, Duration>,
}

/// Measures the use of CPU time between two calls.
#[derive(Default)]
pub(super) struct CpuMeter {
    last: Option<CpuTimes>,
}

impl CpuMeter {
    /// Returns which share (0 to 1) of the CPU time was in use since the last call; `None` at the first one.
    pub(super) fn measure(&mut self, now: Instant) -> Option<f64> {
        let groups = list_quota_groups(Path::new("/"));
        self.measure_with(now, process::cpu_time(), count_processors(), groups)
    }

    fn measure_with(
        &mut self,
        now: Instant,
        own: Duration,
        processors: f64,
        groups: Vec<QuotaGroup>,
    ) -> Option<f64> {
        let quota = groups.iter().map(|group| group.quota).fold(processors, f64::min);
        let share = self.last.as_ref().and_then(|last| {
            let elapsed = now.saturating_duration_since(last.at).as_secs_f64();
            let of_groups = groups.iter().filter_map(|group| {
                let used = group.used?.saturating_sub(*last.groups.get(&group.path)?);
                Some(used.as_secs_f64() / (elapsed * group.quota))
            });
            let own = own.saturating_sub(last.own).as_secs_f64() / (elapsed * quota);
            (elapsed > 0.0).then(|| of_groups.fold(own, f64::max).clamp(0.0, 1.0))
        });
        let groups = groups.into_iter().filter_map(|group| Some((group.path, group.used?)));
        self.last = Some(CpuTimes { at: now, own, groups: groups.collect() });
        share
    }
}

/// Returns the number of processors in the affinity mask.
fn count_processors() -> f64 {
    let mask = rustix::thread::sched_getaffinity(None).map_or(0, |mask| mask.count());
    if mask > 0 {
        return f64::from(mask);
    }
    // The mask of a machine with more than 1 024 processors cannot be read that way.
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Lists the control groups of this process and their ancestors, as far as they have a quota. `root` is `/`, except in tests.
fn list_quota_groups(root: &Path) -> Vec<QuotaGroup> {
    let groups = ProcessCGroups::from_file(root.join("proc/self/cgroup"));
    let mounts = root.join("sys/fs/cgroup");
    let groups = groups.map(|groups| groups.0).unwrap_or_default().into_iter();
    let quotas = groups.flat_map(|group| {
        if group.controllers.iter().any(|controller| controller == "cpu") {
            let paths = list_paths_up_to_root(&mounts.join("cpu"), &group.pathname);
            paths.into_iter().filter_map(read_v1).collect()
        } else if group.hierarchy == 0 {
            let paths = list_paths_up_to_root(&mounts, &group.pathname);
            paths.into_iter().filter_map(read_v2).collect()
        } else {
            Vec::new()
        }
    });
    quotas.collect()
}

fn read_v2(path: PathBuf) -> Option<QuotaGroup> {
    // "max 100000" without a quota; otherwise microseconds of CPU time in a period, and the period.
    let text = std::fs::read_to_string(path.join("cpu.max")).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let quota = to_processors(numbers.next()?.ok()?, numbers.next()?.ok()?)?;
    let stat = std::fs::read_to_string(path.join("cpu.stat")).unwrap_or_default();
    let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    Some(QuotaGroup { path, quota, used: used.map(Duration::from_micros) })
}

fn read_v1(path: PathBuf) -> Option<QuotaGroup> {
    let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
    // -1 without a quota.
    let quota = read("cpu.cfs_quota_us")?.trim().parse().ok()?;
    let quota = to_processors(quota, read("cpu.cfs_period_us")?.trim().parse().ok()?)?;
    // This controller is usually mounted together with the one of the quota.
    let used = read("cpuacct.usage").and_then(|nanoseconds| nanoseconds.trim().parse().ok());
    Some(QuotaGroup { path, quota, used: used.map(Duration::from_nanos) })
}

/// Returns how many processors a quota allows; `None` if there is none.
fn to_processors(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    fn quotas(root: &tempfile::TempDir) -> Vec<(f64, Option<Duration>)> {
        list_quota_groups(root.path()).iter().map(|group| (group.quota, group.used)).collect()
    }

    #[test]
    fn quotas_of_both_versions_are_read() {
        let v2 = tree(&[
            ("proc/self/cgroup", "0::/kubepods/pod1\n"),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 9000000\n"),
            ("sys/fs/cgroup/kubepods/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
        ]);
        assert_eq!(quotas(&v2), [(1.5, Some(Duration::from_millis(2500)))]);
        let v1 = tree(&[
            ("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/docker/abc/cpuacct.usage", "3000000000\n"),
        ]);
        assert_eq!(quotas(&v1), [(0.5, Some(3 * SECOND))]);
        assert_eq!(quotas(&tree(&[])), []);
    }

    fn group(quota: f64, used: Option<Duration>) -> Vec<QuotaGroup> {
        vec![QuotaGroup { path: "group".into(), quota, used }]
    }

    #[test]
    fn own_time_counts_against_the_processors_or_the_quota() {
        let start = Instant::now();
        let mut meter = CpuMeter::default();
        assert_eq!(meter.measure_with(start, SECOND, 4.0, Vec::new()), None);
        let share = meter.measure_with(start + SECOND, 2 * SECOND, 4.0, Vec::new());
        assert_eq!(share, Some(0.25));
        // A quota of two processors, and the time of the group is unknown.
        let share = meter.measure_with(start + 3 * SECOND, 4 * SECOND, 4.0, group(2.0, None));
        assert_eq!(share, Some(0.5));
        // No time has passed.
        assert_eq!(meter.measure_with(start + 3 * SECOND, 9 * SECOND, 4.0, Vec::new()), None);
    }

    #[test]
    fn neighbours_in_the_group_use_up_its_quota() {
        let start = Instant::now();
        let mut meter = CpuMeter::default();
        meter.measure_with(start, SECOND, 8.0, group(2.0, Some(10 * SECOND)));
        let used = Some(11 * SECOND + SECOND / 2);
        let share = meter.measure_with(start + SECOND, SECOND, 8.0, group(2.0, used));
        assert_eq!(share, Some(0.75));
        // More than the quota, for a moment.
        let share =
            meter.measure_with(start + 2 * SECOND, SECOND, 8.0, group(2.0, Some(20 * SECOND)));
        assert_eq!(share, Some(1.0));
    }

    #[test]
    fn this_process_uses_some_of_the_time() {
        let mut meter = CpuMeter::default();
        let start = std::time::Instant::now();
        assert_eq!(meter.measure(start.into()), None);
        let mut sum = 0u64;
        while start.elapsed() < SECOND / 20 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let used = meter.measure(std::time::Instant::now().into()).unwrap();
        assert!(used > 0.0 && used <= 1.0, "{used}");
    }
}
