//! Connections to the collector, with or without TLS, for both protocols.

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

use super::settings::{OtlpProtocol, TraceSettings};

/// Connects to a collector.
#[derive(Debug, Clone)]
pub(super) struct CollectorConnector {
    tls: Option<Arc<ClientConfig>>,
    dialer: Arc<Mutex<Dialer>>,
    port: u16,
    /// The time limit for connecting, TLS included.
    timeout: Duration,
}

impl CollectorConnector {
    /// Reads the TLS files, if the endpoint uses TLS. Blocks.
    pub(super) fn new(settings: &TraceSettings) -> Result<Self, TlsError> {
        let protocol: &[u8] = match settings.protocol {
            OtlpProtocol::Grpc => b"h2",
            OtlpProtocol::Http => b"http/1.1",
        };
        let tls = match settings.uses_tls() {
            true => Some(Arc::new(settings.tls.load(protocol)?)),
            false => None,
        };
        let host = settings.endpoint.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = settings.endpoint.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let dialer = Arc::new(Mutex::new(Dialer::new(host)));
        Ok(Self { tls, dialer, port, timeout: settings.timeout })
    }

    async fn connect(self) -> io::Result<TokioIo<CollectorStream>> {
        let limit = self.timeout;
        let connected = timeout(limit, self.dial()).await;
        connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    async fn dial(self) -> io::Result<TokioIo<CollectorStream>> {
        // The lock admits one call at a time: the next one uses a lookup that outlives its call.
        let mut dialer = self.dialer.lock().await;
        let (address, stream) = dialer.dial(self.port).await.map_err(io::Error::other)?;
        let host = dialer.host().to_owned();
        drop(dialer);
        // Without this, the relay would keep sending to a collector that has vanished for a quarter of an hour. HTTP/2 pings do
        // not help: collectors close connections with as many pings as would be necessary.
        #[cfg(target_os = "linux")]
        SockRef::from(&stream).set_tcp_user_timeout(Some(self.timeout))?;
        let stream = match self.tls {
            None => CollectorStream::Plain(stream),
            Some(config) => {
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                match TlsConnector::from(config).connect(name, stream).await {
                    Ok(stream) => CollectorStream::Tls(Box::new(stream)),
                    Err(error) => {
                        self.dialer.lock().await.mark_doubtful(address);
                        return Err(error);
                    }
                }
            }
        };
        self.dialer.lock().await.mark_good(address);
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for CollectorConnector {
    type Response = TokioIo<CollectorStream>;
    // tonic retries only after an error of this type.
    type Error = tonic::ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        // The URI is ignored because there is only one collector.
        let connecting = self.clone().connect();
        Box::pin(async { connecting.await.map_err(|error| tonic::ConnectError(error.into())) })
    }
}

/// Connects to the collector and closes the connection, to check that it is reachable and has the right certificate.
///
/// # Errors
/// The reason why no connection could be made.
pub async fn probe(settings: &TraceSettings) -> Result<(), String> {
    let settings = settings.clone();
    let connector = tokio::task::spawn_blocking(move || CollectorConnector::new(&settings))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    connector.connect().await.map(drop).map_err(|error| error.to_string())
}

/// A connection with or without TLS.
#[derive(Debug)]
pub(super) enum CollectorStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for CollectorStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for CollectorStream {
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

impl AsyncWrite for CollectorStream {
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
