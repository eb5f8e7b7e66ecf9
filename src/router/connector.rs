//! Connects to a Router and authenticates, in the configured dialect or in the one that the Router turns out to speak.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tracing::{Span, info};

use crate::config::parse::{GENERATIONS, HostName, RouterProtocol};
use crate::config::{Config, RouterConfig};
use crate::deadline;
use crate::dial::{self, DialError, Dialer};
use crate::link::DIALECTS;
use crate::link::dialect::{Dialect, HandshakeError};
use crate::link::handshake::{Handshake, LinkParameters, MachineInfo};

use super::connection::RouterConnection;
use super::error::LinkError;

/// Connects to the Router, and remembers which address and dialect worked.
#[derive(Debug, Default)]
pub(super) struct RouterConnector {
    /// The dialect in which a Router last answered, with the address and port of that Router.
    known: Option<(&'static dyn Dialect, HostName, u16)>,
    /// The dialer of one `RouterAddress`.
    dialer: Option<Dialer>,
}

/// A Router that has authenticated itself.
pub(super) struct ConnectedRouter {
    pub(super) connection: RouterConnection,
    pub(super) parameters: LinkParameters,
    /// Why this dialect was chosen.
    pub(super) why: &'static str,
}

/// A dialect to try, and why.
type DialectCandidate = (&'static dyn Dialect, &'static str);

/// The result of an authentication in one dialect.
struct DialectAttempt {
    result: Result<(RouterConnection, LinkParameters), LinkError>,
    /// Whether the Router answered with a `ServerHello` of this dialect.
    has_answered: bool,
}

impl RouterConnector {
    /// Returns the dialect in which a Router last answered, whether or not the authentication succeeded.
    pub(super) fn known_dialect(&self) -> Option<&'static dyn Dialect> {
        self.known.as_ref().map(|(dialect, ..)| *dialect)
    }

    /// Remembers the dialect and the address of a Router whose link another process made.
    pub(super) fn remember(
        &mut self,
        router: &RouterConfig,
        dialect: &'static dyn Dialect,
        address: SocketAddr,
    ) {
        self.known = Some((dialect, router.address.clone(), router.port));
        self.dialer.insert(Dialer::new(router.address.as_str())).mark_good(address);
    }

    /// Returns the dialects to try, in order. With `auto` the known dialect comes first, or else the one whose usual port
    /// is configured.
    fn candidates(&self, router: &RouterConfig) -> Vec<DialectCandidate> {
        let known = self
            .known
            .as_ref()
            .filter(|(_, address, port)| (address, *port) == (&router.address, router.port));
        let preferred = |dialect: &dyn Dialect| match (router.protocol, known) {
            (RouterProtocol::Only(generation), _) => {
                (generation.number == dialect.major_version()).then_some("set by RouterProtocol")
            }
            (RouterProtocol::Auto, Some((known, ..))) => {
                (known.name() == dialect.name()).then_some("the Router answered in it before")
            }
            (RouterProtocol::Auto, None) => {
                (usual_port(dialect) == Some(router.port)).then_some("RouterPort is its usual port")
            }
        };
        let mut candidates: Vec<DialectCandidate> = DIALECTS
            .into_iter()
            .filter_map(|dialect| Some((dialect, preferred(dialect)?)))
            .collect();
        if router.protocol == RouterProtocol::Auto {
            for dialect in DIALECTS.into_iter().filter(|dialect| preferred(*dialect).is_none()) {
                let is_first = candidates.is_empty();
                let why =
                    if is_first { "tried first" } else { "the Router does not answer in another" };
                candidates.push((dialect, why));
            }
        }
        candidates
    }

    /// Waits until a lookup that outlived its attempt has ended; never returns if there is none.
    pub(super) async fn wait_for_lookup(&mut self) {
        match &mut self.dialer {
            Some(dialer) => dialer.wait_for_lookup().await,
            None => std::future::pending().await,
        }
    }

