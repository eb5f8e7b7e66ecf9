//! Which dialect to speak to a Router: the one that is set, or the one that it turns out to speak.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tracing::{Span, info};

use crate::config::parse::{GENERATIONS, HostName, Protocol};
use crate::config::{Config, RouterConfig};
use crate::deadline;
use crate::dial::{self, DialError, Dialer};
use crate::link::DIALECTS;
use crate::link::dialect::{Dialect, HandshakeError};
use crate::link::handshake::{Established, Handshake, MachineInfo};

use super::connection::Connection;
use super::error::LinkError;

/// What is known of the Router.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The dialect that answered last, and where.
    known: Option<(&'static dyn Dialect, HostName, u16)>,
    /// Which addresses of one `RouterAddress` worked.
    dialer: Option<Dialer>,
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

    /// The dialects to try, in their order: with `auto` the one that is known, else the one whose usual port this is, else
    /// as they stand.
    fn tries(&self, router: &RouterConfig) -> Vec<Try> {
        let known = self
            .known
            .as_ref()
            .filter(|(_, address, port)| (address, *port) == (&router.address, router.port));
        let first = |dialect: &dyn Dialect| match (router.protocol, known) {
            (Protocol::Only(generation), _) => {
                (generation.number == dialect.generation()).then_some("RouterProtocol says so")
            }
            (Protocol::Auto, Some((known, ..))) => {
                (known.name() == dialect.name()).then_some("it answered in it before")
            }
            (Protocol::Auto, None) => {
                (usual_port(dialect) == Some(router.port)).then_some("this is its usual port")
            }
        };
        let mut tries: Vec<Try> =
            DIALECTS.into_iter().filter_map(|dialect| Some((dialect, first(dialect)?))).collect();
        if router.protocol == Protocol::Auto {
            for dialect in DIALECTS.into_iter().filter(|dialect| first(*dialect).is_none()) {
                let is_first = tries.is_empty();
                let why = if is_first { "tried first" } else { "it does not answer in another" };
                tries.push((dialect, why));
            }
        }
        tries
    }

    /// Returns when the look-up of the name has ended that an attempt did not wait for; never where there is none.
    pub(super) async fn looked_up(&mut self) {
        match &mut self.dialer {
            Some(dialer) => dialer.looked_up().await,
            None => std::future::pending().await,
        }
    }

    /// Connects and authenticates. With `RouterProtocol` `auto`, a Router that hangs up or answers in another frame
    /// before its `ServerHello` is tried in the next dialect at once, on a new connection to the same address; any other
    /// failure would be the same there, or is this dialect's own. `address` is where to, unless it is the one of `config`.
    ///
    /// # Errors
    /// [`LinkError`]; where no dialect is the right one, [`LinkError::NoDialect`].
    pub(super) async fn begin(
        &mut self,
        config: &Config,
        machine: &MachineInfo,
        address: Option<SocketAddr>,
    ) -> Result<Begun, LinkError> {
        let (address, stream) = match address {
            Some(address) => (address, connect(address).await?),
            None => self.dial(&config.router).await?,
        };
        let begun = self.authenticate(config, machine, address, stream).await;
        if let Some(dialer) = &mut self.dialer {
            match &begun {
                Ok(_) => dialer.worked(address),
                Err(_) => dialer.doubt(address),
            }
        }
        begun
    }

    /// Connects to the Router by its name. What worked of another name means nothing.
    async fn dial(&mut self, router: &RouterConfig) -> Result<(SocketAddr, TcpStream), LinkError> {
        let host = router.address.as_str();
        let dialer = match self.dialer.take() {
            Some(dialer) if dialer.host() == host => dialer,
            _ => Dialer::new(host),
        };
        let dialed = self.dialer.insert(dialer).dial(router.port).await;
        dialed.map_err(|error| match error {
            DialError::Resolve { error, last_good } => {
                LinkError::Resolve { host: host.to_owned(), error, last_good }
            }
            DialError::Connect(failed) => LinkError::Connect(failed),
        })
    }

    /// Authenticates at `address`, to which there is a connection, in one dialect after the other.
    async fn authenticate(
        &mut self,
        config: &Config,
        machine: &MachineInfo,
        address: SocketAddr,
        stream: TcpStream,
    ) -> Result<Begun, LinkError> {
        let tries = self.tries(&config.router);
        let last = tries.len() - 1;
        let mut refused = Vec::new();
        let mut first = Some(stream);
        for (index, (dialect, why)) in tries.into_iter().enumerate() {
            let mut answered = false;
            let stream = match first.take() {
                Some(stream) => stream,
                None => connect(address).await?,
            };
            let begun = link(config, machine, dialect, stream, &mut answered).await;
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

/// Connects to this address.
async fn connect(address: SocketAddr) -> Result<TcpStream, LinkError> {
    let connected = dial::connect(&dial::System, address).await;
    connected.map_err(|error| LinkError::Connect(vec![(address, error)]))
}

/// Authenticates in one dialect. `answered` says whether a `ServerHello` came.
async fn link(
    config: &Config,
    machine: &MachineInfo,
    dialect: &'static dyn Dialect,
    stream: TcpStream,
    answered: &mut bool,
) -> Result<(Connection, Established), LinkError> {
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
        let challenge = connection.message().await.map_err(|error| match error {
            LinkError::Handshake(HandshakeError::KeyMismatch { dialect, .. }) => {
                HandshakeError::KeyMismatch { dialect, remedy: wait.key_remedy() }.into()
            }
            error => error,
        })?;
        let (response, established) = wait.challenge(&challenge, machine)?;
        connection.send_message(response)?;
        connection.authenticated(established.router_version);
        Ok(established)
    };
    let established = deadline::timeout(limit, authenticated)
        .await
        .unwrap_or(Err(LinkError::AuthenticationTimeout(limit)));
    established.map(|established| (connection, established))
}

/// Where Routers that speak a dialect listen for relays unless they were told otherwise.
fn usual_port(dialect: &dyn Dialect) -> Option<u16> {
    let generation = GENERATIONS.into_iter().find(|known| known.number == dialect.generation());
    generation.map(|generation| generation.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::crypto::PrivateKey;
    use crate::link::third::THIRD;

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

    #[tokio::test]
    async fn what_worked_belongs_to_one_router_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let at = |host| RouterConfig {
            address: parse::host(host).unwrap(),
            ..router(Protocol::Auto, there.port())
        };
        let mut choice = Choice::default();
        let (address, _) = choice.dial(&at("127.0.0.1")).await.unwrap();
        assert_eq!(address, there);
        choice.dialer.as_mut().unwrap().worked(address);
        let known = |choice: &Choice| format!("{:?}", choice.dialer.as_ref().unwrap());
        // Another port of the same Router: its address is the same.
        let elsewhere = RouterConfig { port: 1, ..at("127.0.0.1") };
        assert!(choice.dial(&elsewhere).await.is_err());
        assert!(known(&choice).contains(&there.to_string()), "{}", known(&choice));
        // Another Router.
        assert!(choice.dial(&at("127.0.0.2")).await.is_err());
        assert_eq!(known(&choice), "Dialer(127.0.0.2, last good: None)");
    }

    #[test]
    fn every_dialect_can_be_set_and_every_setting_is_a_dialect() {
        let dialects = DIALECTS.map(|dialect| dialect.generation());
        assert_eq!(dialects, GENERATIONS.map(|generation| generation.number));
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
        assert_eq!(names(&choice, &router(parse::protocol("2").unwrap(), 8060)), ["2.x"]);
        assert_eq!(names(&choice, &router(parse::protocol("3").unwrap(), 8061)), ["3.0"]);
    }
}
