//! Decodes and encodes every recorded byte of the original programs.

use aspia_relay::crypto::{
    Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer, SessionKey,
};
use aspia_relay::link::dialect::{Dialect, LinkStage, Notice};
use aspia_relay::link::handshake::{Handshake, MachineInfo};
use aspia_relay::link::v2::V2;
use aspia_relay::link::v3::V3;
use aspia_relay::wire::frame::{Frame, FrameError};
use aspia_relay::wire::messages::{ClientHello, SessionChallenge, SessionResponse, Version};
use aspia_relay::wire::peer::{self, PeerSecret, PeerToRelay};
use aspia_relay::wire::v2::{
    self, MAX_FRAME_LEN, RelayToRouterV2, RouterToRelayV2, ServerHelloV2, decode_length,
    encode_length,
};
use aspia_relay::wire::v3;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::{Bytes, BytesMut};
use prost::Message;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("a hex string")).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    let list = value.as_array().expect("a list");
    assert!(!list.is_empty());
    list
}

fn crypto() -> Value {
    json(include_str!("../vectors/crypto.json"))
}

#[test]
fn key_agreement_and_derivation_match_the_recording() {
    for case in list(&crypto()["x25519"]) {
        let a = PrivateKey::from_slice(&bytes(&case["a_private"])).unwrap();
        let b = PrivateKey::from_slice(&bytes(&case["b_private"])).unwrap();
        assert_eq!(a.public().0, array(&case["a_public"]));
        assert_eq!(b.public().0, array(&case["b_public"]));
        assert_eq!(
            *a.agree(&b.public()).unwrap().derive_session_key().expose(),
            array(&case["session_key_a"])
        );
        assert_eq!(
            *b.agree(&a.public()).unwrap().derive_session_key().expose(),
            array(&case["session_key_b"])
        );
        assert_eq!(a.to_secret().unwrap().expose(), &bytes(&case["a_private"]));
    }
}

#[test]
fn low_order_keys_are_refused() {
    for case in list(&crypto()["x25519_rejected_public"]) {
        let public = PublicKey(array(&case["public"]));
        let error = PrivateKey::generate().unwrap().agree(&public).unwrap_err();
        assert_eq!(error, CryptoError::LowOrderKey);
    }
}

#[test]
fn blake2s_matches_the_recording() {
    use blake2::{Blake2s256, Digest};
    for case in list(&crypto()["blake2s256"]) {
        let length = usize::try_from(case["input_len"].as_u64().unwrap()).unwrap();
        let input = vec![bytes(&case["input_byte"])[0]; length];
        assert_eq!(Blake2s256::digest(&input).to_vec(), bytes(&case["hash"]));
    }
}

#[test]
fn ivs_are_incremented_for_each_frame() {
    for case in list(&crypto()["iv_increment"]) {
        let mut iv = Iv(array(&case["before"]));
        iv.increment();
        assert_eq!(iv, Iv(array(&case["after"])));
    }
}

