//! A cgroup whose memory is taken away, so that the kernel's OOM killer kills what runs in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the hog may take without the death of another process, in bytes: its own start takes less.
const HOG_STARTS_WITH: u64 = 8 * 1024 * 1024;

/// Takes all memory of the cgroup whose file of processes it is given.
const HOG: &str = "echo $$ >\"$0\" && exec dd if=/dev/zero of=/dev/null bs=1G count=1 2>/dev/null";

/// Enters the cgroup whose file of processes it is given, as the process that the kernel kills first, and becomes a program.
pub(super) const ENTER: &str =
    "echo 1000 >/proc/self/oom_score_adj && echo $$ >\"$0\" && exec \"$1\"";

/// How a cgroup limits memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A cgroup, which is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    version: Version,
    hog: Option<Child>,
}

impl Cgroup {
    /// Creates a cgroup with a memory controller beside or below that of this process.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn new(number: usize) -> io::Result<Self> {
        let (parent, version) = find_parent().map_err(io::Error::other)?;
        let path = parent.join(format!("relay-lab-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path, version, hog: None })
    }

    /// The file to which a process writes its id to enter.
    pub(super) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Leaves no memory to the processes in it, so that the kernel kills them, if not at once, then soon.
    pub(super) async fn starve(&mut self) -> io::Result<()> {
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
        let _ = fs::remove_dir(&self.path);
    }
}

/// Why the kernel cannot be made to kill a relay for lack of memory on this machine.
pub(super) fn missing() -> Option<String> {
    // A cgroup can only be known to be usable once it has been created.
    Cgroup::new(usize::MAX).err().map(|error| error.to_string())
}

/// Finds a cgroup whose children have a memory controller.
fn find_parent() -> Result<(PathBuf, Version), String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    find_in(&mounts, &own).ok_or_else(|| {
        "no cgroup of version 1 or 2 can have a child with a memory limit (it needs root)"
            .to_owned()
    })
}

/// `mounts` is `/proc/self/mounts`, and `own` is `/proc/self/cgroup`.
fn find_in(mounts: &str, own: &str) -> Option<(PathBuf, Version)> {
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
            let found =
                [parent, Some(own)].into_iter().flatten().find(|parent| enable_memory(parent));
            Some((found?, Version::Two))
        }
        // With version 1, limits may be set wherever a child can be created.
        "cgroup" if options.split(',').any(|option| option == "memory") => {
            Some((mount.to_owned(), Version::One))
        }
        _ => None,
    });
    candidates.min_by_key(|(_, version)| *version != Version::Two)
}

/// Whether children of `parent` have a memory controller, after it has been asked for.
fn enable_memory(parent: &Path) -> bool {
    let file = parent.join("cgroup.subtree_control");
    let has = || {
        let controllers = fs::read_to_string(&file).unwrap_or_default();
        controllers.split_whitespace().any(|controller| controller == "memory")
    };
    has() || (fs::write(&file, "+memory").is_ok() && has())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_controller_of_version_1_is_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
            cgroup2 /nowhere/unified cgroup2 rw,relatime 0 0\n";
        let found = find_in(mounts, "4:memory:/service\n0::/\n");
        assert_eq!(found, Some((PathBuf::from("/sys/fs/cgroup/memory"), Version::One)));
        assert_eq!(find_in("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n", "0::/\n"), None);
    }
}
