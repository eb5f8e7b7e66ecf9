//! Stopping and reloading under load.

use std::time::Duration;

use aspia_relay::app::Stopped;
use aspia_relay::handle::StopStep;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, config};
use relay_lab::traffic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::options;

const SECOND: Duration = Duration::from_secs(1);

async fn lab(settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(options(), settings).await.unwrap();
    lab.router.wait_for(|view| !view.pool.is_empty()).await;
    lab
}

/// Waits until the relay knows that a key is handed out.
async fn known(lab: &Lab, keys: usize) {
    while lab.relay.handle().state().counts().handed_out != keys {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_relay_stops_at_once() {
    let lab = lab(&[]).await;
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!(start.elapsed() < SECOND);
    lab.router.wait_for(|view| !view.linked).await;
}

#[tokio::test(start_paused = true)]
async fn it_stops_as_soon_as_the_last_session_has_ended() {
    let lab = lab(&[("DrainTimeout", "20s")]).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let start = Instant::now();
    lab.relay.handle().drain();
    // The link goes first: it withdraws the keys.
    lab.router.wait_for(|view| !view.linked).await;
    sleep(5 * SECOND).await;
    // The session loses nothing.
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

#[tokio::test(start_paused = true)]
async fn peers_on_their_way_are_admitted_and_nobody_else() {
    let lab = lab(&[("DrainTimeout", "60s"), ("MaxPeerCount", "4")]).await;
    lab.router.keys(4).await;
    let waiting = lab.router.introduce().await.unwrap();
    let mut first = waiting.connect().await.unwrap();
    let on_the_way = lab.router.introduce().await.unwrap();
    let never_used = lab.router.introduce_silently().await.unwrap();
    known(&lab, 2).await;
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

#[tokio::test(start_paused = true)]
async fn a_key_that_the_router_gave_away_just_before_the_stop_is_good() {
    let lab = lab(&[("DrainTimeout", "60s"), ("MaxPeerCount", "2")]).await;
    lab.router.keys(2).await;
    let on_the_way = lab.router.introduce_silently().await.unwrap();
    // The notice is in the air when the stop comes: on this one thread, the relay cannot have read it yet.
    lab.router.tell_used(on_the_way.key_id).await;
    lab.relay.handle().drain();
    lab.router.wait_for(|view| !view.linked).await;
    sleep(5 * SECOND).await;
    drop(on_the_way.session().await.unwrap());
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_key_handed_out_is_waited_for_until_it_expires() {
    let lab = lab(&[("DrainTimeout", "60s")]).await;
    lab.router.introduce().await.unwrap();
    known(&lab, 1).await;
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!((29 * SECOND..31 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_left_ends_within_the_last_second_one_after_the_other() {
    let log = CapturedLog::start();
    let lab = lab(&[("DrainTimeout", "10s"), ("MaxPeerCount", "10")]).await;
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
    assert_eq!(log.text().matches("end=drain").count(), 10);
}

#[tokio::test(start_paused = true)]
async fn without_a_drain_timeout_everything_ends_at_once() {
    let lab = lab(&[("DrainTimeout", "0s")]).await;
    let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::TimedOut);
    assert!(start.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_stops_at_once() {
    let lab = lab(&[("DrainTimeout", "600s")]).await;
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

#[tokio::test(start_paused = true)]
async fn the_first_signal_continues_a_drain_and_gives_it_no_more_time() {
    let lab = lab(&[("DrainTimeout", "20s")]).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let handle = lab.relay.handle().clone();
    let start = Instant::now();
    // A preStop hook or an administrator, perhaps twice; then the signal of whoever stops the process.
    handle.drain();
    sleep(5 * SECOND).await;
    handle.drain();
    assert_eq!(handle.stop_by_signal(), StopStep::ContinueDrain);
    sleep(5 * SECOND).await;
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    // An administrator who asks again does not make it the second signal either.
    handle.drain();
    sleep(5 * SECOND).await;
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::TimedOut);
    assert!((19 * SECOND..21 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_second_signal_counts_also_where_a_drain_came_before_or_between() {
    for drains_first in [true, false] {
        let lab = lab(&[("DrainTimeout", "600s")]).await;
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

#[tokio::test(start_paused = true)]
async fn a_reload_ends_no_session_and_makes_a_new_link_only_where_it_must() {
    let lab = lab(&[("MaxPeerCount", "4")]).await;
    lab.router.keys(4).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let (router, key) = (lab.router.address(), lab.router.public_key());
    let port = lab.relay.address().port();
    let handle = lab.relay.handle();
    let new = |settings: &[(&str, &str)]| config(router, key, port, settings).unwrap();
    lab.router.keys(3).await;

    // More room: keys for it are added on the same link.
    assert_eq!(handle.reload(&new(&[("MaxPeerCount", "6")])).changed, ["MaxPeerCount"]);
    assert_eq!(lab.router.keys(5).await.links, 1);
    // Statistics begin at once.
    let statistics = [("MaxPeerCount", "6"), ("StatisticsEnabled", "true")];
    assert_eq!(handle.reload(&new(&statistics)).changed, ["StatisticsEnabled"]);
    assert_eq!(lab.router.wait_for(|view| view.statistics_count > 1).await.links, 1);
    // Less room than a moment ago, though more than when the link began, then less than that: what is on offer
    // can only be withdrawn with the link.
    handle.reload(&new(&[("MaxPeerCount", "5")]));
    lab.router.wait_for(|view| view.links == 2 && view.pool.len() == 4).await;
    handle.reload(&new(&[("MaxPeerCount", "2")]));
    lab.router.wait_for(|view| view.links == 3 && view.pool.len() == 1).await;
    // What the Router was told changes.
    handle.reload(&new(&[("MaxPeerCount", "2"), ("PeerAddress", "localhost")]));
    let view = lab.router.wait_for(|view| view.links == 4 && view.pool.len() == 1).await;
    assert_eq!(view.peer_host, "localhost");
    // What waits for a restart is named and not applied.
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
    // All the time, the session was there.
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    // A shorter idle time holds for it, too.
    handle.reload(&new(&[
        ("MaxPeerCount", "2"),
        ("PeerAddress", "localhost"),
        ("PeerIdleTimeout", "1"),
    ]));
    let start = Instant::now();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!((59 * SECOND..61 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_token_goes_only_with_its_socket() {
    let lab = lab(&[("AdminToken", "t"), ("MetricsToken", "m"), ("MetricsListen", ":4242")]).await;
    let (router, key, port) =
        (lab.router.address(), lab.router.public_key(), lab.relay.address().port());
    let handle = lab.relay.handle();
    let new = [("AdminListen", "127.0.0.1:4243"), ("MetricsListen", "off")];
    let reloaded = handle.reload(&config(router, key, port, &new).unwrap());
    assert!(reloaded.waiting.contains(&"AdminToken"), "{reloaded:?}");
    assert!(reloaded.waiting.contains(&"MetricsToken"), "{reloaded:?}");
    assert!(handle.config().admin_token.is_some() && handle.config().metrics_token.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_http_client_that_is_slow_does_not_keep_the_relay() {
    let lab = lab(&[]).await;
    let mut slow = TcpStream::connect(lab.relay.admin()).await.unwrap();
    slow.write_all(b"GET /status HTT").await.unwrap();
    sleep(SECOND).await;
    let start = Instant::now();
    lab.relay.handle().drain();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::Drained);
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
}
