//! Stands in for `tokio::io` and `rustix::io`.

use std::os::fd::{AsFd, AsRawFd};

pub use real_rustix::io::Errno;

use crate::kernel;

/// The readiness that a task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Readable,
    Writable,
    Error,
}

impl Interest {
    pub const READABLE: Self = Self::Readable;
    pub const WRITABLE: Self = Self::Writable;
    pub const ERROR: Self = Self::Error;
}

/// Reads from a pipe.
pub fn read(pipe: &impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    kernel::read_pipe(pipe.as_fd().as_raw_fd(), buffer)
}

/// Calls again as long as the call is interrupted.
pub fn retry_on_intr<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Returns how many bytes could be read from a socket.
pub fn ioctl_fionread(socket: &impl AsFd) -> Result<u64, Errno> {
    let socket = kernel::socket(socket.as_fd().as_raw_fd());
    let unread = socket.lock().received.len();
    Ok(unread as u64)
}
