//! Who owns the store, and how long entries are kept without an owner.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::protocol::{OWNER_ID_LEN, OwnerMessage};

/// A relay that is or wants to be the owner.
#[derive(Debug)]
pub(super) struct StoreOwnerRecord {
    pub(super) id: [u8; OWNER_ID_LEN],
    /// Hangs up when the relay no longer exists.
    pub(super) life_line: OwnedFd,
    pub(super) process: u32,
}

/// The owner, with its connection if it has one.
#[derive(Debug)]
pub(super) struct LeaseHolder {
    pub(super) record: StoreOwnerRecord,
    since: Instant,
    /// The number of its connection. Without one the relay has ended, or lost contact and still forwards: only its life line
    /// tells.
    pub(super) connection: Option<u64>,
    /// When everything would have been closed if this relay had not come. It still holds if the relay ends before it has put
    /// anything: one that fails at each start must not keep the peers of its sessions waiting for ever.
    earlier_expiry: Option<Instant>,
}

/// The lease of the store.
#[derive(Debug, Default)]
pub(super) struct StoreLease {
    pub(super) holder: Option<LeaseHolder>,
    /// Who made the present entries.
    author: Option<[u8; OWNER_ID_LEN]>,
    pub(super) is_committed: bool,
    /// Whether the owner has committed and not released the lease since. It may not know that the commit has arrived, and have
    /// gone on.
    is_unconfirmed: bool,
    /// When everything is closed, unless a relay comes.
    pub(super) expiry: Option<Instant>,
}

impl StoreLease {
    /// Whether this relay may become the owner now: there is none, or it is the owner that lost its connection.
    pub(super) fn is_free_for(&self, record: &StoreOwnerRecord) -> bool {
        self.holder.as_ref().is_none_or(|holder| holder.record.id == record.id)
    }

    /// Makes a relay the owner, and returns whether the entries are its own.
    pub(super) fn grant(
        &mut self,
        record: StoreOwnerRecord,
        connection: u64,
        now: Instant,
    ) -> bool {
        let is_own = self.author == Some(record.id);
        let earlier_expiry = self.expiry.take();
        let connection = Some(connection);
        self.holder = Some(LeaseHolder { record, since: now, connection, earlier_expiry });
        is_own
    }

    /// Notes that the owner has changed entries: they are not what was committed any more. A relay puts something (`has_put`) only
    /// once it runs.
    pub(super) fn note_change(&mut self, has_put: bool) {
        (self.is_committed, self.is_unconfirmed) = (false, false);
        self.author = self.holder.as_ref().map(|holder| holder.record.id);
        if let Some(holder) = self.holder.as_mut().filter(|_| has_put) {
            holder.earlier_expiry = None;
        }
    }

    /// Notes that the owner has committed the entries.
    pub(super) fn commit(&mut self) {
        (self.is_committed, self.is_unconfirmed) = (true, true);
    }

    /// Ends the lease of an owner that gave it back, which it does only after a commit that it knows to have arrived.
    pub(super) fn give_back(&mut self, expiry: Instant) {
        self.is_unconfirmed = false;
        self.release(expiry);
    }

    /// Notes that a connection has ended; returns whether it was the owner's.
    pub(super) fn disconnect(&mut self, connection: u64, expiry: Instant) -> bool {
        let owner = self.holder.as_mut().filter(|holder| holder.connection == Some(connection));
        let Some(owner) = owner else { return false };
        owner.connection = None;
        self.expiry = owner.earlier_expiry.or(Some(expiry));
        true
    }

    /// Ends the lease of an owner that no longer exists.
    pub(super) fn release(&mut self, expiry: Instant) {
        if std::mem::take(&mut self.is_unconfirmed) {
            self.is_committed = false;
        }
        let earlier = self.holder.take().and_then(|holder| holder.earlier_expiry);
        self.expiry = self.expiry.or(earlier).or(Some(expiry));
    }

    /// The life line of an owner without a connection.
    pub(super) fn life_line(&self) -> Option<&OwnedFd> {
        let holder = self.holder.as_ref().filter(|holder| holder.connection.is_none())?;
        Some(&holder.record.life_line)
    }

    /// The owner, for a message.
    pub(super) fn owner_message(&self, now: Instant) -> Option<OwnerMessage> {
        let holder = self.holder.as_ref()?;
        let since = now.saturating_duration_since(holder.since).as_millis();
        Some(OwnerMessage {
            process: holder.record.process,
            milliseconds: u64::try_from(since).unwrap_or(u64::MAX),
            is_connected: holder.connection.is_some(),
        })
    }
}
