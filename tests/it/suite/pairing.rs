//! Peers: first messages, pairing, waiting, expiry.

use std::time::Duration;

use aspia_relay::wire::peer;
use relay_lab::log::CapturedLog;
use relay_lab::peer::Introduction;
use relay_lab::relay::Lab;
use relay_lab::traffic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::Setup;

for_each_router! {
    #[tokio::test(start_paused = true)]
    first_message_may_arrive_one_byte_at_a_time;
    #[tokio::test]
    early_data_in_the_first_segment_arrives_whole;
    #[tokio::test(start_paused = true)]
    peer_may_arrive_before_the_routers_notice;
    #[tokio::test(start_paused = true)]
    expired_key_is_replaced_and_its_peer_closed;
    #[tokio::test(start_paused = true)]
    lone_peer_is_closed_after_30_seconds;
    #[tokio::test(start_paused = true)]
    key_survives_a_first_peer_that_leaves;
    #[tokio::test(start_paused = true)]
    reset_while_waiting_is_noticed;
    #[tokio::test(start_paused = true)]
    replayed_first_message_is_not_a_second_peer;
    #[tokio::test(start_paused = true)]
    peers_with_different_secrets_are_not_paired;
    #[tokio::test(start_paused = true)]
    invalid_first_messages_are_closed_silently_and_cost_nothing;
    #[tokio::test(start_paused = true)]
    silent_connection_is_closed_after_10_seconds;
    #[tokio::test(start_paused = true)]
    pending_connections_are_bounded;
    #[tokio::test(start_paused = true)]
    peer_identity_is_logged_only_on_request;
    #[tokio::test(start_paused = true)]
    accounting_is_consistent_whatever_peers_do;
}

const SECOND: Duration = Duration::from_secs(1);

async fn lab(setup: Setup, max_peers: &str) -> Lab {
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", max_peers)]).await.unwrap();
    lab.router.keys(max_peers.parse().unwrap()).await;
    lab
}

