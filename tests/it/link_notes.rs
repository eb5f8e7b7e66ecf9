//! Notes of the Router link and of one-time keys that this version and earlier ones have written, which every later version
//! must understand. The keys in them were made only for these notes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::crypto::snapshot::CipherSnapshot;
use aspia_relay::crypto::{Cipher, Iv, SessionKey};
use aspia_relay::handover::entry_key::EntryKey;
use aspia_relay::handover::notes::clock::NoteClock;
use aspia_relay::handover::notes::keys::{
    decode_handed_out_key, decode_offered_keys, encode_handed_out_key, encode_offered_keys,
};
use aspia_relay::handover::notes::link::{decode_link, encode_link};
use aspia_relay::link::keepalive::KeepAliveSnapshot;
use aspia_relay::link::snapshot::LinkSnapshot;
use aspia_relay::secret::Secret;
use aspia_relay::state::keys::snapshot::HandedOutSnapshot;
use aspia_relay::state::keys::{KeyId, OneTimeKey};
use aspia_relay::wire::messages::Version;
use tokio::time::Instant;

/// The time of the machine at which the notes were written.
const WRITTEN_AT: Duration = Duration::from_secs(1_000_000);

fn clock() -> NoteClock {
    NoteClock::at(WRITTEN_AT, Instant::now())
}

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/handover").join(name)
}

fn key(id: u32) -> Arc<OneTimeKey> {
    let private = [id.to_be_bytes()[3] + 1; 32];
    Arc::new(OneTimeKey::from_raw(KeyId(id), &private, Iv([id.to_be_bytes()[3]; 12])).unwrap())
}

fn link(clock: NoteClock) -> LinkSnapshot {
    let cipher = |key, cipher, has_ratchet| CipherSnapshot {
        cipher,
        key: SessionKey::from_bytes([key; 32]),
        iv: Iv([key; 12]),
        count: 300,
        has_ratchet,
    };
    LinkSnapshot {
        dialect: "3.0".into(),
        router_version: Version { revision: 9, ..Version::new(3, 0, 1) },
        sealer: cipher(1, Cipher::Aes256Gcm, true),
        opener: cipher(2, Cipher::ChaCha20Poly1305, false),
        received: b"the beginning of a frame".to_vec(),
        unsent: vec![5; 40_000],
        keep_alive: KeepAliveSnapshot {
            counter: 7,
            next_check: clock.instant() + Duration::from_secs(12),
            has_received: true,
            in_flight: Some(([0, 0, 0, 6], clock.instant())),
        },
        authenticated: clock.instant(),
        is_confirmed: true,
        settings: [0xAB; 32],
    }
}

fn handed_out() -> (HandedOutSnapshot, [SessionKey; 2]) {
    let snapshot = HandedOutSnapshot { key: key(3), remaining: Duration::from_millis(21_500) };
    (snapshot, [8, 9].map(|byte| SessionKey::from_bytes([byte; 32])))
}

/// The notes as this version writes them, by the names of their files.
fn written(clock: NoteClock) -> Vec<(&'static str, Secret<Vec<u8>>)> {
    let mut link = encode_link(&link(clock), clock);
    assert_eq!(link.len(), 2);
    let (link_key, link_note) = link.pop().unwrap();
    let (piece_key, piece) = link.pop().unwrap();
    assert_eq!((link_key, piece_key), (EntryKey::RouterLink, EntryKey::RouterLinkBytes(0)));
    let mut offered = encode_offered_keys(&[key(1), key(2)], clock).unwrap();
    let (snapshot, seen) = handed_out();
    vec![
        ("link.note", link_note),
        ("link.piece-0", piece),
        ("offered-keys.note", offered.remove(0).1),
        ("handed-out-key.note", encode_handed_out_key(&snapshot, &seen, clock).unwrap()),
    ]
}

fn assert_same_key(one: &OneTimeKey, other: &OneTimeKey) {
    assert_eq!((one.id, one.public(), one.iv), (other.id, other.public(), other.iv));
}

#[test]
fn recorded_note_of_a_link_is_understood() {
    let clock = clock();
    let read = |name| std::fs::read(recorded(name)).unwrap();
    let (note, piece) = (read("link.note"), read("link.piece-0"));
    let decoded = decode_link(&note, clock, |_| Some(piece.as_slice())).unwrap();
    let (after, before) = (decoded.snapshot, link(clock));
    assert_eq!((after.dialect, after.router_version), (before.dialect, before.router_version));
    assert_eq!((after.received, after.unsent), (before.received, before.unsent));
    assert_eq!((after.keep_alive, after.authenticated), (before.keep_alive, before.authenticated));
    assert_eq!((after.is_confirmed, after.settings), (before.is_confirmed, before.settings));
    for (after, before) in [(after.sealer, before.sealer), (after.opener, before.opener)] {
        assert!(after.key.is_same_as(&before.key));
        assert_eq!((after.cipher, after.iv), (before.cipher, before.iv));
        assert_eq!((after.count, after.has_ratchet), (before.count, before.has_ratchet));
    }
    let offered = decode_offered_keys(&read("offered-keys.note"), decoded.written).unwrap();
    assert_eq!(offered.len(), 2);
    for (decoded, id) in offered.iter().zip(1..) {
        assert_same_key(decoded, &key(id));
    }
}

#[test]
fn recorded_note_of_a_handed_out_key_is_understood() {
    let note = std::fs::read(recorded("handed-out-key.note")).unwrap();
    let decoded = decode_handed_out_key(&note, clock()).unwrap();
    let (snapshot, seen) = handed_out();
    assert_same_key(&decoded.key.key, &snapshot.key);
    assert_eq!(decoded.key.remaining, snapshot.remaining);
    assert_eq!(decoded.seen.len(), seen.len());
    assert!(decoded.seen.iter().zip(&seen).all(|(after, before)| after.is_same_as(before)));
}

/// If this fails because a field was added, record the notes of the new version beside those of the earlier ones.
#[test]
fn notes_are_written_as_recorded() {
    for (name, note) in written(clock()) {
        let path = recorded(name);
        if std::env::var_os("ASPIA_RELAY_TEST_RECORD_NOTES").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, note.expose()).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == *note.expose(), "{name}");
    }
}
