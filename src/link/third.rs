//! The dialect of Routers 3.x (section 7 of the protocol notes).
//!
//! A key of its own for each direction, from everything that was said in the clear, and a new one after every 256
//! messages; keep-alives are sealed, too, and headers vouched for; at most 1 000 keys may be on offer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::crypto::{Cipher, CryptoError, Opener, Sealer, TAG_LEN};
use crate::wire::frame::FrameError;
use crate::wire::router::{
    ENCRYPTION_AES256_GCM, KEY_TYPE_X25519, PEER_STATUS_ACTIVE, RelayKey, RelayKeyPool, Version,
};
use crate::wire::third::{
    self, AUTHENTICATION, COMMAND_DISCONNECT, HEADER, KEEP_ALIVE, MAX_FRAME, PING, Peer,
    RelayStatistics, RelayToRouter, RouterToRelay, ServerHello, USER_DATA,
};

use super::dialect::{
    Dialect, Frame, FramingError, HandshakeError, Hellos, KeyPool, Notice, PeerFacts, Pings,
    ServerFacts, Stage, fitting, server_iv, signed,
};

/// The dialect of Routers 3.x.
pub static THIRD: Third = Third;

/// The version that this dialect announces, whatever the program's own version is.
const ANNOUNCED: Version = Version::new(3, 0, 0);
/// The oldest version that a Router of this dialect may name.
const OLDEST_VERSION: Version = Version::new(2, 6, 0);
/// What tells the key of what the relay sends from the other one.
const TO_ROUTER: &[u8] = b"aspia/v1/c2s";
/// What tells the key of what the Router sends from the other one.
const FROM_ROUTER: &[u8] = b"aspia/v1/s2c";

/// Characters of an unknown command that are shown.
const MAX_COMMAND: usize = 64;

/// See [`THIRD`].
#[derive(Debug)]
pub struct Third;

