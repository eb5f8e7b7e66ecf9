//! What is specific to the 2.x dialect.

use std::time::Duration;

use aspia_relay::crypto::{Cipher, has_hardware_aes};
use aspia_relay::wire::frame::Frame;
use aspia_relay::wire::messages::Version;
use aspia_relay::wire::v2::ServerHelloV2;
use bytes::Bytes;
use prost::Message;
use relay_lab::log::CapturedLog;
use relay_lab::relay::Lab;
use relay_lab::router::{Behaviour, Options, RouterVersion};
use relay_lab::traffic;
use tokio::time::{Instant, sleep};

use crate::suite::carries_bytes;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn link_works_with_every_router_version_and_cipher() {
    let mut ciphers = vec![Cipher::ChaCha20Poly1305];
    if has_hardware_aes() {
        ciphers.push(Cipher::Aes256Gcm);
    }
    for version in [RouterVersion::V2_7, RouterVersion::V2_6, RouterVersion::V2_5] {
        for &cipher in &ciphers {
            let options = Options { version, cipher: Some(cipher), ..Options::default() };
            let settings = [
                ("MaxPeerCount", "3"),
                ("DisplayName", "relay 7"),
                ("StatisticsEnabled", "true"),
                ("StatisticsInterval", "1"),
            ];
            let lab = Lab::start(options, &settings).await.unwrap();
            let view = lab.router.keys(3).await;
            assert_eq!(view.cipher, Some(cipher));
            assert_eq!(
                (view.peer_host.as_str(), view.peer_port),
                ("127.0.0.1", u32::from(lab.relay.address().port()))
            );
            assert_eq!(view.relay.unwrap().computer_name, "relay 7");
            carries_bytes(&lab).await;
            lab.router.wait_for(|view| view.statistics_count > 0).await;
            assert_eq!(lab.router.view().complaints, [""; 0]);
        }
    }
}

#[tokio::test]
async fn best_available_cipher_is_offered() {
    let lab = Lab::start(Options::default(), &[]).await.unwrap();
    let expected = if has_hardware_aes() { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
    assert_eq!(lab.router.keys(100).await.cipher, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn every_link_failure_is_logged_with_its_remedy() {
    let hello = |version| {
        let hello = ServerHelloV2 { encryption: 1, iv: vec![0; 12], version }.encode_to_vec();
        [&[u8::try_from(hello.len()).unwrap()], hello.as_slice()].concat()
    };
    let cases = [
        (Behaviour::WrongKey, "does not hold the private key for RouterPublicKey; copy"),
        (Behaviour::NoRelaySessions, "accepts no relay sessions"),
        (Behaviour::CloseAtOnce, "closed the connection before authentication"),
        (Behaviour::CloseAfterAuthentication, "white list"),
        (Behaviour::Silent, "did not authenticate within 60 s"),
        (Behaviour::Answer(hello(Some(Version::new(2, 6, 0)))), "version 2.6.0"),
        (Behaviour::Answer(vec![2, 0xff, 0xff]), "ServerHello cannot be parsed"),
        (
            Behaviour::Answer(vec![0, 7, 0, 0, 0, 0, 0, 0, 0]),
            "does not speak the protocol of an Aspia Router (a service frame of type 7",
        ),
        (Behaviour::Answer(vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 9]), "a ping that was never sent"),
        (Behaviour::Answer(vec![0xff; 4]), "are allowed"),
        (
            Behaviour::Answer([b"HTTP/1.1 400 Bad Request\r\n", [b' '; 99].as_slice()].concat()),
            "ServerHello cannot be parsed",
        ),
        (
            Behaviour::Answer(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
            "did not authenticate within 60 s",
        ),
    ];
    let log = CapturedLog::start();
    let mut seen = 0;
    let lab = Lab::start(Options { behaviour: Behaviour::Silent, ..Options::default() }, &[])
        .await
        .unwrap();
    for (behaviour, expected) in cases {
        println!("{behaviour:?}");
        lab.router.set(|options| options.behaviour = behaviour);
        loop {
            if log.text()[seen..].contains(expected) {
                break;
            }
            sleep(SECOND).await;
        }
        seen = log.text().len();
    }
    // The link comes back by itself as soon as the Router serves relays again.
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    lab.router.keys(100).await;
}

#[tokio::test(start_paused = true)]
async fn slow_router_has_a_minute_to_authenticate() {
    // The Router answers twice: 50 s in total are in time, 80 s are not.
    let slow = |seconds| Options { delay: seconds * SECOND, ..Options::default() };
    let lab = Lab::start(slow(25), &[("MaxPeerCount", "2")]).await.unwrap();
    assert_eq!(lab.router.keys(2).await.connections, 1);
    let log = CapturedLog::start();
    let lab = Lab::start(slow(40), &[("MaxPeerCount", "2")]).await.unwrap();
    log.line("did not authenticate within 60 s").await;
    lab.router.set(|options| options.delay = Duration::ZERO);
    lab.router.keys(2).await;
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_in_both_directions() {
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "1")]).await.unwrap();
    lab.router.keys(1).await;
    for data in [&b"x"[..], &[0; 4], &[7; 5000]] {
        lab.router.send_frame(Frame::Ping(Bytes::copy_from_slice(data))).await;
    }
    let view = lab.router.wait_for(|view| view.pongs.len() == 3).await;
    assert_eq!(view.pongs, [b"x".to_vec(), vec![0; 4], vec![7; 5000]]);
    let start = Instant::now();
    lab.router.wait_for(|view| view.pings == 3).await;
    assert!(
        start.elapsed() <= 181 * SECOND && start.elapsed() >= 178 * SECOND,
        "{:?}",
        start.elapsed()
    );
    assert_eq!(lab.router.view().links, 1);
}

#[tokio::test(start_paused = true)]
async fn hanging_router_is_disconnected() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "1")]).await.unwrap();
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
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "3")]).await.unwrap();
    lab.router.keys(3).await;
    let (mut client, mut host) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    let bytes: [(&[u8], &str); 7] = [
        (&[0, 2, 0, 0, 0, 1, 0, 0, 0, 5], "service frame of type 2"),
        (&[0, 1, 0, 0, 0, 0, 0, 0, 0], "keep-alive without data"),
        (&[0, 1, 0, 0, 0, 1, 0, 0, 0, 5], "a ping that was never sent"),
        (&[0xff, 0xff, 0xff, 0xff], "are allowed"),
        (&[1, 0], "too short for its channel header"),
        (&[6, 0, 0, 1, 2, 3, 4], "at least 16 bytes"),
        (
            &[20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18],
            "does not open",
        ),
    ];
    for (links, (bytes, expected)) in (2..).zip(bytes) {
        println!("{expected}");
        lab.router.send_bytes(bytes.to_vec()).await;
        log.line(expected).await;
        lab.router.wait_for(|view| view.links == links && view.pool.len() == 2).await;
    }
    // The session is not affected.
    traffic::send(&mut client, 1, 100_000).await.unwrap();
    let received = traffic::receive(&mut host, Some(100_000)).await.unwrap();
    assert_eq!(received.1, traffic::hash(1, 100_000));
}

#[tokio::test(start_paused = true)]
async fn link_cut_inside_a_frame_is_reestablished() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[("MaxPeerCount", "1")]).await.unwrap();
    lab.router.keys(1).await;
    sleep(40 * SECOND).await;
    lab.router.send_bytes(vec![100, 0, 0, 1, 2]).await;
    lab.router.drop_link().await;
    log.line("Router link: closed by the Router").await;
    lab.router.wait_for(|view| view.links == 2 && view.pool.len() == 1).await;
}
