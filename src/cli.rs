//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::config::parse::duration;
use crate::node::AddressSource;

/// A relay for the Aspia remote-desktop system.
///
/// Without an argument it runs in the foreground with the settings of relay.json and of the environment
/// (ASPIA_RELAY_...). Logs: ASPIA_LOG_LEVEL=0 tells most.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "aspia_relay", version, disable_help_subcommand = true)]
pub struct Arguments {
    /// Read this file instead of the default one; also ASPIA_RELAY_CONFIG
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,

    /// Write the default configuration file; refuses where one exists
    #[arg(long, group = "action")]
    pub create_config: bool,

    /// Print every effective value with its source, and every problem; exit status 0 or 78
    #[arg(long, group = "action")]
    pub check_config: bool,

    /// Ask the relay that runs here whether it works (live), or whether it can serve peers (ready); exit status 0 or 1
    #[arg(
        long,
        group = "action",
        value_name = "PROBE",
        value_enum,
        num_args = 0..=1,
        default_missing_value = "live"
    )]
    pub healthcheck: Option<Probe>,

    /// Check the whole installation step by step, and say what to do about each failure; exit status 0 or 1
    #[arg(long, group = "action")]
    pub doctor: bool,

    /// With --doctor: that no relay runs here is a failure
    #[arg(long, requires = "doctor")]
    pub running: bool,

    /// In a pod of Kubernetes: wait for and print the address of the node NODE_NAME, which is its external-ip, or stands in its
    /// annotation=KEY or label=KEY
    #[arg(long, group = "action", value_name = "SOURCE")]
    pub node_address: Option<AddressSource>,

    /// With --node-address: write it into this file instead
    #[arg(long, value_name = "PATH", requires = "node_address")]
    pub output: Option<PathBuf>,

    /// With --output: wait no longer than this, such as 20s, and then write nothing; exit status 0
    #[arg(long, value_name = "DURATION", requires = "output", value_parser = duration)]
    pub wait_at_most: Option<Duration>,

    /// With --check-config and --doctor: print JSON
    #[arg(long)]
    pub json: bool,

    /// Install the Windows service
    #[arg(long, group = "action")]
    pub install: bool,

    /// Remove the Windows service
    #[arg(long, group = "action")]
    pub remove: bool,

    /// Start the Windows service
    #[arg(long, group = "action")]
    pub start: bool,

    /// Stop the Windows service
    #[arg(long, group = "action")]
    pub stop: bool,
}

/// What a health check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Whether the process works: `/livez`
    Live,
    /// Whether it has a link to the Router and takes peers: `/readyz`
    Ready,
}

impl Arguments {
    /// What to use instead of an argument that is for Windows only.
    pub fn windows_only(&self) -> Option<(&'static str, &'static str)> {
        [
            (self.install, "--install", "systemctl enable aspia-relay"),
            (self.remove, "--remove", "systemctl disable aspia-relay"),
            (self.start, "--start", "systemctl start aspia-relay"),
            (self.stop, "--stop", "systemctl stop aspia-relay"),
        ]
        .into_iter()
        .find_map(|(asked, argument, instead)| asked.then_some((argument, instead)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
