//! The frames of a link to a Router of the 3.0 dialect, and those of its messages that differ from the 2.x dialect's
//! (section 7 of the protocol notes).
//!
//! ```text
//! type u8 · param u8 · 0 · 0 · length u32 LE · payload
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::FrameError;
use super::router::{RelayKeyPool, RelayKeyUsed};

/// Longest frame, in bytes: 5 MiB; what is sent counts its header.
pub const MAX_FRAME: usize = 5 * 1024 * 1024;
/// Longest payload before the authentication has ended, in bytes.
pub const MAX_EARLY_FRAME: usize = 16 * 1024;
/// Length of the header, in bytes.
pub const HEADER: usize = 8;

/// `type` of a keep-alive.
pub const KEEP_ALIVE: u8 = 1;
/// `type` of a message of the authentication.
pub const AUTHENTICATION: u8 = 2;
/// `type` of a message after it; `param` is the channel.
pub const USER_DATA: u8 = 3;
/// Bit of `param` that makes a keep-alive a ping.
pub const PING: u8 = 1;
/// `PeerRequest.command_name`: end the session.
pub const COMMAND_DISCONNECT: &str = "disconnect";

/// A frame as it is on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// All of the header; sealed frames vouch for it.
    pub header: [u8; HEADER],
    /// What follows it.
    pub payload: Bytes,
}

impl RawFrame {
    /// What kind of frame it is.
    pub fn kind(&self) -> u8 {
        self.header[0]
    }

    /// Its parameter.
    pub fn param(&self) -> u8 {
        self.header[1]
    }
}

/// The header of a frame with `length` bytes behind it.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_FRAME`].
pub fn header(kind: u8, param: u8, length: usize) -> Result<[u8; HEADER], FrameError> {
    match u32::try_from(length) {
        Ok(size) if length + HEADER <= MAX_FRAME => {
            let [a, b, c, d] = size.to_le_bytes();
            Ok([kind, param, 0, 0, a, b, c, d])
        }
        _ => Err(FrameError::TooLong { length, limit: MAX_FRAME - HEADER }),
    }
}

/// Puts a frame at the end of `output`.
pub fn write(header: [u8; HEADER], payload: &[u8], output: &mut BytesMut) {
    output.put_slice(&header);
    output.put_slice(payload);
}

/// Takes the next frame that is not empty from the front of `input`; `None` when more bytes are needed. Before the
/// authentication has ended (`early`) only its own frames are taken, and only short ones.
///
/// # Errors
/// [`FrameError`]: each ends the link.
pub fn read(input: &mut BytesMut, early: bool) -> Result<Option<RawFrame>, FrameError> {
    let limit = if early { MAX_EARLY_FRAME } else { MAX_FRAME };
    while let Some(&header) = input.first_chunk::<HEADER>() {
        let [kind, _, _, _, length @ ..] = header;
        if early && kind != AUTHENTICATION {
            return Err(FrameError::UnexpectedType(kind));
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > limit {
            return Err(FrameError::TooLong { length, limit });
        }
        if input.len() - HEADER < length {
            return Ok(None);
        }
        let payload = input.split_to(HEADER + length).freeze().slice(HEADER..);
        if length > 0 {
            return Ok(Some(RawFrame { header, payload }));
        }
    }
    // Some other protocol may be shorter than a header and wait for an answer: say at once that it is another one.
    match input.first() {
        Some(&kind) if early && kind != AUTHENTICATION => Err(FrameError::UnexpectedType(kind)),
        _ => Ok(None),
    }
}

/// The Router's answer to the `ClientHello`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerHello {
    /// The one cipher chosen.
    #[prost(uint32, tag = "1")]
    pub encryption: u32,
    /// The iv that the Router seals with.
    #[prost(bytes = "vec", tag = "2")]
    pub iv: Vec<u8>,
    /// Absent on a relay's link.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub public_key: Option<Vec<u8>>,
}

