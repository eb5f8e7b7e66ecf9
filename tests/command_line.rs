//! The program itself: arguments, exit status, signals, stderr.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use aspia_relay::admin::instance::Identity;
#[cfg(target_os = "linux")]
use aspia_relay::config::sources::{DEFAULT_PATH, Sources};
use relay_lab::router::{LabRouter, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const KEY: &str = include_str!("vectors/router.pub");

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    // Nothing of this machine's environment reaches the program.
    command.env_clear().stdin(Stdio::null());
    // Tests run beside each other.
    command.env("ASPIA_RELAY_ADMIN_LISTEN", "off");
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn write(path: &Path, router_port: u16, peer_port: u16, key: &str, more: &str) {
    let content = format!(
        r#"{{"RouterAddress": "127.0.0.1", "RouterPort": "{router_port}", "RouterPublicKey": "{key}",
            "PeerAddress": "127.0.0.1", "PeerPort": "{peer_port}"{more}}}"#
    );
    std::fs::write(path, content).unwrap();
}

fn free_port() -> u16 {
    relay_lab::port::free_port().unwrap()
}

#[test]
fn create_config_writes_what_the_original_writes_and_never_overwrites() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/relay.json");
    let create = || run(program().arg("--create-config").arg("--config").arg(&path));
    let (status, _, stderr) = create();
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert_eq!(std::fs::read(&path).unwrap(), include_bytes!("vectors/relay.json"));
    std::fs::write(&path, "whatever").unwrap();
    let (status, _, stderr) = create();
    assert_eq!(status, 1);
    assert!(stderr.contains("exists already"), "{stderr}");
    assert_eq!(std::fs::read(&path).unwrap(), b"whatever");
    let nowhere = run(program().args(["--create-config", "--config", "/proc/nowhere/relay.json"]));
    assert_eq!(nowhere.0, 1);
    assert!(nowhere.2.contains("cannot write /proc/nowhere/relay.json"), "{}", nowhere.2);
    let link = directory.path().join("link.json");
    std::os::unix::fs::symlink("nowhere.json", &link).unwrap();
    let (status, _, stderr) = run(program().arg("--create-config").arg("--config").arg(&link));
    assert_eq!(status, 1);
    assert!(stderr.contains("is a link to a file that does not exist"), "{stderr}");
}

/// Kubernetes shows the file with the status of the pod, and of a long one the end.
#[test]
fn what_a_container_runs_leaves_the_reason_of_its_failure() {
    // The image sets the second.
    for format in ["text", "json"] {
        leaves_the_reason_of_its_failure(format);
    }
}

fn leaves_the_reason_of_its_failure(format: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("termination-log");
    let failed = |set: &dyn Fn(&mut Command)| {
        std::fs::write(&path, "of before").unwrap();
        let mut command = program();
        command.env("TERMINATION_MESSAGE_PATH", &path).env("ASPIA_RELAY_CONFIG", "/dev/null/none");
        command.env("ASPIA_LOG_FORMAT", format);
        set(&mut command);
        let (status, _, stderr) = run(&mut command);
        assert_ne!(status, 0, "{stderr}");
        (stderr, std::fs::read_to_string(&path).unwrap())
    };
    let (stderr, message) = failed(&|_| ());
    assert!(message.contains("/dev/null/none"), "{format}: {message}: {stderr}");
    assert_eq!(stderr.matches("/dev/null/none").count(), 1, "{format}: once: {stderr}");
    let (stderr, message) = failed(&|command| {
        command.args(["--node-address", "external-ip"]);
    });
    assert!(message.starts_with("KUBERNETES_SERVICE_HOST") && stderr.contains(&message));
    // Letters of two bytes, so that one of them would be cut.
    let long = "/x".to_owned() + &"\u{e4}".repeat(5000);
    for long in [&long, &long[1..]] {
        let (_, message) = failed(&|command| {
            command.env("ASPIA_RELAY_CONFIG", long);
        });
        assert!((4095..=4096).contains(&message.len()), "{}: {message}", message.len());
    }
    // `kubectl exec` starts commands beside the relay.
    for other in ["--healthcheck", "--check-config", "--doctor"] {
        let (_, message) = failed(&|command| {
            command.arg(other);
        });
        assert_eq!(message, "of before", "{other}");
    }
    // A file that is not there is nobody's.
    let missing = directory.path().join("missing");
    let (stderr, _) = failed(&|command| {
        command.env("TERMINATION_MESSAGE_PATH", &missing);
    });
    assert!(!stderr.is_empty() && !missing.exists());
}

