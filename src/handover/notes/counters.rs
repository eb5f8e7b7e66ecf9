//! The note of what a relay counts: numbers that were used, the time since its start, metrics.

use prost::Message;

use crate::secret::Secret;
use crate::state::keys::snapshot::KeyNumbering;
use crate::state::restore::Numbering;
use crate::state::sessions::SessionId;

use super::carried::{CarriedMessage, CarriedOver};
use super::{NoteError, decode, encode, plausible};

/// What a relay counts. Times are those of notes.
#[derive(Debug, Clone, PartialEq)]
pub struct CountersNote {
    /// Which numbers of keys and sessions were used.
    pub numbering: Numbering,
    /// When the first relay of this line started, from which the statistics for the Router count.
    pub started: u64,
    /// When the sessions were suspended, at a planned hand-over.
    pub suspended: Option<u64>,
    /// Metrics and the log level.
    pub carried: CarriedOver,
}

#[derive(Clone, PartialEq, Message)]
struct CountersMessage {
    #[prost(uint32, tag = "1")]
    key_base: u32,
    #[prost(uint64, tag = "2")]
    keys_issued: u64,
    #[prost(uint64, tag = "3")]
    last_session: u64,
    #[prost(uint64, optional, tag = "4")]
    started: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    suspended: Option<u64>,
    #[prost(message, optional, tag = "6")]
    carried: Option<CarriedMessage>,
}

impl CountersNote {
    /// Encodes the note.
    pub fn encode(&self) -> Secret<Vec<u8>> {
        let Self { numbering, started, suspended, carried } = self;
        encode(&CountersMessage {
            key_base: numbering.keys.base,
            keys_issued: numbering.keys.issued,
            last_session: numbering.last_session.0,
            started: Some(*started),
            suspended: *suspended,
            carried: Some(carried.to_message()),
        })
    }

    /// Decodes a note.
    ///
    /// # Errors
    /// What the note lacks.
    pub fn decode(note: &[u8]) -> Result<Self, NoteError> {
        let CountersMessage { key_base, keys_issued, last_session, started, suspended, carried } =
            decode(note)?;
        let keys = KeyNumbering { base: key_base, issued: keys_issued };
        let last_session = SessionId(plausible(Some(last_session), "number of a session")?);
        Ok(Self {
            numbering: Numbering { keys, last_session },
            started: started.ok_or(NoteError::Field("start"))?,
            suspended,
            carried: carried.map(CarriedOver::from_message).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_decoded_again() {
        let keys = KeyNumbering { base: 7, issued: 1 << 32 };
        let numbering = Numbering { keys, last_session: SessionId(9) };
        for suspended in [None, Some(3)] {
            let note =
                CountersNote { numbering, started: 0, suspended, carried: CarriedOver::default() };
            assert_eq!(CountersNote::decode(note.encode().expose()), Ok(note));
        }
        let implausible = CountersMessage { last_session: u64::MAX, ..Default::default() };
        let error = CountersNote::decode(encode(&implausible).expose()).unwrap_err();
        assert_eq!(error, NoteError::Field("number of a session"));
        let empty = encode(&CountersMessage::default());
        assert_eq!(CountersNote::decode(empty.expose()), Err(NoteError::Field("start")));
    }
}
