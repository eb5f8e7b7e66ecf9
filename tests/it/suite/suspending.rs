//! Peers that are suspended before they are paired, and resumed.

use std::net::TcpListener;
use std::time::Duration;

use aspia_relay::peer::session::KeptSessions;
use aspia_relay::state::keys::KeyId;
use relay_lab::log::CapturedLog;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::Setup;
use super::peer_relay::{PeerRelay, introduce, is_closed, listen, send_hello};

for_each_router! {
    #[tokio::test]
    suspended_peers_of_each_state_are_resumed_in_another_relay;
    #[tokio::test]
    suspended_peers_are_resumed_in_the_same_relay;
    #[tokio::test]
    peer_with_half_a_proxy_header_is_resumed_and_keeps_nobody_waiting;
    #[tokio::test]
    health_check_that_is_resumed_is_not_logged;
    #[tokio::test]
    recordings_are_refused_after_the_hand_over;
    #[tokio::test(start_paused = true)]
    deadlines_of_resumed_peers_count_from_when_they_were_accepted;
    #[tokio::test]
    stop_during_the_suspension_closes_the_peers;
}

const SECOND: Duration = Duration::from_secs(1);

/// Peers in each state: silent, in the middle of the first message, and waiting with early data. Returns them with the rest of
/// what they have to send.
async fn peers_of_each_state(
    setup: Setup,
    listener: &TcpListener,
    relay: &PeerRelay,
) -> Vec<(TcpStream, Vec<u8>)> {
    let mut peers = Vec::new();
    for seed in 0..3 {
        let mut bytes = introduce(setup, listener, seed).first_bytes().unwrap();
        let sent = [0, 20, bytes.len()][seed as usize];
        bytes.extend_from_slice(b"early");
        let mut stream = introduce(setup, listener, seed).dial().await.unwrap();
        let sent = if seed == 2 { bytes.len() } else { sent };
        stream.write_all(&bytes[..sent]).await.unwrap();
        peers.push((stream, bytes.split_off(sent)));
    }
    relay.until(|relay| relay.pending() == 3.0 && relay.state.counts().handed_out == 1).await;
    peers
}

/// Lets the rest of each peer arrive, and its partner.
async fn finish_pairing(
    setup: Setup,
    listener: &TcpListener,
    peers: Vec<(TcpStream, Vec<u8>)>,
) -> Vec<(TcpStream, TcpStream)> {
    let mut sessions = Vec::new();
    for (seed, (mut stream, rest)) in (0..).zip(peers) {
        stream.write_all(&rest).await.unwrap();
        let mut partner = introduce(setup, listener, seed).connect().await.unwrap();
        let mut early = [0; 5];
        partner.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        send_hello(&mut stream, &mut partner).await;
        send_hello(&mut partner, &mut stream).await;
        sessions.push((stream, partner));
    }
    sessions
}

async fn suspended_peers_of_each_state_are_resumed_in_another_relay(setup: Setup) {
    let listener = listen();
    let here = PeerRelay::new(setup, &listener, KeptSessions::default());
    let there = PeerRelay::new(setup, &listener, KeptSessions::default());
    here.offer(0..3);
    there.offer(0..3);
    let run = here.run(Vec::new());
    let peers = peers_of_each_state(setup, &listener, &here).await;
    let mut suspended = here.suspend(run).await;
    assert_eq!(here.pending(), 0.0);
    suspended.sort_by_key(|peer| peer.received.expose().len());
    let lengths: Vec<_> = suspended.iter().map(|peer| peer.received.expose().len()).collect();
    let whole = introduce(setup, &listener, 2).first_bytes().unwrap().len();
    assert!(lengths[0] == 0 && lengths[1] <= 20 && lengths[2] == whole, "{lengths:?}");
    let addresses: Vec<_> = peers.iter().map(|(peer, _)| peer.local_addr().unwrap()).collect();
    assert!(suspended.iter().all(|peer| addresses.contains(&peer.address)));
    // Nobody accepts in between, and the connection waits.
    let waiting = introduce(setup, &listener, 0).dial().await.unwrap();
    let run = there.run(suspended);
    there.until(|relay| relay.pending() == 4.0).await;
    drop(waiting);
    let _sessions = finish_pairing(setup, &listener, peers).await;
    there.has_sessions(3).await;
    assert_eq!(here.state.counts().active, 0);
    there.stop.cancel();
    assert!(run.await.unwrap().is_empty());
}

