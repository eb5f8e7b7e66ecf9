//! The doctor: every failure that it knows is provoked, and the advice is looked at.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

#[cfg(target_os = "linux")]
use aspia_relay::admin::instance::Identity;
use aspia_relay::config::settings::variable;
use aspia_relay::config::sources::Sources;
use aspia_relay::doctor::report::{Outcome, Report, STEPS, Step};
use aspia_relay::doctor::site::Site;
use aspia_relay::doctor::{self, Surroundings};
use aspia_relay::listen::bind;
use aspia_relay::peer;
use aspia_relay::tls::{ServerFiles, Source};
use aspia_relay::wire::router::Version;
use relay_lab::relay::Relay;
use relay_lab::router::{Behaviour, LabRouter, Options, RouterVersion};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

/// A port for the doctor or a relay to listen on. Until this process ends nobody else gets it from the system: it is
/// bound, but as long as nobody listens, all who allow it (`SO_REUSEADDR`) may bind it, too.
fn free_port() -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::mem::forget(socket);
    port
}

/// An address where nobody listens, as long as the socket is there.
fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// What makes an installation on loopback, but for the Router.
fn settings(router: SocketAddr, key: &str) -> Vec<(String, String)> {
    [
        ("RouterAddress", router.ip().to_string()),
        ("RouterPort", router.port().to_string()),
        ("RouterPublicKey", key.to_owned()),
        ("PeerAddress", "127.0.0.1".to_owned()),
        ("PeerPort", free_port().to_string()),
        ("ListenInterface", "127.0.0.1".to_owned()),
        ("AdminListen", "off".to_owned()),
    ]
    .map(|(key, value)| (variable(key), value))
    .to_vec()
}

async fn router(behaviour: Behaviour) -> LabRouter {
    LabRouter::start(Options { behaviour, ..Options::default() }).await.unwrap()
}

fn for_router(router: &LabRouter) -> Vec<(String, String)> {
    settings(router.address(), &router.public_key().to_string())
}

fn set(environment: &mut Vec<(String, String)>, key: &str, value: &str) {
    environment.retain(|(name, _)| *name != variable(key));
    environment.push((variable(key), value.to_owned()));
}

async fn examine(environment: &[(String, String)]) -> Report {
    examine_in(environment, on_a_machine()).await
}

fn on_a_machine() -> Surroundings {
    Surroundings {
        now: SystemTime::now(),
        in_container: false,
        site: Site::Machine,
        expects_relay: false,
    }
}

async fn examine_in(environment: &[(String, String)], surroundings: Surroundings) -> Report {
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
    let report = doctor::run(&sources, surroundings, |step| said.push(step.clone())).await;
    assert_eq!(said, report.steps, "each is said when it is known");
    steps.abort();
    let mut names: Vec<_> = report.steps.iter().map(|step| step.step).collect();
    names.dedup();
    assert_eq!(names, STEPS, "whatever is wrong, no step is left out");
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
    let report = examine(&for_router(&router)).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    for name in [
        "clock",
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
        "pipes",
    ] {
        assert_eq!(step(&report, name).outcome, Outcome::Ok, "{name}: {report:#?}");
    }
    assert!(step(&report, "Router's dialect").seen.contains("2.7"));
    for (name, why) in
        [("secret files", "no file holds a secret"), ("running relay", "none runs here")]
    {
        let skipped = step(&report, name);
        assert_eq!(skipped.outcome, Outcome::Skipped, "{skipped}");
        assert!(skipped.seen.contains(why), "{skipped}");
    }
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
        // No relay that another test runs is meant.
        (variable("PeerPort"), free_port().to_string()),
    ])
    .await;
    assert_eq!(report.failures(), 2, "{report:#?}");
    let said: Vec<_> = report.steps.iter().map(ToString::to_string).collect();
    // What is known is shown all the same, with where it came from.
    let value = said[1].lines().find(|line| line.contains("RouterAddress")).unwrap();
    assert!(value.contains("r.example") && value.contains("ASPIA_RELAY_ROUTER_ADDRESS"), "{value}");
    assert!(said[2].contains("RouterPublicKey") && said[2].contains("64 hex digits"), "{said:?}");
    assert!(said[3].contains("PeerAddress") && said[3].contains("required"), "{said:?}");
    // What needs no configuration is looked at, the rest is named.
    assert_eq!(step(&report, "clock").outcome, Outcome::Ok);
    for name in ["Router's name", "white list", "ListenPort", "running relay", "memory"] {
        let skipped = step(&report, name);
        assert_eq!(skipped.outcome, Outcome::Skipped);
        assert!(skipped.seen.contains("the configuration is wrong, mend that first"), "{skipped}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_with_a_warning_is_a_hint_and_a_clock_that_is_wrong_a_failure() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "StatisticsInterval", "100");
    let never_set = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
    let surroundings = Surroundings { now: never_set, ..on_a_machine() };
    let report = examine_in(&environment, surroundings).await;
    failure(&report, "clock", &["1970-01-02", "NTP"]);
    let hints: Vec<_> = report.steps.iter().filter(|s| s.step == "configuration").collect();
    let hint = hints.iter().find(|hint| hint.seen.contains("StatisticsInterval")).unwrap();
    assert_eq!(hint.outcome, Outcome::Hint, "{hint}");
    assert!(hint.seen.contains("documented up to 60 s"), "{hint}");
}

#[tokio::test(start_paused = true)]
async fn secrets_that_every_user_can_read_are_named() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    let mut environment = for_router(&router);
    environment.push((variable("AdminToken") + "_FILE", token.display().to_string()));
    let look = async |mode, in_container| {
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).unwrap();
        let surroundings = Surroundings { in_container, ..on_a_machine() };
        let report = examine_in(&environment, surroundings).await;
        step(&report, "secret files").clone()
    };
    let kept = look(0o640, false).await;
    assert_eq!(kept.outcome, Outcome::Ok);
    assert!(kept.seen.contains(&token.display().to_string()), "{kept}");
    let open = look(0o644, false).await;
    assert_eq!(open.outcome, Outcome::Failed, "{open}");
    let path = token.display().to_string();
    let owner = std::fs::metadata(&token).unwrap().uid();
    let advice = [
        format!("belongs to user {owner}"),
        format!("chmod 600 {path}"),
        format!("chown USER {path} && chmod 600 {path}"),
        format!("chgrp GROUP {path} && chmod 640 {path}"),
    ];
    for part in ["AdminToken", "mode 0644"].iter().map(ToString::to_string).chain(advice) {
        assert!(open.seen.contains(&part), "{part}: {open}");
    }
    assert!(!open.seen.contains("s3cret"));
    let contained = look(0o644, true).await;
    assert_eq!(contained.outcome, Outcome::Hint, "{contained}");
    assert!(contained.seen.contains("in a container that may be nobody else"), "{contained}");
}

