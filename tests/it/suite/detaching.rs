//! Sessions that are detached together, kept outside of the process, and ended.

use std::net::TcpListener;
use std::time::Duration;

use aspia_relay::metrics::Label;
use aspia_relay::peer::metrics::PeerOutcome;
use aspia_relay::peer::session::KeptSessions;
use aspia_relay::state::sessions::EndCause;
use relay_lab::traffic;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Setup;
use super::peer_relay::{PeerRelay, introduce, is_closed, listen, send_hello};

for_each_data_plane! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    peers_of_a_storm_are_paired_across_many_relays;
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    all_sessions_move_between_relays_during_transfers;
    #[tokio::test]
    lingering_session_moves_and_ends;
    #[tokio::test]
    sessions_continue_if_detaching_all_is_cancelled;
    #[tokio::test]
    peers_of_a_kept_session_see_every_end_at_once;
    #[tokio::test]
    kept_session_stays_with_the_store_across_a_move;
}

const SECOND: Duration = Duration::from_secs(1);
const MIB: u64 = 1024 * 1024;

/// Each relay runs for a moment, and hands everything over to the next.
async fn peers_of_a_storm_are_paired_across_many_relays(setup: Setup) {
    const PAIRS: u32 = 64;
    let listener = listen();
    let mut peers = JoinSet::new();
    for seed in 0..PAIRS {
        for is_host in [false, true] {
            let introduction = introduce(setup, &listener, seed);
            peers.spawn(async move {
                let delay =
                    Duration::from_millis(u64::from(seed * 7 % 90 + u32::from(is_host) * 40));
                sleep(delay).await;
                let bytes = introduction.first_bytes().unwrap();
                let (first, second) = bytes.split_at(bytes.len() / 2);
                let mut stream = introduction.dial().await.unwrap();
                stream.write_all(first).await.unwrap();
                sleep(Duration::from_millis(u64::from(seed % 20))).await;
                stream.write_all(second).await.unwrap();
                let (send, receive) = (u64::from(is_host), u64::from(!is_host));
                let (mut read, mut write) = stream.split();
                let sent = traffic::send(&mut write, send, 100_000);
                let received = traffic::receive(&mut read, Some(100_000));
                let (received, sent) = tokio::join!(received, sent);
                assert_eq!(received.unwrap(), (100_000, traffic::hash(receive, 100_000)));
                sent.unwrap();
                // Not earlier: a peer that finishes before it has a partner has gone away.
                write.shutdown().await.unwrap();
                assert_eq!(read.read(&mut [0]).await.unwrap(), 0);
            });
        }
    }
    let (mut suspended, mut detached) = (Vec::new(), Vec::new());
    let (mut were_suspended, mut paired, mut outcomes) = (0, 0.0, 0.0);
    let mut finished = 0;
    for round in 0.. {
        let relay = PeerRelay::new(setup, &listener, KeptSessions::new());
        // A key that was used up in an earlier relay is not missed here: its peers do not come back.
        relay.offer(0..PAIRS);
        detached.into_iter().for_each(|session| relay.sessions.attach(session));
        let run = relay.run(suspended);
        let is_last = finished == 2 * PAIRS || round == 40;
        let until = Instant::now() + Duration::from_millis(if round < 12 { 10 } else { 500 });
        while let Ok(Some(done)) = tokio::time::timeout_at(until, peers.join_next()).await {
            done.unwrap();
            finished += 1;
        }
        suspended = relay.suspend(run).await;
        detached = relay.sessions.detach_all().await;
        assert_eq!((relay.pending(), relay.state.counts().active), (0.0, 0));
        were_suspended += suspended.len();
        paired += relay.count("aspia_relay_peer_connections_total", "paired");
        for outcome in PeerOutcome::ALL {
            outcomes += relay.count("aspia_relay_peer_connections_total", outcome.name());
        }
        if is_last {
            break;
        }
    }
    assert_eq!(finished, 2 * PAIRS);
    // Each was paired exactly once, and none was refused.
    assert_eq!((paired, outcomes), (f64::from(2 * PAIRS), f64::from(2 * PAIRS)));
    assert!(were_suspended > 0);
    assert!(suspended.is_empty());
}

