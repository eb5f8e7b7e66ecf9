//! The first message of a peer (section 5 of the protocol notes).

/// Length of the prefix of the first message: a `u32`, big-endian.
pub const PREFIX_LEN: usize = 4;

/// Longest first message taken, in bytes. A real one is well below 1 KiB; the 3.0 relay takes as much.
pub const MAX_FIRST_MESSAGE: usize = 16 * 1024;

/// What each of the two peers sends first, once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerToRelay {
    /// The relay key that the Router gave to this peer.
    #[prost(uint32, tag = "1")]
    pub key_id: u32,
    /// The peer's ephemeral public key.
    #[prost(bytes = "vec", tag = "2")]
    pub public_key: Vec<u8>,
    /// The sealed [`Secret`].
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
    /// Cipher of `data`: 0 or 1 is ChaCha20-Poly1305, 2 is AES-256-GCM. Peers of the 2.x dialect never set it.
    #[prost(uint32, tag = "4")]
    pub encryption: u32,
}

/// What the Router gave to both peers, the same bytes to each.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Secret {
    /// Random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub random_data: Vec<u8>,
    /// The operator's address, as the Router saw it.
    #[prost(string, tag = "2")]
    pub client_address: String,
    /// The operator's name.
    #[prost(string, tag = "3")]
    pub client_user_name: String,
    /// The remote machine's address, as the Router saw it.
    #[prost(string, tag = "4")]
    pub host_address: String,
    /// The remote machine's number.
    #[prost(fixed64, tag = "5")]
    pub host_id: u64,
}

/// Why the length of a first message is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a first message has 1 to {MAX_FIRST_MESSAGE} bytes, this one announces {0}")]
pub struct BadLength(pub u32);

/// Reads the length prefix.
///
/// # Errors
/// [`BadLength`] for 0 and for more than [`MAX_FIRST_MESSAGE`].
pub fn decode_length(prefix: [u8; PREFIX_LEN]) -> Result<usize, BadLength> {
    let announced = u32::from_be_bytes(prefix);
    match usize::try_from(announced) {
        Ok(length @ 1..=MAX_FIRST_MESSAGE) => Ok(length),
        _ => Err(BadLength(announced)),
    }
}

/// A first message as it goes over the wire, prefix and all.
///
/// # Errors
/// [`BadLength`] when the message is longer than any relay takes.
pub fn encode(message: &PeerToRelay) -> Result<Vec<u8>, BadLength> {
    use prost::Message;

    let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
    decode_length(length.to_be_bytes())?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&message.encode_to_vec());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_bounds() {
        assert_eq!(decode_length([0, 0, 0, 0]), Err(BadLength(0)));
        assert_eq!(decode_length([0, 0, 0, 1]), Ok(1));
        assert_eq!(decode_length([0, 0, 0x40, 0]), Ok(MAX_FIRST_MESSAGE));
        assert_eq!(decode_length([0, 0, 0x40, 1]), Err(BadLength(0x4001)));
        assert_eq!(decode_length([0xff; 4]), Err(BadLength(u32::MAX)));
    }
}
