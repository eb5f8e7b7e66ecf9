//! Escapes untrusted text that is shown on a terminal, so that it can neither control the terminal nor pass for a line of the
//! relay's own.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Escapes everything that a terminal would interpret or hide, `\u{1b}` for example: control characters including line
/// breaks, and characters that are invisible or change the direction of text.
pub fn escape_line(text: &str) -> String {
    escape_with(text, |character| character.escape_unicode().to_string())
}

/// Escapes each line of a text; line breaks remain.
pub fn escape_lines(text: &str) -> String {
    text.split('\n').map(escape_line).collect::<Vec<_>>().join("\n")
}

/// Escapes the same characters in a JSON text without changing its value. Outside of strings, the text may contain no control
/// characters except line breaks.
pub fn escape_json(text: &str) -> String {
    let escape = |character: char| {
        let mut units = [0; 2];
        character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    };
    text.split('\n').map(|line| escape_with(line, escape)).collect::<Vec<_>>().join("\n")
}

fn escape_with(text: &str, escape: impl Fn(char) -> String) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            escaped.push(character);
        } else {
            escaped += &escape(character);
        }
    }
    escaped
}

fn is_harmless(character: char) -> bool {
    !matches!(
        character.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequences that clear the screen (in seven bits and in eight), ring the bell, reverse the direction of text or end a
    /// line, and invisible characters.
    const HOSTILE: &str = "a\u{1b}[2Jb\u{9b}2Jc\u{7}d\u{202e}e\r\nf\u{2028}g\u{200b}h\u{7f}";

    #[test]
    fn control_and_invisible_characters_are_escaped() {
        assert_eq!(
            escape_line(HOSTILE),
            r"a\u{1b}[2Jb\u{9b}2Jc\u{7}d\u{202e}e\u{d}\u{a}f\u{2028}g\u{200b}h\u{7f}"
        );
        assert_eq!(escape_line("C:\\aspia \"ключ\" 鍵 ✓"), "C:\\aspia \"ключ\" 鍵 ✓");
    }

    #[test]
    fn line_breaks_remain_in_a_text_of_several_lines() {
        assert_eq!(escape_lines("one:\n  two\u{1b}c\n"), "one:\n  two\\u{1b}c\n");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = serde_json::json!({ "key": HOSTILE, "tag": "\u{e0001}" });
        let shown = escape_json(&format!("{value:#}"));
        assert!(shown.chars().all(|c| is_harmless(c) || c == '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
