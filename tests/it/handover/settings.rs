//! A relay that is started again with other settings while a store keeps its sessions.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn lower_limit_on_sessions_ends_none_and_offers_no_key_until_there_is_room() {
    let mut stage = Stage::start(&[("MaxPeerCount", "4")]).await;
    let mut sessions = stage.sessions(4).await;
    stage.set("MaxPeerCount", "3");
    for is_planned in [true, false] {
        stage.stored(LISTENERS + 8).await;
        if is_planned {
            stage.terminate_relay().await;
        } else {
            stage.kill_relay().await;
        }
        stage.restart_relay().await;
        exchange_all(&mut sessions).await;
        stage.router.wait_for(|view| view.linked).await;
        assert_eq!(stage.router.view().pool.len(), 0);
        assert_eq!(stage.metric("aspia_relay_sessions_active").await, 4.0);
    }
    sessions.truncate(2);
    stage.stored(LISTENERS + 4).await;
    stage.router.keys(1).await;
    sessions.push(stage.session().await);
    exchange_all(&mut sessions).await;
    assert!(stage.router.view().complaints.is_empty(), "{:?}", stage.router.view().complaints);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_ports_close_the_old_ones_and_end_no_session() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    let (peers, admin) = (stage.peers, stage.admin);
    let from = stage.log("relay").len();
    stage.peers.set_port(free_port().unwrap());
    stage.admin.set_port(free_port().unwrap());
    stage.terminate_relay().await;
    stage.restart_relay().await;
    stage.logged(from, &format!("listens on {peers}, which is not what the settings say")).await;
    for old in [peers, admin] {
        refused(old).await;
    }
    exchange_all(&mut sessions).await;
    // Peers that are introduced now must be told of the new port.
    stage.router.wait_for(|view| view.peer_port == u32::from(stage.peers.port())).await;
    sessions.push(stage.session().await);
    stage.stored(LISTENERS + 6).await;
    // Without a listener for administrators, the store keeps one socket less.
    stage.set("AdminListen", "off");
    stage.terminate_relay().await;
    stage.start_relay();
    stage.stored(LISTENERS - 1 + 6).await;
    exchange_all(&mut sessions).await;
    refused(stage.admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_router_gets_a_new_link_and_no_session_ends() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    let old =
        std::mem::replace(&mut stage.router, LabRouter::start(Options::default()).await.unwrap());
    stage.terminate_relay().await;
    stage.restart_relay().await;
    exchange_all(&mut sessions).await;
    sessions.push(stage.session().await);
    old.wait_for(|view| !view.linked).await;
    assert!(old.view().complaints.is_empty(), "{:?}", old.view().complaints);
    stage.stored(LISTENERS + 6).await;
    // The other dialect.
    stage.set("RouterProtocol", "2");
    stage.terminate_relay().await;
    stage.restart_relay().await;
    exchange_all(&mut sessions).await;
    stage.router.wait_for(|view| view.linked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_limits_apply_to_sessions_that_were_taken_over() {
    let mut stage = Stage::start(&[]).await;
    let mut sessions = stage.sessions(2).await;
    stage.set("SessionBandwidth", "100KiB/s");
    stage.set("MaxSessionDuration", "3s");
    stage.terminate_relay().await;
    stage.restart_relay().await;
    for session in &mut sessions {
        for end in 0..2 {
            session.expect_end(end).await;
        }
    }
    stage.stored(LISTENERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_in_a_store_that_is_not_used_any_more_end_after_its_timeout() {
    for other in ["off", "another"] {
        let mut stage = Stage::new(&[]).await;
        stage.start_store_with("", &[("FdStoreTimeout", "2s")]);
        stage.start_relay();
        stage.ready().await;
        let mut sessions = stage.sessions(2).await;
        let another = unused_address().to_string();
        stage.set("FdStore", if other == "off" { other } else { &another });
        stage.terminate_relay().await;
        // The old store has the old ports.
        stage.peers.set_port(free_port().unwrap());
        stage.admin.set_port(free_port().unwrap());
        stage.restart_relay().await;
        for session in &mut sessions {
            for end in 0..2 {
                session.expect_end(end).await;
            }
        }
        let status = stage.status();
        assert_eq!((status.entries, status.descriptors), (0, 0));
        let mut session = stage.session().await;
        session.exchange(100).await;
    }
}
