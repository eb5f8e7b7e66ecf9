//! What the doctor says about the descriptor store, mostly about one that runs.

use super::*;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::client::StoreClient;
use aspia_relay::fd_store::owner::OwnerId;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

const STEP: &str = "descriptor store";

/// A name that no other test has.
fn name(test: &str) -> String {
    format!("aspia-relay-doctor-{test}-{}", std::process::id())
}

/// A store that runs until it is dropped.
struct Store {
    process: Child,
    address: String,
}

impl Store {
    /// Starts a store with these settings, and waits until it listens.
    fn start(test: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_aspia_relay")), test, settings)
    }

    fn start_by(mut command: Command, test: &str, settings: &[(&str, &str)]) -> Self {
        let address = format!("@{}", name(test));
        command.arg("--fd-store").env_clear().env(variable("FdStore"), &address);
        command.env("ASPIA_LOG_TO_STDOUT", "0");
        command.envs(settings.iter().map(|(key, value)| (variable(key), *value)));
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Its startup line reaches stderr at any log level.
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains("listens"), "{line}");
        Self { process, address }
    }

    fn address(&self) -> StoreAddress {
        self.address.parse().unwrap()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Examines an installation with these settings besides.
async fn examine_with(settings: &[(&str, &str)]) -> DoctorReport {
    let router = router(Behaviour::Serve).await;
    let mut environment = for_router(&router);
    for (key, value) in settings {
        set(&mut environment, key, value);
    }
    examine(&environment).await
}

#[tokio::test(start_paused = true)]
async fn store_that_is_off_gives_advice_and_a_missing_one_is_a_failure() {
    let off = examine_with(&[]).await;
    let off = step(&off, STEP);
    assert_eq!(off.outcome, StepOutcome::Skipped);
    assert!(off.seen.contains("aspia_relay --fd-store"), "{off}");
    let address = format!("@{}", name("missing"));
    let missing = examine_with(&[("FdStore", &address)]).await;
    failure(&missing, STEP, &[&address, "no descriptor store can be reached"]);
}

#[tokio::test(start_paused = true)]
async fn hung_store_is_a_failure() {
    let name = name("hung");
    let hung = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    rustix::net::bind(&hung, &address).unwrap();
    rustix::net::listen(&hung, 1).unwrap();
    let report = examine_with(&[("FdStore", &format!("@{name}"))]).await;
    failure(&report, STEP, &["did not answer within 2s"]);
}

#[tokio::test(start_paused = true)]
async fn store_in_use_is_described_and_not_disturbed() {
    let store = Store::start("used", &[]);
    let settings: [(&str, &str); 1] = [("FdStore", &store.address)];
    let unused = examine_with(&settings).await;
    let unused = step(&unused, STEP);
    assert_eq!(unused.outcome, StepOutcome::Ok, "{unused}");
    assert!(unused.seen.contains("no relay uses it"), "{unused}");
    let owner = OwnerId::generate().unwrap();
    let mut relay = StoreClient::connect(&store.address(), None, Duration::from_secs(5)).unwrap();
    relay.acquire(&owner, Duration::ZERO).unwrap();
    let used = examine_with(&settings).await;
    let used = step(&used, STEP);
    assert_eq!(used.outcome, StepOutcome::Ok, "{used}");
    let process = format!("owned by process {}", std::process::id());
    assert!(used.seen.contains(&process), "{used}");
    assert!(used.seen.contains("without a relay for 1m"), "{used}");
    let status = relay.status().unwrap();
    assert!(status.owner.is_some_and(|owner| owner.is_connected), "the lease is as it was");
}

#[tokio::test(start_paused = true)]
async fn store_with_another_token_is_a_failure() {
    let store = Store::start("token", &[("AdminToken", "t0ken-one")]);
    let other = examine_with(&[("FdStore", &store.address), ("AdminToken", "t0ken-two")]).await;
    let said: Vec<_> = other.steps.iter().map(ToString::to_string).collect();
    assert!(said.iter().all(|line| !line.contains("t0ken")), "{said:#?}");
    failure(&other, STEP, &["another AdminToken"]);
    let without = examine_with(&[("FdStore", &store.address)]).await;
    failure(&without, STEP, &["requires an AdminToken"]);
    let same = examine_with(&[("FdStore", &store.address), ("AdminToken", "t0ken-one")]).await;
    assert_eq!(step(&same, STEP).outcome, StepOutcome::Ok, "{}", step(&same, STEP));
}

#[tokio::test(start_paused = true)]
async fn store_that_does_not_fit_the_settings_is_reported() {
    let mut limited = Command::new("/bin/sh");
    let script = "ulimit -n 300; exec \"$0\" \"$@\"";
    limited.args(["-c", script, env!("CARGO_BIN_EXE_aspia_relay")]);
    let store = Store::start_by(limited, "small", &[("FdStoreTimeout", "90s")]);
    let report = examine_with(&[("FdStore", &store.address), ("MaxPeerCount", "200")]).await;
    failure(&report, STEP, &["MaxPeerCount 200", "LimitNOFILE"]);
    let hints = report.steps.iter().filter(|step| step.step == STEP);
    let hints: Vec<_> = hints.filter(|step| step.outcome == StepOutcome::Hint).collect();
    assert_eq!(hints.len(), 1, "{hints:#?}");
    assert!(
        hints[0].seen.contains("for 1m 30s without a relay, FdStoreTimeout is 1m"),
        "{}",
        hints[0]
    );
}

/// Only root can start processes of other users; and only root is told about their stores.
#[ignore = "needs root"]
#[tokio::test(start_paused = true)]
async fn store_of_another_user_is_described_to_root() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    command.uid(65534);
    let store = Store::start_by(command, "user", &[]);
    let report = examine_with(&[("FdStore", &store.address)]).await;
    let said = step(&report, STEP);
    assert_eq!(said.outcome, StepOutcome::Ok, "{said}");
    assert!(said.details[0].contains("the user with id 65534"), "{said}");
}
