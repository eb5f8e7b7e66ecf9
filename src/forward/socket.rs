//! Non-blocking reads from and writes to the sockets of a session, with a buffer that all sessions of a thread share.

use std::cell::RefCell;
use std::io::{self, Read, Write};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The two connections of a session.
pub type Sockets = [TcpStream; 2];

/// The maximum number of bytes that are copied at a time.
const SCRATCH_SIZE: usize = 64 * 1024;

thread_local! {
    /// The buffer of a thread: a direction owns only what its receiver has not accepted yet.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_SIZE].into_boxed_slice());
}

/// Runs `work` with the buffer of this thread.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// Reads what is available and fits into `buffer`.
pub(super) fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    try_io_to_exhaustion(from, Interest::READABLE, buffer.len(), || {
        (&*SockRef::from(from)).read(buffer)
    })
}

/// Writes as much as the receiver accepts.
pub(super) fn write(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    try_io_to_exhaustion(to, Interest::WRITABLE, bytes.len(), || (&*SockRef::from(to)).write(bytes))
}

/// Whether the call failed only because it must be repeated, now or when the socket is ready.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Reads or writes, and marks the socket as not ready when fewer than `room` bytes were moved: that saves the next call,
/// which would only fail. A read is short although there is more only if there is urgent data, which peers do not send; the
/// rest would then be read together with the next bytes.
fn try_io_to_exhaustion(
    stream: &TcpStream,
    interest: Interest,
    room: usize,
    mut work: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut short = None;
    let result = stream.try_io(interest, || match work()? {
        moved if 0 < moved && moved < room => {
            short = Some(moved);
            // This tells the runtime that the socket is not ready until the next event.
            Err(io::ErrorKind::WouldBlock.into())
        }
        moved => Ok(moved),
    });
    short.map_or(result, Ok)
}
