//! Limits on who may connect, how often, and how fast.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aspia_relay::app::Engine;
use aspia_relay::forward::Method;
use aspia_relay::workers::Workers;
use prometheus::TextEncoder;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, config};
use relay_lab::router::Options;
use relay_lab::traffic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

async fn lab(settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(Options::default(), settings).await.unwrap();
    lab.router.wait_for(|view| view.pool.len() >= 2).await;
    lab
}

async fn dial_from(lab: &Lab, from: [u8; 4]) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(Ipv4Addr::from(from).into(), 0))?;
    socket.connect(lab.relay.address()).await
}

/// The value of a metric, by its line.
fn metric(lab: &Lab, name: &str) -> f64 {
    let text = TextEncoder::new().encode_to_string(&lab.relay.handle().gather()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

fn outcome(lab: &Lab, outcome: &str) -> f64 {
    metric(lab, &format!("aspia_relay_peer_connections_total{{outcome=\"{outcome}\"}}"))
}

/// Connections that wait, and those that were turned away for a limit or a list.
fn decided(lab: &Lab) -> (f64, f64) {
    let refused = ["denied", "rate_limited", "pending_limit"].map(|name| outcome(lab, name));
    (metric(lab, "aspia_relay_peers_pending"), refused.iter().sum())
}

/// All connections that the relay has ever looked at, whatever became of them.
fn seen(lab: &Lab) -> u64 {
    let metrics = lab.relay.handle().peer_metrics();
    let ended: u64 = metrics.connections().values().map(|(_, count)| count).sum();
    ended + metrics.pending()
}

/// Connects and keeps silent. Whether that was let in, and the connection. By what the relay counts: by the clock of a
/// test, which jumps, it could not be told.
async fn knock(lab: &Lab, from: [u8; 4]) -> (bool, TcpStream) {
    let (before, (_, refused)) = (seen(lab), decided(lab));
    let stream = dial_from(lab, from).await.unwrap();
    while seen(lab) == before {
        sleep(Duration::from_millis(1)).await;
    }
    (decided(lab).1 == refused, stream)
}

fn reload(lab: &Lab, settings: &[(&str, &str)]) {
    let (router, key) = (lab.router.address(), lab.router.public_key());
    let port = lab.relay.address().port();
    lab.relay.handle().reload(&config(router, key, port, settings).unwrap());
}

async fn works(lab: &Lab) {
    drop(lab.router.introduce().await.unwrap().session().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn networks_are_let_in_or_not_and_what_is_denied_wins() {
    let log = CapturedLog::start();
    let lab = lab(&[("DenyPeers", "127.0.0.2, 127.0.1.0/24")]).await;
    let let_in = async |from| knock(&lab, from).await.0;
    assert!(!let_in([127, 0, 0, 2]).await);
    assert!(!let_in([127, 0, 1, 77]).await);
    assert!(let_in([127, 0, 0, 3]).await);
    works(&lab).await;
    assert_eq!(outcome(&lab, "denied"), 2.0);
    assert!(log.text().contains("peer refused: DenyPeers has its address"), "{}", log.text());
    // A reload applies at once, and to nobody who is there.
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    reload(&lab, &[("AllowPeers", "127.0.0.0/24"), ("DenyPeers", "127.0.0.1")]);
    assert!(!let_in([127, 0, 0, 1]).await);
    assert!(let_in([127, 0, 0, 2]).await);
    assert!(!let_in([127, 0, 2, 1]).await);
    assert!(log.text().contains("AllowPeers does not have its address"), "{}", log.text());
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_address_that_connects_too_often_waits_and_others_do_not() {
    let log = CapturedLog::start();
    let lab = lab(&[("PeerConnectRate", "30")]).await;
    let (start, mut accepted, mut streams) = (Instant::now(), 0, Vec::new());
    for _ in 0..130 {
        let (is_in, stream) = knock(&lab, [127, 0, 0, 5]).await;
        accepted += u32::from(is_in);
        streams.push(stream);
    }
    // One more every two seconds.
    let more = u32::try_from(start.elapsed().as_secs() / 2).unwrap() + 1;
    assert!((30..=30 + more).contains(&accepted), "{accepted}");
    drop(streams);
    assert_eq!(outcome(&lab, "rate_limited"), f64::from(130 - accepted));
    works(&lab).await;
    // Not a line for each; it is said how many were left out.
    sleep(61 * SECOND).await;
    let lines = log.text().matches("more than PeerConnectRate 30").count();
    assert!((1..=20).contains(&lines), "{lines}");
    assert!(log.text().contains("more peers were refused in the last 10 s"), "{}", log.text());
    // 127.0.0.5 is an address that no peer on the internet can have.
    assert!(log.text().contains("came from private addresses"), "{}", log.text());
    // Time heals.
    assert!(knock(&lab, [127, 0, 0, 5]).await.0);
    // And without the limit there is none.
    reload(&lab, &[("PeerConnectRate", "0")]);
    let mut streams = Vec::new();
    for _ in 0..100 {
        let (is_in, stream) = knock(&lab, [127, 0, 0, 5]).await;
        assert!(is_in);
        streams.push(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn one_address_cannot_take_the_places_of_all() {
    let lab = lab(&[("MaxPendingPeers", "10"), ("MaxPendingPeersPerAddress", "4")]).await;
    let mut others = Vec::new();
    for number in 6..9 {
        others.push(knock(&lab, [127, 0, 0, number]).await.1);
    }
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(dial_from(&lab, [127, 0, 0, 5]).await.unwrap());
    }
    // Its own that have kept silent for longest have made room, and nobody else's.
    for stream in &mut silent[..2] {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    assert_eq!(decided(&lab), (7.0, 2.0));
    works(&lab).await;
    // Those that wait with a key of theirs do not.
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let introduction = lab.router.introduce().await.unwrap();
        let mut stream = dial_from(&lab, [127, 0, 0, 9]).await.unwrap();
        stream.write_all(&introduction.first_bytes().unwrap()).await.unwrap();
        waiting.push((introduction, stream));
    }
    while lab.relay.handle().state().counts().handed_out < 4 || decided(&lab).0 < 10.0 {
        sleep(Duration::from_millis(1)).await;
    }
    let (is_in, _refused) = knock(&lab, [127, 0, 0, 9]).await;
    assert!(!is_in);
    for (introduction, mut first) in waiting {
        let mut second = introduction.connect().await.unwrap();
        second.write_all(b"x").await.unwrap();
        first.read_exact(&mut [0]).await.unwrap();
    }
}

fn engines() -> [Engine; 3] {
    let engine = |method| Engine { method, ..Engine::on(Workers::here()) };
    [engine(Method::Adaptive), engine(Method::Copy), engine(Method::Splice)]
}

#[tokio::test(start_paused = true)]
async fn a_session_takes_no_more_than_its_bandwidth_on_every_path() {
    for engine in engines() {
        let settings = [("SessionBandwidth", "1MiB/s")];
        let lab = Lab::start_with(Options::default(), &settings, engine.clone()).await.unwrap();
        let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
        let (start, length) = (Instant::now(), 5 * 1024 * 1024);
        let there = async {
            traffic::send(&mut client, 1, length).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (received, ()) = tokio::join!(traffic::receive(&mut host, None), there);
        assert_eq!(received.unwrap(), (length, traffic::hash(1, length)), "{:?}", engine.method);
        // What the bucket held at the beginning is 50 ms of it.
        let time = start.elapsed();
        assert!((4900..20_000).contains(&time.as_millis()), "{time:?} {:?}", engine.method);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_lifted_no_longer_holds() {
    let lab = lab(&[("SessionBandwidth", "16KiB/s"), ("PeerIdleTimeout", "60")]).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let start = Instant::now();
    let there = async {
        traffic::send(&mut client, 1, 8_000_000).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let lift = async {
        sleep(5 * SECOND).await;
        reload(&lab, &[("SessionBandwidth", ""), ("PeerIdleTimeout", "60")]);
    };
    let (received, (), ()) = tokio::join!(traffic::receive(&mut host, None), there, lift);
    assert_eq!(received.unwrap(), (8_000_000, traffic::hash(1, 8_000_000)));
    // With it, it would have been eight minutes.
    assert!((5 * SECOND..60 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn all_sessions_share_and_a_desktop_does_not_wait_behind_bulk() {
    for engine in engines() {
        let settings = [("TotalBandwidth", "4MiB/s"), ("MaxPeerCount", "10")];
        let lab = Lab::start_with(Options::default(), &settings, engine.clone()).await.unwrap();
        let start = Instant::now();
        let mut bulk = Vec::new();
        for seed in 0..4 {
            let (mut client, mut host) =
                lab.router.introduce().await.unwrap().session().await.unwrap();
            bulk.push(tokio::spawn(async move {
                let length = 4 * 1024 * 1024;
                let there = async {
                    traffic::send(&mut client, seed, length).await.unwrap();
                    client.shutdown().await.unwrap();
                };
                let (received, ()) = tokio::join!(traffic::receive(&mut host, None), there);
                assert_eq!(received.unwrap(), (length, traffic::hash(seed, length)));
                start.elapsed()
            }));
        }
        let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
        let mut delays = Vec::new();
        while bulk.iter().any(|bulk| !bulk.is_finished()) {
            let sent = Instant::now();
            client.write_all(&[1; 64]).await.unwrap();
            host.read_exact(&mut [0; 64]).await.unwrap();
            host.write_all(&[2; 4096]).await.unwrap();
            client.read_exact(&mut [0; 4096]).await.unwrap();
            delays.push(sent.elapsed());
            sleep(Duration::from_millis(33)).await;
        }
        // By the clock of the runtime, which stands while anything happens, and may jump while bytes are with the system:
        // not the longest of them.
        delays.sort();
        let most = delays[delays.len() * 9 / 10];
        assert!(most <= Duration::from_millis(20), "{most:?} {:?}", engine.method);
        let mut times = Vec::new();
        for bulk in bulk {
            times.push(bulk.await.unwrap());
        }
        times.sort();
        // 16 MiB at 4 MiB/s, and nobody is done long before the others.
        assert!((3900..16_000).contains(&times[3].as_millis()), "{times:?} {:?}", engine.method);
        assert!(times[0] * 4 > times[3] * 3, "{times:?} {:?}", engine.method);
    }
}

#[tokio::test(start_paused = true)]
async fn another_protocol_on_the_port_of_peers_is_named_with_what_to_do() {
    let log = CapturedLog::start();
    let lab = lab(&[]).await;
    let callers: [(&[u8], &str); 6] = [
        (b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n", "send-proxy"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "PROXY header (version 2)"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc", "first bytes are TLS"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "first bytes are HTTP"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "first bytes are SSH"),
        // Less than a length, and then nothing.
        (b"\x05\x01\0", "first bytes are SOCKS"),
    ];
    for (bytes, expected) in callers {
        let mut caller = TcpStream::connect(lab.relay.address()).await.unwrap();
        caller.write_all(bytes).await.unwrap();
        let line = log.line(expected).await;
        assert!(line.contains("peer refused") && !line.contains("announces"), "{line}");
    }
    assert_eq!(outcome(&lab, "bad_message"), 6.0);
    // A header has every peer refused: that is a warning, but not each time.
    let warnings = log.text().lines().filter(|line| line.contains("WARN")).count();
    assert_eq!(warnings, 1, "{}", log.text());
}
