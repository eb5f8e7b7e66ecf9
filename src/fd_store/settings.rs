//! What the store is told by the program that runs it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::secret::Secret;

use super::address::StoreAddress;

/// Returns `AdminToken` as it is now. A relay takes another one without a restart, and so must its store.
pub type TokenSource = Box<dyn FnMut() -> Option<Arc<Secret<String>>> + Send>;

/// Is told of every entry that is abandoned.
pub type AbandonmentHandler = Box<dyn FnMut(&AbandonedEntry<'_>) + Send>;

/// An entry whose connections are about to end, since no relay came for it.
pub struct AbandonedEntry<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// What its owner wrote about it, which may be secret.
    pub note: &'a [u8],
    /// Its descriptors.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// Whether its owner handed it over; otherwise the owner died.
    pub was_committed: bool,
}

/// What the store needs to know.
pub struct StoreSettings {
    /// `FdStore`.
    pub address: StoreAddress,
    /// Where `AdminToken` comes from.
    pub token: TokenSource,
    /// `FdStoreTimeout`.
    pub timeout: Duration,
    /// What happens with entries that are abandoned, besides that their connections end.
    pub on_abandonment: AbandonmentHandler,
}

/// The token, which may change.
pub(super) struct CurrentToken {
    source: TokenSource,
    last: Option<Arc<Secret<String>>>,
}

impl CurrentToken {
    pub(super) fn new(mut source: TokenSource) -> Self {
        Self { last: source(), source }
    }

    /// Reads the token, and returns it and whether it is another one than before.
    pub(super) fn read(&mut self) -> (Option<Arc<Secret<String>>>, bool) {
        let token = (self.source)();
        let is_same = match (&self.last, &token) {
            (Some(last), Some(token)) => last.is_same_as(token),
            (last, token) => last.is_none() == token.is_none(),
        };
        self.last.clone_from(&token);
        (token, !is_same)
    }
}
