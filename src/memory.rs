//! Memory: what the settings may take, and what there is.

use crate::config::Config;

/// Of a session in the worst case, in bytes: what is under way in both directions (64 KiB each), tasks, tables.
const SESSION: u64 = 160 * 1024;
/// Of a connection that is not paired, in bytes: the longest first message, and its task.
const PENDING: u64 = 24 * 1024;
/// Of a thread that forwards, in bytes: its buffer of 64 KiB, its runtime, what its stack has touched.
const WORKER: u64 = 512 * 1024;
/// Of the program itself, in bytes.
const PROGRAM: u64 = 24 * 1024 * 1024;

/// Bytes that the settings may take when all peers are slow, beside the kernel's buffers.
pub fn needed(config: &Config) -> u64 {
    PROGRAM + config.startup.workers() as u64 * WORKER + of_peers(config)
}

/// Bytes of those that are for peers.
pub fn of_peers(config: &Config) -> u64 {
    config.max_sessions as u64 * SESSION + config.max_pending_peers as u64 * PENDING
}

/// Bytes that this process may take; see [`available_to`].
pub fn available() -> Option<u64> {
    available_to(None)
}

/// Bytes that a process (`None` is this one) may take in all, with what it holds already: of the machine, or of its
/// control groups where that is less; `None` where the system does not say. Never more than the machine has, or a control
/// group allows.
#[cfg(target_os = "linux")]
pub fn available_to(process: Option<i32>) -> Option<u64> {
    use procfs::process::Process;
    use procfs::{Current, Meminfo, WithCurrentSystemInfo};

    let held = match process {
        Some(pid) => Process::new(pid),
        None => Process::myself(),
    };
    let held = held.ok()?.stat().ok()?.rss_bytes().get();
    let Meminfo { mem_total, mem_available, .. } = Meminfo::current().ok()?;
    let machine = Bound { limit: mem_total, left: mem_available? };
    let groups = groups::bounds(std::path::Path::new("/"), process);
    groups.into_iter().chain([machine]).map(|bound| bound.available(held)).min()
}

/// Bytes that a process may take: this system does not say.
#[cfg(not(target_os = "linux"))]
pub fn available_to(_process: Option<i32>) -> Option<u64> {
    None
}

/// What the machine or a control group lets its processes take, in bytes.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    /// For all processes together.
    limit: u64,
    /// What nobody has taken yet.
    left: u64,
}

#[cfg(target_os = "linux")]
impl Bound {
    /// What a process that holds `held` bytes may take in all. Pages that it shares, such as those of its program, may be
    /// charged to another group, so that what it holds and what is left can be more than the limit.
    fn available(self, held: u64) -> u64 {
        self.left.saturating_add(held).min(self.limit)
    }
}

/// Limits of control groups.
#[cfg(target_os = "linux")]
mod groups {
    use std::path::{Component, Path};

    use procfs::{FromRead, ProcessCGroups};

    use super::Bound;

    /// What a version of control groups calls its files.
    struct Files {
        limit: &'static str,
        used: &'static str,
        /// In `memory.stat`: what of `used` is a cache that the kernel gives up when memory runs short.
        cache: &'static str,
    }

    const V1: Files = Files {
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        cache: "total_inactive_file ",
    };
    const V2: Files =
        Files { limit: "memory.max", used: "memory.current", cache: "inactive_file " };

    /// The bounds of the control groups of a process: of its own group and of all above, as far as they have a limit.
    /// `root` is `/`.
    pub(super) fn bounds(root: &Path, process: Option<i32>) -> Vec<Bound> {
        let process = process.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
        let groups = ProcessCGroups::from_file(root.join("proc").join(process).join("cgroup"));
        let mounts = root.join("sys/fs/cgroup");
        let groups = groups.map(|groups| groups.0).unwrap_or_default().into_iter();
        let bounds = groups.flat_map(|group| {
            if group.controllers.iter().any(|controller| controller == "memory") {
                lineage(&mounts.join("memory"), &group.pathname, &V1)
            } else if group.hierarchy == 0 {
                lineage(&mounts, &group.pathname, &V2)
            } else {
                Vec::new()
            }
        });
        bounds.collect()
    }

