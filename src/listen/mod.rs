//! Binds sockets and accepts connections, both of peers and for HTTP.

pub mod accept;
pub mod acceptor;
pub mod bind;
pub mod interfaces;
pub mod options;
pub mod port_holder;
