//! The handle with which signals and the admin listener control a running relay and see its state.

mod certificate_expiry;
mod lifecycle;
pub(crate) mod reload;
pub(crate) mod settings;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use prometheus::Registry;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, LoadedConfig};
use crate::fd_store::status::StoreLinkStatus;
use crate::headroom::watch::LoadReading;
use crate::listen::accept::AcceptStatus;
use crate::log::LogHandle;
use crate::metrics::carried::CarriedMetrics;
use crate::peer::metrics::PeerMetrics;
use crate::peer::session::SessionManager;
use crate::router::status::LinkStatus;
use crate::state::shared::SharedState;

use lifecycle::Lifecycle;
use reload::ReloadRequests;

pub(crate) use certificate_expiry::CertificateExpiry;
pub use lifecycle::StopStep;
pub use reload::{ReloadFailure, ReloadOutcome, ReloadResult};
pub use settings::{LastRead, LiveSettings};

/// The commit that was built, if the build was told which (`ASPIA_RELAY_REVISION`).
pub const REVISION: &str = match option_env!("ASPIA_RELAY_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The moment at which a relay started, by the monotonic clock and by the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct StartTime {
    instant: Instant,
    wall_clock: SystemTime,
}

impl StartTime {
    pub(crate) fn now() -> Self {
        Self { instant: Instant::now(), wall_clock: SystemTime::now() }
    }

    /// The start of a relay that continues what another one began at `instant`.
    #[cfg(target_os = "linux")]
    pub(crate) fn at(instant: Instant) -> Self {
        Self { instant, wall_clock: SystemTime::now() - instant.elapsed() }
    }

    /// The start by the monotonic clock.
    pub fn instant(self) -> Instant {
        self.instant
    }

    /// Time since the start.
    pub fn uptime(self) -> Duration {
        self.instant.elapsed()
    }

    /// Converts a moment since the start to the wall clock. The result does not change if the wall clock is set later.
    pub fn wall_clock(self, moment: Instant) -> SystemTime {
        self.wall_clock + moment.saturating_duration_since(self.instant)
    }
}

/// The parts of a relay that a [`Handle`] shows.
pub(crate) struct RelayView {
    pub(crate) state: SharedState,
    pub(crate) session_manager: SessionManager,
    pub(crate) settings: LiveSettings,
    pub(crate) reloads: ReloadRequests,
    pub(crate) link: watch::Receiver<LinkStatus>,
    pub(crate) load: watch::Receiver<LoadReading>,
    pub(crate) store_link: watch::Receiver<StoreLinkStatus>,
    pub(crate) accepting: AcceptStatus,
    pub(crate) registry: Registry,
    pub(crate) peer_metrics: PeerMetrics,
    pub(crate) certificate_expiry: CertificateExpiry,
    pub(crate) log: LogHandle,
    pub(crate) address: SocketAddr,
    pub(crate) started: StartTime,
}

/// A handle to a running relay; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    relay: Arc<RelayView>,
    lifecycle: Arc<Lifecycle>,
    /// What earlier processes counted; not set if nothing was taken over.
    carried: Arc<OnceLock<CarriedMetrics>>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:?})", self.relay.state)
    }
}

/// Controls the relay.
impl Handle {
    pub(crate) fn new(relay: RelayView) -> Self {
        Self { relay: Arc::new(relay), lifecycle: Arc::default(), carried: Arc::default() }
    }

    /// Begins to stop: no new peers except those with a key that was handed out, and no new keys; sessions get until
    /// `DrainTimeout`. Calling this again changes nothing, since that time is already running.
    pub fn drain(&self) {
        self.lifecycle.drain();
    }

    /// Handles a stop request from a signal or the service manager: the first hands over to the descriptor store, or drains if
    /// there is none; the second stops at once. A request over HTTP does not count: when a preStop hook or an administrator drains, the SIGTERM that follows must
    /// not cut off the sessions.
    pub fn stop_by_signal(&self) -> StopStep {
        self.lifecycle.stop_by_signal(self.relay.store_link.borrow().is_connected())
    }

    /// Stops at once.
    pub fn stop(&self) {
        self.lifecycle.stop();
    }

    /// Asks the relay to read its configuration again and apply it, on behalf of `origin`, which the log names.
    pub fn request_reload(&self, origin: &'static str) {
        self.relay.reloads.send(origin);
    }

    /// Like [`Self::request_reload`], and waits for what comes of it. `None` if the relay does not run, or stops.
    pub async fn request_reload_and_wait(&self, origin: &'static str) -> Option<ReloadResult> {
        self.relay.reloads.send_and_wait(origin).await
    }

