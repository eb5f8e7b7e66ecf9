//! Pipes, through which the kernel moves bytes from one socket to another without copying them.
//!
//! A pipe is two descriptors and some kilobytes of the kernel's memory, and an unprivileged user gets only so much
//! of that (`fs.pipe-user-pages-soft`). So they are few and shared: a direction takes one while bytes are on their way
//! and gives it back when it is empty. Whoever gets none copies, and so does everybody where the kernel refuses to move
//! bytes through them: a seccomp profile that does not list `splice(2)`, gVisor, WSL 1.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use rustix::io::Errno;
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};
use tokio::net::TcpStream;
use tracing::warn;

use crate::tcp_info;

use super::metrics::ForwardMetrics;

/// Size of a pipe in bytes, as far as the system gives it. Between network namespaces, 16 bulk sessions moved 2.75 GB for
/// each second of CPU with it, 1.6 with 128 KiB and 2.6 with 1 MiB; on loopback the three differed less than runs do.
const WANTED: usize = 512 * 1024;
/// A smaller one is not worth its two system calls. What a user beyond its limit gets is 8 KiB.
const LEAST: usize = 64 * 1024;
/// What is said where there are no good pipes.
const REMEDY: &str = "fs.pipe-user-pages-soft and fs.pipe-max-size limit them";
/// How bytes are moved: without waiting, and without copying where that can be.
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
/// How long a byte may take over loopback, where it is tried.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pipes that are kept for the next direction; more are closed.
const KEPT: usize = 8;
/// Errors of `splice(2)` with which it will go on failing: the call is forbidden, unknown, or not for such sockets. Any other
/// (`ENOMEM`, `EIO`) may pass.
const FOR_GOOD: [Errno; 5] =
    [Errno::PERM, Errno::ACCESS, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];
/// What an operator can do about it.
const ALLOW: &str = "bulk is copied instead, which takes more CPU; where a seccomp profile or a sandbox forbids splice, allow it";

/// What pipes there are; a clone is the same ones.
#[derive(Debug, Clone)]
pub struct Pipes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    open: AtomicUsize,
    kept: Mutex<Vec<Pipe>>,
    /// The kernel does not move bytes through them, and never will.
    refused: AtomicBool,
    /// A refusal that may pass has been logged.
    warned: AtomicBool,
    metrics: ForwardMetrics,
}

/// Two ends, nothing between them.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// A pipe, and its size in bytes.
    fn open() -> io::Result<(Self, usize)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Without the right to this size, what the system gave counts.
        let _ = fcntl_setpipe_size(&write, WANTED);
        let size = fcntl_getpipe_size(&write)?;
        Ok((Self { read, write }, size))
    }

    /// Takes up to `most` bytes from a socket; 0 at its end.
    fn fill(&self, from: &impl AsFd, most: usize) -> io::Result<usize> {
        Ok(splice(from, None, &self.write, None, most, FLAGS)?)
    }

    /// Gives up to `count` bytes to a socket.
    fn drain(&self, to: &impl AsFd, count: usize) -> io::Result<usize> {
        Ok(splice(&self.read, None, to, None, count, FLAGS)?)
    }
}

/// The size in bytes of the pipe that this process gets now, through which bytes were moved from a socket to a socket.
///
/// # Errors
/// In words, where it gets none, or one that is too small to be used, or the kernel refuses to move bytes through it.
pub fn probe() -> Result<usize, String> {
    let (pipe, size) =
        Pipe::open().map_err(|error| format!("there is no pipe ({error}); {REMEDY}"))?;
    if size < LEAST {
        return Err(format!(
            "a pipe has only {size} bytes, {LEAST} are the least that helps; {REMEDY}"
        ));
    }
    match move_a_byte(&pipe) {
        Ok(()) => Ok(size),
        Err(error) => Err(format!(
            "the kernel does not move bytes through a pipe with splice ({error}); {ALLOW}"
        )),
    }
}

/// Moves a byte through a pipe, from one connection over loopback to the same one.
fn move_a_byte(pipe: &Pipe) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (far, address) = listener.accept()?;
    if address != near.local_addr()? {
        return Err(io::Error::other(
            "somebody else connected to the port of the trial; try again",
        ));
    }
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    near.write_all(b"x")?;
    if pipe.fill(&far, 1)? != 1 || pipe.drain(&far, 1)? != 1 {
        return Err(io::Error::other("it moves nothing"));
    }
    near.read_exact(&mut [0])
}

impl Pipes {
    /// At most `limit` pipes at once; with 0, everybody copies.
    pub fn new(limit: usize, metrics: ForwardMetrics) -> Self {
        Self(Arc::new(Inner {
            limit,
            open: AtomicUsize::new(0),
            kept: Mutex::default(),
            refused: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            metrics,
        }))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Pipe>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self) -> &IntGauge {
        &self.0.metrics.pipes
    }