/// The pod of `helm test` runs nothing but the doctor.
#[cfg(target_os = "linux")]
#[test]
fn a_doctor_that_is_the_first_process_leaves_what_failed() {
    const UNSHARE: [&str; 3] = ["--pid", "--fork", "--kill-child"];
    let can = Command::new("unshare").args(UNSHARE).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        relay_lab::skip("the doctor as the first process", "namespaces need root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let message = directory.path().join("termination-log");
    std::fs::write(&message, "").unwrap();
    let mut doctor = Command::new("unshare");
    doctor.args(UNSHARE).arg(env!("CARGO_BIN_EXE_aspia_relay")).args(["--doctor", "--running"]);
    doctor.env("TERMINATION_MESSAGE_PATH", &message);
    doctor.env("ASPIA_RELAY_CONFIG", "/dev/null/none").env("KUBERNETES_SERVICE_HOST", "192.0.2.1");
    let (status, stdout, _) = run(&mut doctor);
    let message = std::fs::read_to_string(message).unwrap();
    assert_eq!(status, 1);
    for step in ["configuration", "running relay"] {
        assert!(message.contains("failed (✗): ") && message.contains(step), "{message}");
    }
    // No configuration is no reason to be silent about the relay that nobody has labelled a node for.
    let relay = stdout.lines().find(|line| line.contains("running relay: ")).unwrap();
    assert!(relay.starts_with('✗') && relay.contains("labels of nodeSelector"), "{stdout}");
}

#[test]
fn check_config_shows_every_value_with_its_source_and_every_problem() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 8060, 8070, KEY, "");
    let check = |arguments: &[&str], drain: &str| {
        let mut command = program();
        command.arg("--check-config").args(arguments).env("ASPIA_RELAY_CONFIG", &path);
        run(command.env("ASPIA_RELAY_DRAIN_TIMEOUT", drain))
    };
    let (status, stdout, stderr) = check(&[], "7s");
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stdout.lines().count(), aspia_relay::config::settings::SETTINGS.len());
    let line = |key: &str| stdout.lines().find(|line| line.starts_with(key)).unwrap();
    assert!(line("DrainTimeout").ends_with("environment variable ASPIA_RELAY_DRAIN_TIMEOUT"));
    assert!(line("PeerPort").contains("8070") && line("PeerPort").contains("relay.json"));
    assert!(line("MaxPeerCount").ends_with("default"));
    assert!(stderr.contains("warning: PeerAddress is a loopback address"), "{stderr}");

    let (status, stdout, _) = check(&["--json"], "7s");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &json["valid"]), (0, &true.into()));
    assert_eq!(json["settings"][0]["key"], "RouterAddress");

    let (status, _, stderr) = check(&[], "7");
    assert_eq!(status, 78);
    assert!(stderr.contains(r#"DrainTimeout = "7""#), "{stderr}");
    let (status, stdout, stderr) = check(&["--json"], "7");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &json["valid"]), (78, &false.into()));
    assert_eq!(json["problems"][0]["key"], "DrainTimeout");
    assert!(!stderr.is_empty());
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    for arguments in
        [&["--nonsense"][..], &["extra"], &["--json"], &["--create-config", "--check-config"]]
    {
        let (status, _, stderr) = run(program().args(arguments));
        assert_eq!(status, 2, "{arguments:?}");
        assert!(!stderr.is_empty());
    }
    for (argument, expected) in [
        ("--install", "systemctl enable aspia-relay"),
        ("--remove", "systemctl disable aspia-relay"),
        ("--start", "systemctl start aspia-relay"),
        ("--stop", "systemctl stop aspia-relay"),
    ] {
        let (status, _, stderr) = run(program().arg(argument));
        assert_eq!(status, 2);
        assert!(stderr.contains(expected), "{stderr}");
    }
    let (status, stdout, _) = run(program().arg("--help"));
    assert!(status == 0 && stdout.contains("--create-config"), "{stdout}");
    let (status, stdout, _) = run(program().arg("--version"));
    assert_eq!((status, stdout.trim()), (0, concat!("aspia_relay ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_wrong_configuration_stops_the_start_and_reaches_stderr_at_any_log_level() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    std::fs::write(&path, "{").unwrap();
    for level in ["0", "2"] {
        for stdout in ["0", "1"] {
            let (status, _, stderr) = run(program()
                .arg("--config")
                .arg(&path)
                .env("ASPIA_LOG_LEVEL", level)
                .env("ASPIA_LOG_TO_STDOUT", stdout));
            assert_eq!(status, 78);
            assert!(stderr.contains("relay.json") && stderr.contains("JSON"), "{stderr}");
        }
    }
    let (status, _, stderr) = run(program().args(["--config", "/nonexistent.json"]));
    assert_eq!(status, 78);
    assert!(stderr.contains("an existing file"), "{stderr}");
}

#[test]
fn check_config_of_a_broken_file_says_so_first_and_shows_no_values() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let check = |content: &str| {
        std::fs::write(&path, content).unwrap();
        // As on a terminal, where both are one.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = program();
        command.arg("--check-config").arg("--config").arg(&path);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        (child.wait().unwrap().code().unwrap(), said)
    };
    let (status, said) = check("{\"PeerPort\": 1,}");
    assert_eq!((status, said.lines().count()), (78, 1), "{said}");
    assert!(said.contains("one JSON object of settings"), "{said}");
    // What is wrong comes before the values, also where these are known.
    let (status, said) = check("{\"PeerPort\": \"x\"}");
    assert_eq!(status, 78);
    let place = |part: &str| said.find(part).unwrap_or_else(|| panic!("{part} is not in {said}"));
    assert!(place("a whole number from 1 to 65535") < place("MaxPeerCount"), "{said}");
}

#[test]
fn what_stops_a_start_is_said_once_where_both_outputs_are_one_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    std::fs::write(&path, "{").unwrap();
    for format in ["text", "json"] {
        for (level, stdout) in [("0", "1"), ("2", "1"), ("0", "0")] {
            let mut command = program();
            command.arg("--config").arg(&path).env("ASPIA_LOG_LEVEL", level);
            command.env("ASPIA_LOG_FORMAT", format).env("ASPIA_LOG_TO_STDOUT", stdout);
            let (status, out, err) = run(&mut command);
            assert_eq!((status, out.as_str()), (78, ""), "{format}");
            assert_eq!(err.matches("one JSON object").count(), 1, "{format}: {err}");
            let is_json = serde_json::from_str::<serde_json::Value>(&err).is_ok();
            assert_eq!(is_json, format == "json", "{err}");
        }
    }
}

#[test]
fn names_and_values_are_shown_without_their_escape_sequences() {
    const HOSTILE: &str = "X\u{1b}[2J\u{9b}31m";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let quoted = serde_json::Value::from(HOSTILE).to_string();
    let wrong = format!("{{{quoted}: 1, \"PeerAddress\": {quoted}}}");
    for argument in [None, Some("--check-config"), Some("--doctor"), Some("--healthcheck")] {
        for json in [false, true] {
            std::fs::write(&path, &wrong).unwrap();
            let mut command = program();
            command.arg("--config").arg(&path).args(argument);
            command.env(format!("ASPIA_RELAY_{HOSTILE}"), "1");
            command.env("ASPIA_RELAY_ADMIN_TOKEN_FILE", format!("/nonexistent/{HOSTILE}"));
            match argument {
                Some("--check-config" | "--doctor") if json => command.arg("--json"),
                _ => command.env("ASPIA_LOG_FORMAT", if json { "json" } else { "text" }),
            };
            let (status, out, err) = run(&mut command);
            assert_ne!(status, 0);
            let said = out + &err;
            assert!(said.contains("31m"), "{said}");
            let obeyed = |letter: char| letter.is_control() && letter != '\n';
            assert!(!said.contains(obeyed), "{argument:?}: {said:?}");
        }
    }
}

#[test]
fn what_a_relay_3_0_has_left_is_named_wherever_the_file_is_missed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    for name in ["relay.json.bak", "relay.conf"] {
        std::fs::write(directory.path().join(name), "").unwrap();
    }
    for argument in [None, Some("--check-config"), Some("--doctor")] {
        let (status, out, err) = run(program().arg("--config").arg(&path).args(argument));
        assert_ne!(status, 0);
        let said = out + &err;
        for part in ["relay.json.bak", "relay.conf", "8063"] {
            assert!(said.contains(part), "{argument:?}: {part} is not in {said}");
        }
    }
}

