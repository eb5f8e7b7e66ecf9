//! The relay as a whole: the only place that knows everyone.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, Startup};
use crate::crypto::{self, CryptoError};
use crate::listen::bind::{self, BindError};
use crate::log::START;
use crate::peer::session::Way;
use crate::peer::{self, Peers};
use crate::router::RouterTask;
use crate::state::sessions::End;
use crate::state::shared::SharedState;

/// Sessions that outlive the drain timeout end within this time before it, one after the other, so that
/// their peers do not come back all at once.
const CLOSING: Duration = Duration::from_secs(1);

/// Why the relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The peer port cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A listener that was handed over cannot be used.
    #[error("the listener that was handed over cannot be used: {0}")]
    Listener(io::Error),
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

/// What a reload did, by keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// What changed and is in force, or will be with a new link.
    pub changed: Vec<&'static str>,
    /// What waits for a restart.
    pub waiting: Vec<&'static str>,
}

/// A relay that listens but does not run yet.
pub struct App {
    listener: TcpListener,
    address: SocketAddr,
    handle: Handle,
}

/// Steers a running relay; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    state: SharedState<Way>,
    config: Arc<watch::Sender<Arc<Config>>>,
    drain: CancellationToken,
    stop: CancellationToken,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:?})", self.state)
    }
}

impl Handle {
    /// Stops: no new peers but those on their way, and no new keys; sessions get until `DrainTimeout`.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Stops at once.
    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }

    /// Whether a stop has begun.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// The state, to look at.
    pub fn state(&self) -> &SharedState<Way> {
        &self.state
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Applies what can be applied of new settings; no session ends by it.
    pub fn reload(&self, new: &Config) -> Reloaded {
        let old = self.config();
        let (applied, waiting) = old.reloaded(new);
        let changed = old.differences(&applied);
        self.state.set_capacity(applied.max_sessions);
        self.config.send_replace(Arc::new(applied));
        Reloaded { changed, waiting }
    }
}

impl App {
    /// Listens, on `handed_over` if there is one: a socket that is bound and listening already.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(config: Config, handed_over: Option<TcpListener>) -> Result<Self, StartError> {
        let mut base = [0; 4];
        crypto::random(&mut base)?;
        let listener = match handed_over {
            Some(listener) => listener,
            None => {
                let Startup { listen_interface, listen_port, .. } = config.startup;
                bind::bind(peer::PURPOSE, listen_interface, listen_port)?
            }
        };
        listener.set_nonblocking(true).map_err(StartError::Listener)?;
        let address = listener.local_addr().map_err(StartError::Listener)?;
        let handle = Handle {
            state: SharedState::new(config.max_sessions, u32::from_be_bytes(base)),
            config: Arc::new(watch::Sender::new(Arc::new(config))),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        Ok(Self { listener, address, handle })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
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
        let Self { listener, address, handle } = self;
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|_| Failure("accepting"))?;
        announce(&handle.config(), address);
        let link = CancellationToken::new();
        let everyone = CancellationToken::new();
        // Whatever ends this function, a failure or its caller, ends all tasks.
        let _ends_with_this = (link.clone().drop_guard(), everyone.clone().drop_guard());
        let state = handle.state.clone();
        let router =
            RouterTask::new(state.clone(), handle.config.subscribe(), Instant::now(), link.clone());
        let peers = Peers::new(state.clone(), handle.config.subscribe(), everyone.clone());
        let mut router = tokio::spawn(router.run());
        let mut peers = tokio::spawn(async move { peers.run(listener).await });
        let mut expiry = tokio::spawn({
            let (state, everyone) = (state.clone(), everyone.clone());
            async move {
                everyone.run_until_cancelled(state.expire_keys()).await;
            }
        });

        let failed = tokio::select! {
            () = handle.drain.cancelled() => None,
            _ = &mut router => Some("Router"),
            _ = &mut peers => Some("peer"),
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
            () = handle.stop.cancelled() => Stopped::AtOnce,
            stopped = stopped => stopped,
        };
        everyone.cancel();
        if stopped == Stopped::AtOnce {
            // Not even for the Router's last words.
            router.abort();
        }
        // A task that was waited for already must not be waited for again.
        for task in [router, peers, expiry] {
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
    let counts = handle.state.counts();
    info!(
        sessions = counts.active,
        keys_handed_out = counts.handed_out,
        "stopping: no new peers; active sessions get {} s",
        timeout.as_secs()
    );
    tokio::select! {
        () = handle.state.emptied() => return Stopped::Drained,
        () = close_the_rest(&handle.state, deadline, timeout.min(CLOSING)) => {}
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

/// The one line at start that says what is running. It reaches stderr at any log level.
fn announce(config: &Config, address: SocketAddr) {
    let limit = match config.max_session_duration {
        Some(longest) => format!(", a session lasts up to {} s", longest.as_secs()),
        None => String::new(),
    };
    info!(
        target: START,
        "aspia_relay {} runs: Router {}, peers dial {}, listening on {}, up to {} sessions \
         (idle {} min{limit}), up to {} pending peers, drain {} s",
        env!("CARGO_PKG_VERSION"),
        config.router.address.with_port(config.router.port),
        config.router.peer_address.with_port(config.router.peer_port),
        address,
        config.max_sessions,
        config.peer_idle_timeout.as_secs() / 60,
        config.max_pending_peers,
        config.drain_timeout.as_secs(),
    );
}
