//! The link to the Router: what is the same in every dialect.

use std::time::Duration;

use aspia_relay::wire::frame::Frame;
use bytes::Bytes;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay};
use relay_lab::router::{Behaviour, LabRouter};
use relay_lab::traffic;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::{Setup, carries_bytes};

for_each_router! {
    #[tokio::test(start_paused = true)]
    refused_connection_is_logged_with_its_address;
    #[tokio::test(start_paused = true)]
    reconnects_quickly_after_a_stable_link_and_with_backoff_otherwise;
    #[tokio::test(start_paused = true)]
    key_ids_are_unique_and_start_at_random;
    #[tokio::test]
    twenty_thousand_keys_are_offered_in_batches;
    #[tokio::test(start_paused = true)]
    meaningless_messages_are_logged_and_ignored;
    #[tokio::test(start_paused = true)]
    statistics_count_every_byte;
    #[tokio::test(start_paused = true)]
    router_can_end_a_session;
    #[tokio::test(start_paused = true)]
    link_loss_does_not_affect_existing_peers;
    #[tokio::test]
    router_that_stops_reading_is_disconnected_without_stalling_sessions;
    #[tokio::test]
    nonsense_from_the_router_does_not_flood_the_log;
    #[tokio::test(start_paused = true)]
    router_with_a_changed_key_affects_no_session_and_can_recover;
    #[tokio::test]
    router_address_may_be_a_host_name;
}

const SECOND: Duration = Duration::from_secs(1);

async fn refused_connection_is_logged_with_its_address(setup: Setup) {
    let log = CapturedLog::start();
    let router = LabRouter::start(setup.options()).await.unwrap();
    let (address, key) = (router.address(), router.public_key());
    drop(router);
    let _relay = Relay::start(address, key, &[]).unwrap();
    let line = log.line("Router link: cannot connect").await;
    assert!(line.contains("refused") && line.contains(&address.to_string()), "{line}");
}

async fn reconnects_quickly_after_a_stable_link_and_with_backoff_otherwise(setup: Setup) {
    // With one dialect, each attempt is one connection.
    let settings = [("MaxPeerCount", "2"), ("RouterProtocol", setup.protocol())];
    let lab = Lab::start(setup.options(), &settings).await.unwrap();
    lab.router.keys(2).await;
    // After a link that lasted, the next one follows within a second.
    for links in 2..5 {
        sleep(60 * SECOND).await;
        let lost = Instant::now();
        lab.router.drop_link().await;
        lab.router.wait_for(|view| view.links == links).await;
        assert!(lost.elapsed() <= SECOND, "{:?}", lost.elapsed());
    }
    // The Router ends each link at once: the time between attempts grows, but not beyond 15 s.
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
    // A 3.0 Router counts connections, and would complain about too many.
    assert_eq!(lab.router.view().complaints, [""; 0]);
}