/// With a directory of its own at `/etc/aspia`.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_gone_when_the_configuration_is_read_again_changes_nothing() {
    const SCRIPT: &str = "mount -t tmpfs none /etc && mkdir /etc/aspia && mount --bind \"$1\" /etc/aspia && exec \"$2\"";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let in_namespace = |program: &str| {
        let mut command = Command::new("unshare");
        command.env_clear().stdin(Stdio::null());
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"]);
        command.arg(directory.path()).arg(program).env("PATH", std::env::var_os("PATH").unwrap());
        command
    };
    let can = in_namespace("true").stderr(Stdio::null()).status();
    if !can.is_ok_and(|status| status.success()) {
        relay_lab::skip("a file that is gone", "unshare or mount does not work");
        return;
    }
    std::fs::write(&path, r#"{"MaxPeerCount": 7}"#).unwrap();
    let mut command = in_namespace(env!("CARGO_BIN_EXE_aspia_relay"));
    command.env("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1").env("ASPIA_RELAY_ROUTER_PORT", "1");
    command.env("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY);
    command.env("ASPIA_RELAY_PEER_ADDRESS", "192.0.2.1");
    command.env("ASPIA_RELAY_PEER_PORT", free_port().to_string());
    command.env("ASPIA_RELAY_ADMIN_LISTEN", "off");
    let relay = Running::start(&mut command);
    let line = relay.line(" runs: ");
    assert!(line.contains("up to 7 sessions") && !line.contains("there is no"), "{line}");
    std::fs::remove_file(&path).unwrap();
    relay.signal("HUP");
    let line = relay.line("SIGHUP: nothing is changed");
    assert!(line.contains("/etc/aspia/relay.json") && line.contains("it is gone"), "{line}");
    drop(relay);
    // Where it starts without one, it says so.
    let line = Running::start(&mut command).line(" runs: ");
    assert!(line.contains("up to 100 sessions"), "{line}");
    assert!(line.contains("there is no /etc/aspia/relay.json"), "{line}");
}

/// As the user of the image, in what looks like a container; needs root.
#[cfg(target_os = "linux")]
#[test]
fn advice_for_files_that_may_not_be_read_or_written_fits_a_container() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    const USER: u32 = 65532;
    let directory = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(directory.path(), 0o755);
    // The user may not get to the one that was built.
    let copy = directory.path().join("aspia_relay");
    std::fs::copy(env!("CARGO_BIN_EXE_aspia_relay"), &copy).unwrap();
    let program = || {
        let mut command = Command::new(&copy);
        command.env_clear().stdin(Stdio::null()).uid(USER).gid(USER);
        command.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        command
    };
    if program().arg("--version").output().is_err() {
        relay_lab::skip("advice in a container", "only root can be another user");
        return;
    }
    let path = directory.path().join("relay.json");
    let check = |arguments: &[&str], variables: &[(&str, &Path)]| {
        let mut command = program();
        command.arg("--config").arg(&path).args(arguments).envs(variables.iter().copied());
        run(&mut command).2
    };
    let secret = directory.path().join("secret");
    std::fs::write(&secret, KEY).unwrap();
    mode(&secret, 0o600);
    let tls = ("ASPIA_RELAY_METRICS_TLS_PRIVATE_KEY", &*secret);
    let certificate = ("ASPIA_RELAY_METRICS_TLS_CERTIFICATE", &*secret);
    let of_file = ("ASPIA_RELAY_ADMIN_TOKEN_FILE", &*secret);
    // It is missing, and cannot be made; by what cannot be made it is not advised to be made.
    for arguments in [&["--check-config"][..], &[]] {
        let said = check(arguments, &[]);
        assert!(said.contains("put it into the directory that is mounted at"), "{said}");
        assert!(!said.contains("--create-config"), "{said}");
    }
    let said = check(&["--create-config"], &[]);
    assert!(said.contains("--user 0") && !said.contains("sudo"), "{said}");
    write(&path, 1, 8070, KEY, "");
    for (variables, of) in [(&[of_file][..], "AdminToken"), (&[tls, certificate], "MetricsTls")] {
        let said = check(&["--check-config"], variables);
        assert!(said.contains(of) && said.contains("as user 65532 in this container"), "{said}");
    }
    mode(&path, 0o600);
    for arguments in [&["--check-config"][..], &[], &["--doctor"]] {
        let mut command = program();
        command.arg("--config").arg(&path).args(arguments);
        let (_, out, err) = run(&mut command);
        let said = out + &err;
        assert!(said.contains("as user 65532 in this container"), "{said}");
        assert!(!said.contains("chgrp aspia-relay"), "{said}");
    }
}

#[test]
fn a_misspelt_variable_is_named_where_a_start_lacks_what_it_was_to_give() {
    let mut command = program();
    command.env("ASPIA_RELAY_ROUTER_ADRESS", "r.example");
    command.env("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY).env("ASPIA_RELAY_PEER_ADDRESS", "p.example");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    std::fs::write(&path, "{}").unwrap();
    command.arg("--config").arg(&path);
    let (status, _, err) = run(&mut command);
    assert_eq!(status, 78);
    assert!(err.contains("did you mean ASPIA_RELAY_ROUTER_ADDRESS?"), "{err}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_line_at_start_says_which_families_are_listened_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    let both = if has_ipv6 { "(IPv4 and IPv6)" } else { "(IPv4 only)" };
    for (interface, families) in [("", both), ("::", both), ("0.0.0.0", "(IPv4 only)")] {
        let (port, admin) = (free_port(), free_port());
        let more = format!(
            r#", "ListenInterface": "{interface}", "AdminListen": "[::]:{admin}", "AdminToken": "hush""#
        );
        write(&path, 1, port, KEY, &more);
        let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
        let relay = Running::start(command.env_clear().arg("--config").arg(&path));
        let line = relay.line(" runs: ");
        let expected = format!(":{port} {families}");
        assert!(line.contains(&expected), "{expected} is not in {line}");
        assert!(line.contains(&format!(":{admin} {both}")), "{line}");
        for (host, port, listens) in [
            ("127.0.0.1", port, true),
            ("::1", port, has_ipv6 && families == both),
            ("127.0.0.1", admin, true),
            ("::1", admin, has_ipv6),
        ] {
            let connected = std::net::TcpStream::connect((host, port)).is_ok();
            assert_eq!(connected, listens, "{host} {port}");
        }
    }
}

#[test]
fn log_files_that_cannot_be_written_stop_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 1, free_port(), KEY, "");
    std::fs::write(directory.path().join("aspia"), "a file where the directory should be").unwrap();
    let (status, _, stderr) = run(program()
        .arg("--config")
        .arg(&path)
        .env("TMPDIR", directory.path())
        .env("ASPIA_LOG_TO_FILE", "1"));
    assert_eq!(status, 1);
    assert!(stderr.contains("cannot write log files"), "{stderr}");
}

