//! The options of `relay-lab fleet`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::value_parser;

use super::Plan;
use crate::scene;

/// The options of `relay-lab fleet`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Program of the relays [default: aspia_relay in the directory of this program]
    #[arg(long, value_name = "PATH")]
    relay: Option<PathBuf>,
    /// CPU quotas of the relays in percent of a core; the last relay comes later
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "5,10,20,10", value_parser = value_parser!(u16).range(1..=6400))]
    quotas: Vec<u16>,
    /// `MaxPeerCount` of each relay
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u16).range(1..=2000))]
    sessions: u16,
    /// Set `OfferByLoad` to false
    #[arg(long)]
    without_offer_by_load: bool,
    /// Run twice, with and without `OfferByLoad`, and compare
    #[arg(long, conflicts_with = "without_offer_by_load")]
    compare: bool,
    /// Environment variable for the relays
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,

    /// Duration of the load
    #[arg(long, default_value_t = 150, value_parser = value_parser!(u64).range(10..=3600), help_heading = "Load")]
    seconds: u64,
    /// New sessions per minute
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = value_parser!(u16).range(1..=3000), help_heading = "Load")]
    arrivals: u16,
    /// Rate of the messages of all sessions, in percent of the usual one
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = value_parser!(u16).range(1..=1000), help_heading = "Load")]
    load: u16,
    /// Seed of the sessions
    #[arg(long, default_value_t = 1, help_heading = "Load")]
    seed: u64,

    /// Second from which the shares are compared, until the first event
    #[arg(long, value_name = "SECOND", default_value_t = 60, help_heading = "Events")]
    measure_from: u64,
    /// Second at which the second relay is killed
    #[arg(long, value_name = "SECOND", default_value_t = 90, help_heading = "Events")]
    kill_at: u64,
    /// Second at which the last relay comes
    #[arg(long, value_name = "SECOND", default_value_t = 100, help_heading = "Events")]
    join_at: u64,
    /// Second at which the first relay drains
    #[arg(long, value_name = "SECOND", default_value_t = 110, help_heading = "Events")]
    drain_at: u64,

    /// Seconds between two rows of the table
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = value_parser!(u64).range(1..=60), help_heading = "Results")]
    every: u64,
    /// Write charts as SVG
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub svg: Option<PathBuf>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
    /// Keep the logs of the relays, also when nothing is wrong
    #[arg(long, help_heading = "Results")]
    keep_logs: bool,
}

impl Arguments {
    /// The plans of the runs, one after the other.
    ///
    /// # Errors
    /// What is wrong with an argument.
    pub fn plans(&self) -> io::Result<Vec<Plan>> {
        if self.quotas.len() < 3 {
            return Err(io::Error::other(format!(
                "--quotas names {} relays; at least 3 are needed: one drains, one is killed, one comes later",
                self.quotas.len()
            )));
        }
        if self.measure_from >= self.kill_at.min(self.join_at).min(self.drain_at) {
            return Err(io::Error::other(format!(
                "--measure-from {}: the shares are compared from then until the first event, which must come later",
                self.measure_from
            )));
        }
        if let Some(late) =
            [self.kill_at, self.join_at, self.drain_at].iter().find(|at| **at >= self.seconds)
        {
            return Err(io::Error::other(format!(
                "an event at second {late} comes after the end of the load (--seconds {})",
                self.seconds
            )));
        }
        let plan = Plan {
            program: self.relay.clone().map_or_else(scene::relay_beside, Ok)?,
            quotas: self.quotas.iter().copied().map(u32::from).collect(),
            sessions: self.sessions.into(),
            offer_by_load: !self.without_offer_by_load,
            environment: scene::variables(&self.env)?,
            time: Duration::from_secs(self.seconds),
            per_minute: self.arrivals.into(),
            load: f64::from(self.load) / 100.0,
            seed: self.seed,
            measure_from: self.measure_from,
            kill_at: self.kill_at,
            join_at: self.join_at,
            drain_at: self.drain_at,
            every: Duration::from_secs(self.every),
            keep_logs: self.keep_logs,
        };
        if !self.compare {
            return Ok(vec![plan]);
        }
        Ok(vec![plan.clone(), Plan { offer_by_load: false, ..plan }])
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plans(line: &str) -> io::Result<Vec<Plan>> {
        Line::parse_from(line.split(' ')).arguments.plans()
    }

    #[test]
    fn comparison_is_two_runs_that_differ_in_the_setting_only() {
        let both = plans("fleet --compare --seed 7 --quotas 5,10,20,40").unwrap();
        let offers: Vec<_> = both.iter().map(|plan| (plan.offer_by_load, plan.seed)).collect();
        assert_eq!(offers, [(true, 7), (false, 7)]);
        assert_eq!(both[1].quotas, [5, 10, 20, 40]);
        let one = plans("fleet --without-offer-by-load").unwrap();
        assert!(one.len() == 1 && !one[0].offer_by_load);
    }

    #[test]
    fn impossible_plans_are_refused() {
        for (line, part) in [
            ("fleet --quotas 5,10", "names 2 relays"),
            ("fleet --measure-from 95", "until the first event"),
            ("fleet --seconds 100", "after the end"),
            ("fleet --env A", "expected KEY=VALUE"),
        ] {
            let error = plans(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
