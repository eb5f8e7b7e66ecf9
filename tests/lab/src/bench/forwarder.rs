//! Forwarders: processes with equivalent configurations, which end when they are dropped.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aspia_relay::config::settings::variable;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::namespace::{self, Namespace};
use crate::port::free_port;
use crate::router::{LabRouter, Options};

use super::{Baseline, Who};

/// Longest wait for a program, a connection or a pairing.
const PATIENCE: Duration = Duration::from_secs(20);
/// Length of the token by which the two ends of a session recognise each other.
pub(super) const TOKEN: usize = 8;
/// Sessions that are opened at the same time.
const OPENING: usize = 64;
/// Path of nginx's stream module in Debian.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Checks whether a baseline is installed; the error says what is missing.
pub(super) fn program(baseline: Baseline) -> Result<(), String> {
    let needed = match baseline {
        Baseline::Haproxy | Baseline::HaproxySplice => ["/usr/sbin/haproxy"].as_slice(),
        Baseline::Nginx => &["/usr/sbin/nginx", NGINX_STREAM],
        Baseline::Copy | Baseline::Floor | Baseline::Direct => &[],
    };
    match needed.iter().find(|path| !Path::new(path).exists()) {
        Some(missing) => Err(format!(
            "{baseline:?}: {missing} is missing (on Debian: apt install haproxy nginx libnginx-mod-stream)"
        )),
        None => Ok(()),
    }
}

/// The environment in which forwarders run, one at a time.
#[derive(Debug)]
pub(super) struct Lab {
    directory: PathBuf,
    environment: Vec<(String, String)>,
    count: AtomicU64,
    /// The forwarders' namespace, if it is not that of the peers.
    namespace: Option<Namespace>,
}

