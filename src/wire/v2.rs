//! The frames and messages of the 2.x dialect (docs/protocol.md, "Frames of the 2.x dialect" and "Messages of the 2.x
//! dialect").
//!
//! ```text
//! message   length[1..4] · payload                               without the channel header
//!           length[1..4] · channel u8 · 0 · payload              with it; length includes both bytes
//! service   0 · type u8 · flags u8 · 0 · 0 · length u32 LE · data
//! length    7 bits per byte, low bits first; the top bit announces another byte; the fourth byte has 8 bits
//! ```

use bytes::{Buf, BufMut, BytesMut};

use super::frame::{Frame, FrameError};
use super::messages::{RelayKeyPool, RelayKeyUsed, Version};

/// Longest message frame, counting everything after the length, and longest data of a service frame: 7 MiB.
pub const MAX_FRAME_LEN: usize = 7 * 1024 * 1024;

/// `RelayKey.encryption`: ChaCha20-Poly1305.
pub const KEY_ENCRYPTION_CHACHA20_POLY1305: i32 = 1;
/// `PeerConnectionRequest.type`: end the session.
pub const REQUEST_DISCONNECT: i32 = 1;

const SERVICE_HEADER_LEN: usize = 8;
const SERVICE_KEEP_ALIVE: u8 = 1;
const FLAG_PING: u8 = 1;
const CHANNEL: u8 = 0;
const CHANNEL_HEADER_LEN: usize = 2;

fn too_long_error(length: usize) -> FrameError {
    FrameError::TooLong { length, limit: MAX_FRAME_LEN }
}

/// Reads the length prefix of a frame. Returns the length and the size of the prefix, or `None` if more bytes are needed.
pub fn decode_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        let shift = 7 * index;
        if index == 3 {
            return Some((length | usize::from(byte) << shift, 4));
        }
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((length, index + 1));
        }
    }
    None
}

/// Writes a length prefix in the form that the original uses.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_FRAME_LEN`].
pub fn encode_length(length: usize, output: &mut BytesMut) -> Result<(), FrameError> {
    if length > MAX_FRAME_LEN {
        return Err(too_long_error(length));
    }
    let group = |index: usize| u8::try_from(length >> (7 * index) & 0x7f).unwrap_or_default();
    match length {
        0..=0x7f => output.put_u8(group(0)),
        0x80..=0x3fff => output.put_slice(&[group(0) | 0x80, group(1)]),
        0x4000..=0x1_ffff => output.put_slice(&[group(0) | 0x80, group(1) | 0x80, group(2)]),
        _ => {
            // MAX_FRAME_LEN >> 21 is 3: the fourth byte always fits.
            let last = u8::try_from(length >> 21).unwrap_or(u8::MAX);
            output.put_slice(&[group(0) | 0x80, group(1) | 0x80, group(2) | 0x80, last]);
        }
    }
    Ok(())
}

/// Takes the next frame from the front of `input`; `None` if more bytes are needed. The payload of a message on a
/// sealed link is still sealed. `has_channel_header` is whether messages carry the channel header: they do after the
/// authentication, with Routers from 2.6.0 on.
///
/// # Errors
/// [`FrameError`]; each ends the link.
pub fn read_frame(
    input: &mut BytesMut,
    has_channel_header: bool,
) -> Result<Option<Frame>, FrameError> {
    let Some((length, prefix)) = decode_length(input) else {
        return Ok(None);
    };
    if length == 0 {
        return read_service_frame(input, prefix);
    }
    if length > MAX_FRAME_LEN {
        return Err(too_long_error(length));
    }
    if has_channel_header && length < CHANNEL_HEADER_LEN {
        return Err(FrameError::NoChannelHeader(length));
    }
    if input.len() - prefix < length {
        return Ok(None);
    }
    input.advance(prefix);
    let mut message = input.split_to(length).freeze();
    if has_channel_header {
        // The channel number of incoming messages is ignored.
        message.advance(CHANNEL_HEADER_LEN);
    }
    Ok(Some(Frame::Message(message)))
}

