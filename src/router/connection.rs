//! The socket of a link: frames in, frames out, neither waiting for the other.

use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::crypto::{Opener, Sealer};
use crate::link::dialect::{Dialect, Frame, FramingError};
use crate::link::framing::{Incoming, Outgoing};
use crate::link::keepalive::KeepAliveError;
use crate::wire::frame::FrameError;
use crate::wire::router::Version;

use super::error::LinkError;

/// Most that waits to be sent, in frames of the longest kind. A Router that takes less than this is given up.
const MAX_OUTGOING: usize = 2;

/// A connection to a Router.
pub(super) struct Connection {
    address: SocketAddr,
    local: Option<IpAddr>,
    reader: Reader,
    writer: Writer,
}

/// Reads frames.
pub(super) struct Reader {
    half: OwnedReadHalf,
    incoming: Incoming,
    /// Whether anything came since somebody asked.
    heard: bool,
}

/// Writes frames. What is sent waits here until [`Writer::flush`] has brought it to the socket, so that a Router
/// that does not read cannot keep the relay from reading.
pub(super) struct Writer {
    half: OwnedWriteHalf,
    outgoing: Outgoing,
    waiting: BytesMut,
    limit: usize,
}

impl Reader {
    /// The next frame; `None` at the end of the connection. Can be cancelled without losing anything.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, FramingError> {
        loop {
            if let Some(frame) = self.incoming.take()? {
                return Ok(Some(frame));
            }
            let read = self.half.read_buf(&mut self.incoming.buffer).await;
            if read.map_err(FrameError::Io)? == 0 {
                return self.incoming.end().map(|()| None);
            }
            self.heard = true;
        }
    }

    /// Whether anything was received since the last call: a part of a frame, or one that means nothing, too.
    pub(super) fn has_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }
}

impl Writer {
    /// Queues a frame.
    pub(super) fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.outgoing.write(frame, &mut self.waiting)?;
        if self.waiting.len() > self.limit {
            return Err(LinkError::Stalled);
        }
        Ok(())
    }

    /// Number of bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Writes some of what waits. Can be cancelled without losing anything.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.half.write_buf(&mut self.waiting).await?;
        if self.waiting.is_empty() {
            // The keys of a large pool leave megabytes behind; a quiet link needs none of it.
            self.waiting = BytesMut::new();
        }
        Ok(())
    }
}

impl Connection {
    /// A connection as it begins: nothing is sealed.
    pub(super) fn new(stream: TcpStream, dialect: &'static dyn Dialect) -> Self {
        let address = stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let local = stream.local_addr().ok().map(|local| local.ip());
        let (read, write) = stream.into_split();
        Self {
            address,
            local,
            reader: Reader { half: read, incoming: Incoming::new(dialect), heard: false },
            writer: Writer {
                half: write,
                outgoing: Outgoing::new(dialect),
                waiting: BytesMut::new(),
                limit: MAX_OUTGOING * dialect.max_frame(),
            },
        }
    }

    /// The Router's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that this machine dialled from.
    pub(super) fn local(&self) -> Option<IpAddr> {
        self.local
    }

    /// From now on everything is sealed, in both directions.
    pub(super) fn seal(&mut self, sealer: Sealer, opener: Opener) {
        self.writer.outgoing.seal(sealer);
        self.reader.incoming.seal(opener);
    }

    /// The authentication has ended, with a Router of this version.
    pub(super) fn authenticated(&mut self, router: Version) {
        self.writer.outgoing.authenticated(router);
        self.reader.incoming.authenticated(router);
    }

    /// Queues a message.
    pub(super) fn send_message(&mut self, payload: Vec<u8>) -> Result<(), LinkError> {
        self.writer.send(&Frame::Message(Bytes::from(payload)))
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
                Ok(Some(Frame::Ping(data))) => self.writer.send(&Frame::Pong(data))?,
                Ok(Some(Frame::Pong(_))) => return Err(KeepAliveError::NotAsked.into()),
                Ok(None) => return Err(LinkError::ClosedEarly(None)),
                Err(FramingError::Frame(FrameError::Io(error))) => {
                    return Err(LinkError::ClosedEarly(Some(error)));
                }
                Err(error) => {
                    return Err(match (self.reader.incoming.handshake_error(&error), error) {
                        (Some(meant), _) => meant.into(),
                        (None, FramingError::Frame(error)) => LinkError::NotARouter(error),
                        (None, FramingError::Sealed(error)) => LinkError::Sealed(error),
                    });
                }
            }
        }
    }

    /// Takes the two directions apart.
    pub(super) fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}
