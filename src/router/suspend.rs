//! A link that is suspended, so that this process or another one can resume it. The Router does not notice.

use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::crypto::Cipher;
use crate::link::dialect::Dialect;
use crate::link::handshake::LinkParameters;
use crate::link::keepalive::KeepAliveSnapshot;
use crate::link::snapshot::LinkSnapshot;
use crate::wire::messages::Version;

use super::connection::{RouterConnection, SuspendedConnection};
use super::status::LinkFacts;

/// An authenticated link that is not served at the moment. Dropping it closes the socket, unless another process has it,
/// too.
#[derive(Debug)]
pub struct SuspendedLink {
    /// The socket.
    pub socket: std::net::TcpStream,
    /// Everything else.
    pub snapshot: LinkSnapshot,
}

impl SuspendedLink {
    /// Closes the connection, even if other processes have its socket.
    pub fn close(self) {
        // The Router may have closed it already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// The facts about an authenticated link that do not depend on which process serves it.
pub(super) struct LinkOrigin {
    pub(super) dialect: &'static dyn Dialect,
    pub(super) version: Version,
    pub(super) cipher: Cipher,
    authenticated: Instant,
    /// The settings that it was made with: [`Config::link_fingerprint`].
    pub(super) settings: [u8; 32],
}

impl LinkOrigin {
    /// Describes a link that was just authenticated.
    pub(super) fn new(parameters: &LinkParameters, config: &Config) -> Self {
        let LinkParameters { dialect, cipher, router_version } = *parameters;
        let (authenticated, settings) = (Instant::now(), config.link_fingerprint());
        Self { dialect, version: router_version, cipher, authenticated, settings }
    }

    /// Describes a link that is resumed.
    pub(super) fn of_resumed(connection: &RouterConnection, snapshot: &LinkSnapshot) -> Self {
        Self {
            dialect: connection.dialect(),
            version: snapshot.router_version,
            cipher: snapshot.sealer.cipher,
            authenticated: snapshot.authenticated,
            settings: snapshot.settings,
        }
    }

    /// The time since the authentication.
    pub(super) fn age(&self) -> Duration {
        self.authenticated.elapsed()
    }

    /// Describes the link for the status.
    pub(super) fn facts(&self, address: SocketAddr, is_confirmed: bool) -> LinkFacts {
        let Self { dialect, version, cipher, .. } = *self;
        LinkFacts { is_confirmed, address, dialect: dialect.name(), version, cipher }
    }

    /// Puts together what another process needs to resume the link.
    pub(super) fn into_suspended(
        self,
        connection: SuspendedConnection,
        keep_alive: KeepAliveSnapshot,
        is_confirmed: bool,
    ) -> SuspendedLink {
        let SuspendedConnection { socket, sealer, opener, received, unsent } = connection;
        let snapshot = LinkSnapshot {
            dialect: self.dialect.name().to_owned(),
            router_version: self.version,
            sealer,
            opener,
            received,
            unsent,
            keep_alive,
            authenticated: self.authenticated,
            is_confirmed,
            settings: self.settings,
        };
        SuspendedLink { socket, snapshot }
    }
}
