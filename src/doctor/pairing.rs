//! Two peers that meet through the address that peers dial.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::config::networks::Networks;
use crate::config::parse::ListenAddress;
use crate::crypto::{self, Iv, PublicKey};
use crate::forward::metrics::ForwardMetrics;
use crate::forward::pipe::Pipes;
use crate::forward::{BUDGET, Forwarding, Method};
use crate::listen::accept::Accepting;
use crate::listen::acceptor::Acceptor;
use crate::peer::metrics::PeerMetrics;
use crate::peer::session::{Runner, Way};
use crate::peer::{Peers, first_message};
use crate::state::keys::KeyId;
use crate::state::metrics::StateMetrics;
use crate::state::shared::SharedState;
use crate::trace::Tracer;
use crate::wire;
use crate::wire::peer::Secret;
use crate::workers::Workers;

use super::address::Addresses;
use super::port::Port;
use super::report::{Outcome, PAIRING, Step};

/// Time to connect; and for two peers to be paired and to exchange a few bytes.
const TRY: Duration = Duration::from_secs(5);
/// Room for real peers that come meanwhile, beside those of the tries.
const ROOM: usize = 16;
/// What the two send each other.
const GREETINGS: [&[u8]; 2] = [b"from the client to the host", b"from the host to the client"];

/// Why two peers did not meet.
enum Failed {
    /// There is no connection.
    Connect(io::Error),
    /// There is one, but not to the relay.
    Exchange(io::Error),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) | Self::Exchange(error) => error.fmt(f),
        }
    }
}

/// One address, and how the try through it went.
struct Tried {
    address: SocketAddr,
    /// Whether it is this machine's.
    local: bool,
    result: Result<(), Failed>,
}

/// Pairs two peers through each address that peers dial; without `listener`, which somebody else has then, only
/// connects. On return nobody listens any more.
pub(super) async fn check(
    config: &Config,
    port: &Port,
    listener: Option<TcpListener>,
    addresses: &Addresses,
) -> Step {
    if addresses.all.is_empty() {
        return Step::skipped(PAIRING, "not tried: PeerAddress has no address to dial");
    }
    let why = match (port, listener) {
        (_, Some(listener)) => return pair(config, listener, addresses).await,
        (Port::Unusable(_), None) => {
            return Step::skipped(PAIRING, "not tried: ListenPort cannot be had");
        }
        (Port::Relay { .. }, None) => "a relay runs",
        (Port::Perhaps { .. } | Port::Free, None) => "ListenPort is held already",
    };
    let connect = |address| async move { dial(address).await.map(drop).map_err(Failed::Connect) };
    let tried = through_each(addresses, connect).await;
    if tried.iter().all(|tried| tried.result.is_ok()) {
        let dialled = config.router.peer_address.with_port(config.router.peer_port);
        let seen =
            format!("not tried, since {why}; {dialled} takes connections ({})", list(&tried));
        return Step::skipped(PAIRING, seen);
    }
    judge(config, &tried, None)
}

async fn pair(config: &Config, listener: TcpListener, addresses: &Addresses) -> Step {
    // One for each address and one inside.
    let tries = addresses.all.len() + 1;
    let relay = match TestRelay::start(config, listener, tries) {
        Ok(relay) => relay,
        Err(error) => return Step::failed(PAIRING, format!("it cannot be tried: {error}")),
    };
    let meet = |address| meet(relay.state.clone(), address);
    let (tried, inside) = tokio::join!(through_each(addresses, meet), meet(relay.inside));
    let inside = (relay.inside, inside);
    relay.stop().await;
    judge(config, &tried, Some(&inside))
}

/// Tries all addresses at once: the port is held no longer than needed.
async fn through_each<F>(addresses: &Addresses, attempt: impl Fn(SocketAddr) -> F) -> Vec<Tried>
where
    F: Future<Output = Result<(), Failed>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (place, &(address, local)) in addresses.all.iter().enumerate() {
        let attempt = attempt(address);
        tasks.spawn(async move { (place, Tried { address, local, result: attempt.await }) });
    }
    let mut tried = tasks.join_all().await;
    tried.sort_by_key(|(place, _)| *place);
    tried.into_iter().map(|(_, tried)| tried).collect()
}

fn list(tried: &[Tried]) -> String {
    tried.iter().map(|tried| tried.address.to_string()).collect::<Vec<_>>().join(", ")
}

