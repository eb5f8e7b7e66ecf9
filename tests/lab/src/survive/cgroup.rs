//! A cgroup whose memory is taken away, so that the kernel's OOM killer kills what runs in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What is left below the memory in use, in bytes, where the kernel refuses a limit that it cannot enforce at once: a few
/// pages, so that the next allocation fails.
const SHORTAGE: u64 = 64 * 1024;

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
        Ok(Self { path, version })
    }

    /// The file to which a process writes its id to enter.
    pub(super) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Leaves no memory to the processes in it.
    ///
    /// With version 2 the kernel kills them before the write returns. Version 1 refuses a limit below what it can reclaim,
    /// so the limit follows what is in use, and the next allocation fails: call this again while they live.
    pub(super) async fn starve(&self) -> io::Result<()> {
        let Self { path, version } = self;
        let (path, version) = (path.clone(), *version);
        let write = move || match version {
            Version::Two => fs::write(path.join("memory.max"), "0"),
            Version::One => {
                let used = fs::read_to_string(path.join("memory.usage_in_bytes"))?;
                let used: u64 = used.trim().parse().map_err(io::Error::other)?;
                let limit = used.saturating_sub(SHORTAGE).to_string();
                match fs::write(path.join("memory.limit_in_bytes"), limit) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
                    done => done,
                }
            }
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
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
