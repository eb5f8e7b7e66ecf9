//! The image of the real Dockerfile in real containers, hardened as `compose.yaml` has it, with the laboratory's Router in
//! another container and peers outside; and `compose.yaml` itself, by both Composes.
//!
//! Needs Docker; builds `aspia-relay-test:relay` and `aspia-relay-test:lab` (`tests/containers/images`).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

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

/// The repository of the images; the tag is the target of the Dockerfile.
const IMAGE: &str = "aspia-relay-test";
/// Longest wait for anything that a container does.
const PATIENCE: Duration = Duration::from_secs(120);
/// The word of the Router's key.
const WORD: &str = "test";
/// 0.0.0.0 in a container is everybody on its network.
const ROUTER: [&str; 7] =
    ["router", "--listen", "0.0.0.0:8060", "--control", "0.0.0.0:8061", "--key-of", WORD];

fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().unwrap()
}

/// What a `docker` command prints; it succeeds, or the test fails.
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

/// Builds the images once for all tests; `false` where there is no Docker.
async fn images(test: &str) -> bool {
    static BUILT: OnceCell<bool> = OnceCell::const_new();
    let there = *BUILT
        .get_or_init(|| async {
            if !docker(&["version"]).status.success() {
                return false;
            }
            let build = Command::new("tests/containers/images").output().unwrap();
            assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
            true
        })
        .await;
    if !there {
        relay_lab::skip(test, "Docker does not run");
    }
    there
}

/// A name for a network or a container that nobody else has.
fn name(what: &str) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    format!("aspia-relay-test-{what}-{}-{now}", std::process::id())
}

/// A port of this machine that is free now.
fn free_port() -> u16 {
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

    /// Two peers outside are introduced to each other, and come by the published port.
    async fn introduce(&self) -> Introduction {
        let control = self.router.get_host_port_ipv4(8061.tcp()).await.unwrap();
        let port = self.relay.get_host_port_ipv4(8070.tcp()).await.unwrap();
        let mut introduction = introduction(&format!("127.0.0.1:{control}")).await;
        // The Router says what the relay told it; from out here the way is another.
        assert_eq!((&introduction.host, introduction.port), (&self.relay_name, 8070));
        (introduction.host, introduction.port) = ("127.0.0.1".into(), port);
        introduction
    }

    /// The same without Docker's proxy between, which ends with the container and what it holds.
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

/// Waits until something holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const LENGTH: u64 = 8 << 20;

/// Sends verified data both ways and ends the session. With a pause in the middle that lasts until `middle` is done.
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
            // And nothing more.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hardened_container_joins_peers_and_survives_its_router() {
    if !images("containers on a network").await {
        return;
    }
    for version in ["2.7", "3.0"] {
        joins_peers_and_survives(version).await;
    }
}