/// What the tries mean; `inside` is how one straight to the socket went, where that was tried.
fn judge(
    config: &Config,
    tried: &[Tried],
    inside: Option<&(SocketAddr, Result<(), Failed>)>,
) -> Step {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    let (good, bad): (Vec<_>, Vec<_>) = tried.iter().partition(|tried| tried.result.is_ok());
    if bad.is_empty() {
        let seen = format!(
            "two peers met through {}{} and exchanged what they had to say",
            host.with_port(port),
            if good.len() > 1 { format!(" (each of {})", list(tried)) } else { String::new() }
        );
        return Step::ok(PAIRING, seen);
    }
    let outside: Vec<_> = bad
        .iter()
        .filter_map(|Tried { address, result, .. }| {
            Some(format!("{address}: {}", result.as_ref().err()?))
        })
        .collect();
    if good.is_empty()
        && let Some((address, Err(error))) = inside
    {
        let seen = format!(
            "no pairing through {} ({}), and none through {address} on this machine either ({error}). Is its network \
             up, or does a firewall on this machine drop it?",
            host.with_port(port),
            outside.join("; ")
        );
        return Step::failed(PAIRING, seen);
    }
    let works = if inside.is_some() { ", though the relay itself works" } else { "" };
    let same_port = port == config.startup.listen_port;
    let outcome = if same_port && bad.iter().any(|tried| tried.local) {
        Outcome::Failed
    } else {
        Outcome::Hint
    };
    let findings: Vec<_> =
        bad.iter().filter_map(|tried| finding(tried, same_port, works)).collect();
    if tried.len() == 1 {
        return Step::new(PAIRING, outcome, findings.concat());
    }
    let seen = match good.len() {
        0 => format!("two peers did not meet through any address of {host}"),
        number => format!(
            "two peers met through {number} of the {} addresses of {host}; peers that dial another one fail",
            tried.len()
        ),
    };
    Step { details: findings, ..Step::new(PAIRING, outcome, seen) }
}