#[tokio::test(start_paused = true)]
async fn a_secret_file_that_cannot_be_looked_at_is_not_called_good() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    environment.push(("OTEL_EXPORTER_OTLP_CLIENT_KEY".into(), "/nonexistent/key".into()));
    let report = examine(&environment).await;
    let unknown = step(&report, "secret files");
    assert_eq!(unknown.outcome, Outcome::Skipped, "{unknown}");
    assert!(unknown.seen.contains("who can read /nonexistent/key"), "{unknown}");
    assert!(unknown.seen.contains("No such file"), "{unknown}");
}

#[tokio::test(start_paused = true)]
async fn a_router_that_cannot_be_reached_or_is_none() {
    let (_socket, address) = nobody();
    let key = router(Behaviour::Serve).await.public_key().to_string();
    let report = examine(&settings(address, &key)).await;
    failure(&report, "Router's port", &["refused; is the Router running there, and RouterPort"]);
    assert_eq!(step(&report, "Router's key").outcome, Outcome::Skipped);
    assert_eq!(step(&report, "pairing with itself").outcome, Outcome::Ok, "the rest is looked at");
    for (behaviour, why) in [
        (Behaviour::Silent, "did not authenticate within 15 s"),
        (Behaviour::CloseAtOnce, "closed the connection before authentication"),
    ] {
        let report = examine(&for_router(&router(behaviour).await)).await;
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
    let report = examine(&settings(address, &key)).await;
    failure(&report, "Router's dialect", &["is RouterPort right?"]);
}

#[tokio::test(start_paused = true)]
async fn a_router_behind_a_firewall_and_one_that_is_too_old() {
    // Whose queue is full, it does not answer: as if a firewall dropped it.
    let full = TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let _fills = std::net::TcpStream::connect(address).unwrap();
    let router = router(Behaviour::Serve).await;
    let report = examine(&settings(address, &router.public_key().to_string())).await;
    failure(&report, "Router's port", &["timed out; does a firewall drop it?"]);
    router.set(|options| options.version = RouterVersion(Version::new(2, 2, 0)));
    let report = examine(&for_router(&router)).await;
    failure(&report, "Router's dialect", &["version 2.2.0", "Routers from 2.3.0 to 2.7"]);
}

/// A Router of the 3.0 dialect.
async fn third_generation(listen: &str, behaviour: Behaviour) -> LabRouter {
    let listen = listen.parse().unwrap();
    let version = RouterVersion::V3_0;
    let options = Options { listen, version, behaviour, ..Options::default() };
    LabRouter::start(options).await.unwrap()
}

/// The usual ports, on an address of loopback that is nobody else's.
#[tokio::test(start_paused = true)]
async fn a_router_on_the_usual_port_of_the_other_dialect_is_named() {
    let key = router(Behaviour::Serve).await.public_key().to_string();
    let _third = third_generation("127.60.80.63:8063", Behaviour::Serve).await;
    let report = examine(&settings("127.60.80.63:8060".parse().unwrap(), &key)).await;
    failure(
        &report,
        "Router's port",
        &[
            "refused",
            "127.60.80.63:8063 is an Aspia Router of the 3.0 dialect: set RouterPort to 8063",
        ],
    );
    let listen = "127.60.80.60:8060".parse().unwrap();
    let options = Options { listen, ..Options::default() };
    let _second = LabRouter::start(options).await.unwrap();
    let report = examine(&settings("127.60.80.60:8063".parse().unwrap(), &key)).await;
    failure(
        &report,
        "Router's port",
        &["is an Aspia Router of the 2.x dialect: set RouterPort to 8060"],
    );
    // Where nobody is on either port, nothing is claimed.
    let report = examine(&settings("127.60.80.61:8060".parse().unwrap(), &key)).await;
    failure(&report, "Router's port", &["refused; is the Router running there"]);
    assert!(!step(&report, "Router's port").seen.contains("dialect"));
}

/// After its migration to 3.x a Router listens for Hosts alone where relays used to come.
#[tokio::test(start_paused = true)]
async fn the_port_for_hosts_of_a_migrated_router_is_named() {
    let third = third_generation("127.60.80.64:8063", Behaviour::Serve).await;
    let hosts = third_generation("127.60.80.64:8060", Behaviour::HostPort).await;
    let report = examine(&for_router(&hosts)).await;
    let parts = [
        "version 3.0.0, listens for Hosts",
        "RouterPublicKey stays",
        "127.60.80.64:8063 is an Aspia Router of the 3.0 dialect: set RouterPort to 8063",
    ];
    failure(&report, "Router's dialect", &parts);
    // One that was set up anew has another key for relays.
    let key = third.public_key().to_string();
    let report = examine(&settings(hosts.address(), &key)).await;
    let parts =
        ["If the Router is a 3.x", "set RouterPort to 8063", "relay.pub", "127.60.80.64:8063 is"];
    failure(&report, "Router's key", &parts);
    // Where nobody listens for relays, the remedy stands without it.
    let hosts = third_generation("127.60.80.65:8060", Behaviour::HostPort).await;
    let report = examine(&for_router(&hosts)).await;
    failure(&report, "Router's dialect", &["set RouterPort to 8063"]);
    assert!(!step(&report, "Router's dialect").seen.contains("127.60.80.65:8063 is"));
}

#[tokio::test(start_paused = true)]
async fn a_router_of_the_third_generation_is_examined_in_its_dialect() {
    let good = third_generation("127.0.0.1:0", Behaviour::Serve).await;
    let report = examine(&for_router(&good)).await;
    let dialect = step(&report, "Router's dialect");
    assert_eq!(dialect.outcome, Outcome::Ok);
    assert!(dialect.seen.contains("version 3.0.0, 3.0 dialect, AES-256-GCM"), "{dialect}");
    assert_eq!(step(&report, "Router's key").outcome, Outcome::Ok);
    assert_eq!(good.view().complaints, [""; 0]);
    // Its other key, or that of a 2.x Router, is the usual mistake.
    let wrong = third_generation("127.0.0.1:0", Behaviour::WrongKey).await;
    let report = examine(&for_router(&wrong)).await;
    failure(&report, "Router's key", &["copy the content of relay.pub from the Router's machine"]);
    // Where the settings demand the other dialect, they are what is wrong.
    let mut only_second = for_router(&good);
    only_second.push((variable("RouterProtocol"), "2".into()));
    let report = examine(&only_second).await;
    failure(&report, "Router's dialect", &["of the 3.0 dialect: set RouterProtocol to auto"]);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_does_not_take_this_relay() {
    let report = examine(&for_router(&router(Behaviour::WrongKey).await)).await;
    failure(&report, "Router's key", &["copy the content of router.pub from the Router's machine"]);
    let report = examine(&for_router(&router(Behaviour::NoRelaySessions).await)).await;
    failure(&report, "relay sessions", &["allow relay sessions in the Router's configuration"]);
    assert_eq!(step(&report, "Router's key").outcome, Outcome::Ok);
    let report = examine(&for_router(&router(Behaviour::CloseAfterAuthentication).await)).await;
    let parts = ["white list of relays", "address is missing there", "as 127.0.0.1, or", "NAT"];
    failure(&report, "white list", &parts);
}

/// On real time: the bytes, not the clock, decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_frame_after_the_authentication_is_no_white_list() {
    let router = router(Behaviour::Serve).await;
    let environment = for_router(&router);
    let breaks = async {
        router.wait_for(|view| view.links == 1).await;
        // A service frame of a kind that does not exist.
        router.send_bytes(vec![0, 9, 0, 0, 0, 1, 0, 0, 0, 0]).await;
    };
    let (report, ()) = tokio::join!(examine(&environment), breaks);
    failure(&report, "white list", &["the Router broke the protocol"]);
    assert!(!step(&report, "white list").seen.contains("address is missing"));
}

#[tokio::test(start_paused = true)]
async fn ports_that_others_hold() {
    let router = router(Behaviour::Serve).await;
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let mut environment = for_router(&router);
    set(&mut environment, "PeerPort", &port);
    let report = examine(&environment).await;
    let holder_name = format!("process {} (", std::process::id());
    failure(&report, "ListenPort", &["the port is held by", &holder_name, "set ListenPort"]);
    assert_eq!(step(&report, "pairing with itself").outcome, Outcome::Skipped);
    for listener in ["AdminListen", "MetricsListen"] {
        let mut environment = for_router(&router);
        set(&mut environment, listener, &format!("127.0.0.1:{port}"));
        let report = examine(&environment).await;
        failure(&report, listener, &["the port is held by", listener]);
    }
    let mut environment = for_router(&router);
    set(&mut environment, "ListenInterface", "192.0.2.1");
    let report = examine(&environment).await;
    failure(&report, "ListenPort", &["ListenInterface must be an address of this machine"]);
}

/// The port is held for the pairing alone: a relay that starts meanwhile must not fail for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_is_free_again_as_soon_as_the_pairing_is_reported() {
    let router = router(Behaviour::Serve).await;
    let environment = for_router(&router);
    let port = environment.iter().find(|(name, _)| *name == variable("PeerPort")).unwrap();
    let port = port.1.parse().unwrap();
    let sources = Sources::new(None, environment.clone());
    let sources = Sources { path: "no relay.json here".into(), ..sources };
    let mut free = Vec::new();
    let surroundings = Surroundings::of_process(&sources);
    let report = doctor::run(&sources, surroundings, |step| {
        let bound = bind::bind(peer::PURPOSE, Some([127, 0, 0, 1].into()), port);
        free.push((step.step, bound.is_ok()));
    })
    .await;
    assert_eq!(step(&report, "pairing with itself").outcome, Outcome::Ok, "{report:#?}");
    let held: Vec<_> = free.iter().filter(|(_, free)| !free).map(|(step, _)| *step).collect();
    assert_eq!(held, ["ListenPort"]);
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
    let mut environment = for_router(&router);
    set(&mut environment, "PeerPort", &relay.address().port().to_string());
    set(&mut environment, "AdminListen", &relay.admin().to_string());
    set(&mut environment, "MetricsListen", &relay.metrics().to_string());
    let report = examine(&environment).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    assert!(step(&report, "ListenPort").seen.contains("a relay that runs already"), "{report:#?}");
    assert!(step(&report, "pairing with itself").seen.contains("not tried, since a relay runs"));
    assert_eq!(step(&report, "pairing with itself").outcome, Outcome::Skipped);
    assert!(step(&report, "AdminListen").seen.contains("the relay that runs"));
    #[cfg(target_os = "linux")]
    assert!(step(&report, "MetricsListen").seen.contains("held by the relay that runs"));
    let running = step(&report, "running relay");
    assert!(running.seen.contains("99 keys are on offer (1 sessions"), "{running}");
    // It was started with other settings than the doctor, which says so.
    assert_eq!(running.outcome, Outcome::Hint, "{running}");
    let differs = format!("AdminListen is \"off\" there and \"{}\" here", relay.admin());
    assert!(running.details.iter().any(|line| line.contains(&differs)), "{running}");
    assert_eq!(router.view().links, 2, "the doctor was there, too");
    // Its session goes on, and so does its link, with the keys that were on offer.
    host.write_all(b"y").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    assert_eq!(router.view().pool.len(), pool);
    assert_eq!(relay.handle().state().counts().offered, offered);
    assert!(relay.handle().link().link.is_some());
}

