//! Traces for OpenTelemetry: one for each session, and a span for each connection to the Router.
//!
//! Nothing here is waited for: spans go into a bounded queue, and a thread of its own delivers them.

mod answer;
mod connect;
mod export;
mod grpc;
pub mod session;
pub mod settings;
mod tracer;

pub use connect::probe;
pub use export::{Exporting, start};
pub use tracer::{SPAN_TARGET, Tracer};
