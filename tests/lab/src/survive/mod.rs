//! `relay-lab survive`: ends a relay again and again while it serves sessions whose every byte is verified, and reports
//! what their peers notice. With a descriptor store, sessions outlive the relay; without one they end.

mod arguments;
mod counters;
mod departure;
mod fleet;
mod guests;
mod namespace;
mod pattern;
mod prober;
mod report;
mod screen;
mod send;
mod session;
mod stage;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::{scrape, sum};
use crate::router::{LabRouter, Options, RouterVersion, View};
use crate::say;

pub use arguments::Arguments;
use fleet::{Counts, Fleet};
use guests::{GuestCounts, Guests};
pub use namespace::enter_namespace;
use prober::Probes;
use report::{HEADING, Report, Restart};
use screen::Screen;
use session::{Kind, Load};
use stage::Stage;

/// Longest wait for the relay to register, and for a new pair after a restart.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest time for one attempt to pair.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Keys that must be on offer before a restart.
const SPARE_KEYS: usize = 20;

/// How a relay is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// SIGSEGV.
    Segv,
    /// SIGABRT.
    Abort,
    /// The OOM killer of the kernel.
    Oom,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Kill => "kill",
            Self::Segv => "segv",
            Self::Abort => "abort",
            Self::Oom => "oom",
        }
    }
}

/// What a run does.
#[derive(Debug, Clone)]
pub struct Plan {
    relays: Vec<PathBuf>,
    store: bool,
    store_timeout: Duration,
    replace_store: bool,
    version: RouterVersion,
    environment: Vec<(String, String)>,
    times: usize,
    ways: Vec<How>,
    skipped: Vec<String>,
    every: Duration,
    away: Duration,
    drain_timeout: Duration,
    pace: Duration,
    bulk_rate: u64,
    sessions: Counts,
    guests: GuestCounts,
    keep_logs: bool,
}

impl Plan {
    /// Few sessions and `times` restarts of the relay at `relay`.
    pub fn small(relay: PathBuf, times: usize, ways: &[How], store: bool) -> Self {
        Self {
            relays: vec![relay],
            store,
            store_timeout: Duration::from_secs(60),
            replace_store: false,
            version: RouterVersion::V2_7,
            // With one thread, a kill catches at most one session between reading and writing.
            environment: vec![("ASPIA_RELAY_WORKER_THREADS".to_owned(), "1".to_owned())],
            times,
            ways: ways.to_vec(),
            skipped: Vec::new(),
            every: Duration::from_millis(1000),
            away: Duration::ZERO,
            drain_timeout: Duration::from_secs(1),
            pace: Duration::from_millis(66),
            bulk_rate: 2 * 1024 * 1024,
            sessions: [
                (Kind::Interactive, 40),
                (Kind::Bulk, 2),
                (Kind::HalfClosed, 4),
                (Kind::Idle, 4),
                (Kind::Throttled, 1),
            ]
            .into(),
            guests: GuestCounts { waiting: 2, keys: 2, closing: 6 },
            keep_logs: false,
        }
    }

    /// Number of sessions at the same time.
    pub fn sessions(&self) -> usize {
        self.sessions.values().sum()
    }

    /// How the restart with this number ends the relay.
    fn way(&self, number: usize) -> How {
        self.ways.get(number % self.ways.len().max(1)).copied().unwrap_or(How::Terminate)
    }
}

/// The results of a run.
#[derive(Debug)]
pub struct Results(Report);

impl Results {
    /// JSON for programs.
    pub fn json(&self) -> serde_json::Value {
        self.0.json()
    }

    /// Sessions that ended at a restart.
    pub fn ended(&self) -> usize {
        let restarts = self.0.restarts.iter();
        restarts.map(|restart| restart.outcome.ended.values().sum::<usize>()).sum()
    }

    /// Whether everything held that must: with a store, that nothing ended at a planned restart, for example.
    ///
    /// # Errors
    /// What did not hold.
    pub fn verdict(&self) -> io::Result<()> {
        self.0.verdict()
    }
}

