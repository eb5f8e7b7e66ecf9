//! The link to a Router as functions without I/O: who says what, sealed how, and when a ping is due.

pub mod handshake;
pub mod keepalive;
