//! Compares the memory that the settings may need with what is available.

use crate::config::Config;

/// Bytes that a session needs in the worst case: the data in flight in both directions (64 KiB each), its tasks, its entries
/// in tables.
const SESSION_BYTES: u64 = 160 * 1024;
/// Bytes that a connection needs until it is paired: the longest first message, and its task.
const PENDING_BYTES: u64 = 24 * 1024;
/// Bytes that a worker thread needs: its buffer of 64 KiB, its runtime, the used part of its stack.
const WORKER_BYTES: u64 = 512 * 1024;
/// Bytes that the program itself needs.
const PROGRAM_BYTES: u64 = 24 * 1024 * 1024;

/// Returns how many bytes the settings may need when all peers are slow, without the kernel's buffers.
pub fn needed(config: &Config) -> u64 {
    PROGRAM_BYTES + config.startup.worker_count() as u64 * WORKER_BYTES + needed_by_peers(config)
}

/// Returns how many of these bytes are for peers.
pub fn needed_by_peers(config: &Config) -> u64 {
    config.max_sessions as u64 * SESSION_BYTES + config.max_pending_peers as u64 * PENDING_BYTES
}

/// Returns how many bytes this process may use; see [`available_to`].
pub fn available() -> Option<u64> {
    available_to(None)
}

/// Returns how many bytes a process (`None` for this one) may use in total, including what it uses already; `None` if the
/// system does not report it. The machine and each control group of the process set a limit, and the lowest counts.
#[cfg(target_os = "linux")]
pub fn available_to(process: Option<i32>) -> Option<u64> {
    use procfs::process::Process;
    use procfs::{Current, Meminfo, WithCurrentSystemInfo};

    let process_info = match process {
        Some(pid) => Process::new(pid),
        None => Process::myself(),
    };
    let used = process_info.ok()?.stat().ok()?.rss_bytes().get();
    let Meminfo { mem_total, mem_available, .. } = Meminfo::current().ok()?;
    let machine = MemoryLimit { total: mem_total, free: mem_available? };
    let groups = groups::limits(std::path::Path::new("/"), process);
    groups.into_iter().chain([machine]).map(|limit| limit.available(used)).min()
}

/// Returns which share (0 to 1) of the memory is in use, of the machine or of the control group of this process that has the
/// least left; `None` if the system does not report it.
#[cfg(target_os = "linux")]
pub fn used_share() -> Option<f64> {
    use procfs::{Current, Meminfo};

    let Meminfo { mem_total, mem_available, .. } = Meminfo::current().ok()?;
    let machine = MemoryLimit { total: mem_total, free: mem_available? };
    let groups = groups::limits(std::path::Path::new("/"), None);
    groups.into_iter().chain([machine]).map(MemoryLimit::used_share).max_by(f64::total_cmp)
}

/// Returns `None`: this system does not report how much memory is in use.
#[cfg(not(target_os = "linux"))]
pub fn used_share() -> Option<f64> {
    None
}

/// Returns `None`: this system does not report how many bytes a process may use.
#[cfg(not(target_os = "linux"))]
pub fn available_to(_process: Option<i32>) -> Option<u64> {
    None
}

/// The memory that the machine has, or that a control group allows its processes, in bytes.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MemoryLimit {
    /// The memory for all processes together.
    total: u64,
    /// The part of it that is not in use.
    free: u64,
}

#[cfg(target_os = "linux")]
impl MemoryLimit {
    /// Returns how much a process that uses `used` bytes may use in total. Pages that it shares, such as those of its
    /// program, may be charged to another group, so that the sum of used and free bytes can exceed the limit.
    fn available(self, used: u64) -> u64 {
        self.free.saturating_add(used).min(self.total)
    }

    /// Returns which share is in use. Nothing is left of no memory.
    fn used_share(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share needs no exact numbers")]
        let free = self.free.min(self.total) as f64 / self.total.max(1) as f64;
        1.0 - free
    }
}

#[cfg(target_os = "linux")]
pub(crate) use groups::list_paths_up_to_root;

