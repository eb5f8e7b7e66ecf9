//! What is specific to the 3.0 dialect.

use std::time::Duration;

use aspia_relay::wire::frame::Frame;
use aspia_relay::wire::v3;
use bytes::Bytes;
use prost::Message;
use relay_lab::log::CapturedLog;
use relay_lab::peer::Introduction;
use relay_lab::relay::Lab;
use relay_lab::router::{Behaviour, Options, RouterVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::suite::carries_bytes;

const SECOND: Duration = Duration::from_secs(1);

async fn lab(settings: &[(&str, &str)]) -> Lab {
    Lab::start(Options { version: RouterVersion::V3_0, ..Options::default() }, settings)
        .await
        .unwrap()
}

/// Each side ratchets its keys three times.
#[tokio::test(start_paused = true)]
async fn link_survives_three_ratchets_in_both_directions() {
    let lab = lab(&[("MaxPeerCount", "2")]).await;
    lab.router.keys(2).await;
    let (count, ping) = (3 * 256 + 9, Bytes::from_static(b"ping"));
    for _ in 0..count {
        lab.router.send_frame(Frame::Ping(ping.clone())).await;
    }
    lab.router.wait_for(|view| view.pongs.len() == count).await;
    let view = lab.router.view();
    assert!(view.pongs.iter().all(|pong| *pong == ping) && view.links == 1);
    carries_bytes(&lab).await;
    assert_eq!(lab.router.view().complaints, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn ping_is_sent_only_if_nothing_is_received() {
    let lab = lab(&[("MaxPeerCount", "1")]).await;
    lab.router.keys(1).await;
    // Something arrives every 20 s, so the relay sends no ping, whatever else it sends.
    for _ in 0..9 {
        sleep(20 * SECOND).await;
        lab.router.send_frame(Frame::Ping(Bytes::from_static(&[7; 4]))).await;
    }
    assert_eq!(lab.router.view().pings, 0);
    // Silence: the relay sends a ping at every second check, because the pong counts as received at the check between.
    let start = Instant::now();
    lab.router.wait_for(|view| view.pings == 3).await;
    let taken = start.elapsed();
    assert!((150 * SECOND..=190 * SECOND).contains(&taken), "{taken:?}");
    assert_eq!(lab.router.view().links, 1);
}

#[tokio::test(start_paused = true)]
async fn hanging_router_is_disconnected() {
    let log = CapturedLog::start();
    let lab = lab(&[("MaxPeerCount", "1")]).await;
    lab.router.keys(1).await;
    let start = Instant::now();
    lab.router.hang().await;
    log.line("did not answer a ping within 30 s").await;
    assert!(start.elapsed() <= 91 * SECOND, "{:?}", start.elapsed());
    lab.router.wait_for(|view| view.links == 2 && view.linked).await;
}

#[tokio::test(start_paused = true)]
async fn protocol_violation_ends_the_link_only() {
    let log = CapturedLog::start();
    let lab = lab(&[("MaxPeerCount", "3")]).await;
    lab.router.keys(3).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let sealed = |kind, length: u8| {
        let mut frame = vec![kind, 0, 0, 0, length, 0, 0, 0];
        frame.resize(8 + usize::from(length), 5);
        frame
    };
    let cases: [(Vec<u8>, &str); 4] = [
        (vec![3, 0, 0, 0, 1, 0, 0x50, 0], "are allowed"),
        (sealed(3, 15), "at least 16 bytes"),
        (sealed(3, 20), "does not open"),
        (sealed(77, 20), "does not open"),
    ];
    for (links, (bytes, expected)) in (2..).zip(cases) {
        println!("{expected}");
        let seen = log.text().len();
        // An empty frame is ignored.
        lab.router.send_bytes(vec![3, 0, 0, 0, 0, 0, 0, 0]).await;
        lab.router.send_bytes(bytes).await;
        lab.router.wait_for(|view| view.links == links && view.pool.len() == 2).await;
        assert!(log.text()[seen..].contains(expected), "{expected}: {}", log.text());
    }
    lab.router.send_frame(Frame::Pong(Bytes::from_static(&[0; 4]))).await;
    log.line("a ping that was never sent").await;
    client.write_all(b"hello").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_link_failure_is_logged_with_its_remedy() {
    let frame = |kind: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&[kind, 0, 0, 0], &length[..], payload].concat()
    };
    let hello = |encryption, iv: usize, public_key| {
        let hello = v3::ServerHelloV3 { encryption, iv: vec![0; iv], public_key };
        frame(2, &hello.encode_to_vec())
    };
    let cases = [
        (Behaviour::WrongKey, "RouterPublicKey; copy the content of relay.pub"),
        (Behaviour::NoRelaySessions, "accepts no relay sessions"),
        (Behaviour::CloseAtOnce, "closed the connection before authentication"),
        (Behaviour::CloseAfterAuthentication, "white list"),
        (Behaviour::Silent, "did not authenticate within 10 s"),
        (Behaviour::Answer(hello(2, 11, None)), "an iv of 11 bytes"),
        (Behaviour::Answer(hello(2, 12, Some(vec![7; 32]))), "it has a public key"),
        (Behaviour::Answer(hello(1, 12, None)), "cipher 1, which was not offered"),
        (Behaviour::Answer(frame(2, &[0xff; 3])), "ServerHello cannot be parsed"),
        (Behaviour::Answer(frame(3, &[1])), "a frame of type 3"),
        (Behaviour::Answer(vec![2, 0, 0, 0, 1, 0x40, 0, 0]), "at most 16384 are allowed"),
        (Behaviour::Answer(b"HTTP/1.1 400 Bad Request\r\n".to_vec()), "a frame of type 72"),
    ];
    let log = CapturedLog::start();
    let lab = lab(&[("RouterProtocol", "3")]).await;
    lab.router.set(|options| options.limit_connections = false);
    for (behaviour, expected) in cases {
        println!("{behaviour:?}");
        lab.router.set(|options| options.behaviour = behaviour);
        let seen = log.text().len();
        lab.router.drop_link().await;
        while !log.text()[seen..].contains(expected) {
            sleep(SECOND).await;
        }
    }
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    lab.router.keys(100).await;
}

#[tokio::test(start_paused = true)]
async fn handed_out_keys_are_replaced_up_to_the_limit() {
    let lab = lab(&[("MaxPeerCount", "1200")]).await;
    lab.router.keys(1000).await;
    let state = lab.relay.handle().state().clone();
    let mut introductions = Vec::new();
    for _ in 0..150 {
        introductions.push(lab.router.introduce().await.unwrap());
    }
    lab.router.keys(1000).await;
    let counts = state.counts();
    assert_eq!((counts.offered, counts.handed_out), (1000, 150));
    // Beyond the bound on offered keys, the capacity is the limit.
    for _ in 0..150 {
        introductions.push(lab.router.introduce().await.unwrap());
    }
    lab.router.keys(900).await;
    sleep(SECOND).await;
    assert_eq!((state.counts().offered, state.counts().handed_out), (900, 300));
    // Keys that no peer used expire, and are replaced.
    lab.router.keys(1000).await;
    assert_eq!(lab.router.view().complaints, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn peers_of_both_generations_are_paired() {
    for router in [RouterVersion::V2_7, RouterVersion::V3_0] {
        let options = Options { version: router, ..Options::default() };
        let lab = Lab::start(options, &[("MaxPeerCount", "1")]).await.unwrap();
        let introduction = lab.router.introduce().await.unwrap();
        let with = |encryption| Introduction { encryption, ..introduction.clone() };
        let mut old = with(0).connect().await.unwrap();
        let mut new = with(2).connect().await.unwrap();
        old.write_all(b"hello").await.unwrap();
        new.read_exact(&mut [0; 5]).await.unwrap();
        new.write_all(b"hello").await.unwrap();
        old.read_exact(&mut [0; 5]).await.unwrap();
    }
}
