//! The dialect of Routers 2.3 to 2.7 (sections 2 to 4 of the protocol notes).
//!
//! One key for both directions; messages are sealed, keep-alives are not; everything that there is room for may be on
//! offer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio_util::codec::{Decoder, Encoder};

use crate::crypto::{Cipher, CryptoError, Opener, Sealer};
use crate::wire::frame::{Frame as RawFrame, FrameCodec, MAX_FRAME};
use crate::wire::router::{
    ENCRYPTION_AES256_GCM, ENCRYPTION_CHACHA20_POLY1305, KEY_ENCRYPTION_CHACHA20_POLY1305,
    KEY_TYPE_X25519, PEER_STATUS_ACTIVE, PeerConnection, REQUEST_DISCONNECT, RelayKey,
    RelayKeyPool, RelayStat, RelayToRouter, RouterToRelay, ServerHello, Version,
};

use super::dialect::{
    Dialect, Frame, FramingError, HandshakeError, Hellos, KeyPool, Notice, PeerFacts, Pings,
    ServerFacts, Stage, fitting, server_iv, signed,
};

/// The dialect of Routers 2.3 to 2.7.
pub static SECOND: Second = Second;

/// The version that this dialect announces, whatever the program's own version is.
const ANNOUNCED: Version = Version::new(2, 7, 0);
/// The first version that names itself in `ServerHello`.
const VERSION_IN_HELLO: Version = Version::new(2, 7, 0);
/// The oldest Router that relays can talk to.
const OLDEST_VERSION: Version = Version::new(2, 3, 0);
/// The first version whose port of this dialect is one for Hosts alone; relays have another one, in another dialect.
const HOST_PORT: Version = Version::new(3, 0, 0);
/// The first version with a channel header on messages.
const CHANNEL_HEADER_VERSION: Version = Version::new(2, 6, 0);

/// See [`SECOND`].
#[derive(Debug)]
pub struct Second;

impl Second {
    fn codec(stage: Stage) -> FrameCodec {
        let header = matches!(stage, Stage::Service(router) if router >= CHANNEL_HEADER_VERSION);
        FrameCodec::with_channel_header(header)
    }
}

