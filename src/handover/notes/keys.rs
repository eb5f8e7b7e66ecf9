//! The notes of one-time keys: those on offer, many in a note, and those that were handed out, each in its own.

use std::fmt;
use std::sync::Arc;

use prost::Message;
use zeroize::Zeroize;

use crate::crypto::{CryptoError, Iv, SessionKey};
use crate::handover::entry_key::EntryKey;
use crate::secret::Secret;
use crate::state::keys::snapshot::HandedOutSnapshot;
use crate::state::keys::{KeyId, OneTimeKey};

use super::clock::NoteClock;
use super::{NoteError, NotedEntry, decode, encode};

/// How many keys on offer one note holds. With 60 bytes for each, that is well below what a note may have.
const KEYS_PER_NOTE: usize = 512;

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct OneTimeKeyMessage {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(bytes = "vec", tag = "2")]
    private: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    iv: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct OfferedKeysMessage {
    #[prost(message, repeated, tag = "1")]
    keys: Vec<OneTimeKeyMessage>,
    #[prost(uint64, tag = "2")]
    written: u64,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct HandedOutKeyMessage {
    #[prost(message, optional, tag = "1")]
    key: Option<OneTimeKeyMessage>,
    #[prost(uint64, tag = "2")]
    expires: u64,
    /// The session keys of the first messages that opened with this key, against replays.
    #[prost(bytes = "vec", repeated, tag = "3")]
    seen: Vec<Vec<u8>>,
}

/// A key that was handed out, from its note.
#[derive(Debug)]
pub struct HandedOutRecord {
    /// The key.
    pub key: HandedOutSnapshot,
    /// The session keys of the first messages that opened with it.
    pub seen: Vec<SessionKey>,
}

impl Drop for OneTimeKeyMessage {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl Drop for HandedOutKeyMessage {
    fn drop(&mut self) {
        self.seen.zeroize();
    }
}

impl fmt::Debug for OneTimeKeyMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OneTimeKeyMessage({}, [redacted])", self.id)
    }
}

impl fmt::Debug for HandedOutKeyMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandedOutKeyMessage({:?}, {} seen)", self.key, self.seen.len())
    }
}

impl OneTimeKeyMessage {
    fn new(key: &OneTimeKey) -> Result<Self, CryptoError> {
        let private = key.private.to_secret()?;
        Ok(Self { id: key.id.0, private: private.expose().clone(), iv: key.iv.0.to_vec() })
    }

    fn to_key(&self) -> Result<OneTimeKey, NoteError> {
        let iv = self.iv.as_slice().try_into().map_err(|_| NoteError::Field("iv"))?;
        OneTimeKey::from_raw(KeyId(self.id), &self.private, Iv(iv))
            .map_err(|_| NoteError::Field("private key"))
    }
}

/// Encodes the keys on offer, in as many entries as they need. `clock` must be that of the link ([`super::link`]).
///
/// # Errors
/// [`CryptoError::Provider`] if the provider does not export a key.
pub fn encode_offered_keys(
    keys: &[Arc<OneTimeKey>],
    clock: NoteClock,
) -> Result<Vec<NotedEntry>, CryptoError> {
    let written = clock.to_note(clock.instant());
    let encode_chunk = |(number, keys): (u16, &[Arc<OneTimeKey>])| {
        let keys: Result<_, _> = keys.iter().map(|key| OneTimeKeyMessage::new(key)).collect();
        Ok((EntryKey::OfferedKeys(number), encode(&OfferedKeysMessage { keys: keys?, written })))
    };
    (0..).zip(keys.chunks(KEYS_PER_NOTE)).map(encode_chunk).collect()
}

/// Decodes the keys of one note. `written` is [`super::link::DecodedLink::written`]. Each key costs one X25519 operation, so
/// decode many on a thread that may be busy for a while.
///
/// # Errors
/// [`NoteError`] if a key is not valid, or the keys were offered on another link.
pub fn decode_offered_keys(note: &[u8], written: u64) -> Result<Vec<OneTimeKey>, NoteError> {
    let message: OfferedKeysMessage = decode(note)?;
    if message.written != written {
        return Err(NoteError::Field("time of the hand-over"));
    }
    message.keys.iter().map(OneTimeKeyMessage::to_key).collect()
}

/// Encodes a key that was handed out and, as of `clock`, has the given remaining lifetime. `seen` are the session keys of the
/// first messages that opened with it.
///
/// # Errors
/// [`CryptoError::Provider`] if the provider does not export the key.
pub fn encode_handed_out_key(
    snapshot: &HandedOutSnapshot,
    seen: &[SessionKey],
    clock: NoteClock,
) -> Result<Secret<Vec<u8>>, CryptoError> {
    Ok(encode(&HandedOutKeyMessage {
        key: Some(OneTimeKeyMessage::new(&snapshot.key)?),
        expires: clock.to_note(clock.instant() + snapshot.remaining),
        seen: seen.iter().map(|key| key.expose().to_vec()).collect(),
    }))
}

