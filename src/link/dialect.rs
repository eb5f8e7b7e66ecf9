//! What tells the dialects of Routers apart, behind one seam of pure functions.
//!
//! A dialect knows how its frames look and how they are sealed, which hellos and versions are good, and how keys on
//! offer, statistics and the Router's wishes are written down. It holds no state of a link and does no I/O. What
//! serves a link knows this trait and none of those who implement it.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::crypto::{Cipher, CryptoError, Iv, Opener, PublicKey, Sealer, SharedSecret};
use crate::wire::frame::FrameError;
use crate::wire::router::Version;

/// The way of a whole generation of Routers to speak to relays.
pub trait Dialect: fmt::Debug + Send + Sync {
    /// Its name, as logs and `/status` show it: `2.x`, `3.0`.
    fn name(&self) -> &'static str;

    /// The generation of Routers that speaks it, as settings know it ([`crate::config::parse::GENERATIONS`]).
    fn generation(&self) -> u8;

    /// The version that the relay announces in it.
    fn version(&self) -> Version;

    /// What to do where `RouterPublicKey` is not the Router's key: it keeps it in another file in each dialect.
    /// `names_version` is whether its `ServerHello` named a version.
    fn key_remedy(&self, names_version: bool) -> &'static str;

    /// Time for all of the authentication.
    fn authentication_time(&self) -> Duration;

    /// Most keys that a Router of this dialect keeps for one link.
    fn max_on_offer(&self) -> usize;

    /// Longest message that may be sent, in bytes, with all that surrounds it.
    fn max_frame(&self) -> usize;

    /// When the relay pings.
    fn keep_alive(&self) -> Pings;

    /// `ClientHello.encryption`: the ciphers that this machine offers. `aes` is whether it has instructions for AES.
    fn ciphers(&self, aes: bool) -> u32;

    /// Reads a `ServerHello`.
    ///
    /// # Errors
    /// [`HandshakeError::NotServerHello`] where it is none, others where it must not be accepted.
    fn server_hello(&self, bytes: &[u8]) -> Result<ServerFacts, HandshakeError>;

    /// The two directions of a link: what seals what the relay sends, and what opens what the Router sends.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the provider refuses a key.
    fn seals(&self, cipher: Cipher, hellos: &Hellos<'_>) -> Result<(Sealer, Opener), CryptoError>;

    /// The Router's version, from the place where this dialect names it.
    ///
    /// # Errors
    /// [`HandshakeError::Version`] or [`HandshakeError::NoVersion`].
    fn router_version(
        &self,
        in_hello: Option<Version>,
        in_challenge: Option<Version>,
    ) -> Result<Version, HandshakeError>;

    /// Takes the next frame from the front of `input` and opens it. `None` when more bytes are needed. `opener` is
    /// there once both hellos are known.
    ///
    /// # Errors
    /// [`FramingError`]: each ends the link.
    fn decode(
        &self,
        input: &mut BytesMut,
        stage: Stage,
        opener: Option<&mut Opener>,
    ) -> Result<Option<Frame>, FramingError>;

    /// Seals a frame and puts it at the end of `output`.
    ///
    /// # Errors
    /// [`FramingError`]: too long, or the provider failed.
    fn encode(
        &self,
        frame: &Frame,
        stage: Stage,
        sealer: Option<&mut Sealer>,
        output: &mut BytesMut,
    ) -> Result<(), FramingError>;

    /// A message with keys on offer.
    fn key_pool(&self, pool: &KeyPool<'_>) -> Vec<u8>;

    /// A message with as many of `peers` as fit into `room` bytes, and how many those are. `uptime` in seconds.
    fn statistics(&self, peers: &[PeerFacts<'_>], uptime: u64, room: usize) -> (Vec<u8>, usize);

    /// What a message of the Router says; nothing where it has no field that is known.
    ///
    /// # Errors
    /// When it is no message.
    fn notices(&self, message: &[u8]) -> Result<Vec<Notice>, prost::DecodeError>;
}

/// One frame, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message.
    Message(Bytes),
    /// A keep-alive that must be answered with the same data.
    Ping(Bytes),
    /// The answer to a keep-alive.
    Pong(Bytes),
}

/// How far a direction of a link has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Up to and with the `SessionResponse`.
    Authentication,
    /// Afterwards, with a Router of this version.
    Service(Version),
}

/// Why a frame cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FramingError {
    /// It is no frame of this dialect.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It does not open, or cannot be sealed.
    #[error(transparent)]
    Sealed(#[from] CryptoError),
}

/// What a `ServerHello` says.
#[derive(Debug)]
pub struct ServerFacts {
    /// The cipher that the Router chose, by its bit in `ClientHello.encryption`.
    pub encryption: u32,
    /// The iv that the Router seals with.
    pub iv: Iv,
    /// The Router's version, where it stands here.
    pub version: Option<Version>,
}

/// What the keys of a link are made of.
#[derive(Debug)]
pub struct Hellos<'a> {
    /// The secret that only the relay and the holder of `RouterPublicKey`'s private half know.
    pub secret: &'a SharedSecret,
    /// The `ClientHello` as it was sent.
    pub client: &'a [u8],
    /// Its iv.
    pub client_iv: Iv,
    /// The `ServerHello` as it came.
    pub server: &'a [u8],
    /// Its iv.
    pub server_iv: Iv,
}

/// When a ping is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pings {
    /// Always after this time.
    Every(Duration),
    /// At each look after this time, where nothing was received since the last look.
    WhenIdle(Duration),
}

