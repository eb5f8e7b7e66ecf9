//! The processes of a run: the relay, which is terminated and started again, and the descriptor store.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use aspia_relay::config::settings::variable;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{How, Plan};
use crate::bench::meter::Meter;
use crate::cgroup::{self, Cgroup, Controller};
use crate::port::free_port;
use crate::router::LabRouter;
use crate::scene::{self, Logs, PATIENCE};

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
    pub(super) logs: Logs,
    relay: Option<Child>,
    cgroup: Option<Cgroup>,
    store: Option<Child>,
    /// The descriptor store's address, if there is one.
    store_address: Option<String>,
    store_timeout: Duration,
    starts: usize,
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
        plan.relays.iter().try_for_each(|path| scene::check_program(path))?;
        let logs = Logs::new("survive", plan.keep_logs)?;
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
            logs,
            relay: None,
            cgroup: None,
            store: None,
            store_address: store,
            store_timeout: plan.store_timeout,
            starts: 0,
        })
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
        self.store = Some(self.logs.spawn(command, "store.log")?);
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
        self.cgroup = if how == How::Oom {
            Some(Cgroup::new(Controller::Memory, self.starts)?)
        } else {
            None
        };
        let mut command = match &self.cgroup {
            None => Command::new(program),
            Some(cgroup) => scene::command_in(cgroup, cgroup::ENTER, program),
        };
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let began = Instant::now();
        self.relay = Some(self.logs.spawn(command, "relay.log")?);
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
        let id = relay.id().ok_or_else(gone)?;
        let began = Instant::now();
        let send = |signal| scene::send_signal(id, signal);
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
        let gone = || io::Error::other("the relay does not run");
        scene::wait_until_live(self.admin, self.relay.as_mut().ok_or_else(gone)?).await
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
    let mut settings =
        scene::settings(router, [peers, admin], sessions + MORE_SESSIONS, plan.drain_timeout);
    settings.push(("StatisticsEnabled", "true".to_owned()));
    settings.push(("StatisticsInterval", "1".to_owned()));
    settings.push(("OfferByLoad", "false".to_owned()));
    if let Some(store) = store {
        settings.push(("FdStore", store.clone()));
        settings.push(("FdStoreTimeout", format!("{}s", plan.store_timeout.as_secs())));
    }
    scene::environment(settings, &plan.environment)
}
