//! The Kubernetes node that this process runs on: what its API says of the address under which peers reach it. For
//! `--node-address`, which an init container runs, so that the relay itself holds no credential of the cluster.
//!
//! Whatever can be mended from outside of the pod is waited for: a container that ends is started again only after a
//! back-off of up to five minutes.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
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
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::parse;
use crate::secret::Secret;
use crate::tls::{ClientFiles, Source};

/// Where Kubernetes puts the credentials of a pod's service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Time for one question and its answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer read, in bytes: a node lists the images that it has, and is far shorter all the same.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Longest token read, in bytes.
const MAX_TOKEN: u64 = 64 * 1024;

/// How often [`Cluster::wait_for_address`] asks, and how often it repeats what it waits for. Injected, so that tests need
/// not wait.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time between an answer and the next question.
    pub retry: Duration,
    /// Time in which the same reason is reported only once.
    pub remind: Duration,
    /// After this time nothing more is asked; `None`: asks for ever.
    pub at_most: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { retry: Duration::from_secs(5), remind: Duration::from_secs(60), at_most: None }
    }
}

/// The reasons that were reported lately. An API server that alternates between two of them causes no more lines than one
/// that keeps to one.
struct Reported {
    within: Duration,
    reasons: Vec<(String, Instant)>,
}

impl Reported {
    fn new(within: Duration) -> Self {
        Self { within, reasons: Vec::new() }
    }

    /// Whether `reason` has not been reported lately; from then on it has.
    fn is_news(&mut self, reason: String, now: Instant) -> bool {
        self.reasons.retain(|(_, at)| now.saturating_duration_since(*at) < self.within);
        if self.reasons.iter().any(|(reported, _)| *reported == reason) {
            return false;
        }
        self.reasons.push((reason, now));
        true
    }
}

/// Where on a node the address stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressSource {
    /// The first address of the type `ExternalIP`.
    ExternalIp,
    /// The annotation with this key.
    Annotation(String),
    /// The label with this key.
    Label(String),
}

impl FromStr for AddressSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            None if text == "external-ip" => Ok(Self::ExternalIp),
            Some(("annotation", key)) if !key.is_empty() => Ok(Self::Annotation(key.to_owned())),
            Some(("label", key)) if !key.is_empty() => Ok(Self::Label(key.to_owned())),
            _ => Err("expected external-ip, annotation=KEY or label=KEY".into()),
        }
    }
}

impl fmt::Display for AddressSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExternalIp => f.write_str("address of the type ExternalIP"),
            Self::Annotation(key) => write!(f, "annotation {key}"),
            Self::Label(key) => write!(f, "label {key}"),
        }
    }
}

/// The way to the Kubernetes API, and which node is asked about.
#[derive(Debug, Clone)]
pub struct Cluster {
    host: String,
    port: u16,
    node: String,
    service_account: PathBuf,
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A variable of the pod is missing or wrong.
    #[error("{variable}: expected {expected}; --node-address is for a pod of Kubernetes")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What should stand in it.
        expected: &'static str,
    },
    /// The credentials cannot be used.
    #[error("{}: {reason}; is the token of the service account mounted into this container?", path.display())]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The API does not answer.
    #[error("the Kubernetes API at {address} does not answer: {reason}")]
    Unreachable {
        /// Where it is.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The API refuses.
    #[error("the Kubernetes API does not show the node {node}: {status} {message}{}", remedy(*status))]
    Refused {
        /// The node that it was asked about.
        node: String,
        /// What it answered.
        status: StatusCode,
        /// Why, in its words.
        message: String,
    },
    /// What the API says is no node.
    #[error("the Kubernetes API at {address} answers with what is no node: {reason}")]
    NoNode {
        /// Where it is.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The node has no such address.
    #[error("the node {node} has no {wanted}; {has}")]
    Missing {
        /// The node.
        node: String,
        /// What was looked for.
        wanted: AddressSource,
        /// What it has instead, and what to do.
        has: String,
    },
    /// What stands there is no address.
    #[error("the {wanted} of the node {node} is {value:?}: expected {expected}")]
    Wrong {
        /// The node.
        node: String,
        /// What was looked for.
        wanted: AddressSource,
        /// What stands there.
        value: String,
        /// What should stand there.
        expected: String,
    },
    /// There was no address within [`Pace::at_most`].
    #[error("no address after {} s: {reason}", after.as_secs())]
    GaveUp {
        /// How long it was asked for.
        after: Duration,
        /// Why there was none, as the last answer says.
        reason: String,
    },
}

/// What to do about a refusal.
fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => {
            "; is the token of the service account one of this cluster, and does the service account still exist?"
        }
        StatusCode::FORBIDDEN => {
            "; may the service account get nodes (a ClusterRole; rbac.create in the chart)?"
        }
        StatusCode::NOT_FOUND => {
            "; NODE_NAME must be the name of this pod's node, from the field spec.nodeName"
        }
        // The API server is in trouble, and nothing is wrong here.
        _ => "",
    }
}

impl NodeError {
    /// Whether the first question says by this that the pod itself is wrong: its environment never changes, and a service
    /// account that is not mounted never is. Its files are read for each question, so that one that was read before may
    /// be unreadable for a moment only.
    fn is_the_pods(&self) -> bool {
        match self {
            Self::Environment { .. } | Self::ServiceAccount { .. } | Self::GaveUp { .. } => true,
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::NoNode { .. }
            | Self::Missing { .. }
            | Self::Wrong { .. } => false,
        }
    }
}

