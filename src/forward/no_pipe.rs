//! Stands in for pipes on systems whose kernel does not move bytes through them.

use std::convert::Infallible;
use std::io;

use tokio::net::TcpStream;

use super::metrics::ForwardMetrics;

pub(super) use NoPipeLease as PipeLease;
pub use NoPipes as Pipes;

/// Returns the size in bytes of a pipe, where there are pipes.
///
/// # Errors
/// Always: there are no pipes.
pub fn probe() -> Result<usize, String> {
    Err("the kernel of this system does not move bytes through pipes".into())
}

/// An empty pool of pipes.
#[derive(Debug, Clone)]
pub struct NoPipes;

impl NoPipes {
    /// Creates an empty pool, whatever the limit.
    pub fn new(_limit: usize, _metrics: ForwardMetrics) -> Self {
        Self
    }

    pub(super) fn acquire(&self) -> Option<NoPipeLease> {
        None
    }

    /// Never called, since there are no pipes.
    pub(super) fn note_refusal(&self, _error: &io::Error, _stream: &TcpStream) {}
}

/// A pipe in use, which cannot exist.
#[derive(Debug)]
pub(super) struct NoPipeLease(Infallible);

impl NoPipeLease {
    pub(super) fn read_from(&self, _from: &TcpStream, _most: usize) -> io::Result<usize> {
        match self.0 {}
    }

    pub(super) fn write_to(&self, _to: &TcpStream, _count: usize) -> io::Result<usize> {
        match self.0 {}
    }

    pub(super) fn into_bytes(self, _count: usize) -> io::Result<Vec<u8>> {
        match self.0 {}
    }

    pub(super) fn release(self) {
        match self.0 {}
    }
}
