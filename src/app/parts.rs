//! The composition root: the one place where the parts of a relay are made and connected. They are owned here until the
//! relay runs.

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus::{IntGauge, Registry};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::AdminServer;
use crate::admin::certificates::Certificates;
use crate::config::{Config, LoadedConfig};
use crate::crypto;
use crate::fd_store::status::StoreLinkStatus;
use crate::forward::metrics::ForwardMetrics;
use crate::forward::pipe::Pipes;
use crate::forward::{BUDGET, ForwardResources};
use crate::handle::reload::{MAX_PENDING_RELOADS, ReloadRequests};
use crate::handle::settings::LiveSettings;
use crate::handle::{CertificateExpiry, Handle, REVISION, RelayView, StartTime};
#[cfg(target_os = "linux")]
use crate::handover::metrics::HandoverMetrics;
#[cfg(target_os = "linux")]
use crate::handover::relay::{KeptListener, KeptRelay};
use crate::handover::takeover::Takeover;
use crate::headroom::machine::MachineMeter;
use crate::headroom::watch::LoadWatch;
use crate::listen::accept::AcceptStatus;
use crate::log::LogHandle;
use crate::metrics::counter_from_fn;
use crate::peer::Peers;
use crate::peer::metrics::PeerMetrics;
use crate::peer::session::{KeptSessions, SessionManager};
#[cfg(target_os = "linux")]
use crate::process::ProcessMetrics;
use crate::router::RouterTask;
use crate::router::metrics::RouterMetrics;
use crate::router::status::LinkStatus;
use crate::state::metrics::StateMetrics;
use crate::state::shared::SharedState;
use crate::trace::Tracer;

use super::data_plane::DataPlane;
use super::error::StartError;
use super::reload::ConfigReloader;
use super::stop::StopTokens;

/// The part of a relay that peers meet: state, sessions and their metrics. The doctor runs it without the rest.
pub(crate) struct PeerSide {
    pub(crate) registry: Registry,
    pub(crate) state: SharedState,
    config: watch::Sender<Arc<Config>>,
    session_manager: SessionManager,
    peer_metrics: PeerMetrics,
    accepting: AcceptStatus,
}

impl PeerSide {
    /// Builds it. `tracer` records sessions, and `kept` are those that a store keeps, if there is one.
    pub(crate) fn build(
        config: Config,
        data_plane: DataPlane,
        tracer: Tracer,
        kept: KeptSessions,
    ) -> Result<Self, StartError> {
        let DataPlane { workers, method, max_pipes } = data_plane;
        let registry = Registry::new();
        let mut key_base = [0; 4];
        crypto::fill_random(&mut key_base)?;
        let state = SharedState::new(
            config.max_sessions,
            u32::from_be_bytes(key_base),
            StateMetrics::new(&registry)?,
        );
        let config = watch::Sender::new(Arc::new(config));
        let peer_metrics = PeerMetrics::new(&registry)?;
        let pipes = Pipes::new(max_pipes, ForwardMetrics::new(&registry)?);
        let session_manager = SessionManager::new(
            state.clone(),
            config.subscribe(),
            peer_metrics.clone(),
            workers,
            ForwardResources { method, pipes, budget: BUDGET, throttle: Arc::default() },
            tracer,
            kept,
        );
        let accepting = AcceptStatus::default();
        Ok(Self { registry, state, config, session_manager, peer_metrics, accepting })
    }

    /// Builds the task that keeps the link to the Router, whose status it puts into `link`.
    fn build_router(
        &self,
        link: watch::Sender<LinkStatus>,
        started: StartTime,
        stop_tokens: &StopTokens,
    ) -> prometheus::Result<RouterTask> {
        Ok(RouterTask::new(
            self.state.clone(),
            self.config.subscribe(),
            RouterMetrics::new(&self.registry)?,
            link,
            started.instant(),
            stop_tokens.link.clone(),
            stop_tokens.suspend.clone(),
        ))
    }

    /// Builds the task that makes the keys on offer follow the load.
    fn build_load_watch(&self) -> prometheus::Result<LoadWatch> {
        let metrics = self.peer_metrics.clone();
        let meter = MachineMeter::new(self.state.clone(), self.config.subscribe(), move || {
            metrics.pending()
        });
        LoadWatch::new(self.state.clone(), self.config.subscribe(), Box::new(meter), &self.registry)
    }

    /// Builds the part that serves peers. Its tasks end when `stop` is cancelled, and it is suspended when `suspend` is;
    /// `draining` only changes how peers whose keys were withdrawn are counted.
    pub(crate) fn build_peers(
        &self,
        draining: CancellationToken,
        suspend: CancellationToken,
        stop: CancellationToken,
    ) -> Peers {
        Peers::new(
            self.session_manager.clone(),
            self.peer_metrics.clone(),
            self.accepting.clone(),
            draining,
            suspend,
            stop,
        )
    }
}

/// All parts of a relay, connected to each other and not running yet.
pub(super) struct RelayParts {
    pub(super) router: RouterTask,
    pub(super) peers: Peers,
    pub(super) admin: AdminServer,
    pub(super) reloader: ConfigReloader,
    pub(super) load_watch: LoadWatch,
    pub(super) handle: Handle,
    pub(super) stop_tokens: StopTokens,
    #[cfg(target_os = "linux")]
    kept: KeptParts,
}

