//! Forwarding: nothing is lost, whatever the order in which things end.

use std::time::Duration;

#[cfg(target_os = "linux")]
use relay_lab::clock::refilled;
use relay_lab::clock::{HeldClock, LoopbackConnection, fill, held};
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay};
use relay_lab::traffic;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::Setup;

for_each_data_plane! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    large_transfers_in_both_directions_arrive_intact;
    #[tokio::test]
    half_close_lets_the_other_direction_finish;
    #[tokio::test]
    slow_reader_receives_everything_sent_before_the_close;
    #[tokio::test]
    close_while_the_partner_sends_is_not_logged_as_a_reset;
    #[tokio::test(start_paused = true)]
    #[cfg_attr(windows, ignore = "a reset takes a while, during which a paused clock advances to the end")]
    peer_that_ignores_its_partners_reset_is_closed_within_a_minute;
    #[tokio::test]
    reset_delivers_received_bytes_and_an_orderly_close;
    #[cfg(target_os = "linux")]
    #[tokio::test]
    reset_behind_unread_bytes_loses_none_of_them;
    #[tokio::test(start_paused = true)]
    idle_timeout_is_exact_and_restarts_with_bytes_in_either_direction;
    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    slow_reader_is_not_idle;
    #[tokio::test(start_paused = true)]
    stalled_reader_is_idle_despite_buffered_bytes;
    #[tokio::test(start_paused = true)]
    #[cfg_attr(windows, ignore = "a reset takes a while, during which a paused clock advances to the end")]
    reset_after_half_close_ends_the_session;
    #[tokio::test(start_paused = true)]
    #[cfg_attr(windows, ignore = "a reset takes a while, during which a paused clock advances to the end")]
    discarded_bytes_are_limited_in_rate_and_time;
    #[tokio::test(start_paused = true)]
    reload_with_stricter_limits_ends_old_sessions_gradually;
    #[tokio::test(start_paused = true)]
    max_duration_ends_a_busy_session;
    #[tokio::test]
    reset_of_a_full_receiver_loses_nothing_it_has_sent;
    #[tokio::test(start_paused = true)]
    full_receiver_that_ignores_its_partners_reset_is_closed;
    #[cfg(target_os = "linux")]
    #[tokio::test]
    stop_waits_for_bytes_in_kernel_buffers;
    #[tokio::test]
    session_moves_between_relays_during_a_transfer;
    #[tokio::test]
    half_closed_session_moves_to_another_relay;
    #[tokio::test]
    ended_session_cannot_be_detached;
}

const MIB: u64 = 1024 * 1024;
const SECOND: Duration = Duration::from_secs(1);

async fn pair(setup: Setup, settings: &[(&str, &str)]) -> (Lab, TcpStream, TcpStream) {
    let _held = HeldClock::hold();
    let lab = Lab::start_with(setup.options(), settings, setup.data_plane()).await.unwrap();
    let introduction = lab.router.introduce().await.unwrap();
    let (mut client, mut host) = introduction.connect_both().await.unwrap();
    // The peers are certainly paired once a byte has passed in each direction.
    for (from, to) in [(&mut client, &mut host)] {
        from.write_all(b"!").await.unwrap();
        to.read_exact(&mut [0]).await.unwrap();
        to.write_all(b"!").await.unwrap();
        from.read_exact(&mut [0]).await.unwrap();
    }
    (lab, client, host)
}

