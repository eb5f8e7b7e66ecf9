//! The pipes of a system whose kernel does not move bytes through them: there are none.

use std::convert::Infallible;
use std::io;

use tokio::net::TcpStream;

use super::metrics::ForwardMetrics;

/// The size in bytes of the pipe that this process gets now.
///
/// # Errors
/// Always, in words.
pub fn probe() -> Result<usize, String> {
    Err("the kernel of this system does not move bytes through pipes".into())
}

/// No pipes.
#[derive(Debug, Clone)]
pub struct Pipes;

impl Pipes {
    /// None, whatever the limit.
    pub fn new(_limit: usize, _metrics: ForwardMetrics) -> Self {
        Self
    }

    pub(super) fn take(&self) -> Option<Lease> {
        None
    }

    /// Nobody has a pipe that could be refused.
    pub(super) fn refused(&self, _error: &io::Error, _stream: &TcpStream) {}
}

/// A pipe in use, which cannot be.
#[derive(Debug)]
pub(super) struct Lease(Infallible);

impl Lease {
    pub(super) fn fill(&self, _from: &TcpStream, _most: usize) -> io::Result<usize> {
        match self.0 {}
    }

    pub(super) fn drain(&self, _to: &TcpStream, _count: usize) -> io::Result<usize> {
        match self.0 {}
    }

    pub(super) fn empty(self, _count: usize) -> io::Result<Vec<u8>> {
        match self.0 {}
    }

    pub(super) fn give_back(self) {
        match self.0 {}
    }
}
