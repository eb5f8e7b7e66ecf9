//! The doctor: every failure that it knows is provoked, and the advice is looked at.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use aspia_relay::config::settings::variable;
use aspia_relay::config::sources::Sources;
use aspia_relay::doctor;
use aspia_relay::doctor::report::{Outcome, Report, Step};
use relay_lab::relay::Relay;
use relay_lab::router::{Behaviour, LabRouter, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

/// A port that is bound by nobody now.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// What makes an installation on loopback, but for the Router.
async fn settings(router: SocketAddr, key: &str) -> Vec<(String, String)> {
    [
        ("RouterAddress", router.ip().to_string()),
        ("RouterPort", router.port().to_string()),
        ("RouterPublicKey", key.to_owned()),
        ("PeerAddress", "127.0.0.1".to_owned()),
        ("PeerPort", free_port().await.to_string()),
        ("ListenInterface", "127.0.0.1".to_owned()),
        ("AdminListen", "off".to_owned()),
    ]
    .map(|(key, value)| (variable(key), value))
    .to_vec()
}

async fn router(behaviour: Behaviour) -> LabRouter {
    LabRouter::start(Options { behaviour, ..Options::default() }).await.unwrap()
}

async fn for_router(router: &LabRouter) -> Vec<(String, String)> {
    settings(router.address(), &router.public_key().to_string()).await
}

fn set(environment: &mut Vec<(String, String)>, key: &str, value: &str) {
    environment.retain(|(name, _)| *name != variable(key));
    environment.push((variable(key), value.to_owned()));
}

async fn examine(environment: &[(String, String)]) -> Report {
    // A paused clock goes on to the next timer whenever everybody waits for a socket: in small steps it does not come
    // to any limit.
    let steps = tokio::spawn(async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let sources = Sources::new(None, environment.to_vec());
    let sources = Sources { path: "no relay.json here".into(), ..sources };
    let mut said = Vec::new();
    let report = doctor::run(&sources, |step| said.push(step.clone())).await;
    assert_eq!(said, report.steps, "each is said when it is known");
    steps.abort();
    report
}

fn step<'a>(report: &'a Report, name: &str) -> &'a Step {
    let step = report.steps.iter().rev().find(|step| step.step == name);
    step.unwrap_or_else(|| panic!("no step {name} in {report:#?}"))
}

/// The one failure, which says all of `parts`.
fn failure(report: &Report, name: &str, parts: &[&str]) {
    let failed: Vec<_> =
        report.steps.iter().filter(|step| step.outcome == Outcome::Failed).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(failed[0].step, name, "{failed:#?}");
    for part in parts {
        assert!(failed[0].seen.contains(part), "{part:?} is not in {:?}", failed[0].seen);
    }
    assert!(failed[0].to_string().starts_with('✗'));
}

#[tokio::test(start_paused = true)]
async fn a_good_installation_has_no_failure_and_the_router_gets_no_key() {
    let router = router(Behaviour::Serve).await;
    let report = examine(&for_router(&router).await).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    for name in [
        "clock",
        "secret files",
        "Router's name",
        "Router's port",
        "Router's dialect",
        "Router's key",
        "relay sessions",
        "white list",
        "ListenPort",
        "PeerAddress",
        "pairing with itself",
        "open files",
        "memory",
    ] {
        assert_eq!(step(&report, name).outcome, Outcome::Ok, "{name}: {report:#?}");
    }
    assert!(step(&report, "Router's dialect").seen.contains("2.7"));
    let configuration = &report.steps[1];
    let key = configuration.details.iter().find(|line| line.starts_with("RouterPublicKey"));
    assert!(key.unwrap().contains("ASPIA_RELAY_ROUTER_PUBLIC_KEY"), "{configuration:#?}");
    assert!(configuration.to_string().starts_with("✓ configuration"));
    let view = router.view();
    assert_eq!((view.links, view.pool.len()), (1, 0), "authenticated, and no key offered");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_configuration_is_told_problem_by_problem() {
    let report = examine(&[
        (variable("RouterAddress"), "r.example".into()),
        (variable("RouterPublicKey"), "router.pub".into()),
    ])
    .await;
    assert_eq!(report.failures(), 2, "{report:#?}");
    let said: Vec<_> = report.steps.iter().map(ToString::to_string).collect();
    assert!(said[1].contains("RouterPublicKey") && said[1].contains("64 hex digits"), "{said:?}");
    assert!(said[2].contains("PeerAddress") && said[2].contains("required"), "{said:?}");
    assert_eq!(step(&report, "everything else").outcome, Outcome::Skipped);
}

#[tokio::test(start_paused = true)]
async fn secrets_that_every_user_can_read_are_named() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    let mut environment = for_router(&router).await;
    environment.push((variable("AdminToken") + "_FILE", token.display().to_string()));
    let look = async |mode| {
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).unwrap();
        let report = examine(&environment).await;
        step(&report, "secret files").clone()
    };
    assert_eq!(look(0o640).await.outcome, Outcome::Ok);
    let open = look(0o644).await;
    // Inside a container it is only worth a look.
    assert_ne!(open.outcome, Outcome::Ok);
    for part in ["AdminToken", "mode 0644", &token.display().to_string()] {
        assert!(open.seen.contains(part), "{open}");
    }
    assert!(open.outcome == Outcome::Hint || open.seen.contains("chmod 600"), "{open}");
    assert!(!open.seen.contains("s3cret"));
}

