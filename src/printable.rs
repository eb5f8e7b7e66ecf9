//! Text of others that is shown on a terminal: nothing in it may act on the terminal, or pass for a line of the relay's own.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// The text with everything that a terminal would obey or hide written out, `\u{1b}` for an escape: control characters,
/// line breaks among them, and what changes the direction of text or cannot be seen.
pub fn line(text: &str) -> String {
    escaped(text, |letter| letter.escape_unicode().to_string())
}

/// The same for a text of several lines, which stay lines.
pub fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// JSON for a terminal: the same value, with such characters in their escaped form. `text` is JSON, whose only control
/// characters outside of strings are line breaks.
pub fn json(text: &str) -> String {
    let escape = |letter: char| {
        let mut units = [0; 2];
        letter.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    };
    text.split('\n').map(|line| escaped(line, escape)).collect::<Vec<_>>().join("\n")
}

fn escaped(text: &str, escape: impl Fn(char) -> String) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_harmless(letter) {
            shown.push(letter);
        } else {
            shown += &escape(letter);
        }
    }
    shown
}

fn is_harmless(letter: char) -> bool {
    !matches!(
        letter.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clears the screen; the same as one character; rings; turns the direction; ends a line; cannot be seen.
    const HOSTILE: &str = "a\u{1b}[2Jb\u{9b}2Jc\u{7}d\u{202e}e\r\nf\u{2028}g\u{200b}h\u{7f}";

    #[test]
    fn nothing_acts_on_a_terminal() {
        assert_eq!(
            line(HOSTILE),
            r"a\u{1b}[2Jb\u{9b}2Jc\u{7}d\u{202e}e\u{d}\u{a}f\u{2028}g\u{200b}h\u{7f}"
        );
        assert_eq!(line("C:\\aspia \"ключ\" 鍵 ✓"), "C:\\aspia \"ключ\" 鍵 ✓");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(lines("one:\n  two\u{1b}c\n"), "one:\n  two\\u{1b}c\n");
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ "key": HOSTILE, "tag": "\u{e0001}" });
        let shown = json(&format!("{value:#}"));
        assert!(shown.chars().all(|c| is_harmless(c) || c == '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
