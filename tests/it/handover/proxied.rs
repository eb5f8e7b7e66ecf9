//! Connections of a proxy, whose PROXY header and first message have arrived in part while their relay is replaced.

use super::*;

const V1: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\xc0\0\x02\x05\xc8\x22\x1f\x86";
/// The peer that both headers name.
const PEER: &str = "203.0.113.9:51234";
/// The header of its partner, and whom that names.
const PARTNER: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.5 7 8070\r\n";
const PARTNER_ADDRESS: &str = "203.0.113.7:7";
/// How many bytes of the first message arrive with the header.
const PART: usize = 20;

/// A connection of which a part has arrived.
struct Unfinished {
    stream: TcpStream,
    rest: Vec<u8>,
    /// The first message of its partner.
    partner: Vec<u8>,
}

impl Unfinished {
    async fn new(stage: &Stage, header: &[u8], arrives: usize) -> Self {
        let introduction = timeout(PATIENCE, stage.router.introduce()).await.unwrap().unwrap();
        let mut bytes = [header, &introduction.first_bytes().unwrap()].concat();
        let rest = bytes.split_off(arrives.min(bytes.len()));
        let mut stream = introduction.dial().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let partner = introduction.first_bytes().unwrap();
        Self { stream, rest, partner }
    }

    /// The rest arrives, and the partner, whose connection begins with this header.
    async fn finish(mut self, peers: SocketAddr, header: &[u8]) -> [TcpStream; 2] {
        self.stream.write_all(&self.rest).await.unwrap();
        let mut partner = TcpStream::connect(peers).await.unwrap();
        partner.write_all(&[header, &self.partner].concat()).await.unwrap();
        let mut ends = [self.stream, partner];
        for from in 0..2 {
            ends[from].write_all(b"hello").await.unwrap();
            let mut heard = [0; 5];
            let read = timeout(PATIENCE, ends[1 - from].read_exact(&mut heard)).await;
            read.expect("the peers are not paired").unwrap();
            assert_eq!(&heard, b"hello");
        }
        ends
    }
}

/// Where the peers of all sessions connect from, as the administrator sees them.
async fn addresses(stage: &Stage) -> Vec<[String; 2]> {
    let shown = http::get(stage.admin, "/sessions").await.unwrap().json();
    let sessions = shown["sessions"].as_array().unwrap().iter();
    let address = |peer: &serde_json::Value| peer["address"].as_str().unwrap().to_owned();
    let pair = |session: &serde_json::Value| {
        let mut pair = [0, 1].map(|number| address(&session["peers"][number]));
        pair.sort_unstable();
        pair
    };
    sessions.map(pair).collect()
}

/// Replaces a relay while connections of a proxy have arrived in part. The next one believes `proxies`, and the partners begin
/// with `header`.
async fn replace_relay(stage: &mut Stage, proxies: &str, header: &[u8]) -> Vec<[TcpStream; 2]> {
    let mut unfinished = Vec::new();
    for header in [V1, V2] {
        let whole = header.len();
        for arrives in [0, 1, whole / 2, whole - 1, whole, whole + PART, usize::MAX] {
            unfinished.push(Unfinished::new(stage, header, arrives).await);
        }
    }
    let count = unfinished.len() as f64;
    stage.metric_reaches("aspia_relay_peers_pending", count).await;
    stage.set("ProxyProtocolFrom", proxies);
    stage.terminate_relay().await;
    stage.restart_relay().await;
    stage.metric_reaches("aspia_relay_peers_pending", count).await;
    let mut sessions = Vec::new();
    for peer in unfinished {
        sessions.push(peer.finish(stage.peers, header).await);
    }
    sessions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn peer_of_a_proxy_is_the_one_that_its_header_names_also_after_a_replacement() {
    let mut stage = Stage::start(&[("ProxyProtocolFrom", "127.0.0.1")]).await;
    let sessions = replace_relay(&mut stage, "127.0.0.1", PARTNER).await;
    let expected = [PARTNER_ADDRESS, PEER].map(str::to_owned);
    assert_eq!(addresses(&stage).await, vec![expected; sessions.len()]);
}

/// A connection that has begun as one of a proxy is still one, and only new ones have no header any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connection_of_a_proxy_stays_one_if_the_next_relay_does_not_believe_the_proxy() {
    let mut stage = Stage::start(&[("ProxyProtocolFrom", "127.0.0.1")]).await;
    let sessions = replace_relay(&mut stage, "192.0.2.1", b"").await;
    let found = addresses(&stage).await;
    assert_eq!(found.len(), sessions.len());
    for [partner, peer] in found {
        assert!(partner.starts_with("127.0.0.1:") && peer == PEER, "{partner} and {peer}");
    }
}
