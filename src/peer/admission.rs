//! Admission control: decides from the address alone whether a connection is admitted, before a byte of it is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::oneshot;

use crate::config::Config;

use super::error::{Eviction, Rejected};
use super::origin::Origin;
use super::rate::ConnectRate;

/// Admits connections, and keeps track of those that are not paired yet.
#[derive(Debug)]
pub(super) struct AdmissionControl {
    rate: Mutex<Option<ConnectRate>>,
    pending: Arc<PendingConnections>,
}

#[derive(Debug)]
struct PendingConnections {
    table: Mutex<PendingTable>,
    gauge: IntGauge,
}

/// The connections that are not paired yet.
#[derive(Debug, Default)]
struct PendingTable {
    count: usize,
    /// The connections by address; there are no more entries than connections.
    by_origin: HashMap<Origin, PendingOfAddress>,
    /// Connections whose first message has not arrived, ordered by number, so the oldest is first.
    silent: BTreeMap<u64, (Option<Origin>, oneshot::Sender<Eviction>)>,
    last_number: u64,
}

/// The connections of one address that are not paired yet.
#[derive(Debug, Default)]
struct PendingOfAddress {
    count: usize,
    /// The silent ones among them, by number.
    silent: BTreeSet<u64>,
}

impl PendingTable {
    /// Evicts the connection that has been silent the longest, globally or for one address. Returns `false` if none is silent.
    fn evict_oldest(&mut self, of: Option<Origin>, why: Eviction) -> bool {
        while let Some(oldest) = self.oldest_silent(of) {
            // A connection whose first message has just arrived ignores the eviction: then the next one is evicted.
            if self.remove_silent(oldest).is_some_and(|evict| evict.send(why).is_ok()) {
                return true;
            }
        }
        false
    }

    fn oldest_silent(&self, of: Option<Origin>) -> Option<u64> {
        match of {
            None => self.silent.first_key_value().map(|(number, _)| *number),
            Some(origin) => self.by_origin.get(&origin)?.silent.first().copied(),
        }
    }

    /// Removes a connection that is no longer silent or is about to be evicted. Returns the sender that evicts it.
    fn remove_silent(&mut self, number: u64) -> Option<oneshot::Sender<Eviction>> {
        let (origin, evict) = self.silent.remove(&number)?;
        if let Some(of_address) = origin.and_then(|origin| self.by_origin.get_mut(&origin)) {
            of_address.silent.remove(&number);
        }
        Some(evict)
    }
}

impl AdmissionControl {
    /// Creates an admission control without connections; `gauge` shows how many are pending.
    pub(super) fn new(gauge: IntGauge) -> Self {
        Self {
            rate: Mutex::default(),
            pending: Arc::new(PendingConnections { table: Mutex::default(), gauge }),
        }
    }

    /// Returns the number of connections that are not paired yet.
    pub(super) fn pending(&self) -> usize {
        self.pending.table.lock().count
    }

    /// Whether a connection is silent and can therefore be evicted.
    pub(super) fn can_evict(&self) -> bool {
        !self.pending.table.lock().silent.is_empty()
    }

    /// Evicts the connection that has been silent the longest. Returns `false` if none is silent.
    pub(super) fn evict_oldest(&self, why: Eviction) -> bool {
        self.pending.table.lock().evict_oldest(None, why)
    }

    /// Admits a connection, according to the settings in force. This may evict another one.
    ///
    /// # Errors
    /// [`Rejected`].
    pub(super) fn try_admit(
        &self,
        address: SocketAddr,
        config: &Config,
    ) -> Result<PendingConnection, Rejected> {
        let address = address.ip().to_canonical();
        check_lists(address, config)?;
        let origin = Origin::from(address);
        self.check_rate(origin, config)?;
        let mut table = self.pending.table.lock();
        if !make_room_of_address(&mut table, origin, config)? {
            make_room(&mut table, config)?;
        }
        Ok(self.count(&mut table, Some(origin)))
    }

    /// Admits a connection of a proxy, whose PROXY header will tell the address of the peer. Until then, only the limit on all
    /// connections applies, since those of many peers come from the address of the proxy.
    ///
    /// # Errors
    /// [`Rejected::GlobalLimit`].
    pub(super) fn try_admit_proxied(&self, config: &Config) -> Result<PendingConnection, Rejected> {
        let mut table = self.pending.table.lock();
        make_room(&mut table, config)?;
        Ok(self.count(&mut table, None))
    }

