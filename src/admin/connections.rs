//! The connections of a listener: so many in all, and so many of one address. A new one is always taken; where there are
//! too many, the one that has been idle the longest is evicted. Otherwise whoever holds all of them keeps out the probes
//! of an orchestrator, which then restarts a healthy relay.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections at once, for each listener.
const MAX_CONNECTIONS: usize = 64;
/// Of these, for one address: more than the six of a browser and the one or two of a scraper. One stranger shall evict
/// only its own. This machine itself may have all of them: a proxy or a tunnel there stands for many.
const MAX_PER_ADDRESS: usize = 8;
/// Bits of an IPv6 address that stand for one caller: the rest is everybody's own to choose.
const IPV6_PREFIX: u32 = 64;
/// A new connection does not count as idle for this time: its request is on the way.
const GRACE: Duration = Duration::from_secs(1);

/// The connections of one listener; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    table: Arc<Mutex<Table>>,
    /// Most at once.
    limit: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(MAX_CONNECTIONS)
    }
}

#[derive(Debug, Default)]
struct Table {
    open: Vec<Entry>,
    next_number: u64,
    /// Whether the caller who was admitted last has all that it may have.
    is_last_caller_full: bool,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    caller: IpAddr,
    /// When it was accepted, or began or ended its latest request. Bytes alone change nothing: half a head that grows by a
    /// byte a second is no request.
    since: Instant,
    activity: Activity,
    evicted: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// It has not asked yet.
    New,
    /// A request is being answered.
    Answering,
    /// The answer is being written.
    Sending,
    /// It has had an answer.
    Quiet,
}

/// Lets a connection live until it is dropped.
#[derive(Debug)]
#[must_use = "the connection is no longer counted once this is dropped"]
pub(super) struct ConnectionPermit {
    connections: Connections,
    number: u64,
    evicted: CancellationToken,
}

/// A request is being answered until this is dropped; then its answer is written.
#[derive(Debug)]
#[must_use = "the answer counts as made once this is dropped"]
pub(super) struct RequestGuard<'a>(&'a ConnectionPermit);

impl Connections {
    /// None yet; at most `limit` at once.
    pub(super) fn new(limit: usize) -> Self {
        Self { table: Arc::default(), limit }
    }

    /// Takes a new connection from `address`, and evicts another one where there are too many.
    pub(super) fn admit(&self, address: IpAddr) -> ConnectionPermit {
        let caller = caller(address);
        let own_limit = if caller.is_loopback() { self.limit } else { MAX_PER_ADDRESS };
        let mut table = self.lock();
        let now = Instant::now();
        if table.open.iter().filter(|entry| entry.caller == caller).count() >= own_limit {
            table.evict(now, |entry| entry.caller == caller);
        } else if table.open.len() >= self.limit {
            table.evict(now, |_| true);
        }
        let of_caller = table.open.iter().filter(|entry| entry.caller == caller).count() + 1;
        table.is_last_caller_full = of_caller >= own_limit;
        let (number, evicted) = (table.next_number, CancellationToken::new());
        table.next_number += 1;
        table.open.push(Entry {
            number,
            caller,
            since: now,
            activity: Activity::New,
            evicted: evicted.clone(),
        });
        drop(table);
        ConnectionPermit { connections: self.clone(), number, evicted }
    }

    /// Whether the next connection may evict one that was admitted since this was asked before. Whoever asks before each,
    /// and lets others have their turn where this is so, evicts none that has not had its own.
    pub(super) fn is_crowded(&self) -> bool {
        let table = self.lock();
        table.is_last_caller_full || table.open.len() >= self.limit
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Evicts the connection that has been idle the longest; where none is idle, the one whose request is the oldest.
    fn evict(&mut self, now: Instant, may_go: impl Fn(&Entry) -> bool) {
        let candidates = self.open.iter().enumerate().filter(|(_, entry)| may_go(entry));
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
            Activity::Quiet => true,
        }
    }
}