/// A relay that runs, and the lines of its stderr.
struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line, which comes or the test fails.
    fn line(&self, expected: &str) -> String {
        let mut seen = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Ok(line) = self.lines.recv_timeout(deadline - Instant::now()) {
            if line.contains(expected) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line with {expected:?} in {seen:#?}");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Waits for its end, which comes or the test fails.
    fn status(mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn it_says_what_runs_reloads_and_stops_by_signals() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let (port, key) = (free_port(), router.public_key().to_string());
    let router_port = router.address().port();
    write(&path, router_port, port, &key, "");
    let relay = Running::start(
        program()
            .arg("--config")
            .arg(&path)
            .env("RUST_LOG", "info")
            .env("ASPIA_LOG_TO_STDOUT", "0")
            .env("TMPDIR", directory.path())
            .env("ASPIA_LOG_TO_FILE", "1"),
    );
    let line = relay.line(" runs: ");
    for part in [
        concat!("aspia_relay ", env!("CARGO_PKG_VERSION")),
        &format!("Router 127.0.0.1:{router_port}"),
        &format!("peers dial 127.0.0.1:{port}"),
        "up to 100 sessions",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    router.keys(100).await;

    // A second one on the same port says who holds it.
    let (status, _, stderr) = run(program().arg("--config").arg(&path));
    assert_eq!(status, 1);
    #[cfg(target_os = "linux")]
    assert!(stderr.contains(&format!("process {} (aspia_relay)", relay.child.id())), "{stderr}");
    assert!(stderr.contains("ListenPort"), "{stderr}");

    // A reload applies, a wrong file changes nothing and says so.
    write(&path, router_port, port, &key, r#", "MaxPeerCount": 120"#);
    relay.signal("HUP");
    router.keys(120).await;
    write(&path, router_port, port, &key, r#", "MaxPeerCount": "many""#);
    relay.signal("HUP");
    relay.line("SIGHUP: nothing is changed");

    // A session makes it wait; a second signal does not.
    let (client, host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    router.keys(119).await;
    relay.signal("TERM");
    router.wait_for(|view| !view.linked).await;
    relay.signal("INT");
    assert_eq!(relay.status(), Some(0));
    drop((client, host));

    // The log file has it all.
    let logs: Vec<_> = std::fs::read_dir(directory.path().join("aspia")).unwrap().collect();
    let mut text = String::new();
    for log in logs {
        std::fs::File::open(log.unwrap().path()).unwrap().read_to_string(&mut text).unwrap();
    }
    for expected in
        ["runs:", "connected to the Router", "changed: [MaxPeerCount]", "SIGTERM: stopping"]
    {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert!(text.contains("SIGINT: stopping at once") && text.contains("AtOnce"), "{text}");
}

#[tokio::test]
async fn one_signal_is_enough_when_nobody_is_here() {
    for signal in ["TERM", "INT"] {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.json");
        write(&path, router.address().port(), free_port(), &router.public_key().to_string(), "");
        let relay = Running::start(program().arg("--config").arg(&path));
        // The line at start reaches stderr at the default level, which hides everything else.
        relay.line(" runs: ");
        router.keys(100).await;
        relay.signal(signal);
        assert_eq!(relay.status(), Some(0));
    }
}

/// The pieces of a process's start that a signal may come in, slowed down: the process reads its environment's settings
/// from a pipe that nobody has written to yet.
#[tokio::test]
async fn a_signal_during_the_start_is_not_lost_and_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("relay.json");
    for signals in [&["HUP", "HUP", "TERM"][..], &["INT"], &["TERM", "TERM"]] {
        let _ = std::fs::remove_file(&pipe);
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let relay = Running::start(program().arg("--config").arg(&pipe));
        handles_signals(&relay);
        for signal in signals {
            relay.signal(signal);
        }
        assert_eq!(relay.status(), Some(0), "{signals:?}");
    }
    // What was asked before the relay ran is done when it does.
    let _ = std::fs::remove_file(&pipe);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let relay = Running::start(program().arg("--config").arg(&pipe));
    handles_signals(&relay);
    relay.signal("HUP");
    write(&pipe, 1, free_port(), KEY, "");
    relay.line(" runs: ");
    // The reload reads the pipe once more, and finds something wrong there: its end.
    std::fs::write(&pipe, "{").unwrap();
    relay.line("SIGHUP: nothing is changed");
    relay.signal("TERM");
    assert_eq!(relay.status(), Some(0));
}

/// Waits until a process has handlers for SIGHUP, SIGINT and SIGTERM.
fn handles_signals(relay: &Running) {
    const WANTED: u64 = 1 << 0 | 1 << 1 | 1 << 14;

    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        if u64::from_str_radix(caught.trim(), 16).unwrap() & WANTED == WANTED {
            return;
        }
        assert!(Instant::now() < deadline, "it handles no signals: {caught}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// As in a container: the first process of a namespace ignores what it does not handle.
#[cfg(target_os = "linux")]
#[test]
fn the_first_process_of_a_container_stops_by_a_signal_at_its_start() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("relay.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut unshare = Command::new("unshare");
    unshare.args(["--fork", "--pid", "--kill-child", env!("CARGO_BIN_EXE_aspia_relay")]);
    unshare.arg("--config").arg(&pipe).env_clear().env("PATH", std::env::var("PATH").unwrap());
    let mut outer = unshare.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", outer.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    let inner = loop {
        let child = std::fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        // SIGTERM is handled.
        if caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << 14 != 0) {
            break child;
        }
        if outer.try_wait().unwrap().is_some() {
            relay_lab::skip("a first process", "unshare makes no namespace here");
            return;
        }
        assert!(Instant::now() < deadline, "it handles no signals");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(Command::new("kill").args(["-s", "TERM", &inner]).status().unwrap().success());
    assert_eq!(outer.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_drain_by_an_administrator_outlives_the_first_signal() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let more = r#", "DrainTimeout": "600s""#;
    write(&path, router.address().port(), free_port(), &router.public_key().to_string(), more);
    let mut command = program();
    command.arg("--config").arg(&path).env("ASPIA_RELAY_ADMIN_LISTEN", admin.to_string());
    let relay = Running::start(
        command
            .env("RUST_LOG", "info")
            .env("ASPIA_LOG_TO_STDOUT", "0")
            .env("ASPIA_LOG_TO_FILE", "1")
            .env("TMPDIR", directory.path()),
    );
    relay.line(" runs: ");
    router.keys(100).await;
    let (mut client, mut host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
    let log = || {
        let logs = std::fs::read_dir(directory.path().join("aspia")).unwrap();
        logs.map(|log| std::fs::read_to_string(log.unwrap().path()).unwrap()).collect::<String>()
    };
    let logged = async |line: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !log().contains(line) {
            assert!(Instant::now() < deadline, "{line} is not in {}", log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let drain = relay_lab::http::request(admin, "POST /drain", &[], "").await.unwrap();
    assert_eq!(drain.status, 202);
    relay.signal("TERM");
    logged("SIGTERM: the stop that an administrator asked for goes on").await;
    // The session goes on, and a reload is harmless.
    relay.signal("HUP");
    logged("SIGHUP: the configuration was read").await;
    host.write_all(b"y").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    relay.signal("INT");
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(relay.status(), Some(0));
    assert!(log().contains("SIGINT: stopping at once"), "{}", log());
}

/// A descriptor for each of `count` silent connections to `port`.
fn connections(port: u16, count: usize) -> Vec<std::net::TcpStream> {
    (0..count).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect()
}

#[tokio::test]
async fn when_descriptors_run_out_those_who_keep_silent_make_room_and_everything_else_goes_on() {
    descriptors_run_out(120, 0, 200).await;
}

/// A machine with many cores: the descriptors of its threads are nobody else's.
#[tokio::test]
async fn many_worker_threads_leave_descriptors_for_everything_else() {
    descriptors_run_out(700, 256, 900).await;
}

/// Has more callers than there are descriptors, with `limit` of them and so many worker threads.
async fn descriptors_run_out(limit: u32, workers: usize, callers: usize) {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let (port, admin) = (free_port(), free_port());
    let more = format!(
        r#", "AdminListen": "127.0.0.1:{admin}", "WorkerThreads": {workers},
            "MaxPendingPeersPerAddress": 1000, "PeerConnectRate": 0"#
    );
    write(&path, router.address().port(), port, &router.public_key().to_string(), &more);
    let mut command = Command::new("/bin/sh");
    let script = format!("ulimit -n {limit}; exec \"$0\" --config \"$1\"");
    command.env_clear().args(["-c", &script]);
    command.arg(env!("CARGO_BIN_EXE_aspia_relay")).arg(&path).stdin(Stdio::null());
    let relay = Running::start(&mut command);
    if workers > 0 {
        relay.line("of 256 worker threads are started");
    }
    router.keys(100).await;
    let (mut client, mut host) = router.introduce().await.unwrap().session().await.unwrap();
    let silent = connections(port, callers);
    let line = relay.line("descriptors are short");
    assert!(line.contains("ulimit -n"), "{line}");
    // There are descriptors for whoever asks what is wrong; sessions go on, and so does the link.
    let admin = ([127, 0, 0, 1], admin).into();
    for _ in 0..3 {
        let status = relay_lab::http::request(admin, "GET /status", &[], "").await.unwrap();
        assert_eq!(status.status, 200, "{}", status.body);
    }
    // And for those who have something to say.
    let (mut a, mut b) = router.introduce().await.unwrap().session().await.unwrap();
    relay_lab::traffic::send(&mut a, 1, 1000).await.unwrap();
    assert_eq!(relay_lab::traffic::receive(&mut b, Some(1000)).await.unwrap().0, 1000);
    let (sent, received) = tokio::join!(
        relay_lab::traffic::send(&mut client, 3, 3_000_000),
        relay_lab::traffic::receive(&mut host, Some(3_000_000))
    );
    sent.unwrap();
    assert_eq!(received.unwrap().1, relay_lab::traffic::hash(3, 3_000_000));
    drop(silent);
    // It serves on: a pair meets, over the link that was there all the time.
    let (mut client, mut host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    relay_lab::traffic::send(&mut client, 1, 1000).await.unwrap();
    let received = relay_lab::traffic::receive(&mut host, Some(1000)).await.unwrap();
    assert_eq!(received.1, relay_lab::traffic::hash(1, 1000));
    assert_eq!(router.view().links, 1);
    relay.signal("TERM");
    relay.signal("TERM");
    assert_eq!(relay.status(), Some(0));
}

#[test]
fn a_closed_or_full_stdout_or_stderr_changes_no_exit_status() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 8060, 8070, KEY, "");
    let wrong = directory.path().join("wrong.json");
    std::fs::write(&wrong, "{").unwrap();
    // A pipe that nobody reads any more, and a device that takes nothing.
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let status = |path: &Path, stdout: Stdio, stderr: Stdio, argument: &str| {
        let mut command = program();
        command.arg("--config").arg(path).arg(argument).stdout(stdout).stderr(stderr);
        command.status().unwrap().code()
    };
    for stdout in [closed(), std::fs::File::create("/dev/full").unwrap().into()] {
        assert_eq!(status(&path, stdout, Stdio::null(), "--check-config"), Some(1));
    }
    for stderr in [closed(), std::fs::File::create("/dev/full").unwrap().into()] {
        assert_eq!(status(&wrong, Stdio::null(), stderr, "--check-config"), Some(78));
    }
    let mut command = program();
    command.arg("--config").arg(&wrong).stdout(closed()).stderr(closed());
    assert_eq!(command.status().unwrap().code(), Some(78));
}

/// A pipe that nobody reads any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[cfg(target_os = "linux")]
#[test]
fn what_ends_the_program_is_on_stdout_where_stderr_does_not_take_it() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("wrong.json");
    std::fs::write(&wrong, "{").unwrap();
    // A pipe that is full and that nobody reads, for as long as the reader lives.
    let (_reader, writer) = std::io::pipe().unwrap();
    let full_pipe = || {
        let mut other = writer.try_clone().unwrap();
        rustix::io::ioctl_fionbio(&other, true).unwrap();
        while other.write(&[b'x'; 1]).is_ok() {}
        rustix::io::ioctl_fionbio(&other, false).unwrap();
        Stdio::from(other)
    };
    let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
    let kinds: [&dyn Fn() -> Stdio; 3] = [&full, &closed_pipe, &full_pipe];
    for (kind, stderr) in kinds.iter().enumerate() {
        for format in ["text", "json"] {
            for to_stdout in ["1", "0"] {
                let mut command = program();
                command.arg("--config").arg(&wrong).stderr(stderr());
                command.env("ASPIA_LOG_FORMAT", format).env("ASPIA_LOG_TO_STDOUT", to_stdout);
                let (status, stdout, _) = run(command.stdout(Stdio::piped()));
                assert_eq!(status, 78, "{kind} {format} {to_stdout}");
                assert!(stdout.contains("wrong.json"), "{kind} {format} {to_stdout}: {stdout}");
            }
        }
        let mut command = program();
        command.arg("--config").arg(&wrong).arg("--check-config").stderr(stderr());
        let (status, stdout, _) = run(command.stdout(Stdio::piped()));
        assert_eq!(status, 78);
        assert!(stdout.contains("aspia_relay: configuration: "), "{kind}: {stdout}");
        // What a program reads stays what it is.
        let mut command = program();
        command.arg("--config").arg(&wrong).args(["--check-config", "--json"]).stderr(stderr());
        let (status, stdout, _) = run(command.stdout(Stdio::piped()));
        assert_eq!(status, 78);
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
    }
    // Where stderr takes it, it is there and nowhere else.
    for format in ["text", "json"] {
        let mut command = program();
        command.arg("--config").arg(&wrong).env("ASPIA_LOG_FORMAT", format);
        let (status, stdout, stderr) = run(&mut command);
        assert_eq!((status, stdout.as_str()), (78, ""));
        assert_eq!(stderr.matches("EOF while").count(), 1, "{stderr}");
    }
}

#[test]
fn a_start_without_threads_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 8060, 8070, KEY, "");
    let mut command = program();
    // More than there are addresses: none can be started.
    command.arg("--config").arg(&path).env("RUST_MIN_STACK", (1_u64 << 48).to_string());
    let (status, _, stderr) = run(&mut command);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.starts_with("aspia_relay: cannot "), "{stderr}");
}

/// The program with a Router, and its settings from the environment.
fn with_router(router: &LabRouter, admin: u16) -> Command {
    let mut command = program();
    command
        .env("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1")
        .env("ASPIA_RELAY_ROUTER_PORT", router.address().port().to_string())
        .env("ASPIA_RELAY_ROUTER_PUBLIC_KEY", router.public_key().to_string())
        .env("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1")
        .env("ASPIA_RELAY_PEER_PORT", free_port().to_string())
        .env("ASPIA_RELAY_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
        .env("ASPIA_LOG_LEVEL", "0");
    command
}

/// Waits until a condition holds, which it does or the test fails.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Kills a relay when the test is over, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn lines_lost(admin: u16) -> f64 {
    let address = ([127, 0, 0, 1], admin).into();
    let text = relay_lab::http::get(address, "/metrics").await.unwrap().body;
    relay_lab::metrics::sum(&text, "aspia_relay_log_lines_lost_total")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_stdout_does_not_take_reaches_stderr() {
    let full = || std::fs::File::create("/dev/full").unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    // With whether stdout is there at all, so that it can fail and lines can be lost.
    for (stdout, is_there) in [(full().into(), true), (closed(), true), (Stdio::null(), false)] {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let (directory, admin) = (tempfile::tempdir().unwrap(), free_port());
        let path = directory.path().join("stderr");
        let mut command = with_router(&router, admin);
        command.stdout(stdout).stderr(std::fs::File::create(&path).unwrap());
        let _relay = Killed(command.spawn().unwrap());
        let stderr = || std::fs::read_to_string(&path).unwrap();
        router.keys(100).await;
        router.drop_link().await;
        until("the lost link", || stderr().contains("Router link: ")).await;
        let text = stderr();
        assert_eq!(text.matches("runs: Router").count(), 1, "{text}");
        let said = text.matches("the log cannot be written to stdout").count();
        assert_eq!(said, usize::from(is_there), "{text}");
        // Lines of information are lost.
        assert_eq!(lines_lost(admin).await > 0.0, is_there);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_stderr_does_not_take_reaches_stdout() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let (directory, admin) = (tempfile::tempdir().unwrap(), free_port());
    let path = directory.path().join("stdout");
    let mut command = with_router(&router, admin);
    // Only errors are for stdout.
    command.env("ASPIA_LOG_LEVEL", "1").stdout(std::fs::File::create(&path).unwrap());
    let _relay =
        Killed(command.stderr(std::fs::File::create("/dev/full").unwrap()).spawn().unwrap());
    router.keys(100).await;
    router.drop_link().await;
    let stdout = || std::fs::read_to_string(&path).unwrap();
    until("the lost link", || stdout().contains("Router link: ")).await;
    assert!(stdout().contains("the log cannot be written to stderr"), "{}", stdout());
    assert_eq!(lines_lost(admin).await, 0.0);
}

/// What a service manager or a script may do with the standard descriptors.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_is_closed_from_the_start_is_replaced() {
    for (closed, open) in [(">&-", "2>"), ("2>&-", ">")] {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let from = with_router(&router, free_port());
        let mut command = Command::new("/bin/sh");
        command.env_clear().stdin(Stdio::null());
        command.envs(from.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // The usual level: only what is fatal is for stdout.
        command.env("ASPIA_LOG_LEVEL", "2");
        command.args(["-c", &format!("exec \"$0\" {closed} {open}\"$1\"")]);
        command.arg(env!("CARGO_BIN_EXE_aspia_relay")).arg(&path);
        let _relay = Killed(command.spawn().unwrap());
        router.keys(100).await;
        router.drop_link().await;
        let log = || std::fs::read_to_string(&path).unwrap();
        until("the lost link", || log().contains("Router link: ")).await;
        assert_eq!(log().matches("runs: Router").count(), 1, "{}", log());
        assert_eq!(log().contains("stderr is closed"), closed.starts_with('2'), "{}", log());
    }
}

#[tokio::test]
async fn a_log_file_that_was_rotated_away_is_followed_by_a_new_one() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let files = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(directory.path().join("aspia")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut command = with_router(&router, free_port());
    command.env("ASPIA_LOG_TO_FILE", "1").env("ASPIA_LOG_TO_STDOUT", "0");
    let relay = Running::start(command.env("TMPDIR", directory.path()));
    router.keys(100).await;
    let [first] = &files()[..] else { panic!("{:?}", files()) };
    std::fs::rename(first, directory.path().join("rotated")).unwrap();
    relay.signal("HUP");
    until("a new file", || {
        files().iter().any(|path| std::fs::read_to_string(path).unwrap().contains("SIGHUP"))
    })
    .await;
    let rotated = std::fs::read_to_string(directory.path().join("rotated")).unwrap();
    assert!(
        rotated.contains("connected to the Router") && !rotated.contains("SIGHUP"),
        "{rotated}"
    );
}

#[tokio::test]
async fn a_configuration_that_hangs_at_a_reload_does_not_make_it_deaf() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, router.address().port(), free_port(), &router.public_key().to_string(), "");
    let relay = Running::start(program().arg("--config").arg(&path));
    router.keys(100).await;
    // Nobody ever writes into this pipe: whoever opens it waits for ever.
    std::fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    relay.signal("HUP");
    relay.signal("TERM");
    assert_eq!(relay.status(), Some(0));
}

#[test]
fn a_port_for_http_that_is_taken_stops_the_start_and_names_the_setting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 1, free_port(), KEY, "");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for setting in ["AdminListen", "MetricsListen"] {
        let variable = aspia_relay::config::settings::variable(setting);
        let mut command = program();
        command.arg("--config").arg(&path).env(&variable, &address);
        let (status, _, stderr) = run(&mut command);
        assert_eq!(status, 1, "{stderr}");
        for part in [setting, address.as_str(), "in use"] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
    }
}

#[test]
fn an_admin_listener_for_others_needs_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 1, free_port(), KEY, "");
    let check = |more: &[(&str, &str)]| {
        let mut command = program();
        command.arg("--check-config").arg("--config").arg(&path);
        run(command.envs(more.iter().copied()))
    };
    let open = ("ASPIA_RELAY_ADMIN_LISTEN", "0.0.0.0:8071");
    let (status, _, stderr) = check(&[open]);
    assert_eq!(status, 78);
    assert!(stderr.contains("AdminToken") && stderr.contains("0.0.0.0:8071"), "{stderr}");
    let (status, stdout, stderr) = check(&[open, ("ASPIA_RELAY_ADMIN_TOKEN", "hush-hush")]);
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.contains("(redacted)") && !stdout.contains("hush-hush"), "{stdout}");
    // Not even where it is wrong.
    let (status, stdout, stderr) = check(&[("ASPIA_RELAY_ADMIN_TOKEN", "hush hush")]);
    assert_eq!(status, 78);
    assert!(!stdout.contains("hush") && !stderr.contains("hush"), "{stdout}{stderr}");
}

#[test]
fn healthcheck_asks_the_admin_listener_or_the_peer_port() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let (peer_port, admin_port) = (free_port(), free_port());
    write(&path, 1, peer_port, KEY, "");
    let admin = format!("127.0.0.1:{admin_port}");
    let healthcheck = |admin: &str| {
        let mut command = program();
        command.arg("--healthcheck").arg("--config").arg(&path);
        run(command.env("ASPIA_RELAY_ADMIN_LISTEN", admin))
    };
    for admin in ["off", &admin] {
        let (status, _, stderr) = healthcheck(admin);
        assert_eq!(status, 1);
        assert!(stderr.contains("does the relay run"), "{stderr}");
    }
    let mut command = program();
    command.arg("--config").arg(&path).env("ASPIA_RELAY_ADMIN_LISTEN", &admin);
    let mut relay = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(relay.stderr.take().unwrap()).read_line(&mut line).unwrap();
    for admin in ["off", &admin] {
        let (status, _, stderr) = healthcheck(admin);
        assert_eq!(status, 0, "{admin}: {stderr}");
    }
    relay.kill().unwrap();
    relay.wait().unwrap();
    // Somebody else's port.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = other.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let (status, _, stderr) = healthcheck(&address.to_string());
    assert_eq!(status, 1);
    assert!(stderr.contains("404") && stderr.contains("AdminListen"), "{stderr}");
    thread.join().unwrap();
}

/// A health check asks the relay that runs, whatever the file says by now; and that relay, not another one.
#[cfg(target_os = "linux")]
#[test]
fn healthcheck_asks_the_relay_that_runs_whatever_the_file_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let (peer_port, admin_port) = (free_port(), free_port());
    let admin = |port: u16| format!(r#", "AdminToken": "t", "AdminListen": "127.0.0.1:{port}""#);
    write(&path, 1, peer_port, KEY, &admin(admin_port));
    let command = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
        command.env_clear().stdin(Stdio::null()).arg("--config").arg(path);
        command
    };
    let healthcheck = |path: &Path, probe: &[&str]| {
        let (status, _, stderr) = run(command(path).arg("--healthcheck").args(probe));
        (status, stderr)
    };
    // Another relay with another file, beside it all the time.
    let other_path = directory.path().join("other.json");
    write(&other_path, 1, free_port(), KEY, r#", "AdminListen": "off""#);
    let other = Running::start(&mut command(&other_path));
    other.line(" runs: ");
    assert_eq!(healthcheck(&path, &[]).0, 1);
    let relay = Running::start(&mut command(&path));
    relay.line(" runs: ");
    let all_is_well = |what: &str| {
        for probe in [&[][..], &["live"]] {
            assert_eq!(healthcheck(&path, probe), (0, String::new()), "{what}");
            assert_eq!(healthcheck(&other_path, probe), (0, String::new()), "{what}");
        }
        // There is no Router.
        for path in [&path, &other_path] {
            let (status, stderr) = healthcheck(path, &["ready"]);
            assert!(status == 1 && stderr.contains("not ready: router-link"), "{what}: {stderr}");
        }
    };
    all_is_well("as started");
    std::fs::write(&path, "{\"AdminListen\": ").unwrap();
    all_is_well("half a file");
    let (status, stdout, _) = run(command(&path).arg("--doctor"));
    assert_eq!(status, 1);
    assert!(stdout.contains("it goes on with the configuration that it read before"), "{stdout}");
    write(&path, 1, free_port(), KEY, &admin(free_port()));
    relay.signal("HUP");
    relay.line("a restart is needed for");
    all_is_well("what waits for a restart");
    std::fs::remove_file(&path).unwrap();
    all_is_well("no file");
    // A relay that hangs is not well, and one that was killed leaves nothing behind.
    relay.signal("STOP");
    let (status, stderr) = healthcheck(&path, &[]);
    assert!(status == 1 && stderr.contains("does not answer within 5 s"), "{stderr}");
    drop(relay);
    let (status, stderr) = healthcheck(&path, &[]);
    assert!(
        status == 1 && stderr.contains("no relay, or more than one, that was started with"),
        "{stderr}"
    );
    assert_eq!(healthcheck(&other_path, &[]), (0, String::new()));
}

#[cfg(target_os = "linux")]
fn sources(path: &Path) -> Sources {
    Sources { path: path.to_owned(), path_is_explicit: true, environment: Vec::new() }
}

/// While a relay does not run, any user can take a name like its own.
#[cfg(target_os = "linux")]
#[test]
fn healthcheck_believes_no_other_user() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let (port, admin) = (free_port(), free_port());
    write(&path, 1, port, KEY, &format!(r#", "AdminListen": "127.0.0.1:{admin}""#));
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
        command.env_clear().stdin(Stdio::null()).arg("--config").arg(&path);
        command
    };
    let healthcheck = || run(command().arg("--healthcheck"));
    let publish = |user: u32| {
        let name = Identity::of_process(&sources(&path)).name(port).unwrap().socket();
        relay_lab::impostor::publish(&name, user, &[("/livez", r#"{"alive":true}"#)])
    };
    if publish(4242).is_err() {
        relay_lab::skip("a relay of another user", "only root may be another user");
        return;
    }
    let (status, _, stderr) = healthcheck();
    assert!(status == 1 && stderr.contains("does the relay run"), "{stderr}");
    // Beside the relay that runs it does not make it one of several, either.
    let relay = Running::start(&mut command());
    relay.line(" runs: ");
    std::fs::write(&path, "{").unwrap();
    assert_eq!(healthcheck(), (0, String::new(), String::new()));
    drop(relay);
    assert_eq!(healthcheck().0, 1);
    // One of root's is believed: that the others were not is for their users.
    publish(0).unwrap();
    assert_eq!(healthcheck(), (0, String::new(), String::new()));
}

/// Root believes a user who holds the port of peers that the name says: relays have users of their own.
#[cfg(target_os = "linux")]
#[test]
fn healthcheck_of_root_believes_whoever_holds_the_port_of_peers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    std::fs::write(&path, "{").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = Identity::of_process(&sources(&path)).name(port).unwrap().socket();
    let alive = &[("/livez", r#"{"alive":true}"#)];
    if relay_lab::impostor::publish(&name, 4242, alive).is_err() {
        relay_lab::skip("a relay of another user", "only root may be another user");
        return;
    }
    let healthcheck = || {
        let mut command = program();
        run(command.arg("--healthcheck").arg("--config").arg(&path)).0
    };
    assert_eq!(healthcheck(), 0);
    drop(listener);
    assert_eq!(healthcheck(), 1);
}

/// `docker run IMAGE --config /data/r.json`: the image's own health check does not know that.
#[cfg(target_os = "linux")]
#[test]
fn healthcheck_without_a_file_takes_the_only_relay_that_runs() {
    if Path::new(DEFAULT_PATH).exists() {
        relay_lab::skip("a machine without a configuration", &format!("{DEFAULT_PATH} is there"));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let command = |name: Option<&str>| {
        let mut command = program();
        // Other tests run relays as well.
        command.env("ASPIA_RELAY_PEER_PORT", &port);
        if let Some(name) = name {
            let path = directory.path().join(name);
            write(&path, 1, free_port(), KEY, "");
            command.arg("--config").arg(path);
        }
        command
    };
    let healthcheck = |name| run(command(name).arg("--healthcheck"));
    assert_eq!(healthcheck(None).0, 1);
    let relay = Running::start(&mut command(Some("r.json")));
    relay.line(" runs: ");
    assert_eq!(healthcheck(None), (0, String::new(), String::new()));
    // One that is named is meant, and no other.
    let mut other = program();
    other.env("ASPIA_RELAY_PEER_PORT", &port).env("ASPIA_RELAY_CONFIG", "/nonexistent/r.json");
    assert_eq!(run(other.arg("--healthcheck")).0, 1);
    drop(relay);
    assert_eq!(healthcheck(None).0, 1);
}

/// A file on a volume that hangs says nothing of the relay, and does not keep the commands for ever.
#[cfg(target_os = "linux")]
#[test]
fn commands_find_the_relay_also_where_its_file_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 1, free_port(), KEY, "");
    let command = || {
        let mut command = program();
        command.arg("--config").arg(&path);
        command
    };
    let relay = Running::start(&mut command());
    relay.line(" runs: ");
    std::fs::remove_file(&path).unwrap();
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    // Whoever opens a FIFO for reading waits for a writer.
    let healthcheck = || run(command().arg("--healthcheck"));
    assert_eq!(healthcheck(), (0, String::new(), String::new()));
    let (status, stdout, _) = run(command().arg("--doctor"));
    assert_eq!(status, 1);
    assert!(stdout.contains("could not be read within 5 s"), "{stdout}");
    assert!(stdout.contains("it goes on with the configuration that it read before"), "{stdout}");
    drop(relay);
    let (status, _, stderr) = healthcheck();
    assert!(status == 1 && stderr.contains("could not be read within 5 s"), "{stderr}");
}

/// As the first process of a container, where signals that nobody handles do nothing.
#[cfg(target_os = "linux")]
#[test]
fn a_doctor_stops_when_it_is_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    for signal in ["TERM", "INT"] {
        let mut command = program();
        command.args(["--doctor", "--config"]).arg(&path);
        let mut doctor = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It handles signals from before its first line on, and waits for the file by now.
        let mut line = String::new();
        BufReader::new(doctor.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("clock"), "{line}");
        let id = doctor.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let ended = doctor.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        // A status of its own: the signal did not kill it.
        assert_eq!(ended.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("stopped before all steps were taken"), "{stderr}");
    }
}

#[test]
fn the_limit_on_open_files_is_raised_or_complained_of() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let start = |hard: &str| {
        write(
            &path,
            1,
            free_port(),
            KEY,
            r#", "MaxPeerCount": "500", "MaxPendingPeers": "100", "WorkerThreads": "3""#,
        );
        let script = format!(
            "ulimit -Sn 256 && ulimit -Hn {hard} && exec {} --config {}",
            env!("CARGO_BIN_EXE_aspia_relay"),
            path.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).env_clear().env("ASPIA_RELAY_ADMIN_LISTEN", "off");
        let mut relay = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Warnings come before the line that says that it runs.
        let mut said = String::new();
        for line in BufReader::new(relay.stderr.take().unwrap()).lines() {
            said += &line.unwrap();
            if said.contains("runs: Router") {
                break;
            }
        }
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.id()));
        relay.kill().unwrap();
        relay.wait().unwrap();
        (said, limits.unwrap_or_default())
    };
    let (said, limits) = start("1624");
    assert!(!said.contains("files may be open"), "{said}");
    if cfg!(target_os = "linux") {
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert!(line.contains("1624"), "{line}");
    }
    let (said, _) = start("1623");
    assert!(said.contains("only 1623 files may be open") && said.contains("need 1624"), "{said}");
}

