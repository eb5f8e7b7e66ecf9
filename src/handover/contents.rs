//! What the descriptor store keeps for this relay, and the changes that bring it up to date.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::AsFd;

use tokio::time::Instant;
use tracing::{error, warn};

use crate::fd_store::client::StoreChange;
use crate::forward::balance::Balances;
use crate::peer::session::{DetachedSession, KeptSession};
use crate::router::suspend::SuspendedLink;
use crate::secret::Secret;
use crate::state::keys::KeyId;
use crate::state::sessions::{EndCause, SessionId};
use crate::state::shared::SharedState;

use super::entry_key::EntryKey;
use super::error::HandOverError;
use super::notes::carried::CarriedOver;
use super::notes::clock::NoteClock;
use super::notes::counters::CountersNote;
use super::notes::session::SessionNote;
use super::notes::{keys, link, peer};
use super::relay::{KeptListener, KeptRelay};
use super::suspended::Suspended;

/// What the store keeps for this relay. It is changed together with the store; if the store refuses a change, it has to be
/// cleared, and this starts anew.
#[derive(Debug, Default)]
pub struct StoreContents {
    /// The sessions, each with the number of pieces that its bytes in flight take.
    sessions: HashMap<SessionId, u16>,
    /// The keys that were handed out, each with how many first messages it has seen.
    keys: HashMap<KeyId, usize>,
}

impl StoreContents {
    /// Describes a store from which these sessions and keys were taken. The notes of the keys are written again.
    pub fn taken(
        sessions: impl IntoIterator<Item = (SessionId, u16)>,
        keys: impl IntoIterator<Item = KeyId>,
    ) -> Self {
        let keys = keys.into_iter().map(|key| (key, usize::MAX)).collect();
        Self { sessions: sessions.into_iter().collect(), keys }
    }

    /// Returns the keys of all entries that may be there, listeners and counters excepted.
    pub fn into_entry_keys(self) -> impl Iterator<Item = Vec<u8>> {
        let sessions = self.sessions.into_iter().flat_map(|(id, pieces)| {
            let pieces = (0..pieces).map(move |piece| EntryKey::SessionBytes(id, piece));
            std::iter::once(EntryKey::Session(id)).chain(pieces)
        });
        let keys = self.keys.into_keys().map(EntryKey::HandedOutKey);
        sessions.chain(keys).map(|key| key.to_bytes())
    }

