//! The socket of a link: reads and writes frames. Neither direction waits for the other.

use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::crypto::snapshot::CipherSnapshot;
use crate::crypto::{CryptoError, Opener, Sealer};
use crate::link::dialect::{Dialect, FramingError};
use crate::link::find_dialect;
use crate::link::framing::{FrameDecoder, FrameEncoder};
use crate::link::keepalive::KeepAliveError;
use crate::link::snapshot::LinkSnapshot;
use crate::wire::frame::{Frame, FrameError};
use crate::wire::messages::Version;

use super::error::LinkError;

/// How much data may wait to be sent, in frames of the maximum length. If there is more, the link is closed, because the
/// Router does not read.
const MAX_PENDING_FRAMES: usize = 2;

/// Why a suspended link cannot be resumed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResumeError {
    /// Another version of the relay made the link, in a dialect that this version does not speak.
    #[error("this version does not speak its dialect, {0}")]
    Dialect(String),
    /// The socket cannot be used.
    #[error("its socket cannot be used: {0}")]
    Socket(#[from] io::Error),
    /// The cryptographic provider rejects a key.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// A connection to a Router.
pub(super) struct RouterConnection {
    dialect: &'static dyn Dialect,
    address: SocketAddr,
    local_ip: Option<IpAddr>,
    reader: LinkReader,
    writer: LinkWriter,
}

/// Reads frames from a link.
pub(super) struct LinkReader {
    half: OwnedReadHalf,
    decoder: FrameDecoder,
    /// Whether anything was received since the last call of [`LinkReader::take_received`].
    has_received: bool,
}

/// Writes frames to a link. Frames wait in a buffer until [`LinkWriter::flush`] has written them to the socket, so that a
/// Router that does not read cannot keep the relay from reading.
pub(super) struct LinkWriter {
    half: OwnedWriteHalf,
    encoder: FrameEncoder,
    buffer: BytesMut,
    limit: usize,
}

/// A connection that is neither read nor written at the moment.
pub(super) struct SuspendedConnection {
    pub(super) socket: std::net::TcpStream,
    pub(super) sealer: CipherSnapshot,
    pub(super) opener: CipherSnapshot,
    pub(super) received: Vec<u8>,
    pub(super) unsent: Vec<u8>,
}

impl LinkReader {
    /// Reads the next frame; `None` at the end of the connection. Cancel safe.
    pub(super) async fn read_frame(&mut self) -> Result<Option<Frame>, FramingError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let read = self.half.read_buf(&mut self.decoder.buffer).await;
            if read.map_err(FrameError::Io)? == 0 {
                return self.decoder.check_end().map(|()| None);
            }
            self.has_received = true;
        }
    }

    /// Returns the number of bytes that were received and are not decoded yet.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.decoder.buffer.len()
    }

    /// Returns whether anything was received since the last call, even if only part of a frame or a frame of unknown type.
    pub(super) fn take_received(&mut self) -> bool {
        std::mem::take(&mut self.has_received)
    }
}

impl LinkWriter {
    /// Queues a frame.
    pub(super) fn queue_frame(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.encoder.encode(frame, &mut self.buffer)?;
        if self.buffer.len() > self.limit {
            return Err(LinkError::Stalled);
        }
        Ok(())
    }

    /// Queues a message.
    pub(super) fn queue_message(&mut self, payload: Vec<u8>) -> Result<(), LinkError> {
        self.queue_frame(&Frame::Message(Bytes::from(payload)))
    }

    /// Returns the number of bytes that wait to be sent.
    pub(super) fn pending_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Writes some of the bytes that wait. Cancel safe.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.half.write_buf(&mut self.buffer).await?;
        if self.buffer.is_empty() {
            // The keys of a large pool leave megabytes of capacity behind, which a quiet link does not need.
            self.buffer = BytesMut::new();
        }
        Ok(())
    }
}

impl RouterConnection {
    /// Wraps a new connection, on which nothing is sealed yet.
    pub(super) fn new(stream: TcpStream, dialect: &'static dyn Dialect) -> Self {
        let address = stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let local_ip = stream.local_addr().ok().map(|local| local.ip());
        let (read, write) = stream.into_split();
        Self {
            dialect,
            address,
            local_ip,
            reader: LinkReader {
                half: read,
                decoder: FrameDecoder::new(dialect),
                has_received: false,
            },
            writer: LinkWriter {
                half: write,
                encoder: FrameEncoder::new(dialect),
                buffer: BytesMut::new(),
                limit: MAX_PENDING_FRAMES * dialect.max_frame_len(),
            },
        }
    }

