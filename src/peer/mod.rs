//! The peers' side: accepts connections, pairs them and runs their sessions.

mod admission;
pub mod error;
pub mod first_message;
mod handshake;
pub mod metrics;
mod origin;
mod path;
mod peer_closed;
mod proxied;
pub mod proxy_header;
mod rate;
mod refusals;
pub mod session;
mod suspended;

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::Config;
use crate::config::settings::SettingKey;
use crate::crypto::SessionKey;
use crate::forward::Forward;
use crate::listen::accept::{AcceptDecision, AcceptStatus, accept};
use crate::listen::acceptor::Acceptor;
use crate::listen::bind::Purpose;
use crate::listen::options;
use crate::log::limit::LineLimit;
use crate::open_files::{self, DescriptorBudget};
use crate::state::expiry;
use crate::state::keys::KeyId;
use crate::state::rendezvous::{Refusal, Rendezvous};
use crate::state::sessions::EndCause;

use admission::{AdmissionControl, PendingConnection};
use error::{Eviction, PeerError};
use handshake::{HandshakeEnd, PairedPeer, PeerHandshake, PendingPeer, ProxiedPeer};
use metrics::{PeerMetrics, PeerOutcome};
use proxy_header::ProxySource;
use refusals::RefusalLog;
use session::{Partner, PartnerSender, RunnableSession, SessionManager};

pub use suspended::SuspendedPeer;

/// The socket to which peers connect.
pub const PURPOSE: Purpose = Purpose {
    callers: "peers",
    address_setting: SettingKey::ListenInterface.name(),
    port_setting: SettingKey::ListenPort.name(),
};

/// How often a shortage of descriptors is logged.
const SHORTAGE_INTERVAL: Duration = Duration::from_secs(60);

/// Accepts peers and pairs them; cheap to clone, for the task of each connection.
#[derive(Clone)]
pub struct Peers {
    rendezvous: Rendezvous<PartnerSender>,
    config: watch::Receiver<Arc<Config>>,
    admission: Arc<AdmissionControl>,
    refusals: Arc<RefusalLog>,
    /// Limits the lines about a shortage of descriptors.
    shortages: Arc<LineLimit>,
    sessions: SessionManager,
    metrics: PeerMetrics,
    accepting: AcceptStatus,
    /// The number of worker threads, whose descriptors are not available to peers.
    workers: usize,
    tasks: TaskTracker,
    suspension: Arc<Suspension>,
    draining: CancellationToken,
    stop: CancellationToken,
}

/// The request to suspend a run, and the connections that it suspended.
#[derive(Debug)]
struct Suspension {
    request: CancellationToken,
    /// Whether a run has been suspended. The request cannot be taken back, so it applies to one run only.
    is_done: AtomicBool,
    peers: Mutex<Vec<SuspendedPeer>>,
}

impl Suspension {
    /// Returns the token that suspends the run that begins now.
    fn token(&self) -> CancellationToken {
        let is_done = self.is_done.load(Ordering::Relaxed);
        if is_done { CancellationToken::new() } else { self.request.clone() }
    }

    /// Takes the connections that were suspended, at the end of the run.
    fn finish(&self) -> Vec<SuspendedPeer> {
        self.is_done.store(true, Ordering::Relaxed);
        std::mem::take(&mut self.peers.lock())
    }
}

impl Peers {
    /// Creates the peers' side of a relay. `sessions` runs the sessions, and peers meet in its state. `accepting` reports
    /// whether connections are accepted. All tasks end when `stop` is cancelled; `draining` only changes how peers whose keys
    /// were withdrawn are counted. `suspend` suspends one run, see [`Self::run`].
    pub fn new(
        sessions: SessionManager,
        metrics: PeerMetrics,
        accepting: AcceptStatus,
        draining: CancellationToken,
        suspend: CancellationToken,
        stop: CancellationToken,
    ) -> Self {
        let (workers, _) = open_files::count_workers(&sessions.config().borrow());
        Self {
            rendezvous: Rendezvous::new(sessions.state().clone()),
            config: sessions.config().clone(),
            workers,
            admission: Arc::new(AdmissionControl::new(metrics.pending.clone())),
            refusals: Arc::new(RefusalLog::new()),
            shortages: Arc::new(LineLimit::new(NonZero::<u32>::MIN, SHORTAGE_INTERVAL)),
            sessions,
            metrics,
            accepting,
            tasks: TaskTracker::new(),
            suspension: Arc::new(Suspension {
                request: suspend,
                is_done: AtomicBool::new(false),
                peers: Mutex::default(),
            }),
            draining,
            stop,
        }
    }

    /// Expires keys and releases the peers that wait with them. Never returns; one task runs it.
    pub async fn expire_keys(&self) {
        expiry::expire_keys(&self.rendezvous).await;
    }

