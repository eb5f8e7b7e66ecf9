//! The demonstration of `compose.yaml`, started by `deploy/demo/start` with both implementations of Compose. Needs what
//! `containers` needs, and the image of Prometheus; stand-ins replace the other images from elsewhere.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use relay_lab::http;
use serde_json::Value;

use crate::containers::{COMPOSES, Compose, IMAGE, docker, free_port, images, require, until};
use crate::harness::tests;

tests! {
    demonstration_shows_traffic_and_metrics_whatever_image_is_missing,
    demonstration_needs_only_the_documented_images_and_ports,
}

/// An image that nobody can pull: nothing listens on that port.
const MISSING: &str = "127.0.0.1:1/none:1";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn demonstration_shows_traffic_and_metrics_whatever_image_is_missing() {
    images().await;
    let compose_file = include_str!("../../compose.yaml");
    let prometheus =
        compose_file.split("PROMETHEUS_IMAGE:-").nth(1).unwrap().split('}').next().unwrap();
    if !docker(&["image", "inspect", prometheus]).status.success() {
        relay_lab::cannot_run(format!("there is no image {prometheus}"));
    }
    // Both steps, each with one implementation of Compose and a Router of one generation.
    for (program, version, step, missing) in [
        (COMPOSES[0], "2.7", &["--full"][..], "GRAFANA_IMAGE"),
        (COMPOSES[1], "3.0", &[], "PROMETHEUS_IMAGE"),
        (COMPOSES[1], "3.0", &[], ""),
    ] {
        let (page, metrics) = (free_port(), free_port());
        let variables = [
            ("DEMO_PAGE_PORT", page.to_string()),
            ("DEMO_ROUTER_VERSION", version.to_owned()),
            ("DEMO_GRAFANA_PORT", free_port().to_string()),
            ("DEMO_TRACES_PORT", free_port().to_string()),
            ("DEMO_PROMETHEUS_PORT", metrics.to_string()),
        ];
        let compose = Compose::new(program, &variables);
        let mut start = Command::new("deploy/demo/start");
        let words = [&program.join(" "), "--env-file", compose.env_file.path().to_str().unwrap()];
        start.args(step).env("COMPOSE", words.join(" ")).env("DEMO_PROJECT", &compose.project);
        for stand_in in ["GRAFANA_IMAGE", "COLLECTOR_IMAGE", "TRACES_IMAGE"] {
            start.env(stand_in, format!("{IMAGE}:idle"));
        }
        if !missing.is_empty() {
            start.env(missing, MISSING);
        }
        let (good, said) = compose.execute(&mut start);
        assert_eq!(good, missing.is_empty(), "{program:?} {step:?}: {said}");
        let absent = missing.trim_end_matches("_IMAGE").to_lowercase();
        assert!(good || said.contains(&format!("reasons above: demo-{absent}.")), "{said}");
        // It says where to look, for what has started.
        let has_prometheus = absent != "prometheus";
        assert!(said.contains(&format!("http://127.0.0.1:{page}\n")), "{said}");
        assert_eq!(said.contains(&format!("http://127.0.0.1:{metrics}\n")), has_prometheus);
        for (service, expected) in [
            ("demo-grafana", false),
            ("demo-collector", !step.is_empty()),
            ("demo-traces", !step.is_empty()),
        ] {
            assert_eq!(!compose.container(service).is_empty(), expected, "{service}: {said}");
        }
        sessions_are_on_the_page(page).await;
        if has_prometheus {
            metrics_are_in_prometheus(metrics).await;
        }
    }
}

async fn sessions_are_on_the_page(port: u16) {
    let page: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    let token = ["Authorization: Bearer demo"];
    until("ten sessions on the page of the relay", async || {
        let status = http::request(page, "GET /status", &token, "").await;
        status.is_ok_and(|status| {
            let status = status.json();
            status["sessions"]["active"] == 10 && status["bytes_total"].as_u64() > Some(1 << 20)
        })
    })
    .await;
}

async fn metrics_are_in_prometheus(port: u16) {
    let metrics: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    until("ten sessions in Prometheus", async || {
        let query = "GET /api/v1/query?query=aspia_relay_sessions_active";
        let answer = http::request(metrics, query, &[], "").await;
        answer.is_ok_and(|a| a.json()["data"]["result"][0]["value"][1] == "10")
    })
    .await;
    let rules = http::request(metrics, "GET /api/v1/rules", &[], "").await.unwrap();
    assert!(rules.body.contains("AspiaRelayRouterLinkDown"), "{}", rules.body);
}

/// The services of a profile, as Compose reads them. Needs no running Docker daemon.
fn services(profile: &str) -> serde_json::Map<String, Value> {
    let mut command = Command::new("docker");
    command.args(["compose", "--profile", profile, "config", "--format", "json"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DEMO_")) {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let config: Value = serde_json::from_slice(&output.stdout).unwrap();
    let services = config["services"].as_object().unwrap().clone();
    services.into_iter().filter(|(name, _)| name.starts_with("demo")).collect()
}

fn demonstration_needs_only_the_documented_images_and_ports() {
    require(COMPOSES[0]);
    let document = include_str!("../../docs/install-docker.md");
    let (first, full) = (services("demo"), services("demo-full"));
    let is_own = |service: &Value| service["image"].as_str().unwrap().starts_with("aspia-relay");
    let foreign: Vec<_> = first.iter().filter(|(_, service)| !is_own(service)).collect();
    assert_eq!(foreign.len(), 1, "{foreign:?}");
    assert_eq!(foreign[0].0, "demo-prometheus");
    assert!(first.keys().all(|name| full.contains_key(name)));
    assert_eq!(full.len(), first.len() + 3);
    let mut ports = BTreeSet::new();
    for (name, service) in &full {
        for needed in service["depends_on"].as_object().into_iter().flat_map(|needed| needed.keys())
        {
            assert!(is_own(&full[needed]), "{name} does not start without {needed}");
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
            let published = port["published"].as_str().unwrap();
            assert!(document.contains(&format!("http://127.0.0.1:{published} ")), "{published}");
            // Those of a relay: for peers, of the admin interface, and of metrics in the documents.
            assert!(!["8070", "8071", "9477"].contains(&published), "{name}: {published}");
            assert!(ports.insert(published.to_owned()), "{published} is there twice");
        }
    }
    assert_eq!(ports.len(), 4);
}
