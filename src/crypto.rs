//! The primitives of the wire protocol: X25519, BLAKE2s-256, SHA-256 and two AEAD ciphers.
//!
//! `aws-lc-rs` provides key agreement, SHA-256, AEAD, random numbers and constant-time comparison; TLS uses it too. It has
//! no BLAKE2s, which comes from the `blake2` crate.
//!
//! The rules are those of docs/protocol.md, "Primitives" and, for SHA-256, associated data and the ratchet, "Sealing in
//! the 3.0 dialect".

pub mod snapshot;

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
/// Length of an authentication tag, in bytes. The tag precedes the ciphertext.
pub const TAG_LEN: usize = 16;
/// Number of messages in one direction after which a ratchet replaces the key.
pub const RATCHET_AFTER: u64 = 256;
/// The label with which a key is hashed to derive the next one.
const RATCHET_LABEL: &[u8] = b"aspia/v1/ratchet";

/// Why a cryptographic operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The other side's public key is a point of low order, with which every private key yields the same secret.
    #[error("the public key contributes nothing to the shared secret (low-order point)")]
    LowOrderKey,
    /// A public or private key does not have 32 bytes.
    #[error("an X25519 key has {KEY_LEN} bytes, this one has {0}")]
    KeyLength(usize),
    /// The tag does not match the ciphertext: another key, another iv, or changed bytes.
    #[error("the sealed message does not open with this key")]
    DoesNotOpen,
    /// A sealed message is shorter than its tag.
    #[error("a sealed message has at least {TAG_LEN} bytes, this one has {0}")]
    TooShort(usize),
    /// The cryptographic provider or the system's random number generator failed.
    #[error("the cryptographic provider failed")]
    Provider,
}

/// Fills `buffer` with cryptographically secure random bytes.
///
/// # Errors
/// [`CryptoError::Provider`] if the system cannot provide random numbers.
pub fn fill_random(buffer: &mut [u8]) -> Result<(), CryptoError> {
    aws_lc_rs::rand::fill(buffer).map_err(|_| CryptoError::Provider)
}

/// Hashes bytes with SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    *SessionKey::sha256(bytes, &[]).expose()
}

/// A raw X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; KEY_LEN]);

impl PublicKey {
    /// Creates a key from its 32 raw bytes.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] if it does not have 32 bytes.
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

/// An X25519 private key. The provider wipes its memory when it is dropped.
pub struct PrivateKey {
    key: agreement::PrivateKey,
    public: PublicKey,
}

impl PrivateKey {
    /// Generates a key.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the system cannot provide random numbers.
    pub fn generate() -> Result<Self, CryptoError> {
        Self::with_public_key(
            agreement::PrivateKey::generate(&X25519).map_err(|_| CryptoError::Provider)?,
        )
    }

    /// Creates a private key from its 32 raw bytes.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] if it does not have 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        Self::with_public_key(
            agreement::PrivateKey::from_private_key(&X25519, bytes)
                .map_err(|_| CryptoError::KeyLength(bytes.len()))?,
        )
    }

    fn with_public_key(key: agreement::PrivateKey) -> Result<Self, CryptoError> {
        let public = key.compute_public_key().map_err(|_| CryptoError::Provider)?;
        let public = PublicKey::from_slice(public.as_ref())?;
        Ok(Self { key, public })
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Returns the raw private key, for programs that store their own key (the laboratory's Router).
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider does not export it.
    pub fn to_secret(&self) -> Result<Secret<Vec<u8>>, CryptoError> {
        let raw: Curve25519SeedBin<'_> =
            self.key.as_be_bytes().map_err(|_| CryptoError::Provider)?;
        Ok(Secret::new(raw.as_ref().to_vec()))
    }

    /// Agrees on a secret with the holder of `other`. Costs one X25519 operation.
    ///
    /// # Errors
    /// [`CryptoError::LowOrderKey`] if `other` is a point of low order.
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

/// The result of an X25519 key agreement. It is only used to derive keys, never as a key.
#[derive(Debug)]
pub struct SharedSecret(Secret<[u8; 32]>);

impl SharedSecret {
    /// Derives a key with BLAKE2s-256: for a link of the 2.x dialect, and for a peer's ChaCha20-Poly1305.
    pub fn derive_session_key(&self) -> SessionKey {
        SessionKey::blake2s(&[self.0.expose()])
    }

    /// Hashes the secret and `rest` with SHA-256: the digest from which the keys of a 3.0 link are derived, and the key of a
    /// peer's AES-256-GCM.
    pub fn sha256(&self, rest: &[&[u8]]) -> SessionKey {
        SessionKey::sha256(self.0.expose(), rest)
    }
}

/// A symmetric key, or an equally secret value from which keys are derived.
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

    /// Derives one of several keys: SHA-256 of this one and `label`.
    pub fn derive_with_label(&self, label: &[u8]) -> Self {
        Self::sha256(self.expose(), &[label])
    }

    /// Derives the key that follows this one.
    fn derive_next(&self) -> Self {
        Self::blake2s(&[self.expose(), RATCHET_LABEL])
    }

    /// Creates a key from raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }

    /// Returns the raw key.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// Returns whether two keys are the same, in constant time.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.0.is_same_as(&other.0)
    }
}