    /// Admits the peer whose address the PROXY header of a connection has told; the connection counts as one of that address
    /// from now on. This may evict another one.
    ///
    /// # Errors
    /// [`Rejected`], but not the limit on all connections, among which it counts already.
    pub(super) fn try_admit_peer(
        &self,
        pending: &mut PendingConnection,
        address: SocketAddr,
        config: &Config,
    ) -> Result<(), Rejected> {
        let address = address.ip().to_canonical();
        check_lists(address, config)?;
        let origin = Origin::from(address);
        self.check_rate(origin, config)?;
        let mut table = self.pending.table.lock();
        make_room_of_address(&mut table, origin, config)?;
        pending.origin = Some(origin);
        let number = pending.number;
        let silent = table.silent.get_mut(&number);
        // Otherwise it has just been evicted.
        let is_silent = silent.map(|(known, _)| *known = Some(origin)).is_some();
        let of_address = table.by_origin.entry(origin).or_default();
        of_address.count += 1;
        if is_silent {
            of_address.silent.insert(number);
        }
        Ok(())
    }

    /// Counts a connection that was admitted before it was suspended. It is admitted again even beyond the limits, which apply
    /// to the connections that follow.
    /// The address is that of the peer, if it is known.
    pub(super) fn readmit(&self, address: Option<SocketAddr>) -> PendingConnection {
        let origin = address.map(|address| address.ip().into());
        self.count(&mut self.pending.table.lock(), origin)
    }

    fn count(&self, table: &mut PendingTable, origin: Option<Origin>) -> PendingConnection {
        table.count += 1;
        table.last_number += 1;
        let number = table.last_number;
        // It can be evicted even before its task first runs, since many connections may arrive at once.
        let (evict, evicted) = oneshot::channel();
        table.silent.insert(number, (origin, evict));
        if let Some(origin) = origin {
            let of_address = table.by_origin.entry(origin).or_default();
            of_address.count += 1;
            of_address.silent.insert(number);
        }
        self.pending.gauge.inc();
        PendingConnection { origin, number, evicted, pending: self.pending.clone() }
    }

    fn check_rate(&self, origin: Origin, config: &Config) -> Result<(), Rejected> {
        let mut limit = self.rate.lock();
        if limit.as_ref().map(ConnectRate::rate) != config.peer_connect_rate {
            *limit = config.peer_connect_rate.map(ConnectRate::new);
        }
        match limit.as_mut() {
            Some(limit) => {
                let rate = limit.rate().get();
                limit.allows(origin).then_some(()).ok_or(Rejected::TooOften(rate))
            }
            None => Ok(()),
        }
    }
}

/// Evicts a connection of this address if it has as many as it may have. Returns whether it had.
fn make_room_of_address(
    table: &mut PendingTable,
    origin: Origin,
    config: &Config,
) -> Result<bool, Rejected> {
    let limit = config.max_pending_peers_per_address;
    if table.by_origin.get(&origin).is_none_or(|of_address| of_address.count < limit) {
        return Ok(false);
    }
    // Clients and Hosts send their first message at once, so the evicted connections are those of strangers, however many
    // addresses these have. Each new connection evicts only one, since evicted connections count until they are closed.
    match table.evict_oldest(Some(origin), Eviction::PerAddressLimit) {
        true => Ok(true),
        false => Err(Rejected::AddressLimit(limit)),
    }
}

/// Evicts a connection if there are as many as there may be.
fn make_room(table: &mut PendingTable, config: &Config) -> Result<(), Rejected> {
    let limit = config.max_pending_peers;
    if table.count >= limit && !table.evict_oldest(None, Eviction::GlobalLimit) {
        return Err(Rejected::GlobalLimit(limit));
    }
    Ok(())
}

fn check_lists(address: IpAddr, config: &Config) -> Result<(), Rejected> {
    if config.deny_peers.contains(address) {
        return Err(Rejected::Denied);
    }
    if !config.allow_peers.is_empty() && !config.allow_peers.contains(address) {
        return Err(Rejected::NotAllowed);
    }
    Ok(())
}

/// One connection that is not paired yet. It is counted until this is dropped.
#[derive(Debug)]
pub(super) struct PendingConnection {
    /// Unknown until the PROXY header has been read, if the connection comes from a proxy.
    origin: Option<Origin>,
    number: u64,
    evicted: oneshot::Receiver<Eviction>,
    pending: Arc<PendingConnections>,
}

