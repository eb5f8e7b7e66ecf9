//! A cgroup whose memory is taken away, so that the kernel's OOM killer kills what runs in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A cgroup (version 2), which is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Creates a cgroup with a memory controller beside or below that of this process.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn new(number: usize) -> io::Result<Self> {
        let parent = find_parent().map_err(io::Error::other)?;
        let path = parent.join(format!("relay-lab-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// The file to which a process writes its id to enter.
    pub(super) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Leaves no memory to the processes in it. The kernel kills them before the write returns.
    pub(super) async fn starve(&self) -> io::Result<()> {
        let file = self.path.join("memory.max");
        let write = move || fs::write(file, "0");
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
fn find_parent() -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    let mount = mount.ok_or("cgroup v2 is not mounted")?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = mount.join(own);
    let parents = [own.parent().filter(|parent| parent.starts_with(&mount)), Some(own.as_path())];
    let found = parents.into_iter().flatten().find(|parent| has_memory(parent));
    found.map(Path::to_owned).ok_or_else(|| {
        let mount = mount.display();
        format!("no cgroup below {mount} can have a child with a memory limit (it needs root)")
    })
}

fn has_memory(parent: &Path) -> bool {
    let file = parent.join("cgroup.subtree_control");
    let has = || {
        let controllers = fs::read_to_string(&file).unwrap_or_default();
        controllers.split_whitespace().any(|controller| controller == "memory")
    };
    has() || (fs::write(&file, "+memory").is_ok() && has())
}
