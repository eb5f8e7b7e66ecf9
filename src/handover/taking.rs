//! Takes over from the previous relay: reads everything from the descriptor store and checks it.
//!
//! The store keeps everything meanwhile. Only what must not be used twice (the Router link, the keys on offer, peers that were
//! not paired) is deleted before it is used; sessions prove themselves by the figures of the kernel. A relay that dies at any
//! step therefore costs at most the link, and the next one takes over.

use std::collections::{HashMap, HashSet};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::config::Config;
use crate::fd_store::client::{Acquired, StoreChange, StoredEntry};
use crate::fd_store::error::StoreError;
use crate::forward::balance::{Continuation, Verdict};
use crate::link::snapshot::LinkSnapshot;
use crate::peer::session::DetachedSession;
use crate::router::suspend::SuspendedLink;
use crate::secret::Secret;
use crate::state::keys::{KeyId, OneTimeKey};
use crate::state::sessions::{EndCause, EndedSession, SessionId, SessionRecord};
use crate::state::shared::SharedState;

use super::contents::StoreContents;
use super::entry_key::EntryKey;
use super::metrics::{HandoverKind, HandoverMetrics};
use super::notes::clock::NoteClock;
use super::notes::counters::CountersNote;
use super::notes::keys::{HandedOutRecord, decode_handed_out_key, decode_offered_keys};
use super::notes::link::DecodedLink;
use super::notes::session::SessionNote;
use super::notes::{NoteError, link, peer};
use super::store_link::StoreLink;
use super::suspended::Suspended;

/// What the previous relay left in the store.
#[derive(Debug, Default)]
pub struct Taken {
    /// What goes on.
    pub suspended: Suspended,
    /// The listening sockets, by their names.
    pub listeners: Vec<(String, TcpListener)>,
    /// The keys that were handed out.
    pub handed_out: Vec<HandedOutRecord>,
    /// The keys whose entries the store keeps, also once [`Self::handed_out`] has been restored.
    stored_keys: Vec<KeyId>,
    /// The keys on offer, if there is a link.
    pub offered: Vec<OneTimeKey>,
    /// The counters.
    pub counters: Option<CountersNote>,
    /// How many pieces the bytes in flight of sessions take in the store, where they take any.
    pieces: HashMap<SessionId, u16>,
    /// How many sessions have lost bytes, or cannot be used, and were ended.
    pub lost: usize,
    /// What the lost sessions had done, as far as their notes tell.
    lost_records: Vec<SessionRecord>,
    /// Whether the previous relay had handed everything over; otherwise it died.
    pub is_planned: bool,
}

impl Taken {
    /// Returns what the store keeps once this has been taken.
    pub fn contents(&self) -> StoreContents {
        let pieces = |id| self.pieces.get(&id).copied().unwrap_or(0);
        let sessions = self.suspended.sessions.iter().map(|session| session.record.id);
        StoreContents::taken(sessions.map(|id| (id, pieces(id))), self.stored_keys.iter().copied())
    }

    /// Whether nothing was taken over but keys.
    pub fn is_empty(&self) -> bool {
        let Suspended { sessions, link, peers, .. } = &self.suspended;
        let is_nothing_suspended = sessions.is_empty() && link.is_none() && peers.is_empty();
        is_nothing_suspended
            && self.lost == 0
            && self.listeners.is_empty()
            && self.counters.is_none()
    }

    /// Counts what was taken over, unless there was nothing, and the sessions that are lost.
    pub fn count(&self, metrics: &HandoverMetrics, state: &SharedState) {
        if self.is_empty() {
            return;
        }
        let kind = if self.is_planned { HandoverKind::Planned } else { HandoverKind::Crash };
        let suspended = self.counters.as_ref().and_then(|counters| counters.suspended);
        let stood_still = suspended.map(|suspended| NoteClock::now().age(suspended));
        metrics.count(kind, self.suspended.sessions.len(), stood_still.filter(|_| self.is_planned));
        for _ in 0..self.lost {
            state.count_lost_session();
        }
    }

    /// Takes the listening socket with this name.
    pub fn take_listener(&mut self, name: &str) -> Option<TcpListener> {
        let index = self.listeners.iter().position(|(other, _)| other == name)?;
        Some(self.listeners.swap_remove(index).1)
    }
}

/// Connects to the store and takes what the previous relay left in it; `None` if there was nothing.
///
/// # Errors
/// The store cannot be used. The relay can start without it, and connect later.
pub fn take_over(
    link: &mut StoreLink,
    config: &Config,
    wait: Duration,
) -> Result<Option<Taken>, StoreError> {
    let Acquired { entries, was_committed, .. } = link.connect(config, wait)?;
    if entries == 0 {
        return Ok(None);
    }
    let taken = take(link, was_committed, config.log_peer_identity);
    if taken.is_err() {
        link.disconnect();
    }
    taken.map(Some)
}

