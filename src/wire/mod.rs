//! Bytes only: the messages and frames of the protocol, without I/O and without keys.

pub mod foreign;
pub mod frame;
pub mod peer;
pub mod router;
pub mod third;
