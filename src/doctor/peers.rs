//! The port that peers dial, the address they dial it by, and two peers that try it.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::client;
use crate::config::Config;
use crate::config::parse::ListenAddress;
use crate::crypto::{self, Iv, PublicKey};
use crate::listen::accept::Accepting;
use crate::listen::bind::{self, BindError};
use crate::peer::metrics::PeerMetrics;
use crate::peer::session::Way;
use crate::peer::{self, Peers, first_message};
use crate::state::keys::KeyId;
use crate::state::metrics::StateMetrics;
use crate::state::shared::SharedState;
use crate::trace::Tracer;
use crate::wire;
use crate::wire::peer::Secret;

use super::report::Step;

const PORT: &str = "ListenPort";
const ADDRESS: &str = "PeerAddress";
const PAIRING: &str = "pairing with itself";

/// Time for the resolver.
const RESOLVE: Duration = Duration::from_secs(10);
/// Time for two peers to connect, be paired and exchange a few bytes.
const TRY: Duration = Duration::from_secs(5);
/// What the two send each other.
const GREETINGS: [&[u8]; 2] = [b"from the client to the host", b"from the host to the client"];

/// What became of the port that peers dial.
pub(super) enum Port {
    /// It was free; the doctor listens on it now.
    Free(TcpListener),
    /// A relay holds it.
    Relay(String),
    /// Somebody else holds it, or it cannot be had.
    Unusable(BindError),
}

impl Port {
    /// Tries to listen.
    pub(super) async fn look(config: &Config) -> Self {
        let startup = &config.startup;
        match bind::bind(peer::PURPOSE, startup.listen_interface, startup.listen_port) {
            Ok(listener) => Self::Free(listener),
            Err(error) if error.is_taken() => {
                let by_name = error.holder().is_some_and(|holder| holder.contains("(aspia_relay)"));
                if by_name || relay_runs(config).await {
                    Self::Relay(
                        error.holder().unwrap_or("a process that cannot be seen").to_owned(),
                    )
                } else {
                    Self::Unusable(error)
                }
            }
            Err(error) => Self::Unusable(error),
        }
    }

    pub(super) fn step(&self, config: &Config) -> Step {
        let port = config.startup.listen_port;
        match self {
            Self::Free(_) => Step::ok(PORT, format!("{port} is free")),
            Self::Relay(holder) => Step::ok(
                PORT,
                format!("{port} is held by a relay that runs already ({holder}); it is left alone"),
            ),
            Self::Unusable(error) => Step::failed(PORT, error.to_string()),
        }
    }

    /// Whether a relay runs here already.
    pub(super) fn is_relay(&self) -> bool {
        matches!(self, Self::Relay(_))
    }
}

/// Whether a relay with this configuration runs here already, as far as its admin interface tells.
async fn relay_runs(config: &Config) -> bool {
    config.startup.admin_listen.is_some() && client::healthcheck(config).await.is_ok()
}

/// What peers dial.
pub(super) struct Addresses {
    pub(super) step: Step,
    /// Whether each of them is an address of this machine.
    all: Vec<(SocketAddr, bool)>,
}

/// Whether somebody on this machine can have the address: nobody else can bind it.
fn is_local(address: SocketAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok()
}

/// Resolves `PeerAddress` and compares with this machine.
pub(super) async fn address(config: &Config) -> Addresses {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    let resolved = timeout(RESOLVE, lookup_host((host.as_str(), port))).await;
    let all: Vec<_> = match resolved {
        Ok(Ok(addresses)) => addresses.map(|address| (address, is_local(address))).collect(),
        failed => {
            let why = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => "timed out".to_owned(),
            };
            let text = format!(
                "{host} does not resolve ({why}); Clients and Hosts would not find the relay. Check its spelling and \
                 the DNS"
            );
            return Addresses { step: Step::failed(ADDRESS, text), all: Vec::new() };
        }
    };
    let list = |wanted: bool| {
        let addresses: Vec<_> = all
            .iter()
            .filter(|(_, local)| *local == wanted)
            .map(|(address, _)| address.ip().to_string())
            .collect();
        addresses.join(", ")
    };
    let step = match (list(true), list(false)) {
        (here, elsewhere) if elsewhere.is_empty() => {
            Step::ok(ADDRESS, format!("{host} is this machine ({here})"))
        }
        (here, elsewhere) => Step::hint(
            ADDRESS,
            format!(
                "{host} is {elsewhere}, which is no address of this machine{}. Behind a router that is right, if it \
                 leads port {port} to port {} here; otherwise correct PeerAddress",
                if here.is_empty() { String::new() } else { format!(" ({here} is)") },
                config.startup.listen_port
            ),
        ),
    };
    Addresses { step, all }
}

/// Pairs two peers through the address that peers dial; with a relay that runs, only connects.
pub(super) async fn pairing(config: &Config, port: &Port, addresses: &Addresses) -> Step {
    let dialled = config.router.peer_address.with_port(config.router.peer_port);
    if addresses.all.is_empty() {
        return Step::skipped(PAIRING, "not tried: PeerAddress does not resolve");
    }
    match port {
        Port::Unusable(_) => Step::skipped(PAIRING, "not tried: ListenPort cannot be had"),
        Port::Relay(_) => match connect(addresses).await {
            Ok(_) => Step::ok(
                PAIRING,
                format!("not tried, since a relay runs; {dialled} takes a connection"),
            ),
            Err(error) => hairpin(config, &dialled, &error.to_string(), addresses),
        },
        Port::Free(listener) => match listener.try_clone() {
            Ok(listener) => try_pairing(config, listener, &dialled, addresses).await,
            Err(error) => Step::failed(PAIRING, error.to_string()),
        },
    }
}