/// Takes what is in the store, of which this relay is the owner. Sessions that are lost are logged as ended, with the names of
/// their peers if `is_identity_logged`.
///
/// # Errors
/// The store cannot be used any more.
pub fn take(
    link: &mut StoreLink,
    was_committed: bool,
    is_identity_logged: bool,
) -> Result<Taken, StoreError> {
    let client = link.client().ok_or(StoreError::Unusable)?;
    let mut reader = EntryReader::new(client.take()?, was_committed);
    reader.read_all();
    reader.drop_stray_pieces();
    // What must not be used twice, and what cannot be used, is gone before anything is used. By this change, even if there is
    // nothing to delete, the store counts the entries as this relay's, which therefore never takes them again.
    reader.unusable.push(EntryKey::RouterLink.to_bytes());
    client.apply(&reader.unusable.iter().map(|key| delete(key)).collect::<Vec<_>>())?;
    link.note_taken();
    // The store no longer has them, so no other relay logs their end again.
    for record in &reader.taken.lost_records {
        EndedSession { record, cause: EndCause::Crash, is_identity_logged }.log();
    }
    Ok(reader.taken)
}

fn delete(key: &[u8]) -> StoreChange<'static> {
    StoreChange::Delete { key: key.to_vec() }
}

/// Reads the entries of the store.
struct EntryReader {
    entries: HashMap<EntryKey, (Secret<Vec<u8>>, Vec<OwnedFd>)>,
    clock: NoteClock,
    /// The keys of entries that are deleted from the store.
    unusable: Vec<Vec<u8>>,
    taken: Taken,
}

impl EntryReader {
    fn new(stored: Vec<StoredEntry>, is_planned: bool) -> Self {
        let mut entries = HashMap::new();
        let mut unusable = Vec::new();
        for StoredEntry { key, note, descriptors } in stored {
            match EntryKey::parse(&key) {
                Some(parsed) => drop(entries.insert(parsed, (note, descriptors))),
                None => {
                    warn!("the descriptor store has an entry that this version does not know");
                    unusable.push(key);
                }
            }
        }
        let taken = Taken { is_planned, ..Taken::default() };
        Self { entries, clock: NoteClock::now(), unusable, taken }
    }

    fn read_all(&mut self) {
        if let Some((note, _)) = self.entries.remove(&EntryKey::Counters) {
            let counters = CountersNote::decode(note.expose());
            self.taken.counters = self.or_unusable(&EntryKey::Counters, counters);
        }
        self.read_link();
        let mut keys: Vec<EntryKey> = self.entries.keys().cloned().collect();
        keys.sort_unstable();
        for key in keys {
            match key {
                EntryKey::Listener(_) => self.read_listener(key),
                EntryKey::Session(id) => self.read_session(id),
                EntryKey::HandedOutKey(_) => self.read_handed_out_key(&key),
                EntryKey::Peer(_) => self.read_peer(&key),
                // A piece is read with the note of its session, and stays as long as that does.
                EntryKey::SessionBytes(id, piece) => {
                    let pieces = self.taken.pieces.entry(id).or_default();
                    *pieces = (*pieces).max(piece.saturating_add(1));
                }
                EntryKey::Counters
                | EntryKey::OfferedKeys(_)
                | EntryKey::RouterLink
                | EntryKey::RouterLinkBytes(_) => {}
            }
        }
    }

    /// Has the pieces deleted that belong to no session that goes on.
    fn drop_stray_pieces(&mut self) {
        let ids: HashSet<SessionId> =
            self.taken.suspended.sessions.iter().map(|session| session.record.id).collect();
        for key in self.entries.keys() {
            if let EntryKey::SessionBytes(id, _) = key
                && !ids.contains(id)
            {
                self.unusable.push(key.to_bytes());
            }
        }
    }

    /// Passes a value on. If there is none, says so and has the entry deleted.
    fn or_unusable<T>(&mut self, key: &EntryKey, value: Result<T, NoteError>) -> Option<T> {
        value
            .inspect_err(|error| {
                warn!("{key} in the descriptor store cannot be used: {error}");
                self.unusable.push(key.to_bytes());
            })
            .ok()
    }

    fn read_listener(&mut self, key: EntryKey) {
        let Some((_, descriptors)) = self.entries.remove(&key) else { return };
        if let (EntryKey::Listener(name), Some(socket)) = (key, descriptors.into_iter().next()) {
            self.taken.listeners.push((name, socket.into()));
        }
    }

