//! Which dialect to speak to a Router: the one that is set, or the one that it turns out to speak.

use std::net::SocketAddr;

use tokio::time::timeout;
use tracing::{Span, info};

use crate::config::parse::{HostName, Protocol};
use crate::config::{Config, RouterConfig, THIRD_PORT};
use crate::link::DIALECTS;
use crate::link::dialect::{Dialect, HandshakeError};
use crate::link::handshake::{Established, Handshake, MachineInfo};
use crate::link::second::SECOND;
use crate::link::third::THIRD;

use super::connection::Connection;
use super::dial;
use super::error::LinkError;

/// What is known of the Router.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The dialect that answered last, and where.
    known: Option<(&'static dyn Dialect, HostName, u16)>,
}

/// A Router that is authenticated.
pub(super) struct Begun {
    pub(super) connection: Connection,
    pub(super) established: Established,
    /// Why it is spoken to in this dialect.
    pub(super) why: &'static str,
}

/// A dialect to try, and why.
type Try = (&'static dyn Dialect, &'static str);

impl Choice {
    /// The dialect that the Router answered in, wherever it came to from there.
    pub(super) fn known(&self) -> Option<&'static dyn Dialect> {
        self.known.as_ref().map(|(dialect, ..)| *dialect)
    }

    /// The dialects to try, in their order.
    fn tries(&self, router: &RouterConfig) -> Vec<Try> {
        let (first, why): Try = match (router.protocol, &self.known) {
            (Protocol::Second, _) => return vec![(&SECOND, "RouterProtocol is 2")],
            (Protocol::Third, _) => return vec![(&THIRD, "RouterProtocol is 3")],
            (Protocol::Auto, Some((dialect, address, port)))
                if (address, *port) == (&router.address, router.port) =>
            {
                (*dialect, "it answered in it before")
            }
            (Protocol::Auto, _) if router.port == THIRD_PORT => {
                (&THIRD, "tried first on port 8063")
            }
            (Protocol::Auto, _) => (&SECOND, "tried first on ports other than 8063"),
        };
        let others = DIALECTS.into_iter().filter(|other| other.name() != first.name());
        let others = others.map(|other| (other, "it does not answer in another"));
        std::iter::once((first, why)).chain(others).collect()
    }

    /// Connects and authenticates. With `RouterProtocol` `auto`, a Router that hangs up or answers in another frame
    /// before its `ServerHello` is tried in the next dialect at once, on a new connection; any other failure would
    /// be the same there, or is this dialect's own. `address` is where to, unless it is the one of `config`.
    ///
    /// # Errors
    /// [`LinkError`]; where no dialect is the right one, [`LinkError::NoDialect`].
    pub(super) async fn begin(
        &mut self,
        config: &Config,
        machine: &MachineInfo,
        address: Option<SocketAddr>,
    ) -> Result<Begun, LinkError> {
        let tries = self.tries(&config.router);
        let last = tries.len() - 1;
        let mut refused = Vec::new();
        for (index, (dialect, why)) in tries.into_iter().enumerate() {
            let mut answered = false;
            let begun = link(config, machine, dialect, address, &mut answered).await;
            if answered {
                self.known = Some((dialect, config.router.address.clone(), config.router.port));
            }
            match begun {
                Ok((connection, established)) => {
                    return Ok(Begun { connection, established, why });
                }
                Err(error) if !answered && index < last && error.suggests_another_dialect() => {
                    info!("the Router does not answer in the {} dialect: {error}", dialect.name());
                    refused.push((dialect.name(), error));
                }
                // No dialect is the right one.
                Err(error)
                    if !answered && !refused.is_empty() && error.suggests_another_dialect() =>
                {
                    refused.push((dialect.name(), error));
                }
                // It did answer, or it failed for a reason of its own; what came before is in the log.
                Err(error) => return Err(error),
            }
        }
        Err(LinkError::NoDialect(refused))
    }
}

/// Connects and authenticates in one dialect. `answered` says whether a `ServerHello` came.
async fn link(
    config: &Config,
    machine: &MachineInfo,
    dialect: &'static dyn Dialect,
    address: Option<SocketAddr>,
    answered: &mut bool,
) -> Result<(Connection, Established), LinkError> {
    let stream = match address {
        Some(address) => dial::dial_address(address).await?,
        None => dial::dial(&config.router.address, config.router.port).await?,
    };
    let mut connection = Connection::new(stream, dialect);
    let (span, router) = (Span::current(), connection.address());
    span.record("network.peer.address", router.ip().to_string());
    span.record("network.peer.port", i64::from(router.port()));
    let limit = dialect.authentication_time();
    let authenticated = async {
        let (hello, wait) = Handshake::new(dialect)?.start(&config.router.public_key)?;
        connection.send_message(hello)?;
        let hello = wait.server_hello(&connection.message().await?);
        *answered = !matches!(hello, Err(HandshakeError::NotServerHello(_)));
        let (sealer, opener, wait) = hello?;
        connection.seal(sealer, opener);
        let (response, established) = wait.challenge(&connection.message().await?, machine)?;
        connection.send_message(response)?;
        connection.authenticated(established.router_version);
        Ok(established)
    };
    let established =
        timeout(limit, authenticated).await.unwrap_or(Err(LinkError::AuthenticationTimeout(limit)));
    established.map(|established| (connection, established))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::crypto::PrivateKey;

    fn router(protocol: Protocol, port: u16) -> RouterConfig {
        RouterConfig {
            address: parse::host("router.example").unwrap(),
            port,
            protocol,
            public_key: PrivateKey::generate().unwrap().public(),
            peer_address: parse::host("relay.example").unwrap(),
            peer_port: 8070,
            display_name: "relay".into(),
        }
    }

    fn names(choice: &Choice, router: &RouterConfig) -> Vec<&'static str> {
        choice.tries(router).into_iter().map(|(dialect, _)| dialect.name()).collect()
    }

    #[test]
    fn the_port_says_what_is_tried_first_until_something_is_known() {
        let auto = |port| router(Protocol::Auto, port);
        let mut choice = Choice::default();
        assert_eq!(names(&choice, &auto(8063)), ["3.0", "2.x"]);
        assert_eq!(names(&choice, &auto(8060)), ["2.x", "3.0"]);
        choice.known = Some((&THIRD, parse::host("router.example").unwrap(), 8060));
        assert_eq!(names(&choice, &auto(8060)), ["3.0", "2.x"]);
        // That is no knowledge of another Router.
        assert_eq!(names(&choice, &auto(8061)), ["2.x", "3.0"]);
        assert_eq!(names(&choice, &router(Protocol::Second, 8060)), ["2.x"]);
        assert_eq!(names(&choice, &router(Protocol::Third, 8061)), ["3.0"]);
    }
}
