//! Steers and shows a running relay; what signals and the admin interface hold.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::{IntGauge, Registry};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::report::Report;
use crate::config::{Config, Loaded};
use crate::forward::metrics::ForwardMetrics;
use crate::forward::pipe::Pipes;
use crate::forward::{BUDGET, Forwarding, Method};
use crate::listen::accept::Accepting;
use crate::log::LogHandle;
use crate::metrics::{counter_of, gauge};
use crate::peer::metrics::PeerMetrics;
use crate::peer::session::{Runner, Way};
#[cfg(target_os = "linux")]
use crate::process::ProcessMetrics;
use crate::router::metrics::RouterMetrics;
use crate::router::status::LinkStatus;
use crate::state::metrics::StateMetrics;
use crate::state::shared::SharedState;
use crate::workers::Workers;

/// The commit that was built, where the build was told (`ASPIA_RELAY_REVISION`).
pub const REVISION: &str = match option_env!("ASPIA_RELAY_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// What a reload did, by keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// What changed and is in force, or will be with a new link.
    pub changed: Vec<&'static str>,
    /// What waits for a restart.
    pub waiting: Vec<&'static str>,
}

/// What a signal to stop does, by what has been asked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopStep {
    /// It begins to drain.
    Drain,
    /// The drain that an administrator asked for goes on, with the `DrainTimeout` that began then.
    ContinueDrain,
    /// It stops at once, since an earlier signal asked already.
    AtOnce,
}

/// What of a relay the others need: made once, before its tasks.
pub(crate) struct Parts {
    pub(crate) loaded: Loaded,
    pub(crate) key_base: u32,
    pub(crate) address: SocketAddr,
    pub(crate) log: LogHandle,
    pub(crate) workers: Workers,
    pub(crate) method: Method,
    pub(crate) max_pipes: usize,
}

/// A handle on a relay; cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    state: SharedState<Way>,
    config: watch::Sender<Arc<Config>>,
    runner: Arc<Runner>,
    report: Mutex<Arc<Report>>,
    waiting: Mutex<Vec<&'static str>>,
    link: watch::Sender<LinkStatus>,
    accepting: Accepting,
    registry: Registry,
    router_metrics: RouterMetrics,
    peer_metrics: PeerMetrics,
    reload_successful: IntGauge,
    reload_timestamp: IntGauge,
    certificate_expiry: IntGauge,
    log: LogHandle,
    address: SocketAddr,
    started: Instant,
    /// The same moment by the other clock.
    began: SystemTime,
    drain: CancellationToken,
    /// Whether a signal has asked to stop. A drain alone does not say so: an administrator may have asked for it.
    stop_signalled: AtomicBool,
    stop: CancellationToken,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:?})", self.0.state)
    }
}

