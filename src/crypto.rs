//! The primitives of the wire protocol: X25519, BLAKE2s-256, SHA-256 and two AEAD ciphers.
//!
//! One provider, `aws-lc-rs`, does key agreement, SHA-256, AEAD, randomness and constant-time comparison; it is
//! also what TLS uses. BLAKE2s, which it lacks, comes from the `blake2` crate.
//! Source of every rule here: section 1 of the protocol notes ("Primitives"), and section 7 for SHA-256,
//! associated data and the ratchet.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use blake2::{Blake2s256, Digest};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Length of a raw X25519 key, public or private, in bytes.
pub const KEY_LEN: usize = 32;
/// Length of an initialisation vector, in bytes.
pub const IV_LEN: usize = 12;
/// Length of an authentication tag, in bytes; it precedes the ciphertext.
pub const TAG_LEN: usize = 16;
/// Messages of one direction under one key, where there is a ratchet.
pub const RATCHET_AFTER: u64 = 256;
/// What the key is hashed with to make the next one.
const RATCHET_LABEL: &[u8] = b"aspia/v1/ratchet";

/// Why a cryptographic operation did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The other side's public key is a point of low order: every private key gives the same secret.
    #[error("the public key contributes nothing to the shared secret (low-order point)")]
    LowOrderKey,
    /// A public or private key that is not 32 bytes long.
    #[error("an X25519 key has {KEY_LEN} bytes, this one has {0}")]
    KeyLength(usize),
    /// The tag does not fit the ciphertext: another key, another iv, or changed bytes.
    #[error("the sealed message does not open with this key")]
    DoesNotOpen,
    /// A sealed message that has no room for its tag.
    #[error("a sealed message has at least {TAG_LEN} bytes, this one has {0}")]
    TooShort(usize),
    /// The cryptographic provider or the system's random numbers failed.
    #[error("the cryptographic provider failed")]
    Provider,
}

/// Fills `buffer` with random bytes fit for keys.
///
/// # Errors
/// [`CryptoError::Provider`] when the system has no randomness to give.
pub fn random(buffer: &mut [u8]) -> Result<(), CryptoError> {
    aws_lc_rs::rand::fill(buffer).map_err(|_| CryptoError::Provider)
}

/// A public X25519 key, raw.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; KEY_LEN]);

impl PublicKey {
    /// Reads a raw key as it stands in a message.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] when it is not 32 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        bytes.try_into().map(Self).map_err(|_| CryptoError::KeyLength(bytes.len()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_upper(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A private X25519 key. The provider wipes its memory when it is dropped.
pub struct PrivateKey {
    key: agreement::PrivateKey,
    public: PublicKey,
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the system has no randomness to give.
    pub fn generate() -> Result<Self, CryptoError> {
        Self::wrap(agreement::PrivateKey::generate(&X25519).map_err(|_| CryptoError::Provider)?)
    }

