//! The table of waiting peers (docs/protocol.md, "Pairing").
//!
//! Two peers belong together if they name the same key and present the same secret. `W` represents the first peer while it
//! waits: in the relay it is a channel through which the second peer reaches the first, in tests a number.

use std::collections::HashMap;

use crate::crypto::SessionKey;
use crate::secret::Secret;

use super::keys::KeyId;

/// The maximum number of first messages that may open with one key. It bounds what a misbehaving peer can make the relay
/// remember; two peers that reconnect a few times within the lifetime of their key stay far below it.
pub const MAX_MESSAGES_PER_KEY: usize = 16;

/// Why a first message that opened is refused. The key stays valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PairingRefusal {
    /// The same message was received before: it is a recording.
    #[error("this first message was received before (a recording, sent again)")]
    Replay,
    /// A peer with another secret waits with this key.
    #[error("the secret differs from that of the peer that waits with this key")]
    OtherSecret,
    /// More than [`MAX_MESSAGES_PER_KEY`] first messages opened with this key.
    #[error("more than {MAX_MESSAGES_PER_KEY} first messages for one key")]
    TooMany,
}

/// The result of looking for the partner of a peer.
#[derive(Debug)]
pub enum PartnerLookup<W> {
    /// The peer is the first of its pair and now waits.
    Waiting(WaitingNumber),
    /// The peer is the second of its pair. The value represents the first, which no longer waits.
    Found(W),
}

/// Identifies a waiting peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingNumber {
    key: KeyId,
    number: u64,
}

#[derive(Debug)]
struct WaitingPeer<W> {
    number: u64,
    /// The index of its session key in [`PairingSlot::seen`].
    seen_at: usize,
    secret: Secret<Vec<u8>>,
    waiter: W,
}

/// What the relay knows about the peers that named one key.
#[derive(Debug)]
struct PairingSlot<W> {
    /// The session keys of all first messages that opened with this key. A recorded message has the session key of its
    /// original whatever is done to it: the sealed part cannot be changed, and all of the many encodings of the public key
    /// (top bit, low-order points added) give the same session key.
    seen: Vec<SessionKey>,
    waiting: Option<WaitingPeer<W>>,
}

impl<W> Default for PairingSlot<W> {
    fn default() -> Self {
        Self { seen: Vec::new(), waiting: None }
    }
}

impl<W> PairingSlot<W> {
    fn has_seen(&self, session_key: &SessionKey) -> bool {
        // No early exit: the time that this takes must not reveal which session key was equal.
        self.seen.iter().fold(false, |found, seen| found | seen.is_same_as(session_key))
    }
}

/// The waiting peers, at most one for each key.
#[derive(Debug)]
pub struct PairingTable<W> {
    slots: HashMap<KeyId, PairingSlot<W>>,
    last_number: u64,
}

impl<W> Default for PairingTable<W> {
    fn default() -> Self {
        Self { slots: HashMap::new(), last_number: 0 }
    }
}

impl<W> PairingTable<W> {
    /// Finds the partner of a peer that presented `secret`, sealed under `session_key`, or makes the peer wait for its partner.
    ///
    /// # Errors
    /// [`PairingRefusal`]; a peer that waits already is not affected.
    pub fn find_partner(
        &mut self,
        key: KeyId,
        session_key: SessionKey,
        secret: Secret<Vec<u8>>,
        waiter: W,
    ) -> Result<PartnerLookup<W>, PairingRefusal> {
        let slot = self.slots.entry(key).or_default();
        if slot.has_seen(&session_key) {
            return Err(PairingRefusal::Replay);
        }
        if slot.seen.len() >= MAX_MESSAGES_PER_KEY {
            return Err(PairingRefusal::TooMany);
        }
        let seen_at = slot.seen.len();
        slot.seen.push(session_key);
        match slot.waiting.take_if(|waiting| waiting.secret.is_same_as(&secret)) {
            Some(first) => Ok(PartnerLookup::Found(first.waiter)),
            None if slot.waiting.is_some() => Err(PairingRefusal::OtherSecret),
            None => {
                self.last_number += 1;
                let number = self.last_number;
                slot.waiting = Some(WaitingPeer { number, seen_at, secret, waiter });
                Ok(PartnerLookup::Waiting(WaitingNumber { key, number }))
            }
        }
    }

