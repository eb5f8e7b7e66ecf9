//! Who listens on a port, as far as the system shows it.

use std::fmt;

/// A process that listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Its command line.
    pub arguments: Vec<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Several of them in words.
pub fn list(holders: &[Holder]) -> String {
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The processes that listen on `port`; none where they cannot be seen (another user's, another container's).
#[cfg(target_os = "linux")]
pub fn find(port: u16) -> Vec<Holder> {
    use procfs::net::TcpState;
    use procfs::process::FDTarget;

    let entries = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    let inodes: Vec<u64> = entries
        .filter(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
        .map(|entry| entry.inode)
        .collect();
    let holds = |process: &procfs::process::Process| {
        process.fd().is_ok_and(|fds| {
            fds.flatten()
                .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
        })
    };
    let Ok(processes) = procfs::process::all_processes() else {
        return Vec::new();
    };
    let mut holders: Vec<_> = processes
        .flatten()
        .filter(holds)
        .map(|process| Holder {
            pid: process.pid(),
            name: process.stat().map(|stat| stat.comm).unwrap_or_default(),
            arguments: process.cmdline().unwrap_or_default(),
        })
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders
}

/// The processes that listen on `port`: here they cannot be seen.
#[cfg(not(target_os = "linux"))]
pub fn find(_port: u16) -> Vec<Holder> {
    Vec::new()
}
