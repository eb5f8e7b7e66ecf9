//! What the relay knows: keys, waiting peers, sessions.
//!
//! The link to the Router and the connections of peers never know each other; they meet in this state.
//!
//! - The tables ([`keys`], [`pairing`], [`sessions`], [`pauses`], [`overdue`]) are functions of events and of the time that
//!   the caller passes in: no socket, no task, no clock. [`offer`] decides how many keys to keep on offer.
//! - The handles ([`shared`], [`rendezvous`]) put the tables behind locks, which are held for a few lookups, and notify the
//!   tasks that wait for a change. Their guards ([`active_session`], [`rendezvous::WaitingTicket`]) end a session, or the wait
//!   of a peer, when they are dropped.
//! - The tasks ([`expiry`], [`enforce`]) watch the clock: they expire keys and ask overdue sessions to end.
//!
//! There are two global locks. The lock of the pairing table is always taken before that of keys and sessions; under the second,
//! only the lock of one session's signal is taken.
//!
//! Invariant: while the link is up, `ordered + offered + handed out + active = capacity` after every event that is followed
//! by an order, or less if the number of keys on offer is limited; without a link, `handed out + active <= capacity`. The
//! capacity is exceeded only after it was lowered or when sessions are adopted.

pub mod active_session;
pub mod enforce;
pub mod expiry;
pub mod keys;
pub mod metrics;
pub mod offer;
pub mod overdue;
pub mod pairing;
pub mod pauses;
pub mod rendezvous;
pub mod restore;
pub mod sessions;
pub mod shared;
mod tables;
