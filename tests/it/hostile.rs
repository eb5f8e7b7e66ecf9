//! Almost valid input: nothing panics, and nothing opens that should not.

use std::io::Read;
use std::task::Poll;

use aspia_relay::config::sources::Sources;
use aspia_relay::config::{self};
use aspia_relay::crypto::{Iv, PrivateKey};
use aspia_relay::link::handshake::{Handshake, MachineInfo};
use aspia_relay::link::v2::V2;
use aspia_relay::peer::first_message::{self, FirstMessageReader};
use aspia_relay::state::keys::{KeyId, OneTimeKey};
use aspia_relay::wire::frame::Frame;
use aspia_relay::wire::{v2, v3};
use bytes::BytesMut;
use proptest::prelude::*;
use prost::Message;
use serde_json::Value;

fn recorded(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// A change of valid bytes on their way.
#[derive(Debug, Clone)]
enum Change {
    Flip { at: usize, bits: u8 },
    Cut { at: usize },
    Insert { at: usize, byte: u8 },
    Remove { at: usize },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), 1u8..).prop_map(|(at, bits)| Change::Flip { at, bits }),
        any::<usize>().prop_map(|at| Change::Cut { at }),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Insert { at, byte }),
        any::<usize>().prop_map(|at| Change::Remove { at }),
    ]
}

fn apply(bytes: &mut Vec<u8>, changes: &[Change]) {
    for change in changes {
        let place = |at: usize| at % bytes.len().max(1);
        match *change {
            _ if bytes.is_empty() => {}
            Change::Flip { at, bits } => {
                let at = place(at);
                bytes[at] ^= bits;
            }
            Change::Cut { at } => bytes.truncate(place(at)),
            Change::Insert { at, byte } => bytes.insert(place(at), byte),
            Change::Remove { at } => drop(bytes.remove(place(at))),
        }
    }
}

proptest! {
    /// A whole recorded link, changed somewhere: the decoder reaches the end without a panic, and never returns more
    /// bytes than it received.
    #[test]
    fn changed_v2_frames_never_yield_more_than_was_received(run in 0usize..2, has_channel_header in any::<bool>(), changes in prop::collection::vec(change(), 0..6)) {
        let recorded = recorded(include_str!("../vectors/handshake.json"));
        let messages = recorded["runs"][run]["messages"].as_array().unwrap();
        let mut wire: Vec<u8> = messages.iter().flat_map(|m| bytes(&m["raw"])).collect();
        apply(&mut wire, &changes);
        let (mut input, mut given) = (BytesMut::from(wire.as_slice()), 0);
        while let Ok(Some(frame)) = v2::read_frame(&mut input, has_channel_header) {
            let (Frame::Message(data) | Frame::Ping(data) | Frame::Pong(data)) = frame;
            given += data.len();
        }
        prop_assert!(given <= wire.len());
    }

    /// The same for the 3.0 dialect, before and after authentication.
    #[test]
    fn changed_v3_frames_never_yield_more_than_was_received(run in 0usize..2, is_early in any::<bool>(), changes in prop::collection::vec(change(), 0..6)) {
        let recorded = recorded(include_str!("../vectors/handshake3.json"));
        let messages = recorded["runs"][run]["messages"].as_array().unwrap();
        let mut wire: Vec<u8> = messages.iter().flat_map(|m| bytes(&m["raw"])).collect();
        apply(&mut wire, &changes);
        let (mut input, mut given) = (BytesMut::from(wire.as_slice()), 0);
        while let Ok(Some(frame)) = v3::read_frame(&mut input, is_early) {
            given += v3::HEADER_LEN + frame.payload.len();
        }
        prop_assert!(given <= wire.len());
    }

    /// However the Router's side of a recorded handshake is changed, the relay accepts only the recorded challenge.
    #[test]
    fn changed_challenges_are_never_accepted(
        run in 0usize..2,
        hello_changes in prop::collection::vec(change(), 0..4),
        challenge_changes in prop::collection::vec(change(), 0..4),
    ) {
        let recorded = recorded(include_str!("../vectors/handshake.json"));
        let run = &recorded["runs"][run];
        let find = |name: &str| {
            let messages = run["messages"].as_array().unwrap();
            messages.iter().find(|m| m["name"] == name).unwrap().clone()
        };
        let router = PrivateKey::from_slice(&bytes(&run["router_private"])).unwrap();
        let handshake = Handshake {
            ephemeral: PrivateKey::from_slice(&bytes(&run["relay_ephemeral_private"])).unwrap(),
            iv: Iv(bytes(&run["relay_to_router_iv"]).try_into().unwrap()),
            has_aes: true,
            dialect: &V2,
        };
        let (_, wait) = handshake.start(&router.public()).unwrap();
        let good_hello = bytes(&find("ServerHello")["plaintext"]);
        let record = find("SessionChallenge");
        let good_challenge = bytes(&record["raw"])[bytes(&record["length_prefix"]).len()..].to_vec();
        let (mut hello, mut challenge) = (good_hello, good_challenge.clone());
        apply(&mut hello, &hello_changes);
        apply(&mut challenge, &challenge_changes);
        let machine = MachineInfo {
            cpu_cores: 1,
            os_name: "Linux".into(),
            computer_name: "x".into(),
            arch: "x86_64".into(),
        };
        if let Ok((_, mut opener, wait)) = wait.receive_server_hello(&hello) {
            let convinced = opener
                .open(&challenge)
                .is_ok_and(|opened| wait.receive_challenge(&opened, &machine).is_ok());
            prop_assert!(!convinced || challenge == good_challenge);
        }
    }

    /// A changed first message opens only if its sealed content is unchanged.
    #[test]
    fn first_messages_open_only_with_unchanged_content(case in 0usize..4, changes in prop::collection::vec(change(), 0..4)) {
        let recorded = recorded(include_str!("../vectors/peer.json"));
        let case = &recorded["cases"][case];
        let key = OneTimeKey {
            id: KeyId(0),
            private: PrivateKey::from_slice(&bytes(&case["relay_private"])).unwrap(),
            iv: Iv(bytes(&case["iv"]).try_into().unwrap()),
        };
        let mut wire = bytes(&case["raw"]);
        apply(&mut wire, &changes);
        let mut rest = wire.as_slice();
        let read = FirstMessageReader::default().read(|bytes| rest.read(bytes));
        if let Poll::Ready(Ok(message)) = read {
            prop_assert!(message.encoded_len() <= wire.len());
            if let Ok(opened) = first_message::open(&message, &key) {
                prop_assert_eq!(opened.secret.expose(), &bytes(&case["secret_plaintext"]));
            }
        }
    }

    /// Any file yields either a configuration or problems, and never a panic.
    #[test]
    fn any_file_yields_a_configuration_or_problems(
        content in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "\\{(\"(RouterAddress|PeerPort|_x|Zz)\": ?(\"[^\"\\\\]{0,9}\"|-?[0-9]{1,9}|null|true),? ?){0,5}\\}"
                .prop_map(String::into_bytes),
        ],
        variable in "[A-Z_]{0,20}",
        value in "\\PC{0,40}",
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.json");
        std::fs::write(&path, content).unwrap();
        let environment = vec![(format!("ASPIA_RELAY_{variable}"), value)];
        let result = config::load(&Sources { path, is_path_explicit: true, environment });
        match result {
            Ok(loaded) => prop_assert!(loaded.report.problems.is_empty()),
            Err(invalid) => prop_assert!(!invalid.0.problems.is_empty()),
        }
    }
}
