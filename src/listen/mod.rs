//! Listening: binding a socket and accepting connections, for peers and for HTTP alike.

pub mod accept;
pub mod acceptor;
pub mod bind;
pub mod interfaces;
pub mod options;
pub mod port_holder;
