//! The link to the Router, against the laboratory's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use aspia_relay::crypto::{Cipher, has_hardware_aes};
use aspia_relay::link::dialect::Frame;
use aspia_relay::wire::router::{ServerHello, Version};
use bytes::Bytes;
use prost::Message;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay};
use relay_lab::router::{Behaviour, LabRouter, Options, RouterVersion};
use relay_lab::traffic;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// A session over `lab` carries a few bytes each way.
async fn carries_bytes(lab: &Lab) {
    let (mut client, mut host) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    traffic::send(&mut client, 1, 1000).await.unwrap();
    traffic::send(&mut host, 2, 1000).await.unwrap();
    let at_host = traffic::receive(&mut host, Some(1000)).await.unwrap();
    let at_client = traffic::receive(&mut client, Some(1000)).await.unwrap();
    assert_eq!(at_host, (1000, traffic::hash(1, 1000)));
    assert_eq!(at_client, (1000, traffic::hash(2, 1000)));
}

#[tokio::test(start_paused = true)]
async fn every_router_version_and_cipher() {
    let mut ciphers = vec![Cipher::ChaCha20Poly1305];
    if has_hardware_aes() {
        ciphers.push(Cipher::Aes256Gcm);
    } else {
        relay_lab::skip("AES-256-GCM on the link", "this CPU has no AES instructions");
    }
    for version in [RouterVersion::V2_7, RouterVersion::V2_6, RouterVersion::V2_5] {
        for &cipher in &ciphers {
            let options = Options { version, cipher: Some(cipher), ..Options::default() };
            let settings = [
                ("MaxPeerCount", "3"),
                ("DisplayName", "relay 7"),
                ("StatisticsEnabled", "true"),
                ("StatisticsInterval", "1"),
            ];
            let lab = Lab::start(options, &settings).await.unwrap();
            let view = lab.router.keys(3).await;
            assert_eq!(view.cipher, Some(cipher));
            assert_eq!(
                (view.peer_host.as_str(), view.peer_port),
                ("127.0.0.1", u32::from(lab.relay.address().port()))
            );
            assert_eq!(view.relay.unwrap().computer_name, "relay 7");
            carries_bytes(&lab).await;
            lab.router.wait_for(|view| view.statistics_count > 0).await;
            assert_eq!(lab.router.view().complaints, [""; 0]);
        }
    }
}

