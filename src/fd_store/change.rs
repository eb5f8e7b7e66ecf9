//! Changes of what the store keeps, and how they are packed into messages.

use std::os::fd::BorrowedFd;

use crate::secret::Secret;

use super::error::StoreError;
use super::protocol::{
    ApplyRequest, ChangeKind, ChangeMessage, ENTRY_OVERHEAD, MAX_ENTRY_DESCRIPTORS, MAX_KEY,
    MAX_MESSAGE, MAX_MESSAGE_DESCRIPTORS, MAX_NOTE, MESSAGE_OVERHEAD,
};

/// A change of what the store keeps.
#[derive(Debug)]
pub enum StoreChange<'a> {
    /// Replaces note and descriptors of an entry, or makes one.
    Put {
        /// The key of the entry.
        key: Vec<u8>,
        /// Its note.
        note: Secret<Vec<u8>>,
        /// The descriptors that are duplicated into the store.
        descriptors: Vec<BorrowedFd<'a>>,
    },
    /// Replaces the note of an entry and keeps its descriptors. Without such an entry nothing happens.
    Annotate {
        /// The key of the entry.
        key: Vec<u8>,
        /// Its note.
        note: Secret<Vec<u8>>,
    },
    /// Deletes an entry, if there is one.
    Delete {
        /// The key of the entry.
        key: Vec<u8>,
    },
}

impl StoreChange<'_> {
    /// Returns the key of the entry.
    pub fn key(&self) -> &[u8] {
        let (Self::Put { key, .. } | Self::Annotate { key, .. } | Self::Delete { key }) = self;
        key
    }
}

/// Changes for one message.
#[derive(Default)]
pub(super) struct ChangeBatch<'a> {
    pub(super) request: ApplyRequest,
    pub(super) descriptors: Vec<BorrowedFd<'a>>,
    /// How long the message becomes at most.
    size: usize,
}

impl<'a> ChangeBatch<'a> {
    pub(super) fn has_room_for(&self, change: &StoreChange<'_>) -> bool {
        let (key, note, descriptors) = parts(change);
        let size = self.size + key.len() + note.map_or(0, |note| note.expose().len());
        size + ENTRY_OVERHEAD + MESSAGE_OVERHEAD <= MAX_MESSAGE
            && self.descriptors.len() + descriptors.len() <= MAX_MESSAGE_DESCRIPTORS
    }

    pub(super) fn push(&mut self, change: &StoreChange<'a>) {
        let (key, note, descriptors) = parts(change);
        let kind = match change {
            StoreChange::Put { .. } => ChangeKind::Put,
            StoreChange::Annotate { .. } => ChangeKind::Annotate,
            StoreChange::Delete { .. } => ChangeKind::Delete,
        };
        let note = note.map(|note| note.expose().clone()).unwrap_or_default();
        self.size += key.len() + note.len() + ENTRY_OVERHEAD;
        self.request.changes.push(ChangeMessage {
            kind: kind.into(),
            key: key.to_vec(),
            note,
            descriptors: u32::try_from(descriptors.len()).unwrap_or(u32::MAX),
        });
        self.descriptors.extend(descriptors);
    }
}

type ChangeParts<'c, 'a> = (&'c [u8], Option<&'c Secret<Vec<u8>>>, &'c [BorrowedFd<'a>]);

fn parts<'c, 'a>(change: &'c StoreChange<'a>) -> ChangeParts<'c, 'a> {
    match change {
        StoreChange::Put { key, note, descriptors } => (key, Some(note), descriptors),
        StoreChange::Annotate { key, note } => (key, Some(note), &[]),
        StoreChange::Delete { key } => (key, None, &[]),
    }
}

pub(super) fn check_limits(change: &StoreChange<'_>) -> Result<(), StoreError> {
    let (key, note, descriptors) = parts(change);
    for (what, size, limit) in [
        ("bytes of key", key.len(), MAX_KEY),
        ("bytes of note", note.map_or(0, |note| note.expose().len()), MAX_NOTE),
        ("descriptors", descriptors.len(), MAX_ENTRY_DESCRIPTORS),
    ] {
        if size > limit {
            return Err(StoreError::TooLarge { what, size, limit });
        }
    }
    Ok(())
}
