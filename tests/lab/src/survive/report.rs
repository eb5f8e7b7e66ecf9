//! What a run has measured: the rows of its table, the summary, JSON, and the verdict.

use std::collections::BTreeMap;
use std::io;

use serde_json::{Value, json};

use super::How;
use super::fleet::{Counts, Outcome};
use super::guests::Met;
use super::prober::Probed;
use super::session::Kind;
use super::stage::Resources;
use crate::load::percentile;

/// Part of the interactive sessions that must go on when the relay is killed.
const MUST_GO_ON: f64 = 0.99;
/// Longest time between the ends of both sides of a session, in microseconds.
const MAX_END_LAG: u64 = 1_000_000;
const MIB: f64 = 1024.0 * 1024.0;
/// Heading of [`Restart::row`].
pub(super) const HEADING: &str =
    "  #  how        exit  gap  pairing  silence p50  p99   max   went on    ended  refused  links";

/// What was measured around one restart. Times are in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Restart {
    pub(super) number: usize,
    pub(super) how: How,
    /// The program that was started.
    pub(super) program: String,
    /// From the signal to the end of the old process.
    pub(super) exit: u64,
    pub(super) exit_status: String,
    /// Whether the old process ended with status 0.
    pub(super) is_exit_clean: bool,
    /// From the end of the old process to the first answer of the new one.
    pub(super) gap: u64,
    /// From the start of the new process to the first new pair.
    pub(super) pairing: u64,
    /// Longest wait for an answer of each interactive session that went on, sorted.
    pub(super) silence: Vec<u64>,
    /// Longest time between two answers of each, sorted; it includes the pause between an answer and the next request.
    pub(super) between: Vec<u64>,
    pub(super) outcome: Outcome,
    pub(super) probed: Probed,
    /// New links at the Router.
    pub(super) links: u64,
    /// Keys on offer that the Router has lost.
    pub(super) withdrawn: usize,
    /// New complaints of the Router.
    pub(super) complaints: Vec<String>,
    /// Counters that went back.
    pub(super) back: Vec<String>,
    pub(super) met: Met,
    /// Resources of the processes under the load, before the restart.
    pub(super) resources: Resources,
    /// Whether the store still runs.
    pub(super) has_store: bool,
}

/// The results of a run.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) with_store: bool,
    pub(super) router: String,
    pub(super) restarts: Vec<Restart>,
    /// The end of the run.
    pub(super) finish: Outcome,
    /// Bytes that arrived as they were sent.
    pub(super) verified: u64,
    /// Ways that this machine does not allow, with the reason.
    pub(super) skipped: Vec<String>,
}

fn total(counts: &Counts) -> usize {
    counts.values().sum()
}

fn listed(counts: &Counts) -> String {
    let named = counts.iter().map(|(kind, count)| format!("{count} {}", kind.name()));
    named.collect::<Vec<_>>().join(", ")
}

fn millis(micros: u64) -> String {
    if micros < 10_000 {
        return format!("{:.1}", micros as f64 / 1000.0);
    }
    format!("{}", micros / 1000)
}

impl Restart {
    fn interactive(&self) -> (usize, usize) {
        let of = |counts: &Counts| counts.get(&Kind::Interactive).copied().unwrap_or(0);
        let before = of(&self.outcome.before);
        (before - of(&self.outcome.ended) - of(&self.outcome.stuck), before)
    }

    /// A row of the table; see [`HEADING`].
    pub(super) fn row(&self) -> String {
        let at = |part| percentile(&self.silence, part).map_or("-".to_owned(), millis);
        let before = total(&self.outcome.before);
        let ended = total(&self.outcome.ended) + total(&self.outcome.stuck);
        format!(
            "{:>3}  {:<9} {:>5} {:>4} {:>8} {:>12} {:>4} {:>5} {:>9} {:>8} {:>8} {:>6}",
            self.number,
            self.how.name(),
            millis(self.exit),
            millis(self.gap),
            millis(self.pairing),
            at(0.5),
            at(0.99),
            at(1.0),
            format!("{}/{before}", before - ended),
            ended,
            self.probed.refused + self.probed.cut,
            format!("+{}", self.links),
        )
    }

