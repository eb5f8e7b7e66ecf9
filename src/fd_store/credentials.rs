//! Who is at the other end of a Unix socket.
//!
//! Unsafe code: `getsockopt(SO_PEERCRED)`. rustix has a safe call, but its result holds the process id as a number that is
//! never zero, and the kernel reports zero for a process of another PID namespace, such as another container.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The user and process of the other end: for an accepted connection the process that connected, for a client the process
/// that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketCredentials {
    pub(super) user: u32,
    /// 0 for a process of another PID namespace.
    pub(super) process: u32,
}

impl SocketCredentials {
    /// Reads the credentials that the kernel recorded.
    pub(super) fn of_peer(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let size = size_of::<libc::ucred>();
        let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open, both pointers point to initialised values that live until the call returns, and
        // `length` is the size of the first.
        #[expect(unsafe_code, reason = "the process id may be zero, which rustix does not allow")]
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut length,
            )
        };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        if usize::try_from(length) != Ok(size) {
            return Err(io::Error::other("SO_PEERCRED returned something else"));
        }
        Ok(Self { user: credentials.uid, process: u32::try_from(credentials.pid).unwrap_or(0) })
    }
}

/// Returns the user id of this process.
pub(super) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
