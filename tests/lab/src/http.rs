//! A minimal HTTP client that sends exactly the bytes that a test gives.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head as received.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as JSON, or null.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Sends a request with a valid `Host`, the given header lines and the body.
///
/// # Errors
/// The system's error, or that the answer is not HTTP.
pub async fn request(
    address: SocketAddr,
    request: &str,
    lines: &[&str],
    body: &str,
) -> io::Result<Answer> {
    raw(address, text(address, request, lines, body).as_bytes()).await
}

fn text(address: SocketAddr, request: &str, lines: &[&str], body: &str) -> String {
    let mut text = format!("{request} HTTP/1.1\r\n");
    if !lines.iter().any(|line| line.starts_with("Host:")) {
        text += &format!("Host: {address}\r\n");
    }
    for line in lines {
        text += &format!("{line}\r\n");
    }
    text + &format!("Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// Sends bytes and reads an answer up to the end of the connection.
///
/// # Errors
/// The system's error, or that the answer is not HTTP.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> io::Result<Answer> {
    exchange(TcpStream::connect(address).await?, bytes).await
}

/// Sends a request over TLS to a server with a certificate for `name`.
///
/// # Errors
/// The error of the system or of TLS, or that the answer is not HTTP.
pub async fn request_over_tls(
    address: SocketAddr,
    name: ServerName<'static>,
    client: Arc<ClientConfig>,
    request: &str,
    lines: &[&str],
) -> io::Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    // The end of the handshake and the request are two small writes; with Nagle's algorithm the second would wait 40 ms.
    stream.set_nodelay(true)?;
    let stream = TlsConnector::from(client).connect(name, stream).await?;
    exchange(stream, text(address, request, lines, "").as_bytes()).await
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: &[u8],
) -> io::Result<Answer> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let no_answer = || io::Error::other(format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_answer)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.ok_or_else(no_answer)?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// Sends a `GET` request.
///
/// # Errors
/// The system's error, or that the answer is not HTTP.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    request(address, &format!("GET {path}"), &[], "").await
}
