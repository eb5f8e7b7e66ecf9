//! The processes of a run: the relay, which is terminated and started again, and the descriptor store.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use aspia_relay::config::settings::variable;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::cgroup::{self, Cgroup};
use super::{How, Plan};
use crate::bench::meter::Meter;
use crate::http;
use crate::port::free_port;
use crate::router::LabRouter;

/// Longest wait for a process to end or to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval of attempts to reach a process that does not listen yet.
const RETRY: Duration = Duration::from_millis(2);
/// Room for sessions other than those of the load.
const MORE_SESSIONS: usize = 100;

/// The relay and its store. Both are killed when this is dropped.
pub(super) struct Stage {
    programs: Vec<PathBuf>,
    environment: Vec<(String, String)>,
    /// Where peers connect.
    pub(super) peers: SocketAddr,
    /// The relay's admin listener.
    pub(super) admin: SocketAddr,
    /// Where the logs are, and whether they stay.
    directory: PathBuf,
    pub(super) keeps_logs: bool,
    relay: Option<Child>,
    cgroup: Option<Cgroup>,
    store: Option<Child>,
    /// The descriptor store's address, if there is one.
    store_address: Option<String>,
    store_timeout: Duration,
    starts: usize,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.keeps_logs {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    pub(super) status: ExitStatus,
    /// From the signal to the end.
    pub(super) took: Duration,
    pub(super) at: Instant,
}

/// Resources of the processes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Resources {
    pub(super) relay: Meter,
    pub(super) store: Meter,
}

impl Stage {
    pub(super) fn new(plan: &Plan, router: &LabRouter, sessions: usize) -> io::Result<Self> {
        if let Some(missing) = plan.relays.iter().find(|path| !path.is_file()) {
            return Err(io::Error::other(format!(
                "there is no relay at {}; build it with `cargo build --workspace`, or name it with --relay",
                missing.display()
            )));
        }
        let directory =
            std::env::temp_dir().join(format!("relay-lab-survive-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let peers = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        // An abstract name needs no file, and goes with the processes.
        let store = plan.store.then(|| format!("@relay-lab-survive-{}", peers.port()));
        let environment = relay_environment(plan, router, [peers, admin], sessions, store.as_ref());
        Ok(Self {
            programs: plan.relays.clone(),
            environment,
            peers,
            admin,
            directory,
            keeps_logs: plan.keep_logs,
            relay: None,
            cgroup: None,
            store: None,
            store_address: store,
            store_timeout: plan.store_timeout,
            starts: 0,
        })
    }

    /// The directory of the logs.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn log(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).open(self.directory.join(name))
    }

    fn spawn(&self, mut command: Command, log: &str) -> io::Result<Child> {
        let file = self.log(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        command.spawn()
    }

    /// Starts the descriptor store, if the plan has one.
    pub(super) fn start_store(&mut self) -> io::Result<()> {
        let (Some(address), Some(program)) = (&self.store_address, self.programs.first()) else {
            return Ok(());
        };
        let mut command = Command::new(program);
        command.arg("--fd-store").env("ASPIA_LOG_LEVEL", "0");
        command.env(variable("FdStore"), address);
        command.env(variable("FdStoreTimeout"), format!("{}s", self.store_timeout.as_secs()));
        self.store = Some(self.spawn(command, "store.log")?);
        Ok(())
    }

    /// Kills the store and starts another one, which knows nothing until the relay tells it.
    pub(super) async fn replace_store(&mut self) -> io::Result<()> {
        if let Some(mut store) = self.store.take() {
            store.kill().await?;
            self.start_store()?;
        }
        Ok(())
    }

    /// The program of the next start.
    pub(super) fn next_program(&self) -> &Path {
        &self.programs[self.starts % self.programs.len()]
    }

    /// Starts the relay; `how` it will be ended decides whether it gets a cgroup.
    pub(super) fn start_relay(&mut self, how: How) -> io::Result<Instant> {
        let program = OsString::from(self.next_program());
        self.cgroup = if how == How::Oom { Some(Cgroup::new(self.starts)?) } else { None };
        let mut command = match &self.cgroup {
            None => Command::new(program),
            Some(cgroup) => {
                let mut command = Command::new("sh");
                command.args(["-c", cgroup::ENTER]);
                command.arg(cgroup.processes()).arg(program);
                command
            }
        };
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let began = Instant::now();
        self.relay = Some(self.spawn(command, "relay.log")?);
        self.starts += 1;
        Ok(began)
    }

    /// Ends the relay and waits until it has ended.
    pub(super) async fn end_relay(&mut self, how: How) -> io::Result<Exit> {
        let gone = || io::Error::other("the relay does not run");
        let mut relay = self.relay.take().ok_or_else(gone)?;
        if let Some(status) = relay.try_wait()? {
            return Err(io::Error::other(format!("the relay has ended by itself: {status}")));
        }
        let id = relay.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let id = id.ok_or_else(gone)?;
        let began = Instant::now();
        let send = |signal| kill_process(id, signal).map_err(io::Error::from);
        match (how, &mut self.cgroup) {
            (How::Oom, Some(cgroup)) => cgroup.starve().await?,
            (How::Terminate, _) => send(Signal::TERM)?,
            (How::Segv, _) => send(Signal::SEGV)?,
            (How::Abort, _) => send(Signal::ABORT)?,
            _ => send(Signal::KILL)?,
        }
        let deadline = began + PATIENCE;
        loop {
            if let Ok(status) = timeout(Duration::from_millis(20), relay.wait()).await {
                let at = Instant::now();
                return Ok(Exit { status: status?, took: at - began, at });
            }
            if Instant::now() > deadline {
                let seconds = PATIENCE.as_secs();
                let text = format!("the relay has not ended {seconds} s after it was told to");
                return Err(io::Error::other(text));
            }
            match (how, &mut self.cgroup) {
                // Rust's handler for stack overflows ignores a first SIGSEGV that is not caused by an access.
                (How::Segv, _) => send(Signal::SEGV)?,
                (How::Oom, Some(cgroup)) => cgroup.starve().await?,
                _ => {}
            }
        }
    }

    /// Waits until the relay answers on its admin listener. With a store, the request waits in the queue of the
    /// listener that the old relay left.
    pub(super) async fn answers(&mut self) -> io::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(Ok(answer)) = timeout(left, http::get(self.admin, "/livez")).await
                && answer.status == 200
            {
                return Ok(Instant::now());
            }
            if let Some(relay) = &mut self.relay
                && let Some(status) = relay.try_wait()?
            {
                return Err(io::Error::other(format!("the relay ended at its start: {status}")));
            }
            if left.is_zero() {
                let seconds = PATIENCE.as_secs();
                let text = format!("the relay has not answered {seconds} s after its start");
                return Err(io::Error::other(text));
            }
            sleep(RETRY).await;
        }
    }

