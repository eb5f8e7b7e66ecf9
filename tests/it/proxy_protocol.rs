//! The PROXY protocol on the peer port: the peer is the one that the header of a trusted proxy names.

use std::time::Duration;

use prometheus::TextEncoder;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, config};
use relay_lab::router::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

const V1: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn v2(source: [u8; 4]) -> Vec<u8> {
    let fields = b"\x04\0\x02\0\0";
    let addresses = [&source[..], &[192, 0, 2, 5, 0, 7, 0, 8]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11", &addresses[..], fields].concat()
}

async fn lab(settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(Options::default(), settings).await.unwrap();
    lab.router.wait_for(|view| view.pool.len() >= 2).await;
    lab
}

async fn send(lab: &Lab, pieces: &[&[u8]]) -> TcpStream {
    let mut stream = TcpStream::connect(lab.relay.address()).await.unwrap();
    for piece in pieces {
        stream.write_all(piece).await.unwrap();
        sleep(Duration::from_millis(1)).await;
    }
    stream
}

async fn reads(lab: &Lab, outcome: &str, value: u32) {
    let line = format!("aspia_relay_peer_connections_total{{outcome=\"{outcome}\"}} {value}\n");
    let mut text = String::new();
    for _ in 0..30_000 {
        text = TextEncoder::new().encode_to_string(&lab.relay.handle().gather()).unwrap();
        if text.contains(&line) {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("{line} in {text}");
}

/// Pairs two peers that send these pieces, and exchanges a byte.
async fn pair(lab: &Lab, first: &[&[u8]], second: &[&[u8]]) {
    let introduction = lab.router.introduce().await.unwrap();
    let message = introduction.first_bytes().unwrap();
    let mut client = send(lab, &[first, &[&message]].concat()).await;
    let joined = [&second.concat()[..], &introduction.first_bytes().unwrap(), b"early"].concat();
    let mut host = send(lab, &[&joined]).await;
    let mut early = [0; 5];
    client.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn session_belongs_to_the_peers_that_the_headers_name() {
    let log = CapturedLog::start();
    let lab = lab(&[("ProxyProtocolFrom", "127.0.0.0/8")]).await;
    let (head, rest) = V1.split_at(17);
    pair(&lab, &[head, rest], &[&v2([203, 0, 113, 77])]).await;
    for expected in ["203.0.113.9:51234", "203.0.113.77:7"] {
        assert!(log.text().contains(expected), "{}", log.text());
    }
    reads(&lab, "paired", 2).await;
}

#[tokio::test]
async fn lists_mean_the_peer_and_not_the_proxy() {
    let log = CapturedLog::start();
    let lab =
        lab(&[("ProxyProtocolFrom", "127.0.0.1"), ("DenyPeers", "203.0.113.9, 127.0.0.1")]).await;
    let _denied = send(&lab, &[V1]).await;
    reads(&lab, "denied", 1).await;
    assert!(log.text().contains("203.0.113.9:51234"), "{}", log.text());
    pair(&lab, &[&v2([203, 0, 113, 7])], &[&v2([203, 0, 113, 8])]).await;
}

#[tokio::test]
async fn rate_means_the_peer_and_not_the_proxy() {
    let lab = lab(&[("ProxyProtocolFrom", "127.0.0.1"), ("PeerConnectRate", "1")]).await;
    for number in 1..20 {
        drop(send(&lab, &[&v2([203, 0, 113, number])]).await);
    }
    reads(&lab, "closed", 19).await;
    let _more = send(&lab, &[&v2([203, 0, 113, 1])]).await;
    reads(&lab, "rate_limited", 1).await;
}

#[tokio::test]
async fn each_unacceptable_header_has_a_reason_of_its_own() {
    let log = CapturedLog::start();
    let lab = lab(&[("ProxyProtocolFrom", "127.0.0.1")]).await;
    let message = lab.router.introduce().await.unwrap().first_bytes().unwrap();
    let _missing = send(&lab, &[&message]).await;
    reads(&lab, "proxy_header_missing", 1).await;
    let _malformed = send(&lab, &[b"PROXY TCP4 nonsense\r\n"]).await;
    reads(&lab, "proxy_header_malformed", 1).await;
    let _oversized = send(&lab, &[b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"]).await;
    reads(&lab, "proxy_header_oversized", 1).await;
    let _slow = send(&lab, &[b"PROXY TCP4"]).await;
    reads(&lab, "proxy_header_timeout", 1).await;
    for part in ["no PROXY header", "header is broken", "at most 2048", "not complete in time"] {
        assert!(log.text().contains(part), "{part}: {}", log.text());
    }
}

#[tokio::test]
async fn health_checks_are_not_logged() {
    let log = CapturedLog::start();
    let lab = lab(&[("ProxyProtocolFrom", "127.0.0.1")]).await;
    drop(send(&lab, &[]).await);
    drop(send(&lab, &[LOCAL]).await);
    drop(send(&lab, &[b"PROXY UNKNOWN\r\n"]).await);
    reads(&lab, "closed", 3).await;
    assert!(!log.text().contains("peer refused"), "{}", log.text());
}

/// `AllowPeers` lists peers, and the proxy itself is none.
#[tokio::test]
async fn health_checks_of_a_proxy_that_may_not_be_a_peer_are_not_logged() {
    let log = CapturedLog::start();
    let lab = lab(&[("ProxyProtocolFrom", "127.0.0.1"), ("AllowPeers", "203.0.113.0/24")]).await;
    drop(send(&lab, &[LOCAL]).await);
    drop(send(&lab, &[b"PROXY UNKNOWN\r\n"]).await);
    // HAProxy names its own end of the connection in version 1.
    let mut check = TcpStream::connect(lab.relay.address()).await.unwrap();
    let own = check.local_addr().unwrap();
    let header = format!("PROXY TCP4 {} 127.0.0.1 {} 8070\r\n", own.ip(), own.port());
    check.write_all(header.as_bytes()).await.unwrap();
    drop(check);
    reads(&lab, "closed", 3).await;
    assert!(!log.text().contains("peer refused"), "{}", log.text());
    // Something else than a check is named.
    let message = lab.router.introduce().await.unwrap().first_bytes().unwrap();
    let _peer = send(&lab, &[LOCAL, &message]).await;
    reads(&lab, "denied", 1).await;
    assert!(log.text().contains("AllowPeers does not contain its address"), "{}", log.text());
    pair(&lab, &[V1], &[&v2([203, 0, 113, 8])]).await;
}

/// Connections of one proxy for several peers do not share the limit of an address, and those for one peer do.
#[tokio::test]
async fn pending_connections_are_limited_for_each_peer_and_not_for_the_proxy() {
    let settings = [("ProxyProtocolFrom", "127.0.0.1"), ("MaxPendingPeersPerAddress", "2")];
    let lab = lab(&settings).await;
    let mut silent = Vec::new();
    for number in 1..=8 {
        silent.push(send(&lab, &[&v2([203, 0, 113, number / 2])]).await);
    }
    pair(&lab, &[&v2([203, 0, 113, 99])], &[&v2([203, 0, 113, 98])]).await;
    reads(&lab, "pending_limit", 0).await;
    // The third of one address takes the place of the one that has been silent the longest.
    silent.push(send(&lab, &[&v2([203, 0, 113, 1])]).await);
    reads(&lab, "pending_limit", 1).await;
}

#[tokio::test]
async fn reload_changes_which_proxies_are_believed_and_ends_no_session() {
    let lab = lab(&[]).await;
    let mut before = lab.router.introduce().await.unwrap().session().await.unwrap();
    let reload = |settings: &[(&str, &str)]| {
        let (router, key) = (lab.router.address(), lab.router.public_key());
        let port = lab.relay.address().port();
        lab.relay.handle().reload(&config(router, key, port, settings).unwrap());
    };
    reload(&[("ProxyProtocolFrom", "127.0.0.1")]);
    pair(&lab, &[V1], &[&v2([203, 0, 113, 8])]).await;
    reload(&[]);
    let _proxied = send(&lab, &[V1]).await;
    reads(&lab, "bad_message", 1).await;
    before.0.write_all(b"y").await.unwrap();
    before.1.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn header_from_elsewhere_is_refused_with_a_remedy() {
    let log = CapturedLog::start();
    let lab = lab(&[("ProxyProtocolFrom", "127.0.0.2")]).await;
    let _stranger = send(&lab, &[V1]).await;
    reads(&lab, "bad_message", 1).await;
    assert!(log.text().contains("not in ProxyProtocolFrom: add it"), "{}", log.text());
    pair(&lab, &[], &[]).await;
}
