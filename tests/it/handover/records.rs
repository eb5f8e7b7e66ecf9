//! The records of sessions that move from one relay to the next: one for each session, by the relay that sees its end.

use std::time::SystemTime;

use serde_json::Value;

use super::*;

/// Makes the relay log records of sessions only, as JSON.
fn start_relay(stage: &mut Stage) {
    let mut command = stage.relay_command();
    command.env("RUST_LOG", "session=info").env("ASPIA_LOG_FORMAT", "json");
    stage.relay = Some(command.spawn().unwrap());
}

async fn start(settings: &[(&'static str, &str)]) -> Stage {
    let mut stage = Stage::new(settings).await;
    stage.start_store();
    start_relay(&mut stage);
    stage.ready().await;
    stage.stored(LISTENERS).await;
    stage
}

/// Returns the records that all relays have written so far.
fn records(stage: &Stage) -> Vec<Value> {
    let log = stage.log("relay");
    let lines = log.lines().filter(|line| line.starts_with('{') && line.ends_with('}'));
    let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "session").collect()
}

/// Waits until there is this number of records.
async fn recorded(stage: &Stage, count: usize) -> Vec<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        let records = records(stage);
        if records.len() >= count {
            assert_eq!(records.len(), count, "{records:?}");
            return records;
        }
        assert!(Instant::now() < until, "{records:?}");
        sleep(LOOK).await;
    }
}

/// Asserts which bytes came from the Client and which from the Host.
fn assert_bytes(record: &Value, session: &TestSession) {
    let [client, host] = &session.ends;
    let first = &record["first"];
    let is_client_first = *first == client.stream.local_addr().unwrap().to_string();
    let (first, second) = if is_client_first { (client, host) } else { (host, client) };
    assert_eq!(record["bytes_from_first"], first.sent, "{record}");
    assert_eq!(record["bytes_from_second"], second.sent, "{record}");
    assert_eq!(record["bytes"], first.sent + second.sent, "{record}");
}

fn started(record: &Value) -> SystemTime {
    humantime::parse_rfc3339(record["started"].as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_that_moves_on_is_recorded_once_with_its_beginning_and_all_its_bytes() {
    let mut stage = start(&[("LogPeerIdentity", "true")]).await;
    let began = SystemTime::now();
    let mut session = stage.session().await;
    stage.stored(LISTENERS + 2).await;
    let paired = SystemTime::now();
    session.send(0, 777).await.unwrap();
    session.receive(1).await;
    stage.terminate_relay().await;
    start_relay(&mut stage);
    stage.ready().await;
    stage.stored(LISTENERS + 2).await;
    session.exchange(1000).await;
    stage.kill_relay().await;
    start_relay(&mut stage);
    stage.ready().await;
    session.exchange(30).await;
    assert_eq!(records(&stage), [] as [Value; 0]);
    session.close_half(1).await;
    session.close_half(0).await;
    let record = recorded(&stage, 1).await.remove(0);
    assert_eq!((&record["session"], &record["reason"]), (&1.into(), &"closed".into()));
    assert_bytes(&record, &session);
    // Times are cut to milliseconds, and the session begins a moment after the first peer is ready.
    let slack = Duration::from_millis(20);
    assert!(began - slack <= started(&record) && started(&record) <= paired + slack, "{record}");
    assert!(record["user"].is_string() && record["host_id"].is_u64(), "{record}");
    stage.terminate_relay().await;
    recorded(&stage, 1).await;
}

/// Sends from the Client until the relay holds bytes that the Host does not accept.
async fn fill(stage: &Stage, session: &mut TestSession) {
    let stream = &session.ends[0].stream;
    let mut moved = None;
    loop {
        while let Ok(Ok(())) = timeout(LOOK * 40, stream.writable()).await {
            let _ = stream.try_write(&[7; 65536]);
        }
        // Nothing moves although the Client waits: the relay has read what it cannot write.
        let answer = http::get(stage.admin, "/sessions").await.unwrap().json();
        let bytes = answer["sessions"][0]["bytes"].as_u64();
        if bytes.is_some() && bytes == moved {
            return;
        }
        moved = bytes;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_that_cannot_go_on_after_a_crash_is_recorded_by_the_next_relay() {
    let mut stage = start(&[]).await;
    let mut session = stage.session().await;
    let other = stage.session().await;
    stage.stored(LISTENERS + 4).await;
    fill(&stage, &mut session).await;
    let before = http::get(stage.admin, "/sessions").await.unwrap().json();
    stage.kill_relay().await;
    start_relay(&mut stage);
    stage.ready().await;
    let record = recorded(&stage, 1).await.remove(0);
    assert_eq!(record["session"], 1);
    assert_eq!((&record["reason"], &record["by"]), (&"crash".into(), &"relay".into()));
    let bytes = &before["sessions"][0]["bytes"];
    assert_eq!(record["bytes"], *bytes, "{record}");
    let peers = &before["sessions"][0]["peers"];
    assert_eq!(record["bytes_from_first"], peers[0]["bytes_sent"], "{record}");
    assert_eq!(record["bytes_from_second"], peers[1]["bytes_sent"], "{record}");
    assert!(record["user"].is_null(), "{record}");
    stage.metric_reaches(r#"aspia_relay_sessions_total{end="crash"}"#, 1.0).await;
    // It is not lost again when the next relay takes over.
    stage.stored(LISTENERS + 2).await;
    stage.kill_relay().await;
    start_relay(&mut stage);
    stage.ready().await;
    drop(other);
    let records = recorded(&stage, 2).await;
    assert_eq!((&records[1]["session"], &records[1]["reason"]), (&2.into(), &"closed".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn drain_records_each_session_that_it_ends() {
    let mut stage = start(&[("DrainTimeout", "1s")]).await;
    let sessions = stage.sessions(2).await;
    let answer = http::request(stage.admin, "POST /drain", &[], "").await.unwrap();
    assert_eq!(answer.status, 202);
    assert!(stage.relay_ended().await.success());
    let mut records = recorded(&stage, 2).await;
    records.sort_by_key(|record| record["session"].as_u64());
    for (record, session) in records.iter().zip(&sessions) {
        assert_eq!((&record["reason"], &record["by"]), (&"drain".into(), &"relay".into()));
        assert_bytes(record, session);
    }
}
