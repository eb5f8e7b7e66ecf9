//! The messages that both dialects share (docs/protocol.md, "Authentication in the 2.x dialect", "Messages of the 2.x
//! dialect" and "The 3.0 dialect").
//!
//! The `prost` derives are written by hand, so that building needs neither a build script nor `protoc`. Unknown fields
//! are ignored, as by every proto3 parser.

use std::fmt;

/// `ClientHello.identify`: no user name; the Router is known by its public key.
pub const IDENTIFY_ANONYMOUS: i32 = 1;
/// Bit of `ClientHello.encryption` and value of `ServerHello.encryption`: ChaCha20-Poly1305.
pub const ENCRYPTION_CHACHA20_POLY1305: u32 = 1;
/// Bit of `ClientHello.encryption` and value of `ServerHello.encryption`: AES-256-GCM.
pub const ENCRYPTION_AES256_GCM: u32 = 2;
/// Bit of `SessionChallenge.session_types` and value of `SessionResponse.session_type`: relay.
pub const SESSION_TYPE_RELAY: u32 = 8;
/// `RelayKey.type`: X25519.
pub const KEY_TYPE_X25519: i32 = 1;
/// `status` of an active session in the statistics.
pub const PEER_STATUS_ACTIVE: i32 = 1;

/// A program's version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Version {
    /// The major version.
    #[prost(uint32, tag = "1")]
    pub major: u32,
    /// The minor version.
    #[prost(uint32, tag = "2")]
    pub minor: u32,
    /// The patch level.
    #[prost(uint32, tag = "3")]
    pub patch: u32,
    /// The build number; no rule depends on it.
    #[prost(uint32, tag = "4")]
    pub revision: u32,
}

impl Version {
    /// Creates a version without a build number.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch, revision: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The first message of a link, sent by the relay.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClientHello {
    /// The ciphers that the relay offers, a bit mask.
    #[prost(uint32, tag = "1")]
    pub encryption: u32,
    /// How the relay identifies itself.
    #[prost(int32, tag = "2")]
    pub identify: i32,
    /// The relay's ephemeral public key.
    #[prost(bytes = "vec", tag = "3")]
    pub public_key: Vec<u8>,
    /// The iv that the relay seals with.
    #[prost(bytes = "vec", tag = "4")]
    pub iv: Vec<u8>,
    /// The version that the dialect announces.
    #[prost(message, optional, tag = "5")]
    pub version: Option<Version>,
}

/// The Router's description of itself, sealed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionChallenge {
    /// The Router's version, unless its `ServerHello` named it.
    #[prost(message, optional, tag = "1")]
    pub version: Option<Version>,
    /// The types of session that the Router accepts, a bit mask.
    #[prost(uint32, tag = "2")]
    pub session_types: u32,
    /// Number of CPU cores.
    #[prost(uint32, tag = "3")]
    pub cpu_cores: u32,
    /// Operating system.
    #[prost(string, tag = "4")]
    pub os_name: String,
    /// Host name.
    #[prost(string, tag = "5")]
    pub computer_name: String,
    /// CPU architecture.
    #[prost(string, tag = "6")]
    pub arch: String,
    /// A user's name; Routers do not set it.
    #[prost(string, tag = "7")]
    pub display_name: String,
}

/// The relay's description of itself, sealed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionResponse {
    /// The version that the dialect announces.
    #[prost(message, optional, tag = "1")]
    pub version: Option<Version>,
    /// The type of session that the relay asks for.
    #[prost(uint32, tag = "2")]
    pub session_type: u32,
    /// Number of CPU cores.
    #[prost(uint32, tag = "3")]
    pub cpu_cores: u32,
    /// Operating system.
    #[prost(string, tag = "4")]
    pub os_name: String,
    /// Host name, as the Router's console shows it.
    #[prost(string, tag = "5")]
    pub computer_name: String,
    /// CPU architecture.
    #[prost(string, tag = "6")]
    pub arch: String,
    /// A user's name; a relay has none.
    #[prost(string, tag = "7")]
    pub display_name: String,
}

/// Keys on offer, and the host and port at which peers present them. Later messages add keys and replace none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayKeyPool {
    /// The host that peers dial.
    #[prost(string, tag = "1")]
    pub peer_host: String,
    /// The port that peers dial.
    #[prost(uint32, tag = "2")]
    pub peer_port: u32,
    /// The keys.
    #[prost(message, repeated, tag = "3")]
    pub key: Vec<RelayKey>,
}

/// The public half of a one-time key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayKey {
    /// The id that the relay gave the key.
    #[prost(uint32, tag = "1")]
    pub key_id: u32,
    /// The type of key.
    #[prost(int32, tag = "2")]
    pub r#type: i32,
    /// The cipher of the peers' first message.
    #[prost(int32, tag = "3")]
    pub encryption: i32,
    /// The public key.
    #[prost(bytes = "vec", tag = "4")]
    pub public_key: Vec<u8>,
    /// The iv of the peers' first message.
    #[prost(bytes = "vec", tag = "5")]
    pub iv: Vec<u8>,
}

/// The Router gave a key to two peers, which may present it until it expires.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct RelayKeyUsed {
    /// The id of the key.
    #[prost(uint32, tag = "1")]
    pub key_id: u32,
}