/// As `helm test` runs it on the host network of a node: there must be a relay, and whoever reads the advice has `kubectl`
/// and the values of the chart.
#[tokio::test(start_paused = true)]
async fn in_a_pod_the_advice_is_for_kubectl_and_the_chart() {
    let in_pod = Surroundings { in_container: true, site: Site::Pod, ..on_a_machine() };
    let must_run = Surroundings { expects_relay: true, ..in_pod };
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    let (socket, nobody) = nobody();
    set(&mut environment, "AdminListen", &nobody.to_string());
    let report = examine_in(&environment, in_pod).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    // No node has the label.
    let report = examine_in(&environment, must_run).await;
    failure(&report, "running relay", &["none answers", "nodeSelector", "kubectl get daemonset"]);
    drop(socket);
    // Another program has the port.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    set(&mut environment, "AdminListen", &taken.local_addr().unwrap().to_string());
    let admin = examine_in(&environment, in_pod).await;
    let value = |line: &String| {
        line.contains("in the values of the chart, AdminListen is admin.port; without the chart")
    };
    assert!(step(&admin, "AdminListen").details.iter().any(value), "{admin:#?}");
    for step in report.steps.iter().chain(&admin.steps) {
        for machine in ["SIGHUP", "root", "resolv.conf", "ulimit", "CAP_NET", "a restart"] {
            assert!(!step.to_string().contains(machine), "{machine}: {step}");
        }
    }
    let on_machine = examine(&environment).await;
    assert!(step(&on_machine, "AdminListen").details.is_empty(), "{on_machine:#?}");
    let relay = Relay::start(router.address(), router.public_key(), &[]).unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    set(&mut environment, "PeerPort", &relay.address().port().to_string());
    set(&mut environment, "AdminListen", &relay.admin().to_string());
    let report = examine_in(&environment, must_run).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    // It does not run with these settings.
    let running = step(&report, "running relay");
    assert!(running.seen.contains("kubectl rollout restart"), "{running}");
    assert!(!running.seen.contains("SIGHUP"), "{running}");
}

