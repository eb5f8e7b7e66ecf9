//! The notes of the Router link: one with its state, and more with the bytes that do not fit in it, its *pieces*.
//!
//! All notes of one hand-over are encoded with the same clock, and carry its time: those of an earlier or an unfinished
//! hand-over are thus not taken for them. The same goes for the keys on offer, which are worth nothing without the link.

use std::fmt;

use prost::Message;
use zeroize::Zeroize;

use crate::crypto::snapshot::CipherSnapshot;
use crate::crypto::{Cipher, Iv, SessionKey};
use crate::handover::entry_key::EntryKey;
use crate::link::keepalive::KeepAliveSnapshot;
use crate::link::snapshot::LinkSnapshot;
use crate::wire::messages::Version;

use super::clock::NoteClock;
use super::{NoteError, NotedEntry, decode, encode};

/// How many bytes of the link one note holds: well below what a note may have.
const PIECE: usize = 32 * 1024;

/// [`CipherMessage::cipher`]: ChaCha20-Poly1305.
const CHACHA20_POLY1305: u32 = 1;
/// [`CipherMessage::cipher`]: AES-256-GCM.
const AES_256_GCM: u32 = 2;

/// A link from its notes.
#[derive(Debug)]
pub struct DecodedLink {
    /// The link.
    pub snapshot: LinkSnapshot,
    /// When the hand-over was encoded, which tells the keys on offer that belong to the link from others
    /// ([`super::keys::decode_offered_keys`]).
    pub written: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LinkMessage {
    #[prost(string, tag = "1")]
    dialect: String,
    #[prost(message, optional, tag = "2")]
    router_version: Option<Version>,
    #[prost(message, optional, tag = "3")]
    sealer: Option<CipherMessage>,
    #[prost(message, optional, tag = "4")]
    opener: Option<CipherMessage>,
    /// Number of bytes that were received and not decoded: the first of `bytes` and its continuation.
    #[prost(uint64, tag = "5")]
    received: u64,
    /// Number of bytes that were not sent: the rest.
    #[prost(uint64, tag = "6")]
    unsent: u64,
    #[prost(bytes = "vec", tag = "7")]
    bytes: Vec<u8>,
    #[prost(message, optional, tag = "8")]
    keep_alive: Option<KeepAliveMessage>,
    #[prost(uint64, tag = "9")]
    authenticated: u64,
    #[prost(bool, tag = "10")]
    is_confirmed: bool,
    #[prost(bytes = "vec", tag = "11")]
    settings: Vec<u8>,
    #[prost(uint64, tag = "12")]
    written: u64,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct CipherMessage {
    #[prost(uint32, tag = "1")]
    cipher: u32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    iv: Vec<u8>,
    #[prost(uint64, tag = "4")]
    count: u64,
    #[prost(bool, tag = "5")]
    has_ratchet: bool,
}

#[derive(Clone, PartialEq, Message)]
struct KeepAliveMessage {
    #[prost(uint32, tag = "1")]
    counter: u32,
    #[prost(uint64, tag = "2")]
    next_check: u64,
    #[prost(bool, tag = "3")]
    has_received: bool,
    #[prost(message, optional, tag = "4")]
    in_flight: Option<PingMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct PingMessage {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(uint64, tag = "2")]
    sent: u64,
}

/// More bytes of the link.
#[derive(Clone, PartialEq, Message)]
struct LinkPieceMessage {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
    #[prost(uint64, tag = "2")]
    written: u64,
}

impl Drop for CipherMessage {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for CipherMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CipherMessage([redacted])")
    }
}

impl From<&CipherSnapshot> for CipherMessage {
    fn from(snapshot: &CipherSnapshot) -> Self {
        Self {
            cipher: match snapshot.cipher {
                Cipher::ChaCha20Poly1305 => CHACHA20_POLY1305,
                Cipher::Aes256Gcm => AES_256_GCM,
            },
            key: snapshot.key.expose().to_vec(),
            iv: snapshot.iv.0.to_vec(),
            count: snapshot.count,
            has_ratchet: snapshot.has_ratchet,
        }
    }
}

impl CipherMessage {
    fn to_snapshot(&self) -> Result<CipherSnapshot, NoteError> {
        let key = self.key.as_slice().try_into().map_err(|_| NoteError::Field("key"))?;
        let iv = self.iv.as_slice().try_into().map_err(|_| NoteError::Field("iv"))?;
        Ok(CipherSnapshot {
            cipher: match self.cipher {
                CHACHA20_POLY1305 => Cipher::ChaCha20Poly1305,
                AES_256_GCM => Cipher::Aes256Gcm,
                _ => return Err(NoteError::Field("cipher")),
            },
            key: SessionKey::from_bytes(key),
            iv: Iv(iv),
            count: self.count,
            has_ratchet: self.has_ratchet,
        })
    }
}

impl KeepAliveMessage {
    fn new(snapshot: &KeepAliveSnapshot, clock: NoteClock) -> Self {
        Self {
            counter: snapshot.counter,
            next_check: clock.to_note(snapshot.next_check),
            has_received: snapshot.has_received,
            in_flight: snapshot
                .in_flight
                .map(|(data, sent)| PingMessage { data: data.to_vec(), sent: clock.to_note(sent) }),
        }
    }

