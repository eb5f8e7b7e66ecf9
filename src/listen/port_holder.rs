//! Who listens on a port, as far as `/proc` shows it.

use procfs::net::TcpState;
use procfs::process::FDTarget;

/// The processes that listen on `port`, in words; `None` where they cannot be seen (another user's, another
/// container's).
pub(super) fn find(port: u16) -> Option<String> {
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
    let mut names: Vec<String> = procfs::process::all_processes()
        .ok()?
        .flatten()
        .filter(holds)
        .map(|process| match process.stat() {
            Ok(stat) => format!("process {} ({})", stat.pid, stat.comm),
            Err(_) => format!("process {}", process.pid()),
        })
        .collect();
    names.sort();
    (!names.is_empty()).then(|| names.join(", "))
}