fn read_service_frame(input: &mut BytesMut, prefix: usize) -> Result<Option<Frame>, FrameError> {
    let header = input.get(prefix..prefix + SERVICE_HEADER_LEN);
    let Some(&[kind, flags, _, _, l0, l1, l2, l3]) = header else {
        return Ok(None);
    };
    if kind != SERVICE_KEEP_ALIVE {
        return Err(FrameError::UnknownService(kind));
    }
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length == 0 {
        return Err(FrameError::EmptyKeepAlive);
    }
    if length > MAX_FRAME_LEN {
        return Err(too_long_error(length));
    }
    if input.len() - prefix - SERVICE_HEADER_LEN < length {
        return Ok(None);
    }
    input.advance(prefix + SERVICE_HEADER_LEN);
    let data = input.split_to(length).freeze();
    Ok(Some(if flags & FLAG_PING != 0 { Frame::Ping(data) } else { Frame::Pong(data) }))
}

/// Appends a frame to `output`.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_FRAME_LEN`].
pub fn write_frame(
    frame: &Frame,
    has_channel_header: bool,
    output: &mut BytesMut,
) -> Result<(), FrameError> {
    match frame {
        Frame::Message(payload) => write_message(payload, has_channel_header, output),
        Frame::Ping(data) => write_service_frame(FLAG_PING, data, output),
        Frame::Pong(data) => write_service_frame(0, data, output),
    }
}

fn write_message(
    payload: &[u8],
    has_channel_header: bool,
    output: &mut BytesMut,
) -> Result<(), FrameError> {
    let header: &[u8] = if has_channel_header { &[CHANNEL, 0] } else { &[] };
    encode_length(header.len() + payload.len(), output)?;
    output.put_slice(header);
    output.put_slice(payload);
    Ok(())
}

fn write_service_frame(flags: u8, data: &[u8], output: &mut BytesMut) -> Result<(), FrameError> {
    if data.len() > MAX_FRAME_LEN {
        return Err(too_long_error(data.len()));
    }
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    output.put_slice(&[0, SERVICE_KEEP_ALIVE, flags, 0, 0]);
    output.put_u32_le(length);
    output.put_slice(data);
    Ok(())
}

/// The Router's answer to the `ClientHello`, in the 2.x dialect.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerHelloV2 {
    /// The cipher that the Router chose.
    #[prost(uint32, tag = "1")]
    pub encryption: u32,
    /// The iv that the Router seals with.
    #[prost(bytes = "vec", tag = "2")]
    pub iv: Vec<u8>,
    /// The Router's version, from 2.7.0 on.
    #[prost(message, optional, tag = "3")]
    pub version: Option<Version>,
}

/// What an authenticated relay sends in the 2.x dialect: one of the fields in each message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayToRouterV2 {
    /// Keys on offer.
    #[prost(message, optional, tag = "1")]
    pub key_pool: Option<RelayKeyPool>,
    /// Statistics.
    #[prost(message, optional, tag = "2")]
    pub relay_stat: Option<RelayStat>,
}

/// What a Router sends to an authenticated relay in the 2.x dialect.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RouterToRelayV2 {
    /// The Router gave a key to two peers.
    #[prost(message, optional, tag = "1")]
    pub key_used: Option<RelayKeyUsed>,
    /// An administrator's request about a session.
    #[prost(message, optional, tag = "2")]
    pub peer_connection_request: Option<PeerConnectionRequest>,
}

/// Statistics of the 2.x dialect: all active sessions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayStat {
    /// The sessions.
    #[prost(message, repeated, tag = "1")]
    pub peer_connection: Vec<PeerConnection>,
    /// Seconds since the relay started.
    #[prost(int64, tag = "2")]
    pub uptime: i64,
}

/// A session in [`RelayStat`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerConnection {
    /// The id that the relay gave the session.
    #[prost(uint64, tag = "1")]
    pub session_id: u64,
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
    #[prost(fixed64, tag = "6")]
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

