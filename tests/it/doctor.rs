//! The doctor: provokes every failure that it knows, and checks the advice.
#![cfg(unix)]

#[cfg(target_os = "linux")]
mod store;

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

#[cfg(target_os = "linux")]
use aspia_relay::admin::instance::InstanceIdentity;
use aspia_relay::config::settings::variable;
use aspia_relay::config::sources::Sources;
use aspia_relay::doctor::deployment::Deployment;
use aspia_relay::doctor::report::{DoctorReport, DoctorStep, STEPS, StepOutcome};
use aspia_relay::doctor::{self, Surroundings};
use aspia_relay::listen::bind;
use aspia_relay::peer;
use aspia_relay::tls::{PemSource, ServerFiles};
use aspia_relay::wire::messages::Version;
use relay_lab::relay::Relay;
use relay_lab::router::{Behaviour, LabRouter, Options, RouterVersion};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

/// A port for the doctor or a relay to listen on. It stays bound, so the kernel assigns it to no other socket until this
/// process ends; as long as nobody listens on it, sockets with `SO_REUSEADDR` can bind it, too.
fn free_port() -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::mem::forget(socket);
    port
}

/// An address on which nobody listens as long as the socket exists.
fn closed_address() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// The environment of an installation on loopback.
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

async fn examine(environment: &[(String, String)]) -> DoctorReport {
    examine_in(environment, on_a_machine()).await
}

fn on_a_machine() -> Surroundings {
    Surroundings {
        now: SystemTime::now(),
        is_in_container: false,
        deployment: Deployment::Machine,
        expects_relay: false,
    }
}

async fn examine_in(environment: &[(String, String)], surroundings: Surroundings) -> DoctorReport {
    // A paused clock jumps to the next timer whenever all tasks wait for sockets. Small steps keep it from reaching any
    // time limit.
    let steps = tokio::spawn(async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let sources = Sources::new(None, environment.to_vec());
    let sources = Sources { path: "no relay.json here".into(), ..sources };
    let mut printed = Vec::new();
    let report = doctor::run(&sources, surroundings, |step| printed.push(step.clone())).await;
    assert_eq!(printed, report.steps, "each step is printed when it is known");
    steps.abort();
    let mut names: Vec<_> = report.steps.iter().map(|step| step.step).collect();
    names.dedup();
    assert_eq!(names, STEPS, "whatever is wrong, no step is missing");
    report
}

fn step<'a>(report: &'a DoctorReport, name: &str) -> &'a DoctorStep {
    let step = report.steps.iter().rev().find(|step| step.step == name);
    step.unwrap_or_else(|| panic!("no step {name} in {report:#?}"))
}

/// Asserts that this step is the only failure, and that it contains all `parts`.
fn failure(report: &DoctorReport, name: &str, parts: &[&str]) {
    let failed: Vec<_> =
        report.steps.iter().filter(|step| step.outcome == StepOutcome::Failed).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(failed[0].step, name, "{failed:#?}");
    for part in parts {
        assert!(failed[0].seen.contains(part), "{part:?} is not in {:?}", failed[0].seen);
    }
    assert!(failed[0].to_string().starts_with('✗'));
}

#[tokio::test(start_paused = true)]
async fn good_installation_passes_and_offers_no_key() {
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
        assert_eq!(step(&report, name).outcome, StepOutcome::Ok, "{name}: {report:#?}");
    }
    assert!(step(&report, "Router's dialect").seen.contains("2.7"));
    for (name, why) in
        [("secret files", "no file holds a secret"), ("running relay", "none runs here")]
    {
        let skipped = step(&report, name);
        assert_eq!(skipped.outcome, StepOutcome::Skipped, "{skipped}");
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
async fn invalid_configuration_is_reported_problem_by_problem() {
    let report = examine(&[
        (variable("RouterAddress"), "r.example".into()),
        (variable("RouterPublicKey"), "router.pub".into()),
        // Another test may run a relay on the default port.
        (variable("PeerPort"), free_port().to_string()),
    ])
    .await;
    assert_eq!(report.failures(), 2, "{report:#?}");
    let said: Vec<_> = report.steps.iter().map(ToString::to_string).collect();
    // Valid values are still shown, with their sources.
    let value = said[1].lines().find(|line| line.contains("RouterAddress")).unwrap();
    assert!(value.contains("r.example") && value.contains("ASPIA_RELAY_ROUTER_ADDRESS"), "{value}");
    assert!(said[2].contains("RouterPublicKey") && said[2].contains("64 hex digits"), "{said:?}");
    assert!(said[3].contains("PeerAddress") && said[3].contains("required"), "{said:?}");
    // Steps that need no configuration are executed; the others are skipped.
    assert_eq!(step(&report, "clock").outcome, StepOutcome::Ok);
    for name in ["Router's name", "white list", "ListenPort", "running relay", "memory"] {
        let skipped = step(&report, name);
        assert_eq!(skipped.outcome, StepOutcome::Skipped);
        assert!(skipped.seen.contains("the configuration is invalid, fix that first"), "{skipped}");
    }
}

#[tokio::test(start_paused = true)]
async fn configuration_warning_is_a_hint_and_wrong_clock_a_failure() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "StatisticsInterval", "100");
    let never_set = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
    let surroundings = Surroundings { now: never_set, ..on_a_machine() };
    let report = examine_in(&environment, surroundings).await;
    failure(&report, "clock", &["1970-01-02", "NTP"]);
    let hints: Vec<_> = report.steps.iter().filter(|s| s.step == "configuration").collect();
    let hint = hints.iter().find(|hint| hint.seen.contains("StatisticsInterval")).unwrap();
    assert_eq!(hint.outcome, StepOutcome::Hint, "{hint}");
    assert!(hint.seen.contains("documented for up to 60 s"), "{hint}");
}