    /// Applies the new settings as far as that is possible without a restart. No session is ended, except those that
    /// stricter time limits no longer allow, one after the other.
    pub fn reload(&self, new: &LoadedConfig) -> ReloadOutcome {
        let state = &self.relay.state;
        self.relay.settings.apply(new, |config| state.set_capacity(config.max_sessions))
    }

    /// Adds what the previous relay counted to the metrics. Only the first call has an effect.
    pub fn carry_over(&self, metrics: CarriedMetrics) {
        let _ = self.carried.set(metrics);
    }

    pub(crate) fn set_certificate_expiry(&self, expiry: Option<Duration>) {
        self.relay.certificate_expiry.set(expiry);
    }
}

/// Shows the state of the relay.
impl Handle {
    /// Whether a stop has begun.
    pub fn is_draining(&self) -> bool {
        self.lifecycle.draining().is_cancelled()
    }

    /// A token that is cancelled when a hand-over begins.
    pub(crate) fn handing_over(&self) -> &CancellationToken {
        self.lifecycle.handing_over()
    }

    /// A token that is cancelled when a stop begins.
    pub(crate) fn draining(&self) -> &CancellationToken {
        self.lifecycle.draining()
    }

    /// A token that is cancelled when the relay has to stop at once.
    pub fn stopping(&self) -> &CancellationToken {
        self.lifecycle.stopping()
    }

    /// Keys, waiting peers and sessions.
    pub fn state(&self) -> &SharedState {
        &self.relay.state
    }

    /// Runs the sessions, and detaches and attaches them.
    pub fn session_manager(&self) -> &SessionManager {
        &self.relay.session_manager
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<Config> {
        self.relay.settings.config()
    }

    /// The settings in force with their sources, and what waits for a restart.
    pub fn settings(&self) -> &LiveSettings {
        &self.relay.settings
    }

    /// The state of the Router link.
    pub fn link(&self) -> LinkStatus {
        self.relay.link.borrow().clone()
    }

    /// Receives changes of the Router link.
    pub fn watch_link(&self) -> watch::Receiver<LinkStatus> {
        let mut link = self.relay.link.clone();
        // The original receiver never marks a value as seen, so a clone would report a change at once.
        link.mark_unchanged();
        link
    }

    /// How much of the machine is in use.
    pub fn load(&self) -> LoadReading {
        *self.relay.load.borrow()
    }

    /// The state of the connection to the descriptor store.
    pub fn store_link(&self) -> StoreLinkStatus {
        self.relay.store_link.borrow().clone()
    }

    /// Whether peers are accepted.
    pub fn accepting(&self) -> &AcceptStatus {
        &self.relay.accepting
    }

    /// The address on which the relay listens for peers.
    pub fn address(&self) -> SocketAddr {
        self.relay.address
    }

    /// When the relay started.
    pub fn started(&self) -> StartTime {
        self.relay.started
    }

    /// All metrics, with their current values; counters and histograms include what earlier processes counted. Reads every
    /// session and `/proc`, so it must not run on a thread that forwards.
    pub fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.relay.state.refresh_metrics();
        let mut families = self.relay.registry.gather();
        if let Some(carried) = self.carried.get() {
            carried.add_to(&mut families);
        }
        families
    }

    /// What earlier processes counted; `None` if nothing was taken over from them.
    pub fn carried_metrics(&self) -> Option<&CarriedMetrics> {
        self.carried.get()
    }

    /// What the next process carries over: everything that was counted by this process and by those before. As expensive as
    /// [`Self::gather`].
    pub fn metrics_to_carry(&self) -> CarriedMetrics {
        let families = self.gather();
        self.carried.get().unwrap_or(&CarriedMetrics::default()).succeed(&families)
    }

    /// The metrics of peer connections.
    pub fn peer_metrics(&self) -> &PeerMetrics {
        &self.relay.peer_metrics
    }

    /// The log level, and the number of lines lost.
    pub fn log(&self) -> &LogHandle {
        &self.relay.log
    }

    /// What is missing before peers can be served, by the names of `/readyz`; empty if the relay is ready. A link
    /// counts only once the Router has kept it for a while: a rolling update must not go on past a relay that its
    /// Router rejects.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = [
            ("router-link", !self.relay.link.borrow().is_confirmed()),
            ("peer-listener", !self.relay.accepting.is_accepting()),
            ("draining", self.is_draining()),
        ];
        missing.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect()
    }
}
