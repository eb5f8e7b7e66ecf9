//! `--probe`: what it says about relays, and about services that are none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use aspia_relay::dial::SystemNetwork;
use aspia_relay::probe::{self, ProbeOutcome};
use prometheus::TextEncoder;
use relay_lab::log::CapturedLog;
use relay_lab::relay::Lab;
use relay_lab::router::{Options, RouterVersion};

/// What a probe of this address says.
async fn outcome(address: SocketAddr) -> ProbeOutcome {
    let target = address.to_string().parse().unwrap();
    let mut report = probe::run(&SystemNetwork, &target).await;
    assert_eq!(report.addresses.len(), 1);
    let probed = report.addresses.remove(0);
    assert_eq!(probed.address, Some(address));
    probed.outcome
}

async fn lab(version: RouterVersion, settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(Options { version, ..Options::default() }, settings).await.unwrap();
    lab.router.wait_for(|view| !view.pool.is_empty()).await;
    lab
}

/// How many connections had this outcome, once all of them have one.
async fn count(lab: &Lab, outcome: &str) -> f64 {
    let name = format!("aspia_relay_peer_connections_total{{outcome=\"{outcome}\"}} ");
    loop {
        let text = TextEncoder::new().encode_to_string(&lab.relay.handle().gather()).unwrap();
        if text.contains("\naspia_relay_peers_pending 0\n") {
            let line = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
            return line.parse().unwrap();
        }
        tokio::task::yield_now().await;
    }
}

async fn relay_answers(version: RouterVersion) {
    let log = CapturedLog::start();
    let lab = lab(version, &[]).await;
    let keys = lab.router.view().pool.len();
    assert_eq!(outcome(lab.relay.address()).await, ProbeOutcome::Relay);
    assert_eq!(count(&lab, "unknown_key").await, 1.0);
    assert_eq!(lab.router.view().pool.len(), keys, "no key is used up");
    let text = log.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("--probe")).collect();
    let [line] = lines[..] else { panic!("{text}") };
    assert!(line.contains("INFO") && line.contains("peer refused: key 4294967295"), "{line}");
    assert!(!text.contains("WARN"), "a probe is no attack: {text}");
}

#[tokio::test]
async fn relay_with_a_2_x_router_answers_and_notes_the_probe_without_a_warning() {
    relay_answers(RouterVersion::V2_7).await;
}

#[tokio::test]
async fn relay_with_a_3_0_router_answers_and_notes_the_probe_without_a_warning() {
    relay_answers(RouterVersion::V3_0).await;
}

#[tokio::test]
async fn relay_that_refuses_the_machine_is_not_taken_for_one_that_answers() {
    let denied = lab(RouterVersion::V2_7, &[("DenyPeers", "127.0.0.0/8")]).await;
    let proxied = lab(RouterVersion::V2_7, &[("ProxyProtocolFrom", "127.0.0.0/8")]).await;
    let (denied_outcome, proxied_outcome) =
        tokio::join!(outcome(denied.relay.address()), outcome(proxied.relay.address()));
    // Whether the system closes or resets the connection is its own affair.
    assert!(
        matches!(denied_outcome, ProbeOutcome::ClosedAtOnce | ProbeOutcome::ResetAtOnce),
        "{denied_outcome:?}"
    );
    assert_eq!(count(&denied, "denied").await, 1.0);
    assert_eq!(proxied_outcome, ProbeOutcome::ClosedEarly);
    assert!(proxied_outcome.remedy().contains("probe the address of the proxy"));
    assert_eq!(count(&proxied, "proxy_header_missing").await, 1.0);
}

/// A service on loopback that treats its one connection like this.
fn service(serve: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || serve(listener.accept().unwrap().0));
    address
}

/// Waits until the other side has closed.
fn drain(mut stream: &TcpStream) {
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
}

/// A service that sends this: as a greeting, or as an answer to the first bytes that it receives.
fn speaker(is_first: bool, text: &'static [u8]) -> SocketAddr {
    service(move |mut stream| {
        if !is_first {
            let _ = stream.read(&mut [0; 1024]);
        }
        stream.write_all(text).unwrap();
        drain(&stream);
    })
}

#[tokio::test]
async fn other_services_are_told_apart() {
    let silent = service(|stream| drain(&stream));
    let closing = service(drop);
    let resetting = service(|stream| {
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    });
    let web = speaker(false, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    let tls = speaker(false, b"\x15\x03\x01\0\x02\x02\x46");
    let ssh = speaker(true, b"SSH-2.0-OpenSSH_9.2p1\r\n");
    let mail = speaker(true, b"220 mail.example.com ESMTP\r\n");
    let refusing = SocketAddr::from(([127, 0, 0, 1], relay_lab::port::free_port().unwrap()));
    let addresses = [silent, closing, resetting, web, tls, ssh, mail, refusing];
    let outcomes = futures_util::future::join_all(addresses.map(outcome)).await;
    let names: Vec<_> = outcomes.iter().map(ProbeOutcome::name).collect();
    let expected = [
        "silent",
        "closed_at_once",
        "reset_at_once",
        "http",
        "tls",
        "ssh",
        "other_protocol",
        "refused",
    ];
    assert_eq!(names, expected);
    assert!(outcomes[6].to_string().contains("220 mail.example.com"), "{}", outcomes[6]);
}

#[cfg(unix)]
mod program {
    use serde_json::Value;

    use crate::command_line::{program, run};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn probe_exits_with_0_if_a_relay_answers_and_with_1_otherwise() {
        let lab = lab(RouterVersion::V2_7, &[]).await;
        let address = lab.relay.address().to_string();
        let probe = |arguments: Vec<String>| {
            let mut program = program();
            // It reads no configuration.
            program.args(["--config", "/nowhere/relay.json", "--probe"]).args(arguments);
            tokio::task::spawn_blocking(move || run(&mut program))
        };
        let (text, json, closed) = tokio::join!(
            probe(vec![address.clone()]),
            probe(vec![address.clone(), "--json".to_owned()]),
            probe(vec![service(drop).to_string()])
        );
        let (status, stdout, stderr) = text.unwrap();
        assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
        let said =
            format!("✓ {address}: closed the connection on an unknown key as an Aspia relay");
        assert!(stdout.starts_with(&said), "{stdout}");
        let (status, stdout, stderr) = json.unwrap();
        assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["reachable"], true);
        assert_eq!(report["addresses"][0]["address"], address.as_str());
        assert_eq!(report["addresses"][0]["outcome"], "relay");
        let (status, stdout, stderr) = closed.unwrap();
        assert_eq!(status, 1, "{stdout}");
        assert!(stdout.starts_with('✗') && stdout.contains("AllowPeers"), "{stdout}");
        assert!(stderr.contains("no Aspia relay answers at 127.0.0.1:"), "{stderr}");
    }

    #[test]
    fn unusable_address_is_wrong_usage() {
        for address in ["relay:0", "http://relay.example.com", "[::1"] {
            let (status, _, stderr) = run(program().args(["--probe", address]));
            assert_eq!(status, 2, "{address}");
            assert!(stderr.contains("expected "), "{stderr}");
        }
    }
}
