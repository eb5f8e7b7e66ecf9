//! The two directions of one link: what has come so far of each, and the dialect that reads and writes it.

use bytes::BytesMut;

use crate::crypto::{CryptoError, Opener, Sealer};
use crate::wire::frame::FrameError;
use crate::wire::router::Version;

use super::dialect::{Dialect, Frame, FramingError, HandshakeError, Stage};

/// What a Router sends: bytes in, opened frames out.
#[derive(Debug)]
pub struct Incoming {
    dialect: &'static dyn Dialect,
    stage: Stage,
    opener: Option<Opener>,
    /// What was read and is not a frame yet.
    pub buffer: BytesMut,
}

impl Incoming {
    /// A direction as it begins.
    pub fn new(dialect: &'static dyn Dialect) -> Self {
        Self { dialect, stage: Stage::Authentication, opener: None, buffer: BytesMut::new() }
    }

    /// From now on everything is sealed.
    pub fn seal(&mut self, opener: Opener) {
        self.opener = Some(opener);
    }

    /// The authentication has ended, with a Router of this version.
    pub fn authenticated(&mut self, router: Version) {
        self.stage = Stage::Service(router);
    }

    /// The next frame of what was read; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FramingError`]: each ends the link.
    pub fn take(&mut self) -> Result<Option<Frame>, FramingError> {
        self.dialect.decode(&mut self.buffer, self.stage, self.opener.as_mut())
    }

    /// The connection ended.
    ///
    /// # Errors
    /// [`FrameError::Torn`] when it ended inside a frame.
    pub fn end(&self) -> Result<(), FramingError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(FrameError::Torn.into()) }
    }

    /// What an error means: a first sealed message that does not open was sealed under another key.
    pub fn handshake_error(&self, error: &FramingError) -> Option<HandshakeError> {
        let nothing_yet = self.opener.as_ref().is_some_and(|opener| opener.opened() == 0);
        match error {
            FramingError::Sealed(CryptoError::DoesNotOpen) if nothing_yet => {
                Some(HandshakeError::KeyMismatch {
                    dialect: self.dialect.name(),
                    remedy: self.dialect.key_remedy(true),
                })
            }
            FramingError::Sealed(error @ CryptoError::TooShort(_)) if nothing_yet => {
                let reason = error.to_string();
                Some(HandshakeError::Malformed { message: "SessionChallenge", reason })
            }
            _ => None,
        }
    }
}

/// What the relay sends: frames in, sealed bytes out.
#[derive(Debug)]
pub struct Outgoing {
    dialect: &'static dyn Dialect,
    stage: Stage,
    sealer: Option<Sealer>,
}

impl Outgoing {
    /// A direction as it begins.
    pub fn new(dialect: &'static dyn Dialect) -> Self {
        Self { dialect, stage: Stage::Authentication, sealer: None }
    }

    /// From now on everything is sealed.
    pub fn seal(&mut self, sealer: Sealer) {
        self.sealer = Some(sealer);
    }

    /// The authentication has ended, with a Router of this version.
    pub fn authenticated(&mut self, router: Version) {
        self.stage = Stage::Service(router);
    }

    /// Puts a frame at the end of `output`.
    ///
    /// # Errors
    /// [`FramingError`]: too long, or the provider failed.
    pub fn write(&mut self, frame: &Frame, output: &mut BytesMut) -> Result<(), FramingError> {
        self.dialect.encode(frame, self.stage, self.sealer.as_mut(), output)
    }
}
