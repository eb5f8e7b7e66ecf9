//! `--watch`: shows something again and again, until the process is asked to stop.

use std::io::{self, IsTerminal};
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use crate::cli::{OutputFormat, RelayReport};
use crate::exit::{ExitError, ExitResult};
use crate::printable;

use super::client::RelayClient;
use super::columns;
use super::show::{print, show};

/// Moves the cursor of the terminal to the top left corner.
const HOME: &str = "\x1b[H";
/// Erases the rest of a line.
const ERASE_LINE: &str = "\x1b[K";
/// Erases everything below the cursor.
const ERASE_BELOW: &str = "\x1b[J";
/// Columns and rows of a terminal that does not say how large it is.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// Shows `view` at every `interval`, for ever. Fails only if the first answer is missing: later, the relay may be
/// restarting.
pub(super) async fn run(
    client: &RelayClient,
    view: &RelayReport,
    interval: Duration,
    format: OutputFormat,
) -> ExitResult {
    // A Windows console would print the control sequences unless it is told not to.
    let is_screen = cfg!(unix) && io::stdout().is_terminal() && format == OutputFormat::Text;
    let mut is_first = true;
    loop {
        let text = match show(client, view, format).await {
            Ok(text) => text,
            Err(why) if is_first => return Err(ExitError::failure(why)),
            Err(why) if format == OutputFormat::Text => {
                printable::escape_lines(&format!("no answer: {why}\n"))
            }
            // Only JSON may stand in this output.
            Err(_) => String::new(),
        };
        let text = match (is_screen, format) {
            (true, _) => to_screen(&text, terminal_size(), is_first),
            (false, OutputFormat::Text) if !is_first => format!("\n{text}"),
            (false, OutputFormat::Text) => text,
            (false, OutputFormat::Json) => to_line(&text),
        };
        print(text).await?;
        is_first = false;
        sleep(interval).await;
    }
}

/// Turns a text into one that replaces what is on the terminal. What does not fit on it is cut.
fn to_screen(text: &str, (width, height): (usize, usize), is_first: bool) -> String {
    let shown = height.saturating_sub(1).max(1);
    let mut lines: Vec<&str> = text.lines().collect();
    let cut = lines.len().saturating_sub(shown);
    let note = format!("({} more lines)", cut + 1);
    if cut > 0 {
        lines.truncate(shown.saturating_sub(1));
        lines.push(&note);
    }
    // The first text begins on an empty screen.
    let mut screen = if is_first { format!("{HOME}{ERASE_BELOW}") } else { HOME.to_owned() };
    for line in lines {
        screen += &columns::truncate(line, width);
        screen += ERASE_LINE;
        screen.push('\n');
    }
    screen + ERASE_BELOW
}

/// Puts a JSON text on one line, so that each line of the output is a whole one.
fn to_line(text: &str) -> String {
    let value: Option<Value> = serde_json::from_str(text).ok();
    value.map_or(String::new(), |value| printable::escape_json(&format!("{value}\n")))
}

/// The width and height of the terminal.
fn terminal_size() -> (usize, usize) {
    #[cfg(unix)]
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    #[cfg(unix)]
    let size = size.map(|size| (size.ws_col, size.ws_row));
    #[cfg(not(unix))]
    let size: Option<(u16, u16)> = None;
    let known = size.filter(|(columns, rows)| *columns > 0 && *rows > 0);
    known.map_or(DEFAULT_SIZE, |(columns, rows)| (columns.into(), rows.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_replaces_what_is_on_the_terminal() {
        assert_eq!(to_screen("a\nb\n", (80, 24), true), "\x1b[H\x1b[Ja\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(to_screen("a\n", (80, 24), false), "\x1b[Ha\x1b[K\n\x1b[J");
    }

    #[test]
    fn watched_json_is_one_line() {
        assert_eq!(to_line("{\n  \"a\": \"\\u001b\"\n}\n"), "{\"a\":\"\\u001b\"}\n");
        assert_eq!(to_line(""), "");
    }

    #[test]
    fn text_is_cut_to_the_size_of_the_terminal() {
        let text = (1..=10).map(|line| format!("{line}\n")).collect::<String>();
        let screen = to_screen(&text, (80, 5), false);
        assert_eq!(screen, "\x1b[H1\x1b[K\n2\x1b[K\n3\x1b[K\n(7 more lines)\x1b[K\n\x1b[J");
        assert!(to_screen("abcdef", (4, 24), false).contains("abc…\x1b[K"));
        // All fit, with a line for the cursor.
        assert!(!to_screen(&text, (80, 11), false).contains("more lines"));
    }
}
