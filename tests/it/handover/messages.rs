//! Processes that die, and stores that fail, at each message between a relay and its store.

use super::*;
use relay_lab::store_proxy::{StoreFault, StoreProxy};

/// More messages than any take or hand-over of these tests has.
const MOST_MESSAGES: usize = 40;

/// A stage whose relay reaches its store through a proxy.
async fn proxied(settings: &[(&'static str, &str)]) -> (Stage, StoreProxy) {
    let mut stage = Stage::new(settings).await;
    let proxy = StoreProxy::start(unused_address(), stage.store_address.clone()).unwrap();
    stage.start_store();
    stage.set("FdStore", &proxy.address().to_string());
    stage.start_relay();
    stage.ready().await;
    stage.stored(LISTENERS).await;
    (stage, proxy)
}

fn kill_later(id: Pid) -> StoreFault {
    // It may have ended by then.
    StoreFault::Call(Box::new(move || {
        let _ = kill_process(id, Signal::KILL);
    }))
}

/// Starts a relay that is killed after this many messages. Returns whether it came to answer before.
async fn start_and_kill(stage: &mut Stage, proxy: &StoreProxy, messages: usize) -> bool {
    // The process is known only once it runs; it waits for the store meanwhile.
    let (send, id) = std::sync::mpsc::channel();
    let kill = move || kill_process(id.recv().unwrap(), Signal::KILL).unwrap();
    proxy.fail_after(messages, StoreFault::Call(Box::new(kill)));
    stage.start_relay();
    send.send(stage.relay_id()).unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        if proxy.has_failed() {
            assert_eq!(stage.relay_ended().await.signal(), Some(Signal::KILL.as_raw()));
            return false;
        }
        if stage.answers().await && !proxy.has_failed() {
            proxy.disarm();
            if !proxy.has_failed() {
                return true;
            }
        }
        assert!(Instant::now() < until, "the relay neither dies nor answers");
        sleep(LOOK).await;
    }
}

async fn new_relay_dies_at_each_message(is_planned: bool) {
    let (mut stage, proxy) = proxied(&[]).await;
    let mut sessions = stage.sessions(4).await;
    for messages in 0..MOST_MESSAGES {
        if is_planned {
            stage.terminate_relay().await;
        } else {
            stage.kill_relay().await;
        }
        let has_passed = start_and_kill(&mut stage, &proxy, messages).await;
        if !has_passed {
            stage.restart_relay().await;
        }
        exchange_all(&mut sessions).await;
        stage.stored(LISTENERS + 8).await;
        if has_passed {
            assert!(messages > 6, "{messages}");
            sessions.push(stage.session().await);
            exchange_all(&mut sessions).await;
            assert!(!stage.log("relay").contains("session lost"));
            drop(sessions);
            stage.stored(LISTENERS).await;
            return;
        }
    }
    panic!("a take has more than {MOST_MESSAGES} messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_relay_that_dies_at_any_message_of_a_planned_take_loses_nothing() {
    new_relay_dies_at_each_message(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_relay_that_dies_at_any_message_of_a_take_after_a_crash_loses_nothing() {
    new_relay_dies_at_each_message(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn old_relay_that_dies_at_any_message_of_its_hand_over_loses_no_session() {
    let (mut stage, proxy) = proxied(&[]).await;
    let mut sessions = stage.sessions(4).await;
    for messages in 0..MOST_MESSAGES {
        proxy.fail_after(messages, kill_later(stage.relay_id()));
        // The fault may have come already, at the next counters.
        let _ = kill_process(stage.relay_id(), Signal::TERM);
        let status = stage.relay_ended().await;
        let has_passed = !proxy.has_failed();
        proxy.disarm();
        assert_eq!(status.success(), has_passed || status.code() == Some(0), "{status}");
        stage.restart_relay().await;
        exchange_all(&mut sessions).await;
        stage.stored(LISTENERS + 8).await;
        if has_passed {
            assert!(messages > 3, "{messages}");
            assert!(!stage.log("relay").contains("session lost"));
            return;
        }
    }
    panic!("a hand-over has more than {MOST_MESSAGES} messages");
}

/// The store keeps what it has until the relay has put everything anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn relay_that_dies_at_any_message_while_it_connects_again_loses_no_session() {
    let (mut stage, proxy) = proxied(&[]).await;
    let mut sessions = stage.sessions(4).await;
    for messages in 0..MOST_MESSAGES {
        let from = stage.log("relay").len();
        let ending = stage.session().await;
        stage.stored(LISTENERS + 10).await;
        let kill = kill_later(stage.relay_id());
        proxy.fail_in_turn([(0, StoreFault::Close), (messages, kill)]);
        // The next message is about its end, and ends the connection.
        drop(ending);
        let until = Instant::now() + PATIENCE;
        let has_passed = loop {
            assert!(Instant::now() < until, "the relay neither dies nor connects again");
            if stage.relay.as_mut().unwrap().try_wait().unwrap().is_some() {
                break false;
            }
            if stage.log("relay")[from..].contains("connected to the descriptor store") {
                proxy.disarm();
                break proxy.begun_faults() < 2;
            }
            sleep(LOOK).await;
        };
        if has_passed {
            exchange_all(&mut sessions).await;
            stage.stored(LISTENERS + 8).await;
            assert!(messages > 3, "{messages}");
            assert!(!stage.log("relay").contains("session lost"));
            return;
        }
        stage.relay_ended().await;
        stage.restart_relay().await;
        exchange_all(&mut sessions).await;
        stage.stored(LISTENERS + 8).await;
    }
    panic!("connecting again takes more than {MOST_MESSAGES} messages");
}

/// Has the store fail at each message of a hand-over, up to the one that commits.
async fn store_fails_at_each_message(new_fault: fn() -> StoreFault, messages: &[usize]) {
    for &messages in messages {
        let (mut stage, proxy) = proxied(&[("DrainTimeout", "60s")]).await;
        let mut sessions = stage.sessions(3).await;
        let from = stage.log("relay").len();
        proxy.fail_after(messages, new_fault());
        kill_process(stage.relay_id(), Signal::TERM).unwrap();
        stage.logged(from, "nothing is handed over, sessions are drained instead").await;
        assert!(proxy.has_failed(), "{messages}");
        exchange_all(&mut sessions).await;
        // The relay connects again and keeps its sessions safe while it drains.
        stage.stored(LISTENERS + 6).await;
        if messages % 2 == 0 {
            drop(sessions);
            assert!(stage.relay_ended().await.success());
            assert_eq!(stage.status().entries, 0, "{messages}");
        } else {
            stage.kill_relay().await;
            stage.restart_relay().await;
            exchange_all(&mut sessions).await;
            stage.stored(LISTENERS + 6).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn store_that_closes_the_connection_during_a_hand_over_ends_no_session() {
    store_fails_at_each_message(|| StoreFault::Close, &[0, 1, 2, 3, 4, 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn store_that_hangs_during_a_hand_over_ends_no_session() {
    store_fails_at_each_message(|| StoreFault::Hang, &[0, 1, 2, 3, 4, 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn store_that_answers_garbage_during_a_hand_over_ends_no_session() {
    store_fails_at_each_message(|| StoreFault::Garbage, &[1, 3, 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn second_signal_during_a_hand_over_to_a_store_that_hangs_ends_the_relay() {
    let (mut stage, proxy) = proxied(&[]).await;
    let _sessions = stage.sessions(2).await;
    proxy.fail_after(0, StoreFault::Hang);
    kill_process(stage.relay_id(), Signal::TERM).unwrap();
    while !proxy.has_failed() {
        sleep(LOOK).await;
    }
    let began = Instant::now();
    kill_process(stage.relay_id(), Signal::TERM).unwrap();
    stage.relay_ended().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// A store that does not answer during a take: the relay starts without it, and gets everything once it answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn take_that_fails_is_made_up_for_later() {
    for (messages, new_fault) in [
        (3, (|| StoreFault::Hang) as fn() -> StoreFault),
        (4, || StoreFault::Close),
        (5, || StoreFault::Garbage),
        (7, || StoreFault::Close),
    ] {
        let (mut stage, proxy) = proxied(&[]).await;
        let mut sessions = stage.sessions(3).await;
        let old = stage.peers;
        stage.terminate_relay().await;
        // Otherwise the relay could not listen, since the store has the listening sockets.
        stage.peers.set_port(free_port().unwrap());
        stage.admin.set_port(free_port().unwrap());
        let from = stage.log("relay").len();
        proxy.fail_after(messages, new_fault());
        stage.restart_relay().await;
        stage.logged(from, "nothing is taken over").await;
        assert!(proxy.has_failed(), "{messages}");
        exchange_all(&mut sessions).await;
        // Only then the store has the new listeners in place of the old ones.
        stage.logged(from, "sessions outlive this relay").await;
        stage.stored(LISTENERS + 6).await;
        refused(old).await;
        stage.kill_relay().await;
        stage.restart_relay().await;
        exchange_all(&mut sessions).await;
        stage.stored(LISTENERS + 6).await;
    }
}
