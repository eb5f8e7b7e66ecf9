//! Dials a name: races its addresses (RFC 8305, "Happy Eyeballs"), and remembers which one worked.
//!
//! No crate does what is needed here. `happyeyeballs` does not follow the RFC, as its documentation says; `happy-eyeballs`
//! has had no release since 2023; hyper-util's connector tries the addresses of a family one after another. None of them
//! keeps a lookup that outlives the call, or a known address to use while the name does not resolve.

mod order;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use crate::deadline;

use order::{sort_for_dialling, with_port};

/// How long one attempt runs before the next address is tried in parallel (RFC 8305, section 5).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The time limit of the attempt to connect to one address.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call of [`Dialer::dial`] waits for a lookup. The lookup itself continues: if the first name server is dead
/// and there is a list of search domains, every lookup takes longer than this.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lookup may take before the address that last worked is tried.
const FALLBACK_DELAY: Duration = Duration::from_secs(2);
/// A lookup that takes this long counts as hung, and a new one is started. Each hung lookup occupies a thread. A lookup
/// with three dead name servers and six search domains takes six minutes.
const LOOKUP_LIFETIME: Duration = Duration::from_secs(900);

/// A lookup in progress. It continues whether or not the future is polled, and ends by itself.
pub type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The resolver and the connections that dialling uses, as a trait so that tests need no network.
pub trait Network: Send + Sync {
    /// A connection.
    type Connection: Send;

    /// Starts a lookup of a name.
    fn resolve(&self, host: &str, port: u16) -> Lookup;

    /// Connects to an address, without a time limit.
    fn connect(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

/// The resolver and TCP of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNetwork;

impl Network for SystemNetwork {
    type Connection = TcpStream;

    fn resolve(&self, host: &str, port: u16) -> Lookup {
        let host = host.to_owned();
        Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) })
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Addresses that could not be reached, each with its error.
pub type FailedAttempts = Vec<(SocketAddr, io::Error)>;

/// Why a name cannot be dialled.
#[derive(Debug)]
pub enum DialError {
    /// The name does not resolve.
    Resolve {
        /// The error of the resolver.
        error: io::Error,
        /// The address that last worked, if there is one, with the error of connecting to it now.
        last_good: FailedAttempts,
    },
    /// No address could be reached.
    Connect(FailedAttempts),
}

impl std::error::Error for DialError {}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = match self {
            Self::Resolve { error, last_good } => {
                write!(f, "the name does not resolve ({error})")?;
                last_good
            }
            Self::Connect(failed) => {
                f.write_str("cannot connect")?;
                failed
            }
        };
        for (index, (address, error)) in failed.iter().enumerate() {
            let sign = if index == 0 { ":" } else { "," };
            write!(f, "{sign} {address} ({error})")?;
        }
        Ok(())
    }
}

/// Dials one name any number of times, and remembers which address worked. Another name needs another dialer.
pub struct Dialer<N = SystemNetwork> {
    network: N,
    host: String,
    lookup: Option<LookupState>,
    /// The address at which the right server was last found.
    good: Option<SocketAddr>,
    /// Addresses at which another server answered; the latest comes last.
    doubtful: Vec<SocketAddr>,
    /// Whether the warning that the last good address is used was logged.
    has_warned: bool,
}

enum LookupState {
    Running { lookup: Lookup, since: Instant },
    Done(io::Result<Vec<SocketAddr>>),
}

impl<N> fmt::Debug for Dialer<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialer({}, last good: {:?})", self.host, self.good)
    }
}

impl Dialer {
    /// Creates a dialer that knows nothing about `host` yet.
    pub fn new(host: &str) -> Self {
        Self::with_network(SystemNetwork, host)
    }
}

impl<N: Network> Dialer<N> {
    /// Creates a dialer for another network than the system's.
    pub fn with_network(network: N, host: &str) -> Self {
        let host = host.to_owned();
        Self { network, host, lookup: None, good: None, doubtful: Vec::new(), has_warned: false }
    }

    /// Returns the name that is dialled.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Records that the server at `address` is the right one: the address is dialled first from now on, even if the name
    /// does not resolve.
    pub fn mark_good(&mut self, address: SocketAddr) {
        self.good = Some(address);
        self.doubtful.retain(|doubtful| *doubtful != address);
        // By the time it is needed, the answer of a lookup in progress would be outdated.
        self.lookup = None;
    }

