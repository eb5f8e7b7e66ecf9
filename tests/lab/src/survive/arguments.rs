//! The options of `relay-lab survive`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::value_parser;

use super::guests::GuestCounts;
use super::session::Kind;
use super::{How, Plan};
use crate::cgroup::{self, Controller};
use crate::router::RouterDialect;
use crate::scene;

/// How a relay is ended, as the command line says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    /// SIGTERM: with a store, the relay hands over
    Terminate,
    /// SIGKILL
    Kill,
    /// SIGSEGV, as in a crash
    Segv,
    /// SIGABRT, with which a panic ends the process
    Abort,
    /// The kernel's OOM killer, in a cgroup without memory
    Oom,
    /// `terminate` and `kill` in turn
    Alternate,
}

/// The options of `relay-lab survive`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Program of the relay; several take turns, as in upgrades and downgrades [default: aspia_relay in the directory of
    /// this program]
    #[arg(long, value_name = "PATH", help_heading = "Processes")]
    relay: Vec<PathBuf>,
    /// Run a descriptor store as well, with the first program, so that sessions outlive the relay
    #[arg(long, help_heading = "Processes")]
    store: bool,
    /// How long the store keeps sessions without a relay
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(1..=3600), help_heading = "Processes")]
    store_timeout: u64,
    /// Kill the store and start another one before each restart of the relay
    #[arg(long, requires = "store", help_heading = "Processes")]
    replace_store: bool,
    /// Dialect of the Router
    #[arg(long, value_enum, default_value = "2", help_heading = "Processes")]
    router: RouterDialect,
    /// Environment variable for the relays
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Processes")]
    env: Vec<String>,

    /// Restarts
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..=10_000), help_heading = "Restarts")]
    times: u32,
    /// How the relay is ended; several take turns
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "terminate",
        help_heading = "Restarts"
    )]
    how: Vec<Way>,
    /// Milliseconds of undisturbed work before each restart
    #[arg(long, value_name = "MS", default_value_t = 1500, value_parser = value_parser!(u64).range(0..=600_000), help_heading = "Restarts")]
    every: u64,
    /// Milliseconds from the end of the old process to the start of the new one
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = value_parser!(u64).range(0..=600_000), help_heading = "Restarts")]
    away: u64,
    /// Seconds that a relay which cannot hand over waits for its sessions
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = value_parser!(u64).range(0..=60), help_heading = "Restarts")]
    drain: u64,

    /// Sessions with small requests and answers
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u16).range(0..=9000), help_heading = "Sessions")]
    interactive: u16,
    /// Requests per second of each
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = value_parser!(u32).range(1..=1000), help_heading = "Sessions")]
    rate: u32,
    /// Sessions with continuous data, every other one in both directions
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u16).range(0..=1000), help_heading = "Sessions")]
    bulk: u16,
    /// MiB/s in each direction of them; 0 is as much as possible
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = value_parser!(u64).range(0..=10_000), help_heading = "Sessions")]
    bulk_rate: u64,
    /// Sessions in which one side has finished sending
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u16).range(0..=9000), help_heading = "Sessions")]
    half_closed: u16,
    /// Sessions that are silent until the end
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = value_parser!(u16).range(0..=9000), help_heading = "Sessions")]
    idle: u16,
    /// Sessions whose receiver reads slowly
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(0..=1000), help_heading = "Sessions")]
    throttled: u16,
    /// Peers at each restart whose partner comes only afterwards
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(0..=50), help_heading = "Sessions")]
    waiting: u16,
    /// Pairs at each restart that were introduced before and come only afterwards
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(0..=50), help_heading = "Sessions")]
    keys: u16,
    /// Sessions at each restart that a peer ends meanwhile
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = value_parser!(u16).range(0..=50), help_heading = "Sessions")]
    closing: u16,

    /// Write the results as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
    /// Keep the logs of the processes, also when nothing is wrong
    #[arg(long, help_heading = "Results")]
    keep_logs: bool,
}

impl Arguments {
    /// The plan of a run.
    ///
    /// # Errors
    /// What is wrong with an argument.
    pub fn plan(&self) -> io::Result<Plan> {
        let relays =
            if self.relay.is_empty() { vec![scene::relay_beside()?] } else { self.relay.clone() };
        let (ways, skipped) = self.ways()?;
        let sessions = [
            (Kind::Interactive, self.interactive),
            (Kind::Bulk, self.bulk),
            (Kind::HalfClosed, self.half_closed),
            (Kind::Idle, self.idle),
            (Kind::Throttled, self.throttled),
        ];
        Ok(Plan {
            relays,
            store: self.store,
            store_timeout: Duration::from_secs(self.store_timeout),
            replace_store: self.replace_store,
            version: self.router.into(),
            environment: scene::variables(&self.env)?,
            times: usize::try_from(self.times).map_err(io::Error::other)?,
            ways,
            skipped,
            every: Duration::from_millis(self.every),
            away: Duration::from_millis(self.away),
            drain_timeout: Duration::from_secs(self.drain),
            pace: Duration::from_secs(1) / self.rate,
            bulk_rate: self.bulk_rate * 1024 * 1024,
            sessions: sessions.into_iter().map(|(kind, count)| (kind, count.into())).collect(),
            guests: GuestCounts {
                waiting: self.waiting.into(),
                keys: self.keys.into(),
                closing: self.closing.into(),
            },
            keep_logs: self.keep_logs,
        })
    }

    /// The ways to end the relay that this machine allows, and why others are left out.
    fn ways(&self) -> io::Result<(Vec<How>, Vec<String>)> {
        let (mut ways, mut skipped) = (Vec::new(), Vec::new());
        for way in &self.how {
            match way {
                Way::Terminate => ways.push(How::Terminate),
                Way::Kill => ways.push(How::Kill),
                Way::Segv => ways.push(How::Segv),
                Way::Abort => ways.push(How::Abort),
                Way::Alternate => ways.extend([How::Terminate, How::Kill]),
                Way::Oom => match cgroup::missing(Controller::Memory) {
                    None => ways.push(How::Oom),
                    Some(reason) => skipped.push(format!("oom: {reason}")),
                },
            }
        }
        if ways.is_empty() {
            return Err(io::Error::other(format!("nothing to do: {}", skipped.join(", "))));
        }
        Ok((ways, skipped))
    }
}
