//! Pipes, through which the kernel moves bytes from one socket to another without copying them.
//!
//! A pipe takes two descriptors, and its size counts towards the limit on the pipes of an unprivileged user
//! (`fs.pipe-user-pages-soft`). So pipes are few and shared: a direction acquires one while bytes are in flight and releases
//! it when it is empty. A direction that gets none copies, and so do all if the kernel refuses to move bytes through
//! pipes: a seccomp profile that does not list `splice(2)`, gVisor, WSL 1.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::IntCounter;
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};
use tokio::net::TcpStream;
use tracing::warn;

use crate::tcp_info;

use super::metrics::ForwardMetrics;
use super::pool::PipePool;

/// The requested size of a pipe, in bytes. Between network namespaces, 16 bulk sessions moved 2.75 GB per second of CPU time
/// with it, 1.6 GB with 128 KiB and 2.6 GB with 1 MiB; on loopback the three differed by less than the spread of the runs.
const PIPE_SIZE: usize = 512 * 1024;
/// A smaller pipe is not worth its two system calls. A user over the limit gets 8 KiB.
const MIN_PIPE_SIZE: usize = 64 * 1024;
/// What an operator can do if there is no usable pipe.
const LIMIT_HINT: &str = "fs.pipe-user-pages-soft and fs.pipe-max-size limit pipes";
/// Moves bytes without blocking, and without copying if possible.
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
/// How long a byte may take over loopback in the probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many unused pipes are kept open.
const MAX_IDLE: usize = 8;
/// Errors of `splice(2)` that are permanent: the call is forbidden, unknown, or does not support such sockets. Others
/// (`ENOMEM`, `EIO`) may be temporary.
const PERMANENT_ERRORS: [Errno; 5] =
    [Errno::PERM, Errno::ACCESS, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];
/// What an operator can do if the kernel refuses `splice(2)`.
const SPLICE_HINT: &str = "bulk data is copied instead, which takes more CPU; if a seccomp profile or a sandbox forbids splice, allow it";

/// The pool of pipes. Clones share it.
#[derive(Debug, Clone)]
pub struct Pipes(Arc<SharedPipes>);

#[derive(Debug)]
struct SharedPipes {
    /// Gives up pipes if the kernel refuses permanently to move bytes through them.
    pool: PipePool<Pipe>,
    /// Whether a refusal that may be temporary has been logged.
    has_warned: AtomicBool,
    metrics: ForwardMetrics,
}

/// Both ends of a pipe.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// Opens a pipe. Returns it with its size in bytes.
    fn open() -> io::Result<(Self, usize)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // If this size is not permitted, the default remains.
        let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
        let size = fcntl_getpipe_size(&write)?;
        Ok((Self { read, write }, size))
    }

    /// Moves up to `max` bytes from a socket into the pipe; 0 at the end of the stream.
    fn read_from(&self, from: &impl AsFd, max: usize) -> io::Result<usize> {
        Ok(splice(from, None, &self.write, None, max, FLAGS)?)
    }

    /// Moves up to `count` bytes from the pipe to a socket.
    fn write_to(&self, to: &impl AsFd, count: usize) -> io::Result<usize> {
        Ok(splice(&self.read, None, to, None, count, FLAGS)?)
    }
}

/// Opens a pipe, moves a byte through it from socket to socket, and returns the size of the pipe in bytes.
///
/// # Errors
/// The process gets no pipe, or one that is too small, or the kernel refuses to move bytes through it.
pub fn probe() -> Result<usize, String> {
    let (pipe, size) =
        Pipe::open().map_err(|error| format!("cannot open a pipe ({error}); {LIMIT_HINT}"))?;
    if size < MIN_PIPE_SIZE {
        return Err(format!(
            "a pipe has only {size} bytes, and needs {MIN_PIPE_SIZE} to be of use; {LIMIT_HINT}"
        ));
    }
    match move_a_byte(&pipe) {
        Ok(()) => Ok(size),
        Err(error) => Err(format!(
            "the kernel does not move bytes through a pipe with splice ({error}); {SPLICE_HINT}"
        )),
    }
}

/// Moves a byte through a pipe, from a loopback connection back to itself.
fn move_a_byte(pipe: &Pipe) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (far, address) = listener.accept()?;
    if address != near.local_addr()? {
        return Err(io::Error::other(
            "another process connected to the port of the probe; try again",
        ));
    }
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    }
    near.write_all(b"x")?;
    if pipe.read_from(&far, 1)? != 1 || pipe.write_to(&far, 1)? != 1 {
        return Err(io::Error::other("no byte was moved"));
    }
    near.read_exact(&mut [0])
}

