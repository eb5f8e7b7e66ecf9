//! The dialect of Routers 2.3 to 2.7 (docs/protocol.md, "Frames of the 2.x dialect", "Authentication in the 2.x dialect"
//! and "Messages of the 2.x dialect").
//!
//! Both directions have the same key. Messages are sealed, keep-alives are not. The number of keys on offer is not limited.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::crypto::{Cipher, CryptoError, Opener, Sealer};
use crate::wire::frame::Frame;
use crate::wire::messages::{
    ENCRYPTION_AES256_GCM, ENCRYPTION_CHACHA20_POLY1305, PEER_STATUS_ACTIVE, Version,
};
use crate::wire::v2::{
    self, KEY_ENCRYPTION_CHACHA20_POLY1305, MAX_FRAME_LEN, PeerConnection, REQUEST_DISCONNECT,
    RelayStat, RelayToRouterV2, RouterToRelayV2, ServerHelloV2,
};

use super::dialect::{
    Dialect, FramingError, HandshakeError, Hellos, KeyPool, LinkStage, Notice, ParsedServerHello,
    PingSchedule, SessionStatistics,
};
use super::encoding::{
    build_key_pool, collect_notices, decode_server_hello, parse_server_iv, take_fitting, to_signed,
};

/// The dialect of Routers 2.3 to 2.7.
pub static V2: V2Dialect = V2Dialect;

/// The version that the relay announces.
const ANNOUNCED_VERSION: Version = Version::new(2, 7, 0);
/// The first version that names itself in `ServerHello`.
const VERSION_IN_HELLO: Version = Version::new(2, 7, 0);
/// The oldest version that a Router of this dialect may name.
const OLDEST_VERSION: Version = Version::new(2, 3, 0);
/// The first version that speaks this dialect only on its port for Hosts, and another dialect on its port for relays.
const HOST_PORT_VERSION: Version = Version::new(3, 0, 0);
/// The first version with a channel header on messages.
const CHANNEL_HEADER_VERSION: Version = Version::new(2, 6, 0);
/// The time limit for the whole authentication.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(60);
/// The time between pings.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// The type of [`V2`].
#[derive(Debug)]
pub struct V2Dialect;

/// Returns whether messages carry the channel header.
fn has_channel_header(stage: LinkStage) -> bool {
    matches!(stage, LinkStage::Service(router) if router >= CHANNEL_HEADER_VERSION)
}