impl Handle {
    /// Makes the state and the metrics of a relay.
    pub(crate) fn new(parts: Parts) -> prometheus::Result<Self> {
        let Parts { loaded, key_base, address, log, workers, method, max_pipes } = parts;
        let Loaded { config, report } = loaded;
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(ProcessMetrics::for_self()))?;
        let options = prometheus::opts!(
            "aspia_relay_build_info",
            "What was built.",
            prometheus::labels! {
                "version" => env!("CARGO_PKG_VERSION"),
                "revision" => REVISION,
            }
        );
        let build = IntGauge::with_opts(options)?;
        build.set(1);
        registry.register(Box::new(build))?;
        let reload_successful = gauge(
            &registry,
            "aspia_relay_config_last_reload_successful",
            "1 where the latest reading of the configuration, at the start or later, was taken.",
        )?;
        let reload_timestamp = gauge(
            &registry,
            "aspia_relay_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read, in seconds since 1970.",
        )?;
        let lost = log.lost_lines().clone();
        counter_of(
            &registry,
            "aspia_relay_log_lines_lost_total",
            "Lines of the log that an output did not take, and no other one instead.",
            move || lost.count(),
        )?;
        let metrics = StateMetrics::new(&registry)?;
        let peer_metrics = PeerMetrics::new(&registry)?;
        let pipes = Pipes::new(max_pipes, ForwardMetrics::new(&registry)?);
        let state = SharedState::new(config.max_sessions, key_base, metrics);
        let config = watch::Sender::new(Arc::new(config));
        let forwarding = Forwarding { method, pipes, budget: BUDGET, throttle: Arc::default() };
        let runner = Runner::new(
            state.clone(),
            config.subscribe(),
            peer_metrics.clone(),
            workers,
            forwarding,
        );
        let handle = Self(Arc::new(Inner {
            state,
            config,
            runner,
            report: Mutex::new(Arc::new(report)),
            waiting: Mutex::default(),
            link: watch::Sender::new(LinkStatus::new()),
            accepting: Accepting::default(),
            router_metrics: RouterMetrics::new(&registry)?,
            peer_metrics,
            reload_successful,
            reload_timestamp,
            certificate_expiry: IntGauge::new(
                "aspia_relay_tls_certificate_expiry_timestamp_seconds",
                "When the certificate of the metrics listener expires, in seconds since 1970; there is none without TLS.",
            )?,
            registry,
            log,
            address,
            started: Instant::now(),
            began: SystemTime::now(),
            drain: CancellationToken::new(),
            stop_signalled: AtomicBool::new(false),
            stop: CancellationToken::new(),
        }));
        handle.configuration_taken();
        Ok(handle)
    }

    /// Stops: no new peers but those on their way, and no new keys; sessions get until `DrainTimeout`. Asking again
    /// changes nothing: the time that sessions get has begun.
    pub fn drain(&self) {
        self.0.drain.cancel();
    }

    /// Does what a signal to stop asks for, or an order of the service manager: the first one drains, the second one
    /// stops at once. Whoever asks over HTTP sends no signal: a preStop hook or an administrator drains, and the
    /// SIGTERM that follows must not cut the sessions off.
    pub fn stop_by_signal(&self) -> StopStep {
        if self.0.stop_signalled.swap(true, Ordering::Relaxed) {
            self.stop();
            return StopStep::AtOnce;
        }
        let step = if self.is_draining() { StopStep::ContinueDrain } else { StopStep::Drain };
        self.drain();
        step
    }

    /// Stops at once.
    pub fn stop(&self) {
        self.0.drain.cancel();
        self.0.stop.cancel();
    }

    /// Whether a stop has begun.
    pub fn is_draining(&self) -> bool {
        self.0.drain.is_cancelled()
    }

    /// Is cancelled when a stop begins.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.0.drain
    }

    /// Is cancelled when the relay is to stop at once.
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// The state, to look at.
    pub fn state(&self) -> &SharedState<Way> {
        &self.0.state
    }

    /// Runs sessions; takes them apart and puts them together.
    pub fn runner(&self) -> &Arc<Runner> {
        &self.0.runner
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<Config> {
        self.0.config.borrow().clone()
    }

    /// Hears of new settings.
    pub(crate) fn settings(&self) -> watch::Receiver<Arc<Config>> {
        self.0.config.subscribe()
    }

    /// The values of the configuration that was read last, with where they came from; secrets redacted.
    pub fn report(&self) -> Arc<Report> {
        self.0.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys of settings that were read but wait for a restart.
    pub fn waiting_for_restart(&self) -> Vec<&'static str> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the Router link is.
    pub fn link(&self) -> LinkStatus {
        self.0.link.borrow().clone()
    }

    /// Hears of changes of the Router link.
    pub fn watch_link(&self) -> watch::Receiver<LinkStatus> {
        self.0.link.subscribe()
    }

    pub(crate) fn link_sender(&self) -> watch::Sender<LinkStatus> {
        self.0.link.clone()
    }

    /// Whether peers are accepted.
    pub fn accepting(&self) -> &Accepting {
        &self.0.accepting
    }

    /// Where it listens for peers.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// How long it runs.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// A moment of this relay's life by the clock on the wall; the same for each who asks.
    pub fn time_of(&self, moment: Instant) -> SystemTime {
        self.0.began + moment.saturating_duration_since(self.0.started)
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.0.started
    }

    /// All metrics, the gauges among them up to date. Looks at every session and at `/proc`: not for a thread that
    /// forwards.
    pub fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.0.state.refresh_metrics();
        self.0.registry.gather()
    }

    /// Notes when the certificate in use expires, since 1970; `None` where there is none. Without a certificate there
    /// is no metric: any value would be an alarm.
    pub(crate) fn set_certificate_expiry(&self, expiry: Option<Duration>) {
        let gauge = &self.0.certificate_expiry;
        match expiry {
            Some(expiry) => {
                gauge.set(i64::try_from(expiry.as_secs()).unwrap_or(i64::MAX));
                // It may be there already.
                let _ = self.0.registry.register(Box::new(gauge.clone()));
            }
            None => {
                let _ = self.0.registry.unregister(Box::new(gauge.clone()));
            }
        }
    }

    /// The metrics of peers' connections.
    pub fn peer_metrics(&self) -> &PeerMetrics {
        &self.0.peer_metrics
    }

    pub(crate) fn router_metrics(&self) -> &RouterMetrics {
        &self.0.router_metrics
    }

    /// What is logged, and what was lost of it.
    pub fn log(&self) -> &LogHandle {
        &self.0.log
    }

    /// What is missing before peers can be served; empty where all is well. The names are those of `/readyz`. A link counts
    /// only when the Router has kept it for a while: a roll-out must not walk past a relay that its Router refuses.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = [
            ("router-link", !self.0.link.borrow().is_confirmed()),
            ("peer-listener", !self.0.accepting.is_well()),
            ("draining", self.is_draining()),
        ];
        missing.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect()
    }

    /// Applies what can be applied of new settings. No session ends by it, but those that are over stricter limits on their time,
    /// one after the other.
    pub fn reload(&self, new: &Loaded) -> Reloaded {
        let old = self.config();
        let (applied, waiting) = old.reloaded(&new.config);
        let changed = old.differences(&applied);
        self.0.state.set_capacity(applied.max_sessions);
        self.0.config.send_replace(Arc::new(applied));
        *self.0.report.lock().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(new.report.clone());
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&waiting);
        self.configuration_taken();
        Reloaded { changed, waiting }
    }

    /// Notes that new settings were wrong and are not taken.
    pub fn reload_failed(&self) {
        self.0.reload_successful.set(0);
    }

    fn configuration_taken(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.0.reload_successful.set(1);
        self.0.reload_timestamp.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}
