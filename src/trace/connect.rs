//! Connections to the collector, with TLS where it is wanted; the same for both protocols.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;

use crate::dial::Dialer;
use crate::tls::TlsError;

use super::settings::{Protocol, TraceSettings};

/// Connects to a collector.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tls: Option<Arc<ClientConfig>>,
    dialer: Arc<Mutex<Dialer>>,
    port: u16,
    /// Time for all of it.
    limit: Duration,
}

impl Connector {
    /// Reads the files of TLS where the settings need them. Blocks.
    pub(super) fn new(settings: &TraceSettings) -> Result<Self, TlsError> {
        let protocol: &[u8] = match settings.protocol {
            Protocol::Grpc => b"h2",
            Protocol::Http => b"http/1.1",
        };
        let tls = match settings.is_tls() {
            true => Some(Arc::new(settings.tls.load(protocol)?)),
            false => None,
        };
        let host = settings.endpoint.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = settings.endpoint.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let dialer = Arc::new(Mutex::new(Dialer::new(host)));
        Ok(Self { tls, dialer, port, limit: settings.timeout })
    }

    async fn connect(self) -> io::Result<TokioIo<Stream>> {
        let limit = self.limit;
        let connected = timeout(limit, self.dial()).await;
        connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    async fn dial(self) -> io::Result<TokioIo<Stream>> {
        // One after the other: a look-up that outlives one call is for the next.
        let mut dialer = self.dialer.lock().await;
        let (address, stream) = dialer.dial(self.port).await.map_err(io::Error::other)?;
        let host = dialer.host().to_owned();
        drop(dialer);
        // A collector that vanished without a word would be sent to for a quarter of an hour otherwise. No pings of HTTP/2:
        // collectors close connections that ping as often as that would take.
        #[cfg(target_os = "linux")]
        SockRef::from(&stream).set_tcp_user_timeout(Some(self.limit))?;
        let stream = match self.tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                match TlsConnector::from(config).connect(name, stream).await {
                    Ok(stream) => Stream::Tls(Box::new(stream)),
                    Err(error) => {
                        self.dialer.lock().await.doubt(address);
                        return Err(error);
                    }
                }
            }
        };
        self.dialer.lock().await.worked(address);
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    // tonic tries again after an error of this type only.
    type Error = tonic::ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        // There is one collector.
        let connecting = self.clone().connect();
        Box::pin(async { connecting.await.map_err(|error| tonic::ConnectError(error.into())) })
    }
}

/// Connects to the collector and hangs up: whether it can be reached, and shows the right certificate.
///
/// # Errors
/// What is wrong, in words.
pub async fn probe(settings: &TraceSettings) -> Result<(), String> {
    let settings = settings.clone();
    let connector = tokio::task::spawn_blocking(move || Connector::new(&settings))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    connector.connect().await.map(drop).map_err(|error| error.to_string())
}

/// A connection with or without TLS.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
