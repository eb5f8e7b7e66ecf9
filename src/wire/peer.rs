//! The first message of a peer (docs/protocol.md, "A peer's first message").

/// Length of the length prefix: a `u32`, big-endian.
pub const PREFIX_LEN: usize = 4;

/// Longest first message accepted, in bytes. Real ones are well below 1 KiB; the original 3.0 relay has the same limit.
pub const MAX_FIRST_MESSAGE: usize = 16 * 1024;

/// The key id that `--probe` names. Relays count their key ids up, the original from 0, so that practically none hands it out;
/// and a message of a probe opens with no key at all.
pub const PROBE_KEY_ID: u32 = u32::MAX;

/// The message that each of the two peers sends first, once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerToRelay {
    /// The id of the one-time key that the Router gave this peer.
    #[prost(uint32, tag = "1")]
    pub key_id: u32,
    /// The peer's ephemeral public key.
    #[prost(bytes = "vec", tag = "2")]
    pub public_key: Vec<u8>,
    /// The sealed [`PeerSecret`].
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
    /// The cipher of `data`: 0 or 1 is ChaCha20-Poly1305, 2 is AES-256-GCM. Peers of version 2.x never set it.
    #[prost(uint32, tag = "4")]
    pub encryption: u32,
}

/// The secret that the Router gave both peers, the same bytes to each.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerSecret {
    /// Random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub random_data: Vec<u8>,
    /// The Client's address, as the Router saw it.
    #[prost(string, tag = "2")]
    pub client_address: String,
    /// The operator's user name.
    #[prost(string, tag = "3")]
    pub client_user_name: String,
    /// The Host's address, as the Router saw it.
    #[prost(string, tag = "4")]
    pub host_address: String,
    /// The id of the Host.
    #[prost(fixed64, tag = "5")]
    pub host_id: u64,
}

/// The error for a first message whose announced length is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a first message has 1 to {MAX_FIRST_MESSAGE} bytes, this one announces {0}")]
pub struct InvalidLength(pub u32);

/// Reads the length prefix.
///
/// # Errors
/// [`InvalidLength`] if it announces 0 or more than [`MAX_FIRST_MESSAGE`].
pub fn decode_length(prefix: [u8; PREFIX_LEN]) -> Result<usize, InvalidLength> {
    let announced = u32::from_be_bytes(prefix);
    match usize::try_from(announced) {
        Ok(length @ 1..=MAX_FIRST_MESSAGE) => Ok(length),
        _ => Err(InvalidLength(announced)),
    }
}

/// Encodes a first message, including the length prefix.
///
/// # Errors
/// [`InvalidLength`] if the message is longer than a relay accepts.
pub fn encode_first_message(message: &PeerToRelay) -> Result<Vec<u8>, InvalidLength> {
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
    fn first_message_has_1_byte_to_16_kib() {
        assert_eq!(decode_length([0, 0, 0, 0]), Err(InvalidLength(0)));
        assert_eq!(decode_length([0, 0, 0, 1]), Ok(1));
        assert_eq!(decode_length([0, 0, 0x40, 0]), Ok(MAX_FIRST_MESSAGE));
        assert_eq!(decode_length([0, 0, 0x40, 1]), Err(InvalidLength(0x4001)));
        assert_eq!(decode_length([0xff; 4]), Err(InvalidLength(u32::MAX)));
    }
}
