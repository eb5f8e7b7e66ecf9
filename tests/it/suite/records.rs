//! The records of sessions that have ended: one line each, with the target `session`.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use relay_lab::clock::HeldClock;
use relay_lab::http::request;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, config};
use relay_lab::traffic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Setup;

for_each_data_plane! {
    #[tokio::test]
    record_has_the_bytes_of_each_peer_and_who_left_first;
}

/// What the text of a record begins with, after its time.
const BEGIN: &str = " INFO session: session ended ";

/// A record as text.
struct Record(String);

impl Record {
    /// Waits for the first record, and checks that there is no other.
    async fn only(log: &CapturedLog) -> Self {
        let line = log.line(BEGIN).await;
        assert_eq!(log.text().matches("session ended").count(), 1, "{}", log.text());
        Self(line)
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.0.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    fn field(&self, name: &str) -> &str {
        self.find(name).unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    fn time(&self, name: &str) -> SystemTime {
        humantime::parse_rfc3339(self.field(name)).unwrap()
    }

    /// Which peer this end of a connection is.
    fn order(&self, peer: &TcpStream) -> &'static str {
        let address = peer.local_addr().unwrap().to_string();
        let order = ["first", "second"].into_iter().find(|order| self.field(order) == address);
        order.unwrap_or_else(|| panic!("{address} is not in {}", self.0))
    }
}

async fn record_has_the_bytes_of_each_peer_and_who_left_first(setup: Setup) {
    const FROM_CLIENT: u64 = 1_500_000;
    const FROM_HOST: u64 = 70_001;
    for does_client_leave in [true, false] {
        let log = CapturedLog::start();
        let before = SystemTime::now();
        let lab = Lab::start_with(setup.options(), &[], setup.data_plane()).await.unwrap();
        let introduction = lab.router.introduce().await.unwrap();
        let (mut client, mut host) = introduction.connect_both().await.unwrap();
        let (sent, received) = tokio::join!(
            traffic::send(&mut client, 1, FROM_CLIENT),
            traffic::receive(&mut host, Some(FROM_CLIENT))
        );
        sent.and(received.map(drop)).unwrap();
        let (sent, received) = tokio::join!(
            traffic::send(&mut host, 2, FROM_HOST),
            traffic::receive(&mut client, Some(FROM_HOST))
        );
        sent.and(received.map(drop)).unwrap();
        let (leaving, staying) =
            if does_client_leave { (&mut client, &mut host) } else { (&mut host, &mut client) };
        // The partner sees the end and finishes, too.
        leaving.shutdown().await.unwrap();
        assert_eq!(staying.read(&mut [0]).await.unwrap(), 0);
        staying.shutdown().await.unwrap();
        let record = Record::only(&log).await;
        assert_eq!(record.field("session"), "1");
        assert_eq!((record.field("reason"), record.field("by")), ("closed", record.order(leaving)));
        let from_first = record.order(&client) == "first";
        let bytes = if from_first { [FROM_CLIENT, FROM_HOST] } else { [FROM_HOST, FROM_CLIENT] };
        assert_eq!(record.field("bytes_from_first"), bytes[0].to_string());
        assert_eq!(record.field("bytes_from_second"), bytes[1].to_string());
        assert_eq!(record.field("bytes"), (FROM_CLIENT + FROM_HOST).to_string());
        assert!(before - Duration::from_millis(1) <= record.time("started"), "{}", record.0);
        let between = record.time("ended").duration_since(record.time("started")).unwrap();
        let duration: f64 = record.field("duration_seconds").parse().unwrap();
        // Both times are cut to milliseconds.
        assert!((between.as_secs_f64() - duration).abs() < 0.0021, "{}", record.0);
        assert!(record.find("administrator").is_none() && record.find("user").is_none());
        assert!(record.find("host_id").is_none());
    }
}

/// Starts a relay with one session.
async fn session(settings: &[(&str, &str)]) -> (Lab, TcpStream, TcpStream) {
    let lab = Lab::start(Setup::V2.options(), settings).await.unwrap();
    let (client, host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    (lab, client, host)
}

#[tokio::test]
async fn record_names_the_address_of_the_administrator_who_ended_the_session() {
    let log = CapturedLog::start();
    let (lab, _client, _host) = session(&[]).await;
    let answer = request(lab.relay.admin(), "DELETE /sessions/1", &[], "").await.unwrap();
    assert_eq!(answer.status, 204);
    let record = Record::only(&log).await;
    assert_eq!((record.field("reason"), record.field("by")), ("disconnected", "administrator"));
    assert_eq!(record.field("administrator"), "127.0.0.1");
    let asked = log.line("an administrator ends a session").await;
    assert!(asked.ends_with("session=1 address=127.0.0.1"), "{asked}");
}

#[tokio::test]
async fn record_tells_the_router_from_an_administrator() {
    let log = CapturedLog::start();
    let (lab, _client, _host) = session(&[]).await;
    lab.router.disconnect(1).await;
    let record = Record::only(&log).await;
    assert_eq!((record.field("reason"), record.field("by")), ("disconnected", "router"));
    assert!(record.find("administrator").is_none());
}

#[tokio::test(start_paused = true)]
async fn record_of_a_session_that_reached_a_limit_has_its_whole_duration() {
    for (setting, value, reason, seconds) in [
        ("PeerIdleTimeout", "1", "idle", "60"),
        ("MaxSessionDuration", "90s", "max_duration", "90"),
    ] {
        let log = CapturedLog::start();
        let held = HeldClock::hold();
        let (_lab, _client, _host) = session(&[(setting, value)]).await;
        drop(held);
        let record = Record::only(&log).await;
        assert_eq!((record.field("reason"), record.field("by")), (reason, "limit"));
        let duration = record.field("duration_seconds");
        assert_eq!(duration.split('.').next(), Some(seconds), "{duration}");
    }
}

#[tokio::test]
async fn names_are_recorded_as_the_setting_is_when_the_session_ends() {
    for (before, after) in [("true", false), ("false", true)] {
        let log = CapturedLog::start();
        let (lab, client, host) = session(&[("LogPeerIdentity", before)]).await;
        let after_text = after.to_string();
        let settings = [("LogPeerIdentity", after_text.as_str())];
        let (router, port) = (&lab.router, lab.relay.address().port());
        let changed = config(router.address(), router.public_key(), port, &settings).unwrap();
        let is_logged = changed.config.log_peer_identity;
        lab.relay.handle().reload(&changed);
        assert_eq!(is_logged, after);
        drop((client, host));
        let record = Record::only(&log).await;
        assert_eq!(record.find("user").is_some_and(|user| user.contains("operator")), after);
        assert_eq!(record.find("host_id").is_some(), after, "{}", record.0);
    }
}

#[tokio::test]
async fn documentation_lists_the_fields_of_a_record_in_a_table() {
    let log = CapturedLog::start();
    let (lab, _client, _host) = session(&[("LogPeerIdentity", "true")]).await;
    request(lab.relay.admin(), "DELETE /sessions/1", &[], "").await.unwrap();
    let record = Record::only(&log).await;
    let fields: BTreeSet<&str> =
        record.0.split(' ').filter_map(|word| Some(word.split_once('=')?.0)).collect();
    let document = include_str!("../../../docs/observability.md");
    let (_, section) = document.split_once("### Session records").unwrap();
    let section = section.split("\n### ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let documented: BTreeSet<&str> =
        rows.flat_map(|names| names.split(", ")).map(|name| name.trim_matches('`')).collect();
    assert_eq!(fields, documented);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_a_stop_ends_are_recorded_as_drained() {
    let log = CapturedLog::start();
    let held = HeldClock::hold();
    let (lab, _client, _host) = session(&[("DrainTimeout", "3s")]).await;
    drop(held);
    lab.relay.handle().drain();
    lab.relay.stopped().await.unwrap();
    let record = Record::only(&log).await;
    assert_eq!((record.field("reason"), record.field("by")), ("drain", "relay"));
}