#[tokio::test(start_paused = true)]
async fn world_readable_secrets_are_reported() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    let mut environment = for_router(&router);
    environment.push((variable("AdminToken") + "_FILE", token.display().to_string()));
    let look = async |mode, is_in_container| {
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).unwrap();
        let surroundings = Surroundings { is_in_container, ..on_a_machine() };
        let report = examine_in(&environment, surroundings).await;
        step(&report, "secret files").clone()
    };
    let kept = look(0o640, false).await;
    assert_eq!(kept.outcome, StepOutcome::Ok);
    assert!(kept.seen.contains(&token.display().to_string()), "{kept}");
    let open = look(0o644, false).await;
    assert_eq!(open.outcome, StepOutcome::Failed, "{open}");
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
    assert_eq!(contained.outcome, StepOutcome::Hint, "{contained}");
    assert!(contained.seen.contains("in a container there may be no other user"), "{contained}");
}

#[tokio::test(start_paused = true)]
async fn secret_file_that_cannot_be_examined_is_skipped() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    environment.push(("OTEL_EXPORTER_OTLP_CLIENT_KEY".into(), "/nonexistent/key".into()));
    let report = examine(&environment).await;
    let unknown = step(&report, "secret files");
    assert_eq!(unknown.outcome, StepOutcome::Skipped, "{unknown}");
    assert!(unknown.seen.contains("who can read /nonexistent/key"), "{unknown}");
    assert!(unknown.seen.contains("No such file"), "{unknown}");
}

