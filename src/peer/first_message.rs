//! Reads and opens a peer's first message (docs/protocol.md, "A peer's first message").

use std::io::{self, Read};
use std::task::Poll;

use prost::Message;
use tokio::net::TcpStream;
use zeroize::Zeroize;

use crate::crypto::{
    Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer, SessionKey, SharedSecret,
};
use crate::secret::Secret;
use crate::state::keys::{KeyId, OneTimeKey};
use crate::state::sessions::PeerIdentity;
use crate::wire::foreign::{ForeignProtocol, HEAD_LEN};
use crate::wire::peer::{self, InvalidLength, PREFIX_LEN, PeerToRelay};

/// Why a first message is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum FirstMessageError {
    /// The peer closed before its message was complete.
    #[error("closed before the first message was complete")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// The bytes belong to another protocol.
    #[error("its first bytes are {0}, not a message of a peer: {remedy}", remedy = .0.remedy_for_peers())]
    ForeignProtocol(ForeignProtocol),
    /// The length is not acceptable.
    #[error(transparent)]
    Length(#[from] InvalidLength),
    /// The bytes are not a message.
    #[error("the first message cannot be read: {0}")]
    Malformed(prost::DecodeError),
    /// It is sealed with a cipher that exists in no dialect.
    #[error(
        "the first message is sealed with cipher {0}; this relay opens 0 and 1, ChaCha20-Poly1305, and 2, AES-256-GCM"
    )]
    UnknownCipher(u32),
    /// The public key is not acceptable, or the message does not open with it.
    #[error("the first message: {0}")]
    Crypto(#[from] CryptoError),
    /// It opens, but its content is not a secret.
    #[error("the secret inside the first message cannot be read: {0}")]
    Secret(prost::DecodeError),
}

/// Reads one message and not a byte more, since what follows belongs to the session.
#[derive(Debug)]
pub struct FirstMessageReader {
    /// The length, then the message.
    bytes: Vec<u8>,
    /// How many of these bytes have been read.
    filled: usize,
    /// The prefix, once it has been read.
    prefix: Option<[u8; PREFIX_LEN]>,
}

impl Default for FirstMessageReader {
    fn default() -> Self {
        Self { bytes: vec![0; PREFIX_LEN], filled: 0, prefix: None }
    }
}

impl FirstMessageReader {
    /// Reads what is available. Pending if the message is not complete yet; call it again when there is more.
    ///
    /// # Errors
    /// The variants of [`FirstMessageError`] that concern reading.
    pub fn read(
        &mut self,
        mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Poll<Result<PeerToRelay, FirstMessageError>> {
        loop {
            while self.filled < self.bytes.len() {
                match source(&mut self.bytes[self.filled..]) {
                    Ok(0) => return Poll::Ready(Err(self.or_foreign(FirstMessageError::Closed))),
                    Ok(read) => self.filled += read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Poll::Pending;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Poll::Ready(Err(FirstMessageError::Io(error))),
                }
            }
            if self.prefix.is_some() {
                let message = PeerToRelay::decode(self.bytes.as_slice());
                return Poll::Ready(
                    message.map_err(|error| self.or_foreign(FirstMessageError::Malformed(error))),
                );
            }
            let mut prefix = [0; PREFIX_LEN];
            prefix.copy_from_slice(&self.bytes);
            (self.prefix, self.filled) = (Some(prefix), 0);
            match peer::decode_length(prefix) {
                Ok(length) => self.bytes = vec![0; length],
                Err(error) => {
                    // The next bytes, if they have arrived, tell more about the protocol, and nothing else needs them.
                    self.bytes = vec![0; HEAD_LEN - PREFIX_LEN];
                    self.filled = source(&mut self.bytes).unwrap_or(0);
                    return Poll::Ready(Err(self.or_foreign(error.into())));
                }
            }
        }
    }

    /// Continues with what another reader received, at most one message; see [`Self::read`]. Without any bytes, nothing is
    /// complete yet.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn resume(&mut self, mut received: &[u8]) -> Poll<Result<PeerToRelay, FirstMessageError>> {
        self.read(|bytes| match received.read(bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        })
    }

