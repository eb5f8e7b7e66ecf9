//! The interface that hides the differences between the dialects of Routers: a trait of functions without I/O.
//!
//! A dialect defines the format of frames and how they are sealed, which hellos and versions are acceptable, and how keys
//! on offer, statistics and the Router's requests are encoded. It holds no state of a link and does no I/O. The code that
//! serves a link uses only this trait.

use std::fmt;
use std::time::Duration;

use bytes::BytesMut;

use crate::crypto::{Cipher, CryptoError, Iv, Opener, PublicKey, Sealer, SharedSecret};
use crate::wire::frame::{Frame, FrameError};
use crate::wire::messages::Version;

/// The protocol that a major version of the Router speaks to relays.
pub trait Dialect: fmt::Debug + Send + Sync {
    /// Returns the name of the dialect, as logs and `/status` show it: `2.x`, `3.0`.
    fn name(&self) -> &'static str;

    /// Returns the major version of the Routers that speak this dialect, by which the settings name it
    /// ([`crate::config::parse::GENERATIONS`]).
    fn major_version(&self) -> u8;

    /// Returns the version that the relay announces in this dialect, whatever its own version is.
    fn announced_version(&self) -> Version;

    /// Returns advice for a `RouterPublicKey` that is not the Router's key. The file that holds the key depends on the
    /// dialect. `names_version` is whether the `ServerHello` named a version.
    fn key_remedy(&self, names_version: bool) -> &'static str;

    /// Returns the time limit for the whole authentication.
    fn authentication_timeout(&self) -> Duration;

    /// Returns how many keys a Router of this dialect keeps for one link.
    fn max_offered_keys(&self) -> usize;

    /// Returns the length of the longest frame that may be sent, in bytes, including headers and tag.
    fn max_frame_len(&self) -> usize;

    /// Returns when the relay sends pings.
    fn ping_schedule(&self) -> PingSchedule;

    /// Returns the ciphers that the relay offers, for `ClientHello.encryption`. `has_aes` is whether the CPU has AES instructions.
    fn offered_ciphers(&self, has_aes: bool) -> u32;

    /// Parses a `ServerHello`.
    ///
    /// # Errors
    /// [`HandshakeError::NotServerHello`] if the bytes are not a `ServerHello`, others if it is not acceptable.
    fn parse_server_hello(&self, bytes: &[u8]) -> Result<ParsedServerHello, HandshakeError>;

    /// Derives the keys of both directions: the sealer of what the relay sends, and the opener of what the Router sends.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider rejects a key.
    fn derive_keys(
        &self,
        cipher: Cipher,
        hellos: &Hellos<'_>,
    ) -> Result<(Sealer, Opener), CryptoError>;

    /// Determines the Router's version from the message in which this dialect names it, and checks that it is supported.
    ///
    /// # Errors
    /// [`HandshakeError::Version`], [`HandshakeError::HostPort`] or [`HandshakeError::NoVersion`].
    fn check_version(
        &self,
        in_hello: Option<Version>,
        in_challenge: Option<Version>,
    ) -> Result<Version, HandshakeError>;

    /// Takes the next frame from the front of `input` and opens it. `None` if more bytes are needed. `opener` is present
    /// once both hellos are known.
    ///
    /// # Errors
    /// [`FramingError`]; each ends the link.
    fn decode(
        &self,
        input: &mut BytesMut,
        stage: LinkStage,
        opener: Option<&mut Opener>,
    ) -> Result<Option<Frame>, FramingError>;

    /// Seals a frame and appends it to `output`.
    ///
    /// # Errors
    /// [`FramingError`] if the frame is too long or the provider failed.
    fn encode(
        &self,
        frame: &Frame,
        stage: LinkStage,
        sealer: Option<&mut Sealer>,
        output: &mut BytesMut,
    ) -> Result<(), FramingError>;