/// Starts this many sessions.
async fn sessions(
    setup: Setup,
    listener: &TcpListener,
    seeds: std::ops::Range<u32>,
) -> Vec<(TcpStream, TcpStream)> {
    let mut sessions = Vec::new();
    for seed in seeds {
        sessions.push(introduce(setup, listener, seed).session().await.unwrap());
    }
    sessions
}

/// Exchanges verified bytes, in both directions. The reader is slow, so that bytes are in flight at every move.
async fn transfer(stream: TcpStream, seed: u64, expected: u64, length: u64) {
    SockRef::from(&stream).set_recv_buffer_size(64 * 1024).unwrap();
    let (mut read, mut write) = stream.into_split();
    let send = async {
        traffic::send(&mut write, seed, length).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut received = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = read.read(&mut buffer).await.unwrap();
            if count == 0 {
                return received;
            }
            received.extend_from_slice(&buffer[..count]);
            sleep(Duration::from_millis(1)).await;
        }
    };
    let (received, ()) = tokio::join!(receive, send);
    assert_eq!(received.len() as u64, length);
    assert_eq!(traffic::hash_of(&received), traffic::hash(expected, length));
}

async fn all_sessions_move_between_relays_during_transfers(setup: Setup) {
    let listener = listen();
    let settings = [("SessionBandwidth", "20MiB/s")];
    let relays = [&[][..], &settings[..]].map(|settings| {
        PeerRelay::with_settings(setup, &listener, KeptSessions::default(), settings)
    });
    relays[0].offer(0..12);
    let run = relays[0].run(Vec::new());
    let mut ends = JoinSet::new();
    for (number, (client, host)) in (0_u64..).zip(sessions(setup, &listener, 0..4).await) {
        ends.spawn(transfer(client, 2 * number, 2 * number + 1, 6 * MIB));
        ends.spawn(transfer(host, 2 * number + 1, 2 * number, 6 * MIB));
    }
    // Half-closed in one direction, with bytes in the other; and idle.
    for (mut client, host) in sessions(setup, &listener, 4..6).await {
        client.shutdown().await.unwrap();
        ends.spawn(async move {
            let received = traffic::receive(&mut client, None).await.unwrap();
            assert_eq!(received, (2 * MIB, traffic::hash(9, 2 * MIB)));
        });
        ends.spawn(async move {
            let mut host = host;
            assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
            traffic::send(&mut host, 9, 2 * MIB).await.unwrap();
        });
    }
    let mut idle = sessions(setup, &listener, 6..12).await;
    let (mut moves, mut in_flight) = (0, 0);
    while !ends.is_empty() {
        let detached = relays[moves % 2].sessions.detach_all().await;
        assert_eq!(relays[moves % 2].state.counts().active, 0);
        assert!(detached.len() >= 6, "{}", detached.len());
        in_flight += detached
            .iter()
            .map(|session| session.count_in_flight().iter().sum::<usize>())
            .sum::<usize>();
        moves += 1;
        for session in detached {
            assert!(!session.is_lingering || session.count_in_flight() == [0, 0]);
            relays[moves % 2].sessions.attach(session);
        }
        let until = Instant::now() + Duration::from_millis(20);
        while let Ok(Some(end)) = tokio::time::timeout_at(until, ends.join_next()).await {
            end.unwrap();
        }
    }
    assert!(moves > 2 && in_flight > 0, "{moves} moves with {in_flight} bytes in flight");
    for (client, host) in &mut idle {
        send_hello(client, host).await;
        send_hello(host, client).await;
    }
    relays[0]
        .until(|_| relays.iter().map(|relay| relay.state.counts().active).sum::<usize>() == 6)
        .await;
    // Each relay counts what it has moved, and together they count everything.
    let counted: u64 = relays.iter().map(|relay| relay.state.refresh_metrics().1).sum();
    assert_eq!(counted, 4 * 12 * MIB + 2 * 2 * MIB + 12 + 6 * 10);
    relays[0].stop.cancel();
    run.await.unwrap();
}