#[tokio::test(start_paused = true)]
async fn unreachable_routers_and_other_servers_are_failures() {
    let (_socket, address) = closed_address();
    let key = router(Behaviour::Serve).await.public_key().to_string();
    let report = examine(&settings(address, &key)).await;
    failure(&report, "Router's port", &["refused; is the Router running there, and RouterPort"]);
    assert_eq!(step(&report, "Router's key").outcome, StepOutcome::Skipped);
    assert_eq!(
        step(&report, "pairing with itself").outcome,
        StepOutcome::Ok,
        "the other steps are taken"
    );
    for (behaviour, why) in [
        (Behaviour::Silent, "did not authenticate within 15 s"),
        (Behaviour::CloseAtOnce, "closed the connection before authentication"),
    ] {
        let report = examine(&for_router(&router(behaviour).await)).await;
        failure(&report, "Router's dialect", &[why, "is it an Aspia"]);
    }
    // A web server.
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
async fn router_behind_a_firewall_and_old_router_are_failures() {
    // A listener whose queue is full does not answer, as if a firewall dropped the packets.
    let full = TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let _fills = std::net::TcpStream::connect(address).unwrap();
    let router = router(Behaviour::Serve).await;
    let report = examine(&settings(address, &router.public_key().to_string())).await;
    failure(&report, "Router's port", &["timed out; does a firewall drop the packets?"]);
    router.set(|options| options.version = RouterVersion(Version::new(2, 2, 0)));
    let report = examine(&for_router(&router)).await;
    failure(&report, "Router's dialect", &["version 2.2.0", "Routers from 2.3.0 to 2.7"]);
}

/// A Router of the 3.0 dialect.
async fn v3_router(listen: &str, behaviour: Behaviour) -> LabRouter {
    let listen = listen.parse().unwrap();
    let version = RouterVersion::V3_0;
    let options = Options { listen, version, behaviour, ..Options::default() };
    LabRouter::start(options).await.unwrap()
}

/// Uses the default ports, on loopback addresses that no other test uses.
#[tokio::test(start_paused = true)]
async fn router_on_the_default_port_of_the_other_dialect_is_found() {
    let key = router(Behaviour::Serve).await.public_key().to_string();
    let _v3 = v3_router("127.60.80.63:8063", Behaviour::Serve).await;
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
    let _v2 = LabRouter::start(options).await.unwrap();
    let report = examine(&settings("127.60.80.60:8063".parse().unwrap(), &key)).await;
    failure(
        &report,
        "Router's port",
        &["is an Aspia Router of the 2.x dialect: set RouterPort to 8060"],
    );
    // If nobody listens on either port, the doctor suggests neither.
    let report = examine(&settings("127.60.80.61:8060".parse().unwrap(), &key)).await;
    failure(&report, "Router's port", &["refused; is the Router running there"]);
    assert!(!step(&report, "Router's port").seen.contains("dialect"));
}

/// After its migration to 3.x a Router serves only Hosts on the port that relays used before.
#[tokio::test(start_paused = true)]
async fn port_for_hosts_of_a_migrated_router_is_recognised() {
    let v3 = v3_router("127.60.80.64:8063", Behaviour::Serve).await;
    let hosts = v3_router("127.60.80.64:8060", Behaviour::HostPort).await;
    let report = examine(&for_router(&hosts)).await;
    let parts = [
        "version 3.0.0, listens for Hosts",
        "leave RouterPublicKey as it is",
        "127.60.80.64:8063 is an Aspia Router of the 3.0 dialect: set RouterPort to 8063",
    ];
    failure(&report, "Router's dialect", &parts);
    // A Router that was installed as 3.x has a separate key for relays.
    let key = v3.public_key().to_string();
    let report = examine(&settings(hosts.address(), &key)).await;
    let parts =
        ["If the Router is a 3.x", "set RouterPort to 8063", "relay.pub", "127.60.80.64:8063 is"];
    failure(&report, "Router's key", &parts);
    // If nobody listens on the port for relays, the advice does not name the address.
    let hosts = v3_router("127.60.80.65:8060", Behaviour::HostPort).await;
    let report = examine(&for_router(&hosts)).await;
    failure(&report, "Router's dialect", &["set RouterPort to 8063"]);
    assert!(!step(&report, "Router's dialect").seen.contains("127.60.80.65:8063 is"));
}

#[tokio::test(start_paused = true)]
async fn v3_router_is_examined_in_its_dialect() {
    let good = v3_router("127.0.0.1:0", Behaviour::Serve).await;
    let report = examine(&for_router(&good)).await;
    let dialect = step(&report, "Router's dialect");
    assert_eq!(dialect.outcome, StepOutcome::Ok);
    assert!(dialect.seen.contains("version 3.0.0, 3.0 dialect, AES-256-GCM"), "{dialect}");
    assert_eq!(step(&report, "Router's key").outcome, StepOutcome::Ok);
    assert_eq!(good.view().complaints, [""; 0]);
    // The usual mistake is to copy the other key of the Router, or the key of a 2.x Router.
    let wrong = v3_router("127.0.0.1:0", Behaviour::WrongKey).await;
    let report = examine(&for_router(&wrong)).await;
    failure(&report, "Router's key", &["copy the content of relay.pub from the Router's machine"]);
    // If RouterProtocol demands the other dialect, the advice is to change it.
    let mut only_second = for_router(&good);
    only_second.push((variable("RouterProtocol"), "2".into()));
    let report = examine(&only_second).await;
    failure(&report, "Router's dialect", &["of the 3.0 dialect: set RouterProtocol to auto"]);
}

#[tokio::test(start_paused = true)]
async fn router_that_rejects_the_relay_is_a_failure() {
    let report = examine(&for_router(&router(Behaviour::WrongKey).await)).await;
    failure(&report, "Router's key", &["copy the content of router.pub from the Router's machine"]);
    let report = examine(&for_router(&router(Behaviour::NoRelaySessions).await)).await;
    failure(&report, "relay sessions", &["allow relay sessions in the Router's configuration"]);
    assert_eq!(step(&report, "Router's key").outcome, StepOutcome::Ok);
    let report = examine(&for_router(&router(Behaviour::CloseAfterAuthentication).await)).await;
    let parts = ["white list of relays", "address is missing from it", "as 127.0.0.1, or", "NAT"];
    failure(&report, "white list", &parts);
}

/// Runs in real time, since the result depends on bytes in flight and not on a timer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_frame_after_authentication_is_not_blamed_on_the_white_list() {
    let router = router(Behaviour::Serve).await;
    let environment = for_router(&router);
    let breaks = async {
        router.wait_for(|view| view.links == 1).await;
        // A service frame of unknown type.
        router.send_bytes(vec![0, 9, 0, 0, 0, 1, 0, 0, 0, 0]).await;
    };
    let (report, ()) = tokio::join!(examine(&environment), breaks);
    failure(&report, "white list", &["the Router violated the protocol"]);
    assert!(!step(&report, "white list").seen.contains("address is missing"));
}

