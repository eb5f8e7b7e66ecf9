//! Requests a node from the Kubernetes API.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::parse;
use crate::secret::Secret;
use crate::tls::{ClientFiles, PemSource};

use super::address_source::AddressSource;
use super::error::NodeError;

/// Where Kubernetes mounts the credentials of a pod's service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The time limit for a request and its response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest response that is accepted, in bytes. A node is far smaller, although it lists its images.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;
/// The largest token that is read, in bytes.
const MAX_TOKEN: u64 = 64 * 1024;

/// The Kubernetes API of a cluster, and the node to ask for.
#[derive(Debug, Clone)]
pub struct Cluster {
    host: String,
    port: u16,
    node: String,
    service_account: PathBuf,
}

/// The relevant parts of a node (`v1.Node` of the Kubernetes API).
#[derive(Debug, Deserialize)]
struct Node {
    metadata: NodeMetadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Deserialize)]
struct NodeMetadata {
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// An error of the Kubernetes API (`v1.Status`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiStatus {
    message: String,
}

impl Cluster {
    /// Reads the cluster of the pod whose environment this is; the credentials are in the directory `service_account`. The
    /// variable `NODE_NAME` names the node.
    ///
    /// # Errors
    /// [`NodeError::Environment`] if a variable is missing or invalid.
    pub fn of_pod(
        environment: &[(String, String)],
        service_account: &Path,
    ) -> Result<Self, NodeError> {
        let get = |variable: &'static str, expected| {
            let found = environment.iter().find(|(name, _)| name == variable);
            let value = found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty());
            value.ok_or(NodeError::Environment { variable, expected })
        };
        const PORT: &str = "KUBERNETES_SERVICE_PORT";
        let port_number = "the port of the Kubernetes API, which Kubernetes sets";
        let wrong_port = NodeError::Environment { variable: PORT, expected: port_number };
        Ok(Self {
            host: get(
                "KUBERNETES_SERVICE_HOST",
                "the address of the Kubernetes API, which Kubernetes sets",
            )?
            .to_owned(),
            port: get(PORT, port_number)?.parse().map_err(|_| wrong_port)?,
            node: get("NODE_NAME", "the name of the node, from the field spec.nodeName")?
                .to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// Requests the node once, and returns the address in `source`.
    ///
    /// # Errors
    /// [`NodeError`] if there is no address.
    pub async fn node_address(&self, source: &AddressSource) -> Result<String, NodeError> {
        let response = timeout(REQUEST_TIMEOUT, self.request_node()).await;
        let node = response.unwrap_or_else(|_| {
            let seconds = REQUEST_TIMEOUT.as_secs();
            Err(self.unreachable(format!("no response within {seconds} s")))
        })?;
        let (value, hint) = self.find_address(&node, source);
        let Some(value) = value else {
            return Err(NodeError::Missing {
                node: self.node.clone(),
                wanted: source.clone(),
                hint,
            });
        };
        match parse::peer_address(value.trim()) {
            Ok(address) => Ok(address.as_str().to_owned()),
            Err(expected) => Err(NodeError::InvalidAddress {
                node: self.node.clone(),
                wanted: source.clone(),
                value,
                expected,
            }),
        }
    }

    /// Finds the value in `source`. Also returns a hint for the case that there is none.
    fn find_address(&self, node: &Node, source: &AddressSource) -> (Option<String>, String) {
        match source {
            AddressSource::ExternalIp => {
                let external = node.status.addresses.iter().find(|a| a.kind == "ExternalIP");
                let all = node.status.addresses.iter().map(|a| format!("{} {}", a.kind, a.address));
                let all = all.collect::<Vec<_>>().join(", ");
                (external.map(|a| a.address.clone()), format!("it has: {all}"))
            }
            AddressSource::Annotation(key) => (
                node.metadata.annotations.get(key).cloned(),
                format!("set it: kubectl annotate node {} {key}=ADDRESS", self.node),
            ),
            AddressSource::Label(key) => (
                node.metadata.labels.get(key).cloned(),
                format!("set it: kubectl label node {} {key}=ADDRESS", self.node),
            ),
        }
    }

    fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn unreachable(&self, reason: impl fmt::Display) -> NodeError {
        NodeError::Unreachable { address: self.address(), reason: reason.to_string() }
    }

    async fn request_node(&self) -> Result<Node, NodeError> {
        let (token, tls) = self.credentials()?;
        let unreachable = |error: io::Error| self.unreachable(error);
        let stream =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|e| self.unreachable(e))?;
        let stream = tls.connect(name, stream).await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(e))?;
        // Dropping the set ends the connection, even if there is no response in time.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let node = utf8_percent_encode(&self.node, NON_ALPHANUMERIC);
        let request = Request::get(format!("/api/v1/nodes/{node}"))
            .header(HOST, self.address())
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, token)
            .body(Empty::<Bytes>::new())
            .map_err(|e| self.unreachable(e))?;
        let response = sender.send_request(request).await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
        let body = body.map_err(|e| self.unreachable(e))?.to_bytes();
        if status != StatusCode::OK {
            let ApiStatus { message } = serde_json::from_slice(&body).unwrap_or_default();
            return Err(NodeError::Refused { node: self.node.clone(), status, message });
        }
        serde_json::from_slice(&body)
            .map_err(|e| NodeError::InvalidNode { address: self.address(), reason: e.to_string() })
    }

    /// Reads the credentials of the service account: the header with its token, and TLS that trusts only its CA.
    fn credentials(&self) -> Result<(HeaderValue, TlsConnector), NodeError> {
        let (token_path, ca) =
            (self.service_account.join("token"), self.service_account.join("ca.crt"));
        let failed =
            |reason: String| NodeError::ServiceAccount { path: token_path.clone(), reason };
        let mut token = String::from("Bearer ");
        std::fs::File::open(&token_path)
            .and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut token))
            .map_err(|error| failed(error.to_string()))?;
        let token = Secret::new(token);
        let mut header = HeaderValue::from_str(token.expose().trim_end())
            .map_err(|_| failed("it does not contain a token".into()))?;
        header.set_sensitive(true);
        let files = ClientFiles { ca: Some(PemSource::File(ca.clone())), identity: None };
        let tls = files
            .load(b"http/1.1")
            .map_err(|error| NodeError::ServiceAccount { path: ca, reason: error.to_string() })?;
        Ok((header, TlsConnector::from(Arc::new(tls))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_is_read_from_the_environment_of_the_pod() {
        let pod = |changed: &str, value: &str| {
            let environment: Vec<_> = [
                ("KUBERNETES_SERVICE_HOST", "2001:db8::1"),
                ("KUBERNETES_SERVICE_PORT", "443"),
                ("NODE_NAME", "node-1"),
            ]
            .map(|(name, set)| {
                (name.to_owned(), if name == changed { value } else { set }.to_owned())
            })
            .into();
            Cluster::of_pod(&environment, Path::new(SERVICE_ACCOUNT))
        };
        assert_eq!(pod("", "").unwrap().address(), "[2001:db8::1]:443");
        for (variable, wrong) in [
            ("KUBERNETES_SERVICE_HOST", ""),
            ("KUBERNETES_SERVICE_PORT", ""),
            ("KUBERNETES_SERVICE_PORT", "tcp://10.0.0.1:443"),
            ("NODE_NAME", ""),
        ] {
            let error = pod(variable, wrong).unwrap_err().to_string();
            assert!(error.starts_with(variable) && error.contains("for a pod"), "{error}");
        }
    }
}
