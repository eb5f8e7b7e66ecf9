//! HTTP: the admin listener, the metrics listener, and the socket of commands on this machine.
//!
//! Both are bounded in everything, so that whoever asks cannot hurt the relay: connections, the size of a head and of
//! a body, the time for each, the life of a connection.

pub mod certificates;
pub mod client;
mod connections;
mod flushing;
mod greeting;
mod guard;
mod history;
pub mod instance;
pub mod kind;
#[cfg(target_os = "linux")]
pub mod local;
mod page;
mod routes;
mod scrapes;
mod view;

use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::handle::Handle;
use crate::listen::accept::{Accepting, Room, accept};
use crate::listen::acceptor::Acceptor;
use crate::log::limit::LineLimit;
use crate::wire::foreign::Foreign;

use certificates::Certificates;
use connections::{ConnectionPermit, Connections};
use flushing::Flushing;
use history::History;
use kind::{Interface, Kind};
use routes::Routes;
use scrapes::Scrapes;

/// Time for the first head of a connection: whoever comes to ask asks at once.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the head of a later request, and how long a connection may be quiet.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may wait for its reader to take more of it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands on this machine that are answered at once: few descriptors are kept for them.
#[cfg(target_os = "linux")]
const MAX_COMMANDS: usize = 8;
/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How long a connection is kept; then it ends with the request that it is at.
const MAX_AGE: Duration = Duration::from_secs(300);
/// Lines about callers that are not served, in this time at most; the next one says how many were left out.
const CALLER_LINES: (NonZero<u32>, Duration) =
    (NonZero::new(10).expect("it is not 0"), Duration::from_secs(60));
