//! What a caller speaks, by its first bytes: whoever speaks TLS to a listener without it, or HTTP to one with it, learns so
//! where that is possible, and the log names it.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::wire::foreign::{Foreign, HEAD_LEN};

use super::kind::Kind;

/// What those get who speak HTTP where TLS is spoken.
const NEEDS_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 43\r\n\
    Connection: close\r\n\r\nthis listener speaks TLS: ask it by https:\n";
/// As much of a request is read before it is answered; a connection that is closed over unread bytes is reset.
const REQUEST: usize = 16 * 1024;

/// Waits for the first bytes of a caller. They stay where they are.
pub(super) async fn peek(stream: &TcpStream) -> Option<Foreign> {
    let mut head = [0; HEAD_LEN];
    let count = stream.peek(&mut head).await.ok()?;
    Foreign::recognise(&head[..count])
}

/// Why a caller cannot be served that speaks `spoken` to a listener with or without TLS; `None` where it can, or may find
/// out by itself.
pub(super) fn mismatch(kind: Kind, has_tls: bool, spoken: Foreign) -> Option<String> {
    let setting = kind.purpose().address_setting;
    match (spoken, has_tls) {
        (Foreign::Tls, false) => Some(format!(
            "it speaks TLS, and {setting} has none: ask by http:, or have a proxy in front end the TLS"
        )),
        (Foreign::Http, true) => {
            Some(format!("it speaks HTTP without TLS, and {setting} has TLS: ask by https:"))
        }
        (Foreign::ProxyV1 | Foreign::ProxyV2, _) => Some(format!(
            "it sends {spoken}, which {setting} does not take: switch it off in the proxy in front"
        )),
        _ => None,
    }
}

/// Tells a caller that speaks HTTP that TLS is needed.
pub(super) async fn ask_for_tls(mut stream: TcpStream) {
    let _ = stream.try_read(&mut [0; REQUEST]);
    // One that has gone does not need it.
    let _ = stream.write_all(NEEDS_TLS).await;
    let _ = stream.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let text = std::str::from_utf8(NEEDS_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
