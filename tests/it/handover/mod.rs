//! Faults between a relay and its descriptor store, with the real programs: whatever fails, no byte is lost, repeated or
//! changed, nobody is served twice, and in the end the store keeps the sockets of live sessions and nothing else.

mod ends;
mod keys;
mod messages;
mod proxied;
mod random;
mod records;
mod settings;
mod stores;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::client::{StoreClient, StoreStatus};
use relay_lab::http;
use relay_lab::port::free_port;
use relay_lab::router::{LabRouter, Options};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often something is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(5);
/// The listening sockets of a relay in these tests: for peers, and for the administrator.
const LISTENERS: u64 = 2;

/// An address that no other test uses.
fn unused_address() -> StoreAddress {
    static NEXT: AtomicU32 = AtomicU32::new(0);

    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("@aspia-relay-handover-{}-{number}", std::process::id()).parse().unwrap()
}

/// A Router, a store and a relay, all of which may be replaced.
struct Stage {
    router: LabRouter,
    /// Where the store listens.
    store_address: StoreAddress,
    peers: SocketAddr,
    admin: SocketAddr,
    settings: Vec<(&'static str, String)>,
    directory: tempfile::TempDir,
    relay: Option<Child>,
    store: Option<Child>,
}

impl Drop for Stage {
    #[expect(clippy::print_stderr, reason = "only if a test fails")]
    fn drop(&mut self) {
        for mut child in self.relay.take().into_iter().chain(self.store.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- relay\n{}\n--- store\n{}", self.log("relay"), self.log("store"));
        }
    }
}

/// Waits until nobody serves this port any more.
async fn refused(address: SocketAddr) {
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < until, "{address} is still served");
        sleep(LOOK).await;
    }
}