impl PendingConnection {
    /// Returns when the connection is evicted, which never happens once its first message has been received.
    pub(super) async fn wait_for_eviction(&mut self) -> Eviction {
        match (&mut self.evicted).await {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }

    /// Notes that the first message is complete: the connection can no longer be evicted.
    pub(super) fn note_first_message(&self) {
        drop(self.pending.table.lock().remove_silent(self.number));
    }
}

impl Drop for PendingConnection {
    fn drop(&mut self) {
        let mut table = self.pending.table.lock();
        drop(table.remove_silent(self.number));
        table.count -= 1;
        if let Some(origin) = self.origin
            && let Some(of_address) = table.by_origin.get_mut(&origin)
        {
            of_address.count -= 1;
            if of_address.count == 0 {
                table.by_origin.remove(&origin);
            }
        }
        self.pending.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::config::settings::variable;
    use crate::config::sources::Sources;

    /// Returns settings with no limits but these.
    fn config(global: usize, per_address: usize) -> Config {
        let settings = [
            ("RouterAddress", "127.0.0.1".to_owned()),
            ("RouterPublicKey", "01".repeat(32)),
            ("PeerAddress", "127.0.0.1".to_owned()),
            ("PeerConnectRate", "0".to_owned()),
            ("MaxPendingPeers", global.to_string()),
            ("MaxPendingPeersPerAddress", per_address.to_string()),
        ];
        let environment = settings.map(|(key, value)| (variable(key), value)).into();
        let sources = Sources { path: PathBuf::new(), is_path_explicit: false, environment };
        crate::config::load(&sources).unwrap().config
    }

    fn control() -> AdmissionControl {
        AdmissionControl::new(IntGauge::new("pending", "pending").unwrap())
    }

    fn address(number: u8) -> SocketAddr {
        (Ipv4Addr::new(192, 0, 2, number), 7).into()
    }

    /// Returns why a connection was evicted, if it was.
    fn eviction(pending: &mut PendingConnection) -> Option<Eviction> {
        pending.evicted.try_recv().ok()
    }

    #[test]
    fn later_connections_of_a_burst_evict_earlier_silent_ones() {
        let (control, config) = (control(), config(1024, 64));
        let admit = || control.try_admit(address(1), &config);
        let mut burst: Vec<PendingConnection> = (0..128).map(|_| admit().unwrap()).collect();
        let evictions: Vec<_> = burst.iter_mut().map(eviction).collect();
        assert!(evictions[..64].iter().all(|why| *why == Some(Eviction::PerAddressLimit)));
        assert!(evictions[64..].iter().all(Option::is_none));
        // The rest have sent their first messages.
        burst.drain(..64);
        burst.iter().for_each(PendingConnection::note_first_message);
        assert_eq!(admit().unwrap_err(), Rejected::AddressLimit(64));
        assert!(!control.evict_oldest(Eviction::Descriptors));
    }

    #[test]
    fn one_new_connection_evicts_one_of_its_own_address() {
        let (control, config) = (control(), config(3, 2));
        let mut others = [control.try_admit(address(1), &config).unwrap()];
        let mut own = [(); 2].map(|()| control.try_admit(address(2), &config).unwrap());
        let _new = control.try_admit(address(2), &config).unwrap();
        assert_eq!(others.each_mut().map(eviction), [None]);
        assert_eq!(own.each_mut().map(eviction), [Some(Eviction::PerAddressLimit), None]);
    }

    #[test]
    fn resumed_connection_is_counted_and_never_rejected() {
        let (control, config) = (control(), config(2, 1));
        let mut resumed = [(); 3].map(|()| control.readmit(Some(address(1))));
        assert_eq!(control.pending(), 3);
        assert_eq!(resumed.each_mut().map(eviction), [None; 3]);
        // A new connection finds the limit reached, and evicts the oldest of the silent ones.
        let _new = control.try_admit(address(1), &config).unwrap();
        let evicted = Some(Eviction::PerAddressLimit);
        assert_eq!(resumed.each_mut().map(eviction), [evicted, None, None]);
    }

    #[test]
    fn connections_of_a_proxy_count_for_their_peers_once_these_are_known() {
        let (control, config) = (control(), config(4, 1));
        let mut proxied = [(); 3].map(|()| control.try_admit_proxied(&config).unwrap());
        assert_eq!(control.pending.table.lock().by_origin.len(), 0);
        control.try_admit_peer(&mut proxied[0], address(1), &config).unwrap();
        control.try_admit_peer(&mut proxied[1], address(2), &config).unwrap();
        assert_eq!(proxied.each_mut().map(eviction), [None; 3]);
        // The second one of an address evicts the first, and a direct one counts like one through the proxy.
        control.try_admit_peer(&mut proxied[2], address(1), &config).unwrap();
        let evicted = Some(Eviction::PerAddressLimit);
        assert_eq!(proxied.each_mut().map(eviction), [evicted, None, None]);
        proxied[2].note_first_message();
        let direct = control.try_admit(address(1), &config).unwrap_err();
        assert_eq!(direct, Rejected::AddressLimit(1));
        // All of them count, also those whose peers are not known.
        let mut last = control.try_admit_proxied(&config).unwrap();
        let _one_more = control.try_admit_proxied(&config).unwrap();
        assert_eq!(eviction(&mut proxied[1]), Some(Eviction::GlobalLimit));
        // One that was evicted before its header was read.
        assert!(control.evict_oldest(Eviction::Descriptors));
        assert_eq!(eviction(&mut last), Some(Eviction::Descriptors));
        control.try_admit_peer(&mut last, address(3), &config).unwrap();
        assert!(control.evict_oldest(Eviction::Descriptors), "the last one is silent");
        assert!(!control.evict_oldest(Eviction::Descriptors));
        drop((proxied, last, _one_more));
        assert_eq!(control.pending(), 0);
        assert!(control.pending.table.lock().by_origin.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Connect(u8),
        SendMessage(usize),
        Leave(usize),
        /// The evicted connections close.
        CloseEvicted,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..4).prop_map(Step::Connect),
            2 => any::<usize>().prop_map(Step::SendMessage),
            1 => any::<usize>().prop_map(Step::Leave),
            1 => Just(Step::CloseEvicted),
        ]
    }

