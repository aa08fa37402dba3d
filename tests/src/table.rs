//! Reachability tables: who reaches what, as somebody wrote it by hand and as it was measured, in one form.
//!
//! ```text
//! # a comment
//!                            production/user-api
//!                             │   outside
//! production/postgresql 5432/tcp  ok  x
//! ```
//!
//! Columns connect (their names stand in steps above them), rows are connected to. `ok` is a completed exchange, `x`
//! silence, `-` not asked; `?` is measured only: something came back, but not the answer. Text in, [`Table`] out, and back.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

use crate::servers::Transport;

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// An exchange completes.
    Allowed,
    /// Nothing comes back.
    Denied,
    /// Something else comes back.
    Odd,
    /// Not asked: a place and itself.
    Skipped,
}

impl Cell {
    fn text(self) -> &'static str {
        match self {
            Self::Allowed => "ok",
            Self::Denied => "x",
            Self::Odd => "?",
            Self::Skipped => "-",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Allowed, Self::Denied, Self::Odd, Self::Skipped].into_iter().find(|cell| cell.text() == text)
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Allowed => "\x1b[32m",
            Self::Denied => "\x1b[31m",
            Self::Odd => "\x1b[35m",
            Self::Skipped => "\x1b[2m",
        }
    }
}

/// What is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the place, or of an address of it.
    pub name: String,
    /// Port.
    pub port: u16,
    /// Transport.
    pub transport: Transport,
}

impl Target {
    fn parse(name: &str, port: &str) -> Option<Self> {
        let (number, transport) = port.split_once('/')?;
        let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|it| it.name() == transport)?;
        Some(Self { name: name.to_owned(), port: number.parse().ok()?, transport })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.name, self.port, self.transport.name())
    }
}

/// A cell in which two tables differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Who connects.
    pub source: String,
    /// To what.
    pub target: Target,
    /// As written.
    pub expected: Cell,
    /// As measured.
    pub measured: Cell,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { source, target, expected, measured } = self;
        write!(f, "{source} -> {target}: expected {}, measured {}", expected.text(), measured.text())
    }
}

/// Sources, targets, and a cell for each pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    sources: Vec<String>,
    rows: Vec<(Target, Vec<Cell>)>,
}

impl Table {
    /// Reads a table.
    ///
    /// # Errors
    /// With the line that is not understood.
    pub fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            if !line.trim().is_empty() && !line.starts_with('#') {
                table.parse_line(line).with_context(|| format!("line {number}: {line:?}"))?;
            }
        }
        ensure!(!table.rows.is_empty(), "a table without rows");
        Ok(table)
    }

    fn parse_line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().filter(|word| !matches!(*word, "│" | "|")).collect();
        match words.as_slice() {
            [source] if self.rows.is_empty() => self.sources.push((*source).to_owned()),
            [name, port, cells @ ..] => {
                let target = Target::parse(name, port).context("a row begins with a name and PORT/PROTOCOL")?;
                let cells: Vec<Cell> =
                    cells.iter().map(|cell| Cell::parse(cell)).collect::<Option<_>>().context("cells: ok, x or -")?;
                ensure!(cells.len() == self.sources.len(), "{} cells for {} sources", cells.len(), self.sources.len());
                self.rows.push((target, cells));
            }
            _ => bail!("neither a source nor a row"),
        }
        Ok(())
    }

    /// Who connects.
    #[must_use]
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    /// What is connected to.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.rows.iter().map(|(target, _)| target)
    }

    /// Every pair, row by row.
    pub fn cells(&self) -> impl Iterator<Item = (&str, &Target, Cell)> {
        self.rows.iter().flat_map(|(target, cells)| {
            self.sources.iter().zip(cells).map(move |(source, &cell)| (source.as_str(), target, cell))
        })
    }

    /// The same pairs with other answers, in the order of [`Table::cells`].
    #[must_use]
    pub fn with_cells(&self, cells: impl IntoIterator<Item = Cell>) -> Self {
        let mut cells = cells.into_iter();
        let mut answer = self.clone();
        for (_target, row) in &mut answer.rows {
            for (cell, new) in row.iter_mut().zip(&mut cells) {
                *cell = new;
            }
        }
        answer
    }

    /// Where `measured` is not as this table says.
    #[must_use]
    pub fn differences(&self, measured: &Self) -> Vec<Difference> {
        let pairs = self.cells().zip(measured.cells());
        pairs
            .filter(|((_, _, expected), (_, _, measured))| expected != measured)
            .map(|((source, target, expected), (_, _, measured))| Difference {
                source: source.to_owned(),
                target: target.clone(),
                expected,
                measured,
            })
            .collect()
    }

    /// The table as text, in colours for a terminal.
    #[must_use]
    pub fn render(&self, colours: bool) -> String {
        let width = self.targets().map(|target| target.to_string().len()).max().unwrap_or_default();
        let mut text = String::new();
        let mut push = |line: String| {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{}", line.trim_end());
        };
        for (column, source) in self.sources.iter().enumerate() {
            push(format!("{:width$}   {}{source}", "", " │  ".repeat(column)));
        }
        for (target, cells) in &self.rows {
            let cells: String = cells
                .iter()
                .map(|cell| match colours {
                    true => format!(" {}{:<3}\x1b[0m", cell.colour(), cell.text()),
                    false => format!(" {:<3}", cell.text()),
                })
                .collect();
            push(format!("{:width$}  {cells}", target.to_string()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# comment
                       shop/a
                        │   outside
shop/b 53/udp    ok  x
shop/a 8080/tcp  -   ok
";

    #[test]
    fn a_table_survives_being_written_and_read() {
        let table = Table::parse(TEXT).unwrap();
        assert_eq!(table.sources(), ["shop/a", "outside"]);
        assert_eq!(Table::parse(&table.render(false)).unwrap(), table);
    }

    #[test]
    fn differences_name_source_target_and_both_answers() {
        let table = Table::parse(TEXT).unwrap();
        let measured = table.with_cells([Cell::Allowed, Cell::Allowed, Cell::Skipped, Cell::Odd]);
        let found: Vec<String> = table.differences(&measured).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "outside -> shop/b 53/udp: expected x, measured ok",
                "outside -> shop/a 8080/tcp: expected ok, measured ?"
            ]
        );
    }

    #[test]
    fn a_row_with_a_cell_too_few_or_an_unknown_word_is_refused() {
        for bad in ["shop/b 53/udp ok", "shop/b 53/udp ok maybe", "shop/b 53/sctp ok x", "shop/b ok x", "outside"] {
            let text = format!("{TEXT}{bad}\n");
            assert!(Table::parse(&text).is_err(), "{bad} must be refused");
        }
    }
}
