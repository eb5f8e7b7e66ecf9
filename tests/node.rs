//! `--node-address`, against an API of Kubernetes that says what it is told to: over TLS, with the token of a service
//! account.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use aspia_relay::node::{AddressSource, Cluster};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const TOKEN: &str = "a.token.of-a-service-account";

/// The folder of a service account, and an API that answers every request with `status` and `body`, and puts the
/// request at the end of the body where that asks for it.
struct Api {
    address: SocketAddr,
    service_account: tempfile::TempDir,
    asked: tokio::sync::mpsc::UnboundedReceiver<String>,
}

async fn answering(status: &'static str, body: String) -> Api {
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
        while let Ok((stream, _)) = listener.accept().await {
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
async fn the_node_tells_the_address_that_is_asked_for() {
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
async fn what_is_missing_or_wrong_is_said_with_what_to_do() {
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
async fn an_api_that_refuses_or_talks_nonsense_is_quoted() {
    let forbidden = json!({ "kind": "Status", "message": "nodes \"node-1\" is forbidden" });
    let api = answering("403 Forbidden", forbidden.to_string()).await;
    let error = ask(&api, "external-ip").await.unwrap_err();
    assert!(error.contains("403 Forbidden nodes \"node-1\" is forbidden"), "{error}");
    assert!(error.contains("rbac.create"), "{error}");
    let api = answering("200 OK", "<html>".into()).await;
    let error = ask(&api, "external-ip").await.unwrap_err();
    assert!(error.contains("what is no node"), "{error}");
    // The token goes to nobody who has not the certificate of this cluster's authority.
    let other = answering("200 OK", node()).await;
    let stranger = cluster(other.address, api.service_account.path());
    let error = stranger.node_address(&AddressSource::ExternalIp).await.unwrap_err().to_string();
    assert!(error.contains("does not answer") && error.contains("certificate"), "{error}");
    // Nothing of the token in any error.
    std::fs::remove_file(api.service_account.path().join("token")).unwrap();
    let error = ask(&api, "external-ip").await.unwrap_err();
    assert!(error.contains("token") && error.contains("mounted"), "{error}");
}
