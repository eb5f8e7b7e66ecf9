//! Asks the relay that runs here; for `--healthcheck` and the doctor.

use std::net::SocketAddr;
#[cfg(target_os = "linux")]
use std::path::Path;
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
use crate::listen::port_holder::Owner;

#[cfg(target_os = "linux")]
use super::instance::{self, Identity, InstanceName};
#[cfg(target_os = "linux")]
use super::local;
#[cfg(target_os = "linux")]
use crate::listen::port_holder;

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
/// published itself, or several have, by the configuration that `load` reads: files may hang, also those of a healthy relay.
///
/// # Errors
/// What is wrong and what to do.
pub async fn healthcheck(
    sources: &Sources,
    load: impl FnOnce() -> Result<Config, String> + Send + 'static,
    probe: Probe,
) -> Result<(), String> {
    if let Some(relay) = Relay::find(sources, None).await {
        return healthcheck_of(&relay, probe).await;
    }
    let config = bounded(load).await.and_then(|loaded| loaded).map_err(|why| {
        format!(
            "no relay, or more than one, that was started with {} runs here as root or this user, and where the one that is \
             meant may listen is not known: {why}",
            sources.path.display()
        )
    })?;
    if let Some(relay) = Relay::find(sources, Some(&config)).await {
        return healthcheck_of(&relay, probe).await;
    }
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

async fn healthcheck_of(relay: &Relay, probe: Probe) -> Result<(), String> {
    let (status, body) = relay.ask(probe.path()).await?;
    judge(probe, status, &body, relay)
}

/// Does something that files can hold up for ever, and waits for it for a while only.
///
/// # Errors
/// When it is not done by then.
pub async fn bounded<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    match timeout(PATIENCE, tokio::task::spawn_blocking(read)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("the configuration could not be read: {error}")),
        Err(_) => Err(format!(
            "the configuration could not be read within {} s: the file, or one that it or a variable names, is on a volume \
             that does not answer, or is no regular file",
            PATIENCE.as_secs()
        )),
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
    /// The user that it runs as.
    #[cfg(target_os = "linux")]
    user: u32,
}

impl std::fmt::Display for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the relay that runs here")
    }
}

#[cfg(target_os = "linux")]
impl Relay {
    /// Finds the relay that `sources` are of, if one runs in this network and PID namespace. Where nobody named a file and
    /// there is none at the usual path, that is the only relay that runs here, whatever its file. `config` is what they say
    /// now, where that has been read; it only decides between several.
    pub async fn find(sources: &Sources, config: Option<&Config>) -> Option<Self> {
        let identity = Identity::of_process(sources);
        let mut trusted = Vec::new();
        for name in identity.here(instance::list()) {
            if let Some(user) = trusted_user(&name).await {
                trusted.push(Self { name, user });
            }
        }
        let names: Vec<_> = trusted.iter().map(|relay| relay.name.clone()).collect();
        let port = config.map(|config| config.startup.listen_port);
        let mut meant = identity.select(&names, port);
        if meant.is_empty() && !sources.path_is_explicit && is_absent(&sources.path).await {
            meant = names;
        }
        trusted.retain(|relay| meant.contains(&relay.name));
        if trusted.len() > 1 && trusted.iter().any(|relay| relay.owner() == Owner::Trusted) {
            trusted.retain(|relay| relay.owner() == Owner::Trusted);
        }
        let relay = trusted.pop();
        relay.filter(|_| trusted.is_empty())
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        Owner::of(self.user)
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
            // When it has ended, anybody may take the name.
            if stream.peer_cred().ok().map(|owner| owner.uid()) != Some(self.user) {
                return Err(format!("{self} has ended"));
            }
            let answer = exchange(stream, "localhost", path, None).await;
            answer.map_err(|error| format!("{self} does not answer: {error}"))
        };
        let late = |_| format!("{self} does not answer within {} s", PATIENCE.as_secs());
        timeout(PATIENCE, asked).await.map_err(late)?
    }
}

/// The user who has published a relay, where that is root or this user. Any other can take such a name as well, and answer
/// as a relay does. Root believes also the process that holds the port of peers which it claims: relays have users of
/// their own.
#[cfg(target_os = "linux")]
async fn trusted_user(name: &InstanceName) -> Option<u32> {
    let owner = local::connect(name).await.and_then(|stream| stream.peer_cred()).ok()?;
    let holds_port = || {
        rustix::process::geteuid().is_root()
            && port_holder::find(name.port).iter().any(|holder| Some(holder.pid) == owner.pid())
    };
    (Owner::of(owner.uid()) == Owner::Trusted || holds_port()).then_some(owner.uid())
}

/// Whether there is surely no such file.
#[cfg(target_os = "linux")]
async fn is_absent(path: &Path) -> bool {
    let path = path.to_owned();
    bounded(move || path.try_exists().is_ok_and(|exists| !exists)).await.unwrap_or(false)
}

#[cfg(not(target_os = "linux"))]
impl Relay {
    /// Finds the relay that `sources` are of: here none publishes itself.
    pub async fn find(_sources: &Sources, _config: Option<&Config>) -> Option<Self> {
        None
    }

    /// Whose it is: that is not known.
    pub fn owner(&self) -> Owner {
        Owner::Unseen
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