/// How long the last request may take when its connection is to end.
const LAST_REQUEST: Duration = Duration::from_secs(5);
/// The same where the relay stops: nobody who is slow may keep it.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Both listeners of a relay.
#[derive(Clone)]
pub struct Admin {
    routes: Routes,
    certificates: Arc<Certificates>,
    caller_lines: Arc<LineLimit>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Admin {
    /// Shows and steers `handle`, until `stop` is cancelled.
    pub fn new(handle: Handle, certificates: Certificates, stop: CancellationToken) -> Self {
        let routes = Routes {
            handle,
            history: Arc::new(History::default()),
            scrapes: Scrapes::default(),
            statuses: Scrapes::default(),
            lists: Scrapes::default(),
            complaints: Arc::new(LineLimit::new(CALLER_LINES.0, CALLER_LINES.1)),
            host_name: gethostname::gethostname().to_string_lossy().into(),
        };
        let certificates = Arc::new(certificates);
        let caller_lines = Arc::new(LineLimit::new(CALLER_LINES.0, CALLER_LINES.1));
        Self { routes, certificates, caller_lines, stop, tasks: TaskTracker::new() }
    }

    /// Answers until `stop` is cancelled; then connections get a moment for the request that they are at.
    pub async fn run(&self, listeners: Vec<(Kind, Acceptor)>) {
        for (kind, listener) in listeners {
            let (this, stop) = (self.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                stop.run_until_cancelled(this.accept(kind, &listener)).await;
            });
        }
        let (certificates, stop) = (self.certificates.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            stop.run_until_cancelled(certificates.keep()).await;
        });
        let history = self.routes.history.clone();
        self.stop.run_until_cancelled(history.keep(&self.routes.handle)).await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Answers commands on this machine, until `stop` is cancelled.
    #[cfg(target_os = "linux")]
    pub fn serve_commands(&self, listener: std::os::unix::net::UnixListener) {
        let this = self.clone();
        let connections = Connections::new(MAX_COMMANDS);
        let accept = local::accept(listener, move |stream| {
            let (this, permit) = (this.clone(), connections.admit(Ipv4Addr::LOCALHOST.into()));
            this.tasks.clone().spawn(async move {
                tokio::select! {
                    biased;
                    () = this.serve_permitted(Interface::Commands, stream, &permit) => {}
                    () = permit.evicted() => {}
                }
            });
        });
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(accept).await;
        });
    }

    /// Serves one connection, whatever it is made of; returns when it is over.
    pub async fn serve(&self, kind: Kind, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let permit = Connections::default().admit(Ipv4Addr::LOCALHOST.into());
        self.serve_permitted(Interface::Listener(kind), stream, &permit).await;
    }

    async fn serve_permitted(
        &self,
        interface: Interface,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        permit: &ConnectionPermit,
    ) {
        serve(stream, interface, self.routes.clone(), permit, self.stop.clone()).await;
    }

    /// Says why a caller is not served, unless that has been said often enough: strangers may call.
    fn not_served(&self, kind: Kind, address: SocketAddr, why: &dyn fmt::Display) {
        if self.caller_lines.allows() {
            let left_out = self.caller_lines.take_left_out();
            let listener = kind.purpose().address_setting;
            info!(%address, left_out, "a caller of {listener} is not served: {why}");
        }
    }

    async fn accept(&self, kind: Kind, listener: &Acceptor) {
        let connections = Connections::default();
        let accepting = Accepting::default();
        accept(
            listener,
            kind.purpose().callers,
            &accepting,
            // Before one is evicted it has had its turn: a request that is there is answered, however many wait behind it.
            || if connections.is_crowded() { Room::Crowded } else { Room::Enough },
            |stream, address| {
                let permit = connections.admit(address.ip());
                let this = self.clone();
                self.tasks.spawn(async move {
                    tokio::select! {
                        // A request that is there is answered.
                        biased;
                        () = this.connection(kind, stream, address, &permit) => {}
                        () = permit.evicted() => {
                            let why = "too many connections are open, and it was idle the longest";
                            this.not_served(kind, address, &why);
                        }
                    }
                });
            },
        )
        .await;
    }

    /// Takes a connection from accepting to its end.
    async fn connection(
        &self,
        kind: Kind,
        stream: std::net::TcpStream,
        address: SocketAddr,
        permit: &ConnectionPermit,
    ) {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                self.not_served(
                    kind,
                    address,
                    &format_args!("the system does not watch it: {error}"),
                );
                return;
            }
        };
        // One that has gone already needs no haste either.
        let _ = stream.set_nodelay(true);
        let tls = match kind {
            Kind::Admin => None,
            Kind::Metrics => self.certificates.server(),
        };
        let patience = if tls.is_some() { TLS_TIMEOUT } else { FIRST_HEAD_TIMEOUT };
        let spoken = timeout(patience, greeting::peek(&stream));
        // When the relay stops, what is there is answered all the same.
        let spoken = self.stop.run_until_cancelled(spoken).await.unwrap_or(Ok(None));
        let why = match spoken {
            Ok(spoken) => spoken.and_then(|spoken| greeting::mismatch(kind, tls.is_some(), spoken)),
            Err(_) if tls.is_some() => Some(no_handshake()),
            Err(_) => return,
        };
        if let Some(why) = why {
            self.not_served(kind, address, &why);
            if matches!(spoken, Ok(Some(Foreign::Http))) {
                let _ = timeout(LAST_REQUEST, greeting::ask_for_tls(stream)).await;
            }
            return;
        }
        let Some(tls) = tls else {
            return self.serve_permitted(Interface::Listener(kind), stream, permit).await;
        };
        let handshake = timeout(TLS_TIMEOUT, TlsAcceptor::from(tls).accept(stream));
        match self.stop.run_until_cancelled(handshake).await {
            None => {}
            Some(Ok(Ok(stream))) => {
                self.serve_permitted(Interface::Listener(kind), stream, permit).await;
            }
            Some(Ok(Err(error))) => {
                self.not_served(kind, address, &format_args!("no TLS with it: {error}"));
            }
            Some(Err(_)) => self.not_served(kind, address, &no_handshake()),
        }
    }
}

fn no_handshake() -> String {
    format!("no TLS with it: it did not finish the handshake in {} s", TLS_TIMEOUT.as_secs())
}

/// Serves one connection.
async fn serve<S>(
    stream: S,
    interface: Interface,
    routes: Routes,
    permit: &ConnectionPermit,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let stream = Flushing::new(Box::pin(stream), || permit.flushed());
    let asked = Notify::new();
    let service = service_fn(|request: Request<Incoming>| {
        asked.notify_one();
        let routes = routes.clone();
        async move {
            let _answering = permit.begin_request();
            Ok::<_, Infallible>(routes.answer(interface, request).await)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    let never_asked = async {
        if timeout(FIRST_HEAD_TIMEOUT, asked.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // A request that is there is answered, however late it is looked at.
        biased;
        // Whatever was wrong with it: the connection is over, and the relay goes on.
        _ = connection.as_mut() => return,
        () = never_asked => return,
        () = sleep(MAX_AGE) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = timeout(LAST_REQUEST, connection.as_mut()) => return,
                () = stop.cancelled() => {}
            }
        }
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(LAST_MOMENT, connection).await;
}