/// The field's most frequent trouble: the key pool is empty, and nobody knows why.
#[tokio::test(start_paused = true)]
async fn an_empty_key_pool_is_explained() {
    let good = router(Behaviour::Serve).await;
    let with = |relay: &Relay| {
        let mut environment = for_router(&good);
        set(&mut environment, "PeerPort", &relay.address().port().to_string());
        set(&mut environment, "AdminListen", &relay.admin().to_string());
        environment
    };
    let wrong = router(Behaviour::WrongKey).await;
    let relay = Relay::start(wrong.address(), wrong.public_key(), &[]).unwrap();
    wrong.wait_for(|view| view.connections > 0).await;
    while relay.handle().link().last_error.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let report = examine(&with(&relay)).await;
    let router_text = wrong.address().to_string();
    let parts = ["key pool is empty", "no link to", &router_text, "copy the content of router.pub"];
    failure(&report, "running relay", &parts);
    relay.handle().drain();
    // All places are in use.
    let relay = Relay::start(good.address(), good.public_key(), &[("MaxPeerCount", "1")]).unwrap();
    good.keys(1).await;
    let (mut client, mut host) = good.introduce().await.unwrap().connect_both().await.unwrap();
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
    good.set(|options| options.behaviour = Behaviour::ServeAside);
    let report = examine(&with(&relay)).await;
    let full = step(&report, "running relay");
    assert_eq!((full.outcome, report.failures()), (Outcome::Hint, 0), "{report:#?}");
    assert!(full.seen.contains("key pool is empty, since all places are in use"), "{full}");
    // It stops, but a session is left.
    relay.handle().drain();
    let report = examine(&with(&relay)).await;
    let draining = step(&report, "running relay");
    assert!(draining.seen.contains("stopping (draining); 1 sessions are left"), "{draining}");
}

