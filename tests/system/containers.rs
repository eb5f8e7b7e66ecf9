//! Runs the image of the Dockerfile in containers that are hardened as in `compose.yaml`, with the laboratory's Router in
//! another container and peers outside; and `compose.yaml` itself with both implementations of Compose.
//!
//! Needs Docker; builds `aspia-relay-test:relay` and `aspia-relay-test:lab` (`tests/containers/images`).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use relay_lab::peer::Introduction;
use relay_lab::router::{LabRouter, Options};
use relay_lab::{control, http, traffic};
use serde_json::Value;
use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::harness::tests;

tests! {
    hardened_container_pairs_peers_and_survives_its_router,
    docker_stop_drains_without_losing_bytes,
    host_network_works_without_writing_files,
    health_status_follows_the_relay,
    worker_count_follows_the_cpu_quota,
    environment_overrides_the_file_and_secrets_are_read_from_files,
    invalid_configuration_exits_with_78_and_a_clear_line,
    port_below_1024_needs_only_the_capability,
    image_is_small_and_has_no_tools,
    compose_runs_a_relay_and_reports_missing_settings,
    compose_replaces_the_relay_without_ending_a_session,
    compose_passes_misspelt_variables_on,
    compose_passes_every_setting_on,
    compose_passes_the_variables_of_logs_and_traces_on,
    compose_stop_timeout_exceeds_the_drain_timeout,
}

/// The repository of the images; the tag is the target of the Dockerfile.
pub(crate) const IMAGE: &str = "aspia-relay-test";
/// Longest wait for a container to do anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// The word from which the Router's key is derived.
const WORD: &str = "test";
/// In a container, 0.0.0.0 means that everyone on its network can connect.
const ROUTER: [&str; 7] =
    ["router", "--listen", "0.0.0.0:8060", "--control", "0.0.0.0:8061", "--key-of", WORD];

pub(crate) fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().unwrap()
}

/// Runs a `docker` command that must succeed, and returns what it prints.
fn said(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = docker(arguments);
    assert!(status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap().trim().to_owned()
}

/// Everything that a container wrote to both outputs.
fn log(container: &str) -> String {
    let Output { stdout, stderr, .. } = docker(&["logs", container]);
    String::from_utf8([stdout, stderr].concat()).unwrap()
}

/// Builds the images once for all tests, which cannot run without Docker.
pub(crate) async fn images() {
    static BUILT: OnceCell<bool> = OnceCell::const_new();
    let is_there = *BUILT
        .get_or_init(|| async {
            if !docker(&["version"]).status.success() {
                return false;
            }
            let build = Command::new("tests/containers/images").output().unwrap();
            assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
            true
        })
        .await;
    if !is_there {
        relay_lab::cannot_run("Docker does not run");
    }
}

/// A unique name for a network or a container.
fn name(what: &str) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    format!("aspia-relay-test-{what}-{}-{now}", std::process::id())
}

/// A port of this machine that is free now.
pub(crate) fn free_port() -> u16 {
    relay_lab::port::free_port().unwrap()
}

fn router_key() -> String {
    LabRouter::key_of(WORD).unwrap().public().to_string()
}

/// The relay as `compose.yaml` runs it, within limits of memory and CPU.
fn relay() -> ContainerRequest<GenericImage> {
    GenericImage::new(IMAGE, "relay")
        .with_wait_for(WaitFor::message_on_stdout("aspia_relay::start"))
        .with_startup_timeout(PATIENCE)
        .with_readonly_rootfs(true)
        .with_cap_drop("ALL")
        .with_security_opt("no-new-privileges:true")
        .with_host_config_modifier(|host| {
            host.memory = Some(64 << 20);
            host.nano_cpus = Some(1_000_000_000);
            host.pids_limit = Some(64);
        })
        .with_env_var("ASPIA_RELAY_ROUTER_PUBLIC_KEY", router_key())
}

fn lab(command: &[&str]) -> ContainerRequest<GenericImage> {
    GenericImage::new(IMAGE, "lab")
        .with_wait_for(WaitFor::message_on_stdout("introductions on"))
        .with_startup_timeout(PATIENCE)
        .with_cmd(command.iter().copied())
}

/// Router and relay on a network of their own, reachable from outside by published ports.
struct Pair {
    router: ContainerAsync<GenericImage>,
    relay: ContainerAsync<GenericImage>,
    router_name: String,
    relay_name: String,
    network: String,
}

