//! The program under a service manager: what it says to it, in order, and the socket that it takes from it. The manager is
//! this test; the real one is in `tests/packages`.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aspia_relay::config::settings::variable;
use aspia_relay::config::sources::Sources;
use relay_lab::router::{LabRouter, Options};
use relay_lab::traffic;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service manager that listens.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, directory }
    }

    /// The lines of the next message.
    fn message(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("a message must come");
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The next message with a line that begins so; those before it, but for signs of life and statuses, are a failure.
    fn expect(&self, beginning: &str) -> Vec<String> {
        loop {
            let message = self.message();
            if message.iter().any(|line| line.starts_with(beginning)) {
                return message;
            }
            let harmless = |line: &String| line.starts_with("STATUS=") || line == "WATCHDOG=1";
            assert!(message.iter().all(harmless), "{beginning} was expected, not {message:?}");
        }
    }

    /// Starts a relay for `router`, with more variables, through a shell that takes the place of the manager:
    /// `prelude` runs in the process that becomes the relay.
    fn start(
        &self,
        router: &LabRouter,
        variables: &[(&str, String)],
        prelude: &str,
        stdin: Stdio,
    ) -> Child {
        let mut command = Command::new("/bin/sh");
        command.env_clear().args(["-c", &format!("{prelude} exec \"$0\"")]);
        command.arg(env!("CARGO_BIN_EXE_aspia_relay")).stdin(stdin);
        for (key, value) in [
            ("RouterAddress", router.address().ip().to_string()),
            ("RouterPort", router.address().port().to_string()),
            ("RouterPublicKey", router.public_key().to_string()),
            ("PeerAddress", Ipv4Addr::LOCALHOST.to_string()),
            ("PeerPort", relay_lab::port::free_port().unwrap().to_string()),
            ("AdminListen", "off".to_owned()),
        ] {
            command.env(variable(key), value);
        }
        command.env("NOTIFY_SOCKET", self.path());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("notify")
    }
}

fn signal(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
}

