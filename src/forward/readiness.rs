//! What the kernel says of a socket at this moment, whatever the runtime has heard of it so far: after a pause of the
//! process it may have heard nothing yet.

use tokio::net::TcpStream;

/// Whether there are bytes that were received and not read yet. An end without bytes is none.
#[cfg(unix)]
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    rustix::io::ioctl_fionread(stream).is_ok_and(|bytes| bytes > 0)
}

/// Whether it would take bytes.
#[cfg(unix)]
pub(super) fn is_writable(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut sockets = [PollFd::new(stream, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut sockets, Some(&at_once)).is_ok_and(|ready| ready > 0)
}

/// Not known on this system: what the runtime has heard has to do.
#[cfg(not(unix))]
pub(super) fn has_unread(_stream: &TcpStream) -> bool {
    false
}

/// Not known on this system: what the runtime has heard has to do.
#[cfg(not(unix))]
pub(super) fn is_writable(_stream: &TcpStream) -> bool {
    false
}