    fn to_snapshot(&self, clock: NoteClock) -> Result<KeepAliveSnapshot, NoteError> {
        let in_flight = match &self.in_flight {
            Some(ping) => {
                let data = ping.data.as_slice().try_into().map_err(|_| NoteError::Field("ping"))?;
                Some((data, clock.to_instant(ping.sent)))
            }
            None => None,
        };
        Ok(KeepAliveSnapshot {
            counter: self.counter,
            next_check: clock.to_instant(self.next_check),
            has_received: self.has_received,
            in_flight,
        })
    }
}

/// Encodes a link that is suspended. Returns its entries in the order in which they are to be put: the pieces first.
pub fn encode_link(snapshot: &LinkSnapshot, clock: NoteClock) -> Vec<NotedEntry> {
    let written = clock.to_note(clock.instant());
    let bytes = [snapshot.received.as_slice(), &snapshot.unsent].concat();
    let (first, rest) = bytes.split_at(bytes.len().min(PIECE));
    let message = LinkMessage {
        dialect: snapshot.dialect.clone(),
        router_version: Some(snapshot.router_version),
        sealer: Some((&snapshot.sealer).into()),
        opener: Some((&snapshot.opener).into()),
        received: snapshot.received.len() as u64,
        unsent: snapshot.unsent.len() as u64,
        bytes: first.to_vec(),
        keep_alive: Some(KeepAliveMessage::new(&snapshot.keep_alive, clock)),
        authenticated: clock.to_note(snapshot.authenticated),
        is_confirmed: snapshot.is_confirmed,
        settings: snapshot.settings.to_vec(),
        written,
    };
    let piece = |(number, piece): (u16, &[u8])| {
        let message = LinkPieceMessage { bytes: piece.to_vec(), written };
        (EntryKey::RouterLinkBytes(number), encode(&message))
    };
    let pieces = (0..).zip(rest.chunks(PIECE)).map(piece);
    pieces.chain([(EntryKey::RouterLink, encode(&message))]).collect()
}

/// Decodes a link. `find` returns the note of a piece, by its number.
///
/// # Errors
/// [`NoteError`] if a note is not valid, or a piece is missing.
pub fn decode_link<'a>(
    note: &[u8],
    clock: NoteClock,
    find: impl Fn(u16) -> Option<&'a [u8]>,
) -> Result<DecodedLink, NoteError> {
    let message: LinkMessage = decode(note)?;
    let written = message.written;
    let length = message.received.saturating_add(message.unsent);
    let mut received = message.bytes;
    let mut numbers = 0..=u16::MAX;
    while (received.len() as u64) < length {
        let piece = numbers.next().and_then(&find).ok_or(NoteError::Field("bytes"))?;
        let piece: LinkPieceMessage = decode(piece)?;
        if piece.written != written || piece.bytes.is_empty() {
            return Err(NoteError::Field("bytes"));
        }
        received.extend(piece.bytes);
    }
    if received.len() as u64 != length {
        return Err(NoteError::Field("bytes"));
    }
    let unsent = received
        .split_off(usize::try_from(message.received).map_err(|_| NoteError::Field("bytes"))?);
    let keep_alive = message.keep_alive.ok_or(NoteError::Field("keep-alive"))?;
    let snapshot = LinkSnapshot {
        dialect: message.dialect,
        router_version: message.router_version.ok_or(NoteError::Field("version"))?,
        sealer: message.sealer.ok_or(NoteError::Field("sealer"))?.to_snapshot()?,
        opener: message.opener.ok_or(NoteError::Field("opener"))?.to_snapshot()?,
        received,
        unsent,
        keep_alive: keep_alive.to_snapshot(clock)?,
        authenticated: clock.to_instant(message.authenticated),
        is_confirmed: message.is_confirmed,
        settings: message.settings.try_into().map_err(|_| NoteError::Field("settings"))?,
    };
    Ok(DecodedLink { snapshot, written })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn snapshot(received: usize, unsent: usize, clock: NoteClock) -> LinkSnapshot {
        let cipher = |key: u8, has_ratchet| CipherSnapshot {
            cipher: Cipher::Aes256Gcm,
            key: SessionKey::from_bytes([key; 32]),
            iv: Iv([key; 12]),
            count: u64::from(key),
            has_ratchet,
        };
        let later = clock.instant() + Duration::from_secs(7);
        LinkSnapshot {
            dialect: "3.0".into(),
            router_version: Version::new(3, 0, 1),
            sealer: cipher(0xA5, true),
            opener: cipher(0x5A, false),
            received: (0..received).map(|n| n.to_be_bytes()[7]).collect(),
            unsent: vec![9; unsent],
            keep_alive: KeepAliveSnapshot {
                counter: 4,
                next_check: later,
                has_received: true,
                in_flight: Some(([0, 0, 0, 3], clock.instant())),
            },
            authenticated: clock.instant(),
            is_confirmed: true,
            settings: [6; 32],
        }
    }

    fn decode_entries(entries: &[NotedEntry], clock: NoteClock) -> Result<DecodedLink, NoteError> {
        let find = |key: EntryKey| {
            entries
                .iter()
                .find(|(found, _)| *found == key)
                .map(|(_, note)| note.expose().as_slice())
        };
        let link = find(EntryKey::RouterLink).unwrap();
        decode_link(link, clock, |number| find(EntryKey::RouterLinkBytes(number)))
    }

    #[test]
    fn link_with_any_number_of_bytes_is_decoded_again() {
        let clock = NoteClock::now();
        for (received, unsent) in
            [(0, 0), (3, 5), (PIECE, 0), (PIECE - 1, 2), (100_000, 1), (1, 260_000)]
        {
            let before = snapshot(received, unsent, clock);
            let entries = encode_link(&before, clock);
            assert!(entries.iter().all(|(_, note)| note.expose().len() < 60_000));
            let after = decode_entries(&entries, clock).unwrap().snapshot;
            assert_eq!(
                (&after.dialect, after.router_version),
                (&before.dialect, before.router_version)
            );
            assert_eq!((after.received, after.unsent), (before.received, before.unsent));
            assert_eq!(after.keep_alive, before.keep_alive);
            assert_eq!(after.authenticated, before.authenticated);
            assert_eq!((after.is_confirmed, after.settings), (true, [6; 32]));
            for (after, before) in [(after.sealer, before.sealer), (after.opener, before.opener)] {
                assert!(after.key.is_same_as(&before.key));
                assert_eq!((after.cipher, after.iv), (before.cipher, before.iv));
                assert_eq!((after.count, after.has_ratchet), (before.count, before.has_ratchet));
            }
        }
    }

    #[test]
    fn pieces_that_are_missing_or_of_another_hand_over_are_not_used() {
        let clock = NoteClock::now();
        let mut entries = encode_link(&snapshot(100_000, 1, clock), clock);
        assert_eq!(entries.len(), 4);
        let later = NoteClock::at(Duration::from_secs(1 << 30), clock.instant());
        let mut others = encode_link(&snapshot(100_000, 1, clock), later);
        std::mem::swap(&mut entries[2], &mut others[2]);
        let error = |entries: &[_]| decode_entries(entries, clock).unwrap_err();
        assert_eq!(error(&entries), NoteError::Field("bytes"));
        entries.remove(2);
        assert_eq!(error(&entries), NoteError::Field("bytes"));
    }

    #[test]
    fn notes_of_a_link_do_not_show_its_keys() {
        let clock = NoteClock::now();
        let entries = encode_link(&snapshot(0, 0, clock), clock);
        let note: LinkMessage = decode(entries[0].1.expose()).unwrap();
        let text = format!("{note:?}");
        assert!(text.contains("[redacted]") && !text.contains("165"), "{text}");
    }
}
