//! Listening: binding a socket and accepting connections, for peers and for HTTP alike.

pub mod accept;
pub mod bind;
#[cfg(target_os = "linux")]
mod port_holder;
