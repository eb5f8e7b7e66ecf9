//! The command line: options as clap parses them, and the one [`Command`] that they ask for.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::config::parse::duration;
use crate::node::AddressSource;
use crate::probe::ProbeTarget;

/// The headings of `--help`.
const RUN: &str = "Run";
const LOOK: &str = "Inspect";
const ACT: &str = "Control the running relay";
const SET_UP: &str = "Set up";
const WINDOWS: &str = "Windows service";

/// The shortest time between two refreshes.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// A relay for the Aspia remote-desktop system.
///
/// Without arguments, it runs in the foreground with the settings of relay.json and of the environment
/// (ASPIA_RELAY_...). ASPIA_LOG_LEVEL=0 logs what happens, RUST_LOG=debug more.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "aspia_relay", version, disable_help_subcommand = true)]
pub struct Arguments {
    /// Read this file instead of the default one; ASPIA_RELAY_CONFIG does the same
    #[arg(long, value_name = "PATH", help_heading = RUN)]
    pub config: Option<PathBuf>,

    /// Run the descriptor store instead of a relay (Linux): it keeps a relay's connections while the relay is replaced. With
    /// --healthcheck: ask the store that runs here
    #[arg(
        long,
        help_heading = RUN,
        conflicts_with_all = [
            "create_config", "check_config", "doctor", "node_address", "json", "install", "remove", "start", "stop",
            "status", "sessions", "end_session", "drain", "reload", "log_level", "probe"
        ]
    )]
    pub fd_store: bool,

    /// Show the state of the running relay
    #[arg(long, group = "action", help_heading = LOOK)]
    pub status: bool,

    /// List the sessions of the running relay
    #[arg(long, group = "action", help_heading = LOOK)]
    pub sessions: bool,

    /// With --sessions: order by this column; durations, bytes and round-trip times begin with the largest
    #[arg(long, value_name = "COLUMN", value_enum, help_heading = LOOK)]
    pub sort: Option<SessionColumn>,

    /// With --sessions: list only those that contain this text, or have an address in this network (192.0.2.0/24)
    #[arg(long, value_name = "TEXT", help_heading = LOOK)]
    pub filter: Option<String>,

    /// With --status or --sessions: show it again every 2 s, or at this interval, until Ctrl-C
    #[arg(
        long,
        value_name = "INTERVAL",
        value_parser = interval,
        num_args = 0..=1,
        default_missing_value = "2s",
        help_heading = LOOK
    )]
    pub watch: Option<Duration>,

    /// Ask the running relay whether it works (live), or whether it can serve peers (ready); exit status 0 or 1
    #[arg(
        long,
        group = "action",
        value_name = "PROBE",
        value_enum,
        num_args = 0..=1,
        default_missing_value = "live",
        help_heading = LOOK
    )]
    pub healthcheck: Option<Probe>,

    /// Check the whole installation step by step, and say what to do about each failure; exit status 0 or 1
    #[arg(long, group = "action", help_heading = LOOK)]
    pub doctor: bool,

    /// With --doctor: fail if no relay is running
    #[arg(long, requires = "doctor", help_heading = LOOK)]
    pub running: bool,

    /// Say whether an Aspia relay answers at this address (default port: 8070), seen from this machine; needs no configuration.
    /// Exit status 0 or 1
    #[arg(long, group = "action", value_name = "HOST[:PORT]", help_heading = LOOK)]
    pub probe: Option<ProbeTarget>,

    /// Print JSON: with --check-config, --doctor, --probe, and the commands for the running relay
    #[arg(long, help_heading = LOOK)]
    pub json: bool,

    /// End the session with this number, which --sessions shows
    #[arg(long, group = "action", value_name = "ID", help_heading = ACT)]
    pub end_session: Option<u64>,

    /// Stop the relay once its sessions have ended, or after DrainTimeout
    #[arg(long, group = "action", help_heading = ACT)]
    pub drain: bool,

    /// Have the running relay read its configuration again, and print what has changed and what waits for a restart
    #[arg(long, group = "action", help_heading = ACT)]
    pub reload: bool,

    /// Log at this level until the relay is stopped: error, warn, info, debug, trace, or a list as in RUST_LOG. A relay that
    /// takes over from it keeps the level
    #[arg(long, group = "action", value_name = "LEVEL", help_heading = ACT)]
    pub log_level: Option<String>,

    /// Write the default configuration file; fail if it exists
    #[arg(long, group = "action", help_heading = SET_UP)]
    pub create_config: bool,

    /// Print every effective value with its source, and every problem; exit status 0 or 78
    #[arg(long, group = "action", help_heading = SET_UP)]
    pub check_config: bool,

    /// In a Kubernetes pod: wait for the address of the node NODE_NAME and print it; SOURCE is external-ip, annotation=KEY or
    /// label=KEY
    #[arg(long, group = "action", value_name = "SOURCE", help_heading = SET_UP)]
    pub node_address: Option<AddressSource>,

    /// With --node-address: write the address to this file instead of stdout
    #[arg(long, value_name = "PATH", requires = "node_address", help_heading = SET_UP)]
    pub output: Option<PathBuf>,

    /// With --output: after this time, such as 20s, give up and exit with status 0 without writing the file
    #[arg(
        long,
        value_name = "DURATION",
        requires = "output",
        value_parser = duration,
        help_heading = SET_UP
    )]
    pub wait_at_most: Option<Duration>,

    /// Install the Windows service
    #[arg(long, group = "action", help_heading = WINDOWS, hide = cfg!(not(windows)))]
    pub install: bool,

    /// Remove the Windows service
    #[arg(long, group = "action", help_heading = WINDOWS, hide = cfg!(not(windows)))]
    pub remove: bool,

    /// Start the Windows service
    #[arg(long, group = "action", help_heading = WINDOWS, hide = cfg!(not(windows)))]
    pub start: bool,

    /// Stop the Windows service
    #[arg(long, group = "action", help_heading = WINDOWS, hide = cfg!(not(windows)))]
    pub stop: bool,
}

