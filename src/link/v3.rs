//! The dialect of Routers 3.x (docs/protocol.md, "The 3.0 dialect").
//!
//! Each direction has its own key, which is derived from everything that was sent in the clear and replaced after every
//! 256 messages. Keep-alives are sealed too, and headers are authenticated. At most 1000 keys may be on offer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::crypto::{Cipher, CryptoError, Opener, Sealer, TAG_LEN};
use crate::wire::frame::{Frame, FrameError};
use crate::wire::messages::{ENCRYPTION_AES256_GCM, PEER_STATUS_ACTIVE, Version};
use crate::wire::v3::{
    self, AUTHENTICATION, COMMAND_DISCONNECT, HEADER_LEN, KEEP_ALIVE, MAX_FRAME_LEN, PING, Peer,
    PeerRequest, RelayStatistics, RelayToRouterV3, RouterToRelayV3, ServerHelloV3, USER_DATA,
};

use super::dialect::{
    Dialect, FramingError, HandshakeError, Hellos, KeyPool, LinkStage, Notice, ParsedServerHello,
    PingSchedule, SessionStatistics,
};
use super::encoding::{
    build_key_pool, collect_notices, decode_server_hello, parse_server_iv, take_fitting, to_signed,
};

/// The dialect of Routers 3.x.
pub static V3: V3Dialect = V3Dialect;

/// The version that the relay announces.
const ANNOUNCED_VERSION: Version = Version::new(3, 0, 0);
/// The oldest version that a Router of this dialect may name.
const OLDEST_VERSION: Version = Version::new(2, 6, 0);
/// The label of the key for what the relay sends.
const TO_ROUTER_LABEL: &[u8] = b"aspia/v1/c2s";
/// The label of the key for what the Router sends.
const FROM_ROUTER_LABEL: &[u8] = b"aspia/v1/s2c";
/// The time limit for the whole authentication.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The time between two checks whether a ping is needed.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// How many keys a Router keeps for one link.
const MAX_OFFERED_KEYS: usize = 1000;
/// `RelayKey.encryption`: the Router picks a cipher for each pair of peers.
const KEY_ENCRYPTION_UNSPECIFIED: i32 = 0;

/// The most characters of an unknown command that are logged.
const MAX_COMMAND_CHARS: usize = 64;

/// The type of [`V3`].
#[derive(Debug)]
pub struct V3Dialect;

