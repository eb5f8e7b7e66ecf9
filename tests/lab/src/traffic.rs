//! Verifiable data: a pseudo-random stream from a seed, and its hash.

use std::io;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes generated, sent or read at a time.
const CHUNK: usize = 64 * 1024;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// An endless stream of bytes from a seed.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Fills `buffer` with the next bytes. All lengths except the last must be multiples of 8.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            // SplitMix64 by Sebastiano Vigna, public domain.
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            word.copy_from_slice(&mixed.to_le_bytes()[..word.len()]);
        }
    }

    /// The first `length` bytes of the stream of `seed`.
    pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Self::new(seed).fill(&mut bytes);
        bytes
    }
}

fn finish(context: Context) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The hash of some bytes.
pub fn hash_of(bytes: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    finish(context)
}

/// The hash of the first `length` bytes of the stream of `seed`.
pub fn hash(seed: u64, length: u64) -> Hash {
    let (mut stream, mut context, mut left) = (Stream::new(seed), Context::new(&SHA256), length);
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.fill(&mut buffer[..now]);
        context.update(&buffer[..now]);
        left -= now as u64;
    }
    finish(context)
}

/// Sends the first `length` bytes of the stream of `seed`.
///
/// # Errors
/// The socket's error.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), seed: u64, length: u64) -> io::Result<()> {
    let (mut stream, mut left) = (Stream::new(seed), length);
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.fill(&mut buffer[..now]);
        to.write_all(&buffer[..now]).await?;
        left -= now as u64;
    }
    to.flush().await
}

/// Reads `length` bytes, or to the end without a length. Returns their number and hash.
///
/// # Errors
/// The socket's error.
pub async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    length: Option<u64>,
) -> io::Result<(u64, Hash)> {
    let (mut context, mut total) = (Context::new(&SHA256), 0);
    let mut buffer = vec![0; CHUNK];
    while length.is_none_or(|length| total < length) {
        let left = length.map_or(CHUNK as u64, |length| length - total);
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let read = from.read(&mut buffer[..now]).await?;
        if read == 0 {
            break;
        }
        context.update(&buffer[..read]);
        total += read as u64;
    }
    Ok((total, finish(context)))
}

/// Reads the first `length` bytes of the stream of `seed`, verifies them as they arrive and reports every piece to
/// `progress`. Returns their hash.
///
/// # Errors
/// The socket's error, or which byte is missing or differs.
pub async fn verify(
    from: &mut (impl AsyncRead + Unpin),
    seed: u64,
    length: u64,
    mut progress: impl FnMut(usize),
) -> io::Result<Hash> {
    let (mut stream, mut context) = (Stream::new(seed), Context::new(&SHA256));
    let (mut expected, mut buffer) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut total, mut place) = (0, CHUNK);
    while total < length {
        if place == CHUNK {
            stream.fill(&mut expected);
            place = 0;
        }
        let left = usize::try_from(length - total).unwrap_or(CHUNK);
        let wanted = left.min(CHUNK - place);
        let read = from.read(&mut buffer[..wanted]).await?;
        if read == 0 {
            let text = format!("the connection ended after {total} of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let expected = &expected[place..place + read];
        if let Some(at) = (0..read).find(|&at| buffer[at] != expected[at]) {
            let text = format!("byte {} is not as it was sent", total + at as u64);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        context.update(&buffer[..read]);
        total += read as u64;
        place += read;
        progress(read);
    }
    Ok(finish(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_does_not_depend_on_piece_sizes() {
        let whole = Stream::bytes(5, 4096);
        let mut stream = Stream::new(5);
        let mut parts = vec![0; 4096];
        for part in parts.chunks_mut(64) {
            stream.fill(part);
        }
        assert_eq!(whole, parts);
        assert_ne!(whole, Stream::bytes(6, 4096));
    }

    #[tokio::test]
    async fn sent_bytes_have_the_expected_hash() {
        let (mut a, mut b) = tokio::io::duplex(1000);
        let length = 200_001;
        let (sent, received) = tokio::join!(send(&mut a, 9, length), receive(&mut b, Some(length)));
        sent.unwrap();
        assert_eq!(received.unwrap(), (length, hash(9, length)));
    }

    #[tokio::test]
    async fn changed_bytes_are_detected() {
        let good = Stream::bytes(4, 100_000);
        assert_eq!(
            verify(&mut good.as_slice(), 4, 100_000, |_| {}).await.unwrap(),
            hash(4, 100_000)
        );
        let mut changed = good.clone();
        changed[70_001] ^= 1;
        let error = verify(&mut changed.as_slice(), 4, 100_000, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("byte 70001"), "{error}");
        let error = verify(&mut &good[..99_999], 4, 100_000, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("after 99999 of 100000"), "{error}");
    }
}
