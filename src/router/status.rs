//! How the Router link is, for those who report.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::crypto::Cipher;
use crate::wire::router::Version;

/// How long a link must live before it counts as one: a Router whose white list of relays does not have this one lets it
/// authenticate and closes the link right afterwards.
pub const CONFIRMATION: Duration = Duration::from_secs(5);

/// The link at a moment.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// When it was authenticated, or since when there is none.
    pub since: SystemTime,
    /// The authenticated link, where there is one. Peers can come through it, but only [`Self::is_confirmed`] says that
    /// the Router means to keep it.
    pub link: Option<LinkFacts>,
    /// Attempts that failed since a link was confirmed.
    pub failures: u64,
    /// The latest failure, in words that an operator can act on.
    pub last_error: Option<(SystemTime, String)>,
}

/// What is known of an authenticated link.
#[derive(Debug, Clone)]
pub struct LinkFacts {
    /// Whether the Router has kept the link for [`CONFIRMATION`].
    pub is_confirmed: bool,
    /// The Router's address.
    pub address: SocketAddr,
    /// The dialect that it speaks: `2.x` or `3.0`.
    pub dialect: &'static str,
    /// Its version.
    pub version: Version,
    /// The cipher that it chose.
    pub cipher: Cipher,
}

impl LinkStatus {
    /// Nothing was tried yet.
    pub fn new() -> Self {
        Self { since: SystemTime::now(), link: None, failures: 0, last_error: None }
    }

    /// Whether there is a link that the Router has kept for [`CONFIRMATION`].
    pub fn is_confirmed(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_confirmed)
    }

    pub(super) fn authenticated(&mut self, facts: LinkFacts) {
        self.since = SystemTime::now();
        self.link = Some(facts);
    }

    pub(super) fn confirmed(&mut self) {
        if let Some(link) = &mut self.link {
            link.is_confirmed = true;
            self.failures = 0;
        }
    }

    pub(super) fn away(&mut self) {
        if self.link.take().is_some() {
            self.since = SystemTime::now();
        }
    }

    pub(super) fn failed(&mut self, failures: u64, error: String) {
        self.away();
        self.failures = failures;
        self.last_error = Some((SystemTime::now(), error));
    }
}

impl Default for LinkStatus {
    fn default() -> Self {
        Self::new()
    }
}
