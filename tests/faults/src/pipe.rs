//! Stands in for `rustix::pipe`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub use real_rustix::pipe::{PipeFlags, SpliceFlags};

use crate::io::Errno;
use crate::kernel;

pub fn pipe_with(_flags: PipeFlags) -> Result<(OwnedFd, OwnedFd), Errno> {
    Ok(kernel::open_pipe())
}

pub fn fcntl_setpipe_size(_pipe: &impl AsFd, _size: usize) -> Result<(), Errno> {
    Ok(())
}

pub fn fcntl_getpipe_size(_pipe: &impl AsFd) -> Result<usize, Errno> {
    Ok(kernel::PIPE_SIZE)
}

pub fn splice(
    from: &impl AsFd,
    _from_offset: Option<&mut u64>,
    to: &impl AsFd,
    _to_offset: Option<&mut u64>,
    max: usize,
    _flags: SpliceFlags,
) -> Result<usize, Errno> {
    kernel::splice(from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd(), max)
}
