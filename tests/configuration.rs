//! Every rule of the configuration, through the same door as a start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use aspia_relay::config::sources::{DEFAULT_PATH, Sources};
use aspia_relay::config::{self, Config, Invalid, Loaded, settings};
use tempfile::TempDir;

const KEY: &str = include_str!("vectors/router.pub");

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

    /// A file that is complete, with more in it.
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

    fn load(&self) -> Result<Loaded, Box<Invalid>> {
        config::load(&Sources {
            path: self.path(),
            path_is_explicit: false,
            environment: self.environment.clone(),
        })
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|invalid| panic!("{:#?}", invalid.0.problems)).config
    }

    /// All problems, one line each.
    fn problems(&self) -> Vec<String> {
        let invalid = self.load().expect_err("must not be valid");
        invalid.0.problems.iter().map(ToString::to_string).collect()
    }

    /// The one problem, which says all of `parts`.
    fn problem(&self, parts: &[&str]) {
        let problems = self.problems();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        for part in parts {
            assert!(problems[0].contains(part), "{part:?} is not in {:?}", problems[0]);
        }
    }

    fn source(&self, key: &str) -> String {
        let report = self.load().unwrap().report;
        report.settings.into_iter().find(|line| line.key == key).unwrap().source
    }
}

#[test]
fn defaults_are_those_of_the_interface() {
    let config = Case::new().complete("").config();
    assert_eq!(config.router.address.as_str(), "r.example");
    assert_eq!(config.router.peer_address.as_str(), "p.example");
    assert_eq!((config.router.port, config.router.peer_port), (8060, 8070));
    assert_eq!((config.startup.listen_interface, config.startup.listen_port), (None, 8070));
    assert_eq!(config.startup.worker_threads, 0);
    assert_eq!(config.max_sessions, 100);
    assert_eq!(config.peer_idle_timeout, Duration::from_secs(300));
    assert_eq!(config.max_session_duration, None);
    assert_eq!(config.max_pending_peers, 1024);
    assert_eq!(config.statistics_interval, None);
    assert_eq!(config.drain_timeout, Duration::from_secs(25));
    assert!(!config.log_peer_identity);
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
    assert_eq!(strings.statistics_interval, Some(Duration::from_secs(7)));
    assert_eq!(strings.startup.listen_port, 9000);
}

#[test]
fn the_environment_wins_over_the_file_and_files_of_values_are_trimmed() {
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
    assert_eq!(config.router.display_name, "0123", "a value is taken letter by letter");
    assert_eq!(config.router.public_key.to_string(), KEY);
    assert_eq!(case.source("PeerPort"), "environment variable ASPIA_RELAY_PEER_PORT");
    assert!(case.source("RouterPublicKey").contains("named by ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE"));
    assert_eq!(case.source("MaxPeerCount"), format!("file {}", case.path().display()));
    assert_eq!(case.source("RouterPort"), "default");
    assert_eq!(case.source("ListenPort"), "default (PeerPort)");
}

#[test]
fn no_file_is_fine_where_the_environment_is_complete() {
    let case = Case::new()
        .variable("ASPIA_RELAY_ROUTER_ADDRESS", "::1")
        .variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY)
        .variable("ASPIA_RELAY_PEER_ADDRESS", "p.example");
    assert_eq!(case.config().router.address.as_str(), "::1");
}

#[test]
fn every_problem_is_reported_at_once_with_its_source() {
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
fn nothing_at_all_says_what_to_do() {
    let case = Case::new();
    let problems = case.problems();
    // One line that has it all.
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
    // Somebody tried.
    let case = Case::new().variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", "/nonexistent");
    assert!(case.problems().join("\n").contains("/nonexistent"), "{:#?}", case.problems());
}

#[test]
fn the_default_file_lacks_two_values_and_says_so() {
    let problems = Case::new().file(config::DEFAULT_FILE).problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems.iter().any(|p| p.starts_with("RouterPublicKey")), "{problems:#?}");
    assert!(problems.iter().any(|p| p.starts_with("PeerAddress")), "{problems:#?}");
}

