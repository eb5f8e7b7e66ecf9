//! Any bytes on the Router link, in pieces of any size, yield frames or an error, and never more bytes than were received.
#![no_main]

use aspia_relay::wire::frame::Frame;
use aspia_relay::wire::{v2, v3};
use aspia_relay_fuzz::choice;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (choice, data) = choice(data);
    // Bit 0 selects the dialect, bit 1 the channel header or the stage, and the rest the size of the pieces.
    let piece = usize::from(choice >> 2) + 1;
    let (mut input, mut given) = (BytesMut::new(), 0);
    'all: for piece in data.chunks(piece) {
        input.extend_from_slice(piece);
        loop {
            if choice & 1 == 0 {
                match v2::read_frame(&mut input, choice & 2 != 0) {
                    Ok(Some(Frame::Message(data) | Frame::Ping(data) | Frame::Pong(data))) => {
                        given += data.len();
                    }
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            } else {
                match v3::read_frame(&mut input, choice & 2 != 0) {
                    Ok(Some(frame)) => given += v3::HEADER_LEN + frame.payload.len(),
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
        }
    }
    assert!(given <= data.len());
});
