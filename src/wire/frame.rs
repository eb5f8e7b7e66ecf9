//! The frames of a link to a Router of the 2.x dialect (section 2 of the protocol notes).
//!
//! ```text
//! message   length[1..4] · payload                               before the channel header is on
//!           length[1..4] · channel u8 · 0 · payload              afterwards; both bytes count in length
//! service   0 · type u8 · flags u8 · 0 · 0 · length u32 LE · data
//! length    7 bits a byte, low bits first, top bit = one more; the fourth byte has 8 bits
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// Longest frame, counting everything after the length, and longest data of a service frame: 7 MiB.
pub const MAX_FRAME: usize = 7 * 1024 * 1024;

const SERVICE_HEADER: usize = 8;
const SERVICE_KEEP_ALIVE: u8 = 1;
const FLAG_PING: u8 = 1;
const CHANNEL: u8 = 0;
const CHANNEL_HEADER: usize = 2;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message, still sealed where the link is sealed.
    Message(Bytes),
    /// A keep-alive that must be answered with the same data.
    Ping(Bytes),
    /// The answer to a keep-alive.
    Pong(Bytes),
}

/// Why the bytes of a Router are not a frame of the dialect spoken. Each of these ends the link.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A message or the data of a service frame is too long.
    #[error("a frame of {length} bytes; the longest allowed has {limit}")]
    TooLong {
        /// Its length, in bytes.
        length: usize,
        /// The longest, in bytes.
        limit: usize,
    },
    /// A service frame of a kind that does not exist.
    #[error("a service frame of type {0}; only type 1, keep-alive, exists")]
    UnknownService(u8),
    /// A keep-alive without data.
    #[error("a keep-alive without data")]
    EmptyKeepAlive,
    /// A frame of a type that has no place there (3.0 dialect).
    #[error("a frame of type {0}, which has no place there")]
    UnexpectedType(u8),
    /// A message of the authentication without content (3.0 dialect).
    #[error("an empty message before the authentication has ended")]
    EmptyMessage,
    /// A message too short for the channel header.
    #[error("a message of {0} bytes, too short for its channel header")]
    NoChannelHeader(usize),
    /// The connection ended inside a frame.
    #[error("the connection ended in the middle of a frame")]
    Torn,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn too_long(length: usize) -> FrameError {
    FrameError::TooLong { length, limit: MAX_FRAME }
}

/// Reads and writes the frames of one link.
#[derive(Debug, Default)]
pub struct FrameCodec {
    channel_header: bool,
}

impl FrameCodec {
    /// A codec as a link begins: without the channel header.
    pub fn new() -> Self {
        Self::default()
    }

    /// A codec of which messages carry the channel header, or do not.
    pub fn with_channel_header(channel_header: bool) -> Self {
        Self { channel_header }
    }

    /// From now on messages carry the channel header (Routers from 2.6.0 on, after authentication).
    pub fn enable_channel_header(&mut self) {
        self.channel_header = true;
    }
}

/// Reads a length; `None` when more bytes are needed. Gives the length and how many bytes it took.
pub fn decode_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut size = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        let shift = 7 * index;
        if index == 3 {
            return Some((size | usize::from(byte) << shift, 4));
        }
        size |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((size, index + 1));
        }
    }
    None
}

/// Writes a length as the original does.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_FRAME`].
pub fn encode_length(size: usize, out: &mut BytesMut) -> Result<(), FrameError> {
    if size > MAX_FRAME {
        return Err(too_long(size));
    }
    let group = |index: usize| u8::try_from(size >> (7 * index) & 0x7f).unwrap_or_default();
    match size {
        0..=0x7f => out.put_u8(group(0)),
        0x80..=0x3fff => out.put_slice(&[group(0) | 0x80, group(1)]),
        0x4000..=0x1_ffff => out.put_slice(&[group(0) | 0x80, group(1) | 0x80, group(2)]),
        _ => {
            // MAX_FRAME >> 21 is 3: the fourth byte always fits.
            let last = u8::try_from(size >> 21).unwrap_or(u8::MAX);
            out.put_slice(&[group(0) | 0x80, group(1) | 0x80, group(2) | 0x80, last]);
        }
    }
    Ok(())
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some((size, prefix)) = decode_length(input) else {
            return Ok(None);
        };
        if size == 0 {
            return decode_service(input, prefix);
        }
        if size > MAX_FRAME {
            return Err(too_long(size));
        }
        if self.channel_header && size < CHANNEL_HEADER {
            return Err(FrameError::NoChannelHeader(size));
        }
        if input.len() - prefix < size {
            return Ok(None);
        }
        input.advance(prefix);
        let mut message = input.split_to(size).freeze();
        if self.channel_header {
            // The channel number of incoming messages is ignored.
            message.advance(CHANNEL_HEADER);
        }
        Ok(Some(Frame::Message(message)))
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        match self.decode(input)? {
            None if !input.is_empty() => Err(FrameError::Torn),
            frame => Ok(frame),
        }
    }
}

