//! Tests of the relay in this process, and of the program `aspia_relay` on this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod auto;
#[cfg(target_os = "linux")]
mod balance;
mod citations;
mod command_line;
mod configuration;
mod doctor;
mod documents;
mod fd_store;
#[cfg(target_os = "linux")]
mod handover;
mod hostile;
mod http;
mod identity_limits;
mod limits;
#[cfg(target_os = "linux")]
mod link_notes;
mod model;
mod node;
#[cfg(target_os = "linux")]
mod notes;
mod offering;
#[cfg(target_os = "linux")]
mod packages;
mod paths;
mod probe;
mod proxy_protocol;
#[cfg(target_os = "linux")]
mod relay_commands;
mod reload;
mod router2;
mod router3;
mod service;
mod structure;
mod suite;
mod systemd;
mod tls;
mod traces;
mod vectors;
