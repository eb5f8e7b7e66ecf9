//! Why a hand-over to the descriptor store fails.

use crate::crypto::CryptoError;
use crate::fd_store::error::StoreError;

/// Why a hand-over to the descriptor store fails.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The relay is not connected to the store.
    #[error("the descriptor store is not connected")]
    NotConnected,
    /// A key cannot be exported.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The thread that talks to the store has ended.
    #[error(
        "the thread that talks to the descriptor store has ended; this is a bug, please report it"
    )]
    ThreadEnded,
}
