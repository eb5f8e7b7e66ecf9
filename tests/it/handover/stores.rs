//! Stores that die, hang, are full, are not the right one, or belong to another relay.

use super::*;
use relay_lab::store_proxy::StoreProxy;

/// Has the relay killed and started again; the sessions go on.
async fn survives_a_crash(stage: &mut Stage, sessions: &mut [TestSession]) {
    stage.stored(LISTENERS + 2 * sessions.len() as u64).await;
    stage.kill_relay().await;
    stage.restart_relay().await;
    exchange_all(sessions).await;
    stage.stored(LISTENERS + 2 * sessions.len() as u64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn store_that_is_replaced_gets_everything_again() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(3).await;
    stage.kill_store();
    stage.connected(false).await;
    exchange_all(&mut sessions).await;
    let status = http::get(stage.admin, "/status").await.unwrap().json();
    assert_eq!(status["fd_store"]["connected"], false, "{status}");
    sessions.push(stage.session().await);
    stage.start_store();
    stage.connected(true).await;
    survives_a_crash(&mut stage, &mut sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn store_that_stood_still_is_used_again() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    kill_process(stage.store_id(), Signal::STOP).unwrap();
    // The relay sees it at the next change.
    sessions.push(stage.session().await);
    stage.connected(false).await;
    exchange_all(&mut sessions).await;
    kill_process(stage.store_id(), Signal::CONT).unwrap();
    stage.connected(true).await;
    survives_a_crash(&mut stage, &mut sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn relay_that_starts_beside_a_store_that_stands_still_gets_the_sessions_later() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    let peers = stage.peers;
    for moves in [false, true] {
        stage.kill_relay().await;
        kill_process(stage.store_id(), Signal::STOP).unwrap();
        if moves {
            stage.peers.set_port(free_port().unwrap());
            stage.admin.set_port(free_port().unwrap());
        }
        stage.start_relay();
        if moves {
            stage.ready().await;
        } else {
            // The store has the listening sockets. The service manager tries again.
            assert_eq!(stage.relay_ended().await.code(), Some(1));
            stage.start_relay();
        }
        kill_process(stage.store_id(), Signal::CONT).unwrap();
        stage.ready().await;
        exchange_all(&mut sessions).await;
    }
    assert_ne!(stage.peers, peers);
    stage.stored(LISTENERS + 4).await;
    refused(peers).await;
    survives_a_crash(&mut stage, &mut sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn relay_serves_on_beside_a_store_that_is_full() {
    let mut stage = Stage::new(&[]).await;
    // Room for the listeners and a session.
    let limit = 32 + 253 + 64 + 4;
    stage.start_store_with(&format!("ulimit -n {limit};"), &[]);
    stage.start_relay();
    stage.ready().await;
    stage.connected(true).await;
    let mut sessions = vec![stage.session().await];
    stage.stored(LISTENERS + 2).await;
    sessions.push(stage.session().await);
    stage.connected(false).await;
    let line = stage.logged(0, "sessions will not survive this relay").await;
    assert!(line.contains("full") || line.contains("keep"), "{line}");
    exchange_all(&mut sessions).await;
    stage.kill_store();
    stage.start_store();
    survives_a_crash(&mut stage, &mut sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn relay_serves_on_beside_a_store_with_another_token() {
    let mut stage = Stage::new(&[("AdminToken", "relay-token-long-enough")]).await;
    stage.start_store_with("", &[("AdminToken", "store-token-long-enough")]);
    stage.start_relay();
    let line = stage.logged(0, "has another AdminToken").await;
    assert!(!line.contains("long-enough"), "{line}");
    let mut session = stage.session().await;
    stage.kill_store();
    stage.start_store_with("", &[("AdminToken", "relay-token-long-enough")]);
    stage.stored(LISTENERS + 2).await;
    session.exchange(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn token_that_changes_in_its_file_ends_no_session() {
    let mut stage = Stage::new(&[]).await;
    let file = stage.directory.path().join("token");
    std::fs::write(&file, "first-token-long-enough").unwrap();
    let path = file.to_str().unwrap().to_owned();
    stage.set("AdminTokenFile", &path);
    stage.start_store_with("", &[("AdminTokenFile", &path)]);
    stage.start_relay();
    stage.ready().await;
    let mut sessions = stage.sessions(2).await;
    for token in ["second-token-long-enough", "third-token-long-enough"] {
        std::fs::write(&file, token).unwrap();
        let from = stage.log("relay").len();
        kill_process(stage.relay_id(), Signal::HUP).unwrap();
        // The relay shows the store its new token.
        stage.logged(from, "the descriptor store has the new AdminToken, too").await;
        stage.stored(LISTENERS + 4).await;
        exchange_all(&mut sessions).await;
        stage.terminate_relay().await;
        stage.restart_relay().await;
        exchange_all(&mut sessions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_stay_in_a_store_that_gets_the_new_token_later() {
    let mut stage = Stage::new(&[]).await;
    let [ours, theirs] = ["relay-token", "store-token"].map(|name| {
        let path = stage.directory.path().join(name);
        std::fs::write(&path, "first-token-long-enough").unwrap();
        path.to_str().unwrap().to_owned()
    });
    stage.set("AdminTokenFile", &ours);
    stage.start_store_with("", &[("AdminTokenFile", &theirs)]);
    stage.start_relay();
    stage.ready().await;
    let mut sessions = stage.sessions(2).await;
    let from = stage.log("relay").len();
    std::fs::write(&ours, "second-token-long-enough").unwrap();
    kill_process(stage.relay_id(), Signal::HUP).unwrap();
    stage.logged(from, "AdminToken has changed, and a relay that starts now cannot use").await;
    sessions.push(stage.session().await);
    stage.stored(LISTENERS + 6).await;
    std::fs::write(&theirs, "second-token-long-enough").unwrap();
    stage.logged(from, "the descriptor store has the new AdminToken, too").await;
    survives_a_crash(&mut stage, &mut sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_that_no_relay_takes_over_are_recorded_by_the_store() {
    for is_planned in [true, false] {
        let mut stage = Stage::new(&[]).await;
        stage.start_store_with("", &[("FdStoreTimeout", "5s")]);
        stage.start_relay();
        stage.ready().await;
        let sessions = stage.sessions(2).await;
        if is_planned {
            stage.terminate_relay().await;
        } else {
            stage.kill_relay().await;
        }
        let until = Instant::now() + PATIENCE;
        while !stage.log("store").contains("no relay came") {
            assert!(Instant::now() < until, "the store waits for ever");
            sleep(LOOK).await;
        }
        let log = stage.log("store");
        let records: Vec<_> = log.lines().filter(|line| line.contains("session ended")).collect();
        assert_eq!(records.len(), 2, "{log}");
        let reason = if is_planned { "reason=drain" } else { "reason=crash" };
        for (record, bytes) in records.iter().zip([200, 200]) {
            assert!(record.contains(reason) && record.contains("by=relay"), "{record}");
            assert!(record.contains(&format!(" bytes={bytes} ")), "{record}");
        }
        drop(sessions);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn second_relay_adopts_the_sessions_of_the_first_when_that_dies() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    let first = (stage.peers, stage.admin);
    let first_relay = stage.relay.take();
    let local = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    (stage.peers, stage.admin) = (local(), local());
    let from = stage.log("relay").len();
    stage.start_relay();
    let second_relay = stage.relay.take();
    stage.relay = first_relay;
    stage.logged(from, "nothing is taken over: another relay owns the descriptor store").await;
    exchange_all(&mut sessions).await;
    // It could take over before the next line.
    let second_id = Pid::from_child(second_relay.as_ref().unwrap());
    kill_process(second_id, Signal::STOP).unwrap();
    stage.kill_relay().await;
    assert!(TcpStream::connect(first.0).await.is_ok(), "the store keeps the listener");
    kill_process(second_id, Signal::CONT).unwrap();
    stage.relay = second_relay;
    stage.stored(LISTENERS + 4).await;
    exchange_all(&mut sessions).await;
    refused(first.0).await;
    sessions.push(stage.session().await);
    exchange_all(&mut sessions).await;
    survives_a_crash(&mut stage, &mut sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn relay_serves_on_while_something_else_listens_at_the_address_of_its_store() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    stage.kill_store();
    // A proxy to no store closes each connection.
    let squatter = StoreProxy::start(stage.store_address.clone(), unused_address()).unwrap();
    stage.connected(false).await;
    sessions.push(stage.session().await);
    exchange_all(&mut sessions).await;
    drop(squatter);
    stage.start_store();
    survives_a_crash(&mut stage, &mut sessions).await;
}
