//! The memory of the relay: the bound that docs/operations.md states holds under the worst load that the limits allow, and what
//! peers needed is given back when they have gone.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aspia_relay::config::settings::variable;
use aspia_relay::memory;
use relay_lab::relay::config;
use relay_lab::router::{LabRouter, Options};

use crate::harness::tests;

tests! {
    documented_memory_bound_holds_under_the_worst_load,
    memory_of_sessions_that_have_ended_is_given_back,
}

/// More sessions than pipes, so that many directions must buffer in user space.
const SESSIONS: usize = 150;
const PENDING: usize = 300;
/// Sessions whose memory is given back.
const ENDED_SESSIONS: usize = 4000;
/// Longest wait for the relay to start.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for memory. The relay promises a minute.
const MEMORY_PATIENCE: Duration = Duration::from_secs(120);

struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Relay {
    /// Starts a relay for `sessions` sessions and `pending` connections that are not paired yet.
    fn start(
        router: &LabRouter,
        port: u16,
        sessions: usize,
        pending: usize,
        offer_by_load: bool,
    ) -> Self {
        let settings = [
            ("RouterAddress", "127.0.0.1".to_owned()),
            ("RouterPort", router.address().port().to_string()),
            ("RouterPublicKey", router.public_key().to_string()),
            ("PeerAddress", "127.0.0.1".to_owned()),
            ("PeerPort", port.to_string()),
            ("AdminListen", "off".to_owned()),
            ("MaxPeerCount", sessions.to_string()),
            ("OfferByLoad", offer_by_load.to_string()),
            ("MaxPendingPeers", pending.to_string()),
            ("MaxPendingPeersPerAddress", pending.to_string()),
            ("PeerConnectRate", "0".to_owned()),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
        command.envs(settings.iter().map(|(key, value)| (variable(key), value)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Returns a line of the memory status of the process, in bytes.
    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        1024 * line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap()
    }

    /// Returns the peak memory of the process, in bytes.
    fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Returns how many bytes the process uses now, without files.
    fn used(&self) -> u64 {
        self.memory("RssAnon:")
    }
}

/// Writes until the kernel accepts no more. Returns how many bytes it accepted.
fn stuff(stream: &mut TcpStream) -> usize {
    let (chunk, mut all) = ([7; 64 * 1024], 0);
    stream.set_write_timeout(Some(Duration::from_millis(30))).unwrap();
    while let Ok(written @ 1..) = stream.write(&chunk) {
        all += written;
    }
    all
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn documented_memory_bound_holds_under_the_worst_load() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let port = relay_lab::port::free_port().unwrap();
    let relay = Relay::start(&router, port, SESSIONS, PENDING, false);
    let (sessions, pending) = (SESSIONS.to_string(), PENDING.to_string());
    let some = [("MaxPeerCount", sessions.as_str()), ("MaxPendingPeers", pending.as_str())];
    let loaded = config(router.address(), router.public_key(), port, &some).unwrap();
    let (bound, of_peers) =
        (memory::needed(&loaded.config), memory::needed_by_peers(&loaded.config));
    tokio::time::timeout(PATIENCE, router.keys(SESSIONS)).await.expect("the relay has no link");
    let quiet = relay.peak();
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
        // Both ends send and neither reads, so the relay buffers as much as it may in each direction.
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
    // Checks that the load had an effect: the bytes of the pending peers are in the memory of the relay.
    let arrived = quiet + PENDING as u64 * 12 * 1024;
    for _ in 0..600 {
        if relay.peak() > arrived {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let peak = relay.peak();
    assert!(peak > arrived, "{quiet} before, {peak} at most");
    assert!(peak <= bound, "{peak} of {bound}");
    assert!(peak - quiet <= of_peers, "{quiet} before, {peak} at most; peers may take {of_peers}");
    drop(backed_up);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_sessions_that_have_ended_is_given_back() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let port = relay_lab::port::free_port().unwrap();
    // With the default, which keeps few keys on offer: keys that take the places of sessions would live in their memory.
    let relay = Relay::start(&router, port, ENDED_SESSIONS, PENDING, true);
    // Ended before, so that the program has run all of its code once.
    let linked = router.wait_for(|view| !view.pool.is_empty());
    tokio::time::timeout(PATIENCE, linked).await.expect("the relay has no link");
    drop(router.introduce().await.unwrap().session().await.unwrap());
    let before = relay.used();
    let mut sessions = Vec::new();
    for _ in 0..ENDED_SESSIONS {
        sessions.push(router.introduce().await.unwrap().session().await.unwrap());
    }
    let grown = relay.used().saturating_sub(before);
    assert!(grown > ENDED_SESSIONS as u64 * 512, "{grown} bytes for {ENDED_SESSIONS} sessions");
    drop(sessions);
    // Some pages hold something that lives on.
    let wanted = before + grown * 7 / 10;
    let given_back = async {
        while relay.used() > wanted {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let in_time = tokio::time::timeout(MEMORY_PATIENCE, given_back).await;
    let left = relay.used().saturating_sub(before);
    assert!(in_time.is_ok(), "{left} of {grown} bytes are kept, besides {before}");
}