impl Pair {
    async fn start(version: &str, settings: &[(&str, &str)]) -> Self {
        let (network, router_name, relay_name) = (name("net"), name("router"), name("relay"));
        let router = GenericImage::new(IMAGE, "lab")
            .with_exposed_port(8061.tcp())
            .with_wait_for(WaitFor::message_on_stdout("introductions on"))
            .with_cmd(ROUTER.into_iter().chain(["--version", version]))
            .with_network(&network)
            .with_container_name(&router_name)
            .start()
            .await
            .unwrap();
        let mut request = relay()
            .with_mapped_port(free_port(), 8070.tcp())
            .with_network(&network)
            .with_container_name(&relay_name)
            .with_env_var("ASPIA_RELAY_ROUTER_ADDRESS", &router_name)
            .with_env_var("ASPIA_RELAY_PEER_ADDRESS", &relay_name);
        for (variable, value) in settings {
            request = request.with_env_var(*variable, *value);
        }
        let relay = request.start().await.unwrap();
        Self { router, relay, router_name, relay_name, network }
    }

    /// Introduces two peers outside, which dial the published port.
    async fn introduce(&self) -> Introduction {
        let control = self.router.get_host_port_ipv4(8061.tcp()).await.unwrap();
        let port = self.relay.get_host_port_ipv4(8070.tcp()).await.unwrap();
        let mut introduction = introduction(&format!("127.0.0.1:{control}")).await;
        // The Router announces the address that the relay gave it, but from outside the port is the published one.
        assert_eq!((&introduction.host, introduction.port), (&self.relay_name, 8070));
        (introduction.host, introduction.port) = ("127.0.0.1".into(), port);
        introduction
    }

    /// Like [`Self::introduce`], but without Docker's proxy, which ends with the container and loses the bytes that it holds.
    async fn introduce_directly(&self) -> Introduction {
        let network = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = said(&["inspect", "--format", network, &self.relay_name]);
        Introduction { host: address, port: 8070, ..self.introduce().await }
    }
}

