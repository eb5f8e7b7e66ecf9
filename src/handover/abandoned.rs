//! The records of sessions that the descriptor store ends, since no relay came for them.

use std::net::TcpStream;
use std::os::fd::BorrowedFd;

use crate::fd_store::settings::AbandonedEntry;
use crate::state::sessions::{EndCause, EndedSession, SessionRecord};

use super::entry_key::EntryKey;
use super::notes::clock::NoteClock;
use super::notes::session::SessionNote;

/// Logs the record of a session that is about to end, if the entry is one. `is_identity_logged` is `LogPeerIdentity`.
pub fn log(entry: &AbandonedEntry<'_>, is_identity_logged: bool) {
    let Some(EntryKey::Session(_)) = EntryKey::parse(entry.key) else { return };
    let note = SessionNote::decode(entry.note, NoteClock::now(), |_| None);
    let (Ok(note), Some(sockets)) = (note, duplicate(&entry.descriptors)) else { return };
    let bytes = note.balances.count_bytes(&sockets);
    let record = &SessionRecord { bytes, ..note.record };
    // A relay that is stopped hands over first; one that died did not.
    let cause = if entry.was_committed { EndCause::Drain } else { EndCause::Crash };
    EndedSession { record, cause, is_identity_logged }.log();
}

fn duplicate(descriptors: &[BorrowedFd<'_>]) -> Option<[TcpStream; 2]> {
    let [first, second] = descriptors else { return None };
    let duplicate = |socket: &BorrowedFd<'_>| socket.try_clone_to_owned().map(TcpStream::from);
    Some([duplicate(first).ok()?, duplicate(second).ok()?])
}
