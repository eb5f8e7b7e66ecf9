//! Moves bytes between two sockets (docs/protocol.md, "Forwarding").
//!
//! The rules, however the bytes are moved:
//! - what was received from a peer reaches its partner before the end of the stream does;
//! - the end of one direction ends that direction only, so a reply that is still in flight arrives;
//! - if a peer's connection is reset, everything received from it is delivered, its partner is sent an ordinary FIN, and what
//!   the partner still sends is read and discarded for a while, so that its connection closes gracefully;
//! - failures of the relay or its system are never attributed to a peer;
//! - a direction holds bytes only while its receiver does not accept them.

mod backlog;
pub mod balance;
mod bidirectional;
mod direction;
mod discard;
pub mod failure;
pub mod figures;
mod finish;
mod half_closed;
mod linger;
pub mod metrics;
#[cfg_attr(not(target_os = "linux"), path = "no_pipe.rs")]
pub mod pipe;
#[cfg(target_os = "linux")]
mod pool;
mod readiness;
mod socket;
pub mod throttle;

pub use bidirectional::{Forward, ForwardEnd, ForwardResources};
pub use direction::{BUDGET, TransferMethod};
pub use finish::finish_connection;
pub use linger::linger;
pub use socket::Sockets;
