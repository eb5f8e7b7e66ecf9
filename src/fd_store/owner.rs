//! The identity of a relay towards the store, and its life line.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};

use super::protocol::OWNER_ID_LEN;

/// Identifies a relay towards the store, and shows the store whether that relay still exists.
///
/// A relay makes one and keeps it as long as it exists. The lease of the store does not end with the connection alone: a
/// relay whose connection broke still forwards, and a second one must not continue the same sessions. The store therefore
/// holds one end of a pipe, the *life line*, of which the last clone of this value holds the other: it closes with the
/// process, however that ends.
#[derive(Debug, Clone)]
pub struct OwnerId(Arc<OwnerParts>);

#[derive(Debug)]
struct OwnerParts {
    id: [u8; OWNER_ID_LEN],
    /// What the store gets.
    life_line: OwnedFd,
    /// Only kept open.
    _writer: OwnedFd,
}

impl OwnerId {
    /// Makes a new one.
    ///
    /// # Errors
    /// There are no random numbers, or no pipe can be opened.
    pub fn generate() -> io::Result<Self> {
        let mut id = [0; OWNER_ID_LEN];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        let (life_line, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self(Arc::new(OwnerParts { id, life_line, _writer: writer })))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0.id
    }

    pub(super) fn life_line(&self) -> BorrowedFd<'_> {
        self.0.life_line.as_fd()
    }
}

impl PartialEq for OwnerId {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for OwnerId {}