async fn try_pairing(
    config: &Config,
    listener: TcpListener,
    dialled: &str,
    addresses: &Addresses,
) -> Step {
    let relay = match TestRelay::start(config, listener) {
        Ok(relay) => relay,
        Err(error) => return Step::failed(PAIRING, format!("it cannot be tried: {error}")),
    };
    let outside: Vec<_> = addresses.all.iter().map(|(address, _)| *address).collect();
    let error = match relay.pair(&outside).await {
        Ok(()) => {
            return Step::ok(
                PAIRING,
                format!("two peers met through {dialled} and exchanged what they had to say"),
            );
        }
        Err(error) => error,
    };
    // The key is good for one pair; another try needs another relay, and the port is the same.
    match relay.pair(&[relay.local]).await {
        Ok(()) => hairpin(config, dialled, &error.to_string(), addresses),
        Err(inside) => Step::failed(
            PAIRING,
            format!(
                "no pairing through {dialled} ({error}), and none through {} on this machine ({inside}). Does a \
                 firewall on this machine drop it?",
                relay.local
            ),
        ),
    }
}

/// What a pairing from inside that fails means: where the address is this machine's, something is wrong.
fn hairpin(config: &Config, dialled: &str, error: &str, addresses: &Addresses) -> Step {
    if addresses.all.iter().any(|(_, local)| *local)
        && config.router.peer_port == config.startup.listen_port
    {
        return Step::failed(
            PAIRING,
            format!(
                "no pairing through {dialled} ({error}), although it is this machine. Does ListenInterface leave the \
                 address out, or a firewall on this machine drop it?"
            ),
        );
    }
    Step::hint(
        PAIRING,
        format!(
            "no pairing through {dialled} from this machine ({error}), but the relay itself works. Many routers do not \
             lead connections from inside back in: try from outside whether port {} can be reached",
            config.router.peer_port
        ),
    )
}

async fn connect(addresses: &Addresses) -> io::Result<TcpStream> {
    let all: Vec<_> = addresses.all.iter().map(|(address, _)| *address).collect();
    dial(&all).await
}

async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    timeout(TRY, TcpStream::connect(addresses))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The part of a relay that peers see, with keys that no Router ever gets.
struct TestRelay {
    state: SharedState<Way>,
    local: SocketAddr,
    stop: CancellationToken,
}

impl TestRelay {
    fn start(config: &Config, listener: TcpListener) -> Result<Self, Box<dyn std::error::Error>> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let bound = listener.local_addr()?;
        let interface = Some(bound.ip()).filter(|address| !address.is_unspecified());
        let local = ListenAddress { interface, port: bound.port() }.local();
        let registry = Registry::new();
        let mut base = [0; 4];
        crypto::random(&mut base)?;
        let metrics = StateMetrics::new(&registry)?;
        // One key for each of the two tries.
        let state = SharedState::new(2, u32::from_be_bytes(base), metrics);
        let stop = CancellationToken::new();
        let (_settings, settings) = watch::channel(Arc::new(config.clone()));
        let peers = Peers::new(
            state.clone(),
            settings,
            PeerMetrics::new(&registry)?,
            Tracer::default(),
            Accepting::default(),
            stop.clone(),
            stop.clone(),
        );
        tokio::spawn(async move { peers.run(listener).await });
        state.link_up();
        Ok(Self { state, local, stop })
    }

    /// Two peers meet at one of the addresses.
    async fn pair(&self, addresses: &[SocketAddr]) -> io::Result<()> {
        let order = self.state.order(1, 2).ok_or_else(|| io::Error::other("no key is left"))?;
        let keys = order.make().map_err(io::Error::other)?;
        let key = keys.first().map(|key| (key.id, key.public(), key.iv));
        let key = key.ok_or_else(|| io::Error::other("no key is left"))?;
        self.state.offer(&order, keys);
        let (mut client, mut host) =
            (self.peer(addresses, key).await?, self.peer(addresses, key).await?);
        let exchange = async {
            greet(&mut client, &mut host, GREETINGS[0]).await?;
            greet(&mut host, &mut client, GREETINGS[1]).await
        };
        timeout(TRY, exchange).await.unwrap_or_else(|_| {
            Err(io::Error::other("something takes the connection, but it is not this relay"))
        })
    }

    async fn peer(
        &self,
        addresses: &[SocketAddr],
        (id, public_key, iv): (KeyId, PublicKey, Iv),
    ) -> io::Result<TcpStream> {
        // The same for both, and nothing that anybody else knows.
        let secret = Secret { random_data: iv.0.to_vec(), ..Secret::default() };
        let message = first_message::seal(id, &public_key, iv, &secret.encode_to_vec())
            .map_err(io::Error::other)?;
        let message = wire::peer::encode(&message).map_err(io::Error::other)?;
        let mut stream = dial(addresses).await?;
        stream.write_all(&message).await?;
        // The handing-out that a Router would announce.
        self.state.key_used(id, Instant::now());
        Ok(stream)
    }
}

/// Sends a greeting from one peer to the other.
async fn greet(from: &mut TcpStream, to: &mut TcpStream, greeting: &[u8]) -> io::Result<()> {
    from.write_all(greeting).await?;
    let mut arrived = vec![0; greeting.len()];
    to.read_exact(&mut arrived).await?;
    if arrived == greeting {
        Ok(())
    } else {
        Err(io::Error::other("other bytes arrived than were sent"))
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