/// Its exit status and what it said; it ends, or the test fails.
fn end(mut child: Child) -> (Option<i32>, String) {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_hears_of_the_whole_life_of_a_relay() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    let variables = [("WATCHDOG_USEC", "200000".to_owned())];
    let relay = manager.start(&router, &variables, "", Stdio::null());

    let message = manager.message();
    assert_eq!(message.len(), 2, "{message:?}");
    assert_eq!(message[0], "READY=1");
    assert!(message[1].starts_with("STATUS=0 of 100 sessions; "), "{message:?}");
    router.keys(100).await;
    let waiting = manager.expect("STATUS=0 of 100 sessions; authenticated to Router ");
    assert!(waiting[0].ends_with("waiting to see whether it keeps the link"), "{waiting:?}");
    let status =
        format!("STATUS=0 of 100 sessions; Router {} (2.7.0, 2.x dialect)", router.address());
    assert_eq!(manager.expect(&status), [status]);
    // Signs of life come twice in the time that is allowed, for as long as the relay lives.
    for _ in 0..5 {
        assert_eq!(manager.expect("WATCHDOG=1"), ["WATCHDOG=1"]);
    }

    signal(&relay, "HUP");
    let message = manager.expect("RELOADING=1");
    assert_eq!(message.len(), 2, "{message:?}");
    let began: u128 = message[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!(Duration::from_micros(began.try_into().unwrap()).as_secs_f64() <= uptime + 1.0);
    assert_eq!(manager.expect("READY=1"), ["READY=1"]);

    // A session keeps it, and each message asks for more time; signs of life go on.
    let (client, host) = router.introduce().await.unwrap().session().await.unwrap();
    signal(&relay, "TERM");
    assert_eq!(manager.expect("STOPPING=1"), ["STOPPING=1"]);
    for _ in 0..2 {
        let message = manager.expect("EXTEND_TIMEOUT_USEC=30000000");
        assert_eq!(message.len(), 2, "{message:?}");
        let status = "STATUS=stopping: 1 session is left, for up to ";
        assert!(message[1].starts_with(status), "{message:?}");
    }
    assert_eq!(manager.expect("WATCHDOG=1"), ["WATCHDOG=1"]);
    drop((client, host));
    assert_eq!(end(relay).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_without_a_router_and_its_status_says_what_is_wrong() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    // A port on which nobody listens, and that no other test can get.
    let nobody = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    nobody.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let port = nobody.local_addr().unwrap().as_socket().unwrap().port();
    let variables = [("ASPIA_RELAY_ROUTER_PORT", port.to_string())];
    let relay = manager.start(&router, &variables, "", Stdio::null());
    assert_eq!(manager.message()[0], "READY=1");
    let status = manager.expect("STATUS=0 of 100 sessions; no link to the Router: ");
    assert!(status[0].contains("refused"), "{status:?}");
    // Nobody is here: its end may come before it has said that it stops.
    signal(&relay, "TERM");
    assert_eq!(end(relay).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_not_there_is_said_once_and_changes_nothing() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    std::fs::remove_file(manager.path()).unwrap();
    let variables = [("WATCHDOG_USEC", "2000".to_owned())];
    let relay = manager.start(&router, &variables, "", Stdio::null());
    router.keys(100).await;
    let (mut client, mut host) = router.introduce().await.unwrap().session().await.unwrap();
    traffic::send(&mut client, 1, 1_000_000).await.unwrap();
    assert_eq!(traffic::receive(&mut host, Some(1_000_000)).await.unwrap().0, 1_000_000);
    drop((client, host));
    signal(&relay, "TERM");
    let (status, said) = end(relay);
    assert_eq!(status, Some(0));
    assert_eq!(said.matches("NOTIFY_SOCKET").count(), 1, "{said}");
}

/// What a service manager does before it starts the program: the socket, here standard input, becomes descriptor 3.
const HANDS_OVER: &str = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$;";

#[tokio::test(flavor = "multi_thread")]
async fn peers_come_through_the_socket_that_was_handed_over() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // Whoever comes before the relay is there waits, and is served.
    let early = TcpStream::connect(address).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    let variables = [
        ("ASPIA_RELAY_PEER_PORT", address.port().to_string()),
        // Another port than that of the socket: the socket wins, and the log says so.
        ("ASPIA_RELAY_LISTEN_PORT", relay_lab::port::free_port().unwrap().to_string()),
    ];
    let stdin = OwnedFd::from(listener).into();
    let mut relay = manager.start(&router, &variables, HANDS_OVER, stdin);
    let mut lines = BufReader::new(relay.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("aspia-relay.socket decides")));
    assert!(lines.any(|line| line.contains(&format!("listening on {address}"))));
    manager.expect("READY=1");
    router.keys(100).await;
    let (mut client, mut host) = router.introduce().await.unwrap().session().await.unwrap();
    traffic::send(&mut client, 1, 1_000_000).await.unwrap();
    let received = traffic::receive(&mut host, Some(1_000_000)).await.unwrap();
    assert_eq!(received.1, traffic::hash(1, 1_000_000));
    // It says nothing, and after 10 s hears the end.
    assert_eq!((&early).read(&mut [0; 1]).unwrap(), 0);
    drop((client, host));
    signal(&relay, "TERM");
    assert_eq!(relay.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_listening_socket_stops_the_start() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    let udp = || OwnedFd::from(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).into();
    let tcp = || OwnedFd::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).into();
    let cases: [(&str, Stdio, &str); 4] = [
        (HANDS_OVER, udp(), "no TCP socket that listens"),
        ("exec 3<&0 4<&0; export LISTEN_FDS=2 LISTEN_PID=$$;", tcp(), "2 sockets"),
        ("exec 3<&-; export LISTEN_FDS=1 LISTEN_PID=$$;", Stdio::null(), "do not fit"),
        ("export LISTEN_FDS=one LISTEN_PID=$$;", Stdio::null(), "do not fit"),
    ];
    for (prelude, stdin, expected) in cases {
        let (status, said) = end(manager.start(&router, &[], prelude, stdin));
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    // What was handed to another process is not taken: this one listens for itself.
    let prelude = "exec 3<&0; export LISTEN_FDS=1 LISTEN_PID=1;";
    let relay = manager.start(&router, &[], prelude, udp());
    manager.expect("READY=1");
    signal(&relay, "TERM");
    assert_eq!(end(relay).0, Some(0));
}

/// What systemd reads from the files is what the program says and does.
#[test]
fn the_unit_fits_the_program() {
    let unit = std::fs::read_to_string("deploy/systemd/aspia-relay.service").unwrap();
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("the unit has no {key}"))
    };
    assert_eq!(value("Type"), "notify");
    // Room for the largest limit that can be set, whatever MaxPendingPeers is by default.
    let environment = ["ROUTER_ADDRESS=router", "PEER_ADDRESS=relay", "MAX_PEER_COUNT=100000"];
    let mut environment: Vec<_> = environment
        .iter()
        .map(|setting| setting.split_once('=').unwrap())
        .map(|(key, value)| (format!("ASPIA_RELAY_{key}"), value.to_owned()))
        .collect();
    environment.push((variable("RouterPublicKey"), "11".repeat(32)));
    let config = aspia_relay::config::load(&Sources::new(None, environment)).unwrap().config;
    let limit = value("LimitNOFILE").split(':').next_back().unwrap();
    assert!(limit.parse::<u64>().unwrap() >= aspia_relay::open_files::needed(&config));
    // Beyond this the program extends the time itself.
    let stop: u64 = value("TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    assert!(stop > config.drain_timeout.as_secs() + 5);
    assert!(Path::new("deploy/systemd/aspia-relay.socket").exists());
}