/// Decodes a key that was handed out. It has grown older while no relay ran.
///
/// # Errors
/// [`NoteError`] if the key is not valid.
pub fn decode_handed_out_key(note: &[u8], clock: NoteClock) -> Result<HandedOutRecord, NoteError> {
    let note: HandedOutKeyMessage = decode(note)?;
    let key = note.key.as_ref().ok_or(NoteError::Field("key"))?.to_key()?;
    let remaining = clock.remaining(note.expires);
    let to_session_key = |bytes: &Vec<u8>| {
        let bytes = bytes.as_slice().try_into().map_err(|_| NoteError::Field("session key"))?;
        Ok(SessionKey::from_bytes(bytes))
    };
    Ok(HandedOutRecord {
        key: HandedOutSnapshot { key: Arc::new(key), remaining },
        seen: note.seen.iter().map(to_session_key).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(id: u32) -> OneTimeKey {
        OneTimeKey::generate(KeyId(id)).unwrap()
    }

    #[test]
    fn keys_on_offer_are_decoded_again_from_short_notes() {
        for count in [0, 1, KEYS_PER_NOTE, 2 * KEYS_PER_NOTE + 1] {
            let first = u32::MAX - u32::try_from(count).unwrap();
            let keys: Vec<_> = (0..).take(count).map(|n| Arc::new(key(first + n))).collect();
            let clock = NoteClock::now();
            let entries = encode_offered_keys(&keys, clock).unwrap();
            assert_eq!(entries.len(), count.div_ceil(KEYS_PER_NOTE));
            let mut decoded = Vec::new();
            let written = clock.to_note(clock.instant());
            for (number, (key, note)) in (0..).zip(&entries) {
                assert_eq!(*key, EntryKey::OfferedKeys(number));
                assert!(note.expose().len() < 48 * 1024, "{}", note.expose().len());
                assert!(decode_offered_keys(note.expose(), written + 1).is_err());
                decoded.extend(decode_offered_keys(note.expose(), written).unwrap());
            }
            let same = |(before, after): (&Arc<OneTimeKey>, &OneTimeKey)| {
                (before.id, before.public(), before.iv) == (after.id, after.public(), after.iv)
            };
            assert_eq!(decoded.len(), count);
            assert!(keys.iter().zip(&decoded).all(same));
        }
    }

    #[test]
    fn handed_out_key_keeps_its_lifetime_and_what_it_has_seen() {
        let clock = NoteClock::now();
        let snapshot =
            HandedOutSnapshot { key: Arc::new(key(5)), remaining: Duration::from_secs(20) };
        let seen = [SessionKey::from_bytes([3; 32]), SessionKey::from_bytes([4; 32])];
        let note = encode_handed_out_key(&snapshot, &seen, clock).unwrap();
        let decoded = decode_handed_out_key(note.expose(), clock).unwrap();
        assert_eq!(decoded.key.remaining, snapshot.remaining);
        assert_eq!(decoded.key.key.public(), snapshot.key.public());
        assert_eq!(decoded.seen.len(), 2);
        assert!(decoded.seen.iter().zip(&seen).all(|(after, before)| after.is_same_as(before)));
    }

    #[test]
    fn notes_of_keys_do_not_show_them() {
        let snapshot = HandedOutSnapshot { key: Arc::new(key(5)), remaining: Duration::ZERO };
        let seen = [SessionKey::from_bytes([0xA5; 32])];
        let note = encode_handed_out_key(&snapshot, &seen, NoteClock::now()).unwrap();
        let note: HandedOutKeyMessage = decode(note.expose()).unwrap();
        assert_eq!(
            format!("{note:?}"),
            "HandedOutKeyMessage(Some(OneTimeKeyMessage(5, [redacted])), 1 seen)"
        );
    }

    #[test]
    fn invalid_keys_are_refused() {
        let invalid = |private: &[u8], iv: &[u8]| {
            let key = OneTimeKeyMessage { id: 1, private: private.to_vec(), iv: iv.to_vec() };
            let note = encode(&OfferedKeysMessage { keys: vec![key], written: 3 });
            decode_offered_keys(note.expose(), 3).unwrap_err()
        };
        assert_eq!(invalid(&[1; 31], &[0; 12]), NoteError::Field("private key"));
        assert_eq!(invalid(&[1; 32], &[0; 11]), NoteError::Field("iv"));
    }
}
