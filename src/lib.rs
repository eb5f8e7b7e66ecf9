//! A relay for the Aspia remote-desktop system.
//!
//! The relay joins two *peers*, a Client and a Host, that cannot reach each other. It keeps a sealed link to
//! the *Router*, offers it one-time keys, pairs two peers that present the same key, and forwards the bytes between them.
//!
//! The modules form layers: a module uses only modules of the layers below it, which `tests/it/structure.rs` checks.
//! `ARCHITECTURE.md` has a map of them, and follows a byte, a key and a setting from end to end. `docs/glossary.md` explains
//! the terms.

pub mod admin;
pub mod app;
pub mod bootstrap;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod crypto;
pub mod deadline;
pub mod dial;
pub mod doctor;
pub mod exit;
pub mod fd_store;
pub mod forward;
pub mod handle;
pub mod handover;
pub mod headroom;
pub mod heap;
pub mod link;
pub mod listen;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod open_files;
pub mod peer;
pub mod printable;
pub mod probe;
pub mod process;
pub mod router;
pub mod secret;
#[cfg(windows)]
pub mod service;
pub mod signals;
pub mod state;
mod sync;
#[cfg(unix)]
pub mod systemd;
pub mod tcp_info;
pub mod tls;
pub mod trace;
pub mod wire;
pub mod workers;
