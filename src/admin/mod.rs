//! HTTP: the admin listener, the metrics listener, and the command socket.
//!
//! Everything that a caller can use up is bounded: the number of connections and their lifetime, the size of a request's
//! head and body, and the time in which each must arrive.

pub mod certificates;
pub mod client;
#[cfg(target_os = "linux")]
pub mod command_socket;
mod connection;
mod connections;
mod flushing;
mod gather;
mod greeting;
mod guard;
mod history;
pub mod instance;
pub mod listener;
mod page;
pub mod reload;
mod response;
mod routes;
pub mod sessions;
pub mod status;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::handle::Handle;
use crate::listen::accept::{AcceptDecision, AcceptStatus, accept};
use crate::listen::acceptor::Acceptor;
use crate::log::limit::LineLimit;
use crate::wire::foreign::ForeignProtocol;

use certificates::Certificates;
use connection::{FIRST_HEAD_TIMEOUT, LAST_REQUEST_TIMEOUT};
use connections::{ConnectionPermit, Connections};
use gather::GatherGate;
use history::History;
use listener::{Endpoint, HttpListener};
use routes::Routes;

/// Time in which a TLS handshake must complete.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of log lines about callers that are not served, and the period in which they are counted. The next
/// line says how many were left out.
const CALLER_LINES: (NonZero<u32>, Duration) =
    (NonZero::new(10).expect("it is not 0"), Duration::from_secs(60));