#[tokio::test(start_paused = true)]
async fn ports_held_by_other_programs_are_failures() {
    let router = router(Behaviour::Serve).await;
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let mut environment = for_router(&router);
    set(&mut environment, "PeerPort", &port);
    let report = examine(&environment).await;
    let holder_name = format!("process {} (", std::process::id());
    failure(&report, "ListenPort", &["the port is held by", &holder_name, "set ListenPort"]);
    assert_eq!(step(&report, "pairing with itself").outcome, StepOutcome::Skipped);
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

/// The doctor holds the port only during the pairing, so that a relay that starts meanwhile rarely finds it taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_is_free_as_soon_as_the_pairing_is_reported() {
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
    assert_eq!(step(&report, "pairing with itself").outcome, StepOutcome::Ok, "{report:#?}");
    let held: Vec<_> = free.iter().filter(|(_, free)| !free).map(|(step, _)| *step).collect();
    assert_eq!(held, ["ListenPort"]);
}

#[tokio::test(start_paused = true)]
async fn running_relay_is_not_disturbed() {
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
    assert!(
        step(&report, "ListenPort").seen.contains("a relay that is already running"),
        "{report:#?}"
    );
    assert!(step(&report, "pairing with itself").seen.contains("not tried, since a relay runs"));
    assert_eq!(step(&report, "pairing with itself").outcome, StepOutcome::Skipped);
    assert!(step(&report, "AdminListen").seen.contains("the running relay"));
    #[cfg(target_os = "linux")]
    assert!(step(&report, "MetricsListen").seen.contains("held by the running relay"));
    let running = step(&report, "running relay");
    assert!(running.seen.contains("99 keys are on offer (1 sessions"), "{running}");
    // The relay was started with settings other than the doctor's.
    assert_eq!(running.outcome, StepOutcome::Hint, "{running}");
    let differs = format!("AdminListen is \"off\" there and \"{}\" here", relay.admin());
    assert!(running.details.iter().any(|line| line.contains(&differs)), "{running}");
    assert_eq!(router.view().links, 2, "the doctor connected, too");
    // The session and the link of the relay continue, with the same keys on offer.
    host.write_all(b"y").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    assert_eq!(router.view().pool.len(), pool);
    assert_eq!(relay.handle().state().counts().offered, offered);
    assert!(relay.handle().link().link.is_some());
}

/// Runs the doctor as `helm test` does on the host network of a node: a relay is expected, and whoever reads the advice has
/// `kubectl` and the values of the chart.
#[tokio::test(start_paused = true)]
async fn advice_in_a_pod_uses_kubectl_and_the_chart() {
    let in_pod =
        Surroundings { is_in_container: true, deployment: Deployment::Pod, ..on_a_machine() };
    let must_run = Surroundings { expects_relay: true, ..in_pod };
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    let (socket, nobody) = closed_address();
    set(&mut environment, "AdminListen", &nobody.to_string());
    let report = examine_in(&environment, in_pod).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    // No relay runs, as if no node had the label.
    let report = examine_in(&environment, must_run).await;
    failure(&report, "running relay", &["none answers", "nodeSelector", "kubectl get daemonset"]);
    drop(socket);
    // Another program holds the port.
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
    // The relay runs with other settings.
    let running = step(&report, "running relay");
    assert!(running.seen.contains("kubectl rollout restart"), "{running}");
    assert!(!running.seen.contains("SIGHUP"), "{running}");
}