    pub(super) fn resources(&self) -> Resources {
        let meter = |child: &Option<Child>| {
            child.as_ref().and_then(Child::id).map(|id| Meter::of(&[id])).unwrap_or_default()
        };
        Resources { relay: meter(&self.relay), store: meter(&self.store) }
    }

    /// Whether the store still runs; true without one.
    pub(super) fn has_store(&mut self) -> io::Result<bool> {
        match &mut self.store {
            Some(store) => Ok(store.try_wait()?.is_none()),
            None => Ok(self.store_address.is_none()),
        }
    }

    /// Kills both processes and waits for them.
    pub(super) async fn shut_down(&mut self) {
        for mut child in [self.relay.take(), self.store.take()].into_iter().flatten() {
            let _ = child.kill().await;
        }
        self.cgroup = None;
    }
}

fn relay_environment(
    plan: &Plan,
    router: &LabRouter,
    [peers, admin]: [SocketAddr; 2],
    sessions: usize,
    store: Option<&String>,
) -> Vec<(String, String)> {
    let connections = (2 * sessions + 1000).to_string();
    let mut settings = vec![
        ("RouterAddress", router.address().ip().to_string()),
        ("RouterPort", router.address().port().to_string()),
        ("RouterPublicKey", router.public_key().to_string()),
        ("PeerAddress", peers.ip().to_string()),
        ("PeerPort", peers.port().to_string()),
        ("ListenInterface", peers.ip().to_string()),
        ("AdminListen", admin.to_string()),
        ("MaxPeerCount", (sessions + MORE_SESSIONS).to_string()),
        // All peers connect from the same address, at a high rate.
        ("MaxPendingPeers", connections.clone()),
        ("MaxPendingPeersPerAddress", connections),
        ("PeerConnectRate", "0".to_owned()),
        ("PeerIdleTimeout", "60".to_owned()),
        ("StatisticsEnabled", "true".to_owned()),
        ("StatisticsInterval", "1".to_owned()),
        ("DrainTimeout", format!("{}s", plan.drain_timeout.as_secs())),
    ];
    if let Some(store) = store {
        settings.push(("FdStore", store.clone()));
        settings.push(("FdStoreTimeout", format!("{}s", plan.store_timeout.as_secs())));
    }
    let settings = settings.into_iter().map(|(key, value)| (variable(key), value));
    let log = ("ASPIA_LOG_LEVEL".to_owned(), "0".to_owned());
    settings.chain([log]).chain(plan.environment.iter().cloned()).collect()
}
