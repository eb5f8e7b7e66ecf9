//! The status of the Router link, for the admin interface, the service manager and the doctor.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::crypto::Cipher;
use crate::wire::messages::Version;

/// How long a link must last before it counts as connected. A Router whose white list of relays lacks this one lets it
/// authenticate and closes the link right afterwards.
pub const CONFIRMATION_TIME: Duration = Duration::from_secs(5);

/// The state of the link at one moment.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// When the link was authenticated. If there is none: when the last one ended, or the relay started.
    pub since: SystemTime,
    /// The authenticated link, if there is one. Its keys are already on offer, but only [`Self::is_confirmed`] says that the
    /// Router keeps it.
    pub link: Option<LinkFacts>,
    /// Number of attempts that failed since a link was last confirmed.
    pub failures: u64,
    /// The latest failure, described so that an operator can act on it.
    pub last_error: Option<(SystemTime, String)>,
}

/// What is known about an authenticated link.
#[derive(Debug, Clone)]
pub struct LinkFacts {
    /// Whether the Router has kept the link for [`CONFIRMATION_TIME`].
    pub is_confirmed: bool,
    /// The Router's address.
    pub address: SocketAddr,
    /// The dialect in use: `2.x` or `3.0`.
    pub dialect: &'static str,
    /// The Router's version.
    pub version: Version,
    /// The cipher in use.
    pub cipher: Cipher,
}

impl LinkStatus {
    /// Creates the status before the first attempt.
    pub fn new() -> Self {
        Self { since: SystemTime::now(), link: None, failures: 0, last_error: None }
    }

    /// Whether there is a link, and the Router has kept it for [`CONFIRMATION_TIME`].
    pub fn is_confirmed(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_confirmed)
    }

    /// Sets the facts of a link that was authenticated this long ago.
    pub(super) fn set_authenticated(&mut self, facts: LinkFacts, age: Duration) {
        let now = SystemTime::now();
        self.since = now.checked_sub(age).unwrap_or(now);
        self.link = Some(facts);
    }

    pub(super) fn set_confirmed(&mut self) {
        if let Some(link) = &mut self.link {
            link.is_confirmed = true;
            self.failures = 0;
        }
    }

    pub(super) fn set_unlinked(&mut self) {
        if self.link.take().is_some() {
            self.since = SystemTime::now();
        }
    }

    pub(super) fn set_failed(&mut self, failures: u64, error: String) {
        self.set_unlinked();
        self.failures = failures;
        self.last_error = Some((SystemTime::now(), error));
    }
}

impl Default for LinkStatus {
    fn default() -> Self {
        Self::new()
    }
}
