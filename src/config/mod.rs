//! The configuration: what the operator wrote ([`raw::RawSettings`]) and what the relay runs with ([`Config`]).
//!
//! [`load`] merges defaults, `relay.json` and the environment through figment, checks everything and reports all
//! problems at once. A [`Config`] that exists is valid: nothing downstream checks a setting again.

pub mod admin_hosts;
pub mod exposed;
mod file;
mod json;
pub mod networks;
pub mod parse;
pub mod raw;
pub mod report;
pub mod settings;
pub mod sources;
mod variables;

use std::net::IpAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::crypto::PublicKey;
use crate::tls::{Part, ServerFiles, Source};

use admin_hosts::AdminHosts;
use networks::Networks;
use parse::{Bandwidth, HostName, ListenAddress, Protocol, Token};
use raw::{DEFAULT, RawSettings, RawValue};
use report::{FileState, Problem, Report};
use sources::Sources;

/// The file that `--create-config` writes: byte for byte what the original writes.
pub const DEFAULT_FILE: &str = r#"{
    "MaxPeerCount": "100",
    "PeerAddress": "",
    "PeerIdleTimeout": "5",
    "PeerPort": "8070",
    "RouterAddress": "127.0.0.1",
    "RouterPort": "8060",
    "RouterPublicKey": "",
    "StatisticsEnabled": "false",
    "StatisticsInterval": "5"
}"#;

/// What stands in a report for a secret.
pub const REDACTED: &str = "(redacted)";

/// Everything that the relay runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What a change of which needs a restart.
    pub startup: Startup,
    /// The Router, and what it is told.
    pub router: RouterConfig,
    /// `MaxPeerCount`: sessions at once.
    pub max_sessions: usize,
    /// `PeerIdleTimeout`.
    pub peer_idle_timeout: Duration,
    /// `MaxSessionDuration`; `None` is no limit.
    pub max_session_duration: Option<Duration>,
    /// `MaxPendingPeers`: connections that are not paired yet.
    pub max_pending_peers: usize,
    /// `MaxPendingPeersPerAddress`: the same, of one address (one IPv4, or one IPv6 /64).
    pub max_pending_peers_per_address: usize,
    /// `PeerConnectRate`: connections a minute and address, and at once; `None` is no limit.
    pub peer_connect_rate: Option<NonZero<u32>>,
    /// `AllowPeers`: from where peers may come; empty is from everywhere.
    pub allow_peers: Networks,
    /// `DenyPeers`: from where they may not, whatever is allowed.
    pub deny_peers: Networks,
    /// `SessionBandwidth`, of each session; `None` is no limit.
    pub session_bandwidth: Option<Bandwidth>,
    /// `TotalBandwidth`, of all sessions together; `None` is no limit.
    pub total_bandwidth: Option<Bandwidth>,
    /// `StatisticsInterval` where `StatisticsEnabled`.
    pub statistics_interval: Option<Duration>,
    /// `DrainTimeout`.
    pub drain_timeout: Duration,
    /// `AdminToken`.
    pub admin_token: Option<Token>,
    /// `AdminHosts`: names by which a proxy in front of the admin interface is known.
    pub admin_hosts: AdminHosts,
    /// `MetricsToken`.
    pub metrics_token: Option<Token>,
    /// `MetricsTlsCertificate`, `MetricsTlsPrivateKey` and `MetricsTlsClientCa`; `None` is no TLS.
    pub metrics_tls: Option<ServerFiles>,
    /// `TracePeerIdentity`.
    pub trace_peer_identity: bool,
    /// `LogPeerIdentity`.
    pub log_peer_identity: bool,
}

/// Settings that wait for a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// `ListenInterface`; `None` is all, IPv4 and IPv6.
    pub listen_interface: Option<IpAddr>,
    /// `ListenPort`, else `PeerPort`.
    pub listen_port: u16,
    /// `AdminListen`; `None` is off.
    pub admin_listen: Option<ListenAddress>,
    /// `MetricsListen`; `None` is off.
    pub metrics_listen: Option<ListenAddress>,
    /// `WorkerThreads`; 0 is as many as the CPU quota allows.
    pub worker_threads: usize,
}

