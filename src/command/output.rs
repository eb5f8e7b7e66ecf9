//! Writes the output of commands to stdout, and their notes to stderr.

use std::io::{self, Write};

use crate::exit::{ExitError, ExitResult};
use crate::printable;

/// Writes the output of a command to stdout.
pub(super) fn write(text: &str) -> ExitResult {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| ExitError::failure(format_args!("cannot write to stdout: {error}")))
}

/// Writes JSON to stdout, indented.
pub(super) fn write_json(value: &serde_json::Value) -> ExitResult {
    write(&printable::escape_json(&format!("{value:#}\n")))
}

/// Writes a line to stderr that is not an error. The line is lost if stderr does not accept it.
pub(super) fn note(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "aspia_relay: {text}");
}
