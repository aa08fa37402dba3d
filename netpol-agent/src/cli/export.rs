//! Flags of `run` about the export of flows.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::observe::export::ExportConfig;
use crate::observe::hubble::filter::Selection;
use crate::observe::hubble::json;
use crate::observe::hubble::proto::flow::FlowFilter;

/// Where flows are exported, and which.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Export of flows")]
pub struct ExportArgs {
    /// Write flows as JSON lines, as Hubble's exporter and `netpol observe -o jsonpb` do, to this file (`stdout`: to standard
    /// output, in place of what is printed there).
    #[arg(long, value_name = "PATH")]
    pub export_file: Option<PathBuf>,

    /// Publish Kubernetes Events on pods whose packets policy denies: one for each pod, direction and reason in two minutes,
    /// and few altogether.
    #[arg(long)]
    pub pod_events: bool,

    /// Megabytes after which the file is put aside as PATH.1.
    #[arg(long, value_name = "MB", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub export_max_size: u32,

    /// How many files are put aside.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub export_max_files: u8,

    /// Export only flows that one of these matches: Hubble's FlowFilter as JSON, e.g. '{"source_pod":["shop/"]}'. May be
    /// repeated.
    #[arg(long, value_name = "FILTER", requires = "export_file", value_parser = filter)]
    pub export_filter: Vec<FlowFilter>,

    /// Export no flow that one of these matches. May be repeated.
    #[arg(long, value_name = "FILTER", requires = "export_file", value_parser = filter)]
    pub export_exclude: Vec<FlowFilter>,

    /// Sum flows up by pods, port and reason (a drop and the verdict behind it apart), and write a line for each so often, e.g.
    /// 60s.
    #[arg(long, value_name = "DURATION", requires = "export_file", value_parser = seconds)]
    pub export_aggregate: Option<Duration>,
}

impl ExportArgs {
    /// What is to be exported, if anything is.
    #[must_use]
    pub fn config(&self, node: &str) -> Option<ExportConfig> {
        Some(ExportConfig {
            path: self.export_file.clone()?,
            max_bytes: u64::from(self.export_max_size) << 20,
            backups: usize::from(self.export_max_files),
            node: node.to_owned(),
            allow: self.export_filter.clone(),
            deny: self.export_exclude.clone(),
            aggregate: self.export_aggregate,
        })
    }
}

/// A filter in Hubble's JSON whose values can be compared with something.
fn filter(text: &str) -> Result<FlowFilter, String> {
    let hint = "write e.g. '{\"source_pod\":[\"shop/\"],\"event_type\":[{\"type\":1}]}'";
    let filter: FlowFilter = json::parse(text, false).map_err(|error| format!("not a flow filter: {error}; {hint}"))?;
    Selection::new(std::slice::from_ref(&filter), &[]).map_err(|error| error.to_string())?;
    Ok(filter)
}

/// `60s`, `5m` or `1h`.
fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; write 60s, 5m or 1h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_no_number| wrong())?;
    if number == 0 { Err(wrong()) } else { Ok(Duration::from_secs(number.saturating_mul(unit))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_matches_nothing_by_mistake_is_refused() {
        for right in [r#"{"source_pod":["shop/"],"verdict":["DROPPED"]}"#, r#"{"event_type":[{"type":1}]}"#] {
            assert!(filter(right).is_ok(), "{right}");
        }
        for wrong in [r#"{"source_pods":["x/"]}"#, r#"{"source_port":["http"]}"#, r#"{"source_ip":["x"]}"#, "web", ""] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(seconds("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(seconds("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "s", "60", "0s", "5d", "-1s", "5µ"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
