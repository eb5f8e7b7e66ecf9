//! The program itself: arguments, exit status, signals, stderr.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use aspia_relay::admin::instance::InstanceIdentity;
#[cfg(target_os = "linux")]
use aspia_relay::config::sources::{DEFAULT_PATH, Sources};
use relay_lab::router::{LabRouter, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const KEY: &str = include_str!("../vectors/router.pub");

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    // The program does not inherit the environment of this machine.
    command.env_clear().stdin(Stdio::null());
    // Tests run in parallel and would compete for the default port.
    command.env("ASPIA_RELAY_ADMIN_LISTEN", "off");
    // The load of the machine that runs the tests must not decide how many keys are on offer.
    command.env("ASPIA_RELAY_OFFER_BY_LOAD", "false");
    command
}

pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

pub(crate) fn write(path: &Path, router_port: u16, peer_port: u16, key: &str, more: &str) {
    let content = format!(
        r#"{{"RouterAddress": "127.0.0.1", "RouterPort": "{router_port}", "RouterPublicKey": "{key}",
            "PeerAddress": "127.0.0.1", "PeerPort": "{peer_port}"{more}}}"#
    );
    std::fs::write(path, content).unwrap();
}

pub(crate) fn free_port() -> u16 {
    relay_lab::port::free_port().unwrap()
}

#[test]
fn create_config_writes_the_defaults_of_the_original_and_never_overwrites() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/relay.json");
    let create = || run(program().arg("--create-config").arg("--config").arg(&path));
    let (status, _, stderr) = create();
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert_eq!(std::fs::read(&path).unwrap(), include_bytes!("../vectors/relay.json"));
    std::fs::write(&path, "whatever").unwrap();
    let (status, _, stderr) = create();
    assert_eq!(status, 1);
    assert!(stderr.contains("already exists"), "{stderr}");
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

/// Kubernetes shows the file in the status of the pod, but only the end of it if it is too long.
#[test]
fn start_error_in_a_container_is_in_its_termination_message() {
    // The image sets the JSON format.
    for format in ["text", "json"] {
        start_error_is_in_the_termination_message(format);
    }
}