/// A node, as far as it matters here (`v1.Node` of the Kubernetes API).
#[derive(Debug, Deserialize)]
struct Node {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
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
struct Failure {
    message: String,
}

impl Cluster {
    /// Reads the cluster of the pod whose environment this is; the credentials are in the folder `service_account`. The
    /// variable `NODE_NAME` names the node.
    ///
    /// # Errors
    /// [`NodeError::Environment`].
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

    /// Asks for the address that stands in `source` until there is one. Hands to `say` what it waits for: a new reason at
    /// once, the same one again only after [`Pace::remind`]. Waits for ever unless told otherwise, as the pod cannot do
    /// without: Kubernetes shows it as `Init`, and ends the wait with the pod.
    ///
    /// # Errors
    /// [`NodeError::ServiceAccount`] where the pod is wrong from the beginning, and [`NodeError::GaveUp`].
    pub async fn wait_for_address(
        &self,
        source: &AddressSource,
        pace: Pace,
        mut say: impl FnMut(&NodeError),
    ) -> Result<String, NodeError> {
        let mut reported = Reported::new(pace.remind);
        let begin = Instant::now();
        let mut is_first = true;
        loop {
            let error = match self.node_address(source).await {
                Err(error) if !(is_first && error.is_the_pods()) => error,
                answer => return answer,
            };
            is_first = false;
            let reason = error.to_string();
            if let Some(after) = pace.at_most
                && begin.elapsed() + pace.retry >= after
            {
                return Err(NodeError::GaveUp { after, reason });
            }
            if reported.is_news(reason, Instant::now()) {
                say(&error);
            }
            sleep(pace.retry).await;
        }
    }

    /// Asks the API once for the node and returns the address that stands in `source`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn node_address(&self, source: &AddressSource) -> Result<String, NodeError> {
        let asked = timeout(PATIENCE, self.node()).await;
        let node = asked.unwrap_or_else(|_| {
            Err(self.unreachable(format!("nothing within {} s", PATIENCE.as_secs())))
        })?;
        let (value, has) = match source {
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
        };
        let Some(value) = value else {
            return Err(NodeError::Missing {
                node: self.node.clone(),
                wanted: source.clone(),
                has,
            });
        };
        match parse::peer_address(value.trim()) {
            Ok(address) => Ok(address.as_str().to_owned()),
            Err(expected) => Err(NodeError::Wrong {
                node: self.node.clone(),
                wanted: source.clone(),
                value,
                expected,
            }),
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

    async fn node(&self) -> Result<Node, NodeError> {
        let (token, tls) = self.credentials()?;
        let unreachable = |error: io::Error| self.unreachable(error);
        let stream =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|e| self.unreachable(e))?;
        let stream = tls.connect(name, stream).await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(e))?;
        // Dropped with its task, also where the answer does not come in time.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let node = utf8_percent_encode(&self.node, NON_ALPHANUMERIC);
        let request = Request::get(format!("/api/v1/nodes/{node}"))
            .header(HOST, self.address())
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, token)
            .body(Empty::<Bytes>::new())
            .map_err(|e| self.unreachable(e))?;
        let answer = sender.send_request(request).await.map_err(|e| self.unreachable(e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| self.unreachable(e))?.to_bytes();
        if status != StatusCode::OK {
            let Failure { message } = serde_json::from_slice(&body).unwrap_or_default();
            return Err(NodeError::Refused { node: self.node.clone(), status, message });
        }
        serde_json::from_slice(&body)
            .map_err(|e| NodeError::NoNode { address: self.address(), reason: e.to_string() })
    }

    /// What the service account has: the header that shows its token, and TLS that trusts its authority alone.
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
            .map_err(|_| failed("it holds no token".into()))?;
        header.set_sensitive(true);
        let files = ClientFiles { ca: Some(Source::File(ca.clone())), identity: None };
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
    fn sources_are_written_as_on_the_command_line() {
        assert_eq!("external-ip".parse(), Ok(AddressSource::ExternalIp));
        let annotation = AddressSource::Annotation("aspia-relay/address".into());
        assert_eq!("annotation=aspia-relay/address".parse(), Ok(annotation));
        assert_eq!("label=a=b".parse(), Ok(AddressSource::Label("a=b".into())));
        for wrong in ["", "internal-ip", "annotation", "annotation=", "label", "External-IP"] {
            assert!(wrong.parse::<AddressSource>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_reason_is_reported_once_in_a_while() {
        let mut reported = Reported::new(Duration::from_secs(60));
        let begin = Instant::now();
        let mut lines = 0;
        // Two reasons in turn, every 5 s for ten minutes.
        for question in 0..120_u64 {
            let now = begin + Duration::from_secs(5 * question);
            let reason = if question % 2 == 0 { "no annotation" } else { "no answer" };
            lines += usize::from(reported.is_news(reason.to_owned(), now));
        }
        assert_eq!(lines, 2 * 10);
        assert!(reported.is_news("another".to_owned(), begin + Duration::from_secs(600)));
    }

    #[test]
    fn each_refusal_has_its_own_remedy() {
        for (status, part) in [
            (StatusCode::UNAUTHORIZED, "token"),
            (StatusCode::FORBIDDEN, "rbac.create"),
            (StatusCode::NOT_FOUND, "spec.nodeName"),
        ] {
            let message = String::new();
            let error = NodeError::Refused { node: "node-1".to_owned(), status, message };
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(remedy(StatusCode::SERVICE_UNAVAILABLE), "");
    }

    #[test]
    fn a_pod_says_where_its_cluster_is() {
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
