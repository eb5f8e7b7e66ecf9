//! `relay-lab fleet`: several relays with different CPU quotas at one Router, which sends each new session to the relay with
//! the most keys left; one of them is killed, one drains, and one comes later.

mod arguments;
mod arrivals;
mod member;
mod report;
mod session;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::bench::meter::cpu_of;
use crate::cgroup::{self, Controller};
use crate::plot;
use crate::router::{Behaviour, LabRouter, Options};
use crate::say;
use crate::scene::{self, Logs};

pub use arguments::Arguments;
use arrivals::Arrival;
use member::Member;
use report::{Figures, Outcomes, Report, Sample, name};

/// Longest wait for the sessions to end after the end of the load.
const SETTLING: Duration = Duration::from_secs(70);
/// Longest wait for a relay to offer keys.
const KEYS: Duration = Duration::from_secs(60);
/// Interval of samples.
const SAMPLE: Duration = Duration::from_secs(1);
/// Index of the relay that drains.
const DRAINED: usize = 0;
/// Index of the relay that is killed.
const KILLED: usize = 1;

/// What a run does.
#[derive(Debug, Clone)]
pub struct Plan {
    program: PathBuf,
    /// CPU quotas in percent of a core; the last relay comes later.
    quotas: Vec<u32>,
    /// `MaxPeerCount` of each relay.
    sessions: usize,
    offer_by_load: bool,
    environment: Vec<(String, String)>,
    time: Duration,
    /// New sessions per minute, at least 1.
    per_minute: u32,
    /// Factor of the rates of all sessions.
    load: f64,
    seed: u64,
    /// Seconds since the start of the load.
    measure_from: u64,
    kill_at: u64,
    join_at: u64,
    drain_at: u64,
    /// Interval of the rows.
    every: Duration,
    keep_logs: bool,
}

/// The results of all runs.
#[derive(Debug)]
pub struct Results(Vec<Report>);

impl Results {
    /// JSON for programs.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "runs": self.0.iter().map(Report::json).collect::<Vec<_>>() })
    }

    /// Charts over time.
    pub fn svg(&self) -> String {
        plot::svg(&self.0.iter().flat_map(Report::charts).collect::<Vec<_>>())
    }

    /// Whether no session was lost other than those of the relays that were killed.
    ///
    /// # Errors
    /// What did not hold.
    pub fn verdict(&self) -> io::Result<()> {
        self.0.iter().try_for_each(Report::verdict)
    }

    /// The ratios of two runs, for people.
    fn comparison(&self) -> Option<String> {
        let [one, other] = self.0.as_slice() else { return None };
        let ratio = |report: &Report| {
            report.ratio().map_or("not measured".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        Some(format!(
            "largest to smallest share of quota: {} with OfferByLoad, {} without",
            ratio(one),
            ratio(other)
        ))
    }
}

/// Carries out plans one after the other.
///
/// # Errors
/// If a relay cannot be started or asked, or this machine has no CPU quotas. What must hold and does not is in the results.
pub async fn run(plans: &[Plan]) -> io::Result<Results> {
    crate::bench::raise_limit();
    if let Some(reason) = cgroup::missing(Controller::Cpu) {
        return Err(io::Error::other(format!("relays cannot have CPU quotas here: {reason}")));
    }
    let mut results = Results(Vec::new());
    for (number, plan) in plans.iter().enumerate() {
        scene::check_program(&plan.program)?;
        let mut logs = Logs::new(&format!("fleet-{}", number + 1), plan.keep_logs)?;
        let ran = perform(plan, &logs).await;
        logs.stay |= !ran.as_ref().is_ok_and(|report| report.verdict().is_ok());
        let place = logs.directory().display();
        let report =
            ran.map_err(|error| io::Error::other(format!("{error}; the logs are in {place}")))?;
        say(&report.text());
        if logs.stay {
            say(&format!("logs            {place}"));
        }
        results.0.push(report);
    }
    if let Some(comparison) = results.comparison() {
        say(&comparison);
    }
    Ok(results)
}

/// What sessions and samples share.
struct Shared {
    router: LabRouter,
    outcomes: Mutex<Outcomes>,
    /// The port of each relay and its sessions now.
    relays: Mutex<Vec<(u16, u64)>>,
}

impl Shared {
    fn lost_and_refused(&self) -> (u64, u64) {
        let outcomes = self.outcomes.lock();
        (outcomes.lost.values().sum(), outcomes.refused.values().sum())
    }

    fn refuse(&self, why: String) {
        *self.outcomes.lock().refused.entry(why).or_default() += 1;
    }

    /// Runs a session from its introduction to its end.
    async fn session(&self, arrival: Arrival, number: u64, zero: Instant) {
        let introduction = match self.router.try_introduce().await {
            Ok(Some(introduction)) => introduction,
            Ok(None) => return self.refuse("the Router has no key".to_owned()),
            Err(error) => return self.refuse(error.to_string()),
        };
        let port = introduction.port;
        let relay = self.relays.lock().iter().position(|(known, _)| *known == port);
        let Some(relay) = relay else {
            return self.refuse(format!("a key for port {port}, which is of no relay"));
        };
        let peers = match session::open(&introduction).await {
            Ok(peers) => peers,
            Err(why) => return self.refuse(format!("{}: {why}", name(relay))),
        };
        self.relays.lock()[relay].1 += 1;
        self.outcomes.lock().opened += 1;
        let ended = session::run(peers, &arrival, number, zero + arrival.until).await;
        self.relays.lock()[relay].1 -= 1;
        let mut outcomes = self.outcomes.lock();
        match ended {
            Ok(round_trips) => {
                outcomes.finished += 1;
                outcomes.round_trips += round_trips;
            }
            Err(why) => *outcomes.lost.entry((relay, why)).or_default() += 1,
        }
    }
}

/// A run, once it has started.
struct Run<'a> {
    plan: &'a Plan,
    logs: &'a Logs,
    shared: Arc<Shared>,
    members: Vec<Member>,
    zero: Instant,
    report: Report,
}

