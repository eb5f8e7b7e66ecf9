//! The socket of a link: frames in, frames out, neither waiting for the other.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Decoder, Encoder};

use crate::link::keepalive::KeepAliveError;
use crate::wire::frame::{Frame, FrameCodec, FrameError, MAX_FRAME};

use super::error::LinkError;

/// Most that waits to be sent, in bytes. A Router that takes less than this is given up.
const MAX_OUTGOING: usize = 2 * MAX_FRAME;

/// A connection to a Router.
pub(super) struct Connection {
    address: SocketAddr,
    reader: Reader,
    writer: Writer,
}

/// Reads frames.
pub(super) struct Reader {
    half: OwnedReadHalf,
    codec: FrameCodec,
    buffer: BytesMut,
}

/// Writes frames. What is sent waits here until [`Writer::flush`] has brought it to the socket, so that a Router
/// that does not read cannot keep the relay from reading.
pub(super) struct Writer {
    half: OwnedWriteHalf,
    codec: FrameCodec,
    outgoing: BytesMut,
}

impl Reader {
    /// The next frame; `None` at the end of the connection. Can be cancelled without losing anything.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return self.codec.decode_eof(&mut self.buffer);
            }
        }
    }
}

impl Writer {
    /// Queues a frame.
    pub(super) fn send(&mut self, frame: Frame) -> Result<(), LinkError> {
        self.codec.encode(frame, &mut self.outgoing)?;
        if self.outgoing.len() > MAX_OUTGOING {
            return Err(LinkError::Stalled);
        }
        Ok(())
    }

    /// Number of bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// Writes some of what waits. Can be cancelled without losing anything.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.half.write_buf(&mut self.outgoing).await?;
        if self.outgoing.is_empty() {
            // The keys of a large pool leave megabytes behind; a quiet link needs none of it.
            self.outgoing = BytesMut::new();
        }
        Ok(())
    }
}

impl Connection {
    /// A connection as it begins: no channel header.
    pub(super) fn new(stream: TcpStream) -> Self {
        let address = stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let (read, write) = stream.into_split();
        Self {
            address,
            reader: Reader { half: read, codec: FrameCodec::new(), buffer: BytesMut::new() },
            writer: Writer { half: write, codec: FrameCodec::new(), outgoing: BytesMut::new() },
        }
    }

    /// The Router's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on messages carry the channel header, in both directions.
    pub(super) fn enable_channel_header(&mut self) {
        self.reader.codec.enable_channel_header();
        self.writer.codec.enable_channel_header();
    }

    /// Queues a message.
    pub(super) fn send_message(&mut self, payload: Vec<u8>) -> Result<(), LinkError> {
        self.writer.send(Frame::Message(Bytes::from(payload)))
    }

    /// The next message of the authentication; answers pings on the way.
    pub(super) async fn message(&mut self) -> Result<Bytes, LinkError> {
        loop {
            let frame = tokio::select! {
                frame = self.reader.next() => frame,
                flushed = self.writer.flush(), if self.writer.waiting() > 0 => {
                    flushed.map_err(|error| LinkError::ClosedEarly(Some(error)))?;
                    continue;
                }
            };
            match frame {
                Ok(Some(Frame::Message(payload))) => return Ok(payload),
                Ok(Some(Frame::Ping(data))) => self.writer.send(Frame::Pong(data))?,
                Ok(Some(Frame::Pong(_))) => return Err(KeepAliveError::NotAsked.into()),
                Ok(None) => return Err(LinkError::ClosedEarly(None)),
                Err(FrameError::Io(error)) => return Err(LinkError::ClosedEarly(Some(error))),
                Err(error) => return Err(LinkError::NotARouter(error)),
            }
        }
    }

    /// Takes the two directions apart.
    pub(super) fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}
