//! The bytes of the protocol: messages and frames, without I/O and without keys.

pub mod foreign;
pub mod frame;
pub mod messages;
pub mod peer;
pub mod v2;
pub mod v3;
