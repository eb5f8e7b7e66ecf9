//! The link to a Router as functions without I/O: authentication, framing, sealing and keep-alive.

pub mod dialect;
mod encoding;
pub mod framing;
pub mod handshake;
pub mod keepalive;
pub mod snapshot;
pub mod v2;
pub mod v3;

use dialect::Dialect;

/// Every dialect that this relay speaks, in the order in which they are tried. To add one, write a file beside [`v2`] and
/// [`v3`] and list it here; its major version and its usual port belong in [`crate::config::parse::GENERATIONS`].
pub const DIALECTS: [&dyn Dialect; 2] = [&v2::V2, &v3::V3];

/// Returns the dialect with this name ([`Dialect::name`]).
pub fn find_dialect(name: &str) -> Option<&'static dyn Dialect> {
    DIALECTS.into_iter().find(|dialect| dialect.name() == name)
}