#[tokio::test]
async fn the_best_cipher_is_offered() {
    let lab = Lab::start(Options::default(), &[]).await.unwrap();
    let expected = if has_hardware_aes() { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
    assert_eq!(lab.router.keys(100).await.cipher, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn every_failure_is_a_line_that_says_what_to_do() {
    let hello = |version| {
        let hello = ServerHello { encryption: 1, iv: vec![0; 12], version }.encode_to_vec();
        [&[u8::try_from(hello.len()).unwrap()], hello.as_slice()].concat()
    };
    let cases = [
        (Behaviour::WrongKey, "does not hold the private key for RouterPublicKey; copy"),
        (Behaviour::NoRelaySessions, "takes no relay sessions"),
        (Behaviour::CloseAtOnce, "closed the connection before authentication"),
        (Behaviour::CloseAfterAuthentication, "white list"),
        (Behaviour::Silent, "did not authenticate within 60 s"),
        (Behaviour::Answer(hello(Some(Version::new(2, 6, 0)))), "version 2.6.0"),
        (Behaviour::Answer(vec![2, 0xff, 0xff]), "ServerHello cannot be read"),
        (
            Behaviour::Answer(vec![0, 7, 0, 0, 0, 0, 0, 0, 0]),
            "does not speak as an Aspia Router does (a service frame of type 7",
        ),
        (Behaviour::Answer(vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 9]), "a ping that was never sent"),
        (Behaviour::Answer(vec![0xff; 4]), "the longest allowed"),
        (
            Behaviour::Answer([b"HTTP/1.1 400 Bad Request\r\n", [b' '; 99].as_slice()].concat()),
            "ServerHello cannot be read",
        ),
        (
            Behaviour::Answer(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
            "did not authenticate within 60 s",
        ),
    ];
    let log = CapturedLog::start();
    let mut seen = 0;
    let lab = Lab::start(Options { behaviour: Behaviour::Silent, ..Options::default() }, &[])
        .await
        .unwrap();
    for (behaviour, expected) in cases {
        println!("{behaviour:?}");
        lab.router.set(|options| options.behaviour = behaviour);
        loop {
            if log.text()[seen..].contains(expected) {
                break;
            }
            sleep(SECOND).await;
        }
        seen = log.text().len();
    }
    // And it is back by itself as soon as the Router is good.
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    lab.router.keys(100).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_router_has_a_minute() {
    // Two answers: 50 s in all are in time, 80 s are not.
    let slow = |seconds| Options { delay: seconds * SECOND, ..Options::default() };
    let lab = Lab::start(slow(25), &[("MaxPeerCount", "2")]).await.unwrap();
    assert_eq!(lab.router.keys(2).await.connections, 1);
    let log = CapturedLog::start();
    let lab = Lab::start(slow(40), &[("MaxPeerCount", "2")]).await.unwrap();
    log.line("did not authenticate within 60 s").await;
    lab.router.set(|options| options.delay = Duration::ZERO);
    lab.router.keys(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_names_the_address() {
    let log = CapturedLog::start();
    let router = LabRouter::start(Options::default()).await.unwrap();
    let (address, key) = (router.address(), router.public_key());
    drop(router);
    let _relay = Relay::start(address, key, &[]).unwrap();
    let line = log.line("Router link: cannot connect").await;
    assert!(line.contains("refused") && line.contains(&address.to_string()), "{line}");
}

#[tokio::test(start_paused = true)]
async fn reconnects_for_ever_and_soon_after_a_good_link() {
    // In one dialect, so that a try is a connection.
    let settings = [("MaxPeerCount", "2"), ("RouterProtocol", "2")];
    let lab = Lab::start(Options::default(), &settings).await.unwrap();
    lab.router.keys(2).await;
    // A link that lasted: the next comes within a second.
    for links in 2..5 {
        sleep(60 * SECOND).await;
        let lost = Instant::now();
        lab.router.drop_link().await;
        lab.router.wait_for(|view| view.links == links).await;
        assert!(lost.elapsed() <= SECOND, "{:?}", lost.elapsed());
    }
    // Links that the Router ends at once: tries grow apart, and stay within 15 s.
    lab.router.set(|options| options.behaviour = Behaviour::CloseAtOnce);
    lab.router.drop_link().await;
    let mut gaps = Vec::new();
    for _ in 0..10 {
        let (before, connections) = (Instant::now(), lab.router.view().connections);
        lab.router.wait_for(|view| view.connections > connections).await;
        gaps.push(before.elapsed());
    }
    assert!(gaps.iter().all(|gap| *gap <= 15 * SECOND), "{gaps:?}");
    assert!(gaps[6..].iter().all(|gap| *gap >= 7 * SECOND), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn key_ids_are_never_used_twice_and_start_anywhere() {
    let mut bases = std::collections::HashSet::new();
    for _ in 0..4 {
        let lab = Lab::start(Options::default(), &[("MaxPeerCount", "5")]).await.unwrap();
        for links in 1..4 {
            lab.router.wait_for(|view| view.links == links && view.pool.len() == 5).await;
            lab.router.drop_link().await;
        }
        let mut ids =
            lab.router.wait_for(|view| view.links == 4 && view.pool.len() == 5).await.key_ids;
        assert_eq!(ids.len(), 20);
        bases.insert(ids[0]);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 20);
    }
    assert!(bases.len() > 1, "{bases:?}");
}

#[tokio::test]
async fn twenty_thousand_keys_come_in_pieces() {
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "20000")]).await.unwrap();
    let first = lab.router.wait_for(|view| view.first_key.is_some()).await;
    let view = lab.router.keys(20_000).await;
    let all = view.authenticated.unwrap().elapsed();
    let first = first.first_key.unwrap() - view.authenticated.unwrap();
    // How long it took is for people to read: a shared machine decides nothing here.
    println!("first key after {first:?}, all 20 000 after {all:?}");
    assert_eq!(lab.relay.handle().state().counts().offered, 20_000);
    assert_eq!(view.complaints, [""; 0]);
    carries_bytes(&lab).await;
}

#[tokio::test(start_paused = true)]
async fn keep_alive_works_both_ways() {
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "1")]).await.unwrap();
    lab.router.keys(1).await;
    for data in [&b"x"[..], &[0; 4], &[7; 5000]] {
        lab.router.send_frame(Frame::Ping(Bytes::copy_from_slice(data))).await;
    }
    let view = lab.router.wait_for(|view| view.pongs.len() == 3).await;
    assert_eq!(view.pongs, [b"x".to_vec(), vec![0; 4], vec![7; 5000]]);
    let start = Instant::now();
    lab.router.wait_for(|view| view.pings == 3).await;
    assert!(
        start.elapsed() <= 181 * SECOND && start.elapsed() >= 178 * SECOND,
        "{:?}",
        start.elapsed()
    );
    assert_eq!(lab.router.view().links, 1);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_hangs_is_noticed() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "1")]).await.unwrap();
    lab.router.keys(1).await;
    let start = Instant::now();
    lab.router.hang().await;
    log.line("did not answer a ping within 30 s").await;
    assert!(start.elapsed() <= 91 * SECOND, "{:?}", start.elapsed());
    lab.router.wait_for(|view| view.links == 2 && view.linked).await;
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_protocol_ends_the_link_and_nothing_else() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "3")]).await.unwrap();
    lab.router.keys(3).await;
    let (mut client, mut host) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    let bytes: [(&[u8], &str); 7] = [
        (&[0, 2, 0, 0, 0, 1, 0, 0, 0, 5], "service frame of type 2"),
        (&[0, 1, 0, 0, 0, 0, 0, 0, 0], "keep-alive without data"),
        (&[0, 1, 0, 0, 0, 1, 0, 0, 0, 5], "a ping that was never sent"),
        (&[0xff, 0xff, 0xff, 0xff], "the longest allowed"),
        (&[1, 0], "too short for its channel header"),
        (&[6, 0, 0, 1, 2, 3, 4], "at least 16 bytes"),
        (
            &[20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18],
            "does not open",
        ),
    ];
    for (links, (bytes, expected)) in (2..).zip(bytes) {
        println!("{expected}");
        lab.router.send_bytes(bytes.to_vec()).await;
        log.line(expected).await;
        lab.router.wait_for(|view| view.links == links && view.pool.len() == 2).await;
    }
    // The session has seen nothing of it.
    traffic::send(&mut client, 1, 100_000).await.unwrap();
    let received = traffic::receive(&mut host, Some(100_000)).await.unwrap();
    assert_eq!(received.1, traffic::hash(1, 100_000));
}