impl Startup {
    /// Threads that forward: `WorkerThreads`, or as many as this process may use processors, by its affinity and by the
    /// quotas of its control groups (both versions).
    pub fn workers(&self) -> usize {
        match self.worker_threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        }
    }
}

/// Settings of the link; a change needs a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// `RouterAddress`.
    pub address: HostName,
    /// `RouterPort`; where that is left out, what goes with the protocol.
    pub port: u16,
    /// `RouterProtocol`.
    pub protocol: Protocol,
    /// `RouterPublicKey`.
    pub public_key: PublicKey,
    /// `PeerAddress`: what peers dial.
    pub peer_address: HostName,
    /// `PeerPort`: what peers dial.
    pub peer_port: u16,
    /// `DisplayName`, cleaned; never empty.
    pub display_name: String,
}

/// A valid configuration and how it came about.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the relay runs with.
    pub config: Config,
    /// Every effective value and where it came from, and what is worth a warning.
    pub report: Report,
}

/// Why there is no configuration: every problem at once.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the configuration has {} problems", .0.problems.len())]
pub struct Invalid(pub Report);

/// Reads and checks the configuration.
///
/// # Errors
/// [`Invalid`] with every problem that was found.
pub fn load(sources: &Sources) -> Result<Loaded, Box<Invalid>> {
    read(sources, false)
}

/// Reads and checks the configuration again, for a relay that runs with the one that `in_force` tells of. A file that
/// was read then must still be there: its absence does not withdraw what stood in it.
///
/// # Errors
/// [`Invalid`] with every problem that was found.
pub fn reload(sources: &Sources, in_force: &Report) -> Result<Loaded, Box<Invalid>> {
    read(sources, in_force.file == FileState::Read)
}

fn read(sources: &Sources, file_was_there: bool) -> Result<Loaded, Box<Invalid>> {
    let mut report = Report::default();
    let raw = RawSettings::collect(sources, file_was_there, &mut report);
    let config = check(&raw, sources, &mut report);
    let is_missing =
        |problem: &Problem| problem.source == NOT_SET && REQUIRED.contains(&problem.key.as_str());
    let missing = report.problems.iter().filter(|problem| is_missing(problem)).count();
    if report.file == FileState::Absent && missing == REQUIRED.len() {
        // Nobody has configured anything yet: one problem, not three.
        report.problems.retain(|problem| !is_missing(problem));
        report.problems.insert(0, nothing(sources));
    } else if report.file == FileState::Absent
        && missing == 0
        && let Some(left) = file::left_by_version_3(&sources.path)
    {
        report.warn(&format!("there is no {}; {left}", sources.path.display()));
    }
    match config {
        Some(config) if report.problems.is_empty() => Ok(Loaded { config, report }),
        _ => Err(Box::new(Invalid(report))),
    }
}

