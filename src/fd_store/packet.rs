//! Sends and receives one message with its descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    recvmsg, sendmsg, socket_with,
};

use super::address::StoreAddress;
use super::protocol::MAX_MESSAGE_DESCRIPTORS;

/// Room for the descriptors of one message.
const ANCILLARY: usize = rustix::cmsg_space!(ScmRights(MAX_MESSAGE_DESCRIPTORS));

/// A received message; its bytes are in the buffer.
#[derive(Debug)]
pub(super) struct ReceivedPacket {
    /// Its length; 0 means that the other side has closed the connection.
    pub(super) length: usize,
    pub(super) descriptors: Vec<OwnedFd>,
    /// Whether it was longer than the buffer.
    pub(super) is_too_long: bool,
    /// Whether descriptors are missing: too many files are open, or a security policy forbids passing them.
    pub(super) has_lost_descriptors: bool,
}

/// Creates a socket for the store or for a client.
pub(super) fn create_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Converts an address for the system.
pub(super) fn system_address(address: &StoreAddress) -> io::Result<SocketAddrUnix> {
    Ok(match address {
        StoreAddress::Path(path) => SocketAddrUnix::new(path.as_path())?,
        StoreAddress::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    })
}

/// Sends a message whole or not at all; never waits.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, flags)?;
    if sent != message.len() {
        return Err(io::Error::other("the message was cut off"));
    }
    Ok(())
}

/// Receives a message; never waits. Descriptors are closed when a program is executed, like all of this process.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<ReceivedPacket> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(ReceivedPacket {
        length: received.bytes,
        descriptors,
        is_too_long: received.flags.contains(ReturnFlags::TRUNC),
        has_lost_descriptors: received.flags.contains(ReturnFlags::CTRUNC),
    })
}
