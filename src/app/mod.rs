//! The relay as a whole: binds its sockets, builds its parts, runs their tasks, and drains.

mod config_watch;
mod data_plane;
mod drain;
mod error;
mod free_memory;
mod keeping;
mod listeners;
pub(crate) mod machine;
pub(crate) mod parts;
mod reload;
mod stop;
mod tasks;

use std::net::{SocketAddr, TcpListener};
#[cfg(target_os = "linux")]
use std::os::unix::net::UnixListener;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use crate::config::LoadedConfig;
use crate::handle::Handle;
use crate::handover::suspended::Suspended;
use crate::handover::takeover::Takeover;
use crate::listen::acceptor::Acceptor;
use crate::log::{LogHandle, START};
use crate::trace::Tracer;

use keeping::Keeping;
use listeners::BoundListeners;
use parts::RelayParts;
use stop::StopTokens;
use tasks::{TaskEvent, Tasks};

pub use data_plane::DataPlane;
pub use error::{RunError, StartError};
pub use listeners::Listeners;
pub use stop::Stopped;

/// A relay that listens but does not run yet.
pub struct App {
    listeners: BoundListeners,
    #[cfg(target_os = "linux")]
    commands: Option<UnixListener>,
    takeover: Takeover,
    parts: RelayParts,
}

impl App {
    /// Binds all sockets that `inherited` does not hold, and builds the parts of the relay. The admin listener changes
    /// the level of `log`; `tracer` records sessions; `data_plane` moves their bytes.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(
        loaded: LoadedConfig,
        inherited: Listeners,
        log: LogHandle,
        tracer: Tracer,
        data_plane: DataPlane,
    ) -> Result<Self, StartError> {
        Self::take_over(Takeover::default(), loaded, inherited, log, tracer, data_plane)
    }

    /// Like [`Self::bind`], for a relay that continues with what was taken over from the previous one, and keeps everything in the
    /// descriptor store for the one after.
    ///
    /// # Errors
    /// [`StartError`]; what was taken over is in the store as before.
    pub fn take_over(
        mut takeover: Takeover,
        loaded: LoadedConfig,
        inherited: Listeners,
        log: LogHandle,
        tracer: Tracer,
        data_plane: DataPlane,
    ) -> Result<Self, StartError> {
        let inherited = inherited.or_taken(&mut takeover, &loaded.config.startup);
        let listeners = BoundListeners::bind(inherited, &loaded.config.startup)?;
        let address = listeners.peer_address()?;
        let parts = RelayParts::build(loaded, address, log, tracer, data_plane, &mut takeover)?;
        Ok(Self {
            listeners,
            #[cfg(target_os = "linux")]
            commands: None,
            takeover,
            parts,
        })
    }

    /// Lets commands on this machine find the relay through `listener`.
    #[cfg(target_os = "linux")]
    pub fn with_commands(self, listener: UnixListener) -> Self {
        Self { commands: Some(listener), ..self }
    }

    /// The address on which the relay listens for peers.
    pub fn address(&self) -> SocketAddr {
        self.parts.handle.address()
    }

    /// A handle that controls the relay and shows its state.
    pub fn handle(&self) -> Handle {
        self.parts.handle.clone()
    }

    /// Runs until the relay has been told to stop and has stopped. All its tasks have ended on return.
    ///
    /// # Errors
    /// [`RunError`] if a task ends unexpectedly, or the system refuses what the relay needs. The other tasks are then told to end.
    pub async fn run(self) -> Result<Stopped, RunError> {
        let handle = self.handle();
        let addresses = self.listeners.describe();
        let peer_socket =
            self.listeners.duplicate_peers().map_err(RunError::system("duplicate its listener"))?;
        let (keeping, resumed) = Keeping::prepare(&self.parts, &self.listeners, self.takeover)
            .map_err(RunError::system("duplicate its listeners"))?;
        let listeners =
            self.listeners.register().map_err(RunError::system("register its listeners"))?;
        log_start(&handle, &addresses);
        #[cfg(target_os = "linux")]
        if let Some(commands) = self.commands {
            self.parts.admin.serve_commands(commands);
        }
        let stop_tokens = self.parts.stop_tokens();
        // Whatever ends this function, a failure or its caller, ends all tasks.
        let _guards = stop_tokens.guards();
        let tasks = Tasks::spawn(self.parts, listeners, resumed);
        let keeping = keeping.spawn().map_err(|error| {
            // As in a crash, the store keeps what it has.
            handle.session_manager().kept().freeze();
            RunError::System { action: "start the thread of its descriptor store", error }
        })?;
        let running = RunningRelay { handle, tasks, keeping, stop_tokens };
        let stopped = running.run(peer_socket).await?;
        info!(?stopped, "stopped");
        Ok(stopped)
    }
}