    /// A pending connection as the test knows it.
    struct Known {
        from: u8,
        has_spoken: bool,
        pending: PendingConnection,
    }

    proptest! {
        /// Whatever happens, exactly the pending connections are counted, no connection is evicted after its first message, and
        /// a connection is rejected only if all others that count towards the limit have sent their first messages.
        #[test]
        fn only_silent_connections_are_evicted_and_all_are_counted(
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let (global, per_address) = (6, 3);
            let (control, config) = (control(), config(global, per_address));
            let mut known: Vec<Known> = Vec::new();
            for step in steps {
                let count = known.len();
                match step {
                    Step::Connect(from) => match control.try_admit(address(from), &config) {
                        Ok(pending) => known.push(Known { from, has_spoken: false, pending }),
                        Err(why) => {
                            let is_global = why == Rejected::GlobalLimit(global);
                            let within =
                                || known.iter().filter(|one| is_global || one.from == from);
                            let limit = if is_global { global } else { per_address };
                            prop_assert!(within().count() >= limit);
                            let table = control.pending.table.lock();
                            let is_silent = |one: &Known| table.silent.contains_key(&one.pending.number);
                            prop_assert!(!within().any(is_silent));
                        }
                    },
                    Step::SendMessage(at) if count > 0 => {
                        let one = &mut known[at % count];
                        if eviction(&mut one.pending).is_some() {
                            known.swap_remove(at % count);
                        } else {
                            one.pending.note_first_message();
                            one.has_spoken = true;
                        }
                    }
                    Step::Leave(at) if count > 0 => drop(known.swap_remove(at % count)),
                    Step::SendMessage(_) | Step::Leave(_) => {}
                    Step::CloseEvicted => {
                        known.retain_mut(|one| {
                            let is_evicted = eviction(&mut one.pending).is_some();
                            assert!(!(is_evicted && one.has_spoken));
                            !is_evicted
                        });
                        prop_assert!(known.len() <= global);
                    }
                }
                let table = control.pending.table.lock();
                prop_assert_eq!(table.count, known.len());
                prop_assert_eq!(control.pending.gauge.get(), i64::try_from(known.len()).unwrap());
                let counts = table.by_origin.values().map(|of_address| of_address.count);
                prop_assert_eq!(counts.sum::<usize>(), known.len());
                let silent = table.by_origin.values().map(|of_address| of_address.silent.len());
                prop_assert_eq!(silent.sum::<usize>(), table.silent.len());
                let is_silent = |one: &Known| table.silent.contains_key(&one.pending.number);
                prop_assert!(!known.iter().any(|one| one.has_spoken && is_silent(one)));
            }
            drop(known);
            prop_assert_eq!(control.pending(), 0);
            prop_assert!(control.pending.table.lock().by_origin.is_empty());
        }
    }
}