/// Runs a plan.
///
/// # Errors
/// If the relay does not start or end, or does not answer any more. What must hold and does not is in the results.
pub async fn run(plan: &Plan) -> io::Result<Results> {
    crate::bench::raise_limit();
    // A 3.0 Router accepts 30 links a minute from an address, which has nothing to do with this test.
    let options = Options { version: plan.version, limit_connections: false, ..Options::default() };
    let router = Arc::new(LabRouter::start(options).await?);
    let guests = plan.guests.waiting + plan.guests.keys + plan.guests.closing;
    let mut stage = Stage::new(plan, &router, plan.sessions() + guests)?;
    let ran = perform(plan, &router, &mut stage).await;
    stage.shut_down().await;
    stage.logs.stay |= !ran.as_ref().is_ok_and(|report| report.verdict().is_ok());
    let logs = stage.logs.directory().display();
    let report =
        ran.map_err(|error| io::Error::other(format!("{error}; the logs are in {logs}")))?;
    say(&report.text());
    if stage.logs.stay {
        say(&format!("logs            {logs}"));
    }
    Ok(Results(report))
}

/// A run, once everything has started.
struct Run<'a> {
    plan: &'a Plan,
    router: &'a Arc<LabRouter>,
    stage: &'a mut Stage,
    fleet: Fleet,
    load: Arc<Load>,
    probes: Arc<Probes>,
    screen: Screen,
}

async fn perform(plan: &Plan, router: &Arc<LabRouter>, stage: &mut Stage) -> io::Result<Report> {
    let load = Arc::new(Load {
        stop: CancellationToken::new(),
        pace: plan.pace,
        bulk_rate: plan.bulk_rate,
        zero: Instant::now(),
        verified: AtomicU64::new(0),
    });
    let probes = Arc::new(Probes::default());
    let screen = Screen::new(load.clone(), probes.clone());
    screen.phase("starting");
    stage.start_store()?;
    stage.start_relay(plan.way(0))?;
    stage.answers().await?;
    let mut probing = JoinSet::new();
    probing.spawn(probes.clone().run(stage.peers));
    let fleet = Fleet::new(router.clone(), load.clone(), plan.sessions.clone());
    let mut run = Run { plan, router, stage, fleet, load, probes, screen };
    let mut report = Report {
        with_store: plan.store,
        router: plan.version.0.to_string(),
        skipped: plan.skipped.clone(),
        ..Report::default()
    };
    run.screen.print(HEADING);
    for number in 0..plan.times {
        let restart = run.restart(number).await?;
        run.screen.print(&restart.row());
        report.restarts.push(restart);
    }
    run.screen.phase("ending the sessions");
    sleep(plan.every).await;
    report.finish = run.fleet.finish().await;
    report.verified = run.load.verified.load(Ordering::Relaxed);
    probing.shutdown().await;
    Ok(report)
}

