//! HTTP: metrics, health, the admin interface, and access to them.

use std::net::SocketAddr;
use std::time::Duration;

use relay_lab::http::{get, raw, request};
use relay_lab::peer::Introduction;
use relay_lab::relay::Lab;
use relay_lab::router::{Behaviour, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
/// A little more than the time for which the Router must have kept a link for it to count as confirmed.
const CONFIRMATION: Duration = Duration::from_millis(5100);

async fn lab(settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(Options::default(), settings).await.unwrap();
    lab.router.wait_for(|view| !view.pool.is_empty()).await;
    lab
}

/// The value of a metric with its labels.
async fn metric(lab: &Lab, series: &str) -> Option<f64> {
    let text = get(lab.relay.admin(), "/metrics").await.unwrap().body;
    let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(s, _)| s == series));
    line.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// Waits until a metric has a value.
async fn reads(lab: &Lab, series: &str, expected: f64) {
    for _ in 0..2000 {
        if metric(lab, series).await == Some(expected) {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{series} is {:?}, not {expected}", metric(lab, series).await);
}

fn connections(outcome: &str) -> String {
    format!(r#"aspia_relay_peer_connections_total{{outcome="{outcome}"}}"#)
}

fn ends(end: &str) -> String {
    format!(r#"aspia_relay_sessions_total{{end="{end}"}}"#)
}

fn events(event: &str) -> String {
    format!(r#"aspia_relay_key_events_total{{event="{event}"}}"#)
}

#[tokio::test(start_paused = true)]
async fn every_metric_and_label_value_exists_from_the_start() {
    let lab = lab(&[]).await;
    sleep(CONFIRMATION).await;
    let text = get(lab.relay.metrics(), "/metrics").await.unwrap();
    assert_eq!(text.status, 200);
    assert!(text.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let outcomes = |name: &str, label: &str, values: &str| -> Vec<String> {
        values.split(' ').map(|value| format!("{name}{{{label}=\"{value}\"}} ")).collect()
    };
    let mut series = vec![
        "aspia_relay_router_connected 1".to_owned(),
        "aspia_relay_router_ping_seconds_count 0".into(),
        "aspia_relay_peers_pending 0".into(),
        "aspia_relay_handshake_seconds_count 0".into(),
        "aspia_relay_pairing_wait_seconds_count 0".into(),
        "aspia_relay_sessions_active 0".into(),
        "aspia_relay_sessions_limit 100".into(),
        "aspia_relay_session_duration_seconds_count 0".into(),
        "aspia_relay_session_bytes_count 0".into(),
        "aspia_relay_bytes_total 0".into(),
        "aspia_relay_log_lines_lost_total 0".into(),
        "aspia_relay_config_last_reload_successful 1".into(),
        "aspia_relay_config_last_reload_success_timestamp_seconds ".into(),
        "aspia_relay_build_info{".into(),
    ];
    if cfg!(target_os = "linux") {
        series.extend(["process_open_fds ".into(), "process_resident_memory_bytes ".into()]);
    }
    let connects = "ok resolve refused timeout key_mismatch protocol denied";
    series.extend(outcomes("aspia_relay_router_connects_total", "outcome", connects));
    series.extend(outcomes("aspia_relay_keys", "state", "offered handed_out"));
    let key_events = "issued paired refused expired dropped";
    series.extend(outcomes("aspia_relay_key_events_total", "event", key_events));
    let peers = "paired timeout unknown_key bad_message bad_secret proxy_header_missing \
                 proxy_header_malformed proxy_header_oversized proxy_header_timeout user_limit host_limit rate_limited denied \
                 pending_limit closed error draining";
    series.extend(outcomes("aspia_relay_peer_connections_total", "outcome", peers));
    let all_ends = "closed reset idle disconnected max_duration drain error crash";
    series.extend(outcomes("aspia_relay_sessions_total", "end", all_ends));
    for start in series {
        assert!(text.body.lines().any(|line| line.starts_with(&start)), "{start}\n{}", text.body);
    }
    assert!(text.body.contains(r#"aspia_relay_keys{state="offered"} 100"#), "{}", text.body);
}

#[tokio::test(start_paused = true)]
async fn connections_are_counted_by_outcome() {
    let lab = lab(&[("MaxPendingPeers", "2"), ("DrainTimeout", "120s")]).await;
    let introduction = lab.router.introduce().await.unwrap();
    let connect = || TcpStream::connect(lab.relay.address());
    // One that closes, and one with a malformed message.
    drop(connect().await.unwrap());
    reads(&lab, &connections("closed"), 1.0).await;
    connect().await.unwrap().write_all(&[0xff; 8]).await.unwrap();
    reads(&lab, &connections("bad_message"), 1.0).await;
    // A key that was never offered.
    let unknown = Introduction { key_id: introduction.key_id ^ 0x8000, ..introduction.clone() };
    let _unknown = unknown.connect().await.unwrap();
    reads(&lab, &connections("unknown_key"), 1.0).await;
    // The first peer waits; one with another secret is refused; then its partner comes.
    let mut first = introduction.connect().await.unwrap();
    reads(&lab, "aspia_relay_peers_pending", 1.0).await;
    let other = Introduction {
        secret: [introduction.secret.as_slice(), &[0x78, 1]].concat(),
        ..introduction.clone()
    };
    let _other = other.connect().await.unwrap();
    reads(&lab, &connections("bad_secret"), 1.0).await;
    let mut second = introduction.connect().await.unwrap();
    reads(&lab, &connections("paired"), 2.0).await;
    reads(&lab, "aspia_relay_sessions_active", 1.0).await;
    assert_eq!(metric(&lab, "aspia_relay_pairing_wait_seconds_count").await, Some(1.0));
    assert_eq!(metric(&lab, "aspia_relay_handshake_seconds_count").await, Some(3.0));
    // Bytes count while the session runs.
    first.write_all(&[7; 1000]).await.unwrap();
    second.read_exact(&mut [0; 1000]).await.unwrap();
    reads(&lab, "aspia_relay_bytes_total", 1000.0).await;
    // Two silent ones, and one more than the limit.
    let _silent = [connect().await.unwrap(), connect().await.unwrap()];
    reads(&lab, "aspia_relay_peers_pending", 2.0).await;
    let _many = connect().await.unwrap();
    reads(&lab, &connections("pending_limit"), 1.0).await;
    reads(&lab, &connections("timeout"), 2.0).await;
    // A key that was valid until the relay began to drain.
    let withdrawn = lab.router.introduce_silently().await.unwrap();
    lab.relay.handle().drain();
    lab.router.wait_for(|view| !view.linked).await;
    let _late = withdrawn.connect().await.unwrap();
    reads(&lab, &connections("draining"), 1.0).await;
    assert_eq!(metric(&lab, &connections("rate_limited")).await, Some(0.0));
    assert_eq!(metric(&lab, &connections("denied")).await, Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn sessions_are_counted_once_by_their_end() {
    let lab = lab(&[("PeerIdleTimeout", "1"), ("MaxSessionDuration", "2m")]).await;
    let introduce = || async { lab.router.introduce().await.unwrap() };
    drop(introduce().await.session().await.unwrap());
    reads(&lab, &ends("closed"), 1.0).await;
    let (client, host) = introduce().await.session().await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    // The relay may take a moment to see it; it then waits for the survivor to close.
    sleep(SECOND).await;
    drop(host);
    reads(&lab, &ends("reset"), 1.0).await;
    // Ended by an administrator.
    let kept = introduce().await.session().await.unwrap();
    let sessions = get(lab.relay.admin(), "/sessions").await.unwrap().json();
    assert_eq!(sessions["total"], 1, "{sessions}");
    let path = format!("DELETE /sessions/{}", sessions["sessions"][0]["id"]);
    assert_eq!(request(lab.relay.admin(), &path, &[], "").await.unwrap().status, 204);
    reads(&lab, &ends("disconnected"), 1.0).await;
    assert_eq!(request(lab.relay.admin(), &path, &[], "").await.unwrap().status, 404);
    drop(kept);
    // An idle session, and one that is never idle but reaches MaxSessionDuration.
    let idle = introduce().await.session().await.unwrap();
    sleep(60 * SECOND).await;
    reads(&lab, &ends("idle"), 1.0).await;
    drop(idle);
    let (mut client, mut host) = introduce().await.session().await.unwrap();
    for _ in 0..4 {
        sleep(29 * SECOND).await;
        client.write_all(b"x").await.unwrap();
        host.read_exact(&mut [0]).await.unwrap();
    }
    reads(&lab, &ends("max_duration"), 1.0).await;
    assert_eq!(metric(&lab, "aspia_relay_session_duration_seconds_count").await, Some(5.0));
    assert_eq!(metric(&lab, "aspia_relay_session_bytes_count").await, Some(5.0));
    assert_eq!(metric(&lab, &events("paired")).await, Some(5.0));
    // A key that no peer used.
    introduce().await;
    reads(&lab, &events("expired"), 1.0).await;
    // A new key is offered in its place.
    reads(&lab, &events("issued"), 106.0).await;
    reads(&lab, r#"aspia_relay_keys{state="offered"}"#, 100.0).await;
    assert_eq!(metric(&lab, &events("dropped")).await, Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn sessions_ended_by_a_stop_are_counted_as_such() {
    let lab = lab(&[("DrainTimeout", "10s")]).await;
    // The first of two sessions ends half a second before the relay stops, which also ends HTTP.
    let kept = [
        lab.router.introduce().await.unwrap().session().await.unwrap(),
        lab.router.introduce().await.unwrap().session().await.unwrap(),
    ];
    lab.router.keys(98).await;
    lab.relay.handle().drain();
    reads(&lab, &events("dropped"), 98.0).await;
    reads(&lab, &ends("drain"), 1.0).await;
    drop(kept);
}

#[tokio::test(start_paused = true)]
async fn router_connects_are_counted_by_outcome() {
    let connects =
        |outcome: &str| format!(r#"aspia_relay_router_connects_total{{outcome="{outcome}"}}"#);
    for (behaviour, outcome) in [
        (Behaviour::Serve, "ok"),
        (Behaviour::Silent, "timeout"),
        (Behaviour::WrongKey, "key_mismatch"),
        (Behaviour::Answer(vec![0xff; 64]), "protocol"),
        (Behaviour::CloseAtOnce, "protocol"),
        (Behaviour::CloseAfterAuthentication, "denied"),
        (Behaviour::NoRelaySessions, "denied"),
    ] {
        let options = Options { behaviour: behaviour.clone(), ..Options::default() };
        let lab = Lab::start(options, &[]).await.unwrap();
        for _ in 0..200 {
            sleep(SECOND).await;
            if metric(&lab, &connects(outcome)).await > Some(0.0) {
                break;
            }
        }
        let text = get(lab.relay.admin(), "/metrics").await.unwrap().body;
        let counted = text.lines().filter(|line| line.contains("connects_total{"));
        let others: Vec<_> = counted.filter(|line| !line.ends_with(" 0")).collect();
        assert_eq!(others.len(), 1, "{behaviour:?}: {others:?}");
        assert!(others[0].starts_with(&connects(outcome)), "{behaviour:?}: {others:?}");
        let connected = metric(&lab, "aspia_relay_router_connected").await;
        assert_eq!(connected, Some(f64::from(u8::from(outcome == "ok"))));
    }
    let lab = Lab::start(Options::default(), &[]).await.unwrap();
    // The port is bound, so that no other program gets it, but nobody listens.
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = held.local_addr().unwrap();
    let relay = relay_lab::relay::Relay::start(nobody, lab.router.public_key(), &[]).unwrap();
    let lab = Lab { relay, ..lab };
    sleep(SECOND).await;
    assert!(metric(&lab, &connects("refused")).await > Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn pings_are_measured() {
    let lab = lab(&[]).await;
    sleep(61 * SECOND).await;
    reads(&lab, "aspia_relay_router_ping_seconds_count", 1.0).await;
}

#[tokio::test(start_paused = true)]
async fn readiness_names_what_is_missing_and_liveness_ignores_it() {
    let options = Options { behaviour: Behaviour::CloseAtOnce, ..Options::default() };
    let lab = Lab::start(options, &[("DrainTimeout", "60s")]).await.unwrap();
    for address in [lab.relay.admin(), lab.relay.metrics()] {
        let live = get(address, "/livez").await.unwrap();
        assert_eq!((live.status, live.json()["alive"].as_bool()), (200, Some(true)));
        let ready = get(address, "/readyz").await.unwrap();
        assert_eq!(ready.status, 503);
        assert_eq!(ready.json()["missing"], serde_json::json!(["router-link"]));
    }
    let status = get(lab.relay.admin(), "/status").await.unwrap().json();
    assert_eq!(status["router"]["connected"], false);
    let error = status["router"]["last_error"]["message"].as_str().unwrap();
    assert!(error.contains("is it an Aspia Router"), "{error}");
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    lab.router.keys(100).await;
    sleep(CONFIRMATION).await;
    assert_eq!(get(lab.relay.admin(), "/readyz").await.unwrap().status, 200);
    // A session keeps the relay from stopping at once.
    let kept = lab.router.introduce().await.unwrap().session().await.unwrap();
    let drain = request(lab.relay.admin(), "POST /drain", &[], "").await.unwrap();
    assert_eq!((drain.status, drain.json()["sessions"].as_u64()), (202, Some(1)));
    let ready = get(lab.relay.admin(), "/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.json()["missing"].as_array().unwrap().contains(&"draining".into()));
    assert_eq!(get(lab.relay.admin(), "/livez").await.unwrap().status, 200);
    drop(kept);
    assert_eq!(lab.relay.stopped().await.unwrap(), aspia_relay::app::Stopped::Drained);
}

/// How the relay reports its link: the status code of `/readyz`, `connected` and `confirmed` in `/status`, and the gauge.
async fn link(lab: &Lab) -> (u16, bool, bool, f64) {
    let ready = get(lab.relay.admin(), "/readyz").await.unwrap().status;
    let router = get(lab.relay.admin(), "/status").await.unwrap().json()["router"].clone();
    let [connected, confirmed] =
        ["connected", "confirmed"].map(|name| router[name].as_bool().unwrap());
    (ready, connected, confirmed, metric(lab, "aspia_relay_router_connected").await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn relay_is_ready_after_a_link_of_5_seconds() {
    let log = relay_lab::log::CapturedLog::start();
    let lab = lab(&[]).await;
    assert_eq!(link(&lab).await, (503, true, false, 0.0));
    // Peers are served even before that.
    lab.router.introduce().await.unwrap().session().await.unwrap();
    sleep(CONFIRMATION).await;
    assert_eq!(link(&lab).await, (200, true, true, 1.0));
    // A new link must be confirmed, too, even if it replaces a lost one at once.
    for links in 2..4 {
        let seen = log.text().len();
        lab.router.drop_link().await;
        lab.router.wait_for(|view| view.links == links && view.pool.len() >= 99).await;
        assert_eq!(link(&lab).await, (503, true, false, 0.0));
        assert!(!log.text()[seen..].contains("connected to the Router again"), "{}", log.text());
        sleep(CONFIRMATION).await;
        assert_eq!(link(&lab).await, (200, true, true, 1.0));
        assert!(log.text()[seen..].contains("connected to the Router again"), "{}", log.text());
    }
}

#[tokio::test(start_paused = true)]
async fn relay_missing_from_the_white_list_is_never_ready() {
    let log = relay_lab::log::CapturedLog::start();
    let lab = lab(&[]).await;
    sleep(CONFIRMATION).await;
    assert_eq!(link(&lab).await.0, 200);
    lab.router.set(|options| options.behaviour = Behaviour::CloseAfterAuthentication);
    lab.router.drop_link().await;
    let handle = lab.relay.handle();
    let mut changes = handle.watch_link();
    let mut authenticated = 0;
    while authenticated < 5 {
        changes.changed().await.unwrap();
        let link = changes.borrow_and_update().clone();
        if link.link.is_some() {
            authenticated += 1;
            // This also holds while the link is up.
            assert_eq!(handle.missing(), ["router-link"]);
        }
        assert!(!link.is_confirmed());
    }
    assert!(handle.link().failures >= 4, "{:?}", handle.link());
    assert!(!log.text().contains("connected to the Router again"), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn status_shows_sessions_and_link() {
    let lab = lab(&[("MaxPeerCount", "7")]).await;
    let pairs = [
        lab.router.introduce().await.unwrap().session().await.unwrap(),
        lab.router.introduce().await.unwrap().session().await.unwrap(),
        lab.router.introduce().await.unwrap().session().await.unwrap(),
    ];
    let admin = lab.relay.admin();
    let status = get(admin, "/status").await.unwrap();
    assert_eq!(status.header("content-type"), Some("application/json"));
    let status = status.json();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["router"]["version"], "2.7.0");
    assert_eq!(status["router"]["peer_address"], lab.router.address().to_string());
    assert_eq!(status["sessions"], serde_json::json!({"active": 3, "limit": 7}));
    assert_eq!(
        status["fd_store"],
        serde_json::json!({
            "configured": false, "address": null, "connected": false, "sessions_kept": null,
            "since": null, "last_error": null,
        })
    );
    assert_eq!(status["connections"]["paired"], 6);
    assert_eq!(status["bytes_total"], 3);
    assert!(status["recent"]["refusals"]["paired"].is_null());
    assert_eq!(status["recent"]["refusals"]["unknown_key"], 0);

    let list = |query: &'static str| async move {
        get(admin, &format!("/sessions{query}")).await.unwrap().json()
    };
    let all = list("").await;
    assert_eq!((&all["total"], all["next"].is_null()), (&3.into(), true));
    let one = &all["sessions"][0];
    assert_eq!((&one["id"], &one["bytes"]), (&1.into(), &1.into()));
    let peers: Vec<_> =
        [&pairs[0].0, &pairs[0].1].map(|stream| stream.local_addr().unwrap().to_string()).into();
    for peer in one["peers"].as_array().unwrap() {
        assert!(peers.contains(&peer["address"].as_str().unwrap().to_owned()), "{one}");
    }
    let page = list("?limit=2").await;
    assert_eq!((page["sessions"].as_array().unwrap().len(), &page["next"]), (2, &2.into()));
    let rest = list("?limit=2&after=2").await;
    assert_eq!((&rest["sessions"][0]["id"], rest["next"].is_null()), (&3.into(), true));
    for wrong in ["?limit=0", "?limit=10001", "?limit=x", "?after=-1", "?color=red"] {
        assert_eq!(get(admin, &format!("/sessions{wrong}")).await.unwrap().status, 400, "{wrong}");
    }

    // After an interval, the history contains the bytes.
    let mut pairs = pairs;
    pairs[0].0.write_all(&[1; 500]).await.unwrap();
    pairs[0].1.read_exact(&mut [0; 500]).await.unwrap();
    sleep(6 * SECOND).await;
    let status = get(admin, "/status").await.unwrap().json();
    let bytes = status["recent"]["bytes"].as_array().unwrap();
    assert_eq!(bytes.iter().map(|b| b.as_u64().unwrap()).sum::<u64>(), 503, "{bytes:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn tcp_state_of_both_peers_is_sampled_every_ten_seconds() {
    let lab = lab(&[]).await;
    let before = lab.router.introduce().await.unwrap().session().await.unwrap();
    sleep(21 * SECOND).await;
    let shown = get(lab.relay.admin(), "/sessions").await.unwrap().json();
    for peer in shown["sessions"][0]["peers"].as_array().unwrap() {
        assert!(peer["tcp"]["rtt_seconds"].as_f64().unwrap() > 0.0, "{shown}");
        assert_eq!(peer["tcp"]["unsent_bytes"], 0, "{shown}");
        assert!(peer["tcp"]["retransmits"].is_u64(), "{shown}");
    }
    // Two peers, sampled in each round of ten seconds; the first round may have come before the session began.
    let samples = metric(&lab, "aspia_relay_peer_rtt_seconds_count").await.unwrap();
    assert!([4.0, 6.0].contains(&samples), "{samples}");
    for round in 1..=3 {
        sleep(10 * SECOND).await;
        let now = metric(&lab, "aspia_relay_peer_rtt_seconds_count").await.unwrap();
        assert_eq!(now, samples + 2.0 * f64::from(round));
    }
    // Sampling keeps no connection open: after the end of a session there are no more samples.
    drop(before);
    reads(&lab, "aspia_relay_sessions_active", 0.0).await;
    let samples = metric(&lab, "aspia_relay_peer_rtt_seconds_count").await;
    sleep(60 * SECOND).await;
    assert_eq!(metric(&lab, "aspia_relay_peer_rtt_seconds_count").await, samples);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn retransmitted_segments_are_counted() {
    let lab = lab(&[]).await;
    let (client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    // From now on nothing reaches the client: its socket drops every segment.
    let drop_all = socket2::SockFilter::new(0x06, 0, 0, 0);
    socket2::SockRef::from(&client).attach_filter(&[drop_all]).unwrap();
    host.write_all(b"nobody will read this").await.unwrap();
    // The kernel retransmits after a few hundred milliseconds.
    let deadline = std::time::Instant::now() + 60 * SECOND;
    let retransmits = || metric(&lab, "aspia_relay_peer_retransmits_total");
    while retransmits().await == Some(0.0) {
        assert!(std::time::Instant::now() < deadline, "nothing was retransmitted");
        sleep(SECOND / 10).await;
    }
    let shown = get(lab.relay.admin(), "/sessions").await.unwrap().json();
    let side = client.local_addr().unwrap().to_string();
    let peers = shown["sessions"][0]["peers"].as_array().unwrap();
    for peer in peers {
        let sent_again = peer["tcp"]["retransmits"].as_u64().unwrap();
        assert_eq!(sent_again > 0, peer["address"] == side.as_str(), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_problem_details() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    for (asked, status) in [
        ("GET /nonsense", 404),
        ("GET /sessions/x", 404),
        ("DELETE /sessions/99", 404),
        ("GET /drain", 405),
        ("POST /status", 405),
        ("PUT /log-level", 415),
    ] {
        let answer = request(admin, asked, &[], "").await.unwrap();
        assert_eq!(answer.status, status, "{asked}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let body = answer.json();
        assert_eq!(body["status"], status);
        assert!(!body["detail"].as_str().unwrap().is_empty());
    }
    let allowed = request(admin, "GET /drain", &[], "").await.unwrap();
    assert_eq!(allowed.header("allow"), Some("POST"));
    // HEAD is GET without a body.
    let head = request(admin, "HEAD /status", &[], "").await.unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    // The metrics listener has no paths of the admin interface.
    for path in ["/", "/status", "/sessions", "/config"] {
        assert_eq!(get(lab.relay.metrics(), path).await.unwrap().status, 404, "{path}");
    }
    assert_eq!(request(lab.relay.metrics(), "POST /drain", &[], "").await.unwrap().status, 404);
    assert!(!lab.relay.handle().is_draining());
}

#[tokio::test(start_paused = true)]
async fn cross_site_requests_are_refused() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    for lines in [
        &["Host: evil.example"][..],
        &["Host: evil.example:8071"],
        &["Origin: http://evil.example"],
        &["Origin: null"],
        &["Sec-Fetch-Site: cross-site"],
    ] {
        for asked in ["POST /drain", "GET /status", "GET /sessions", "GET /"] {
            let answer = request(admin, asked, lines, "").await.unwrap();
            assert_eq!(answer.status, 403, "{asked} {lines:?}");
        }
    }
    assert!(!lab.relay.handle().is_draining());
    let own = format!("Origin: http://{admin}");
    assert_eq!(request(admin, "GET /status", &[&own], "").await.unwrap().status, 200);
    // Scrapers may use any host name, which only their operator knows.
    let scrape = request(lab.relay.metrics(), "GET /metrics", &["Host: relay7.internal"], "");
    assert_eq!(scrape.await.unwrap().status, 200);
}

/// A login service in front of the proxy redirects the browser to the page.
#[tokio::test(start_paused = true)]
async fn cross_site_navigation_reaches_the_page_only() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    let ask =
        async |asked: &str, lines: &[&str]| request(admin, asked, lines, "").await.unwrap().status;
    for site in ["cross-site", "same-site"] {
        let site = format!("Sec-Fetch-Site: {site}");
        let visit = [&*site, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
        let after_a_form = [&*site, "Sec-Fetch-Mode: navigate", "Origin: null"];
        for lines in [visit, after_a_form] {
            for asked in ["GET /", "HEAD /"] {
                assert_eq!(ask(asked, &lines).await, 200, "{asked} {lines:?}");
            }
            for asked in ["POST /", "GET /status", "GET /config", "GET /metrics", "POST /drain"] {
                assert_eq!(ask(asked, &lines).await, 403, "{asked} {lines:?}");
            }
        }
        assert_eq!(ask("GET /", &[&site, "Sec-Fetch-Mode: no-cors"]).await, 403);
        let renamed = ["Host: evil.example", &*site, "Sec-Fetch-Mode: navigate"];
        assert_eq!(ask("GET /", &renamed).await, 403);
    }
    assert!(!lab.relay.handle().is_draining());
}

#[tokio::test(start_paused = true)]
async fn configured_tokens_are_required() {
    let lab = lab(&[("AdminToken", "administrat0r"), ("MetricsToken", "scrap3r")]).await;
    sleep(CONFIRMATION).await;
    let (admin, metrics) = (lab.relay.admin(), lab.relay.metrics());
    for address in [admin, metrics] {
        for path in ["/livez", "/readyz"] {
            assert_eq!(get(address, path).await.unwrap().status, 200, "{path}");
        }
    }
    for path in ["/status", "/sessions", "/metrics", "/config", "/"] {
        let refused = get(admin, path).await.unwrap();
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
        let with = |token: &'static str| async move {
            request(admin, &format!("GET {path}"), &[token], "").await.unwrap().status
        };
        assert_eq!(with("Authorization: Bearer administrat0r").await, 200, "{path}");
        assert_eq!(with("Authorization: Bearer scrap3r").await, 401, "{path}");
    }
    assert_eq!(request(admin, "POST /drain", &[], "").await.unwrap().status, 401);
    assert!(!lab.relay.handle().is_draining());
    // The page itself needs no token, since it asks for one.
    let page = get(admin, "/").await.unwrap();
    assert!(page.body.contains("<!doctype html>"), "{}", &page.body[..100]);
    assert_eq!(get(metrics, "/metrics").await.unwrap().status, 401);
    let scrape = request(metrics, "GET /metrics", &["Authorization: Bearer scrap3r"], "").await;
    assert_eq!(scrape.unwrap().status, 200);
    // No answer contains a token.
    for path in ["/config", "/status"] {
        let line = "Authorization: Bearer administrat0r";
        let shown = request(admin, &format!("GET {path}"), &[line], "").await.unwrap().body;
        assert!(!shown.contains("administrat0r") && !shown.contains("scrap3r"), "{shown}");
        assert_eq!(path == "/config", shown.contains("(redacted)"), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn log_names_the_address_of_whoever_steers_the_relay() {
    let log = relay_lab::log::CapturedLog::start();
    let lab = lab(&[]).await;
    let json = &["Content-Type: application/json"][..];
    for (asked, headers, body, line) in [
        ("POST /reload", &[][..], "", "an administrator has the configuration read again"),
        ("PUT /log-level", json, r#"{"level": "info"}"#, "an administrator changed the log level"),
        ("POST /drain", &[], "", "an administrator stops the relay"),
    ] {
        request(lab.relay.admin(), asked, headers, body).await.unwrap();
        let line = log.line(line).await;
        assert!(line.ends_with("address=127.0.0.1"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn log_level_can_be_changed() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    let put = |body: &'static str| async move {
        request(admin, "PUT /log-level", &["Content-Type: application/json"], body).await.unwrap()
    };
    assert_eq!(put(r#"{"level": "debug"}"#).await.json()["level"], "debug");
    let filter = "info,aspia_relay::router=trace";
    assert_eq!(put(r#"{"level": "info,aspia_relay::router=trace"}"#).await.json()["level"], filter);
    assert_eq!(get(admin, "/status").await.unwrap().json()["log_level"], filter);
    for wrong in [
        r#"{"level": "loud"}"#,
        r#"{"level": "\"info\""}"#,
        r#"{"level": "x\ny=1"}"#,
        r#"{"level": "info,\u001b[31m=debug"}"#,
        r#"{"level": "hyper=debug"}"#,
        r#"{"level": ""}"#,
        r#"{"level": 7}"#,
        "[]",
        "",
        "{",
    ] {
        assert_eq!(put(wrong).await.status, 400, "{wrong}");
    }
    let why = put(r#"{"level": "inf"}"#).await.json()["detail"].to_string();
    assert!(why.contains("did you mean info?"), "{why}");
    assert_eq!(get(admin, "/status").await.unwrap().json()["log_level"], filter);
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_bounded_and_harmless() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    // A head that is too long, and nonsense: each gets an error or is closed.
    let long = format!("GET /livez HTTP/1.1\r\nHost: {admin}\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    if let Ok(answer) = raw(admin, long.as_bytes()).await {
        assert!(answer.status >= 400, "{answer:?}");
    }
    if let Ok(answer) = raw(admin, b"\x16\x03\x01nonsense\r\n\r\n").await {
        assert_eq!(answer.status, 400);
    }
    assert_eq!(get(admin, "/livez").await.unwrap().status, 200);
}

/// A keep-alive connection on which the first request was answered.
async fn asked(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "closed before the answer");
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    stream
}

/// Waits until the relay closes a connection, without reading from it.
async fn closed(stream: &TcpStream) {
    while !stream.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn longest_idle_connection_is_evicted_for_a_new_one() {
    let lab = lab(&[]).await;
    for address in [lab.relay.admin(), lab.relay.metrics()] {
        let mut kept = Vec::new();
        for _ in 0..64 {
            kept.push(asked(address).await);
            sleep(Duration::from_millis(10)).await;
        }
        let request = format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n\r\n");
        // The first one asks again, so that the second one is now idle the longest.
        kept[0].write_all(request.as_bytes()).await.unwrap();
        assert!(kept[0].read(&mut [0; 1024]).await.unwrap() > 0);
        assert_eq!(get(address, "/livez").await.unwrap().status, 200);
        closed(&kept.remove(1)).await;
        // No other connection was closed.
        for stream in &mut kept {
            stream.write_all(request.as_bytes()).await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn probes_succeed_while_all_connections_are_held() {
    let lab = lab(&[("AdminToken", "t")]).await;
    // Until it is ready.
    sleep(6 * SECOND).await;
    for address in [lab.relay.admin(), lab.relay.metrics()] {
        // Nothing, half a head, half a body, and a request whose answer nobody reads.
        let half_body = "PUT /log-level HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer t\r\n\
                         Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
        let parts = [
            "",
            "GET /livez HTTP/1.1\r\nX: ",
            half_body,
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        ];
        let mut held = Vec::new();
        for part in parts.iter().cycle().take(80) {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(part.as_bytes()).await.unwrap();
            held.push(stream);
        }
        for path in ["/livez", "/readyz"] {
            // Lets the relay accept connections that are in the kernel's queue, which is short.
            sleep(Duration::from_millis(1)).await;
            // The relay runs on this thread, so all of these are in the kernel's queue before it accepts the first.
            let connect = || std::net::TcpStream::connect(address).unwrap();
            let before: Vec<_> = (0..50).map(|_| connect()).collect();
            let mut probe = connect();
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            std::io::Write::write_all(&mut probe, request.as_bytes()).unwrap();
            let after: Vec<_> = (0..50).map(|_| connect()).collect();
            probe.set_nonblocking(true).unwrap();
            let mut answer = String::new();
            let mut probe = TcpStream::from_std(probe).unwrap();
            probe.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(" 200 OK"), "{address}{path}: {answer:?}");
            drop((before, after));
        }
    }
}

/// A client that reads slowly is not idle; connections that are idle are evicted first.
#[tokio::test(start_paused = true)]
async fn response_in_progress_is_not_cut_by_new_connections() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    let mut reader = TcpStream::connect(admin).await.unwrap();
    // Far more than fits into the socket buffers.
    let pages = 1000;
    let requests = format!("GET / HTTP/1.1\r\nHost: {admin}\r\n\r\n").repeat(pages);
    let last = format!("GET /livez HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    reader.write_all((requests + &last).as_bytes()).await.unwrap();
    // By then the buffers are full.
    sleep(2 * SECOND).await;
    // These connections come later, and are idle.
    let mut quiet = Vec::new();
    for _ in 0..63 {
        quiet.push(asked(admin).await);
    }
    for _ in 0..10 {
        assert_eq!(get(admin, "/livez").await.unwrap().status, 200);
    }
    closed(&quiet[0]).await;
    let mut answers = String::new();
    reader.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), pages + 1);
}

#[tokio::test(start_paused = true)]
async fn only_probes_need_no_host_header() {
    let lab = lab(&[("AdminToken", "t")]).await;
    // Until it is ready.
    sleep(6 * SECOND).await;
    for address in [lab.relay.admin(), lab.relay.metrics()] {
        for path in ["/livez", "/readyz"] {
            let host = "Host: lb.internal\r\n";
            let twice = "Host: a\r\nHost: b\r\nOrigin: https://evil.example\r\n";
            for head in ["", host, twice] {
                for version in ["1.0", "1.1"] {
                    let request =
                        format!("GET {path} HTTP/{version}\r\n{head}Connection: close\r\n\r\n");
                    let answer = raw(address, request.as_bytes()).await.unwrap();
                    assert_eq!(answer.status, 200, "{address} {request}");
                }
            }
        }
    }
    let without = raw(lab.relay.admin(), b"GET /status HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(without.status, 403);
}

#[tokio::test(start_paused = true)]
async fn changed_admin_hosts_apply_to_the_next_request() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    let reload = |settings: &[(&str, &str)]| {
        let (router, port) = (&lab.router, lab.relay.address().port());
        let config = relay_lab::relay::config;
        let loaded = config(router.address(), router.public_key(), port, settings).unwrap();
        lab.relay.handle().reload(&loaded);
    };
    let page = "Origin: https://relays.example.net";
    let kept = ["Host: relays.example.net", page, "Sec-Fetch-Site: same-origin"];
    let rewritten = [page, "Sec-Fetch-Site: same-origin"];
    let ask = async |lines: &[&str]| {
        request(admin, "DELETE /sessions/99", lines, "").await.unwrap().status
    };
    for (settings, status) in [
        (&[][..], 403),
        (&[("AdminHosts", "other.example, relays.example.net")], 404),
        (&[("AdminHosts", "relays.example.net:8443")], 403),
        (&[], 403),
    ] {
        reload(settings);
        assert_eq!((ask(&kept).await, ask(&rewritten).await), (status, status), "{settings:?}");
        // Other names are still refused, and requests that need no name still succeed.
        assert_eq!(ask(&["Host: evil.example"]).await, 403);
        assert_eq!(ask(&["Origin: https://evil.example"]).await, 403);
        assert_eq!(ask(&[page, "Sec-Fetch-Site: cross-site"]).await, 403);
        assert_eq!(ask(&[]).await, 404);
    }
}

#[tokio::test(start_paused = true)]
async fn silent_and_incomplete_requests_time_out() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    let start = Instant::now();
    let silent = TcpStream::connect(admin).await.unwrap();
    let mut half = TcpStream::connect(admin).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nX: ").await.unwrap();
    let mut slow = TcpStream::connect(admin).await.unwrap();
    let slowly = async {
        // A byte every second does not extend the time limit.
        while slow.write_all(b"x").await.is_ok() {
            sleep(SECOND).await;
        }
        start.elapsed()
    };
    let both = async {
        closed(&silent).await;
        closed(&half).await;
        start.elapsed()
    };
    let (both, slowly) = tokio::join!(both, slowly);
    assert!((5 * SECOND..6 * SECOND).contains(&both), "{both:?}");
    assert!((5 * SECOND..8 * SECOND).contains(&slowly), "{slowly:?}");
    // A connection with a complete request is kept for longer.
    let kept = asked(admin).await;
    let start = Instant::now();
    closed(&kept).await;
    assert!((29 * SECOND..31 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    // But not for ever, however many requests it sends.
    let mut busy = asked(admin).await;
    let start = Instant::now();
    let request = format!("GET /livez HTTP/1.1\r\nHost: {admin}\r\n\r\n");
    while busy.write_all(request.as_bytes()).await.is_ok()
        && busy.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0)
    {
        assert!(start.elapsed() < 310 * SECOND);
        sleep(20 * SECOND).await;
    }
    assert!(start.elapsed() >= 300 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn clients_that_do_not_read_are_closed() {
    let lab = lab(&[]).await;
    let admin = lab.relay.admin();
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let requests = format!("GET / HTTP/1.1\r\nHost: {admin}\r\n\r\n").repeat(1000);
    let start = Instant::now();
    // Blocks while the buffers of both directions are full, until the relay resets the connection.
    while stream.write_all(requests.as_bytes()).await.is_ok() {}
    assert!((30 * SECOND..35 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(get(admin, "/livez").await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn page_is_one_document_with_a_strict_policy() {
    let lab = lab(&[]).await;
    let page = get(lab.relay.admin(), "/").await.unwrap();
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
}

#[tokio::test(start_paused = true)]
async fn settings_that_wait_for_a_restart_are_named() {
    let lab = lab(&[]).await;
    let waiting = async || {
        get(lab.relay.admin(), "/status").await.unwrap().json()["waiting_for_restart"].clone()
    };
    let reload = |settings: &[(&str, &str)]| {
        let (router, port) = (&lab.router, lab.relay.address().port());
        let config = relay_lab::relay::config;
        let loaded = config(router.address(), router.public_key(), port, settings).unwrap();
        lab.relay.handle().reload(&loaded);
    };
    assert_eq!(waiting().await, serde_json::json!([]));
    let new = [("MetricsListen", "127.0.0.1:4242"), ("WorkerThreads", "7"), ("MaxPeerCount", "5")];
    reload(&new);
    assert_eq!(waiting().await, serde_json::json!(["MetricsListen", "WorkerThreads"]));
    // They are still named after another reload of the same file, until the old settings are back.
    reload(&new);
    assert_eq!(waiting().await, serde_json::json!(["MetricsListen", "WorkerThreads"]));
    reload(&[]);
    assert_eq!(waiting().await, serde_json::json!([]));
}

/// Runs the program, since a log level set over HTTP must change what it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_log_level_takes_effect() {
    use std::process::{Command, Stdio};

    let free = || SocketAddr::from(([127, 0, 0, 1], relay_lab::port::free_port().unwrap()));
    let router = relay_lab::router::LabRouter::start(Options::default()).await.unwrap();
    let (admin, peers) = (free(), free());
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_aspia_relay"))
        .env_clear()
        .env("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1")
        .env("ASPIA_RELAY_ROUTER_PORT", router.address().port().to_string())
        .env("ASPIA_RELAY_ROUTER_PUBLIC_KEY", router.public_key().to_string())
        .env("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1")
        .env("ASPIA_RELAY_PEER_PORT", peers.port().to_string())
        .env("ASPIA_RELAY_ADMIN_LISTEN", admin.to_string())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&log).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    // Sends nonsense as a peer would, and returns whether the log mentions it in time.
    let said = async |patience: u32| {
        let mut stranger = TcpStream::connect(peers).await.unwrap();
        stranger.write_all(&[0xff; 8]).await.unwrap();
        let _ = stranger.read(&mut [0]).await;
        for _ in 0..patience {
            if std::fs::read_to_string(&log).unwrap().contains("peer refused") {
                return true;
            }
            sleep(Duration::from_millis(50)).await;
        }
        false
    };
    // At the default level, as in the original, only fatal errors go to stdout.
    assert!(!said(10).await);
    let json = ["Content-Type: application/json"];
    let set = request(admin, "PUT /log-level", &json, r#"{"level": "info"}"#).await.unwrap();
    assert_eq!(set.status, 200);
    let heard = said(600).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(heard, "{}", std::fs::read_to_string(&log).unwrap());
}