    /// Returns the session keys that were seen with a handed-out key; see [`Rendezvous::seen_keys`].
    pub fn seen_keys(&self, key: KeyId) -> Vec<SessionKey> {
        self.rendezvous.seen_keys(key)
    }

    /// Returns how many first messages opened with each of these keys; see [`Rendezvous::count_seen`].
    pub fn count_seen(&self, keys: impl IntoIterator<Item = KeyId>) -> Vec<usize> {
        self.rendezvous.count_seen(keys)
    }

    /// Remembers session keys that were seen with a handed-out key in another process; see [`Rendezvous::restore_seen`].
    pub fn restore_seen(&self, key: KeyId, seen: Vec<SessionKey>) {
        self.rendezvous.restore_seen(key, seen, Instant::now());
    }

    /// Accepts connections until `stop` is cancelled, then waits for all their tasks and for the sessions to end.
    ///
    /// If the run is suspended, the listener is closed, and the connections that are not paired yet are returned instead, for
    /// the `resumed` of a later run or of another process. Each connection is either returned, or refused, or part of a
    /// session. Sessions go on. The request to suspend applies to one run; the next one goes on until `stop` is cancelled.
    pub async fn run(&self, listener: Acceptor, resumed: Vec<SuspendedPeer>) -> Vec<SuspendedPeer> {
        // A socket that was passed to the process may not have the options of peers' sockets yet.
        if options::INHERITED
            && let Err(error) = options::set(&listener)
        {
            warn!(%error, "the options of peers' sockets cannot be set");
        }
        let suspend = self.suspension.token();
        self.tasks.reopen();
        // Before anything can end this run: none of them may be forgotten.
        let mut resuming = self.resume(resumed, &suspend);
        let accept = async {
            // Nothing is ever sent: this returns when all of them are as far as they were. A recording of a peer's message
            // that arrives later then finds that the message was received before.
            resuming.recv().await;
            let decide = || self.decide_to_accept();
            let start = |stream, address| self.start_connection(stream, address, &suspend);
            accept(&listener, PURPOSE.callers, &self.accepting, decide, start).await;
        };
        // All of them run in this task, so that if one fails, the others end with it and the failure is noticed. A relay that
        // no longer enforces the limits of its sessions must not continue as if it did.
        let all = async {
            tokio::join!(accept, self.sessions.maintain(), self.refusals.run());
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = suspend.cancelled() => {}
            () = all => {}
        }
        drop(listener);
        if !self.stop.is_cancelled() {
            self.tasks.close();
            self.tasks.wait().await;
        }
        // A stop during the suspension ends everything, as at any other time.
        if !self.stop.is_cancelled() {
            return self.suspension.finish();
        }
        self.sessions.state().stop_all_sessions(EndCause::Drain);
        self.tasks.close();
        self.tasks.wait().await;
        for _ in self.suspension.finish() {
            self.metrics.connections.count(PeerOutcome::Draining);
        }
        // No more peers are paired.
        self.sessions.wait_until_ended().await;
        Vec::new()
    }

    /// Resumes suspended connections. The channel is closed when all of them are as far as they were.
    fn resume(
        &self,
        mut resumed: Vec<SuspendedPeer>,
        suspend: &CancellationToken,
    ) -> mpsc::Receiver<()> {
        // The oldest connection is the first to be evicted.
        resumed.sort_by_key(|peer| Reverse(peer.age));
        let (guard, guards) = mpsc::channel(1);
        for peer in resumed {
            let address = (!peer.awaits_proxy_header).then_some(peer.address);
            let pending = self.admission.readmit(address);
            self.spawn(PendingPeer::resumed(peer, guard.clone()), pending, suspend);
        }
        guards
    }

    /// Decides whether one more connection is accepted. If peers use more descriptors than their share, it is only
    /// by evicting the one that has been silent the longest; until that is closed, the new one uses a descriptor of the reserve.
    fn decide_to_accept(&self) -> AcceptDecision {
        if self.are_descriptors_short() {
            let can_evict = self.admission.can_evict();
            return if can_evict { AcceptDecision::YieldFirst } else { AcceptDecision::Wait };
        }
        let is_full = self.admission.pending() >= self.config.borrow().max_pending_peers;
        if is_full { AcceptDecision::YieldFirst } else { AcceptDecision::Accept }
    }

    /// Whether peers use more descriptors than their share.
    fn are_descriptors_short(&self) -> bool {
        let active = self.sessions.state().counts().active;
        let used = (self.admission.pending() + 2 * active) as u64;
        DescriptorBudget::of_process(self.workers).is_some_and(|budget| used > budget.peers)
    }

