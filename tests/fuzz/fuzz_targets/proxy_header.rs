//! The PROXY header of a trusted proxy, in pieces of any size: what is read depends neither on the pieces nor on what follows.
#![no_main]

use std::io::{self, Read};
use std::net::SocketAddr;
use std::task::Poll;

use aspia_relay::peer::proxy_header::{MAX_V2, ProxyHeaderReader, ProxySource};
use aspia_relay_fuzz::choice;
use libfuzzer_sys::fuzz_target;

/// Reads a header in pieces of at most this size. Returns what it says, or nothing if it is not acceptable, and how many bytes
/// were taken. If `is_suspended`, another reader continues after each piece, as after a hand-over.
fn read(data: &[u8], piece: usize, is_suspended: bool) -> (Option<ProxySource>, usize) {
    let (mut rest, mut taken, mut blocks) = (data, 0, false);
    let mut reader = ProxyHeaderReader::default();
    loop {
        let read = reader.read(|buffer| {
            blocks = !blocks;
            if blocks {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let room = buffer.len().min(piece);
            let read = rest.read(&mut buffer[..room])?;
            taken += read;
            Ok(read)
        });
        if let Poll::Ready(source) = read {
            assert!(taken <= MAX_V2);
            return (source.ok(), taken);
        }
        assert_eq!(reader.received(), &data[..taken]);
        if is_suspended && taken > 0 {
            let mut next = ProxyHeaderReader::default();
            assert!(next.resume(reader.received()).is_pending(), "it was not complete before");
            reader = next;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let (choice, data) = choice(data);
    let (source, taken) = read(data, usize::MAX, false);
    let piece = usize::from(choice >> 1) + 1;
    let in_pieces = read(data, piece, choice & 1 != 0);
    assert_eq!(in_pieces.0, source);
    if source.is_some() {
        assert_eq!(in_pieces.1, taken);
        // What follows is left for the first message.
        assert_eq!(read(&data[..taken], piece, false), (source, taken));
    }
    if let Some(ProxySource::Peer(SocketAddr::V6(address))) = source {
        assert!(address.ip().to_ipv4_mapped().is_none());
    }
});