#[tokio::test(start_paused = true)]
async fn what_a_running_relay_says_without_its_token() {
    let router = router(Behaviour::Serve).await;
    let token = [("AdminToken", "s3cret")];
    let relay = Relay::start(router.address(), router.public_key(), &token).unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let mut environment = for_router(&router);
    set(&mut environment, "PeerPort", &relay.address().port().to_string());
    set(&mut environment, "AdminListen", &relay.admin().to_string());
    let said = async |environment: &[(String, String)]| {
        let report = examine(environment).await;
        assert_eq!(report.failures(), 0, "{report:#?}");
        step(&report, "running relay").clone()
    };
    let unknown = said(&environment).await;
    assert!(unknown.seen.contains("needs the AdminToken of that relay"), "{unknown}");
    set(&mut environment, "AdminToken", "another");
    assert!(said(&environment).await.seen.contains("which is another one here"));
    set(&mut environment, "AdminToken", "s3cret");
    assert!(said(&environment).await.seen.contains("keys are on offer"));
}

/// While the relay does not run, any user can listen on its port and answer as it does.
#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn another_user_who_answers_does_not_get_the_token() {
    let router = router(Behaviour::Serve).await;
    let impostor = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = impostor.local_addr().unwrap();
    if std::os::unix::fs::fchown(&impostor, Some(4242), None).is_err() {
        relay_lab::skip("a listener of another user", "only root may give a socket away");
        return;
    }
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = impostor.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut request).await.unwrap() > 0
            {}
            heard.send(String::from_utf8(request).unwrap()).unwrap();
            let ready =
                b"HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{\"ready\":true,\"missing\":[]}";
            let _ = stream.write_all(ready).await;
        }
    });
    let mut environment = for_router(&router);
    set(&mut environment, "AdminListen", &address.to_string());
    set(&mut environment, "AdminToken", "s3cret");
    let report = examine(&environment).await;
    let running = step(&report, "running relay");
    assert_eq!(running.outcome, Outcome::Hint, "{running}");
    assert!(running.seen.contains("another user, 4242, holds"), "{running}");
    assert!(running.seen.contains("is not shown the AdminToken"), "{running}");
    let mut requests = Vec::new();
    while let Ok(request) = hears.try_recv() {
        assert!(!request.contains("s3cret"), "{request}");
        requests.push(request);
    }
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].starts_with("GET /readyz "), "{requests:?}");
}

/// Everything that a relay has published is the word of whoever did: no other user leads the token anywhere, and nobody
/// leads it to another machine.
#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn the_token_does_not_go_where_another_user_or_another_machine_is_named() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "AdminToken", "s3cret");
    let sources = Sources::new(None, environment.clone());
    let sources = Sources { path: "no relay.json here".into(), ..sources };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = || Identity::of_process(&sources).name(port).unwrap().socket();
    // A port of root's, where a web server could hand on what it hears.
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web_address = web.local_addr().unwrap();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut request).await.unwrap() > 0
            {}
            heard.send(String::from_utf8(request).unwrap()).unwrap();
            let ready =
                b"HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{\"ready\":true,\"missing\":[]}";
            let _ = stream.write_all(ready).await;
        }
    });
    let ready = r#"{"ready":true,"missing":[]}"#;
    let here = format!(r#"{{"peers":"127.0.0.1:1","admin":"{web_address}"}}"#);
    // The answers are for as long as the program.
    let here: &'static str = here.leak();
    let there = r#"{"peers":"127.0.0.1:1","admin":"203.0.113.5:22"}"#;
    let leads: &'static [_] = Box::leak(Box::new([("/instance", here), ("/readyz", ready)]));
    if relay_lab::impostor::publish(&name(), 4242, leads).is_err() {
        relay_lab::skip("a relay of another user", "only root may be another user");
        return;
    }
    // It holds the port of peers that it claims, so that root takes it for a relay; the token it does not get.
    let report = examine(&environment).await;
    let running = step(&report, "running relay");
    assert!(running.seen.contains("another user, 4242"), "{running}");
    while let Ok(request) = hears.try_recv() {
        assert!(!request.contains("s3cret"), "{request}");
    }
    // Nor does another machine, whoever says so: this one counts before the other.
    let away: &'static [_] = Box::leak(Box::new([("/instance", there), ("/readyz", ready)]));
    relay_lab::impostor::publish(&name(), 0, away).unwrap();
    let must_run = Surroundings { expects_relay: true, ..on_a_machine() };
    let report = examine_in(&environment, must_run).await;
    let running = step(&report, "running relay");
    assert!(running.seen.contains("203.0.113.5:22, which is no address of"), "{running}");
    assert!(hears.try_recv().is_err());
}

