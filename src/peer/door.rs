//! Who is let in: decided of each connection before a byte of it is read, from its address alone.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;

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
    #[error("MaxPendingPeersPerAddress {0} connections from its address wait already")]
    TooManyFromThere(usize),
    #[error("MaxPendingPeers {0} connections wait already")]
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
    /// How many there are of each address, and in all: no more entries than connections.
    counts: Mutex<(usize, HashMap<Origin, usize>)>,
    gauge: IntGauge,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, (usize, HashMap<Origin, usize>)> {
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
        self.waiting.lock().0
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
        let mut waiting = self.waiting.lock();
        let (all, by_origin) = &mut *waiting;
        if *all >= config.max_pending_peers {
            return Err(Shut::TooMany(config.max_pending_peers));
        }
        let from_there = by_origin.entry(origin).or_default();
        let limit = config.max_pending_peers_per_address;
        if *from_there >= limit {
            // The entry is not new: the limit is at least 1.
            return Err(Shut::TooManyFromThere(limit));
        }
        *from_there += 1;
        *all += 1;
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

impl Drop for Pending {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        let (all, by_origin) = &mut *waiting;
        *all -= 1;
        if let Some(from_there) = by_origin.get_mut(&self.origin) {
            *from_there -= 1;
            if *from_there == 0 {
                by_origin.remove(&self.origin);
            }
        }
        self.waiting.gauge.dec();
    }
}
