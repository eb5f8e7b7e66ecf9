//! What the store keeps: a map from keys to notes and descriptors.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zeroize::Zeroizing;

use super::protocol::{
    ApplyRequest, ChangeKind, ChangeMessage, ENTRY_OVERHEAD, EntriesAnswer, EntryMessage,
    MAX_ENTRIES, MAX_ENTRY_DESCRIPTORS, MAX_KEY, MAX_MESSAGE, MAX_MESSAGE_DESCRIPTORS, MAX_NOTE,
    MESSAGE_OVERHEAD, RefusalReason, RefusedAnswer,
};

/// The most bytes of all notes together.
const MAX_NOTES: usize = 512 * 1024 * 1024;

/// Lets this process open as many files as the system allows it, and returns how many.
pub(super) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX))
}

/// Small on purpose: there is one for each session.
struct KeptEntry {
    note: Zeroizing<Box<[u8]>>,
    /// Without gaps from the front. An empty place takes no more than a descriptor, 4 bytes.
    descriptors: [Option<OwnedFd>; MAX_ENTRY_DESCRIPTORS],
}

impl KeptEntry {
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.descriptors.iter().flatten().map(AsFd::as_fd)
    }
}

/// The map.
pub(super) struct EntryMap {
    entries: BTreeMap<Box<[u8]>, KeptEntry>,
    descriptors: usize,
    max_descriptors: usize,
    note_bytes: usize,
}

