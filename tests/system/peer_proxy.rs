//! HAProxy and nginx in front of the peer port, configured as in docs/operations.md: the relay sees the peers behind them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use aspia_relay::metrics::Label;
use prometheus::TextEncoder;
use relay_lab::relay::Lab;
use relay_lab::router::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::tests;
use crate::proxy_process::{ProxyProcess, adapt};

tests! {
    relay_sees_the_peers_behind_haproxy,
    relay_sees_the_peers_behind_nginx,
    proxy_that_sends_no_header_is_refused_by_name,
}

/// The address from which the proxies connect. Peers use others.
const PROXY: &str = "127.0.0.1";
/// Longest wait for a counter.
const PATIENCE: Duration = Duration::from_secs(30);
/// What each peer sends.
const BYTES: usize = 1 << 20;

/// Returns the part of the example in docs/operations.md that begins with this comment.
fn example(beginning: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, found) = text.split_once(beginning).unwrap_or_else(|| panic!("no {beginning}"));
    let end = found.find("\n\n").into_iter().chain(found.find("```")).min().unwrap();
    format!("{beginning}{}\n", &found[..end])
}

async fn lab(settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(Options::default(), settings).await.unwrap();
    lab.router.wait_for(|view| view.pool.len() >= 2).await;
    lab
}

/// Starts HAProxy in front of a relay; `send` is how it sends headers.
async fn haproxy(lab: &Lab, send: &str) -> ProxyProcess {
    let port = relay_lab::port::free_port().unwrap();
    let relay = lab.relay.address().to_string();
    ProxyProcess::start("haproxy", port, |directory| {
        let bind = format!("bind 127.0.0.1:{port}");
        let changes = [
            ("bind :8070", bind.as_str()),
            ("192.0.2.10:8070", &relay),
            // Checks that come soon, so that the test need not wait for them.
            ("send-proxy-v2 check", send),
        ];
        let path = directory.join("haproxy.cfg");
        std::fs::write(&path, adapt(&example("# HAProxy"), &changes)).unwrap();
        vec!["-db".into(), "-f".into(), path.display().to_string()]
    })
    .await
}

async fn nginx(lab: &Lab) -> ProxyProcess {
    let port = relay_lab::port::free_port().unwrap();
    let relay = lab.relay.address().to_string();
    ProxyProcess::start("nginx", port, |directory| {
        let path = |name: &str| directory.join(name).display().to_string();
        let listen = format!("listen 127.0.0.1:{port};");
        let server = adapt(
            &example("# nginx (stream)"),
            &[("listen 8070;", listen.as_str()), ("192.0.2.10:8070", &relay)],
        );
        let whole = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\npid {}; error_log stderr; daemon off; events {{}}\n\
             stream {{\n{server}}}",
            path("pid")
        );
        std::fs::write(directory.join("nginx.conf"), whole).unwrap();
        vec!["-c".into(), path("nginx.conf"), "-p".into(), directory.display().to_string()]
    })
    .await
}

fn outcome(lab: &Lab, name: &str) -> u64 {
    let outcomes = lab.relay.handle().peer_metrics().connections();
    outcomes.values().find(|(outcome, _)| outcome.name() == name).map(|(_, count)| count).unwrap()
}

