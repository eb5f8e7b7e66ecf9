//! Sessions that end while a store keeps duplicates of their sockets.

use super::*;

/// How soon a peer must see the end, far below the timeout of the store.
const SOON: Duration = Duration::from_secs(20);

/// Waits for the end of the session at an end.
async fn ends_soon(session: &mut TestSession, to: usize) {
    timeout(SOON, session.expect_end(to)).await.expect("the peer does not see the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn end_of_a_session_reaches_the_other_peer_at_once_and_leaves_nothing_in_the_store() {
    let stage = Stage::start(&[]).await;
    for from in 0..2 {
        for is_reset in [false, true] {
            let mut session = stage.session().await;
            stage.stored(LISTENERS + 2).await;
            let stream = &session.ends[from].stream;
            if is_reset {
                socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            let (other, _) = relay_lab::sockets::connected_pair().await.unwrap();
            drop(std::mem::replace(&mut session.ends[from].stream, other));
            ends_soon(&mut session, 1 - from).await;
            drop(session);
            stage.stored(LISTENERS).await;
        }
        let mut session = stage.session().await;
        stage.stored(LISTENERS + 2).await;
        session.close_half(from).await;
        session.exchange(1000).await;
        session.close_half(1 - from).await;
        stage.stored(LISTENERS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn end_by_the_router_and_by_the_idle_timeout_reaches_both_peers() {
    let mut stage = Stage::start(&[]).await;
    let mut session = stage.session().await;
    stage.stored(LISTENERS + 2).await;
    // The first session of a relay has the number 1.
    stage.router.disconnect(1).await;
    for end in 0..2 {
        ends_soon(&mut session, end).await;
    }
    stage.stored(LISTENERS).await;
    stage.set("MaxSessionDuration", "1s");
    stage.terminate_relay().await;
    stage.restart_relay().await;
    let mut session = stage.silent_session().await;
    for end in 0..2 {
        ends_soon(&mut session, end).await;
    }
    stage.stored(LISTENERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_that_was_taken_over_ends_as_soon_as_any_other() {
    let mut stage = Stage::start(&[]).await;
    for is_planned in [true, false] {
        let mut sessions = stage.sessions(3).await;
        if is_planned {
            stage.terminate_relay().await;
        } else {
            stage.kill_relay().await;
        }
        // These end while there is no relay.
        let (other, _) = relay_lab::sockets::connected_pair().await.unwrap();
        drop(std::mem::replace(&mut sessions[0].ends[0].stream, other));
        stage.restart_relay().await;
        ends_soon(&mut sessions[0], 1).await;
        // Its Client had closed its half before.
        sessions[2].close_half(1).await;
        ends_soon(&mut sessions[2], 0).await;
        let (other, _) = relay_lab::sockets::connected_pair().await.unwrap();
        drop(std::mem::replace(&mut sessions[1].ends[1].stream, other));
        ends_soon(&mut sessions[1], 0).await;
        drop(sessions);
        stage.stored(LISTENERS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn relay_that_drains_leaves_nothing_in_the_store() {
    let mut stage = Stage::start(&[("DrainTimeout", "1s")]).await;
    let mut sessions = stage.sessions(2).await;
    let answer = http::request(stage.admin, "POST /drain", &[], "").await.unwrap();
    assert_eq!(answer.status, 202);
    assert!(stage.relay_ended().await.success());
    ends_soon(&mut sessions[0], 0).await;
    ends_soon(&mut sessions[0], 1).await;
    let status = stage.status();
    assert_eq!((status.entries, status.descriptors), (0, 0));
    assert!(TcpStream::connect(stage.peers).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn relay_that_stops_at_once_during_a_drain_leaves_nothing_in_the_store() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    let answer = http::request(stage.admin, "POST /drain", &[], "").await.unwrap();
    assert_eq!(answer.status, 202);
    kill_process(stage.relay_id(), Signal::TERM).unwrap();
    stage.relay_ended().await;
    for end in 0..2 {
        ends_soon(&mut sessions[0], end).await;
    }
    let status = stage.status();
    assert_eq!((status.entries, status.descriptors), (0, 0));
    assert!(TcpStream::connect(stage.peers).await.is_err());
}
