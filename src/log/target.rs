//! Targets of this program that are not the names of modules.

/// Target of the one line that says what is running.
pub const START: &str = "aspia_relay::start";
/// Target of errors that end the program. They are in the log at every `ASPIA_LOG_LEVEL`; stderr gets them from `main`,
/// whether there is a log or not.
pub const FATAL: &str = "aspia_relay::fatal";
