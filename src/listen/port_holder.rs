//! Who listens on a port, as far as the system shows it.

use std::fmt;
use std::net::SocketAddr;

#[cfg(target_os = "linux")]
use super::interfaces;

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

/// Whose the sockets are that listen at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// They are root's or this user's.
    Trusted,
    /// One is this user's, by its number.
    Other(u32),
    /// There are none on this machine (or in this container), or the system does not show them.
    Unseen,
}

#[cfg(target_os = "linux")]
impl Owner {
    /// What a user with this number is to this process.
    pub fn of(user: u32) -> Self {
        let own = rustix::process::geteuid().as_raw();
        if [0, own].contains(&user) { Self::Trusted } else { Self::Other(user) }
    }
}

/// Whose the sockets are that take connections to `address`. Other than processes, that every user can see. One on all
/// addresses takes only what is for this machine.
#[cfg(target_os = "linux")]
pub fn owner(address: SocketAddr) -> Owner {
    let ip = address.ip().to_canonical();
    let is_local = interfaces::is_local(ip);
    let users: Vec<u32> = listening(address.port())
        .filter(|entry| {
            let listens = entry.local_address.ip().to_canonical();
            listens == ip || (is_local && listens.is_unspecified())
        })
        .map(|entry| entry.uid)
        .collect();
    let owners = || users.iter().map(|user| Owner::of(*user));
    owners().find(|owner| *owner != Owner::Trusted).or(owners().next()).unwrap_or(Owner::Unseen)
}

/// Whose the sockets are that take connections to `address`: here that cannot be seen.
#[cfg(not(target_os = "linux"))]
pub fn owner(_address: SocketAddr) -> Owner {
    Owner::Unseen
}

/// All sockets that listen on `port`.
#[cfg(target_os = "linux")]
fn listening(port: u16) -> impl Iterator<Item = procfs::net::TcpNetEntry> {
    let entries = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    entries.filter(move |entry| {
        entry.state == procfs::net::TcpState::Listen && entry.local_address.port() == port
    })
}

/// The name of this program. Only root sees which sockets it has: it keeps its memory private.
#[cfg(target_os = "linux")]
const PROGRAM: &str = "aspia_relay";

/// The processes that listen on `port`; none where they cannot be seen (another user's, another container's). Where the only
/// one that is not seen through, of all that run as the user whose the sockets are, is this program, it is taken for the one.
#[cfg(target_os = "linux")]
pub fn find(port: u16) -> Vec<Holder> {
    use procfs::process::FDTarget;

    let (inodes, users): (Vec<u64>, Vec<u32>) =
        listening(port).map(|entry| (entry.inode, entry.uid)).unzip();
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
        found.truncate(if found.len() > 1 { 0 } else { 1 });
    }
    let mut holders: Vec<_> = found
        .into_iter()
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_socket_has_an_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(owner(address), Owner::Trusted);
        // Nobody listens on another address, though the port is the same.
        assert_eq!(owner(SocketAddr::from(([127, 0, 0, 2], address.port()))), Owner::Unseen);
        // Only root may give a socket away.
        if std::os::unix::fs::fchown(&listener, Some(4242), None).is_ok() {
            assert_eq!(owner(address), Owner::Other(4242));
        }
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        assert_eq!(
            owner(([127, 0, 0, 1], all.local_addr().unwrap().port()).into()),
            Owner::Trusted
        );
        // What has the same port on another machine is nobody's here.
        for elsewhere in ["203.0.113.5", "2001:db8::5"] {
            let elsewhere = elsewhere.parse().unwrap();
            let elsewhere = SocketAddr::new(elsewhere, all.local_addr().unwrap().port());
            assert_eq!(owner(elsewhere), Owner::Unseen, "{elsewhere}");
        }
    }
}
