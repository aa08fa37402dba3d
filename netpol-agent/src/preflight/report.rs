//! Findings as text for people, or as JSON.

use std::io::{self, Write as _};

use super::{Finding, Standing};
use crate::flow::sink::Format;

/// Prints a finding: `ok    kernel: 6.18`, and below what is not what to do. JSON is an object a line.
///
/// # Errors
/// If standard output is closed.
pub fn print(finding: &Finding, format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string(finding)?),
        Format::Text => writeln!(out, "{}", text(finding)),
    }
}

fn text(finding: &Finding) -> String {
    let standing = match finding.standing {
        Standing::Ok => "ok  ",
        Standing::Note => "note",
        Standing::Fail => "FAIL",
    };
    let mut text = format!("{standing}  {}: {}", finding.check, finding.found);
    if !finding.advice.is_empty() {
        text = format!("{text}\n        -> {}", finding.advice);
    }
    text
}

/// The worst of all findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Standing {
    findings.iter().map(|finding| finding.standing).max().unwrap_or(Standing::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_what_it_is_for() {
        let note = Finding::note("bridges", "off", "turn it on");
        assert_eq!(text(&note), "note  bridges: off\n        -> turn it on");
        assert_eq!(text(&Finding::ok("kernel", "6.18")), "ok    kernel: 6.18");
        let json = serde_json::to_value(&note).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"check": "bridges", "standing": "note", "found": "off", "advice": "turn it on"})
        );
    }

    #[test]
    fn one_failure_is_the_worst() {
        let findings = [Finding::ok("a", ""), Finding::fail("b", "", ""), Finding::note("c", "", "")];
        assert_eq!(worst(&findings), Standing::Fail);
        assert_eq!(worst(&[]), Standing::Ok);
    }
}
