//! Connections of a proxy (`ProxyProtocolFrom`), until the PROXY header has named the peer and the peer is admitted.

use std::io::Read;
use std::net::SocketAddr;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::deadline;
use crate::forward::failure::is_connection_error;

use super::admission::PendingConnection;
use super::error::PeerError;
use super::first_message::FirstMessageError;
use super::proxy_header::{ProxyHeaderError, ProxyHeaderReader, ProxySource};

/// Whether connections from this address begin with a PROXY header.
pub(super) fn is_proxy(address: SocketAddr, config: &Config) -> bool {
    let proxies = &config.proxy_protocol_from;
    !proxies.is_empty() && proxies.contains(address.ip().to_canonical())
}

/// Recognises a header that names the proxy's own end of the connection: the proxy then connects on its own behalf. HAProxy
/// checks servers in this way with version 1; with version 2 it says `LOCAL`.
pub(super) fn recognise_own_address(source: ProxySource, proxy: SocketAddr) -> ProxySource {
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    match source {
        ProxySource::Peer(named) if canonical(named) == canonical(proxy) => ProxySource::Proxy,
        source => source,
    }
}

/// How far a connection of a proxy came.
pub(super) enum HeaderEnd {
    /// Its header is complete, and says on whose behalf it connects.
    Read(std::net::TcpStream, ProxySource),
    /// It was suspended before its header was complete; with what was read of it.
    Suspended(std::net::TcpStream, Vec<u8>),
}

/// Reads the PROXY header, or what is missing behind `received`, unless the connection is suspended before.
pub(super) async fn read_header(
    stream: std::net::TcpStream,
    received: &[u8],
    deadline: Instant,
    pending: &mut PendingConnection,
    suspend: &CancellationToken,
) -> Result<HeaderEnd, PeerError> {
    let mut reader = ProxyHeaderReader::default();
    if !received.is_empty()
        && let Poll::Ready(source) = reader.resume(received)
    {
        return Ok(HeaderEnd::Read(stream, source?));
    }
    if let Poll::Ready(source) = reader.read(|bytes| (&stream).read(bytes)) {
        return Ok(HeaderEnd::Read(stream, source.map_err(or_health_check(&reader))?));
    }
    let stream = TcpStream::from_std(stream)?;
    let source = tokio::select! {
        biased;
        source = deadline::timeout_at(deadline, reader.read_from(&stream)) => {
            let source = source.map_err(|_| ProxyHeaderError::Timeout)?;
            Some(source.map_err(or_health_check(&reader))?)
        }
        eviction = pending.wait_for_eviction() => return Err(PeerError::Evicted(eviction)),
        () = suspend.cancelled() => None,
    };
    let stream = stream.into_std()?;
    Ok(match source {
        Some(source) => HeaderEnd::Read(stream, source),
        None => HeaderEnd::Suspended(stream, reader.received().to_vec()),
    })
}

/// A connection that ends before its first byte is how a proxy checks whether the relay listens.
fn or_health_check(reader: &ProxyHeaderReader) -> impl FnOnce(ProxyHeaderError) -> PeerError {
    let is_empty = reader.received().is_empty();
    move |error| match error {
        ProxyHeaderError::Closed => PeerError::HealthCheck,
        ProxyHeaderError::Io(error) if is_empty && is_connection_error(&error) => {
            PeerError::HealthCheck
        }
        error => error.into(),
    }
}

/// Whether a connection that a proxy made on its own behalf, and that is not admitted, is a health check: it ends before it
/// brings anything. Waits until the deadline, unless the connection has to make room or is suspended before.
pub(super) async fn is_health_check(
    stream: std::net::TcpStream,
    deadline: Instant,
    pending: &mut PendingConnection,
    suspend: &CancellationToken,
) -> bool {
    let Ok(stream) = TcpStream::from_std(stream) else { return false };
    let mut byte = [0];
    tokio::select! {
        biased;
        peeked = deadline::timeout_at(deadline, stream.peek(&mut byte)) => match peeked {
            Ok(Ok(bytes)) => bytes == 0,
            Ok(Err(error)) => is_connection_error(&error),
            Err(_) => false,
        },
        _ = pending.wait_for_eviction() => false,
        // It cannot be known any more, and checks are many.
        () = suspend.cancelled() => true,
    }
}

/// Replaces how a connection ended that a proxy made on its own behalf by a health check, if it was one.
pub(super) fn conceal_health_check(error: PeerError) -> PeerError {
    match error {
        PeerError::FirstMessage(FirstMessageError::Closed) => PeerError::HealthCheck,
        PeerError::FirstMessage(FirstMessageError::Io(error)) if is_connection_error(&error) => {
            PeerError::HealthCheck
        }
        error => error,
    }
}
