//! Exit statuses, and the message that the program writes when it fails.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::printable;

/// How long to wait for a reader of stdout or stderr that does not read.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// The status with which the program exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The command succeeded, or the relay stopped as requested.
    Success = 0,
    /// The command failed, or the relay could not start.
    Failure = 1,
    /// The arguments are invalid; clap uses the same status.
    Usage = 2,
    /// The configuration is missing or invalid: `EX_CONFIG` of sysexits.h. Starting again does not help.
    Configuration = 78,
}

impl ExitStatus {
    /// Returns the number that the caller of the program sees.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// Runs the work of a thread, and aborts the process if it panics. The tasks of a thread catch their own panics, so after such a
/// panic nothing is known about the others. Their sockets stay open until the process is gone: a store that keeps them keeps
/// them as they are, and the next process continues the sessions.
pub fn abort_on_panic(work: impl FnOnce()) {
    let guard = AbortGuard;
    work();
    std::mem::forget(guard);
}

/// Aborts the process when it is dropped.
struct AbortGuard;

impl Drop for AbortGuard {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// The result of a command.
pub type ExitResult = Result<(), ExitError>;

/// Why a command failed, and the exit status for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitError {
    /// The exit status.
    pub status: ExitStatus,
    /// What went wrong and what to do about it.
    pub message: String,
    /// Whether the message has already reached stderr.
    pub is_reported: bool,
}

impl ExitError {
    #[expect(clippy::needless_pass_by_value, reason = "callers pass errors on from map_err")]
    fn new(status: ExitStatus, message: impl ToString) -> Self {
        Self { status, message: message.to_string(), is_reported: false }
    }

    /// Creates an error with [`ExitStatus::Failure`].
    pub fn failure(message: impl ToString) -> Self {
        Self::new(ExitStatus::Failure, message)
    }

    /// Creates an error with [`ExitStatus::Usage`].
    pub fn usage(message: impl ToString) -> Self {
        Self::new(ExitStatus::Usage, message)
    }

    /// Creates an error with [`ExitStatus::Configuration`].
    pub fn configuration(message: impl ToString) -> Self {
        Self::new(ExitStatus::Configuration, message)
    }

    /// Whether starting the program again cannot help.
    pub fn is_final(&self) -> bool {
        self.status == ExitStatus::Configuration
    }

    /// Writes the message to stderr, and remembers whether it was written.
    #[must_use]
    pub fn reported(self) -> Self {
        Self { is_reported: print_error(&self.message), ..self }
    }
}

/// Turns the result of a command into an exit code. An error that has not been reported yet is written to stderr, or to
/// stdout if stderr does not accept it and `is_stdout_for_people`.
pub fn conclude(result: ExitResult, is_stdout_for_people: bool) -> ExitCode {
    let Err(error) = result else { return ExitStatus::Success.into() };
    if !error.is_reported && !print_error(&error.message) && is_stdout_for_people {
        print_to(io::stdout, &error.message);
    }
    error.status.into()
}

/// Writes to stderr why the program exits, whatever the log settings are, and returns whether that succeeded. A stderr
/// that is closed or that nobody reads neither changes the exit status nor keeps the program alive.
pub fn print_error(message: &str) -> bool {
    print_to(io::stderr, message)
}

fn print_to<W: Write + 'static>(output: fn() -> W, message: &str) -> bool {
    let text = format!("aspia_relay: {}\n", printable::escape_lines(message));
    let write = move || {
        let mut output = output();
        output.write_all(text.as_bytes()).and_then(|()| output.flush()).is_ok()
    };
    run_with_timeout(write) == Some(true)
}

/// Runs `work`, which could block forever on a reader that does not read, and waits at most two seconds for its output;
/// `None` if it takes longer.
pub fn run_with_timeout<T, W>(work: W) -> Option<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (done, wait) = mpsc::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<W>>| work.lock().take();
    let for_thread = work.clone();
    let thread = thread::Builder::new().spawn(move || {
        let work = take(&for_thread);
        let _ = work.map(|work| done.send(work()));
    });
    match thread {
        Ok(_) => wait.recv_timeout(MAX_WAIT).ok(),
        // No thread can be started, which may be why the program ends: do the work here, without a limit.
        Err(_) => take(&work).map(|work| work()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_stable() {
        let statuses = [
            ExitStatus::Success,
            ExitStatus::Failure,
            ExitStatus::Usage,
            ExitStatus::Configuration,
        ];
        assert_eq!(statuses.map(ExitStatus::code), [0, 1, 2, 78]);
    }

    #[test]
    fn only_a_configuration_error_is_final() {
        assert!(ExitError::configuration("no file").is_final());
        assert!(!ExitError::failure("port in use").is_final());
        assert!(!ExitError::usage("--json").is_final());
    }

    #[test]
    fn blocked_work_is_abandoned() {
        assert_eq!(run_with_timeout(|| 7), Some(7));
        let (_sender, receiver) = mpsc::channel::<()>();
        assert_eq!(run_with_timeout(move || receiver.recv().is_ok()), None);
    }
}