fn check(raw: &RawSettings, sources: &Sources, report: &mut Report) -> Option<Config> {
    use parse::{boolean, duration, host, interface, number, old_boolean, protocol, public_key};

    let mut get = Getter { raw, sources, report };
    let address = get.required("RouterAddress", host);
    let public_key = get.required("RouterPublicKey", public_key);
    let peer_address = get.required("PeerAddress", parse::peer_address);
    let port = get.value("RouterPort", number(1, u16::MAX));
    let protocol = get.value("RouterProtocol", protocol);
    let peer_port: Option<u16> = get.value("PeerPort", number(1, u16::MAX));
    let listen_port = get.optional("ListenPort", number(1, u16::MAX));
    let listen_interface = get.optional("ListenInterface", interface).map(Option::flatten);
    let worker_threads = get.value("WorkerThreads", number(0, 256));
    let display_name = get.optional("DisplayName", parse::text);
    let max_sessions = get.value("MaxPeerCount", number(1, 100_000));
    let idle_minutes: Option<u64> = get.value("PeerIdleTimeout", number(1, 60));
    let max_session_duration = get.value("MaxSessionDuration", duration);
    let max_pending_peers = get.value("MaxPendingPeers", number(1, 1_000_000));
    let max_pending_peers_per_address =
        get.value("MaxPendingPeersPerAddress", number(1, 1_000_000));
    let peer_connect_rate = get.value("PeerConnectRate", number(0, 1_000_000));
    let allow_peers = get.optional("AllowPeers", Networks::parse);
    let deny_peers = get.optional("DenyPeers", Networks::parse);
    let session_bandwidth = get.optional("SessionBandwidth", parse::bandwidth);
    let total_bandwidth = get.optional("TotalBandwidth", parse::bandwidth);
    let statistics_enabled = get.value("StatisticsEnabled", old_boolean);
    let statistics_seconds: Option<u64> = get.value("StatisticsInterval", number(1, 3600));
    let drain_timeout = get.value("DrainTimeout", duration);
    let trace_peer_identity = get.value("TracePeerIdentity", boolean);
    let log_peer_identity = get.value("LogPeerIdentity", boolean);
    let mut admin_listen = get.optional("AdminListen", parse::listen_address).map(Option::flatten);
    let metrics_listen = get.optional("MetricsListen", parse::listen_address).map(Option::flatten);
    let admin_token = get.optional("AdminToken", parse::token);
    let admin_hosts = get.optional("AdminHosts", AdminHosts::parse);
    let metrics_token = get.optional("MetricsToken", parse::token);
    let metrics_tls = get.metrics_tls();

    if let (Some(Some(listen)), Some(None)) = (admin_listen, &admin_token)
        && !listen.is_loopback()
    {
        report.problems.push(Problem {
            key: "AdminToken".into(),
            value: None,
            source: NOT_SET.into(),
            expected: format!(
                "a token, since AdminListen {listen} can be reached from other machines; \
                 or AdminListen on 127.0.0.1, or off"
            ),
        });
    }
    if let (Some(Some(admin)), Some(Some(metrics))) = (admin_listen, metrics_listen)
        && admin.port == metrics.port
    {
        report.problems.push(Problem {
            key: "MetricsListen".into(),
            value: Some(metrics.to_string()),
            source: "with AdminListen".into(),
            expected: "another port than that of AdminListen (which serves /metrics, too)".into(),
        });
    }
    let peers = listen_port.flatten().or(peer_port);
    if let Some(Some(listen)) = admin_listen
        && Some(listen.port) == peers
        && raw.get("AdminListen").is_some_and(|value| value.source == DEFAULT)
    {
        // A file of the original knows of no other port than that of peers.
        admin_listen = Some(None);
        report.set_effective("AdminListen", "off", "peers dial its port");
        report.warn(&format!(
            "AdminListen is off, since peers dial the port of its default, {listen}: set it to another"
        ));
    }
    for (key, listen) in [("AdminListen", admin_listen), ("MetricsListen", metrics_listen)] {
        if let Some(Some(listen)) = listen
            && Some(listen.port) == peers
        {
            report.problems.push(Problem {
                key: key.into(),
                value: Some(listen.to_string()),
                source: "with ListenPort, or PeerPort where that is not set".into(),
                expected: "another port than the one that peers dial, or off".into(),
            });
        }
    }
    for (key, listen, token, remedy) in [
        (
            "AdminToken",
            admin_listen,
            &admin_token,
            "put a proxy with TLS in front, or AdminListen on 127.0.0.1",
        ),
        (
            "MetricsToken",
            metrics_listen,
            &metrics_token,
            "set MetricsTlsCertificate and MetricsTlsPrivateKey",
        ),
    ] {
        let over_tls = key == "MetricsToken" && matches!(metrics_tls, Some(Some(_)));
        if let (Some(Some(listen)), Some(Some(_)), false) = (listen, token, over_tls)
            && !listen.is_loopback()
        {
            report.warn(&format!(
                "{key} travels to {listen} without TLS: whoever is on the way can read it; {remedy}"
            ));
        }
    }
    if let (Some(Some(_)), Some(None)) = (&admin_hosts, &admin_token) {
        report.warnings.push(
            "AdminHosts is set without AdminToken: whoever reaches the proxy can see and stop everything, unless the \
             proxy asks for a password itself"
                .into(),
        );
    }
    if let (Some(None), Some(Some(_))) = (metrics_listen, &metrics_token) {
        report.warn("MetricsToken is set, but MetricsListen is off");
    }
    if let (Some(None), Some(Some(_))) = (metrics_listen, &metrics_tls) {
        report.warn("MetricsTlsCertificate is set, but MetricsListen is off");
    }

    if statistics_seconds > Some(60) {
        report.warn(&format!(
            "StatisticsInterval is documented up to 60 s; {} s are taken, as the original does",
            statistics_seconds.unwrap_or_default()
        ));
    }
    if let (Some(Some(allow)), Some(Some(deny))) = (&allow_peers, &deny_peers)
        && !allow.is_empty()
        && allow.is_within(deny)
    {
        report.warn(&format!(
            "DenyPeers {deny} covers all of AllowPeers {allow}: no peer is let in, since what is denied wins"
        ));
    }
    if peer_address.as_ref().is_some_and(HostName::is_loopback) {
        report.warn(
            "PeerAddress is a loopback address: only peers on this machine can reach the relay. \
             Set it to the address that Clients and Hosts dial",
        );
    }
    let display_name = display_name.map(|name: Option<String>| {
        let host_name = gethostname::gethostname();
        parse::computer_name(name.as_deref().unwrap_or(&host_name.to_string_lossy()))
    });
    if let Some(name) = &display_name {
        report.set_effective("DisplayName", name, "host name");
    }
    if let (Some(None), Some(port)) = (listen_port, peer_port) {
        report.set_effective("ListenPort", &port.to_string(), "PeerPort");
    }
    let mut port = port;
    let port_is_given = raw.get("RouterPort").is_some_and(|value| value.source != DEFAULT);
    if let Some(Protocol::Only(generation)) = protocol
        && !port_is_given
        && port != Some(generation.port)
    {
        port = Some(generation.port);
        let because = format!("RouterProtocol is {}", generation.number);
        report.set_effective("RouterPort", &generation.port.to_string(), &because);
    }
    let peer_port = peer_port?;
    Some(Config {
        startup: Startup {
            listen_interface: listen_interface?,
            listen_port: listen_port?.unwrap_or(peer_port),
            admin_listen: admin_listen?,
            metrics_listen: metrics_listen?,
            worker_threads: worker_threads?,
        },
        router: RouterConfig {
            address: address?,
            port: port?,
            protocol: protocol?,
            public_key: public_key?,
            peer_address: peer_address?,
            peer_port,
            display_name: display_name?,
        },
        max_sessions: max_sessions?,
        peer_idle_timeout: Duration::from_secs(60 * idle_minutes?),
        max_session_duration: max_session_duration.map(|d| (!d.is_zero()).then_some(d))?,
        max_pending_peers: max_pending_peers?,
        max_pending_peers_per_address: max_pending_peers_per_address?,
        peer_connect_rate: peer_connect_rate.map(NonZero::new)?,
        allow_peers: allow_peers?.unwrap_or_default(),
        deny_peers: deny_peers?.unwrap_or_default(),
        session_bandwidth: session_bandwidth?,
        total_bandwidth: total_bandwidth?,
        statistics_interval: statistics_enabled?
            .then_some(Duration::from_secs(statistics_seconds?)),
        drain_timeout: drain_timeout?,
        admin_token: admin_token?,
        admin_hosts: admin_hosts?.unwrap_or_default(),
        metrics_token: metrics_token?,
        metrics_tls: metrics_tls?,
        trace_peer_identity: trace_peer_identity?,
        log_peer_identity: log_peer_identity?,
    })
}