/// Memory limits of control groups.
#[cfg(target_os = "linux")]
mod groups {
    use std::path::{Component, Path, PathBuf};

    use procfs::{FromRead, ProcessCGroups};

    use super::MemoryLimit;

    /// The names of the files in a version of control groups.
    struct GroupFiles {
        limit: &'static str,
        used: &'static str,
        /// In `memory.stat`: the part of `used` that is a cache, which the kernel frees when memory runs short.
        cache: &'static str,
    }

    const V1: GroupFiles = GroupFiles {
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        cache: "total_inactive_file ",
    };
    const V2: GroupFiles =
        GroupFiles { limit: "memory.max", used: "memory.current", cache: "inactive_file " };

    /// Lists the limits of the control groups of a process: of its own group and of the ancestors of that group, if they have
    /// one. `root` is `/`, except in tests.
    pub(super) fn limits(root: &Path, process: Option<i32>) -> Vec<MemoryLimit> {
        let process = process.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
        let groups = ProcessCGroups::from_file(root.join("proc").join(process).join("cgroup"));
        let mounts = root.join("sys/fs/cgroup");
        let groups = groups.map(|groups| groups.0).unwrap_or_default().into_iter();
        let limits = groups.flat_map(|group| {
            if group.controllers.iter().any(|controller| controller == "memory") {
                list_limits_up_to_root(&mounts.join("memory"), &group.pathname, &V1)
            } else if group.hierarchy == 0 {
                list_limits_up_to_root(&mounts, &group.pathname, &V2)
            } else {
                Vec::new()
            }
        });
        limits.collect()
    }

    /// Lists the limits of `group` and of its ancestors.
    fn list_limits_up_to_root(mount: &Path, group: &str, files: &GroupFiles) -> Vec<MemoryLimit> {
        let paths = list_paths_up_to_root(mount, group);
        paths.iter().filter_map(|path| read_limit(path, files)).collect()
    }

    /// Lists the directories of `group` and of its ancestors. They need not exist: a container may see its own group as the
    /// root of the tree, while the path is that of the host.
    pub(crate) fn list_paths_up_to_root(mount: &Path, group: &str) -> Vec<PathBuf> {
        let components: Vec<_> = Path::new(group)
            .components()
            .filter(|component| *component != Component::RootDir)
            .collect();
        // With "..", the group is outside of the tree that this process can see: only the root of the tree remains.
        let is_visible = !components.contains(&Component::ParentDir);
        let depth = if is_visible { components.len() } else { 0 };
        let path = |depth: usize| mount.join(components[..depth].iter().collect::<PathBuf>());
        (0..=depth).map(path).collect()
    }

    /// Reads the limit of one group; `None` if it has none.
    fn read_limit(group: &Path, files: &GroupFiles) -> Option<MemoryLimit> {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        // Without a limit, the file contains "max".
        let total = number(files.limit)?;
        let cache = read("memory.stat").and_then(|stat| {
            stat.lines().find_map(|line| line.strip_prefix(files.cache)?.trim().parse().ok())
        });
        let used = number(files.used).unwrap_or(0).saturating_sub(cache.unwrap_or(0));
        Some(MemoryLimit { total, free: total.saturating_sub(used) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Returns the free bytes of the group that has the fewest.
        fn free(root: &Path, process: Option<i32>) -> Option<u64> {
            limits(root, process).iter().map(|limit| limit.free).min()
        }

        /// Creates a tree with these files.
        fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
            let root = tempfile::tempdir().unwrap();
            for (path, content) in files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, content).unwrap();
            }
            root
        }