/// Keys and tokens are in its memory. What it says of itself, and what the doctor sees of it, must not suffer from that.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn its_memory_is_in_no_core_dump_and_no_other_process_of_its_user_reads_it() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::{CommandExt, ExitStatusExt};

    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let [path, program] = ["relay.json", "aspia_relay"].map(|name| directory.path().join(name));
    std::fs::copy(env!("CARGO_BIN_EXE_aspia_relay"), &program).unwrap();
    let (port, admin) = (free_port(), free_port());
    write(&path, 1, port, KEY, &format!(r#", "AdminListen": "127.0.0.1:{admin}""#));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let command = |script: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg(&program).arg(&path).env_clear().stdin(Stdio::null());
        if is_root {
            // Whoever owns nothing.
            command.uid(65534).gid(65534).current_dir("/");
        }
        command
    };
    let script = "ulimit -c unlimited; exec \"$0\" --config \"$1\"";
    let mut relay = Running::start(&mut command(script));
    relay.line("runs: Router");
    let id = relay.child.id();
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    // The kernel gives what is private of such a process to root.
    assert_eq!(std::fs::metadata(format!("/proc/{id}/mem")).unwrap().uid(), 0);
    let address = ([127, 0, 0, 1], admin).into();
    let metrics = relay_lab::http::get(address, "/metrics").await.unwrap().body;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("{name}: {metrics}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    assert!(value("process_open_fds") > 5.0, "{metrics}");
    let cpu = value("process_cpu_seconds_total");
    assert!(cpu > 0.0 && cpu.fract() != 0.0, "{cpu}");
    // Its own user still sees which process it is.
    let doctor = command("exec \"$0\" --config \"$1\" --doctor").output().unwrap();
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    let held = doctor.lines().find(|line| line.contains("AdminListen:")).unwrap_or_default();
    assert!(held.contains("the relay that runs"), "{doctor}");
    relay.signal("ABRT");
    let status = relay.child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}

#[cfg(target_os = "linux")]
#[test]
fn a_reload_raises_the_limit_on_open_files_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let port = free_port();
    write(
        &path,
        1,
        port,
        KEY,
        r#", "MaxPeerCount": "10", "MaxPendingPeers": "10", "WorkerThreads": "1""#,
    );
    let program = env!("CARGO_BIN_EXE_aspia_relay");
    let script =
        format!("ulimit -Sn 256 && ulimit -Hn 1000 && exec {program} --config {}", path.display());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).env_clear().stdin(Stdio::null());
    command.env("ASPIA_RELAY_ADMIN_LISTEN", "off").env("ASPIA_LOG_TO_STDOUT", "0");
    let relay = Running::start(&mut command);
    relay.line("runs: Router");
    let limit = || {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.child.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_eq!(limit(), "546");
    write(
        &path,
        1,
        port,
        KEY,
        r#", "MaxPeerCount": "100", "MaxPendingPeers": "10", "WorkerThreads": "1""#,
    );
    relay.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(60);
    while limit() != "726" {
        assert!(Instant::now() < deadline, "{}", limit());
        std::thread::sleep(Duration::from_millis(5));
    }
    write(
        &path,
        1,
        port,
        KEY,
        r#", "MaxPeerCount": "1000", "MaxPendingPeers": "10", "WorkerThreads": "1""#,
    );
    relay.signal("HUP");
    relay.line("only 1000 files may be open");
    assert_eq!(limit(), "1000");
}
