//! Limits on who may connect, how often, and how fast.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aspia_relay::app::DataPlane;
use aspia_relay::forward::TransferMethod;
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

/// The value of a metric, found by the beginning of its line.
fn metric(lab: &Lab, name: &str) -> f64 {
    let text = TextEncoder::new().encode_to_string(&lab.relay.handle().gather()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

fn outcome(lab: &Lab, outcome: &str) -> f64 {
    metric(lab, &format!("aspia_relay_peer_connections_total{{outcome=\"{outcome}\"}}"))
}

/// The number of pending connections, and the number rejected because of a limit or a list.
fn decided(lab: &Lab) -> (f64, f64) {
    let refused = ["denied", "rate_limited", "pending_limit"].map(|name| outcome(lab, name));
    (metric(lab, "aspia_relay_peers_pending"), refused.iter().sum())
}

/// The number of connections that the relay has accepted so far, whatever their outcome.
fn seen(lab: &Lab) -> u64 {
    let metrics = lab.relay.handle().peer_metrics();
    let ended: u64 = metrics.connections().values().map(|(_, count)| count).sum();
    ended + metrics.pending()
}

/// Connects and sends nothing. Returns whether the connection was admitted, and the connection. The relay's counters tell:
/// a timeout could not, since the paused clock of a test jumps.
async fn connect_silently(lab: &Lab, from: [u8; 4]) -> (bool, TcpStream) {
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
async fn denied_networks_take_precedence_over_allowed_ones() {
    let log = CapturedLog::start();
    let lab = lab(&[("DenyPeers", "127.0.0.2, 127.0.1.0/24")]).await;
    let let_in = async |from| connect_silently(&lab, from).await.0;
    assert!(!let_in([127, 0, 0, 2]).await);
    assert!(!let_in([127, 0, 1, 77]).await);
    assert!(let_in([127, 0, 0, 3]).await);
    works(&lab).await;
    assert_eq!(outcome(&lab, "denied"), 2.0);
    assert!(log.text().contains("peer refused: DenyPeers contains its address"), "{}", log.text());
    // A reload applies at once, but not to existing connections.
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    reload(&lab, &[("AllowPeers", "127.0.0.0/24"), ("DenyPeers", "127.0.0.1")]);
    assert!(!let_in([127, 0, 0, 1]).await);
    assert!(let_in([127, 0, 0, 2]).await);
    assert!(!let_in([127, 0, 2, 1]).await);
    assert!(log.text().contains("AllowPeers does not contain its address"), "{}", log.text());
    client.write_all(b"x").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn connect_rate_limits_one_address_only() {
    let log = CapturedLog::start();
    let lab = lab(&[("PeerConnectRate", "30")]).await;
    let (start, mut accepted, mut streams) = (Instant::now(), 0, Vec::new());
    for _ in 0..130 {
        let (is_in, stream) = connect_silently(&lab, [127, 0, 0, 5]).await;
        accepted += u32::from(is_in);
        streams.push(stream);
    }
    // The rate admits one more every two seconds.
    let more = u32::try_from(start.elapsed().as_secs() / 2).unwrap() + 1;
    assert!((30..=30 + more).contains(&accepted), "{accepted}");
    drop(streams);
    assert_eq!(outcome(&lab, "rate_limited"), f64::from(130 - accepted));
    works(&lab).await;
    // Not every refusal is logged, but the number of those left out is.
    sleep(61 * SECOND).await;
    let lines = log
        .text()
        .matches("more than 30 connections a minute from its address (PeerConnectRate)")
        .count();
    assert!((1..=20).contains(&lines), "{lines}");
    assert!(log.text().contains("more peers were refused in the last 10 s"), "{}", log.text());
    // 127.0.0.5 is an address that no peer on the internet can have.
    assert!(log.text().contains("came from private addresses"), "{}", log.text());
    // After a minute the address may connect again.
    assert!(connect_silently(&lab, [127, 0, 0, 5]).await.0);
    // Without the setting there is no limit.
    reload(&lab, &[("PeerConnectRate", "0")]);
    let mut streams = Vec::new();
    for _ in 0..100 {
        let (is_in, stream) = connect_silently(&lab, [127, 0, 0, 5]).await;
        assert!(is_in);
        streams.push(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn one_address_cannot_occupy_all_pending_slots() {
    let lab = lab(&[("MaxPendingPeers", "10"), ("MaxPendingPeersPerAddress", "4")]).await;
    let mut others = Vec::new();
    for number in 6..9 {
        others.push(connect_silently(&lab, [127, 0, 0, number]).await.1);
    }
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(dial_from(&lab, [127, 0, 0, 5]).await.unwrap());
    }
    // The oldest silent connections of this address were evicted, and those of no other address.
    for stream in &mut silent[..2] {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    assert_eq!(decided(&lab), (7.0, 2.0));
    works(&lab).await;
    // Peers that wait with a key are not evicted.
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
    let (is_in, _refused) = connect_silently(&lab, [127, 0, 0, 9]).await;
    assert!(!is_in);
    for (introduction, mut first) in waiting {
        let mut second = introduction.connect().await.unwrap();
        second.write_all(b"x").await.unwrap();
        first.read_exact(&mut [0]).await.unwrap();
    }
}

fn data_planes() -> [DataPlane; 3] {
    let data_plane = |method| DataPlane { method, ..DataPlane::on(Workers::on_current_runtime()) };
    [
        data_plane(TransferMethod::Adaptive),
        data_plane(TransferMethod::Copy),
        data_plane(TransferMethod::Splice),
    ]
}

#[tokio::test(start_paused = true)]
async fn session_bandwidth_holds_for_every_transfer_method() {
    for data_plane in data_planes() {
        let settings = [("SessionBandwidth", "1MiB/s")];
        let lab = Lab::start_with(Options::default(), &settings, data_plane.clone()).await.unwrap();
        let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
        let (start, length) = (Instant::now(), 5 * 1024 * 1024);
        let there = async {
            traffic::send(&mut client, 1, length).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (received, ()) = tokio::join!(traffic::receive(&mut host, None), there);
        assert_eq!(
            received.unwrap(),
            (length, traffic::hash(1, length)),
            "{:?}",
            data_plane.method
        );
        // The initial content of the bucket accounts for 50 ms.
        let time = start.elapsed();
        assert!((4900..20_000).contains(&time.as_millis()), "{time:?} {:?}", data_plane.method);
    }
}

#[tokio::test(start_paused = true)]
async fn lifted_bandwidth_limit_no_longer_applies() {
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
    // With the limit, the transfer would take eight minutes.
    assert!((5 * SECOND..60 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn total_bandwidth_is_shared_and_bulk_does_not_delay_a_desktop() {
    for data_plane in data_planes() {
        let settings = [("TotalBandwidth", "4MiB/s"), ("MaxPeerCount", "10")];
        let lab = Lab::start_with(Options::default(), &settings, data_plane.clone()).await.unwrap();
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
        // Delays are measured on the paused clock, which stands still while tasks run and may jump while bytes are in the
        // kernel. So the longest tenth is ignored.
        delays.sort();
        let most = delays[delays.len() * 9 / 10];
        assert!(most <= Duration::from_millis(20), "{most:?} {:?}", data_plane.method);
        let mut times = Vec::new();
        for bulk in bulk {
            times.push(bulk.await.unwrap());
        }
        times.sort();
        // 16 MiB at 4 MiB/s, and no transfer ends long before the others.
        assert!(
            (3900..16_000).contains(&times[3].as_millis()),
            "{times:?} {:?}",
            data_plane.method
        );
        assert!(times[0] * 4 > times[3] * 3, "{times:?} {:?}", data_plane.method);
    }
}

#[tokio::test(start_paused = true)]
async fn other_protocols_on_the_peer_port_are_named_with_a_remedy() {
    let log = CapturedLog::start();
    let lab = lab(&[]).await;
    let callers: [(&[u8], &str); 6] = [
        (b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n", "send-proxy"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "PROXY header (version 2)"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc", "first bytes are TLS"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "first bytes are HTTP"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "first bytes are SSH"),
        // Shorter than a length field, and then nothing.
        (b"\x05\x01\0", "first bytes are SOCKS"),
    ];
    for (bytes, expected) in callers {
        let mut caller = TcpStream::connect(lab.relay.address()).await.unwrap();
        caller.write_all(bytes).await.unwrap();
        let line = log.line(expected).await;
        assert!(line.contains("peer refused") && !line.contains("announces"), "{line}");
    }
    assert_eq!(outcome(&lab, "bad_message"), 6.0);
    // A PROXY header would cause every peer to be refused, so it is a warning, but only once.
    let warnings = log.text().lines().filter(|line| line.contains("WARN")).count();
    assert_eq!(warnings, 1, "{}", log.text());
}