/// The tries run at once, and each has two connections.
#[tokio::test(start_paused = true)]
async fn the_limit_on_waiting_peers_does_not_disturb_the_pairing() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "MaxPendingPeers", "2");
    let report = examine(&environment).await;
    let pairing = step(&report, "pairing with itself");
    assert_eq!(pairing.outcome, Outcome::Ok, "{pairing}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_lead_back_here() {
    let router = router(Behaviour::Serve).await;
    let pairing = async |peer_port: u16, more: &[(&str, &str)]| {
        let mut environment = for_router(&router);
        set(&mut environment, "PeerPort", &peer_port.to_string());
        set(&mut environment, "ListenPort", &free_port().to_string());
        for (key, value) in more {
            set(&mut environment, key, value);
        }
        let report = examine(&environment).await;
        step(&report, "pairing with itself").clone()
    };
    // A forwarded port that does not work from inside.
    let (_socket, closed) = nobody();
    let hairpin = pairing(closed.port(), &[]).await;
    assert_eq!(hairpin.outcome, Outcome::Hint, "{hairpin}");
    assert!(
        hairpin.seen.contains("the relay itself works") && hairpin.seen.contains("from outside")
    );
    assert!(hairpin.to_string().starts_with('–'));
    // An IPv6 socket alone is tried over IPv6.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let ipv6 = pairing(closed.port(), &[("ListenInterface", "::")]).await;
        assert_eq!(ipv6.outcome, Outcome::Hint, "{ipv6}");
        assert!(ipv6.seen.contains("the relay itself works"), "{ipv6}");
    }
    // Somebody else answers there: who says nothing, who hangs up, and who speaks first.
    for greeting in [None, Some(&b""[..]), Some(b"220 a server of another kind altogether\r\n")] {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = other.local_addr().unwrap().port();
        let answers = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = other.accept().await {
                match greeting {
                    Some(b"") => drop(stream),
                    greeting => {
                        let _ = stream.write_all(greeting.unwrap_or_default()).await;
                        kept.push(stream);
                    }
                }
            }
        });
        let stranger = pairing(port, &[]).await;
        assert_eq!(stranger.outcome, Outcome::Hint, "{stranger}");
        let said = format!("port {port} (127.0.0.1:{port}) leads to another program or another");
        assert!(stranger.seen.contains(&said), "{greeting:?}: {stranger}");
        assert!(!stranger.seen.contains("from inside back in"), "{stranger}");
        answers.abort();
    }
    // This machine's own address, on which the relay does not listen.
    let port = free_port();
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
    let mut environment = for_router(&router);
    set(&mut environment, "MetricsListen", &format!("127.0.0.1:{}", free_port()));
    set(&mut environment, "MetricsTlsCertificate", &expired);
    set(&mut environment, "MetricsTlsPrivateKey", &key.serialize_pem());
    let name = "TLS of the metrics listener";
    failure(&examine(&environment).await, name, &["expired at 2020-01-01", "renew it"]);
    parameters.not_before = rcgen::date_time_ymd(2090, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2100, 1, 1);
    set(&mut environment, "MetricsTlsCertificate", &parameters.self_signed(&key).unwrap().pem());
    let parts = ["good only from 2090-01-01", "is this machine's clock right?"];
    failure(&examine(&environment).await, name, &parts);
    let good = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
    set(&mut environment, "MetricsTlsCertificate", &good.cert.pem());
    set(&mut environment, "MetricsTlsPrivateKey", &good.signing_key.serialize_pem());
    assert_eq!(step(&examine(&environment).await, name).outcome, Outcome::Ok);

    let (_socket, away) = nobody();
    let collector = |endpoint: String| vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), endpoint)];
    let mut environment = for_router(&router);
    environment.extend(collector(format!("http://{}", away)));
    failure(&examine(&environment).await, "trace collector", &["cannot be reached", "refused"]);
    let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut environment = for_router(&router);
    environment.extend(collector(format!("http://{}", there.local_addr().unwrap())));
    assert_eq!(step(&examine(&environment).await, "trace collector").outcome, Outcome::Ok);
    environment.push(("OTEL_TRACES_SAMPLER".into(), "sometimes".into()));
    let report = examine(&environment).await;
    failure(&report, "trace collector", &["OTEL_TRACES_SAMPLER", "expected always_on"]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_with_the_certificate_of_another() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let server = ServerFiles {
        certificate: Source::new(&pair.cert.pem()),
        private_key: Source::new(&pair.signing_key.serialize_pem()),
        client_ca: None,
    };
    let acceptor = TlsAcceptor::from(server.load().unwrap().config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let authority = directory.path().join("ca.pem");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&authority, other.cert.pem()).unwrap();
    let mut environment = for_router(&router);
    environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT".into(), endpoint));
    let authority = authority.display().to_string();
    environment.push(("OTEL_EXPORTER_OTLP_CERTIFICATE".into(), authority));
    let parts = ["cannot be reached", "certificate"];
    failure(&examine(&environment).await, "trace collector", &parts);
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
    let environment = for_router(&router);
    let (status, stdout, stderr) = run(doctor(), &environment).await;
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    for line in ["✓ Router's key: ", "✓ pairing with itself: ", "– MetricsListen: off"] {
        assert!(stdout.lines().any(|said| said.starts_with(line)), "{line}: {stdout}");
    }
    let wrong = self::router(Behaviour::WrongKey).await;
    let mut environment = for_router(&wrong);
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
    let mut environment = for_router(&router);
    // So that the relay's process is known for sure.
    set(&mut environment, "AdminListen", &format!("127.0.0.1:{}", free_port()));
    #[cfg(target_os = "linux")]
    let for_doctor = environment.clone();
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
    relay.env_clear().envs(environment).stderr(Stdio::piped());
    relay.stdout(Stdio::null());
    let child = relay.spawn().unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    // While it runs, its own limit counts, not that of the doctor.
    #[cfg(target_os = "linux")]
    {
        router.set(|options| options.behaviour = Behaviour::ServeAside);
        let report = examine(&for_doctor).await;
        failure(&report, "open files", &["only 300 files may be open"]);
        let files = step(&report, "open files");
        assert!(files.details[0].contains(&format!("process {}", child.id())), "{files}");
    }
    terminate(&child);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await;
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    let words = line.strip_prefix("✗ open files: ").unwrap();
    assert!(said.contains(words), "{said}");
}

