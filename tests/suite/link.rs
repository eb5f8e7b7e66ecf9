//! The link to the Router: what is the same in every dialect.

use std::time::Duration;

use aspia_relay::link::dialect::Frame;
use bytes::Bytes;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay};
use relay_lab::router::{Behaviour, LabRouter, Options};
use relay_lab::traffic;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::{carries_bytes, options, protocol};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_refused_connection_names_the_address() {
    let log = CapturedLog::start();
    let router = LabRouter::start(options()).await.unwrap();
    let (address, key) = (router.address(), router.public_key());
    drop(router);
    let _relay = Relay::start(address, key, &[]).unwrap();
    let line = log.line("Router link: cannot connect").await;
    assert!(line.contains("refused") && line.contains(&address.to_string()), "{line}");
}

#[tokio::test(start_paused = true)]
async fn reconnects_for_ever_and_soon_after_a_good_link() {
    // In one dialect, so that a try is a connection.
    let settings = [("MaxPeerCount", "2"), ("RouterProtocol", protocol())];
    let lab = Lab::start(options(), &settings).await.unwrap();
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
    // A 3.0 Router counts them.
    assert_eq!(lab.router.view().complaints, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn key_ids_are_never_used_twice_and_start_anywhere() {
    let mut bases = std::collections::HashSet::new();
    for _ in 0..4 {
        let lab = Lab::start(options(), &[("MaxPeerCount", "5")]).await.unwrap();
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
    let lab = Lab::start(options(), &[("MaxPeerCount", "20000")]).await.unwrap();
    let first = lab.router.wait_for(|view| view.first_key.is_some()).await;
    // As many as the Router keeps.
    let on_offer = if crate::ROUTER.is_third() { 1000 } else { 20_000 };
    let view = lab.router.keys(on_offer).await;
    let all = view.authenticated.unwrap().elapsed();
    let first = first.first_key.unwrap() - view.authenticated.unwrap();
    // How long it took is for people to read: a shared machine decides nothing here.
    println!("first key after {first:?}, all after {all:?}");
    assert_eq!(lab.relay.handle().state().counts().offered, on_offer);
    assert_eq!(view.complaints, [""; 0]);
    carries_bytes(&lab).await;
}

#[tokio::test(start_paused = true)]
async fn messages_that_mean_nothing_are_logged_and_ignored() {
    let log = CapturedLog::start();
    let lab = Lab::start(options(), &[("MaxPeerCount", "2")]).await.unwrap();
    lab.router.keys(2).await;
    lab.router.send_sealed(vec![0xff; 5]).await;
    log.line("cannot be read:").await;
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
    let lab = Lab::start(options(), &settings).await.unwrap();
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
    let lab = Lab::start(options(), &[("MaxPeerCount", "2")]).await.unwrap();
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
    let lab = Lab::start(options(), &[("MaxPeerCount", "5")]).await.unwrap();
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
    let lab = Lab::start(options(), &[("MaxPeerCount", "50")]).await.unwrap();
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
async fn a_router_that_talks_nonsense_without_end_fills_no_log_and_is_heard_all_the_same() {
    let log = CapturedLog::start();
    let lab = Lab::start(options(), &[("MaxPeerCount", "2")]).await.unwrap();
    lab.router.keys(2).await;
    let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    lab.router.flood(Frame::Message(Bytes::from_static(&[0xff; 5])), 20_000).await;
    // Behind all of it.
    lab.router.disconnect(1).await;
    assert_eq!(traffic::receive(&mut client, None).await.unwrap().0, 0);
    let lines = log.text().matches("cannot be read").count();
    assert!((1..=60).contains(&lines), "{lines}");
    assert_eq!(lab.router.view().links, 1);
}

#[tokio::test(start_paused = true)]
async fn a_router_whose_key_changed_stops_no_session_and_may_have_its_key_back() {
    let log = CapturedLog::start();
    let lab = Lab::start(options(), &[("MaxPeerCount", "2")]).await.unwrap();
    lab.router.keys(2).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    lab.router.set(|options| options.behaviour = Behaviour::WrongKey);
    lab.router.drop_link().await;
    log.line("does not hold the private key for RouterPublicKey").await;
    client.write_all(b"hello").await.unwrap();
    assert_eq!(traffic::receive(&mut host, Some(5)).await.unwrap().0, 5);
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    lab.router.keys(1).await;
    carries_bytes(&lab).await;
}

#[tokio::test]
async fn the_router_may_be_a_name_or_an_ipv6_address() {
    // The name has an IPv6 address, too, on most machines; the Router listens on the other one.
    let router = LabRouter::start(options()).await.unwrap();
    let by_name = [("RouterAddress", "localhost"), ("MaxPeerCount", "2")];
    let _relay = Relay::start(router.address(), router.public_key(), &by_name).unwrap();
    router.keys(2).await;

    let options = Options { listen: "[::1]:0".parse().unwrap(), ..options() };
    let Ok(router) = LabRouter::start(options).await else {
        relay_lab::skip("a Router over IPv6", "this machine has no IPv6");
        return;
    };
    let bare = [("RouterAddress", "::1"), ("MaxPeerCount", "2")];
    let _relay = Relay::start(router.address(), router.public_key(), &bare).unwrap();
    router.keys(2).await;
}
