//! Cgroups of either version for single processes: with a quota of CPU time, or with memory that is taken away, so that the
//! kernel's OOM killer kills what runs in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// What the hog may take without the death of another process, in bytes: its own start takes less.
const HOG_STARTS_WITH: u64 = 8 * 1024 * 1024;

/// Takes all memory of the cgroup whose file of processes it is given.
const HOG: &str = "echo $$ >\"$0\" && exec dd if=/dev/zero of=/dev/null bs=1G count=1 2>/dev/null";

/// Period of a CPU quota in microseconds: the kernel's default, which container runtimes leave as it is.
const CPU_PERIOD: u64 = 100_000;

/// Attempts to remove a cgroup whose processes have been killed but have not ended yet, and the pause between two.
const REMOVALS: (usize, Duration) = (100, Duration::from_millis(10));

/// Enters the cgroup whose file of processes it is given, and becomes a program.
pub(crate) const ENTER_ONLY: &str = "echo $$ >\"$0\" && exec \"$1\"";

/// Enters the cgroup whose file of processes it is given, as the process that the kernel kills first, and becomes a program.
pub(crate) const ENTER: &str =
    "echo 1000 >/proc/self/oom_score_adj && echo $$ >\"$0\" && exec \"$1\"";

/// The version of a cgroup hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// What a cgroup limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Controller {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

/// A cgroup, which is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    version: Version,
    hog: Option<Child>,
}

impl Cgroup {
    /// Creates a cgroup with a controller beside or below that of this process.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn new(controller: Controller, number: usize) -> io::Result<Self> {
        let (parent, version) = find_parent(controller).map_err(io::Error::other)?;
        let path = parent.join(format!("relay-lab-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|error| {
            let path = path.display();
            io::Error::new(error.kind(), format!("cannot create the cgroup {path}: {error}"))
        })?;
        Ok(Self { path, version, hog: None })
    }

    /// The file to which a process writes its id to enter.
    pub(crate) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Limits the CPU time of the processes in it to a percentage of a core, at least 1.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn limit_cpu(&self, percent: u32) -> io::Result<()> {
        for (file, value) in cpu_quota(self.version, percent) {
            let file = self.path.join(file);
            fs::write(&file, &value).map_err(|error| {
                let text = format!("cannot write {value} to {}: {error}", file.display());
                io::Error::new(error.kind(), text)
            })?;
        }
        Ok(())
    }

    /// How long its processes have waited so far because their quota was used up, in seconds. 0 without a quota.
    pub(crate) fn throttled(&self) -> f64 {
        throttled_seconds(&fs::read_to_string(self.path.join("cpu.stat")).unwrap_or_default())
    }

    /// Leaves no memory to the processes in it, so that the kernel kills them, if not at once, then soon.
    pub(crate) async fn starve(&mut self) -> io::Result<()> {
        match self.version {
            // The kernel kills them before the write returns.
            Version::Two => {
                let file = self.path.join("memory.max");
                let write = move || fs::write(file, "0");
                tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
            }
            // The kernel refuses a limit below what is in use, so somebody else has to need more than that.
            Version::One if self.hog.is_none() => {
                let used = fs::read_to_string(self.path.join("memory.usage_in_bytes"))?;
                let used: u64 = used.trim().parse().map_err(io::Error::other)?;
                let limit = self.path.join("memory.limit_in_bytes");
                fs::write(limit, (used + HOG_STARTS_WITH).to_string())?;
                let mut command = Command::new("sh");
                command.args(["-c", HOG]).arg(self.processes()).stdin(Stdio::null());
                self.hog = Some(command.stdout(Stdio::null()).spawn()?);
                Ok(())
            }
            Version::One => Ok(()),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Some(mut hog) = self.hog.take() {
            let _ = hog.kill();
            let _ = hog.wait();
        }
        for _ in 0..REMOVALS.0 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => sleep(REMOVALS.1),
                _ => return,
            }
        }
    }
}

/// The files that set a quota of CPU time, and their values.
fn cpu_quota(version: Version, percent: u32) -> Vec<(&'static str, String)> {
    let quota = u64::from(percent) * CPU_PERIOD / 100;
    match version {
        Version::One => vec![
            ("cpu.cfs_period_us", CPU_PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
        ],
        Version::Two => vec![("cpu.max", format!("{quota} {CPU_PERIOD}"))],
    }
}

/// `text` is `cpu.stat`, which counts nanoseconds in version 1 and microseconds in version 2.
fn throttled_seconds(text: &str) -> f64 {
    let found = text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        let unit = match name {
            "throttled_time" => 1e9,
            "throttled_usec" => 1e6,
            _ => return None,
        };
        Some(value.trim().parse::<f64>().ok()? / unit)
    });
    found.unwrap_or(0.0)
}

