//! Targets of this program that are not the names of modules.

/// Target of the one line that says what is running.
pub const START: &str = "aspia_relay::start";
/// Target of errors that end the program. Log files have them at every `ASPIA_LOG_LEVEL`; otherwise they go to stderr
/// alone, so that nobody who sees both outputs reads them twice: from `main` for people, as JSON from the log.
pub const FATAL: &str = "aspia_relay::fatal";