/// An introduction, as soon as the relay has offered keys.
async fn introduction(control: &str) -> Introduction {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match control::introduction(control).await {
            Ok(introduction) => return introduction,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const LENGTH: u64 = 8 << 20;

/// Sends verified data in both directions and ends the session, with a pause in the middle that lasts until `middle` is done.
async fn transfer((client, host): (TcpStream, TcpStream), middle: impl Future<Output = ()>) {
    async fn end(
        stream: TcpStream,
        (seed, expected): (u64, u64),
        half_way: &tokio::sync::Barrier,
        go_on: &tokio::sync::Barrier,
    ) {
        let (mut read, mut write) = stream.into_split();
        let send = async {
            traffic::send(&mut write, seed, LENGTH).await.unwrap();
            half_way.wait().await;
            go_on.wait().await;
            traffic::send(&mut write, seed + 10, LENGTH).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let receive = async {
            traffic::verify(&mut read, expected, LENGTH, |_| {}).await.unwrap();
            traffic::verify(&mut read, expected + 10, LENGTH, |_| {}).await.unwrap();
            // Nothing follows.
            assert_eq!(traffic::receive(&mut read, None).await.unwrap().0, 0);
        };
        tokio::join!(send, receive);
    }
    let (half_way, go_on) = (tokio::sync::Barrier::new(3), tokio::sync::Barrier::new(3));
    let middle = async {
        half_way.wait().await;
        middle.await;
        go_on.wait().await;
    };
    tokio::join!(
        end(client, (1, 2), &half_way, &go_on),
        end(host, (2, 1), &half_way, &go_on),
        middle
    );
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn hardened_container_pairs_peers_and_survives_its_router() {
    images().await;
    for version in ["2.7", "3.0"] {
        joins_peers_and_survives(version).await;
    }
}

/// Runs a relay that is not told whether its Router speaks the 2.x or the 3.0 dialect.
async fn joins_peers_and_survives(version: &str) {
    let pair = Pair::start(version, &[]).await;
    // Peers outside.
    transfer(pair.introduce().await.connect_both().await.unwrap(), async {}).await;
    // Peers in a container, which use names.
    let control = format!("{}:8061", pair.router_name);
    let peers = name("peers");
    let printed = said(&[
        "run",
        "--rm",
        "--name",
        &peers,
        "--network",
        &pair.network,
        "--read-only",
        "--cap-drop",
        "ALL",
        &format!("{IMAGE}:lab"),
        "peers",
        "--control",
        &control,
        "--mib",
        "4",
    ]);
    assert!(printed.contains("every byte as it was sent"), "{printed}");

    // The Router restarts in the middle of a transfer: the session continues, and new ones begin.
    let session = pair.introduce().await.connect_both().await.unwrap();
    let (router, relay) = (pair.router_name.clone(), pair.relay_name.clone());
    transfer(session, async move {
        said(&["restart", "-t", "1", &router]);
        until("the Router is back", async || log(&relay).contains("connected to the Router again"))
            .await;
    })
    .await;
    transfer(pair.introduce().await.connect_both().await.unwrap(), async {}).await;

    // The restrictions of every container, seen from inside and outside.
    let inspected: Value = serde_json::from_str(&said(&["inspect", &pair.relay_name])).unwrap();
    let (config, host) = (&inspected[0]["Config"], &inspected[0]["HostConfig"]);
    assert_eq!(
        (&config["User"], &config["StopSignal"]),
        (&"65532:65532".into(), &"SIGTERM".into())
    );
    assert_eq!((&host["ReadonlyRootfs"], &host["CapDrop"][0]), (&true.into(), &"ALL".into()));
    let pid = inspected[0]["State"]["Pid"].to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("Uid:"), ["65532"; 4]);
    assert_eq!(line("CapEff:"), ["0000000000000000"]);
    assert_eq!(line("CapPrm:"), ["0000000000000000"]);
    assert_eq!(line("NoNewPrivs:"), ["1"]);
    logs_json(&pair.relay_name);
}

/// Checks that every line that a relay wrote to stdout is a JSON object, and that the log is not empty.
fn logs_json(container: &str) {
    let stdout = String::from_utf8(docker(&["logs", container]).stdout).unwrap();
    assert!(stdout.contains("connected to the Router"), "{stdout}");
    for line in stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn docker_stop_drains_without_losing_bytes() {
    images().await;
    let pair = Pair::start("2.7", &[("ASPIA_RELAY_DRAIN_TIMEOUT", "100s")]).await;
    let session = pair.introduce_directly().await.connect_both().await.unwrap();
    let relay = pair.relay_name.clone();
    let stopping = std::sync::Mutex::new(None);
    transfer(session, async {
        let name = relay.clone();
        let stop = tokio::task::spawn_blocking(move || said(&["stop", "-t", "110", &name]));
        *stopping.lock().unwrap() = Some(stop);
        // The second half goes through a relay that is stopping.
        until("the relay drains", async || log(&relay).contains("stopping: no new peers")).await;
    })
    .await;
    let stop = stopping.lock().unwrap().take().unwrap();
    stop.await.unwrap();
    assert_eq!(said(&["inspect", "--format", "{{.State.ExitCode}}", &pair.relay_name]), "0");
    assert!(log(&pair.relay_name).contains("Drained"), "{}", log(&pair.relay_name));
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn host_network_works_without_writing_files() {
    images().await;
    let [listen, control, peers, admin] =
        [(); 4].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())).to_string());
    let command = ["router", "--listen", &listen, "--control", &control, "--key-of", WORD];
    let _router = lab(&command).with_network("host").start().await.unwrap();
    let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
    let relay_name = name("relay");
    // In this container the relay could write files; `docker diff` shows below that it does not.
    let _relay = relay()
        .with_readonly_rootfs(false)
        .with_container_name(&relay_name)
        .with_network("host")
        .with_env_var("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1")
        .with_env_var("ASPIA_RELAY_ROUTER_PORT", port(&listen))
        .with_env_var("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1")
        .with_env_var("ASPIA_RELAY_PEER_PORT", port(&peers))
        .with_env_var("ASPIA_RELAY_ADMIN_LISTEN", &admin)
        .start()
        .await
        .unwrap();
    let introduction = introduction(&control).await;
    assert_eq!(format!("{}:{}", introduction.host, introduction.port), peers);
    transfer(introduction.connect_both().await.unwrap(), async {}).await;
    let ready = async || http::get(admin.parse().unwrap(), "/readyz").await.unwrap().status == 200;
    until("the Router has kept the link, and the relay is ready", ready).await;
    said(&["stop", "-t", "30", &relay_name]);
    assert_eq!(said(&["diff", &relay_name]), "");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn health_status_follows_the_relay() {
    images().await;
    // Without a link to the Router, the relay is still healthy.
    let relay_name = name("relay");
    let _relay = relay()
        .with_container_name(&relay_name)
        .with_env_var("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1")
        .with_env_var("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1")
        .start()
        .await
        .unwrap();
    let health = || said(&["inspect", "--format", "{{.State.Health.Status}}", &relay_name]);
    until("healthy", async || health() == "healthy").await;
    // A process that hangs is not.
    said(&["kill", "--signal", "STOP", &relay_name]);
    until("unhealthy", async || health() == "unhealthy").await;
    said(&["kill", "--signal", "CONT", &relay_name]);
    until("healthy again", async || health() == "healthy").await;
}

/// The names of the threads of a container's program.
fn threads(container: &str) -> Vec<String> {
    let pid = said(&["inspect", "--format", "{{.State.Pid}}", container]);
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap()).collect()
}

#[tokio::main(flavor = "current_thread")]
async fn worker_count_follows_the_cpu_quota() {
    images().await;
    let all = std::thread::available_parallelism().unwrap().get();
    for (quota, expected) in [(1, 1), (2, 2.min(all)), (0, all)] {
        let name = name("workers");
        let relay = relay()
            .with_host_config_modifier(move |host| host.nano_cpus = Some(quota * 1_000_000_000))
            .with_container_name(&name)
            .with_env_var("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1")
            .with_env_var("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1")
            .start()
            .await
            .unwrap();
        let threads = threads(&name);
        let workers = threads.iter().filter(|name| name.starts_with("forward-")).count();
        assert_eq!(workers, expected, "{quota} processors: {threads:?}");
        drop(relay);
    }
}

/// Runs a container of the relay's image until it exits. Returns its exit status, stdout and stderr.
fn run(options: &[&str], arguments: &[&str]) -> (i32, String, String) {
    let image = format!("{IMAGE}:relay");
    let whole =
        [&["run", "--rm", "--read-only", "--cap-drop", "ALL"], options, &[&image], arguments];
    let Output { status, stdout, stderr } = docker(&whole.concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn write(path: &Path, content: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;

    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::main(flavor = "current_thread")]
async fn environment_overrides_the_file_and_secrets_are_read_from_files() {
    images().await;
    let folder = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    let file =
        r#"{"RouterAddress": "of-the-file", "PeerAddress": "192.0.2.1", "MaxPeerCount": "7"}"#;
    write(&folder.path().join("relay.json"), file, 0o644);
    write(&folder.path().join("router.pub"), &format!("{}\n", router_key()), 0o644);
    write(&folder.path().join("admin-token"), "not-to-be-seen\n", 0o644);
    let folder = folder.path().display();
    let (status, stdout, stderr) = run(
        &[
            "-v",
            &format!("{folder}:/etc/aspia:ro"),
            "-v",
            &format!("{folder}:/run/secrets:ro"),
            "-e",
            "ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE=/run/secrets/router.pub",
            "-e",
            "ASPIA_RELAY_ADMIN_TOKEN_FILE=/run/secrets/admin-token",
            "-e",
            "ASPIA_RELAY_ROUTER_ADDRESS=of-the-environment",
        ],
        &["--check-config", "--json"],
    );
    assert_eq!(status, 0, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let setting = |key: &str| {
        let all = report["settings"].as_array().unwrap();
        let found = all.iter().find(|setting| setting["key"] == key).unwrap();
        (found["value"].as_str().unwrap().to_owned(), found["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(setting("RouterAddress").0, "of-the-environment");
    assert_eq!(setting("MaxPeerCount"), ("7".into(), "file /etc/aspia/relay.json".into()));
    assert_eq!(setting("RouterPublicKey").0, router_key());
    assert!(setting("AdminToken").1.contains("ASPIA_RELAY_ADMIN_TOKEN_FILE"));
    assert!(!stdout.contains("not-to-be-seen") && !stderr.contains("not-to-be-seen"));
}

#[tokio::main(flavor = "current_thread")]
async fn invalid_configuration_exits_with_78_and_a_clear_line() {
    images().await;
    let (status, stdout, stderr) = run(&[], &[]);
    assert_eq!(status, 78);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in [
        "RouterAddress, RouterPublicKey, PeerAddress",
        "/etc/aspia/relay.json",
        "ASPIA_RELAY_PEER_ADDRESS",
    ] {
        // The line appears once, since stdout and stderr both go to the container's log.
        assert!(stderr.contains(part) && !stdout.contains(part), "{part}: {stderr}{stdout}");
    }
    let (status, _, stderr) = run(
        &[
            "-e",
            "ASPIA_RELAY_ROUTER_ADDRESS=router.example",
            "-e",
            "ASPIA_RELAY_PEER_ADDRESS=192.0.2.1",
            "-e",
            "ASPIA_RELAY_ROUTER_PUBLIC_KEY=123",
        ],
        &[],
    );
    assert_eq!(status, 78);
    assert!(stderr.contains("RouterPublicKey") && stderr.contains("64 hex digits"), "{stderr}");
    // A secret that the image's user cannot read is named.
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("router.pub"), &router_key(), 0o600);
    let (status, _, stderr) = run(
        &[
            "-v",
            &format!("{}:/run/secrets:ro", folder.path().display()),
            "-e",
            "ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE=/run/secrets/router.pub",
        ],
        &[],
    );
    assert_eq!(status, 78);
    assert!(
        stderr.contains("/run/secrets/router.pub") && stderr.contains("ermission denied"),
        "{stderr}"
    );
}

/// The file of the program permits the capability, and the program starts without it, too. Docker allows no test of what the
/// chart does, which gives the capability and forbids new privileges: it takes capabilities from a process that is not root
/// before the program starts. `tests/it/doctor.rs` has one.
#[tokio::main(flavor = "current_thread")]
async fn port_below_1024_needs_only_the_capability() {
    images().await;
    let key = format!("ASPIA_RELAY_ROUTER_PUBLIC_KEY={}", router_key());
    let common = [
        "--cap-drop=ALL",
        // Docker's default opens these ports to everyone in the network of the container.
        "--sysctl=net.ipv4.ip_unprivileged_port_start=1024",
        "--env=ASPIA_RELAY_ROUTER_ADDRESS=127.0.0.1",
        "--env=ASPIA_RELAY_PEER_ADDRESS=127.0.0.1",
        "--env=ASPIA_RELAY_PEER_PORT=443",
        "--env",
        &key,
    ];
    for (more, expected) in [
        (&["--cap-add=NET_BIND_SERVICE"][..], "ok"),
        (&["--security-opt=no-new-privileges:true"], "failed"),
    ] {
        let (_, stdout, stderr) = run(&[&common[..], more].concat(), &["--doctor", "--json"]);
        let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
        let steps = report["steps"].as_array().unwrap();
        let port = steps.iter().find(|step| step["step"] == "ListenPort").unwrap();
        assert_eq!(port["outcome"], expected, "{more:?}: {port}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn image_is_small_and_has_no_tools() {
    images().await;
    let dockerfile = include_str!("../../Dockerfile");
    let base = dockerfile.lines().find_map(|line| line.strip_prefix("ARG RUNTIME_IMAGE=")).unwrap();
    let size = |image: &str| -> u64 {
        said(&["image", "inspect", "--format", "{{.Size}}", image]).parse().unwrap()
    };
    let own = size(&format!("{IMAGE}:relay")) - size(base);
    assert!(own <= 25 << 20, "{own} bytes on top of the base image");
    for program in ["/bin/sh", "/bin/bash", "/busybox/sh", "/usr/bin/apt", "/usr/bin/dpkg"] {
        let (status, ..) = run(&["--entrypoint", program], &["-c", "true"]);
        assert_eq!(status, 127, "{program} exists");
    }
    let image = said(&["image", "inspect", &format!("{IMAGE}:relay")]);
    let image: Value = serde_json::from_str(&image).unwrap();
    let labels = &image[0]["Config"]["Labels"];
    let label = |name: &str| labels[format!("org.opencontainers.image.{name}")].as_str().unwrap();
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(label("licenses"), env!("CARGO_PKG_LICENSE"));
    assert_eq!(label("revision"), "of-the-tests");
    assert!(!label("title").is_empty() && !label("description").is_empty());
    // The program reports the revision that it was built from.
    let (status, stdout, _) = run(&[], &["--version"]);
    assert_eq!((status, stdout.trim()), (0, concat!("aspia_relay ", env!("CARGO_PKG_VERSION"))));
}

/// A project of one of the two implementations of Compose.
pub(crate) struct Compose {
    pub(crate) program: &'static [&'static str],
    pub(crate) project: String,
    /// The file that takes the place of `.env`.
    pub(crate) env_file: tempfile::NamedTempFile,
    /// The image of the relay.
    image: String,
}

impl Compose {
    pub(crate) fn new(program: &'static [&'static str], variables: &[(&str, String)]) -> Self {
        require(program);
        let env_file = tempfile::NamedTempFile::new().unwrap();
        let lines: String =
            variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        std::fs::write(env_file.path(), lines).unwrap();
        Self { program, project: name("compose"), env_file, image: format!("{IMAGE}:relay") }
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(self.program[0]);
        let env_file = self.env_file.path().to_str().unwrap();
        command.args(&self.program[1..]);
        command.args(["--project-name", &self.project, "--env-file", env_file]).args(arguments);
        self.execute(&mut command)
    }

    /// Runs Compose, or a script that does, with the images of the tests.
    pub(crate) fn execute(&self, command: &mut Command) -> (bool, String) {
        command.env("ENV_FILE", self.env_file.path());
        command.env("ASPIA_RELAY_IMAGE", &self.image);
        command.env("FD_STORE_IMAGE", format!("{IMAGE}:relay"));
        // One on this host for each project.
        command.env("ASPIA_RELAY_FD_STORE", format!("@{}", self.project));
        command.env("ASPIA_RELAY_LAB_IMAGE", format!("{IMAGE}:lab"));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        (status.success(), text)
    }

    fn succeed(&self, arguments: &[&str]) {
        let (good, said) = self.run(arguments);
        assert!(good, "{:?} {arguments:?}: {said}", self.program);
    }

    fn up(&self) {
        self.succeed(&["up", "--detach", "--no-build"]);
    }

    /// The container of a service.
    pub(crate) fn container(&self, service: &str) -> String {
        let (good, id) = self.run(&["ps", "--quiet", service]);
        assert!(good, "{id}");
        id.lines().last().unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let (good, said) =
            self.run(&["--profile", "demo-full", "down", "--volumes", "--timeout", "2"]);
        if !good && !std::thread::panicking() {
            panic!("{said}");
        }
    }
}

/// Ends the test as ignored if this program is missing.
pub(crate) fn require(program: &[&str]) {
    let version = Command::new(program[0]).args(&program[1..]).arg("version").output();
    if !version.is_ok_and(|version| version.status.success()) {
        relay_lab::cannot_run(format!("{} is missing", program.join(" ")));
    }
}

pub(crate) const COMPOSES: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn compose_runs_a_relay_and_reports_missing_settings() {
    images().await;
    for program in COMPOSES {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let (config, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&config, &secrets] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(folder.path(), mode).unwrap();
        }
        let (peers, admin) = (free_port(), free_port());
        let folders = || {
            vec![
                ("CONFIG_DIRECTORY", config.path().display().to_string()),
                ("SECRETS_DIRECTORY", secrets.path().display().to_string()),
            ]
        };
        let empty = Compose::new(program, &folders());
        empty.up();
        let container = empty.container("relay");
        until("the log says what is missing", async || {
            let log = log(&container);
            log.contains("RouterAddress, RouterPublicKey, PeerAddress in /etc/aspia/relay.json")
        })
        .await;
        drop(empty);

        // A configuration file, a secret, and environment variables that override the file.
        let file = r#"{"RouterAddress": "127.0.0.1", "PeerAddress": "127.0.0.1", "MaxPeerCount": "9", "PeerPort": "1"}"#;
        write(&config.path().join("relay.json"), file, 0o644);
        write(&secrets.path().join("router.pub"), &router.public_key().to_string(), 0o644);
        let mut variables = folders();
        variables.extend([
            ("ASPIA_RELAY_ROUTER_PORT", router.address().port().to_string()),
            ("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE", "/run/secrets/router.pub".into()),
            ("ASPIA_RELAY_PEER_PORT", peers.to_string()),
            ("ASPIA_RELAY_ADMIN_LISTEN", format!("127.0.0.1:{admin}")),
            ("ASPIA_RELAY_MAX_PEERCOUNT", "1".into()),
            ("ASPIA_RELAY_OFFER_BY_LOAD", "false".into()),
        ]);
        let compose = Compose::new(program, &variables);
        compose.up();
        let container = compose.container("relay");
        tokio::time::timeout(PATIENCE, router.keys(9)).await.unwrap();
        transfer(router.introduce().await.unwrap().connect_both().await.unwrap(), async {}).await;
        let host: Value = serde_json::from_str(&said(&["inspect", &container])).unwrap();
        let host = &host[0]["HostConfig"];
        assert_eq!(host["NetworkMode"], "host");
        assert_eq!((&host["ReadonlyRootfs"], &host["CapDrop"][0]), (&true.into(), &"ALL".into()));
        assert!(host["SecurityOpt"][0].as_str().unwrap().starts_with("no-new-privileges"));
        assert_eq!(host["Ulimits"][0]["Hard"], 16_384);
        logs_json(&container);
        let said = log(&container);
        assert!(said.contains("did you mean ASPIA_RELAY_MAX_PEER_COUNT?"), "{said}");
        let (good, text) =
            compose.run(&["exec", "-T", "relay", "/usr/local/bin/aspia_relay", "--healthcheck"]);
        assert!(good, "{text}");
    }
}

/// An image like that of the relay, with another id.
fn next_image() -> String {
    let next = format!("{IMAGE}:relay-next");
    let container = said(&["create", &format!("{IMAGE}:relay")]);
    said(&["commit", "--change", "LABEL next=true", &container, &next]);
    said(&["rm", &container]);
    next
}

/// How a relay is replaced; each time the session goes on in the next one.
#[derive(Debug, Clone, Copy)]
enum Replacement {
    NewImage,
    Restart,
    Crash,
    /// Replaces the store, not the relay.
    NewStore,
}

impl Replacement {
    /// Must not block the Router and the peers of this test, which run on the same threads.
    fn carry_out(self, compose: &mut Compose) {
        tokio::task::block_in_place(|| match self {
            Self::NewImage => {
                compose.image = next_image();
                compose.up();
            }
            Self::Restart => compose.succeed(&["restart", "relay"]),
            Self::Crash => {
                said(&["kill", &compose.container("relay")]);
                compose.up();
            }
            Self::NewStore => compose.succeed(&["restart", "fd-store"]),
        });
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn compose_replaces_the_relay_without_ending_a_session() {
    images().await;
    for program in COMPOSES {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let (peers, admin) = (free_port(), free_port());
        let mut compose = Compose::new(
            program,
            &[
                ("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1".to_owned()),
                ("ASPIA_RELAY_ROUTER_PORT", router.address().port().to_string()),
                ("ASPIA_RELAY_ROUTER_PUBLIC_KEY", router.public_key().to_string()),
                ("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1".to_owned()),
                ("ASPIA_RELAY_PEER_PORT", peers.to_string()),
                ("ASPIA_RELAY_ADMIN_LISTEN", format!("127.0.0.1:{admin}")),
                ("ASPIA_RELAY_ADMIN_TOKEN", "a-token-of-the-test".to_owned()),
            ],
        );
        compose.up();
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, admin));
        let store = compose.container("fd-store");
        let health = || said(&["inspect", "--format", "{{.State.Health.Status}}", &store]);
        until("the store is healthy", async || health() == "healthy").await;
        for how in
            [Replacement::NewImage, Replacement::Restart, Replacement::NewStore, Replacement::Crash]
        {
            until("the relay is connected to the store", async || is_connected(admin).await).await;
            let session = router.introduce().await.unwrap().connect_both().await.unwrap();
            let started = |compose: &Compose| {
                let relay = compose.container("relay");
                said(&["inspect", "--format", "{{.Id}} {{.State.StartedAt}}", &relay])
            };
            let before = started(&compose);
            transfer(session, async { how.carry_out(&mut compose) }).await;
            let is_same = matches!(how, Replacement::NewStore);
            assert_eq!(started(&compose) == before, is_same, "{program:?} {how:?}");
            assert_eq!(compose.container("fd-store"), store, "{program:?} {how:?}");
        }
        // Both together: the store goes first, and the relay drains.
        let session = router.introduce().await.unwrap().connect_both().await.unwrap();
        let relay = compose.container("relay");
        std::thread::scope(|scope| {
            let stop = scope.spawn(|| compose.succeed(&["stop", "--timeout", "60"]));
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(transfer(session, async {
                    let drains = async || log(&relay).contains("stopping: no new peers");
                    until("the relay drains", drains).await;
                }));
            });
            stop.join().unwrap();
        });
    }
}

/// Whether the relay is connected to its store.
async fn is_connected(admin: SocketAddr) -> bool {
    let token = ["Authorization: Bearer a-token-of-the-test"];
    let metrics = http::request(admin, "GET /metrics", &token, "").await;
    metrics.is_ok_and(|metrics| metrics.body.contains("\naspia_relay_fd_store_connected 1\n"))
}

/// Checks the environment that Compose derives from an `.env`. Needs no running Docker daemon.
fn compose_passes_misspelt_variables_on() {
    const ENV: &str = "ASPIA_RELAY_ALLOW_PEER=192.0.2.0/24\nASPIA_RELAY_DISPLAY_NAME='a $b'\n";
    let directory = tempfile::tempdir().unwrap();
    let env = directory.path().join("env");
    std::fs::write(&env, ENV).unwrap();
    for program in COMPOSES {
        require(program);
        let config = |env_file: Option<&Path>| {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).arg("--env-file").arg(&env).arg("config");
            let Output { status, stdout, stderr } =
                command.envs(env_file.map(|path| ("ENV_FILE", path))).output().unwrap();
            assert!(status.success(), "{program:?}: {}", String::from_utf8_lossy(&stderr));
            String::from_utf8(stdout).unwrap()
        };
        let passed = config(Some(&env));
        for expected in ["ASPIA_RELAY_ALLOW_PEER: 192.0.2.0/24", "ASPIA_RELAY_DISPLAY_NAME: a $$b"]
        {
            assert!(passed.contains(expected), "{expected} is not in {passed}");
        }
        // The `.env` of the repository exists and sets nothing.
        assert!(!config(None).contains("ASPIA_RELAY_ALLOW_PEER:"), "{program:?}");
    }
    let tracked = include_str!("../../.env");
    assert!(tracked.lines().all(|line| line.starts_with('#')), "{tracked}");
}

fn compose_passes_every_setting_on() {
    let compose = include_str!("../../compose.yaml");
    let passed: BTreeSet<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        // An anchor, and a value.
        .map(|line| line.trim_start_matches("&fd-store ").split('=').next().unwrap())
        .filter(|name| name.starts_with("ASPIA_RELAY_"))
        .collect();
    let mut known = BTreeSet::new();
    for setting in aspia_relay::config::settings::SETTINGS {
        let variable = setting.key.variable();
        if setting.is_secret || setting.key == "RouterPublicKey" {
            known.insert(format!("{variable}_FILE"));
        }
        known.insert(variable);
    }
    assert_eq!(passed, known.iter().map(String::as_str).collect());
}

/// The log and trace variables of docs/configuration.md, except those that make no sense in a container.
fn compose_passes_the_variables_of_logs_and_traces_on() {
    let (compose, document) =
        (include_str!("../../compose.yaml"), include_str!("../../docs/configuration.md"));
    let section =
        |heading: &str| document.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = [section("\n## Log variables\n"), section("\n## Trace variables\n")].join("\n");
    let mut seen = 0;
    for row in rows.lines().filter(|line| line.starts_with("| `")) {
        let names = row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2);
        for name in names.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_')) {
            // The image logs to stdout, and a container keeps no log files.
            let senseless = name.starts_with("ASPIA_LOG_TO_") || name.starts_with("ASPIA_MAX_LOG_");
            let passed = compose.lines().any(|line| {
                line.trim().strip_prefix("- ").is_some_and(|l| l.split('=').next() == Some(name))
            });
            assert_eq!(passed, !senseless, "{name}");
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen}");
}

fn compose_stop_timeout_exceeds_the_drain_timeout() {
    let drain = aspia_relay::config::settings::SettingKey::DrainTimeout.setting().default.unwrap();
    let drain: u64 = drain.strip_suffix('s').unwrap().parse().unwrap();
    let compose = include_str!("../../compose.yaml");
    let graces: Vec<u64> = compose
        .lines()
        .filter_map(|line| {
            line.strip_prefix("  stop_grace_period: ")?.strip_suffix('s')?.parse().ok()
        })
        .collect();
    assert_eq!(graces[0], drain + 10);
}
