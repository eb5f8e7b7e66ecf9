//! An upgrade from an earlier version of the chart, which had a Deployment for one relay. Helm asks an API server on
//! loopback, which says which Deployment there is.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::tools::{chart, template};

/// An API server that knows nothing but one Deployment, at most; the file that leads Helm to it, in `directory`.
fn cluster(directory: &Path, deployment: Option<Value>) -> PathBuf {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that hangs up is no concern of the next one.
            let _ = answer(&stream.unwrap(), deployment.as_ref());
        }
    });
    let path = directory.join("kubeconfig");
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": { "server": format!("http://{address}") } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        "users": [{ "name": "lab", "user": {} }],
        "current-context": "lab",
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    path
}

fn answer(mut stream: &TcpStream, deployment: Option<&Value>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let found = match target.split('?').next().unwrap_or_default() {
        "/version" => Some(json!({ "major": "1", "minor": "31", "gitVersion": "v1.31.0" })),
        "/api" => Some(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        "/apis" => Some(json!({ "kind": "APIGroupList", "groups": [{
            "name": "apps",
            "versions": [{ "groupVersion": "apps/v1", "version": "v1" }],
        }] })),
        "/api/v1" => Some(json!({
            "kind": "APIResourceList",
            "groupVersion": "v1",
            "resources": [],
        })),
        "/apis/apps/v1" => Some(json!({
            "kind": "APIResourceList",
            "groupVersion": "apps/v1",
            "resources": [{
                "name": "deployments",
                "singularName": "deployment",
                "namespaced": true,
                "kind": "Deployment",
                "verbs": ["get"],
            }],
        })),
        "/apis/apps/v1/namespaces/relays/deployments/aspia-relay" => deployment.cloned(),
        _ => None,
    };
    let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
    let missing =
        json!({ "kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404 });
    let body = found.unwrap_or(missing).to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

fn deployment(release: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "aspia-relay",
            "namespace": "relays",
            "labels": { "app.kubernetes.io/instance": release },
        },
        "status": { "replicas": replicas },
    })
}

#[test]
fn a_deployment_of_before_is_stopped_before_the_upgrade() {
    let running = || Some(deployment("aspia-relay", 1));
    let upgrade = "--is-upgrade";
    for (name, there, is_upgrade, refused) in [
        ("stateful-set-value", running(), true, true),
        ("pod-network-load-balancer", running(), true, true),
        // Stopped, of another release, and none.
        ("stateful-set-value", Some(deployment("aspia-relay", 0)), true, false),
        ("stateful-set-value", Some(deployment("another", 1)), true, false),
        ("stateful-set-value", None, true, false),
        // An installation never replaces anything; a DaemonSet's relays have addresses of their own.
        ("stateful-set-value", running(), false, false),
        ("daemonset-host-ip", running(), true, false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = cluster(directory.path(), there);
        let values = chart().join(format!("ci/{name}-values.yaml"));
        let mut arguments = vec!["--dry-run=server", "--kubeconfig", kubeconfig.to_str().unwrap()];
        arguments.extend(["--values", values.to_str().unwrap()]);
        arguments.extend(is_upgrade.then_some(upgrade));
        let Some(said) = template(&arguments) else { return };
        let said = said.expect_err("there is no schema to validate the manifests by");
        if !refused {
            // Everything is rendered, and then Helm asks for what this API server does not have.
            assert!(said.contains("failed to download openapi"), "{name}: {said}");
            continue;
        }
        for words in [
            "the Deployment aspia-relay of an earlier version",
            "kubectl scale deployment/aspia-relay -n relays --replicas=0",
            "--for=delete --timeout=55s",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}