impl Dialect for V3Dialect {
    fn name(&self) -> &'static str {
        "3.0"
    }

    fn major_version(&self) -> u8 {
        3
    }

    fn announced_version(&self) -> Version {
        ANNOUNCED_VERSION
    }

    fn key_remedy(&self, _names_version: bool) -> &'static str {
        "copy the content of relay.pub from the Router's machine to RouterPublicKey (host.pub, beside it, is another key); \
         a Router that was migrated from 2.x has neither, and keeps the key of its router.pub"
    }

    fn authentication_timeout(&self) -> Duration {
        AUTHENTICATION_TIMEOUT
    }

    fn max_offered_keys(&self) -> usize {
        MAX_OFFERED_KEYS
    }

    fn max_frame_len(&self) -> usize {
        MAX_FRAME_LEN
    }

    fn ping_schedule(&self) -> PingSchedule {
        PingSchedule::WhenIdle(IDLE_CHECK_INTERVAL)
    }

    fn offered_ciphers(&self, _has_aes: bool) -> u32 {
        ENCRYPTION_AES256_GCM
    }

    fn parse_server_hello(&self, bytes: &[u8]) -> Result<ParsedServerHello, HandshakeError> {
        let hello: ServerHelloV3 = decode_server_hello(bytes)?;
        if hello.public_key.is_some() {
            return Err(HandshakeError::Malformed {
                message: "ServerHello",
                reason: "it has a public key, which is not for relays".into(),
            });
        }
        let iv = parse_server_iv(&hello.iv)?;
        Ok(ParsedServerHello { encryption: hello.encryption, iv, version: None })
    }

    fn derive_keys(
        &self,
        cipher: Cipher,
        hellos: &Hellos<'_>,
    ) -> Result<(Sealer, Opener), CryptoError> {
        let transcript = hellos.secret.sha256(&[hellos.client, hellos.server]);
        let to_router = transcript.derive_with_label(TO_ROUTER_LABEL);
        let from_router = transcript.derive_with_label(FROM_ROUTER_LABEL);
        Ok((
            Sealer::with_ratchet(cipher, to_router, hellos.client_iv)?,
            Opener::with_ratchet(cipher, from_router, hellos.server_iv)?,
        ))
    }

    fn check_version(
        &self,
        _in_hello: Option<Version>,
        in_challenge: Option<Version>,
    ) -> Result<Version, HandshakeError> {
        match in_challenge {
            None => Err(HandshakeError::NoVersion),
            Some(version) if version < OLDEST_VERSION => {
                Err(HandshakeError::Version { version, rule: "is older than 2.6.0" })
            }
            Some(version) => Ok(version),
        }
    }

    fn decode(
        &self,
        input: &mut BytesMut,
        stage: LinkStage,
        mut opener: Option<&mut Opener>,
    ) -> Result<Option<Frame>, FramingError> {
        let is_early = stage == LinkStage::Authentication;
        while let Some(frame) = v3::read_frame(input, is_early)? {
            let payload: Bytes = match &mut opener {
                // Frames of unknown types are opened too: every sealed frame advances the iv and the ratchet.
                Some(opener) => opener.open_with_aad(&frame.header, &frame.payload)?.into(),
                None => frame.payload.clone(),
            };
            return Ok(Some(match frame.kind() {
                AUTHENTICATION if !is_early => {
                    return Err(FrameError::UnexpectedType(AUTHENTICATION).into());
                }
                AUTHENTICATION if payload.is_empty() => {
                    return Err(FrameError::EmptyMessage.into());
                }
                AUTHENTICATION | USER_DATA => Frame::Message(payload),
                KEEP_ALIVE if frame.param() & PING == 0 => Frame::Pong(payload),
                KEEP_ALIVE if payload.is_empty() => return Err(FrameError::EmptyKeepAlive.into()),
                KEEP_ALIVE => Frame::Ping(payload),
                _ => continue,
            }));
        }
        Ok(None)
    }

    fn encode(
        &self,
        frame: &Frame,
        stage: LinkStage,
        sealer: Option<&mut Sealer>,
        output: &mut BytesMut,
    ) -> Result<(), FramingError> {
        let (kind, param, payload) = match frame {
            Frame::Message(message) if stage == LinkStage::Authentication => {
                (AUTHENTICATION, 0, message)
            }
            Frame::Message(message) => (USER_DATA, 0, message),
            Frame::Ping(data) => (KEEP_ALIVE, PING, data),
            Frame::Pong(data) => (KEEP_ALIVE, 0, data),
        };
        let tag_len = if sealer.is_some() { TAG_LEN } else { 0 };
        let header: [u8; HEADER_LEN] = v3::build_header(kind, param, tag_len + payload.len())?;
        match sealer {
            None => v3::write_frame(header, payload, output),
            Some(sealer) => {
                v3::write_frame(header, &sealer.seal_with_aad(&header, payload)?, output);
            }
        }
        Ok(())
    }

    fn encode_key_pool(&self, pool: &KeyPool<'_>) -> Vec<u8> {
        let pool = build_key_pool(pool, KEY_ENCRYPTION_UNSPECIFIED);
        RelayToRouterV3 { key_pool: Some(pool), statistics: None }.encode_to_vec()
    }

    fn encode_statistics(
        &self,
        sessions: &[SessionStatistics<'_>],
        uptime: u64,
        available: usize,
    ) -> (Vec<u8>, usize) {
        let entries = sessions.iter().map(|session| Peer {
            peer_id: to_signed(session.id),
            status: PEER_STATUS_ACTIVE,
            client_address: session.client_address.to_owned(),
            client_user_name: session.client_user_name.to_owned(),
            host_address: session.host_address.to_owned(),
            host_id: session.host_id,
            bytes_transferred: to_signed(session.bytes),
            duration: to_signed(session.duration),
            idle_time: to_signed(session.idle),
        });
        let peer = take_fitting(entries, available);
        let listed = peer.len();
        let statistics = RelayStatistics { peer, uptime: to_signed(uptime) };
        let message = RelayToRouterV3 { key_pool: None, statistics: Some(statistics) };
        (message.encode_to_vec(), listed)
    }

    fn parse_notices(&self, message: &[u8]) -> Result<Vec<Notice>, prost::DecodeError> {
        let message = RouterToRelayV3::decode(message)?;
        let request = message.peer_request.as_ref().map(parse_request);
        Ok(collect_notices(message.key_used, request))
    }
}

