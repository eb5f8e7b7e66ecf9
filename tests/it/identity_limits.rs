//! `MaxSessionsPerUser` and `MaxSessionsPerHost`: how many sessions one user and one host have at once.

use aspia_relay::wire::peer::PeerSecret;
use prometheus::TextEncoder;
use prost::Message;
use relay_lab::log::CapturedLog;
use relay_lab::peer::Introduction;
use relay_lab::relay::{Lab, config};
use relay_lab::router::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The two ends of a session.
type Ends = (TcpStream, TcpStream);

/// Starts a relay for four sessions.
async fn lab(settings: &[(&str, &str)]) -> Lab {
    let settings = [&[("MaxPeerCount", "4")], settings].concat();
    let lab = Lab::start(Options::default(), &settings).await.unwrap();
    lab.router.wait_for(|view| view.pool.len() == 4).await;
    lab
}

fn reload(lab: &Lab, settings: &[(&str, &str)]) {
    let (router, key) = (lab.router.address(), lab.router.public_key());
    let settings = [&[("MaxPeerCount", "4")], settings].concat();
    let port = lab.relay.address().port();
    lab.relay.handle().reload(&config(router, key, port, &settings).unwrap());
}

/// The value of a metric, found by the beginning of its line.
fn metric(lab: &Lab, name: &str) -> f64 {
    let text = TextEncoder::new().encode_to_string(&lab.relay.handle().gather()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

fn outcome(lab: &Lab, outcome: &str) -> f64 {
    metric(lab, &format!("aspia_relay_peer_connections_total{{outcome=\"{outcome}\"}}"))
}

fn active(lab: &Lab) -> f64 {
    metric(lab, "aspia_relay_sessions_active")
}

/// Has the Router introduce a user to a host.
async fn introduce(lab: &Lab, user: &str, host_id: u64) -> Introduction {
    let mut introduction = lab.router.introduce().await.unwrap();
    let mut secret = PeerSecret::decode(&*introduction.secret).unwrap();
    secret.client_user_name = user.to_owned();
    secret.host_id = host_id;
    introduction.secret = secret.encode_to_vec();
    introduction
}

async fn begin(lab: &Lab, user: &str, host_id: u64) -> Ends {
    introduce(lab, user, host_id).await.session().await.unwrap()
}

/// Connects both peers of a session that is refused: the relay closes both connections.
async fn is_refused(lab: &Lab, user: &str, host_id: u64) {
    let (mut client, mut host) = introduce(lab, user, host_id).await.connect_both().await.unwrap();
    for peer in [&mut client, &mut host] {
        assert_eq!(peer.read(&mut [0]).await.unwrap_or(0), 0, "the relay forwards something");
    }
}

async fn still_works((client, host): &mut Ends) {
    client.write_all(b"?").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
}

/// Ends a session, and returns once the relay knows.
async fn end(lab: &Lab, ends: Ends) {
    let before = active(lab);
    drop(ends);
    while active(lab) >= before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn user_over_the_limit_costs_nobody_a_place() {
    let lab = lab(&[("MaxSessionsPerUser", "2")]).await;
    let mut first = begin(&lab, "anna", 1).await;
    let second = begin(&lab, "anna", 2).await;
    for refused in 1..=10 {
        is_refused(&lab, "anna", 3).await;
        // Both of them are counted, the one that waited and the one that came second.
        while outcome(&lab, "user_limit") < f64::from(2 * refused) {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(outcome(&lab, "user_limit"), 20.0);
    assert_eq!(metric(&lab, "aspia_relay_key_events_total{event=\"refused\"}"), 10.0);
    assert_eq!(
        (active(&lab), outcome(&lab, "host_limit"), outcome(&lab, "timeout")),
        (2.0, 0.0, 0.0)
    );
    // Their ten keys are used up, and two others are on offer for the two places that are free.
    lab.router.wait_for(|view| view.pool.len() == 2).await;
    let others = [begin(&lab, "boris", 3).await, begin(&lab, "Anna", 4).await];
    assert_eq!(active(&lab), 4.0);
    drop(others);
    still_works(&mut first).await;
    // A place of hers is free again as soon as a session of hers has ended.
    end(&lab, second).await;
    begin(&lab, "anna", 3).await;
}

#[tokio::test]
async fn host_over_the_limit_is_refused_whoever_asks() {
    let log = CapturedLog::start();
    let lab = lab(&[("MaxSessionsPerHost", "1")]).await;
    let _first = begin(&lab, "anna", 7).await;
    is_refused(&lab, "boris", 7).await;
    let _other = begin(&lab, "anna", 8).await;
    while outcome(&lab, "host_limit") < 2.0 {
        tokio::task::yield_now().await;
    }
    let line = "its host has as many sessions as MaxSessionsPerHost allows: 1";
    assert!(log.text().contains(&format!("peer refused: {line}")), "{}", log.text());
}

#[tokio::test]
async fn peers_whom_the_router_does_not_name_are_not_limited() {
    let lab = lab(&[("MaxSessionsPerUser", "1"), ("MaxSessionsPerHost", "1")]).await;
    let _sessions =
        [begin(&lab, "", 0).await, begin(&lab, "", 0).await, begin(&lab, "anna", 0).await];
    is_refused(&lab, "anna", 0).await;
}

#[tokio::test]
async fn limit_that_a_reload_sets_counts_the_sessions_that_are_active() {
    let lab = lab(&[]).await;
    let mut sessions = [begin(&lab, "anna", 1).await, begin(&lab, "anna", 1).await];
    reload(&lab, &[("MaxSessionsPerUser", "1")]);
    // The relay's tasks learn of it before they accept the next peer.
    is_refused(&lab, "anna", 2).await;
    for session in &mut sessions {
        still_works(session).await;
    }
    let [first, second] = sessions;
    end(&lab, first).await;
    is_refused(&lab, "anna", 2).await;
    end(&lab, second).await;
    let third = begin(&lab, "anna", 2).await;
    is_refused(&lab, "anna", 3).await;
    reload(&lab, &[]);
    let fourth = begin(&lab, "anna", 3).await;
    drop((third, fourth));
}

#[tokio::test]
async fn user_is_named_only_if_the_log_may_name_peers() {
    for is_named in [false, true] {
        let log = CapturedLog::start();
        let named = is_named.to_string();
        let lab = lab(&[("MaxSessionsPerUser", "1"), ("LogPeerIdentity", &named)]).await;
        let _session = begin(&lab, "an\u{1b}na", 1).await;
        is_refused(&lab, "an\u{1b}na", 2).await;
        while outcome(&lab, "user_limit") < 2.0 {
            tokio::task::yield_now().await;
        }
        let text = log.text();
        assert!(text.contains("has as many sessions as MaxSessionsPerUser allows: 1"), "{text}");
        assert_eq!(text.contains(r"u{1b}na"), is_named, "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