async fn wait_for_outcome(lab: &Lab, name: &str, least: u64) {
    let wait = async {
        while outcome(lab, name) < least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let text = || TextEncoder::new().encode_to_string(&lab.relay.handle().gather()).unwrap();
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{least} {name} in {}", text());
}

/// Connects to the proxy from one of the loopback addresses.
async fn connect(from: Ipv4Addr, proxy: &ProxyProcess) -> (TcpStream, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let stream = socket.connect(proxy.address).await.unwrap();
    let address = stream.local_addr().unwrap();
    (stream, address)
}

/// Sends bytes from one end of a session to the other, and checks them.
async fn transfer(from: &mut TcpStream, to: &mut TcpStream) {
    let sent: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
    let mut received = vec![0; BYTES];
    let (write, read) = tokio::join!(from.write_all(&sent), to.read_exact(&mut received));
    write.unwrap();
    read.unwrap();
    assert!(received == sent, "the bytes are not those that were sent");
}

/// Two peers meet behind a proxy, and the relay knows where they are.
async fn check_session(lab: &Lab, proxy: &ProxyProcess, peers: [Ipv4Addr; 2]) {
    let introduction = lab.router.introduce().await.unwrap();
    let mut ends = Vec::new();
    for peer in peers {
        let (mut stream, address) = connect(peer, proxy).await;
        stream.write_all(&introduction.first_bytes().unwrap()).await.unwrap();
        ends.push((stream, address));
    }
    let [(client, first), (host, second)] = &mut ends[..] else { panic!("two peers") };
    transfer(client, host).await;
    transfer(host, client).await;
    let sessions = lab.relay.handle().state().sessions();
    let mut seen = sessions.last().expect("the session is active").addresses;
    let mut expected = [*first, *second];
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn relay_sees_the_peers_behind_haproxy() {
    for send in ["send-proxy-v2 check inter 50", "send-proxy check inter 50"] {
        // Only these two may be peers, and the proxy is none.
        let peers = [Ipv4Addr::new(127, 0, 0, 7), Ipv4Addr::new(127, 0, 0, 8)];
        let settings = [("ProxyProtocolFrom", PROXY), ("AllowPeers", "127.0.0.7, 127.0.0.8")];
        let lab = lab(&settings).await;
        let proxy = haproxy(&lab, send).await;
        check_session(&lab, &proxy, peers).await;
        // Health checks, on which HAProxy relies, are quiet; the test's own connection from elsewhere is not admitted.
        wait_for_outcome(&lab, "closed", 5).await;
        let before = outcome(&lab, "denied");
        let (mut stranger, _) = connect(Ipv4Addr::new(127, 0, 0, 9), &proxy).await;
        assert_eq!(stranger.read(&mut [0]).await.unwrap_or(0), 0);
        wait_for_outcome(&lab, "denied", before + 1).await;
        check_session(&lab, &proxy, peers).await;
        for name in ["proxy_header_missing", "proxy_header_malformed", "proxy_header_timeout"] {
            assert_eq!(outcome(&lab, name), 0, "{send}: {name}");
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn relay_sees_the_peers_behind_nginx() {
    let lab = lab(&[("ProxyProtocolFrom", PROXY), ("PeerConnectRate", "4")]).await;
    let proxy = nginx(&lab).await;
    // Ten connections of ten peers: the rate for one address, that of the proxy, would be exceeded.
    for number in 10..20 {
        let peers = [1, 2].map(|subnet| Ipv4Addr::new(127, 0, subnet, number));
        check_session(&lab, &proxy, peers).await;
    }
    wait_for_outcome(&lab, "paired", 20).await;
    assert_eq!(outcome(&lab, "paired"), 20);
    assert_eq!(outcome(&lab, "rate_limited"), 0);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_that_sends_no_header_is_refused_by_name() {
    // The relay expects a header that the proxy does not send.
    let expecting = lab(&[("ProxyProtocolFrom", PROXY)]).await;
    let silent = haproxy(&expecting, "").await;
    let introduction = expecting.router.introduce().await.unwrap();
    let (mut peer, _) = connect(Ipv4Addr::new(127, 0, 0, 7), &silent).await;
    peer.write_all(&introduction.first_bytes().unwrap()).await.unwrap();
    assert_eq!(peer.read(&mut [0]).await.unwrap_or(0), 0);
    wait_for_outcome(&expecting, "proxy_header_missing", 1).await;
    // The proxy sends a header that the relay does not expect from there.
    let other = lab(&[("ProxyProtocolFrom", "192.0.2.1")]).await;
    let sending = haproxy(&other, "send-proxy-v2").await;
    let introduction = other.router.introduce().await.unwrap();
    let before = outcome(&other, "bad_message");
    let (mut peer, _) = connect(Ipv4Addr::new(127, 0, 0, 7), &sending).await;
    peer.write_all(&introduction.first_bytes().unwrap()).await.unwrap();
    assert_eq!(peer.read(&mut [0]).await.unwrap_or(0), 0);
    wait_for_outcome(&other, "bad_message", before + 1).await;
}
