//! Pipes, through which the kernel moves bytes from one socket to another without copying them.
//!
//! A pipe is two descriptors and some kilobytes of the kernel's memory, and an unprivileged user gets only so much
//! of that (`fs.pipe-user-pages-soft`). So they are few and shared: a direction takes one while bytes are on their way
//! and gives it back when it is empty. Whoever gets none copies.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounter, IntGauge};
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};
use tokio::net::TcpStream;

use super::metrics::ForwardMetrics;

/// Size of a pipe in bytes, as far as the system gives it. Between network namespaces, 16 bulk sessions moved 2.75 GB for
/// each second of CPU with it, 1.6 with 128 KiB and 2.6 with 1 MiB; on loopback the three differed less than runs do.
const WANTED: usize = 512 * 1024;
/// A smaller one is not worth its two system calls. What a user beyond its limit gets is 8 KiB.
const LEAST: usize = 64 * 1024;
/// What is said where there are no good pipes.
const REMEDY: &str = "fs.pipe-user-pages-soft and fs.pipe-max-size limit them";
/// Pipes that are kept for the next direction; more are closed.
const KEPT: usize = 8;

/// What pipes there are; a clone is the same ones.
#[derive(Debug, Clone)]
pub struct Pipes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    open: AtomicUsize,
    kept: Mutex<Vec<Pipe>>,
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
}

/// The size in bytes of the pipe that this process gets now.
///
/// # Errors
/// In words, where it gets none, or one that is too small to be used.
pub fn probe() -> Result<usize, String> {
    match Pipe::open() {
        Ok((_, size)) if size >= LEAST => Ok(size),
        Ok((_, size)) => {
            Err(format!("a pipe has only {size} bytes, {LEAST} are the least that helps; {REMEDY}"))
        }
        Err(error) => Err(format!("there is no pipe ({error}); {REMEDY}")),
    }
}

impl Pipes {
    /// At most `limit` pipes at once; with 0, everybody copies.
    pub fn new(limit: usize, metrics: ForwardMetrics) -> Self {
        Self(Arc::new(Inner { limit, open: AtomicUsize::new(0), kept: Mutex::default(), metrics }))
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
        let kept = self.kept().pop();
        let pipe = kept.or_else(|| self.open());
        if pipe.is_none() {
            self.fallbacks().inc();
        }
        Some(Lease { pipe: Some(pipe?), pipes: self.clone() })
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
    pub(super) fn fill(&self, from: &TcpStream, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        Ok(splice(from, None, &self.pipe()?.write, None, most, flags)?)
    }

    /// Gives up to `count` bytes, all that are in it, to a socket.
    pub(super) fn drain(&self, to: &TcpStream, count: usize) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        Ok(splice(&self.pipe()?.read, None, to, None, count, flags)?)
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
            if kept.len() < KEPT {
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