/// The problem that operators report most often: the key pool is empty, and they do not know why.
#[tokio::test(start_paused = true)]
async fn empty_key_pool_is_explained() {
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
    // The relay is full.
    let relay = Relay::start(good.address(), good.public_key(), &[("MaxPeerCount", "1")]).unwrap();
    good.keys(1).await;
    let (mut client, mut host) = good.introduce().await.unwrap().connect_both().await.unwrap();
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
    good.set(|options| options.behaviour = Behaviour::ServeAside);
    let report = examine(&with(&relay)).await;
    let full = step(&report, "running relay");
    assert_eq!((full.outcome, report.failures()), (StepOutcome::Hint, 0), "{report:#?}");
    assert!(full.seen.contains("key pool is empty, since the relay is full"), "{full}");
    // The relay drains, with one session left.
    relay.handle().drain();
    let report = examine(&with(&relay)).await;
    let draining = step(&report, "running relay");
    assert!(draining.seen.contains("stopping (draining); 1 sessions are left"), "{draining}");
}

#[tokio::test(start_paused = true)]
async fn missing_admin_token_is_reported() {
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
    assert!(said(&environment).await.seen.contains("which is different here"));
    set(&mut environment, "AdminToken", "s3cret");
    assert!(said(&environment).await.seen.contains("keys are on offer"));
}

/// While the relay is down, any user can listen on its port and answer in its place.
#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
#[ignore = "needs root"]
async fn impostor_of_another_user_does_not_get_the_token() {
    let router = router(Behaviour::Serve).await;
    let impostor = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = impostor.local_addr().unwrap();
    std::os::unix::fs::fchown(&impostor, Some(4242), None).unwrap();
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
    assert_eq!(running.outcome, StepOutcome::Hint, "{running}");
    assert!(running.seen.contains("another user, 4242, holds"), "{running}");
    assert!(running.seen.contains("is not sent the AdminToken"), "{running}");
    let mut requests = Vec::new();
    while let Ok(request) = hears.try_recv() {
        assert!(!request.contains("s3cret"), "{request}");
        requests.push(request);
    }
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].starts_with("GET /readyz "), "{requests:?}");
}

/// The `/instance` of a relay with this admin listener.
#[cfg(target_os = "linux")]
fn instance(admin: &str) -> String {
    let instance = serde_json::json!({
        "version": "0.1.0", "pid": 1, "peers": "127.0.0.1:1", "admin": admin, "metrics": null,
    });
    instance.to_string()
}

/// Any program can claim to be a relay on its instance socket. One of another user must not redirect the token anywhere, and
/// none may redirect it to another machine.
#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
#[ignore = "needs root"]
async fn token_is_not_redirected_by_another_user_or_to_another_machine() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "AdminToken", "s3cret");
    let sources = Sources::new(None, environment.clone());
    let sources = Sources { path: "no relay.json here".into(), ..sources };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = || InstanceIdentity::of_process(&sources).name(port).unwrap().socket();
    // The port of a web server that runs as root, which could pass on what it receives.
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
    let here = instance(&web_address.to_string());
    // The answers live as long as the program.
    let here: &'static str = here.leak();
    let there: &'static str = instance("203.0.113.5:22").leak();
    let leads: &'static [_] = Box::leak(Box::new([("/instance", here), ("/readyz", ready)]));
    relay_lab::impostor::publish(&name(), 4242, leads).unwrap();
    // The impostor holds the peer port that it claims, so root takes it for a relay; still, it does not get the token.
    let report = examine(&environment).await;
    let running = step(&report, "running relay");
    assert!(running.seen.contains("another user, 4242"), "{running}");
    while let Ok(request) = hears.try_recv() {
        assert!(!request.contains("s3cret"), "{request}");
    }
    // Neither does another machine, even if root names it. Of two claims, that of root takes precedence.
    let away: &'static [_] = Box::leak(Box::new([("/instance", there), ("/readyz", ready)]));
    relay_lab::impostor::publish(&name(), 0, away).unwrap();
    let must_run = Surroundings { expects_relay: true, ..on_a_machine() };
    let report = examine_in(&environment, must_run).await;
    let running = step(&report, "running relay");
    assert!(running.seen.contains("203.0.113.5:22, which is not an address of"), "{running}");
    assert!(hears.try_recv().is_err());
}

/// The doctor tries all addresses at once, each with two connections.
#[tokio::test(start_paused = true)]
async fn limit_on_pending_peers_does_not_affect_the_trial_pairing() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "MaxPendingPeers", "2");
    let report = examine(&environment).await;
    let pairing = step(&report, "pairing with itself");
    assert_eq!(pairing.outcome, StepOutcome::Ok, "{pairing}");
}