#[test]
fn sealed_streams_match_the_recording() {
    for stream in list(&crypto()["streams"]) {
        let cipher = match stream["algorithm"].as_str().unwrap() {
            "ChaCha20-Poly1305" => Cipher::ChaCha20Poly1305,
            "AES-256-GCM" => Cipher::Aes256Gcm,
            other => panic!("unknown cipher {other}"),
        };
        let key = SessionKey::from_bytes(array(&stream["key"]));
        let iv = Iv(array(&stream["iv"]));
        let mut sealer = Sealer::new(cipher, &key, iv).unwrap();
        let mut opener = Opener::new(cipher, &key, iv).unwrap();
        for message in list(&stream["messages"]) {
            let length = usize::try_from(message["plaintext_len"].as_u64().unwrap()).unwrap();
            let plaintext = match &message["plaintext"] {
                Value::Null => (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect(),
                hex => bytes(hex),
            };
            assert_eq!(plaintext.len(), length);
            let wire = bytes(&message["wire"]);
            assert_eq!(sealer.seal(&plaintext).unwrap(), wire);
            let mut changed = wire.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert_eq!(opener.open(&changed), Err(CryptoError::DoesNotOpen));
            assert_eq!(opener.open(&wire).unwrap(), plaintext);
            assert_eq!(sealer.iv(), Iv(array(&message["iv_after"])));
            assert_eq!(opener.iv(), Iv(array(&message["iv_after"])));
        }
    }
}

#[test]
fn frame_lengths_match_the_recording() {
    let frames = json(include_str!("../vectors/frames.json"));
    for case in list(&frames["sizes"]) {
        let size = usize::try_from(case["size"].as_u64().unwrap()).unwrap();
        let prefix = bytes(&case["prefix"]);
        let mut written = BytesMut::new();
        encode_length(size, &mut written).unwrap();
        assert_eq!(written, prefix);
        assert_eq!(decode_length(&prefix), Some((size, prefix.len())));
        for cut in 0..prefix.len() {
            assert_eq!(decode_length(&prefix[..cut]), None);
        }
    }
    for case in list(&frames["reader_only"]) {
        let decoded = usize::try_from(case["decoded"].as_u64().unwrap()).unwrap();
        let read = usize::try_from(case["prefix_bytes_read"].as_u64().unwrap()).unwrap();
        assert_eq!(decode_length(&bytes(&case["bytes"])), Some((decoded, read)));
    }
    assert!(matches!(
        encode_length(MAX_FRAME_LEN + 1, &mut BytesMut::new()),
        Err(FrameError::TooLong { .. })
    ));
}

/// Decodes `plaintext` as `M` and checks that encoding it again gives the same bytes, so no field is unknown.
fn round_trip<M: Message + Default>(plaintext: &[u8]) -> M {
    let message = M::decode(plaintext).unwrap();
    assert_eq!(hex::encode(message.encode_to_vec()), hex::encode(plaintext));
    message
}

/// Seals and frames `plaintext`, expects the recorded bytes, and decodes them again.
fn both_ways(
    record: &Value,
    plaintext: &[u8],
    has_channel_header: bool,
    seal: Option<(&mut Sealer, &mut Opener)>,
) {
    let raw = bytes(&record["raw"]);
    let mut input = BytesMut::from(raw.as_slice());
    let Some(Frame::Message(payload)) = v2::read_frame(&mut input, has_channel_header).unwrap()
    else {
        panic!("not a message: {record}");
    };
    assert!(input.is_empty());
    let sealed = match seal {
        None => plaintext.to_vec(),
        Some((sealer, opener)) => {
            assert_eq!(sealer.iv(), Iv(array(&record["iv"])));
            assert_eq!(opener.open(&payload).unwrap(), plaintext);
            sealer.seal(plaintext).unwrap()
        }
    };
    let mut output = BytesMut::new();
    v2::write_frame(&Frame::Message(Bytes::from(sealed)), has_channel_header, &mut output).unwrap();
    assert_eq!(hex::encode(output), hex::encode(raw));
}

#[test]
fn links_of_the_v2_dialect_match_the_recording() {
    let recorded = json(include_str!("../vectors/handshake.json"));
    let mut kinds = std::collections::BTreeSet::new();
    for run in list(&recorded["runs"]) {
        let relay_iv = Iv(array(&run["relay_to_router_iv"]));
        let router_iv = Iv(array(&run["router_to_relay_iv"]));
        let router = PrivateKey::from_slice(&bytes(&run["router_private"])).unwrap();
        assert_eq!(router.public().0, array(&run["router_public"]));
        for key in list(&run["pool_keys_in_order_of_creation"]) {
            let private = PrivateKey::from_slice(&bytes(&key["private"])).unwrap();
            assert_eq!(private.public().0, array(&key["public"]));
        }

        // The relay's own steps, fed with the recorded Router.
        let messages = list(&run["messages"]);
        let plaintext =
            |name: &str| bytes(&messages.iter().find(|m| m["name"] == name).unwrap()["plaintext"]);
        let client_hello = round_trip::<ClientHello>(&plaintext("ClientHello"));
        let handshake = Handshake {
            ephemeral: PrivateKey::from_slice(&bytes(&run["relay_ephemeral_private"])).unwrap(),
            iv: relay_iv,
            has_aes: client_hello.encryption & 2 != 0,
            dialect: &V2,
        };
        assert_eq!(handshake.ephemeral.public().0, array(&run["relay_ephemeral_public"]));
        let key = handshake.ephemeral.agree(&router.public()).unwrap().derive_session_key();
        assert_eq!(*key.expose(), array(&run["session_key"]));
        let (hello, state) = handshake.start(&router.public()).unwrap();
        assert_eq!(hello, plaintext("ClientHello"));
        let (mut sealer, mut opener, state) =
            state.receive_server_hello(&plaintext("ServerHello")).unwrap();
        let cipher = match run["encryption"].as_str().unwrap() {
            "AES256_GCM" => Cipher::Aes256Gcm,
            _ => Cipher::ChaCha20Poly1305,
        };
        let sealed = |name: &str| {
            let record = messages.iter().find(|m| m["name"] == name).unwrap();
            bytes(&record["raw"])[bytes(&record["length_prefix"]).len()..].to_vec()
        };
        let response = round_trip::<SessionResponse>(&plaintext("SessionResponse"));
        let machine = MachineInfo {
            cpu_cores: response.cpu_cores,
            os_name: response.os_name,
            computer_name: response.computer_name,
            arch: response.arch,
        };
        let challenge = opener.open(&sealed("SessionChallenge")).unwrap();
        let (response, parameters) = state.receive_challenge(&challenge, &machine).unwrap();
        assert_eq!(sealer.seal(&response).unwrap(), sealed("SessionResponse"));
        assert_eq!(parameters.cipher, cipher);

        // Every message of the link, from both ends.
        let mut ends = [
            (
                Sealer::new(cipher, &key, relay_iv).unwrap(),
                Opener::new(cipher, &key, relay_iv).unwrap(),
            ),
            (
                Sealer::new(cipher, &key, router_iv).unwrap(),
                Opener::new(cipher, &key, router_iv).unwrap(),
            ),
        ];
        for record in messages {
            let has_channel_header = record["channel_id_header"] == true;
            let name = record["name"].as_str().unwrap();
            kinds.insert(name.to_owned());
            if record["service"] == true {
                let raw = bytes(&record["raw"]);
                let mut input = BytesMut::from(raw.as_slice());
                let frame = v2::read_frame(&mut input, has_channel_header).unwrap().unwrap();
                assert!(matches!(&frame, Frame::Ping(data) | Frame::Pong(data) if data.len() == 4));
                let mut output = BytesMut::new();
                v2::write_frame(&frame, has_channel_header, &mut output).unwrap();
                assert_eq!(hex::encode(output), hex::encode(raw));
                continue;
            }
            let plaintext = bytes(&record["plaintext"]);
            match name {
                "ClientHello" => drop(round_trip::<ClientHello>(&plaintext)),
                "ServerHello" => drop(round_trip::<ServerHelloV2>(&plaintext)),
                "SessionChallenge" => drop(round_trip::<SessionChallenge>(&plaintext)),
                "SessionResponse" => drop(round_trip::<SessionResponse>(&plaintext)),
                name if name.starts_with("RelayToRouter") => {
                    drop(round_trip::<RelayToRouterV2>(&plaintext));
                }
                name if name.starts_with("RouterToRelay") => {
                    round_trip::<RouterToRelayV2>(&plaintext);
                }
                other => panic!("unknown message {other}"),
            }
            let end = usize::from(record["direction"] == "router->relay");
            let (sealer, opener) = &mut ends[end];
            let seal = (record["encrypted"] == true).then_some((sealer, opener));
            both_ways(record, &plaintext, has_channel_header, seal);
        }
    }
    println!("{kinds:?}");
    assert!(kinds.len() >= 8, "{kinds:?}");
}

#[test]
fn first_messages_of_v2_peers_match_the_recording() {
    let recorded = json(include_str!("../vectors/peer.json"));
    for case in list(&recorded["cases"]) {
        let relay = PrivateKey::from_slice(&bytes(&case["relay_private"])).unwrap();
        let peer = PrivateKey::from_slice(&bytes(&case["peer_private"])).unwrap();
        assert_eq!(relay.public().0, array(&case["relay_public"]));
        assert_eq!(peer.public().0, array(&case["peer_public"]));

        // As the relay reads it.
        let raw = bytes(&case["raw"]);
        let length = peer::decode_length(raw[..4].try_into().unwrap()).unwrap();
        assert_eq!(raw.len(), 4 + length);
        let message = round_trip::<PeerToRelay>(&raw[4..]);
        assert_eq!(u64::from(message.key_id), case["key_id"].as_u64().unwrap());
        let key = relay.agree(&PublicKey::from_slice(&message.public_key).unwrap()).unwrap();
        let key = key.derive_session_key();
        assert_eq!(*key.expose(), array(&case["session_key"]));
        let iv = Iv(array(&case["iv"]));
        let opened =
            Opener::new(Cipher::ChaCha20Poly1305, &key, iv).unwrap().open(&message.data).unwrap();
        assert_eq!(opened, bytes(&case["secret_plaintext"]));
        let secret = round_trip::<PeerSecret>(&opened);
        let expected = &case["secret"];
        assert_eq!(secret.random_data, bytes(&expected["random_data"]));
        assert_eq!(secret.client_address, expected["client_address"].as_str().unwrap());
        assert_eq!(secret.client_user_name, expected["client_user_name"].as_str().unwrap());
        assert_eq!(secret.host_address, expected["host_address"].as_str().unwrap());
        assert_eq!(secret.host_id.to_string(), expected["host_id"].as_str().unwrap());

        // As the peer writes it.
        let key = peer.agree(&relay.public()).unwrap().derive_session_key();
        let data = Sealer::new(Cipher::ChaCha20Poly1305, &key, iv).unwrap().seal(&opened).unwrap();
        let message = PeerToRelay {
            key_id: message.key_id,
            public_key: peer.public().0.to_vec(),
            data,
            encryption: 0,
        };
        assert_eq!(hex::encode(peer::encode_first_message(&message).unwrap()), hex::encode(&raw));
    }
}

#[test]
fn links_of_the_v3_dialect_match_the_recording() {
    let recorded = json(include_str!("../vectors/handshake3.json"));
    let mut kinds = std::collections::BTreeSet::new();
    for run in list(&recorded["runs"]) {
        let messages = list(&run["messages"]);
        let plaintext =
            |name: &str| bytes(&messages.iter().find(|m| m["name"] == name).unwrap()["plaintext"]);
        let router = PrivateKey::from_slice(&bytes(&run["router_private"])).unwrap();
        let ephemeral = || PrivateKey::from_slice(&bytes(&run["relay_ephemeral_private"])).unwrap();
        let relay_iv = Iv(array(&run["relay_to_router_iv"]));
        let router_iv = Iv(array(&run["router_to_relay_iv"]));

        // Every step of the derivation.
        let secret = ephemeral().agree(&router.public()).unwrap();
        let digest = digest(&SHA256, &bytes(&run["x25519_secret"]));
        assert_eq!(secret.sha256(&[]).expose(), digest.as_ref());
        let (client, server) = (bytes(&run["client_hello"]), bytes(&run["server_hello"]));
        let transcript = secret.sha256(&[&client, &server]);
        assert_eq!(*transcript.expose(), array(&run["transcript_digest"]));
        for direction in ["relay_to_router", "router_to_relay"] {
            let label = run[format!("{direction}_label")].as_str().unwrap().as_bytes();
            let key = transcript.derive_with_label(label);
            assert_eq!(*key.expose(), array(&run[format!("{direction}_key")]));
        }

        // The relay's own steps, fed with the recorded Router.
        let handshake =
            Handshake { ephemeral: ephemeral(), iv: relay_iv, has_aes: false, dialect: &V3 };
        let (hello, state) = handshake.start(&router.public()).unwrap();
        assert_eq!((hex::encode(&hello), hello), (hex::encode(&client), client.clone()));
        let (relay_sealer, relay_opener, state) = state.receive_server_hello(&server).unwrap();
        let response = round_trip::<SessionResponse>(&plaintext("SessionResponse"));
        let machine = MachineInfo {
            cpu_cores: response.cpu_cores,
            os_name: response.os_name,
            computer_name: response.computer_name,
            arch: response.arch,
        };
        let (response, parameters) =
            state.receive_challenge(&plaintext("SessionChallenge"), &machine).unwrap();
        assert_eq!(response, plaintext("SessionResponse"));
        assert_eq!(parameters.router_version, Version::new(3, 0, 0));
        assert_eq!(parameters.cipher, Cipher::Aes256Gcm);

        // The other end of each direction has the same keys.
        let key = |direction: &str| SessionKey::from_bytes(array(&run[format!("{direction}_key")]));
        let aes = Cipher::Aes256Gcm;
        let router_opener = Opener::with_ratchet(aes, key("relay_to_router"), relay_iv).unwrap();
        let router_sealer = Sealer::with_ratchet(aes, key("router_to_relay"), router_iv).unwrap();
        let mut ends = [(relay_sealer, router_opener, 0), (router_sealer, relay_opener, 0)];
        for record in messages {
            let name = record["name"].as_str().unwrap();
            kinds.insert(name.split('(').next().unwrap().to_owned());
            let (raw, plaintext) = (bytes(&record["raw"]), bytes(&record["plaintext"]));
            let (sealer, opener, count) =
                &mut ends[usize::from(record["direction"] == "router->relay")];
            let sealed = record["encrypted"] == true;
            if sealed {
                let number = record["message_number"].as_u64().unwrap();
                // Messages that were not recorded count, too.
                while *count + 1 < number {
                    opener.open(&sealer.seal(b"left out").unwrap()).unwrap();
                    *count += 1;
                }
                *count = number;
                assert_eq!(sealer.iv(), Iv(array(&record["iv"])));
            }
            let stage = match record["type"].as_u64().unwrap() {
                2 => LinkStage::Authentication,
                _ => LinkStage::Service(parameters.router_version),
            };
            let mut input = BytesMut::from(raw.as_slice());
            let frame = V3.decode(&mut input, stage, sealed.then_some(opener)).unwrap().unwrap();
            assert!(input.is_empty());
            let expected = Bytes::from(plaintext.clone());
            let expected = match (record["type"].as_u64(), record["param1"].as_u64()) {
                (Some(1), Some(1)) => Frame::Ping(expected),
                (Some(1), _) => Frame::Pong(expected),
                _ => Frame::Message(expected),
            };
            assert_eq!(frame, expected, "{name}");
            let mut output = BytesMut::new();
            V3.encode(&frame, stage, sealed.then_some(sealer), &mut output).unwrap();
            assert_eq!(hex::encode(output), hex::encode(&raw), "{name}");
            match name {
                "ClientHello" => drop(round_trip::<ClientHello>(&plaintext)),
                "ServerHello" => drop(round_trip::<v3::ServerHelloV3>(&plaintext)),
                "SessionChallenge" => drop(round_trip::<SessionChallenge>(&plaintext)),
                "SessionResponse" => drop(round_trip::<SessionResponse>(&plaintext)),
                name if name.starts_with("RelayToRouter") => {
                    let message = round_trip::<v3::RelayToRouterV3>(&plaintext);
                    if let Some(pool) = message.key_pool {
                        assert!(pool.key.iter().all(|key| key.encryption == 0));
                    }
                }
                name if name.starts_with("RouterToRelay") => {
                    let message = round_trip::<v3::RouterToRelayV3>(&plaintext);
                    let notices = V3.parse_notices(&plaintext).unwrap();
                    match (message.key_used, message.peer_request) {
                        (Some(used), _) => assert_eq!(notices, [Notice::KeyUsed(used.key_id)]),
                        (None, Some(request)) => {
                            let peer = u64::try_from(request.peer_id).unwrap();
                            assert_eq!(notices, [Notice::Disconnect(peer)]);
                        }
                        (None, None) => panic!("{name}"),
                    }
                }
                name => assert!(name.starts_with("keep-alive"), "{name}"),
            }
        }
        // The ratchets that were recorded.
        for ratchet in run["ratchets"].as_array().unwrap() {
            let after = ratchet["after_message"].as_u64().unwrap();
            let old = SessionKey::from_bytes(array(&ratchet["old_key"]));
            let new = SessionKey::from_bytes(array(&ratchet["new_key"]));
            let mut sealer = Sealer::with_ratchet(aes, old, router_iv).unwrap();
            for _ in 0..after {
                sealer.seal(b"").unwrap();
            }
            let iv = sealer.iv();
            let mut opener = Opener::new(aes, &new, iv).unwrap();
            assert_eq!(opener.open(&sealer.seal(b"x").unwrap()).unwrap(), b"x");
        }
    }
    assert!(kinds.len() >= 9, "{kinds:?}");
}

#[test]
fn first_messages_of_v3_peers_match_the_recording() {
    use aspia_relay::peer::first_message;
    use aspia_relay::state::keys::{KeyId, OneTimeKey};

    let recorded = json(include_str!("../vectors/peer3.json"));
    for case in list(&recorded["cases"]) {
        let id = u32::try_from(case["key_id"].as_u64().unwrap()).unwrap();
        let relay = OneTimeKey {
            id: KeyId(id),
            private: PrivateKey::from_slice(&bytes(&case["relay_private"])).unwrap(),
            iv: Iv(array(&case["iv"])),
        };
        let peer = PrivateKey::from_slice(&bytes(&case["peer_private"])).unwrap();
        assert_eq!(relay.public().0, array(&case["relay_public"]));
        let shared = relay.private.agree(&peer.public()).unwrap();
        let digest = digest(&SHA256, &bytes(&case["shared_secret"]));
        assert_eq!(shared.sha256(&[]).expose(), digest.as_ref());

        // As the relay reads it.
        let raw = bytes(&case["raw"]);
        let length = peer::decode_length(raw[..4].try_into().unwrap()).unwrap();
        assert_eq!(raw.len(), 4 + length);
        let message = round_trip::<PeerToRelay>(&raw[4..]);
        assert_eq!(u64::from(message.encryption), case["encryption_field"].as_u64().unwrap());
        let opened = first_message::open(&message, &relay).unwrap();
        assert_eq!(*opened.session_key.expose(), array(&case["session_key"]));
        assert_eq!(*opened.secret.expose(), bytes(&case["secret_plaintext"]));
        assert_eq!(
            opened.identity.host_id.to_string(),
            case["secret"]["host_id"].as_str().unwrap()
        );

        // As the peer writes it.
        let cipher =
            if message.encryption == 2 { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        let data = Sealer::new(cipher, &opened.session_key, relay.iv).unwrap();
        let data = { data }.seal(opened.secret.expose()).unwrap();
        let written = PeerToRelay { public_key: peer.public().0.to_vec(), data, ..message };
        assert_eq!(hex::encode(peer::encode_first_message(&written).unwrap()), hex::encode(&raw));
        // And as it makes one itself.
        let own = first_message::seal(
            relay.id,
            &relay.public(),
            relay.iv,
            opened.secret.expose(),
            written.encryption,
        );
        assert_eq!(
            *first_message::open(&own.unwrap(), &relay).unwrap().secret.expose(),
            *opened.secret.expose()
        );
    }
}
