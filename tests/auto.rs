//! `RouterProtocol` `auto`: the relay finds out which dialect its Router speaks, and again when that changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay, config};
use relay_lab::router::{Behaviour, LabRouter, Options, RouterVersion};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

async fn lab(version: RouterVersion, settings: &[(&str, &str)]) -> Lab {
    let options = Options { version, ..Options::default() };
    Lab::start(options, settings).await.unwrap()
}

/// The dialect of the link that is up.
fn dialect(lab: &Lab) -> Option<&'static str> {
    lab.relay.handle().link().link.map(|link| link.dialect)
}

#[tokio::test(start_paused = true)]
async fn a_router_that_is_upgraded_and_downgraded_needs_no_restart_of_the_relay() {
    let log = CapturedLog::start();
    let lab = lab(RouterVersion::V2_7, &[("MaxPeerCount", "2")]).await;
    lab.router.keys(2).await;
    assert_eq!(dialect(&lab), Some("2.x"));
    for (links, version, name) in [(2, RouterVersion::V3_0, "3.0"), (3, RouterVersion::V2_7, "2.x")]
    {
        sleep(60 * SECOND).await;
        let seen = log.text().len();
        lab.router.set(|options| options.version = version);
        lab.router.drop_link().await;
        lab.router.wait_for(|view| view.links == links && view.pool.len() == 2).await;
        assert_eq!(dialect(&lab), Some(name));
        let text = log.text()[seen..].to_owned();
        assert!(text.contains("the Router does not answer in the"), "{text}");
        assert!(text.contains("it does not answer in another") && text.contains(name), "{text}");
        drop(lab.router.introduce().await.unwrap().session().await.unwrap());
    }
    assert_eq!(lab.router.view().complaints, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_worked_is_tried_first_at_a_reconnect() {
    let lab = lab(RouterVersion::V3_0, &[("MaxPeerCount", "1")]).await;
    lab.router.keys(1).await;
    // The port is neither of the usual ones: the first connection was in the other dialect.
    let view = lab.router.view();
    assert_eq!((view.connections, view.foreign), (2, 1));
    for links in 2..5 {
        sleep(60 * SECOND).await;
        lab.router.drop_link().await;
        lab.router.wait_for(|view| view.links == links && view.pool.len() == 1).await;
    }
    let view = lab.router.view();
    assert_eq!((view.connections, view.foreign), (5, 1));
    assert_eq!(view.complaints, [""; 0]);
}

/// A Router that was migrated to 3.x listens for Hosts alone on the port that relays used to dial. It keeps its key.
#[tokio::test(start_paused = true)]
async fn the_port_for_hosts_of_a_3_x_router_is_said_to_be_one() {
    for protocol in ["auto", "2"] {
        let log = CapturedLog::start();
        let behaviour = Behaviour::HostPort;
        let options = Options { version: RouterVersion::V3_0, behaviour, ..Options::default() };
        let lab = Lab::start(options, &[("RouterProtocol", protocol)]).await.unwrap();
        let line = log.line("listens for Hosts").await;
        for part in ["version 3.0.0", "set RouterPort to 8063", "keeps its key"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(line.contains("ERROR") && !line.contains("relay.pub"), "{line}");
        drop(lab);
        // With another key, only the missing version tells.
        let router = LabRouter::start(Options {
            version: RouterVersion::V3_0,
            behaviour: Behaviour::HostPort,
            ..Options::default()
        });
        let router = router.await.unwrap();
        let other = LabRouter::start(Options::default()).await.unwrap().public_key();
        let _relay =
            Relay::start(router.address(), other, &[("RouterProtocol", protocol)]).unwrap();
        let line = log.line("copy the content of router.pub").await;
        assert!(line.contains("If the Router is a 3.x") && line.contains("relay.pub"), "{line}");
    }
}

/// Neither a wrong key nor silence says anything about the dialect.
#[tokio::test(start_paused = true)]
async fn a_wrong_key_and_silence_are_not_taken_for_another_dialect() {
    for (version, file, dialects) in
        [(RouterVersion::V2_7, "router.pub", 0), (RouterVersion::V3_0, "relay.pub", 1)]
    {
        let log = CapturedLog::start();
        let options = Options { version, behaviour: Behaviour::WrongKey, ..Options::default() };
        let lab = Lab::start(options, &[("MaxPeerCount", "1")]).await.unwrap();
        log.line(&format!("copy the content of {file}")).await;
        // The Router answered: the next tries are in its dialect alone.
        lab.router.wait_for(|view| view.connections >= 5).await;
        assert_eq!(lab.router.view().foreign, dialects, "{}", log.text());
        assert!(!log.text().contains("speaks no dialect"), "{}", log.text());
    }
    let log = CapturedLog::start();
    let options = Options { behaviour: Behaviour::Silent, ..Options::default() };
    let lab = Lab::start(options, &[("MaxPeerCount", "1")]).await.unwrap();
    log.line("did not authenticate within 60 s").await;
    assert!(!log.text().contains("does not answer in the"), "{}", log.text());
    assert!(lab.router.view().connections <= 2);
}

#[tokio::test(start_paused = true)]
async fn where_no_dialect_is_spoken_both_reasons_are_given_and_one_failure_counted() {
    let log = CapturedLog::start();
    let options = Options { behaviour: Behaviour::CloseAtOnce, ..Options::default() };
    let settings = [("MaxPeerCount", "1"), ("MetricsListen", "127.0.0.1:4242")];
    let lab = Lab::start(options, &settings).await.unwrap();
    let line = log.line("speaks no dialect of this relay").await;
    assert!(line.contains("in the 2.x dialect") && line.contains("in the 3.0 dialect"), "{line}");
    assert_eq!(lab.router.view().connections, 2);
    assert_eq!(lab.relay.handle().link().failures, 1);
    let metrics = relay_lab::http::get(lab.relay.metrics(), "/metrics").await.unwrap().body;
    let counted = r#"aspia_relay_router_connects_total{outcome="protocol"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

/// A Router that is being restarted hangs up and is then away: that is no question of dialects.
#[tokio::test(start_paused = true)]
async fn what_fails_for_another_reason_in_the_second_dialect_is_that_reason() {
    let log = CapturedLog::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let router = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        // Away before it hangs up; the next connection is refused.
        drop(listener);
        let _ = tokio::io::AsyncReadExt::read(&mut first, &mut [0; 64]).await;
    });
    let key = aspia_relay::crypto::PrivateKey::generate().unwrap().public();
    let relay = Relay::start(router, key, &[]).unwrap();
    let line = log.line("Router link: ").await;
    assert!(line.contains("refused") && !line.contains("speaks no dialect"), "{line}");
    let metrics = relay_lab::http::get(relay.metrics(), "/metrics").await.unwrap().body;
    let counted = r#"aspia_relay_router_connects_total{outcome="refused"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn on_port_8063_the_3_0_dialect_comes_first() {
    for (version, foreign) in [(RouterVersion::V3_0, 0), (RouterVersion::V2_7, 1)] {
        // An address of loopback that nobody else has.
        let listen = ([127, 80, 63, 1 + foreign], 8063).into();
        let options = Options { version, listen, ..Options::default() };
        let lab = Lab::start(options, &[("MaxPeerCount", "1")]).await.unwrap();
        lab.router.keys(1).await;
        assert_eq!(lab.router.view().foreign, u64::from(foreign));
    }
}

#[tokio::test(start_paused = true)]
async fn a_3_0_router_never_counts_too_many_connections() {
    let options = Options {
        version: RouterVersion::V3_0,
        behaviour: Behaviour::CloseAtOnce,
        ..Options::default()
    };
    assert!(options.limit_connections);
    let lab = Lab::start(options, &[("MaxPeerCount", "1")]).await.unwrap();
    sleep(600 * SECOND).await;
    let view = lab.router.view();
    assert!(view.connections > 50, "{}", view.connections);
    assert_eq!(view.complaints, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn another_protocol_in_the_settings_makes_a_new_link() {
    let lab = lab(RouterVersion::V2_7, &[("MaxPeerCount", "1")]).await;
    lab.router.keys(1).await;
    let (router, key) = (lab.router.address(), lab.router.public_key());
    let port = lab.relay.address().port();
    lab.router.set(|options| options.version = RouterVersion::V3_0);
    let settings = [("MaxPeerCount", "1"), ("RouterProtocol", "3")];
    let reloaded = lab.relay.handle().reload(&config(router, key, port, &settings).unwrap());
    assert_eq!(reloaded.changed, ["RouterProtocol"]);
    lab.router.wait_for(|view| view.links == 2 && view.pool.len() == 1).await;
    assert_eq!(dialect(&lab), Some("3.0"));
    assert_eq!(lab.router.view().foreign, 0);
}
