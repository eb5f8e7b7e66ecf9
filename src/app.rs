//! The relay as a whole: the only place that knows everyone.

use std::io;
use std::net::{SocketAddr, TcpListener};
#[cfg(target_os = "linux")]
use std::os::unix::net::UnixListener;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::Admin;
use crate::admin::certificates::Certificates;
use crate::admin::kind::Kind;
use crate::config::Loaded;
use crate::crypto::{self, CryptoError};
use crate::forward::Method;
use crate::handle::{Handle, Parts};
use crate::listen::acceptor::Acceptor;
use crate::listen::bind::{self, BindError};
use crate::log::{LogHandle, START};
use crate::open_files::MAX_PIPES;
use crate::peer::session::Way;
use crate::peer::{self, Peers};
use crate::router::RouterTask;
use crate::state::sessions::End;
use crate::state::shared::SharedState;
use crate::tls::TlsError;
use crate::trace::Tracer;
use crate::workers::Workers;

/// Sessions that outlive the drain timeout end within this time before it, one after the other, so that
/// their peers do not come back all at once.
const CLOSING: Duration = Duration::from_secs(1);

/// Why the relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A listener that was handed over cannot be used.
    #[error("the listener that was handed over cannot be used: {0}")]
    Listener(io::Error),
    /// The metrics cannot be made.
    #[error("the metrics cannot be made: {0}; this is a bug, please report it")]
    Metrics(#[from] prometheus::Error),
    /// The files of the metrics listener's TLS are no longer good.
    #[error("TLS of the metrics listener: {0}")]
    Tls(#[from] TlsError),
    /// There is no randomness.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// A task of the relay ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
#[error("the relay failed: its {0} task ended; this is a bug, please report it with the log")]
pub struct Failure(&'static str);

/// How a relay stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing was left.
    Drained,
    /// Sessions were left when `DrainTimeout` was over.
    TimedOut,
    /// It was told to stop at once.
    AtOnce,
}

/// Sockets that are bound and listening already; those that are not given are made from the settings.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For peers.
    pub peers: Option<TcpListener>,
    /// For administrators.
    pub admin: Option<TcpListener>,
    /// For scrapers of metrics.
    pub metrics: Option<TcpListener>,
}

/// Where and how a relay moves bytes.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Where sessions live.
    pub workers: Workers,
    /// How their bytes are moved.
    pub method: Method,
    /// Most pipes that are open at once.
    pub max_pipes: usize,
}

impl Engine {
    /// The usual way, on these threads.
    pub fn on(workers: Workers) -> Self {
        Self { workers, method: Method::Adaptive, max_pipes: MAX_PIPES }
    }
}

/// A relay that listens but does not run yet.
pub struct App {
    peers: TcpListener,
    http: Vec<(Kind, TcpListener)>,
    #[cfg(target_os = "linux")]
    commands: Option<UnixListener>,
    certificates: Certificates,
    tracer: Tracer,
    handle: Handle,
}