    /// Takes a raw private key.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] when it is not 32 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        Self::wrap(
            agreement::PrivateKey::from_private_key(&X25519, bytes)
                .map_err(|_| CryptoError::KeyLength(bytes.len()))?,
        )
    }

    fn wrap(key: agreement::PrivateKey) -> Result<Self, CryptoError> {
        let public = key.compute_public_key().map_err(|_| CryptoError::Provider)?;
        let public = PublicKey::from_slice(public.as_ref())?;
        Ok(Self { key, public })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The raw private key, for a program that has to store its own (the laboratory's Router).
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the provider does not give it out.
    pub fn to_secret(&self) -> Result<Secret<Vec<u8>>, CryptoError> {
        let raw: Curve25519SeedBin<'_> =
            self.key.as_be_bytes().map_err(|_| CryptoError::Provider)?;
        Ok(Secret::new(raw.as_ref().to_vec()))
    }

    /// Agrees on a secret with the holder of `other`; costs one X25519 operation.
    ///
    /// # Errors
    /// [`CryptoError::LowOrderKey`] when `other` is a point of low order.
    pub fn agree(&self, other: &PublicKey) -> Result<SharedSecret, CryptoError> {
        agreement::agree(
            &self.key,
            UnparsedPublicKey::new(&X25519, &other.0),
            CryptoError::LowOrderKey,
            |shared| {
                let shared = <[u8; 32]>::try_from(shared).map_err(|_| CryptoError::Provider)?;
                let shared = Zeroizing::new(shared);
                Ok(SharedSecret(Secret::new(*shared)))
            },
        )
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(public {})", self.public)
    }
}

/// What X25519 gives: never a key itself, but what keys are derived from.
#[derive(Debug)]
pub struct SharedSecret(Secret<[u8; 32]>);

impl SharedSecret {
    /// BLAKE2s-256 of it: the key of a link of the 2.x dialect, and of a peer's ChaCha20-Poly1305.
    pub fn session_key(&self) -> SessionKey {
        SessionKey::blake2s(&[self.0.expose()])
    }

    /// SHA-256 of it and what follows it: transcripts of the 3.0 dialect, and a peer's AES-256-GCM.
    pub fn sha256(&self, rest: &[&[u8]]) -> SessionKey {
        SessionKey::sha256(self.0.expose(), rest)
    }

    /// The raw secret, for comparison with recorded bytes.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

/// A symmetric key, or what is as secret as one.
#[derive(Debug)]
pub struct SessionKey(Secret<[u8; 32]>);

impl SessionKey {
    fn blake2s(parts: &[&[u8]]) -> Self {
        let mut hash = Blake2s256::new();
        for part in parts {
            hash.update(part);
        }
        let digest = Zeroizing::new(<[u8; 32]>::from(hash.finalize()));
        Self(Secret::new(*digest))
    }

    fn sha256(first: &[u8], rest: &[&[u8]]) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(first);
        for part in rest {
            hash.update(part);
        }
        let mut digest = Zeroizing::new([0; 32]);
        digest.copy_from_slice(hash.finish().as_ref());
        Self(Secret::new(*digest))
    }

    /// SHA-256 of this and `label`: one key of several.
    pub fn labelled(&self, label: &[u8]) -> Self {
        Self::sha256(self.expose(), &[label])
    }

    /// The key after this one.
    fn ratcheted(&self) -> Self {
        Self::blake2s(&[self.expose(), RATCHET_LABEL])
    }

    /// Takes a raw key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }

    /// The raw key, for comparison with recorded bytes.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// Compares two keys in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.same_as(&other.0)
    }
}

/// An initialisation vector: a counter of 96 bits, big-endian, one for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iv(pub [u8; IV_LEN]);

impl Iv {
    /// Makes a random one.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the system has no randomness to give.
    pub fn random() -> Result<Self, CryptoError> {
        let mut iv = [0; IV_LEN];
        random(&mut iv)?;
        Ok(Self(iv))
    }

    /// Counts one message on, wrapping from all ones to zero.
    pub fn increment(&mut self) {
        for byte in self.0.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
}

/// The AEAD ciphers that a Router knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::Aes256Gcm => "AES-256-GCM",
        })
    }
}

/// Whether this CPU has AES instructions. Without them AES-256-GCM is slow and not constant-time.
pub fn has_hardware_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// One direction of a sealed channel: a key and a counting iv.
struct Direction {
    cipher: Cipher,
    key: LessSafeKey,
    iv: Iv,
    /// Messages so far.
    count: u64,
    /// The key itself, where another follows it.
    ratchet: Option<SessionKey>,
}

impl Direction {
    fn new(cipher: Cipher, key: &SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        Ok(Self { cipher, key: Self::schedule(cipher, key)?, iv, count: 0, ratchet: None })
    }

    fn ratcheting(cipher: Cipher, key: SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        let direction = Self::new(cipher, &key, iv)?;
        Ok(Self { ratchet: Some(key), ..direction })
    }