fn start_error_is_in_the_termination_message(format: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("termination-log");
    let failed = |set: &dyn Fn(&mut Command)| {
        std::fs::write(&path, "an earlier message").unwrap();
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
    // Two-byte characters, so that the limit falls inside one of them.
    let long = "/x".to_owned() + &"\u{e4}".repeat(5000);
    for long in [&long, &long[1..]] {
        let (_, message) = failed(&|command| {
            command.env("ASPIA_RELAY_CONFIG", long);
        });
        assert!((4095..=4096).contains(&message.len()), "{}: {message}", message.len());
    }
    // `kubectl exec` runs these commands beside a relay; they must not overwrite its message.
    for other in ["--healthcheck", "--check-config", "--doctor"] {
        let (_, message) = failed(&|command| {
            command.arg(other);
        });
        assert_eq!(message, "an earlier message", "{other}");
    }
    // A file that does not exist is not created.
    let missing = directory.path().join("missing");
    let (stderr, _) = failed(&|command| {
        command.env("TERMINATION_MESSAGE_PATH", &missing);
    });
    assert!(!stderr.is_empty() && !missing.exists());
}

/// The pod of `helm test` runs nothing but the doctor.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root"]
fn doctor_as_process_1_writes_the_termination_message() {
    const UNSHARE: [&str; 3] = ["--pid", "--fork", "--kill-child"];
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
    // Without a configuration the doctor still says that no node has the label.
    let relay = stdout.lines().find(|line| line.contains("running relay: ")).unwrap();
    assert!(relay.starts_with('✗') && relay.contains("labels of nodeSelector"), "{stdout}");
}

#[test]
fn check_config_prints_every_value_with_its_source_and_every_problem() {
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
fn wrong_usage_exits_with_2_and_help_with_0() {
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
        ("--stop", "systemctl stop aspia-relay-fd-store aspia-relay"),
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
fn invalid_configuration_is_reported_on_stderr_at_any_log_level() {
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
fn check_config_reports_problems_before_values() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let check = |content: &str| {
        std::fs::write(&path, content).unwrap();
        // stdout and stderr are one pipe, as on a terminal.
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
    // Problems are printed before the values that are valid.
    let (status, said) = check("{\"PeerPort\": \"x\"}");
    assert_eq!(status, 78);
    let place = |part: &str| said.find(part).unwrap_or_else(|| panic!("{part} is not in {said}"));
    assert!(place("a whole number from 1 to 65535") < place("MaxPeerCount"), "{said}");
}

#[test]
fn start_error_is_reported_once() {
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
fn escape_sequences_in_names_and_values_are_not_printed() {
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
fn files_of_relay_3_0_are_named_if_the_configuration_is_missing() {
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

/// Runs in a mount namespace with its own `/etc/aspia`.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root"]
fn reload_without_the_file_changes_nothing() {
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
    std::fs::write(&path, r#"{"MaxPeerCount": 7}"#).unwrap();
    let mut command = in_namespace(env!("CARGO_BIN_EXE_aspia_relay"));
    command.env("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1").env("ASPIA_RELAY_ROUTER_PORT", "1");
    command.env("ASPIA_RELAY_ROUTER_PUBLIC_KEY", KEY);
    command.env("ASPIA_RELAY_PEER_ADDRESS", "192.0.2.1");
    command.env("ASPIA_RELAY_PEER_PORT", free_port().to_string());
    command.env("ASPIA_RELAY_ADMIN_LISTEN", "off");
    let relay = RunningRelay::start(&mut command);
    let line = relay.line(" runs: ");
    assert!(line.contains("up to 7 sessions") && !line.contains("there is no"), "{line}");
    std::fs::remove_file(&path).unwrap();
    relay.signal("HUP");
    let line = relay.line("SIGHUP: nothing is changed");
    assert!(line.contains("/etc/aspia/relay.json") && line.contains("it is gone"), "{line}");
    drop(relay);
    // A relay that starts without the file says so.
    let line = RunningRelay::start(&mut command).line(" runs: ");
    assert!(line.contains("up to 100 sessions"), "{line}");
    assert!(line.contains("there is no /etc/aspia/relay.json"), "{line}");
}

/// Runs as the user of the image in what looks like a container; needs root.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root"]
fn advice_for_unreadable_files_fits_a_container() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    const USER: u32 = 65532;
    let directory = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(directory.path(), 0o755);
    // The user may have no access to the program in the build directory.
    let copy = directory.path().join("aspia_relay");
    std::fs::copy(env!("CARGO_BIN_EXE_aspia_relay"), &copy).unwrap();
    let program = || {
        let mut command = Command::new(&copy);
        command.env_clear().stdin(Stdio::null()).uid(USER).gid(USER);
        command.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        command
    };
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
    // The file is missing and cannot be created there, so the advice is not to create it.
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
fn misspelt_variable_is_named_with_the_missing_setting() {
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
fn startup_line_names_the_address_families() {
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
        let relay = RunningRelay::start(command.env_clear().arg("--config").arg(&path));
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
fn unwritable_log_files_are_a_start_error() {
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

/// A running relay, and the lines of its stderr.
pub(crate) struct RunningRelay {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl RunningRelay {
    pub(crate) fn start(command: &mut Command) -> Self {
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

    /// Waits for a line that contains the expected text; without one the test fails.
    pub(crate) fn line(&self, expected: &str) -> String {
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

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Waits until it has exited; if it does not, the test fails.
    pub(crate) fn status(mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the relay does not exit");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RunningRelay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn signals_reload_and_stop_the_relay() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let (port, key) = (free_port(), router.public_key().to_string());
    let router_port = router.address().port();
    write(&path, router_port, port, &key, "");
    let relay = RunningRelay::start(
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

    // A second relay on the same port reports who holds it.
    let (status, _, stderr) = run(program().arg("--config").arg(&path));
    assert_eq!(status, 1);
    #[cfg(target_os = "linux")]
    assert!(stderr.contains(&format!("process {} (aspia_relay)", relay.child.id())), "{stderr}");
    assert!(stderr.contains("ListenPort"), "{stderr}");

    // A reload applies the file; an invalid file changes nothing and is reported.
    write(&path, router_port, port, &key, r#", "MaxPeerCount": 120"#);
    relay.signal("HUP");
    router.keys(120).await;
    write(&path, router_port, port, &key, r#", "MaxPeerCount": "many""#);
    relay.signal("HUP");
    relay.line("SIGHUP: nothing is changed");

    // The relay waits for the session to end, but stops at a second signal.
    let (client, host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    router.keys(119).await;
    relay.signal("TERM");
    router.wait_for(|view| !view.linked).await;
    relay.signal("INT");
    assert_eq!(relay.status(), Some(0));
    drop((client, host));

    // The log file contains all of these events.
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
async fn one_signal_stops_an_idle_relay() {
    for signal in ["TERM", "INT"] {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.json");
        write(&path, router.address().port(), free_port(), &router.public_key().to_string(), "");
        let relay = RunningRelay::start(program().arg("--config").arg(&path));
        // At the default level, only the startup line reaches stderr.
        relay.line(" runs: ");
        router.keys(100).await;
        relay.signal(signal);
        assert_eq!(relay.status(), Some(0));
    }
}

/// The test decides how long the start takes: the process reads its settings from a pipe that is still empty.
#[tokio::test]
async fn signal_during_the_start_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("relay.json");
    for signals in [&["HUP", "HUP", "TERM"][..], &["INT"], &["TERM", "TERM"]] {
        let _ = std::fs::remove_file(&pipe);
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let relay = RunningRelay::start(program().arg("--config").arg(&pipe));
        handles_signals(&relay);
        for signal in signals {
            relay.signal(signal);
        }
        assert_eq!(relay.status(), Some(0), "{signals:?}");
    }
    // A reload requested during the start takes place as soon as the relay runs.
    let _ = std::fs::remove_file(&pipe);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let relay = RunningRelay::start(program().arg("--config").arg(&pipe));
    handles_signals(&relay);
    relay.signal("HUP");
    // Opened as soon as the relay reads it, and then replaced: the reload finds an unfinished object.
    let mut writer = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    let (valid, unfinished) = (directory.path().join("valid"), directory.path().join("unfinished"));
    write(&valid, 1, free_port(), KEY, "");
    std::fs::write(&unfinished, "{").unwrap();
    std::fs::rename(&unfinished, &pipe).unwrap();
    writer.write_all(&std::fs::read(&valid).unwrap()).unwrap();
    drop(writer);
    relay.line(" runs: ");
    relay.line("SIGHUP: nothing is changed");
    relay.signal("TERM");
    assert_eq!(relay.status(), Some(0));
}

/// Waits until a process has handlers for SIGHUP, SIGINT and SIGTERM.
fn handles_signals(relay: &RunningRelay) {
    const WANTED: u64 = 1 << 0 | 1 << 1 | 1 << 14;

    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        if u64::from_str_radix(caught.trim(), 16).unwrap() & WANTED == WANTED {
            return;
        }
        assert!(Instant::now() < deadline, "the relay installs no signal handlers: {caught}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// In a container, as in any PID namespace, the first process ignores signals that it has no handler for.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root"]
fn process_1_of_a_container_is_stopped_by_a_signal_during_the_start() {
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
        // There is a handler for SIGTERM.
        if caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << 14 != 0) {
            break child;
        }
        assert_eq!(outer.try_wait().unwrap(), None, "unshare ended");
        assert!(Instant::now() < deadline, "the relay installs no signal handlers");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(Command::new("kill").args(["-s", "TERM", &inner]).status().unwrap().success());
    assert_eq!(outer.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn drain_by_an_administrator_continues_after_the_first_signal() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let more = r#", "DrainTimeout": "600s""#;
    write(&path, router.address().port(), free_port(), &router.public_key().to_string(), more);
    let mut command = program();
    command.arg("--config").arg(&path).env("ASPIA_RELAY_ADMIN_LISTEN", admin.to_string());
    let relay = RunningRelay::start(
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
    logged("SIGTERM: the stop that an administrator asked for continues").await;
    // The session continues, and a reload does not end the drain.
    relay.signal("HUP");
    logged("SIGHUP: the configuration was read").await;
    host.write_all(b"y").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    relay.signal("INT");
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(relay.status(), Some(0));
    assert!(log().contains("SIGINT: stopping at once"), "{}", log());
}

/// Opens `count` connections to `port` that stay silent.
fn connections(port: u16, count: usize) -> Vec<std::net::TcpStream> {
    (0..count).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect()
}

#[tokio::test]
async fn silent_connections_are_evicted_when_descriptors_run_out() {
    descriptors_run_out(120, 0, 200).await;
}

/// As on a machine with many cores: every worker thread needs descriptors of its own.
#[tokio::test]
async fn many_worker_threads_leave_descriptors_for_the_rest() {
    descriptors_run_out(700, 256, 900).await;
}

/// Opens `callers` connections to a relay with `workers` threads that may open only `limit` descriptors.
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
    command.env_clear().env("ASPIA_RELAY_OFFER_BY_LOAD", "false").args(["-c", &script]);
    command.arg(env!("CARGO_BIN_EXE_aspia_relay")).arg(&path).stdin(Stdio::null());
    let relay = RunningRelay::start(&mut command);
    if workers > 0 {
        relay.line("of 256 worker threads are started");
    }
    router.keys(100).await;
    let (mut client, mut host) = router.introduce().await.unwrap().session().await.unwrap();
    let silent = connections(port, callers);
    let line = relay.line("descriptors are short");
    assert!(line.contains("ulimit -n"), "{line}");
    // The admin interface still gets descriptors.
    let admin = ([127, 0, 0, 1], admin).into();
    for _ in 0..3 {
        let status = relay_lab::http::request(admin, "GET /status", &[], "").await.unwrap();
        assert_eq!(status.status, 200, "{}", status.body);
    }
    // So do peers that send their first message.
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
    // The relay keeps serving: two new peers are paired, and the link was never lost.
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
fn closed_or_full_output_does_not_change_the_exit_status() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 8060, 8070, KEY, "");
    let wrong = directory.path().join("wrong.json");
    std::fs::write(&wrong, "{").unwrap();
    // A pipe without a reader, and a device that is always full.
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

/// A pipe without a reader.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[cfg(target_os = "linux")]
#[test]
fn start_error_goes_to_stdout_if_stderr_fails() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("wrong.json");
    std::fs::write(&wrong, "{").unwrap();
    // A full pipe with a reader that does not read.
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
        // JSON on stdout stays valid.
        let mut command = program();
        command.arg("--config").arg(&wrong).args(["--check-config", "--json"]).stderr(stderr());
        let (status, stdout, _) = run(command.stdout(Stdio::piped()));
        assert_eq!(status, 78);
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
    }
    // If stderr accepts the error, stdout does not repeat it.
    for format in ["text", "json"] {
        let mut command = program();
        command.arg("--config").arg(&wrong).env("ASPIA_LOG_FORMAT", format);
        let (status, stdout, stderr) = run(&mut command);
        assert_eq!((status, stdout.as_str()), (78, ""));
        assert_eq!(stderr.matches("EOF while").count(), 1, "{stderr}");
    }
}

#[test]
fn start_without_threads_reports_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 8060, 8070, KEY, "");
    let mut command = program();
    // A stack larger than the address space: no thread can be started.
    command.arg("--config").arg(&path).env("RUST_MIN_STACK", (1_u64 << 48).to_string());
    let (status, _, stderr) = run(&mut command);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.starts_with("aspia_relay: cannot "), "{stderr}");
}

/// The program, configured through the environment for this Router.
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

/// Waits until a condition holds; if it never does, the test fails.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Kills a relay at the end of the test, however that ends.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
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
async fn log_goes_to_stderr_if_stdout_fails() {
    let full = || std::fs::File::create("/dev/full").unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    // Whether writing to stdout fails, so that lines are lost.
    for (stdout, is_there) in [(full().into(), true), (closed(), true), (Stdio::null(), false)] {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let (directory, admin) = (tempfile::tempdir().unwrap(), free_port());
        let path = directory.path().join("stderr");
        let mut command = with_router(&router, admin);
        command.stdout(stdout).stderr(std::fs::File::create(&path).unwrap());
        let _relay = KillOnDrop(command.spawn().unwrap());
        let stderr = || std::fs::read_to_string(&path).unwrap();
        router.keys(100).await;
        router.drop_link().await;
        until("the lost link", || stderr().contains("Router link: ")).await;
        let text = stderr();
        assert_eq!(text.matches("runs: Router").count(), 1, "{text}");
        let said = text.matches("the log cannot be written to stdout").count();
        assert_eq!(said, usize::from(is_there), "{text}");
        // Lines at level info are lost.
        assert_eq!(lines_lost(admin).await > 0.0, is_there);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn log_goes_to_stdout_if_stderr_fails() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let (directory, admin) = (tempfile::tempdir().unwrap(), free_port());
    let path = directory.path().join("stdout");
    let mut command = with_router(&router, admin);
    // At this level only errors go to stdout.
    command.env("ASPIA_LOG_LEVEL", "1").stdout(std::fs::File::create(&path).unwrap());
    let _relay =
        KillOnDrop(command.stderr(std::fs::File::create("/dev/full").unwrap()).spawn().unwrap());
    router.keys(100).await;
    router.drop_link().await;
    let stdout = || std::fs::read_to_string(&path).unwrap();
    until("the lost link", || stdout().contains("Router link: ")).await;
    assert!(stdout().contains("the log cannot be written to stderr"), "{}", stdout());
    assert_eq!(lines_lost(admin).await, 0.0);
}

/// A service manager or a script may start the relay with closed standard descriptors.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn closed_standard_descriptors_are_replaced() {
    for (closed, open) in [(">&-", "2>"), ("2>&-", ">")] {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let from = with_router(&router, free_port());
        let mut command = Command::new("/bin/sh");
        command.env_clear().stdin(Stdio::null());
        command.envs(from.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // At the default level only fatal errors go to stdout.
        command.env("ASPIA_LOG_LEVEL", "2");
        command.args(["-c", &format!("exec \"$0\" {closed} {open}\"$1\"")]);
        command.arg(env!("CARGO_BIN_EXE_aspia_relay")).arg(&path);
        let _relay = KillOnDrop(command.spawn().unwrap());
        router.keys(100).await;
        router.drop_link().await;
        let log = || std::fs::read_to_string(&path).unwrap();
        until("the lost link", || log().contains("Router link: ")).await;
        assert_eq!(log().matches("runs: Router").count(), 1, "{}", log());
        assert_eq!(log().contains("stderr is closed"), closed.starts_with('2'), "{}", log());
    }
}

#[tokio::test]
async fn reload_opens_a_new_log_file_after_a_rotation() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let files = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(directory.path().join("aspia")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut command = with_router(&router, free_port());
    command.env("ASPIA_LOG_TO_FILE", "1").env("ASPIA_LOG_TO_STDOUT", "0");
    let relay = RunningRelay::start(command.env("TMPDIR", directory.path()));
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
async fn reload_that_hangs_does_not_block_a_stop() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, router.address().port(), free_port(), &router.public_key().to_string(), "");
    let relay = RunningRelay::start(program().arg("--config").arg(&path));
    router.keys(100).await;
    // Nobody ever writes to this pipe, so opening it blocks for ever.
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let more = format!(r#", "MetricsTlsCertificate": {pipe:?}, "MetricsTlsPrivateKey": {pipe:?}"#);
    write(&path, router.address().port(), free_port(), &router.public_key().to_string(), &more);
    relay.signal("HUP");
    relay.signal("TERM");
    assert_eq!(relay.status(), Some(0));
}

#[test]
fn occupied_http_port_is_a_start_error_with_the_setting() {
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
fn admin_listener_on_a_public_address_needs_a_token() {
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
    // An invalid token is not shown either.
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
    // AdminListen names the port of another server.
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

/// A health check asks the running relay of this configuration file, whatever the file contains by now.
#[cfg(target_os = "linux")]
#[test]
fn healthcheck_does_not_depend_on_the_content_of_the_file() {
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
    // Another relay with a file of its own runs throughout the test.
    let other_path = directory.path().join("other.json");
    write(&other_path, 1, free_port(), KEY, r#", "AdminListen": "off""#);
    let other = RunningRelay::start(&mut command(&other_path));
    other.line(" runs: ");
    assert_eq!(healthcheck(&path, &[]).0, 1);
    let relay = RunningRelay::start(&mut command(&path));
    relay.line(" runs: ");
    let check_both = |what: &str| {
        for probe in [&[][..], &["live"]] {
            assert_eq!(healthcheck(&path, probe), (0, String::new()), "{what}");
            assert_eq!(healthcheck(&other_path, probe), (0, String::new()), "{what}");
        }
        // Neither relay has a Router, so neither is ready.
        for path in [&path, &other_path] {
            let (status, stderr) = healthcheck(path, &["ready"]);
            assert!(status == 1 && stderr.contains("not ready: router-link"), "{what}: {stderr}");
        }
    };
    check_both("as started");
    std::fs::write(&path, "{\"AdminListen\": ").unwrap();
    check_both("half a file");
    let (status, stdout, _) = run(command(&path).arg("--doctor"));
    assert_eq!(status, 1);
    assert!(stdout.contains("it still runs with the configuration from before"), "{stdout}");
    write(&path, 1, free_port(), KEY, &admin(free_port()));
    relay.signal("HUP");
    relay.line("a restart is needed for");
    check_both("settings that wait for a restart");
    std::fs::remove_file(&path).unwrap();
    check_both("no file");
    // A relay that hangs is not healthy, and one that was killed leaves no socket behind.
    relay.signal("STOP");
    let (status, stderr) = healthcheck(&path, &[]);
    assert!(status == 1 && stderr.contains("does not answer within 5 s"), "{stderr}");
    drop(relay);
    let (status, stderr) = healthcheck(&path, &[]);
    assert!(status == 1 && stderr.contains("not exactly one that was started with"), "{stderr}");
    assert_eq!(healthcheck(&other_path, &[]), (0, String::new()));
}

#[cfg(target_os = "linux")]
fn sources(path: &Path) -> Sources {
    Sources { path: path.to_owned(), is_path_explicit: true, environment: Vec::new() }
}

/// While a relay is down, any user can bind its abstract socket name.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root"]
fn healthcheck_does_not_trust_other_users() {
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
        let name = InstanceIdentity::of_process(&sources(&path)).name(port).unwrap().socket();
        relay_lab::impostor::publish(&name, user, &[("/livez", r#"{"alive":true}"#)])
    };
    publish(4242).unwrap();
    let (status, _, stderr) = healthcheck();
    assert!(status == 1 && stderr.contains("does the relay run"), "{stderr}");
    // The impostor does not count as a second relay beside the running one.
    let relay = RunningRelay::start(&mut command());
    relay.line(" runs: ");
    std::fs::write(&path, "{").unwrap();
    assert_eq!(healthcheck(), (0, String::new(), String::new()));
    drop(relay);
    assert_eq!(healthcheck().0, 1);
    // One that root owns is trusted, so it was the user that mattered.
    publish(0).unwrap();
    assert_eq!(healthcheck(), (0, String::new(), String::new()));
}

/// Relays usually run as an unprivileged user, so root trusts the user who holds the peer port that the name contains.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root"]
fn healthcheck_of_root_trusts_the_holder_of_the_peer_port() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    std::fs::write(&path, "{").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = InstanceIdentity::of_process(&sources(&path)).name(port).unwrap().socket();
    let alive = &[("/livez", r#"{"alive":true}"#)];
    relay_lab::impostor::publish(&name, 4242, alive).unwrap();
    let healthcheck = || {
        let mut command = program();
        run(command.arg("--healthcheck").arg("--config").arg(&path)).0
    };
    assert_eq!(healthcheck(), 0);
    drop(listener);
    assert_eq!(healthcheck(), 1);
}

/// The image's health check does not know the path that `docker run IMAGE --config /data/r.json` passes.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs a machine without /etc/aspia/relay.json"]
fn healthcheck_without_a_file_asks_the_only_running_relay() {
    assert!(!Path::new(DEFAULT_PATH).exists(), "{DEFAULT_PATH} exists");
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let command = |name: Option<&str>| {
        let mut command = program();
        // Other tests run relays at the same time, so a port tells this one apart.
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
    let relay = RunningRelay::start(&mut command(Some("r.json")));
    relay.line(" runs: ");
    assert_eq!(healthcheck(None), (0, String::new(), String::new()));
    // If a file is named, only the relay of that file counts.
    let mut other = program();
    other.env("ASPIA_RELAY_PEER_PORT", &port).env("ASPIA_RELAY_CONFIG", "/nonexistent/r.json");
    assert_eq!(run(other.arg("--healthcheck")).0, 1);
    drop(relay);
    assert_eq!(healthcheck(None).0, 1);
}

/// If the file is on a volume that hangs, the commands do not block for ever, and still find the relay.
#[cfg(target_os = "linux")]
#[test]
fn commands_find_the_relay_if_its_file_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    write(&path, 1, free_port(), KEY, "");
    let command = || {
        let mut command = program();
        command.arg("--config").arg(&path);
        command
    };
    let relay = RunningRelay::start(&mut command());
    relay.line(" runs: ");
    std::fs::remove_file(&path).unwrap();
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    // Opening a FIFO for reading blocks until there is a writer.
    let healthcheck = || run(command().arg("--healthcheck"));
    assert_eq!(healthcheck(), (0, String::new(), String::new()));
    let (status, stdout, _) = run(command().arg("--doctor"));
    assert_eq!(status, 1);
    assert!(stdout.contains("could not be read within 5 s"), "{stdout}");
    assert!(stdout.contains("it still runs with the configuration from before"), "{stdout}");
    drop(relay);
    let (status, _, stderr) = healthcheck();
    assert!(status == 1 && stderr.contains("could not be read within 5 s"), "{stderr}");
}

/// As process 1 of a container, the doctor would ignore signals that it has no handler for.
#[cfg(target_os = "linux")]
#[test]
fn doctor_is_stopped_by_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    for signal in ["TERM", "INT"] {
        let mut command = program();
        command.args(["--doctor", "--config"]).arg(&path);
        let mut doctor = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The doctor installs its handlers before it prints the first line, and now waits for the file.
        let mut line = String::new();
        BufReader::new(doctor.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("clock"), "{line}");
        let id = doctor.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let ended = doctor.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        // An exit status: the signal did not kill it.
        assert_eq!(ended.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("stopped before all steps were taken"), "{stderr}");
    }
}

#[test]
fn limit_on_open_files_is_raised_or_reported() {
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
        // Warnings come before the startup line.
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

/// The memory of the relay holds keys and tokens. Its protection must not affect the process metrics or what the doctor sees.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_is_neither_dumped_nor_readable_by_its_user() {
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
            // The user `nobody`.
            command.uid(65534).gid(65534).current_dir("/");
        }
        command
    };
    let script = "ulimit -c unlimited; exec \"$0\" --config \"$1\"";
    let mut relay = RunningRelay::start(&mut command(script));
    relay.line("runs: Router");
    let id = relay.child.id();
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    // The files in /proc of a process that cannot be dumped belong to root.
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
    // The same user still sees which process holds a port.
    let doctor = command("exec \"$0\" --config \"$1\" --doctor").output().unwrap();
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    let held = doctor.lines().find(|line| line.contains("AdminListen:")).unwrap_or_default();
    assert!(held.contains("the running relay"), "{doctor}");
    relay.signal("ABRT");
    let status = relay.child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}

#[cfg(target_os = "linux")]
#[test]
fn reload_raises_the_limit_on_open_files() {
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
    let relay = RunningRelay::start(&mut command);
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