impl App {
    /// Listens on everything, on the sockets of `handed_over` where there are any. `log` is what the admin interface
    /// changes the level of, `tracer` makes the traces of sessions, `engine` moves their bytes.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(
        loaded: Loaded,
        handed_over: Listeners,
        log: LogHandle,
        tracer: Tracer,
        engine: Engine,
    ) -> Result<Self, StartError> {
        let mut base = [0; 4];
        crypto::random(&mut base)?;
        let startup = &loaded.config.startup;
        let peers = match handed_over.peers {
            Some(listener) => listener,
            None => bind::bind(peer::PURPOSE, startup.listen_interface, startup.listen_port)?,
        };
        peers.set_nonblocking(true).map_err(StartError::Listener)?;
        let address = peers.local_addr().map_err(StartError::Listener)?;
        let mut http = Vec::new();
        for (kind, handed_over, setting) in [
            (Kind::Admin, handed_over.admin, startup.admin_listen),
            (Kind::Metrics, handed_over.metrics, startup.metrics_listen),
        ] {
            let listener = match (handed_over, setting) {
                (Some(listener), _) => listener,
                (None, Some(listen)) => bind::bind(kind.purpose(), listen.interface, listen.port)?,
                (None, None) => continue,
            };
            listener.set_nonblocking(true).map_err(StartError::Listener)?;
            http.push((kind, listener));
        }
        let key_base = u32::from_be_bytes(base);
        let Engine { workers, method, max_pipes } = engine;
        let parts = Parts { loaded, key_base, address, log, workers, method, max_pipes };
        let handle = Handle::new(parts)?;
        let certificates = Certificates::load(handle.clone())?;
        Ok(Self {
            peers,
            http,
            #[cfg(target_os = "linux")]
            commands: None,
            certificates,
            tracer,
            handle,
        })
    }

    /// Is found by commands on this machine through `listener`.
    #[cfg(target_os = "linux")]
    pub fn with_commands(self, listener: UnixListener) -> Self {
        Self { commands: Some(listener), ..self }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.handle.address()
    }

    /// A handle on it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until it is told to stop and has stopped; every task has ended then.
    ///
    /// # Errors
    /// [`Failure`] when a part of it fails, which none should; the others are told to end.
    pub async fn run(self) -> Result<Stopped, Failure> {
        #[cfg(target_os = "linux")]
        let commands = self.commands;
        let Self { peers: listener, http, certificates, tracer, handle, .. } = self;
        let places = places(&listener, &http);
        let listen = |listener| Acceptor::new(listener).map_err(|_| Failure("accepting"));
        let listener = listen(listener)?;
        let http = http
            .into_iter()
            .map(|(kind, listener)| Ok((kind, listen(listener)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        announce(&handle, &places);
        let link = CancellationToken::new();
        let everyone = CancellationToken::new();
        // Whatever ends this function, a failure or its caller, ends all tasks.
        let _ends_with_this = (link.clone().drop_guard(), everyone.clone().drop_guard());
        let state = handle.state().clone();
        let router = RouterTask::new(
            state.clone(),
            handle.settings(),
            handle.router_metrics().clone(),
            handle.link_sender(),
            handle.started(),
            link.clone(),
        );
        let peers = Peers::new(
            handle.runner().clone(),
            handle.peer_metrics().clone(),
            tracer,
            handle.accepting().clone(),
            handle.draining().clone(),
            everyone.clone(),
        );
        let admin = Admin::new(handle.clone(), certificates, everyone.clone());
        #[cfg(target_os = "linux")]
        if let Some(commands) = commands {
            admin.serve_commands(commands);
        }
        let mut router = tokio::spawn(router.run());
        let mut peers = tokio::spawn(async move { peers.run(listener).await });
        let mut admin = tokio::spawn(async move { admin.run(http).await });
        let mut expiry = tokio::spawn({
            let (state, everyone) = (state.clone(), everyone.clone());
            async move {
                everyone.run_until_cancelled(state.expire_keys()).await;
            }
        });

        let failed = tokio::select! {
            () = handle.draining().cancelled() => None,
            _ = &mut router => Some("Router"),
            _ = &mut peers => Some("peer"),
            _ = &mut admin => Some("HTTP"),
            _ = &mut expiry => Some("expiry"),
        };
        if let Some(part) = failed {
            return Err(Failure(part));
        }
        let stopped = async {
            // Closing the link withdraws the keys on offer: nobody new is sent here.
            link.cancel();
            let timeout = handle.config().drain_timeout;
            let deadline = Instant::now() + timeout;
            if timeout_at(deadline, &mut router).await.is_err() {
                router.abort();
            }
            drain(&handle, deadline, timeout).await
        };
        let stopped = tokio::select! {
            biased;
            () = handle.stopping().cancelled() => Stopped::AtOnce,
            stopped = stopped => stopped,
        };
        everyone.cancel();
        if stopped == Stopped::AtOnce {
            // Not even for the Router's last words.
            router.abort();
            admin.abort();
        }
        // A task that was waited for already must not be waited for again.
        for task in [router, peers, admin, expiry] {
            if !task.is_finished() {
                let _ = task.await;
            }
        }
        info!(?stopped, "stopped");
        Ok(stopped)
    }
}

/// Waits until nobody is left, or ends those who are when the time is over.
async fn drain(handle: &Handle, deadline: Instant, timeout: Duration) -> Stopped {
    let counts = handle.state().counts();
    info!(
        sessions = counts.active,
        keys_handed_out = counts.handed_out,
        "stopping: no new peers; active sessions get {} s",
        timeout.as_secs()
    );
    tokio::select! {
        () = handle.state().emptied() => return Stopped::Drained,
        () = close_the_rest(handle.state(), deadline, timeout.min(CLOSING)) => {}
    }
    Stopped::TimedOut
}

/// Ends the sessions that are left, evenly over the last `window` before the deadline.
async fn close_the_rest(state: &SharedState<Way>, deadline: Instant, window: Duration) {
    let begin = deadline - window;
    sleep_until(begin).await;
    let rest = state.sessions();
    if !rest.is_empty() {
        warn!(sessions = rest.len(), "DrainTimeout is over: ending the sessions that are left");
    }
    let count = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    for (number, session) in (1..).zip(&rest) {
        sleep_until(begin + window * number / count).await;
        state.stop_session(session.id, End::Drain);
    }
    sleep_until(deadline).await;
}

/// Where it listens, in words: for peers, and for whom else.
fn places(peers: &TcpListener, http: &[(Kind, TcpListener)]) -> (String, String) {
    let http = http.iter().map(|(kind, listener)| {
        format!(", HTTP for {} on {}", kind.purpose().callers, bind::describe(listener))
    });
    (bind::describe(peers), http.collect())
}

/// The one line at start that says what is running, and whether there is a file of settings at all. It reaches stderr at
/// any log level.
fn announce(handle: &Handle, (peers, http): &(String, String)) {
    let config = handle.config();
    let no_file = handle.report().no_file().map_or(String::new(), |no_file| format!("; {no_file}"));
    let limit = match config.max_session_duration {
        Some(longest) => format!(", a session lasts up to {} s", longest.as_secs()),
        None => String::new(),
    };
    info!(
        target: START,
        "aspia_relay {} runs: Router {}, peers dial {}, listening on {}, up to {} sessions \
         (idle {} min{limit}), up to {} pending peers, drain {} s{http}{no_file}",
        env!("CARGO_PKG_VERSION"),
        config.router.address.with_port(config.router.port),
        config.router.peer_address.with_port(config.router.peer_port),
        peers,
        config.max_sessions,
        config.peer_idle_timeout.as_secs() / 60,
        config.max_pending_peers,
        config.drain_timeout.as_secs(),
    );
}
