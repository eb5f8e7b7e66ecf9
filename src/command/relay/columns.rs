//! Text in columns of a terminal, where some characters take two of them and some none.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alignment {
    Left,
    Right,
}

/// Cuts a text that is wider than `width`; an ellipsis shows that it is cut.
pub(super) fn truncate(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let mut cut = String::new();
    for character in text.chars() {
        let Some(rest) = left.checked_sub(character.width().unwrap_or_default()) else {
            break;
        };
        left = rest;
        cut.push(character);
    }
    cut + "…"
}

/// Lays out rows of cells, each column as wide as its widest cell.
pub(super) fn lay_out<const COLUMNS: usize>(
    alignments: [Alignment; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), alignment) in row.iter().zip(widths).zip(alignments) {
            let padding = " ".repeat(width - cell.width());
            if !line.is_empty() {
                line += "  ";
            }
            line += &match alignment {
                Alignment::Left => format!("{cell}{padding}"),
                Alignment::Right => format!("{padding}{cell}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_the_width_of_their_characters() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["ID", "USER", "HOST"]), row(["7", "鍵屋", "1"]), row(["12", "é", ""])];
        let text = lay_out([Alignment::Right, Alignment::Left, Alignment::Left], &rows);
        assert_eq!(text, "ID  USER  HOST\n 7  鍵屋  1\n12  é\n");
    }

    #[test]
    fn wide_text_is_cut_before_the_limit() {
        assert_eq!(truncate("abc", 3), "abc");
        assert_eq!(truncate("abcd", 3), "ab…");
        assert_eq!(truncate("鍵鍵鍵", 4), "鍵…");
        assert_eq!(truncate("ab", 0), "…");
    }
}