async fn suspended_peers_are_resumed_in_the_same_relay(setup: Setup) {
    let listener = listen();
    let relay = PeerRelay::new(setup, &listener, KeptSessions::default());
    relay.offer(0..4);
    let run = relay.run(Vec::new());
    let (mut client, mut host) = introduce(setup, &listener, 3).session().await.unwrap();
    let peers = peers_of_each_state(setup, &listener, &relay).await;
    let suspended = relay.suspend(run).await;
    assert_eq!(suspended.len(), 3);
    // Sessions continue meanwhile.
    send_hello(&mut client, &mut host).await;
    // The second run is not suspended by the request for the first.
    let run = relay.run(suspended);
    let _sessions = finish_pairing(setup, &listener, peers).await;
    send_hello(&mut host, &mut client).await;
    relay.has_sessions(4).await;
    assert_eq!(relay.count("aspia_relay_peer_connections_total", "paired"), 8.0);
    assert!(!run.is_finished());
    relay.stop.cancel();
    assert!(run.await.unwrap().is_empty());
    is_closed(&mut client).await;
}

async fn peer_with_half_a_proxy_header_is_resumed_and_keeps_nobody_waiting(setup: Setup) {
    let header =
        |peer: u8| format!("PROXY TCP4 203.0.113.{peer} 192.0.2.5 5123 8070\r\n").into_bytes();
    let listener = listen();
    let relay = || {
        let settings = [("ProxyProtocolFrom", "127.0.0.1")];
        PeerRelay::with_settings(setup, &listener, KeptSessions::default(), &settings)
    };
    let (here, there) = (relay(), relay());
    here.offer(0..2);
    there.offer(0..2);
    let run = here.run(Vec::new());
    let connect = async |seed, bytes: &[u8]| {
        let mut stream = introduce(setup, &listener, seed).dial().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    };
    let message = |seed| introduce(setup, &listener, seed).first_bytes().unwrap();
    let (half, rest) = (header(1)[..20].to_vec(), header(1)[20..].to_vec());
    let mut slow = connect(0, &half).await;
    here.until(|relay| relay.pending() == 1.0).await;
    let suspended = here.suspend(run).await;
    assert!(suspended.len() == 1 && suspended[0].awaits_proxy_header);
    let run = there.run(suspended);
    // Others meet while the rest of its header has not arrived.
    let mut client = connect(1, &[header(2), message(1)].concat()).await;
    let mut host = connect(1, &[header(3), message(1)].concat()).await;
    send_hello(&mut client, &mut host).await;
    assert_eq!(there.pending(), 1.0, "the one that was resumed is still there");
    // It is the peer that its whole header names.
    slow.write_all(&[rest, message(0)].concat()).await.unwrap();
    let mut partner = connect(0, &[header(4), message(0)].concat()).await;
    send_hello(&mut slow, &mut partner).await;
    let sessions = there.state.sessions();
    let address = "203.0.113.1:5123".parse().unwrap();
    assert!(sessions.iter().any(|session| session.addresses.contains(&address)), "{sessions:?}");
    there.stop.cancel();
    assert!(run.await.unwrap().is_empty());
}

