//! Streams of bytes that are verified by position. Sending and comparing them costs a copy and a `memcmp`, so that the
//! laboratory keeps up with many sessions even in a debug build.

use std::sync::LazyLock;

use crate::traffic::Stream;

/// Maximum number of bytes that [`Pattern::at`] returns at once.
pub(super) const CHUNK: usize = 64 * 1024;
/// Length after which a stream repeats: a prime, so that no plausible number of lost bytes goes unnoticed.
const PERIOD: usize = 1_048_573;
/// Distance between the beginnings of neighbouring streams.
const SPREAD: u64 = 611_953;
/// Bytes by which a stream is recognised at another position.
const RECOGNISED: usize = 16;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Stream::bytes(20, PERIOD);
    bytes.extend_from_within(..CHUNK);
    bytes
});

/// An endless stream of bytes, different for each number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern {
    begin: u64,
}

impl Pattern {
    pub(super) fn new(number: u64) -> Self {
        Self { begin: number.wrapping_mul(SPREAD) % PERIOD as u64 }
    }

    fn offset(self, position: u64) -> usize {
        usize::try_from((self.begin + position % PERIOD as u64) % PERIOD as u64).unwrap_or(0)
    }

    /// The bytes from `position` on, at most [`CHUNK`].
    pub(super) fn at(self, position: u64, length: usize) -> &'static [u8] {
        let offset = self.offset(position);
        &BYTES[offset..offset + length.min(CHUNK)]
    }

    /// Checks bytes that arrived at `position`.
    ///
    /// # Errors
    /// Which byte differs, and where in the stream the bytes belong.
    pub(super) fn check(self, position: u64, bytes: &[u8]) -> Result<(), String> {
        let mut done = 0;
        for piece in bytes.chunks(CHUNK) {
            let expected = self.at(position + done, piece.len());
            if piece != expected {
                let same = piece.iter().zip(expected).take_while(|(a, b)| a == b).count();
                let at = position + done + same as u64;
                let place = self.place(at, &piece[same..]);
                return Err(format!("byte {at} is not the one that was sent: {place}"));
            }
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Describes from where in the stream the bytes at `position` are.
    fn place(self, position: u64, bytes: &[u8]) -> String {
        let Some(begin) = bytes.get(..RECOGNISED) else {
            return "too few bytes to tell where they belong".to_owned();
        };
        let Some(found) = BYTES[..PERIOD].windows(RECOGNISED).position(|bytes| bytes == begin)
        else {
            return "these bytes are of no stream".to_owned();
        };
        let ahead = (found + PERIOD - self.offset(position)) % PERIOD;
        if ahead <= PERIOD / 2 {
            format!("{ahead} bytes are missing, or these are of another session")
        } else {
            format!("{} bytes are repeated, or these are of another session", PERIOD - ahead)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_repeated_and_changed_bytes_are_told_apart() {
        let pattern = Pattern::new(7);
        let far = 3 * PERIOD as u64 - 100;
        let good = pattern.at(far, 1000).to_vec();
        pattern.check(far, &good).unwrap();
        pattern.check(far + 10, &good[10..]).unwrap();
        let lost = pattern.check(far, &good[30..]).unwrap_err();
        assert!(lost.contains(": 30 bytes are missing"), "{lost}");
        let repeated = pattern.check(far + 30, &good).unwrap_err();
        assert!(repeated.contains(": 30 bytes are repeated"), "{repeated}");
        let mut changed = good;
        changed[500] ^= 1;
        let changed = pattern.check(far, &changed).unwrap_err();
        assert!(changed.starts_with(&format!("byte {} ", far + 500)), "{changed}");
        assert!(changed.ends_with("of no stream"), "{changed}");
        assert_ne!(Pattern::new(8).at(0, 100), pattern.at(0, 100));
    }
}
