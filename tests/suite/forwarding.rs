//! Forwarding: nothing is lost, whatever the order in which things end.

use std::time::Duration;

use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay};
use relay_lab::traffic;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::{engine, options};

const MIB: u64 = 1024 * 1024;
const SECOND: Duration = Duration::from_secs(1);

async fn pair(settings: &[(&str, &str)]) -> (Lab, TcpStream, TcpStream) {
    let lab = Lab::start_with(options(), settings, engine()).await.unwrap();
    let introduction = lab.router.introduce().await.unwrap();
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    // Paired for certain once a byte has passed each way.
    for (from, to) in [(&mut client, &mut host)] {
        from.write_all(b"!").await.unwrap();
        to.read_exact(&mut [0]).await.unwrap();
        to.write_all(b"!").await.unwrap();
        from.read_exact(&mut [0]).await.unwrap();
    }
    (lab, client, host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mib_each_way_at_once() {
    let (_lab, client, host) = pair(&[]).await;
    let length = 64 * MIB;
    let end = |stream: TcpStream, seed: u64, expected: u64| async move {
        let (mut read, mut write) = stream.into_split();
        let send = tokio::spawn(async move {
            traffic::send(&mut write, seed, length).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let received = traffic::receive(&mut read, None).await.unwrap();
        assert_eq!(received, (length, traffic::hash(expected, length)));
        send.await.unwrap();
    };
    let client = tokio::spawn(end(client, 1, 2));
    let host = tokio::spawn(end(host, 2, 1));
    client.await.unwrap();
    host.await.unwrap();
}

#[tokio::test]
async fn half_close_in_both_orders_with_8_mib_behind_it() {
    for first_closes in [true, false] {
        let (lab, client, host) = pair(&[]).await;
        let (mut closes, mut goes_on) = if first_closes { (client, host) } else { (host, client) };
        traffic::send(&mut closes, 1, 100_000).await.unwrap();
        closes.shutdown().await.unwrap();
        let received = traffic::receive(&mut goes_on, None).await.unwrap();
        assert_eq!(received, (100_000, traffic::hash(1, 100_000)));
        let send = async {
            traffic::send(&mut goes_on, 2, 8 * MIB).await.unwrap();
            goes_on.shutdown().await.unwrap();
        };
        let (received, ()) = tokio::join!(traffic::receive(&mut closes, None), send);
        assert_eq!(received.unwrap(), (8 * MIB, traffic::hash(2, 8 * MIB)));
        // Both halves have ended: so has the session.
        lab.router.keys(100).await;
    }
}

#[tokio::test]
async fn four_mib_and_a_close_reach_a_slow_reader() {
    let (_lab, mut client, mut host) = pair(&[]).await;
    // Small buffers at both ends, so that the relay feels that the reader is slow.
    SockRef::from(&client).set_send_buffer_size(16 * 1024).unwrap();
    SockRef::from(&host).set_recv_buffer_size(16 * 1024).unwrap();
    let reader = async {
        let mut received = Vec::new();
        let mut buffer = vec![0; 48 * 1024];
        loop {
            let read = host.read(&mut buffer).await.unwrap();
            if read == 0 {
                return received;
            }
            received.extend_from_slice(&buffer[..read]);
            sleep(Duration::from_millis(1)).await;
        }
    };
    let writer = async {
        traffic::send(&mut client, 5, 4 * MIB).await.unwrap();
        drop(client);
    };
    let (received, ()) = tokio::join!(reader, writer);
    assert_eq!(received.len() as u64, 4 * MIB);
    assert_eq!(received, traffic::Stream::bytes(5, 4 * 1024 * 1024));
}

#[tokio::test]
async fn a_close_while_the_other_side_still_sends_is_a_close_and_no_reset() {
    let log = CapturedLog::start();
    let (_lab, mut client, mut host) = pair(&[]).await;
    // As most sessions of a remote desktop end: one side closes, the other is in the middle of a picture.
    traffic::send(&mut client, 5, 100_000).await.unwrap();
    drop(client);
    let received = traffic::receive(&mut host, None).await.unwrap();
    assert_eq!(received, (100_000, traffic::hash(5, 100_000)));
    for _ in 0..20 {
        host.write_all(&[7; 1000]).await.unwrap();
        sleep(Duration::from_millis(1)).await;
    }
    drop(host);
    let line = log.line("session ended").await;
    // Windows has one error for both: README, "On Windows".
    assert!(line.contains("end=closed") || cfg!(windows), "{line}");
}

#[tokio::test(start_paused = true)]
#[cfg_attr(windows, ignore = "a reset takes a while, in which a paused clock goes on to the end")]
async fn a_peer_that_ignores_the_end_of_its_partner_keeps_its_place_for_a_minute_only() {
    // One that goes on sending, and one that says nothing; after a busy time, and after an idle one.
    for (sends, quiet) in [(true, 0), (false, 0), (true, 55), (false, 55)] {
        let log = CapturedLog::start();
        let (lab, client, mut host) = pair(&[("PeerIdleTimeout", "1")]).await;
        sleep(quiet * SECOND).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        let start = Instant::now();
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        if sends {
            while host.write_all(b"x").await.is_ok() {
                sleep(SECOND).await;
            }
        }
        let line = log.line("session ended").await;
        assert!(line.contains("end=reset"), "{line}");
        let held = start.elapsed();
        // One that is silent has had time enough sooner: once the kernel says that it has everything, which takes no time on
        // a paused clock.
        let expected = if sends { 58..=65 } else { 9..=40 };
        assert!(expected.contains(&held.as_secs()), "{held:?}");
        lab.router.keys(100).await;
    }
}

#[tokio::test]
async fn after_a_reset_the_other_side_gets_what_was_received_and_an_ordinary_end() {
    let log = CapturedLog::start();
    let (lab, mut client, mut host) = pair(&[]).await;
    let length = 50_000;
    traffic::send(&mut client, 7, length).await.unwrap();
    // All of it is in the relay's hands before the reset, which would throw away what is not.
    let session = lab.relay.handle().state().sessions().remove(0);
    while session.traffic.bytes() < 2 + length {
        sleep(Duration::from_millis(1)).await;
    }
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    // The other side goes on sending for a while: it must not be reset for that.
    for _ in 0..20 {
        host.write_all(&[0; 1000]).await.unwrap();
        sleep(Duration::from_millis(2)).await;
    }
    let received = traffic::receive(&mut host, None).await.unwrap();
    assert_eq!(received, (length, traffic::hash(7, length)));
    drop(host);
    let line = log.line("session ended").await;
    assert!(line.contains("end=reset"), "{line}");
    lab.router.keys(100).await;
}

/// Bytes that this machine has not been told to have arrived, of a connection of this process: the send queue.
#[cfg(target_os = "linux")]
fn unacknowledged(stream: &TcpStream) -> u64 {
    let row = |address: std::net::SocketAddr| format!("0100007F:{:04X}", address.port());
    let (local, remote) = (row(stream.local_addr().unwrap()), row(stream.peer_addr().unwrap()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let queues = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|row| row[1] == local && row[2] == remote)
        .map(|row| row[4].to_owned())
        .unwrap();
    u64::from_str_radix(queues.split(':').next().unwrap(), 16).unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_reset_behind_unread_bytes_loses_none_of_them() {
    // The reader does not read: the relay holds what it could not deliver when the reset comes.
    let (lab, mut client, mut host) = pair(&[]).await;
    let session = lab.relay.handle().state().sessions().remove(0);
    let chunk = traffic::Stream::bytes(9, 64 * 1024);
    let mut sent = Vec::new();
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(300), client.write(&chunk)).await
    {
        let written = result.unwrap();
        sent.extend_from_slice(&chunk[..written]);
    }
    let arrived = sent.len() as u64 - unacknowledged(&client);
    // In the relay's socket and in its own hands: more than what it has passed on.
    assert!(arrived > session.traffic.bytes() - 2, "the reader's side must be full");
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let mut received = Vec::new();
    host.read_to_end(&mut received).await.unwrap();
    // Every byte that had arrived at the relay; what never left the sender is the sender's own loss.
    assert!(received.len() as u64 >= arrived, "{} of {arrived}", received.len());
    assert_eq!(received, sent[..received.len()]);
}

#[tokio::test(start_paused = true)]
async fn idle_ends_to_the_second_and_bytes_either_way_prevent_it() {
    let (lab, mut client, mut host) =
        pair(&[("PeerIdleTimeout", "2"), ("MaxPeerCount", "1")]).await;
    // Bytes in one direction, then in the other.
    for _ in 0..3 {
        sleep(100 * SECOND).await;
        client.write_all(b"x").await.unwrap();
        host.read_exact(&mut [0]).await.unwrap();
        sleep(100 * SECOND).await;
        host.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
    }
    let start = Instant::now();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    let waited = start.elapsed();
    assert!((119 * SECOND..=121 * SECOND).contains(&waited), "{waited:?}");
    // A session that ended idle gives its key back.
    lab.router.keys(1).await;
}

/// Sends until the relay takes nothing more.
async fn fill(sender: &mut TcpStream) {
    let chunk = vec![0; 64 * 1024];
    while tokio::time::timeout(Duration::from_millis(300), sender.write(&chunk)).await.is_ok() {}
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_idle() {
    let log = CapturedLog::start();
    let (_lab, mut client, mut host) = pair(&[("PeerIdleTimeout", "1")]).await;
    fill(&mut host).await;
    let mut buffer = vec![0; 128 * 1024];
    for _ in 0..30 {
        // Far less than the kernel waits for before it takes anything more from the relay.
        client.read_exact(&mut buffer).await.unwrap();
        sleep(20 * SECOND).await;
        assert!(!log.text().contains("session ended"), "{}", log.text());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_is_idle_however_much_waits_for_it() {
    let log = CapturedLog::start();
    let (_lab, _client, mut host) = pair(&[("PeerIdleTimeout", "1")]).await;
    fill(&mut host).await;
    let start = Instant::now();
    let line = log.line("session ended").await;
    assert!(line.contains("end=idle"), "{line}");
    // What the kernel does takes no time on a paused clock, which may therefore go on for a while before it is done.
    assert!((59 * SECOND..600 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
#[cfg_attr(windows, ignore = "a reset takes a while, in which a paused clock goes on to the end")]
async fn a_reset_of_a_peer_that_has_finished_sending_is_noticed() {
    for replies in [false, true] {
        let log = CapturedLog::start();
        let (lab, mut client, mut host) = pair(&[("PeerIdleTimeout", "60")]).await;
        client.shutdown().await.unwrap();
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        if replies {
            host.write_all(b"!").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        sleep(90 * SECOND).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        // The partner says nothing and does not close.
        let start = Instant::now();
        let line = log.line("session ended").await;
        // The system says the same of a peer that closes in order and is then sent something.
        assert!(line.contains(if replies { "end=closed" } else { "end=reset" }), "{line}");
        assert!(start.elapsed() < 600 * SECOND, "{:?}", start.elapsed());
        lab.router.keys(100).await;
    }
}

#[tokio::test(start_paused = true)]
#[cfg_attr(windows, ignore = "a reset takes a while, in which a paused clock goes on to the end")]
async fn what_a_peer_sends_after_its_partner_has_gone_is_limited_in_rate_and_time() {
    // Without a limit of the settings, and with one that is lower than the relay's own.
    for (limit, most) in [(None, 61 * 4 * MIB), (Some("64KiB/s"), 61 * 64 * 1024)] {
        let settings: Vec<(&str, &str)> = [("PeerIdleTimeout", "60")]
            .into_iter()
            .chain(limit.map(|limit| ("SessionBandwidth", limit)))
            .collect();
        let (_lab, client, mut host) = pair(&settings).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        let (start, chunk, mut taken) = (Instant::now(), vec![0; 64 * 1024], 0);
        while let Ok(written) = host.write(&chunk).await {
            taken += written as u64;
        }
        assert!(start.elapsed() <= 65 * SECOND, "{:?}", start.elapsed());
        // What the two kernels take is not the relay's doing.
        assert!(taken <= most + 32 * MIB, "{taken} bytes were taken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_with_stricter_limits_ends_older_sessions_one_after_the_other() {
    for setting in [("MaxSessionDuration", "90s"), ("PeerIdleTimeout", "1")] {
        let log = CapturedLog::start();
        let lab = Lab::start_with(options(), &[("PeerIdleTimeout", "60")], engine()).await.unwrap();
        let mut peers = Vec::new();
        for _ in 0..5 {
            peers.push(lab.router.introduce().await.unwrap().session().await.unwrap());
        }
        sleep(300 * SECOND).await;
        let handle = lab.relay.handle();
        let (router, key, port) =
            (lab.router.address(), lab.router.public_key(), handle.address().port());
        handle.reload(&relay_lab::relay::config(router, key, port, &[setting]).unwrap());
        let (reload, mut ends) = (Instant::now(), Vec::new());
        for (client, _host) in &mut peers {
            let _ = client.read(&mut [0]).await;
            ends.push(reload.elapsed());
        }
        // The oldest at once, and then evenly.
        assert!(ends[0] <= SECOND && ends[4] >= 7 * SECOND, "{ends:?}");
        assert!(ends.windows(2).all(|pair| pair[1] - pair[0] >= SECOND), "{ends:?}");
        let line = log.line("stricter").await;
        assert!(line.contains("sessions=5") && line.contains("within 10 s"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_duration_ends_a_busy_session() {
    let log = CapturedLog::start();
    let (_lab, mut client, mut host) = pair(&[("MaxSessionDuration", "90s")]).await;
    let start = Instant::now();
    while client.write_all(b"x").await.is_ok() {
        match host.read(&mut [0]).await {
            Ok(1) => sleep(SECOND).await,
            _ => break,
        }
    }
    assert!((88 * SECOND..=92 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(log.line("session ended").await.contains("end=max_duration"));
}

#[tokio::test]
async fn peers_over_ipv6_and_ipv4_meet() {
    let lab = {
        let router = relay_lab::router::LabRouter::start(options()).await.unwrap();
        let listener =
            aspia_relay::listen::bind::bind(aspia_relay::peer::PURPOSE, None, 0).unwrap();
        let address = listener.local_addr().unwrap();
        if !address.is_ipv6() {
            relay_lab::skip("peers over IPv6", "this machine has no IPv6");
            return;
        }
        let config =
            relay_lab::relay::config(router.address(), router.public_key(), address.port(), &[])
                .unwrap();
        let app = aspia_relay::app::App::bind(
            config,
            aspia_relay::app::Listeners { peers: Some(listener), ..Default::default() },
            aspia_relay::log::LogHandle::default(),
            aspia_relay::trace::Tracer::default(),
            engine(),
        )
        .unwrap();
        tokio::spawn(app.run());
        router
    };
    let introduction = lab.introduce().await.unwrap();
    let mut over_v6 = relay_lab::peer::Introduction { host: "::1".into(), ..introduction.clone() }
        .connect()
        .await
        .unwrap();
    let mut over_v4 = introduction.connect().await.unwrap();
    over_v6.write_all(b"six").await.unwrap();
    let mut heard = [0; 3];
    over_v4.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"six");
}

#[tokio::test]
async fn a_reset_of_a_receiver_that_is_full_takes_nothing_from_the_sender() {
    let (lab, mut client, mut host) = pair(&[]).await;
    traffic::send(&mut host, 3, 50_000).await.unwrap();
    let session = lab.relay.handle().state().sessions().remove(0);
    while session.traffic.bytes() < 2 + 50_000 {
        sleep(Duration::from_millis(1)).await;
    }
    // The host reads nothing, until the relay holds bytes that it cannot deliver; then it is reset.
    let chunk = vec![0; 64 * 1024];
    while tokio::time::timeout(Duration::from_millis(300), client.write(&chunk)).await.is_ok() {}
    SockRef::from(&host).set_linger(Some(Duration::ZERO)).unwrap();
    drop(host);
    // What the client still sends must not cost it what it has not read yet.
    for _ in 0..50 {
        client.write_all(&chunk).await.unwrap();
    }
    let received = traffic::receive(&mut client, None).await.unwrap();
    assert_eq!(received, (50_000, traffic::hash(3, 50_000)));
}

#[tokio::test(start_paused = true)]
async fn a_full_peer_that_ignores_the_end_of_its_partner_does_not_stay_either() {
    let log = CapturedLog::start();
    let (_lab, mut client, mut host) = pair(&[("PeerIdleTimeout", "60")]).await;
    // The host reads nothing until the relay holds bytes for it; so the relay learns of the client's reset when it
    // writes to the client.
    let chunk = vec![0; 64 * 1024];
    while tokio::time::timeout(Duration::from_millis(300), client.write(&chunk)).await.is_ok() {}
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    for _ in 0..5 {
        host.write_all(b"x").await.unwrap();
        sleep(SECOND).await;
    }
    // Then it reads everything to the end, and goes on sending.
    while host.read(&mut vec![0; 64 * 1024]).await.unwrap() > 0 {}
    let start = Instant::now();
    while host.write_all(b"x").await.is_ok() {
        sleep(SECOND).await;
    }
    assert!((55 * SECOND..=65 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(log.line("session ended").await.contains("end=reset"));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_stop_waits_until_the_peers_have_what_the_kernel_still_holds() {
    let (lab, mut client, mut host) = pair(&[("DrainTimeout", "300s")]).await;
    // More than the client's system takes for a client that does not read, and less than the relay's takes.
    let length = MIB / 2;
    traffic::send(&mut host, 1, length).await.unwrap();
    host.shutdown().await.unwrap();
    client.shutdown().await.unwrap();
    // The relay has given everything to its kernel, and both peers have ended: nothing is left for it to do.
    let state = lab.relay.handle().state().clone();
    let deadline = Instant::now() + 60 * SECOND;
    while state.sessions()[0].traffic.bytes() < length + 2 {
        assert!(Instant::now() < deadline, "{}", state.sessions()[0].traffic.bytes());
        sleep(SECOND / 100).await;
    }
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    lab.relay.handle().drain();
    let mut stopped = std::pin::pin!(lab.relay.stopped());
    assert!(tokio::time::timeout(SECOND / 2, &mut stopped).await.is_err());
    let received = traffic::receive(&mut client, None).await.unwrap();
    assert_eq!(received, (length, traffic::hash(1, length)));
    assert_eq!(stopped.await.unwrap(), aspia_relay::app::Stopped::Drained);
}

/// Takes a session from one relay and gives it to another.
async fn move_session(from: &Relay, to: &Relay) -> usize {
    let id = from.handle().state().sessions()[0].id;
    let parts = from.handle().runner().take_apart(id).await.unwrap();
    let in_flight = parts.in_flight.iter().map(Vec::len).sum();
    to.handle().runner().put_together(parts);
    in_flight
}

#[tokio::test]
async fn a_session_moves_to_another_relay_and_back_in_the_middle_of_a_transfer() {
    let (lab, client, host) = pair(&[]).await;
    let there = Lab::start_with(options(), &[], engine()).await.unwrap();
    let relays = [&lab.relay, &there.relay];
    let length = 24 * MIB;
    let end = |stream: TcpStream, seed: u64, expected: u64| async move {
        // A reader that is slow at times: bytes are on their way at every move.
        SockRef::from(&stream).set_recv_buffer_size(64 * 1024).unwrap();
        let (mut read, mut write) = stream.into_split();
        let send = tokio::spawn(async move {
            traffic::send(&mut write, seed, length).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let received = traffic::receive(&mut read, None).await.unwrap();
        assert_eq!(received, (length, traffic::hash(expected, length)));
        send.await.unwrap();
    };
    let client = tokio::spawn(end(client, 1, 2));
    let host = tokio::spawn(end(host, 2, 1));
    let (mut moves, mut in_flight, mut bytes) = (0, 0, 0);
    let id = lab.relay.handle().state().sessions()[0].id;
    while bytes < 2 * length * 9 / 10 {
        let here = relays[moves % 2];
        let session = here.handle().state().sessions().remove(0);
        assert_eq!(session.id, id, "it keeps its number");
        if session.traffic.bytes() < bytes + MIB {
            tokio::task::yield_now().await;
            continue;
        }
        bytes = session.traffic.bytes();
        drop(session);
        in_flight += move_session(here, relays[(moves + 1) % 2]).await;
        assert!(here.handle().state().is_empty() || here.handle().state().sessions().is_empty());
        moves += 1;
    }
    client.await.unwrap();
    host.await.unwrap();
    // There and back; how often, is a matter of time.
    assert!(moves > 1 && in_flight > 0, "{moves} moves with {in_flight} bytes in flight");
    let now = relays[moves % 2];
    while !now.handle().state().sessions().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    // Each counted what it moved, and both together everything.
    let counted: u64 = relays.iter().map(|relay| relay.handle().state().refresh_metrics().1).sum();
    assert_eq!(counted, 2 * length + 2);
}

#[tokio::test]
async fn a_half_closed_session_moves_and_the_reply_arrives() {
    let (lab, mut client, mut host) = pair(&[]).await;
    let there = Lab::start_with(options(), &[], engine()).await.unwrap();
    traffic::send(&mut client, 1, 1000).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(traffic::receive(&mut host, None).await.unwrap(), (1000, traffic::hash(1, 1000)));
    move_session(&lab.relay, &there.relay).await;
    let send = async {
        traffic::send(&mut host, 2, MIB).await.unwrap();
        host.shutdown().await.unwrap();
    };
    let (received, ()) = tokio::join!(traffic::receive(&mut client, None), send);
    assert_eq!(received.unwrap(), (MIB, traffic::hash(2, MIB)));
    while !there.relay.handle().state().sessions().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_is_not_there_cannot_be_taken_apart() {
    let (lab, client, host) = pair(&[]).await;
    let runner = lab.relay.handle().runner().clone();
    let session = lab.relay.handle().state().sessions().remove(0);
    drop((client, host));
    while !lab.relay.handle().state().sessions().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(runner.take_apart(session.id).await.is_none());
}