/// Takes settings out of the raw ones and notes what it saw.
struct Getter<'a> {
    raw: &'a RawSettings,
    sources: &'a Sources,
    report: &'a mut Report,
}

impl Getter<'_> {
    /// A setting that must be given. `None` after a problem was noted.
    fn required<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.raw.get(key);
        if value.is_none_or(|value| value.text.trim().is_empty()) {
            self.report.set(key, "", NOT_SET);
            // What a file says that cannot be used is not known: it may well be set there. And one problem with a
            // key is enough.
            let known = value.is_some() || self.report.file != FileState::Unusable;
            if known && self.report.problems.iter().all(|problem| problem.key != key) {
                let problem = missing(key, value, self.report.file, self.sources);
                self.report.problems.push(problem);
            }
            return None;
        }
        self.value(key, parse)
    }

    /// A setting that may be empty. `Some(None)` where it is; `None` after a problem was noted.
    fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        match self.raw.get(key) {
            Some(value) if !value.text.is_empty() => self.value(key, parse).map(Some),
            value => {
                self.report.set(key, "", value.map_or(DEFAULT, |value| &value.source));
                Some(None)
            }
        }
    }

    /// A setting with a value. `None` after a problem was noted.
    fn value<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.raw.get(key)?;
        match parse(&value.text) {
            Ok(parsed) => {
                let secret = settings::find(key).is_some_and(|setting| setting.secret);
                let shown = if secret { REDACTED } else { &value.text };
                self.report.set(key, shown, &value.source);
                Some(parsed)
            }
            Err(expected) => {
                let shown = (!value.confidential).then(|| value.text.clone());
                self.report.set(key, shown.as_deref().unwrap_or("not shown"), &value.source);
                self.report.problems.push(Problem {
                    key: key.into(),
                    value: shown,
                    source: value.source.clone(),
                    expected,
                });
                None
            }
        }
    }
}

