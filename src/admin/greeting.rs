//! Detects the protocol of a caller from its first bytes. A caller that speaks TLS to a plain listener, or plain HTTP
//! to a listener with TLS, is logged, and is told if that is possible.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::wire::foreign::{ForeignProtocol, HEAD_LEN};

use super::listener::HttpListener;

/// The response to plain HTTP on a listener with TLS.
const NEEDS_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 39\r\n\
    Connection: close\r\n\r\nthis listener requires TLS: use https:\n";
/// How much of a request is read before this response is sent, in bytes: a connection that is closed with unread bytes
/// is reset.
const MAX_REQUEST: usize = 16 * 1024;

/// Detects the protocol of a caller from its first bytes, which stay in the socket.
pub(super) async fn detect_protocol(stream: &TcpStream) -> Option<ForeignProtocol> {
    let mut head = [0; HEAD_LEN];
    let count = stream.peek(&mut head).await.ok()?;
    ForeignProtocol::recognise(&head[..count])
}

/// Says why a listener cannot serve a caller that speaks `protocol`; `None` if it can, or if the protocol itself will
/// tell the caller.
pub(super) fn describe_mismatch(
    kind: HttpListener,
    has_tls: bool,
    protocol: ForeignProtocol,
) -> Option<String> {
    let setting = kind.purpose().address_setting;
    match (protocol, has_tls) {
        (ForeignProtocol::Tls, false) => Some(format!(
            "it speaks TLS, but {setting} has no TLS: use http:, or terminate TLS in a proxy in front"
        )),
        (ForeignProtocol::Http, true) => {
            Some(format!("it speaks HTTP without TLS, but {setting} requires TLS: use https:"))
        }
        (ForeignProtocol::ProxyV1 | ForeignProtocol::ProxyV2, _) => Some(format!(
            "it sends {protocol}, which {setting} does not accept: switch it off in the proxy in front"
        )),
        _ => None,
    }
}

/// Tells a caller that speaks plain HTTP that TLS is required.
pub(super) async fn respond_tls_required(mut stream: TcpStream) {
    let _ = stream.try_read(&mut [0; MAX_REQUEST]);
    // A failure means that the caller has gone.
    let _ = stream.write_all(NEEDS_TLS).await;
    let _ = stream.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_length_of_the_response_is_right() {
        let text = std::str::from_utf8(NEEDS_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
