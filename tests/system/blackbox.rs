//! The modules of `deploy/prometheus/blackbox.yaml` in a real blackbox exporter, and the scrape jobs for it: probes of a real
//! relay succeed, and the alerts find the relay that a probe belongs to.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use relay_lab::http::get;
use relay_lab::log::CapturedLog;
use relay_lab::relay::Lab;
use relay_lab::router::Options;

use crate::harness::tests;

tests! {
    exporter_accepts_the_modules,
    probe_of_a_relay_succeeds_and_leaves_no_warning,
    probes_and_relays_have_the_same_instance,
}

/// The name in Debian, and that of upstream.
const PROGRAMS: [&str; 2] = ["prometheus-blackbox-exporter", "blackbox_exporter"];

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus").join(file)
}

/// The exporter with these arguments, without which the test cannot run.
fn spawn(arguments: &[&str], stderr: fn() -> Stdio) -> Child {
    let file = format!("--config.file={}", deploy("blackbox.yaml").display());
    let spawn = |program: &&str| {
        let mut command = Command::new(program);
        command.arg(&file).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(stderr()).spawn().ok()
    };
    PROGRAMS.iter().find_map(spawn).unwrap_or_else(|| {
        relay_lab::cannot_run(
            "the blackbox exporter is missing; on Debian: apt install prometheus-blackbox-exporter",
        )
    })
}

/// An exporter that runs until it is dropped.
struct Exporter {
    child: Child,
    address: SocketAddr,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Exporter {
    async fn start() -> Self {
        let port = relay_lab::port::free_port().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = spawn(&[&format!("--web.listen-address={address}")], Stdio::null);
        let mut exporter = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(60);
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(exporter.child.try_wait().unwrap().is_none(), "the exporter has ended");
            assert!(Instant::now() < deadline, "the exporter does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        exporter
    }

    /// Whether a probe of this address succeeds.
    async fn probe(&self, module: &str, target: &str) -> bool {
        let answer = get(self.address, &format!("/probe?module={module}&target={target}")).await;
        let body = answer.unwrap().body;
        let success = body.lines().find_map(|line| line.strip_prefix("probe_success "));
        match success {
            Some("1") => true,
            Some("0") => false,
            _ => panic!("{body}"),
        }
    }
}

fn exporter_accepts_the_modules() {
    let check = spawn(&["--config.check"], Stdio::piped);
    let Output { status, stderr, .. } = check.wait_with_output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}

#[tokio::main(flavor = "current_thread")]
async fn probe_of_a_relay_succeeds_and_leaves_no_warning() {
    let exporter = Exporter::start().await;
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[]).await.unwrap();
    lab.router.wait_for(|view| !view.pool.is_empty()).await;
    let address = lab.relay.address().to_string();
    assert!(exporter.probe("aspia_relay_ipv4", &address).await);
    // The relay of this test listens on IPv4 only, and no module falls back to the other family.
    assert!(!exporter.probe("aspia_relay_ipv6", &address).await);
    let free = relay_lab::port::free_port().unwrap();
    assert!(!exporter.probe("aspia_relay_ipv4", &format!("127.0.0.1:{free}")).await);
    let closed = "aspia_relay_peer_connections_total{outcome=\"closed\"} 1\n";
    let deadline = Instant::now() + Duration::from_secs(60);
    while !get(lab.relay.admin(), "/metrics").await.unwrap().body.contains(closed) {
        assert!(Instant::now() < deadline, "the probe is not counted as documented");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!log.text().contains("WARN"), "{}", log.text());
}

/// `prometheus.yaml` with the jobs that it has as comments. Debian's promtool does not know Kubernetes.
fn with_optional_jobs() -> String {
    let text = std::fs::read_to_string(deploy("prometheus.yaml")).unwrap();
    let mut jobs: Vec<Vec<String>> = Vec::new();
    let mut is_job = false;
    for line in text.lines() {
        let content = line.strip_prefix("  # ");
        let begins = content.is_some_and(|content| content.starts_with("- job_name: "));
        is_job = begins || is_job && content.is_some_and(|content| content.starts_with("  "));
        if begins {
            jobs.push(Vec::new());
        }
        if let (true, Some(job), Some(content)) = (is_job, jobs.last_mut(), content) {
            job.push(format!("  {content}"));
        }
    }
    assert!(jobs.len() > 2, "{jobs:?}");
    jobs.retain(|job| !job.iter().any(|line| line.contains("kubernetes_sd_configs")));
    let rules = deploy("rules.yaml").display().to_string();
    text.replace("- rules.yaml", &format!("- {rules}")) + &jobs.concat().join("\n") + "\n"
}

/// The labels of the targets of a job, after relabeling.
fn targets(config: &Path, job: &str) -> Vec<serde_json::Value> {
    let mut command = Command::new("promtool");
    command.args(["check", "service-discovery", "--timeout=1s"]).arg(config).arg(job);
    let Ok(output) = command.output() else {
        relay_lab::cannot_run("promtool is missing; on Debian: apt install prometheus");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{job}: {said}");
    let targets: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    targets.into_iter().map(|target| target["labels"].clone()).collect()
}

/// The alert on an unreachable port compares the two.
fn probes_and_relays_have_the_same_instance() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("prometheus.yaml");
    std::fs::write(&config, with_optional_jobs()).unwrap();
    let text = |label: &serde_json::Value| label.as_str().unwrap().to_owned();
    let relays: BTreeSet<_> =
        targets(&config, "aspia-relay").iter().map(|labels| text(&labels["instance"])).collect();
    assert!(relays.len() > 1, "{relays:?}");
    for (job, module) in [
        ("blackbox-aspia-relay", "aspia_relay_ipv4"),
        ("blackbox-aspia-relay-ipv6", "aspia_relay_ipv6"),
    ] {
        let probes = targets(&config, job);
        let instances: BTreeSet<_> =
            probes.iter().map(|labels| text(&labels["instance"])).collect();
        assert_eq!(instances, relays, "{job}");
        for labels in &probes {
            assert_eq!(labels["__param_module"], module);
            assert_eq!(labels["__param_target"], labels["peer_address"]);
            assert_ne!(labels["__address__"], labels["peer_address"], "the exporter is asked");
        }
    }
}