    /// What must not have happened, with a store.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let outcome = &self.outcome;
        must(self.probed.refused == 0, format!("{} connections refused", self.probed.refused));
        must(self.has_store, "the store has ended".to_owned());
        must(self.complaints.is_empty(), format!("the Router complains: {:?}", self.complaints));
        must(total(&outcome.stuck) == 0, format!("stuck: {}", listed(&outcome.stuck)));
        must(
            self.met.keys.0 == self.met.keys.1,
            format!("{} of {} pairs with keys handed out before", self.met.keys.0, self.met.keys.1),
        );
        if self.how == How::Terminate {
            must(total(&outcome.ended) == 0, format!("ended: {}", listed(&outcome.ended)));
            must(self.is_exit_clean, format!("the relay ended with {}", self.exit_status));
            must(self.probed.cut == 0, format!("{} connections cut", self.probed.cut));
            must(self.links == 0, format!("{} reconnects at the Router", self.links));
            must(self.withdrawn == 0, format!("{} keys withdrawn", self.withdrawn));
            let back = self.back.len();
            must(back == 0, format!("{back} counters went back: {:?}…", &self.back[..back.min(3)]));
            must(
                self.met.waiting.0 == self.met.waiting.1,
                format!("{} of {} waiting peers paired", self.met.waiting.0, self.met.waiting.1),
            );
            must(
                self.met.closing.0 == self.met.closing.1,
                format!("{} of {} departures learned", self.met.closing.0, self.met.closing.1),
            );
        } else {
            let lag = outcome.end_lags.iter().max().copied().unwrap_or(0);
            must(lag <= MAX_END_LAG, format!("{} ms between the ends of a session", lag / 1000));
            must(
                outcome.one_sided == 0,
                format!("{} sessions ended at one side only", outcome.one_sided),
            );
        }
        faults
    }

    fn json(&self) -> Value {
        let outcome = &self.outcome;
        json!({
            "number": self.number,
            "how": self.how.name(),
            "program": self.program,
            "exit_us": self.exit,
            "exit_status": self.exit_status,
            "gap_us": self.gap,
            "pairing_us": self.pairing,
            "silence_us": quantiles(&self.silence),
            "between_answers_us": quantiles(&self.between),
            "sessions": by_name(&outcome.before),
            "ended": by_name(&outcome.ended),
            "stuck": by_name(&outcome.stuck),
            "ended_at_one_side": outcome.one_sided,
            "longest_end_lag_us": outcome.end_lags.iter().max(),
            "wrong": outcome.wrong,
            "examples": outcome.examples,
            "probes": self.probed.made,
            "refused": self.probed.refused,
            "cut": self.probed.cut,
            "reconnects": self.links,
            "keys_withdrawn": self.withdrawn,
            "complaints": self.complaints,
            "counters_back": self.back,
            "waiting_peers_paired": self.met.waiting.0,
            "waiting_peers": self.met.waiting.1,
            "handed_out_keys_paired": self.met.keys.0,
            "handed_out_keys": self.met.keys.1,
            "departures_learned": self.met.closing.0,
            "departures": self.met.closing.1,
            "guests_failed": self.met.failures,
            "relay_bytes": self.resources.relay.pss,
            "relay_descriptors": self.resources.relay.files,
            "store_bytes": self.resources.store.pss,
            "store_descriptors": self.resources.store.files,
        })
    }
}

fn by_name(counts: &Counts) -> Value {
    let named = counts.iter().map(|(kind, count)| (kind.name().to_owned(), (*count).into()));
    Value::Object(named.collect())
}