    fn start_connection(
        &self,
        stream: std::net::TcpStream,
        address: SocketAddr,
        suspend: &CancellationToken,
    ) {
        let config = self.config.borrow().clone();
        let is_proxy = proxied::is_proxy(address, &config);
        let admitted = match is_proxy {
            false => self.admission.try_admit(address, &config),
            true => self.admission.try_admit_proxied(&config),
        };
        let pending = match admitted {
            Ok(pending) => pending,
            Err(why) => {
                self.metrics.connections.count(why.into());
                self.refusals.log_rejected(address, why);
                return;
            }
        };
        // Only for a connection that was admitted: one that is rejected needs no descriptor any more.
        if self.are_descriptors_short()
            && self.admission.evict_oldest(Eviction::Descriptors)
            && self.shortages.allows()
        {
            warn!(
                "descriptors are short: the peers that have been silent the longest are evicted. Raise the limit on open \
                 files (ulimit -n, LimitNOFILE, ulimits of the container)"
            );
        }
        self.spawn(PendingPeer::accepted(stream, address, is_proxy), pending, suspend);
    }

    fn spawn(&self, peer: PendingPeer, pending: PendingConnection, suspend: &CancellationToken) {
        let (peers, suspend) = (self.clone(), suspend.clone());
        self.tasks.spawn(async move { peers.serve(peer, pending, &suspend).await });
    }

    async fn serve(
        &self,
        peer: PendingPeer,
        mut pending: PendingConnection,
        suspend: &CancellationToken,
    ) {
        let mut address = peer.address();
        let pairing = self.pair(peer, &mut pending, suspend, &mut address);
        let Some(end) = self.stop.run_until_cancelled(pairing).await else {
            self.metrics.connections.count(PeerOutcome::Draining);
            return;
        };
        drop(pending);
        match end {
            Ok(HandshakeEnd::Suspended(peer)) => self.suspension.peers.lock().push(peer),
            Ok(HandshakeEnd::First(paired)) => {
                self.metrics.connections.count(PeerOutcome::Paired);
                self.start_session(paired);
            }
            Ok(HandshakeEnd::Second) => self.metrics.connections.count(PeerOutcome::Paired),
            Err(error) => self.refuse(address, &error),
        }
    }

    /// Takes a connection to pairing. If it comes from a proxy, `address` becomes that of the peer.
    async fn pair(
        &self,
        peer: PendingPeer,
        pending: &mut PendingConnection,
        suspend: &CancellationToken,
        address: &mut SocketAddr,
    ) -> Result<HandshakeEnd, PeerError> {
        let Self { rendezvous, metrics, .. } = self;
        let handshake = PeerHandshake { rendezvous, metrics, suspend };
        if !peer.awaits_proxy_header() {
            // One of the proxy itself, which was suspended after its header.
            let is_proxy = proxied::is_proxy(peer.address(), &self.config.borrow());
            let end = handshake.run(peer, pending).await;
            return if is_proxy { end.map_err(proxied::conceal_health_check) } else { end };
        }
        // On the heap, so that the task of a connection without a proxy does not get larger.
        let (peer, source) = match Box::pin(peer.read_proxy_header(pending, suspend)).await? {
            ProxiedPeer::Suspended(peer) => return Ok(HandshakeEnd::Suspended(peer)),
            ProxiedPeer::Identified(peer, source) => (peer, source),
        };
        *address = peer.address();
        let config = self.config.borrow().clone();
        if let Err(why) = self.admission.try_admit_peer(pending, *address, &config) {
            let may_be_check = matches!(source, ProxySource::Proxy);
            let is_check = may_be_check && peer.ends_as_health_check(pending, suspend).await;
            return Err(if is_check { PeerError::HealthCheck } else { why.into() });
        }
        let end = handshake.run(peer, pending).await;
        match source {
            ProxySource::Peer(_) => end,
            ProxySource::Proxy => end.map_err(proxied::conceal_health_check),
        }
    }

    fn refuse(&self, address: SocketAddr, error: &PeerError) {
        let outcome = match error {
            // The key was valid until the relay withdrew it.
            PeerError::Refused { refusal: Refusal::UnknownKey, .. }
                if self.draining.is_cancelled() =>
            {
                PeerOutcome::Draining
            }
            error => error.into(),
        };
        self.metrics.connections.count(outcome);
        self.refusals.log_refused(address, outcome, error);
    }

    fn start_session(&self, paired: PairedPeer) {
        let PairedPeer { stream: first, facts, partner } = paired;
        let session = partner.session.session();
        let trace = self.sessions.begin_trace(session, [facts, partner.facts]);
        let Partner { stream: second, session: active, .. } = partner;
        let (sockets, forward) = ([first, second], Forward::default());
        self.sessions.start(RunnableSession { sockets, forward, active, trace });
    }
}