impl Dialect for Third {
    fn name(&self) -> &'static str {
        "3.0"
    }

    fn generation(&self) -> u8 {
        3
    }

    fn version(&self) -> Version {
        ANNOUNCED
    }

    fn key_remedy(&self, _names_version: bool) -> &'static str {
        "copy the content of relay.pub from the Router's machine to RouterPublicKey (host.pub, beside it, is another key); \
         a Router that was migrated from 2.x has neither, and keeps the key of its router.pub"
    }

    fn authentication_time(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn max_on_offer(&self) -> usize {
        1000
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }

    fn keep_alive(&self) -> Pings {
        Pings::WhenIdle(Duration::from_secs(30))
    }

    fn ciphers(&self, _aes: bool) -> u32 {
        ENCRYPTION_AES256_GCM
    }

    fn server_hello(&self, bytes: &[u8]) -> Result<ServerFacts, HandshakeError> {
        let hello = ServerHello::decode(bytes)
            .map_err(|error| HandshakeError::NotServerHello(error.to_string()))?;
        if hello.public_key.is_some() {
            return Err(HandshakeError::Malformed {
                message: "ServerHello",
                reason: "it has a public key, which is for others than relays".into(),
            });
        }
        Ok(ServerFacts { encryption: hello.encryption, iv: server_iv(&hello.iv)?, version: None })
    }

    fn seals(&self, cipher: Cipher, hellos: &Hellos<'_>) -> Result<(Sealer, Opener), CryptoError> {
        let transcript = hellos.secret.sha256(&[hellos.client, hellos.server]);
        let (to, from) = (transcript.labelled(TO_ROUTER), transcript.labelled(FROM_ROUTER));
        Ok((
            Sealer::ratcheting(cipher, to, hellos.client_iv)?,
            Opener::ratcheting(cipher, from, hellos.server_iv)?,
        ))
    }

    fn router_version(
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
        stage: Stage,
        mut opener: Option<&mut Opener>,
    ) -> Result<Option<Frame>, FramingError> {
        let early = stage == Stage::Authentication;
        while let Some(frame) = third::read(input, early)? {
            let payload: Bytes = match &mut opener {
                // Whatever it is: everything that is sealed counts.
                Some(opener) => opener.open_with(&frame.header, &frame.payload)?.into(),
                None => frame.payload.clone(),
            };
            return Ok(Some(match frame.kind() {
                AUTHENTICATION if !early => {
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
        stage: Stage,
        sealer: Option<&mut Sealer>,
        output: &mut BytesMut,
    ) -> Result<(), FramingError> {
        let (kind, param, payload) = match frame {
            Frame::Message(message) if stage == Stage::Authentication => {
                (AUTHENTICATION, 0, message)
            }
            Frame::Message(message) => (USER_DATA, 0, message),
            Frame::Ping(data) => (KEEP_ALIVE, PING, data),
            Frame::Pong(data) => (KEEP_ALIVE, 0, data),
        };
        let tag = if sealer.is_some() { TAG_LEN } else { 0 };
        let header: [u8; HEADER] = third::header(kind, param, tag + payload.len())?;
        match sealer {
            None => third::write(header, payload, output),
            Some(sealer) => third::write(header, &sealer.seal_with(&header, payload)?, output),
        }
        Ok(())
    }

    fn key_pool(&self, pool: &KeyPool<'_>) -> Vec<u8> {
        let keys = pool.keys.iter().map(|key| RelayKey {
            key_id: key.id,
            r#type: KEY_TYPE_X25519,
            // The Router picks a cipher for each connection.
            encryption: 0,
            public_key: key.public.0.to_vec(),
            iv: key.iv.0.to_vec(),
        });
        let pool = RelayKeyPool {
            peer_host: pool.host.to_owned(),
            peer_port: u32::from(pool.port),
            key: keys.collect(),
        };
        RelayToRouter { key_pool: Some(pool), statistics: None }.encode_to_vec()
    }

    fn statistics(&self, peers: &[PeerFacts<'_>], uptime: u64, room: usize) -> (Vec<u8>, usize) {
        let entries = peers.iter().map(|peer| Peer {
            peer_id: signed(peer.id),
            status: PEER_STATUS_ACTIVE,
            client_address: peer.client_address.to_owned(),
            client_user_name: peer.client_user_name.to_owned(),
            host_address: peer.host_address.to_owned(),
            host_id: peer.host_id,
            bytes_transferred: signed(peer.bytes),
            duration: signed(peer.duration),
            idle_time: signed(peer.idle),
        });
        let peer = fitting(entries, room);
        let listed = peer.len();
        let statistics = RelayStatistics { peer, uptime: signed(uptime) };
        let message = RelayToRouter { key_pool: None, statistics: Some(statistics) };
        (message.encode_to_vec(), listed)
    }

    fn notices(&self, message: &[u8]) -> Result<Vec<Notice>, prost::DecodeError> {
        let message = RouterToRelay::decode(message)?;
        let used = message.key_used.map(|used| Notice::KeyUsed(used.key_id));
        let request = message.peer_request.map(|request| {
            match (request.command_name.as_str(), u64::try_from(request.peer_id)) {
                (COMMAND_DISCONNECT, Ok(peer)) => Notice::Disconnect(peer),
                (command, _) => {
                    // It goes to the log, and may be as long as a frame.
                    let command: String = command.chars().take(MAX_COMMAND).collect();
                    Notice::Unknown(format!("{command:?} for {}", request.peer_id))
                }
            }
        });
        Ok(used.into_iter().chain(request).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Iv, SessionKey};
    use bytes::BufMut;

    const SERVICE: Stage = Stage::Service(ANNOUNCED);

    fn pair() -> (Sealer, Opener) {
        let key = || SessionKey::from_bytes([7; 32]);
        let (cipher, iv) = (Cipher::Aes256Gcm, Iv([9; 12]));
        (
            Sealer::ratcheting(cipher, key(), iv).unwrap(),
            Opener::ratcheting(cipher, key(), iv).unwrap(),
        )
    }

    fn sealed(sealer: &mut Sealer, kind: u8, param: u8, payload: &[u8]) -> BytesMut {
        let header = third::header(kind, param, TAG_LEN + payload.len()).unwrap();
        let mut wire = BytesMut::new();
        third::write(header, &sealer.seal_with(&header, payload).unwrap(), &mut wire);
        wire
    }

    #[test]
    fn what_is_ignored_counts_all_the_same() {
        let (mut sealer, mut opener) = pair();
        // A whole ratchet of frames of a type that does not exist, and empty ones between.
        let mut wire = BytesMut::new();
        for _ in 0..300 {
            wire.extend_from_slice(&sealed(&mut sealer, 77, 1, b"x"));
            wire.put_slice(&[USER_DATA, 0, 0, 0, 0, 0, 0, 0]);
        }
        wire.extend_from_slice(&sealed(&mut sealer, USER_DATA, 5, b"message"));
        let frame = THIRD.decode(&mut wire, SERVICE, Some(&mut opener)).unwrap();
        assert_eq!(frame, Some(Frame::Message(Bytes::from_static(b"message"))));
        assert_eq!(opener.opened(), 301);
    }

    #[test]
    fn a_changed_header_does_not_open() {
        for (place, value) in [(0, KEEP_ALIVE), (1, 1), (2, 1), (3, 1)] {
            let (mut sealer, mut opener) = pair();
            let good = sealed(&mut sealer, USER_DATA, 0, b"message");
            let mut wire = good.clone();
            wire[place] = value;
            let error = THIRD.decode(&mut wire, SERVICE, Some(&mut opener)).unwrap_err();
            assert!(matches!(error, FramingError::Sealed(CryptoError::DoesNotOpen)));
            // What did not open does not count.
            assert!(THIRD.decode(&mut good.clone(), SERVICE, Some(&mut opener)).is_ok());
        }
    }

    #[test]
    fn frames_that_have_no_place_end_the_link() {
        let decode = |kind, param, payload: &[u8], stage| {
            let (mut sealer, mut opener) = pair();
            let mut wire = sealed(&mut sealer, kind, param, payload);
            THIRD.decode(&mut wire, stage, Some(&mut opener))
        };
        for (kind, param, payload, stage) in [
            (AUTHENTICATION, 0, &b"x"[..], SERVICE),
            (AUTHENTICATION, 0, b"", Stage::Authentication),
            (USER_DATA, 0, b"x", Stage::Authentication),
            (KEEP_ALIVE, PING, b"x", Stage::Authentication),
            (KEEP_ALIVE, PING, b"", SERVICE),
        ] {
            assert!(decode(kind, param, payload, stage).is_err(), "{kind} {stage:?}");
        }
        let pong = decode(KEEP_ALIVE, 0, b"", SERVICE).unwrap();
        assert_eq!(pong, Some(Frame::Pong(Bytes::new())));
    }

    #[test]
    fn the_longest_frame_counts_its_header_and_its_tag() {
        let (mut sealer, _) = pair();
        let mut encode = |length| {
            let frame = Frame::Message(Bytes::from(vec![0; length]));
            THIRD.encode(&frame, SERVICE, Some(&mut sealer), &mut BytesMut::new())
        };
        let longest = MAX_FRAME - HEADER - TAG_LEN;
        assert!(encode(longest).is_ok() && encode(longest + 1).is_err());
    }

    #[test]
    fn versions_follow_the_rules() {
        let version = |version| THIRD.router_version(None, version);
        assert_eq!(version(Some(ANNOUNCED)), Ok(ANNOUNCED));
        assert_eq!(version(None), Err(HandshakeError::NoVersion));
        let old = version(Some(Version::new(2, 5, 9)));
        assert!(matches!(old, Err(HandshakeError::Version { .. })));
    }

    #[test]
    fn unknown_requests_are_named_in_a_few_words() {
        let request = third::PeerRequest {
            command_name: "x".repeat(100_000),
            peer_id: -1,
            ..third::PeerRequest::default()
        };
        let message = RouterToRelay { key_used: None, peer_request: Some(request) };
        let notices = THIRD.notices(&message.encode_to_vec()).unwrap();
        assert!(matches!(&notices[..], [Notice::Unknown(text)] if text.len() < 100));
        assert_eq!(THIRD.notices(&[]).unwrap(), []);
    }
}
