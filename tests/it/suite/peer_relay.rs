//! The part of a relay that peers meet, which a test suspends and replaces.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::config::Config;
use aspia_relay::crypto::{Iv, PrivateKey};
use aspia_relay::forward::metrics::ForwardMetrics;
use aspia_relay::forward::pipe::Pipes;
use aspia_relay::forward::{BUDGET, ForwardResources};
use aspia_relay::listen::accept::AcceptStatus;
use aspia_relay::listen::acceptor::Acceptor;
use aspia_relay::peer::metrics::PeerMetrics;
use aspia_relay::peer::session::{KeptSessions, SessionManager};
use aspia_relay::peer::{Peers, SuspendedPeer};
use aspia_relay::state::keys::{KeyId, OneTimeKey};
use aspia_relay::state::metrics::StateMetrics;
use aspia_relay::state::shared::SharedState;
use aspia_relay::trace::Tracer;
use prometheus::Registry;
use relay_lab::peer::Introduction;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Setup;

const SECOND: Duration = Duration::from_secs(1);

/// The part of a relay that peers meet. The test offers its keys and suspends it.
pub(super) struct PeerRelay {
    pub(super) state: SharedState,
    pub(super) sessions: SessionManager,
    pub(super) peers: Arc<Peers>,
    listener: TcpListener,
    pub(super) registry: Registry,
    pub(super) suspend: CancellationToken,
    pub(super) stop: CancellationToken,
    _config: watch::Sender<Arc<Config>>,
}

impl PeerRelay {
    /// A relay that will accept from `listener`.
    pub(super) fn new(setup: Setup, listener: &TcpListener, kept: KeptSessions) -> Self {
        Self::with_settings(setup, listener, kept, &[])
    }

    pub(super) fn with_settings(
        setup: Setup,
        listener: &TcpListener,
        kept: KeptSessions,
        settings: &[(&str, &str)],
    ) -> Self {
        let router = (Ipv4Addr::LOCALHOST, 1).into();
        let router_key = PrivateKey::generate().unwrap().public();
        let port = listener.local_addr().unwrap().port();
        let config = relay_lab::relay::config(router, router_key, port, settings).unwrap().config;
        let (registry, config) = (Registry::new(), watch::Sender::new(Arc::new(config)));
        let state = SharedState::new(10_000, 0, StateMetrics::new(&registry).unwrap());
        state.link_up();
        let metrics = PeerMetrics::new(&registry).unwrap();
        let data_plane = setup.data_plane();
        let resources = ForwardResources {
            method: data_plane.method,
            pipes: Pipes::new(data_plane.max_pipes, ForwardMetrics::new(&registry).unwrap()),
            budget: BUDGET,
            throttle: Arc::default(),
        };
        let sessions = SessionManager::new(
            state.clone(),
            config.subscribe(),
            metrics.clone(),
            data_plane.workers,
            resources,
            Tracer::default(),
            kept,
        );
        let (suspend, stop) = (CancellationToken::new(), CancellationToken::new());
        let peers = Arc::new(Peers::new(
            sessions.clone(),
            metrics,
            AcceptStatus::default(),
            CancellationToken::new(),
            suspend.clone(),
            stop.clone(),
        ));
        let listener = listener.try_clone().unwrap();
        Self { state, sessions, peers, listener, registry, suspend, stop, _config: config }
    }

    /// Offers keys with these seeds; each relay of a test has the same.
    pub(super) fn offer(&self, seeds: impl Iterator<Item = u32>) {
        for seed in seeds {
            let order = self.state.order(1, usize::MAX).unwrap();
            assert!(self.state.offer(&order, vec![key(seed)]));
        }
    }

    pub(super) fn run(&self, resumed: Vec<SuspendedPeer>) -> JoinHandle<Vec<SuspendedPeer>> {
        let acceptor = Acceptor::new(self.listener.try_clone().unwrap()).unwrap();
        let peers = self.peers.clone();
        tokio::spawn(async move { peers.run(acceptor, resumed).await })
    }

    pub(super) async fn suspend(&self, run: JoinHandle<Vec<SuspendedPeer>>) -> Vec<SuspendedPeer> {
        self.suspend.cancel();
        run.await.unwrap()
    }

    /// What a metric with this label shows.
    pub(super) fn count(&self, metric: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == metric).unwrap();
        let mut series = family.get_metric().iter();
        let series = series.find(|series| series.get_label().iter().any(|l| l.value() == label));
        series.unwrap().get_counter().get_value()
    }

    pub(super) fn pending(&self) -> f64 {
        let families = self.registry.gather();
        let pending = families.iter().find(|family| family.name() == "aspia_relay_peers_pending");
        pending.unwrap().get_metric()[0].get_gauge().get_value()
    }

    pub(super) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + 30 * SECOND;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{:?}", self.state.counts());
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until this many sessions are active.
    pub(super) async fn has_sessions(&self, count: usize) {
        self.until(|relay| relay.state.counts().active == count).await;
    }
}

pub(super) fn listen() -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

pub(super) fn key(seed: u32) -> OneTimeKey {
    let mut private = [7; 32];
    private[..4].copy_from_slice(&seed.to_be_bytes());
    let private = PrivateKey::from_slice(&private).unwrap();
    OneTimeKey { id: KeyId(seed), private, iv: Iv([3; 12]) }
}

pub(super) fn introduce(setup: Setup, listener: &TcpListener, seed: u32) -> Introduction {
    let key = key(seed);
    Introduction {
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
        key_id: seed,
        public_key: key.public(),
        iv: key.iv,
        secret: Vec::new(),
        encryption: if setup.router.is_v3() { 2 } else { 0 },
    }
}

pub(super) async fn send_hello(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    to.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

pub(super) async fn is_closed(stream: &mut TcpStream) {
    let read = timeout(20 * SECOND, stream.read(&mut [0; 64])).await.expect("it stays open");
    assert_eq!(read.unwrap_or(0), 0);
}
