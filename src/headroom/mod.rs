//! What the machine can still carry, and how the keys on offer follow it (`OfferByLoad`).
//!
//! [`machine`] measures what is in use of each resource, [`average`] smooths it, and [`watch`] does both every second and
//! tells the state, which decides by [`crate::state::offer`] how many keys to keep on offer.

pub mod average;
#[cfg(target_os = "linux")]
mod cpu;
pub mod machine;
pub mod resources;
pub mod watch;