    /// The bounds of `group` and of all above it. Groups that are not there are passed over: a container may see its
    /// own group as the root of the tree, while the path is that of the machine outside.
    fn lineage(mount: &Path, group: &str, files: &Files) -> Vec<Bound> {
        let inside: Vec<_> = Path::new(group)
            .components()
            .filter(|component| *component != Component::RootDir)
            .collect();
        // A group outside what this process may see.
        let inside = if inside.contains(&Component::ParentDir) { Vec::new() } else { inside };
        (0..=inside.len())
            .filter_map(|depth| {
                bound_of(&mount.join(inside[..depth].iter().collect::<std::path::PathBuf>()), files)
            })
            .collect()
    }

    /// The bound of one group; `None` where it has no limit.
    fn bound_of(group: &Path, files: &Files) -> Option<Bound> {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        // "max" is no number and no limit.
        let limit = number(files.limit)?;
        let cache = read("memory.stat").and_then(|stat| {
            stat.lines().find_map(|line| line.strip_prefix(files.cache)?.trim().parse().ok())
        });
        let used = number(files.used).unwrap_or(0).saturating_sub(cache.unwrap_or(0));
        Some(Bound { limit, left: limit.saturating_sub(used) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Bytes that the groups leave a process.
        fn left(root: &Path, process: Option<i32>) -> Option<u64> {
            bounds(root, process).iter().map(|bound| bound.left).min()
        }

        /// A tree with these files.
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
        fn the_least_that_any_group_leaves_counts() {
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
            // 900 are used, but 300 of these can be had back.
            assert_eq!(left(root.path(), None), Some(400));
            assert_eq!(left(root.path(), Some(7)), Some(0), "used up");
            assert_eq!(left(root.path(), Some(8)), None, "not known");
        }

        #[test]
        fn the_first_version_has_other_names() {
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
            assert_eq!(left(root.path(), None), Some(4010));
        }

        #[test]
        fn a_container_sees_its_group_as_the_root() {
            for path in ["/docker/abc", "/../other"] {
                let root = tree(&[
                    ("proc/self/cgroup", &format!("0::{path}\n")),
                    ("sys/fs/cgroup/memory.max", "700\n"),
                ]);
                assert_eq!(left(root.path(), None), Some(700), "{path}");
            }
            let unlimited = tree(&[("proc/self/cgroup", "0::/\n")]);
            assert_eq!(left(unlimited.path(), None), None);
        }

        /// In a container of 256 MiB, the pages of the program are charged to whoever started it first.
        #[test]
        fn no_more_is_available_than_the_limit() {
            let mib = 1024 * 1024;
            let root = tree(&[
                ("proc/self/cgroup", "0::/\n"),
                ("sys/fs/cgroup/memory.max", &format!("{}\n", 256 * mib)),
                ("sys/fs/cgroup/memory.current", &format!("{}\n", 10 * mib)),
            ]);
            let bounds = bounds(root.path(), None);
            assert_eq!(bounds, [Bound { limit: 256 * mib, left: 246 * mib }]);
            for (held, available) in [(0, 246), (4, 250), (10, 256), (24, 256), (1000, 256)] {
                assert_eq!(bounds[0].available(held * mib), available * mib, "{held} MiB held");
            }
            // Used up: what it holds is all that there is.
            assert_eq!(Bound { limit: 100, left: 0 }.available(60), 60);
            // The limit of one group counts, though another one leaves less at the moment.
            let groups = [Bound { limit: 100, left: 50 }, Bound { limit: 70, left: 60 }];
            assert_eq!(groups.map(|bound| bound.available(40)), [90, 70]);
        }
    }
}

/// What the settings take, and what there is, in words.
pub fn comparison(config: &Config, available: u64) -> String {
    format!(
        "MaxPeerCount {} and MaxPendingPeers {} take up to {} MiB when all peers are slow, beside the kernel's buffers; \
         {} MiB are available",
        config.max_sessions,
        config.max_pending_peers,
        needed(config).div_ceil(1024 * 1024),
        available / (1024 * 1024)
    )
}

/// A warning where that is too little.
pub fn warning(config: &Config, available: u64) -> Option<String> {
    (needed(config) > available)
        .then(|| format!("{}. Give it more, or lower the settings", comparison(config, available)))
}
