//! Stopping and reloading under load.

use std::time::Duration;

use aspia_relay::app::Stopped;
use aspia_relay::config::settings::SettingKey;
use aspia_relay::handle::StopStep;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, config};
use relay_lab::traffic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::Setup;

for_each_router! {
    #[tokio::test(start_paused = true)]
    idle_relay_stops_at_once;
    #[tokio::test(start_paused = true)]
    drain_ends_with_the_last_session;
    #[tokio::test(start_paused = true)]
    draining_relay_admits_only_expected_peers;
    #[tokio::test(start_paused = true)]
    key_handed_out_just_before_the_stop_is_honoured;
    #[tokio::test(start_paused = true)]
    drain_waits_for_handed_out_keys_to_expire;
    #[tokio::test(start_paused = true)]
    remaining_sessions_end_gradually_in_the_last_second;
    #[tokio::test(start_paused = true)]
    zero_drain_timeout_ends_everything_at_once;
    #[tokio::test(start_paused = true)]
    second_signal_stops_at_once;
    #[tokio::test(start_paused = true)]
    first_signal_continues_a_drain_without_extending_it;
    #[tokio::test(start_paused = true)]
    second_signal_stops_at_once_despite_drain_requests;
    #[tokio::test(start_paused = true)]
    reload_keeps_sessions_and_replaces_the_link_only_if_needed;
    #[tokio::test(start_paused = true)]
    token_is_replaced_only_with_its_socket;
    #[tokio::test(start_paused = true)]
    slow_http_client_does_not_delay_the_stop;
}

const SECOND: Duration = Duration::from_secs(1);

async fn lab(setup: Setup, settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(setup.options(), settings).await.unwrap();
    lab.router.wait_for(|view| !view.pool.is_empty()).await;
    lab
}

/// Waits until the relay knows that this many keys are handed out.
async fn wait_for_handed_out(lab: &Lab, keys: usize) {
    while lab.relay.handle().state().counts().handed_out != keys {
        sleep(Duration::from_millis(1)).await;
    }
}

async fn idle_relay_stops_at_once(setup: Setup) {
    let lab = lab(setup, &[]).await;
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!(start.elapsed() < SECOND);
    lab.router.wait_for(|view| !view.linked).await;
}

