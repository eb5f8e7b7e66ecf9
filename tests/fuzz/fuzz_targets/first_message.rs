//! The first message of a peer, in pieces of any size; and any secret in a correctly sealed message.
#![no_main]

use std::io::{self, Read};
use std::sync::LazyLock;
use std::task::Poll;

use aspia_relay::crypto::{Iv, PrivateKey};
use aspia_relay::peer::first_message::{self, FirstMessageReader};
use aspia_relay::state::keys::{KeyId, OneTimeKey};
use aspia_relay_fuzz::choice;
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// Longest message that is read (docs/protocol.md, "A peer's first message"), with its length.
const LONGEST: usize = 16 * 1024 + 4;

static KEY: LazyLock<OneTimeKey> = LazyLock::new(|| OneTimeKey {
    id: KeyId(0),
    private: PrivateKey::from_slice(&[1; 32]).expect("it has 32 bytes"),
    iv: Iv([2; 12]),
});

fuzz_target!(|data: &[u8]| {
    let (choice, data) = choice(data);
    if choice & 1 != 0 {
        let encryption = u32::from(choice >> 1) % 3;
        let sealed = first_message::seal(KEY.id, &KEY.public(), KEY.iv, data, encryption);
        let message = sealed.expect("the key is good");
        if let Ok(opened) = first_message::open(&message, &KEY) {
            assert_eq!(opened.secret.expose(), data);
            let identity = &opened.identity;
            let texts =
                [identity.client_address(), identity.client_user_name(), identity.host_address()];
            assert!(texts.iter().all(|text| text.len() <= 256));
        }
        return;
    }
    let piece = usize::from(choice >> 1) + 1;
    let (mut rest, mut taken, mut blocks) = (data, 0, false);
    let mut reading = FirstMessageReader::default();
    loop {
        let read = reading.read(|buffer| {
            blocks = !blocks;
            if blocks {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let room = buffer.len().min(piece);
            let read = rest.read(&mut buffer[..room])?;
            taken += read;
            Ok(read)
        });
        if let Poll::Ready(message) = read {
            assert!(taken <= LONGEST);
            if let Ok(message) = message {
                assert!(message.encoded_len() <= taken);
                drop(first_message::open(&message, &KEY));
            }
            return;
        }
    }
});
