//! Tests that load or measure the whole machine. They run one at a time, with no other test at the same time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unused, reason = "they are for Linux"))]

#[path = "../common/harness.rs"]
mod harness;

#[cfg(target_os = "linux")]
mod drain;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod nat;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod storm;
#[cfg(target_os = "linux")]
mod survive;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    #[cfg(target_os = "linux")]
    let modules =
        [drain::TESTS, memory::TESTS, nat::TESTS, network::TESTS, storm::TESTS, survive::TESTS];
    #[cfg(not(target_os = "linux"))]
    let modules = [];
    harness::run(&arguments, &modules)
}
