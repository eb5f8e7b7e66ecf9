//! What a relay does at its start with the descriptor store: it takes over from the previous relay.

use std::net::{IpAddr, TcpListener};

#[cfg(target_os = "linux")]
use std::time::Duration;

#[cfg(target_os = "linux")]
use tokio::sync::watch;
#[cfg(target_os = "linux")]
use tokio::time::Instant;
#[cfg(target_os = "linux")]
use tracing::{error, info, warn};

#[cfg(target_os = "linux")]
use crate::config::Config;
#[cfg(target_os = "linux")]
use crate::fd_store::error::StoreError;
#[cfg(target_os = "linux")]
use crate::fd_store::status::StoreLinkStatus;
#[cfg(target_os = "linux")]
use crate::handle::Handle;
#[cfg(target_os = "linux")]
use crate::open_files;
#[cfg(target_os = "linux")]
use crate::peer::Peers;
use crate::peer::session::KeptSessions;

#[cfg(target_os = "linux")]
use super::keeper::restore_handed_out;
#[cfg(target_os = "linux")]
use super::metrics::HandoverMetrics;
#[cfg(target_os = "linux")]
use super::notes::carried::CarriedOver;
#[cfg(target_os = "linux")]
use super::notes::clock::NoteClock;
#[cfg(target_os = "linux")]
use super::store_link::StoreLink;
#[cfg(target_os = "linux")]
use super::taking::{self, Taken};

/// How long to wait for a relay that owns the store and is about to end.
#[cfg(target_os = "linux")]
const OWNER_WAIT: Duration = Duration::from_secs(5);

/// What was taken over from the previous relay, if anything, and the connection to the store. By default there is no store.
#[derive(Debug, Default)]
pub struct Takeover {
    /// The connection to the store, if the settings name one.
    #[cfg(target_os = "linux")]
    pub link: Option<StoreLink>,
    /// What was taken over.
    #[cfg(target_os = "linux")]
    pub taken: Taken,
    /// Why there is no connection.
    #[cfg(target_os = "linux")]
    failure: Option<String>,
}

#[cfg(target_os = "linux")]
impl Takeover {
    /// Connects to the store that the settings name, and takes over what is in it. If that fails, the relay starts without it,
    /// and connects later.
    pub fn open(config: &Config) -> Self {
        let Some(address) = config.startup.fd_store.clone() else { return Self::default() };
        let mut link = match StoreLink::new(address) {
            Ok(link) => link,
            Err(error) => {
                error!(
                    "the descriptor store cannot be used, so sessions will not survive this relay: {error}"
                );
                return Self::default();
            }
        };
        link.own_for_process();
        // There may be more sessions than the settings allow by now.
        let limit = open_files::raise_to_hard_limit();
        let (taken, failure) = match taking::take_over(&mut link, config, OWNER_WAIT) {
            Ok(taken) => (taken.unwrap_or_default(), None),
            // The store may be starting, too. If it stays away, that is logged later.
            Err(error @ StoreError::Connect { .. }) => {
                info!("nothing is taken over: {error}");
                (Taken::default(), Some(error.to_string()))
            }
            Err(error) => {
                error!(
                    "nothing is taken over: {error}. If the store has sockets of the previous relay, it keeps its ports for up to \
                     FdStoreTimeout; to free them, restart the store"
                );
                (Taken::default(), Some(error.to_string()))
            }
        };
        if taken.suspended.sessions.len() <= config.max_sessions {
            open_files::set_limit(limit);
        }
        if !taken.is_empty() {
            info!(
                sessions = taken.suspended.sessions.len(),
                lost = taken.lost,
                peers = taken.suspended.peers.len(),
                keys_handed_out = taken.handed_out.len(),
                router_link = taken.suspended.link.is_some(),
                "taken over from the previous relay, which {}",
                if taken.is_planned { "handed over" } else { "died" }
            );
        }
        Self { link: Some(link), taken, failure }
    }
}

#[cfg(target_os = "linux")]
impl Takeover {
    /// Returns when the first relay of this line started; `None` if nothing was taken over.
    pub fn started(&self) -> Option<Instant> {
        let counters = self.taken.counters.as_ref()?;
        Some(NoteClock::now().to_instant(counters.started))
    }

    fn show(&self, status: &watch::Sender<StoreLinkStatus>) {
        status.send_modify(|status| match (&self.link, &self.failure) {
            (Some(link), _) if link.is_connected() => {
                status.set_kept(self.taken.suspended.sessions.len());
            }
            (_, Some(failure)) => status.set_failed(failure.clone()),
            _ => {}
        });
    }

    /// Restores keys, numbers, metrics and the log level, and counts what was taken over. Must come before any key or session.
    pub fn restore(
        &mut self,
        handle: &Handle,
        peers: &Peers,
        metrics: &HandoverMetrics,
        status: &watch::Sender<StoreLinkStatus>,
    ) {
        self.show(status);
        let (taken, state) = (&mut self.taken, handle.state());
        taken.count(metrics, state);
        if let Some(counters) = &mut taken.counters {
            state.restore_numbering(counters.numbering);
            let CarriedOver { metrics, log, .. } = std::mem::take(&mut counters.carried);
            handle.carry_over(metrics);
            if let Some(Err(problem)) = log.map(|changed| handle.log().restore_filter(&changed)) {
                warn!("the log level that was set before the hand-over cannot be used: {problem}");
            }
        }
        restore_handed_out(state, peers, std::mem::take(&mut taken.handed_out));
        state.restore_offered(std::mem::take(&mut taken.offered));
    }
}

impl Takeover {
    /// Returns the table of the sessions that the store keeps, if there is one.
    pub fn kept_sessions(&self) -> KeptSessions {
        #[cfg(target_os = "linux")]
        if self.link.is_some() {
            return KeptSessions::new();
        }
        KeptSessions::default()
    }

    /// Takes the listening socket with this name, if it listens where the settings say. Any other is closed, also in the store,
    /// so that another one can be bound.
    #[cfg(target_os = "linux")]
    pub fn take_listener(
        &mut self,
        name: &'static str,
        interface: Option<IpAddr>,
        port: u16,
    ) -> Option<TcpListener> {
        let listener = self.taken.take_listener(name)?;
        let address = listener.local_addr().ok()?;
        let is_same_interface = match interface {
            Some(interface) => interface == address.ip().to_canonical(),
            None => address.ip().is_unspecified(),
        };
        if is_same_interface && address.port() == port {
            return Some(listener);
        }
        warn!(
            "the socket for {name} that was taken over listens on {address}, which is not what the settings say: it is closed"
        );
        if let Some(link) = &mut self.link {
            link.delete_listener(name);
        }
        None
    }

    /// Returns nothing: there is no store on this system.
    #[cfg(not(target_os = "linux"))]
    pub fn take_listener(
        &mut self,
        _name: &'static str,
        _interface: Option<IpAddr>,
        _port: u16,
    ) -> Option<TcpListener> {
        None
    }
}