impl Getter<'_> {
    /// The settings of TLS, whose files are read to see that they are good. `Some(None)` where there is to be none;
    /// `None` after a problem was noted.
    fn metrics_tls(&mut self) -> Option<Option<ServerFiles>> {
        let certificate = self.pem(Part::Certificate);
        let private_key = self.pem(Part::PrivateKey);
        let client_ca = self.pem(Part::ClientCa);
        let (certificate, private_key) = match (certificate, private_key) {
            (None, None) if client_ca.is_none() => return Some(None),
            (Some(certificate), Some(private_key)) => (certificate, private_key),
            (certificate, _) => {
                let missing =
                    if certificate.is_none() { Part::Certificate } else { Part::PrivateKey };
                let file = format!(
                    "a PEM file, since other settings of TLS are set; MetricsTlsCertificate and \
                     MetricsTlsPrivateKey go together ({})",
                    settings::variable(tls_key(missing))
                );
                self.tls_problem(missing, file);
                return None;
            }
        };
        let files = ServerFiles { certificate, private_key, client_ca };
        match files.load() {
            Ok(server) => {
                if let Some(complaint) = server.valid.complaint(SystemTime::now()) {
                    self.report.warn(&format!("MetricsTlsCertificate {complaint}"));
                }
                // It was read: what looked as if it might be half a key is a path.
                if let Source::File(path) = &files.private_key {
                    let key = tls_key(Part::PrivateKey);
                    self.report.set_effective(key, &path.display().to_string(), "");
                }
                Some(Some(files))
            }
            Err(error) => {
                self.tls_problem(error.part, error.expected);
                None
            }
        }
    }

    fn pem(&mut self, part: Part) -> Option<Source> {
        let key = tls_key(part);
        let value = self.raw.get(key).filter(|value| !value.text.trim().is_empty());
        let shown = value.map_or("", |value| shown_pem(part, &value.text).unwrap_or(REDACTED));
        self.report.set(key, shown, value.map_or(DEFAULT, |value| &value.source));
        value.map(|value| Source::new(value.text.trim()))
    }

    fn tls_problem(&mut self, part: Part, mut expected: String) {
        let key = tls_key(part);
        let value = self.raw.get(key);
        if let Some(Source::File(path)) = value.map(|value| Source::new(&value.text))
            && let Err(error) = std::fs::File::open(&path)
        {
            expected += &file::how_to_read(&error, &path, self.sources);
        }
        self.report.problems.push(Problem {
            key: key.into(),
            value: value.and_then(|value| shown_pem(part, &value.text)).map(ToOwned::to_owned),
            source: value.map_or_else(|| NOT_SET.to_owned(), |value| value.source.clone()),
            expected,
        });
    }
}

/// The setting of a part of TLS.
pub fn tls_key(part: Part) -> &'static str {
    match part {
        Part::Certificate => "MetricsTlsCertificate",
        Part::PrivateKey => "MetricsTlsPrivateKey",
        Part::ClientCa | Part::Authorities => "MetricsTlsClientCa",
    }
}