    fn schedule(cipher: Cipher, key: &SessionKey) -> Result<LessSafeKey, CryptoError> {
        let algorithm = match cipher {
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Cipher::Aes256Gcm => &AES_256_GCM,
        };
        let key = UnboundKey::new(algorithm, key.expose()).map_err(|_| CryptoError::Provider)?;
        Ok(LessSafeKey::new(key))
    }

    fn nonce(&self) -> Nonce {
        Nonce::assume_unique_for_key(self.iv.0)
    }

    /// Goes on to the next message, and to the next key where it is time. The iv counts on all the same.
    fn advance(&mut self) -> Result<(), CryptoError> {
        self.iv.increment();
        self.count += 1;
        if let Some(key) = &mut self.ratchet
            && self.count.is_multiple_of(RATCHET_AFTER)
        {
            *key = key.ratcheted();
            self.key = Self::schedule(self.cipher, key)?;
        }
        Ok(())
    }
}

/// Seals the messages of one direction, in order.
pub struct Sealer(Direction);

impl Sealer {
    /// Starts a direction at `iv` whose key stays.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the provider refuses the key.
    pub fn new(cipher: Cipher, key: &SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        Direction::new(cipher, key, iv).map(Self)
    }

    /// Starts a direction at `iv` whose key changes after every [`RATCHET_AFTER`] messages.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the provider refuses the key.
    pub fn ratcheting(cipher: Cipher, key: SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        Direction::ratcheting(cipher, key, iv).map(Self)
    }

    /// Seals the next message: `tag ‖ ciphertext`.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the message is longer than the cipher allows.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.seal_with(&[], plaintext)
    }

    /// Seals the next message and vouches for `associated` with it.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_with(
        &mut self,
        associated: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let mut sealed = Vec::with_capacity(TAG_LEN + plaintext.len());
        sealed.resize(TAG_LEN, 0);
        sealed.extend_from_slice(plaintext);
        let (tag_place, text) = sealed.split_at_mut(TAG_LEN);
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(self.0.nonce(), Aad::from(associated), text)
            .map_err(|_| CryptoError::Provider)?;
        tag_place.copy_from_slice(tag.as_ref());
        self.0.advance()?;
        Ok(sealed)
    }

    /// The iv of the next message.
    pub fn iv(&self) -> Iv {
        self.0.iv
    }
}

/// Opens the messages of one direction, in order.
pub struct Opener(Direction);

impl Opener {
    /// Starts a direction at `iv` whose key stays.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the provider refuses the key.
    pub fn new(cipher: Cipher, key: &SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        Direction::new(cipher, key, iv).map(Self)
    }

    /// Starts a direction at `iv` whose key changes after every [`RATCHET_AFTER`] messages.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the provider refuses the key.
    pub fn ratcheting(cipher: Cipher, key: SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        Direction::ratcheting(cipher, key, iv).map(Self)
    }

    /// Opens the next message, `tag ‖ ciphertext`. The iv counts on only when it opens.
    ///
    /// # Errors
    /// [`CryptoError::TooShort`] without room for a tag, [`CryptoError::DoesNotOpen`] otherwise.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.open_with(&[], sealed)
    }

    /// Opens the next message where `associated` is what was vouched for with it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(&mut self, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let (tag, text) =
            sealed.split_at_checked(TAG_LEN).ok_or(CryptoError::TooShort(sealed.len()))?;
        let mut plaintext = vec![0; text.len()];
        self.0
            .key
            .open_separate_gather(self.0.nonce(), Aad::from(associated), text, tag, &mut plaintext)
            .map_err(|_| CryptoError::DoesNotOpen)?;
        self.0.advance()?;
        Ok(plaintext)
    }

    /// Number of messages that opened.
    pub fn opened(&self) -> u64 {
        self.0.count
    }

    /// The iv of the next message.
    pub fn iv(&self) -> Iv {
        self.0.iv
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer([redacted])")
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener([redacted])")
    }
}