async fn key_ids_are_unique_and_start_at_random(setup: Setup) {
    let mut bases = std::collections::HashSet::new();
    for _ in 0..4 {
        let lab = Lab::start(setup.options(), &[("MaxPeerCount", "5")]).await.unwrap();
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

async fn twenty_thousand_keys_are_offered_in_batches(setup: Setup) {
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", "20000")]).await.unwrap();
    lab.router.wait_for(|view| view.first_key.is_some()).await;
    // The relay offers as many as the Router keeps.
    let on_offer = if setup.router.is_v3() { 1000 } else { 20_000 };
    let view = lab.router.keys(on_offer).await;
    assert_eq!(lab.relay.handle().state().counts().offered, on_offer);
    assert_eq!(view.complaints, [""; 0]);
    carries_bytes(&lab).await;
}

async fn meaningless_messages_are_logged_and_ignored(setup: Setup) {
    let log = CapturedLog::start();
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", "2")]).await.unwrap();
    lab.router.keys(2).await;
    lab.router.send_sealed(vec![0xff; 5]).await;
    log.line("cannot be parsed:").await;
    lab.router.send_sealed(Vec::new()).await;
    log.line("has no field that this relay knows").await;
    lab.router.tell_used(lab.router.view().key_ids[0].wrapping_sub(1)).await;
    log.line("not on offer").await;
    lab.router.disconnect(77).await;
    log.line("a session that does not exist").await;
    lab.router.request_nonsense().await;
    log.line("sent an unknown request").await;
    assert_eq!(lab.router.view().links, 1);
    carries_bytes(&lab).await;
}

async fn statistics_count_every_byte(setup: Setup) {
    let settings = [("StatisticsEnabled", "true"), ("StatisticsInterval", "5")];
    let lab = Lab::start(setup.options(), &settings).await.unwrap();
    lab.router.keys(100).await;
    let introduction = lab.router.introduce().await.unwrap();
    // Bytes that were sent before pairing count, but the first message does not.
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
    // Without a session, statistics contain only the uptime.
    drop((client, host));
    let view = lab
        .router
        .wait_for(|view| view.statistics.as_ref().is_some_and(|s| s.peer_connection.is_empty()))
        .await;
    assert!(view.statistics.unwrap().uptime > statistics.uptime);
}

async fn router_can_end_a_session(setup: Setup) {
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", "2")]).await.unwrap();
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
    // A key is offered in its place, and the other session continues.
    lab.router.keys(1).await;
    traffic::send(&mut third, 1, 10).await.unwrap();
    traffic::receive(&mut other, Some(10)).await.unwrap();
}

async fn link_loss_does_not_affect_existing_peers(setup: Setup) {
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", "5")]).await.unwrap();
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
    // Active sessions, waiting peers and keys handed out are all unaffected by the loss of the link.
    traffic::send(&mut host, 2, 10).await.unwrap();
    traffic::receive(&mut client, Some(10)).await.unwrap();
    let mut second = waiting.connect().await.unwrap();
    second.write_all(b"hello").await.unwrap();
    assert_eq!(traffic::receive(&mut first, Some(5)).await.unwrap().0, 5);
    let (mut a, mut b) = on_the_way.connect_both().await.unwrap();
    a.write_all(b"hello").await.unwrap();
    assert_eq!(traffic::receive(&mut b, Some(5)).await.unwrap().0, 5);
    assert_eq!(state.counts().active, 3);
    // The next link offers keys for the remaining capacity.
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    lab.router.keys(2).await;
}

async fn router_that_stops_reading_is_disconnected_without_stalling_sessions(setup: Setup) {
    let log = CapturedLog::start();
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", "50")]).await.unwrap();
    lab.router.keys(50).await;
    let introduction = lab.router.introduce().await.unwrap();
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    // The answers are more than buffers hold, and the Router reads none of them.
    let ping = Frame::Ping(Bytes::from(vec![7; 1024 * 1024]));
    lab.router.flood(ping, 64).await;
    log.line("does not read what the relay sends").await;
    client.write_all(b"hello").await.unwrap();
    assert_eq!(traffic::receive(&mut host, Some(5)).await.unwrap().0, 5);
    lab.router.wait_for(|view| view.links == 2 && view.pool.len() == 49).await;
}

async fn nonsense_from_the_router_does_not_flood_the_log(setup: Setup) {
    let log = CapturedLog::start();
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", "2")]).await.unwrap();
    lab.router.keys(2).await;
    let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    lab.router.flood(Frame::Message(Bytes::from_static(&[0xff; 5])), 20_000).await;
    // This arrives after all the nonsense.
    lab.router.disconnect(1).await;
    assert_eq!(traffic::receive(&mut client, None).await.unwrap().0, 0);
    let lines = log.text().matches("cannot be parsed").count();
    assert!((1..=60).contains(&lines), "{lines}");
    assert_eq!(lab.router.view().links, 1);
}

async fn router_with_a_changed_key_affects_no_session_and_can_recover(setup: Setup) {
    let log = CapturedLog::start();
    let lab = Lab::start(setup.options(), &[("MaxPeerCount", "2")]).await.unwrap();
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

async fn router_address_may_be_a_host_name(setup: Setup) {
    // On most machines the name has an IPv6 address, too, but the Router listens only on the IPv4 address.
    let router = LabRouter::start(setup.options()).await.unwrap();
    let by_name = [("RouterAddress", "localhost"), ("MaxPeerCount", "2")];
    let _relay = Relay::start(router.address(), router.public_key(), &by_name).unwrap();
    router.keys(2).await;
}
