//! The commands that show and steer the running relay: `--status`, `--sessions`, `--end-session`, `--drain` and the like.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use aspia_relay::admin::client::SESSIONS_PER_PAGE;
use aspia_relay::admin::instance::InstanceIdentity;
use aspia_relay::config::sources::Sources;
use relay_lab::router::{LabRouter, Options};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::command_line::{KEY, RunningRelay, free_port, program, run, write};

/// A directory for `relay.json` and the commands that use the file.
struct Installation {
    directory: TempDir,
    port: u16,
}

impl Installation {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), port: free_port() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("relay.json")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.arg("--config").arg(self.path()).args(arguments);
        command
    }

    /// The exit status, stdout and stderr of a command.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(&mut self.command(arguments))
    }

    /// The output of a command that must succeed.
    fn shows(&self, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = self.run(arguments);
        assert_eq!((status, stderr.as_str()), (0, ""), "{arguments:?}");
        stdout
    }

    /// The complaint of a command that must fail.
    fn refuses(&self, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = self.run(arguments);
        assert_eq!((status, stdout.as_str()), (1, ""), "{arguments:?}: {stderr}");
        stderr
    }

    fn start(&self) -> RunningRelay {
        let relay = RunningRelay::start(&mut self.command(&[]));
        relay.line(" runs: ");
        relay
    }
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The admin listener is off, and the file is half written: neither keeps the commands from finding the relay.
#[tokio::test]
async fn commands_show_and_steer_the_running_relay() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let installation = Installation::new();
    let key = router.public_key().to_string();
    let more = r#", "AdminToken": "a-token", "DrainTimeout": "600s""#;
    write(&installation.path(), router.address().port(), installation.port, &key, more);
    let refused = installation.refuses(&["--drain"]);
    assert!(refused.contains("no relay that was started with"), "{refused}");
    let relay = installation.start();
    router.keys(100).await;
    let (mut client, mut host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();

    // A reload shows what it changes; a wrong file changes nothing.
    let changed = format!(r#"{more}, "MaxPeerCount": 120, "WorkerThreads": 3"#);
    write(&installation.path(), router.address().port(), installation.port, &key, &changed);
    let reloaded = installation.shows(&["--reload"]);
    assert!(reloaded.contains("changed: MaxPeerCount\n"), "{reloaded}");
    assert!(reloaded.contains("a restart is needed for: WorkerThreads\n"), "{reloaded}");
    let again = parse(&installation.shows(&["--reload", "--json"]));
    assert_eq!(
        (&again["changed"], &again["waiting_for_restart"][0]),
        (&parse("[]"), &"WorkerThreads".into())
    );
    fs::write(installation.path(), "{\"AdminListen\": ").unwrap();
    let refused = installation.refuses(&["--reload"]);
    assert!(refused.contains("the relay refuses: nothing is changed"), "{refused}");

    let status = installation.shows(&["--status"]);
    for part in [
        concat!("aspia_relay ", env!("CARGO_PKG_VERSION")),
        "1 of at most 120",
        "connected",
        "config    ",
    ] {
        assert!(status.contains(part), "{part} is not in {status}");
    }
    let status = parse(&installation.shows(&["--status", "--json"]));
    assert_eq!((&status["sessions"]["active"], &status["draining"]), (&1.into(), &false.into()));

    let table = installation.shows(&["--sessions"]);
    assert!(table.contains("operator") && table.ends_with("\n1 session\n"), "{table}");
    let by_address =
        installation.shows(&["--sessions", "--filter", "192.0.2.0/24", "--sort", "bytes"]);
    assert!(by_address.ends_with("\n1 of 1 sessions\n"), "{by_address}");
    assert_eq!(installation.shows(&["--sessions", "--filter", "nobody"]), "0 of 1 sessions\n");
    let list = parse(&installation.shows(&["--sessions", "--json"]));
    assert_eq!(list["sessions"][0]["client"]["user_name"], "operator");
    let id = list["sessions"][0]["id"].to_string();

    assert!(installation.shows(&["--log-level", "debug"]).contains("the relay logs at debug"));
    let level = parse(&installation.shows(&["--log-level", "info", "--json"]));
    assert_eq!(level["level"], "info");
    assert!(installation.refuses(&["--log-level", "loud"]).contains("the relay refuses: "));

    let refused = installation.refuses(&["--end-session", "999999"]);
    assert!(refused.contains("there is no session 999999"), "{refused}");
    assert_eq!(installation.shows(&["--end-session", &id]), format!("session {id} is ended\n"));
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);

    let drain = installation.shows(&["--drain"]);
    assert!(drain.contains("the relay drains") && drain.contains("10m 0s"), "{drain}");
    drop(host);
    assert_eq!(relay.status(), Some(0));
    installation.refuses(&["--status"]);
}

