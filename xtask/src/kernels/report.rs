//! What the machine said, as rows of a table.

use std::time::Duration;

use serde::Deserialize;

/// What lines for us begin with (`netpol_tests::guest::PREFIX`).
const PREFIX: &str = "netpol-guest ";
/// Lines of the console that tell why a machine said nothing to us.
const LAST_LINES: usize = 15;
const HEADINGS: [&str; 8] =
    ["kernel", "release", "from_pod", "to_pod", "to_uplink", "attached by", "frames judged", "seconds (verifying)"];

/// A kernel's row: how it went, or why it did not.
pub(super) struct Row {
    pub(super) kernel: &'static str,
    pub(super) outcome: Result<Outcome, String>,
}

/// What the machine said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    release: String,
    programs: Vec<Verified>,
    attached: String,
    test_run: u32,
    seconds: u64,
    done: bool,
    /// Why the trial is not passed.
    pub(super) error: Option<String>,
}

/// A program that the verifier accepted.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Verified {
    program: String,
    instructions: Option<u64>,
    seconds: f64,
}

/// One line: whichever of these it is about.
#[derive(Debug, Deserialize)]
struct Line {
    release: Option<String>,
    verified: Option<Verified>,
    attached: Option<String>,
    test_run: Option<u32>,
    done: Option<bool>,
    error: Option<String>,
}

impl Outcome {
    /// Reads the console.
    pub(super) fn read(console: &str, time: Duration) -> Self {
        let mut outcome = Self { seconds: time.as_secs(), ..Self::default() };
        for text in console.lines().filter_map(|line| line.trim_end().split_once(PREFIX).map(|(_, text)| text)) {
            match serde_json::from_str::<Line>(text) {
                Ok(line) => outcome.take(line),
                Err(error) => outcome.error = Some(format!("a line that is not understood ({error}): {text}")),
            }
        }
        if outcome.error.is_none() && !outcome.done {
            let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
            let end = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n");
            outcome.error = Some(format!("the machine ended before the trial did; its last words:\n{end}"));
        }
        outcome
    }

    fn take(&mut self, line: Line) {
        let Line { release, verified, attached, test_run, done, error } = line;
        self.release = release.unwrap_or(std::mem::take(&mut self.release));
        self.programs.extend(verified);
        self.attached = attached.unwrap_or(std::mem::take(&mut self.attached));
        self.test_run = test_run.unwrap_or(self.test_run);
        self.done |= done.unwrap_or_default();
        self.error = self.error.take().or(error);
    }

    fn instructions(&self, program: &str) -> String {
        match self.programs.iter().find(|verified| verified.program == program) {
            Some(Verified { instructions: Some(count), .. }) => count.to_string(),
            Some(_) => "accepted".to_owned(),
            None => "-".to_owned(),
        }
    }
}

impl Row {
    /// Why the kernel did not pass.
    pub(super) fn error(&self) -> Option<&str> {
        self.outcome.as_ref().err().map(String::as_str)
    }

    /// In a line, as soon as it is known.
    pub(super) fn line(&self) -> String {
        match &self.outcome {
            Ok(outcome) => format!("passed {} in {} s", self.kernel, outcome.seconds),
            Err(error) => format!("FAILED {}: {error}", self.kernel),
        }
    }

    fn cells(&self) -> [String; HEADINGS.len()] {
        let kernel = self.kernel.to_owned();
        let Ok(outcome) = &self.outcome else {
            let none = || "-".to_owned();
            return [kernel, "FAILED".to_owned(), none(), none(), none(), none(), none(), none()];
        };
        let verifying: f64 = outcome.programs.iter().map(|program| program.seconds).sum();
        [
            kernel,
            outcome.release.clone(),
            outcome.instructions("from_pod"),
            outcome.instructions("to_pod"),
            outcome.instructions("to_uplink"),
            outcome.attached.clone(),
            outcome.test_run.to_string(),
            format!("{} ({verifying:.1})", outcome.seconds),
        ]
    }
}

fn cells(rows: &[Row]) -> Vec<[String; HEADINGS.len()]> {
    let mut all = vec![HEADINGS.map(str::to_owned)];
    all.extend(rows.iter().map(Row::cells));
    all
}

/// The rows in columns.
pub(super) fn table(rows: &[Row]) -> String {
    let all = cells(rows);
    let mut widths = [0; HEADINGS.len()];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; HEADINGS.len()]| {
        let padded: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The rows in Markdown.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut lines: Vec<String> = cells(rows).iter().map(|row| format!("| {} |", row.join(" | "))).collect();
    lines.insert(1, format!("|{}", "---|".repeat(HEADINGS.len())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\r\n[    1.2] chatter\r\n\r\nnetpol-guest {\"release\":\"6.1.0-50-cloud-amd64\"}\r\n\
        netpol-guest {\"verified\":{\"program\":\"from_pod\",\"instructions\":19000,\"seconds\":0.5}}\r\n\
        netpol-guest {\"verified\":{\"program\":\"to_pod\",\"instructions\":null,\"seconds\":1.25}}\r\n\
        netpol-guest {\"verified\":{\"program\":\"to_uplink\",\"instructions\":500,\"seconds\":0.0}}\r\n\
        netpol-guest {\"opened\":{\"seconds\":2.0}}\r\nnetpol-guest {\"attached\":\"TCX\"}\r\n\
        [    9.9] no newline netpol-guest {\"test_run\":22}\r\n";

    #[test]
    fn a_console_becomes_a_row() {
        let console = format!("{CONSOLE}netpol-guest {{\"done\":true}}\r\n");
        let outcome = Outcome::read(&console, Duration::from_millis(17_900));
        assert_eq!(outcome.error, None);
        let table = table(&[Row { kernel: "6.1", outcome: Ok(outcome) }]);
        assert!(
            table.ends_with(
                "6.1     6.1.0-50-cloud-amd64  19000     accepted  500        TCX          22             17 (1.8)"
            ),
            "{table}"
        );
    }

    #[test]
    fn a_machine_that_ends_early_has_failed_and_says_its_last_words() {
        let outcome = Outcome::read(&format!("{CONSOLE}[   10.0] Kernel panic\r\n"), Duration::ZERO);
        assert!(outcome.error.unwrap().ends_with("Kernel panic"));
    }

    #[test]
    fn the_first_error_is_the_one_that_counts() {
        let console = format!("{CONSOLE}netpol-guest {{\"error\":\"a\"}}\nnetpol-guest {{\"error\":\"b\"}}\n");
        assert_eq!(Outcome::read(&console, Duration::ZERO).error.as_deref(), Some("a"));
    }
}
