//! The authentication as a state machine: any answers of a Router, in any order. It ends with an error, or with a Router whose
//! version and cipher are supported.
#![no_main]

use std::sync::LazyLock;

use aspia_relay::crypto::{Cipher, Iv, PrivateKey};
use aspia_relay::link::handshake::{Handshake, MachineInfo};
use aspia_relay::wire::messages::Version;
use aspia_relay_fuzz::{choice, dialect, part};
use libfuzzer_sys::fuzz_target;

static ROUTER: LazyLock<PrivateKey> = LazyLock::new(|| key(1));

fn key(byte: u8) -> PrivateKey {
    PrivateKey::from_slice(&[byte; 32]).expect("it has 32 bytes")
}

fuzz_target!(|data: &[u8]| {
    let (choice, mut data) = choice(data);
    let handshake = Handshake {
        ephemeral: key(2),
        iv: Iv([3; 12]),
        has_aes: choice & 2 != 0,
        dialect: dialect(choice),
    };
    let (_, state) = handshake.start(&ROUTER.public()).expect("the key is good");
    let Ok((_, mut opener, state)) = state.receive_server_hello(part(&mut data)) else {
        return;
    };
    let challenge = part(&mut data);
    // A fuzzer cannot produce a challenge that is sealed with the right key.
    assert!(opener.open(challenge).is_err());
    let machine = MachineInfo {
        cpu_cores: 1,
        os_name: "Linux".into(),
        computer_name: "x".into(),
        arch: "x86_64".into(),
    };
    // So the input serves as the opened challenge.
    if let Ok((response, parameters)) = state.receive_challenge(challenge, &machine) {
        assert!(!response.is_empty());
        assert!(parameters.router_version >= Version::new(2, 0, 0));
        assert!(
            choice & 2 != 0 || choice & 1 != 0 || parameters.cipher == Cipher::ChaCha20Poly1305
        );
    }
});
