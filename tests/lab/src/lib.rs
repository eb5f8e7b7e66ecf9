//! The laboratory: everything that a relay needs around it, for tests and for people.
//!
//! - [`router`]: a Router of either dialect that does as it is told;
//! - [`peer`]: the Client and Host ends of a session;
//! - [`relay`]: the real relay, in this process;
//! - `process` (Linux): the same as a process of its own;
//! - [`traffic`]: data that can be checked at the other end;
//! - [`log`]: what the relay logs, to look at in a test;
//! - [`control`]: how peers on another machine get introduced;
//! - `namespace` (Linux): a network of its own for a forwarder;
//! - [`http`]: asking a relay over HTTP;
//! - `impostor` (Linux): another user who answers as a relay does;
//! - [`metrics`]: what it counts;
//! - [`port`]: ports that are free;
//! - [`browser`]: a real browser that looks at its page;
//! - [`demo`], [`load`], `attack`, `soak` and `bench` (Linux): what `relay-lab` shows and measures.

#[cfg(target_os = "linux")]
pub mod attack;
#[cfg(target_os = "linux")]
pub mod bench;
pub mod browser;
pub mod control;
pub mod demo;
pub mod http;
#[cfg(target_os = "linux")]
pub mod impostor;
pub mod load;
pub mod log;
pub mod metrics;
#[cfg(target_os = "linux")]
pub mod namespace;
pub mod peer;
pub mod port;
#[cfg(target_os = "linux")]
pub mod process;
pub mod relay;
pub mod router;
#[cfg(target_os = "linux")]
pub mod soak;
pub mod traffic;
#[cfg(target_os = "linux")]
pub mod wire;

use std::io::Write;

/// Set by `.ci/run`: a test that cannot run is a failure.
pub const NO_SKIP: &str = "ASPIA_RELAY_TEST_NO_SKIP";

/// Says loudly that a test is left out, and why.
///
/// # Panics
/// Where [`NO_SKIP`] is set: then nothing may be left out.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os(NO_SKIP).is_none(), "{test} cannot run here: {why}");
    // Written past the test harness, which would swallow it.
    let _ = writeln!(std::io::stderr(), "\n*** LEFT OUT: {test}: {why}\n");
}

/// Prints a line. Whoever reads stdout may have gone; the command goes on.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
