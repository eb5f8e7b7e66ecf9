//! Keys that a relay had handed out when it died.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn recorded_first_message_is_refused_after_a_crash_too() {
    const PAIRED: &str = "aspia_relay_peer_connections_total{outcome=\"paired\"}";
    const REFUSED: &str = "aspia_relay_peer_connections_total{outcome=\"bad_message\"}";

    let mut stage = Stage::start(&[]).await;
    let introduction = timeout(PATIENCE, stage.router.introduce()).await.unwrap().unwrap();
    let recording = introduction.first_bytes().unwrap();
    let send = async || {
        let mut stream = introduction.dial().await.unwrap();
        stream.write_all(&recording).await.unwrap();
        stream
    };
    let first = send().await;
    stage.metric_reaches("aspia_relay_handshake_seconds_count", 1.0).await;
    // The store gets what has become of keys before it gets a session that began later.
    let sessions = stage.sessions(1).await;
    stage.kill_relay().await;
    drop((first, sessions));
    stage.restart_relay().await;
    let paired = stage.metric(PAIRED).await;
    let refused = stage.metric(REFUSED).await;
    let mut again = send().await;
    let read = timeout(PATIENCE, again.read(&mut [0])).await.expect("it is not refused");
    assert!(!matches!(read, Ok(1..)));
    stage.metric_reaches(REFUSED, refused + 1.0).await;
    // The key itself is still good for the two peers, whose messages are others.
    let (mut client, mut host) =
        timeout(PATIENCE, introduction.session()).await.expect("not paired").unwrap();
    host.write_all(b"y").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    stage.metric_reaches(PAIRED, paired + 2.0).await;
}
