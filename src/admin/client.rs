//! Asks the relay that runs here; for `--healthcheck` and the doctor.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::Probe;
use crate::config::Config;
use crate::config::parse::{ListenAddress, Token};
use crate::config::sources::Sources;

#[cfg(target_os = "linux")]
use super::instance::{self, Identity, InstanceName};
#[cfg(target_os = "linux")]
use super::local;

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer taken, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

impl Probe {
    /// What is asked for.
    fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
        }
    }
}

/// Asks the relay that runs here whether it works, or is ready. It is found by what is in force; only where no relay has
/// published itself, by `config`, which says why where there is none.
///
/// # Errors
/// What is wrong and what to do.
pub async fn healthcheck(
    sources: &Sources,
    config: Result<&Config, String>,
    probe: Probe,
) -> Result<(), String> {
    if let Some(relay) = Relay::find(sources, config.as_ref().ok().copied()).await {
        let (status, body) = relay.ask(probe.path()).await?;
        return judge(probe, status, &body, &relay);
    }
    let config = config.map_err(|why| {
        format!(
            "no relay, or more than one, that was started with {} runs here, and where the one that is meant may listen is not \
             known: {why}",
            sources.path.display()
        )
    })?;
    match (config.startup.admin_listen, probe) {
        (Some(admin), _) => {
            let address = admin.local();
            let (status, body) = ask(address, probe.path(), None).await?;
            judge(probe, status, &body, &address)
        }
        (None, Probe::Live) => {
            let interface = config.startup.listen_interface;
            let port = config.startup.listen_port;
            let peers = ListenAddress { interface, port }.local();
            connect(peers).await.map(drop)
        }
        (None, Probe::Ready) => Err(
            "whether the relay is ready cannot be asked: AdminListen is off, and no relay is found here by its socket"
                .into(),
        ),
    }
}

fn judge(
    probe: Probe,
    status: StatusCode,
    body: &[u8],
    who: &dyn std::fmt::Display,
) -> Result<(), String> {
    if status == StatusCode::OK {
        return Ok(());
    }
    let missing = serde_json::from_slice::<Value>(body).ok().and_then(|answer| {
        let missing = answer["missing"].as_array()?.iter().filter_map(Value::as_str);
        Some(missing.collect::<Vec<_>>().join(", "))
    });
    match (probe, missing) {
        (Probe::Ready, Some(missing)) => Err(format!("{who} is not ready: {missing}")),
        _ => Err(format!(
            "{who} answers {status} to {}; is it an aspia_relay that listens on AdminListen?",
            probe.path()
        )),
    }
}

/// A relay that has published itself.
#[derive(Debug)]
pub struct Relay {
    #[cfg(target_os = "linux")]
    name: InstanceName,
}

impl std::fmt::Display for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the relay that runs here")
    }
}

#[cfg(target_os = "linux")]
impl Relay {
    /// Finds the relay that `sources` are of, if one runs in this network and PID namespace. `config` is what they say now,
    /// where that can be read; it only decides between several.
    pub async fn find(sources: &Sources, config: Option<&Config>) -> Option<Self> {
        let port = config.map(|config| config.startup.listen_port);
        let mut meant = Identity::of_process(sources).select(instance::list(), port);
        if meant.len() > 1 {
            // Any user can take such a name: those of root and of this user count first.
            let mut trusted = Vec::new();
            for name in meant {
                if is_trusted(&name).await {
                    trusted.push(name);
                }
            }
            meant = trusted;
        }
        match (meant.pop(), meant.is_empty()) {
            (Some(name), true) => Some(Self { name }),
            _ => None,
        }
    }

    /// Asks it for `path`, which needs no token.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn ask(&self, path: &str) -> Result<(StatusCode, Bytes), String> {
        let asked = async {
            let stream = local::connect(&self.name)
                .await
                .map_err(|error| format!("{self} cannot be connected to: {error}"))?;
            let answer = exchange(stream, "localhost", path, None).await;
            answer.map_err(|error| format!("{self} does not answer: {error}"))
        };
        let late = |_| format!("{self} does not answer within {} s", PATIENCE.as_secs());
        timeout(PATIENCE, asked).await.map_err(late)?
    }
}

#[cfg(target_os = "linux")]
async fn is_trusted(name: &InstanceName) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let owner = local::connect(name).await.and_then(|stream| stream.peer_cred());
    owner.is_ok_and(|owner| [0, own].contains(&owner.uid()))
}

#[cfg(not(target_os = "linux"))]
impl Relay {
    /// Finds the relay that `sources` are of: here none publishes itself.
    pub async fn find(_sources: &Sources, _config: Option<&Config>) -> Option<Self> {
        None
    }

    /// Asks it for `path`.
    ///
    /// # Errors
    /// Always: there is none.
    pub async fn ask(&self, _path: &str) -> Result<(StatusCode, Bytes), String> {
        Err("no relay publishes itself on this system".into())
    }
}

/// Asks the admin listener at `address` for `path`, with the token where one is given.
///
/// # Errors
/// Why there is no answer and what to do.
pub async fn ask(
    address: SocketAddr,
    path: &str,
    token: Option<&Token>,
) -> Result<(StatusCode, Bytes), String> {
    let stream = connect(address).await?;
    let host = address.to_string();
    let asked = exchange(stream, &host, path, token);
    let answer = timeout(PATIENCE, asked)
        .await
        .map_err(|_| format!("{address} does not answer within {} s", PATIENCE.as_secs()))?;
    answer.map_err(|_| {
        format!(
            "{address} does not answer in HTTP; is it an aspia_relay that listens on AdminListen?"
        )
    })
}

/// Sends one request and reads its answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
    token: Option<&Token>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let mut request = Request::get(path).header(HOST, host);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut answer = pin!(async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await?;
        Ok((status, body.to_bytes()))
    });
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            // It may have ended with the answer.
            answer.await
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!(
            "cannot connect to {address}: {error}; does the relay run, with the same configuration?"
        )),
        Err(_) => Err(format!("cannot connect to {address} within {} s", PATIENCE.as_secs())),
    }
}
