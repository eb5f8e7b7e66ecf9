//! The frames of the 3.0 dialect, and those of its messages that differ from the 2.x dialect (docs/protocol.md, "Frames
//! of the 3.0 dialect" and "Messages of the 3.0 dialect").
//!
//! ```text
//! type u8 · param u8 · 0 · 0 · length u32 LE · payload
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::FrameError;
use super::messages::{RelayKeyPool, RelayKeyUsed};

/// Longest frame, in bytes: 5 MiB. A sender counts the header, a receiver does not.
pub const MAX_FRAME_LEN: usize = 5 * 1024 * 1024;
/// Longest payload before the end of the authentication, in bytes.
pub const MAX_EARLY_FRAME_LEN: usize = 16 * 1024;
/// Length of a frame header, in bytes.
pub const HEADER_LEN: usize = 8;

/// Frame type of a keep-alive.
pub const KEEP_ALIVE: u8 = 1;
/// Frame type of a message during the authentication.
pub const AUTHENTICATION: u8 = 2;
/// Frame type of a message after the authentication; `param` is the channel.
pub const USER_DATA: u8 = 3;
/// Bit of `param` that marks a keep-alive as a ping.
pub const PING: u8 = 1;
/// `PeerRequest.command_name`: end the session.
pub const COMMAND_DISCONNECT: &str = "disconnect";

/// A frame as it appears on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// The whole header: the associated data of a sealed frame.
    pub header: [u8; HEADER_LEN],
    /// The bytes after the header.
    pub payload: Bytes,
}

impl RawFrame {
    /// Returns the frame type.
    pub fn kind(&self) -> u8 {
        self.header[0]
    }

    /// Returns the parameter.
    pub fn param(&self) -> u8 {
        self.header[1]
    }
}

/// Returns the header of a frame whose payload has `length` bytes.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_FRAME_LEN`].
pub fn build_header(kind: u8, param: u8, length: usize) -> Result<[u8; HEADER_LEN], FrameError> {
    match u32::try_from(length) {
        Ok(size) if length + HEADER_LEN <= MAX_FRAME_LEN => {
            let [a, b, c, d] = size.to_le_bytes();
            Ok([kind, param, 0, 0, a, b, c, d])
        }
        _ => Err(FrameError::TooLong { length, limit: MAX_FRAME_LEN - HEADER_LEN }),
    }
}

/// Appends a frame to `output`.
pub fn write_frame(header: [u8; HEADER_LEN], payload: &[u8], output: &mut BytesMut) {
    output.put_slice(&header);
    output.put_slice(payload);
}

/// Takes the next frame that is not empty from the front of `input`; `None` if more bytes are needed. Before the end of
/// the authentication (`is_early`) only frames of the authentication are allowed, and only short ones.
///
/// # Errors
/// [`FrameError`]; each ends the link.
pub fn read_frame(input: &mut BytesMut, is_early: bool) -> Result<Option<RawFrame>, FrameError> {
    let limit = if is_early { MAX_EARLY_FRAME_LEN } else { MAX_FRAME_LEN };
    while let Some(&header) = input.first_chunk::<HEADER_LEN>() {
        let [kind, _, _, _, length @ ..] = header;
        if is_early && kind != AUTHENTICATION {
            return Err(FrameError::UnexpectedType(kind));
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > limit {
            return Err(FrameError::TooLong { length, limit });
        }
        if input.len() - HEADER_LEN < length {
            return Ok(None);
        }
        let payload = input.split_to(HEADER_LEN + length).freeze().slice(HEADER_LEN..);
        if length > 0 {
            return Ok(Some(RawFrame { header, payload }));
        }
    }
    // The greeting of another protocol may be shorter than a header, and its sender may wait for an answer: report the
    // wrong protocol at once.
    match input.first() {
        Some(&kind) if is_early && kind != AUTHENTICATION => Err(FrameError::UnexpectedType(kind)),
        _ => Ok(None),
    }
}

/// The Router's answer to the `ClientHello`, in the 3.0 dialect.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerHelloV3 {
    /// The cipher that the Router chose.
    #[prost(uint32, tag = "1")]
    pub encryption: u32,
    /// The iv that the Router seals with.
    #[prost(bytes = "vec", tag = "2")]
    pub iv: Vec<u8>,
    /// Absent on a relay's link.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub public_key: Option<Vec<u8>>,
}