#[tokio::test(start_paused = true)]
async fn a_router_that_cannot_be_reached_or_is_none() {
    // Bound, but nobody listens.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let key = router(Behaviour::Serve).await.public_key().to_string();
    let report = examine(&settings(socket.local_addr().unwrap(), &key).await).await;
    failure(&report, "Router's port", &["refused; is the Router running there, and RouterPort"]);
    assert_eq!(step(&report, "Router's key").outcome, Outcome::Skipped);
    assert_eq!(step(&report, "pairing with itself").outcome, Outcome::Ok, "the rest is looked at");
    for (behaviour, why) in [
        (Behaviour::Silent, "did not authenticate within 15 s"),
        (Behaviour::CloseAtOnce, "closed the connection before authentication"),
    ] {
        let report = examine(&for_router(&router(behaviour).await).await).await;
        failure(&report, "Router's dialect", &[why, "is it an Aspia"]);
    }
    // A web server that somebody forgot there.
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = web.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let report = examine(&settings(address, &key).await).await;
    failure(&report, "Router's dialect", &["is RouterPort right?"]);
}

#[tokio::test(start_paused = true)]
async fn a_router_of_the_third_generation_is_recognised() {
    let recorded: serde_json::Value =
        serde_json::from_str(include_str!("vectors/handshake3.json")).unwrap();
    let hello = recorded["runs"][0]["messages"][1].clone();
    assert_eq!(hello["name"], "ServerHello");
    let hello = hex::decode(hello["raw"].as_str().unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut header = [0; 8];
            // A frame of its authentication; any other ends the connection.
            if stream.read_exact(&mut header).await.is_ok() && header[..4] == [2, 0, 0, 0] {
                let _ = stream.write_all(&hello).await;
                let _ = stream.read(&mut [0; 256]).await;
            }
        }
    });
    let key = router(Behaviour::Serve).await.public_key().to_string();
    let report = examine(&settings(address, &key).await).await;
    failure(&report, "Router's dialect", &["is an Aspia 3.x Router", "speaks to 2.x Routers only"]);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_does_not_take_this_relay() {
    let report = examine(&for_router(&router(Behaviour::WrongKey).await).await).await;
    failure(&report, "Router's key", &["copy the content of router.pub from the Router's machine"]);
    let report = examine(&for_router(&router(Behaviour::NoRelaySessions).await).await).await;
    failure(&report, "relay sessions", &["allow relay sessions in the Router's configuration"]);
    assert_eq!(step(&report, "Router's key").outcome, Outcome::Ok);
    let report =
        examine(&for_router(&router(Behaviour::CloseAfterAuthentication).await).await).await;
    failure(&report, "white list", &["white list of relays", "address is missing there"]);
}

