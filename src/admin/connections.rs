//! The connections of a listener, limited in total and for each address. A new connection is always accepted; over the
//! limit, the one that has been idle the longest is evicted. If it were refused instead, an attacker who occupies all
//! connections would lock out the probes of an orchestrator, which would then restart a healthy relay.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The maximum number of connections of a listener.
const MAX_CONNECTIONS: usize = 64;
/// The maximum for one address: more than the six of a browser and the one or two of a scraper, so that a stranger
/// evicts only connections of its own. Loopback addresses may have all of them, since a proxy or tunnel there serves
/// many users.
const MAX_PER_ADDRESS: usize = 8;
/// The length of the IPv6 prefix that counts as one address, in bits: a host chooses the other bits itself.
const IPV6_PREFIX: u32 = 64;
/// How long a new connection does not count as idle, since its request is on the way.
const GRACE: Duration = Duration::from_secs(1);

/// The connections of one listener; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    table: Arc<Mutex<ConnectionTable>>,
    limit: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(MAX_CONNECTIONS)
    }
}

#[derive(Debug, Default)]
struct ConnectionTable {
    open: Vec<Entry>,
    next_number: u64,
    /// Whether the address that was admitted last has reached its limit.
    is_last_address_full: bool,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// See [`to_counted_address`].
    address: IpAddr,
    /// When the connection was accepted, or its latest request began or ended. Bytes alone do not count: a head that grows by a
    /// byte a second is not a request.
    since: Instant,
    activity: Activity,
    evicted: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// No request has arrived yet.
    New,
    /// A request is being answered.
    Answering,
    /// The answer is being written.
    Sending,
    /// The last response has been sent.
    Idle,
}

/// Counts a connection until it is dropped.
#[derive(Debug)]
#[must_use = "the connection is no longer counted once this is dropped"]
pub(super) struct ConnectionPermit {
    connections: Connections,
    number: u64,
    address: IpAddr,
    evicted: CancellationToken,
}

/// Marks a request as being answered until it is dropped; its response is then being written.
#[derive(Debug)]
#[must_use = "the response counts as made once this is dropped"]
pub(super) struct RequestGuard<'a>(&'a ConnectionPermit);

impl Connections {
    /// Creates an empty table for at most `limit` connections.
    pub(super) fn new(limit: usize) -> Self {
        Self { table: Arc::default(), limit }
    }

    /// Admits a connection from `caller`, and evicts another one if there are too many.
    pub(super) fn admit(&self, caller: IpAddr) -> ConnectionPermit {
        let address = to_counted_address(caller);
        let own_limit = if address.is_loopback() { self.limit } else { MAX_PER_ADDRESS };
        let mut table = self.lock();
        let now = Instant::now();
        if table.count_connections(address) >= own_limit {
            table.evict(now, |entry| entry.address == address);
        } else if table.open.len() >= self.limit {
            table.evict(now, |_| true);
        }
        table.is_last_address_full = table.count_connections(address) + 1 >= own_limit;
        let (number, evicted) = (table.next_number, CancellationToken::new());
        table.next_number += 1;
        table.open.push(Entry {
            number,
            address,
            since: now,
            activity: Activity::New,
            evicted: evicted.clone(),
        });
        drop(table);
        ConnectionPermit {
            connections: self.clone(),
            number,
            address: caller.to_canonical(),
            evicted,
        }
    }

    /// Whether the next connection may evict one that was admitted since the previous call. A caller that asks before
    /// each connection, and yields to the others when this is true, evicts none that has not had its turn.
    pub(super) fn is_full(&self) -> bool {
        let table = self.lock();
        table.is_last_address_full || table.open.len() >= self.limit
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock()
    }
}

impl ConnectionTable {
    fn count_connections(&self, address: IpAddr) -> usize {
        self.open.iter().filter(|entry| entry.address == address).count()
    }