    /// Removes a waiting peer that goes away. Returns `false` if it no longer waits, because it was paired or its key is gone.
    pub fn leave(&mut self, number: WaitingNumber) -> bool {
        self.slots.get_mut(&number.key).is_some_and(|slot| {
            slot.waiting.take_if(|waiting| waiting.number == number.number).is_some()
        })
    }

    /// Removes a waiting peer whose message will be presented again, when the peer is resumed: its session key no longer counts
    /// as seen. Returns `false` if it no longer waits; see [`Self::leave`].
    pub fn suspend(&mut self, number: WaitingNumber) -> bool {
        self.slots.get_mut(&number.key).is_some_and(|slot| {
            let taken = slot.waiting.take_if(|waiting| waiting.number == number.number);
            // No other peer waits, so no index refers to the keys behind this one.
            taken.map(|waiting| slot.seen.remove(waiting.seen_at)).is_some()
        })
    }

    /// Returns the session keys of the first messages that opened with this key. That of a peer that waits is among them until
    /// the peer is suspended: if the relay dies, the peer loses its connection, and its message is a recording.
    pub fn seen(&self, key: KeyId) -> Vec<SessionKey> {
        let seen = self.slots.get(&key).map(|slot| &slot.seen).into_iter().flatten();
        seen.map(|seen| SessionKey::from_bytes(*seen.expose())).collect()
    }

    /// Returns how many first messages opened with this key.
    pub fn count_seen(&self, key: KeyId) -> usize {
        self.slots.get(&key).map_or(0, |slot| slot.seen.len())
    }

    /// Remembers session keys that were seen with this key elsewhere.
    pub fn restore_seen(&mut self, key: KeyId, seen: Vec<SessionKey>) {
        let slot = self.slots.entry(key).or_default();
        for session_key in seen {
            if !slot.has_seen(&session_key) && slot.seen.len() < MAX_MESSAGES_PER_KEY {
                slot.seen.push(session_key);
            }
        }
    }

    /// Forgets a key that is used up or has expired. Returns the peer that still waited with it, if any.
    pub fn close(&mut self, key: KeyId) -> Option<W> {
        self.slots.remove(&key)?.waiting.map(|waiting| waiting.waiter)
    }

    /// Returns the number of keys that peers have named.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no peer has named any key.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = KeyId(7);

    type Lookup = Result<PartnerLookup<&'static str>, PairingRefusal>;

    fn arrive(
        pairing: &mut PairingTable<&'static str>,
        peer: u8,
        secret: &[u8],
        waiter: &'static str,
    ) -> Lookup {
        let session_key = SessionKey::from_bytes([peer; 32]);
        pairing.find_partner(KEY, session_key, Secret::new(secret.to_vec()), waiter)
    }

    fn waiting(lookup: Lookup) -> WaitingNumber {
        match lookup {
            Ok(PartnerLookup::Waiting(number)) => number,
            other => panic!("{other:?}"),
        }
    }