async fn lingering_session_moves_and_ends(setup: Setup) {
    for is_reset in [false, true] {
        let listener = listen();
        let [here, there] =
            [(); 2].map(|()| PeerRelay::new(setup, &listener, KeptSessions::default()));
        here.offer(0..1);
        let run = here.run(Vec::new());
        let (client, mut host) = sessions(setup, &listener, 0..1).await.remove(0);
        let (attached, is_attached) = tokio::sync::oneshot::channel();
        if is_reset {
            // The relay has seen the reset, and the host has not finished.
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
        } else {
            // Both have finished, and the relay's kernel holds bytes that the client does not read.
            let mut client = client;
            traffic::send(&mut host, 1, MIB / 2).await.unwrap();
            host.shutdown().await.unwrap();
            client.shutdown().await.unwrap();
            tokio::spawn(async move {
                is_attached.await.unwrap();
                let received = traffic::receive(&mut client, None).await.unwrap();
                assert_eq!(received, (MIB / 2, traffic::hash(1, MIB / 2)));
            });
        }
        here.until(|relay| !relay.state.sessions()[0].is_forwarding()).await;
        let mut detached = here.sessions.detach_all().await;
        assert_eq!(detached.len(), 1);
        assert!(detached[0].is_lingering);
        assert_eq!(detached[0].count_in_flight(), [0, 0]);
        there.sessions.attach(detached.remove(0));
        let _ = attached.send(());
        assert_eq!(timeout(20 * SECOND, host.read(&mut [0])).await.unwrap().unwrap(), 0);
        if is_reset {
            host.shutdown().await.unwrap();
        }
        there.has_sessions(0).await;
        let end = if is_reset { "reset" } else { "closed" };
        // A peer that finishes after its partner's reset has finished nonetheless.
        let ends = |end| there.count("aspia_relay_sessions_total", end);
        assert!(ends(end) + ends("closed") >= 1.0, "{end}");
        assert_eq!(ends("error"), 0.0);
        here.stop.cancel();
        run.await.unwrap();
    }
}

async fn sessions_continue_if_detaching_all_is_cancelled(setup: Setup) {
    let listener = listen();
    let relay = PeerRelay::new(setup, &listener, KeptSessions::default());
    relay.offer(0..20);
    let run = relay.run(Vec::new());
    let mut sessions = sessions(setup, &listener, 0..20).await;
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for polls in 0..6 {
        let mut detaching = Box::pin(relay.sessions.detach_all());
        for _ in 0..polls {
            if detaching.as_mut().poll(&mut context).is_ready() {
                panic!("{polls} polls must not be enough");
            }
            if polls > 3 {
                // Some sessions have left, or all, and were not received yet.
                tokio::task::yield_now().await;
                break;
            }
        }
        drop(detaching);
        for (client, host) in &mut sessions {
            send_hello(client, host).await;
        }
        relay.has_sessions(20).await;
    }
    relay.stop.cancel();
    run.await.unwrap();
}