async fn perform(plan: &Plan, logs: &Logs) -> io::Result<Report> {
    let options = Options { behaviour: Behaviour::ServeAll, ..Options::default() };
    let shared = Arc::new(Shared {
        router: LabRouter::start(options).await?,
        outcomes: Mutex::default(),
        relays: Mutex::default(),
    });
    let first_event = plan.kill_at.min(plan.join_at).min(plan.drain_at);
    let report = Report {
        offer_by_load: plan.offer_by_load,
        quotas: plan.quotas.iter().map(|percent| f64::from(*percent) / 100.0).collect(),
        killed: KILLED,
        window: (plan.measure_from as f64, first_event as f64),
        events: Vec::new(),
        samples: Vec::new(),
        outcomes: Outcomes::default(),
        laboratory: 0.0,
        faults: Vec::new(),
    };
    let zero = Instant::now();
    let mut run = Run { plan, logs, shared, members: Vec::new(), zero, report };
    for index in 0..plan.quotas.len() - 1 {
        run.start(index).await?;
    }
    if !plan.offer_by_load && !run.members[0].knows_offer_by_load().await? {
        return Err(io::Error::other(format!(
            "{} does not know the setting OfferByLoad, so it cannot be turned off; name a newer relay with --relay",
            plan.program.display()
        )));
    }
    let (wanted, offering) = (run.members.len(), run.shared.router.changes());
    let mut offering = offering;
    let all = offering.wait_for(|view| {
        view.offers.values().filter(|offer| !offer.pool.is_empty()).count() == wanted
    });
    let late = |_| io::Error::other("the relays do not all offer keys to the Router");
    timeout(KEYS, all).await.map_err(late)?.map_err(io::Error::other)?;
    run.zero = Instant::now();
    let ran = run.load().await;
    for member in &mut run.members {
        member.kill().await?;
    }
    ran.map(|()| run.report)
}

