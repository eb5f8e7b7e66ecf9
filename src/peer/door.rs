//! Who is let in: decided of each connection before a byte of it is read, from its address alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio::sync::oneshot;

use crate::config::Config;

use super::error::Crowded;
use super::metrics::Connection;
use super::origin::Origin;
use super::rate::ConnectRate;

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Shut {
    #[error("DenyPeers has its address")]
    Denied,
    #[error("AllowPeers does not have its address")]
    NotAllowed,
    #[error("more than PeerConnectRate {0} connections a minute from its address")]
    TooOften(u32),
    #[error(
        "MaxPendingPeersPerAddress {0} connections from its address wait already, and all of them have a key"
    )]
    TooManyFromThere(usize),
    #[error("MaxPendingPeers {0} connections wait already, and all of them have a key")]
    TooMany(usize),
}

impl Shut {
    /// Whether others behind the same address suffer from it, too.
    pub(super) fn is_shared(self) -> bool {
        matches!(self, Self::TooOften(_) | Self::TooManyFromThere(_))
    }
}

impl From<Shut> for Connection {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::Denied | Shut::NotAllowed => Self::Denied,
            Shut::TooOften(_) => Self::RateLimited,
            Shut::TooManyFromThere(_) | Shut::TooMany(_) => Self::PendingLimit,
        }
    }
}

/// Lets connections in, and knows those that are not paired yet.
#[derive(Debug)]
pub(super) struct Door {
    rate: Mutex<Option<ConnectRate>>,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    counts: Mutex<Counts>,
    gauge: IntGauge,
}

/// Those that are not paired yet.
#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// Of each address: no more entries than connections.
    by_origin: HashMap<Origin, FromThere>,
    /// Those whose first message is not there, the oldest first, by numbers that count up.
    silent: BTreeMap<u64, (Origin, oneshot::Sender<Crowded>)>,
    /// How many have come.
    numbers: u64,
}

/// Those of one address.
#[derive(Debug, Default)]
struct FromThere {
    all: usize,
    /// Those of them that keep silent, by number.
    silent: BTreeSet<u64>,
}

impl Counts {
    /// Has the connection that kept silent for longest make room, of all or of an address. `false` where there is none.
    fn make_room(&mut self, of: Option<Origin>, why: Crowded) -> bool {
        while let Some(oldest) = self.oldest(of) {
            // One whose message has just come takes no notice: then it is the next one.
            if self.speaks(oldest).is_some_and(|way| way.send(why).is_ok()) {
                return true;
            }
        }
        false
    }

    fn oldest(&self, of: Option<Origin>) -> Option<u64> {
        match of {
            None => self.silent.first_key_value().map(|(number, _)| *number),
            Some(origin) => self.by_origin.get(&origin)?.silent.first().copied(),
        }
    }