impl Lab {
    /// With these variables for the relays; over virtual Ethernet devices or over loopback.
    pub(super) fn new(environment: Vec<(String, String)>, veth: bool) -> io::Result<Self> {
        let directory =
            std::env::temp_dir().join(format!("relay-lab-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let namespace = if veth { Some(Namespace::new()?) } else { None };
        Ok(Self { directory, environment, count: AtomicU64::new(0), namespace })
    }

    /// The addresses of the peers and of the forwarder.
    fn addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        match self.namespace {
            Some(_) => (namespace::PEERS, namespace::FORWARDER),
            None => (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
        }
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        }
    }

    /// The command that starts a relay at `path` with room for `sessions`, which peers reach at `front`.
    fn relay(
        &self,
        path: &Path,
        router: &LabRouter,
        front: SocketAddr,
        sessions: usize,
    ) -> Command {
        let connections = sessions + 500;
        let mut command = self.command(path);
        for (key, value) in [
            ("RouterAddress", router.address().ip().to_string()),
            ("RouterPort", router.address().port().to_string()),
            ("RouterPublicKey", router.public_key().to_string()),
            ("PeerAddress", front.ip().to_string()),
            ("PeerPort", front.port().to_string()),
            ("ListenInterface", front.ip().to_string()),
            ("AdminListen", "off".to_owned()),
            ("MaxPeerCount", (sessions + 100).to_string()),
            ("MaxPendingPeers", connections.to_string()),
            // All peers connect from the same address.
            ("MaxPendingPeersPerAddress", connections.to_string()),
            ("PeerConnectRate", "0".to_owned()),
            ("PeerIdleTimeout", "60".to_owned()),
        ] {
            command.env(variable(key), value);
        }
        command.env("ASPIA_LOG_TO_STDOUT", "0").envs(self.environment.iter().cloned());
        command
    }

    /// Starts a forwarder with a capacity of so many sessions.
    pub(super) async fn start(&self, who: &Who, sessions: usize) -> io::Result<Forwarder> {
        let (peers, there) = self.addresses();
        let far = FarEnd::listen(peers).await?;
        let front: SocketAddr = (there, free_port()?).into();
        let file = self.directory.join(self.count.fetch_add(1, Ordering::Relaxed).to_string());
        let connections = sessions + 500;
        let (command, route) = match who {
            Who::Baseline(Baseline::Direct) => (None, Route::Through(far.address)),
            Who::Baseline(baseline @ (Baseline::Copy | Baseline::Floor)) => {
                let is_floor = *baseline == Baseline::Floor;
                let name = if is_floor { "bench-floor" } else { "bench-copy" };
                let mut command = self.command(std::env::current_exe()?);
                command.args([name, &front.to_string(), &far.address.to_string()]);
                (Some(command), Route::Through(front))
            }
            Who::Baseline(baseline @ (Baseline::Haproxy | Baseline::HaproxySplice)) => {
                let splice = *baseline == Baseline::HaproxySplice;
                std::fs::write(&file, haproxy(front, far.address, connections, splice))?;
                let mut command = self.command("/usr/sbin/haproxy");
                command.arg("-db").arg("-q").arg("-f").arg(&file);
                (Some(command), Route::Through(front))
            }
            Who::Baseline(Baseline::Nginx) => {
                std::fs::write(&file, nginx(front, far.address, connections))?;
                let mut command = self.command("/usr/sbin/nginx");
                command.arg("-p").arg(&self.directory).arg("-c").arg(&file);
                command.args(["-g", "daemon off; error_log stderr emerg;"]);
                (Some(command), Route::Through(front))
            }
            Who::Ours(_, path) => {
                let options = Options { listen: (peers, 0).into(), ..Options::default() };
                let router = LabRouter::start(options).await?;
                let command = self.relay(path, &router, front, sessions);
                (Some(command), Route::Pairing(Box::new(router)))
            }
        };
        let child = command
            .map(|mut command| {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
            })
            .transpose()
            .map_err(|error| io::Error::other(format!("{} does not start: {error}", who.name())))?;
        let pids = child.as_ref().map(Child::id).into_iter().collect();
        let forwarder = Forwarder { child, pids, route, far, tokens: AtomicU64::new(1) };
        let first = async {
            while forwarder.open().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, first).await.map_err(|_| {
            io::Error::other(format!("{} forwards nothing within {PATIENCE:?}", who.name()))
        })?;
        Ok(forwarder)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Left behind if it cannot be removed; it holds no secret.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn haproxy(front: SocketAddr, to: SocketAddr, connections: usize, splice: bool) -> String {
    let option = if splice { "option splice-auto" } else { "" };
    format!(
        "global\n    maxconn {connections}\n    {maxpipes}\ndefaults\n    mode tcp\n    {option}\n    \
         timeout connect 10s\n    timeout client 1h\n    timeout server 1h\n\
         listen bench\n    bind {front}\n    maxconn {connections}\n    server far {to}\n",
        maxpipes = if splice { "maxpipes 256" } else { "" },
    )
}

fn nginx(front: SocketAddr, to: SocketAddr, connections: usize) -> String {
    let connections = 2 * connections;
    format!(
        "load_module {NGINX_STREAM};\nworker_processes auto;\npid bench.pid;\nevents {{ worker_connections {connections}; }}\n\
         stream {{\n    server {{\n        listen {front};\n        proxy_pass {to};\n        proxy_timeout 1h;\n        \
         tcp_nodelay on;\n    }}\n}}\n"
    )
}

/// How the two ends of a session connect.
enum Route {
    /// The client dials this address, and the forwarder dials the far end.
    Through(SocketAddr),
    /// The Router introduces both, and they dial the relay.
    Pairing(Box<LabRouter>),
}

/// A running forwarder.
pub(super) struct Forwarder {
    child: Option<Child>,
    pids: Vec<u32>,
    route: Route,
    far: FarEnd,
    tokens: AtomicU64,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SIGTERM first: nginx's workers outlive a master that is killed.
            #[cfg(unix)]
            if let Some(pid) =
                i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                std::thread::sleep(Duration::from_millis(100));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Forwarder {
    pub(super) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// Whether it is a relay, which pairs peers.
    pub(super) fn pairs(&self) -> bool {
        matches!(self.route, Route::Pairing(_))
    }

    /// Whether there is a process to measure, which a direct connection has not.
    pub(super) fn is_there(&self) -> bool {
        self.child.is_some()
    }

    /// Opens a session. Returns the ends of the client and the host after the first bytes have passed.
    pub(super) async fn open(&self) -> io::Result<(TcpStream, TcpStream)> {
        self.open_with(TOKEN).await
    }

    /// Opens a session whose client has sent `bytes` bytes at once. They begin with the token of the session, and the host has
    /// not read the rest.
    pub(super) async fn open_with(&self, bytes: usize) -> io::Result<(TcpStream, TcpStream)> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "a session did not open in time");
        timeout(PATIENCE, self.open_unbounded(bytes)).await.map_err(late)?
    }

    async fn open_unbounded(&self, bytes: usize) -> io::Result<(TcpStream, TcpStream)> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let mut message = vec![7; bytes.max(TOKEN)];
        message[..TOKEN].copy_from_slice(&token.to_be_bytes());
        match &self.route {
            Route::Through(front) => {
                let host = self.far.expect(token);
                let socket = TcpSocket::new_v4()?;
                if front.ip().is_loopback() {
                    // One address would run out of ports.
                    let from = u8::try_from(token % 200).unwrap_or(0) + 2;
                    socket.bind((Ipv4Addr::new(127, 0, 0, from), 0).into())?;
                }
                let mut client = socket.connect(*front).await?;
                client.set_nodelay(true)?;
                client.write_all(&message).await?;
                let host = host.await.map_err(io::Error::other)?;
                Ok((client, host))
            }
            Route::Pairing(router) => {
                let (mut client, mut host) = router.introduce().await?.connect_both().await?;
                client.write_all(&message).await?;
                let mut seen = [0; TOKEN];
                host.read_exact(&mut seen).await?;
                if seen != token.to_be_bytes() {
                    return Err(io::Error::other("the wrong peers were paired"));
                }
                Ok((client, host))
            }
        }
    }

    /// Connects peers that wait for a partner.
    pub(super) async fn open_waiting(&self, count: usize) -> io::Result<Vec<TcpStream>> {
        let Route::Pairing(router) = &self.route else {
            return Err(io::Error::other("a proxy has no peers that wait for a partner"));
        };
        let mut waiting = Vec::with_capacity(count);
        for _ in 0..count {
            waiting.push(router.introduce().await?.connect().await?);
        }
        Ok(waiting)
    }

    /// Opens many sessions, some at a time.
    pub(super) async fn open_many(
        self: &Arc<Self>,
        count: usize,
    ) -> io::Result<Vec<(TcpStream, TcpStream)>> {
        let (mut opening, mut open) = (JoinSet::new(), Vec::with_capacity(count));
        for _ in 0..count {
            if opening.len() >= OPENING
                && let Some(done) = opening.join_next().await
            {
                open.push(done.map_err(io::Error::other)??);
            }
            let forwarder = self.clone();
            opening.spawn(async move { forwarder.open().await });
        }
        while let Some(done) = opening.join_next().await {
            open.push(done.map_err(io::Error::other)??);
        }
        Ok(open)
    }
}

type Expected = Arc<Mutex<HashMap<u64, oneshot::Sender<TcpStream>>>>;

/// The listening end behind a proxy. It recognises connections by their first eight bytes.
#[derive(Debug)]
struct FarEnd {
    address: SocketAddr,
    expected: Expected,
    task: AbortHandle,
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FarEnd {
    async fn listen(address: Ipv4Addr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((address, 0).into())?;
        let listener = socket.listen(4096)?;
        let (address, expected) = (listener.local_addr()?, Expected::default());
        let task = tokio::spawn(Self::accept(listener, expected.clone())).abort_handle();
        Ok(Self { address, expected, task })
    }

    async fn accept(listener: TcpListener, expected: Expected) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let expected = expected.clone();
            tokio::spawn(async move {
                let mut token = [0; TOKEN];
                if stream.set_nodelay(true).is_ok() && stream.read_exact(&mut token).await.is_ok() {
                    let token = u64::from_be_bytes(token);
                    let waiter = expected.lock().remove(&token);
                    // A connection that arrives too late has no waiter any more.
                    let _ = waiter.map(|waiter| waiter.send(stream));
                }
            });
        }
    }

    fn expect(&self, token: u64) -> oneshot::Receiver<TcpStream> {
        let (waiter, stream) = oneshot::channel();
        self.expected.lock().insert(token, waiter);
        stream
    }
}
