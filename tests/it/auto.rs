//! `RouterProtocol` `auto`: the relay finds out which dialect its Router speaks, and again when that changes.

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

/// The dialect of the current link, if there is one.
fn dialect(lab: &Lab) -> Option<&'static str> {
    lab.relay.handle().link().link.map(|link| link.dialect)
}

#[tokio::test(start_paused = true)]
async fn router_upgrade_and_downgrade_need_no_restart() {
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
        assert!(
            text.contains("the Router does not answer in another") && text.contains(name),
            "{text}"
        );
        drop(lab.router.introduce().await.unwrap().session().await.unwrap());
    }
    assert_eq!(lab.router.view().complaints, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn reconnect_tries_the_last_working_dialect_first() {
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

/// After its migration to 3.x, a Router accepts only Hosts on the port that relays used to dial. It keeps its key.
#[tokio::test(start_paused = true)]
async fn port_for_hosts_of_a_3_x_router_is_recognised() {
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
        // With another key, the missing version is the only clue.
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
async fn wrong_key_and_silence_do_not_change_the_dialect() {
    for (version, file, dialects) in
        [(RouterVersion::V2_7, "router.pub", 0), (RouterVersion::V3_0, "relay.pub", 1)]
    {
        let log = CapturedLog::start();
        let options = Options { version, behaviour: Behaviour::WrongKey, ..Options::default() };
        let lab = Lab::start(options, &[("MaxPeerCount", "1")]).await.unwrap();
        log.line(&format!("copy the content of {file}")).await;
        // The Router has answered, so further attempts use only its dialect.
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
async fn failure_in_both_dialects_is_reported_once_with_both_reasons() {
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

/// A Router that restarts closes the connection and is then unreachable, which says nothing about the dialect.
#[tokio::test(start_paused = true)]
async fn other_failure_in_the_second_dialect_is_reported() {
    let log = CapturedLog::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let router = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        // The Router stops listening before it closes the connection, so the next attempt is refused.
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
async fn port_8063_prefers_the_3_0_dialect() {
    for (version, foreign) in [(RouterVersion::V3_0, 0), (RouterVersion::V2_7, 1)] {
        // A loopback address that no other test uses.
        let listen = ([127, 80, 63, 1 + foreign], 8063).into();
        let options = Options { version, listen, ..Options::default() };
        let lab = Lab::start(options, &[("MaxPeerCount", "1")]).await.unwrap();
        lab.router.keys(1).await;
        assert_eq!(lab.router.view().foreign, u64::from(foreign));
    }
}

#[tokio::test(start_paused = true)]
async fn relay_stays_below_the_connection_limit_of_a_3_0_router() {
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
async fn changed_protocol_setting_replaces_the_link() {
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
