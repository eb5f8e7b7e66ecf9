//! `--node-address` with a scripted Kubernetes API, over TLS and with the token of a service account.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::node::{AddressSource, Cluster, NodeError, RetryPolicy};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const TOKEN: &str = "a.token.of-a-service-account";

/// The directory of a service account, and an API that answers requests from a script.
struct Api {
    address: SocketAddr,
    service_account: tempfile::TempDir,
    asked: tokio::sync::mpsc::UnboundedReceiver<String>,
}

/// What the API does with one connection.
#[derive(Clone)]
enum Answer {
    /// Answers with a status and a body.
    With(&'static str, String),
    /// Closes the connection, as a load balancer does if the API server behind it is down.
    HangUp,
}

/// An API that answers every request in the same way.
async fn answering(status: &'static str, body: String) -> Api {
    scripted(vec![Answer::With(status, body)]).await
}

/// An API that answers requests in turn as `script` says, and repeats its last answer.
async fn scripted(script: Vec<Answer>) -> Api {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = made.signing_key.serialize_pem();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let service_account = tempfile::tempdir().unwrap();
    std::fs::write(service_account.path().join("ca.crt"), certificate).unwrap();
    std::fs::write(service_account.path().join("token"), format!("{TOKEN}\n")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (said, asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let last = script.last().cloned().unwrap();
        let mut script = script.into_iter();
        while let Ok((stream, _)) = listener.accept().await {
            let Answer::With(status, body) = script.next().unwrap_or_else(|| last.clone()) else {
                continue;
            };
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
            let _ = said.send(String::from_utf8(request).unwrap());
            stream.write_all((head + &body).as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    Api { address, service_account, asked }
}

fn cluster(address: SocketAddr, service_account: &Path) -> Cluster {
    let environment = [
        ("KUBERNETES_SERVICE_HOST", address.ip().to_string()),
        ("KUBERNETES_SERVICE_PORT", address.port().to_string()),
        ("NODE_NAME", "node-1".to_owned()),
    ];
    let environment: Vec<_> =
        environment.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    Cluster::of_pod(&environment, service_account).unwrap()
}

async fn ask(api: &Api, source: &str) -> Result<String, String> {
    let source: AddressSource = source.parse().unwrap();
    let cluster = cluster(api.address, api.service_account.path());
    let answer = cluster.node_address(&source).await;
    answer.map_err(|error| error.to_string())
}

fn node() -> String {
    json!({
        "kind": "Node",
        "metadata": {
            "name": "node-1",
            "annotations": { "aspia-relay/address": "relay1.example.com", "bad": "http://x" },
            "labels": { "aspia-relay/address": "192.0.2.7" },
        },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.5" },
            { "type": "ExternalIP", "address": "2001:db8::5" },
            { "type": "ExternalIP", "address": "192.0.2.5" },
        ] },
    })
    .to_string()
}

#[tokio::test]
async fn requested_node_address_is_returned() {
    let mut api = answering("200 OK", node()).await;
    for (source, address) in [
        ("external-ip", "2001:db8::5"),
        ("annotation=aspia-relay/address", "relay1.example.com"),
        ("label=aspia-relay/address", "192.0.2.7"),
    ] {
        assert_eq!(ask(&api, source).await.as_deref(), Ok(address), "{source}");
        let asked = api.asked.recv().await.unwrap();
        assert!(asked.starts_with("GET /api/v1/nodes/node%2D1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.to_lowercase().contains(&format!("authorization: bearer {TOKEN}\r\n")));
    }
}

#[tokio::test]
async fn missing_and_invalid_addresses_are_reported_with_a_remedy() {
    let api = answering("200 OK", node()).await;
    for (source, words) in [
        ("annotation=none", "kubectl annotate node node-1 none="),
        ("label=none", "kubectl label node node-1 none="),
        ("annotation=bad", "is \"http://x\": expected a host name"),
    ] {
        let error = ask(&api, source).await.unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let only_internal = json!({ "metadata": {}, "status": { "addresses": [
        { "type": "InternalIP", "address": "10.0.0.5" },
    ] } });
    let internal = answering("200 OK", only_internal.to_string()).await;
    let error = ask(&internal, "external-ip").await.unwrap_err();
    assert!(error.contains("no address of the type ExternalIP"), "{error}");
    assert!(error.contains("it has: InternalIP 10.0.0.5"), "{error}");
}

#[tokio::test]
async fn unexpected_answers_of_the_api_are_quoted() {
    let forbidden = json!({ "kind": "Status", "message": "nodes \"node-1\" is forbidden" });
    let api = answering("403 Forbidden", forbidden.to_string()).await;
    let error = ask(&api, "external-ip").await.unwrap_err();
    assert!(error.contains("403 Forbidden nodes \"node-1\" is forbidden"), "{error}");
    assert!(error.contains("rbac.create"), "{error}");
    let api = answering("200 OK", "<html>".into()).await;
    let error = ask(&api, "external-ip").await.unwrap_err();
    assert!(error.contains("is not a node"), "{error}");
    // The token is sent only to a server whose certificate this cluster's authority has signed.
    let other = answering("200 OK", node()).await;
    let stranger = cluster(other.address, api.service_account.path());
    let error = stranger.node_address(&AddressSource::ExternalIp).await.unwrap_err().to_string();
    assert!(error.contains("does not answer") && error.contains("certificate"), "{error}");
    // A missing token is reported, too.
    std::fs::remove_file(api.service_account.path().join("token")).unwrap();
    let error = ask(&api, "external-ip").await.unwrap_err();
    assert!(error.contains("token") && error.contains("mounted"), "{error}");
}

/// Retries at once, and reports each reason once.
const HASTY: RetryPolicy =
    RetryPolicy { delay: Duration::ZERO, report_period: Duration::MAX, limit: None };

/// Waits for the annotation `aspia-relay/address`, and returns what was reported meanwhile.
async fn wait(api: &Api, pace: RetryPolicy) -> (Result<String, String>, Vec<String>) {
    let source = "annotation=aspia-relay/address".parse().unwrap();
    let cluster = cluster(api.address, api.service_account.path());
    let mut reported = Vec::new();
    let answer = cluster.wait_for_address(&source, pace, |error| reported.push(error.to_string()));
    (answer.await.map_err(|error| error.to_string()), reported)
}

fn node_with(annotations: &serde_json::Value) -> Answer {
    Answer::With("200 OK", json!({ "metadata": { "annotations": annotations } }).to_string())
}

#[tokio::test]
async fn problems_outside_the_pod_are_retried() {
    let refusal = |status, message: &str| {
        Answer::With(status, json!({ "kind": "Status", "message": message }).to_string())
    };
    for (trouble, words) in [
        (Answer::HangUp, "does not answer"),
        (refusal("503 Service Unavailable", "etcd is away"), "etcd is away"),
        (refusal("429 Too Many Requests", "later"), "429 Too Many Requests later"),
        (refusal("401 Unauthorized", "Unauthorized"), "token of the service account"),
        // The role may be bound later, and the node may register later.
        (refusal("403 Forbidden", "nodes is forbidden"), "rbac.create"),
        (refusal("404 Not Found", "nodes \"node-1\" not found"), "not found; NODE_NAME"),
        (Answer::With("200 OK", "<html>".into()), "is not a node"),
        (node_with(&json!({})), "kubectl annotate node node-1 aspia-relay/address="),
        (node_with(&json!({ "aspia-relay/address": "http://x" })), "is \"http://x\": expected"),
    ] {
        let mut script = vec![trouble; 3];
        script.push(node_with(&json!({ "aspia-relay/address": "192.0.2.9" })));
        let api = scripted(script).await;
        let (answer, reported) = wait(&api, HASTY).await;
        assert_eq!(answer.as_deref(), Ok("192.0.2.9"), "{words}");
        // The reason is reported once, though it occurred three times.
        assert_eq!(reported.len(), 1, "{reported:?}");
        assert!(reported[0].contains(words), "{words}: {reported:?}");
    }
}

#[tokio::test]
async fn each_new_reason_is_reported_once_and_repeated_later() {
    let away = || Answer::HangUp;
    let missing = || node_with(&json!({}));
    let there = || node_with(&json!({ "aspia-relay/address": "192.0.2.9" }));
    let in_turn = vec![away(), missing(), away(), missing(), missing(), there()];
    let (answer, reported) = wait(&scripted(in_turn.clone()).await, HASTY).await;
    assert_eq!((answer.as_deref(), reported.len()), (Ok("192.0.2.9"), 2), "{reported:?}");
    // With a report period of zero, every occurrence is reported.
    let (_, reported) =
        wait(&scripted(in_turn).await, RetryPolicy { report_period: Duration::ZERO, ..HASTY })
            .await;
    assert_eq!(reported.len(), 5, "{reported:?}");
}

/// If the kubelet has renewed the token, the next request uses the new one.
#[tokio::test]
async fn token_is_read_for_each_request() {
    let mut api = scripted(vec![
        node_with(&json!({})),
        node_with(&json!({ "aspia-relay/address": "192.0.2.9" })),
    ])
    .await;
    let source = "annotation=aspia-relay/address".parse().unwrap();
    let cluster = cluster(api.address, api.service_account.path());
    let token = api.service_account.path().join("token");
    let renew = |_: &_| std::fs::write(&token, "renewed").unwrap();
    cluster.wait_for_address(&source, HASTY, renew).await.unwrap();
    for shown in [TOKEN, "renewed"] {
        let asked = api.asked.recv().await.unwrap().to_lowercase();
        assert!(asked.contains(&format!("authorization: bearer {shown}\r\n")), "{asked}");
    }
}

#[tokio::test]
async fn problems_inside_the_pod_are_not_retried() {
    let api = answering("200 OK", node()).await;
    std::fs::remove_file(api.service_account.path().join("token")).unwrap();
    let (answer, reported) = wait(&api, HASTY).await;
    assert!(answer.unwrap_err().contains("mounted"));
    assert!(reported.is_empty(), "{reported:?}");
}

/// Both files are read for each request, and a mount may be unavailable for a moment.
#[tokio::test]
async fn unreadable_service_account_is_retried_if_it_was_readable_before() {
    for file in ["token", "ca.crt"] {
        let api = scripted(vec![
            node_with(&json!({})),
            node_with(&json!({ "aspia-relay/address": "192.0.2.9" })),
        ])
        .await;
        let source = "annotation=aspia-relay/address".parse().unwrap();
        let cluster = cluster(api.address, api.service_account.path());
        let (path, aside) =
            (api.service_account.path().join(file), api.service_account.path().join("aside"));
        let mut reasons = Vec::new();
        let say = |error: &NodeError| {
            match reasons.len() {
                0 => std::fs::rename(&path, &aside).unwrap(),
                _ => std::fs::rename(&aside, &path).unwrap(),
            }
            reasons.push(error.to_string());
        };
        let answer = cluster.wait_for_address(&source, HASTY, say).await;
        assert_eq!(answer.unwrap(), "192.0.2.9", "{file}");
        assert!(reasons[1].contains("service account") && reasons.len() == 2, "{reasons:?}");
    }
}

#[tokio::test]
async fn bounded_wait_ends_with_the_last_reason() {
    let api = answering("200 OK", node()).await;
    let source = "annotation=none".parse().unwrap();
    let cluster = cluster(api.address, api.service_account.path());
    let pace = RetryPolicy { limit: Some(Duration::ZERO), ..HASTY };
    let error = cluster.wait_for_address(&source, pace, |_| ()).await.unwrap_err();
    assert!(matches!(error, NodeError::GaveUp { .. }), "{error}");
    assert!(error.to_string().contains("kubectl annotate node node-1 none="), "{error}");
    // An address that exists in time is returned.
    let source = "external-ip".parse().unwrap();
    assert!(cluster.wait_for_address(&source, pace, |_| ()).await.is_ok());
}

/// Runs as process 1 of a container, which ignores SIGTERM by default, with a service account where Kubernetes mounts it.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs root"]
async fn wait_ends_on_sigterm_and_reports_its_reason() {
    use std::process::Stdio;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::process::Command;

    const UNSHARE: [&str; 4] = ["--mount", "--pid", "--fork", "--kill-child"];
    let api = answering("200 OK", node()).await;
    let directory = tempfile::tempdir().unwrap();
    let message = directory.path().join("termination-log");
    std::fs::write(&message, "").unwrap();
    let mut container = Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-euc"])
        .arg(
            "mount -t tmpfs none /run
             mkdir -p /run/secrets/kubernetes.io/serviceaccount
             cp \"$1\"/* /run/secrets/kubernetes.io/serviceaccount
             exec \"$2\" --node-address annotation=none",
        )
        .arg("sh")
        .arg(api.service_account.path())
        .arg(env!("CARGO_BIN_EXE_aspia_relay"))
        .env("KUBERNETES_SERVICE_HOST", api.address.ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", api.address.port().to_string())
        .env("NODE_NAME", "node-1")
        .env("TERMINATION_MESSAGE_PATH", &message)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(container.stderr.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    for part in ["waiting for the address that peers dial", "every 5 s", "annotation none"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let unshare = container.id().unwrap();
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    let first = std::fs::read_to_string(children).unwrap();
    let killed = Command::new("kill").args(["-s", "TERM", first.trim()]).status().await.unwrap();
    assert!(killed.success());
    // A success would be taken for an address.
    assert_eq!(container.wait().await.unwrap().code(), Some(1));
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("stopped before there was an address: "), "{line}");
    let message = std::fs::read_to_string(message).unwrap();
    assert!(message.contains("kubectl annotate node node-1 none="), "{message}");
}
