//! Reading from and writing to the sockets of a session without waiting, with a buffer that all sessions of a thread share.

use std::cell::RefCell;
use std::io::{self, Read, Write};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The two connections of a session.
pub type Sockets = [TcpStream; 2];

/// Bytes copied at a time, at most.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// The buffer of a thread: a direction owns only what the other side could not take yet.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Runs something with the buffer of this thread.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// Reads what there is, at most as much as fits.
pub(super) fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    exhausting(from, Interest::READABLE, buffer.len(), || (&*SockRef::from(from)).read(buffer))
}

/// Writes as much as is taken.
pub(super) fn write(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    exhausting(to, Interest::WRITABLE, bytes.len(), || (&*SockRef::from(to)).write(bytes))
}

/// Whether a call that would have had to wait can be made again.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Reads or writes, and takes it for a sign that the socket is exhausted when less than `room` bytes were moved: that
/// saves the next call, which would only say so. (Only urgent data, which peers do not send, makes a read short though
/// there is more: that waits for the next bytes.)
fn exhausting(
    stream: &TcpStream,
    interest: Interest,
    room: usize,
    mut work: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut short = None;
    let result = stream.try_io(interest, || match work()? {
        moved if 0 < moved && moved < room => {
            short = Some(moved);
            // This is how the runtime is told that there is nothing to do until the next event.
            Err(io::ErrorKind::WouldBlock.into())
        }
        moved => Ok(moved),
    });
    short.map_or(result, Ok)
}