#[tokio::test(start_paused = true)]
async fn a_link_that_ends_inside_a_frame_has_ended() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "1")]).await.unwrap();
    lab.router.keys(1).await;
    sleep(40 * SECOND).await;
    lab.router.send_bytes(vec![100, 0, 0, 1, 2]).await;
    lab.router.drop_link().await;
    log.line("Router link: closed by the Router").await;
    lab.router.wait_for(|view| view.links == 2 && view.pool.len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn messages_that_mean_nothing_are_logged_and_ignored() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "2")]).await.unwrap();
    lab.router.keys(2).await;
    lab.router.send_sealed(vec![0xff; 5]).await;
    log.line("cannot be read; ignored").await;
    lab.router.send_sealed(Vec::new()).await;
    log.line("says nothing that this relay knows").await;
    lab.router.tell_used(lab.router.view().key_ids[0].wrapping_sub(1)).await;
    log.line("not on offer").await;
    lab.router.disconnect(77).await;
    log.line("a session that is not there").await;
    lab.router.request_nonsense().await;
    log.line("asks for something unknown").await;
    assert_eq!(lab.router.view().links, 1);
    carries_bytes(&lab).await;
}

#[tokio::test(start_paused = true)]
async fn statistics_count_every_byte() {
    let settings = [("StatisticsEnabled", "true"), ("StatisticsInterval", "5")];
    let lab = Lab::start(Options::default(), &settings).await.unwrap();
    lab.router.keys(100).await;
    let introduction = lab.router.introduce().await.unwrap();
    // What came before pairing counts, the first message does not.
    let mut client = introduction.connect_with(&traffic::Stream::bytes(1, 5000)).await.unwrap();
    let mut host = introduction.connect().await.unwrap();
    assert_eq!(traffic::receive(&mut host, Some(5000)).await.unwrap().1, traffic::hash(1, 5000));
    traffic::send(&mut host, 2, 70_000).await.unwrap();
    traffic::receive(&mut client, Some(70_000)).await.unwrap();
    let moved = Instant::now();
    let view = lab
        .router
        .wait_for(|view| {
            view.statistics
                .as_ref()
                .is_some_and(|s| s.peer_connection.first().is_some_and(|peer| peer.idle_time >= 7))
        })
        .await;
    let statistics = view.statistics.unwrap();
    let [peer] = statistics.peer_connection.as_slice() else {
        panic!("{statistics:?}");
    };
    assert_eq!((peer.session_id, peer.status, peer.bytes_transferred), (1, 1, 75_000));
    assert_eq!(peer.client_address, "192.0.2.10");
    assert_eq!(peer.client_user_name, "operator");
    assert_eq!(peer.host_address, "198.51.100.7");
    assert_eq!(peer.host_id, 1234);
    let since = i64::try_from(moved.elapsed().as_secs()).unwrap();
    assert!((since - 1..=since + 1).contains(&peer.idle_time), "{peer:?} {since}");
    assert!(peer.duration >= peer.idle_time && statistics.uptime >= peer.duration);
    // Without a session, the uptime alone.
    drop((client, host));
    let view = lab
        .router
        .wait_for(|view| view.statistics.as_ref().is_some_and(|s| s.peer_connection.is_empty()))
        .await;
    assert!(view.statistics.unwrap().uptime > statistics.uptime);
}