#[test]
fn files_that_are_no_settings_are_refused() {
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
    // What it says is not known, so nothing is said to be missing in it.
    case.problem(&["a file that"]);
    Case::new().file("{").problem(&["one JSON object"]);
    let large = Case::new().file(vec![b' '; 1024 * 1024 + 1]).problems();
    assert!(large[0].contains("larger than"), "{large:#?}");
}

#[test]
fn values_of_another_kind_are_refused() {
    for value in ["null", "[8070]", r#"{"a": 1}"#] {
        Case::new()
            .complete(&format!(r#""PeerPort": {value}"#))
            .problem(&["PeerPort", "a string, a number, true or false"]);
    }
    for value in ["8070.5", "-1", "1e9", "true", "\"\"", "\" 8070\"", "70000"] {
        Case::new().complete(&format!(r#""PeerPort": {value}"#)).problem(&["1 to 65535"]);
    }
}

#[test]
fn every_key_refuses_what_is_wrong_for_it() {
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
        ("DenyPeers", "10.1.0.0/8", "10.0.0.0/8"),
        ("SessionBandwidth", "4MiB", "such as 500KiB/s"),
        ("TotalBandwidth", "1B/s", "from 8KiB/s"),
        ("WorkerThreads", "257", "from 0 to 256"),
        ("LogPeerIdentity", "1", "true or false"),
    ] {
        let case = Case::new().complete("").variable(&settings::variable(key), value);
        case.problem(&[key, value, expected, &settings::variable(key)]);
    }
    for byte in ["00", "ff"] {
        let key = byte.repeat(32);
        let case = Case::new().complete("").variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", key);
        if byte == "00" {
            case.problem(&["this is no public key"]);
        } else {
            case.config();
        }
    }
}

#[test]
fn unknown_and_repeated_keys_and_comments() {
    Case::new().complete(r#""RouterPubKey": "x""#).problem(&["did you mean RouterPublicKey?"]);
    Case::new().complete(r#""Zebra": "x""#).problem(&["begins with _"]);
    Case::new().complete(r#""PeerAddress": "q.example""#).problem(&["stands here twice"]);
    Case::new().complete(r#""_comment": {"any": ["thing"]}, "_comment": 2"#).config();
}

#[test]
fn a_list_is_an_array_or_a_text_with_commas() {
    let config = Case::new().complete(r#""DenyPeers": ["192.0.2.0/24", "2001:db8::/32"]"#).config();
    assert_eq!(config.deny_peers.to_string(), "192.0.2.0/24, 2001:db8::/32");
    let config = Case::new().complete(r#""AllowPeers": "192.0.2.0/24,10.0.0.1""#).config();
    assert_eq!(config.allow_peers.to_string(), "10.0.0.1/32, 192.0.2.0/24");
    assert!(Case::new().complete(r#""AllowPeers": []"#).config().allow_peers.is_empty());
    Case::new().complete(r#""AllowPeers": ["10.0.0.0/8", 5]"#).problem(&["array of strings"]);
    Case::new().complete(r#""AllowPeers": [""]"#).problem(&["not empty"]);
    Case::new().complete("").variable("ASPIA_RELAY_ALLOW_PEERS", ",").problem(&["is none"]);
    Case::new().complete(r#""AllowPeers": {"a": 1}"#).problem(&["array of strings"]);
    Case::new().complete(r#""MaxPeerCount": [1]"#).problem(&["a string, a number"]);
}

#[test]
fn the_limits_of_addresses_and_of_bandwidth_have_defaults() {
    let config = Case::new().complete("").config();
    assert_eq!(config.max_pending_peers_per_address, 64);
    assert_eq!(config.peer_connect_rate.map(std::num::NonZero::get), Some(300));
    assert!(config.allow_peers.is_empty() && config.deny_peers.is_empty());
    assert_eq!((config.session_bandwidth, config.total_bandwidth), (None, None));
    let config = Case::new().complete(r#""PeerConnectRate": 0"#).config();
    assert_eq!(config.peer_connect_rate, None);
}

#[test]
fn both_forms_of_one_variable_are_an_error() {
    Case::new()
        .complete("")
        .variable("ASPIA_RELAY_PEER_PORT", "1")
        .secret_file("ASPIA_RELAY_PEER_PORT_FILE", "2")
        .problem(&["ASPIA_RELAY_PEER_PORT and ASPIA_RELAY_PEER_PORT_FILE", "not both"]);
    // Of a required one it is not said as well that it is missing.
    Case::new()
        .variable("ASPIA_RELAY_ROUTER_ADDRESS", "r.example")
        .variable("ASPIA_RELAY_PEER_ADDRESS", "p.example")
        .variable("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY)
        .secret_file("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", KEY)
        .problem(&["RouterPublicKey", "not both"]);
}

#[test]
fn files_of_values_must_be_readable_and_not_empty() {
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
    // The wrong file may hold anything: it is shown to nobody.
    let case =
        Case::new().complete("").secret_file("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", "daemon:x:1:1");
    case.problem(&["RouterPublicKey", "64 hex digits"]);
    let report = format!("{:?}", case.load().unwrap_err().0);
    assert!(!report.contains("daemon"), "{report}");
    // A long value is shown in part.
    let long = Case::new().complete("").variable("ASPIA_RELAY_ROUTER_ADDRESS", "x".repeat(9000));
    assert!(long.problems()[0].len() < 400);
}

#[test]
fn variables_that_others_set_are_ignored_with_one_warning() {
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
fn what_works_but_is_odd_is_warned_about() {
    let case = Case::new().complete(r#""StatisticsInterval": 90, "StatisticsEnabled": true"#);
    let loaded = case.load().unwrap();
    assert_eq!(loaded.config.statistics_interval, Some(Duration::from_secs(90)));
    assert!(loaded.report.warnings[0].contains("StatisticsInterval"));
    let loopback = Case::new().complete("").variable("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1");
    assert!(loopback.load().unwrap().report.warnings[0].contains("loopback"));
}

#[test]
fn a_byte_order_mark_is_no_mistake() {
    let case = Case::new().complete("");
    let content = std::fs::read(case.path()).unwrap();
    case.file([&b"\xef\xbb\xbf"[..], &content].concat()).config();
}

#[test]
fn a_named_file_must_exist() {
    let environment = vec![("ASPIA_RELAY_CONFIG".to_owned(), "/nonexistent/relay.json".to_owned())];
    let by_variable = Sources::new(None, environment.clone());
    assert!(by_variable.path_is_explicit);
    let by_argument = Sources::new(Some("/nonexistent/other.json".into()), environment);
    assert_eq!(by_argument.path, Path::new("/nonexistent/other.json"), "the argument wins");
    for sources in [by_variable, by_argument] {
        let problems = config::load(&sources).unwrap_err().0.problems;
        assert!(problems[0].to_string().contains("an existing file"), "{problems:#?}");
    }
    let default = Sources::new(None, Vec::new());
    assert_eq!(
        (default.path.as_path(), default.path_is_explicit),
        (Path::new(DEFAULT_PATH), false)
    );
}

/// A certificate and its private key.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn tls_is_checked_when_it_is_read() {
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
    assert!(case(&certificate, &private_key, &certificate).config().metrics_tls.is_some());
    assert_eq!(case("", "", "").config().metrics_tls, None);
    case(&certificate, "", "").problem(&["MetricsTlsPrivateKey", "not set", "go together"]);
    case("", &private_key, "").problem(&["MetricsTlsCertificate", "go together"]);
    case("", "", &certificate).problem(&["MetricsTlsCertificate", "go together"]);
    case("/nonexistent.pem", &private_key, "").problem(&[
        "MetricsTlsCertificate",
        "/nonexistent.pem",
        "can be read (",
        "os error 2)",
    ]);
    // What is no path from the root is taken for a key, and not shown.
    let missing = if cfg!(windows) { "C:/nonexistent.key" } else { "/nonexistent.key" };
    case(&certificate, missing, "").problem(&["MetricsTlsPrivateKey", missing]);
    case(&certificate, &private_key, "/nonexistent.ca").problem(&["MetricsTlsClientCa"]);
    // One that clients refuse is no reason to leave peers without a relay.
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
    // As a Docker secret it is the content that is given.
    let by_file = Case::new()
        .complete(r#""MetricsListen": ":9477""#)
        .secret_file("ASPIA_RELAY_METRICS_TLS_CERTIFICATE_FILE", &certificate)
        .secret_file("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY_FILE", &private_key);
    assert!(by_file.config().metrics_tls.is_some());
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
    // In the wrong place, or in part.
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
fn the_table_of_settings_says_what_a_reload_does() {
    use settings::Reload;

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
        "StatisticsEnabled" => "false",
        "LogPeerIdentity" | "TracePeerIdentity" => "true",
        "AdminListen" => "127.0.0.1:4243",
        "MetricsListen" => "127.0.0.1:4244",
        "RouterProtocol" => "2",
        "DrainTimeout" | "MaxSessionDuration" => "77s",
        "MetricsTlsCertificate" | "MetricsTlsClientCa" => &other_certificate,
        "MetricsTlsPrivateKey" => &other_key,
        "AllowPeers" | "DenyPeers" => "192.0.2.0/24",
        "SessionBandwidth" | "TotalBandwidth" => "33MiB/s",
        _ => "33",
    };
    // With a ListenPort of its own, PeerPort is only what the Router is told.
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
        let after = case(Some((setting.key, value(setting.key))));
        assert_ne!(before, after, "{}", setting.key);
        assert_eq!(before.differences(&after), [setting.key]);
        let (applied, waiting) = before.reloaded(&after);
        let expected = setting.reload;
        let seen = if waiting == [setting.key] {
            assert_eq!(applied, before, "{}", setting.key);
            Reload::Restart
        } else if before.needs_new_link(&applied) {
            Reload::NewLink
        } else {
            assert_eq!(applied, after, "{}", setting.key);
            Reload::Now
        };
        assert_eq!(seen, expected, "{}", setting.key);
    }
}

#[test]
fn the_port_that_is_left_out_goes_with_the_protocol() {
    let variable = "ASPIA_RELAY_ROUTER_PROTOCOL";
    let third = Case::new().complete("").variable(variable, "3");
    assert_eq!(third.config().router.port, 8063);
    assert_eq!(third.source("RouterPort"), "default (RouterProtocol is 3)");
    for protocol in ["2", "auto"] {
        let other = Case::new().complete("").variable(variable, protocol);
        assert_eq!(other.config().router.port, 8060);
        assert_eq!(other.source("RouterPort"), "default");
    }
    // What is written holds, also where it is the other dialect's.
    let written = third.variable("ASPIA_RELAY_ROUTER_PORT", "8060");
    assert_eq!(written.config().router.port, 8060);
}

#[test]
fn the_readme_names_every_setting_with_its_variable_and_default() {
    let readme = include_str!("../README.md");
    for setting in settings::SETTINGS {
        let row = format!("| `{}` | `{}` | ", setting.key, settings::variable(setting.key));
        let Some((_, rest)) = readme.split_once(&row) else {
            panic!("no row {row}");
        };
        if let Some(default) = setting.default {
            assert!(rest.starts_with(&format!("{default} |")), "the default of {}", setting.key);
        }
        let applies = rest.lines().next().unwrap();
        let expected = match setting.reload {
            settings::Reload::Now => "at once",
            settings::Reload::NewLink => "with a new link",
            settings::Reload::Restart => "after a restart",
        };
        assert!(applies.contains(expected), "{}: {expected}", setting.key);
    }
}