    /// A connection keeps silent no longer, or has been asked to go.
    fn speaks(&mut self, number: u64) -> Option<oneshot::Sender<Crowded>> {
        let (origin, way) = self.silent.remove(&number)?;
        if let Some(there) = self.by_origin.get_mut(&origin) {
            there.silent.remove(&number);
        }
        Some(way)
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Door {
    /// Nobody has come yet; `gauge` shows how many wait.
    pub(super) fn new(gauge: IntGauge) -> Self {
        Self {
            rate: Mutex::default(),
            waiting: Arc::new(Waiting { counts: Mutex::default(), gauge }),
        }
    }

    /// Connections that are not paired yet.
    pub(super) fn pending(&self) -> usize {
        self.waiting.lock().all
    }

    /// Whether somebody keeps silent, and so could make room.
    pub(super) fn can_make_room(&self) -> bool {
        !self.waiting.lock().silent.is_empty()
    }

    /// Has the connection that kept silent for longest make room. `false` where there is none.
    pub(super) fn make_room(&self, why: Crowded) -> bool {
        self.waiting.lock().make_room(None, why)
    }

    /// Lets a connection in, by the settings in force.
    ///
    /// # Errors
    /// [`Shut`].
    pub(super) fn enter(&self, address: SocketAddr, config: &Config) -> Result<Pending, Shut> {
        let address = address.ip().to_canonical();
        admit(address, config)?;
        let origin = Origin::from(address);
        self.check_rate(origin, config)?;
        let mut counts = self.waiting.lock();
        let limit = config.max_pending_peers_per_address;
        // Clients and Hosts speak at once. So it is strangers who leave, however many addresses they have; one for each
        // that comes, since those who were asked to go count until they have.
        if counts.by_origin.get(&origin).is_some_and(|there| there.all >= limit) {
            if !counts.make_room(Some(origin), Crowded::FromThere) {
                return Err(Shut::TooManyFromThere(limit));
            }
        } else if counts.all >= config.max_pending_peers && !counts.make_room(None, Crowded::InAll)
        {
            return Err(Shut::TooMany(config.max_pending_peers));
        }
        counts.all += 1;
        counts.numbers += 1;
        let number = counts.numbers;
        // From now on, and not from when somebody first looks at it: many may come at once.
        let (way, asked_to_go) = oneshot::channel();
        counts.silent.insert(number, (origin, way));
        let there = counts.by_origin.entry(origin).or_default();
        there.all += 1;
        there.silent.insert(number);
        self.waiting.gauge.inc();
        Ok(Pending { origin, number, asked_to_go, waiting: self.waiting.clone() })
    }

    fn check_rate(&self, origin: Origin, config: &Config) -> Result<(), Shut> {
        let mut limit = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if limit.as_ref().map(ConnectRate::rate) != config.peer_connect_rate {
            *limit = config.peer_connect_rate.map(ConnectRate::new);
        }
        match limit.as_mut() {
            Some(limit) => {
                let rate = limit.rate().get();
                limit.allows(origin).then_some(()).ok_or(Shut::TooOften(rate))
            }
            None => Ok(()),
        }
    }
}

fn admit(address: IpAddr, config: &Config) -> Result<(), Shut> {
    if config.deny_peers.contain(address) {
        return Err(Shut::Denied);
    }
    if !config.allow_peers.is_empty() && !config.allow_peers.contain(address) {
        return Err(Shut::NotAllowed);
    }
    Ok(())
}

/// One connection that is not paired yet; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Pending {
    origin: Origin,
    number: u64,
    asked_to_go: oneshot::Receiver<Crowded>,
    waiting: Arc<Waiting>,
}

impl Pending {
    /// Returns when it has to make room for another one, which it never has once it has spoken.
    pub(super) async fn asked_to_go(&mut self) -> Crowded {
        match (&mut self.asked_to_go).await {
            Ok(why) => why,
            // The other end is gone.
            Err(_) => std::future::pending().await,
        }
    }

