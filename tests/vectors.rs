//! Every recorded byte of the original programs, in both directions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use aspia_relay::crypto::{
    Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer, SessionKey,
};
use aspia_relay::link::handshake::{Handshake, MachineInfo};
use aspia_relay::link::second::SECOND;
use aspia_relay::wire::frame::{
    Frame, FrameCodec, FrameError, MAX_FRAME, decode_length, encode_length,
};
use aspia_relay::wire::peer::{self, PeerToRelay, Secret};
use aspia_relay::wire::router::{
    ClientHello, RelayToRouter, RouterToRelay, ServerHello, SessionChallenge, SessionResponse,
};
use bytes::{Bytes, BytesMut};
use prost::Message;
use serde_json::Value;
use tokio_util::codec::{Decoder, Encoder};

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
    json(include_str!("vectors/crypto.json"))
}

#[test]
fn key_agreement_and_derivation() {
    for case in list(&crypto()["x25519"]) {
        let a = PrivateKey::from_slice(&bytes(&case["a_private"])).unwrap();
        let b = PrivateKey::from_slice(&bytes(&case["b_private"])).unwrap();
        assert_eq!(a.public().0, array(&case["a_public"]));
        assert_eq!(b.public().0, array(&case["b_public"]));
        assert_eq!(
            *a.agree(&b.public()).unwrap().session_key().expose(),
            array(&case["session_key_a"])
        );
        assert_eq!(
            *b.agree(&a.public()).unwrap().session_key().expose(),
            array(&case["session_key_b"])
        );
        assert_eq!(a.to_secret().unwrap().expose(), &bytes(&case["a_private"]));
    }
}

#[test]
fn keys_that_contribute_nothing_are_refused() {
    for case in list(&crypto()["x25519_rejected_public"]) {
        let public = PublicKey(array(&case["public"]));
        let error = PrivateKey::generate().unwrap().agree(&public).unwrap_err();
        assert_eq!(error, CryptoError::LowOrderKey);
    }
}

#[test]
fn blake2s() {
    use blake2::{Blake2s256, Digest};
    for case in list(&crypto()["blake2s256"]) {
        let length = usize::try_from(case["input_len"].as_u64().unwrap()).unwrap();
        let input = vec![bytes(&case["input_byte"])[0]; length];
        assert_eq!(Blake2s256::digest(&input).to_vec(), bytes(&case["hash"]));
    }
}

#[test]
fn ivs_count_on() {
    for case in list(&crypto()["iv_increment"]) {
        let mut iv = Iv(array(&case["before"]));
        iv.increment();
        assert_eq!(iv, Iv(array(&case["after"])));
    }
}

#[test]
fn sealed_streams() {
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
fn lengths_of_frames() {
    let frames = json(include_str!("vectors/frames.json"));
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
        encode_length(MAX_FRAME + 1, &mut BytesMut::new()),
        Err(FrameError::TooLong { .. })
    ));
}

/// Decodes `plaintext` as `M` and encodes it again: the same bytes, and nothing unknown in them.
fn round_trip<M: Message + Default>(plaintext: &[u8]) -> M {
    let message = M::decode(plaintext).unwrap();
    assert_eq!(hex::encode(message.encode_to_vec()), hex::encode(plaintext));
    message
}