async fn large_transfers_in_both_directions_arrive_intact(setup: Setup) {
    let (_lab, client, host) = pair(setup, &[]).await;
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

async fn half_close_lets_the_other_direction_finish(setup: Setup) {
    for first_closes in [true, false] {
        let (lab, client, host) = pair(setup, &[]).await;
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
        // Both directions have ended, and with them the session.
        lab.router.keys(100).await;
    }
}

async fn slow_reader_receives_everything_sent_before_the_close(setup: Setup) {
    let (_lab, mut client, mut host) = pair(setup, &[]).await;
    // Small buffers at both ends, so that the slow reader slows down the relay, too.
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

async fn close_while_the_partner_sends_is_not_logged_as_a_reset(setup: Setup) {
    let log = CapturedLog::start();
    let (_lab, mut client, mut host) = pair(setup, &[]).await;
    // Most sessions of a remote desktop end like this: one side closes while the other is still sending a picture.
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
    // Windows has one error for both: docs/install-windows.md, "Differences from Linux".
    assert!(line.contains("reason=closed") || cfg!(windows), "{line}");
}

async fn peer_that_ignores_its_partners_reset_is_closed_within_a_minute(setup: Setup) {
    // A peer that keeps sending, and a silent one; each after a busy time and after an idle one.
    for (sends, quiet) in [(true, 0), (false, 0), (true, 55), (false, 55)] {
        let log = CapturedLog::start();
        let (lab, client, mut host) = pair(setup, &[("PeerIdleTimeout", "1")]).await;
        sleep(quiet * SECOND).await;
        let start = Instant::now();
        reset(client).await;
        assert_eq!(held(host.read(&mut [0])).await.unwrap(), 0);
        // The relay, too, has heard that the end of the stream has arrived.
        LoopbackConnection::of(&host).unwrap().delivered().await;
        if sends {
            send_until_closed(&mut host).await;
        }
        let line = log.line("session ended").await;
        assert!(line.contains("reason=reset"), "{line}");
        let waited = start.elapsed();
        // A silent peer is closed sooner: a while after its kernel has acknowledged everything, which takes no time on a paused
        // clock.
        let expected = if sends { 58..=65 } else { 9..=40 };
        assert!(expected.contains(&waited.as_secs()), "{waited:?}");
        held(lab.router.keys(100)).await;
    }
}

async fn reset_delivers_received_bytes_and_an_orderly_close(setup: Setup) {
    let log = CapturedLog::start();
    let (lab, mut client, mut host) = pair(setup, &[]).await;
    let length = 50_000;
    traffic::send(&mut client, 7, length).await.unwrap();
    // The relay has received all of it before the reset, which would discard the rest.
    let session = lab.relay.handle().state().sessions().remove(0);
    while session.traffic.bytes() < 2 + length {
        sleep(Duration::from_millis(1)).await;
    }
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    // The other side keeps sending for a while, which must not cause a reset.
    for _ in 0..20 {
        host.write_all(&[0; 1000]).await.unwrap();
        sleep(Duration::from_millis(2)).await;
    }
    let received = traffic::receive(&mut host, None).await.unwrap();
    assert_eq!(received, (length, traffic::hash(7, length)));
    drop(host);
    let line = log.line("session ended").await;
    assert!(line.contains("reason=reset"), "{line}");
    lab.router.keys(100).await;
}

/// Closes a connection with a reset, and waits until it has arrived.
async fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    let connection = LoopbackConnection::of(&stream).unwrap();
    drop(stream);
    connection.delivered().await;
}

/// Sends a byte a second until the relay closes the connection.
async fn send_until_closed(stream: &mut TcpStream) {
    let connection = LoopbackConnection::of(stream).unwrap();
    while stream.write_all(b"x").await.is_ok() {
        // The byte, or the relay's reset in answer to it, has arrived when time goes on.
        connection.delivered().await;
        sleep(SECOND).await;
    }
}

#[cfg(target_os = "linux")]
async fn reset_behind_unread_bytes_loses_none_of_them(setup: Setup) {
    // The reader does not read: the relay holds what it could not deliver when the reset comes.
    let (lab, mut client, mut host) = pair(setup, &[]).await;
    let session = lab.relay.handle().state().sessions().remove(0);
    let chunk = traffic::Stream::bytes(9, 64 * 1024);
    let mut sent = Vec::new();
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(300), client.write(&chunk)).await
    {
        let written = result.unwrap();
        sent.extend_from_slice(&chunk[..written]);
    }
    let arrived = sent.len() as u64 - LoopbackConnection::of(&client).unwrap().unacknowledged();
    // The relay holds bytes, in its socket and in its buffer: more have arrived than it has passed on.
    assert!(arrived > session.traffic.bytes() - 2, "the reader's side must be full");
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let mut received = Vec::new();
    host.read_to_end(&mut received).await.unwrap();
    // Every byte that had arrived at the relay is delivered; bytes that never left the sender may be lost.
    assert!(received.len() as u64 >= arrived, "{} of {arrived}", received.len());
    assert_eq!(received, sent[..received.len()]);
}

