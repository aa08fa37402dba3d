//! Columns of text as `kubectl` prints them: left-aligned, two spaces apart, colours only where asked for. Pure.

use std::fmt::Write as _;

/// How a cell looks on a terminal with colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    #[default]
    Plain,
    Bold,
    Good,
    Warning,
    Bad,
}

impl Style {
    /// The text in this style, if there are colours at all.
    pub(super) fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Bold => "1",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
            Self::Plain => return text.to_owned(),
        };
        if colour && !text.is_empty() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: printable(&text.to_string()), style: Style::Plain }
    }
}

impl Cell {
    pub(super) fn styled(text: impl ToString, style: Style) -> Self {
        Self { style, ..Self::from(text) }
    }
}

/// Rows under a header.
#[derive(Clone, Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    cells: Vec<Cell>,
    /// Text after the cells that no column is made for.
    rest: Option<String>,
}

impl Table {
    pub(super) fn new(header: impl IntoIterator<Item = &'static str>) -> Self {
        Self { header: header.into_iter().collect(), rows: Vec::new() }
    }

    pub(super) fn push(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(Row { cells: cells.into_iter().collect(), rest: None });
    }

    /// A row that ends in free text, as long as it may be.
    pub(super) fn push_with_text(&mut self, cells: impl IntoIterator<Item = Cell>, text: &str) {
        self.rows.push(Row { cells: cells.into_iter().collect(), rest: Some(printable(text)) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn render(&self, colour: bool) -> String {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(at));
            let header = self.header.get(at).map_or(0, |name| name.len());
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0).max(header)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let header = self.header.iter().map(|name| Cell::styled(name, Style::Bold)).collect();
        let mut text = String::new();
        for row in [&Row { cells: header, rest: None }].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.cells.iter().zip(&widths) {
                let gap = width.saturating_sub(cell.text.chars().count()) + 2;
                let written = write!(line, "{}{:gap$}", cell.style.paint(&cell.text, colour), "");
                debug_assert!(written.is_ok(), "a String takes everything");
            }
            line.push_str(row.rest.as_deref().unwrap_or_default());
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// What comes from elsewhere must not steer the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["NODE", "STATE", "PODS"]);
        table.push(["a".into(), Cell::styled("enforced", Style::Good), 12.into()]);
        table.push(["node-ä".into(), "x".into(), "".into()]);
        table.push_with_text(
            ["b".into(), Cell::styled("no answer", Style::Bad)],
            "it is\u{1b}[31m gone, and that is a long story",
        );
        table
    }

    #[test]
    fn columns_are_aligned_and_free_text_widens_none() {
        let expected = "NODE    STATE      PODS\n\
                        a       enforced   12\n\
                        node-ä  x\n\
                        b       no answer  it is [31m gone, and that is a long story\n";
        assert_eq!(table().render(false), expected);
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = table().render(true);
        assert!(coloured.contains("\u{1b}[32menforced\u{1b}[0m   12"), "{coloured:?}");
        let plain = ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[31m", "\u{1b}[32m"]
            .iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(plain, table().render(false));
    }
}
