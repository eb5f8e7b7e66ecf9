//! The program under a service manager: the notifications that it sends, in order, and the socket that it is passed. Here the
//! test plays the manager; `tests/packages` runs the real systemd.
#![cfg(unix)]

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

/// A service manager that receives notifications.
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
        let length = self.socket.recv(&mut buffer).expect("no message from the relay");
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The next message with a line that begins with `beginning`. Only watchdog messages and statuses may come before it.
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

    /// Starts a relay for `router`, with additional variables. A shell runs `prelude` and then becomes the relay, as the
    /// manager's child would.
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
            ("OfferByLoad", "false".to_owned()),
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

/// Waits until the relay has ended, and returns its exit status and stderr.
fn end(mut child: Child) -> (Option<i32>, String) {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the relay does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn service_manager_is_notified_of_every_stage() {
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
    // Watchdog messages come twice per watchdog period, as long as the relay runs.
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

    // A session delays the stop: each message asks for more time, and watchdog messages continue.
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
async fn relay_is_ready_without_a_router_and_its_status_says_so() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    // A port on which nobody listens, and that no other program can get while it is bound.
    let nobody = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    nobody.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let port = nobody.local_addr().unwrap().as_socket().unwrap().port();
    let variables = [("ASPIA_RELAY_ROUTER_PORT", port.to_string())];
    let relay = manager.start(&router, &variables, "", Stdio::null());
    assert_eq!(manager.message()[0], "READY=1");
    let status = manager.expect("STATUS=0 of 100 sessions; no link to the Router: ");
    assert!(status[0].contains("refused"), "{status:?}");
    // Without sessions, the relay may exit before it has announced that it stops.
    signal(&relay, "TERM");
    assert_eq!(end(relay).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_service_manager_is_logged_once_and_harmless() {
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
async fn passed_socket_accepts_peers() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // A peer that connects before the relay has started waits, and is served.
    let early = TcpStream::connect(address).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    let variables = [
        ("ASPIA_RELAY_PEER_PORT", address.port().to_string()),
        // ListenPort differs from the port of the socket: the socket takes precedence, and the log says so.
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
    // The early peer sends nothing, so it is closed after 10 s.
    assert_eq!((&early).read(&mut [0; 1]).unwrap(), 0);
    drop((client, host));
    signal(&relay, "TERM");
    assert_eq!(relay.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_other_than_one_listening_socket_fail_the_start() {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    let udp = || OwnedFd::from(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).into();
    let tcp = || OwnedFd::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).into();
    let cases: [(&str, Stdio, &str); 4] = [
        (HANDS_OVER, udp(), "not a listening TCP socket"),
        ("exec 3<&0 4<&0; export LISTEN_FDS=2 LISTEN_PID=$$;", tcp(), "2 sockets"),
        ("exec 3<&-; export LISTEN_FDS=1 LISTEN_PID=$$;", Stdio::null(), "do not match"),
        ("export LISTEN_FDS=one LISTEN_PID=$$;", Stdio::null(), "do not match"),
    ];
    for (prelude, stdin, expected) in cases {
        let (status, said) = end(manager.start(&router, &[], prelude, stdin));
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    // Descriptors meant for another process are ignored, and the relay opens its own socket.
    let prelude = "exec 3<&0; export LISTEN_FDS=1 LISTEN_PID=1;";
    let relay = manager.start(&router, &[], prelude, udp());
    manager.expect("READY=1");
    signal(&relay, "TERM");
    assert_eq!(end(relay).0, Some(0));
}

#[test]
fn unit_file_agrees_with_the_program() {
    let unit = std::fs::read_to_string("deploy/systemd/aspia-relay.service").unwrap();
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("the unit has no {key}"))
    };
    assert_eq!(value("Type"), "notify");
    // The limit suffices for the largest MaxPeerCount with the default MaxPendingPeers.
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
    // If that does not suffice, the program asks for more time.
    let stop: u64 = value("TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    assert!(stop > config.drain_timeout.as_secs() + 5);
    assert!(Path::new("deploy/systemd/aspia-relay.socket").exists());
}

/// The relay takes `off` in any case, and an empty variable as none.
#[test]
fn unit_of_the_store_does_not_start_where_the_store_is_off() {
    let unit = std::fs::read_to_string("deploy/systemd/aspia-relay-fd-store.service").unwrap();
    let condition = unit.lines().find_map(|line| line.strip_prefix("ExecCondition=/bin/sh -c '"));
    let script = condition.and_then(|condition| condition.strip_suffix('\'')).unwrap();
    for (value, starts) in [
        ("/run/aspia-relay-fd-store/socket", true),
        ("@offline", true),
        ("off", false),
        ("Off", false),
        ("OFF", false),
        ("", false),
    ] {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env_clear().env(variable("FdStore"), value);
        assert_eq!(command.status().unwrap().success(), starts, "{value:?}");
    }
}

#[test]
fn units_of_relay_and_store_agree() {
    let unit = |name: &str| {
        let text = std::fs::read_to_string(format!("deploy/systemd/{name}.service")).unwrap();
        text.lines().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let (relay, store) = (unit("aspia-relay"), unit("aspia-relay-fd-store"));
    // Both have the address from the same places, are the same user and may hold as many descriptors.
    let path = "/run/aspia-relay-fd-store/socket";
    let address = format!("Environment={}={path}", variable("FdStore"));
    for line in [
        &address,
        "EnvironmentFile=-/etc/default/aspia-relay",
        "User=aspia-relay",
        "LimitNOFILE=1024:524288",
        "LimitCORE=0",
        "StartLimitIntervalSec=0",
        "RestartPreventExitStatus=2 78",
    ] {
        for unit in [&relay, &store] {
            assert!(unit.iter().any(|found| found == line), "{line}");
        }
    }
    let directory = Path::new(path).parent().unwrap().file_name().unwrap().to_str().unwrap();
    assert!(store.contains(&format!("RuntimeDirectory={directory}")));
    // Units stop in the reverse of this order: the store first, so that a relay drains if both are stopped.
    assert!(store.iter().any(|line| line == "After=aspia-relay.service"));
    let wants = relay.iter().find(|line| line.starts_with("Wants=")).unwrap();
    assert!(wants.contains("aspia-relay-fd-store.service"), "{wants}");
}
