//! Whatever bytes come on the Router link, in whatever pieces: frames or an error, and never more than came.
#![no_main]

use aspia_relay::wire::frame::{Frame, FrameCodec};
use aspia_relay::wire::third;
use aspia_relay_fuzz::choice;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::Decoder;

fuzz_target!(|data: &[u8]| {
    let (choice, data) = choice(data);
    // 1: the dialect; 2: the channel header, or the stage; the rest: how large the pieces are.
    let piece = usize::from(choice >> 2) + 1;
    let (mut input, mut given) = (BytesMut::new(), 0);
    let mut codec = FrameCodec::new();
    if choice & 2 != 0 {
        codec.enable_channel_header();
    }
    'all: for piece in data.chunks(piece) {
        input.extend_from_slice(piece);
        loop {
            if choice & 1 == 0 {
                match codec.decode(&mut input) {
                    Ok(Some(Frame::Message(data) | Frame::Ping(data) | Frame::Pong(data))) => {
                        given += data.len();
                    }
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            } else {
                match third::read(&mut input, choice & 2 != 0) {
                    Ok(Some(frame)) => given += third::HEADER + frame.payload.len(),
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
        }
    }
    assert!(given <= data.len());
});