/// Why no cgroup with this controller can be had on this machine.
pub(crate) fn missing(controller: Controller) -> Option<String> {
    // A cgroup can only be known to be usable once it has been created.
    Cgroup::new(controller, usize::MAX).err().map(|error| error.to_string())
}

/// Finds a cgroup whose children have a controller.
fn find_parent(controller: Controller) -> Result<(PathBuf, Version), String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    find_in(&mounts, &own, controller).ok_or_else(|| {
        let what = controller.name();
        format!("no cgroup of version 1 or 2 can have a child with a {what} limit (it needs root)")
    })
}

/// `mounts` is `/proc/self/mounts`, and `own` is `/proc/self/cgroup`.
fn find_in(mounts: &str, own: &str, controller: Controller) -> Option<(PathBuf, Version)> {
    // The fields of a mount: device, path, type, options.
    let mounts = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        Some((Path::new(*fields.get(1)?), *fields.get(2)?, *fields.get(3)?))
    });
    let candidates = mounts.filter_map(|(mount, kind, options)| match kind {
        "cgroup2" => {
            let own = mount.join(own.lines().find_map(|line| line.strip_prefix("0::/"))?);
            let parent =
                own.parent().filter(|parent| parent.starts_with(mount)).map(Path::to_owned);
            let found = [parent, Some(own)]
                .into_iter()
                .flatten()
                .find(|parent| enable(parent, controller.name()));
            Some((found?, Version::Two))
        }
        // With version 1, limits may be set wherever a child can be created.
        "cgroup" if options.split(',').any(|option| option == controller.name()) => {
            Some((mount.to_owned(), Version::One))
        }
        _ => None,
    });
    candidates.min_by_key(|(_, version)| *version != Version::Two)
}

/// Whether children of `parent` have a controller, after it has been asked for.
fn enable(parent: &Path, name: &str) -> bool {
    let file = parent.join("cgroup.subtree_control");
    let has = || {
        let controllers = fs::read_to_string(&file).unwrap_or_default();
        controllers.split_whitespace().any(|controller| controller == name)
    };
    has() || (fs::write(&file, format!("+{name}")).is_ok() && has())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_version_1_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
            cgroup2 /nowhere/unified cgroup2 rw,relatime 0 0\n";
        for (controller, path) in
            [(Controller::Memory, "/sys/fs/cgroup/memory"), (Controller::Cpu, "/sys/fs/cgroup/cpu")]
        {
            let found = find_in(mounts, "4:memory:/service\n0::/\n", controller);
            assert_eq!(found, Some((PathBuf::from(path), Version::One)));
        }
        let none = find_in("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n", "0::/\n", Controller::Cpu);
        assert_eq!(none, None);
    }

    #[test]
    fn version_2_is_preferred_where_it_has_the_controller() {
        let mount = std::env::temp_dir().join(format!("relay-lab-cgroup2-{}", std::process::id()));
        let own = mount.join("a.slice/b.service");
        fs::create_dir_all(&own).unwrap();
        fs::write(mount.join("a.slice/cgroup.subtree_control"), "cpu pids\n").unwrap();
        fs::write(own.join("cgroup.subtree_control"), "").unwrap();
        let mounts = format!(
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 {} cgroup2 rw 0 0\n",
            mount.display()
        );
        let found = find_in(&mounts, "1:cpu:/\n0::/a.slice/b.service\n", Controller::Cpu);
        fs::remove_dir_all(&mount).unwrap();
        assert_eq!(found, Some((mount.join("a.slice"), Version::Two)));
    }

    #[test]
    fn quotas_are_written_as_each_version_wants_them() {
        let one = cpu_quota(Version::One, 5);
        let expected = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "5000")];
        assert_eq!(one, expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(cpu_quota(Version::Two, 20), [("cpu.max", "20000 100000".to_owned())]);
    }

    #[test]
    fn throttled_time_is_read_in_the_unit_of_each_version() {
        let one = "nr_periods 10\nnr_throttled 5\nthrottled_time 1500000000\n";
        let two = "usage_usec 7\nnr_periods 10\nnr_throttled 5\nthrottled_usec 250000\n";
        assert_eq!((throttled_seconds(one), throttled_seconds(two)), (1.5, 0.25));
        assert_eq!(throttled_seconds("usage_usec 7\n"), 0.0);
    }
}
