//! Tests with requirements on the machine: Docker, Helm, a browser, proxies, Prometheus, IPv6. If something is missing, the
//! test is ignored and the reason listed; with `ASPIA_RELAY_TEST_NO_SKIP` set, the test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../common/harness.rs"]
mod harness;

#[cfg(target_os = "linux")]
mod blackbox;
#[cfg(target_os = "linux")]
mod chart;
#[cfg(target_os = "linux")]
mod containers;
#[cfg(target_os = "linux")]
mod demonstration;
#[cfg(target_os = "linux")]
mod deploy;
mod ipv6;
#[cfg(target_os = "linux")]
mod page;
#[cfg(target_os = "linux")]
mod peer_proxy;
#[cfg(target_os = "linux")]
mod proxy;
#[cfg(target_os = "linux")]
mod proxy_process;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    let modules = [
        blackbox::TESTS,
        chart::TESTS,
        chart::fd_store::TESTS,
        chart::kustomize::TESTS,
        chart::readme::TESTS,
        chart::refused::TESTS,
        chart::rollout::TESTS,
        chart::security::TESTS,
        containers::TESTS,
        demonstration::TESTS,
        deploy::TESTS,
        ipv6::TESTS,
        page::TESTS,
        peer_proxy::TESTS,
        proxy::TESTS,
    ];
    #[cfg(not(target_os = "linux"))]
    let modules = [ipv6::TESTS];
    harness::run(&Arguments::from_args(), &modules)
}