/// Everything that a relay sends once it is authenticated; one of the fields for each message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayToRouter {
    /// Keys on offer.
    #[prost(message, optional, tag = "1")]
    pub key_pool: Option<RelayKeyPool>,
    /// Statistics.
    #[prost(message, optional, tag = "2")]
    pub statistics: Option<RelayStatistics>,
}

/// All active sessions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayStatistics {
    /// The sessions.
    #[prost(message, repeated, tag = "1")]
    pub peer: Vec<Peer>,
    /// Seconds since the relay started.
    #[prost(int64, tag = "2")]
    pub uptime: i64,
}

/// One session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Peer {
    /// The relay's number for it.
    #[prost(int64, tag = "1")]
    pub peer_id: i64,
    /// 1 active, 2 finished.
    #[prost(int32, tag = "2")]
    pub status: i32,
    /// The operator's address, as the Router saw it.
    #[prost(string, tag = "3")]
    pub client_address: String,
    /// The operator's name.
    #[prost(string, tag = "4")]
    pub client_user_name: String,
    /// The remote machine's address, as the Router saw it.
    #[prost(string, tag = "5")]
    pub host_address: String,
    /// The remote machine's number.
    #[prost(uint64, tag = "6")]
    pub host_id: u64,
    /// Bytes of both directions.
    #[prost(int64, tag = "7")]
    pub bytes_transferred: i64,
    /// Seconds since pairing.
    #[prost(int64, tag = "8")]
    pub duration: i64,
    /// Seconds since bytes last moved.
    #[prost(int64, tag = "9")]
    pub idle_time: i64,
}

/// Everything that a Router sends once a relay is authenticated.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RouterToRelay {
    /// A key was given to two peers.
    #[prost(message, optional, tag = "1")]
    pub key_used: Option<RelayKeyUsed>,
    /// An administrator's wish about a session.
    #[prost(message, optional, tag = "2")]
    pub peer_request: Option<PeerRequest>,
}

/// An administrator's wish about a session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerRequest {
    /// The Router's number for the request.
    #[prost(int64, tag = "1")]
    pub request_id: i64,
    /// What to do: `disconnect`.
    #[prost(string, tag = "2")]
    pub command_name: String,
    /// More about it.
    #[prost(string, tag = "3")]
    pub params: String,
    /// The Router's number for this relay's link.
    #[prost(int64, tag = "4")]
    pub relay_id: i64,
    /// The session.
    #[prost(int64, tag = "5")]
    pub peer_id: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_frames_are_passed_over_and_cut_ones_waited_for() {
        let mut input = BytesMut::from(&[3, 0, 0, 0, 0, 0, 0, 0, 9, 4, 0, 0, 2, 0, 0, 0, 5][..]);
        assert_eq!(read(&mut input, false).unwrap(), None);
        input.put_u8(6);
        let frame = read(&mut input, false).unwrap().unwrap();
        assert_eq!((frame.kind(), frame.param(), &frame.payload[..]), (9, 4, &[5, 6][..]));
        assert!(input.is_empty());
    }

    #[test]
    fn limits_are_those_of_the_stage() {
        let read = |header: [u8; 8], early| read(&mut BytesMut::from(&header[..]), early);
        let long = |kind, length| header(kind, 0, length).unwrap();
        assert!(matches!(read(long(2, 16 * 1024), true), Ok(None)));
        assert!(matches!(read(long(2, 16 * 1024 + 1), true), Err(FrameError::TooLong { .. })));
        assert!(matches!(read(long(3, 16 * 1024 + 1), false), Ok(None)));
        assert!(matches!(
            read([3, 0, 0, 0, 1, 0, 0x50, 0], false),
            Err(FrameError::TooLong { .. })
        ));
        assert!(matches!(read([3, 0, 0, 0, 0, 0, 0x50, 0], false), Ok(None)));
        for kind in [0, 1, 3, b'H'] {
            assert!(
                matches!(read(long(kind, 1), true), Err(FrameError::UnexpectedType(k)) if k == kind)
            );
        }
        assert!(header(3, 0, MAX_FRAME - HEADER).is_ok());
        assert!(header(3, 0, MAX_FRAME - HEADER + 1).is_err());
    }
}