async fn peers_of_a_kept_session_see_every_end_at_once(setup: Setup) {
    let listener = listen();
    let kept = KeptSessions::new();
    let relay = PeerRelay::new(setup, &listener, kept.clone());
    relay.offer(0..100);
    let run = relay.run(Vec::new());
    let mut seed = 0;
    let ends =
        [EndCause::Idle, EndCause::Router, EndCause::MaxDuration, EndCause::Drain, EndCause::Error];
    for end in ends {
        // With unread bytes on the way, too.
        // Elsewhere than on Linux there is no store.
        for is_full in
            [false, true].into_iter().filter(|is_full| cfg!(target_os = "linux") || !is_full)
        {
            let introduction = introduce(setup, &listener, seed);
            let (mut client, mut host) = introduction.session().await.unwrap();
            seed += 1;
            let store = kept.take_changes(10);
            let [stored] = &store.begun[..] else { panic!("{store:?}") };
            if is_full {
                let chunk = vec![0; 64 * 1024];
                while timeout(SECOND / 10, client.write(&chunk)).await.is_ok() {}
            }
            assert!(relay.state.stop_session(stored.session.id, end));
            relay.has_sessions(0).await;
            if is_full {
                while matches!(host.read(&mut [0; 4096]).await, Ok(1..)) {}
                while timeout(SECOND, client.write(&[0; 4096])).await.expect("it is closed").is_ok()
                {
                }
            } else {
                is_closed(&mut client).await;
                is_closed(&mut host).await;
            }
            let changes = kept.take_changes(10);
            assert_eq!((changes.ended, changes.begun.len()), (vec![stored.session.id], 0));
            // Until here, the store has held its duplicates.
            drop(store);
        }
    }
    // A reset of one peer, and then what the partner still sends; and both peers that finish.
    for is_reset in [true, false] {
        let (mut client, mut host) = introduce(setup, &listener, seed).session().await.unwrap();
        seed += 1;
        let store = kept.take_changes(10);
        assert_eq!(store.begun.len(), 1);
        if is_reset {
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        } else {
            client.shutdown().await.unwrap();
        }
        let client = (!is_reset).then_some(client);
        is_closed(&mut host).await;
        drop(host);
        if let Some(mut client) = client {
            is_closed(&mut client).await;
        }
        relay.has_sessions(0).await;
        assert_eq!(kept.take_changes(10).ended.len(), 1);
        drop(store);
    }
    relay.stop.cancel();
    run.await.unwrap();
}

async fn kept_session_stays_with_the_store_across_a_move(setup: Setup) {
    let listener = listen();
    let [kept_here, kept_there] = [(); 2].map(|()| KeptSessions::new());
    let here = PeerRelay::new(setup, &listener, kept_here.clone());
    let there = PeerRelay::new(setup, &listener, kept_there.clone());
    here.offer(0..3);
    let run = here.run(Vec::new());
    let mut both = sessions(setup, &listener, 0..2).await;
    let store = kept_here.take_changes(10);
    assert_eq!(store.begun.len(), 2);
    if cfg!(target_os = "linux") {
        assert!(store.begun.iter().all(|session| session.balances.is_some()));
    }
    // The third begins after the last look.
    both.extend(sessions(setup, &listener, 2..3).await);
    let detached = here.sessions.detach_all().await;
    assert_eq!(
        detached.iter().map(|session| session.is_stored).collect::<Vec<_>>(),
        [true, true, false]
    );
    let before: Vec<_> = store.begun.iter().map(|session| session.balances).collect();
    assert_eq!(detached[..2].iter().map(|session| session.balances).collect::<Vec<_>>(), before);
    let changes = kept_here.take_changes(10);
    assert!(changes.ended.is_empty() && changes.begun.is_empty(), "{changes:?}");
    for session in detached {
        there.sessions.attach(session);
    }
    for (client, host) in &mut both {
        send_hello(client, host).await;
    }
    // What the store has is not reported again, until the store is another one.
    assert_eq!(kept_there.take_changes(10).begun.len(), 1);
    kept_there.report_all_again(true);
    let all = kept_there.take_changes(2);
    assert!(all.has_more);
    assert_eq!((all.begun.len(), kept_there.take_changes(2).begun.len()), (2, 1));
    assert_eq!(all.begun[0].balances, before[0]);
    there.state.stop_session(all.begun[0].session.id, EndCause::Router);
    is_closed(&mut both[0].0).await;
    there.has_sessions(2).await;
    assert_eq!(kept_there.take_changes(10).ended, [all.begun[0].session.id]);
    // From now on, the store keeps everything as it is.
    kept_there.freeze();
    there.state.stop_all_sessions(EndCause::Drain);
    there.has_sessions(0).await;
    assert!(kept_there.take_changes(10).ended.is_empty());
    // The connection that the store has stays open.
    let silent = timeout(SECOND / 5, both[1].0.read(&mut [0])).await;
    assert!(silent.is_err(), "{silent:?}");
    drop((store, all));
    here.stop.cancel();
    run.await.unwrap();
}