    /// Returns all bytes that were read, in the order in which they arrived.
    pub fn received(&self) -> Vec<u8> {
        let prefix = self.prefix.iter().flatten();
        prefix.chain(&self.bytes[..self.filled]).copied().collect()
    }

    /// Recognises another protocol in the bytes that were read so far.
    pub fn recognise_foreign(&self) -> Option<ForeignProtocol> {
        let mut head: Vec<u8> = self.prefix.iter().flatten().copied().collect();
        head.extend(self.bytes[..self.filled].iter().take(HEAD_LEN - head.len()));
        ForeignProtocol::recognise(&head)
    }

    /// Replaces `error` by the other protocol, if one is recognised, since that says more.
    fn or_foreign(&self, error: FirstMessageError) -> FirstMessageError {
        self.recognise_foreign().map_or(error, FirstMessageError::ForeignProtocol)
    }

    /// Reads until the message is complete.
    ///
    /// # Errors
    /// The variants of [`FirstMessageError`] that concern reading.
    pub async fn read_from(
        &mut self,
        stream: &TcpStream,
    ) -> Result<PeerToRelay, FirstMessageError> {
        loop {
            stream.readable().await.map_err(FirstMessageError::Io)?;
            if let Poll::Ready(message) = self.read(|bytes| stream.try_read(bytes)) {
                return message;
            }
        }
    }
}

/// Derives the cipher and the key of a first message from its field `encryption`: 0 and 1 as in the 2.x dialect, 2 as in the
/// 3.0 dialect, where the key depends on both public keys. Returns `None` for other values.
fn derive_seal(
    encryption: u32,
    secret: &SharedSecret,
    relay: &PublicKey,
    peer: &PublicKey,
) -> Option<(Cipher, SessionKey)> {
    match encryption {
        0 | 1 => Some((Cipher::ChaCha20Poly1305, secret.derive_session_key())),
        2 => Some((Cipher::Aes256Gcm, secret.sha256(&[&relay.0, &peer.0]))),
        _ => None,
    }
}

/// Creates a first message as a peer does, with an ephemeral key: the counterpart of [`open`]. `secret` is the
/// serialised secret; any `encryption` but 2 selects ChaCha20-Poly1305.
///
/// # Errors
/// [`CryptoError`] if a key cannot be generated or used.
pub fn seal(
    key: KeyId,
    public_key: &PublicKey,
    iv: Iv,
    secret: &[u8],
    encryption: u32,
) -> Result<PeerToRelay, CryptoError> {
    let ephemeral = PrivateKey::generate()?;
    let shared = ephemeral.agree(public_key)?;
    let (cipher, session_key) = derive_seal(encryption, &shared, public_key, &ephemeral.public())
        .unwrap_or_else(|| (Cipher::ChaCha20Poly1305, shared.derive_session_key()));
    Ok(PeerToRelay {
        key_id: key.0,
        public_key: ephemeral.public().0.to_vec(),
        data: Sealer::new(cipher, &session_key, iv)?.seal(secret)?,
        encryption,
    })
}

/// A first message that opened.
#[derive(Debug)]
pub struct OpenedMessage {
    /// The key under which it was sealed.
    pub session_key: SessionKey,
    /// The secret, as it was received.
    pub secret: Secret<Vec<u8>>,
    /// What the secret says about the two peers.
    pub identity: PeerIdentity,
}

