//! Finds out which processes and users listen on a port, as far as the system permits.

use std::fmt;
use std::net::SocketAddr;

#[cfg(target_os = "linux")]
use super::interfaces;

/// A process that listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHolder {
    /// The process id.
    pub pid: i32,
    /// The name of the program.
    pub name: String,
    /// The command line.
    pub arguments: Vec<String>,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Lists several processes in one line, separated by commas.
pub fn join(holders: &[PortHolder]) -> String {
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The users who own the sockets that listen on an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketOwner {
    /// All are owned by root or by this user.
    Trusted,
    /// One is owned by the user with this id.
    Other(u32),
    /// There are none on this machine (or in this container), or they cannot be seen.
    Unseen,
}

#[cfg(target_os = "linux")]
impl SocketOwner {
    /// Classifies the user with this id.
    pub fn of(user: u32) -> Self {
        let own = rustix::process::geteuid().as_raw();
        if [0, own].contains(&user) { Self::Trusted } else { Self::Other(user) }
    }
}

/// Returns who owns the sockets that accept connections to `address`. Every user can see this, unlike the processes. A socket
/// that listens on all addresses counts only if `address` is one of this machine.
#[cfg(target_os = "linux")]
pub fn find_owner(address: SocketAddr) -> SocketOwner {
    let ip = address.ip().to_canonical();
    let is_local = interfaces::is_local(ip);
    let users: Vec<u32> = list_listening(address.port())
        .filter(|entry| {
            let listens = entry.local_address.ip().to_canonical();
            listens == ip || (is_local && listens.is_unspecified())
        })
        .map(|entry| entry.uid)
        .collect();
    let owners = || users.iter().map(|user| SocketOwner::of(*user));
    owners()
        .find(|owner| *owner != SocketOwner::Trusted)
        .or(owners().next())
        .unwrap_or(SocketOwner::Unseen)
}

/// Returns who owns the sockets that accept connections to `address`, which cannot be seen on this system.
#[cfg(not(target_os = "linux"))]
pub fn find_owner(_address: SocketAddr) -> SocketOwner {
    SocketOwner::Unseen
}

/// Lists the sockets that listen on `port`.
#[cfg(target_os = "linux")]
fn list_listening(port: u16) -> impl Iterator<Item = procfs::net::TcpNetEntry> {
    let entries = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    entries.filter(move |entry| {
        entry.state == procfs::net::TcpState::Listen && entry.local_address.port() == port
    })
}

/// The name of this program. Only root can see its sockets, since the process is not dumpable.
#[cfg(target_os = "linux")]
const PROGRAM: &str = "aspia_relay";

/// Returns the processes that listen on `port`; none if they cannot be seen, because they belong to another user or run in
/// another container. If exactly one process of this program cannot be inspected and runs as the owner of the sockets, it is
/// taken for the holder.
#[cfg(target_os = "linux")]
pub fn find(port: u16) -> Vec<PortHolder> {
    use procfs::process::FDTarget;

    let (inodes, users): (Vec<u64>, Vec<u32>) =
        list_listening(port).map(|entry| (entry.inode, entry.uid)).unzip();
    let holds = |process: &procfs::process::Process| {
        process.fd().is_ok_and(|fds| {
            fds.flatten()
                .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
        })
    };
    let may_hold = |process: &procfs::process::Process| {
        let is_program = process.stat().is_ok_and(|stat| stat.comm == PROGRAM);
        let is_owner = process.status().is_ok_and(|status| users.contains(&status.euid));
        is_program && is_owner && process.fd().is_err()
    };
    let Ok(processes) = procfs::process::all_processes() else {
        return Vec::new();
    };
    let processes: Vec<_> = processes.flatten().collect();
    let mut found: Vec<_> = processes.iter().filter(|process| holds(process)).collect();
    if found.is_empty() {
        found = processes.iter().filter(|process| may_hold(process)).collect();
        if found.len() > 1 {
            found.clear();
        }
    }
    let mut holders: Vec<_> = found
        .into_iter()
        .map(|process| PortHolder {
            pid: process.pid(),
            name: process.stat().map(|stat| stat.comm).unwrap_or_default(),
            arguments: process.cmdline().unwrap_or_default(),
        })
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders
}

/// Returns the processes that listen on `port`, which cannot be seen on this system.
#[cfg(not(target_os = "linux"))]
pub fn find(_port: u16) -> Vec<PortHolder> {
    Vec::new()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn owner_of_the_socket_that_listens_on_the_address_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(find_owner(address), SocketOwner::Trusted);
        // No socket listens on the same port of another address.
        assert_eq!(
            find_owner(SocketAddr::from(([127, 0, 0, 2], address.port()))),
            SocketOwner::Unseen
        );
        // Only root may change the owner of a socket.
        if std::os::unix::fs::fchown(&listener, Some(4242), None).is_ok() {
            assert_eq!(find_owner(address), SocketOwner::Other(4242));
        }
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        assert_eq!(
            find_owner(([127, 0, 0, 1], all.local_addr().unwrap().port()).into()),
            SocketOwner::Trusted
        );
        // The same port of another machine has no socket here.
        for elsewhere in ["203.0.113.5", "2001:db8::5"] {
            let elsewhere = elsewhere.parse().unwrap();
            let elsewhere = SocketAddr::new(elsewhere, all.local_addr().unwrap().port());
            assert_eq!(find_owner(elsewhere), SocketOwner::Unseen, "{elsewhere}");
        }
    }
}
