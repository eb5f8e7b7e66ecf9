//! Who waits for whom (section 5 of the protocol notes).
//!
//! Two peers belong together when they name the same key and bring the same secret. `W` is whatever brings the
//! second peer to the first: a channel in the relay, a number in tests.

use std::collections::HashMap;

use crate::crypto::SessionKey;
use crate::secret::Secret;

use super::keys::KeyId;

/// Most first messages that may open with one key. Two peers that come back a few times in their 30 s stay
/// far below; it bounds what a peer that misbehaves can make the relay remember.
pub const MAX_MESSAGES_PER_KEY: usize = 16;

/// Why a first message that opened is not admitted. It costs the key nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PairingError {
    /// The same message came before: a recording, sent again.
    #[error("this first message was received before (a recording, sent again)")]
    Replay,
    /// Somebody with another secret waits with this key.
    #[error("the secret is another one than that of the peer that waits with this key")]
    OtherSecret,
    /// More than [`MAX_MESSAGES_PER_KEY`].
    #[error("more than {MAX_MESSAGES_PER_KEY} first messages for one key")]
    TooMany,
}

/// What became of a peer that is ready.
#[derive(Debug)]
pub enum Arrival<W> {
    /// It is the first: it waits.
    First(Ticket),
    /// It is the second: here is the way to the first, who no longer waits.
    Second(W),
}

/// A place in the waiting room, to be given back by a peer that goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    key: KeyId,
    number: u64,
}

#[derive(Debug)]
struct Waiting<W> {
    number: u64,
    secret: Secret<Vec<u8>>,
    way: W,
}

#[derive(Debug)]
struct Room<W> {
    /// The session keys of all first messages that opened with this key. A recorded message has the session
    /// key of its original whatever is done to it: the sealed part cannot be changed, and of the public
    /// key's many encodings (top bit, low-order points added) all give the same.
    seen: Vec<SessionKey>,
    waiting: Option<Waiting<W>>,
}

/// The waiting peers, at most one for each key.
#[derive(Debug)]
pub struct Pairing<W> {
    rooms: HashMap<KeyId, Room<W>>,
    tickets: u64,
}

impl<W> Default for Pairing<W> {
    fn default() -> Self {
        Self { rooms: HashMap::new(), tickets: 0 }
    }
}

impl<W> Pairing<W> {
    /// A peer has shown `secret`, sealed under `session_key`.
    ///
    /// # Errors
    /// [`PairingError`]; whoever waits goes on waiting.
    pub fn arrive(
        &mut self,
        key: KeyId,
        session_key: SessionKey,
        secret: Secret<Vec<u8>>,
        way: W,
    ) -> Result<Arrival<W>, PairingError> {
        let room =
            self.rooms.entry(key).or_insert_with(|| Room { seen: Vec::new(), waiting: None });
        // No early end: how long it takes must not tell which one was equal.
        let replay = room.seen.iter().fold(false, |found, seen| found | seen.same_as(&session_key));
        if replay {
            return Err(PairingError::Replay);
        }
        if room.seen.len() >= MAX_MESSAGES_PER_KEY {
            return Err(PairingError::TooMany);
        }
        room.seen.push(session_key);
        match room.waiting.take_if(|waiting| waiting.secret.same_as(&secret)) {
            Some(first) => Ok(Arrival::Second(first.way)),
            None if room.waiting.is_some() => Err(PairingError::OtherSecret),
            None => {
                self.tickets += 1;
                let number = self.tickets;
                room.waiting = Some(Waiting { number, secret, way });
                Ok(Arrival::First(Ticket { key, number }))
            }
        }
    }

    /// A waiting peer goes away. `false` when it no longer waits: it was paired, or its key is gone.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.rooms.get_mut(&ticket.key).is_some_and(|room| {
            room.waiting.take_if(|waiting| waiting.number == ticket.number).is_some()
        })
    }

    /// The key is gone, used up or expired. Gives the way to a peer that still waited with it.
    pub fn close(&mut self, key: KeyId) -> Option<W> {
        self.rooms.remove(&key)?.waiting.map(|waiting| waiting.way)
    }

    /// Number of keys with which somebody came.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether nobody came with any key.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = KeyId(7);

    fn arrive(
        pairing: &mut Pairing<&'static str>,
        peer: u8,
        secret: &[u8],
        way: &'static str,
    ) -> Result<Arrival<&'static str>, PairingError> {
        let session_key = SessionKey::from_bytes([peer; 32]);
        pairing.arrive(KEY, session_key, Secret::new(secret.to_vec()), way)
    }

    fn first(arrival: Result<Arrival<&'static str>, PairingError>) -> Ticket {
        match arrival {
            Ok(Arrival::First(ticket)) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn second(arrival: Result<Arrival<&'static str>, PairingError>) -> &'static str {
        match arrival {
            Ok(Arrival::Second(way)) => way,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn equal_secrets_meet() {
        let mut pairing = Pairing::default();
        first(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(second(arrive(&mut pairing, 2, b"s", "second")), "first");
        assert_eq!(pairing.close(KEY), None);
        assert!(pairing.is_empty());
    }

    #[test]
    fn a_recorded_message_is_refused_and_the_first_goes_on_waiting() {
        let mut pairing = Pairing::default();
        let ticket = first(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(arrive(&mut pairing, 1, b"s", "copy").unwrap_err(), PairingError::Replay);
        // Also after the original has gone away.
        assert!(pairing.leave(ticket));
        assert_eq!(arrive(&mut pairing, 1, b"s", "copy").unwrap_err(), PairingError::Replay);
        first(arrive(&mut pairing, 2, b"s", "again"));
        assert_eq!(second(arrive(&mut pairing, 3, b"s", "second")), "again");
    }

    #[test]
    fn another_secret_does_not_disturb_the_first() {
        let mut pairing = Pairing::default();
        first(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(arrive(&mut pairing, 2, b"t", "x").unwrap_err(), PairingError::OtherSecret);
        assert_eq!(second(arrive(&mut pairing, 3, b"s", "second")), "first");
    }

    #[test]
    fn only_the_holder_of_the_ticket_leaves() {
        let mut pairing = Pairing::default();
        let old = first(arrive(&mut pairing, 1, b"s", "first"));
        assert!(pairing.leave(old));
        assert!(!pairing.leave(old));
        let new = first(arrive(&mut pairing, 2, b"s", "again"));
        assert!(!pairing.leave(old));
        assert_eq!(second(arrive(&mut pairing, 3, b"s", "second")), "again");
        assert!(!pairing.leave(new));
    }

    #[test]
    fn closing_gives_back_whoever_waits() {
        let mut pairing = Pairing::default();
        let ticket = first(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(pairing.close(KEY), Some("first"));
        assert!(!pairing.leave(ticket));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut pairing = Pairing::default();
        for peer in 0..u8::try_from(MAX_MESSAGES_PER_KEY).unwrap() {
            let ticket = first(arrive(&mut pairing, peer, b"s", "x"));
            pairing.leave(ticket);
        }
        assert_eq!(arrive(&mut pairing, 99, b"s", "x").unwrap_err(), PairingError::TooMany);
    }
}
