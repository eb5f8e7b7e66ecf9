//! A trial pairing of two peers through the address that peers dial.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::app::parts::PeerSide;
use crate::app::{DataPlane, StartError};
use crate::config::Config;
use crate::config::networks::Networks;
use crate::config::parse::ListenAddress;
use crate::crypto::{Iv, PublicKey};
use crate::forward::TransferMethod;
use crate::listen::acceptor::Acceptor;
use crate::peer::first_message;
use crate::peer::session::KeptSessions;
use crate::state::keys::KeyId;
use crate::state::shared::SharedState;
use crate::trace::Tracer;
use crate::wire;
use crate::wire::peer::PeerSecret;
use crate::workers::Workers;

use super::address::Addresses;
use super::port::Port;
use super::report::{DoctorStep, PAIRING, StepOutcome};

/// The longest time to connect, and for two peers to be paired and to exchange a few bytes.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of pending peers that are admitted beside those of the trial: real peers that dial at the same time.
const SPARE_PEERS: usize = 16;
/// The bytes that the two peers send each other.
const GREETINGS: [&[u8]; 2] = [b"from the client to the host", b"from the host to the client"];

/// Why two peers were not paired.
enum TrialError {
    /// Connecting to the address failed.
    Connect(io::Error),
    /// Something other than the relay of the trial answers there.
    Exchange(io::Error),
}

impl fmt::Display for TrialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) | Self::Exchange(error) => error.fmt(f),
        }
    }
}

/// One address, and the result of the trial through it.
struct Trial {
    address: SocketAddr,
    /// Whether the address belongs to this machine.
    is_local: bool,
    result: Result<(), TrialError>,
}

/// Pairs two peers through each address that peers dial. Without `listener`, since another program holds the port, it
/// only connects. The port is free again on return.
pub(super) async fn check(
    config: &Config,
    port: &Port,
    listener: Option<TcpListener>,
    addresses: &Addresses,
) -> DoctorStep {
    if addresses.all.is_empty() {
        return DoctorStep::skipped(PAIRING, "not tried: PeerAddress has no address to dial");
    }
    let why = match (port, listener) {
        (_, Some(listener)) => return pair(config, listener, addresses).await,
        (Port::Unusable(_), None) => {
            return DoctorStep::skipped(PAIRING, "not tried: ListenPort cannot be used");
        }
        (Port::Relay { .. }, None) => "a relay runs",
        (Port::MaybeRelay { .. } | Port::Free, None) => "ListenPort is in use",
    };
    let connect =
        |address| async move { dial(address).await.map(drop).map_err(TrialError::Connect) };
    let trials = try_each_address(addresses, connect).await;
    if trials.iter().all(|trial| trial.result.is_ok()) {
        let dialled = config.router.peer_address.with_port(config.router.peer_port);
        let seen = format!(
            "not tried, since {why}; {dialled} accepts connections ({})",
            join_addresses(&trials)
        );
        return DoctorStep::skipped(PAIRING, seen);
    }
    judge(config, &trials, None)
}

async fn pair(config: &Config, listener: TcpListener, addresses: &Addresses) -> DoctorStep {
    // One trial for each address, and one straight to the socket.
    let trials = addresses.all.len() + 1;
    let relay = match TrialRelay::start(config, listener, trials) {
        Ok(relay) => relay,
        Err(error) => return DoctorStep::failed(PAIRING, format!("it cannot be tried: {error}")),
    };
    let pair = |address| try_pairing(relay.state.clone(), address);
    let (trials, inside) = tokio::join!(try_each_address(addresses, pair), pair(relay.inside));
    let inside = (relay.inside, inside);
    relay.stop().await;
    judge(config, &trials, Some(&inside))
}

/// Tries all addresses at once, so that the port is occupied no longer than needed.
async fn try_each_address<F>(addresses: &Addresses, attempt: impl Fn(SocketAddr) -> F) -> Vec<Trial>
where
    F: Future<Output = Result<(), TrialError>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (index, &(address, is_local)) in addresses.all.iter().enumerate() {
        let attempt = attempt(address);
        tasks.spawn(async move { (index, Trial { address, is_local, result: attempt.await }) });
    }
    let mut trials = tasks.join_all().await;
    trials.sort_by_key(|(index, _)| *index);
    trials.into_iter().map(|(_, trial)| trial).collect()
}

fn join_addresses(trials: &[Trial]) -> String {
    trials.iter().map(|trial| trial.address.to_string()).collect::<Vec<_>>().join(", ")
}

