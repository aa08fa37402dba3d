//! Columns as Go's tabwriter aligns them: three spaces behind the widest cell, the last one as it is. Pure.

/// Rows until they are printed.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    rows: Vec<Vec<String>>,
}

const GAP: usize = 3;

impl Columns {
    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn add(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// All rows, aligned.
    pub(super) fn take(&mut self) -> String {
        let rows = std::mem::take(&mut self.rows);
        let width = |column: usize| {
            let cells = rows.iter().filter(|row| column + 1 < row.len()).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + GAP
        };
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &rows {
            for (at, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if at + 1 < row.len() {
                    let width = widths.get(at).copied().unwrap_or_default();
                    text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
                }
            }
            text.push('\n');
        }
        text
    }
}