/// Waits until the relay has closed or reset the connection, which must happen before it sends a byte.
async fn wait_until_closed(stream: &mut TcpStream) {
    match stream.read(&mut [0; 16]).await {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

async fn send_hello(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    to.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

/// Waits until the counts of the state meet a condition.
async fn wait_for_counts(
    lab: &Lab,
    condition: impl Fn(aspia_relay::state::keys::StateCounts) -> bool,
) {
    while !condition(lab.relay.handle().state().counts()) {
        sleep(Duration::from_millis(5)).await;
    }
}

async fn first_message_may_arrive_one_byte_at_a_time(setup: Setup) {
    let lab = lab(setup, "2").await;
    let introduction = lab.router.introduce().await.unwrap();
    let mut host = introduction.connect().await.unwrap();
    let mut client = introduction.dial().await.unwrap();
    let mut bytes = introduction.first_bytes().unwrap();
    bytes.extend_from_slice(b"hello");
    for byte in bytes {
        client.write_all(&[byte]).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    let mut heard = [0; 5];
    host.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

async fn early_data_in_the_first_segment_arrives_whole(setup: Setup) {
    let lab = lab(setup, "4").await;
    for early in [1, 100, 1024 * 1024] {
        // The Router does not send its notice, so the key counts as handed out only once a first message has opened.
        let introduction = lab.router.introduce_silently().await.unwrap();
        let sent = traffic::Stream::bytes(3, early);
        let first = introduction.clone();
        let client = tokio::spawn(async move { first.connect_with(&sent).await.unwrap() });
        // The partner connects only after the first peer has begun to wait.
        wait_for_counts(&lab, |counts| counts.handed_out > 0).await;
        let mut host = introduction.connect().await.unwrap();
        let received = traffic::receive(&mut host, Some(early as u64)).await.unwrap();
        assert_eq!(received, (early as u64, traffic::hash(3, early as u64)));
        drop(client.await.unwrap());
    }
}

async fn peer_may_arrive_before_the_routers_notice(setup: Setup) {
    let lab = lab(setup, "3").await;
    let introduction = lab.router.introduce_silently().await.unwrap();
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    send_hello(&mut client, &mut host).await;
    lab.router.tell_used(introduction.key_id).await;
    send_hello(&mut host, &mut client).await;
    let counts = lab.relay.handle().state().counts();
    assert_eq!((counts.offered, counts.handed_out, counts.active), (2, 0, 1));
}

async fn expired_key_is_replaced_and_its_peer_closed(setup: Setup) {
    let lab = lab(setup, "2").await;
    let introduction = lab.router.introduce().await.unwrap();
    let start = Instant::now();
    wait_for_counts(&lab, |counts| counts.handed_out == 1).await;
    sleep(20 * SECOND).await;
    let mut first = introduction.connect().await.unwrap();
    wait_until_closed(&mut first).await;
    let waited = start.elapsed();
    assert!((29 * SECOND..=31 * SECOND).contains(&waited), "{waited:?}");
    // A new key is offered in its place, and the old key is no longer valid.
    let view = lab.router.keys(2).await;
    assert!(view.pool.iter().all(|key| key.key_id != introduction.key_id));
    wait_until_closed(&mut introduction.connect().await.unwrap()).await;
}

async fn lone_peer_is_closed_after_30_seconds(setup: Setup) {
    let lab = lab(setup, "2").await;
    let introduction = lab.router.introduce_silently().await.unwrap();
    let mut stream = introduction.dial().await.unwrap();
    let start = Instant::now();
    sleep(5 * SECOND).await;
    stream.write_all(&introduction.first_bytes().unwrap()).await.unwrap();
    wait_until_closed(&mut stream).await;
    assert!((29 * SECOND..=31 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    // Its key stays valid for its own 30 s, and other peers can use it.
    assert_eq!(lab.relay.handle().state().counts().handed_out, 1);
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    send_hello(&mut client, &mut host).await;
}

async fn key_survives_a_first_peer_that_leaves(setup: Setup) {
    let lab = lab(setup, "3").await;
    let log = CapturedLog::start();
    // With early data, and without: the end behind unread bytes must be seen, too (on Windows it is not:
    // docs/install-windows.md).
    let cases: &[&[u8]] = if cfg!(windows) { &[b""] } else { &[b"", b"early data"] };
    for early in cases {
        let introduction = lab.router.introduce().await.unwrap();
        for _ in 0..2 {
            let gone = introduction.connect_with(early).await.unwrap();
            sleep(SECOND).await;
            drop(gone);
            sleep(SECOND).await;
        }
        let (mut client, mut host) = introduction.connect_both().await.unwrap();
        send_hello(&mut client, &mut host).await;
        send_hello(&mut host, &mut client).await;
    }
    assert_eq!(log.text().matches("went away while it waited").count(), 2 * cases.len());
}

async fn reset_while_waiting_is_noticed(setup: Setup) {
    let lab = lab(setup, "1").await;
    let introduction = lab.router.introduce().await.unwrap();
    let log = CapturedLog::start();
    let first = introduction.connect_with(b"early").await.unwrap();
    sleep(SECOND).await;
    socket2::SockRef::from(&first).set_linger(Some(Duration::ZERO)).unwrap();
    drop(first);
    log.line("went away while it waited").await;
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    send_hello(&mut client, &mut host).await;
}

async fn replayed_first_message_is_not_a_second_peer(setup: Setup) {
    let lab = lab(setup, "1").await;
    let log = CapturedLog::start();
    let introduction = lab.router.introduce().await.unwrap();
    let recorded = introduction.first_message().unwrap();
    let send = async |message: &peer::PeerToRelay| {
        let mut stream = introduction.dial().await.unwrap();
        stream.write_all(&peer::encode_first_message(message).unwrap()).await.unwrap();
        stream
    };
    let mut first = send(&recorded).await;
    sleep(SECOND).await;
    wait_until_closed(&mut send(&recorded).await).await;
    // The same point in another encoding.
    let mut other_form = recorded.clone();
    other_form.public_key[31] ^= 0x80;
    wait_until_closed(&mut send(&other_form).await).await;
    // The key of AES-256-GCM depends on the encoding of the point, so such a copy does not even open.
    let (replays, failures) = if setup.router.is_v3() { (1, 1) } else { (2, 0) };
    assert_eq!(log.text().matches("received before").count(), replays);
    assert_eq!(log.text().matches("does not open").count(), failures);
    // The first still waits, and is paired with a real partner.
    let mut second = introduction.connect().await.unwrap();
    send_hello(&mut second, &mut first).await;
    // The key is used up, for the recording as well as for a new peer.
    wait_until_closed(&mut send(&recorded).await).await;
    wait_until_closed(&mut introduction.connect().await.unwrap()).await;
}

async fn peers_with_different_secrets_are_not_paired(setup: Setup) {
    let lab = lab(setup, "1").await;
    let introduction = lab.router.introduce().await.unwrap();
    let mut first = introduction.connect().await.unwrap();
    sleep(SECOND).await;
    let mut secret = introduction.secret.clone();
    secret[5] ^= 1;
    let other = Introduction { secret, ..introduction.clone() };
    wait_until_closed(&mut other.connect().await.unwrap()).await;
    let mut second = introduction.connect().await.unwrap();
    send_hello(&mut first, &mut second).await;
}

async fn invalid_first_messages_are_closed_silently_and_cost_nothing(setup: Setup) {
    let log = CapturedLog::start();
    let lab = lab(setup, "2").await;
    let introduction = lab.router.introduce().await.unwrap();
    wait_for_counts(&lab, |counts| counts.handed_out == 1).await;
    let good = introduction.first_message().unwrap();
    let change = |change: fn(&mut peer::PeerToRelay)| {
        let mut message = good.clone();
        change(&mut message);
        peer::encode_first_message(&message).unwrap()
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![0, 0, 0, 0], "announces 0"),
        (vec![0, 0, 0x40, 1], "announces 16385"),
        (vec![0xff; 4], "announces 4294967295"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "its first bytes are HTTP"),
        (vec![0, 0, 0, 3, 0xff, 0xff, 0xff], "cannot be read"),
        (vec![0, 0, 0x40, 0].into_iter().chain(vec![0xff; 0x4000]).collect(), "cannot be read"),
        (change(|m| m.key_id ^= 0x4000_0000), "unknown key"),
        (change(|m| m.encryption = 3), "cipher 3"),
        (change(|m| m.encryption = if m.encryption == 2 { 0 } else { 2 }), "does not open"),
        (change(|m| m.public_key.truncate(31)), "has 32 bytes"),
        (change(|m| m.public_key = vec![0; 32]), "low-order"),
        (change(|m| m.public_key[3] ^= 1), "does not open"),
        (change(|m| m.data[20] ^= 1), "does not open"),
        (change(|m| m.data.truncate(10)), "at least 16"),
    ];
    for (bytes, expected) in cases {
        let before = log.text().len();
        let mut stream = introduction.dial().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        wait_until_closed(&mut stream).await;
        let new = log.text()[before..].to_owned();
        assert!(new.contains(expected), "{expected}: {new}");
    }
    // The connection is closed or reset in the middle of the message.
    for linger in [None, Some(Duration::ZERO)] {
        let mut stream = introduction.dial().await.unwrap();
        stream.write_all(&introduction.first_bytes().unwrap()[..40]).await.unwrap();
        sleep(SECOND).await;
        socket2::SockRef::from(&stream).set_linger(linger).unwrap();
    }
    log.line("closed before the first message was complete").await;
    assert!(!log.text().contains("WARN") && !log.text().contains("ERROR"), "{}", log.text());
    assert_eq!(lab.relay.handle().state().counts().handed_out, 1);
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    send_hello(&mut client, &mut host).await;
}

async fn silent_connection_is_closed_after_10_seconds(setup: Setup) {
    let lab = lab(setup, "1").await;
    let introduction = lab.router.introduce_silently().await.unwrap();
    let start = Instant::now();
    let mut silent = introduction.dial().await.unwrap();
    let mut slow = introduction.dial().await.unwrap();
    slow.write_all(&introduction.first_bytes().unwrap()[..20]).await.unwrap();
    wait_until_closed(&mut silent).await;
    wait_until_closed(&mut slow).await;
    assert!((9 * SECOND..=11 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

async fn pending_connections_are_bounded(setup: Setup) {
    let log = CapturedLog::start();
    let settings = [("MaxPeerCount", "2"), ("MaxPendingPeers", "3")];
    let lab = Lab::start(setup.options(), &settings).await.unwrap();
    lab.router.keys(2).await;
    let introduction = lab.router.introduce().await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(introduction.dial().await.unwrap());
    }
    sleep(SECOND).await;
    // Later silent connections evict the earlier ones, and peers with a first message evict them in turn.
    silent.push(introduction.dial().await.unwrap());
    wait_until_closed(&mut silent.remove(0)).await;
    assert!(log.text().contains("MaxPendingPeers"));
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    send_hello(&mut client, &mut host).await;
    silent.push(introduction.dial().await.unwrap());
    // Peers with a key are not evicted.
    let second = lab.router.introduce().await.unwrap();
    let mut first = second.connect().await.unwrap();
    for _ in 0..20 {
        silent.push(introduction.dial().await.unwrap());
        sleep(SECOND / 100).await;
    }
    let mut partner = second.connect().await.unwrap();
    send_hello(&mut first, &mut partner).await;
    drop((first, partner, client, host));
    let kept: usize = lab.relay.handle().peer_metrics().pending().try_into().unwrap();
    assert!(kept <= 3, "{kept}");
    let mut next = lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    send_hello(&mut next.0, &mut next.1).await;
}

async fn peer_identity_is_logged_only_on_request(setup: Setup) {
    for (asked, seen) in [("false", false), ("true", true)] {
        let log = CapturedLog::start();
        let settings = [("MaxPeerCount", "1"), ("LogPeerIdentity", asked)];
        let lab = Lab::start(setup.options(), &settings).await.unwrap();
        lab.router.keys(1).await;
        let introduction = lab.router.introduce().await.unwrap();
        let (mut client, mut host) = introduction.connect_both().await.unwrap();
        send_hello(&mut client, &mut host).await;
        drop((client, host));
        log.line("session ended").await;
        let text = log.text();
        assert_eq!(text.contains("operator") && text.contains("1234"), seen, "{text}");
        assert!(!text.contains(&hex::encode(&introduction.secret)));
    }
}

async fn accounting_is_consistent_whatever_peers_do(setup: Setup) {
    let lab = lab(setup, "40").await;
    let state = lab.relay.handle().state().clone();
    let mut tasks = tokio::task::JoinSet::new();
    // Peers connect, leave early, reconnect, never connect, or connect three at a time, in every combination.
    for round in 0..400u64 {
        let introduction = lab.router.introduce().await.unwrap();
        tasks.spawn(async move {
            let pause = |n: u64| sleep(Duration::from_millis(round * 7919 % 97 * n));
            let first = introduction.connect_with(b"early").await.unwrap();
            pause(1).await;
            if round % 3 == 0 {
                drop(first);
                pause(round % 2).await;
                let again = introduction.connect().await.unwrap();
                pause(2).await;
                drop((introduction.connect().await.unwrap(), again));
            } else if round % 3 == 1 {
                let second = introduction.connect();
                let third = introduction.connect();
                let (second, third) = tokio::join!(second, third);
                // The first peer may leave at the moment when it is paired.
                drop(first);
                pause(1).await;
                drop((second.unwrap(), third.unwrap()));
            } else {
                drop(first);
            }
        });
        let counts = state.counts();
        assert!(
            counts.ordered + counts.offered + counts.handed_out + counts.active <= 40,
            "{counts:?}"
        );
        if round % 20 == 0 {
            sleep(SECOND).await;
        }
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    sleep(40 * SECOND).await;
    lab.router.keys(40).await;
    let counts = state.counts();
    assert_eq!((counts.offered, counts.handed_out, counts.active), (40, 0, 0));
    assert!(state.is_empty() && state.sessions().is_empty());
    assert_eq!(lab.router.view().links, 1);
}