#[tokio::test(start_paused = true)]
async fn address_that_does_not_lead_back_gives_a_hint() {
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
    // A forwarded port that does not work from inside the network.
    let (_socket, closed) = closed_address();
    let hairpin = pairing(closed.port(), &[]).await;
    assert_eq!(hairpin.outcome, StepOutcome::Hint, "{hairpin}");
    assert!(
        hairpin.seen.contains("the relay itself works") && hairpin.seen.contains("from outside")
    );
    assert!(hairpin.to_string().starts_with('–'));
    // A socket that accepts only IPv6 is tried over IPv6.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let ipv6 = pairing(closed.port(), &[("ListenInterface", "::")]).await;
        assert_eq!(ipv6.outcome, StepOutcome::Hint, "{ipv6}");
        assert!(ipv6.seen.contains("the relay itself works"), "{ipv6}");
    }
    // Another program accepts: one that sends nothing, one that closes, and one that speaks first.
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
        assert_eq!(stranger.outcome, StepOutcome::Hint, "{stranger}");
        let said = format!("port {port} (127.0.0.1:{port}) leads to another program or another");
        assert!(stranger.seen.contains(&said), "{greeting:?}: {stranger}");
        assert!(!stranger.seen.contains("from inside back in"), "{stranger}");
        answers.abort();
    }
    // An address of this machine on which the relay does not listen.
    let port = free_port();
    let text = port.to_string();
    let left_out = pairing(port, &[("ListenPort", &text), ("ListenInterface", "127.0.0.2")]).await;
    assert_eq!(left_out.outcome, StepOutcome::Failed, "{left_out}");
    assert!(left_out.seen.contains("Does ListenInterface leave the address out"), "{left_out}");
}

#[tokio::test(start_paused = true)]
async fn invalid_certificates_and_unreachable_collectors_are_failures() {
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
    let parts = ["not valid before 2090-01-01", "is this machine's clock right?"];
    failure(&examine(&environment).await, name, &parts);
    let good = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
    set(&mut environment, "MetricsTlsCertificate", &good.cert.pem());
    set(&mut environment, "MetricsTlsPrivateKey", &good.signing_key.serialize_pem());
    assert_eq!(step(&examine(&environment).await, name).outcome, StepOutcome::Ok);

    let (_socket, away) = closed_address();
    let collector = |endpoint: String| vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), endpoint)];
    let mut environment = for_router(&router);
    environment.extend(collector(format!("http://{}", away)));
    failure(&examine(&environment).await, "trace collector", &["cannot be reached", "refused"]);
    let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut environment = for_router(&router);
    environment.extend(collector(format!("http://{}", there.local_addr().unwrap())));
    assert_eq!(step(&examine(&environment).await, "trace collector").outcome, StepOutcome::Ok);
    environment.push(("OTEL_TRACES_SAMPLER".into(), "sometimes".into()));
    let report = examine(&environment).await;
    failure(&report, "trace collector", &["OTEL_TRACES_SAMPLER", "expected always_on"]);
}

