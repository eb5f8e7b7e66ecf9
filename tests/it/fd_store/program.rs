//! The program `aspia_relay --fd-store`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::client::{StoreChange, StoreClient};
use aspia_relay::fd_store::error::StoreError;
use aspia_relay::fd_store::owner::OwnerId;
use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, connection, fill, nothing, put, unused_address};

/// A store that runs as a process of its own.
pub(super) struct StoreProgram {
    child: Child,
    address: StoreAddress,
    /// The rest of its log.
    log: Option<JoinHandle<String>>,
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    command.env_clear().stdin(Stdio::null());
    command
}

impl StoreProgram {
    /// Starts a store, after commands of a shell, and returns it with its first line.
    pub(super) fn start_with(prelude: &str, variables: &[(&str, &str)]) -> (Self, String) {
        let address = unused_address();
        let mut command = Command::new("/bin/sh");
        command
            .env_clear()
            .env("ASPIA_RELAY_FD_STORE", address.to_string())
            .env("ASPIA_LOG_LEVEL", "0")
            .envs(variables.iter().copied())
            .args(["-c", &format!("{prelude} exec \"$0\" --fd-store")])
            .arg(env!("CARGO_BIN_EXE_aspia_relay"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        output.read_line(&mut first).unwrap();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            output.read_to_string(&mut log).unwrap();
            log
        });
        (Self { child, address, log: Some(log) }, first)
    }

    fn start() -> Self {
        Self::start_with("", &[]).0
    }