    /// Its first message is there.
    pub(super) fn speaks(&self) {
        drop(self.waiting.lock().speaks(self.number));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut counts = self.waiting.lock();
        drop(counts.speaks(self.number));
        counts.all -= 1;
        if let Some(there) = counts.by_origin.get_mut(&self.origin) {
            there.all -= 1;
            if there.all == 0 {
                counts.by_origin.remove(&self.origin);
            }
        }
        self.waiting.gauge.dec();
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

    /// No limit but these.
    fn config(in_all: usize, from_there: usize) -> Config {
        let settings = [
            ("RouterAddress", "127.0.0.1".to_owned()),
            ("RouterPublicKey", "01".repeat(32)),
            ("PeerAddress", "127.0.0.1".to_owned()),
            ("PeerConnectRate", "0".to_owned()),
            ("MaxPendingPeers", in_all.to_string()),
            ("MaxPendingPeersPerAddress", from_there.to_string()),
        ];
        let environment = settings.map(|(key, value)| (variable(key), value)).into();
        let sources = Sources { path: PathBuf::new(), path_is_explicit: false, environment };
        crate::config::load(&sources).unwrap().config
    }

    fn door() -> Door {
        Door::new(IntGauge::new("waiting", "waiting").unwrap())
    }

    fn address(number: u8) -> SocketAddr {
        (Ipv4Addr::new(192, 0, 2, number), 7).into()
    }

    /// Why a connection was asked to go, if it was.
    fn asked(pending: &mut Pending) -> Option<Crowded> {
        pending.asked_to_go.try_recv().ok()
    }

    #[test]
    fn who_comes_in_a_burst_takes_the_place_of_who_came_first() {
        let (door, config) = (door(), config(1024, 64));
        let enter = || door.enter(address(1), &config);
        let mut burst: Vec<Pending> = (0..128).map(|_| enter().unwrap()).collect();
        let asked: Vec<_> = burst.iter_mut().map(asked).collect();
        assert!(asked[..64].iter().all(|why| *why == Some(Crowded::FromThere)));
        assert!(asked[64..].iter().all(Option::is_none));
        // They have said who they are.
        burst.drain(..64);
        burst.iter().for_each(Pending::speaks);
        assert_eq!(enter().unwrap_err(), Shut::TooManyFromThere(64));
        assert!(!door.can_make_room());
    }

    #[test]
    fn one_that_comes_costs_one_its_place() {
        let (door, config) = (door(), config(3, 2));
        let mut others = [door.enter(address(1), &config).unwrap()];
        let mut own = [(); 2].map(|()| door.enter(address(2), &config).unwrap());
        let _newcomer = door.enter(address(2), &config).unwrap();
        assert_eq!(others.each_mut().map(asked), [None]);
        assert_eq!(own.each_mut().map(asked), [Some(Crowded::FromThere), None]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Enter(u8),
        Speak(usize),
        Leave(usize),
        /// Those who were asked to go do.
        Obey,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..4).prop_map(Step::Enter),
            2 => any::<usize>().prop_map(Step::Speak),
            1 => any::<usize>().prop_map(Step::Leave),
            1 => Just(Step::Obey),
        ]
    }

    proptest! {
        /// Whatever happens: what is counted is what is there, nobody who has spoken is asked to go, and whoever is
        /// not let in finds all places taken by those who have.
        #[test]
        fn what_is_counted_is_what_is_there(steps in prop::collection::vec(step(), 1..80)) {
            let (in_all, from_there) = (6, 3);
            let (door, config) = (door(), config(in_all, from_there));
            // With whether it has spoken.
            let mut there: Vec<(u8, bool, Pending)> = Vec::new();
            for step in steps {
                let count = there.len();
                match step {
                    Step::Enter(from) => match door.enter(address(from), &config) {
                        Ok(pending) => there.push((from, false, pending)),
                        Err(shut) => {
                            let of = |all: bool| there.iter().filter(move |one| all || one.0 == from);
                            let all = shut == Shut::TooMany(in_all);
                            let places = if all { in_all } else { from_there };
                            prop_assert!(of(all).count() >= places);
                            let counts = door.waiting.lock();
                            prop_assert!(of(all).all(|one| !counts.silent.contains_key(&one.2.number)));
                        }
                    },
                    Step::Speak(at) if count > 0 => {
                        let (_, spoken, pending) = &mut there[at % count];
                        if asked(pending).is_some() {
                            there.swap_remove(at % count);
                        } else {
                            pending.speaks();
                            *spoken = true;
                        }
                    }
                    Step::Leave(at) if count > 0 => drop(there.swap_remove(at % count)),
                    Step::Speak(_) | Step::Leave(_) => {}
                    Step::Obey => {
                        there.retain_mut(|(_, spoken, pending)| {
                            let is_asked = asked(pending).is_some();
                            assert!(!(is_asked && *spoken));
                            !is_asked
                        });
                        prop_assert!(there.len() <= in_all);
                    }
                }
                let counts = door.waiting.lock();
                prop_assert_eq!(counts.all, there.len());
                prop_assert_eq!(door.waiting.gauge.get(), i64::try_from(there.len()).unwrap());
                prop_assert_eq!(counts.by_origin.values().map(|from| from.all).sum::<usize>(), there.len());
                let silent: usize = counts.by_origin.values().map(|from| from.silent.len()).sum();
                prop_assert_eq!(silent, counts.silent.len());
                prop_assert!(there.iter().all(|one| !(one.1 && counts.silent.contains_key(&one.2.number))));
            }
            drop(there);
            prop_assert_eq!(door.pending(), 0);
            prop_assert!(door.waiting.lock().by_origin.is_empty());
        }
    }
}