/// What an authenticated relay sends in the 3.0 dialect: one of the fields in each message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayToRouterV3 {
    /// Keys on offer.
    #[prost(message, optional, tag = "1")]
    pub key_pool: Option<RelayKeyPool>,
    /// Statistics.
    #[prost(message, optional, tag = "2")]
    pub statistics: Option<RelayStatistics>,
}

/// Statistics of the 3.0 dialect: all active sessions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayStatistics {
    /// The sessions.
    #[prost(message, repeated, tag = "1")]
    pub peer: Vec<Peer>,
    /// Seconds since the relay started.
    #[prost(int64, tag = "2")]
    pub uptime: i64,
}

/// A session in [`RelayStatistics`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Peer {
    /// The id that the relay gave the session.
    #[prost(int64, tag = "1")]
    pub peer_id: i64,
    /// 1 active, 2 finished.
    #[prost(int32, tag = "2")]
    pub status: i32,
    /// The Client's address, as the Router saw it.
    #[prost(string, tag = "3")]
    pub client_address: String,
    /// The operator's user name.
    #[prost(string, tag = "4")]
    pub client_user_name: String,
    /// The Host's address, as the Router saw it.
    #[prost(string, tag = "5")]
    pub host_address: String,
    /// The id of the Host.
    #[prost(uint64, tag = "6")]
    pub host_id: u64,
    /// Bytes forwarded in both directions.
    #[prost(int64, tag = "7")]
    pub bytes_transferred: i64,
    /// Seconds since pairing.
    #[prost(int64, tag = "8")]
    pub duration: i64,
    /// Seconds since bytes last moved.
    #[prost(int64, tag = "9")]
    pub idle_time: i64,
}

/// What a Router sends to an authenticated relay in the 3.0 dialect.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RouterToRelayV3 {
    /// The Router gave a key to two peers.
    #[prost(message, optional, tag = "1")]
    pub key_used: Option<RelayKeyUsed>,
    /// An administrator's request about a session.
    #[prost(message, optional, tag = "2")]
    pub peer_request: Option<PeerRequest>,
}

/// An administrator's request about a session, in the 3.0 dialect.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerRequest {
    /// The id that the Router gave the request.
    #[prost(int64, tag = "1")]
    pub request_id: i64,
    /// What to do: `disconnect`.
    #[prost(string, tag = "2")]
    pub command_name: String,
    /// Parameters of the command.
    #[prost(string, tag = "3")]
    pub params: String,
    /// The id that the Router gave this relay's link.
    #[prost(int64, tag = "4")]
    pub relay_id: i64,
    /// The id of the session.
    #[prost(int64, tag = "5")]
    pub peer_id: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_frame_is_skipped_and_incomplete_frame_waits_for_more_bytes() {
        let mut input = BytesMut::from(&[3, 0, 0, 0, 0, 0, 0, 0, 9, 4, 0, 0, 2, 0, 0, 0, 5][..]);
        assert_eq!(read_frame(&mut input, false).unwrap(), None);
        input.put_u8(6);
        let frame = read_frame(&mut input, false).unwrap().unwrap();
        assert_eq!((frame.kind(), frame.param(), &frame.payload[..]), (9, 4, &[5, 6][..]));
        assert!(input.is_empty());
    }

    #[test]
    fn length_limit_depends_on_the_stage() {
        let read =
            |header: [u8; 8], is_early| read_frame(&mut BytesMut::from(&header[..]), is_early);
        let long = |kind, length| build_header(kind, 0, length).unwrap();
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
        assert!(build_header(3, 0, MAX_FRAME_LEN - HEADER_LEN).is_ok());
        assert!(build_header(3, 0, MAX_FRAME_LEN - HEADER_LEN + 1).is_err());
    }
}
