//! A network that fails while sessions carry verified data: packets are lost, delayed and reordered, links are cut, and the MTU
//! changes. Uses a network namespace behind virtual Ethernet devices.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aspia_relay::config::settings::variable;
use relay_lab::namespace::{DEVICE, FAR_DEVICE, FORWARDER, Namespace, PEERS, run};
use relay_lab::router::{LabRouter, Options};
use relay_lab::traffic::{self, Stream};
use relay_lab::wire::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::harness::tests;

tests! {
    surviving_sessions_lose_nothing_and_dead_ones_end_in_time,
}

const SESSIONS: u64 = 50;
/// Longest wait for the end of a session whose peer is lost: `PeerIdleTimeout` is a minute, and the machine may be busy.
const IN_TIME: Duration = Duration::from_secs(100);
/// Each session carries this many bytes in each direction, in pieces with pauses, so that every fault affects every session.
const PIECE: usize = 4096;
const PIECES: usize = 80;
const PAUSE: Duration = Duration::from_millis(100);
/// The longest delay of a packet; each has a different one.
const SLOWEST: Duration = Duration::from_millis(30);
/// Longest wait for a session: longer than all faults together and than TCP takes to recover.
const PATIENCE: Duration = Duration::from_secs(240);

struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn here(program: &str, arguments: &str) {
    run(Command::new(program).args(arguments.split_whitespace())).unwrap();
}

fn there(namespace: &Namespace, program: &str, arguments: &str) {
    run(namespace.command(program).args(arguments.split_whitespace())).unwrap();
}

/// One peer: sends all its pieces and reads all those of the other, independently.
async fn one_side(mut stream: TcpStream, seed: u64, of_other: u64) {
    let (mut read, mut write) = stream.split();
    let length = (PIECE * PIECES) as u64;
    let send = async {
        let bytes = Stream::bytes(seed, PIECE * PIECES);
        for piece in bytes.chunks(PIECE) {
            write.write_all(piece).await.unwrap();
            sleep(PAUSE).await;
        }
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let hash = traffic::verify(&mut read, of_other, length, |_| {}).await.unwrap();
        assert_eq!(hash, traffic::hash(of_other, length));
        // Nothing follows.
        assert_eq!(read.read(&mut [0]).await.unwrap(), 0);
    };
    tokio::join!(send, receive);
}

/// Causes all faults, one after the other. `lost` is the port of the peer that is cut off, `router` that of the Router.
async fn faults(namespace: &Namespace, lost: u16, router: u16) {
    let wire = Wire::new(namespace, SLOWEST).unwrap();
    let second = Duration::from_secs(1);
    there(namespace, "nft", "add table inet faults");
    for (chain, hook) in [("in", "input"), ("out", "output")] {
        let rule =
            format!("add chain inet faults {chain} {{ type filter hook {hook} priority 0 ; }}");
        there(namespace, "nft", &rule);
        there(
            namespace,
            "nft",
            &format!(
                "add rule inet faults {chain} meta l4proto tcp numgen random mod 100 < 3 drop"
            ),
        );
    }
    // One peer is cut off for good.
    for (chain, port) in [("in", "sport"), ("out", "dport")] {
        there(namespace, "nft", &format!("insert rule inet faults {chain} tcp {port} {lost} drop"));
    }
    sleep(second).await;
    for mtu in [600, 1280, 1500] {
        here("ip", &format!("link set {DEVICE} mtu {mtu}"));
        there(namespace, "ip", &format!("link set {FAR_DEVICE} mtu {mtu}"));
        sleep(second).await;
    }
    // The link to the Router is reset, and its port is closed for a while. The reset needs a packet: the relay sends statistics
    // every second.
    let reject = format!("tcp dport {router} reject with tcp reset");
    there(namespace, "nft", &format!("insert rule inet faults out {reject}"));
    sleep(3 * second).await;
    // All links are cut, including that one.
    for _ in 0..2 {
        here("ip", &format!("link set {DEVICE} down"));
        sleep(second).await;
        here("ip", &format!("link set {DEVICE} up"));
        sleep(second).await;
    }
    there(namespace, "nft", "flush chain inet faults out");
    there(namespace, "nft", "flush chain inet faults in");
    for (chain, port) in [("in", "sport"), ("out", "dport")] {
        there(namespace, "nft", &format!("insert rule inet faults {chain} tcp {port} {lost} drop"));
    }
    let passed = wire.take_away().unwrap();
    assert!(passed.overtaken > passed.packets / 100, "{passed:?}");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn surviving_sessions_lose_nothing_and_dead_ones_end_in_time() {
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(error) => relay_lab::cannot_run(format!("no network namespace: {error}")),
    };
    let options = Options { listen: (PEERS, 0).into(), ..Options::default() };
    let router = LabRouter::start(options).await.unwrap();
    let mut command = namespace.command(env!("CARGO_BIN_EXE_aspia_relay"));
    for (key, value) in [
        ("RouterAddress", PEERS.to_string()),
        ("RouterPort", router.address().port().to_string()),
        ("RouterPublicKey", router.public_key().to_string()),
        ("PeerAddress", FORWARDER.to_string()),
        ("ListenInterface", FORWARDER.to_string()),
        ("AdminListen", "off".to_owned()),
        ("OfferByLoad", "false".to_owned()),
        ("MaxPeerCount", "60".to_owned()),
        ("MaxPendingPeersPerAddress", "1000".to_owned()),
        ("PeerConnectRate", "0".to_owned()),
        ("PeerIdleTimeout", "1".to_owned()),
        ("StatisticsEnabled", "true".to_owned()),
        ("StatisticsInterval", "1".to_owned()),
    ] {
        command.env(variable(key), value);
    }
    let _relay = Relay(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    router.keys(60).await;
    let mut sides = JoinSet::new();
    for number in 0..SESSIONS {
        let (client, host) = router.introduce().await.unwrap().session().await.unwrap();
        let (there, back) = (2 * number, 2 * number + 1);
        sides.spawn(timeout(PATIENCE, one_side(client, there, back)));
        sides.spawn(timeout(PATIENCE, one_side(host, back, there)));
    }
    // The client of one more session is cut off; its host, which sends nothing, must not be kept for ever.
    let (lost, mut left) = router.introduce().await.unwrap().session().await.unwrap();
    let port = lost.local_addr().unwrap().port();
    let faults = faults(&namespace, port, router.address().port());
    let (faults, _) = tokio::join!(faults, async {
        let ended =
            timeout(IN_TIME, left.read(&mut [0])).await.expect("the session does not end in time");
        assert_eq!(ended.unwrap_or(0), 0);
    });
    let () = faults;
    while let Some(side) = sides.join_next().await {
        side.unwrap().expect("a session stalled");
    }
    drop((lost, left));
    // The link is up, and the whole capacity is free, except for the session of the peer that could not be told.
    router
        .wait_for(|view| {
            let all_gone =
                view.statistics.as_ref().is_some_and(|stat| stat.peer_connection.len() <= 1);
            view.linked && view.links >= 2 && all_gone
        })
        .await;
    let (mut client, mut host) = router.introduce().await.unwrap().session().await.unwrap();
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
}
