//! Tables and safe text for terminals.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write as _;

/// The widest column.
const MAX_WIDTH: usize = 44;

/// Whether a character moves, hides or reorders the text on a terminal: control and
/// format characters (Unicode's Cc and Cf), and the separators of lines and paragraphs.
fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}'..='\u{e007f}')
}

/// The text on one line, with control characters replaced.
pub(crate) fn printable_line(text: &str) -> String {
    text.chars().map(|c| if is_steering(c) { '·' } else { c }).collect()
}

/// Replaces control characters, except line feeds and tabs, by JSON escapes. The value of JSON
/// output stays the same.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let is_odd = |c: char| is_steering(c) && !matches!(c, '\n' | '\t');
    if !text.contains(is_odd) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_odd(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// A text as a cell of a table: on one line and cut at [`MAX_WIDTH`].
pub(crate) fn printable(text: &str) -> String {
    let mut out: String =
        text.chars().map(|c| if is_steering(c) { '·' } else { c }).take(MAX_WIDTH + 1).collect();
    if out.chars().count() > MAX_WIDTH {
        out.pop();
        out.pop();
        out.push('…');
    }
    out
}

/// Formats a table: columns as wide as their widest cell, numbers right-aligned.
pub(crate) fn table<const N: usize>(
    header: &[&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut rows: VecDeque<[String; N]> = rows.into_iter().collect();
    let is_number = |column: usize| {
        !rows.is_empty() && rows.iter().all(|row| row[column].parse::<u64>().is_ok())
    };
    let numbers: [bool; N] = std::array::from_fn(is_number);
    rows.push_front(std::array::from_fn(|column| header[column].to_owned()));
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let mut line = String::from("  ");
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if numbers[column] {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:width$}  ")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_cells_are_harmless() {
        let rows = [["a".to_owned(), "7".to_owned()], [printable("\u{1b}[2Jü"), "123".to_owned()]];
        assert_eq!(table(&["name", "n"], rows), "  name     n\n  a        7\n  ·[2Jü  123\n");
        assert_eq!(printable(&"x".repeat(100)).chars().count(), MAX_WIDTH);
    }

    #[test]
    fn what_steers_a_terminal_is_escaped_and_means_the_same_in_json() {
        for steering in ["\u{202e}", "\u{2066}", "\u{200b}", "\u{feff}", "\u{e0041}", "\u{9b}31m"] {
            let json = serde_json::json!({ "note": format!("a{steering}b\n") });
            let text = format!("{json}\n");
            let shown = harmless(&text);
            assert!(!shown.trim_end().contains(is_steering), "{shown:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), json);
            assert_eq!(printable(steering).chars().next(), Some('·'));
            assert_eq!(printable_line(&format!("a{steering}")).chars().nth(1), Some('·'));
        }
        let plain = "größe\tüber\n";
        assert!(matches!(harmless(plain), Cow::Borrowed(text) if text == plain));
    }
}