/// Judges the trials; `inside` is the result of a trial straight to the socket, if there was one.
fn judge(
    config: &Config,
    trials: &[Trial],
    inside: Option<&(SocketAddr, Result<(), TrialError>)>,
) -> DoctorStep {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    let (good, bad): (Vec<_>, Vec<_>) = trials.iter().partition(|trial| trial.result.is_ok());
    if bad.is_empty() {
        let seen = format!(
            "two peers were paired through {}{} and exchanged data",
            host.with_port(port),
            if good.len() > 1 {
                format!(" (each of {})", join_addresses(trials))
            } else {
                String::new()
            }
        );
        return DoctorStep::ok(PAIRING, seen);
    }
    let outside: Vec<_> = bad
        .iter()
        .filter_map(|Trial { address, result, .. }| {
            Some(format!("{address}: {}", result.as_ref().err()?))
        })
        .collect();
    if good.is_empty()
        && let Some((address, Err(error))) = inside
    {
        let seen = format!(
            "no pairing through {} ({}), and none through {address} on this machine either ({error}). Is its network \
             up, or does a firewall on this machine drop the packets?",
            host.with_port(port),
            outside.join("; ")
        );
        return DoctorStep::failed(PAIRING, seen);
    }
    let works = if inside.is_some() { ", though the relay itself works" } else { "" };
    let is_same_port = port == config.startup.listen_port;
    let outcome = if is_same_port && bad.iter().any(|trial| trial.is_local) {
        StepOutcome::Failed
    } else {
        StepOutcome::Hint
    };
    let findings: Vec<_> =
        bad.iter().filter_map(|trial| describe_failure(trial, is_same_port, works)).collect();
    if trials.len() == 1 {
        return DoctorStep::new(PAIRING, outcome, findings.concat());
    }
    let seen = match good.len() {
        0 => format!("two peers could not be paired through any address of {host}"),
        number => format!(
            "two peers were paired through {number} of the {} addresses of {host}; peers that dial one of the others fail",
            trials.len()
        ),
    };
    DoctorStep { details: findings, ..DoctorStep::new(PAIRING, outcome, seen) }
}