    /// Records that the server at `address` is not the right one, at least for now: the address is dialled last.
    pub fn mark_doubtful(&mut self, address: SocketAddr) {
        self.doubtful.retain(|doubtful| *doubtful != address);
        self.doubtful.push(address);
    }

    /// Connects to an address of the name. Cancel safe: the lookup continues, and the next call uses its answer.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&mut self, port: u16) -> Result<(SocketAddr, N::Connection), DialError> {
        let deadline = Instant::now() + LOOKUP_TIMEOUT;
        let good = self.good.map(|address| with_port(address, port));
        // If another server now answers at the good address, only a lookup can find the right one.
        let trusted = good.filter(|good| !self.doubtful.contains(good));
        let first_deadline = trusted.map_or(deadline, |_| Instant::now() + FALLBACK_DELAY);
        let mut answer = self.lookup_until(port, first_deadline).await;
        let mut failed = Vec::new();
        if let (None, Some(good)) = (&answer, trusted) {
            let reason = format!("no answer within {} s", FALLBACK_DELAY.as_secs());
            match self.dial_good(good, &reason).await {
                Ok(connected) => return Ok(connected),
                Err(errors) => failed = errors,
            }
            answer = self.lookup_until(port, deadline).await;
        }
        let error = match answer {
            Some(Ok(addresses)) if !addresses.is_empty() => {
                self.has_warned = false;
                return self.dial_resolved(addresses, port, good, failed).await;
            }
            Some(Ok(_)) => io::Error::other("the name has no address"),
            Some(Err(error)) => error,
            None => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s; the lookup continues", LOOKUP_TIMEOUT.as_secs()),
            ),
        };
        if let Some(good) = good.filter(|_| failed.is_empty()) {
            match self.dial_good(good, &error.to_string()).await {
                Ok(connected) => return Ok(connected),
                Err(errors) => failed = errors,
            }
        }
        Err(DialError::Resolve { error, last_good: failed })
    }

    /// Connects to the last good address. `reason` is why the name was not resolved.
    async fn dial_good(
        &mut self,
        good: SocketAddr,
        reason: &str,
    ) -> Result<(SocketAddr, N::Connection), FailedAttempts> {
        let connected = race(&self.network, vec![good]).await?;
        self.warn_once(good, reason);
        Ok(connected)
    }

    /// Connects to one of the resolved addresses. If none answers, connects to the last good one, unless it is among them or
    /// has just `failed`.
    async fn dial_resolved(
        &mut self,
        addresses: Vec<SocketAddr>,
        port: u16,
        good: Option<SocketAddr>,
        failed: FailedAttempts,
    ) -> Result<(SocketAddr, N::Connection), DialError> {
        let good = good.filter(|_| failed.is_empty());
        let addresses = sort_for_dialling(addresses, port, good, &self.doubtful);
        self.doubtful.retain(|doubtful| addresses.contains(doubtful) || good == Some(*doubtful));
        let absent = good.filter(|good| !addresses.contains(good));
        let mut failed = match race(&self.network, addresses).await {
            Ok(connected) => return Ok(connected),
            Err(failed) => failed,
        };
        if let Some(good) = absent {
            match race(&self.network, vec![good]).await {
                Ok(connected) => return Ok(connected),
                Err(why) => failed.extend(why),
            }
        }
        Err(DialError::Connect(failed))
    }

    /// Waits until a lookup that outlived [`Self::dial`] has ended, so that dialling makes sense again. Never returns if there
    /// is none.
    pub async fn wait_for_lookup(&mut self) {
        match &mut self.lookup {
            Some(LookupState::Running { lookup, .. }) => {
                let answer = lookup.await;
                self.lookup = Some(LookupState::Done(answer));
            }
            _ => std::future::pending().await,
        }
    }

    /// Waits for the answer of the lookup in progress, or of a new one; `None` if there is no answer before `deadline`.
    async fn lookup_until(
        &mut self,
        port: u16,
        deadline: Instant,
    ) -> Option<io::Result<Vec<SocketAddr>>> {
        let state = match self.lookup.take() {
            Some(LookupState::Done(answer)) => return Some(answer),
            Some(LookupState::Running { lookup, since }) if since.elapsed() < LOOKUP_LIFETIME => {
                LookupState::Running { lookup, since }
            }
            _ => LookupState::Running {
                lookup: self.network.resolve(&self.host, port),
                since: Instant::now(),
            },
        };
        let LookupState::Running { lookup, .. } = self.lookup.insert(state) else { return None };
        let answer = timeout_at(deadline, lookup).await.ok()?;
        self.lookup = None;
        Some(answer)
    }

    fn warn_once(&mut self, address: SocketAddr, reason: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            let host = &self.host;
            warn!(
                "the name {host} does not resolve at the moment ({reason}); connected to the address that last worked, {address}"
            );
        }
    }
}