    /// Connects and authenticates. With `RouterProtocol` `auto`, if the Router hangs up or sends another kind of frame
    /// instead of a `ServerHello`, the next dialect is tried at once, on a new connection to the same address. Any other
    /// failure would recur in the next dialect, or shows that the Router speaks this one. If `address` is given, it is used
    /// instead of the address in `config`.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::NoDialect`] if the Router answers in none of several dialects.
    pub(super) async fn connect(
        &mut self,
        config: &Config,
        machine: &MachineInfo,
        address: Option<SocketAddr>,
    ) -> Result<ConnectedRouter, LinkError> {
        let (address, stream) = match address {
            Some(address) => (address, connect_to(address).await?),
            None => self.dial(&config.router).await?,
        };
        let connected = self.authenticate(config, machine, address, stream).await;
        if let Some(dialer) = &mut self.dialer {
            match &connected {
                Ok(_) => dialer.mark_good(address),
                Err(_) => dialer.mark_doubtful(address),
            }
        }
        connected
    }

    /// Dials the Router by name. The dialer of another name, with what it knows, is dropped.
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

    /// Authenticates on a connection to `address`, in one dialect after the other.
    async fn authenticate(
        &mut self,
        config: &Config,
        machine: &MachineInfo,
        address: SocketAddr,
        stream: TcpStream,
    ) -> Result<ConnectedRouter, LinkError> {
        let candidates = self.candidates(&config.router);
        let last = candidates.len() - 1;
        let mut failed = Vec::new();
        let mut stream = Some(stream);
        for (index, (dialect, why)) in candidates.into_iter().enumerate() {
            let stream = match stream.take() {
                Some(stream) => stream,
                None => connect_to(address).await?,
            };
            let attempt = authenticate_in(config, machine, dialect, stream).await;
            if attempt.has_answered {
                self.known = Some((dialect, config.router.address.clone(), config.router.port));
            }
            let error = match attempt.result {
                Ok((connection, parameters)) => {
                    return Ok(ConnectedRouter { connection, parameters, why });
                }
                Err(error) => error,
            };
            let may_speak_another = !attempt.has_answered && error.suggests_another_dialect();
            if !may_speak_another || (index == last && failed.is_empty()) {
                // The Router speaks this dialect, or another one would not help. Earlier failures are in the log.
                return Err(error);
            }
            if index < last {
                info!("the Router does not answer in the {} dialect: {error}", dialect.name());
            }
            failed.push((dialect.name(), error));
        }
        Err(LinkError::NoDialect(failed))
    }
}

/// Connects to this address.
async fn connect_to(address: SocketAddr) -> Result<TcpStream, LinkError> {
    let connected = dial::connect(&dial::SystemNetwork, address).await;
    connected.map_err(|error| LinkError::Connect(vec![(address, error)]))
}

/// Authenticates in one dialect, within its time limit.
async fn authenticate_in(
    config: &Config,
    machine: &MachineInfo,
    dialect: &'static dyn Dialect,
    stream: TcpStream,
) -> DialectAttempt {
    let mut connection = RouterConnection::new(stream, dialect);
    let (span, router) = (Span::current(), connection.address());
    span.record("network.peer.address", router.ip().to_string());
    span.record("network.peer.port", i64::from(router.port()));
    let limit = dialect.authentication_timeout();
    let mut has_answered = false;
    let handshake = run_handshake(&mut connection, config, machine, dialect, &mut has_answered);
    let parameters = deadline::timeout(limit, handshake)
        .await
        .unwrap_or(Err(LinkError::AuthenticationTimeout(limit)));
    DialectAttempt { result: parameters.map(|parameters| (connection, parameters)), has_answered }
}