impl EntryMap {
    pub(super) fn new(max_descriptors: usize) -> Self {
        Self { entries: BTreeMap::new(), descriptors: 0, max_descriptors, note_bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn descriptors(&self) -> usize {
        self.descriptors
    }

    pub(super) fn max_descriptors(&self) -> usize {
        self.max_descriptors
    }

    /// Makes all changes of a request, or none.
    pub(super) fn apply(
        &mut self,
        mut request: ApplyRequest,
        received: Vec<OwnedFd>,
    ) -> Result<(), RefusedAnswer> {
        check(&request, received.len())?;
        self.check_room(&request, received.len())?;
        let mut received = received.into_iter();
        for change in &mut request.changes {
            match change.kind() {
                ChangeKind::Put => self.put(change, &mut received),
                ChangeKind::Annotate => self.annotate(change),
                ChangeKind::Delete => drop(self.remove(&change.key)),
                ChangeKind::Unknown => {}
            }
        }
        Ok(())
    }

    /// Refuses what would exceed a limit. A relay that puts all of its entries again needs no room for them.
    fn check_room(&self, request: &ApplyRequest, received: usize) -> Result<(), RefusedAnswer> {
        let (mut added, mut replaced, mut notes) = (0, 0, 0);
        let mut removed = HashSet::new();
        for change in &request.changes {
            let old = self.entries.get(change.key.as_slice());
            added += usize::from(change.kind() == ChangeKind::Put && old.is_none());
            notes += change.note.len();
            // What several changes remove is removed once.
            if change.kind() != ChangeKind::Annotate && removed.insert(change.key.as_slice()) {
                replaced += old.map_or(0, |old| old.descriptors().count());
            }
        }
        for (kept, added, limit) in [
            (self.entries.len(), added, MAX_ENTRIES),
            (self.descriptors, received.saturating_sub(replaced), self.max_descriptors),
            (self.note_bytes, notes, MAX_NOTES),
        ] {
            if added > 0 && kept + added > limit {
                return Err(refusal(RefusalReason::Full, limit));
            }
        }
        Ok(())
    }

    fn put(&mut self, change: &mut ChangeMessage, received: &mut impl Iterator<Item = OwnedFd>) {
        let mut descriptors = [const { None }; MAX_ENTRY_DESCRIPTORS];
        for place in descriptors.iter_mut().take(count(change.descriptors)) {
            *place = received.next();
            self.descriptors += usize::from(place.is_some());
        }
        // Replaces the old descriptors only now: the new ones may be duplicates of the same sockets, which must not be closed
        // in between.
        let key = std::mem::take(&mut change.key).into_boxed_slice();
        drop(self.remove(&key));
        let note = take_note(change);
        self.note_bytes += note.len();
        self.entries.insert(key, KeptEntry { note, descriptors });
    }

    fn annotate(&mut self, change: &mut ChangeMessage) {
        if let Some(entry) = self.entries.get_mut(change.key.as_slice()) {
            let note = take_note(change);
            self.note_bytes = self.note_bytes + note.len() - entry.note.len();
            entry.note = note;
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<KeptEntry> {
        let entry = self.entries.remove(key)?;
        self.descriptors -= entry.descriptors().count();
        self.note_bytes -= entry.note.len();
        Some(entry)
    }

    /// Closes and forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries = BTreeMap::new();
        (self.descriptors, self.note_bytes) = (0, 0);
    }

    /// Returns each entry: its key, its note and its descriptors.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], Vec<BorrowedFd<'_>>)> {
        self.entries
            .iter()
            .map(|(key, entry)| (&**key, &**entry.note, entry.descriptors().collect()))
    }

    /// Ends every connection that is kept, for a store that nobody else shares them with: peers see an ordinary end even if
    /// bytes were not read, for which closing alone would send a reset. Listening sockets are left alone: the service manager may
    /// have given them to the relay, and would find its own shut down.
    pub(super) fn shut_down_all(&self) {
        for descriptor in self.entries.values().flat_map(KeptEntry::descriptors) {
            if !socket_acceptconn(descriptor).unwrap_or(false) {
                // Fails for what is not a connected socket.
                let _ = shutdown(descriptor, Shutdown::Both);
            }
        }
    }

    /// Returns the entries after a key, as many as fit into one message, and their descriptors.
    pub(super) fn page_after(&self, key: &[u8]) -> (EntriesAnswer, Vec<BorrowedFd<'_>>) {
        let (mut page, mut descriptors) = (EntriesAnswer::default(), Vec::new());
        let mut size = MESSAGE_OVERHEAD;
        let after = (Bound::Excluded(key), Bound::Unbounded);
        for (key, entry) in self.entries.range::<[u8], _>(after) {
            let added = entry.descriptors().count();
            size += key.len() + entry.note.len() + ENTRY_OVERHEAD;
            if size > MAX_MESSAGE || descriptors.len() + added > MAX_MESSAGE_DESCRIPTORS {
                return (page, descriptors);
            }
            descriptors.extend(entry.descriptors());
            page.entries.push(EntryMessage {
                key: key.to_vec(),
                note: entry.note.to_vec(),
                descriptors: u32::try_from(added).unwrap_or(u32::MAX),
            });
        }
        page.is_last = true;
        (page, descriptors)
    }
}

/// Takes the note out of a change without a copy that would not be wiped.
fn take_note(change: &mut ChangeMessage) -> Zeroizing<Box<[u8]>> {
    let mut note = Zeroizing::new(std::mem::take(&mut change.note));
    if note.len() == note.capacity() {
        return Zeroizing::new(std::mem::take(&mut *note).into_boxed_slice());
    }
    Zeroizing::new(note.as_slice().into())
}

fn count(descriptors: u32) -> usize {
    usize::try_from(descriptors).unwrap_or(usize::MAX)
}

/// Refuses a request that no client of this protocol sends.
fn check(request: &ApplyRequest, received: usize) -> Result<(), RefusedAnswer> {
    let malformed = refusal(RefusalReason::Malformed, 0);
    let mut promised = 0;
    for change in &request.changes {
        let (kind, descriptors) = (change.kind(), count(change.descriptors));
        if kind == ChangeKind::Unknown {
            return Err(refusal(RefusalReason::UnknownRequest, 0));
        }
        let is_valid = (1..=MAX_KEY).contains(&change.key.len())
            && change.note.len() <= MAX_NOTE
            && descriptors <= MAX_ENTRY_DESCRIPTORS
            && (descriptors == 0 || kind == ChangeKind::Put);
        if !is_valid {
            return Err(malformed);
        }
        promised += descriptors;
    }
    if promised > received && promised <= MAX_MESSAGE_DESCRIPTORS {
        return Err(refusal(RefusalReason::DescriptorsLost, 0));
    }
    if promised == received { Ok(()) } else { Err(malformed) }
}

/// Makes a refusal.
pub(super) fn refusal(reason: RefusalReason, number: usize) -> RefusedAnswer {
    RefusedAnswer { reason: reason.into(), number: number as u64, owner: None }
}