async fn health_check_that_is_resumed_is_not_logged(setup: Setup) {
    let log = CapturedLog::start();
    let listener = listen();
    let relay = || {
        let settings = [("ProxyProtocolFrom", "127.0.0.1")];
        PeerRelay::with_settings(setup, &listener, KeptSessions::default(), &settings)
    };
    let (here, there) = (relay(), relay());
    // Its header is there when it is accepted, so it is read before anything else.
    let mut check = introduce(setup, &listener, 0).dial().await.unwrap();
    check.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
    let run = here.run(Vec::new());
    here.until(|relay| relay.pending() == 1.0).await;
    let suspended = here.suspend(run).await;
    assert!(suspended.len() == 1 && !suspended[0].awaits_proxy_header);
    let run = there.run(suspended);
    there.until(|relay| relay.pending() == 1.0).await;
    drop(check);
    there.until(|relay| relay.count("aspia_relay_peer_connections_total", "closed") == 1.0).await;
    assert!(!log.text().contains("peer refused"), "{}", log.text());
    there.stop.cancel();
    assert!(run.await.unwrap().is_empty());
}

async fn recordings_are_refused_after_the_hand_over(setup: Setup) {
    let listener = listen();
    let introduction = introduce(setup, &listener, 0);
    let here = PeerRelay::new(setup, &listener, KeptSessions::default());
    let there = PeerRelay::new(setup, &listener, KeptSessions::default());
    here.offer(0..1);
    there.offer(0..1);
    let run = here.run(Vec::new());
    let send = async |bytes: &[u8]| {
        let mut stream = introduction.dial().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    };
    let (gone, first) = (introduction.first_bytes().unwrap(), introduction.first_bytes().unwrap());
    let leaves = send(&gone).await;
    here.until(|relay| relay.state.counts().handed_out == 1).await;
    drop(leaves);
    here.until(|relay| relay.count("aspia_relay_peer_connections_total", "closed") == 1.0).await;
    let mut waits = send(&first).await;
    here.until(|relay| relay.peers.seen_keys(KeyId(0)).len() == 2 && relay.pending() == 1.0).await;
    // An attacker's copies arrive before the peer is resumed.
    let suspended = here.suspend(run).await;
    let mut copies = [send(&gone).await, send(&first).await];
    there.peers.restore_seen(KeyId(0), here.peers.seen_keys(KeyId(0)));
    let run = there.run(suspended);
    for copy in &mut copies {
        is_closed(copy).await;
    }
    assert_eq!(there.count("aspia_relay_peer_connections_total", "bad_message"), 2.0);
    let mut partner = introduction.connect().await.unwrap();
    send_hello(&mut waits, &mut partner).await;
    there.stop.cancel();
    run.await.unwrap();
}

async fn deadlines_of_resumed_peers_count_from_when_they_were_accepted(setup: Setup) {
    let listener = listen();
    let here = PeerRelay::new(setup, &listener, KeptSessions::default());
    let there = PeerRelay::new(setup, &listener, KeptSessions::default());
    here.offer(0..1);
    there.offer(0..1);
    let run = here.run(Vec::new());
    let start = Instant::now();
    let mut silent = introduce(setup, &listener, 0).dial().await.unwrap();
    let mut waits = introduce(setup, &listener, 0).connect().await.unwrap();
    here.until(|relay| relay.pending() == 2.0 && relay.state.counts().handed_out == 1).await;
    sleep(6 * SECOND).await;
    let suspended = here.suspend(run).await;
    assert!(suspended.iter().all(|peer| peer.age >= 6 * SECOND), "{suspended:?}");
    let run = there.run(suspended);
    is_closed(&mut silent).await;
    assert!((9 * SECOND..=11 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    sleep(12 * SECOND).await;
    is_closed(&mut waits).await;
    assert!((29 * SECOND..=31 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(there.count("aspia_relay_peer_connections_total", "timeout"), 2.0);
    there.stop.cancel();
    run.await.unwrap();
}

async fn stop_during_the_suspension_closes_the_peers(setup: Setup) {
    let listener = listen();
    let relay = PeerRelay::new(setup, &listener, KeptSessions::default());
    relay.offer(0..3);
    let run = relay.run(Vec::new());
    let peers = peers_of_each_state(setup, &listener, &relay).await;
    relay.suspend.cancel();
    relay.stop.cancel();
    assert!(run.await.unwrap().is_empty());
    for (mut peer, _) in peers {
        is_closed(&mut peer).await;
    }
    assert_eq!(relay.count("aspia_relay_peer_connections_total", "draining"), 3.0);
}