impl Run<'_> {
    async fn start(&mut self, index: usize) -> io::Result<()> {
        let started = Member::start(self.plan, index, &self.shared.router, self.logs).await;
        let member = started.map_err(|error| {
            io::Error::new(error.kind(), format!("{} does not start: {error}", name(index)))
        })?;
        self.shared.relays.lock().push((member.peers.port(), 0));
        self.members.push(member);
        Ok(())
    }

    /// Runs the load, with samples and events.
    async fn load(&mut self) -> io::Result<()> {
        let plan = self.plan;
        say(&report::heading(&self.report.quotas));
        let used = cpu_of(std::process::id());
        let arrivals = arrivals::draw(plan.seed, plan.time, plan.per_minute, plan.load);
        let (shared, zero) = (self.shared.clone(), self.zero);
        let feeder = tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            for (number, arrival) in arrivals.into_iter().enumerate() {
                sleep_until(zero + arrival.at).await;
                let shared = shared.clone();
                sessions.spawn(async move { shared.session(arrival, number as u64, zero).await });
                while sessions.try_join_next().is_some() {}
            }
            sessions.join_all().await;
        });
        let sampled = self.watch().await;
        self.report.laboratory =
            (cpu_of(std::process::id()) - used) / self.zero.elapsed().as_secs_f64();
        let stop = feeder.abort_handle();
        let ended = match sampled {
            Ok(()) => timeout(SETTLING, feeder).await,
            Err(_) => Ok(Ok(())),
        };
        // Ends the sessions as well, if they have not ended.
        stop.abort();
        sampled?;
        match ended {
            Ok(ended) => ended.map_err(io::Error::other)?,
            Err(_) => self.report.faults.push("sessions do not end".to_owned()),
        }
        self.report.outcomes = self.shared.outcomes.lock().clone();
        Ok(())
    }

    /// Takes samples and causes events until the end of the load.
    async fn watch(&mut self) -> io::Result<()> {
        let plan = self.plan;
        let mut events = [
            (plan.kill_at, KILLED, "is killed"),
            (plan.join_at, plan.quotas.len() - 1, "comes"),
            (plan.drain_at, DRAINED, "drains"),
        ];
        events.sort_by_key(|event| event.0);
        let mut events = events.into_iter().peekable();
        let (mut next, mut next_row) = (self.zero, self.zero);
        while next <= self.zero + plan.time {
            sleep_until(next).await;
            let sample = self.sample().await?;
            if Instant::now() >= next_row {
                say(&sample.row());
                next_row += plan.every;
            }
            self.report.samples.push(sample);
            while let Some((_, index, what)) =
                events.next_if(|event| self.zero + Duration::from_secs(event.0) <= next)
            {
                self.cause(index, what).await?;
            }
            next = (next + SAMPLE).max(Instant::now());
        }
        Ok(())
    }

    async fn cause(&mut self, index: usize, what: &str) -> io::Result<()> {
        let text = format!("{} {what}", name(index));
        say(&format!("        {text}"));
        self.report.events.push((self.zero.elapsed().as_secs_f64(), text));
        match index {
            KILLED => self.members[KILLED].kill().await,
            DRAINED => self.members[DRAINED].drain().await,
            _ => self.start(index).await,
        }
    }

    async fn sample(&mut self) -> io::Result<Sample> {
        for member in &mut self.members {
            self.report.faults.extend(member.check()?);
        }
        // CPU times are read at once; only then are the relays asked, which may take longer.
        let at = self.zero.elapsed().as_secs_f64();
        let mut seen: Vec<_> = self.members.iter().map(Member::measure).collect();
        for (member, figures) in self.members.iter().zip(&mut seen) {
            if let Some(figures) = figures {
                figures.headroom = member.headroom().await;
            }
        }
        let (before, changes) = (self.report.samples.last(), self.shared.router.changes());
        let (view, relays) = (changes.borrow(), self.shared.relays.lock().clone());
        let mut figures: Vec<Option<Figures>> = vec![None; self.plan.quotas.len()];
        for (index, (looked, member)) in seen.into_iter().zip(&self.members).enumerate() {
            let Some(mut now) = looked else { continue };
            let port = member.peers.port();
            let offers = view.offers.values().filter(|offer| offer.peer_port == u32::from(port));
            now.keys = offers.map(|offer| offer.pool.len()).sum();
            now.sessions = relays[index].1;
            if let Some(before) = before
                && let Some(then) = before.relays[index]
                && at > before.at
            {
                now.share = (now.cpu - then.cpu).max(0.0) / (at - before.at) / member.quota();
            }
            figures[index] = Some(now);
        }
        let (lost, refused) = self.shared.lost_and_refused();
        Ok(Sample { at, relays: figures, lost, refused })
    }
}