/// Keys for the Router, and where peers bring them.
#[derive(Debug, Clone, Copy)]
pub struct KeyPool<'a> {
    /// The host that peers dial.
    pub host: &'a str,
    /// The port that peers dial.
    pub port: u16,
    /// The keys.
    pub keys: &'a [OfferedKey],
}

/// What the Router learns of a one-time key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedKey {
    /// Its number.
    pub id: u32,
    /// Its public half.
    pub public: PublicKey,
    /// The iv of the peers' first message.
    pub iv: Iv,
}

/// What the Router learns of a session.
#[derive(Debug, Clone, Copy)]
pub struct PeerFacts<'a> {
    /// The relay's number for it.
    pub id: u64,
    /// The operator's address, as the Router saw it.
    pub client_address: &'a str,
    /// The operator's name.
    pub client_user_name: &'a str,
    /// The remote machine's address, as the Router saw it.
    pub host_address: &'a str,
    /// The remote machine's number.
    pub host_id: u64,
    /// Bytes of both directions.
    pub bytes: u64,
    /// Seconds since pairing.
    pub duration: u64,
    /// Seconds since bytes last moved.
    pub idle: u64,
}

/// What a Router says to an authenticated relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// This key was given to two peers.
    KeyUsed(u32),
    /// This session is to be ended.
    Disconnect(u64),
    /// It asks for something that this relay does not know: what, in words.
    Unknown(String),
}

/// Why a Router cannot be authenticated. Each of these ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The first message that came is no `ServerHello`.
    #[error("the Router's ServerHello cannot be read: {0}")]
    NotServerHello(String),
    /// A message is not what it should be.
    #[error("the Router's {message} cannot be read: {reason}")]
    Malformed {
        /// Which message.
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
        /// Where the right key is: [`Dialect::key_remedy`].
        remedy: &'static str,
    },
    /// The Router is too old, or contradicts itself.
    #[error("the Router's version {version} {rule}")]
    Version {
        /// The version that the Router named.
        version: Version,
        /// What it should be.
        rule: &'static str,
    },
    /// A 3.x Router answers in the 2.x dialect: this is not its port for relays, but one for Hosts that are older than it.
    #[error("the Router, version {0}, listens for Hosts of version 2.x there, not for relays")]
    HostPort(Version),
    /// The Router named no version at all.
    #[error("the Router names no version")]
    NoVersion,
    /// The Router takes no relays.
    #[error("the Router takes no relay sessions (session types {0:#x}, bit 8 is missing)")]
    RelaysNotAllowed(u32),
    /// The cryptographic provider failed, or `RouterPublicKey` is a point of low order.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// The iv of a `ServerHello`.
pub(super) fn server_iv(bytes: &[u8]) -> Result<Iv, HandshakeError> {
    bytes.try_into().map(Iv).map_err(|_| HandshakeError::Malformed {
        message: "ServerHello",
        reason: format!("an iv of {} bytes instead of 12", bytes.len()),
    })
}

/// As many of `entries` as fit into `room` bytes of a message that lists them.
pub(super) fn fitting<M: Message>(entries: impl Iterator<Item = M>, mut room: usize) -> Vec<M> {
    // The entry, its tag and its length.
    let fits = move |entry: &M| {
        let rest = room.checked_sub(entry.encoded_len() + 1 + 4);
        room = rest.unwrap_or(0);
        rest.is_some()
    };
    entries.take_while(fits).collect()
}

/// A number as the signed fields of statistics take it.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