    /// Evicts the candidate that has been idle the longest; if none is idle, the one whose request is the oldest.
    fn evict(&mut self, now: Instant, is_candidate: impl Fn(&Entry) -> bool) {
        let candidates = self.open.iter().enumerate().filter(|(_, entry)| is_candidate(entry));
        let victim =
            candidates.min_by_key(|(_, entry)| (!entry.is_idle(now), entry.since, entry.number));
        if let Some((index, _)) = victim {
            self.open.swap_remove(index).evicted.cancel();
        }
    }
}

impl Entry {
    fn is_idle(&self, now: Instant) -> bool {
        match self.activity {
            Activity::New => now.saturating_duration_since(self.since) >= GRACE,
            Activity::Answering | Activity::Sending => false,
            Activity::Idle => true,
        }
    }
}

impl ConnectionPermit {
    /// Returns the address of the caller.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Completes when the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Marks the connection as answering a request.
    pub(super) fn begin_request(&self) -> RequestGuard<'_> {
        self.update(|_| Some(Activity::Answering));
        RequestGuard(self)
    }

    /// Notes that the kernel has taken everything that was written.
    pub(super) fn mark_flushed(&self) {
        self.update(|activity| (activity == Activity::Sending).then_some(Activity::Idle));
    }

    fn update(&self, next: impl FnOnce(Activity) -> Option<Activity>) {
        let mut table = self.connections.lock();
        let entry = table.open.iter_mut().find(|entry| entry.number == self.number);
        if let Some(entry) = entry
            && let Some(activity) = next(entry.activity)
        {
            entry.activity = activity;
            entry.since = Instant::now();
        }
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.0.update(|_| Some(Activity::Sending));
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        // An evicted connection has been removed already.
        self.connections.lock().open.retain(|entry| entry.number != self.number);
    }
}