/// A relay that was told nothing of its Router's generation.
async fn joins_peers_and_survives(version: &str) {
    let pair = Pair::start(version, &[]).await;
    // Peers outside.
    transfer(pair.introduce().await.connect_both().await.unwrap(), async {}).await;
    // Peers in a container, by names.
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

    // The Router is restarted in the middle of a transfer: the session goes on, and new ones come.
    let session = pair.introduce().await.connect_both().await.unwrap();
    let (router, relay) = (pair.router_name.clone(), pair.relay_name.clone());
    transfer(session, async move {
        said(&["restart", "-t", "1", &router]);
        until("the Router is back", async || log(&relay).contains("connected to the Router again"))
            .await;
    })
    .await;
    transfer(pair.introduce().await.connect_both().await.unwrap(), async {}).await;

    // What the image promises of every container, seen from inside and outside.
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

/// Sees that every line that a relay wrote to stdout is a JSON object, and that it says what it does.
fn logs_json(container: &str) {
    let stdout = String::from_utf8(docker(&["logs", container]).stdout).unwrap();
    assert!(stdout.contains("connected to the Router"), "{stdout}");
    for line in stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_stop_drains_and_no_byte_of_a_transfer_that_ends_in_time_is_lost() {
    if !images("docker stop").await {
        return;
    }
    let pair = Pair::start("2.7", &[("ASPIA_RELAY_DRAIN_TIMEOUT", "100s")]).await;
    let session = pair.introduce_directly().await.connect_both().await.unwrap();
    let relay = pair.relay_name.clone();
    let stopping = std::sync::Mutex::new(None);
    transfer(session, async {
        let name = relay.clone();
        let stop = tokio::task::spawn_blocking(move || said(&["stop", "-t", "110", &name]));
        *stopping.lock().unwrap() = Some(stop);
        // The second half goes through a relay that is stopping.
        until("it drains", async || log(&relay).contains("stopping: no new peers")).await;
    })
    .await;
    let stop = stopping.lock().unwrap().take().unwrap();
    stop.await.unwrap();
    assert_eq!(said(&["inspect", "--format", "{{.State.ExitCode}}", &pair.relay_name]), "0");
    assert!(log(&pair.relay_name).contains("Drained"), "{}", log(&pair.relay_name));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_on_the_host_network_and_writes_nothing() {
    if !images("containers on the host network").await {
        return;
    }
    let [listen, control, peers, admin] =
        [(); 4].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())).to_string());
    let command = ["router", "--listen", &listen, "--control", &control, "--key-of", WORD];
    let _router = lab(&command).with_network("host").start().await.unwrap();
    let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
    let relay_name = name("relay");
    // Here it could write: that it does not is seen afterwards.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_healthy_and_unhealthy_when_it_should_be() {
    if !images("health").await {
        return;
    }
    // Away from the Router it is healthy all the same.
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
    // A process that hangs.
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

#[tokio::test]
async fn there_are_as_many_workers_as_the_quota_of_the_container_allows() {
    if !images("workers of a container").await {
        return;
    }
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

/// Runs the relay's image to its end: exit status, stdout, stderr.
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

#[tokio::test]
async fn the_environment_overrides_the_file_and_secrets_come_from_files() {
    if !images("settings of a container").await {
        return;
    }
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

#[tokio::test]
async fn a_wrong_configuration_ends_the_container_with_78_and_a_line_to_read() {
    if !images("wrong settings of a container").await {
        return;
    }
    let (status, stdout, stderr) = run(&[], &[]);
    assert_eq!(status, 78);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in [
        "RouterAddress, RouterPublicKey, PeerAddress",
        "/etc/aspia/relay.json",
        "ASPIA_RELAY_PEER_ADDRESS",
    ] {
        // Once: both outputs are the container's log.
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
    // A secret that the user of the image must not read is named.
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

#[tokio::test]
async fn the_image_is_small_and_holds_nothing_to_work_with() {
    if !images("what is in the image").await {
        return;
    }
    let dockerfile = include_str!("../Dockerfile");
    let base = dockerfile.lines().find_map(|line| line.strip_prefix("ARG RUNTIME_IMAGE=")).unwrap();
    let size = |image: &str| -> u64 {
        said(&["image", "inspect", "--format", "{{.Size}}", image]).parse().unwrap()
    };
    let own = size(&format!("{IMAGE}:relay")) - size(base);
    println!("{own} bytes on top of {base}");
    assert!(own <= 25 << 20, "{own} bytes on top of the base image");
    for program in ["/bin/sh", "/bin/bash", "/busybox/sh", "/usr/bin/apt", "/usr/bin/dpkg"] {
        let (status, ..) = run(&["--entrypoint", program], &["-c", "true"]);
        assert_eq!(status, 127, "{program} is there");
    }
    let image = said(&["image", "inspect", &format!("{IMAGE}:relay")]);
    let image: Value = serde_json::from_str(&image).unwrap();
    let labels = &image[0]["Config"]["Labels"];
    let label = |name: &str| labels[format!("org.opencontainers.image.{name}")].as_str().unwrap();
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(label("licenses"), env!("CARGO_PKG_LICENSE"));
    assert_eq!(label("revision"), "of-the-tests");
    assert!(!label("title").is_empty() && !label("description").is_empty());
    // The program knows what it was built from.
    let (status, stdout, _) = run(&[], &["--version"]);
    assert_eq!((status, stdout.trim()), (0, concat!("aspia_relay ", env!("CARGO_PKG_VERSION"))));
}

/// One of the two Composes, with a project of its own.
struct Compose {
    program: &'static [&'static str],
    project: String,
    /// What `.env` is for a project in its own folder.
    env_file: tempfile::NamedTempFile,
}

impl Compose {
    fn new(
        program: &'static [&'static str],
        test: &str,
        variables: &[(&str, String)],
    ) -> Option<Self> {
        if !is_installed(program, test) {
            return None;
        }
        let env_file = tempfile::NamedTempFile::new().unwrap();
        let lines: String =
            variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        std::fs::write(env_file.path(), lines).unwrap();
        Some(Self { program, project: name("compose"), env_file })
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(self.program[0]);
        let env_file = self.env_file.path().to_str().unwrap();
        command.args(&self.program[1..]);
        command.args(["--project-name", &self.project, "--env-file", env_file]).args(arguments);
        command.env("ENV_FILE", env_file);
        command.env("ASPIA_RELAY_IMAGE", format!("{IMAGE}:relay"));
        command.env("ASPIA_RELAY_LAB_IMAGE", format!("{IMAGE}:lab"));
        for stand_in in ["GRAFANA_IMAGE", "COLLECTOR_IMAGE", "TRACES_IMAGE"] {
            command.env(stand_in, format!("{IMAGE}:idle"));
        }
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        (status.success(), text)
    }

    fn up(&self) {
        let (good, said) = self.run(&["up", "--detach", "--no-build"]);
        assert!(good, "{:?}: {said}", self.program);
    }

    /// The container of a service.
    fn container(&self, service: &str) -> String {
        let (good, id) = self.run(&["ps", "--quiet", service]);
        assert!(good, "{id}");
        id.lines().last().unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let (good, said) = self.run(&["--profile", "demo", "down", "--volumes", "--timeout", "2"]);
        if !good && !std::thread::panicking() {
            panic!("{said}");
        }
    }
}

fn is_installed(program: &[&str], test: &str) -> bool {
    let version = Command::new(program[0]).args(&program[1..]).arg("version").output();
    let is_there = version.is_ok_and(|version| version.status.success());
    if !is_there {
        relay_lab::skip(test, &format!("there is no {}", program.join(" ")));
    }
    is_there
}

const COMPOSES: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compose_runs_a_relay_and_says_what_is_missing_without_a_configuration() {
    const TEST: &str = "compose.yaml";
    if !images(TEST).await {
        return;
    }
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
        let Some(empty) = Compose::new(program, TEST, &folders()) else { return };
        empty.up();
        let container = empty.container("relay");
        until("it says what is missing", async || {
            let log = log(&container);
            log.contains("RouterAddress, RouterPublicKey, PeerAddress in /etc/aspia/relay.json")
        })
        .await;
        drop(empty);

        // A file, a secret, and the environment over the file.
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
        ]);
        let compose = Compose::new(program, TEST, &variables).unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demonstration_shows_traffic_and_metrics() {
    const TEST: &str = "the demonstration of compose.yaml";
    if !images(TEST).await {
        return;
    }
    let compose_file = include_str!("../compose.yaml");
    let prometheus =
        compose_file.split("PROMETHEUS_IMAGE:-").nth(1).unwrap().split('}').next().unwrap();
    // A Router of each generation.
    for (program, version) in COMPOSES.into_iter().zip(["2.7", "3.0"]) {
        let (page, metrics) = (free_port(), free_port());
        let variables = vec![
            ("DEMO_PAGE_PORT", page.to_string()),
            ("DEMO_ROUTER_VERSION", version.to_owned()),
            ("DEMO_GRAFANA_PORT", free_port().to_string()),
            ("DEMO_TRACES_PORT", free_port().to_string()),
            ("DEMO_PROMETHEUS_PORT", metrics.to_string()),
        ];
        let Some(compose) = Compose::new(program, TEST, &variables) else { return };
        if !docker(&["image", "inspect", prometheus]).status.success() {
            relay_lab::skip(TEST, &format!("there is no image {prometheus}"));
            return;
        }
        // The command of the README, but that it returns.
        let (good, said) =
            compose.run(&["--profile", "demo", "up", "--detach", "--no-build", "demo"]);
        assert!(good, "{program:?}: {said}");
        let page: SocketAddr = (Ipv4Addr::LOCALHOST, page).into();
        let token = ["Authorization: Bearer demo"];
        until("ten sessions on the page of the relay", async || {
            let status = http::request(page, "GET /status", &token, "").await;
            status.is_ok_and(|status| {
                let status = status.json();
                status["sessions"]["active"] == 10 && status["bytes_total"].as_u64() > Some(1 << 20)
            })
        })
        .await;
        {
            let metrics: SocketAddr = (Ipv4Addr::LOCALHOST, metrics).into();
            until("they are in Prometheus", async || {
                let query = "GET /api/v1/query?query=aspia_relay_sessions_active";
                let answer = http::request(metrics, query, &[], "").await;
                answer.is_ok_and(|a| a.json()["data"]["result"][0]["value"][1] == "10")
            })
            .await;
            let rules = http::request(metrics, "GET /api/v1/rules", &[], "").await.unwrap();
            assert!(rules.body.contains("AspiaRelayRouterLinkDown"), "{}", rules.body);
        }
    }
}

/// The environment of the relay as a Compose makes it of an `.env`; needs no Docker that runs.
#[test]
fn compose_passes_on_what_is_misspelt_in_env() {
    const ENV: &str = "ASPIA_RELAY_ALLOW_PEER=192.0.2.0/24\nASPIA_RELAY_DISPLAY_NAME='a $b'\n";
    let directory = tempfile::tempdir().unwrap();
    let env = directory.path().join("env");
    std::fs::write(&env, ENV).unwrap();
    for program in COMPOSES {
        if !is_installed(program, "misspelt names in .env") {
            return;
        }
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
        // The one of the repository sets nothing, and is there.
        assert!(!config(None).contains("ASPIA_RELAY_ALLOW_PEER:"), "{program:?}");
    }
    let tracked = include_str!("../.env");
    assert!(tracked.lines().all(|line| line.starts_with('#')), "{tracked}");
}

#[test]
fn compose_passes_every_setting_on() {
    let compose = include_str!("../compose.yaml");
    let passed: BTreeSet<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .filter(|name| name.starts_with("ASPIA_RELAY_"))
        .collect();
    let mut known = BTreeSet::new();
    for setting in aspia_relay::config::settings::SETTINGS {
        let variable = aspia_relay::config::settings::variable(setting.key);
        if setting.secret || setting.key == "RouterPublicKey" {
            known.insert(format!("{variable}_FILE"));
        }
        known.insert(variable);
    }
    assert_eq!(passed, known.iter().map(String::as_str).collect());
}

/// The variables of the README's tables on logs and traces, but those that make no sense here.
#[test]
fn compose_passes_the_variables_of_logs_and_traces_on() {
    let (compose, readme) = (include_str!("../compose.yaml"), include_str!("../README.md"));
    let section =
        |heading: &str| readme.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = [section("\n### Logs\n"), section("\n## Traces\n")].join("\n");
    let mut seen = 0;
    for row in rows.lines().filter(|line| line.starts_with("| `")) {
        let names = row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2);
        for name in names.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_')) {
            // The image logs to stdout, and a container has no files.
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

#[test]
fn the_stop_timeout_of_compose_is_longer_than_the_drain() {
    let drain = aspia_relay::config::settings::find("DrainTimeout").unwrap().default.unwrap();
    let drain: u64 = drain.strip_suffix('s').unwrap().parse().unwrap();
    let compose = include_str!("../compose.yaml");
    let graces: Vec<u64> = compose
        .lines()
        .filter_map(|line| {
            line.strip_prefix("  stop_grace_period: ")?.strip_suffix('s')?.parse().ok()
        })
        .collect();
    assert_eq!(graces[0], drain + 10);
}