fn quantiles(sorted: &[u64]) -> Value {
    json!({
        "count": sorted.len(),
        "p50": percentile(sorted, 0.5),
        "p99": percentile(sorted, 0.99),
        "max": sorted.last(),
    })
}

impl Report {
    fn sum(&self, of: impl Fn(&Restart) -> usize) -> usize {
        self.restarts.iter().map(of).sum()
    }

    fn wrong(&self) -> Vec<&String> {
        let outcomes = self.restarts.iter().map(|restart| &restart.outcome).chain([&self.finish]);
        outcomes.flat_map(|outcome| &outcome.wrong).collect()
    }

    fn by_kind(&self, of: impl Fn(&Outcome) -> &Counts) -> Counts {
        let mut sums = Counts::new();
        for restart in &self.restarts {
            for (kind, count) in of(&restart.outcome) {
                *sums.entry(*kind).or_default() += count;
            }
        }
        sums
    }

    fn sorted(&self, of: impl Fn(&Restart) -> Vec<u64>) -> Vec<u64> {
        let mut all: Vec<u64> = self.restarts.iter().flat_map(of).collect();
        all.sort_unstable();
        all
    }

    /// A summary for people.
    pub(super) fn text(&self) -> String {
        let mut ways: BTreeMap<&str, usize> = BTreeMap::new();
        for restart in &self.restarts {
            *ways.entry(restart.how.name()).or_default() += 1;
        }
        let ways: Vec<String> = ways.iter().map(|(how, count)| format!("{count} {how}")).collect();
        let store = if self.with_store { "with a descriptor store" } else { "without a store" };
        let mut text = format!(
            "restarts        {} ({}), {store}, Router {}\n",
            self.restarts.len(),
            ways.join(", "),
            self.router
        );
        let (before, ended) = (self.by_kind(|o| &o.before), self.by_kind(|o| &o.ended));
        let stuck = self.by_kind(|outcome| &outcome.stuck);
        for (kind, count) in before {
            let of = |counts: &Counts| counts.get(&kind).copied().unwrap_or(0);
            let gone = of(&ended) + of(&stuck);
            let percent = 100.0 * (count - gone) as f64 / count.max(1) as f64;
            text += &format!(
                "{:<15} {} of {count} went on ({percent:.2} %), {} ended, {} stuck\n",
                kind.name(),
                count - gone,
                of(&ended),
                of(&stuck)
            );
        }
        text += &self.facts();
        text += &self.times();
        for line in &self.skipped {
            text += &format!("*** SKIPPED: {line}\n");
        }
        text
    }

    fn facts(&self) -> String {
        let waiting = (self.sum(|r| r.met.waiting.0), self.sum(|r| r.met.waiting.1));
        let keys = (self.sum(|r| r.met.keys.0), self.sum(|r| r.met.keys.1));
        let closing = (self.sum(|r| r.met.closing.0), self.sum(|r| r.met.closing.1));
        let probes: u64 = self.restarts.iter().map(|restart| restart.probed.made).sum();
        let refused: u64 = self.restarts.iter().map(|restart| restart.probed.refused).sum();
        let cut: u64 = self.restarts.iter().map(|restart| restart.probed.cut).sum();
        let links: u64 = self.restarts.iter().map(|restart| restart.links).sum();
        let largest = |of: fn(&Resources) -> f64| {
            self.restarts.iter().map(|restart| of(&restart.resources)).fold(0.0, f64::max)
        };
        format!(
            "wrong bytes     {} sessions; {:.0} MiB arrived as sent\n\
             waiting peers   {} of {} paired after the restart\n\
             handed-out keys {} of {} pairs met after the restart\n\
             departures      {} of {} learned at the other side, after every byte\n\
             new connections {probes}, {refused} refused, {cut} cut\n\
             Router          {links} reconnects, {} keys withdrawn\n\
             counters        {} went back\n\
             memory at most  relay {:.1} MiB and {:.0} descriptors, store {:.1} MiB and {:.0} descriptors\n",
            self.wrong().len(),
            self.verified as f64 / MIB,
            waiting.0,
            waiting.1,
            keys.0,
            keys.1,
            closing.0,
            closing.1,
            self.sum(|restart| restart.withdrawn),
            self.sum(|restart| restart.back.len()),
            largest(|resources| resources.relay.pss) / MIB,
            largest(|resources| resources.relay.files),
            largest(|resources| resources.store.pss) / MIB,
            largest(|resources| resources.store.files),
        )
    }

