//! The queues of a TCP connection: what was received and not read, what was written and not acknowledged, and whether the end
//! of the stream was received.

use std::os::fd::{AsFd, AsRawFd};

/// Returns how many bytes were received and not read yet; a FIN does not count.
pub fn unread(socket: &impl AsFd) -> Option<u64> {
    rustix::io::ioctl_fionread(socket).ok()
}

/// Returns how many bytes were written and are not acknowledged yet; a FIN counts as one. `TCP_INFO` has no such number:
/// it counts what is on its way in segments. Nor do the bytes sent, less those retransmitted, give the bytes written: the
/// kernel counts a segment again that a full queue of the device refused, which happened within a second behind a rate limit.
pub fn unacknowledged(socket: &impl AsFd) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one `int`, and the descriptor is open, since `socket` is borrowed.
    #[expect(unsafe_code, reason = "no safe function has SIOCOUTQ, which is TIOCOUTQ")]
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result != 0 {
        return None;
    }
    u64::try_from(bytes).ok()
}

/// Whether the peer's FIN was received on a connection that is over, whose state no longer tells; `false` if the kernel cannot
/// say. `unread` is what [`unread`] returned.
///
/// With the option `TCP_INQ`, `recvmsg` reports what is left to be read, and counts the FIN, which `FIONREAD` does not. Nothing
/// is taken out of the queue. But if nothing is unread and the connection was reset without a FIN, the error is reported here,
/// and later reads only see the end of the stream.
pub fn has_received_end(socket: &impl AsFd, unread: u64) -> bool {
    if set_inq(socket, true).is_none() {
        return false;
    }
    let left = read_inq(socket);
    // If it stays on, then nothing else on this socket asks for control messages.
    let _ = set_inq(socket, false);
    left.is_some_and(|left| left > unread)
}

/// Turns the option `TCP_INQ` on or off.
fn set_inq(socket: &impl AsFd, is_on: bool) -> Option<()> {
    let value = libc::c_int::from(is_on);
    let length = libc::socklen_t::try_from(size_of_val(&value)).ok()?;
    // SAFETY: `value` is readable for `length` bytes, and the descriptor is open, since `socket` is borrowed.
    #[expect(unsafe_code, reason = "no safe function sets TCP_INQ")]
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INQ,
            (&raw const value).cast(),
            length,
        )
    };
    (result == 0).then_some(())
}

/// Reads nothing, and returns what the option `TCP_INQ` says.
fn read_inq(socket: &impl AsFd) -> Option<u64> {
    /// As many bytes as the message takes, at the alignment that its header needs.
    #[repr(C)]
    struct Control(libc::cmsghdr, [u8; 16]);

    // SAFETY: a `msghdr` and a `cmsghdr` of zeros are valid: no address, no bytes, no control message.
    #[expect(unsafe_code, reason = "the fields differ between C libraries")]
    let (mut message, mut control): (libc::msghdr, Control) = unsafe { std::mem::zeroed() };
    message.msg_control = (&raw mut control).cast();
    #[allow(
        clippy::useless_conversion,
        reason = "the type of the length differs between C libraries"
    )]
    let length = size_of::<Control>().try_into().ok()?;
    message.msg_controllen = length;
    // SAFETY: the message has no room for bytes, its control buffer is writable for the length that is given and outlives the
    // call, and the descriptor is open, since `socket` is borrowed.
    #[expect(unsafe_code, reason = "the safe functions drop control messages of TCP")]
    let result = unsafe {
        libc::recvmsg(
            socket.as_fd().as_raw_fd(),
            &raw mut message,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    if result < 0 {
        return None;
    }
    // SAFETY: the kernel has filled in the control buffer, whose length is in the message, and a header that is returned lies in
    // it.
    #[expect(unsafe_code, reason = "the safe functions drop control messages of TCP")]
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message).as_ref()?;
        if (header.cmsg_level, header.cmsg_type) != (libc::SOL_TCP, libc::TCP_CM_INQ) {
            return None;
        }
        let left = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
        u64::try_from(left).ok()
    }
}