/// An administrator's request about a session, in the 2.x dialect.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PeerConnectionRequest {
    /// The id that the Router gave this relay's link.
    #[prost(int64, tag = "1")]
    pub relay_session_id: i64,
    /// What to do; 1 = disconnect.
    #[prost(int32, tag = "2")]
    pub r#type: i32,
    /// The id of the session.
    #[prost(uint64, tag = "3")]
    pub peer_session_id: u64,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn read_bytes(bytes: &[u8], has_channel_header: bool) -> Result<Option<Frame>, FrameError> {
        read_frame(&mut BytesMut::from(bytes), has_channel_header)
    }

    #[test]
    fn frames_are_reassembled_from_pieces_of_any_size() {
        let frames = [
            Frame::Message(Bytes::from_static(b"x")),
            Frame::Ping(Bytes::from_static(&[0, 0, 0, 1])),
            Frame::Message(Bytes::from(vec![7; 20_000])),
            Frame::Pong(Bytes::from_static(&[9])),
            Frame::Message(Bytes::from(vec![1; 140_000])),
        ];
        for has_channel_header in [false, true] {
            let mut wire = BytesMut::new();
            for frame in &frames {
                write_frame(frame, has_channel_header, &mut wire).unwrap();
            }
            for step in [1, 3, 4096, wire.len()] {
                let (mut input, mut seen) = (BytesMut::new(), Vec::new());
                for chunk in wire.chunks(step) {
                    input.extend_from_slice(chunk);
                    while let Some(frame) = read_frame(&mut input, has_channel_header).unwrap() {
                        seen.push(frame);
                    }
                }
                assert!(input.is_empty());
                assert_eq!(seen, frames);
            }
        }
    }

    #[test]
    fn message_over_7_mib_is_refused_by_its_length_prefix() {
        // 7 MiB and one byte, then 8 MiB and the largest length there is.
        for bytes in [[0x81, 0x80, 0xC0, 3], [0x80, 0x80, 0x80, 4], [0xff; 4]] {
            assert!(matches!(read_bytes(&bytes, false), Err(FrameError::TooLong { .. })));
        }
        assert!(matches!(read_bytes(&[0x80, 0x80, 0xC0, 3], false), Ok(None)));
        let long = Frame::Message(Bytes::from(vec![0; MAX_FRAME_LEN - 1]));
        assert!(write_frame(&long, true, &mut BytesMut::new()).is_err());
        assert!(write_frame(&long, false, &mut BytesMut::new()).is_ok());
    }

    #[test]
    fn only_keep_alive_service_frames_with_data_are_accepted() {
        // The length 0 in its longer forms also announces a service frame.
        for prefix in [&[0][..], &[0x80, 0], &[0x80, 0x80, 0], &[0x80, 0x80, 0x80, 0]] {
            let service = |rest: &[u8]| [prefix, rest].concat();
            let ping = service(&[1, 1, 0, 0, 2, 0, 0, 0, 5, 6]);
            assert_eq!(
                read_bytes(&ping, false).unwrap(),
                Some(Frame::Ping(Bytes::from_static(&[5, 6])))
            );
            assert!(matches!(read_bytes(&ping[..ping.len() - 1], false), Ok(None)));
            for kind in [0, 2, 255] {
                let other = service(&[kind, 1, 0, 0, 1, 0, 0, 0, 5]);
                assert!(matches!(
                    read_bytes(&other, false),
                    Err(FrameError::UnknownService(k)) if k == kind
                ));
            }
            let empty = service(&[1, 1, 0, 0, 0, 0, 0, 0]);
            assert!(matches!(read_bytes(&empty, false), Err(FrameError::EmptyKeepAlive)));
            let long = service(&[1, 1, 0, 0, 1, 0, 0x70, 0]);
            assert!(matches!(read_bytes(&long, false), Err(FrameError::TooLong { .. })));
        }
    }

    #[test]
    fn message_too_short_for_its_channel_header_is_refused() {
        assert!(matches!(read_bytes(&[1, 0], true), Err(FrameError::NoChannelHeader(1))));
        let empty = read_bytes(&[2, 9, 0], true).unwrap();
        assert_eq!(empty, Some(Frame::Message(Bytes::new())));
    }

    #[test]
    fn incomplete_frame_waits_for_more_bytes() {
        for incomplete in [&[][..], &[5, 1], &[0x80], &[0, 1, 1]] {
            assert!(matches!(read_bytes(incomplete, false), Ok(None)));
        }
    }
}
