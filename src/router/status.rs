//! How the Router link is, for those who report.

use std::net::SocketAddr;
use std::time::SystemTime;

use crate::crypto::Cipher;
use crate::wire::router::Version;

/// The link at a moment.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// When it came up, or since when it is away.
    pub since: SystemTime,
    /// The link, where there is one.
    pub link: Option<LinkFacts>,
    /// Attempts that failed since there was a link.
    pub failures: u64,
    /// The latest failure, in words that an operator can act on.
    pub last_error: Option<(SystemTime, String)>,
}

/// What is known of a link that is up.
#[derive(Debug, Clone)]
pub struct LinkFacts {
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

    pub(super) fn up(&mut self, facts: LinkFacts) {
        self.since = SystemTime::now();
        self.link = Some(facts);
        self.failures = 0;
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
