//! The laboratory: everything around a relay that tests and people need to try it.
//!
//! - [`router`]: a Router of either dialect whose behaviour tests choose;
//! - [`peer`]: the Client and Host ends of a session;
//! - [`relay`]: the real relay, in this process;
//! - `process` (Linux): the real relay, in a process of its own;
//! - [`traffic`]: data that the other end can verify;
//! - [`log`]: captures the log of a relay in tests;
//! - [`clock`]: holds the paused clock of a test while the kernel or another thread does something;
//! - [`control`]: introductions for peers in another process or on another machine;
//! - `namespace` (Linux): a network namespace for a forwarder;
//! - [`http`]: a minimal HTTP client;
//! - `store_proxy` (Linux): stands between a relay and its descriptor store, and fails;
//! - `impostor` (Linux): a program of another user that answers like a relay;
//! - [`metrics`]: reads the metrics of a relay;
//! - [`port`]: free ports;
//! - [`browser`]: a headless browser for the page of a relay;
//! - [`demo`], [`load`], and on Linux `attack`, `soak`, `survive`, `fleet` and `bench`: the commands of `relay-lab`.

#[cfg(target_os = "linux")]
pub mod attack;
#[cfg(target_os = "linux")]
pub mod bench;
pub mod browser;
#[cfg(target_os = "linux")]
mod cgroup;
pub mod clock;
pub mod control;
pub mod demo;
#[cfg(target_os = "linux")]
pub mod fleet;
pub mod http;
#[cfg(target_os = "linux")]
pub mod impostor;
pub mod load;
pub mod log;
pub mod metrics;
#[cfg(target_os = "linux")]
pub mod namespace;
pub mod peer;
#[cfg(target_os = "linux")]
mod plot;
pub mod port;
#[cfg(target_os = "linux")]
pub mod process;
pub mod relay;
pub mod router;
#[cfg(target_os = "linux")]
mod scene;
#[cfg(target_os = "linux")]
pub mod soak;
pub mod sockets;
#[cfg(target_os = "linux")]
pub mod store_proxy;
#[cfg(target_os = "linux")]
pub mod survive;
pub mod traffic;
#[cfg(target_os = "linux")]
pub mod wire;

use std::io::Write;

/// If this variable is set, as `.ci/run` does, a test that cannot run fails.
pub const NO_SKIP: &str = "ASPIA_RELAY_TEST_NO_SKIP";

/// Why a test cannot run on this machine. [`cannot_run`] unwinds with it.
#[derive(Debug)]
pub struct CannotRun(pub String);

/// Ends a test that cannot run on this machine. Its harness lists it as ignored, with the reason.
///
/// # Panics
/// Always: with [`CannotRun`], or, where [`NO_SKIP`] is set, with a message, so that the test fails.
pub fn cannot_run(reason: impl Into<String>) -> ! {
    let reason = reason.into();
    assert!(std::env::var_os(NO_SKIP).is_none(), "cannot run here: {reason}");
    // Unlike a panic, this prints nothing.
    std::panic::resume_unwind(Box::new(CannotRun(reason)))
}

/// Prints a line. If nobody reads stdout any more, the command continues.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