/// Seals and frames `plaintext` and expects the recorded bytes; takes them apart again.
fn both_ways(
    record: &Value,
    plaintext: &[u8],
    codec: &mut FrameCodec,
    seal: Option<(&mut Sealer, &mut Opener)>,
) {
    let raw = bytes(&record["raw"]);
    let mut input = BytesMut::from(raw.as_slice());
    let Some(Frame::Message(payload)) = codec.decode(&mut input).unwrap() else {
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
    codec.encode(Frame::Message(Bytes::from(sealed)), &mut output).unwrap();
    assert_eq!(hex::encode(output), hex::encode(raw));
}

#[test]
fn whole_links() {
    let recorded = json(include_str!("vectors/handshake.json"));
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
            offer_aes: client_hello.encryption & 2 != 0,
            dialect: &SECOND,
        };
        assert_eq!(handshake.ephemeral.public().0, array(&run["relay_ephemeral_public"]));
        let key = handshake.ephemeral.agree(&router.public()).unwrap().session_key();
        assert_eq!(*key.expose(), array(&run["session_key"]));
        let (hello, wait) = handshake.start(&router.public()).unwrap();
        assert_eq!(hello, plaintext("ClientHello"));
        let (mut sealer, mut opener, wait) = wait.server_hello(&plaintext("ServerHello")).unwrap();
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
        let (response, established) = wait.challenge(&challenge, &machine).unwrap();
        assert_eq!(sealer.seal(&response).unwrap(), sealed("SessionResponse"));
        assert_eq!(established.cipher, cipher);

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
            let mut codec = FrameCodec::new();
            if record["channel_id_header"] == true {
                codec.enable_channel_header();
            }
            let name = record["name"].as_str().unwrap();
            kinds.insert(name.to_owned());
            if record["service"] == true {
                let raw = bytes(&record["raw"]);
                let frame = codec.decode(&mut BytesMut::from(raw.as_slice())).unwrap().unwrap();
                assert!(matches!(&frame, Frame::Ping(data) | Frame::Pong(data) if data.len() == 4));
                let mut output = BytesMut::new();
                codec.encode(frame, &mut output).unwrap();
                assert_eq!(hex::encode(output), hex::encode(raw));
                continue;
            }
            let plaintext = bytes(&record["plaintext"]);
            match name {
                "ClientHello" => drop(round_trip::<ClientHello>(&plaintext)),
                "ServerHello" => drop(round_trip::<ServerHello>(&plaintext)),
                "SessionChallenge" => drop(round_trip::<SessionChallenge>(&plaintext)),
                "SessionResponse" => drop(round_trip::<SessionResponse>(&plaintext)),
                name if name.starts_with("RelayToRouter") => {
                    drop(round_trip::<RelayToRouter>(&plaintext));
                }
                name if name.starts_with("RouterToRelay") => {
                    round_trip::<RouterToRelay>(&plaintext);
                }
                other => panic!("unknown message {other}"),
            }
            let end = usize::from(record["direction"] == "router->relay");
            let (sealer, opener) = &mut ends[end];
            let seal = (record["encrypted"] == true).then_some((sealer, opener));
            both_ways(record, &plaintext, &mut codec, seal);
        }
    }
    println!("{kinds:?}");
    assert!(kinds.len() >= 8, "{kinds:?}");
}

#[test]
fn first_messages_of_peers() {
    let recorded = json(include_str!("vectors/peer.json"));
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
        let key = key.session_key();
        assert_eq!(*key.expose(), array(&case["session_key"]));
        let iv = Iv(array(&case["iv"]));
        let opened =
            Opener::new(Cipher::ChaCha20Poly1305, &key, iv).unwrap().open(&message.data).unwrap();
        assert_eq!(opened, bytes(&case["secret_plaintext"]));
        let secret = round_trip::<Secret>(&opened);
        let expected = &case["secret"];
        assert_eq!(secret.random_data, bytes(&expected["random_data"]));
        assert_eq!(secret.client_address, expected["client_address"].as_str().unwrap());
        assert_eq!(secret.client_user_name, expected["client_user_name"].as_str().unwrap());
        assert_eq!(secret.host_address, expected["host_address"].as_str().unwrap());
        assert_eq!(secret.host_id.to_string(), expected["host_id"].as_str().unwrap());

        // As the peer writes it.
        let key = peer.agree(&relay.public()).unwrap().session_key();
        let data = Sealer::new(Cipher::ChaCha20Poly1305, &key, iv).unwrap().seal(&opened).unwrap();
        let message = PeerToRelay {
            key_id: message.key_id,
            public_key: peer.public().0.to_vec(),
            data,
            encryption: 0,
        };
        assert_eq!(hex::encode(peer::encode(&message).unwrap()), hex::encode(&raw));
    }
}