    /// Encodes a message that offers keys.
    fn encode_key_pool(&self, pool: &KeyPool<'_>) -> Vec<u8>;

    /// Encodes a message with as many of `sessions` as fit in `available` bytes. Also returns how many those are. `uptime` is
    /// in seconds.
    fn encode_statistics(
        &self,
        sessions: &[SessionStatistics<'_>],
        uptime: u64,
        available: usize,
    ) -> (Vec<u8>, usize);

    /// Parses a message from the Router. The result is empty if the message has no known field.
    ///
    /// # Errors
    /// If the bytes are not a message.
    fn parse_notices(&self, message: &[u8]) -> Result<Vec<Notice>, prost::DecodeError>;
}

/// The stage of one direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkStage {
    /// Up to and including the `SessionResponse`.
    Authentication,
    /// After the authentication, with a Router of this version.
    Service(Version),
}

/// Why a frame could not be decoded or encoded.
#[derive(Debug, thiserror::Error)]
pub enum FramingError {
    /// The bytes are not a frame of this dialect, or the frame is too long.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame cannot be opened or sealed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// The contents of a `ServerHello`.
#[derive(Debug)]
pub struct ParsedServerHello {
    /// The cipher that the Router chose, by its bit in `ClientHello.encryption`.
    pub encryption: u32,
    /// The iv that the Router seals with.
    pub iv: Iv,
    /// The Router's version, if the dialect names it here.
    pub version: Option<Version>,
}

/// The values from which the keys of a link are derived.
#[derive(Debug)]
pub struct Hellos<'a> {
    /// The secret that only the relay and the holder of the private key for `RouterPublicKey` know.
    pub secret: &'a SharedSecret,
    /// The `ClientHello` as it was sent.
    pub client: &'a [u8],
    /// The iv of the `ClientHello`.
    pub client_iv: Iv,
    /// The `ServerHello` as it was received.
    pub server: &'a [u8],
    /// The iv of the `ServerHello`.
    pub server_iv: Iv,
}

/// When a ping is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PingSchedule {
    /// Always after this time.
    Every(Duration),
    /// At each check after this time, if nothing was received since the check before.
    WhenIdle(Duration),
}

/// Keys to offer to the Router, and the host and port at which peers present them.
#[derive(Debug, Clone, Copy)]
pub struct KeyPool<'a> {
    /// The host that peers dial.
    pub host: &'a str,
    /// The port that peers dial.
    pub port: u16,
    /// The keys.
    pub keys: &'a [OfferedKey],
}

/// A one-time key as the Router is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedKey {
    /// The id of the key.
    pub id: u32,
    /// The public half.
    pub public: PublicKey,
    /// The iv of the peers' first message.
    pub iv: Iv,
}

/// The statistics of one session that are sent to the Router.
#[derive(Debug, Clone, Copy)]
pub struct SessionStatistics<'a> {
    /// The id that the relay gave the session.
    pub id: u64,
    /// The Client's address, as the Router saw it.
    pub client_address: &'a str,
    /// The operator's user name.
    pub client_user_name: &'a str,
    /// The Host's address, as the Router saw it.
    pub host_address: &'a str,
    /// The id of the Host.
    pub host_id: u64,
    /// Bytes forwarded in both directions.
    pub bytes: u64,
    /// Seconds since pairing.
    pub duration: u64,
    /// Seconds since bytes last moved.
    pub idle: u64,
}

/// A message from the Router to an authenticated relay, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The Router gave this key to two peers.
    KeyUsed(u32),
    /// An administrator asks to end this session.
    Disconnect(u64),
    /// A request that this relay does not know, described in words.
    Unknown(String),
}

/// Why a Router cannot be authenticated. Each of these ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The first message received is not a `ServerHello`.
    #[error("the Router's ServerHello cannot be parsed: {0}")]
    NotServerHello(String),
    /// A message is malformed.
    #[error("the Router's {message} is malformed: {reason}")]
    Malformed {
        /// The name of the message.
        message: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The Router chose a cipher that was not offered.
    #[error("the Router chose cipher {0}, which was not offered")]
    CipherNotOffered(u32),
    /// The first sealed message does not open: the Router has another private key.
    #[error("the Router does not hold the private key for RouterPublicKey")]
    KeyMismatch {
        /// The dialect that the Router speaks.
        dialect: &'static str,
        /// How to find the right key: [`Dialect::key_remedy`].
        remedy: &'static str,
    },
    /// The Router is too old, or its messages contradict its version.
    #[error("the Router's version {version} {rule}")]
    Version {
        /// The version that the Router named.
        version: Version,
        /// The rule that it violates.
        rule: &'static str,
    },
    /// A 3.x Router answered in the 2.x dialect: this is not its port for relays, but the one for Hosts of version 2.x.
    #[error("the Router, version {0}, listens for Hosts of version 2.x there, not for relays")]
    HostPort(Version),
    /// The Router named no version.
    #[error("the Router names no version")]
    NoVersion,
    /// The Router accepts no relays.
    #[error("the Router accepts no relay sessions (session types {0:#x}, bit 8 is missing)")]
    RelaysNotAllowed(u32),
    /// The cryptographic provider failed, or `RouterPublicKey` is a point of low order.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}
