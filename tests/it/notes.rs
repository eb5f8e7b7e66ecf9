//! Notes that this version and earlier ones have written, which every later version must understand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aspia_relay::forward::balance::Balances;
use aspia_relay::handover::entry_key::EntryKey;
use aspia_relay::handover::notes::NoteError;
use aspia_relay::handover::notes::clock::NoteClock;
use aspia_relay::handover::notes::session::SessionNote;
use aspia_relay::state::sessions::{PeerIdentity, SessionId, SessionRecord};
use tokio::time::Instant;

/// The time of the machine at which the notes were written.
const WRITTEN_AT: Duration = Duration::from_secs(1_000_000);

fn clock() -> NoteClock {
    NoteClock::at(WRITTEN_AT, Instant::now())
}

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/handover").join(name)
}

/// A running session: what the relay notes when it begins.
fn running() -> SessionNote {
    SessionNote {
        record: SessionRecord {
            id: SessionId(0x0123_4567_89AB_CDEF),
            age: Duration::from_millis(10),
            idle: Duration::ZERO,
            bytes: [0, 0],
            identity: PeerIdentity::new("192.0.2.1", "Alice Ångström", "198.51.100.2", 123_456_789),
            addresses: [([192, 0, 2, 1], 50_000).into(), ([198, 51, 100, 2], 443).into()],
        },
        balances: Balances {
            constants: [311, 290],
            consumed: [311, 290],
            written: [0, 0],
            was_closed: [false, false],
            bytes: [0, 0],
        },
        in_flight: [Vec::new(), Vec::new()],
        is_final: false,
        traceparent: None,
    }
}

/// A session that was handed over, with bytes in flight, a connection that is over, and a trace.
fn handed_over() -> SessionNote {
    SessionNote {
        record: SessionRecord {
            id: SessionId(0),
            age: Duration::from_secs(100_000),
            idle: Duration::from_millis(1500),
            bytes: [u64::from(u32::MAX) + 9, 0],
            identity: PeerIdentity::default(),
            addresses: [
                "[2001:db8::1]:8070".parse().unwrap(),
                "[fe80::2%3]:65535".parse().unwrap(),
            ],
        },
        balances: Balances {
            constants: [-7, i64::MAX],
            consumed: [u64::MAX, 5],
            written: [0, u64::MAX],
            was_closed: [true, false],
            bytes: [u64::from(u32::MAX) + 9, 0],
        },
        in_flight: [b"from the first".to_vec(), b"second".to_vec()],
        is_final: true,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    }
}

/// A session with so many bytes in flight that they are in a piece of their own.
fn handed_over_in_pieces() -> SessionNote {
    SessionNote { in_flight: [vec![1; 50_000], vec![2; 7]], is_final: true, ..running() }
}

#[test]
fn recorded_notes_of_sessions_are_understood() {
    for (name, expected) in [
        ("session-running", running()),
        ("session-handed-over", handed_over()),
        ("session-in-pieces", handed_over_in_pieces()),
    ] {
        let note = std::fs::read(recorded(&format!("{name}.note"))).unwrap();
        let piece = std::fs::read(recorded(&format!("{name}.piece-0"))).unwrap_or_default();
        let find = |number| (number == 0).then_some(piece.as_slice());
        assert_eq!(SessionNote::decode(&note, clock(), find).unwrap(), expected, "{name}");
    }
}

#[test]
fn pieces_of_another_note_are_not_taken() {
    let note = handed_over_in_pieces();
    let entries = note.encode(clock());
    let other = note.encode(NoteClock::at(WRITTEN_AT + Duration::from_nanos(1), Instant::now()));
    let (_, last) = entries.last().unwrap();
    let decode = |piece: Option<&[u8]>| {
        SessionNote::decode(last.expose(), clock(), |_| piece).unwrap().in_flight
    };
    assert!(decode(Some(entries[0].1.expose())) == note.in_flight);
    let nothing: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
    assert!(decode(None) == nothing);
    assert!(decode(Some(other[0].1.expose())) == nothing);
    assert!(decode(Some(b"no piece")) == nothing);
}

#[test]
fn bytes_in_flight_of_any_length_fit_into_entries() {
    for [first, second] in [[0, 48 * 1024], [48 * 1024, 1], [1, 1024 * 1024], [1024 * 1024; 2]] {
        let mut note = handed_over_in_pieces();
        note.in_flight = [vec![1; first], vec![2; second]];
        let mut entries = note.encode(clock());
        assert!(entries.iter().all(|(_, bytes)| bytes.expose().len() <= 64 * 1024));
        let (key, last) = entries.pop().unwrap();
        assert_eq!(key, EntryKey::Session(note.record.id));
        for (number, (key, _)) in (0..).zip(&entries) {
            assert_eq!(*key, EntryKey::SessionBytes(note.record.id, number));
        }
        let find = |number: u16| Some(entries.get(usize::from(number))?.1.expose().as_slice());
        assert!(SessionNote::decode(last.expose(), clock(), find).unwrap() == note);
    }
}

#[test]
fn note_tells_how_many_bytes_came_from_each_peer() {
    let mut note = running();
    (note.record.bytes, note.balances.bytes) = ([5, 7], [5, 7]);
    let encoded = note.encode(clock()).pop().unwrap().1;
    assert_eq!(SessionNote::decode(encoded.expose(), clock(), |_| None), Ok(note));
}

#[test]
fn note_of_a_running_session_is_small() {
    let entries = running().encode(clock());
    assert!(entries[0].1.expose().len() < 160, "{} bytes", entries[0].1.expose().len());
}

#[test]
fn what_a_note_lacks_is_named() {
    let note = running().encode(clock()).pop().unwrap().1;
    let decode = |bytes: &[u8]| SessionNote::decode(bytes, clock(), |_| None);
    // Only the version.
    assert_eq!(decode(&note.expose()[..1]), Err(NoteError::Field("identity")));
    assert_eq!(decode(&[]), Err(NoteError::Malformed("it is empty".into())));
    let mut later = note.expose().clone();
    later[0] += 1;
    assert!(matches!(decode(&later), Err(NoteError::Version(_))));
    // A field that a later version adds.
    let mut longer = note.expose().clone();
    longer.extend([0xF8, 0x07, 1]);
    assert_eq!(decode(&longer), Ok(running()));
    // The last of two values counts. Such numbers would overflow sums.
    for (tag, name) in [(1, "number of the session"), (4, "number of bytes")] {
        let mut implausible = note.expose().clone();
        implausible.push(tag << 3);
        implausible.extend([[0xFF; 9].as_slice(), &[1]].concat());
        assert_eq!(decode(&implausible), Err(NoteError::Field(name)));
    }
    for length in 1..note.expose().len() {
        assert!(decode(&note.expose()[..length]) != Ok(running()), "{length} bytes");
    }
}