/// Opens a first message with the key that it names, which costs one X25519 operation.
///
/// # Errors
/// The variants of [`FirstMessageError`] that concern opening.
pub fn open(message: &PeerToRelay, key: &OneTimeKey) -> Result<OpenedMessage, FirstMessageError> {
    if message.encryption > 2 {
        // Checked before anything is computed.
        return Err(FirstMessageError::UnknownCipher(message.encryption));
    }
    let public = PublicKey::from_slice(&message.public_key)?;
    let shared = key.private.agree(&public)?;
    let (cipher, session_key) = derive_seal(message.encryption, &shared, &key.public(), &public)
        .ok_or(FirstMessageError::UnknownCipher(message.encryption))?;
    let mut opener = Opener::new(cipher, &session_key, key.iv)?;
    let secret = Secret::new(opener.open(&message.data)?);
    let mut parsed =
        peer::PeerSecret::decode(secret.expose().as_slice()).map_err(FirstMessageError::Secret)?;
    parsed.random_data.zeroize();
    Ok(OpenedMessage { session_key, secret, identity: PeerIdentity::from(&parsed) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Iv, PrivateKey, Sealer};
    use crate::state::keys::KeyId;

    fn relay_key() -> OneTimeKey {
        OneTimeKey::generate(KeyId(1)).unwrap()
    }

    fn message(key: &OneTimeKey, peer: &PrivateKey, secret: &[u8]) -> PeerToRelay {
        let session_key = peer.agree(&key.public()).unwrap().derive_session_key();
        let data =
            Sealer::new(Cipher::ChaCha20Poly1305, &session_key, key.iv).unwrap().seal(secret);
        PeerToRelay {
            key_id: key.id.0,
            public_key: peer.public().0.to_vec(),
            data: data.unwrap(),
            encryption: 0,
        }
    }

    fn error(message: &PeerToRelay, key: &OneTimeKey) -> String {
        open(message, key).expect_err("must not open").to_string()
    }

    #[test]
    fn valid_message_opens() {
        let (key, peer) = (relay_key(), PrivateKey::generate().unwrap());
        let secret = peer::PeerSecret { client_user_name: "u".into(), ..Default::default() };
        for encryption in [0, 1] {
            let mut message = message(&key, &peer, &secret.encode_to_vec());
            message.encryption = encryption;
            let opened = open(&message, &key).unwrap();
            assert_eq!(*opened.secret.expose(), secret.encode_to_vec());
            assert_eq!(opened.identity.client_user_name(), "u");
        }
    }

    #[test]
    fn each_kind_of_invalid_message_has_an_error_of_its_own() {
        let (key, peer) = (relay_key(), PrivateKey::generate().unwrap());
        let good = message(&key, &peer, b"");
        assert!(open(&good, &key).is_ok());
        let changed = |change: fn(&mut PeerToRelay)| {
            let mut message = good.clone();
            change(&mut message);
            error(&message, &key)
        };
        assert!(changed(|m| m.encryption = 3).contains("cipher 3"));
        assert!(changed(|m| m.encryption = 2).contains("does not open"));
        assert!(changed(|m| m.public_key.truncate(31)).contains("31"));
        assert!(changed(|m| m.public_key.clear()).contains("has 32 bytes"));
        assert!(changed(|m| m.public_key = vec![0; 32]).contains("low-order"));
        assert!(changed(|m| m.public_key[0] ^= 1).contains("does not open"));
        assert!(changed(|m| m.data[0] ^= 1).contains("does not open"));
        assert!(changed(|m| m.data.push(0)).contains("does not open"));
        assert!(changed(|m| m.data.truncate(15)).contains("at least 16"));
        assert!(changed(|m| m.data.clear()).contains("at least 16"));
        assert!(error(&good, &relay_key()).contains("does not open"));
        let other_iv = OneTimeKey { iv: Iv([0; 12]), ..key };
        assert!(error(&good, &other_iv).contains("does not open"));
        let no_secret = message(&other_iv, &peer, &[0xff; 3]);
        assert!(error(&no_secret, &other_iv).contains("secret"));
    }

    #[test]
    fn other_encodings_of_a_public_key_give_the_same_session_key() {
        // A recorded message still opens after its public key has been changed in these ways. The session key does not
        // change, which is how a replay is recognised.
        let case: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/peer.json")).unwrap();
        let case = &case["cases"][0];
        let bytes = |name: &str| hex::decode(case[name].as_str().unwrap()).unwrap();
        let key = OneTimeKey {
            id: KeyId(0),
            private: PrivateKey::from_slice(&bytes("relay_private")).unwrap(),
            iv: Iv(bytes("iv").try_into().unwrap()),
        };
        let original = PeerToRelay::decode(bytes("message").as_slice()).unwrap();
        let expected = open(&original, &key).unwrap();
        let mut top_bit = original.clone();
        top_bit.public_key[31] ^= 0x80;
        // The point of order 2 added: the inverse of the coordinate modulo 2^255 - 19.
        let mut other_point = original.clone();
        other_point.public_key = hex::decode(INVERSE_OF_FIRST_PEER_PUBLIC).unwrap();
        for copy in [top_bit, other_point] {
            assert_ne!(copy.public_key, original.public_key);
            let opened = open(&copy, &key).unwrap();
            assert!(opened.session_key.is_same_as(&expected.session_key));
        }
    }

    const INVERSE_OF_FIRST_PEER_PUBLIC: &str =
        "45d8854d833a5276dd5be93f7b626b0729cf55d2c1acf8a193da645e89740c4f";

    /// Reads a message from bytes that are all available.
    fn read(wire: &mut &[u8]) -> Result<PeerToRelay, FirstMessageError> {
        match FirstMessageReader::default().read(|bytes| wire.read(bytes)) {
            Poll::Ready(message) => message,
            Poll::Pending => panic!("nothing blocks"),
        }
    }

    #[test]
    fn reads_exactly_one_message() {
        let (key, peer) = (relay_key(), PrivateKey::generate().unwrap());
        let message = message(&key, &peer, b"");
        let mut wire = peer::encode_first_message(&message).unwrap();
        let length = wire.len();
        wire.extend_from_slice(b"early data");
        let mut input = wire.as_slice();
        assert_eq!(read(&mut input).unwrap(), message);
        assert_eq!(input, b"early data");
        for cut in [0, 3, 4, length - 1] {
            let torn = read(&mut &wire[..cut]);
            assert!(matches!(torn, Err(FirstMessageError::Closed)), "{cut}");
        }
        for long in [[0, 0, 0, 0], [0, 0, 0x40, 1], [0xff; 4]] {
            let bad = read(&mut long.as_slice());
            assert!(matches!(bad, Err(FirstMessageError::Length(_))));
        }
        let garbage = read(&mut [0, 0, 0, 2, 0xff, 0xff].as_slice());
        assert!(matches!(garbage, Err(FirstMessageError::Malformed(_))));
    }

    #[test]
    fn another_protocol_is_named_with_a_remedy() {
        let cases: &[(&[u8], &str)] = &[
            (b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n", "send-proxy"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "PROXY header (version 2)"),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc", "bytes are TLS"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "AdminListen"),
            (b"SSH-2.0-x\r\n", "SSH"),
            // A plausible length: the content gives it away, or the end of the bytes.
            (b"\0\0\0\x08\xfeSMB@\0\0\0", "SMB"),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", "PostgreSQL"),
            (b"\x05\x01\0", "SOCKS"),
        ];
        for (bytes, expected) in cases {
            let error = read(&mut &bytes[..]).unwrap_err();
            assert!(matches!(error, FirstMessageError::ForeignProtocol(_)), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        // Empty lines, or nothing at all.
        let bad = read(&mut b"\r\n\r\nwhatever".as_slice());
        assert!(matches!(bad, Err(FirstMessageError::Length(_))), "{bad:?}");
        assert!(matches!(read(&mut b"".as_slice()), Err(FirstMessageError::Closed)));
    }

    #[test]
    fn message_may_arrive_byte_by_byte() {
        let (key, peer) = (relay_key(), PrivateKey::generate().unwrap());
        let message = message(&key, &peer, b"");
        let wire = peer::encode_first_message(&message).unwrap();
        let (mut reading, mut calls, mut rest) =
            (FirstMessageReader::default(), 0_usize, wire.as_slice());
        let read = loop {
            // Every other read finds nothing, and the rest one byte each.
            let mut once = |bytes: &mut [u8]| {
                calls += 1;
                if calls.is_multiple_of(2) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                rest.read(&mut bytes[..1])
            };
            let read = reading.read(&mut once);
            assert_eq!(reading.received(), wire[..wire.len() - rest.len()]);
            if let Poll::Ready(message) = read {
                break message;
            }
        };
        assert_eq!(read.unwrap(), message);
        assert!(calls >= 2 * wire.len() - 1);
    }
}