/// The answers of a relay with `count` sessions, in the pages for which the command asks.
fn pages(count: u64) -> Vec<(&'static str, &'static str)> {
    let limit = u64::try_from(SESSIONS_PER_PAGE).unwrap();
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let session = |id: u64| {
        let tcp = json!({
            "rtt_seconds": 0.02, "retransmits": 0, "delivery_rate_bytes_per_second": null, "unsent_bytes": null,
        });
        json!({
            "id": id, "started": null, "duration_seconds": 60.0, "idle_seconds": 0.0, "bytes": id,
            "client": { "user_name": format!("\u{1b}[2Juser-{id}"), "address": "192.0.2.10" },
            "host": { "id": id, "address": "198.51.100.1" },
            "peers": [{ "address": "192.0.2.10:4000", "bytes_sent": 1, "tcp": tcp }],
        })
    };
    let page = |after: u64| {
        let last = (after + limit).min(count);
        let sessions: Vec<_> = (after + 1..=last).map(session).collect();
        let next = (last < count).then_some(last);
        let body = json!({ "total": count, "next": next, "sessions": sessions });
        (leak(format!("/sessions?limit={limit}&after={after}")), leak(body.to_string()))
    };
    (0..count).step_by(SESSIONS_PER_PAGE).map(page).collect()
}