/// What a failed trial means.
fn describe_failure(trial: &Trial, is_same_port: bool, works: &str) -> Option<String> {
    let Trial { address, is_local, result } = trial;
    let port = address.port();
    Some(match (result.as_ref().err()?, *is_local && is_same_port) {
        (TrialError::Connect(error), true) => format!(
            "cannot connect to {address} ({error}), although it is this machine{works}. Does ListenInterface \
             leave the address out, or does a firewall on this machine drop the packets?"
        ),
        (TrialError::Connect(error), false)
            if !is_local && address.ip().to_canonical().is_loopback() =>
        {
            format!(
                "cannot connect to {address} ({error}){works}. Other machines see another address: try from one of \
             them whether port {port} can be reached"
            )
        }
        (TrialError::Connect(error), false) => format!(
            "cannot connect to {address} from this machine ({error}){works}. Many routers do not forward \
             connections from inside back in: try from outside whether port {port} can be reached"
        ),
        (TrialError::Exchange(error), true) => format!(
            "port {port} ({address}) leads to another program or another relay, perhaps in a container ({error}), \
             although it is this machine{works}. Stop it, or set another PeerPort"
        ),
        (TrialError::Exchange(error), false) => format!(
            "port {port} ({address}) leads to another program or another relay, perhaps in a container or on the \
             router ({error}){works}. Try from outside, too; then correct the port forwarding or PeerAddress"
        ),
    })
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    timeout(TRIAL_TIMEOUT, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The peer side of a relay, with keys that no Router ever gets.
struct TrialRelay {
    state: SharedState,
    /// The address of the relay's socket on this machine.
    inside: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TrialRelay {
    fn start(config: &Config, listener: TcpListener, trials: usize) -> Result<Self, StartError> {
        let listener = Acceptor::new(listener).map_err(StartError::Listener)?;
        // From the setting: "::" is IPv6 only and an empty one is both, but the socket has the same address in both
        // cases.
        let interface = config.startup.listen_interface;
        let port = listener.local_addr().map_err(StartError::Listener)?.port();
        let inside = ListenAddress { interface, port }.local();
        // All trials run at once, and the operator's limits are not meant for them.
        let max_pending_peers = config.max_pending_peers.max(2 * trials + SPARE_PEERS);
        let config = Config {
            max_sessions: trials,
            max_pending_peers,
            max_pending_peers_per_address: max_pending_peers,
            peer_connect_rate: None,
            allow_peers: Networks::default(),
            deny_peers: Networks::default(),
            // The peers of the trials connect directly.
            proxy_protocol_from: Networks::default(),
            ..config.clone()
        };
        let data_plane = DataPlane {
            workers: Workers::on_current_runtime(),
            method: TransferMethod::Copy,
            max_pipes: 0,
        };
        let peer_side =
            PeerSide::build(config, data_plane, Tracer::default(), KeptSessions::default())?;
        let stop = CancellationToken::new();
        let peers = peer_side.build_peers(stop.clone(), CancellationToken::new(), stop.clone());
        let state = peer_side.state;
        let task = tokio::spawn(async move { drop(peers.run(listener, Vec::new()).await) });
        state.link_up();
        Ok(Self { state, inside, stop, task })
    }

    /// Stops the relay. The port is free on return: the listener is closed at once, and a task that hangs does not hold
    /// it.
    async fn stop(mut self) {
        self.stop.cancel();
        if timeout(TRIAL_TIMEOUT, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Pairs two peers through an address of a [`TrialRelay`] with this state.
async fn try_pairing(state: SharedState, address: SocketAddr) -> Result<(), TrialError> {
    let make_key = || {
        let order = state.order(1, usize::MAX).ok_or_else(|| io::Error::other("no key is left"))?;
        let keys = order.generate().map_err(io::Error::other)?;
        let key = keys.first().map(|key| (key.id, key.public(), key.iv));
        state.offer(&order, keys);
        key.ok_or_else(|| io::Error::other("no key is left"))
    };
    let key = make_key().map_err(TrialError::Exchange)?;
    let (client, host) =
        tokio::try_join!(dial(address), dial(address)).map_err(TrialError::Connect)?;
    let exchange = async {
        let (mut client, mut host) =
            (introduce(client, &state, key).await?, introduce(host, &state, key).await?);
        greet(&mut client, &mut host, GREETINGS[0]).await?;
        greet(&mut host, &mut client, GREETINGS[1]).await
    };
    timeout(TRIAL_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::other(format!("no answer within {} s", TRIAL_TIMEOUT.as_secs())))
        })
        .map_err(TrialError::Exchange)
}

/// Sends the first message of a peer.
async fn introduce(
    mut stream: TcpStream,
    state: &SharedState,
    (id, public_key, iv): (KeyId, PublicKey, Iv),
) -> io::Result<TcpStream> {
    // The same for both peers, and unknown to anybody else.
    let secret = PeerSecret { random_data: iv.0.to_vec(), ..PeerSecret::default() };
    let message = first_message::seal(id, &public_key, iv, &secret.encode_to_vec(), 0)
        .map_err(io::Error::other)?;
    let message = wire::peer::encode_first_message(&message).map_err(io::Error::other)?;
    stream.write_all(&message).await?;
    // A Router would announce that it handed out the key.
    state.key_used(id, Instant::now());
    Ok(stream)
}

/// Sends a greeting from one peer to the other.
async fn greet(from: &mut TcpStream, to: &mut TcpStream, greeting: &[u8]) -> io::Result<()> {
    from.write_all(greeting).await?;
    let mut received = vec![0; greeting.len()];
    to.read_exact(&mut received).await?;
    if received == greeting {
        Ok(())
    } else {
        Err(io::Error::other("the bytes received are not those that were sent"))
    }
}

impl Drop for TrialRelay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::config;

    fn trial(address: &str, is_local: bool, result: Result<(), TrialError>) -> Trial {
        Trial { address: address.parse().unwrap(), is_local, result }
    }

    fn refused() -> TrialError {
        TrialError::Connect(io::ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn one_successful_pairing_shows_that_the_relay_works() {
        let inside = ("127.0.0.1:8070".parse().unwrap(), Err(refused()));
        let remote = || trial("198.51.100.1:8070", false, Err(refused()));
        let judged = |trials: &[Trial]| judge(&config(&[]), trials, Some(&inside));
        let none = judged(&[remote()]);
        assert_eq!(none.outcome, StepOutcome::Failed);
        assert!(none.seen.contains("none through 127.0.0.1:8070"), "{none}");
        let one = judged(&[trial("192.0.2.1:8070", true, Ok(())), remote()]);
        assert_eq!(one.outcome, StepOutcome::Hint, "{one}");
        assert!(one.seen.contains("through 1 of the 2 addresses"), "{one}");
    }

    /// An entry in `/etc/hosts` is no reason to blame `ListenInterface`.
    #[test]
    fn name_that_resolves_to_loopback_gives_a_hint() {
        let inside = ("192.0.2.1:8070".parse().unwrap(), Ok(()));
        let step = judge(
            &config(&[("LISTEN_INTERFACE", "192.0.2.1")]),
            &[trial("127.0.1.1:8070", false, Err(refused()))],
            Some(&inside),
        );
        assert_eq!(step.outcome, StepOutcome::Hint, "{step}");
        assert!(step.seen.contains("Other machines see another address"), "{step}");
        assert!(!step.seen.contains("ListenInterface"), "{step}");
    }
}
