//! The messages between a relay and a Router of the 2.x dialect (sections 3 and 4 of the protocol notes).
//!
//! The `prost` derives stand here by hand, so that building needs neither a build script nor `protoc`.
//! Unknown fields are ignored, as in every proto3 reader.

use std::fmt;

/// `ClientHello.identify`: no user name, the Router is known by its public key.
pub const IDENTIFY_ANONYMOUS: i32 = 1;
/// Bit of `ClientHello.encryption` and value of `ServerHello.encryption`.
pub const ENCRYPTION_CHACHA20_POLY1305: u32 = 1;
/// Bit of `ClientHello.encryption` and value of `ServerHello.encryption`.
pub const ENCRYPTION_AES256_GCM: u32 = 2;
/// Bit of `SessionChallenge.session_types` and value of `SessionResponse.session_type`.
pub const SESSION_TYPE_RELAY: u32 = 8;
/// `RelayKey.type`: X25519.
pub const KEY_TYPE_X25519: i32 = 1;
/// `RelayKey.encryption`: ChaCha20-Poly1305.
pub const KEY_ENCRYPTION_CHACHA20_POLY1305: i32 = 1;
/// `PeerConnection.status` of a session that is running.
pub const PEER_STATUS_ACTIVE: i32 = 1;
/// `PeerConnectionRequest.type`: end the session.
pub const REQUEST_DISCONNECT: i32 = 1;

/// A program's version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Version {
    /// First number.
    #[prost(uint32, tag = "1")]
    pub major: u32,
    /// Second number.
    #[prost(uint32, tag = "2")]
    pub minor: u32,
    /// Third number.
    #[prost(uint32, tag = "3")]
    pub patch: u32,
    /// Build number; no rule looks at it.
    #[prost(uint32, tag = "4")]
    pub revision: u32,
}

impl Version {
    /// A version without a revision.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch, revision: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The first message of a link, from the relay.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClientHello {
    /// The ciphers on offer, a bit mask.
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
    /// The dialect's version.
    #[prost(message, optional, tag = "5")]
    pub version: Option<Version>,
}

/// The Router's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerHello {
    /// The one cipher chosen.
    #[prost(uint32, tag = "1")]
    pub encryption: u32,
    /// The iv that the Router seals with.
    #[prost(bytes = "vec", tag = "2")]
    pub iv: Vec<u8>,
    /// The Router's version, from 2.7.0 on.
    #[prost(message, optional, tag = "3")]
    pub version: Option<Version>,
}

/// What the Router says of itself, sealed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionChallenge {
    /// The Router's version, where `ServerHello` had none.
    #[prost(message, optional, tag = "1")]
    pub version: Option<Version>,
    /// The kinds of session that it takes, a bit mask.
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
    /// Name of a user; unused by Routers.
    #[prost(string, tag = "7")]
    pub display_name: String,
}

/// What the relay says of itself, sealed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionResponse {
    /// The dialect's version.
    #[prost(message, optional, tag = "1")]
    pub version: Option<Version>,
    /// The kind of session wanted.
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
    /// Name of a user; a relay has none.
    #[prost(string, tag = "7")]
    pub display_name: String,
}

/// Everything that a relay sends once it is authenticated; one of the fields for each message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayToRouter {
    /// Keys on offer.
    #[prost(message, optional, tag = "1")]
    pub key_pool: Option<RelayKeyPool>,
    /// Statistics.
    #[prost(message, optional, tag = "2")]
    pub relay_stat: Option<RelayStat>,
}

/// Everything that a Router sends once a relay is authenticated.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RouterToRelay {
    /// A key was given to two peers.
    #[prost(message, optional, tag = "1")]
    pub key_used: Option<RelayKeyUsed>,
    /// An administrator's wish about a session.
    #[prost(message, optional, tag = "2")]
    pub peer_connection_request: Option<PeerConnectionRequest>,
}

/// Keys on offer, and where peers bring them. The keys of several messages add up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayKeyPool {
    /// Host that peers dial.
    #[prost(string, tag = "1")]
    pub peer_host: String,
    /// Port that peers dial.
    #[prost(uint32, tag = "2")]
    pub peer_port: u32,
    /// The keys.
    #[prost(message, repeated, tag = "3")]
    pub key: Vec<RelayKey>,
}

/// The public half of a one-time key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayKey {
    /// The relay's number for it.
    #[prost(uint32, tag = "1")]
    pub key_id: u32,
    /// Kind of key.
    #[prost(int32, tag = "2")]
    pub r#type: i32,
    /// Cipher for the peers' first message.
    #[prost(int32, tag = "3")]
    pub encryption: i32,
    /// The public key.
    #[prost(bytes = "vec", tag = "4")]
    pub public_key: Vec<u8>,
    /// The iv for the peers' first message.
    #[prost(bytes = "vec", tag = "5")]
    pub iv: Vec<u8>,
}

/// The Router gave this key to two peers, who have 30 s.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct RelayKeyUsed {
    /// The key's number.
    #[prost(uint32, tag = "1")]
    pub key_id: u32,
}

/// All active sessions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RelayStat {
    /// The sessions.
    #[prost(message, repeated, tag = "1")]
    pub peer_connection: Vec<PeerConnection>,
    /// Seconds since the relay started.
    #[prost(int64, tag = "2")]
    pub uptime: i64,
}

/// One session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerConnection {
    /// The relay's number for it.
    #[prost(uint64, tag = "1")]
    pub session_id: u64,
    /// 1 active, 2 finished.
    #[prost(int32, tag = "2")]
    pub status: i32,
    /// The operator's address, as the Router saw it.
    #[prost(string, tag = "3")]
    pub client_address: String,
    /// The operator's name.
    #[prost(string, tag = "4")]
    pub client_user_name: String,
    /// The remote machine's address, as the Router saw it.
    #[prost(string, tag = "5")]
    pub host_address: String,
    /// The remote machine's number.
    #[prost(fixed64, tag = "6")]
    pub host_id: u64,
    /// Bytes of both directions.
    #[prost(int64, tag = "7")]
    pub bytes_transferred: i64,
    /// Seconds since pairing.
    #[prost(int64, tag = "8")]
    pub duration: i64,
    /// Seconds since bytes last moved.
    #[prost(int64, tag = "9")]
    pub idle_time: i64,
}

/// An administrator's wish about a session.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PeerConnectionRequest {
    /// The Router's number for this relay's link.
    #[prost(int64, tag = "1")]
    pub relay_session_id: i64,
    /// What to do; 1 = disconnect.
    #[prost(int32, tag = "2")]
    pub r#type: i32,
    /// The session.
    #[prost(uint64, tag = "3")]
    pub peer_session_id: u64,
}