/// Connects to the first of `addresses` that answers. Each attempt starts [`ATTEMPT_DELAY`] after the previous one, or as
/// soon as an attempt has failed.
///
/// # Errors
/// The error of each address.
pub async fn race<N: Network>(
    network: &N,
    addresses: Vec<SocketAddr>,
) -> Result<(SocketAddr, N::Connection), FailedAttempts> {
    let mut waiting = VecDeque::from(addresses);
    let mut attempts = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        if let Some(address) = waiting.pop_front() {
            attempts.push(async move { (address, connect(network, address).await) });
        }
        tokio::select! {
            biased;
            ended = attempts.next() => match ended {
                Some((address, Ok(connection))) => return Ok((address, connection)),
                Some((address, Err(error))) => failed.push((address, error)),
                None => return Err(failed),
            },
            () = sleep(ATTEMPT_DELAY), if !waiting.is_empty() => {}
        }
    }
}

/// Connects within [`CONNECT_TIMEOUT`].
///
/// # Errors
/// The error of the system, or [`io::ErrorKind::TimedOut`].
pub async fn connect<N: Network>(network: &N, address: SocketAddr) -> io::Result<N::Connection> {
    let connected = deadline::timeout(CONNECT_TIMEOUT, network.connect(address)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod fake_network;

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::fake_network::{FakeNetwork, PORT, address, addresses};
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// Dials, and records that the server is the right one.
    async fn dial(dialer: &mut Dialer<FakeNetwork>) -> Result<SocketAddr, DialError> {
        let (address, ()) = dialer.dial(PORT).await?;
        dialer.mark_good(address);
        Ok(address)
    }

    #[tokio::test(start_paused = true)]
    async fn each_dead_address_costs_a_quarter_of_a_second() {
        let (network, mut dialer) = FakeNetwork::new();
        network.answer_lookup(MS, &["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"]);
        network.set_attempt("192.0.2.2", MS, Ok(()));
        let start = Instant::now();
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
        // The address families alternate.
        let order: Vec<_> = network.take_dialled().iter().map(|(_, address)| *address).collect();
        assert_eq!(order, addresses(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"]));
        assert!(start.elapsed() < 3 * ATTEMPT_DELAY + 20 * MS, "{:?}", start.elapsed());
        // From then on, the address that worked comes first, wherever the resolver lists it.
        network.answer_lookup(MS, &["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
        assert_eq!(network.take_dialled().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_address_still_wins_if_later_ones_do_not_answer() {
        let (network, mut dialer) = FakeNetwork::new();
        network.answer_lookup(MS, &["2001:db8::1", "192.0.2.1"]);
        network.set_attempt("2001:db8::1", 900 * MS, Ok(()));
        assert_eq!(dial(&mut dialer).await.unwrap(), address("2001:db8::1"));
        assert_eq!(network.take_dialled().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_address_costs_no_time_and_every_error_is_returned() {
        let (network, mut dialer) = FakeNetwork::new();
        network.answer_lookup(MS, &["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3"]);
        network.set_attempt("192.0.2.1", MS, Err(io::ErrorKind::ConnectionRefused));
        network.set_attempt("192.0.2.2", MS, Err(io::ErrorKind::NetworkUnreachable));
        let start = Instant::now();
        let Err(DialError::Connect(failed)) = dial(&mut dialer).await else {
            panic!("dialling must fail")
        };
        let kinds: Vec<_> = failed.iter().map(|(_, error)| error.kind()).collect();
        let expected = [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::TimedOut,
        ];
        assert_eq!(kinds, expected);
        assert!(network.take_dialled()[2].0 < 20 * MS);
        assert!(start.elapsed() < CONNECT_TIMEOUT + 20 * MS, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn next_call_uses_a_lookup_that_outlived_the_call_before() {
        let (network, mut dialer) = FakeNetwork::new();
        network.answer_lookup(25 * SECOND, &["192.0.2.1"]);
        network.set_attempt("192.0.2.1", MS, Ok(()));
        let start = Instant::now();
        for _ in 0..2 {
            let error = dial(&mut dialer).await.unwrap_err();
            assert!(error.to_string().contains("no answer within 10 s"), "{error}");
        }
        // A caller that waits for the lookup alone learns that it has ended.
        dialer.wait_for_lookup().await;
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
        assert!(start.elapsed() < 25 * SECOND + 20 * MS, "{:?}", start.elapsed());
        assert_eq!(network.lookup_count(), 1);
        // Its answer is used once, and no lookup is in progress now.
        assert!(timeout(3600 * SECOND, dialer.wait_for_lookup()).await.is_err());
        network.answer_lookup(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        assert_eq!(network.lookup_count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn next_call_uses_the_lookup_of_a_cancelled_call() {
        let (network, mut dialer) = FakeNetwork::new();
        network.answer_lookup(9 * SECOND, &["192.0.2.1"]);
        network.set_attempt("192.0.2.1", MS, Ok(()));
        for _ in 0..4 {
            assert!(timeout(2 * SECOND, dialer.dial(PORT)).await.is_err());
        }
        dial(&mut dialer).await.unwrap();
        assert_eq!(network.lookup_count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn hung_lookup_is_replaced() {
        let (network, mut dialer) = FakeNetwork::new();
        network.answer_lookup(10 * LOOKUP_LIFETIME, &["192.0.2.9"]);
        network.answer_lookup(MS, &["192.0.2.1"]);
        network.set_attempt("192.0.2.1", MS, Ok(()));
        dial(&mut dialer).await.unwrap_err();
        sleep(LOOKUP_LIFETIME).await;
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn last_good_address_is_used_while_the_name_does_not_resolve() {
        let (network, mut dialer) = FakeNetwork::new();
        network.set_attempt("192.0.2.1", MS, Ok(()));
        network.answer_lookup(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        network.fail_lookup(MS, "no such name");
        network.answer_lookup(MS, &[]);
        for _ in 0..2 {
            assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
        }
        // It is also used while a lookup takes long. The next call starts a new lookup, or the answer would be outdated.
        for _ in 0..2 {
            network.answer_lookup(40 * SECOND, &["192.0.2.7"]);
            let start = Instant::now();
            assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
            assert!(start.elapsed() < FALLBACK_DELAY + 20 * MS, "{:?}", start.elapsed());
            sleep(60 * SECOND).await;
        }
        // It is used with another port too.
        network.set_attempt("192.0.2.1:8063", MS, Ok(()));
        network.fail_lookup(MS, "no such name");
        assert_eq!(dialer.dial(8063).await.unwrap().0, address("192.0.2.1:8063"));
    }

    #[tokio::test(start_paused = true)]
    async fn resolved_address_takes_precedence_over_the_last_good_one() {
        let (network, mut dialer) = FakeNetwork::new();
        network.set_attempt("192.0.2.1", MS, Ok(()));
        network.set_attempt("192.0.2.2", MS, Ok(()));
        network.answer_lookup(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        // The Router has moved, and another server still answers at its old address.
        network.answer_lookup(SECOND, &["192.0.2.2"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
        network.fail_lookup(MS, "no such name");
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
    }

    #[tokio::test(start_paused = true)]
    async fn errors_of_the_name_and_of_the_last_good_address_are_both_returned() {
        let (network, mut dialer) = FakeNetwork::new();
        network.set_attempt("192.0.2.1", MS, Ok(()));
        network.answer_lookup(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        network.set_attempt("192.0.2.1", MS, Err(io::ErrorKind::ConnectionRefused));
        network.fail_lookup(MS, "no such name");
        let error = dial(&mut dialer).await.unwrap_err().to_string();
        assert!(error.contains("no such name") && error.contains("192.0.2.1:8060"), "{error}");
        network.take_dialled();
        // The lookup ends in time and yields the new address of the Router.
        network.set_attempt("192.0.2.2", MS, Ok(()));
        network.answer_lookup(6 * SECOND, &["192.0.2.1", "192.0.2.2"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
    }

    #[tokio::test(start_paused = true)]
    async fn doubtful_address_is_dialled_last() {
        let (network, mut dialer) = FakeNetwork::new();
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
        for text in all {
            network.set_attempt(text, MS, Ok(()));
        }
        network.answer_lookup(MS, &all);
        let (first, ()) = dialer.dial(PORT).await.unwrap();
        assert_eq!(first, address("192.0.2.1"));
        dialer.mark_doubtful(first);
        network.answer_lookup(MS, &all);
        let (second, ()) = dialer.dial(PORT).await.unwrap();
        assert_ne!(second, first);
        dialer.mark_good(second);
        // A good address that became doubtful comes last, and is still used if there is no other.
        dialer.mark_doubtful(second);
        network.answer_lookup(MS, &all);
        assert_ne!(dialer.dial(PORT).await.unwrap().0, second);
        network.fail_lookup(MS, "no such name");
        assert_eq!(dialer.dial(PORT).await.unwrap().0, second);
        dialer.mark_good(second);
        network.answer_lookup(MS, &all);
        assert_eq!(dialer.dial(PORT).await.unwrap().0, second);
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_is_tried_in_turn_while_wrong_servers_answer() {
        let (network, mut dialer) = FakeNetwork::new();
        let all = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
        for text in all {
            network.set_attempt(text, MS, Ok(()));
        }
        for _ in 0..2 {
            let mut dialled = Vec::new();
            for _ in 0..all.len() {
                network.answer_lookup(MS, &all);
                let (address, ()) = dialer.dial(PORT).await.unwrap();
                dialer.mark_doubtful(address);
                dialled.push(address);
            }
            assert_eq!(dialled, addresses(&all));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dialer_waits_for_a_slow_lookup_if_the_last_good_address_is_doubtful() {
        let (network, mut dialer) = FakeNetwork::new();
        network.set_attempt("192.0.2.1", MS, Ok(()));
        network.set_attempt("192.0.2.2", MS, Ok(()));
        network.answer_lookup(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        network.answer_lookup(5 * SECOND, &["192.0.2.2"]);
        // The last good address answers first, but now it belongs to another server.
        let (address, ()) = dialer.dial(PORT).await.unwrap();
        assert_eq!(address, addresses(&["192.0.2.1"])[0]);
        dialer.mark_doubtful(address);
        assert_eq!(dial(&mut dialer).await.unwrap(), addresses(&["192.0.2.2"])[0]);
        assert_eq!(network.lookup_count(), 2, "the lookup in progress is used");
    }

    #[tokio::test(start_paused = true)]
    async fn last_good_address_is_tried_if_no_resolved_one_answers() {
        let (network, mut dialer) = FakeNetwork::new();
        network.set_attempt("192.0.2.1", MS, Ok(()));
        network.answer_lookup(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        // The resolved address is a sinkhole, or the name server has incomplete data.
        network.answer_lookup(MS, &["192.0.2.9"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn error_says_that_the_name_has_no_address_or_does_not_resolve() {
        let (network, mut dialer) = FakeNetwork::new();
        network.answer_lookup(MS, &[]);
        let error = dial(&mut dialer).await.unwrap_err().to_string();
        assert!(error.contains("has no address"), "{error}");
        network.fail_lookup(MS, "no such name");
        let error = dial(&mut dialer).await.unwrap_err().to_string();
        assert!(error.contains("does not resolve (no such name)"), "{error}");
    }

    #[tokio::test]
    async fn system_network_resolves_and_connects() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let mut dialer = Dialer::new("127.0.0.1");
        let (address, stream) = dialer.dial(there.port()).await.unwrap();
        assert_eq!((address, stream.peer_addr().unwrap()), (there, there));
        assert!(stream.nodelay().unwrap());
    }
}
