//! Frames as both dialects have them: their kinds, and their errors.

use bytes::Bytes;

/// A frame of a Router link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message.
    Message(Bytes),
    /// A keep-alive that must be answered with a pong that carries the same data.
    Ping(Bytes),
    /// The answer to a ping.
    Pong(Bytes),
}

/// Why a frame could not be read or written. Each of these errors ends the link.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A frame is longer than the dialect allows.
    #[error("a frame of {length} bytes; at most {limit} are allowed")]
    TooLong {
        /// The length of the frame, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A service frame has a type that does not exist (2.x dialect).
    #[error("a service frame of type {0}; only type 1, keep-alive, exists")]
    UnknownService(u8),
    /// A keep-alive has no data.
    #[error("a keep-alive without data")]
    EmptyKeepAlive,
    /// A frame has a type that is not allowed at this stage (3.0 dialect).
    #[error("a frame of type {0}, which is not allowed at this stage")]
    UnexpectedType(u8),
    /// A message of the authentication is empty (3.0 dialect).
    #[error("an empty message before the end of the authentication")]
    EmptyMessage,
    /// A message is too short for the channel header (2.x dialect).
    #[error("a message of {0} bytes, too short for its channel header")]
    NoChannelHeader(usize),
    /// The connection ended inside a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