/// What the keeper of the descriptor store needs, besides what a [`Handle`] gives.
#[cfg(target_os = "linux")]
struct KeptParts {
    config: watch::Receiver<Arc<Config>>,
    status: watch::Sender<StoreLinkStatus>,
    metrics: HandoverMetrics,
}

#[cfg(target_os = "linux")]
impl KeptParts {
    fn build(
        peer_side: &PeerSide,
        status: watch::Sender<StoreLinkStatus>,
    ) -> prometheus::Result<Self> {
        let config = peer_side.config.subscribe();
        let has_store = config.borrow().startup.fd_store.is_some();
        let metrics = HandoverMetrics::new(&peer_side.registry, has_store)?;
        Ok(Self { config, status, metrics })
    }
}

/// When the relay started, or the first one of those that have handed over to each other.
fn start_time(takeover: &Takeover) -> StartTime {
    #[cfg(target_os = "linux")]
    return takeover.started().map_or_else(StartTime::now, StartTime::at);
    #[cfg(not(target_os = "linux"))]
    {
        let Takeover { .. } = takeover;
        StartTime::now()
    }
}

impl RelayParts {
    pub(super) fn build(
        loaded: LoadedConfig,
        address: SocketAddr,
        log: LogHandle,
        tracer: Tracer,
        data_plane: DataPlane,
        takeover: &mut Takeover,
    ) -> Result<Self, StartError> {
        let LoadedConfig { config, report, sources } = loaded;
        let stop_tokens = StopTokens::default();
        let store_link = watch::Sender::new(StoreLinkStatus::new(config.startup.fd_store.clone()));
        let peer_side = PeerSide::build(config, data_plane, tracer, takeover.kept_sessions())?;
        let registry = &peer_side.registry;
        register_process_metrics(registry, &log)?;
        let link = watch::Sender::new(LinkStatus::new());
        let started = start_time(takeover);
        let router = peer_side.build_router(link.clone(), started, &stop_tokens)?;
        let load_watch = peer_side.build_load_watch()?;
        let (reloads, reload_requests) = mpsc::channel(MAX_PENDING_RELOADS);
        let handle = Handle::new(RelayView {
            state: peer_side.state.clone(),
            session_manager: peer_side.session_manager.clone(),
            settings: LiveSettings::new(peer_side.config.clone(), report, registry)?,
            reloads: ReloadRequests(reloads),
            link: link.subscribe(),
            load: load_watch.subscribe(),
            store_link: store_link.subscribe(),
            accepting: peer_side.accepting.clone(),
            peer_metrics: peer_side.peer_metrics.clone(),
            certificate_expiry: CertificateExpiry::new(registry.clone())?,
            registry: registry.clone(),
            log,
            address,
            started,
        });
        let StopTokens { everything, suspend, .. } = stop_tokens.clone();
        let peers = peer_side.build_peers(handle.draining().clone(), suspend, everything.clone());
        let certificates = Certificates::load(handle.clone())?;
        let admin = AdminServer::new(handle.clone(), certificates, everything);
        #[cfg(target_os = "linux")]
        let kept = KeptParts::build(&peer_side, store_link)?;
        #[cfg(target_os = "linux")]
        takeover.restore(&handle, &peers, &kept.metrics, &kept.status);
        Ok(Self {
            router,
            peers,
            admin,
            reloader: ConfigReloader::new(handle.clone(), sources, reload_requests),
            load_watch,
            handle,
            stop_tokens,
            #[cfg(target_os = "linux")]
            kept,
        })
    }

    /// The parts that the keeper of the descriptor store looks at.
    #[cfg(target_os = "linux")]
    pub(super) fn kept_relay(&self, listeners: Vec<KeptListener>) -> KeptRelay {
        let KeptParts { config, status, metrics } = &self.kept;
        KeptRelay {
            handle: self.handle.clone(),
            config: config.clone(),
            state: self.handle.state().clone(),
            peers: self.peers.clone(),
            sessions: self.handle.session_manager().clone(),
            listeners,
            started: self.handle.started().instant(),
            status: status.clone(),
            metrics: metrics.clone(),
        }
    }

    pub(super) fn stop_tokens(&self) -> StopTokens {
        self.stop_tokens.clone()
    }
}

/// Registers the metrics that do not belong to a part of the relay: of the process, its build and its log.
fn register_process_metrics(registry: &Registry, log: &LogHandle) -> prometheus::Result<()> {
    #[cfg(target_os = "linux")]
    registry.register(Box::new(ProcessMetrics::for_self()))?;
    let options = prometheus::opts!(
        "aspia_relay_build_info",
        "1, with the version and the revision of this program.",
        prometheus::labels! {
            "version" => env!("CARGO_PKG_VERSION"),
            "revision" => REVISION,
        }
    );
    let build = IntGauge::with_opts(options)?;
    build.set(1);
    registry.register(Box::new(build))?;
    let lost = log.lost_lines().clone();
    counter_from_fn(
        registry,
        "aspia_relay_log_lines_lost_total",
        "Log lines that were lost, because neither their output nor a substitute accepted them.",
        move || lost.count(),
    )
}