/// Lets a relay end by itself, which writes all of its log.
fn terminate(child: &Child) {
    rustix::process::kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

/// A relay of this machine as a process of its own.
struct Process(Child);

impl Process {
    fn start(environment: &[(String, String)]) -> Self {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
        relay.env_clear().envs(environment.iter().cloned());
        relay.stdout(Stdio::null()).stderr(Stdio::null());
        Self(relay.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_process_is_known_by_its_answer_or_its_name() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "AdminListen", &format!("127.0.0.1:{}", free_port()));
    let relay = Process::start(&environment);
    router.keys(100).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let report = examine(&environment).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    let name = format!("process {} (aspia_relay)", relay.0.id());
    let port = step(&report, "ListenPort");
    assert!(port.outcome == Outcome::Ok && port.seen.contains(&name), "{port}");
    let running = step(&report, "running relay");
    assert_eq!(running.outcome, Outcome::Ok, "{running}");
    assert!(running.seen.contains("100 keys are on offer"), "{running}");
    let files = step(&report, "open files");
    assert!(files.details[0].contains(&format!("process {}", relay.0.id())), "{files}");
    drop(relay);
    // One that cannot be asked may be the original program, which has the same name.
    set(&mut environment, "AdminListen", "off");
    set(&mut environment, "MetricsListen", &format!("127.0.0.1:{}", free_port()));
    router.set(|options| options.behaviour = Behaviour::Serve);
    let links = router.view().links;
    // With another environment than the doctor's, so that it is not found by its socket.
    let mut of_relay = environment.clone();
    let port = environment.iter().find(|(name, _)| *name == variable("PeerPort")).unwrap();
    set(&mut of_relay, "ListenPort", &port.1);
    let relay = Process::start(&of_relay);
    router.wait_for(|view| view.links > links && view.pool.len() == 100).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let report = examine(&environment).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    let port = step(&report, "ListenPort");
    let name = format!("process {} (aspia_relay)", relay.0.id());
    for held in [port, step(&report, "MetricsListen")] {
        assert_eq!(held.outcome, Outcome::Hint, "{held}");
        for part in [&name, "the original program", "AdminListen is off"] {
            assert!(held.seen.contains(part), "{part}: {held}");
        }
    }
    // The limits of the original would say nothing about this relay.
    let files = step(&report, "open files");
    assert!(files.details[0].contains("the doctor's own"), "{files}");
    let running = step(&report, "running relay");
    assert!(running.seen.contains("not known, since AdminListen is off"), "{running}");
}

/// Runs the doctor by a shell command that ends in `"$@"`, in namespaces of its own where `unshare` is asked for that;
/// gives its steps. `None` where this machine does not let a test do that, which is said loudly.
async fn doctor_by(
    what: &str,
    unshare: &[&str],
    script: &str,
    environment: &[(String, String)],
) -> Option<Vec<serde_json::Value>> {
    let command = |program: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(unshare).args(["sh", "-c", script, "sh"]).args(program);
        command
    };
    if !command(&["true"]).output().is_ok_and(|output| output.status.success()) {
        relay_lab::skip(what, "unshare, setpriv, mount or ip does not work");
        return None;
    }
    let doctor = command(&[env!("CARGO_BIN_EXE_aspia_relay"), "--doctor", "--json"]);
    let (_, stdout, stderr) = run(doctor, environment).await;
    let said: serde_json::Value =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    Some(said["steps"].as_array().unwrap().clone())
}

/// The outcome of a step, and all that it says.
fn said(steps: &[serde_json::Value], name: &str) -> (String, String) {
    let step = steps.iter().find(|step| step["step"] == name).unwrap();
    let outcome = step["outcome"].as_str().unwrap().to_owned();
    (outcome, format!("{} {}", step["seen"].as_str().unwrap(), step["details"]))
}

/// As another user: what the relay of somebody else has open cannot be seen.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_whose_holder_cannot_be_seen_is_never_to_be_stopped() {
    let router = router(Behaviour::Serve).await;
    let relay = Relay::start(router.address(), router.public_key(), &[]).unwrap();
    router.keys(100).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let mut environment = for_router(&router);
    set(&mut environment, "PeerPort", &relay.address().port().to_string());
    set(&mut environment, "MetricsListen", &relay.metrics().to_string());
    let what = "the doctor without the right to look into other processes";
    // Without capabilities even root does not see what a process has open that has some.
    let script = "exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let Some(steps) = doctor_by(what, &["--mount"], script, &environment).await else {
        return;
    };
    for name in ["ListenPort", "MetricsListen"] {
        let (outcome, text) = said(&steps, name);
        assert_eq!(outcome, "hint", "{text}");
        assert!(text.contains("it may be the relay") && text.contains("as root or"), "{text}");
        assert!(!text.contains("Stop it"), "{text}");
    }
    let (outcome, text) = said(&steps, "pairing with itself");
    assert!(outcome == "skipped" && text.contains("takes connections"), "{text}");
    // Its admin interface tells who it is.
    set(&mut environment, "AdminListen", &relay.admin().to_string());
    let steps = doctor_by(what, &["--mount"], script, &environment).await.unwrap();
    let (outcome, text) = said(&steps, "ListenPort");
    assert!(outcome == "ok" && text.contains("a relay that runs already"), "{text}");
}

