//! Dials a name: its addresses side by side (RFC 8305), with a memory of what worked.
//!
//! Written here because no crate fits: `happyeyeballs` says of itself that it does not follow the RFC, `happy-eyeballs` has
//! had no release since 2023, and hyper-util's connector tries the addresses of one family one after the other. None of
//! them keeps a look-up that outlives its caller's patience, or an address for when the name fails.

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

/// How long one address is waited for before the next is tried beside it (RFC 8305, section 5).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Time for each address.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call of [`Dialer::dial`] waits for a look-up. The look-up itself goes on: a dead first name server and a
/// list of search domains make it last longer than that, every time.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look-up may take before the address that worked last is tried meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// A look-up that takes longer than this hangs: the name is looked up anew. Each one that hangs keeps a thread. Three dead
/// name servers and six search domains take six minutes.
const LOOKUP_LIFETIME: Duration = Duration::from_secs(900);

/// A look-up under way. It goes on, polled or not, and ends by itself.
pub type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// What dialling needs of the system; injected, so that tests need none.
pub trait Network: Send + Sync {
    /// A connection.
    type Connection: Send;

    /// Starts to look up a name.
    fn resolve(&self, host: &str, port: u16) -> Lookup;

    /// Connects to an address, in whatever time that takes.
    fn connect(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

/// The resolver and the TCP of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Network for System {
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

/// Addresses that failed, and why.
pub type Failed = Vec<(SocketAddr, io::Error)>;

/// Why a name cannot be dialled.
#[derive(Debug)]
pub enum DialError {
    /// The name does not resolve.
    Resolve {
        /// What the resolver says.
        error: io::Error,
        /// The address that worked last does not answer either, where there is one.
        last_good: Failed,
    },
    /// No address could be reached.
    Connect(Failed),
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

/// Dials one name again and again, and remembers what worked. Another name needs another one.
pub struct Dialer<N = System> {
    network: N,
    host: String,
    lookup: Option<LookupState>,
    /// Where the other side last turned out to be the right one.
    good: Option<SocketAddr>,
    /// Where somebody answered who turned out not to be the right one; the latest comes last.
    doubtful: Vec<SocketAddr>,
    /// Whether it was said already that the name fails and its last good address is used.
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
    /// Nothing is known of `host` yet.
    pub fn new(host: &str) -> Self {
        Self::with(System, host)
    }
}

impl<N: Network> Dialer<N> {
    /// Like [`Dialer::new`], in another network.
    pub fn with(network: N, host: &str) -> Self {
        let host = host.to_owned();
        Self { network, host, lookup: None, good: None, doubtful: Vec::new(), has_warned: false }
    }

    /// What is dialled.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Who answers at `address` is the right one: it is dialled first from now on, and also when the name fails.
    pub fn worked(&mut self, address: SocketAddr) {
        self.good = Some(address);
        self.doubtful.retain(|doubtful| *doubtful != address);
        // What it says would be old when it is needed.
        self.lookup = None;
    }

    /// Who answers at `address` is not the right one, or not today: the others are dialled before it.
    pub fn doubt(&mut self, address: SocketAddr) {
        self.doubtful.retain(|doubtful| *doubtful != address);
        self.doubtful.push(address);
    }

    /// Connects to an address of the name. Can be cancelled: the look-up goes on, and the next call uses it.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&mut self, port: u16) -> Result<(SocketAddr, N::Connection), DialError> {
        let deadline = Instant::now() + LOOKUP_TIMEOUT;
        let good = self.good.map(|address| with_port(address, port));
        // Where somebody else answers by now, the name has to say where the right one is.
        let trusted = good.filter(|good| !self.doubtful.contains(good));
        let soon = trusted.map_or(deadline, |_| Instant::now() + PATIENCE);
        let mut answer = self.look_up(port, soon).await;
        let mut failed = Vec::new();
        if let (None, Some(good)) = (&answer, trusted) {
            match race(&self.network, vec![good]).await {
                Ok(connected) => {
                    let text = format!("no answer within {} s", PATIENCE.as_secs());
                    self.warn_once(good, &text);
                    return Ok(connected);
                }
                Err(why) => failed = why,
            }
            answer = self.look_up(port, deadline).await;
        }
        let error = match answer {
            Some(Ok(addresses)) if !addresses.is_empty() => {
                self.has_warned = false;
                return self.dial_answered(addresses, port, good, failed).await;
            }
            Some(Ok(_)) => io::Error::other("the name has no address"),
            Some(Err(error)) => error,
            None => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s; the look-up goes on", LOOKUP_TIMEOUT.as_secs()),
            ),
        };
        if let Some(good) = good.filter(|_| failed.is_empty()) {
            match race(&self.network, vec![good]).await {
                Ok(connected) => {
                    self.warn_once(good, &error.to_string());
                    return Ok(connected);
                }
                Err(why) => failed = why,
            }
        }
        Err(DialError::Resolve { error, last_good: failed })
    }

    /// Connects to one of the addresses that the resolver gave; where none answers, to the last good one, if it is not among
    /// them and has not `failed` just now.
    async fn dial_answered(
        &mut self,
        addresses: Vec<SocketAddr>,
        port: u16,
        good: Option<SocketAddr>,
        failed: Failed,
    ) -> Result<(SocketAddr, N::Connection), DialError> {
        let good = good.filter(|_| failed.is_empty());
        let addresses = in_order(addresses, port, good, &self.doubtful);
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

    /// Returns when a look-up that outlived [`Self::dial`] has ended, and dialling makes sense again; never where there is
    /// none.
    pub async fn looked_up(&mut self) {
        match &mut self.lookup {
            Some(LookupState::Running { lookup, .. }) => {
                let answer = lookup.await;
                self.lookup = Some(LookupState::Done(answer));
            }
            _ => std::future::pending().await,
        }
    }

    /// The answer of the look-up that is under way, or of a new one; `None` where there is none until `deadline`.
    async fn look_up(
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

    fn warn_once(&mut self, address: SocketAddr, why: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            let host = &self.host;
            warn!(
                "the name {host} cannot be looked up at the moment ({why}); connected to {address}, where it was last"
            );
        }
    }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// The order in which addresses are dialled: the one that worked last, then as the resolver has them, the families in
/// turns; the doubtful ones at the end, those that were not tried for longest before the others.
fn in_order(
    addresses: Vec<SocketAddr>,
    port: u16,
    first: Option<SocketAddr>,
    doubtful: &[SocketAddr],
) -> Vec<SocketAddr> {
    let mut ordered = Vec::with_capacity(addresses.len());
    for address in addresses {
        let address = with_port(address, port);
        if !ordered.contains(&address) {
            ordered.push(address);
        }
    }
    // Stable: the others stay as they are.
    ordered.sort_by_key(|address| Some(*address) != first);
    let mut ordered = interleaved(ordered);
    ordered.sort_by_key(|address| doubtful.iter().position(|doubtful| doubtful == address));
    ordered
}

/// The families in turns, beginning with that of the first address (RFC 8305, section 4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut all = Vec::with_capacity(one.len() + other.len());
    while one.len() + other.len() > 0 {
        all.extend(one.next());
        all.extend(other.next());
    }
    all
}

/// Connects to the first of `addresses` that answers. Each is tried [`ATTEMPT_DELAY`] after the one before, or as soon as one
/// has failed.
///
/// # Errors
/// What became of each.
pub async fn race<N: Network>(
    network: &N,
    addresses: Vec<SocketAddr>,
) -> Result<(SocketAddr, N::Connection), Failed> {
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
/// What the system says, or that the time is over.
pub async fn connect<N: Network>(network: &N, address: SocketAddr) -> io::Result<N::Connection> {
    let connected = deadline::timeout(CONNECT_TIMEOUT, network.connect(address)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use tokio::time::timeout;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const PORT: u16 = 8060;

    /// How long something takes, and how it ends.
    type Ends = (Duration, Result<(), io::ErrorKind>);

    #[derive(Default)]
    struct World {
        /// The next look-ups: how long each takes, and what it says.
        answers: VecDeque<(Duration, Result<Vec<SocketAddr>, &'static str>)>,
        look_ups: usize,
        addresses: HashMap<SocketAddr, Ends>,
        /// When which address was dialled.
        dialled: Vec<(Duration, SocketAddr)>,
    }

    /// A network that does as it is told. Addresses that are not told of never answer.
    #[derive(Clone)]
    struct Laboratory {
        world: Arc<Mutex<World>>,
        start: Instant,
    }

    impl Laboratory {
        fn new() -> (Self, Dialer<Self>) {
            let laboratory = Self { world: Arc::default(), start: Instant::now() };
            (laboratory.clone(), Dialer::with(laboratory, "router.example"))
        }

        fn answer(&self, after: Duration, addresses: &[&str]) {
            let addresses = addresses.iter().map(|text| address(text)).collect();
            self.world.lock().unwrap().answers.push_back((after, Ok(addresses)));
        }

        fn fail(&self, after: Duration, why: &'static str) {
            self.world.lock().unwrap().answers.push_back((after, Err(why)));
        }

        fn set(&self, text: &str, after: Duration, end: Result<(), io::ErrorKind>) {
            self.world.lock().unwrap().addresses.insert(address(text), (after, end));
        }

        fn dialled(&self) -> Vec<(Duration, SocketAddr)> {
            std::mem::take(&mut self.world.lock().unwrap().dialled)
        }

        fn look_ups(&self) -> usize {
            self.world.lock().unwrap().look_ups
        }
    }

    impl Network for Laboratory {
        type Connection = ();

        fn resolve(&self, _host: &str, _port: u16) -> Lookup {
            let mut world = self.world.lock().unwrap();
            world.look_ups += 1;
            let (after, answer) = world.answers.pop_front().expect("an answer");
            // It goes on when nobody polls it.
            let at = Instant::now() + after;
            Box::pin(async move {
                tokio::time::sleep_until(at).await;
                answer.map_err(io::Error::other)
            })
        }

        async fn connect(&self, address: SocketAddr) -> io::Result<()> {
            let ends = {
                let mut world = self.world.lock().unwrap();
                world.dialled.push((self.start.elapsed(), address));
                world.addresses.get(&address).copied()
            };
            let Some((after, end)) = ends else { return std::future::pending().await };
            sleep(after).await;
            end.map_err(io::Error::from)
        }
    }

    /// An address of [`PORT`], unless it has another.
    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| SocketAddr::new(text.parse().unwrap(), PORT))
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| address(text)).collect()
    }

    /// Dials, and takes who answers for the right one.
    async fn dial(dialer: &mut Dialer<Laboratory>) -> Result<SocketAddr, DialError> {
        let (address, ()) = dialer.dial(PORT).await?;
        dialer.worked(address);
        Ok(address)
    }

    #[tokio::test(start_paused = true)]
    async fn dead_addresses_cost_a_quarter_of_a_second_each() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.answer(MS, &["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"]);
        laboratory.set("192.0.2.2", MS, Ok(()));
        let start = Instant::now();
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
        // The families in turns.
        let order: Vec<_> = laboratory.dialled().iter().map(|(_, address)| *address).collect();
        assert_eq!(order, addresses(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"]));
        assert!(start.elapsed() < 3 * ATTEMPT_DELAY + 20 * MS, "{:?}", start.elapsed());
        // From then on, what worked comes first, wherever the resolver has it.
        laboratory.answer(MS, &["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
        assert_eq!(laboratory.dialled().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_address_is_not_given_up_for_those_behind_it() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.answer(MS, &["2001:db8::1", "192.0.2.1"]);
        laboratory.set("2001:db8::1", 900 * MS, Ok(()));
        assert_eq!(dial(&mut dialer).await.unwrap(), address("2001:db8::1"));
        assert_eq!(laboratory.dialled().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_costs_no_time_and_each_failure_is_named() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.answer(MS, &["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3"]);
        laboratory.set("192.0.2.1", MS, Err(io::ErrorKind::ConnectionRefused));
        laboratory.set("192.0.2.2", MS, Err(io::ErrorKind::NetworkUnreachable));
        let start = Instant::now();
        let Err(DialError::Connect(failed)) = dial(&mut dialer).await else { panic!("it failed") };
        let kinds: Vec<_> = failed.iter().map(|(_, error)| error.kind()).collect();
        let expected = [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::TimedOut,
        ];
        assert_eq!(kinds, expected);
        assert!(laboratory.dialled()[2].0 < 20 * MS);
        assert!(start.elapsed() < CONNECT_TIMEOUT + 20 * MS, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_outlives_a_call_is_used_by_the_next() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.answer(25 * SECOND, &["192.0.2.1"]);
        laboratory.set("192.0.2.1", MS, Ok(()));
        let start = Instant::now();
        for _ in 0..2 {
            let error = dial(&mut dialer).await.unwrap_err();
            assert!(error.to_string().contains("no answer within 10 s"), "{error}");
        }
        // Whoever waits for something else hears of its end.
        dialer.looked_up().await;
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
        assert!(start.elapsed() < 25 * SECOND + 20 * MS, "{:?}", start.elapsed());
        assert_eq!(laboratory.look_ups(), 1);
        // It is used once; and nothing is under way that could be waited for.
        assert!(timeout(3600 * SECOND, dialer.looked_up()).await.is_err());
        laboratory.answer(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        assert_eq!(laboratory.look_ups(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_cancelled_leaves_the_look_up_to_the_next() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.answer(9 * SECOND, &["192.0.2.1"]);
        laboratory.set("192.0.2.1", MS, Ok(()));
        for _ in 0..4 {
            assert!(timeout(2 * SECOND, dialer.dial(PORT)).await.is_err());
        }
        dial(&mut dialer).await.unwrap();
        assert_eq!(laboratory.look_ups(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_hangs_is_begun_anew() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.answer(10 * LOOKUP_LIFETIME, &["192.0.2.9"]);
        laboratory.answer(MS, &["192.0.2.1"]);
        laboratory.set("192.0.2.1", MS, Ok(()));
        dial(&mut dialer).await.unwrap_err();
        sleep(LOOKUP_LIFETIME).await;
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_address_serves_while_the_name_fails() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.set("192.0.2.1", MS, Ok(()));
        laboratory.answer(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        laboratory.fail(MS, "no such name");
        laboratory.answer(MS, &[]);
        for _ in 0..2 {
            assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
        }
        // Or while its look-up takes long; then the next begins anew, or its answer would be an old one.
        for _ in 0..2 {
            laboratory.answer(40 * SECOND, &["192.0.2.7"]);
            let start = Instant::now();
            assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
            assert!(start.elapsed() < PATIENCE + 20 * MS, "{:?}", start.elapsed());
            sleep(60 * SECOND).await;
        }
        // On another port, too.
        laboratory.set("192.0.2.1:8063", MS, Ok(()));
        laboratory.fail(MS, "no such name");
        assert_eq!(dialer.dial(8063).await.unwrap().0, address("192.0.2.1:8063"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_answers_counts_more_than_what_worked() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.set("192.0.2.1", MS, Ok(()));
        laboratory.set("192.0.2.2", MS, Ok(()));
        laboratory.answer(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        // The Router has moved; somebody still answers where it was.
        laboratory.answer(SECOND, &["192.0.2.2"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
        laboratory.fail(MS, "no such name");
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
    }

    #[tokio::test(start_paused = true)]
    async fn where_both_fail_both_are_named_and_the_look_up_is_waited_for() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.set("192.0.2.1", MS, Ok(()));
        laboratory.answer(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        laboratory.set("192.0.2.1", MS, Err(io::ErrorKind::ConnectionRefused));
        laboratory.fail(MS, "no such name");
        let error = dial(&mut dialer).await.unwrap_err().to_string();
        assert!(error.contains("no such name") && error.contains("192.0.2.1:8060"), "{error}");
        laboratory.dialled();
        // The look-up ends in time, and says where the Router went.
        laboratory.set("192.0.2.2", MS, Ok(()));
        laboratory.answer(6 * SECOND, &["192.0.2.1", "192.0.2.2"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.2"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_and_is_not_the_right_one_comes_last() {
        let (laboratory, mut dialer) = Laboratory::new();
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
        for text in all {
            laboratory.set(text, MS, Ok(()));
        }
        laboratory.answer(MS, &all);
        let (first, ()) = dialer.dial(PORT).await.unwrap();
        assert_eq!(first, address("192.0.2.1"));
        dialer.doubt(first);
        laboratory.answer(MS, &all);
        let (second, ()) = dialer.dial(PORT).await.unwrap();
        assert_ne!(second, first);
        dialer.worked(second);
        // Doubt about one that was good: it comes last as long as there are others, and is used where there is nothing else.
        dialer.doubt(second);
        laboratory.answer(MS, &all);
        assert_ne!(dialer.dial(PORT).await.unwrap().0, second);
        laboratory.fail(MS, "no such name");
        assert_eq!(dialer.dial(PORT).await.unwrap().0, second);
        dialer.worked(second);
        laboratory.answer(MS, &all);
        assert_eq!(dialer.dial(PORT).await.unwrap().0, second);
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_has_its_turn_however_many_wrong_ones_answer() {
        let (laboratory, mut dialer) = Laboratory::new();
        let all = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
        for text in all {
            laboratory.set(text, MS, Ok(()));
        }
        for _ in 0..2 {
            let mut dialled = Vec::new();
            for _ in 0..all.len() {
                laboratory.answer(MS, &all);
                let (address, ()) = dialer.dial(PORT).await.unwrap();
                dialer.doubt(address);
                dialled.push(address);
            }
            assert_eq!(dialled, addresses(&all));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_name_says_where_the_router_went_once_a_stranger_answers_where_it_was() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.set("192.0.2.1", MS, Ok(()));
        laboratory.set("192.0.2.2", MS, Ok(()));
        laboratory.answer(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        laboratory.answer(5 * SECOND, &["192.0.2.2"]);
        // The address of last time answers first, but it is a stranger's now.
        let (address, ()) = dialer.dial(PORT).await.unwrap();
        assert_eq!(address, addresses(&["192.0.2.1"])[0]);
        dialer.doubt(address);
        assert_eq!(dial(&mut dialer).await.unwrap(), addresses(&["192.0.2.2"])[0]);
        assert_eq!(laboratory.look_ups(), 2, "the look-up that was under way is used");
    }

    #[tokio::test(start_paused = true)]
    async fn where_none_of_the_answered_addresses_answers_the_last_good_one_does() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.set("192.0.2.1", MS, Ok(()));
        laboratory.answer(MS, &["192.0.2.1"]);
        dial(&mut dialer).await.unwrap();
        // A sinkhole, or a name server that knows too little.
        laboratory.answer(MS, &["192.0.2.9"]);
        assert_eq!(dial(&mut dialer).await.unwrap(), address("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_without_an_address_or_an_answer_says_so() {
        let (laboratory, mut dialer) = Laboratory::new();
        laboratory.answer(MS, &[]);
        let error = dial(&mut dialer).await.unwrap_err().to_string();
        assert!(error.contains("has no address"), "{error}");
        laboratory.fail(MS, "no such name");
        let error = dial(&mut dialer).await.unwrap_err().to_string();
        assert!(error.contains("does not resolve (no such name)"), "{error}");
    }

    #[tokio::test]
    async fn this_machine_resolves_and_connects() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let mut dialer = Dialer::new("127.0.0.1");
        let (address, stream) = dialer.dial(there.port()).await.unwrap();
        assert_eq!((address, stream.peer_addr().unwrap()), (there, there));
        assert!(stream.nodelay().unwrap());
    }
}
