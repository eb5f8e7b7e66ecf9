//! Who is let in: decided of each connection before a byte of it is read, from its address alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio::sync::oneshot;

use crate::config::Config;

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
    silent: BTreeMap<u64, (Origin, oneshot::Sender<()>)>,
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
    fn make_room(&mut self, of: Option<Origin>) -> bool {
        while let Some(oldest) = self.oldest(of) {
            // One whose message has just come takes no notice: then it is the next one.
            if self.speaks(oldest).is_some_and(|way| way.send(()).is_ok()) {
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
    fn speaks(&mut self, number: u64) -> Option<oneshot::Sender<()>> {
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

    /// Has the connection that kept silent for longest make room. `false` where there is none.
    pub(super) fn make_room(&self) -> bool {
        self.waiting.lock().make_room(None)
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
        // Clients and Hosts speak at once. So it is strangers who leave, however many addresses they have.
        if counts.by_origin.get(&origin).is_some_and(|there| there.all >= limit)
            && !counts.make_room(Some(origin))
        {
            return Err(Shut::TooManyFromThere(limit));
        }
        if counts.all >= config.max_pending_peers && !counts.make_room(None) {
            return Err(Shut::TooMany(config.max_pending_peers));
        }
        counts.all += 1;
        counts.by_origin.entry(origin).or_default().all += 1;
        self.waiting.gauge.inc();
        Ok(Pending { origin, waiting: self.waiting.clone() })
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
    waiting: Arc<Waiting>,
}

impl Pending {
    /// It has not said who it is yet, and may have to make room for another one, as long as the result is there.
    pub(super) fn keeps_silent(&self) -> Silent<'_> {
        let (sender, asked_to_go) = oneshot::channel();
        let mut counts = self.waiting.lock();
        counts.numbers += 1;
        let number = counts.numbers;
        counts.silent.insert(number, (self.origin, sender));
        if let Some(there) = counts.by_origin.get_mut(&self.origin) {
            there.silent.insert(number);
        }
        Silent { asked_to_go, number, waiting: &self.waiting }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut counts = self.waiting.lock();
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

/// A connection that has not said who it is.
#[derive(Debug)]
pub(super) struct Silent<'a> {
    asked_to_go: oneshot::Receiver<()>,
    number: u64,
    waiting: &'a Waiting,
}

impl Silent<'_> {
    /// Returns when it has to make room.
    pub(super) async fn asked_to_go(&mut self) {
        // The other end goes only with the question, or with this.
        let _ = (&mut self.asked_to_go).await;
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        drop(self.waiting.lock().speaks(self.number));
    }
}