impl ConnectionPermit {
    /// Completes when the connection has to go.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Notes that a request is being answered.
    pub(super) fn begin_request(&self) -> RequestGuard<'_> {
        self.update(|_| Some(Activity::Answering));
        RequestGuard(self)
    }

    /// Notes that the system has taken whatever there was to write.
    pub(super) fn flushed(&self) {
        self.update(|activity| (activity == Activity::Sending).then_some(Activity::Quiet));
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
        // An evicted one is no longer there.
        self.connections.lock().open.retain(|entry| entry.number != self.number);
    }
}

/// Who calls from an address: one for each IPv4 address, one for each IPv6 network.
fn caller(address: IpAddr) -> IpAddr {
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
    use crate::listen::accept::{Accepting, Room, accept};
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
    async fn whoever_has_all_that_an_address_may_have_makes_it_crowded() {
        let connections = Connections::default();
        let mut held = admit(&connections, "192.0.2.1", 7);
        assert!(!connections.is_crowded());
        // The next one of the same address evicts, and so does each that comes then.
        for _ in 0..3 {
            held.extend(admit(&connections, "192.0.2.1", 1));
            assert!(connections.is_crowded());
        }
        held.extend(admit(&connections, "192.0.2.2", 1));
        assert!(!connections.is_crowded());
    }

    /// All of them wait with the system before the first one is accepted.
    #[tokio::test]
    async fn a_probe_that_shares_its_address_with_a_burst_is_answered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let acceptor = Acceptor::new(listener).unwrap();
        let address = acceptor.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect(address).unwrap();
        let before: Vec<_> = (0..50).map(|_| connect()).collect();
        let mut probe = connect();
        std::io::Write::write_all(&mut probe, b"?").unwrap();
        let after: Vec<_> = (0..50).map(|_| connect()).collect();
        let (connections, accepting) = (Connections::default(), Accepting::default());
        let room = || if connections.is_crowded() { Room::Crowded } else { Room::Enough };
        let accept = accept(&acceptor, "strangers", &accepting, room, |stream, _| {
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
    async fn an_ipv6_network_is_one_address() {
        let connections = Connections::default();
        let stranger: Vec<_> = (0..20)
            .map(|host| connections.admit(format!("2001:db8:0:1:{host}::1").parse().unwrap()))
            .collect();
        assert_eq!(evicted(&stranger).len(), 12);
        assert!(evicted(&admit(&connections, "2001:db8:0:2::1", 8)).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn this_machine_has_only_the_limit_of_all() {
        for this in ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"] {
            let connections = Connections::default();
            let all = admit(&connections, this, 64);
            assert!(evicted(&all).is_empty() && connections.is_crowded(), "{this}");
            let probe = admit(&connections, "192.0.2.1", 1);
            assert_eq!((evicted(&all), evicted(&probe)), (vec![0], vec![]), "{this}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_go_first_then_the_oldest_request() {
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
        // 20 had an answer lately; 40 has never asked.
        drop(all[20].begin_request());
        all[20].flushed();
        let mut new = admit(&connections, "127.0.0.1", 1);
        assert_eq!(evicted(&all), [40]);
        new.extend(admit(&connections, "127.0.0.1", 1));
        assert_eq!(evicted(&all), [20, 40]);
        // Nobody is idle now: the new ones are not yet.
        new.extend(admit(&connections, "127.0.0.1", 1));
        assert_eq!(evicted(&all), [7, 20, 40]);
        assert!(evicted(&new).is_empty());
        // Later they are, and an end of the evicted request brings nothing back. One whose answer is still being written
        // is not idle.
        advance(GRACE).await;
        drop(first);
        drop(others);
        all[0].flushed();
        advance(GRACE).await;
        let last = admit(&connections, "127.0.0.1", 1);
        assert_eq!((evicted(&new), evicted(&last)), (vec![0], vec![]));
        assert_eq!(evicted(&all), [7, 20, 40]);
        assert_eq!(connections.lock().open.len(), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_outlives_all_that_were_there_before() {
        let connections = Connections::default();
        let held = admit(&connections, "127.0.0.1", 64);
        let _requests: Vec<_> = held.iter().map(ConnectionPermit::begin_request).collect();
        let probe = admit(&connections, "127.0.0.1", 1);
        let flood = admit(&connections, "127.0.0.1", 63);
        assert!(evicted(&probe).is_empty() && evicted(&flood).is_empty());
        assert_eq!(evicted(&held).len(), 64);
    }
}