async fn drain_ends_with_the_last_session(setup: Setup) {
    let lab = lab(setup, &[("DrainTimeout", "20s")]).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let start = Instant::now();
    lab.relay.handle().drain();
    // The link is closed first, which withdraws the keys.
    lab.router.wait_for(|view| !view.linked).await;
    sleep(5 * SECOND).await;
    // The session loses no bytes.
    let send = async {
        traffic::send(&mut client, 1, 1_000_000).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let (received, ()) = tokio::join!(traffic::receive(&mut host, None), send);
    assert_eq!(received.unwrap(), (1_000_000, traffic::hash(1, 1_000_000)));
    drop(host);
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!((5 * SECOND..6 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

async fn draining_relay_admits_only_expected_peers(setup: Setup) {
    let lab = lab(setup, &[("DrainTimeout", "60s"), ("MaxPeerCount", "4")]).await;
    lab.router.keys(4).await;
    let waiting = lab.router.introduce().await.unwrap();
    let mut first = waiting.connect().await.unwrap();
    let on_the_way = lab.router.introduce().await.unwrap();
    let never_used = lab.router.introduce_silently().await.unwrap();
    wait_for_handed_out(&lab, 2).await;
    let start = Instant::now();
    lab.relay.handle().drain();
    lab.router.wait_for(|view| !view.linked).await;
    sleep(10 * SECOND).await;
    let mut second = waiting.connect().await.unwrap();
    second.write_all(b"x").await.unwrap();
    first.read_exact(&mut [0]).await.unwrap();
    let (client, host) = on_the_way.session().await.unwrap();
    assert_eq!(never_used.connect().await.unwrap().read(&mut [0]).await.unwrap_or(0), 0);
    drop((first, second, client, host));
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!(start.elapsed() < 12 * SECOND, "{:?}", start.elapsed());
}

async fn key_handed_out_just_before_the_stop_is_honoured(setup: Setup) {
    let lab = lab(setup, &[("DrainTimeout", "60s"), ("MaxPeerCount", "2")]).await;
    lab.router.keys(2).await;
    let on_the_way = lab.router.introduce_silently().await.unwrap();
    // The notice is in flight when the relay is told to stop: on this single thread, the relay cannot have read it yet.
    lab.router.tell_used(on_the_way.key_id).await;
    lab.relay.handle().drain();
    lab.router.wait_for(|view| !view.linked).await;
    sleep(5 * SECOND).await;
    drop(on_the_way.session().await.unwrap());
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
}

async fn drain_waits_for_handed_out_keys_to_expire(setup: Setup) {
    let lab = lab(setup, &[("DrainTimeout", "60s")]).await;
    lab.router.introduce().await.unwrap();
    wait_for_handed_out(&lab, 1).await;
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!((29 * SECOND..31 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

async fn remaining_sessions_end_gradually_in_the_last_second(setup: Setup) {
    let log = CapturedLog::start();
    let lab = lab(setup, &[("DrainTimeout", "10s"), ("MaxPeerCount", "10")]).await;
    lab.router.keys(10).await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(lab.router.introduce().await.unwrap().session().await.unwrap());
    }
    let start = Instant::now();
    lab.relay.handle().drain();
    let ends: Vec<_> = sessions
        .into_iter()
        .map(|(mut client, host)| {
            tokio::spawn(async move {
                assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
                drop(host);
                start.elapsed()
            })
        })
        .collect();
    let mut times = Vec::new();
    for end in ends {
        times.push(end.await.unwrap());
    }
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::TimedOut);
    times.sort();
    assert!(times[0] >= 9 * SECOND && times[9] <= 10 * SECOND + SECOND / 10, "{times:?}");
    assert!(times[9] - times[0] >= SECOND / 2, "not spread: {times:?}");
    assert_eq!(log.text().matches("reason=drain").count(), 10);
}

async fn zero_drain_timeout_ends_everything_at_once(setup: Setup) {
    let lab = lab(setup, &[("DrainTimeout", "0s")]).await;
    let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::TimedOut);
    assert!(start.elapsed() < SECOND);
}

async fn second_signal_stops_at_once(setup: Setup) {
    let lab = lab(setup, &[("DrainTimeout", "600s")]).await;
    let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let handle = lab.relay.handle().clone();
    let start = Instant::now();
    assert_eq!(handle.stop_by_signal(), StopStep::Drain);
    sleep(5 * SECOND).await;
    assert!(handle.is_draining());
    assert_eq!(handle.stop_by_signal(), StopStep::AtOnce);
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::AtOnce);
    assert!(start.elapsed() < 6 * SECOND);
}

async fn first_signal_continues_a_drain_without_extending_it(setup: Setup) {
    let lab = lab(setup, &[("DrainTimeout", "20s")]).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let handle = lab.relay.handle().clone();
    let start = Instant::now();
    // A preStop hook or an administrator drains the relay, perhaps twice; then the service manager sends its signal.
    handle.drain();
    sleep(5 * SECOND).await;
    handle.drain();
    assert_eq!(handle.stop_by_signal(), StopStep::ContinueDrain);
    sleep(5 * SECOND).await;
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    // Another request of an administrator does not count as a second signal, either.
    handle.drain();
    sleep(5 * SECOND).await;
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::TimedOut);
    assert!((19 * SECOND..21 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

async fn second_signal_stops_at_once_despite_drain_requests(setup: Setup) {
    for drains_first in [true, false] {
        let lab = lab(setup, &[("DrainTimeout", "600s")]).await;
        let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
        let handle = lab.relay.handle().clone();
        if drains_first {
            handle.drain();
            assert_eq!(handle.stop_by_signal(), StopStep::ContinueDrain);
        } else {
            assert_eq!(handle.stop_by_signal(), StopStep::Drain);
            handle.drain();
        }
        assert_eq!(handle.stop_by_signal(), StopStep::AtOnce);
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::AtOnce);
    }
}

async fn reload_keeps_sessions_and_replaces_the_link_only_if_needed(setup: Setup) {
    let lab = lab(setup, &[("MaxPeerCount", "4")]).await;
    lab.router.keys(4).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let (router, key) = (lab.router.address(), lab.router.public_key());
    let port = lab.relay.address().port();
    let handle = lab.relay.handle();
    let new = |settings: &[(&str, &str)]| config(router, key, port, settings).unwrap();
    lab.router.keys(3).await;

    // More capacity: keys for it are added on the same link.
    assert_eq!(handle.reload(&new(&[("MaxPeerCount", "6")])).changed, ["MaxPeerCount"]);
    assert_eq!(lab.router.keys(5).await.links, 1);
    // Statistics begin at once.
    let statistics = [("MaxPeerCount", "6"), ("StatisticsEnabled", "true")];
    assert_eq!(handle.reload(&new(&statistics)).changed, ["StatisticsEnabled"]);
    assert_eq!(lab.router.wait_for(|view| view.statistics_count > 1).await.links, 1);
    // Less capacity than before, but more than when the link began; then even less. Keys on offer can be withdrawn only by
    // closing the link.
    handle.reload(&new(&[("MaxPeerCount", "5")]));
    lab.router.wait_for(|view| view.links == 2 && view.pool.len() == 4).await;
    handle.reload(&new(&[("MaxPeerCount", "2")]));
    lab.router.wait_for(|view| view.links == 3 && view.pool.len() == 1).await;
    // A setting that the Router was told about changes.
    handle.reload(&new(&[("MaxPeerCount", "2"), ("PeerAddress", "localhost")]));
    let view = lab.router.wait_for(|view| view.links == 4 && view.pool.len() == 1).await;
    assert_eq!(view.peer_host, "localhost");
    // Settings that need a restart are reported, but not applied.
    let waiting = handle.reload(&new(&[
        ("MaxPeerCount", "2"),
        ("PeerAddress", "localhost"),
        ("ListenInterface", "127.0.0.2"),
        ("WorkerThreads", "7"),
        ("PeerPort", "1"),
    ]));
    assert_eq!(waiting.waiting, ["ListenInterface", "PeerPort", "ListenPort", "WorkerThreads"]);
    assert_eq!(waiting.changed, [""; 0]);
    assert_eq!(handle.config().router.peer_port, port);
    sleep(SECOND).await;
    assert_eq!(lab.router.view().links, 4);
    // The session has continued all the time.
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    // A shorter idle timeout applies to it, too.
    handle.reload(&new(&[
        ("MaxPeerCount", "2"),
        ("PeerAddress", "localhost"),
        ("PeerIdleTimeout", "1"),
    ]));
    let start = Instant::now();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!((59 * SECOND..61 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

async fn token_is_replaced_only_with_its_socket(setup: Setup) {
    let lab =
        lab(setup, &[("AdminToken", "t"), ("MetricsToken", "m"), ("MetricsListen", ":4242")]).await;
    let (router, key, port) =
        (lab.router.address(), lab.router.public_key(), lab.relay.address().port());
    let handle = lab.relay.handle();
    let new = [("AdminListen", "127.0.0.1:4243"), ("MetricsListen", "off")];
    let reloaded = handle.reload(&config(router, key, port, &new).unwrap());
    assert!(reloaded.waiting.contains(&SettingKey::AdminToken), "{reloaded:?}");
    assert!(reloaded.waiting.contains(&SettingKey::MetricsToken), "{reloaded:?}");
    assert!(handle.config().admin_token.is_some() && handle.config().metrics_token.is_some());
}

async fn slow_http_client_does_not_delay_the_stop(setup: Setup) {
    let lab = lab(setup, &[]).await;
    let mut slow = TcpStream::connect(lab.relay.admin()).await.unwrap();
    slow.write_all(b"GET /status HTT").await.unwrap();
    sleep(SECOND).await;
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
}
