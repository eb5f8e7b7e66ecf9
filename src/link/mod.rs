//! The link to a Router as functions without I/O: who says what, sealed how, and when a ping is due.

pub mod dialect;
pub mod framing;
pub mod handshake;
pub mod keepalive;
pub mod second;
pub mod third;

use dialect::Dialect;

/// Every dialect that this relay speaks, in the order in which they are tried. One more stands in a file of its own and here; its number and its usual port stand with the settings ([`crate::config::parse::GENERATIONS`]).
pub const DIALECTS: [&dyn Dialect; 2] = [&second::SECOND, &third::THIRD];
