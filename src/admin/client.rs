//! The HTTP client of commands that query or control a running relay: `--healthcheck`, the doctor, `--status` and the like.

use std::net::SocketAddr;
#[cfg(target_os = "linux")]
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::Probe;
use crate::config::Config;
use crate::config::parse::{ListenAddress, Token};
use crate::config::sources::Sources;
use crate::listen::port_holder::{self, SocketOwner};

#[cfg(target_os = "linux")]
use super::command_socket;
#[cfg(target_os = "linux")]
use super::instance::{self, InstanceIdentity, InstanceName};

use super::status::Readiness;

/// How long to wait for a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is accepted, in bytes: more than a page of [`SESSIONS_PER_PAGE`] sessions with the longest
/// texts that a Router can give them.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// How many sessions a command asks for at once.
pub const SESSIONS_PER_PAGE: usize = 1000;

/// A request of a command.
#[derive(Debug, Clone)]
pub struct AdminRequest {
    method: Method,
    path: String,
    /// A JSON text, or nothing.
    body: String,
    timeout: Duration,
}

impl AdminRequest {
    /// `GET path`.
    pub fn get(path: &str) -> Self {
        let path = path.to_owned();
        Self { method: Method::GET, path, body: String::new(), timeout: TIMEOUT }
    }

    /// `POST path` without a body.
    pub fn post(path: &str) -> Self {
        Self { method: Method::POST, ..Self::get(path) }
    }

    /// `DELETE path`.
    pub fn delete(path: &str) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    /// `PUT path` with a JSON body.
    pub fn put(path: &str, body: &serde_json::Value) -> Self {
        Self { method: Method::PUT, body: body.to_string(), ..Self::get(path) }
    }

    /// Waits so long for the answer.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
        }
    }
}

/// Asks the relay on this machine whether it works, or is ready. The relay is found by its command socket. The
/// configuration is read (by `load`) only if not exactly one relay has published itself, because reading a file may
/// hang, even if the relay is healthy.
///
/// # Errors
/// What is wrong and what to do about it.
pub async fn check_health(
    sources: &Sources,
    load: impl FnOnce() -> Result<Config, String> + Send + 'static,
    probe: Probe,
) -> Result<(), String> {
    if let Some(relay) = LocalRelay::find(sources, None).await {
        return check_local_relay(&relay, probe).await;
    }
    let config = run_bounded(load).await.and_then(|loaded| loaded).map_err(|why| {
        format!(
            "cannot find the relay: not exactly one that was started with {} runs here as root or as this user, and the \
             configuration, which says where the relay listens, cannot be read: {why}",
            sources.path.display()
        )
    })?;
    if let Some(relay) = LocalRelay::find(sources, Some(&config)).await {
        return check_local_relay(&relay, probe).await;
    }
    match (config.startup.admin_listen, probe) {
        (Some(admin), _) => {
            let address = admin.local();
            let (status, body) = ask(address, probe.path(), None).await?;
            check_answer(probe, status, &body, &address)
        }
        (None, Probe::Live) => {
            let interface = config.startup.listen_interface;
            let port = config.startup.listen_port;
            let peers = ListenAddress { interface, port }.local();
            connect(peers).await.map(drop)
        }
        (None, Probe::Ready) => Err(
            "cannot ask whether the relay is ready: AdminListen is off, and no relay was found by its command socket"
                .into(),
        ),
    }
}

async fn check_local_relay(relay: &LocalRelay, probe: Probe) -> Result<(), String> {
    let (status, body) = relay.ask(probe.path()).await?;
    check_answer(probe, status, &body, relay)
}

/// Runs `read`, which may block for ever on a file, in a thread of its own, and waits for it only for a limited time.
///
/// # Errors
/// Says that it did not complete in time, or that it panicked.
pub async fn run_bounded<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    match timeout(TIMEOUT, tokio::task::spawn_blocking(read)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("the configuration could not be read: {error}")),
        Err(_) => Err(format!(
            "the configuration could not be read within {} s: the file, or one that it or a variable names, is on a volume \
             that does not answer, or is not a regular file",
            TIMEOUT.as_secs()
        )),
    }
}

fn check_answer(
    probe: Probe,
    status: StatusCode,
    body: &[u8],
    who: &dyn std::fmt::Display,
) -> Result<(), String> {
    if status == StatusCode::OK {
        return Ok(());
    }
    match (probe, serde_json::from_slice::<Readiness>(body)) {
        (Probe::Ready, Ok(Readiness { missing, .. })) => {
            Err(format!("{who} is not ready: {}", missing.join(", ")))
        }
        _ => Err(format!(
            "{who} answers {status} to {}; is it an aspia_relay that listens on AdminListen?",
            probe.path()
        )),
    }
}

