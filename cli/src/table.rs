//! Columns, as wide as what is in them.

use std::fmt;

/// Rows of texts under headings.
#[derive(Debug)]
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with these headings.
    pub fn new(headings: &[&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned)] }
    }

    /// One more row.
    pub fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max();
        let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or_default()).collect();
        for row in &self.rows {
            let padded: Vec<String> = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}")).collect();
            writeln!(f, "{}", padded.join("   ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_text() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["long".into(), "x".into()]);
        assert_eq!(table.to_string(), "A      B\nlong   x\n");
    }
}
