//! A simulated network for the unit tests of the dialer.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Dialer, Lookup, Network};

/// The port that the tests dial.
pub(super) const PORT: u16 = 8060;

/// How long a connection attempt takes, and how it ends.
type FakeAttempt = (Duration, Result<(), io::ErrorKind>);

#[derive(Default)]
struct FakeNetworkState {
    /// For each of the next lookups, how long it takes and its answer.
    answers: VecDeque<(Duration, Result<Vec<SocketAddr>, &'static str>)>,
    lookups: usize,
    addresses: HashMap<SocketAddr, FakeAttempt>,
    /// The addresses that were dialled, each with the time.
    dialled: Vec<(Duration, SocketAddr)>,
}

/// A simulated network. Addresses that are not configured never answer.
#[derive(Clone)]
pub(super) struct FakeNetwork {
    state: Arc<Mutex<FakeNetworkState>>,
    start: Instant,
}

impl FakeNetwork {
    pub(super) fn new() -> (Self, Dialer<Self>) {
        let network = Self { state: Arc::default(), start: Instant::now() };
        (network.clone(), Dialer::with_network(network, "router.example"))
    }

    pub(super) fn answer_lookup(&self, after: Duration, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| address(text)).collect();
        self.state.lock().unwrap().answers.push_back((after, Ok(addresses)));
    }

    pub(super) fn fail_lookup(&self, after: Duration, why: &'static str) {
        self.state.lock().unwrap().answers.push_back((after, Err(why)));
    }

    pub(super) fn set_attempt(&self, text: &str, after: Duration, end: Result<(), io::ErrorKind>) {
        self.state.lock().unwrap().addresses.insert(address(text), (after, end));
    }

    pub(super) fn take_dialled(&self) -> Vec<(Duration, SocketAddr)> {
        std::mem::take(&mut self.state.lock().unwrap().dialled)
    }

    pub(super) fn lookup_count(&self) -> usize {
        self.state.lock().unwrap().lookups
    }
}

impl Network for FakeNetwork {
    type Connection = ();

    fn resolve(&self, _host: &str, _port: u16) -> Lookup {
        let mut state = self.state.lock().unwrap();
        state.lookups += 1;
        let (after, answer) = state.answers.pop_front().expect("an answer");
        // The lookup continues even if it is not polled.
        let at = Instant::now() + after;
        Box::pin(async move {
            tokio::time::sleep_until(at).await;
            answer.map_err(io::Error::other)
        })
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<()> {
        let ends = {
            let mut state = self.state.lock().unwrap();
            state.dialled.push((self.start.elapsed(), address));
            state.addresses.get(&address).copied()
        };
        let Some((after, end)) = ends else { return std::future::pending().await };
        sleep(after).await;
        end.map_err(io::Error::from)
    }
}

/// Parses an address; the port is [`PORT`] unless the text has another.
pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| SocketAddr::new(text.parse().unwrap(), PORT))
}

pub(super) fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| address(text)).collect()
}