        #[test]
        fn least_free_memory_of_all_groups_counts() {
            let root = tree(&[
                ("proc/self/cgroup", "0::/system.slice/relay.service\n"),
                ("proc/7/cgroup", "0::/user.slice\n"),
                ("sys/fs/cgroup/system.slice/memory.max", "1000\n"),
                ("sys/fs/cgroup/system.slice/memory.current", "900\n"),
                ("sys/fs/cgroup/system.slice/memory.stat", "anon 1\ninactive_file 300\n"),
                ("sys/fs/cgroup/system.slice/relay.service/memory.max", "max\n"),
                ("sys/fs/cgroup/system.slice/relay.service/memory.current", "5\n"),
                ("sys/fs/cgroup/user.slice/memory.max", "2000\n"),
                ("sys/fs/cgroup/user.slice/memory.current", "2500\n"),
            ]);
            // 900 are used, but 300 of these can be freed.
            assert_eq!(free(root.path(), None), Some(400));
            assert_eq!(free(root.path(), Some(7)), Some(0), "all used");
            assert_eq!(free(root.path(), Some(8)), None, "unknown");
        }

        #[test]
        fn version_1_of_control_groups_is_read() {
            let root = tree(&[
                ("proc/self/cgroup", "9:cpu:/\n4:cpuset,memory:/docker/abc\n0::/\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/docker/memory.usage_in_bytes", "1000\n"),
                (
                    "sys/fs/cgroup/memory/docker/memory.stat",
                    "inactive_file 1\ntotal_inactive_file 10\n",
                ),
                ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "4500\n"),
                ("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "100\n"),
            ]);
            assert_eq!(free(root.path(), None), Some(4010));
        }

        #[test]
        fn container_may_see_its_group_as_the_root() {
            for path in ["/docker/abc", "/../other"] {
                let root = tree(&[
                    ("proc/self/cgroup", &format!("0::{path}\n")),
                    ("sys/fs/cgroup/memory.max", "700\n"),
                ]);
                assert_eq!(free(root.path(), None), Some(700), "{path}");
            }
            let unlimited = tree(&[("proc/self/cgroup", "0::/\n")]);
            assert_eq!(free(unlimited.path(), None), None);
        }

        /// The limit of a container is 256 MiB, but the pages of the program may be charged to another container that started
        /// the same program first.
        #[test]
        fn available_memory_does_not_exceed_the_limit() {
            let mib = 1024 * 1024;
            let root = tree(&[
                ("proc/self/cgroup", "0::/\n"),
                ("sys/fs/cgroup/memory.max", &format!("{}\n", 256 * mib)),
                ("sys/fs/cgroup/memory.current", &format!("{}\n", 10 * mib)),
            ]);
            let limits = limits(root.path(), None);
            assert_eq!(limits, [MemoryLimit { total: 256 * mib, free: 246 * mib }]);
            for (used, available) in [(0, 246), (4, 250), (10, 256), (24, 256), (1000, 256)] {
                assert_eq!(limits[0].available(used * mib), available * mib, "{used} MiB used");
            }
            assert_eq!(limits[0].used_share(), 10.0 / 256.0);
            // Nothing is free: the process may use what it uses already.
            assert_eq!(MemoryLimit { total: 100, free: 0 }.available(60), 60);
            // The limit of one group counts, though another one has less free memory.
            let groups =
                [MemoryLimit { total: 100, free: 50 }, MemoryLimit { total: 70, free: 60 }];
            assert_eq!(groups.map(|limit| limit.available(40)), [90, 70]);
            assert_eq!(groups.map(MemoryLimit::used_share), [0.5, 1.0 - 60.0 / 70.0]);
        }
    }
}

/// Describes how much memory the settings need, and how much is available.
pub fn describe_needs(config: &Config, available: u64) -> String {
    format!(
        "MaxPeerCount {} and MaxPendingPeers {} need up to {} MiB when all peers are slow, besides the kernel's buffers; \
         {} MiB are available",
        config.max_sessions,
        config.max_pending_peers,
        needed(config).div_ceil(1024 * 1024),
        available / (1024 * 1024)
    )
}

/// Returns a warning if too little memory is available.
pub fn warning(config: &Config, available: u64) -> Option<String> {
    (needed(config) > available).then(|| {
        format!("{}. Provide more memory, or lower the settings", describe_needs(config, available))
    })
}