/// Serves HTTP on the listeners of a relay; cheap to clone.
#[derive(Clone)]
pub struct AdminServer {
    routes: Routes,
    certificates: Arc<Certificates>,
    caller_lines: Arc<LineLimit>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl AdminServer {
    /// Creates the server that shows and controls the relay of `handle`, until `stop` is cancelled.
    pub fn new(handle: Handle, certificates: Certificates, stop: CancellationToken) -> Self {
        let routes = Routes {
            handle,
            history: Arc::new(History::default()),
            metrics_gate: GatherGate::default(),
            status_gate: GatherGate::default(),
            list_gate: GatherGate::default(),
            warnings: Arc::new(LineLimit::new(CALLER_LINES.0, CALLER_LINES.1)),
            host_name: gethostname::gethostname().to_string_lossy().into(),
        };
        let certificates = Arc::new(certificates);
        let caller_lines = Arc::new(LineLimit::new(CALLER_LINES.0, CALLER_LINES.1));
        Self { routes, certificates, caller_lines, stop, tasks: TaskTracker::new() }
    }

    /// Serves until `stop` is cancelled; requests in progress then get a moment to complete.
    pub async fn run(&self, listeners: Vec<(HttpListener, Acceptor)>) {
        for (kind, listener) in listeners {
            let (this, stop) = (self.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                stop.run_until_cancelled(this.accept(kind, &listener)).await;
            });
        }
        let (certificates, stop) = (self.certificates.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            stop.run_until_cancelled(certificates.keep_current()).await;
        });
        let history = self.routes.history.clone();
        self.stop.run_until_cancelled(history.keep_sampling(&self.routes.handle)).await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Serves commands on this machine in tasks of its own, until `stop` is cancelled.
    #[cfg(target_os = "linux")]
    pub fn serve_commands(&self, listener: std::os::unix::net::UnixListener) {
        let this = self.clone();
        let connections = command_socket::CommandConnections::new();
        let accept = command_socket::accept(listener, move |stream| {
            let caller = command_socket::identify_caller(&stream);
            let (this, permit) = (this.clone(), connections.admit(caller));
            let endpoint = Endpoint::CommandSocket(caller);
            this.tasks.clone().spawn(async move {
                tokio::select! {
                    biased;
                    () = this.serve_permitted(endpoint, stream, &permit) => {}
                    () = permit.evicted() => {}
                }
            });
        });
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(accept).await;
        });
    }

    /// Serves one connection over any stream; returns when the connection is closed.
    pub async fn serve(&self, kind: HttpListener, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let permit = Connections::default().admit(Ipv4Addr::LOCALHOST.into());
        self.serve_permitted(Endpoint::Listener(kind), stream, &permit).await;
    }

    async fn serve_permitted(
        &self,
        endpoint: Endpoint,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        permit: &ConnectionPermit,
    ) {
        connection::serve(stream, endpoint, self.routes.clone(), permit, self.stop.clone()).await;
    }

    /// Logs why a caller is not served. The number of lines is limited, since strangers may connect.
    fn log_unserved(&self, kind: HttpListener, address: SocketAddr, why: &dyn fmt::Display) {
        if self.caller_lines.allows() {
            let left_out = self.caller_lines.take_left_out();
            let listener = kind.purpose().address_setting;
            info!(%address, left_out, "a caller of {listener} is not served: {why}");
        }
    }

    async fn accept(&self, kind: HttpListener, listener: &Acceptor) {
        let connections = Connections::default();
        let accepting = AcceptStatus::default();
        accept(
            listener,
            kind.purpose().callers,
            &accepting,
            // A connection gets a turn before it can be evicted: a request that has arrived is answered, however many
            // connections wait behind it.
            || {
                if connections.is_full() {
                    AcceptDecision::YieldFirst
                } else {
                    AcceptDecision::Accept
                }
            },
            |stream, address| {
                let permit = connections.admit(address.ip());
                let this = self.clone();
                self.tasks.spawn(async move {
                    tokio::select! {
                        // A request that has arrived is answered.
                        biased;
                        () = this.serve_accepted(kind, stream, address, &permit) => {}
                        () = permit.evicted() => {
                            let why = "too many connections are open, and it was idle the longest";
                            this.log_unserved(kind, address, &why);
                        }
                    }
                });
            },
        )
        .await;
    }

    /// Serves an accepted connection until it ends: detects its protocol, completes the TLS handshake, and answers
    /// requests.
    async fn serve_accepted(
        &self,
        kind: HttpListener,
        stream: std::net::TcpStream,
        address: SocketAddr,
        permit: &ConnectionPermit,
    ) {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                self.log_unserved(
                    kind,
                    address,
                    &format_args!("it cannot be registered with the runtime: {error}"),
                );
                return;
            }
        };
        // This fails only on a connection that is closed already.
        let _ = stream.set_nodelay(true);
        let tls = match kind {
            HttpListener::Admin => None,
            HttpListener::Metrics => self.certificates.server_config(),
        };
        let limit = if tls.is_some() { TLS_TIMEOUT } else { FIRST_HEAD_TIMEOUT };
        let protocol = timeout(limit, greeting::detect_protocol(&stream));
        // When the relay stops, a request that has arrived is answered all the same.
        let protocol = self.stop.run_until_cancelled(protocol).await.unwrap_or(Ok(None));
        let why = match protocol {
            Ok(protocol) => protocol
                .and_then(|protocol| greeting::describe_mismatch(kind, tls.is_some(), protocol)),
            Err(_) if tls.is_some() => Some(describe_handshake_timeout()),
            Err(_) => return,
        };
        if let Some(why) = why {
            self.log_unserved(kind, address, &why);
            if matches!(protocol, Ok(Some(ForeignProtocol::Http))) {
                let _ = timeout(LAST_REQUEST_TIMEOUT, greeting::respond_tls_required(stream)).await;
            }
            return;
        }
        let Some(tls) = tls else {
            return self.serve_permitted(Endpoint::Listener(kind), stream, permit).await;
        };
        let handshake = timeout(TLS_TIMEOUT, TlsAcceptor::from(tls).accept(stream));
        match self.stop.run_until_cancelled(handshake).await {
            None => {}
            Some(Ok(Ok(stream))) => {
                self.serve_permitted(Endpoint::Listener(kind), stream, permit).await;
            }
            Some(Ok(Err(error))) => {
                let why = format!("its TLS handshake failed: {error}");
                self.log_unserved(kind, address, &why);
            }
            Some(Err(_)) => self.log_unserved(kind, address, &describe_handshake_timeout()),
        }
    }
}

fn describe_handshake_timeout() -> String {
    format!("its TLS handshake did not complete within {} s", TLS_TIMEOUT.as_secs())
}
