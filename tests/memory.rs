//! The bound of memory that the README states, under the worst that the limits allow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![cfg(target_os = "linux")]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aspia_relay::config::settings::variable;
use aspia_relay::memory;
use relay_lab::relay::config;
use relay_lab::router::{LabRouter, Options};

/// More than there are pipes, so that many directions have to hold what they read themselves.
const SESSIONS: usize = 150;
const PENDING: usize = 300;
/// Longest wait for the relay to begin.
const PATIENCE: Duration = Duration::from_secs(30);

struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Most memory that the process ever had, in bytes.
fn peak(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap()
}

/// Writes until nothing more is taken.
fn stuff(stream: &mut TcpStream) -> usize {
    let (chunk, mut all) = ([7; 64 * 1024], 0);
    stream.set_write_timeout(Some(Duration::from_millis(30))).unwrap();
    while let Ok(written @ 1..) = stream.write(&chunk) {
        all += written;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_holds_when_all_peers_are_slow_and_all_strangers_half_done() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let port = relay_lab::port::free_port().unwrap();
    let (sessions, pending) = (SESSIONS.to_string(), PENDING.to_string());
    let settings = [
        ("RouterAddress", "127.0.0.1".to_owned()),
        ("RouterPort", router.address().port().to_string()),
        ("RouterPublicKey", router.public_key().to_string()),
        ("PeerAddress", "127.0.0.1".to_owned()),
        ("PeerPort", port.to_string()),
        ("AdminListen", "off".to_owned()),
        ("MaxPeerCount", sessions.clone()),
        ("MaxPendingPeers", pending.clone()),
        ("MaxPendingPeersPerAddress", pending.clone()),
        ("PeerConnectRate", "0".to_owned()),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    command.envs(settings.iter().map(|(key, value)| (variable(key), value)));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let relay = Relay(command.spawn().unwrap());
    let some = [("MaxPeerCount", sessions.as_str()), ("MaxPendingPeers", pending.as_str())];
    let loaded = config(router.address(), router.public_key(), port, &some).unwrap();
    let (bound, of_peers) = (memory::needed(&loaded.config), memory::of_peers(&loaded.config));
    tokio::time::timeout(PATIENCE, router.keys(SESSIONS)).await.expect("the relay has no link");
    let quiet = peak(&relay);
    let mut peers = Vec::new();
    for _ in 0..SESSIONS {
        let (client, host) = router.introduce().await.unwrap().session().await.unwrap();
        for stream in [client, host] {
            let stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            peers.push(stream);
        }
    }
    let (backed_up, _strangers) = tokio::task::spawn_blocking(move || {
        // Both ends send and neither reads: the relay holds what it may hold, of each direction.
        let stuffed: usize = peers.iter_mut().map(stuff).sum();
        assert!(stuffed > 2 * SESSIONS * 256 * 1024, "{stuffed}");
        // All but the last byte of the longest first message.
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let strangers: Vec<TcpStream> = (0..PENDING)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                let mut bytes = vec![9; 4 + 16 * 1024 - 1];
                bytes[..4].copy_from_slice(&(16 * 1024_u32).to_be_bytes());
                stream.write_all(&bytes).unwrap();
                stream
            })
            .collect();
        (peers, strangers)
    })
    .await
    .unwrap();
    // It is a load: what strangers have sent is there, and the program takes more than without anybody.
    let arrived = quiet + PENDING as u64 * 12 * 1024;
    for _ in 0..600 {
        if peak(&relay) > arrived {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let peak = peak(&relay);
    assert!(peak > arrived, "{quiet} before, {peak} at most");
    assert!(peak <= bound, "{peak} of {bound}");
    assert!(peak - quiet <= of_peers, "{quiet} before, {peak} at most; peers may take {of_peers}");
    drop(backed_up);
}