impl Pipes {
    /// Creates a pool of at most `limit` pipes; with 0, all bytes are copied.
    pub fn new(limit: usize, metrics: ForwardMetrics) -> Self {
        let pool = PipePool::new(limit, MAX_IDLE, metrics.pipes.clone());
        Self(Arc::new(SharedPipes { pool, has_warned: AtomicBool::new(false), metrics }))
    }

    fn fallbacks(&self) -> &IntCounter {
        &self.0.metrics.fallbacks
    }

    /// Acquires an empty pipe; `None`, which is counted, if none is available.
    pub(super) fn acquire(&self) -> Option<PipeLease> {
        let pipe = self.0.pool.acquire(open_useful);
        if pipe.is_none() {
            self.fallbacks().inc();
        }
        Some(PipeLease { pipe: Some(pipe?), pipes: self.clone() })
    }

    /// Notes that the kernel refused to move bytes of `stream` through a pipe, so that the caller copies them. If the refusal
    /// is permanent, no pipes are used from now on. The error of a connection that is over says nothing about others: a
    /// network router on the path can make it fail with nearly any error.
    pub(super) fn note_refusal(&self, error: &io::Error, stream: &TcpStream) {
        self.fallbacks().inc();
        if tcp_info::read(stream).is_some_and(|info| info.is_closed) {
            return;
        }
        if Errno::from_io_error(error).is_some_and(|errno| PERMANENT_ERRORS.contains(&errno)) {
            if self.0.pool.refuse() {
                warn!(%error, "the kernel refuses splice(2): {SPLICE_HINT}");
            }
        } else if !self.0.has_warned.swap(true, Ordering::Relaxed) {
            warn!(
                %error,
                "the kernel could not move bytes with splice(2), so they are copied; aspia_relay_pipe_fallbacks_total \
                 counts how often"
            );
        }
    }
}

/// Opens a pipe. Returns `None` if the system provides none that is large enough.
fn open_useful() -> Option<Pipe> {
    Pipe::open().ok().filter(|(_, size)| *size >= MIN_PIPE_SIZE).map(|(pipe, _)| pipe)
}

/// A pipe in use. Dropping it closes the pipe, and any bytes in it are lost.
#[derive(Debug)]
pub(super) struct PipeLease {
    pipe: Option<Pipe>,
    pipes: Pipes,
}

impl PipeLease {
    fn pipe(&self) -> io::Result<&Pipe> {
        // There is a pipe until the lease is released, which consumes it.
        self.pipe.as_ref().ok_or(io::Error::from(io::ErrorKind::NotConnected))
    }

    /// Moves up to `max` bytes from a socket into the pipe; 0 at the end of the stream. The pipe must be empty: otherwise a
    /// full pipe could not be told from an empty socket.
    pub(super) fn read_from(&self, from: &impl AsFd, max: usize) -> io::Result<usize> {
        self.pipe()?.read_from(from, max)
    }

    /// Moves up to `count` bytes, which is how many the pipe holds, to a socket.
    pub(super) fn write_to(&self, to: &impl AsFd, count: usize) -> io::Result<usize> {
        self.pipe()?.write_to(to, count)
    }

    /// Takes out the `count` bytes that are in the pipe, and releases it.
    pub(super) fn into_bytes(self, count: usize) -> io::Result<Vec<u8>> {
        let pipe = self.pipe()?;
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match retry_on_intr(|| rustix::io::read(&pipe.read, &mut bytes[filled..]))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        self.release();
        Ok(bytes)
    }

    /// Returns the pipe, which must be empty, to the pool.
    pub(super) fn release(mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pipes.0.pool.release(pipe);
        }
    }
}

impl Drop for PipeLease {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pipes.0.pool.close(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;
    use relay_lab::sockets::connected_pair;

    #[tokio::test]
    async fn only_a_live_connection_shows_that_splice_is_refused_permanently() {
        let (there, here) = connected_pair().await.unwrap();
        let pipes = Pipes::new(2, ForwardMetrics::new(&Registry::new()).unwrap());
        socket2::SockRef::from(&there).set_linger(Some(Duration::ZERO)).unwrap();
        drop(there);
        while !tcp_info::read(&here).unwrap().is_closed {
            tokio::task::yield_now().await;
        }
        for errno in PERMANENT_ERRORS {
            pipes.note_refusal(&errno.into(), &here);
            assert!(pipes.acquire().is_some(), "{errno:?} of a dead connection");
        }
        let (_peer, alive) = connected_pair().await.unwrap();
        for errno in [Errno::NOMEM, Errno::IO, Errno::NOBUFS] {
            pipes.note_refusal(&errno.into(), &alive);
            assert!(pipes.acquire().is_some(), "{errno:?} may be temporary");
        }
        pipes.acquire().unwrap().release();
        pipes.note_refusal(&Errno::PERM.into(), &alive);
        assert!(pipes.acquire().is_none());
        assert_eq!(pipes.0.metrics.pipes.get(), 0, "no useless pipe is kept");
    }
}
