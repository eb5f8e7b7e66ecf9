//! Tests forwarding with sockets and pipes that fail at any point: short reads and writes, calls that are interrupted or not
//! ready, resets and ends of streams, refusals of `splice(2)`.
//!
//! The code is that of the relay: the very files of `src/forward` are compiled here. Under the names `tokio`, `rustix` and
//! `socket2` they find this crate, whose kernel (`kernel.rs`) exists in memory only. As with epoll, a task is woken only for
//! readiness that it has waited for, and only when the socket becomes ready again after it was not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

extern crate self as rustix;
extern crate self as socket2;
extern crate self as tokio;

pub mod event;
pub mod io;
pub mod net;
pub mod pipe;

mod config;
mod forward;
mod kernel;
mod schedule;
mod state;
#[path = "../../../src/sync.rs"]
#[allow(unused_imports, reason = "forwarding does not need them all")]
mod sync;
mod tcp_info;

pub use net::SockRef;
pub use real_tokio::time;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let trials = schedule::TESTS.iter().map(|(name, test)| {
        Trial::test(*name, || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
