//! The state of one direction of a sealed channel as plain data, so that another process can continue it.

use super::{Cipher, CipherState, CryptoError, Iv, Opener, Sealer, SessionKey};

/// The state of a [`Sealer`] or an [`Opener`] between two messages.
///
/// Only one process may continue with it: two sealers that continue at the same iv would seal two messages with
/// the same nonce, which reveals both.
#[derive(Debug)]
pub struct CipherSnapshot {
    /// The cipher.
    pub cipher: Cipher,
    /// The key of the next message.
    pub key: SessionKey,
    /// The iv of the next message.
    pub iv: Iv,
    /// Number of messages sealed or opened so far, which decides when a ratchet replaces the key.
    pub count: u64,
    /// Whether a ratchet replaces the key from time to time.
    pub has_ratchet: bool,
}

impl CipherState {
    fn snapshot(&self) -> CipherSnapshot {
        CipherSnapshot {
            cipher: self.cipher,
            key: SessionKey::from_bytes(*self.raw_key.expose()),
            iv: self.iv,
            count: self.count,
            has_ratchet: self.has_ratchet,
        }
    }

    fn resume(snapshot: &CipherSnapshot) -> Result<Self, CryptoError> {
        let CipherSnapshot { cipher, key, iv, count, has_ratchet } = snapshot;
        Ok(Self { count: *count, has_ratchet: *has_ratchet, ..Self::new(*cipher, key, *iv)? })
    }
}

impl Sealer {
    /// Returns the state in which the next message will be sealed.
    pub fn snapshot(&self) -> CipherSnapshot {
        self.0.snapshot()
    }

    /// Continues where the sealer of the snapshot was.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider rejects the key.
    pub fn resume(snapshot: &CipherSnapshot) -> Result<Self, CryptoError> {
        CipherState::resume(snapshot).map(Self)
    }
}

impl Opener {
    /// Returns the state in which the next message will be opened.
    pub fn snapshot(&self) -> CipherSnapshot {
        self.0.snapshot()
    }

    /// Continues where the opener of the snapshot was.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the provider rejects the key.
    pub fn resume(snapshot: &CipherSnapshot) -> Result<Self, CryptoError> {
        CipherState::resume(snapshot).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::RATCHET_AFTER;

    #[test]
    fn resumed_sealer_and_opener_continue_across_ratchets() {
        for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
            for has_ratchet in [false, true] {
                let key = || SessionKey::from_bytes([7; 32]);
                let iv = Iv([0xff; 12]);
                let (mut sealer, mut opener, mut uninterrupted) = if has_ratchet {
                    (
                        Sealer::with_ratchet(cipher, key(), iv).unwrap(),
                        Opener::with_ratchet(cipher, key(), iv).unwrap(),
                        Sealer::with_ratchet(cipher, key(), iv).unwrap(),
                    )
                } else {
                    (
                        Sealer::new(cipher, &key(), iv).unwrap(),
                        Opener::new(cipher, &key(), iv).unwrap(),
                        Sealer::new(cipher, &key(), iv).unwrap(),
                    )
                };
                for number in 0..2 * RATCHET_AFTER + 3 {
                    let message = number.to_be_bytes();
                    let sealed = sealer.seal(&message).unwrap();
                    assert_eq!(sealed, uninterrupted.seal(&message).unwrap(), "{number}");
                    assert_eq!(opener.open(&sealed).unwrap(), message, "{number}");
                    sealer = Sealer::resume(&sealer.snapshot()).unwrap();
                    opener = Opener::resume(&opener.snapshot()).unwrap();
                }
                assert_eq!(opener.opened_count(), 2 * RATCHET_AFTER + 3);
                assert!(format!("{:?}", sealer.snapshot()).contains("redacted"));
            }
        }
    }
}