/// What counts as one address: an IPv4 address, or the network of an IPv6 address.
fn to_counted_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let network = address.to_bits() >> (Ipv6Addr::BITS - IPV6_PREFIX);
            Ipv6Addr::from_bits(network << (Ipv6Addr::BITS - IPV6_PREFIX)).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::accept::{AcceptDecision, AcceptStatus, accept};
    use crate::listen::acceptor::Acceptor;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::advance;

    fn admit(connections: &Connections, address: &str, count: usize) -> Vec<ConnectionPermit> {
        (0..count).map(|_| connections.admit(address.parse().unwrap())).collect()
    }

    fn evicted(permits: &[ConnectionPermit]) -> Vec<usize> {
        let gone = permits.iter().enumerate().filter(|(_, permit)| permit.evicted.is_cancelled());
        gone.map(|(index, _)| index).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_evicts_only_its_own_connections() {
        let connections = Connections::default();
        let others = admit(&connections, "192.0.2.2", 3);
        let stranger = admit(&connections, "192.0.2.1", 8);
        assert_eq!(evicted(&stranger), [0; 0]);
        // The same address in its IPv6 form.
        let more = admit(&connections, "::ffff:192.0.2.1", 3);
        assert_eq!(evicted(&stranger), [0, 1, 2]);
        assert!(evicted(&others).is_empty() && evicted(&more).is_empty());
        drop((stranger, more, others));
        assert!(connections.lock().open.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_is_full_when_the_last_address_reached_its_limit() {
        let connections = Connections::default();
        let mut held = admit(&connections, "192.0.2.1", 7);
        assert!(!connections.is_full());
        // The next connection from the same address evicts one, and so does each after it.
        for _ in 0..3 {
            held.extend(admit(&connections, "192.0.2.1", 1));
            assert!(connections.is_full());
        }
        held.extend(admit(&connections, "192.0.2.2", 1));
        assert!(!connections.is_full());
    }

    /// All connections are in the accept queue before the first is accepted.
    #[tokio::test]
    async fn a_probe_is_answered_amid_a_burst_from_its_own_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let acceptor = Acceptor::new(listener).unwrap();
        let address = acceptor.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect(address).unwrap();
        let before: Vec<_> = (0..50).map(|_| connect()).collect();
        let mut probe = connect();
        std::io::Write::write_all(&mut probe, b"?").unwrap();
        let after: Vec<_> = (0..50).map(|_| connect()).collect();
        let (connections, accepting) = (Connections::default(), AcceptStatus::default());
        let decide = || {
            if connections.is_full() { AcceptDecision::YieldFirst } else { AcceptDecision::Accept }
        };
        let accept = accept(&acceptor, "strangers", &accepting, decide, |stream, _| {
            // As if it came from another machine.
            let permit = connections.admit("192.0.2.1".parse().unwrap());
            tokio::spawn(async move {
                let answer = async {
                    let mut stream = TcpStream::from_std(stream).unwrap();
                    let mut asked = [0];
                    if stream.read_exact(&mut asked).await.is_ok() {
                        stream.write_all(&asked).await.unwrap();
                    }
                };
                tokio::select! {
                    biased;
                    () = answer => {}
                    () = permit.evicted() => {}
                }
            });
        });
        probe.set_nonblocking(true).unwrap();
        let mut probe = TcpStream::from_std(probe).unwrap();
        let mut answer = [0];
        tokio::select! {
            () = accept => {}
            answered = probe.read_exact(&mut answer) => assert_eq!(answered.unwrap(), 1),
        }
        assert_eq!(&answer, b"?");
        drop((before, after));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_counts_as_one_address() {
        let connections = Connections::default();
        let stranger: Vec<_> = (0..20)
            .map(|host| connections.admit(format!("2001:db8:0:1:{host}::1").parse().unwrap()))
            .collect();
        assert_eq!(evicted(&stranger).len(), 12);
        assert!(evicted(&admit(&connections, "2001:db8:0:2::1", 8)).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn loopback_has_only_the_total_limit() {
        for this in ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"] {
            let connections = Connections::default();
            let all = admit(&connections, this, 64);
            assert!(evicted(&all).is_empty() && connections.is_full(), "{this}");
            let probe = admit(&connections, "192.0.2.1", 1);
            assert_eq!((evicted(&all), evicted(&probe)), (vec![0], vec![]), "{this}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_evicted_first_then_the_oldest_request() {
        let connections = Connections::default();
        let all = admit(&connections, "127.0.0.1", 64);
        advance(GRACE).await;
        // All but two are answering; 7 began first.
        let first = all[7].begin_request();
        advance(GRACE).await;
        let others: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(index, _)| ![7, 20, 40].contains(index))
            .map(|(_, permit)| permit.begin_request())
            .collect();
        // 20 got a response a moment ago; 40 has never sent a request.
        drop(all[20].begin_request());
        all[20].mark_flushed();
        let mut new = admit(&connections, "127.0.0.1", 1);
        assert_eq!(evicted(&all), [40]);
        new.extend(admit(&connections, "127.0.0.1", 1));
        assert_eq!(evicted(&all), [20, 40]);
        // None is idle now; the new ones are not idle yet.
        new.extend(admit(&connections, "127.0.0.1", 1));
        assert_eq!(evicted(&all), [7, 20, 40]);
        assert!(evicted(&new).is_empty());
        // Later they are, and the end of an evicted request brings nothing back. A connection whose response is still
        // being written is not idle.
        advance(GRACE).await;
        drop(first);
        drop(others);
        all[0].mark_flushed();
        advance(GRACE).await;
        let last = admit(&connections, "127.0.0.1", 1);
        assert_eq!((evicted(&new), evicted(&last)), (vec![0], vec![]));
        assert_eq!(evicted(&all), [7, 20, 40]);
        assert_eq!(connections.lock().open.len(), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_outlives_all_earlier_ones() {
        let connections = Connections::default();
        let held = admit(&connections, "127.0.0.1", 64);
        let _requests: Vec<_> = held.iter().map(ConnectionPermit::begin_request).collect();
        let probe = admit(&connections, "127.0.0.1", 1);
        let flood = admit(&connections, "127.0.0.1", 63);
        assert!(evicted(&probe).is_empty() && evicted(&flood).is_empty());
        assert_eq!(evicted(&held).len(), 64);
    }
}
