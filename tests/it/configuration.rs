//! Every rule of the configuration, which is loaded as when the relay starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aspia_relay::config::sources::{DEFAULT_PATH, Sources};
use aspia_relay::config::{self, Config, InvalidConfig, LoadedConfig, settings};
#[cfg(target_os = "linux")]
use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::printable;
use tempfile::TempDir;

const KEY: &str = include_str!("../vectors/router.pub");

/// A directory with a `relay.json`, and an environment.
struct Case {
    directory: TempDir,
    environment: Vec<(String, String)>,
}

impl Case {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    fn file(self, content: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.path(), content).unwrap();
        self
    }

    /// Writes a complete file, with `more` members.
    fn complete(self, more: &str) -> Self {
        let more = if more.is_empty() { String::new() } else { format!(", {more}") };
        self.file(format!(
            r#"{{"RouterAddress": "r.example", "RouterPublicKey": "{KEY}", "PeerAddress": "p.example"{more}}}"#
        ))
    }

    fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn secret_file(self, name: &str, content: &str) -> Self {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        self.variable(name, path.display().to_string())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("relay.json")
    }

    fn sources(&self) -> Sources {
        let environment = self.environment.clone();
        Sources { path: self.path(), is_path_explicit: false, environment }
    }

    fn load(&self) -> Result<LoadedConfig, Box<InvalidConfig>> {
        config::load(&self.sources())
    }

    /// Puts the required settings into the environment.
    fn required(self) -> Self {
        self.variable("ASPIA_RELAY_ROUTER_ADDRESS", "r.example")
            .variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY)
            .variable("ASPIA_RELAY_PEER_ADDRESS", "p.example")
    }

    fn warnings(&self) -> Vec<String> {
        self.load().unwrap_or_else(|invalid| panic!("{:#?}", invalid.0.problems)).report.warnings
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|invalid| panic!("{:#?}", invalid.0.problems)).config
    }

    /// All problems, one line each.
    fn problems(&self) -> Vec<String> {
        let invalid = self.load().expect_err("must not be valid");
        invalid.0.problems.iter().map(ToString::to_string).collect()
    }

    /// Asserts that there is exactly one problem and that its text contains all `parts`.
    fn problem(&self, parts: &[&str]) {
        let problems = self.problems();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        for part in parts {
            assert!(problems[0].contains(part), "{part:?} is not in {:?}", problems[0]);
        }
    }

    fn source(&self, key: &str) -> String {
        let report = self.load().unwrap().report;
        report.settings.into_iter().find(|line| line.key == key).unwrap().source.to_string()
    }
}

#[test]
fn defaults_are_as_documented() {
    let config = Case::new().complete("").config();
    assert_eq!(config.router.address.as_str(), "r.example");
    assert_eq!(config.router.peer_address.as_str(), "p.example");
    assert_eq!((config.router.port, config.router.peer_port), (8060, 8070));
    assert_eq!((config.startup.listen_interface, config.startup.listen_port), (None, 8070));
    assert_eq!(config.startup.worker_threads, 0);
    assert_eq!(config.startup.fd_store, None);
    assert_eq!(config.startup.fd_store_timeout, Duration::from_secs(60));
    assert_eq!(config.max_sessions, 100);
    assert_eq!(config.peer_idle_timeout, Duration::from_secs(300));
    assert_eq!(config.max_session_duration, None);
    assert_eq!(config.max_pending_peers, 1024);
    assert_eq!(config.statistics_period(), None);
    assert_eq!(config.drain_timeout, Duration::from_secs(25));
    assert!(!config.log_peer_identity);
    assert!(config.offer_by_load);
    assert!(!config.router.display_name.is_empty());
}

#[test]
fn strings_numbers_and_booleans_mean_the_same() {
    let strings = Case::new()
        .complete(r#""PeerPort": "9000", "StatisticsEnabled": "true", "StatisticsInterval": "7""#)
        .config();
    let plain = Case::new()
        .complete(r#""PeerPort": 9000, "StatisticsEnabled": true, "StatisticsInterval": 7"#)
        .config();
    assert_eq!(strings, plain);
    assert_eq!(strings.statistics_period(), Some(Duration::from_secs(7)));
    assert_eq!(strings.startup.listen_port, 9000);
}

#[test]
fn environment_overrides_the_file_and_secret_files_are_trimmed() {
    let case = Case::new()
        .complete(r#""PeerPort": 9000, "MaxPeerCount": 7"#)
        .variable("ASPIA_RELAY_PEER_PORT", "9001")
        .variable("ASPIA_RELAY_MAX_PEER_COUNT", "")
        .variable("ASPIA_RELAY_DISPLAY_NAME", "0123")
        .secret_file(
            "ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE",
            &format!("\n {} \n", KEY.to_lowercase()),
        );
    let config = case.config();
    assert_eq!(config.router.peer_port, 9001);
    assert_eq!(config.max_sessions, 7, "an empty variable counts as unset");
    assert_eq!(config.router.display_name, "0123", "a value is taken as it is");
    assert_eq!(config.router.public_key.to_string(), KEY);
    assert_eq!(case.source("PeerPort"), "environment variable ASPIA_RELAY_PEER_PORT");
    assert!(case.source("RouterPublicKey").contains("named by ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE"));
    assert_eq!(case.source("MaxPeerCount"), format!("file {}", case.path().display()));
    assert_eq!(case.source("RouterPort"), "default");
    assert_eq!(case.source("ListenPort"), "default (PeerPort)");
}

#[test]
fn no_file_is_needed_if_the_environment_is_complete() {
    let case = Case::new()
        .variable("ASPIA_RELAY_ROUTER_ADDRESS", "::1")
        .variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY)
        .variable("ASPIA_RELAY_PEER_ADDRESS", "p.example");
    assert_eq!(case.config().router.address.as_str(), "::1");
    let no_file = case.load().unwrap().report.absent_file_note().unwrap();
    assert!(no_file.contains(&case.path().display().to_string()), "{no_file}");
    assert_eq!(case.file("{}").load().unwrap().report.absent_file_note(), None);
}

#[test]
fn all_problems_are_reported_at_once_with_their_sources() {
    let case = Case::new()
        .file(
            r#"{"PeerPort": "0", "RouterPublicKey": "12", "PeerAddres": "x", "MaxPeerCount": []}"#,
        )
        .variable("ASPIA_RELAY_DRAIN_TIMEOUT", "25");
    let problems = case.problems().join("\n");
    let path = case.path().display().to_string();
    for expected in [
        &format!(r#"PeerPort = "0" (file {path}): expected a whole number from 1 to 65535"#),
        r#"RouterPublicKey = "12""#,
        "did you mean PeerAddress?",
        "MaxPeerCount",
        r#"DrainTimeout = "25" (environment variable ASPIA_RELAY_DRAIN_TIMEOUT): expected a duration"#,
        "RouterAddress",
        "ASPIA_RELAY_PEER_ADDRESS_FILE",
    ] {
        assert!(problems.contains(expected), "{expected:?} is not in\n{problems}");
    }
}

#[test]
fn missing_configuration_is_one_problem_with_instructions() {
    let case = Case::new();
    let problems = case.problems();
    // A single problem names every missing setting.
    assert_eq!(problems.len(), 1, "{problems:#?}");
    for part in [
        "RouterAddress, RouterPublicKey, PeerAddress in ",
        "does not exist; --create-config writes one",
        "ASPIA_RELAY_ROUTER_ADDRESS, ASPIA_RELAY_ROUTER_PUBLIC_KEY, ASPIA_RELAY_PEER_ADDRESS",
    ] {
        assert!(problems[0].contains(part), "{}", problems[0]);
    }
    let problems = case.variable("ASPIA_RELAY_PEER_ADDRESS", "192.0.2.1").problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].contains("does not exist; --create-config writes one"), "{}", problems[0]);
    // The operator has tried to configure something, so that is reported, too.
    let case = Case::new().variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", "/nonexistent");
    assert!(case.problems().join("\n").contains("/nonexistent"), "{:#?}", case.problems());
}

#[test]
fn default_file_lacks_two_required_values() {
    let problems = Case::new().file(config::DEFAULT_FILE).problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems.iter().any(|p| p.starts_with("RouterPublicKey")), "{problems:#?}");
    assert!(problems.iter().any(|p| p.starts_with("PeerAddress")), "{problems:#?}");
}