    fn read_session(&mut self, id: SessionId) {
        let key = EntryKey::Session(id);
        let Some((note, descriptors)) = self.entries.remove(&key) else { return };
        let find_piece = |piece| {
            let piece = self.entries.get(&EntryKey::SessionBytes(id, piece));
            piece.map(|(note, _)| note.expose().as_slice())
        };
        let note = SessionNote::decode(note.expose(), self.clock, find_piece);
        let sockets: Vec<TcpStream> = descriptors.into_iter().map(TcpStream::from).collect();
        let sockets = match <[TcpStream; 2]>::try_from(sockets) {
            Ok(sockets) => sockets,
            Err(sockets) => {
                let count = sockets.len();
                shut_down(&sockets);
                self.taken.lost += 1;
                self.taken.lost_records.extend(note.ok().map(|note| note.record));
                let _: Option<()> = self.or_unusable(&key, Err(NoteError::Sockets(count)));
                return;
            }
        };
        let Some(note) = self.or_unusable(&key, note) else {
            self.taken.lost += 1;
            return shut_down(&sockets);
        };
        match note.balances.verify(&sockets, note.in_flight.clone()) {
            Verdict::Intact(continuation) => {
                let session = continue_session(note, sockets, continuation);
                self.taken.suspended.sessions.push(session);
            }
            Verdict::Lost(lost) => self.lose(note, &sockets, &lost.to_string()),
            Verdict::Unknown => {
                self.lose(note, &sockets, "the kernel reports no TCP_INFO, so bytes may be lost");
            }
        }
    }

    /// Ends a session that has lost bytes, at both sides.
    fn lose(&mut self, note: SessionNote, sockets: &[TcpStream; 2], why: &str) {
        let id = note.record.id;
        let record = SessionRecord { bytes: note.balances.count_bytes(sockets), ..note.record };
        self.taken.lost_records.push(record);
        error!(session = id.0, "session lost with the previous relay: {why}");
        shut_down(sockets);
        self.unusable.push(EntryKey::Session(id).to_bytes());
        self.taken.lost += 1;
    }

    fn read_handed_out_key(&mut self, key: &EntryKey) {
        let Some((note, _)) = self.entries.remove(key) else { return };
        let record = decode_handed_out_key(note.expose(), self.clock);
        let Some(record) = self.or_unusable(key, record) else { return };
        self.taken.stored_keys.push(record.key.key.id);
        self.taken.handed_out.push(record);
    }

    fn read_peer(&mut self, key: &EntryKey) {
        self.unusable.push(key.to_bytes());
        let Some((note, descriptors)) = self.entries.remove(key) else { return };
        if !self.taken.is_planned {
            return;
        }
        let Some(socket) = descriptors.into_iter().next().map(TcpStream::from) else { return };
        match peer::decode_peer(note.expose(), socket, self.clock) {
            Ok(peer) => self.taken.suspended.peers.push(peer),
            Err(error) => warn!("a peer in the descriptor store cannot be used: {error}"),
        }
    }

    /// Reads the link and its keys, which go together.
    fn read_link(&mut self) {
        let mut offered = Vec::new();
        for number in 0.. {
            let key = EntryKey::OfferedKeys(number);
            let Some((note, _)) = self.entries.remove(&key) else { break };
            self.unusable.push(key.to_bytes());
            offered.push(note);
        }
        let mut pieces = Vec::new();
        for number in 0.. {
            let key = EntryKey::RouterLinkBytes(number);
            let Some((note, _)) = self.entries.remove(&key) else { break };
            self.unusable.push(key.to_bytes());
            pieces.push(note);
        }
        let Some((note, descriptors)) = self.entries.remove(&EntryKey::RouterLink) else { return };
        self.unusable.push(EntryKey::RouterLink.to_bytes());
        let Some(socket) = descriptors.into_iter().next().map(TcpStream::from) else { return };
        if !self.taken.is_planned {
            // The previous relay may have gone on with it when its hand-over failed.
            let _ = socket.shutdown(Shutdown::Both);
            return;
        }
        match decode_link(&note, &pieces, &offered, self.clock) {
            Ok((snapshot, keys)) => {
                self.taken.offered = keys;
                self.taken.suspended.link = Some(SuspendedLink { socket, snapshot });
            }
            Err(error) => {
                info!(
                    "the Router link in the descriptor store cannot be used: {error}; making a new one"
                );
                // Other duplicates must not keep the connection open.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

fn decode_link(
    note: &Secret<Vec<u8>>,
    pieces: &[Secret<Vec<u8>>],
    offered: &[Secret<Vec<u8>>],
    clock: NoteClock,
) -> Result<(LinkSnapshot, Vec<OneTimeKey>), NoteError> {
    let find_piece =
        |number| pieces.get(usize::from(number)).map(|piece| piece.expose().as_slice());
    let DecodedLink { snapshot, written } = link::decode_link(note.expose(), clock, find_piece)?;
    let mut keys = Vec::new();
    for note in offered {
        keys.extend(decode_offered_keys(note.expose(), written)?);
    }
    Ok((snapshot, keys))
}

fn shut_down(sockets: &[TcpStream]) {
    for socket in sockets {
        // This fails only if the connection is over.
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Describes a verified session as it is now. What its note does not tell, because the session went on after it was written,
/// is told by the kernel.
fn continue_session(
    note: SessionNote,
    sockets: [TcpStream; 2],
    continuation: Continuation,
) -> DetachedSession {
    let mut record = note.record;
    record.bytes = continuation.bytes;
    record.idle = record.idle.min(continuation.idle);
    DetachedSession {
        record,
        sockets,
        in_flight: continuation.in_flight,
        balances: Some(note.balances),
        is_stored: true,
        is_lingering: false,
        traceparent: note.traceparent,
    }
}