/// A relay that has published itself on this machine.
#[derive(Debug)]
pub struct LocalRelay {
    #[cfg(target_os = "linux")]
    name: InstanceName,
    /// The user that the relay runs as.
    #[cfg(target_os = "linux")]
    user: u32,
}

impl std::fmt::Display for LocalRelay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the relay that runs here")
    }
}

#[cfg(target_os = "linux")]
impl LocalRelay {
    /// Finds the relay that was started with `sources`, in this network and PID namespace. If no file was named and
    /// there is none at the default path, this is the only relay that runs here, whatever its file. `config` is the
    /// configuration as it is now, if that has been read; it only decides between several relays.
    pub async fn find(sources: &Sources, config: Option<&Config>) -> Option<Self> {
        let mut relays = Self::find_all(sources, config).await;
        let relay = relays.pop();
        relay.filter(|_| relays.is_empty())
    }

    /// Finds all relays that [`find`](Self::find) would have to choose from.
    pub async fn find_all(sources: &Sources, config: Option<&Config>) -> Vec<Self> {
        let mut trusted = Self::list(sources).await;
        let names: Vec<_> = trusted.iter().map(|relay| relay.name.clone()).collect();
        let port = config.map(|config| config.startup.listen_port);
        let mut meant = InstanceIdentity::of_process(sources).select(&names, port);
        if meant.is_empty() && !sources.is_path_explicit && is_absent(&sources.path).await {
            meant = names;
        }
        trusted.retain(|relay| meant.contains(&relay.name));
        if trusted.len() > 1 && trusted.iter().any(|relay| relay.owner() == SocketOwner::Trusted) {
            trusted.retain(|relay| relay.owner() == SocketOwner::Trusted);
        }
        trusted
    }

    /// Lists all relays here that can be trusted, whatever their configuration file.
    pub async fn list(sources: &Sources) -> Vec<Self> {
        let mut trusted = Vec::new();
        for name in InstanceIdentity::of_process(sources).retain_local(instance::list()) {
            if let Some(user) = find_trusted_user(&name).await {
                trusted.push(Self { name, user });
            }
        }
        trusted
    }

    /// The port on which the relay listens for peers.
    pub fn port(&self) -> u16 {
        self.name.port
    }

    /// The users as whom relays run here that were started with `sources`, but that cannot be trusted.
    pub async fn find_other_users(sources: &Sources) -> Vec<u32> {
        let identity = InstanceIdentity::of_process(sources);
        let mut others = Vec::new();
        for name in identity.retain_local(instance::list()) {
            if find_trusted_user(&name).await.is_none()
                && let Ok(stream) = command_socket::connect(&name).await
                && let Ok(owner) = stream.peer_cred()
            {
                others.push((name, owner.uid()));
            }
        }
        let names: Vec<_> = others.iter().map(|(name, _)| name.clone()).collect();
        let mut meant = identity.select(&names, None);
        if meant.is_empty() && !sources.is_path_explicit && is_absent(&sources.path).await {
            meant = names;
        }
        others.retain(|(name, _)| meant.contains(name));
        let mut users: Vec<_> = others.into_iter().map(|(_, user)| user).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Says whether the owner of the process is trusted.
    pub fn owner(&self) -> SocketOwner {
        SocketOwner::of(self.user)
    }

    /// Requests `path`.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn ask(&self, path: &str) -> Result<(StatusCode, Bytes), String> {
        self.send(&AdminRequest::get(path)).await
    }

    /// Sends a request, which needs no token here.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(&self, request: &AdminRequest) -> Result<(StatusCode, Bytes), String> {
        let asked = async {
            let stream = command_socket::connect(&self.name)
                .await
                .map_err(|error| format!("cannot connect to {self}: {error}"))?;
            // Once the relay has ended, any user may take its name.
            if stream.peer_cred().ok().map(|owner| owner.uid()) != Some(self.user) {
                return Err(format!("{self} has ended"));
            }
            let answer = exchange(stream, "localhost", request, None).await;
            answer.map_err(|error| format!("{self} does not answer: {error}"))
        };
        let late = |_| format!("{self} does not answer within {} s", request.timeout.as_secs());
        timeout(request.timeout, asked).await.map_err(late)?
    }
}