#[tokio::test(start_paused = true)]
async fn the_router_can_end_a_session() {
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "2")]).await.unwrap();
    lab.router.keys(2).await;
    let (mut client, mut host) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    let (mut other, mut third) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    traffic::send(&mut client, 1, 10).await.unwrap();
    traffic::receive(&mut host, Some(10)).await.unwrap();
    traffic::send(&mut other, 1, 10).await.unwrap();
    traffic::receive(&mut third, Some(10)).await.unwrap();
    lab.router.disconnect(1).await;
    assert_eq!(traffic::receive(&mut client, None).await.unwrap().0, 0);
    assert_eq!(traffic::receive(&mut host, None).await.unwrap().0, 0);
    // Its place is offered again, and the other session lives.
    lab.router.keys(1).await;
    traffic::send(&mut third, 1, 10).await.unwrap();
    traffic::receive(&mut other, Some(10)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_takes_nothing_from_those_who_are_here() {
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "5")]).await.unwrap();
    lab.router.keys(5).await;
    let (mut client, mut host) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    traffic::send(&mut client, 1, 10).await.unwrap();
    traffic::receive(&mut host, Some(10)).await.unwrap();
    let waiting = lab.router.introduce().await.unwrap();
    let mut first = waiting.connect().await.unwrap();
    let on_the_way = lab.router.introduce().await.unwrap();
    let state = lab.relay.handle().state().clone();
    while state.counts().handed_out < 2 {
        sleep(Duration::from_millis(10)).await;
    }
    lab.router.set(|options| options.behaviour = Behaviour::CloseAtOnce);
    lab.router.drop_link().await;
    while state.counts().offered > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    // Active, waiting and handed out all go on without a Router.
    traffic::send(&mut host, 2, 10).await.unwrap();
    traffic::receive(&mut client, Some(10)).await.unwrap();
    let mut second = waiting.connect().await.unwrap();
    second.write_all(b"hello").await.unwrap();
    assert_eq!(traffic::receive(&mut first, Some(5)).await.unwrap().0, 5);
    let (mut a, mut b) = on_the_way.connect_both().await.unwrap();
    a.write_all(b"hello").await.unwrap();
    assert_eq!(traffic::receive(&mut b, Some(5)).await.unwrap().0, 5);
    assert_eq!(state.counts().active, 3);
    // And the next link offers what is left.
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    lab.router.keys(2).await;
}

#[tokio::test]
async fn a_router_that_reads_nothing_is_given_up_and_stops_nobody() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "50")]).await.unwrap();
    lab.router.keys(50).await;
    let introduction = lab.router.introduce().await.unwrap();
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    // More to answer than buffers hold, and no answer is ever read.
    let ping = Frame::Ping(Bytes::from(vec![7; 1024 * 1024]));
    lab.router.flood(ping, 64).await;
    log.line("does not take what is sent to it").await;
    client.write_all(b"hello").await.unwrap();
    assert_eq!(traffic::receive(&mut host, Some(5)).await.unwrap().0, 5);
    lab.router.wait_for(|view| view.links == 2 && view.pool.len() == 49).await;
}

#[tokio::test]
async fn the_router_may_be_a_name_or_an_ipv6_address() {
    // The name has an IPv6 address, too, on most machines; the Router listens on the other one.
    let router = LabRouter::start(Options::default()).await.unwrap();
    let by_name = [("RouterAddress", "localhost"), ("MaxPeerCount", "2")];
    let _relay = Relay::start(router.address(), router.public_key(), &by_name).unwrap();
    router.keys(2).await;

    let options = Options { listen: "[::1]:0".parse().unwrap(), ..Options::default() };
    let Ok(router) = LabRouter::start(options).await else {
        relay_lab::skip("a Router over IPv6", "this machine has no IPv6");
        return;
    };
    let bare = [("RouterAddress", "::1"), ("MaxPeerCount", "2")];
    let _relay = Relay::start(router.address(), router.public_key(), &bare).unwrap();
    router.keys(2).await;
}