fn parse_request(request: &PeerRequest) -> Notice {
    match (request.command_name.as_str(), u64::try_from(request.peer_id)) {
        (COMMAND_DISCONNECT, Ok(session)) => Notice::Disconnect(session),
        (command, _) => {
            // The text is logged, and the command may be as long as a frame.
            let command: String = command.chars().take(MAX_COMMAND_CHARS).collect();
            Notice::Unknown(format!("{command:?} for {}", request.peer_id))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Iv, SessionKey};
    use bytes::BufMut;

    const SERVICE: LinkStage = LinkStage::Service(ANNOUNCED_VERSION);

    fn pair() -> (Sealer, Opener) {
        let key = || SessionKey::from_bytes([7; 32]);
        let (cipher, iv) = (Cipher::Aes256Gcm, Iv([9; 12]));
        (
            Sealer::with_ratchet(cipher, key(), iv).unwrap(),
            Opener::with_ratchet(cipher, key(), iv).unwrap(),
        )
    }

    fn sealed(sealer: &mut Sealer, kind: u8, param: u8, payload: &[u8]) -> BytesMut {
        let header = v3::build_header(kind, param, TAG_LEN + payload.len()).unwrap();
        let mut wire = BytesMut::new();
        v3::write_frame(header, &sealer.seal_with_aad(&header, payload).unwrap(), &mut wire);
        wire
    }

    #[test]
    fn ignored_frames_advance_the_ratchet() {
        let (mut sealer, mut opener) = pair();
        // There are more frames of an unknown type than one ratchet step has, with empty frames between them.
        let mut wire = BytesMut::new();
        for _ in 0..300 {
            wire.extend_from_slice(&sealed(&mut sealer, 77, 1, b"x"));
            wire.put_slice(&[USER_DATA, 0, 0, 0, 0, 0, 0, 0]);
        }
        wire.extend_from_slice(&sealed(&mut sealer, USER_DATA, 5, b"message"));
        let frame = V3.decode(&mut wire, SERVICE, Some(&mut opener)).unwrap();
        assert_eq!(frame, Some(Frame::Message(Bytes::from_static(b"message"))));
        assert_eq!(opener.opened_count(), 301);
    }

    #[test]
    fn frame_with_a_changed_header_does_not_open() {
        for (place, value) in [(0, KEEP_ALIVE), (1, 1), (2, 1), (3, 1)] {
            let (mut sealer, mut opener) = pair();
            let good = sealed(&mut sealer, USER_DATA, 0, b"message");
            let mut wire = good.clone();
            wire[place] = value;
            let error = V3.decode(&mut wire, SERVICE, Some(&mut opener)).unwrap_err();
            assert!(matches!(error, FramingError::Crypto(CryptoError::DoesNotOpen)));
            // A frame that does not open does not advance the iv.
            assert!(V3.decode(&mut good.clone(), SERVICE, Some(&mut opener)).is_ok());
        }
    }

    #[test]
    fn frames_that_are_not_allowed_end_the_link() {
        let decode = |kind, param, payload: &[u8], stage| {
            let (mut sealer, mut opener) = pair();
            let mut wire = sealed(&mut sealer, kind, param, payload);
            V3.decode(&mut wire, stage, Some(&mut opener))
        };
        for (kind, param, payload, stage) in [
            (AUTHENTICATION, 0, &b"x"[..], SERVICE),
            (AUTHENTICATION, 0, b"", LinkStage::Authentication),
            (USER_DATA, 0, b"x", LinkStage::Authentication),
            (KEEP_ALIVE, PING, b"x", LinkStage::Authentication),
            (KEEP_ALIVE, PING, b"", SERVICE),
        ] {
            assert!(decode(kind, param, payload, stage).is_err(), "{kind} {stage:?}");
        }
        let pong = decode(KEEP_ALIVE, 0, b"", SERVICE).unwrap();
        assert_eq!(pong, Some(Frame::Pong(Bytes::new())));
    }

    #[test]
    fn length_limit_counts_the_header_and_the_tag() {
        let (mut sealer, _) = pair();
        let mut encode = |length| {
            let frame = Frame::Message(Bytes::from(vec![0; length]));
            V3.encode(&frame, SERVICE, Some(&mut sealer), &mut BytesMut::new())
        };
        let longest = MAX_FRAME_LEN - HEADER_LEN - TAG_LEN;
        assert!(encode(longest).is_ok() && encode(longest + 1).is_err());
    }

    #[test]
    fn versions_before_2_6_are_refused() {
        let version = |version| V3.check_version(None, version);
        assert_eq!(version(Some(ANNOUNCED_VERSION)), Ok(ANNOUNCED_VERSION));
        assert_eq!(version(None), Err(HandshakeError::NoVersion));
        let old = version(Some(Version::new(2, 5, 9)));
        assert!(matches!(old, Err(HandshakeError::Version { .. })));
    }

    #[test]
    fn long_unknown_command_is_truncated() {
        let request = PeerRequest {
            command_name: "x".repeat(100_000),
            peer_id: -1,
            ..PeerRequest::default()
        };
        let message = RouterToRelayV3 { key_used: None, peer_request: Some(request) };
        let notices = V3.parse_notices(&message.encode_to_vec()).unwrap();
        assert!(matches!(&notices[..], [Notice::Unknown(text)] if text.len() < 100));
        assert_eq!(V3.parse_notices(&[]).unwrap(), []);
    }
}
