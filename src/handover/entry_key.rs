//! The keys under which a relay keeps its entries in the descriptor store. The first byte is the kind of the entry.

use std::fmt;

use crate::state::keys::KeyId;
use crate::state::sessions::SessionId;

/// The key of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKey {
    /// A listener, by the name of its purpose.
    Listener(String),
    /// A session.
    Session(SessionId),
    /// One more piece of the bytes in flight of a session, which do not fit in its note.
    SessionBytes(SessionId, u16),
    /// A one-time key that was handed out.
    HandedOutKey(KeyId),
    /// Counters, numbering, log level.
    Counters,
    /// A chunk of the keys on offer. Only after a planned hand-over.
    OfferedKeys(u16),
    /// The Router link. Only after a planned hand-over.
    RouterLink,
    /// One more piece of the bytes that the Router link held, which do not fit in its note.
    RouterLinkBytes(u16),
    /// A connection that has not been paired. Only after a planned hand-over.
    Peer(u32),
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(name) => write!(f, "the listener {name}"),
            Self::Session(id) => write!(f, "session {}", id.0),
            Self::SessionBytes(id, piece) => {
                write!(f, "piece {piece} of the bytes of session {}", id.0)
            }
            Self::HandedOutKey(id) => write!(f, "key {}, which was handed out,", id.0),
            Self::Counters => f.write_str("the entry of the counters"),
            Self::OfferedKeys(chunk) => write!(f, "part {chunk} of the keys on offer"),
            Self::RouterLink => f.write_str("the Router link"),
            Self::RouterLinkBytes(piece) => {
                write!(f, "piece {piece} of the bytes of the Router link")
            }
            Self::Peer(number) => write!(f, "pending peer {number}"),
        }
    }
}

impl EntryKey {
    /// Returns the key as the store knows it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, rest) = match self {
            Self::Listener(name) => (b'l', name.as_bytes().to_vec()),
            Self::Session(id) => (b's', id.0.to_be_bytes().to_vec()),
            Self::SessionBytes(id, piece) => {
                (b'b', [&id.0.to_be_bytes()[..], &piece.to_be_bytes()].concat())
            }
            Self::HandedOutKey(id) => (b'k', id.0.to_be_bytes().to_vec()),
            Self::Counters => (b'c', Vec::new()),
            Self::OfferedKeys(chunk) => (b'o', chunk.to_be_bytes().to_vec()),
            Self::RouterLink => (b'r', Vec::new()),
            Self::RouterLinkBytes(piece) => (b'u', piece.to_be_bytes().to_vec()),
            Self::Peer(number) => (b'p', number.to_be_bytes().to_vec()),
        };
        [&[kind], &rest[..]].concat()
    }

    /// Parses a key from the store. `None` if this version does not know it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            b'l' => Self::Listener(String::from_utf8(rest.to_vec()).ok()?),
            b's' => Self::Session(SessionId(u64::from_be_bytes(rest.try_into().ok()?))),
            b'b' => {
                let (id, piece) = rest.split_last_chunk::<2>()?;
                let id = SessionId(u64::from_be_bytes(id.try_into().ok()?));
                Self::SessionBytes(id, u16::from_be_bytes(*piece))
            }
            b'k' => Self::HandedOutKey(KeyId(u32::from_be_bytes(rest.try_into().ok()?))),
            b'c' if rest.is_empty() => Self::Counters,
            b'o' => Self::OfferedKeys(u16::from_be_bytes(rest.try_into().ok()?)),
            b'r' if rest.is_empty() => Self::RouterLink,
            b'u' => Self::RouterLinkBytes(u16::from_be_bytes(rest.try_into().ok()?)),
            b'p' => Self::Peer(u32::from_be_bytes(rest.try_into().ok()?)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_parsed_again() {
        for key in [
            EntryKey::Listener("peers".into()),
            EntryKey::Session(SessionId(u64::MAX)),
            EntryKey::SessionBytes(SessionId(1), 0x0203),
            EntryKey::HandedOutKey(KeyId(7)),
            EntryKey::Counters,
            EntryKey::OfferedKeys(9),
            EntryKey::RouterLink,
            EntryKey::RouterLinkBytes(1),
            EntryKey::Peer(3),
        ] {
            assert_eq!(EntryKey::parse(&key.to_bytes()), Some(key));
        }
    }

    #[test]
    fn keys_of_other_versions_are_not_parsed() {
        for key in [&b""[..], b"z", b"s123", b"c1", b"k12345", b"l\xFF"] {
            assert_eq!(EntryKey::parse(key), None, "{key:?}");
        }
    }
}