/// The user who published a relay, if that is root or this user. Any other user can take such a name, too, and answer
/// like a relay. Root also trusts the process that holds the claimed port for peers, because relays run as users of
/// their own.
#[cfg(target_os = "linux")]
async fn find_trusted_user(name: &InstanceName) -> Option<u32> {
    let owner = command_socket::connect(name).await.and_then(|stream| stream.peer_cred()).ok()?;
    let holds_port = || {
        rustix::process::geteuid().is_root()
            && port_holder::find(name.port).iter().any(|holder| Some(holder.pid) == owner.pid())
    };
    (SocketOwner::of(owner.uid()) == SocketOwner::Trusted || holds_port()).then_some(owner.uid())
}

/// Whether it is certain that there is no such file.
#[cfg(target_os = "linux")]
async fn is_absent(path: &Path) -> bool {
    let path = path.to_owned();
    run_bounded(move || path.try_exists().is_ok_and(|exists| !exists)).await.unwrap_or(false)
}

#[cfg(not(target_os = "linux"))]
impl LocalRelay {
    /// Finds the relay that was started with `sources`. On this system none publishes itself.
    pub async fn find(_sources: &Sources, _config: Option<&Config>) -> Option<Self> {
        None
    }

    /// Lists all relays; on this system none publishes itself.
    pub async fn list(_sources: &Sources) -> Vec<Self> {
        Vec::new()
    }

    /// The port on which the relay listens for peers.
    pub fn port(&self) -> u16 {
        0
    }

    /// Finds all relays; on this system none publishes itself.
    pub async fn find_all(_sources: &Sources, _config: Option<&Config>) -> Vec<Self> {
        Vec::new()
    }

    /// The users as whom other relays run, which are not known on this system.
    pub async fn find_other_users(_sources: &Sources) -> Vec<u32> {
        Vec::new()
    }

    /// The owner of the process is not known on this system.
    pub fn owner(&self) -> SocketOwner {
        SocketOwner::Unseen
    }

    /// Requests `path`.
    ///
    /// # Errors
    /// Always fails, since no relay publishes itself on this system.
    pub async fn ask(&self, path: &str) -> Result<(StatusCode, Bytes), String> {
        self.send(&AdminRequest::get(path)).await
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Always fails, since no relay publishes itself on this system.
    pub async fn send(&self, _request: &AdminRequest) -> Result<(StatusCode, Bytes), String> {
        Err("no relay publishes itself on this system".into())
    }
}

/// Requests `path` from the admin listener at `address`, with `token` if there is one.
///
/// # Errors
/// Why there is no answer and what to do about it.
pub async fn ask(
    address: SocketAddr,
    path: &str,
    token: Option<&Token>,
) -> Result<(StatusCode, Bytes), String> {
    send(address, &AdminRequest::get(path), token).await
}

/// Sends a request to the admin listener at `address`, with `token` if there is one.
///
/// # Errors
/// Why there is no answer and what to do about it.
pub async fn send(
    address: SocketAddr,
    request: &AdminRequest,
    token: Option<&Token>,
) -> Result<(StatusCode, Bytes), String> {
    let stream = connect(address).await?;
    let host = address.to_string();
    let asked = exchange(stream, &host, request, token);
    let answer = timeout(request.timeout, asked)
        .await
        .map_err(|_| format!("{address} does not answer within {} s", request.timeout.as_secs()))?;
    answer.map_err(|_| {
        format!(
            "{address} does not answer in HTTP; is it an aspia_relay that listens on AdminListen?"
        )
    })
}

/// Sends one request and reads the response.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    request: &AdminRequest,
    token: Option<&Token>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let AdminRequest { method, path, body, .. } = request.clone();
    let mut head = Request::builder().method(method).uri(path).header(HOST, host);
    if let Some(token) = token {
        head = head.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    if !body.is_empty() {
        head = head.header(CONTENT_TYPE, "application/json");
    }
    let request = head.body(Full::new(Bytes::from(body)))?;
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
            // The connection may have ended with the response.
            answer.await
        }
    }
}

/// The owner of the sockets at `address`, to decide whether a token may be sent there. `publisher` is the owner of the
/// relay that names the address, if one does: a trusted one does not make another user who holds the port trusted. Ask
/// as late as possible, since the port may change hands.
pub fn find_token_recipient(address: SocketAddr, publisher: Option<SocketOwner>) -> SocketOwner {
    let other = publisher.filter(|owner| *owner != SocketOwner::Trusted);
    other.unwrap_or_else(|| port_holder::find_owner(address))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    match timeout(TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!(
            "cannot connect to {address}: {error}; does the relay run, with the same configuration?"
        )),
        Err(_) => Err(format!("cannot connect to {address} within {} s", TIMEOUT.as_secs())),
    }
}