impl Dialect for Second {
    fn name(&self) -> &'static str {
        "2.x"
    }

    fn generation(&self) -> u8 {
        2
    }

    fn version(&self) -> Version {
        ANNOUNCED
    }

    fn key_remedy(&self, names_version: bool) -> &'static str {
        if names_version {
            "copy the content of router.pub from the Router's machine to RouterPublicKey"
        } else {
            // So does a Router before 2.7, and a 3.x on its port for Hosts.
            "copy the content of router.pub from the Router's machine to RouterPublicKey. If the Router is a 3.x, this is \
             its port for Hosts: set RouterPort to 8063, and, where it was set up as 3.x, RouterPublicKey to the content \
             of relay.pub (one that was migrated keeps its key)"
        }
    }

    fn authentication_time(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn max_on_offer(&self) -> usize {
        usize::MAX
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }

    fn keep_alive(&self) -> Pings {
        Pings::Every(Duration::from_secs(60))
    }

    fn ciphers(&self, aes: bool) -> u32 {
        if aes {
            ENCRYPTION_CHACHA20_POLY1305 | ENCRYPTION_AES256_GCM
        } else {
            ENCRYPTION_CHACHA20_POLY1305
        }
    }

    fn server_hello(&self, bytes: &[u8]) -> Result<ServerFacts, HandshakeError> {
        let hello = ServerHello::decode(bytes)
            .map_err(|error| HandshakeError::NotServerHello(error.to_string()))?;
        if let Some(version) = hello.version
            && version < VERSION_IN_HELLO
        {
            return Err(HandshakeError::Version {
                version,
                rule: "stands in its ServerHello, where only 2.7.0 and later name it",
            });
        }
        let iv = server_iv(&hello.iv)?;
        Ok(ServerFacts { encryption: hello.encryption, iv, version: hello.version })
    }

    fn seals(&self, cipher: Cipher, hellos: &Hellos<'_>) -> Result<(Sealer, Opener), CryptoError> {
        let key = hellos.secret.session_key();
        Ok((
            Sealer::new(cipher, &key, hellos.client_iv)?,
            Opener::new(cipher, &key, hellos.server_iv)?,
        ))
    }

    fn router_version(
        &self,
        in_hello: Option<Version>,
        in_challenge: Option<Version>,
    ) -> Result<Version, HandshakeError> {
        match (in_hello, in_challenge) {
            (Some(version), _) => Ok(version),
            (None, None) => Err(HandshakeError::NoVersion),
            (None, Some(version)) if version < OLDEST_VERSION => {
                Err(HandshakeError::Version { version, rule: "is older than 2.3.0" })
            }
            (None, Some(version)) if version >= HOST_PORT => Err(HandshakeError::HostPort(version)),
            (None, Some(version)) if version >= VERSION_IN_HELLO => Err(HandshakeError::Version {
                version,
                rule: "is missing from its ServerHello, where 2.7.0 and later name it",
            }),
            (None, Some(version)) => Ok(version),
        }
    }

    fn decode(
        &self,
        input: &mut BytesMut,
        stage: Stage,
        opener: Option<&mut Opener>,
    ) -> Result<Option<Frame>, FramingError> {
        Ok(match (Self::codec(stage).decode(input)?, opener) {
            (None, _) => None,
            (Some(RawFrame::Message(sealed)), Some(opener)) => {
                Some(Frame::Message(opener.open(&sealed)?.into()))
            }
            (Some(RawFrame::Message(message)), None) => Some(Frame::Message(message)),
            (Some(RawFrame::Ping(data)), _) => Some(Frame::Ping(data)),
            (Some(RawFrame::Pong(data)), _) => Some(Frame::Pong(data)),
        })
    }

    fn encode(
        &self,
        frame: &Frame,
        stage: Stage,
        sealer: Option<&mut Sealer>,
        output: &mut BytesMut,
    ) -> Result<(), FramingError> {
        let frame = match (frame, sealer) {
            (Frame::Message(message), Some(sealer)) => {
                RawFrame::Message(Bytes::from(sealer.seal(message)?))
            }
            (Frame::Message(message), None) => RawFrame::Message(message.clone()),
            (Frame::Ping(data), _) => RawFrame::Ping(data.clone()),
            (Frame::Pong(data), _) => RawFrame::Pong(data.clone()),
        };
        Ok(Self::codec(stage).encode(frame, output)?)
    }

    fn key_pool(&self, pool: &KeyPool<'_>) -> Vec<u8> {
        let keys = pool.keys.iter().map(|key| RelayKey {
            key_id: key.id,
            r#type: KEY_TYPE_X25519,
            encryption: KEY_ENCRYPTION_CHACHA20_POLY1305,
            public_key: key.public.0.to_vec(),
            iv: key.iv.0.to_vec(),
        });
        let pool = RelayKeyPool {
            peer_host: pool.host.to_owned(),
            peer_port: u32::from(pool.port),
            key: keys.collect(),
        };
        RelayToRouter { key_pool: Some(pool), relay_stat: None }.encode_to_vec()
    }

    fn statistics(&self, peers: &[PeerFacts<'_>], uptime: u64, room: usize) -> (Vec<u8>, usize) {
        let entries = peers.iter().map(|peer| PeerConnection {
            session_id: peer.id,
            status: PEER_STATUS_ACTIVE,
            client_address: peer.client_address.to_owned(),
            client_user_name: peer.client_user_name.to_owned(),
            host_address: peer.host_address.to_owned(),
            host_id: peer.host_id,
            bytes_transferred: signed(peer.bytes),
            duration: signed(peer.duration),
            idle_time: signed(peer.idle),
        });
        let peer_connection = fitting(entries, room);
        let listed = peer_connection.len();
        let statistics = RelayStat { peer_connection, uptime: signed(uptime) };
        let message = RelayToRouter { key_pool: None, relay_stat: Some(statistics) };
        (message.encode_to_vec(), listed)
    }

    fn notices(&self, message: &[u8]) -> Result<Vec<Notice>, prost::DecodeError> {
        let message = RouterToRelay::decode(message)?;
        let used = message.key_used.map(|used| Notice::KeyUsed(used.key_id));
        let request = message.peer_connection_request.map(|request| match request.r#type {
            REQUEST_DISCONNECT => Notice::Disconnect(request.peer_session_id),
            other => Notice::Unknown(format!("request {other}")),
        });
        Ok(used.into_iter().chain(request).collect())
    }
}