/// How long a relay that is asked to stop watches the store before it hands over. An administrator who shuts the machine down,
/// or removes the relay, stops both at the same moment, and what the store had been handed would end with it.
const STORE_WATCH: Duration = Duration::from_millis(250);

/// A relay that runs.
struct RunningRelay {
    handle: Handle,
    tasks: Tasks,
    keeping: Keeping,
    stop_tokens: StopTokens,
}

impl RunningRelay {
    /// Runs until the relay has stopped. `peer_socket` is for a hand-over that fails.
    async fn run(mut self, peer_socket: TcpListener) -> Result<Stopped, RunError> {
        let kept = self.handle.session_manager().kept().clone();
        // As in a crash, the store keeps what it has. First of all, since what is dropped ends sessions.
        match self.run_tasks(peer_socket).await.inspect_err(|_| kept.freeze())? {
            Some(stopped) => {
                self.tasks.end_handed_over(&self.stop_tokens).await;
                Ok(stopped)
            }
            None => {
                let stopped = self.tasks.stop(&self.handle, &self.stop_tokens).await;
                self.keeping.release().await;
                Ok(stopped)
            }
        }
    }

    /// Runs until the relay drains, which yields `None`, or has stopped in the course of a hand-over.
    async fn run_tasks(&mut self, peer_socket: TcpListener) -> Result<Option<Stopped>, RunError> {
        match self.tasks.wait(&self.handle).await {
            TaskEvent::Drain => Ok(None),
            TaskEvent::HandOver => {
                let stopped = self.hand_over(peer_socket).await?;
                if stopped.is_none() {
                    self.handle.drain();
                }
                Ok(stopped)
            }
            TaskEvent::Failed(part) => Err(RunError::Task(part)),
        }
    }

    /// Hands everything over to the descriptor store. Returns how the relay has stopped; `None` if nothing was handed over, and
    /// everything continues here.
    async fn hand_over(&mut self, peer_socket: TcpListener) -> Result<Option<Stopped>, RunError> {
        // Sessions go on meanwhile.
        if timeout(STORE_WATCH, self.handle.stopping().cancelled()).await.is_ok() {
            return Ok(None);
        }
        let check = tokio::select! {
            () = self.handle.stopping().cancelled() => return Ok(None),
            check = self.keeping.check() => check,
        };
        if let Err(why) = check {
            let store = self.handle.store_link();
            warn!("nothing is handed over, sessions are drained instead: {why}; {store}");
            return Ok(None);
        }
        let began = Instant::now();
        let (router, suspended) = self.tasks.suspend(&self.stop_tokens.suspend).await?;
        let Suspended { sessions, link, peers, .. } = &suspended;
        let (sessions, router_link, peers) = (sessions.len(), link.is_some(), peers.len());
        let handed_over = tokio::select! {
            biased;
            // Whether or not the store has everything, the next relay may continue with what it has.
            () = self.handle.stopping().cancelled() => {
                self.handle.session_manager().kept().freeze();
                return Ok(Some(Stopped::AtOnce));
            }
            result = self.keeping.hand_over(suspended) => result,
        };
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Err((why, suspended)) = handed_over else {
            self.handle.session_manager().kept().freeze();
            info!(
                sessions,
                router_link, peers, milliseconds, "handed over to the descriptor store"
            );
            return Ok(Some(Stopped::HandedOver));
        };
        error!(sessions, "nothing is handed over, sessions are drained instead: {why}");
        let listener = Acceptor::new(peer_socket).map_err(RunError::system("accept again"))?;
        self.tasks.resume(router, suspended, listener);
        Ok(None)
    }
}

/// Logs the startup line, which says what runs, and whether there is a configuration file at all. It reaches stderr at any log
/// level.
fn log_start(handle: &Handle, (peers, http): &(String, String)) {
    let config = handle.config();
    let no_file = handle
        .settings()
        .report()
        .absent_file_note()
        .map_or(String::new(), |no_file| format!("; {no_file}"));
    let limit = match config.max_session_duration {
        Some(longest) => format!(", a session lasts up to {} s", longest.as_secs()),
        None => String::new(),
    };
    info!(
        target: START,
        "aspia_relay {} runs: Router {}, peers dial {}, listening on {}, up to {} sessions \
         (idle {} min{limit}), up to {} pending peers, drain {} s{http}; {}{no_file}",
        env!("CARGO_PKG_VERSION"),
        config.router.address.with_port(config.router.port),
        config.router.peer_address.with_port(config.router.peer_port),
        peers,
        config.max_sessions,
        config.peer_idle_timeout.as_secs() / 60,
        config.max_pending_peers,
        config.drain_timeout.as_secs(),
        handle.store_link(),
    );
}
