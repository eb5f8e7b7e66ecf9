//! What the targets share: how an input is cut into parts.

use aspia_relay::link::dialect::Dialect;
use aspia_relay::link::second::SECOND;
use aspia_relay::link::third::THIRD;

/// The first byte of an input, by which a target chooses, and the rest.
pub fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// A dialect.
pub fn dialect(choice: u8) -> &'static dyn Dialect {
    if choice & 1 == 0 { &SECOND } else { &THIRD }
}

/// The next part of an input: two bytes of length, then as many bytes as there are of it.
pub fn part<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, rest)) = data.split_first_chunk() else {
        return std::mem::take(data);
    };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (part, rest) = rest.split_at(length);
    *data = rest;
    part
}
