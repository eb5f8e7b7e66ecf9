//! The descriptor store: a second, small process that keeps duplicates of a relay's sockets, each with a note, so that
//! sessions outlive the relay; and the client with which a relay uses it.
//!
//! The store is a map behind a Unix socket. It forwards nothing, never reads, writes or polls what it keeps, and does not
//! know what a relay is, so it hardly ever needs a new version.
//!
//! Only Linux has it. Other systems know its address, so that a configuration can be checked there.

pub mod address;
#[cfg(target_os = "linux")]
mod change;
#[cfg(target_os = "linux")]
pub mod client;
#[cfg(target_os = "linux")]
mod connection;
#[cfg(target_os = "linux")]
mod credentials;
#[cfg(target_os = "linux")]
mod entries;
#[cfg(target_os = "linux")]
pub mod error;
#[cfg(target_os = "linux")]
mod lease;
#[cfg(target_os = "linux")]
pub mod listener;
#[cfg(target_os = "linux")]
pub mod owner;
#[cfg(target_os = "linux")]
mod packet;
#[cfg(target_os = "linux")]
mod proof;
#[cfg(target_os = "linux")]
pub mod protocol;
#[cfg(target_os = "linux")]
pub mod server;
#[cfg(target_os = "linux")]
pub mod settings;
pub mod status;