    /// Returns the number of sessions.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Puts the listening sockets.
    pub fn put_listeners<'a>(relay: &'a KeptRelay) -> Vec<StoreChange<'a>> {
        let put = |listener: &'a KeptListener| StoreChange::Put {
            key: EntryKey::Listener(listener.name.to_owned()).to_bytes(),
            note: Secret::new(Vec::new()),
            descriptors: vec![listener.socket.as_fd()],
        };
        relay.listeners.iter().map(put).collect()
    }

    /// Puts the counters. `suspended` is when the sessions were suspended, if they are.
    pub fn put_counters(relay: &KeptRelay, suspended: Option<Instant>) -> StoreChange<'static> {
        let clock = NoteClock::now();
        let note = CountersNote {
            numbering: relay.state.numbering(),
            started: clock.to_note(relay.started),
            suspended: suspended.map(|moment| clock.to_note(moment)),
            carried: CarriedOver::new(
                relay.handle.metrics_to_carry(),
                relay.handle.log().changed_filter(),
            ),
        };
        let key = EntryKey::Counters.to_bytes();
        StoreChange::Put { key, note: note.encode(), descriptors: Vec::new() }
    }

    /// Puts sessions that began, deletes those that ended, and follows the keys that are handed out.
    pub fn update<'a>(
        &mut self,
        relay: &KeptRelay,
        begun: &'a [KeptSession],
        ended: &[SessionId],
    ) -> Vec<StoreChange<'a>> {
        let clock = NoteClock::now();
        let mut changes = Vec::new();
        self.update_keys(relay, clock, &mut changes);
        for id in ended {
            self.delete_session(*id, &mut changes);
        }
        for kept in begun {
            // Without balances, the next relay could not tell whether bytes are lost.
            if let Some(balances) = kept.balances {
                let note = note_of_running(kept, balances);
                self.put_session(&note, &kept.sockets, clock, &mut changes);
            }
        }
        changes
    }

    /// Puts everything that the next relay needs, at the end of this one.
    ///
    /// # Errors
    /// Something cannot be handed over.
    pub fn hand_over<'a>(
        &mut self,
        relay: &KeptRelay,
        suspended: &'a Suspended,
    ) -> Result<Vec<StoreChange<'a>>, HandOverError> {
        let clock = NoteClock::now();
        let mut changes = Vec::new();
        // What suspended peers have sent no longer counts as seen, so the number of messages tells nothing.
        self.keys.values_mut().for_each(|seen| *seen = usize::MAX);
        self.update_keys(relay, clock, &mut changes);
        for session in &suspended.sessions {
            match SessionNote::of_detached(session, session.traceparent.clone()) {
                Some(note) => self.put_session(&note, &session.sockets, clock, &mut changes),
                None => self.end_session(session, &mut changes),
            }
        }
        if let Some(link) = &suspended.link {
            put_link(relay, link, clock, &mut changes)?;
        }
        for (number, peer) in (0..).zip(&suspended.peers) {
            changes.push(StoreChange::Put {
                key: EntryKey::Peer(number).to_bytes(),
                note: peer::encode_peer(peer, clock),
                descriptors: vec![peer.socket.as_fd()],
            });
        }
        changes.push(Self::put_counters(relay, suspended.since));
        Ok(changes)
    }

    /// Ends a session of which the next relay could not tell whether it has lost bytes.
    fn end_session(&mut self, session: &DetachedSession, changes: &mut Vec<StoreChange<'_>>) {
        let id = session.record.id;
        error!(
            session = id.0,
            "session ended: it cannot be handed over, because the kernel reports no TCP_INFO for its sockets"
        );
        for socket in &session.sockets {
            // This fails only if the connection is over.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.delete_session(id, changes);
    }

    /// Logs the sessions that were not handed over as ended. Only now, since they would continue here if the hand-over failed.
    pub fn record_ends(&self, state: &SharedState, suspended: &Suspended) {
        for DetachedSession { record, .. } in &suspended.sessions {
            if !self.sessions.contains_key(&record.id) {
                state.record_end(record, EndCause::Error);
            }
        }
    }

    fn delete_session(&mut self, id: SessionId, changes: &mut Vec<StoreChange<'_>>) {
        if let Some(pieces) = self.sessions.remove(&id) {
            changes.push(delete(&EntryKey::Session(id)));
            changes.extend((0..pieces).map(|piece| delete(&EntryKey::SessionBytes(id, piece))));
        }
    }

    fn put_session<'a, S: AsFd>(
        &mut self,
        note: &SessionNote,
        sockets: &'a [S; 2],
        clock: NoteClock,
        changes: &mut Vec<StoreChange<'a>>,
    ) {
        let id = note.record.id;
        let entries = note.encode(clock);
        let pieces = u16::try_from(entries.len() - 1).unwrap_or(u16::MAX);
        let before = self.sessions.insert(id, pieces);
        for (key, note) in entries {
            let bytes = key.to_bytes();
            changes.push(match key {
                EntryKey::Session(_) if before.is_some() => {
                    StoreChange::Annotate { key: bytes, note }
                }
                EntryKey::Session(_) => {
                    let descriptors = sockets.each_ref().map(AsFd::as_fd).to_vec();
                    StoreChange::Put { key: bytes, note, descriptors }
                }
                _ => StoreChange::Put { key: bytes, note, descriptors: Vec::new() },
            });
        }
        let unused = pieces..before.unwrap_or(0);
        changes.extend(unused.map(|piece| delete(&EntryKey::SessionBytes(id, piece))));
    }

    /// Puts keys that were handed out or have seen another first message, and deletes those that are used up or expired.
    fn update_keys(
        &mut self,
        relay: &KeptRelay,
        clock: NoteClock,
        changes: &mut Vec<StoreChange<'_>>,
    ) {
        let handed_out = relay.state.handed_out_keys(Instant::now());
        let mut before = std::mem::take(&mut self.keys);
        // Usually nothing has changed: then no secret is copied, and the lock is taken once for all keys.
        let counts = relay.peers.count_seen(handed_out.iter().map(|snapshot| snapshot.key.id));
        for (snapshot, count) in handed_out.iter().zip(counts) {
            let id = snapshot.key.id;
            self.keys.insert(id, count);
            if before.remove(&id) == Some(count) {
                continue;
            }
            let seen = relay.peers.seen_keys(id);
            let key = EntryKey::HandedOutKey(id).to_bytes();
            match keys::encode_handed_out_key(snapshot, &seen, clock) {
                Ok(note) => {
                    changes.push(StoreChange::Put { key, note, descriptors: Vec::new() });
                }
                Err(error) => warn!("key {} would not survive this relay: {error}", id.0),
            }
        }
        changes.extend(before.into_keys().map(|id| delete(&EntryKey::HandedOutKey(id))));
    }
}

fn note_of_running(kept: &KeptSession, balances: Balances) -> SessionNote {
    SessionNote {
        record: kept.session.record(Instant::now()),
        balances,
        in_flight: Default::default(),
        is_final: false,
        traceparent: kept.traceparent.clone(),
    }
}

fn delete(key: &EntryKey) -> StoreChange<'static> {
    StoreChange::Delete { key: key.to_bytes() }
}

/// Puts the link with the keys that its Router still has.
fn put_link<'a>(
    relay: &KeptRelay,
    suspended: &'a SuspendedLink,
    clock: NoteClock,
    changes: &mut Vec<StoreChange<'a>>,
) -> Result<(), HandOverError> {
    let keys = keys::encode_offered_keys(&relay.state.offered_keys(), clock)?;
    for (key, note) in keys.into_iter().chain(link::encode_link(&suspended.snapshot, clock)) {
        let descriptors = match key {
            EntryKey::RouterLink => vec![suspended.socket.as_fd()],
            _ => Vec::new(),
        };
        changes.push(StoreChange::Put { key: key.to_bytes(), note, descriptors });
    }
    Ok(())
}