/// What is shown of a setting that is PEM or a path.
fn shown_pem(part: Part, text: &str) -> Option<&str> {
    match (Source::new(text), part) {
        // Half a key, such as its base64 alone, must not be shown for a path: no base64 begins so.
        (Source::File(path), Part::PrivateKey) => {
            (path.is_absolute() || text.starts_with('.')).then_some(text)
        }
        (Source::File(_), _) => Some(text),
        (Source::Inline(_), Part::PrivateKey) => None,
        (Source::Inline(_), _) => Some("(PEM)"),
    }
}

/// The source of a value that nobody gave.
const NOT_SET: &str = "not set";

/// Settings that somebody must give.
const REQUIRED: [&str; 3] = ["RouterAddress", "RouterPublicKey", "PeerAddress"];

/// The problem of a relay that nobody has configured.
fn nothing(sources: &Sources) -> Problem {
    let variables = REQUIRED.map(settings::variable).join(", ");
    Problem {
        key: String::new(),
        value: None,
        source: "nothing is set".into(),
        expected: format!(
            "{} in {} (which does not exist; {}), or in the environment as {variables}",
            REQUIRED.join(", "),
            sources.path.display(),
            file::how_to_get(sources)
        ),
    }
}

/// A required setting that nobody gave.
fn missing(
    key: &'static str,
    value: Option<&RawValue>,
    file: FileState,
    sources: &Sources,
) -> Problem {
    let variable = settings::variable(key);
    let path = sources.path.display();
    let (source, file) = match (value, file) {
        (Some(value), _) => (value.source.clone(), String::new()),
        (None, FileState::Absent) => {
            let note = format!(" ({path} does not exist; {})", file::how_to_get(sources));
            (NOT_SET.to_owned(), note)
        }
        (None, _) => (format!("file {path}"), String::new()),
    };
    let what = match key {
        "RouterAddress" => "the Router's host name or address",
        "RouterPublicKey" => {
            "the content of the Router's router.pub (of a Router that was set up as 3.x: relay.pub)"
        }
        _ => "the host name or address that Clients and Hosts dial",
    };
    Problem {
        key: key.into(),
        value: None,
        source,
        expected: format!(
            "{what}; required, in relay.json or as {variable} or {variable}_FILE{file}"
        ),
    }
}

/// Why the default file was not written.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is one already, whatever is in it.
    #[error("{0} exists already and is not overwritten; remove it first, or edit it")]
    Exists(PathBuf),
    /// There is a link to a file that does not exist.
    #[error("{0} is a link to a file that does not exist; remove it, or make that file")]
    Dangling(PathBuf),
    /// It cannot be written.
    #[error("cannot write {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

impl CreateError {
    /// What to do about it, to stand behind the error; empty where that says it all.
    pub fn advice(&self, in_container: bool) -> &'static str {
        match self {
            Self::Io { error, .. } => file::how_to_write(error, in_container),
            Self::Exists(_) | Self::Dangling(_) => "",
        }
    }
}