#[tokio::test(start_paused = true)]
async fn ports_that_others_hold() {
    let router = router(Behaviour::Serve).await;
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let mut environment = for_router(&router).await;
    set(&mut environment, "PeerPort", &port);
    let report = examine(&environment).await;
    let holder_name = format!("process {} (", std::process::id());
    failure(&report, "ListenPort", &["the port is held by", &holder_name, "set ListenPort"]);
    assert_eq!(step(&report, "pairing with itself").outcome, Outcome::Skipped);
    for listener in ["AdminListen", "MetricsListen"] {
        let mut environment = for_router(&router).await;
        set(&mut environment, listener, &format!("127.0.0.1:{port}"));
        let report = examine(&environment).await;
        failure(&report, listener, &["the port is held by", listener]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_runs_is_left_alone() {
    let router = router(Behaviour::Serve).await;
    let relay = Relay::start(router.address(), router.public_key(), &[]).unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    let (mut client, mut host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let (pool, offered) = (router.view().pool.len(), relay.handle().state().counts().offered);
    let mut environment = for_router(&router).await;
    set(&mut environment, "PeerPort", &relay.address().port().to_string());
    set(&mut environment, "AdminListen", &relay.admin().to_string());
    let report = examine(&environment).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    assert!(step(&report, "ListenPort").seen.contains("a relay that runs already"), "{report:#?}");
    assert!(step(&report, "pairing with itself").seen.contains("not tried, since a relay runs"));
    assert!(step(&report, "AdminListen").seen.contains("the relay that runs"));
    assert_eq!(router.view().links, 2, "the doctor was there, too");
    // Its session goes on, and so does its link, with the keys that were on offer.
    host.write_all(b"y").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    assert_eq!(router.view().pool.len(), pool);
    assert_eq!(relay.handle().state().counts().offered, offered);
    assert!(relay.handle().link().link.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_lead_back_here() {
    let router = router(Behaviour::Serve).await;
    let pairing = async |peer_port: u16, more: &[(&str, &str)]| {
        let mut environment = for_router(&router).await;
        set(&mut environment, "PeerPort", &peer_port.to_string());
        set(&mut environment, "ListenPort", &free_port().await.to_string());
        for (key, value) in more {
            set(&mut environment, key, value);
        }
        let report = examine(&environment).await;
        step(&report, "pairing with itself").clone()
    };
    // A forwarded port that does not work from inside.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let hairpin = pairing(nobody.local_addr().unwrap().port(), &[]).await;
    assert_eq!(hairpin.outcome, Outcome::Hint, "{hairpin}");
    assert!(
        hairpin.seen.contains("the relay itself works") && hairpin.seen.contains("from outside")
    );
    assert!(hairpin.to_string().starts_with('–'));
    // Somebody else answers there.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stranger = pairing(other.local_addr().unwrap().port(), &[]).await;
    assert_eq!(stranger.outcome, Outcome::Hint, "{stranger}");
    assert!(stranger.seen.contains("it is not this relay"), "{stranger}");
    // This machine's own address, on which the relay does not listen.
    let port = free_port().await;
    let text = port.to_string();
    let left_out = pairing(port, &[("ListenPort", &text), ("ListenInterface", "127.0.0.2")]).await;
    assert_eq!(left_out.outcome, Outcome::Failed, "{left_out}");
    assert!(left_out.seen.contains("Does ListenInterface leave the address out"), "{left_out}");
}

#[tokio::test(start_paused = true)]
async fn certificates_and_collectors() {
    let router = router(Behaviour::Serve).await;
    let mut parameters = rcgen::CertificateParams::new(["x".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let expired = parameters.self_signed(&key).unwrap().pem();
    let mut environment = for_router(&router).await;
    set(&mut environment, "MetricsListen", &format!("127.0.0.1:{}", free_port().await));
    set(&mut environment, "MetricsTlsCertificate", &expired);
    set(&mut environment, "MetricsTlsPrivateKey", &key.serialize_pem());
    let name = "TLS of the metrics listener";
    failure(&examine(&environment).await, name, &["expired at 2020-01-01", "renew it"]);
    let good = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
    set(&mut environment, "MetricsTlsCertificate", &good.cert.pem());
    set(&mut environment, "MetricsTlsPrivateKey", &good.signing_key.serialize_pem());
    assert_eq!(step(&examine(&environment).await, name).outcome, Outcome::Ok);

    let away = TcpSocket::new_v4().unwrap();
    away.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let collector = |endpoint: String| vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), endpoint)];
    let mut environment = for_router(&router).await;
    environment.extend(collector(format!("http://{}", away.local_addr().unwrap())));
    failure(&examine(&environment).await, "trace collector", &["cannot be reached", "refused"]);
    let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut environment = for_router(&router).await;
    environment.extend(collector(format!("http://{}", there.local_addr().unwrap())));
    assert_eq!(step(&examine(&environment).await, "trace collector").outcome, Outcome::Ok);
    environment.push(("OTEL_TRACES_SAMPLER".into(), "sometimes".into()));
    let report = examine(&environment).await;
    failure(&report, "trace collector", &["OTEL_TRACES_SAMPLER", "expected always_on"]);
}

/// Runs a command with the doctor's environment; gives exit status, stdout and stderr.
async fn run(mut command: Command, environment: &[(String, String)]) -> (i32, String, String) {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.envs(environment.iter().cloned());
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn doctor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    command.arg("--doctor");
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_says_it_line_by_line_or_in_json_and_counts_failures() {
    let router = router(Behaviour::Serve).await;
    let environment = for_router(&router).await;
    let (status, stdout, stderr) = run(doctor(), &environment).await;
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    for line in ["✓ Router's key: ", "✓ pairing with itself: ", "– MetricsListen: off"] {
        assert!(stdout.lines().any(|said| said.starts_with(line)), "{line}: {stdout}");
    }
    let wrong = self::router(Behaviour::WrongKey).await;
    let mut environment = for_router(&wrong).await;
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    set(&mut environment, "PeerPort", &holder.local_addr().unwrap().port().to_string());
    let mut command = doctor();
    command.arg("--json");
    let (status, stdout, stderr) = run(command, &environment).await;
    assert_eq!(status, 1);
    assert!(stderr.contains("2 steps failed"), "{stderr}");
    let said: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(said["failures"], 2);
    let steps = said["steps"].as_array().unwrap();
    let key = steps.iter().find(|step| step["step"] == "Router's key").unwrap();
    assert_eq!(key["outcome"], "failed");
    assert!(key["seen"].as_str().unwrap().contains("router.pub"), "{key}");
    let mut usage = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    usage.arg("--json");
    assert_eq!(run(usage, &environment).await.0, 2, "--json needs something to be about");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_open_files_are_noticed_and_the_relay_says_the_same() {
    let router = router(Behaviour::Serve).await;
    let environment = for_router(&router).await;
    let limited = |argument: &str| {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_aspia_relay");
        command.args(["-c", &format!("ulimit -n 300; exec {program} {argument}")]);
        command
    };
    let (status, stdout, stderr) = run(limited("--doctor"), &environment).await;
    let line = stdout.lines().find(|line| line.starts_with("✗ open files: ")).unwrap();
    assert!(line.contains("only 300 files may be open") && line.contains("LimitNOFILE"), "{line}");
    assert_eq!(status, 1, "{stdout} {stderr}");
    let mut relay = limited("");
    relay.env_clear().envs(environment).stderr(std::process::Stdio::piped());
    relay.stdout(std::process::Stdio::null());
    let mut child = relay.spawn().unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    child.kill().unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await;
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    let words = line.strip_prefix("✗ open files: ").unwrap();
    assert!(said.contains(words), "{said}");
}

/// In a network of its own, where nothing can be asked and nothing reached: names and addresses that are not here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_do_not_resolve_and_addresses_of_others() {
    let program = env!("CARGO_BIN_EXE_aspia_relay");
    let mut alone = Command::new("unshare");
    alone.args(["--net", "sh", "-c", &format!("ip link set lo up && exec {program} --doctor")]);
    let mut probe = Command::new("unshare");
    probe.args(["--net", "ip", "link", "set", "lo", "up"]);
    if !probe.output().is_ok_and(|output| output.status.success()) {
        relay_lab::skip("the doctor in a network of its own", "unshare --net or ip does not work");
        return;
    }
    let mut environment =
        settings(([127, 0, 0, 1], 1).into(), include_str!("vectors/router.pub")).await;
    set(&mut environment, "RouterAddress", "router.invalid");
    set(&mut environment, "PeerAddress", "192.0.2.1");
    set(&mut environment, "ListenInterface", "");
    let (status, stdout, stderr) = run(alone, &environment).await;
    let line = |start: &str| {
        let line = stdout.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no line {start:?} in {stdout}{stderr}"))
    };
    assert!(line("✗ Router's name: ").contains("router.invalid does not resolve"), "{stdout}");
    assert!(line("– Router's port: ").contains("not looked at"));
    let address = line("– PeerAddress: ");
    assert!(address.contains("192.0.2.1, which is no address of this machine"), "{address}");
    assert!(line("– pairing with itself: ").contains("the relay itself works"), "{stdout}");
    assert_eq!(status, 1);
    assert!(stderr.contains("1 step failed"), "{stderr}");
    std::io::stdout().flush().unwrap();
}

/// The words of a start and those of the doctor are the same for files that everybody can read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_warns_of_open_secrets_at_its_start() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o604)).unwrap();
    let mut environment = for_router(&router).await;
    environment.push((variable("AdminToken") + "_FILE", token.display().to_string()));
    environment.push(("ASPIA_LOG_LEVEL".into(), "0".into()));
    let mut relay = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    let log = directory.path().join("log");
    relay.env_clear().envs(environment).stdout(std::fs::File::create(&log).unwrap());
    let mut child = relay.spawn().unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("holds AdminToken and can be read by every user (mode 0604)"), "{said}");
}
