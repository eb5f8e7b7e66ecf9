//! What the origin of a signal or console event asks of the relay.

/// A request to the relay, with the name of its origin for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlRequest {
    /// Stop; the second such request stops at once.
    Stop(&'static str),
    /// Read the configuration again.
    Reload(&'static str),
}

/// How many requests can be pending. The relay takes each at once.
pub const MAX_PENDING: usize = 16;