    /// Continues with the socket of a suspended link. Must be called on a Tokio runtime.
    pub(super) fn resume(
        socket: &std::net::TcpStream,
        snapshot: &LinkSnapshot,
    ) -> Result<Self, ResumeError> {
        let dialect = find_dialect(&snapshot.dialect)
            .ok_or_else(|| ResumeError::Dialect(snapshot.dialect.clone()))?;
        let (sealer, opener) =
            (Sealer::resume(&snapshot.sealer)?, Opener::resume(&snapshot.opener)?);
        let version = snapshot.router_version;
        let socket = socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let mut connection = Self::new(TcpStream::from_std(socket)?, dialect);
        connection.reader.decoder =
            FrameDecoder::resume(dialect, version, opener, &snapshot.received);
        connection.writer.encoder = FrameEncoder::resume(dialect, version, sealer);
        connection.writer.buffer = BytesMut::from(snapshot.unsent.as_slice());
        Ok(connection)
    }

    /// Returns the dialect that it speaks.
    pub(super) fn dialect(&self) -> &'static dyn Dialect {
        self.dialect
    }

    /// Returns the Router's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address that this machine dialled from.
    pub(super) fn local_ip(&self) -> Option<IpAddr> {
        self.local_ip
    }

    /// Seals and opens everything from now on.
    pub(super) fn enable_sealing(&mut self, sealer: Sealer, opener: Opener) {
        self.writer.encoder.enable_sealing(sealer);
        self.reader.decoder.enable_opening(opener);
    }

    /// Ends the authentication, with a Router of this version.
    pub(super) fn finish_authentication(&mut self, router: Version) {
        self.writer.encoder.finish_authentication(router);
        self.reader.decoder.finish_authentication(router);
    }

    /// Queues a message.
    pub(super) fn queue_message(&mut self, payload: Vec<u8>) -> Result<(), LinkError> {
        self.writer.queue_message(payload)
    }

    /// Reads the next message of the authentication. Pings that arrive before it are answered.
    pub(super) async fn read_message(&mut self) -> Result<Bytes, LinkError> {
        loop {
            let frame = tokio::select! {
                frame = self.reader.read_frame() => frame,
                flushed = self.writer.flush(), if self.writer.pending_bytes() > 0 => {
                    flushed.map_err(|error| LinkError::ClosedEarly(Some(error)))?;
                    continue;
                }
            };
            match frame {
                Ok(Some(Frame::Message(payload))) => return Ok(payload),
                Ok(Some(Frame::Ping(data))) => self.writer.queue_frame(&Frame::Pong(data))?,
                Ok(Some(Frame::Pong(_))) => return Err(KeepAliveError::UnexpectedPong.into()),
                Ok(None) => return Err(LinkError::ClosedEarly(None)),
                Err(error) => return Err(self.classify_early_error(error)),
            }
        }
    }

    /// Classifies a framing error that occurred during the authentication.
    fn classify_early_error(&self, error: FramingError) -> LinkError {
        match (self.reader.decoder.to_handshake_error(&error), error) {
            (_, FramingError::Frame(FrameError::Io(error))) => LinkError::ClosedEarly(Some(error)),
            (Some(meaning), _) => meaning.into(),
            (None, FramingError::Frame(error)) => LinkError::NotARouter(error),
            (None, FramingError::Crypto(error)) => LinkError::Sealed(error),
        }
    }

    /// Joins the directions of a connection on which everything is sealed, without closing it.
    pub(super) fn suspend(
        reader: LinkReader,
        writer: LinkWriter,
    ) -> Result<SuspendedConnection, LinkError> {
        let sealed = writer.encoder.sealer_snapshot().zip(reader.decoder.opener_snapshot());
        let (sealer, opener) = sealed.ok_or(CryptoError::Provider)?;
        let stream = reader.half.reunite(writer.half).map_err(io::Error::other);
        let socket = stream.and_then(TcpStream::into_std);
        Ok(SuspendedConnection {
            socket: socket.map_err(|error| LinkError::Closed(Some(error)))?,
            sealer,
            opener,
            received: reader.decoder.buffer.to_vec(),
            unsent: writer.buffer.to_vec(),
        })
    }

    /// Splits the connection into its two directions.
    pub(super) fn split(self) -> (LinkReader, LinkWriter) {
        (self.reader, self.writer)
    }
}
