//! `relay-lab bench`: measures what forwarding costs, compared with other forwarders in the same run.
//!
//! Every forwarder gets the same load over the same kind of connections: peers dial a proxy in front of a listening
//! end, or pair through a relay, or (as the limit of the machine) dial the listening end itself. Forwarders take turns, so
//! that a drift in the machine's speed affects all of them alike. Compare ratios of medians.

mod copy;
mod floor;
mod forwarder;
mod load;
pub(crate) mod meter;
mod report;
mod x25519;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use copy::serve as serve_copy;
pub use floor::serve as serve_floor;
pub use report::Results;

use forwarder::{Forwarder, Lab};
use load::Load;
use meter::Meter;

use crate::say;

/// A forwarder to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Baseline {
    /// HAProxy in TCP mode.
    Haproxy,
    /// HAProxy with `option splice-auto`.
    HaproxySplice,
    /// nginx with its stream module.
    Nginx,
    /// One thread, 8 KiB for each direction of each session, as the original relay does.
    Copy,
    /// Nothing but epoll, receiving and sending: what the two connections cost in the kernel.
    Floor,
    /// No forwarder: the peers are connected directly.
    Direct,
}

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// As much as possible, from host to client.
    Bulk,
    /// As much as possible, both ways.
    BulkBoth,
    /// 30 frames of 8 KiB per second with one of 100 KiB every two seconds one way, 60 events of 64 bytes the other way.
    Desktop,
    /// One message at a time there and back, of 64 bytes and of 4 KiB.
    PingPong,
    /// Sessions that pair, send 1 KiB each way and close.
    Churn,
    /// The same while many peers wait for their partners; for relays only.
    Waiting,
    /// Idle sessions.
    Idle,
    /// Memory after bursts in many sessions, some of which had to be buffered.
    Burst,
}

impl Baseline {
    /// The forwarder of this name.
    fn named(name: &str) -> Option<Self> {
        clap::ValueEnum::from_str(name, false).ok()
    }

    /// Whether it is a proxy that people use, which the relay should not be worse than.
    fn is_proxy(self) -> bool {
        matches!(self, Self::Haproxy | Self::HaproxySplice | Self::Nginx)
    }
}

/// Parameters of a benchmark.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Relays: a name and a program each.
    pub relays: Vec<(String, PathBuf)>,
    /// Environment variables for the relays.
    pub environment: Vec<(String, String)>,
    /// Whether forwarders run in a network namespace behind virtual Ethernet devices.
    pub veth: bool,
    /// The forwarders to compare with.
    pub against: Vec<Baseline>,
    /// The loads.
    pub kinds: Vec<Kind>,
    /// Numbers of sessions, instead of those of each load.
    pub sessions: Vec<usize>,
    /// Measurements of each.
    pub repeats: usize,
    /// Duration of each measurement.
    pub time: Duration,
}

/// A forwarder, by name.
#[derive(Debug, Clone)]
enum Who {
    Ours(String, PathBuf),
    Baseline(Baseline),
}

impl Who {
    fn name(&self) -> String {
        use clap::ValueEnum;

        match self {
            Self::Ours(name, _) => name.clone(),
            Self::Baseline(baseline) => baseline
                .to_possible_value()
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default(),
        }
    }
}

/// Measures all forwarders in turn. Prints each figure as soon as it is known.
///
/// # Errors
/// If nothing can be measured.
pub async fn run(plan: &Plan) -> io::Result<Results> {
    // Two descriptors for each session here, and children have the same limit.
    raise_limit();
    let lab = Lab::new(plan.environment.clone(), plan.veth)?;
    let mut whos: Vec<Who> =
        plan.relays.iter().map(|(name, path)| Who::Ours(name.clone(), path.clone())).collect();
    for baseline in &plan.against {
        match forwarder::program(*baseline) {
            Ok(()) => whos.push(Who::Baseline(*baseline)),
            Err(why) => say(&format!("*** NOT MEASURED: {why}")),
        }
    }
    let mut results = Results::new(plan.relays.first().map(|(name, _)| name.clone()));
    for load in plan.kinds.iter().flat_map(|kind| Load::of(*kind, &plan.sessions)) {
        for repeat in 0..plan.repeats {
            for turn in 0..whos.len() {
                // No forwarder is always first, or always after the same one.
                let who = &whos[(turn + repeat) % whos.len()];
                if load.is_for_relays() && matches!(who, Who::Baseline(_)) {
                    continue;
                }
                let forwarder = lab.start(who, load.sessions()).await?;
                let figures = load.run(forwarder, plan.time).await?;
                say(&format!("{:24} {:16} {}", load.name(), who.name(), figures.line()));
                results.add(&load.name(), &who.name(), figures);
            }
        }
    }
    Ok(results)
}

/// As many descriptors as the system allows.
#[cfg(unix)]
pub(crate) fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    // If the limit cannot be raised, sessions fail to open.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// There is no such limit.
#[cfg(not(unix))]
pub(crate) fn raise_limit() {}

/// What a forwarder has used so far.
fn meter(forwarder: &Forwarder) -> Meter {
    Meter::of(forwarder.pids())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_load_reports_its_figures() {
        // Without a forwarder: the test depends on no other program.
        let plan = Plan {
            relays: Vec::new(),
            environment: Vec::new(),
            veth: false,
            against: vec![Baseline::Direct],
            kinds: vec![
                Kind::Bulk,
                Kind::BulkBoth,
                Kind::Desktop,
                Kind::PingPong,
                Kind::Churn,
                Kind::Idle,
            ],
            sessions: vec![2],
            repeats: 1,
            time: Duration::from_secs(1),
        };
        let results = run(&plan).await.unwrap();
        let loads = results.json()["loads"].clone();
        for (load, figure) in [
            ("bulk 2", "rate"),
            ("bulk-both 2", "rate"),
            ("desktop 2", "p99_us"),
            ("desktop 2", "rate"),
            ("desktop 2", "machine_ms_session"),
            ("bulk 2", "machine_cpu"),
            ("ping-pong 64 B", "p50_us"),
            ("ping-pong 4096 B", "p50_us"),
            ("churn", "rate"),
        ] {
            let value = loads[load]["direct"][figure]["median"].as_f64();
            assert!(value.is_some_and(|value| value > 0.0), "{load}: {loads:#}");
        }
        assert_eq!(loads["churn"]["direct"]["failed"]["max"], 0.0);
        // Without a forwarder nothing is used.
        assert_eq!(loads["idle 2"]["direct"]["pss_session"]["median"], 0.0);
    }
}
