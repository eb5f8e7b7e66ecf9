//! The notes that a relay attaches to its entries in the descriptor store, for the next relay, which may be of another version.
//!
//! A note is one byte, [`VERSION`], and a prost message, whose type follows from the key of the entry. Within a version, fields
//! are only added, and a reader ignores fields that it does not know.

pub mod carried;
pub mod clock;
pub mod counters;
pub mod keys;
pub mod link;
pub mod peer;
pub mod session;

use prost::Message;

use crate::secret::Secret;

use super::entry_key::EntryKey;

/// The version of the notes. It changes only if a relay of the version before could misunderstand a note.
pub const VERSION: u8 = 1;

/// The highest number of a session, and the most bytes, that are believed. No relay comes this far in a thousand years, and
/// whatever is added to it stays a number.
const MAX_PLAUSIBLE: u64 = 1 << 62;

/// An entry of the store as it is put there, without descriptors.
pub type NotedEntry = (EntryKey, Secret<Vec<u8>>);

/// Why a note cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It was written by a version of this program that this one does not understand.
    #[error("its note has version {0}, and this relay reads version {VERSION} only")]
    Version(u8),
    /// It is empty, or not a message.
    #[error("its note cannot be decoded: {0}")]
    Malformed(String),
    /// A field that is always there is missing or has an impossible value.
    #[error("its note has no valid {0}")]
    Field(&'static str),
    /// A session has another number of sockets than two.
    #[error("it has {0} sockets instead of 2")]
    Sockets(usize),
}

/// Encodes a note.
pub fn encode(message: &impl Message) -> Secret<Vec<u8>> {
    // Reserved at once, so that no copy of a secret is left behind by growing.
    let mut note = Vec::with_capacity(1 + message.encoded_len());
    note.push(VERSION);
    message.encode_raw(&mut note);
    Secret::new(note)
}

/// Decodes a note.
///
/// # Errors
/// [`NoteError::Version`] or [`NoteError::Malformed`].
pub fn decode<M: Message + Default>(note: &[u8]) -> Result<M, NoteError> {
    match note.split_first() {
        None => Err(NoteError::Malformed("it is empty".into())),
        Some((&VERSION, message)) => {
            M::decode(message).map_err(|error| NoteError::Malformed(error.to_string()))
        }
        Some((&version, _)) => Err(NoteError::Version(version)),
    }
}

/// Returns a number that is there and plausible.
fn plausible(number: Option<u64>, name: &'static str) -> Result<u64, NoteError> {
    number.filter(|number| *number <= MAX_PLAUSIBLE).ok_or(NoteError::Field(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Example {
        #[prost(uint64, tag = "1")]
        number: u64,
    }

    #[test]
    fn note_is_decoded_again() {
        let note = encode(&Example { number: 300 });
        assert_eq!(note.expose(), &[VERSION, 8, 0xAC, 2]);
        assert_eq!(decode::<Example>(note.expose()), Ok(Example { number: 300 }));
    }

    #[test]
    fn notes_of_another_version_are_refused() {
        assert_eq!(decode::<Example>(&[VERSION + 1, 8, 1]), Err(NoteError::Version(VERSION + 1)));
        assert!(matches!(decode::<Example>(&[]), Err(NoteError::Malformed(_))));
        assert!(matches!(decode::<Example>(&[VERSION, 8]), Err(NoteError::Malformed(_))));
    }
}
