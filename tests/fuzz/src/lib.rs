//! Shared by the targets: splits an input into parts.

use aspia_relay::link::dialect::Dialect;
use aspia_relay::link::v2::V2;
use aspia_relay::link::v3::V3;

/// Splits off the first byte of an input, which selects a variant, and returns it with the rest.
pub fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// The dialect that a choice selects.
pub fn dialect(choice: u8) -> &'static dyn Dialect {
    if choice & 1 == 0 { &V2 } else { &V3 }
}

/// Splits off the next part of an input: a length of two bytes, and that many bytes or as many as remain.
pub fn part<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, rest)) = data.split_first_chunk() else {
        return std::mem::take(data);
    };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (part, rest) = rest.split_at(length);
    *data = rest;
    part
}