impl Dialect for V2Dialect {
    fn name(&self) -> &'static str {
        "2.x"
    }

    fn major_version(&self) -> u8 {
        2
    }

    fn announced_version(&self) -> Version {
        ANNOUNCED_VERSION
    }

    fn key_remedy(&self, names_version: bool) -> &'static str {
        if names_version {
            "copy the content of router.pub from the Router's machine to RouterPublicKey"
        } else {
            // A Router before 2.7 names no version in its ServerHello, and neither does a 3.x on its port for Hosts.
            "copy the content of router.pub from the Router's machine to RouterPublicKey. If the Router is a 3.x, this is \
             its port for Hosts: set RouterPort to 8063 and, unless the Router was migrated from 2.x and kept its key, \
             RouterPublicKey to the content of relay.pub"
        }
    }

    fn authentication_timeout(&self) -> Duration {
        AUTHENTICATION_TIMEOUT
    }

    fn max_offered_keys(&self) -> usize {
        usize::MAX
    }

    fn max_frame_len(&self) -> usize {
        MAX_FRAME_LEN
    }

    fn ping_schedule(&self) -> PingSchedule {
        PingSchedule::Every(PING_INTERVAL)
    }

    fn offered_ciphers(&self, has_aes: bool) -> u32 {
        if has_aes {
            ENCRYPTION_CHACHA20_POLY1305 | ENCRYPTION_AES256_GCM
        } else {
            ENCRYPTION_CHACHA20_POLY1305
        }
    }

    fn parse_server_hello(&self, bytes: &[u8]) -> Result<ParsedServerHello, HandshakeError> {
        let hello: ServerHelloV2 = decode_server_hello(bytes)?;
        if let Some(version) = hello.version
            && version < VERSION_IN_HELLO
        {
            return Err(HandshakeError::Version {
                version,
                rule: "is named in its ServerHello, but only 2.7.0 and later do that",
            });
        }
        let iv = parse_server_iv(&hello.iv)?;
        Ok(ParsedServerHello { encryption: hello.encryption, iv, version: hello.version })
    }

    fn derive_keys(
        &self,
        cipher: Cipher,
        hellos: &Hellos<'_>,
    ) -> Result<(Sealer, Opener), CryptoError> {
        let key = hellos.secret.derive_session_key();
        Ok((
            Sealer::new(cipher, &key, hellos.client_iv)?,
            Opener::new(cipher, &key, hellos.server_iv)?,
        ))
    }

    fn check_version(
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
            (None, Some(version)) if version >= HOST_PORT_VERSION => {
                Err(HandshakeError::HostPort(version))
            }
            (None, Some(version)) if version >= VERSION_IN_HELLO => Err(HandshakeError::Version {
                version,
                rule: "is missing from its ServerHello, but 2.7.0 and later name it there",
            }),
            (None, Some(version)) => Ok(version),
        }
    }

    fn decode(
        &self,
        input: &mut BytesMut,
        stage: LinkStage,
        opener: Option<&mut Opener>,
    ) -> Result<Option<Frame>, FramingError> {
        Ok(match (v2::read_frame(input, has_channel_header(stage))?, opener) {
            (Some(Frame::Message(sealed)), Some(opener)) => {
                Some(Frame::Message(opener.open(&sealed)?.into()))
            }
            (frame, _) => frame,
        })
    }

    fn encode(
        &self,
        frame: &Frame,
        stage: LinkStage,
        sealer: Option<&mut Sealer>,
        output: &mut BytesMut,
    ) -> Result<(), FramingError> {
        let sealed;
        let frame = match (frame, sealer) {
            (Frame::Message(message), Some(sealer)) => {
                sealed = Frame::Message(Bytes::from(sealer.seal(message)?));
                &sealed
            }
            (frame, _) => frame,
        };
        v2::write_frame(frame, has_channel_header(stage), output)?;
        Ok(())
    }

    fn encode_key_pool(&self, pool: &KeyPool<'_>) -> Vec<u8> {
        let pool = build_key_pool(pool, KEY_ENCRYPTION_CHACHA20_POLY1305);
        RelayToRouterV2 { key_pool: Some(pool), relay_stat: None }.encode_to_vec()
    }

    fn encode_statistics(
        &self,
        sessions: &[SessionStatistics<'_>],
        uptime: u64,
        available: usize,
    ) -> (Vec<u8>, usize) {
        let entries = sessions.iter().map(|session| PeerConnection {
            session_id: session.id,
            status: PEER_STATUS_ACTIVE,
            client_address: session.client_address.to_owned(),
            client_user_name: session.client_user_name.to_owned(),
            host_address: session.host_address.to_owned(),
            host_id: session.host_id,
            bytes_transferred: to_signed(session.bytes),
            duration: to_signed(session.duration),
            idle_time: to_signed(session.idle),
        });
        let peer_connection = take_fitting(entries, available);
        let listed = peer_connection.len();
        let statistics = RelayStat { peer_connection, uptime: to_signed(uptime) };
        let message = RelayToRouterV2 { key_pool: None, relay_stat: Some(statistics) };
        (message.encode_to_vec(), listed)
    }

    fn parse_notices(&self, message: &[u8]) -> Result<Vec<Notice>, prost::DecodeError> {
        let message = RouterToRelayV2::decode(message)?;
        let request = message.peer_connection_request.map(|request| match request.r#type {
            REQUEST_DISCONNECT => Notice::Disconnect(request.peer_session_id),
            other => Notice::Unknown(format!("request {other}")),
        });
        Ok(collect_notices(message.key_used, request))
    }
}
