//! A relay for the Aspia remote-desktop system.
//!
//! The relay joins two *peers*, a Client and a Host, that cannot reach each other. It keeps a sealed link to
//! the *Router*, offers it one-time keys, pairs two peers that bring the same key, and passes their bytes.
//!
//! # Where what is
//!
//! Arrows point down: a module uses those below it, never one above.
//!
//! | layer | modules | holds |
//! | --- | --- | --- |
//! | the whole | [`app`], [`doctor`] | binds, runs, drains; looks at an installation: the only places that know everyone |
//! | HTTP, service managers | [`admin`], `systemd` (Unix), `service` (Windows) | what administrators, scrapers and orchestrators ask; what a service manager hears and wants |
//! | levers | [`handle`] | steers and shows a running relay |
//! | tasks | [`router`], [`peer`] | sockets and time; they never know each other |
//! | work | [`workers`], [`forward`] | the threads on which sessions live; moves bytes between two sockets |
//! | state | [`state`] | keys, waiting peers, sessions: functions of events and time |
//! | protocol | [`link`] | the dialects of Routers; authentication, sealing and keep-alive, without I/O |
//! | command line | [`cli`] | what it is asked to do |
//! | surroundings | [`open_files`], [`memory`], [`node`] | what the settings need of the system, what Kubernetes says of the node |
//! | settings | [`config`] | what the operator wrote, and what the relay runs with |
//! | traces | [`trace`] | spans, and the way to their collector |
//! | names | [`dial`] | connects to what a name stands for, and remembers what worked |
//! | bytes | [`wire`], [`crypto`], [`tls`] | frames and messages; the primitives; certificates |
//! | sockets | [`listen`] | sockets to listen on |
//! | leaves | [`secret`], [`log`], [`metrics`], [`tcp_info`], [`clock`], [`deadline`], [`heap`], [`process`], [`signals`] | secrets, the log, what metrics are made of, what the kernel knows of a connection, whether the clock can be right, deadlines of a process that may be stopped, the heap, the process itself, what signals ask |
//! | text | [`printable`] | what others wrote, made harmless for a terminal |
//!
//! `tests/structure.rs` holds the modules to this.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod deadline;
pub mod dial;
pub mod doctor;
pub mod forward;
pub mod handle;
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
pub mod process;
pub mod router;
pub mod secret;
#[cfg(windows)]
pub mod service;
pub mod signals;
pub mod state;
#[cfg(unix)]
pub mod systemd;
pub mod tcp_info;
pub mod tls;
pub mod trace;
pub mod wire;
pub mod workers;