/// Writes the default file, and its directory where that is missing.
///
/// # Errors
/// [`CreateError`].
pub fn create_default(path: &Path) -> Result<(), CreateError> {
    use std::io::Write;

    let failed = |error| CreateError::Io { path: path.to_owned(), error };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    match std::fs::File::create_new(path) {
        Ok(mut file) => file.write_all(DEFAULT_FILE.as_bytes()).map_err(|error| {
            // Half a file would only stand in the way of the next try.
            let _ = std::fs::remove_file(path);
            failed(error)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => match path.exists() {
            true => Err(CreateError::Exists(path.to_owned())),
            false => Err(CreateError::Dangling(path.to_owned())),
        },
        Err(error) => Err(failed(error)),
    }
}

impl Config {
    /// The keys whose values in force differ.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (old, new) = (self, other);
        let tls = |config: &Self| match config.metrics_tls.clone() {
            Some(files) => (Some(files.certificate), Some(files.private_key), files.client_ca),
            None => (None, None, None),
        };
        [
            ("RouterAddress", old.router.address != new.router.address),
            ("RouterPort", old.router.port != new.router.port),
            ("RouterProtocol", old.router.protocol != new.router.protocol),
            ("RouterPublicKey", old.router.public_key != new.router.public_key),
            ("ListenInterface", old.startup.listen_interface != new.startup.listen_interface),
            ("PeerAddress", old.router.peer_address != new.router.peer_address),
            ("PeerPort", old.router.peer_port != new.router.peer_port),
            ("PeerIdleTimeout", old.peer_idle_timeout != new.peer_idle_timeout),
            ("MaxPeerCount", old.max_sessions != new.max_sessions),
            (
                "StatisticsEnabled",
                old.statistics_interval.is_some() != new.statistics_interval.is_some(),
            ),
            (
                "StatisticsInterval",
                old.statistics_interval.is_some()
                    && new.statistics_interval.is_some()
                    && old.statistics_interval != new.statistics_interval,
            ),
            ("ListenPort", old.startup.listen_port != new.startup.listen_port),
            ("DisplayName", old.router.display_name != new.router.display_name),
            ("DrainTimeout", old.drain_timeout != new.drain_timeout),
            ("MaxSessionDuration", old.max_session_duration != new.max_session_duration),
            ("MaxPendingPeers", old.max_pending_peers != new.max_pending_peers),
            (
                "MaxPendingPeersPerAddress",
                old.max_pending_peers_per_address != new.max_pending_peers_per_address,
            ),
            ("PeerConnectRate", old.peer_connect_rate != new.peer_connect_rate),
            ("AllowPeers", old.allow_peers != new.allow_peers),
            ("DenyPeers", old.deny_peers != new.deny_peers),
            ("SessionBandwidth", old.session_bandwidth != new.session_bandwidth),
            ("TotalBandwidth", old.total_bandwidth != new.total_bandwidth),
            ("AdminListen", old.startup.admin_listen != new.startup.admin_listen),
            ("AdminToken", old.admin_token != new.admin_token),
            ("AdminHosts", old.admin_hosts != new.admin_hosts),
            ("MetricsListen", old.startup.metrics_listen != new.startup.metrics_listen),
            ("MetricsToken", old.metrics_token != new.metrics_token),
            ("MetricsTlsCertificate", tls(old).0 != tls(new).0),
            ("MetricsTlsPrivateKey", tls(old).1 != tls(new).1),
            ("MetricsTlsClientCa", tls(old).2 != tls(new).2),
            ("WorkerThreads", old.startup.worker_threads != new.startup.worker_threads),
            ("TracePeerIdentity", old.trace_peer_identity != new.trace_peer_identity),
            ("LogPeerIdentity", old.log_peer_identity != new.log_peer_identity),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// What of a newly read configuration can be applied to a relay that runs with `self`: everything but
    /// the settings of [`Startup`], and the port that peers dial where it is the one listened on.
    /// Gives the keys that wait for a restart.
    pub fn reloaded(&self, new: &Self) -> (Self, Vec<&'static str>) {
        let mut applied = Self { startup: self.startup.clone(), ..new.clone() };
        if new.startup.listen_port != self.startup.listen_port
            && new.startup.listen_port == new.router.peer_port
        {
            // Peers must not be sent to a port where nobody listens yet.
            applied.router.peer_port = self.router.peer_port;
        }
        // A socket that stays open until the restart keeps its token: without it, it would be open to everybody.
        if new.startup.admin_listen != self.startup.admin_listen && new.admin_token.is_none() {
            applied.admin_token.clone_from(&self.admin_token);
        }
        if new.startup.metrics_listen != self.startup.metrics_listen && new.metrics_token.is_none()
        {
            applied.metrics_token.clone_from(&self.metrics_token);
        }
        // The same goes for its demand on certificates.
        if new.startup.metrics_listen != self.startup.metrics_listen {
            applied.metrics_tls.clone_from(&self.metrics_tls);
        }
        let waiting = new.differences(&applied);
        (applied, waiting)
    }

    /// Whether going from `self` to `new` needs a new link, since the Router was told something else.
    /// A lower `MaxPeerCount` needs one where more is on offer than there is room for now, which the state
    /// knows: `Counts::too_much_on_offer`.
    pub fn needs_new_link(&self, new: &Self) -> bool {
        self.router != new.router
    }
}