fn decode_service(input: &mut BytesMut, prefix: usize) -> Result<Option<Frame>, FrameError> {
    let Some(&[kind, flags, _, _, l0, l1, l2, l3]) = input.get(prefix..prefix + SERVICE_HEADER)
    else {
        return Ok(None);
    };
    if kind != SERVICE_KEEP_ALIVE {
        return Err(FrameError::UnknownService(kind));
    }
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length == 0 {
        return Err(FrameError::EmptyKeepAlive);
    }
    if length > MAX_FRAME {
        return Err(too_long(length));
    }
    if input.len() - prefix - SERVICE_HEADER < length {
        return Ok(None);
    }
    input.advance(prefix + SERVICE_HEADER);
    let data = input.split_to(length).freeze();
    Ok(Some(if flags & FLAG_PING != 0 { Frame::Ping(data) } else { Frame::Pong(data) }))
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), FrameError> {
        let (flags, data) = match frame {
            Frame::Message(payload) => {
                let header = if self.channel_header { CHANNEL_HEADER } else { 0 };
                encode_length(header + payload.len(), out)?;
                if self.channel_header {
                    out.put_slice(&[CHANNEL, 0]);
                }
                out.put_slice(&payload);
                return Ok(());
            }
            Frame::Ping(data) => (FLAG_PING, data),
            Frame::Pong(data) => (0, data),
        };
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if data.len() > MAX_FRAME {
            return Err(too_long(data.len()));
        }
        out.put_slice(&[0, SERVICE_KEEP_ALIVE, flags, 0, 0]);
        out.put_u32_le(length);
        out.put_slice(&data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(codec: &mut FrameCodec, bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        codec.decode(&mut BytesMut::from(bytes))
    }

    fn with_header() -> FrameCodec {
        let mut codec = FrameCodec::new();
        codec.enable_channel_header();
        codec
    }

    #[test]
    fn frames_come_back_whole_however_they_are_cut() {
        let frames = [
            Frame::Message(Bytes::from_static(b"x")),
            Frame::Ping(Bytes::from_static(&[0, 0, 0, 1])),
            Frame::Message(Bytes::from(vec![7; 20_000])),
            Frame::Pong(Bytes::from_static(&[9])),
            Frame::Message(Bytes::from(vec![1; 140_000])),
        ];
        for mut codec in [FrameCodec::new(), with_header()] {
            let mut wire = BytesMut::new();
            for frame in &frames {
                codec.encode(frame.clone(), &mut wire).unwrap();
            }
            for step in [1, 3, 4096, wire.len()] {
                let (mut input, mut seen) = (BytesMut::new(), Vec::new());
                for chunk in wire.chunks(step) {
                    input.extend_from_slice(chunk);
                    while let Some(frame) = codec.decode(&mut input).unwrap() {
                        seen.push(frame);
                    }
                }
                assert!(input.is_empty());
                assert_eq!(seen, frames);
            }
        }
    }

    #[test]
    fn a_message_over_7_mib_is_refused_at_its_length() {
        let mut codec = FrameCodec::new();
        // 7 MiB and one byte, then 8 MiB and the largest length there is.
        for bytes in [[0x81, 0x80, 0xC0, 3], [0x80, 0x80, 0x80, 4], [0xff; 4]] {
            assert!(matches!(decode(&mut codec, &bytes), Err(FrameError::TooLong { .. })));
        }
        assert!(matches!(decode(&mut codec, &[0x80, 0x80, 0xC0, 3]), Ok(None)));
        let long = Frame::Message(Bytes::from(vec![0; MAX_FRAME - 1]));
        assert!(with_header().encode(long.clone(), &mut BytesMut::new()).is_err());
        assert!(codec.encode(long, &mut BytesMut::new()).is_ok());
    }

    #[test]
    fn service_frames_follow_the_rules() {
        let mut codec = FrameCodec::new();
        // The length 0 in its longer forms is a service frame too.
        for prefix in [&[0][..], &[0x80, 0], &[0x80, 0x80, 0], &[0x80, 0x80, 0x80, 0]] {
            let service = |rest: &[u8]| [prefix, rest].concat();
            let ping = service(&[1, 1, 0, 0, 2, 0, 0, 0, 5, 6]);
            assert_eq!(
                decode(&mut codec, &ping).unwrap(),
                Some(Frame::Ping(Bytes::from_static(&[5, 6])))
            );
            assert!(matches!(decode(&mut codec, &ping[..ping.len() - 1]), Ok(None)));
            for kind in [0, 2, 255] {
                let other = service(&[kind, 1, 0, 0, 1, 0, 0, 0, 5]);
                assert!(matches!(
                    decode(&mut codec, &other),
                    Err(FrameError::UnknownService(k)) if k == kind
                ));
            }
            let empty = service(&[1, 1, 0, 0, 0, 0, 0, 0]);
            assert!(matches!(decode(&mut codec, &empty), Err(FrameError::EmptyKeepAlive)));
            let long = service(&[1, 1, 0, 0, 1, 0, 0x70, 0]);
            assert!(matches!(decode(&mut codec, &long), Err(FrameError::TooLong { .. })));
        }
    }

    #[test]
    fn a_message_without_room_for_its_header_is_refused() {
        assert!(matches!(decode(&mut with_header(), &[1, 0]), Err(FrameError::NoChannelHeader(1))));
        let empty = decode(&mut with_header(), &[2, 9, 0]).unwrap();
        assert_eq!(empty, Some(Frame::Message(Bytes::new())));
    }

    #[test]
    fn an_end_inside_a_frame_is_not_a_clean_end() {
        let mut codec = FrameCodec::new();
        assert!(matches!(codec.decode_eof(&mut BytesMut::new()), Ok(None)));
        for torn in [&[5, 1][..], &[0x80], &[0, 1, 1]] {
            assert!(matches!(codec.decode_eof(&mut BytesMut::from(torn)), Err(FrameError::Torn)));
        }
    }
}