#[tokio::test(start_paused = true)]
async fn collector_with_an_untrusted_certificate_is_a_failure() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let server = ServerFiles {
        certificate: PemSource::new(&pair.cert.pem()),
        private_key: PemSource::new(&pair.signing_key.serialize_pem()),
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

/// Runs a command with this environment; returns exit status, stdout and stderr.
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
async fn program_prints_lines_or_json_and_counts_failures() {
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
    assert_eq!(run(usage, &environment).await.0, 2, "--json needs a command with JSON output");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn low_file_limit_is_reported_by_doctor_and_relay_alike() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    // With an admin interface, the doctor knows the process of the relay for certain.
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
    // What counts is the limit of the running relay, not that of the doctor.
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

/// Asks a relay to stop, so that its log is complete.
fn terminate(child: &Child) {
    rustix::process::kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

/// A relay in a process of its own.
struct RelayProcess(Child);

impl RelayProcess {
    fn start(environment: &[(String, String)]) -> Self {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
        relay.env_clear().envs(environment.iter().cloned());
        relay.stdout(Stdio::null()).stderr(Stdio::null());
        Self(relay.spawn().unwrap())
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_process_is_recognised_by_its_answer_or_its_name() {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    set(&mut environment, "AdminListen", &format!("127.0.0.1:{}", free_port()));
    set(&mut environment, "OfferByLoad", "false");
    let relay = RelayProcess::start(&environment);
    router.keys(100).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let report = examine(&environment).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    let name = format!("process {} (aspia_relay)", relay.0.id());
    let port = step(&report, "ListenPort");
    assert!(port.outcome == StepOutcome::Ok && port.seen.contains(&name), "{port}");
    let running = step(&report, "running relay");
    assert_eq!(running.outcome, StepOutcome::Ok, "{running}");
    assert!(running.seen.contains("100 keys are on offer"), "{running}");
    let files = step(&report, "open files");
    assert!(files.details[0].contains(&format!("process {}", relay.0.id())), "{files}");
    drop(relay);
    // A relay that cannot be asked may be the original program, which has the same name.
    set(&mut environment, "AdminListen", "off");
    set(&mut environment, "MetricsListen", &format!("127.0.0.1:{}", free_port()));
    router.set(|options| options.behaviour = Behaviour::Serve);
    let links = router.view().links;
    // The relay has an environment other than the doctor's, so the doctor does not find it by its socket.
    let mut of_relay = environment.clone();
    let port = environment.iter().find(|(name, _)| *name == variable("PeerPort")).unwrap();
    set(&mut of_relay, "ListenPort", &port.1);
    let relay = RelayProcess::start(&of_relay);
    router.wait_for(|view| view.links > links && view.pool.len() == 100).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let report = examine(&environment).await;
    assert_eq!(report.failures(), 0, "{report:#?}");
    let port = step(&report, "ListenPort");
    let name = format!("process {} (aspia_relay)", relay.0.id());
    for held in [port, step(&report, "MetricsListen")] {
        assert_eq!(held.outcome, StepOutcome::Hint, "{held}");
        for part in [&name, "the original program", "AdminListen is off"] {
            assert!(held.seen.contains(part), "{part}: {held}");
        }
    }
    // The limits of the original program would say nothing about this relay.
    let files = step(&report, "open files");
    assert!(files.details[0].contains("the doctor's own"), "{files}");
    let running = step(&report, "running relay");
    assert!(running.seen.contains("not known, since AdminListen is off"), "{running}");
}

/// Runs the doctor in new namespaces, through a shell command that ends in `"$@"`, and returns its steps. `unshare` holds the
/// arguments of `unshare(1)`.
async fn doctor_by(
    unshare: &[&str],
    script: &str,
    environment: &[(String, String)],
) -> Vec<serde_json::Value> {
    let mut doctor = Command::new("unshare");
    doctor.args(unshare).args(["sh", "-c", script, "sh"]);
    doctor.args([env!("CARGO_BIN_EXE_aspia_relay"), "--doctor", "--json"]);
    let (_, stdout, stderr) = run(doctor, environment).await;
    let said: serde_json::Value =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    said["steps"].as_array().unwrap().clone()
}

/// The outcome of a step, and all its text.
fn said(steps: &[serde_json::Value], name: &str) -> (String, String) {
    let step = steps.iter().find(|step| step["step"] == name).unwrap();
    let outcome = step["outcome"].as_str().unwrap().to_owned();
    (outcome, format!("{} {}", step["seen"].as_str().unwrap(), step["details"]))
}

/// Another user cannot see what the relay has open.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn advice_is_never_to_stop_an_unknown_holder_of_a_port() {
    let router = router(Behaviour::Serve).await;
    let relay = Relay::start(router.address(), router.public_key(), &[]).unwrap();
    router.keys(100).await;
    router.set(|options| options.behaviour = Behaviour::ServeAside);
    let mut environment = for_router(&router);
    set(&mut environment, "PeerPort", &relay.address().port().to_string());
    set(&mut environment, "MetricsListen", &relay.metrics().to_string());
    // Without capabilities even root does not see what a process with capabilities has open.
    let script = "exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let steps = doctor_by(&["--mount"], script, &environment).await;
    for name in ["ListenPort", "MetricsListen"] {
        let (outcome, text) = said(&steps, name);
        assert_eq!(outcome, "hint", "{text}");
        assert!(text.contains("it may be the relay") && text.contains("as root or"), "{text}");
        assert!(!text.contains("Stop it"), "{text}");
    }
    let (outcome, text) = said(&steps, "pairing with itself");
    assert!(outcome == "skipped" && text.contains("accepts connections"), "{text}");
    // Its admin interface identifies the relay.
    set(&mut environment, "AdminListen", &relay.admin().to_string());
    let steps = doctor_by(&["--mount"], script, &environment).await;
    let (outcome, text) = said(&steps, "ListenPort");
    assert!(outcome == "ok" && text.contains("a relay that is already running"), "{text}");
}

/// In a network namespace of its own, where no name resolves and no address can be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn unresolvable_names_and_foreign_addresses_are_reported() {
    let up = "ip link set lo up && exec \"$@\"";
    let mut environment =
        settings(([127, 0, 0, 1], 1).into(), include_str!("../vectors/router.pub"));
    set(&mut environment, "RouterAddress", "router.invalid");
    set(&mut environment, "PeerAddress", "192.0.2.1");
    set(&mut environment, "ListenInterface", "");
    let steps = doctor_by(&["--net"], up, &environment).await;
    let expect = |steps: &[serde_json::Value], name: &str, outcome: &str, part: &str| {
        let (said_outcome, text) = said(steps, name);
        assert_eq!(said_outcome, outcome, "{name}: {text}");
        assert!(text.contains(part), "{name}: {text}");
    };
    expect(&steps, "Router's name", "failed", "router.invalid does not resolve");
    expect(&steps, "Router's port", "skipped", "not examined");
    expect(&steps, "PeerAddress", "hint", "192.0.2.1, which is not an address of this machine");
    expect(&steps, "pairing with itself", "hint", "the relay itself works");
    set(&mut environment, "RouterAddress", "192.0.2.2");
    set(&mut environment, "PeerAddress", "peer.invalid");
    let steps = doctor_by(&["--net"], up, &environment).await;
    expect(&steps, "Router's port", "failed", "network unreachable; this machine has no route");
    expect(&steps, "PeerAddress", "failed", "peer.invalid does not resolve");
    expect(&steps, "pairing with itself", "skipped", "PeerAddress has no address to dial");
    expect(&steps, "ListenPort", "ok", "is free");
    // Loopback is down: no pairing through the address nor straight to the socket.
    set(&mut environment, "PeerAddress", "127.0.0.1");
    let steps = doctor_by(&["--net"], "exec \"$@\"", &environment).await;
    let nowhere = "none through 127.0.0.1:";
    expect(&steps, "pairing with itself", "failed", nowhere);
    // A port below 1024, without the capability to bind it.
    set(&mut environment, "PeerPort", "70");
    let bound = "ip link set lo up && exec setpriv --bounding-set=-net_bind_service \"$@\"";
    let steps = doctor_by(&["--net"], bound, &environment).await;
    expect(&steps, "ListenPort", "failed", "CAP_NET_BIND_SERVICE");
}

/// A process that is not root has, once a program has started, only the capabilities that both its container and the file of
/// the program permit. Root without the privileges of root (`noroot`) is in the same position.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn capability_of_the_file_opens_ports_below_1024_where_the_container_permits_it() {
    use rustix::fs::{XattrFlags, setxattr};

    let mut environment =
        settings(([127, 0, 0, 1], 1).into(), include_str!("../vectors/router.pub"));
    set(&mut environment, "PeerPort", "70");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aspia_relay");
    std::fs::copy(env!("CARGO_BIN_EXE_aspia_relay"), &file).unwrap();
    // As `setcap cap_net_bind_service=p` in the Dockerfile: revision 2, then the permitted and the inheritable ones.
    let [revision, permitted] = [0x0200_0000_u32, 1 << 10].map(u32::to_le_bytes);
    let capabilities = [revision, permitted, [0; 4], [0; 4], [0; 4]].concat();
    setxattr(&file, "security.capability", &capabilities, XattrFlags::empty()).unwrap();
    for (bounding_set, outcome) in [("-all,+net_bind_service", "ok"), ("-all", "failed")] {
        let script = format!(
            "ip link set lo up && mount --bind {} \"$1\" && exec setpriv --securebits=+noroot \
             --bounding-set={bounding_set} --inh-caps=-all \"$@\"",
            file.display()
        );
        let steps = doctor_by(&["--net", "--mount"], &script, &environment).await;
        let (seen, text) = said(&steps, "ListenPort");
        assert_eq!(seen, outcome, "{bounding_set}: {text}");
    }
}

/// Runs in a mount namespace with its own `/etc/hosts`.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn every_address_of_a_name_is_examined() {
    let router = router(Behaviour::Serve).await;
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    let lines = "127.0.0.1 router.test peer.test\n127.0.0.2 router.test peer.test\n";
    std::fs::write(&hosts, lines).unwrap();
    let mut environment = for_router(&router);
    set(&mut environment, "RouterAddress", "router.test");
    set(&mut environment, "PeerAddress", "peer.test");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let steps = doctor_by(&["--mount"], &script, &environment).await;
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
        &[&good, "accepts connections, but", &refused, "refused; is the"],
    );
    expect("white list", "ok", &[]);
    expect("PeerAddress", "hint", &["here, a loopback address", "/etc/hosts"]);
    // The relay listens on one of the two addresses.
    let parts = ["through 1 of the 2 addresses", "127.0.0.2:", "Other machines see another"];
    expect("pairing with itself", "hint", &parts);
}

/// A relay that starts reports files that every user can read, as the doctor does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_warns_of_world_readable_secrets_when_it_starts() {
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
