//! What the relay knows about its connection to the descriptor store, for the admin interface, the service manager and
//! the log.

use std::fmt;
use std::time::SystemTime;

use super::address::StoreAddress;

/// The state of the connection to the descriptor store at one moment. Its text says whether sessions outlive the relay.
#[derive(Debug, Clone)]
pub struct StoreLinkStatus {
    /// `FdStore`; `None` means off.
    pub address: Option<StoreAddress>,
    /// Since when the store has been connected, or has not been.
    pub since: SystemTime,
    /// How many sessions the store keeps; `None` if the relay is not connected to it.
    pub kept_sessions: Option<usize>,
    /// The latest failure, described so that an operator can act on it.
    pub last_error: Option<(SystemTime, String)>,
}

impl StoreLinkStatus {
    /// Creates the status before the first attempt to connect.
    pub fn new(address: Option<StoreAddress>) -> Self {
        Self { address, since: SystemTime::now(), kept_sessions: None, last_error: None }
    }

    /// Whether the relay is connected to the store, so that sessions outlive it.
    pub fn is_connected(&self) -> bool {
        self.kept_sessions.is_some()
    }

    /// Notes how many sessions the connected store keeps.
    pub fn set_kept(&mut self, sessions: usize) {
        if self.kept_sessions.replace(sessions).is_none() {
            self.since = SystemTime::now();
        }
    }

    /// Notes that the store cannot be used, and why.
    pub fn set_failed(&mut self, error: String) {
        let now = SystemTime::now();
        if self.kept_sessions.take().is_some() {
            self.since = now;
        }
        self.last_error = Some((now, error));
    }
}

impl fmt::Display for StoreLinkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, self.kept_sessions, &self.last_error) {
            (None, _, _) => f.write_str("sessions end with the relay (FdStore is off)"),
            (Some(address), Some(_), _) => write!(f, "sessions kept by {address}"),
            (Some(address), None, Some((_, error))) => {
                write!(f, "sessions NOT kept by {address}: {error}")
            }
            (Some(address), None, None) => write!(f, "sessions NOT kept by {address} yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_whether_sessions_outlive_the_relay() {
        let off = StoreLinkStatus::new(None);
        assert_eq!(off.to_string(), "sessions end with the relay (FdStore is off)");
        let mut status = StoreLinkStatus::new(Some("@store".parse().unwrap()));
        assert_eq!(status.to_string(), "sessions NOT kept by @store yet");
        status.set_failed("connection refused".to_owned());
        assert_eq!(status.to_string(), "sessions NOT kept by @store: connection refused");
        status.set_kept(3);
        assert!(status.is_connected());
        assert_eq!(status.to_string(), "sessions kept by @store");
        // The latest error is kept, to be shown later.
        assert!(status.last_error.is_some());
    }

    #[test]
    fn state_keeps_its_beginning_until_it_changes() {
        let mut status = StoreLinkStatus::new(Some("@store".parse().unwrap()));
        status.set_kept(1);
        let since = status.since;
        status.set_kept(2);
        assert_eq!((status.since, status.kept_sessions), (since, Some(2)));
        status.set_failed("gone".to_owned());
        let lost = status.since;
        status.set_failed("refused".to_owned());
        assert_eq!((status.since, status.kept_sessions), (lost, None));
    }
}