#[test]
fn ten_thousand_sessions_are_listed_page_by_page() {
    let installation = Installation::new();
    let sources =
        Sources { path: installation.path(), is_path_explicit: true, environment: Vec::new() };
    let name = InstanceIdentity::of_process(&sources).name(installation.port).unwrap();
    let user = rustix::process::geteuid().as_raw();
    relay_lab::impostor::publish(&name.socket(), user, pages(10_000).leak()).unwrap();

    let table = installation.shows(&["--sessions", "--sort", "bytes"]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!((lines.len(), lines[10_001]), (10_002, "10000 sessions"));
    assert!(lines[1].trim_start().starts_with("10000 "), "{}", lines[1]);
    let place = lines[0].find("CLIENT").unwrap();
    assert!(lines[1..=10_000].iter().all(|line| line[place..].starts_with("192.0.2.10 ")));
    assert!(!table.contains('\x1b'));
    let one = installation.shows(&["--sessions", "--filter", "USER-9999"]);
    assert!(one.ends_with("\n1 of 10000 sessions\n"), "{one}");
    let list = parse(&installation.shows(&["--sessions", "--json"]));
    assert_eq!(list["sessions"].as_array().unwrap().len(), 10_000);
}

/// A process that is stopped accepts connections and says nothing.
#[test]
fn hung_relay_is_reported_in_bounded_time() {
    let installation = Installation::new();
    write(&installation.path(), 1, installation.port, KEY, "");
    let relay = installation.start();
    relay.signal("STOP");
    for command in ["--status", "--drain"] {
        let refused = installation.refuses(&[command]);
        assert!(refused.contains("does not answer within 5 s"), "{refused}");
        assert!(refused.contains("restart it"), "{refused}");
    }
}

#[test]
fn commands_never_reach_the_relay_of_another_file() {
    let (running, other) = (Installation::new(), Installation::new());
    let admin = free_port();
    let more = format!(r#", "AdminListen": "127.0.0.1:{admin}""#);
    for installation in [&running, &other] {
        write(&installation.path(), 1, installation.port, KEY, &more);
    }
    let with_admin = |installation: &Installation, arguments: &[&str]| {
        let mut command = installation.command(arguments);
        command.env_remove("ASPIA_RELAY_ADMIN_LISTEN");
        command
    };
    let relay = RunningRelay::start(&mut with_admin(&running, &[]));
    relay.line(" runs: ");
    // `AdminListen` of the other file leads to the running relay.
    let (status, _, stderr) = run(&mut with_admin(&other, &["--drain"]));
    assert_eq!(status, 1);
    assert!(stderr.contains("those on the ports") && stderr.contains("--config"), "{stderr}");
    assert_eq!(parse(&running.shows(&["--status", "--json"]))["draining"], false);
}

/// A file that is half written does not say which of two relays is meant, but their variables do.
#[test]
fn two_relays_of_one_file_are_told_apart_by_their_variables() {
    let installation = Installation::new();
    write(&installation.path(), 1, installation.port, KEY, "");
    let ports = [free_port(), free_port()].map(|port| port.to_string());
    let with_port = |port: &str, arguments: &[&str]| {
        let mut command = installation.command(arguments);
        command.env("ASPIA_RELAY_LISTEN_PORT", port);
        command
    };
    let relays = ports.each_ref().map(|port| RunningRelay::start(&mut with_port(port, &[])));
    for relay in &relays {
        relay.line(" runs: ");
    }
    for text in [None, Some("{\"AdminListen\": ")] {
        if let Some(text) = text {
            fs::write(installation.path(), text).unwrap();
        }
        let refused = installation.refuses(&["--status"]);
        let parts = ["several relays run here", &ports[0], &ports[1], "ASPIA_RELAY_LISTEN_PORT"];
        for part in parts {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        for port in &ports {
            let (status, stdout, stderr) = run(&mut with_port(port, &["--status", "--json"]));
            assert_eq!((status, stderr.as_str()), (0, ""), "{port}");
            assert_eq!(parse(&stdout)["draining"], false);
        }
    }
}

/// Without a terminal there are no control sequences, and Ctrl-C is the usual end.
#[test]
fn watched_status_is_refreshed_until_ctrl_c() {
    let installation = Installation::new();
    write(&installation.path(), 1, installation.port, KEY, "");
    let _relay = installation.start();
    for (arguments, begins) in [
        (&["--status", "--watch", "1s"][..], "relay "),
        (&["--status", "--watch", "1s", "--json"], "{"),
        (&["--sessions", "--watch", "1s"], "no sessions"),
    ] {
        let mut command = installation.command(arguments);
        let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut seen = 0;
        for line in lines {
            assert!(!line.contains('\x1b'), "{line}");
            seen += usize::from(line.starts_with(begins));
            if seen == 2 {
                break;
            }
        }
        assert_eq!(seen, 2, "{arguments:?}");
        let id = watch.id().to_string();
        assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
        let ended = watch.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
    }
}

#[test]
fn watch_without_a_relay_ends_at_once() {
    let installation = Installation::new();
    write(&installation.path(), 1, installation.port, KEY, "");
    let refused = installation.refuses(&["--status", "--watch"]);
    assert!(refused.contains("no relay that was started with"), "{refused}");
}

/// The kernel says who asks on the command socket; others need the token, on the admin listener.
#[test]
#[ignore = "needs root"]
fn other_users_need_the_token_of_the_relay() {
    let installation = Installation::new();
    fs::set_permissions(installation.directory.path(), Permissions::from_mode(0o755)).unwrap();
    // Where every user can execute it.
    let binary = installation.directory.path().join("aspia_relay");
    fs::copy(env!("CARGO_BIN_EXE_aspia_relay"), &binary).unwrap();
    let run_as = |user: u32, more: &[(&str, &str)]| {
        let mut command = Command::new(&binary);
        command.env_clear().stdin(Stdio::null()).arg("--config").arg(installation.path());
        command.args(["--status", "--json"]).envs(more.iter().copied()).uid(user).gid(user);
        let (status, stdout, stderr) = run(&mut command);
        assert_eq!(stdout.is_empty(), status != 0, "{stdout}");
        (status, stderr)
    };
    let start = |user: u32, admin: &str| {
        let more = format!(r#", "AdminListen": "{admin}""#);
        write(&installation.path(), 1, installation.port, KEY, &more);
        fs::set_permissions(installation.path(), Permissions::from_mode(0o644)).unwrap();
        let mut command = Command::new(&binary);
        command.env_clear().stdin(Stdio::null()).arg("--config").arg(installation.path());
        command.env("ASPIA_RELAY_ADMIN_TOKEN", "s3cret").uid(user).gid(user);
        let relay = RunningRelay::start(&mut command);
        relay.line(" runs: ");
        relay
    };
    let admin = format!("127.0.0.1:{}", free_port());
    let relay = start(0, &admin);
    assert_eq!(run_as(0, &[]), (0, String::new()));
    let (status, stderr) = run_as(4242, &[]);
    assert!(status == 1 && stderr.contains("AdminToken, which is not set here"), "{stderr}");
    let token = ("ASPIA_RELAY_ADMIN_TOKEN", "s3cret");
    assert_eq!(run_as(4242, &[token]), (0, String::new()));
    let (status, stderr) = run_as(4242, &[("ASPIA_RELAY_ADMIN_TOKEN", "other")]);
    assert!(status == 1 && stderr.contains("another AdminToken"), "{stderr}");
    make_unreadable(&installation.path());
    let (status, stderr) = run_as(4242, &[]);
    assert!(status == 1 && stderr.contains("which cannot be read"), "{stderr}");
    drop(relay);

    // The relay's own user and root need no token; any other user is told who may ask.
    let relay = start(4242, "off");
    assert_eq!(run_as(4242, &[]), (0, String::new()));
    assert_eq!(run_as(0, &[]), (0, String::new()));
    let (status, stderr) = run_as(4243, &[]);
    assert!(status == 1 && stderr.contains("4242"), "{stderr}");
    assert!(stderr.contains("run this command as root"), "{stderr}");
    drop(relay);
    let _relay = start(0, "off");
    let (status, stderr) = run_as(4242, &[]);
    assert!(status == 1 && stderr.contains("its AdminListen is off"), "{stderr}");
}

fn make_unreadable(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}