impl Run<'_> {
    /// Restarts the relay once and measures everything around it.
    async fn restart(&mut self, number: usize) -> io::Result<Restart> {
        let (how, is_last) = (self.plan.way(number), number + 1 == self.plan.times);
        let title = format!("restart {} of {} ({})", number + 1, self.plan.times, how.name());
        self.screen.phase(format!("{title}: opening sessions"));
        self.fleet.fill().await?;
        self.wait_for_keys().await?;
        let admin = self.stage.admin;
        if self.plan.replace_store {
            self.stage.replace_store().await?;
            wait_for_store(admin, false).await?;
        }
        if self.plan.store {
            wait_for_store(admin, true).await?;
        }
        let mut guests = Guests::invite(self.router, admin, self.plan.guests).await?;
        self.screen.phase(format!("{title}: {} sessions", self.fleet.len()));
        sleep(self.plan.every).await;

        let (before, seen, probed) = (scrape(admin).await?, self.router.view(), self.probes.read());
        let resources = self.stage.resources();
        self.fleet.sessions().for_each(|session| session.waits.reset());
        self.screen.phase(format!("{title}: {how:?}"));
        guests.depart();
        let exit = self.stage.end_relay(how).await?;
        sleep(self.plan.away).await;
        let program = self.stage.next_program().display().to_string();
        let next = if is_last { how } else { self.plan.way(number + 1) };
        let started = self.stage.start_relay(next)?;
        let back = self.stage.answers().await?;
        self.screen.phase(format!("{title}: a new pair"));
        let withdrawn = withdrawn(&seen, &self.router.view());
        let paired = self.new_pair().await?;
        self.screen.phase(format!("{title}: waiting for all sessions"));
        let (met, outcome) = tokio::join!(guests.meet(), self.fleet.settle());
        let after = scrape(admin).await?;
        let (silence, between) = self.waits();
        let view = self.router.view();
        Ok(Restart {
            number: number + 1,
            how,
            program,
            exit: micros(exit.took),
            exit_status: exit.status.to_string(),
            is_exit_clean: exit.status.success(),
            gap: micros(back.saturating_duration_since(exit.at)),
            pairing: micros(paired.saturating_duration_since(started)),
            silence,
            between,
            outcome,
            probed: self.probes.read() - probed,
            links: view.links - seen.links,
            withdrawn,
            complaints: view.complaints.into_iter().skip(seen.complaints.len()).collect(),
            back: counters::went_back(&before, &after),
            met,
            resources,
            has_store: self.stage.has_store()?,
        })
    }

    async fn wait_for_keys(&self) -> io::Result<()> {
        let keys = self.router.wait_for(|view| view.pool.len() >= SPARE_KEYS);
        let late = |_| io::Error::other("the relay does not offer keys");
        timeout(PATIENCE, keys).await.map_err(late).map(drop)
    }

    /// Introduces new pairs until one is paired; returns when that was.
    async fn new_pair(&self) -> io::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let attempt = async {
                let peers = self.router.introduce().await?.session().await?;
                io::Result::Ok((Instant::now(), peers))
            };
            match timeout(ATTEMPT, attempt).await {
                Ok(Ok((at, _peers))) => return Ok(at),
                Ok(Err(error)) if Instant::now() > deadline => {
                    let text = format!("no new pair after the restart: {error}");
                    return Err(io::Error::other(text));
                }
                Err(_) if Instant::now() > deadline => {
                    return Err(io::Error::other("no new pair after the restart"));
                }
                // The key may be one that the relay which was ended had offered.
                Ok(Err(_)) => sleep(Duration::from_millis(5)).await,
                Err(_) => {}
            }
        }
    }

    /// The longest silence of each interactive session that goes on, and the longest time between two of its answers.
    fn waits(&self) -> (Vec<u64>, Vec<u64>) {
        let interactive = self.fleet.sessions().filter(|one| one.kind == Kind::Interactive);
        let (mut silence, mut between): (Vec<u64>, Vec<u64>) =
            interactive.map(|session| session.waits.take()).unzip();
        silence.sort_unstable();
        between.sort_unstable();
        (silence, between)
    }
}

/// Waits until the relay at `admin` is connected to the descriptor store, or has noticed that it is not.
async fn wait_for_store(admin: SocketAddr, is_connected: bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let connected = sum(&scrape(admin).await?, "aspia_relay_fd_store_connected");
        if (connected == 1.0) == is_connected {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    let what = if is_connected { "does not connect to" } else { "does not notice the end of" };
    Err(io::Error::other(format!("the relay {what} the descriptor store")))
}

/// Number of keys on offer before that the Router no longer has.
fn withdrawn(before: &View, after: &View) -> usize {
    let left: BTreeSet<u32> = after.pool.iter().map(|key| key.key_id).collect();
    before.pool.iter().filter(|key| !left.contains(&key.key_id)).count()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
