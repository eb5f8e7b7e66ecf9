//! Log targets of this program that are not module names.

/// Target of the startup line, which says what is running.
pub const START: &str = "aspia_relay::start";
/// Target of the records of sessions that have ended, which programs read.
pub const SESSION: &str = "session";
/// Target of errors that end the program. Log files have them at every `ASPIA_LOG_LEVEL`. Of stdout and stderr, only stderr
/// has them, if it is open, so that a reader of both sees them once: as text when the program exits, or as JSON from the log.
pub const FATAL: &str = "aspia_relay::fatal";