/// In a network of its own, where nothing can be asked and nothing reached: names and addresses that are not here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_do_not_resolve_and_addresses_of_others() {
    let what = "the doctor in a network of its own";
    let up = "ip link set lo up && exec \"$@\"";
    let mut environment = settings(([127, 0, 0, 1], 1).into(), include_str!("vectors/router.pub"));
    set(&mut environment, "RouterAddress", "router.invalid");
    set(&mut environment, "PeerAddress", "192.0.2.1");
    set(&mut environment, "ListenInterface", "");
    let Some(steps) = doctor_by(what, &["--net"], up, &environment).await else {
        return;
    };
    let expect = |steps: &[serde_json::Value], name: &str, outcome: &str, part: &str| {
        let (said_outcome, text) = said(steps, name);
        assert_eq!(said_outcome, outcome, "{name}: {text}");
        assert!(text.contains(part), "{name}: {text}");
    };
    expect(&steps, "Router's name", "failed", "router.invalid does not resolve");
    expect(&steps, "Router's port", "skipped", "not looked at");
    expect(&steps, "PeerAddress", "hint", "192.0.2.1, which is no address of this machine");
    expect(&steps, "pairing with itself", "hint", "the relay itself works");
    set(&mut environment, "RouterAddress", "192.0.2.2");
    set(&mut environment, "PeerAddress", "peer.invalid");
    let steps = doctor_by(what, &["--net"], up, &environment).await.unwrap();
    expect(&steps, "Router's port", "failed", "network unreachable; this machine has no route");
    expect(&steps, "PeerAddress", "failed", "peer.invalid does not resolve");
    expect(&steps, "pairing with itself", "skipped", "PeerAddress has no address to dial");
    expect(&steps, "ListenPort", "ok", "is free");
    // Not even loopback is up: neither through the address nor inside.
    set(&mut environment, "PeerAddress", "127.0.0.1");
    let steps = doctor_by(what, &["--net"], "exec \"$@\"", &environment).await.unwrap();
    let nowhere = "none through 127.0.0.1:";
    expect(&steps, "pairing with itself", "failed", nowhere);
    // A port below 1024, without the right to it.
    set(&mut environment, "PeerPort", "70");
    let bound = "ip link set lo up && exec setpriv --bounding-set=-net_bind_service \"$@\"";
    if let Some(steps) = doctor_by(what, &["--net"], bound, &environment).await {
        expect(&steps, "ListenPort", "failed", "CAP_NET_BIND_SERVICE");
    }
}

/// With an `/etc/hosts` of its own.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_address_of_a_name_is_looked_at() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    let lines = "127.0.0.1 router.test peer.test\n127.0.0.2 router.test peer.test\n";
    std::fs::write(&hosts, lines).unwrap();
    let mut environment = for_router(&router);
    set(&mut environment, "RouterAddress", "router.test");
    set(&mut environment, "PeerAddress", "peer.test");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let what = "the doctor with an /etc/hosts of its own";
    let Some(steps) = doctor_by(what, &["--mount"], &script, &environment).await else {
        return;
    };
    let expect = |name: &str, outcome: &str, parts: &[&str]| {
        let (said_outcome, text) = said(&steps, name);
        assert_eq!(said_outcome, outcome, "{name}: {text}");
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
    };
    let (good, refused) =
        (router.address().to_string(), format!("127.0.0.2:{}", router.address().port()));
    expect("Router's name", "ok", &["127.0.0.1", "127.0.0.2"]);
    expect(
        "Router's port",
        "hint",
        &[&good, "takes connections, but", &refused, "refused; is the"],
    );
    expect("white list", "ok", &[]);
    expect("PeerAddress", "hint", &["here, which leads each machine to itself", "/etc/hosts"]);
    // The relay listens on one of the two.
    let parts = ["through 1 of the 2 addresses", "127.0.0.2:", "Other machines see another"];
    expect("pairing with itself", "hint", &parts);
}

/// The words of a start and those of the doctor are the same for files that everybody can read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_warns_of_open_secrets_at_its_start() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o604)).unwrap();
    let mut environment = for_router(&router);
    environment.push((variable("AdminToken") + "_FILE", token.display().to_string()));
    environment.push(("ASPIA_LOG_LEVEL".into(), "0".into()));
    let mut relay = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    let log = directory.path().join("log");
    relay.env_clear().envs(environment).stdout(std::fs::File::create(&log).unwrap());
    let mut child = relay.spawn().unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    terminate(&child);
    tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("holds AdminToken and can be read by every user (mode 0604)"), "{said}");
}
