//! Parts of messages that both dialects encode and decode in the same way.

use prost::Message;

use crate::crypto::Iv;
use crate::wire::messages::{KEY_TYPE_X25519, RelayKey, RelayKeyPool, RelayKeyUsed};

use super::dialect::{HandshakeError, KeyPool, Notice};

/// The most bytes that the tag and the length of an entry add to the message that lists it.
const ENTRY_OVERHEAD: usize = 1 + 4;

/// Decodes a `ServerHello` of either dialect.
pub(super) fn decode_server_hello<M: Message + Default>(bytes: &[u8]) -> Result<M, HandshakeError> {
    M::decode(bytes).map_err(|error| HandshakeError::NotServerHello(error.to_string()))
}

/// Reads the iv of a `ServerHello`.
pub(super) fn parse_server_iv(bytes: &[u8]) -> Result<Iv, HandshakeError> {
    bytes.try_into().map(Iv).map_err(|_| HandshakeError::Malformed {
        message: "ServerHello",
        reason: format!("an iv of {} bytes instead of 12", bytes.len()),
    })
}

/// Builds the key pool message, which both dialects send. `encryption` is the value of `RelayKey.encryption`.
pub(super) fn build_key_pool(pool: &KeyPool<'_>, encryption: i32) -> RelayKeyPool {
    let keys = pool.keys.iter().map(|key| RelayKey {
        key_id: key.id,
        r#type: KEY_TYPE_X25519,
        encryption,
        public_key: key.public.0.to_vec(),
        iv: key.iv.0.to_vec(),
    });
    RelayKeyPool {
        peer_host: pool.host.to_owned(),
        peer_port: u32::from(pool.port),
        key: keys.collect(),
    }
}

/// Takes as many of `entries` as fit in `available` bytes of a message that lists them.
pub(super) fn take_fitting<M: Message>(
    entries: impl Iterator<Item = M>,
    mut available: usize,
) -> Vec<M> {
    let fits = move |entry: &M| {
        let rest = available.checked_sub(entry.encoded_len() + ENTRY_OVERHEAD);
        available = rest.unwrap_or(0);
        rest.is_some()
    };
    entries.take_while(fits).collect()
}

/// Converts a number to the type of the signed fields of the statistics. A number that is too large becomes the maximum.
pub(super) fn to_signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Collects the notices of one message: the two fields that both dialects have.
pub(super) fn collect_notices(
    key_used: Option<RelayKeyUsed>,
    request: Option<Notice>,
) -> Vec<Notice> {
    let key_used = key_used.map(|used| Notice::KeyUsed(used.key_id));
    key_used.into_iter().chain(request).collect()
}