/// What it means that two peers did not meet through one address.
fn finding(tried: &Tried, same_port: bool, works: &str) -> Option<String> {
    let Tried { address, local, result } = tried;
    let port = address.port();
    Some(match (result.as_ref().err()?, *local && same_port) {
        (Failed::Connect(error), true) => format!(
            "{address} cannot be connected to ({error}), although it is this machine{works}. Does ListenInterface \
             leave the address out, or a firewall on this machine drop it?"
        ),
        (Failed::Connect(error), false) if !local && address.ip().to_canonical().is_loopback() => {
            format!(
                "{address} cannot be connected to ({error}){works}. Other machines see another address: try from one of \
             them whether port {port} can be reached"
            )
        }
        (Failed::Connect(error), false) => format!(
            "{address} cannot be connected to from this machine ({error}){works}. Many routers do not lead \
             connections from inside back in: try from outside whether port {port} can be reached"
        ),
        (Failed::Exchange(error), true) => format!(
            "port {port} ({address}) leads to another program or another relay, perhaps in a container ({error}), \
             although it is this machine{works}. Stop that one, or set another PeerPort"
        ),
        (Failed::Exchange(error), false) => format!(
            "port {port} ({address}) leads to another program or another relay, perhaps in a container or on the \
             router ({error}){works}. Try from outside, too; then correct the port forwarding or PeerAddress"
        ),
    })
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    timeout(TRY, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The part of a relay that peers see, with keys that no Router ever gets.
struct TestRelay {
    state: SharedState<Way>,
    /// Where this machine reaches it.
    inside: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TestRelay {
    fn start(
        config: &Config,
        listener: TcpListener,
        tries: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let listener = Acceptor::new(listener)?;
        // As it was asked for: "::" is IPv6 alone, while nothing is both, though the socket says the same.
        let interface = config.startup.listen_interface;
        let inside = ListenAddress { interface, port: listener.local_addr()?.port() }.local();
        let registry = Registry::new();
        let mut base = [0; 4];
        crypto::random(&mut base)?;
        let metrics = StateMetrics::new(&registry)?;
        let state = SharedState::new(tries, u32::from_be_bytes(base), metrics);
        let stop = CancellationToken::new();
        // All tries run at once: the operator's limits are for peers, not for them.
        let max_pending_peers = config.max_pending_peers.max(2 * tries + ROOM);
        let settings = Config {
            max_pending_peers,
            max_pending_peers_per_address: max_pending_peers,
            peer_connect_rate: None,
            allow_peers: Networks::default(),
            deny_peers: Networks::default(),
            ..config.clone()
        };
        let (_settings, settings) = watch::channel(Arc::new(settings));
        let metrics = PeerMetrics::new(&registry)?;
        let pipes = Pipes::new(0, ForwardMetrics::new(&registry)?);
        let runner = Runner::new(
            state.clone(),
            settings,
            metrics.clone(),
            Workers::here(),
            Forwarding { method: Method::Copy, pipes, budget: BUDGET, throttle: Arc::default() },
        );
        let peers = Peers::new(
            runner,
            metrics,
            Tracer::default(),
            Accepting::default(),
            stop.clone(),
            stop.clone(),
        );
        let task = tokio::spawn(async move { peers.run(listener).await });
        state.link_up();
        Ok(Self { state, inside, stop, task })
    }

    /// On return the port is free: the listener goes at once, and what hangs does not keep it.
    async fn stop(mut self) {
        self.stop.cancel();
        if timeout(TRY, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Two peers meet at an address of a [`TestRelay`] with this state.
async fn meet(state: SharedState<Way>, address: SocketAddr) -> Result<(), Failed> {
    let made = || {
        let order = state.order(1, usize::MAX).ok_or_else(|| io::Error::other("no key is left"))?;
        let keys = order.make().map_err(io::Error::other)?;
        let key = keys.first().map(|key| (key.id, key.public(), key.iv));
        state.offer(&order, keys);
        key.ok_or_else(|| io::Error::other("no key is left"))
    };
    let key = made().map_err(Failed::Exchange)?;
    let (client, host) = tokio::try_join!(dial(address), dial(address)).map_err(Failed::Connect)?;
    let exchange = async {
        let (mut client, mut host) =
            (introduce(client, &state, key).await?, introduce(host, &state, key).await?);
        greet(&mut client, &mut host, GREETINGS[0]).await?;
        greet(&mut host, &mut client, GREETINGS[1]).await
    };
    timeout(TRY, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::other(format!("no answer within {} s", TRY.as_secs()))))
        .map_err(Failed::Exchange)
}

/// A peer shows its key.
async fn introduce(
    mut stream: TcpStream,
    state: &SharedState<Way>,
    (id, public_key, iv): (KeyId, PublicKey, Iv),
) -> io::Result<TcpStream> {
    // The same for both, and nothing that anybody else knows.
    let secret = Secret { random_data: iv.0.to_vec(), ..Secret::default() };
    let message = first_message::seal(id, &public_key, iv, &secret.encode_to_vec(), 0)
        .map_err(io::Error::other)?;
    let message = wire::peer::encode(&message).map_err(io::Error::other)?;
    stream.write_all(&message).await?;
    // The handing-out that a Router would announce.
    state.key_used(id, Instant::now());
    Ok(stream)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::config;

    fn tried(address: &str, local: bool, result: Result<(), Failed>) -> Tried {
        Tried { address: address.parse().unwrap(), local, result }
    }

    fn refused() -> Failed {
        Failed::Connect(io::ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn one_pairing_is_a_relay_that_works() {
        let inside = ("127.0.0.1:8070".parse().unwrap(), Err(refused()));
        let away = || tried("198.51.100.1:8070", false, Err(refused()));
        let judged = |tried: &[Tried]| judge(&config(&[]), tried, Some(&inside));
        let none = judged(&[away()]);
        assert_eq!(none.outcome, Outcome::Failed);
        assert!(none.seen.contains("none through 127.0.0.1:8070"), "{none}");
        let one = judged(&[tried("192.0.2.1:8070", true, Ok(())), away()]);
        assert_eq!(one.outcome, Outcome::Hint, "{one}");
        assert!(one.seen.contains("through 1 of the 2 addresses"), "{one}");
    }

    /// What only `/etc/hosts` says is no reason to blame `ListenInterface`.
    #[test]
    fn loopback_behind_a_name_is_a_hint() {
        let inside = ("192.0.2.1:8070".parse().unwrap(), Ok(()));
        let step = judge(
            &config(&[("LISTEN_INTERFACE", "192.0.2.1")]),
            &[tried("127.0.1.1:8070", false, Err(refused()))],
            Some(&inside),
        );
        assert_eq!(step.outcome, Outcome::Hint, "{step}");
        assert!(step.seen.contains("Other machines see another address"), "{step}");
        assert!(!step.seen.contains("ListenInterface"), "{step}");
    }
}