/// Parses the time between two refreshes.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < MIN_INTERVAL {
        return Err("at least 1s".into());
    }
    Ok(interval)
}

/// A column by which `--sessions` can sort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SessionColumn {
    /// The number of the session: the oldest first
    #[default]
    Id,
    /// How long it has been active: the longest first
    Duration,
    /// How long no byte has been forwarded: the longest first
    Idle,
    /// Bytes forwarded: the most first
    Bytes,
    /// The name of the Client's user
    User,
    /// The address of the Client
    Client,
    /// The number of the Host
    Host,
    /// The slower round-trip time of its two connections: the longest first
    Rtt,
}

/// What a health check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Whether the process works: `/livez`
    Live,
    /// Whether it has a link to the Router and accepts peers: `/readyz`
    Ready,
}

/// What the program is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the relay.
    RunRelay,
    /// Write the default configuration file.
    CreateConfig,
    /// Print every effective value and every problem.
    CheckConfig(OutputFormat),
    /// Ask the running relay whether it is alive or ready.
    Healthcheck(Probe),
    /// Query or control the running relay.
    UseRelay(RelayAction, OutputFormat),
    /// Run the descriptor store.
    RunStore,
    /// Ask the running descriptor store whether it works.
    CheckStore,
    /// Print the address of the Kubernetes node.
    NodeAddress(NodeAddressRequest),
    /// Check the installation.
    Doctor {
        /// How to print the steps.
        format: OutputFormat,
        /// Whether a missing relay is a failure.
        expects_relay: bool,
    },
    /// Say whether a relay answers at an address.
    Probe(ProbeTarget, OutputFormat),
    /// Install, remove, start or stop the Windows service.
    ControlService(ServiceAction),
}

/// What the running relay is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayAction {
    /// Show something.
    Show {
        /// What to show.
        view: RelayReport,
        /// The time after which to show it again; `None` shows it once.
        interval: Option<Duration>,
    },
    /// End the session with this number.
    EndSession(u64),
    /// Drain and stop.
    Drain,
    /// Read the configuration again.
    Reload,
    /// Set the log filter.
    SetLogLevel(String),
}

/// What can be seen of the running relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayReport {
    /// Its state.
    Status,
    /// Its sessions.
    Sessions {
        /// The column to sort by.
        sort: SessionColumn,
        /// What the sessions must contain.
        filter: Option<String>,
    },
}

/// The form of a command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Lines for people.
    Text,
    /// One JSON value.
    Json,
}

/// Where to find the address of the node, and where to write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddressRequest {
    /// Where to find the address.
    pub source: AddressSource,
    /// The file to write instead of stdout.
    pub output: Option<PathBuf>,
    /// How long to wait for the address; `None` waits for ever.
    pub wait_at_most: Option<Duration>,
}

/// An action on the Windows service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceAction {
    /// Install it.
    Install,
    /// Remove it.
    Remove,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
}