#[test]
fn files_that_are_not_a_json_object_are_rejected() {
    for (content, expected) in [
        (&b""[..], "one JSON object"),
        (b"[]", "one JSON object"),
        (b"{", "one JSON object"),
        (b"{} {}", "one JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{\"RouterAddress\": 1,}", "one JSON object"),
    ] {
        let problems = Case::new().file(content).problems();
        assert!(problems[0].contains(expected), "{problems:#?}");
    }
    let case = Case::new();
    std::fs::create_dir(case.path()).unwrap();
    // The content is unknown, so no setting is reported as missing.
    case.problem(&["a file that"]);
    Case::new().file("{").problem(&["one JSON object"]);
    let large = Case::new().file(vec![b' '; 1024 * 1024 + 1]).problems();
    assert!(large[0].contains("larger than"), "{large:#?}");
}

#[test]
fn values_of_the_wrong_json_type_are_rejected() {
    for value in ["null", "[8070]", r#"{"a": 1}"#] {
        Case::new()
            .complete(&format!(r#""PeerPort": {value}"#))
            .problem(&["PeerPort", "a string, a number, true or false"]);
    }
    for value in ["8070.5", "-1", "1e9", "true", "\"80 70\"", "70000"] {
        Case::new().complete(&format!(r#""PeerPort": {value}"#)).problem(&["1 to 65535"]);
    }
}

#[test]
fn every_setting_rejects_invalid_values() {
    for (key, value, expected) in [
        ("RouterAddress", "r.example:8060", "the port is a setting of its own"),
        ("RouterAddress", "[::1]", "without brackets"),
        ("RouterAddress", "a b", "host name"),
        ("PeerAddress", "0.0.0.0", "that peers can dial"),
        ("RouterPort", "0", "from 1 to 65535"),
        ("RouterPublicKey", "xyz", "64 hex digits"),
        ("ListenInterface", "eth0", "IP address"),
        ("ListenPort", "65536", "from 1 to 65535"),
        ("PeerIdleTimeout", "0", "from 1 to 60"),
        ("PeerIdleTimeout", "61", "from 1 to 60"),
        ("MaxPeerCount", "0", "from 1 to 100000"),
        ("MaxPeerCount", "100001", "from 1 to 100000"),
        ("StatisticsEnabled", "yes", "true or false"),
        ("StatisticsInterval", "0", "from 1 to 3600"),
        ("StatisticsInterval", "3601", "from 1 to 3600"),
        ("RouterProtocol", "4", "auto, 2 or 3"),
        ("DrainTimeout", "10", "with a unit"),
        ("MaxSessionDuration", "1 fortnight", "with a unit"),
        ("MaxPendingPeers", "0", "from 1"),
        ("MaxPendingPeersPerAddress", "0", "from 1"),
        ("PeerConnectRate", "-1", "from 0"),
        ("AllowPeers", "10.0.0.0/33", "CIDR"),
        ("AdminHosts", "https://relays.example.net", "host names"),
        ("DenyPeers", "10.1.0.0/8", "10.0.0.0/8"),
        ("SessionBandwidth", "4MiB", "such as 500KiB/s"),
        ("TotalBandwidth", "1B/s", "from 8KiB/s"),
        ("WorkerThreads", "257", "from 0 to 256"),
        ("FdStore", "run/store.sock", "an absolute path"),
        ("FdStore", "@", "@ and a name of ASCII letters"),
        ("FdStoreTimeout", "60", "with a unit"),
        ("LogPeerIdentity", "1", "true or false"),
    ] {
        let case = Case::new().complete("").variable(&settings::variable(key), value);
        case.problem(&[key, value, expected, &settings::variable(key)]);
    }
    for byte in ["00", "ff"] {
        let key = byte.repeat(32);
        let case = Case::new().complete("").variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", key);
        if byte == "00" {
            case.problem(&["this is not a public key"]);
        } else {
            case.config();
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn descriptor_store_is_off_a_path_or_a_name() {
    let store = |value: &str| {
        let case = Case::new().complete(&format!(r#""FdStore": "{value}""#));
        let case = case.variable("container", "docker");
        let loaded = case.load().unwrap();
        (loaded.config.startup.fd_store, loaded.report.warnings)
    };
    for off in ["off", "OFF"] {
        assert_eq!(store(off), (None, Vec::new()));
    }
    let (path, warnings) = store("/run/aspia-relay/store.sock");
    assert_eq!(path, Some(StoreAddress::Path("/run/aspia-relay/store.sock".into())));
    assert_eq!(warnings, [""; 0]);
    let (name, warnings) = store("@aspia-relay-8070");
    assert_eq!(name, Some(StoreAddress::Abstract("aspia-relay-8070".to_owned())));
    assert!(warnings[0].contains("set AdminToken"), "{warnings:?}");
    let with_token = r#""FdStore": "@aspia-relay-8070", "AdminToken": "t", "FdStoreTimeout": "2s""#;
    let case = Case::new().variable("container", "docker");
    let warnings = case.complete(with_token).load().unwrap().report.warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("FdStoreTimeout 2s is short"), "{warnings:?}");
}

#[test]
fn unknown_and_repeated_keys_are_rejected_and_comments_are_ignored() {
    Case::new().complete(r#""RouterPubKey": "x""#).problem(&["did you mean RouterPublicKey?"]);
    Case::new().complete(r#""Zebra": "x""#).problem(&["begins with _"]);
    Case::new().complete(r#""PeerAddress": "q.example""#).problem(&["this one appears twice"]);
    Case::new().complete(r#""_comment": {"any": ["thing"]}, "_comment": 2"#).config();
}

#[test]
fn lists_are_arrays_or_strings_with_commas() {
    let config = Case::new().complete(r#""DenyPeers": ["192.0.2.0/24", "2001:db8::/32"]"#).config();
    assert_eq!(config.deny_peers.to_string(), "192.0.2.0/24, 2001:db8::/32");
    let config = Case::new().complete(r#""AllowPeers": "192.0.2.0/24,10.0.0.1""#).config();
    assert_eq!(config.allow_peers.to_string(), "10.0.0.1/32, 192.0.2.0/24");
    assert!(Case::new().complete(r#""AllowPeers": []"#).config().allow_peers.is_empty());
    Case::new()
        .complete(r#""AllowPeers": ["10.0.0.0/8", 5]"#)
        .problem(&["array of non-empty strings"]);
    Case::new().complete(r#""AllowPeers": [""]"#).problem(&["non-empty"]);
    Case::new().complete("").variable("ASPIA_RELAY_ALLOW_PEERS", ",").problem(&["is neither"]);
    Case::new().complete(r#""AllowPeers": {"a": 1}"#).problem(&["array of non-empty strings"]);
    Case::new().complete(r#""MaxPeerCount": [1]"#).problem(&["a string, a number"]);
}

#[test]
fn limits_on_addresses_and_bandwidth_have_defaults() {
    let config = Case::new().complete("").config();
    assert_eq!(config.max_pending_peers_per_address, 64);
    assert_eq!(config.peer_connect_rate.map(std::num::NonZero::get), Some(300));
    assert!(config.allow_peers.is_empty() && config.deny_peers.is_empty());
    assert_eq!((config.session_bandwidth, config.total_bandwidth), (None, None));
    let config = Case::new().complete(r#""PeerConnectRate": 0"#).config();
    assert_eq!(config.peer_connect_rate, None);
}

#[test]
fn proxy_protocol_from_everywhere_causes_a_warning() {
    let warnings = |networks: &str| {
        let settings = format!(r#""ProxyProtocolFrom": [{networks}]"#);
        Case::new().complete(&settings).warnings()
    };
    assert_eq!(warnings(r#""192.0.2.0/24", "2001:db8::/32""#), [""; 0]);
    for everywhere in ["0.0.0.0/0", "::/0"] {
        let found = warnings(&format!(r#""192.0.2.1", "{everywhere}""#));
        assert!(
            found[0].contains(&format!("contains {everywhere}: anyone can claim")),
            "{found:?}"
        );
    }
}

#[test]
fn limit_of_one_user_that_is_never_reached_causes_a_warning() {
    let config = Case::new().complete("").config();
    assert_eq!((config.max_sessions_per_user, config.max_sessions_per_host), (None, None));
    let limits = |user: u32, host: u32| {
        let settings = format!(
            r#""MaxPeerCount": 10, "MaxSessionsPerUser": {user}, "MaxSessionsPerHost": {host}"#
        );
        Case::new().complete(&settings).warnings()
    };
    assert_eq!(limits(9, 0), [""; 0]);
    let [user, host] = &limits(10, 11)[..] else { panic!("two warnings are expected") };
    assert!(user.contains("MaxSessionsPerUser 10 is never reached"), "{user}");
    assert!(host.contains("MaxSessionsPerHost 11 is never reached, since MaxPeerCount allows 10"));
    Case::new().complete(r#""MaxSessionsPerHost": -1"#).problem(&["MaxSessionsPerHost", "from 0"]);
}

#[test]
fn variable_and_its_file_variable_exclude_each_other() {
    Case::new()
        .complete("")
        .variable("ASPIA_RELAY_PEER_PORT", "1")
        .secret_file("ASPIA_RELAY_PEER_PORT_FILE", "2")
        .problem(&["ASPIA_RELAY_PEER_PORT and ASPIA_RELAY_PEER_PORT_FILE", "not both"]);
    // A required setting is not reported as missing in addition.
    Case::new()
        .variable("ASPIA_RELAY_ROUTER_ADDRESS", "r.example")
        .variable("ASPIA_RELAY_PEER_ADDRESS", "p.example")
        .variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY)
        .secret_file("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", KEY)
        .problem(&["RouterPublicKey", "not both"]);
}

#[test]
fn secret_files_must_be_readable_and_not_empty() {
    let missing = Path::new("/nonexistent/router.pub").display().to_string();
    Case::new().complete("").variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", &*missing).problem(&[
        "RouterPublicKey",
        &missing,
        "can be read",
    ]);
    Case::new()
        .complete("")
        .secret_file("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", " \n")
        .problem(&["not empty"]);
    // A wrong path may lead to any file, so the content is not shown.
    let case =
        Case::new().complete("").secret_file("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", "daemon:x:1:1");
    case.problem(&["RouterPublicKey", "64 hex digits"]);
    let report = format!("{:?}", case.load().unwrap_err().0);
    assert!(!report.contains("daemon"), "{report}");
    // A long value is truncated.
    let long = Case::new().complete("").variable("ASPIA_RELAY_ROUTER_ADDRESS", "x".repeat(9000));
    assert!(long.problems()[0].len() < 400);
}

#[test]
fn foreign_variables_are_ignored_with_one_warning() {
    let case = Case::new()
        .complete("")
        .variable("ASPIA_RELAY_PORT", "tcp://10.0.0.1:8070")
        .variable("ASPIA_RELAY_SERVICE_HOST", "10.0.0.1")
        .variable("ASPIA_RELAY_PORT_8070_TCP_ADDR", "10.0.0.1")
        .variable("ASPIA_RELAY_PEER_PORT", "tcp://10.0.0.1:8070")
        .variable("ASPIA_RELAY_CONFIG", "x");
    let loaded = case.load().unwrap();
    assert_eq!(loaded.config.router.peer_port, 8070);
    let [warning] = loaded.report.warnings.as_slice() else {
        panic!("{:?}", loaded.report.warnings);
    };
    for name in ["ASPIA_RELAY_PORT,", "SERVICE_HOST", "8070_TCP_ADDR", "ASPIA_RELAY_PEER_PORT"] {
        assert!(warning.contains(name), "{warning}");
    }
    assert!(!warning.contains("ASPIA_RELAY_CONFIG"));
}

#[test]
fn unusual_values_cause_warnings() {
    let case = Case::new().complete(r#""StatisticsInterval": 90, "StatisticsEnabled": true"#);
    let loaded = case.load().unwrap();
    assert_eq!(loaded.config.statistics_period(), Some(Duration::from_secs(90)));
    assert!(loaded.report.warnings[0].contains("StatisticsInterval"));
    let loopback = Case::new().complete("").variable("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1");
    assert!(loopback.load().unwrap().report.warnings[0].contains("loopback"));
}

#[test]
fn byte_order_mark_is_accepted() {
    let case = Case::new().complete("");
    let content = std::fs::read(case.path()).unwrap();
    case.file([&b"\xef\xbb\xbf"[..], &content].concat()).config();
}

#[test]
fn explicitly_named_file_must_exist() {
    let environment = vec![("ASPIA_RELAY_CONFIG".to_owned(), "/nonexistent/relay.json".to_owned())];
    let by_variable = Sources::new(None, environment.clone());
    assert!(by_variable.is_path_explicit);
    let by_argument = Sources::new(Some("/nonexistent/other.json".into()), environment);
    assert_eq!(by_argument.path, Path::new("/nonexistent/other.json"), "the argument wins");
    for sources in [by_variable, by_argument] {
        let problems = config::load(&sources).unwrap_err().0.problems;
        assert!(problems[0].to_string().contains("an existing file"), "{problems:#?}");
    }
    let default = Sources::new(None, Vec::new());
    assert_eq!(
        (default.path.as_path(), default.is_path_explicit),
        (Path::new(DEFAULT_PATH), false)
    );
}

/// A certificate and its private key.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn tls_files_are_checked_at_load() {
    let (certificate, private_key) = certificate();
    let case = |certificate: &str, private_key: &str, client_ca: &str| {
        let case = Case::new().complete(r#""MetricsListen": ":9477""#);
        [
            ("ASPIA_RELAY_METRICS_TLS_CERTIFICATE", certificate),
            ("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY", private_key),
            ("ASPIA_RELAY_METRICS_TLS_CLIENT_CA", client_ca),
        ]
        .into_iter()
        .fold(case, |case, (name, value)| case.variable(name, value))
    };
    assert!(case(&certificate, &private_key, &certificate).config().metrics_tls().is_some());
    assert_eq!(case("", "", "").config().metrics_tls(), None);
    case(&certificate, "", "").problem(&["MetricsTlsPrivateKey", "not set", "go together"]);
    case("", &private_key, "").problem(&["MetricsTlsCertificate", "go together"]);
    case("", "", &certificate).problem(&["MetricsTlsCertificate", "go together"]);
    case("/nonexistent.pem", &private_key, "").problem(&[
        "MetricsTlsCertificate",
        "/nonexistent.pem",
        "can be read (",
        "os error 2)",
    ]);
    // A relative path would be taken for a key and would not be shown, so this one is absolute.
    let missing = if cfg!(windows) { "C:/nonexistent.key" } else { "/nonexistent.key" };
    case(&certificate, missing, "").problem(&["MetricsTlsPrivateKey", missing]);
    case(&certificate, &private_key, "/nonexistent.ca").problem(&["MetricsTlsClientCa"]);
    // An expired certificate is only a warning: it is no reason to leave peers without a relay.
    let mut parameters = rcgen::CertificateParams::new(["x".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let expired = parameters.self_signed(&key).unwrap().pem();
    let loaded = case(&expired, &key.serialize_pem(), "").load().unwrap();
    assert!(
        loaded.report.warnings[0].contains("MetricsTlsCertificate expired at 2020-01-01"),
        "{:?}",
        loaded.report.warnings
    );
    // A Docker secret holds the content, not a path.
    let by_file = Case::new()
        .complete(r#""MetricsListen": ":9477""#)
        .secret_file("ASPIA_RELAY_METRICS_TLS_CERTIFICATE_FILE", &certificate)
        .secret_file("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY_FILE", &private_key);
    assert!(by_file.config().metrics_tls().is_some());
}

#[test]
fn private_keys_are_not_shown_but_their_paths_are() {
    let (certificate, private_key) = certificate();
    let secret = private_key.lines().nth(1).unwrap();
    let shown = |certificate: &str, private_key: &str| {
        let case = Case::new()
            .complete(r#""MetricsListen": ":9477""#)
            .variable("ASPIA_RELAY_METRICS_TLS_CERTIFICATE", certificate)
            .variable("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY", private_key);
        let report = case.load().map_or_else(|invalid| invalid.0, |loaded| loaded.report);
        format!("{}\n{:?}", report.table(), report)
    };
    let text = shown(&certificate, &private_key);
    assert!(text.contains("(redacted)") && text.contains("(PEM)"), "{text}");
    assert!(!text.contains(secret), "{text}");
    // Nor is a key shown in the wrong setting or if it is truncated.
    for (certificate, private_key) in [
        (&*private_key, &*certificate),
        (&*certificate, secret),
        (&*certificate, &private_key[..99]),
    ] {
        let text = shown(certificate, private_key);
        assert!(!text.contains(&secret[..20]), "{text}");
    }
    let path = if cfg!(windows) { "C:/aspia/metrics.key" } else { "/etc/aspia/metrics.key" };
    assert!(shown(&certificate, path).contains(path));
}

#[test]
fn every_setting_is_reloaded_as_its_class_says() {
    use settings::ReloadClass;

    let directory = tempfile::tempdir().unwrap();
    let tls = certificate();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let [certificate, other_certificate] = ["1.pem", "2.pem"].map(|name| file(name, &tls.0));
    let [key, other_key] = ["1.key", "2.key"].map(|name| file(name, &tls.1));
    let value = |key: &str| match key {
        "RouterAddress" | "PeerAddress" => "other.example",
        "RouterPort" | "PeerPort" | "ListenPort" => "4242",
        "RouterPublicKey" => "35997E3D46BF43430AA79E76698D6CEFE9462F04B7A613D59E37D22F16936744",
        "ListenInterface" => "127.0.0.1",
        "StatisticsEnabled" | "OfferByLoad" => "false",
        "LogPeerIdentity" | "TracePeerIdentity" | "WatchConfig" => "true",
        "AdminListen" => "127.0.0.1:4243",
        "MetricsListen" => "127.0.0.1:4244",
        "RouterProtocol" => "2",
        "DrainTimeout" | "MaxSessionDuration" | "FdStoreTimeout" => "77s",
        "FdStore" => "@aspia-relay-4241",
        "MetricsTlsCertificate" | "MetricsTlsClientCa" => &other_certificate,
        "MetricsTlsPrivateKey" => &other_key,
        "AllowPeers" | "DenyPeers" | "ProxyProtocolFrom" => "192.0.2.0/24",
        "AdminHosts" => "relays.example.net",
        "SessionBandwidth" | "TotalBandwidth" => "33MiB/s",
        _ => "33",
    };
    // With ListenPort set, PeerPort is only what the Router is told.
    let case = |extra: Option<(&str, &str)>| {
        let case = Case::new().complete("").variable("ASPIA_RELAY_LISTEN_PORT", "4241");
        let mut case = case
            .variable("ASPIA_RELAY_MAX_PEER_COUNT", "20")
            .variable("ASPIA_RELAY_STATISTICS_ENABLED", "true")
            .variable("ASPIA_RELAY_METRICS_TLS_CERTIFICATE", &certificate)
            .variable("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY", &key);
        if let Some((key, value)) = extra {
            let name = settings::variable(key);
            case.environment.retain(|(set, _)| *set != name);
            case = case.variable(&name, value);
        }
        case.config()
    };
    let before = case(None);
    for setting in settings::SETTINGS {
        if setting.key == settings::SettingKey::FdStore && !cfg!(target_os = "linux") {
            continue;
        }
        let after = case(Some((setting.key.name(), value(setting.key.name()))));
        assert_ne!(before, after, "{}", setting.key);
        assert_eq!(before.differences(&after), [setting.key]);
        let (applied, waiting) = before.apply_reload(&after);
        let expected = setting.reload;
        let seen = if waiting == [setting.key] {
            assert_eq!(applied, before, "{}", setting.key);
            ReloadClass::Restart
        } else if before.needs_new_link(&applied) {
            ReloadClass::NewLink
        } else {
            assert_eq!(applied, after, "{}", setting.key);
            ReloadClass::Now
        };
        assert_eq!(seen, expected, "{}", setting.key);
        // Another process sees the difference by the fingerprint.
        let is_other_link = before.link_fingerprint() != applied.link_fingerprint();
        assert_eq!(is_other_link, seen == ReloadClass::NewLink, "{}", setting.key);
    }
}

#[test]
fn default_router_port_follows_from_the_protocol() {
    let variable = "ASPIA_RELAY_ROUTER_PROTOCOL";
    let v3 = Case::new().complete("").variable(variable, "3");
    assert_eq!(v3.config().router.port, 8063);
    assert_eq!(v3.source("RouterPort"), "default (RouterProtocol is 3)");
    for protocol in ["2", "auto"] {
        let other = Case::new().complete("").variable(variable, protocol);
        assert_eq!(other.config().router.port, 8060);
        assert_eq!(other.source("RouterPort"), "default");
    }
    // An explicit port takes precedence, even if it is the default port of the other dialect.
    let written = v3.variable("ASPIA_RELAY_ROUTER_PORT", "8060");
    assert_eq!(written.config().router.port, 8060);
}

#[test]
fn documentation_names_every_setting_with_its_variable_and_default() {
    let document = include_str!("../../docs/configuration.md");
    for setting in settings::SETTINGS {
        let row = format!("| `{}` | `{}` | ", setting.key, setting.key.variable());
        let Some((_, rest)) = document.split_once(&row) else {
            panic!("no row {row}");
        };
        if let Some(default) = setting.default {
            assert!(rest.starts_with(&format!("{default} |")), "the default of {}", setting.key);
        }
        let applies = rest.lines().next().unwrap();
        let expected = match setting.reload {
            settings::ReloadClass::Now => "at once",
            settings::ReloadClass::NewLink => "with a new link",
            settings::ReloadClass::Restart => "after a restart",
        };
        assert!(applies.contains(expected), "{}: {expected}", setting.key);
    }
}

#[cfg(unix)]
#[test]
fn dangling_link_is_an_error() {
    use std::os::unix::fs::symlink;

    let case = Case::new().required();
    symlink("nowhere/relay.json", case.path()).unwrap();
    case.problem(&["relay.json is a link to nowhere/relay.json, which does not exist"]);
    // A dangling link in place of a parent directory.
    let mut sources = case.sources();
    let above = case.directory.path().join("aspia");
    symlink("unmounted", &above).unwrap();
    sources.path = above.join("relay.json");
    let problem = config::load(&sources).unwrap_err().0.problems[0].to_string();
    assert!(problem.contains("aspia is a link to unmounted, which does not exist"), "{problem}");
    // A link to a directory without the file is not dangling.
    std::fs::create_dir(case.directory.path().join("unmounted")).unwrap();
    config::load(&sources).unwrap();
    // A file in place of the directory.
    sources.path = case.directory.path().join("file/relay.json");
    std::fs::write(case.directory.path().join("file"), "").unwrap();
    let problem = config::load(&sources).unwrap_err().0.problems[0].to_string();
    assert!(problem.contains("a file that can be read ("), "{problem}");
}

#[test]
fn reload_fails_if_the_file_has_disappeared() {
    let case = Case::new().required().complete(r#""MaxPeerCount": 7"#);
    let started = case.load().unwrap().report;
    config::reload(&case.sources(), &started).unwrap();
    std::fs::remove_file(case.path()).unwrap();
    // Every attempt fails.
    for _ in 0..2 {
        let problems = config::reload(&case.sources(), &started).unwrap_err().0.problems;
        let [problem] = problems.as_slice() else { panic!("{problems:#?}") };
        assert!(problem.to_string().contains("it is gone; put it back"), "{problem}");
    }
    // A relay that starts now knows nothing of the earlier file, and reports that there is none.
    let without = case.load().unwrap().report;
    assert!(without.absent_file_note().is_some());
    config::reload(&case.sources(), &without).unwrap();
    // If the environment is incomplete, the missing file is still the only problem.
    let case = Case::new().complete("");
    let started = case.load().unwrap().report;
    std::fs::remove_file(case.path()).unwrap();
    let problems = config::reload(&case.sources(), &started).unwrap_err().0.problems;
    assert_eq!(problems.len(), 1, "{problems:#?}");
}

#[test]
fn missing_secret_file_is_an_error_at_start_and_reload() {
    let case = Case::new().complete("").secret_file("ASPIA_RELAY_ADMIN_TOKEN_FILE", "hush");
    let started = case.load().unwrap().report;
    std::fs::remove_file(case.directory.path().join("ASPIA_RELAY_ADMIN_TOKEN_FILE")).unwrap();
    case.problem(&["AdminToken", "the path of a file that can be read"]);
    let again = config::reload(&case.sources(), &started).unwrap_err();
    assert_eq!(again.0.problems[0].key, "AdminToken");
    // A blank path is a problem, too.
    Case::new().complete("").variable("ASPIA_RELAY_ADMIN_TOKEN_FILE", " ").problem(&["AdminToken"]);
}

#[test]
fn leftovers_of_relay_3_0_are_named_if_the_file_is_missing() {
    for (names, parts) in [
        (&["relay.json.bak", "relay.conf"][..], &["relay.conf", "rename", "8063"][..]),
        (&["relay.json.bak"], &["relay.json.bak", "rename", "8063"]),
        (&["relay.conf"], &["relay.conf", "does not read"]),
    ] {
        let case = Case::new();
        for name in names {
            std::fs::write(case.directory.path().join(name), "").unwrap();
        }
        case.problem(parts);
        assert!(!case.problems()[0].contains("--create-config"), "{:?}", case.problems());
        // An explicitly named file.
        let named = Sources { is_path_explicit: true, ..case.sources() };
        let problem = config::load(&named).unwrap_err().0.problems[0].to_string();
        assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
        // If the environment is complete, it is a warning.
        let case = case.required();
        let warnings = case.warnings();
        assert!(parts.iter().all(|part| warnings[0].contains(part)), "{warnings:?}");
        assert_eq!(case.file("{}").warnings(), [""; 0]);
    }
}

#[test]
fn files_of_the_original_relay_are_accepted_unchanged() {
    // The original accepts white space around values, empty values, and digits for booleans.
    let case = Case::new().file(format!(
        r#"{{
            "ListenInterface": " ",
            "MaxPeerCount": "",
            "PeerAddress": " p.example\t",
            "PeerIdleTimeout": " 7 ",
            "PeerPort": "\n8072",
            "RouterAddress": "\u00a0r.example ",
            "RouterPort": " ",
            "RouterPublicKey": " {KEY}\r\n",
            "StatisticsEnabled": "1",
            "StatisticsInterval": ""
        }}"#
    ));
    let config = case.config();
    assert_eq!(config.router.address.as_str(), "r.example");
    assert_eq!(config.router.peer_address.as_str(), "p.example");
    assert_eq!((config.router.port, config.router.peer_port), (8060, 8072));
    assert_eq!((config.max_sessions, config.peer_idle_timeout), (100, Duration::from_secs(420)));
    assert_eq!(config.startup.listen_interface, None);
    assert_eq!(config.statistics_period(), Some(Duration::from_secs(5)));
    let warnings = case.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
    for key in ["RouterPort", "MaxPeerCount", "StatisticsInterval"] {
        let path = case.path();
        let expected = format!("{key} is empty (file {}): its default is used", path.display());
        assert!(warnings.contains(&expected), "{expected} is not in {warnings:#?}");
        assert_eq!(case.source(key), "default");
    }
    let off = Case::new().complete(r#""StatisticsEnabled": 0"#).config();
    assert_eq!(off.statistics_period(), None);
    // The default port follows from the protocol here, too.
    let v3 = Case::new().complete(r#""RouterPort": "", "RouterProtocol": "3""#).config();
    assert_eq!(v3.router.port, 8063);
}

#[test]
fn peer_port_takes_precedence_over_the_default_of_the_admin_listener() {
    let case = Case::new().complete(r#""PeerPort": "8071""#);
    assert_eq!(case.config().startup.admin_listen, None);
    let warnings = case.warnings();
    assert!(
        warnings[0].contains("AdminListen is off") && warnings[0].contains("8071"),
        "{warnings:?}"
    );
    assert_eq!(case.source("AdminListen"), "default (peers dial its port)");
    // If both are set explicitly, it is an error.
    let both = case.variable("ASPIA_RELAY_ADMIN_LISTEN", "127.0.0.1:8071");
    both.problem(&["AdminListen", "a port other than the one that the relay listens on"]);
}

#[test]
fn invalid_values_in_files_of_the_original_relay_are_rejected() {
    for (key, value) in [
        ("PeerPort", "eighty"),
        ("PeerPort", "8070x"),
        ("StatisticsEnabled", "yes"),
        ("StatisticsEnabled", "2"),
        ("PeerIdleTimeout", "0"),
        ("ListenInterface", "eth0"),
    ] {
        Case::new().complete(&format!(r#""{key}": "{value}""#)).problem(&[key, value]);
    }
    // A blank value does not satisfy a required setting.
    const REQUIRED: [&str; 3] = ["RouterAddress", "RouterPublicKey", "PeerAddress"];
    for key in REQUIRED {
        for blank in ["", " ", "\\t"] {
            let members = REQUIRED.map(|of| match of {
                of if of == key => format!(r#""{of}": "{blank}""#),
                "RouterPublicKey" => format!(r#""{of}": "{KEY}""#),
                of => format!(r#""{of}": "a.example""#),
            });
            let case = Case::new().file(format!("{{{}}}", members.join(", ")));
            case.problem(&[key, "required"]);
        }
    }
    // The other settings are strict: a blank must not silently remove a token or a list.
    for key in ["AdminToken", "AllowPeers", "DrainTimeout", "MaxPendingPeers"] {
        Case::new().complete(&format!(r#""{key}": " ""#)).problem(&[key]);
        Case::new().complete("").variable(&settings::variable(key), " ").problem(&[key]);
    }
    Case::new().complete(r#""DrainTimeout": """#).problem(&["DrainTimeout"]);
    Case::new().complete(r#""LogPeerIdentity": "1""#).problem(&["true or false"]);
}

#[test]
fn unspecified_address_means_both_families() {
    for all in ["", "::", "0:0:0:0:0:0:0:0", " :: "] {
        let case = Case::new().complete(&format!(r#""ListenInterface": "{all}""#));
        assert_eq!(case.config().startup.listen_interface, None, "{all}");
    }
    let case = Case::new().complete(
        r#""AdminListen": "[::]:8071", "AdminToken": "hush", "MetricsListen": "[::]:9477""#,
    );
    let startup = case.config().startup;
    assert_eq!(startup.admin_listen.unwrap().interface, None);
    assert_eq!(startup.metrics_listen.unwrap().interface, None);
    // An unspecified address is not loopback.
    let open = Case::new().complete(r#""AdminListen": "[::]:8071""#);
    open.problem(&["AdminToken", "other machines"]);
}

#[test]
fn addresses_with_a_scope_are_rejected_by_every_setting() {
    for (key, value) in [
        ("RouterAddress", "fe80::1%eth0"),
        ("PeerAddress", "fe80::1%eth0"),
        ("ListenInterface", "fe80::1%eth0"),
        ("ListenInterface", "fe80::1%2"),
        ("AdminListen", "[fe80::1%eth0]:8071"),
        ("AdminListen", "[fe80::1%2]:8071"),
        ("MetricsListen", "[fe80::1%2]:9477"),
    ] {
        let case = Case::new().complete("").variable(&settings::variable(key), value);
        case.problem(&[key, value, "without a scope"]);
    }
    for key in ["AllowPeers", "DenyPeers", "ProxyProtocolFrom"] {
        for value in ["fe80::1%eth0", "fe80::%2/10"] {
            let case = Case::new().complete("").variable(&settings::variable(key), value);
            case.problem(&["is neither"]);
        }
    }
}

#[test]
fn lists_in_the_environment_may_be_json_arrays() {
    let variable = |value: &str| Case::new().complete("").variable("ASPIA_RELAY_DENY_PEERS", value);
    for list in [r#"["192.0.2.0/24", "2001:db8::/32"]"#, r#" [ "192.0.2.0/24" ,"2001:db8::/32"] "#]
    {
        let shown = variable(list).config().deny_peers.to_string();
        assert_eq!(shown, "192.0.2.0/24, 2001:db8::/32");
        // The same text as a string in relay.json, and as the content of a secret file.
        let quoted = serde_json::Value::from(list).to_string();
        let in_file = Case::new().complete(&format!(r#""DenyPeers": {quoted}"#));
        assert_eq!(in_file.config().deny_peers.to_string(), shown);
        let of_file = Case::new().complete("").secret_file("ASPIA_RELAY_DENY_PEERS_FILE", list);
        assert_eq!(of_file.config().deny_peers.to_string(), shown);
    }
    let none = Case::new().complete(r#""DenyPeers": "192.0.2.1""#);
    assert!(none.variable("ASPIA_RELAY_DENY_PEERS", "[]").config().deny_peers.is_empty());
    for (list, part) in [
        (r#"["192.0.2.0/24""#, "an array of non-empty strings"),
        (r#"["192.0.2.0/24", ""]"#, "non-empty"),
        ("[192]", "an array of non-empty strings"),
        ("[192.0.2.0/24]", "is neither"),
        (r#"["elsewhere"]"#, "is neither"),
    ] {
        variable(list).problem(&["DenyPeers", part]);
    }
    // If a setting is not a list, an array is plain text.
    let name = Case::new().complete("").variable("ASPIA_RELAY_DISPLAY_NAME", r#"["a"]"#);
    assert_eq!(name.config().router.display_name, "__a__");
}

#[test]
fn blank_variable_does_not_override_the_file() {
    let file = r#""ListenInterface": "127.0.0.7", "PeerPort": "9000", "MaxPeerCount": "7""#;
    let mut case = Case::new().complete(file);
    for name in ["LISTEN_INTERFACE", "PEER_PORT", "MAX_PEER_COUNT"] {
        case = case.variable(&format!("ASPIA_RELAY_{name}"), " \t");
    }
    let config = case.config();
    assert_eq!(config.startup.listen_interface, Some([127, 0, 0, 7].into()));
    assert_eq!((config.router.peer_port, config.max_sessions), (9000, 7));
    // A blank token or list is rejected: it must not be dropped silently.
    for name in ["ADMIN_TOKEN", "ALLOW_PEERS"] {
        let case = Case::new().complete("").variable(&format!("ASPIA_RELAY_{name}"), " ");
        case.problem(&[&format!("ASPIA_RELAY_{name}")]);
    }
}

#[test]
fn white_space_and_byte_order_marks_around_values_are_removed() {
    let case = Case::new()
        .variable("ASPIA_RELAY_ROUTER_ADDRESS", " r.example\n")
        .variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", format!("\u{feff}{KEY}\r\n"))
        .variable("ASPIA_RELAY_PEER_ADDRESS", "\tp.example")
        .variable("ASPIA_RELAY_PEER_PORT", " 8072 ")
        .variable("ASPIA_RELAY_DRAIN_TIMEOUT", " 7s")
        .variable("ASPIA_RELAY_LOG_PEER_IDENTITY", "true ")
        .variable("ASPIA_RELAY_ALLOW_PEERS", " 192.0.2.1 ")
        .variable("ASPIA_RELAY_ADMIN_TOKEN", " hush ")
        .variable("ASPIA_RELAY_MAX_PEER_COUNT", " ");
    let config = case.config();
    assert_eq!(config.router.address.as_str(), "r.example");
    assert_eq!((config.router.peer_port, config.drain_timeout.as_secs()), (8072, 7));
    assert!(config.log_peer_identity && config.admin_token.unwrap().matches("hush"));
    assert_eq!(config.max_sessions, 100);
    // So is white space around the path of a secret file, and around its content.
    let case = Case::new().complete("");
    let path = case.directory.path().join("token");
    std::fs::write(&path, b"\xef\xbb\xbfhush\r\n").unwrap();
    let case = case.variable("ASPIA_RELAY_ADMIN_TOKEN_FILE", format!(" {} ", path.display()));
    assert!(case.config().admin_token.unwrap().matches("hush"));
    let path = case.directory.path().join("router.pub");
    std::fs::write(&path, format!("\u{feff}{KEY}")).unwrap();
    let case = case.variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", path.display().to_string());
    assert_eq!(case.config().router.public_key.to_string(), KEY);
    std::fs::write(&path, b"\xff\xfea\0").unwrap();
    case.problem(&["RouterPublicKey", "UTF-16"]);
    let named = vec![("ASPIA_RELAY_CONFIG".to_owned(), " /etc/other.json ".to_owned())];
    assert_eq!(Sources::new(None, named).path, Path::new("/etc/other.json"));
    let blank = vec![("ASPIA_RELAY_CONFIG".to_owned(), " ".to_owned())];
    assert!(Sources::new(None, blank).is_path_explicit);
}

#[test]
fn escape_sequences_in_names_and_values_do_not_reach_the_terminal() {
    const HOSTILE: &str = "\u{1b}[2J\u{9b}1m\u{202e}\nforged";
    let value = format!("x{HOSTILE}");
    let quoted = serde_json::Value::from(HOSTILE).to_string();
    let case = Case::new()
        .file(format!(r#"{{{quoted}: 1, "PeerPort": {quoted}, "ListenInterface": {quoted}}}"#))
        .variable(&format!("ASPIA_RELAY_{HOSTILE}"), "1")
        .variable("ASPIA_RELAY_PEER_ADDRESS", &*value)
        .variable("ASPIA_RELAY_ALLOW_PEERS", &*value)
        .variable("ASPIA_RELAY_ADMIN_TOKEN_FILE", &*value);
    let report = case.load().unwrap_err().0;
    let said = report.problems.iter().map(ToString::to_string);
    let said: Vec<String> = said.chain(report.warnings.iter().cloned()).collect();
    for part in
        ["ListenInterface", "PeerPort", "PeerAddress", "AllowPeers", "AdminToken", "known key"]
    {
        assert!(said.iter().any(|line| line.contains(part)), "{part} is not in {said:#?}");
    }
    assert_eq!(report.warnings.len(), 1, "{said:#?}");
    for line in said {
        assert_eq!(line, printable::escape_line(&line));
    }
    let table = report.table();
    assert_eq!(table, printable::escape_lines(&table));
    assert_eq!(table.lines().count(), settings::SETTINGS.len());
    let broken = Case::new().file(format!("{{{HOSTILE}")).problems().remove(0);
    assert_eq!(broken, printable::escape_line(&broken));
}

#[test]
fn misspelt_variables_get_a_suggestion() {
    let case = Case::new()
        .complete("")
        .variable("ASPIA_RELAY_ALLOW_PEER", "192.0.2.0/24")
        .variable("ASPIA_RELAY_ADMINTOKEN_FILE", "/run/secrets/admin")
        .variable("ASPIA_RELAY_SERVICE_PORT", "8070")
        .variable("ASPIA_RELAY_IMAGE", "aspia-relay:0.1.0")
        .variable("ASPIA_RELEY_DENY_PEERS", "192.0.2.0/24")
        .variable("ASPIA_LOG_LEVL", "0");
    assert_eq!(
        case.warnings(),
        [
            "ignored environment variables that are not settings: ASPIA_RELAY_ADMINTOKEN_FILE (did you mean \
             ASPIA_RELAY_ADMIN_TOKEN_FILE?), ASPIA_RELAY_ALLOW_PEER (did you mean ASPIA_RELAY_ALLOW_PEERS?), \
             ASPIA_RELAY_SERVICE_PORT",
            "ignored the environment variable ASPIA_RELEY_DENY_PEERS; did you mean ASPIA_RELAY_DENY_PEERS?",
            "ignored the environment variable ASPIA_LOG_LEVL; did you mean ASPIA_LOG_LEVEL?",
        ]
    );
}

#[test]
fn unusable_file_yields_no_table_of_values() {
    let case = Case::new().file(r#"{"MaxPeerCount": 7, }"#);
    let report = case.load().unwrap_err().0;
    assert_eq!(report.table(), "");
    assert_eq!(report.json()["settings"], serde_json::json!([]));
    assert!(report.problems[0].to_string().contains("one JSON object"));
    // A file with one wrong value shows its other values.
    let report = case.file(r#"{"MaxPeerCount": 7, "PeerPort": "x"}"#).load().unwrap_err().0;
    assert!(report.table().contains("MaxPeerCount"));
}

#[test]
fn byte_order_marks_in_pem_files_do_not_hide_certificates() {
    let (first, private_key) = certificate();
    let mark = "\u{feff}";
    let case = Case::new().complete(r#""MetricsListen": ":9477""#);
    let write = |name: &str, content: String| {
        let path = case.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let certificates = write("chain.pem", format!("{mark}{first}"));
    let key = write("key.pem", format!("{mark}{private_key}"));
    // Two files were concatenated, each with its mark. The second certificate is broken, which must be reported.
    let broken = certificate().0.replacen("MII", "M!I", 1);
    let joined = write("joined.pem", format!("{mark}{first}{mark}{broken}"));
    let case = case.variable("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY", &key);
    let variable = "ASPIA_RELAY_METRICS_TLS_CERTIFICATE";
    let good = case.variable(variable, &certificates);
    assert!(good.config().metrics_tls().is_some());
    let inline = format!("{mark}{first}{mark}{broken}");
    for certificate in [&joined, &inline] {
        let environment = vec![
            ("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY".to_owned(), key.clone()),
            (variable.to_owned(), certificate.clone()),
        ];
        let sources = Sources { environment, ..good.sources() };
        let problem = config::load(&sources).unwrap_err().0.problems[0].to_string();
        assert!(problem.contains("one of them is broken"), "{problem}");
    }
}
