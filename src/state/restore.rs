//! Keys and numbers that continue in another process.

use std::sync::Arc;

use tokio::time::Instant;

use super::keys::OneTimeKey;
use super::keys::snapshot::{HandedOutSnapshot, KeyNumbering};
use super::sessions::SessionId;
use super::shared::SharedState;

/// Which numbers of keys and sessions were used. A process that continues with it never uses one of them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbering {
    /// The numbers of keys.
    pub keys: KeyNumbering,
    /// The highest number of a session.
    pub last_session: SessionId,
}

impl SharedState {
    /// Notes that the link is suspended: its keys stay on offer, since its Router still has them.
    pub fn suspend_link(&self) {
        self.lock().keys.suspend_link();
    }

    /// Notes that a suspended link, of this process or another one, is served again with the keys that are on offer.
    pub fn resume_link(&self) {
        self.lock().keys.resume_link();
        self.events().capacity_freed.notify_one();
    }

    /// Returns the keys on offer. Another process must use them only with the link on which they were offered.
    pub fn offered_keys(&self) -> Vec<Arc<OneTimeKey>> {
        self.lock().keys.offered_keys()
    }

    /// Returns the keys that were handed out and are valid, with their remaining lifetimes. No key is copied.
    pub fn handed_out_keys(&self, now: Instant) -> Vec<HandedOutSnapshot> {
        let tables = self.lock_at(now);
        tables.keys.handed_out_keys(tables.pauses.to_running_time(now))
    }

    /// Returns which numbers were used.
    pub fn numbering(&self) -> Numbering {
        let tables = self.lock();
        Numbering {
            keys: tables.keys.numbering(),
            last_session: SessionId(tables.sessions.last_number()),
        }
    }

    /// Continues with the numbers of another process. Must come before any key or session.
    pub fn restore_numbering(&self, numbering: Numbering) {
        let mut tables = self.lock();
        tables.keys.restore_numbering(numbering.keys);
        tables.sessions.skip_numbers(numbering.last_session.0);
    }

    /// Restores keys that another process handed out. They live on from `now`.
    pub fn restore_handed_out(&self, keys: Vec<HandedOutSnapshot>, now: Instant) {
        let mut tables = self.lock_at(now);
        let running = tables.pauses.to_running_time(now);
        tables.keys.restore_handed_out(keys, running);
        drop(tables);
        self.events().key_handed_out.notify_one();
    }

    /// Restores the keys that another process offered on a link. They are valid from now on; the link must be resumed, or
    /// declared lost ([`Self::link_lost`]), which withdraws them.
    pub fn restore_offered(&self, keys: Vec<OneTimeKey>) {
        self.lock().keys.restore_offered(keys);
    }
}
