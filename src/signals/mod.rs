//! Requests to stop or reload that reach this process as Unix signals or as events of a Windows console.
//!
//! The Windows service manager sends the same [`ControlRequest`]s, through the module `service`.

mod request;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

pub use request::{ControlRequest, MAX_PENDING};
#[cfg(unix)]
pub use unix::{Signals, listen, stop_descriptor, stop_requested};
#[cfg(windows)]
pub use windows::{listen, stop_requested};