/// An initialisation vector: a big-endian counter of 96 bits. Each direction has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iv(pub [u8; IV_LEN]);

impl Iv {
    /// Generates a random iv.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the system cannot provide random numbers.
    pub fn random() -> Result<Self, CryptoError> {
        let mut iv = [0; IV_LEN];
        fill_random(&mut iv)?;
        Ok(Self(iv))
    }

    /// Adds one, for the next message; wraps from all ones to zero.
    pub fn increment(&mut self) {
        for byte in self.0.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
}

/// The AEAD ciphers of the protocol.
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

/// Returns whether this CPU has AES instructions. Without them AES-256-GCM is slow and does not run in constant time.
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

/// The state of one direction of a sealed channel.
struct CipherState {
    cipher: Cipher,
    key: LessSafeKey,
    iv: Iv,
    /// Number of messages sealed or opened.
    count: u64,
    /// The raw key, from which a ratchet derives the next one.
    raw_key: SessionKey,
    has_ratchet: bool,
}

impl CipherState {
    fn new(cipher: Cipher, key: &SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        let raw_key = SessionKey::from_bytes(*key.expose());
        Ok(Self { has_ratchet: false, ..Self::with_ratchet(cipher, raw_key, iv)? })
    }

    fn with_ratchet(cipher: Cipher, raw_key: SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        let key = Self::expand_key(cipher, &raw_key)?;
        Ok(Self { cipher, key, iv, count: 0, raw_key, has_ratchet: true })
    }

    fn expand_key(cipher: Cipher, key: &SessionKey) -> Result<LessSafeKey, CryptoError> {
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

    /// Advances to the next message, and to the next key if one is due. The iv is not reset with a new key.
    fn advance(&mut self) -> Result<(), CryptoError> {
        self.iv.increment();
        self.count += 1;
        if self.has_ratchet && self.count.is_multiple_of(RATCHET_AFTER) {
            self.raw_key = self.raw_key.derive_next();
            self.key = Self::expand_key(self.cipher, &self.raw_key)?;
        }
        Ok(())
    }
}

/// Seals the messages of one direction, in order.
pub struct Sealer(CipherState);

impl Sealer {
    /// Starts a direction at `iv` with a fixed key.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider rejects the key.
    pub fn new(cipher: Cipher, key: &SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        CipherState::new(cipher, key, iv).map(Self)
    }

    /// Starts a direction at `iv` with a key that changes after every [`RATCHET_AFTER`] messages.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider rejects the key.
    pub fn with_ratchet(cipher: Cipher, key: SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        CipherState::with_ratchet(cipher, key, iv).map(Self)
    }

    /// Seals the next message: `tag ‖ ciphertext`.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the message is longer than the cipher allows.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.seal_with_aad(&[], plaintext)
    }

    /// Seals the next message and authenticates `associated` with it.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_with_aad(
        &mut self,
        associated: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let mut sealed = Vec::with_capacity(TAG_LEN + plaintext.len());
        sealed.resize(TAG_LEN, 0);
        sealed.extend_from_slice(plaintext);
        let (tag_space, text) = sealed.split_at_mut(TAG_LEN);
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(self.0.nonce(), Aad::from(associated), text)
            .map_err(|_| CryptoError::Provider)?;
        tag_space.copy_from_slice(tag.as_ref());
        self.0.advance()?;
        Ok(sealed)
    }

    /// The iv of the next message.
    pub fn iv(&self) -> Iv {
        self.0.iv
    }
}

/// Opens the messages of one direction, in order.
pub struct Opener(CipherState);

impl Opener {
    /// Starts a direction at `iv` with a fixed key.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider rejects the key.
    pub fn new(cipher: Cipher, key: &SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        CipherState::new(cipher, key, iv).map(Self)
    }

    /// Starts a direction at `iv` with a key that changes after every [`RATCHET_AFTER`] messages.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider rejects the key.
    pub fn with_ratchet(cipher: Cipher, key: SessionKey, iv: Iv) -> Result<Self, CryptoError> {
        CipherState::with_ratchet(cipher, key, iv).map(Self)
    }

    /// Opens the next message, `tag ‖ ciphertext`. The iv advances only if it opens.
    ///
    /// # Errors
    /// [`CryptoError::TooShort`] if the message is shorter than a tag, [`CryptoError::DoesNotOpen`] if it does not open.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.open_with_aad(&[], sealed)
    }

    /// Opens the next message, whose tag also authenticates `associated`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_aad(
        &mut self,
        associated: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
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

    /// Returns the number of messages opened so far.
    pub fn opened_count(&self) -> u64 {
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
