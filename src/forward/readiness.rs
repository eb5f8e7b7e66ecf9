//! The readiness of a socket according to the kernel. The runtime may not know of it yet, for example after the process was
//! paused.

use tokio::net::TcpStream;

/// Whether bytes were received and not read yet. An end of stream without bytes does not count.
#[cfg(unix)]
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    rustix::io::ioctl_fionread(stream).is_ok_and(|bytes| bytes > 0)
}

/// Whether the socket would accept bytes.
#[cfg(unix)]
pub(super) fn is_writable(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut sockets = [PollFd::new(stream, PollFlags::OUT)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut sockets, Some(&no_wait)).is_ok_and(|ready| ready > 0)
}

/// Not known on this system, which has to rely on the runtime.
#[cfg(not(unix))]
pub(super) fn has_unread(_stream: &TcpStream) -> bool {
    false
}

/// Not known on this system, which has to rely on the runtime.
#[cfg(not(unix))]
pub(super) fn is_writable(_stream: &TcpStream) -> bool {
    false
}