impl ServiceAction {
    /// The option that asks for it.
    pub fn option(self) -> &'static str {
        match self {
            Self::Install => "--install",
            Self::Remove => "--remove",
            Self::Start => "--start",
            Self::Stop => "--stop",
        }
    }

    /// The command that does the same under systemd.
    pub fn systemctl(self) -> &'static str {
        match self {
            Self::Install => "systemctl enable aspia-relay",
            Self::Remove => "systemctl disable aspia-relay",
            Self::Start => "systemctl start aspia-relay",
            Self::Stop => "systemctl stop aspia-relay-fd-store aspia-relay",
        }
    }
}

/// An invalid combination of options that clap cannot detect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// `--json` with a command that has no JSON output.
    #[error(
        "--json goes with --check-config, --doctor, --probe, --status, --sessions, --end-session, --drain, --reload or --log-level"
    )]
    NoJson,
    /// `--sort` or `--filter` with another command than `--sessions`.
    #[error("--sort and --filter go with --sessions")]
    NoSessions,
    /// `--watch` with a command that shows nothing.
    #[error("--watch goes with --status or --sessions")]
    NothingToWatch,
}

impl Arguments {
    /// The command that the options ask for.
    ///
    /// # Errors
    /// [`UsageError`] for options that have no use with the command.
    pub fn to_command(&self) -> Result<Command, UsageError> {
        let format = if self.json { OutputFormat::Json } else { OutputFormat::Text };
        if self.watch.is_some() && !(self.status || self.sessions) {
            return Err(UsageError::NothingToWatch);
        }
        if (self.sort.is_some() || self.filter.is_some()) && !self.sessions {
            return Err(UsageError::NoSessions);
        }
        if let Some(action) = self.service_action() {
            return Ok(Command::ControlService(action));
        }
        if let Some(action) = self.relay_action() {
            return Ok(Command::UseRelay(action, format));
        }
        if self.fd_store {
            return Ok(match self.healthcheck {
                Some(_) => Command::CheckStore,
                None => Command::RunStore,
            });
        }
        if self.check_config {
            return Ok(Command::CheckConfig(format));
        }
        if self.doctor {
            return Ok(Command::Doctor { format, expects_relay: self.running });
        }
        if let Some(target) = &self.probe {
            return Ok(Command::Probe(target.clone(), format));
        }
        if self.json {
            return Err(UsageError::NoJson);
        }
        Ok(if self.create_config {
            Command::CreateConfig
        } else if let Some(probe) = self.healthcheck {
            Command::Healthcheck(probe)
        } else if let Some(source) = &self.node_address {
            let (source, output) = (source.clone(), self.output.clone());
            Command::NodeAddress(NodeAddressRequest {
                source,
                output,
                wait_at_most: self.wait_at_most,
            })
        } else {
            Command::RunRelay
        })
    }

    fn relay_action(&self) -> Option<RelayAction> {
        let show = |view| Some(RelayAction::Show { view, interval: self.watch });
        if self.status {
            show(RelayReport::Status)
        } else if self.sessions {
            show(RelayReport::Sessions {
                sort: self.sort.unwrap_or_default(),
                filter: self.filter.clone(),
            })
        } else if let Some(id) = self.end_session {
            Some(RelayAction::EndSession(id))
        } else if self.drain {
            Some(RelayAction::Drain)
        } else if self.reload {
            Some(RelayAction::Reload)
        } else {
            self.log_level.clone().map(RelayAction::SetLogLevel)
        }
    }