    fn found(lookup: Lookup) -> &'static str {
        match lookup {
            Ok(PartnerLookup::Found(waiter)) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn peers_with_equal_secrets_are_paired() {
        let mut pairing = PairingTable::default();
        waiting(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(found(arrive(&mut pairing, 2, b"s", "second")), "first");
        assert_eq!(pairing.close(KEY), None);
        assert!(pairing.is_empty());
    }

    #[test]
    fn replayed_message_is_refused_and_the_first_peer_keeps_waiting() {
        let mut pairing = PairingTable::default();
        let number = waiting(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(arrive(&mut pairing, 1, b"s", "copy").unwrap_err(), PairingRefusal::Replay);
        // The copy is also refused after the original peer has gone away.
        assert!(pairing.leave(number));
        assert_eq!(arrive(&mut pairing, 1, b"s", "copy").unwrap_err(), PairingRefusal::Replay);
        waiting(arrive(&mut pairing, 2, b"s", "again"));
        assert_eq!(found(arrive(&mut pairing, 3, b"s", "second")), "again");
    }

    #[test]
    fn peer_with_another_secret_does_not_disturb_the_first() {
        let mut pairing = PairingTable::default();
        waiting(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(arrive(&mut pairing, 2, b"t", "x").unwrap_err(), PairingRefusal::OtherSecret);
        assert_eq!(found(arrive(&mut pairing, 3, b"s", "second")), "first");
    }

    #[test]
    fn old_number_does_not_remove_a_later_peer() {
        let mut pairing = PairingTable::default();
        let old = waiting(arrive(&mut pairing, 1, b"s", "first"));
        assert!(pairing.leave(old));
        assert!(!pairing.leave(old));
        let new = waiting(arrive(&mut pairing, 2, b"s", "again"));
        assert!(!pairing.leave(old));
        assert_eq!(found(arrive(&mut pairing, 3, b"s", "second")), "again");
        assert!(!pairing.leave(new));
    }

    #[test]
    fn closing_a_key_returns_the_waiting_peer() {
        let mut pairing = PairingTable::default();
        let number = waiting(arrive(&mut pairing, 1, b"s", "first"));
        assert_eq!(pairing.close(KEY), Some("first"));
        assert!(!pairing.leave(number));
    }

    #[test]
    fn suspended_peer_may_present_its_message_again_and_recordings_may_not() {
        let mut pairing = PairingTable::default();
        let gone = waiting(arrive(&mut pairing, 1, b"s", "gone"));
        assert!(pairing.leave(gone));
        let number = waiting(arrive(&mut pairing, 2, b"s", "first"));
        assert_eq!(arrive(&mut pairing, 3, b"t", "x").unwrap_err(), PairingRefusal::OtherSecret);
        let is_same = |seen: Vec<SessionKey>, expected: &[u8]| {
            let seen: Vec<_> = seen.iter().map(|seen| seen.expose()[0]).collect();
            assert_eq!(seen, expected);
        };
        // The key of the peer that waits is exported until the peer is suspended.
        is_same(pairing.seen(KEY), &[1, 2, 3]);
        assert!(pairing.suspend(number));
        assert!(!pairing.suspend(number) && !pairing.leave(number));
        is_same(pairing.seen(KEY), &[1, 3]);
        let mut there = PairingTable::default();
        there.restore_seen(KEY, pairing.seen(KEY));
        for resumed in [&mut pairing, &mut there] {
            resumed.restore_seen(KEY, vec![SessionKey::from_bytes([3; 32])]);
            is_same(resumed.seen(KEY), &[1, 3]);
            for copy in [1, 3] {
                let copy = arrive(resumed, copy, b"s", "copy");
                assert_eq!(copy.unwrap_err(), PairingRefusal::Replay);
            }
            waiting(arrive(resumed, 2, b"s", "first"));
            assert_eq!(arrive(resumed, 2, b"s", "copy").unwrap_err(), PairingRefusal::Replay);
            assert_eq!(found(arrive(resumed, 4, b"s", "second")), "first");
        }
    }

    #[test]
    fn number_of_messages_remembered_for_a_key_is_bounded() {
        let mut pairing = PairingTable::default();
        for peer in 0..u8::try_from(MAX_MESSAGES_PER_KEY).unwrap() {
            let number = waiting(arrive(&mut pairing, peer, b"s", "x"));
            pairing.leave(number);
        }
        assert_eq!(arrive(&mut pairing, 99, b"s", "x").unwrap_err(), PairingRefusal::TooMany);
    }
}
