//! OpenTelemetry traces: one for each session, and one for each attempt to connect to the Router.
//!
//! Tracing never blocks the relay: spans go into a bounded queue, and a separate thread delivers them.

mod connect;
mod delivery;
mod environment;
mod export;
mod exporter;
mod grpc;
mod response;
pub mod session;
pub mod settings;
mod tracer;

pub use connect::probe;
pub use export::{HAND_OVER_TIMEOUT, SHUTDOWN_TIMEOUT, TraceExport, start};
pub use tracer::{SPAN_TARGET, Tracer};
