//! Tables for a person at a terminal.

use std::collections::VecDeque;
use std::fmt::Write as _;

/// The widest column.
const MAX_WIDTH: usize = 44;

/// What other systems say must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut out: String =
        text.chars().map(|c| if c.is_control() { '·' } else { c }).take(MAX_WIDTH + 1).collect();
    if out.chars().count() > MAX_WIDTH {
        out.pop();
        out.pop();
        out.push('…');
    }
    out
}

/// Columns as wide as their widest cell; numbers to the right.
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
}
