//! A relay for the Aspia remote-desktop system.

pub mod config;
pub mod crypto;
pub mod forward;
pub mod link;
pub mod peer;
pub mod secret;
pub mod state;
pub mod wire;