    fn fallbacks(&self) -> &IntCounter {
        &self.0.metrics.fallbacks
    }

    /// A pipe that is empty; `None`, and counted, where there is none to be had.
    pub(super) fn take(&self) -> Option<Lease> {
        let pipe = if self.is_refused() {
            None
        } else {
            let kept = self.kept().pop();
            kept.or_else(|| self.open())
        };
        if pipe.is_none() {
            self.fallbacks().inc();
        }
        Some(Lease { pipe: Some(pipe?), pipes: self.clone() })
    }

    /// The kernel refused to move bytes of `stream` through a pipe, which the caller then copies. Where it will refuse again,
    /// nobody gets a pipe any more. The error of a connection that is over says nothing of others: a router on the way can
    /// have it fail with nearly any error.
    pub(super) fn refused(&self, error: &io::Error, stream: &TcpStream) {
        self.fallbacks().inc();
        if tcp_info::read(stream).is_some_and(|info| info.closed) {
            return;
        }
        if Errno::from_io_error(error).is_some_and(|errno| FOR_GOOD.contains(&errno)) {
            let is_first = !self.0.refused.swap(true, Ordering::Relaxed);
            let kept = std::mem::take(&mut *self.kept());
            kept.iter().for_each(|_| self.closed());
            if is_first {
                warn!(%error, "the kernel refuses splice(2): {ALLOW}");
            }
        } else if !self.0.warned.swap(true, Ordering::Relaxed) {
            warn!(
                %error,
                "the kernel could not move bytes with splice(2): they are copied; aspia_relay_pipe_fallbacks_total \
                 counts how often"
            );
        }
    }

    fn is_refused(&self) -> bool {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn open(&self) -> Option<Pipe> {
        let enter = |open| (open < self.0.limit).then_some(open + 1);
        self.0.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok()?;
        let pipe = Pipe::open().ok().filter(|(_, size)| *size >= LEAST).map(|(pipe, _)| pipe);
        if pipe.is_some() {
            self.gauge().inc();
        } else {
            self.0.open.fetch_sub(1, Ordering::Relaxed);
        }
        pipe
    }

    fn closed(&self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.gauge().dec();
    }
}

/// A pipe in use. Dropped with bytes in it, it is closed and they are gone.
#[derive(Debug)]
pub(super) struct Lease {
    pipe: Option<Pipe>,
    pipes: Pipes,
}

impl Lease {
    fn pipe(&self) -> io::Result<&Pipe> {
        // There is one until it is given back, which takes the lease.
        self.pipe.as_ref().ok_or(io::Error::from(io::ErrorKind::NotConnected))
    }

    /// Takes up to `most` bytes out of a socket's hands; 0 at its end. Only for an empty pipe: otherwise a full pipe
    /// could not be told from an empty socket.
    pub(super) fn fill(&self, from: &impl AsFd, most: usize) -> io::Result<usize> {
        self.pipe()?.fill(from, most)
    }

    /// Gives up to `count` bytes, all that are in it, to a socket.
    pub(super) fn drain(&self, to: &impl AsFd, count: usize) -> io::Result<usize> {
        self.pipe()?.drain(to, count)
    }

    /// Takes out the `count` bytes that are in it.
    pub(super) fn empty(self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match rustix::io::read(&self.pipe()?.read, &mut bytes[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        self.give_back();
        Ok(bytes)
    }

    /// Gives it back; there must be nothing in it.
    pub(super) fn give_back(mut self) {
        if let Some(pipe) = self.pipe.take() {
            let mut kept = self.pipes.kept();
            if kept.len() < KEPT && !self.pipes.is_refused() {
                kept.push(pipe);
                return;
            }
            drop(kept);
            self.pipes.closed();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.pipe.take().is_some() {
            self.pipes.closed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;

    #[tokio::test]
    async fn only_a_connection_that_is_alive_shows_that_splice_is_refused_for_good() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (there, _) = listener.accept().await.unwrap();
        let pipes = Pipes::new(2, ForwardMetrics::new(&Registry::new()).unwrap());
        socket2::SockRef::from(&there).set_linger(Some(Duration::ZERO)).unwrap();
        drop(there);
        while !tcp_info::read(&here).unwrap().closed {
            tokio::task::yield_now().await;
        }
        for errno in FOR_GOOD {
            pipes.refused(&errno.into(), &here);
            assert!(pipes.take().is_some(), "{errno:?} of a dead connection");
        }
        let alive = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        for errno in [Errno::NOMEM, Errno::IO, Errno::NOBUFS] {
            pipes.refused(&errno.into(), &alive);
            assert!(pipes.take().is_some(), "{errno:?} may pass");
        }
        pipes.take().unwrap().give_back();
        pipes.refused(&Errno::PERM.into(), &alive);
        assert!(pipes.take().is_none());
        assert_eq!(pipes.gauge().get(), 0, "no pipe is kept that is of no use");
    }
}