    fn service_action(&self) -> Option<ServiceAction> {
        [
            (self.install, ServiceAction::Install),
            (self.remove, ServiceAction::Remove),
            (self.start, ServiceAction::Start),
            (self.stop, ServiceAction::Stop),
        ]
        .into_iter()
        .find_map(|(is_requested, action)| is_requested.then_some(action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_clap_definition_is_valid() {
        Arguments::command().debug_assert();
    }

    fn parsed(options: &[&str]) -> Result<Command, UsageError> {
        let program = std::iter::once("aspia_relay");
        Arguments::try_parse_from(program.chain(options.iter().copied())).unwrap().to_command()
    }

    fn show(view: RelayReport, interval: Option<Duration>, format: OutputFormat) -> Command {
        Command::UseRelay(RelayAction::Show { view, interval }, format)
    }

    fn act(action: RelayAction, format: OutputFormat) -> Command {
        Command::UseRelay(action, format)
    }

    #[test]
    fn every_option_selects_its_command() {
        for (options, command) in [
            (&[][..], Command::RunRelay),
            (&["--create-config"], Command::CreateConfig),
            (&["--check-config"], Command::CheckConfig(OutputFormat::Text)),
            (&["--check-config", "--json"], Command::CheckConfig(OutputFormat::Json)),
            (&["--healthcheck"], Command::Healthcheck(Probe::Live)),
            (&["--healthcheck", "ready"], Command::Healthcheck(Probe::Ready)),
            (
                &["--doctor", "--running"],
                Command::Doctor { format: OutputFormat::Text, expects_relay: true },
            ),
            (
                &["--doctor", "--json"],
                Command::Doctor { format: OutputFormat::Json, expects_relay: false },
            ),
            (
                &["--node-address", "external-ip", "--output", "address", "--wait-at-most", "20s"],
                Command::NodeAddress(NodeAddressRequest {
                    source: "external-ip".parse().unwrap(),
                    output: Some("address".into()),
                    wait_at_most: Some(Duration::from_secs(20)),
                }),
            ),
            (
                &["--status", "--watch"],
                show(RelayReport::Status, Some(Duration::from_secs(2)), OutputFormat::Text),
            ),
            (&["--status", "--json"], show(RelayReport::Status, None, OutputFormat::Json)),
            (
                &["--sessions"],
                show(
                    RelayReport::Sessions { sort: SessionColumn::Id, filter: None },
                    None,
                    OutputFormat::Text,
                ),
            ),
            (
                &["--sessions", "--sort", "rtt", "--filter", "x", "--watch", "5s"],
                show(
                    RelayReport::Sessions { sort: SessionColumn::Rtt, filter: Some("x".into()) },
                    Some(Duration::from_secs(5)),
                    OutputFormat::Text,
                ),
            ),
            (&["--end-session", "7"], act(RelayAction::EndSession(7), OutputFormat::Text)),
            (&["--drain", "--json"], act(RelayAction::Drain, OutputFormat::Json)),
            (&["--reload"], act(RelayAction::Reload, OutputFormat::Text)),
            (
                &["--log-level", "debug"],
                act(RelayAction::SetLogLevel("debug".into()), OutputFormat::Text),
            ),
            (&["--fd-store"], Command::RunStore),
            (&["--healthcheck", "--fd-store"], Command::CheckStore),
            (&["--fd-store", "--healthcheck"], Command::CheckStore),
            (
                &["--probe", "relay.example.com"],
                Command::Probe("relay.example.com:8070".parse().unwrap(), OutputFormat::Text),
            ),
            (
                &["--probe", "[::1]:9070", "--json"],
                Command::Probe("[::1]:9070".parse().unwrap(), OutputFormat::Json),
            ),
            (&["--install"], Command::ControlService(ServiceAction::Install)),
            (&["--stop"], Command::ControlService(ServiceAction::Stop)),
        ] {
            assert_eq!(parsed(options), Ok(command), "{options:?}");
        }
    }

    #[test]
    fn json_is_refused_for_commands_without_json_output() {
        for options in
            [&["--json"][..], &["--json", "--create-config"], &["--json", "--healthcheck"]]
        {
            assert_eq!(parsed(options), Err(UsageError::NoJson), "{options:?}");
        }
    }

    #[test]
    fn options_that_do_not_fit_together_are_refused() {
        for options in [&["--watch"][..], &["--drain", "--watch"], &["--doctor", "--watch", "3s"]] {
            assert_eq!(parsed(options), Err(UsageError::NothingToWatch), "{options:?}");
        }
        for options in [&["--status", "--filter", "x"][..], &["--sort", "id"]] {
            assert_eq!(parsed(options), Err(UsageError::NoSessions), "{options:?}");
        }
        for options in [
            &["--status", "--sessions"][..],
            &["--sessions", "--sort", "colour"],
            &["--status", "--watch", "0s"],
            &["--end-session"],
            &["--end-session", "-1"],
            &["--drain", "--reload"],
            &["--fd-store", "--drain"],
            &["--probe"],
            &["--probe", "relay:0"],
            &["--probe", "http://relay.example.com"],
            &["--probe", "relay", "--doctor"],
            &["--probe", "relay", "--fd-store"],
        ] {
            let program = std::iter::once("aspia_relay");
            let parsed = Arguments::try_parse_from(program.chain(options.iter().copied()));
            assert_eq!(parsed.unwrap_err().exit_code(), 2, "{options:?}");
        }
    }

    #[test]
    fn help_groups_the_options_and_lists_those_for_windows_only_there() {
        let help = Arguments::command().render_help().to_string();
        for heading in [RUN, LOOK, ACT, SET_UP] {
            assert!(help.contains(&format!("\n{heading}:\n")), "{heading}: {help}");
        }
        assert_eq!(help.contains("--install"), cfg!(windows), "{help}");
        let places: Vec<_> = ["--config", "--status", "--drain", "--create-config"]
            .map(|name| help.find(name))
            .into();
        assert!(places.is_sorted() && places[0].is_some(), "{help}");
    }
}