/// Authenticates on a connection. Sets `has_answered` when a `ServerHello` was received.
async fn run_handshake(
    connection: &mut RouterConnection,
    config: &Config,
    machine: &MachineInfo,
    dialect: &'static dyn Dialect,
    has_answered: &mut bool,
) -> Result<LinkParameters, LinkError> {
    let (hello, state) = Handshake::new(dialect)?.start(&config.router.public_key)?;
    connection.queue_message(hello)?;
    let hello = state.receive_server_hello(&connection.read_message().await?);
    *has_answered = !matches!(hello, Err(HandshakeError::NotServerHello(_)));
    let (sealer, opener, state) = hello?;
    connection.enable_sealing(sealer, opener);
    let challenge = connection.read_message().await.map_err(|error| match error {
        LinkError::Handshake(HandshakeError::KeyMismatch { dialect, .. }) => {
            HandshakeError::KeyMismatch { dialect, remedy: state.key_remedy() }.into()
        }
        error => error,
    })?;
    let (response, parameters) = state.receive_challenge(&challenge, machine)?;
    connection.queue_message(response)?;
    connection.finish_authentication(parameters.router_version);
    Ok(parameters)
}

/// Returns the port on which Routers that speak this dialect listen for relays by default.
fn usual_port(dialect: &dyn Dialect) -> Option<u16> {
    let generation = GENERATIONS.into_iter().find(|known| known.number == dialect.major_version());
    generation.map(|generation| generation.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::crypto::PrivateKey;
    use crate::link::v3::V3;

    fn router(protocol: RouterProtocol, port: u16) -> RouterConfig {
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

    fn names(connector: &RouterConnector, router: &RouterConfig) -> Vec<&'static str> {
        connector.candidates(router).into_iter().map(|(dialect, _)| dialect.name()).collect()
    }

    #[tokio::test]
    async fn last_good_address_is_kept_for_another_port_but_not_for_another_name() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let at = |host| RouterConfig {
            address: parse::host(host).unwrap(),
            ..router(RouterProtocol::Auto, there.port())
        };
        let mut connector = RouterConnector::default();
        let (address, _) = connector.dial(&at("127.0.0.1")).await.unwrap();
        assert_eq!(address, there);
        connector.dialer.as_mut().unwrap().mark_good(address);
        let known =
            |connector: &RouterConnector| format!("{:?}", connector.dialer.as_ref().unwrap());
        // Another port of the same Router: its address is the same.
        let elsewhere = RouterConfig { port: 1, ..at("127.0.0.1") };
        assert!(connector.dial(&elsewhere).await.is_err());
        assert!(known(&connector).contains(&there.to_string()), "{}", known(&connector));
        // Another Router.
        assert!(connector.dial(&at("127.0.0.2")).await.is_err());
        assert_eq!(known(&connector), "Dialer(127.0.0.2, last good: None)");
    }

    #[test]
    fn dialects_and_settings_name_the_same_major_versions() {
        let dialects = DIALECTS.map(|dialect| dialect.major_version());
        assert_eq!(dialects, GENERATIONS.map(|generation| generation.number));
    }

    #[test]
    fn usual_port_decides_what_is_tried_first_until_a_dialect_is_known() {
        let auto = |port| router(RouterProtocol::Auto, port);
        let mut connector = RouterConnector::default();
        assert_eq!(names(&connector, &auto(8063)), ["3.0", "2.x"]);
        assert_eq!(names(&connector, &auto(8060)), ["2.x", "3.0"]);
        connector.known = Some((&V3, parse::host("router.example").unwrap(), 8060));
        assert_eq!(names(&connector, &auto(8060)), ["3.0", "2.x"]);
        // Nothing is known of another Router.
        assert_eq!(names(&connector, &auto(8061)), ["2.x", "3.0"]);
        assert_eq!(names(&connector, &router(parse::protocol("2").unwrap(), 8060)), ["2.x"]);
        assert_eq!(names(&connector, &router(parse::protocol("3").unwrap(), 8061)), ["3.0"]);
    }
}