    fn times(&self) -> String {
        let mut text = "                              p50      p99      max, in ms\n".to_owned();
        for (name, times) in [
            ("silence of a session", self.sorted(|restart| restart.silence.clone())),
            ("between two answers", self.sorted(|restart| restart.between.clone())),
            ("signal to exit", self.sorted(|restart| vec![restart.exit])),
            ("gap without a relay", self.sorted(|restart| vec![restart.gap])),
            ("start to new pair", self.sorted(|restart| vec![restart.pairing])),
        ] {
            let at = |part| percentile(&times, part).map_or("-".to_owned(), millis);
            text += &format!("{name:<25} {:>7}  {:>7}  {:>7}\n", at(0.5), at(0.99), at(1.0));
        }
        text
    }

    /// JSON for programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "store": self.with_store,
            "router": self.router,
            "verified_bytes": self.verified,
            "silence_us": quantiles(&self.sorted(|restart| restart.silence.clone())),
            "gap_us": quantiles(&self.sorted(|restart| vec![restart.gap])),
            "exit_us": quantiles(&self.sorted(|restart| vec![restart.exit])),
            "pairing_us": quantiles(&self.sorted(|restart| vec![restart.pairing])),
            "ended": by_name(&self.by_kind(|outcome| &outcome.ended)),
            "wrong": self.wrong(),
            "ended_at_the_end": by_name(&self.finish.ended),
            "stuck_at_the_end": by_name(&self.finish.stuck),
            "faults": self.faults(),
            "skipped": self.skipped,
            "restarts": self.restarts.iter().map(Restart::json).collect::<Vec<_>>(),
        })
    }

    /// Everything that must hold and does not.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            self.wrong().into_iter().map(|wrong| format!("WRONG BYTES: {wrong}")).collect();
        let finish = &self.finish;
        if total(&finish.ended) + total(&finish.stuck) > 0 {
            faults.push(format!("sessions did not end in order: {:?}", finish.examples));
        }
        if !self.with_store {
            return faults;
        }
        for restart in &self.restarts {
            let (number, how) = (restart.number, restart.how.name());
            let found = restart.faults();
            faults.extend(found.iter().map(|fault| format!("restart {number} ({how}): {fault}")));
            if !found.is_empty() {
                let examples = restart.outcome.examples.iter().chain(&restart.met.failures);
                faults.extend(examples.map(|example| format!("    {example}")));
            }
        }
        let killed = || self.restarts.iter().filter(|restart| restart.how != How::Terminate);
        let went_on: usize = killed().map(|restart| restart.interactive().0).sum();
        let before: usize = killed().map(|restart| restart.interactive().1).sum();
        // A thread that is interrupted by the kill between reading and writing has the bytes of one session in hand.
        let allowed = ((1.0 - MUST_GO_ON) * before as f64).max(killed().count() as f64);
        if (before - went_on) as f64 > allowed {
            faults.push(format!("{went_on} of {before} interactive sessions survived a kill"));
        }
        faults
    }

    /// Whether everything held that must.
    ///
    /// # Errors
    /// What did not.
    pub(super) fn verdict(&self) -> io::Result<()> {
        let faults = self.faults();
        if faults.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(format!("{} faults:\n  {}", faults.len(), faults.join("\n  "))))
    }
}