async fn idle_timeout_is_exact_and_restarts_with_bytes_in_either_direction(setup: Setup) {
    let log = CapturedLog::start();
    let (lab, mut client, mut host) =
        pair(setup, &[("PeerIdleTimeout", "2"), ("MaxPeerCount", "1")]).await;
    // Bytes in one direction, then in the other.
    for _ in 0..3 {
        sleep(100 * SECOND).await;
        client.write_all(b"x").await.unwrap();
        held(host.read_exact(&mut [0])).await.unwrap();
        sleep(100 * SECOND).await;
        host.write_all(b"x").await.unwrap();
        held(client.read_exact(&mut [0])).await.unwrap();
    }
    let start = Instant::now();
    log.line("session ended").await;
    let waited = start.elapsed();
    assert_eq!(held(client.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(held(host.read(&mut [0])).await.unwrap(), 0);
    assert!((119 * SECOND..=121 * SECOND).contains(&waited), "{waited:?}");
    // A key is offered in place of a session that ended as idle.
    held(lab.router.keys(1)).await;
}

#[cfg(target_os = "linux")]
async fn slow_reader_is_not_idle(setup: Setup) {
    let log = CapturedLog::start();
    let (_lab, mut client, host) = pair(setup, &[("PeerIdleTimeout", "1")]).await;
    fill(&host, &client).await.unwrap();
    let mut buffer = vec![0; 128 * 1024];
    for _ in 0..30 {
        // Far fewer bytes than must be read before the kernel accepts more from the relay.
        held(client.read_exact(&mut buffer)).await.unwrap();
        refilled(&client).await.unwrap();
        sleep(20 * SECOND).await;
        assert!(!log.text().contains("session ended"), "{}", log.text());
    }
}

async fn stalled_reader_is_idle_despite_buffered_bytes(setup: Setup) {
    let log = CapturedLog::start();
    let (_lab, client, host) = pair(setup, &[("PeerIdleTimeout", "1")]).await;
    fill(&host, &client).await.unwrap();
    let start = Instant::now();
    let line = log.line("session ended").await;
    assert!(line.contains("reason=idle"), "{line}");
    assert!((59 * SECOND..600 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

async fn reset_after_half_close_ends_the_session(setup: Setup) {
    for replies in [false, true] {
        let log = CapturedLog::start();
        let (lab, mut client, mut host) = pair(setup, &[("PeerIdleTimeout", "60")]).await;
        client.shutdown().await.unwrap();
        assert_eq!(held(host.read(&mut [0])).await.unwrap(), 0);
        if replies {
            host.write_all(b"!").await.unwrap();
            held(client.read_exact(&mut [0])).await.unwrap();
        }
        sleep(90 * SECOND).await;
        reset(client).await;
        // The partner sends nothing and does not close.
        let start = Instant::now();
        let line = log.line("session ended").await;
        // The kernel reports the same for a peer that closes gracefully and is then sent more.
        assert!(line.contains(if replies { "reason=closed" } else { "reason=reset" }), "{line}");
        assert!(start.elapsed() < 600 * SECOND, "{:?}", start.elapsed());
        held(lab.router.keys(100)).await;
    }
}

async fn discarded_bytes_are_limited_in_rate_and_time(setup: Setup) {
    // Without a limit in the settings, and with one that is lower than the relay's own.
    for (limit, max) in [(None, 61 * 4 * MIB), (Some("64KiB/s"), 61 * 64 * 1024)] {
        let settings: Vec<(&str, &str)> = [("PeerIdleTimeout", "60")]
            .into_iter()
            .chain(limit.map(|limit| ("SessionBandwidth", limit)))
            .collect();
        let log = CapturedLog::start();
        let (_lab, client, mut host) = pair(setup, &settings).await;
        reset(client).await;
        assert_eq!(held(host.read(&mut [0])).await.unwrap(), 0);
        let (start, chunk, mut taken) = (Instant::now(), vec![0; 64 * 1024], 0);
        let write = async {
            while let Ok(written) = host.write(&chunk).await {
                taken += written as u64;
            }
        };
        // The host hears later that the relay has closed its connection.
        let end = async {
            log.line("session ended").await;
            start.elapsed()
        };
        let (waited, ()) = tokio::join!(end, write);
        assert!(waited <= 65 * SECOND, "{waited:?}");
        // The buffers of the two kernels accept bytes, too, whatever the relay does.
        assert!(taken <= max + 32 * MIB, "{taken} bytes were taken");
    }
}

async fn reload_with_stricter_limits_ends_old_sessions_gradually(setup: Setup) {
    for setting in [("MaxSessionDuration", "90s"), ("PeerIdleTimeout", "1")] {
        let log = CapturedLog::start();
        let lab =
            Lab::start_with(setup.options(), &[("PeerIdleTimeout", "60")], setup.data_plane())
                .await
                .unwrap();
        let mut peers = Vec::new();
        for _ in 0..5 {
            let introduction = held(lab.router.introduce()).await.unwrap();
            peers.push(held(introduction.session()).await.unwrap());
        }
        sleep(300 * SECOND).await;
        let handle = lab.relay.handle();
        let (router, key, port) =
            (lab.router.address(), lab.router.public_key(), handle.address().port());
        handle.reload(&relay_lab::relay::config(router, key, port, &[setting]).unwrap());
        let (reload, mut ends) = (Instant::now(), Vec::new());
        for (count, (client, _host)) in peers.iter_mut().enumerate() {
            while handle.state().sessions().len() >= 5 - count {
                sleep(Duration::from_millis(10)).await;
            }
            ends.push(reload.elapsed());
            let _ = held(client.read(&mut [0])).await;
        }
        // The oldest session ends at once, and the others at equal intervals.
        assert!(ends[0] <= SECOND && ends[4] >= 7 * SECOND, "{ends:?}");
        assert!(ends.windows(2).all(|pair| pair[1] - pair[0] >= SECOND), "{ends:?}");
        let line = log.line("stricter").await;
        assert!(line.contains("sessions=5") && line.contains("within 10 s"), "{line}");
    }
}

async fn max_duration_ends_a_busy_session(setup: Setup) {
    let log = CapturedLog::start();
    let (_lab, mut client, mut host) = pair(setup, &[("MaxSessionDuration", "90s")]).await;
    let start = Instant::now();
    while client.write_all(b"x").await.is_ok() {
        match held(host.read(&mut [0])).await {
            Ok(1) => sleep(SECOND).await,
            _ => break,
        }
    }
    assert!((88 * SECOND..=92 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(log.line("session ended").await.contains("reason=max_duration"));
}

async fn reset_of_a_full_receiver_loses_nothing_it_has_sent(setup: Setup) {
    let (lab, mut client, mut host) = pair(setup, &[]).await;
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
    // The client keeps sending, and must still receive the bytes that it has not read yet.
    for _ in 0..50 {
        client.write_all(&chunk).await.unwrap();
    }
    let received = traffic::receive(&mut client, None).await.unwrap();
    assert_eq!(received, (50_000, traffic::hash(3, 50_000)));
}

async fn full_receiver_that_ignores_its_partners_reset_is_closed(setup: Setup) {
    let log = CapturedLog::start();
    let (_lab, client, mut host) = pair(setup, &[("PeerIdleTimeout", "60")]).await;
    // The host does not read until the relay holds bytes for it, so the relay notices the client's reset only when it writes to
    // the client.
    fill(&client, &host).await.unwrap();
    reset(client).await;
    for _ in 0..5 {
        host.write_all(b"x").await.unwrap();
        sleep(SECOND).await;
    }
    // Then the host reads to the end of the stream, and keeps sending.
    while held(host.read(&mut vec![0; 64 * 1024])).await.unwrap() > 0 {}
    let start = Instant::now();
    send_until_closed(&mut host).await;
    assert!((55 * SECOND..=65 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(log.line("session ended").await.contains("reason=reset"));
}

#[cfg(target_os = "linux")]
async fn stop_waits_for_bytes_in_kernel_buffers(setup: Setup) {
    let (lab, mut client, mut host) = pair(setup, &[("DrainTimeout", "300s")]).await;
    // More than the client's kernel accepts for a client that does not read, and less than the relay's kernel accepts.
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

/// Moves a session from one relay to another. Returns how many bytes were in flight.
async fn move_session(from: &Relay, to: &Relay) -> usize {
    let id = from.handle().state().sessions()[0].id;
    let detached = from.handle().session_manager().detach(id).await.unwrap();
    let in_flight = detached.in_flight.iter().map(Vec::len).sum();
    to.handle().session_manager().attach(detached);
    in_flight
}

async fn session_moves_between_relays_during_a_transfer(setup: Setup) {
    let (lab, client, host) = pair(setup, &[]).await;
    let there = Lab::start_with(setup.options(), &[], setup.data_plane()).await.unwrap();
    let relays = [&lab.relay, &there.relay];
    let length = 24 * MIB;
    let end = |stream: TcpStream, seed: u64, expected: u64| async move {
        // The reader is slow at times, so that bytes are in flight at every move.
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
    // The session has moved there and back at least once; how often depends on timing.
    assert!(moves > 1 && in_flight > 0, "{moves} moves with {in_flight} bytes in flight");
    let now = relays[moves % 2];
    while !now.handle().state().sessions().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    // Each relay counts what it has moved, and together they count everything.
    let counted: u64 = relays.iter().map(|relay| relay.handle().state().refresh_metrics().1).sum();
    assert_eq!(counted, 2 * length + 2);
}

async fn half_closed_session_moves_to_another_relay(setup: Setup) {
    let (lab, mut client, mut host) = pair(setup, &[]).await;
    let there = Lab::start_with(setup.options(), &[], setup.data_plane()).await.unwrap();
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

async fn ended_session_cannot_be_detached(setup: Setup) {
    let (lab, client, host) = pair(setup, &[]).await;
    let manager = lab.relay.handle().session_manager().clone();
    let session = lab.relay.handle().state().sessions().remove(0);
    drop((client, host));
    while !lab.relay.handle().state().sessions().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(manager.detach(session.id).await.is_none());
}