    pub(super) fn client(&self) -> StoreClient {
        StoreClient::connect(&self.address, None, PATIENCE).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops the store in order, and returns its log.
    pub(super) fn terminate(&mut self) -> String {
        self.signal(Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.log.take().unwrap().join().unwrap()
    }

    /// How many files the process has open.
    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Resident memory, in bytes.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for StoreProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn store_needs_no_other_settings_and_answers_its_health_check() {
    let (mut store, first) = StoreProgram::start_with("", &[]);
    assert!(first.contains(&format!("listens at {}", store.address)), "{first}");
    assert!(first.contains("AdminToken is not set"), "{first}");
    let address = store.address.to_string();
    let check = || {
        let mut command = program();
        run(command.args(["--healthcheck", "--fd-store"]).env("ASPIA_RELAY_FD_STORE", &address))
    };
    assert_eq!(check(), (0, String::new()));
    let (status, second) = run(program().arg("--fd-store").env("ASPIA_RELAY_FD_STORE", &address));
    assert_eq!(status, 1);
    assert!(second.contains("another process") && second.contains(&address), "{second}");
    store.terminate();
    let (status, error) = check();
    assert_eq!(status, 1);
    assert!(error.contains("no descriptor store can be reached"), "{error}");
}

#[test]
fn invalid_settings_of_the_store_are_reported() {
    let (status, error) = run(program().arg("--fd-store").env("ASPIA_RELAY_FD_STORE", "store"));
    assert_eq!(status, 78);
    assert!(error.contains("FdStore") && error.contains("an absolute path"), "{error}");
    let (status, error) = run(program().args(["--fd-store", "--doctor"]));
    assert_eq!(status, 2);
    assert!(error.contains("cannot be used with"), "{error}");
}

#[test]
fn token_of_the_settings_protects_the_store() {
    let (store, first) = StoreProgram::start_with("", &[("ASPIA_RELAY_ADMIN_TOKEN", "letmein")]);
    assert!(first.contains("AdminToken is set") && !first.contains("letmein"), "{first}");
    let connected = StoreClient::connect(&store.address, None, PATIENCE);
    assert!(matches!(connected, Err(StoreError::TokenMissing)));
    let token = super::secret("letmein");
    StoreClient::connect(&store.address, Some(&token), PATIENCE).unwrap();
}

#[test]
fn sessions_outlive_a_killed_owner_and_its_log_names_no_contents() {
    let mut store = StoreProgram::start();
    let (mut peer, socket) = connection();
    let id = OwnerId::generate().unwrap();
    let mut client = store.client();
    client.acquire(&id, PATIENCE).unwrap();
    client.apply(&[put("secret-key", "secret-note", &[socket.as_fd()])]).unwrap();
    drop((client, id, socket));
    let mut next = store.client();
    let id = OwnerId::generate().unwrap();
    assert_eq!(next.acquire(&id, PATIENCE).unwrap().entries, 1);
    let mut taken = next.take().unwrap();
    let mut socket = std::net::TcpStream::from(taken[0].descriptors.remove(0));
    socket.write_all(b"on").unwrap();
    peer.read_exact(&mut [0; 2]).unwrap();
    // The store ends while it has an owner, whose connections go on.
    let log = store.terminate();
    socket.write_all(b"on").unwrap();
    peer.read_exact(&mut [0; 2]).unwrap();
    assert!(log.contains("owns the store") && log.contains("go on without it"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn interrupt_and_hangup_are_handled() {
    let mut store = StoreProgram::start();
    store.signal(Signal::HUP);
    assert_eq!(store.client().status().unwrap().entries, 0);
    store.signal(Signal::INT);
    assert_eq!(store.child.wait().unwrap().code(), Some(0));
}

#[test]
fn hung_store_is_an_error_after_the_timeout() {
    let store = StoreProgram::start();
    let timeout = Duration::from_millis(200);
    let mut client = StoreClient::connect(&store.address, None, PATIENCE).unwrap();
    client.acquire(&OwnerId::generate().unwrap(), PATIENCE).unwrap();
    let mut hasty = StoreClient::connect(&store.address, None, Duration::from_secs(2)).unwrap();
    store.signal(Signal::STOP);
    let before = Instant::now();
    let error = hasty.status().unwrap_err();
    assert!(matches!(error, StoreError::TimedOut(_)), "{error}");
    assert!(before.elapsed() < PATIENCE / 2);
    assert!(matches!(hasty.status(), Err(StoreError::Unusable)));
    let connected = StoreClient::connect(&store.address, None, timeout);
    assert!(matches!(connected, Err(StoreError::TimedOut(_))));
    store.signal(Signal::CONT);
    assert_eq!(client.status().unwrap().entries, 0);
    store.client();
}

#[test]
fn service_manager_is_told_what_the_store_keeps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let message = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap().trim_end().to_owned()
    };
    let (mut store, _) = StoreProgram::start_with("", &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!(message(), "READY=1\nSTATUS=0 entries with 0 descriptors; no relay is connected");
    let mut client = store.client();
    client.acquire(&OwnerId::generate().unwrap(), PATIENCE).unwrap();
    fill(&mut client, 2);
    let kept = "STATUS=2 entries with 4 descriptors; a relay is connected";
    while !message().contains(kept) {}
    store.terminate();
    while message() != "STOPPING=1" {}
}

#[test]
#[ignore = "needs root"]
fn store_closes_all_that_it_does_not_keep() {
    let mut store = StoreProgram::start();
    let id = OwnerId::generate().unwrap();
    let mut client = store.client();
    client.acquire(&id, PATIENCE).unwrap();
    let before = store.open_files();
    let descriptor = nothing();
    fill(&mut client, 300);
    assert_eq!(store.open_files(), before + 600);
    // Replaced, then deleted.
    fill(&mut client, 300);
    client.take().unwrap();
    assert_eq!(store.open_files(), before + 600);
    let deletes: Vec<_> = (0..300)
        .map(|number| StoreChange::Delete { key: format!("s{number:07}").into_bytes() })
        .collect();
    client.apply(&deletes).unwrap();
    assert_eq!(store.open_files(), before);
    client.apply(&[put("a", "", &[descriptor.as_fd(); 4])]).unwrap();
    client.clear().unwrap();
    assert_eq!(store.open_files(), before);
    // Other connections, refused and closed ones.
    for _ in 0..50 {
        drop(store.client());
        let other = OwnerId::generate().unwrap();
        store.client().acquire(&other, Duration::ZERO).unwrap_err();
    }
    let until = Instant::now() + PATIENCE;
    while store.open_files() != before {
        assert!(Instant::now() < until, "{} {before}", store.open_files());
        std::thread::sleep(Duration::from_millis(10));
    }
    store.terminate();
}

/// Runs in a process of its own, so that no other test opens files at the same time.
#[test]
fn client_closes_all_that_it_opens() {
    const ALONE: &str = "ASPIA_RELAY_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "fd_store::program::client_closes_all_that_it_opens";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let store = StoreProgram::start();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_files();
    for _ in 0..3 {
        let id = OwnerId::generate().unwrap();
        let mut client = store.client();
        client.acquire(&id, PATIENCE).unwrap();
        fill(&mut client, 300);
        assert_eq!(client.take().unwrap().len(), 300);
        store.client().acquire(&OwnerId::generate().unwrap(), Duration::ZERO).unwrap_err();
    }
    let token = super::secret("token");
    StoreClient::connect(&store.address, Some(&token), PATIENCE).unwrap_err();
    StoreClient::connect(&unused_address(), None, PATIENCE).unwrap_err();
    assert_eq!(open_files(), before);
}

/// Of a session the store keeps two descriptors and a note of some 200 bytes.
#[test]
fn ten_thousand_sessions_take_at_most_512_bytes_each() {
    // Where the hard limit cannot be raised, there are fewer.
    let (mut store, _) = StoreProgram::start_with("ulimit -Hn 21000 2> /dev/null;", &[]);
    let id = OwnerId::generate().unwrap();
    let mut client = store.client();
    client.acquire(&id, PATIENCE).unwrap();
    // What the first use of everything takes is not the sessions'.
    fill(&mut client, 300);
    client.take().unwrap();
    client.clear().unwrap();
    let room = usize::try_from(client.status().unwrap().max_descriptors).unwrap() / 2;
    let count = room.min(10_000);
    assert!(count > 300, "{count}");
    let before = store.memory();
    fill(&mut client, count);
    let used = (store.memory() - before) / count as u64;
    assert!(used <= 512, "{used} bytes for each of {count} sessions");
    // Both processes have room for duplicates of all of them only where the limit is high; a page is enough here.
    let status = client.status().unwrap();
    assert_eq!(status.descriptors, 2 * count as u64);
    println!("{used} bytes for each of {count} sessions");
    drop((client, id));
    let before = Instant::now();
    let mut next = store.client();
    let acquired = next.acquire(&OwnerId::generate().unwrap(), PATIENCE).unwrap();
    assert_eq!(acquired.entries, count);
    println!("acquired after {:?}", before.elapsed());
    store.terminate();
}
