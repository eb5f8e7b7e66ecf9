//! The framing of one link: a decoder of what the Router sends and an encoder of what the relay sends.

use bytes::BytesMut;

use crate::crypto::snapshot::CipherSnapshot;
use crate::crypto::{CryptoError, Opener, Sealer};
use crate::wire::frame::{Frame, FrameError};
use crate::wire::messages::Version;

use super::dialect::{Dialect, FramingError, HandshakeError, LinkStage};

/// Decodes what a Router sends: bytes in, opened frames out.
#[derive(Debug)]
pub struct FrameDecoder {
    dialect: &'static dyn Dialect,
    stage: LinkStage,
    opener: Option<Opener>,
    /// Bytes that were received and not yet decoded.
    pub buffer: BytesMut,
}

impl FrameDecoder {
    /// Creates a decoder for a new link, on which nothing is sealed yet.
    pub fn new(dialect: &'static dyn Dialect) -> Self {
        Self { dialect, stage: LinkStage::Authentication, opener: None, buffer: BytesMut::new() }
    }

    /// Continues after the authentication with a Router of this version, with bytes that were received and not yet decoded.
    pub fn resume(
        dialect: &'static dyn Dialect,
        router: Version,
        opener: Opener,
        received: &[u8],
    ) -> Self {
        let (stage, buffer) = (LinkStage::Service(router), BytesMut::from(received));
        Self { dialect, stage, opener: Some(opener), buffer }
    }

    /// Returns the state of the opener between two frames; `None` before the hellos are known.
    pub fn opener_snapshot(&self) -> Option<CipherSnapshot> {
        self.opener.as_ref().map(Opener::snapshot)
    }

    /// Opens sealed frames with `opener` from now on.
    pub fn enable_opening(&mut self, opener: Opener) {
        self.opener = Some(opener);
    }

    /// Ends the authentication, with a Router of this version.
    pub fn finish_authentication(&mut self, router: Version) {
        self.stage = LinkStage::Service(router);
    }

    /// Takes the next frame from the buffer; `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`FramingError`]; each ends the link.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FramingError> {
        self.dialect.decode(&mut self.buffer, self.stage, self.opener.as_mut())
    }

    /// Checks that the connection did not end inside a frame.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if it did.
    pub fn check_end(&self) -> Result<(), FramingError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(FrameError::Truncated.into()) }
    }

    /// Returns what an error during the authentication says about the Router's key, if anything: if the first sealed message
    /// does not open, it was sealed with another key.
    pub fn to_handshake_error(&self, error: &FramingError) -> Option<HandshakeError> {
        let is_first = self.opener.as_ref().is_some_and(|opener| opener.opened_count() == 0);
        match error {
            FramingError::Crypto(CryptoError::DoesNotOpen) if is_first => {
                Some(HandshakeError::KeyMismatch {
                    dialect: self.dialect.name(),
                    remedy: self.dialect.key_remedy(true),
                })
            }
            FramingError::Crypto(error @ CryptoError::TooShort(_)) if is_first => {
                let reason = error.to_string();
                Some(HandshakeError::Malformed { message: "SessionChallenge", reason })
            }
            _ => None,
        }
    }
}

/// Encodes what the relay sends: frames in, sealed bytes out.
#[derive(Debug)]
pub struct FrameEncoder {
    dialect: &'static dyn Dialect,
    stage: LinkStage,
    sealer: Option<Sealer>,
}

impl FrameEncoder {
    /// Creates an encoder for a new link, on which nothing is sealed yet.
    pub fn new(dialect: &'static dyn Dialect) -> Self {
        Self { dialect, stage: LinkStage::Authentication, sealer: None }
    }

    /// Continues after the authentication with a Router of this version.
    pub fn resume(dialect: &'static dyn Dialect, router: Version, sealer: Sealer) -> Self {
        Self { dialect, stage: LinkStage::Service(router), sealer: Some(sealer) }
    }

    /// Returns the state of the sealer between two frames; `None` before the hellos are known.
    pub fn sealer_snapshot(&self) -> Option<CipherSnapshot> {
        self.sealer.as_ref().map(Sealer::snapshot)
    }

    /// Seals frames with `sealer` from now on, as far as the dialect seals them.
    pub fn enable_sealing(&mut self, sealer: Sealer) {
        self.sealer = Some(sealer);
    }

    /// Ends the authentication, with a Router of this version.
    pub fn finish_authentication(&mut self, router: Version) {
        self.stage = LinkStage::Service(router);
    }

    /// Appends a frame to `output`.
    ///
    /// # Errors
    /// [`FramingError`] if the frame is too long or the provider failed.
    pub fn encode(&mut self, frame: &Frame, output: &mut BytesMut) -> Result<(), FramingError> {
        self.dialect.encode(frame, self.stage, self.sealer.as_mut(), output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::v2::V2;

    #[test]
    fn end_of_connection_inside_a_frame_is_an_error() {
        let mut decoder = FrameDecoder::new(&V2);
        assert!(decoder.check_end().is_ok());
        for incomplete in [&[5, 1][..], &[0x80], &[0, 1, 1]] {
            decoder.buffer = BytesMut::from(incomplete);
            assert!(matches!(decoder.next_frame(), Ok(None)));
            let error = decoder.check_end().unwrap_err();
            assert!(matches!(error, FramingError::Frame(FrameError::Truncated)));
        }
    }
}