impl Stage {
    /// Starts a Router, and nothing else.
    async fn new(settings: &[(&'static str, &str)]) -> Self {
        let local = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        Self {
            router: LabRouter::start(Options::default()).await.unwrap(),
            store_address: unused_address(),
            peers: local(),
            admin: local(),
            settings: settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            directory: tempfile::tempdir().unwrap(),
            relay: None,
            store: None,
        }
    }

    /// Starts a Router, a store and a relay that is connected to it.
    async fn start(settings: &[(&'static str, &str)]) -> Self {
        let mut stage = Self::new(settings).await;
        stage.start_store();
        stage.start_relay();
        stage.ready().await;
        stage.stored(LISTENERS).await;
        stage
    }

    fn set(&mut self, key: &'static str, value: &str) {
        self.settings.retain(|(other, _)| *other != key);
        self.settings.push((key, value.to_owned()));
    }

    fn command(&self, log: &str, prelude: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        let path = self.directory.path().join(format!("{log}.log"));
        let log = File::options().append(true).create(true).open(path).unwrap();
        command
            .args(["-c", &format!("{prelude} exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_aspia_relay"))
            .env_clear()
            .env("ASPIA_LOG_LEVEL", "0")
            .env("ASPIA_RELAY_FD_STORE", self.store_address.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    fn start_store(&mut self) {
        self.start_store_with("", &[]);
    }

    /// Starts a store after commands of a shell, with these settings.
    fn start_store_with(&mut self, prelude: &str, settings: &[(&str, &str)]) {
        let mut command = self.command("store", prelude);
        command.arg("--fd-store");
        for (key, value) in settings {
            command.env(aspia_relay::config::settings::variable(key), value);
        }
        self.store = Some(command.spawn().unwrap());
    }

    fn start_relay(&mut self) {
        self.relay = Some(self.relay_command().spawn().unwrap());
    }

    fn relay_command(&self) -> Command {
        let mut command = self.command("relay", "");
        let settings = [
            ("RouterAddress", self.router.address().ip().to_string()),
            ("RouterPort", self.router.address().port().to_string()),
            ("RouterPublicKey", self.router.public_key().to_string()),
            ("PeerAddress", self.peers.ip().to_string()),
            ("PeerPort", self.peers.port().to_string()),
            ("ListenInterface", self.peers.ip().to_string()),
            ("AdminListen", self.admin.to_string()),
            ("MaxPeerCount", "50".to_owned()),
            ("MaxPendingPeersPerAddress", "1000".to_owned()),
            ("PeerConnectRate", "0".to_owned()),
        ];
        for (key, value) in settings.iter().chain(&self.settings) {
            command.env(aspia_relay::config::settings::variable(key), value);
        }
        command
    }

    /// Waits until the relay answers its administrator.
    async fn ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.answers().await {
            // A take from a store that is starved of CPU fails; a service manager then starts the relay again.
            if let Some(status) = self.relay.as_mut().unwrap().try_wait().unwrap() {
                assert_eq!(status.code(), Some(1), "the relay has ended: {status}");
                self.start_relay();
            }
            assert!(Instant::now() < until, "the relay does not answer");
            sleep(LOOK).await;
        }
    }

    async fn answers(&self) -> bool {
        let answer = timeout(LOOK * 20, http::get(self.admin, "/livez")).await;
        matches!(answer, Ok(Ok(answer)) if answer.status == 200)
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(format!("{name}.log")))
            .unwrap_or_default()
    }

    /// Waits until the log of the relay contains a text after this many bytes.
    async fn logged(&self, from: usize, expected: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let log = self.log("relay").split_off(from);
            if let Some(line) = log.lines().find(|line| line.contains(expected)) {
                return line.to_owned();
            }
            assert!(Instant::now() < until, "no line with {expected:?}");
            sleep(LOOK).await;
        }
    }

    fn relay_id(&self) -> Pid {
        Pid::from_child(self.relay.as_ref().unwrap())
    }

    fn store_id(&self) -> Pid {
        Pid::from_child(self.store.as_ref().unwrap())
    }

    /// Waits for the end of the relay.
    async fn relay_ended(&mut self) -> ExitStatus {
        let mut relay = self.relay.take().unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = relay.try_wait().unwrap() {
                return status;
            }
            if Instant::now() >= until {
                self.relay = Some(relay);
                panic!("the relay does not end");
            }
            sleep(LOOK).await;
        }
    }

    async fn terminate_relay(&mut self) {
        kill_process(self.relay_id(), Signal::TERM).unwrap();
        let status = self.relay_ended().await;
        assert!(status.success(), "{status}");
    }

    async fn kill_relay(&mut self) {
        kill_process(self.relay_id(), Signal::KILL).unwrap();
        assert_eq!(self.relay_ended().await.signal(), Some(Signal::KILL.as_raw()));
    }

    fn kill_store(&mut self) {
        let mut store = self.store.take().unwrap();
        store.kill().unwrap();
        store.wait().unwrap();
    }

    async fn restart_relay(&mut self) {
        self.start_relay();
        self.ready().await;
    }

    /// What the store says about itself.
    fn status(&self) -> StoreStatus {
        StoreClient::query_status(&self.store_address, PATIENCE).unwrap()
    }

    /// What the store says about itself, if it answers.
    fn try_status(&self) -> Option<StoreStatus> {
        StoreClient::query_status(&self.store_address, Duration::from_secs(1)).ok()
    }

    /// Waits until the store keeps this many descriptors for a relay that is connected.
    async fn stored(&self, descriptors: u64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.try_status();
            let is_as_expected = status.as_ref().is_some_and(|status| {
                status.descriptors == descriptors
                    && status.owner.as_ref().is_some_and(|owner| owner.is_connected)
            });
            if is_as_expected {
                return;
            }
            assert!(Instant::now() < until, "not {descriptors} descriptors: {status:?}");
            sleep(LOOK).await;
        }
    }

    /// A session that the store keeps soon.
    async fn session(&self) -> TestSession {
        let mut session = self.silent_session().await;
        session.exchange(100).await;
        session
    }

    /// A session on which nothing has been sent.
    async fn silent_session(&self) -> TestSession {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        let introduction = timeout(PATIENCE, self.router.introduce()).await.unwrap().unwrap();
        let (client, host) = timeout(PATIENCE, introduction.connect_both()).await.unwrap().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let ends = [client, host].map(|stream| SessionEnd { stream, sent: 0, received: 0 });
        TestSession { number, ends, is_closed: [false; 2] }
    }

    /// Sessions that the store keeps, of which the last is half-closed by its Client.
    async fn sessions(&self, count: usize) -> Vec<TestSession> {
        let mut sessions = Vec::new();
        for _ in 0..count {
            sessions.push(self.session().await);
        }
        if let Some(last) = sessions.last_mut() {
            last.close_half(0).await;
        }
        self.stored(LISTENERS + 2 * count as u64).await;
        sessions
    }

    async fn metric(&self, name: &str) -> f64 {
        let answer = http::get(self.admin, "/metrics").await.unwrap();
        let line = answer.body.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap()
    }

    /// Waits until a metric has this value.
    async fn metric_reaches(&self, name: &str, expected: f64) {
        let until = Instant::now() + PATIENCE;
        while self.metric(name).await != expected {
            assert!(Instant::now() < until, "{name} is not {expected}");
            sleep(LOOK).await;
        }
    }

    /// Waits until `/metrics` says that the store is connected, or not.
    async fn connected(&self, is_connected: bool) {
        let expected = f64::from(u8::from(is_connected));
        self.metric_reaches("aspia_relay_fd_store_connected", expected).await;
    }
}

struct SessionEnd {
    stream: TcpStream,
    sent: u64,
    received: u64,
}

/// A session whose bytes are verified. End 0 is the Client.
struct TestSession {
    number: u64,
    ends: [SessionEnd; 2],
    /// Whether an end has closed its half.
    is_closed: [bool; 2],
}

/// The byte at a position of what an end of a session sends.
fn byte_at(session: u64, end: usize, position: u64) -> u8 {
    let mixed = (position ^ session.rotate_left(40) ^ (end as u64) << 33)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[1]
}

impl TestSession {
    /// Sends bytes from an end.
    async fn send(&mut self, from: usize, count: u64) -> io::Result<()> {
        let end = &mut self.ends[from];
        let positions = end.sent..end.sent + count;
        let bytes: Vec<u8> =
            positions.map(|position| byte_at(self.number, from, position)).collect();
        end.sent += count;
        end.stream.write_all(&bytes).await
    }

    /// Receives at an end everything that the other has sent.
    async fn receive(&mut self, to: usize) {
        let sent = self.ends[1 - to].sent;
        let number = self.number;
        let end = &mut self.ends[to];
        let mut buffer = vec![0; usize::try_from(sent - end.received).unwrap()];
        let read = timeout(PATIENCE, end.stream.read_exact(&mut buffer)).await;
        read.unwrap_or_else(|_| panic!("session {number} stands still"))
            .unwrap_or_else(|error| panic!("session {number}: {error}"));
        for byte in buffer {
            assert_eq!(byte, byte_at(number, 1 - to, end.received), "session {number}");
            end.received += 1;
        }
    }

    /// Sends bytes from every end that still may, and receives them.
    async fn exchange(&mut self, count: u64) {
        for from in 0..2 {
            if !self.is_closed[from] {
                self.send(from, count).await.unwrap();
            }
            self.receive(1 - from).await;
        }
    }

    /// An end closes its half, and the other sees that.
    async fn close_half(&mut self, from: usize) {
        self.ends[from].stream.shutdown().await.unwrap();
        self.is_closed[from] = true;
        self.receive(1 - from).await;
        self.expect_end(1 - from).await;
    }

    /// Waits until an end has received all and sees the end of the connection, in order or by a reset.
    async fn expect_end(&mut self, to: usize) {
        let number = self.number;
        let read = timeout(PATIENCE, self.ends[to].stream.read(&mut [0])).await;
        let read = read.unwrap_or_else(|_| panic!("session {number} does not end"));
        assert!(!matches!(read, Ok(1..)), "session {number}: a byte after the end");
    }
}

/// Exchanges bytes in all sessions.
async fn exchange_all(sessions: &mut [TestSession]) {
    for session in sessions {
        session.exchange(100).await;
    }
}
