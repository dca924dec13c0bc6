//! Columns of text, aligned as `kubectl` aligns them.
//!
//! Not a printer: what is in the cells comes from `printer/`. A table remembers
//! its widths, so that rows which a watch brings later stay in line.

use std::io::{self, Write};

/// Spaces between columns, and the least width of one, as in `kubectl`.
const PADDING: usize = 3;
const LEAST: usize = 6;

/// Rows that are printed together.
#[derive(Debug, Default)]
pub(crate) struct Table {
    widths: Vec<usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a row; it is written by the next `flush`.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Writes the rows so far and forgets them, but not how wide they were.
    pub(crate) fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = (cell.chars().count() + PADDING).max(LEAST);
                match self.widths.get_mut(column) {
                    Some(known) => *known = (*known).max(width),
                    None => self.widths.push(width),
                }
            }
        }
        for row in self.rows.drain(..) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column + 1 == row.len() {
                    line.push_str(cell);
                } else {
                    let width = self.widths.get(column).copied().unwrap_or(LEAST);
                    line.push_str(&format!("{cell:<width$}"));
                }
            }
            // A last cell that is empty would leave the padding of the one before it.
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rows: &[&[&str]]) -> String {
        let mut table = Table::default();
        let mut out = Vec::new();
        for row in rows {
            table.row(row.iter().map(ToString::to_string).collect());
        }
        table.flush(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pads_by_the_widest_cell() {
        assert_eq!(
            lines(&[&["NAME", "IP", "AGE"], &["busybox", "1", "3s"]]),
            "NAME      IP    AGE\nbusybox   1     3s\n"
        );
    }

    #[test]
    fn later_rows_keep_the_widths() {
        let mut table = Table::default();
        let mut out = Vec::new();
        table.row(vec!["a-long-name".into(), "x".into()]);
        table.flush(&mut out).unwrap();
        table.row(vec!["b".into(), "y".into()]);
        table.flush(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "a-long-name   x\nb             y\n"
        );
    }
}
