//! Runs a property over random histories, and keeps what fails: the shrunk failure becomes a file under
//! `tests/cases/regressions/` that a test replays from then on.
//!
//! In: a strategy of [`History`] and a judge to hold against the oracle. `NETPOL_CASES` sets the number of cases,
//! `NETPOL_TEST_FULL` a large one, `NETPOL_SEED` (any text, or `random`) the seed; without it every run is the same.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::generate::history::History;
use crate::generate::{Scene, probes};
use crate::judge::{Change, Judge, Objects, Probe, Protocol, Verdict};
use crate::oracle::Oracle;

/// A probe on which two judges differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The probe.
    pub probe: Probe,
    /// What the oracle says.
    pub oracle: Verdict,
    /// What the other says.
    pub other: Verdict,
}

/// Tells both judges the history (a batch at a time, the other judge settling after each) and compares them on every
/// probe of the end state. The first difference, if there is one.
///
/// # Errors
/// A judge cannot take an object.
pub fn first_difference(history: &History, other: &mut impl Judge) -> anyhow::Result<Option<Difference>> {
    let mut oracle = Oracle::default();
    oracle.change(&history.last.objects.creation())?;
    for batch in &history.batches {
        other.change(batch)?;
    }
    for probe in history.last.probes() {
        let (said, other) = (oracle.judge(&probe), other.verdict(&probe)?);
        if said != other {
            return Ok(Some(Difference { probe, oracle: said, other }));
        }
    }
    Ok(None)
}

/// Cases to run: `NETPOL_CASES`, or this many; with `NETPOL_TEST_FULL` fifty times as many.
#[must_use]
pub fn cases(default: u32) -> u32 {
    let asked = std::env::var("NETPOL_CASES").ok().and_then(|cases| cases.parse().ok());
    let full = std::env::var_os("NETPOL_TEST_FULL").is_some();
    asked.unwrap_or(if full { default.saturating_mul(50) } else { default })
}

/// A runner of so many cases, seeded by `NETPOL_SEED`.
#[must_use]
pub fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let seed = std::env::var("NETPOL_SEED").unwrap_or_default();
    if seed == "random" {
        return TestRunner::new(config);
    }
    let mut bytes = [0_u8; 32];
    for (byte, of_seed) in bytes.iter_mut().zip(seed.bytes()) {
        *byte = of_seed;
    }
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Holds a judge against the oracle over random histories, each time in the state that it leads to.
///
/// # Errors
/// As [`require`].
pub fn require_agreement<J: Judge>(
    name: &str,
    default_cases: u32,
    histories: impl Strategy<Value = History>,
    judge: impl Fn() -> J,
) -> anyhow::Result<()> {
    require(name, default_cases, histories, |history| match first_difference(history, &mut judge())? {
        None => Ok(()),
        Some(found) => bail!(describe(&found)),
    })
}

/// Holds a property over random histories. A failure is shrunk, kept as a file, and reported.
///
/// # Errors
/// The property does not hold for some history.
pub fn require(
    name: &str,
    default_cases: u32,
    histories: impl Strategy<Value = History>,
    property: impl Fn(&History) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let result = runner(cases(default_cases))
        .run(&histories, |history| property(&history).map_err(|error| TestCaseError::fail(format!("{error:#}"))));
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Abort(reason)) => bail!("{name}: no cases: {reason}"),
        Err(TestError::Fail(reason, history)) => {
            let path = keep(name, &reason.to_string(), &history)?;
            bail!("{name}: {reason}\nkept as {}:\n{}", path.display(), std::fs::read_to_string(&path)?);
        }
    }
}

fn describe(found: &Difference) -> String {
    let Difference { probe, oracle, other } = found;
    format!(
        "{probe}: oracle ingress {} egress {}, judged ingress {} egress {}",
        oracle.ingress, oracle.egress, other.ingress, other.egress
    )
}

/// Where failures are kept.
#[must_use]
pub fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join("regressions")
}

/// Writes a history to a file of its own. Its name has a number that the content decides, so that a failure seen twice
/// is one file.
fn keep(name: &str, reason: &str, history: &History) -> anyhow::Result<PathBuf> {
    // A change a line.
    let batch = |changes: &Vec<Change>| {
        let lines: Vec<String> = changes.iter().map(|change| format!("  {}", change_to_json(change))).collect();
        format!(" [\n{}\n ]", lines.join(",\n"))
    };
    let batches: Vec<String> = history.batches.iter().map(batch).collect();
    let ports: Vec<String> =
        history.last.ports.iter().map(|(protocol, port)| format!("{}/{port}", protocol.name())).collect();
    let (why, ports, batches) = (json!(reason), json!(ports), batches.join(",\n"));
    let text = format!("{{\n\"why\": {why},\n\"ports\": {ports},\n\"batches\": [\n{batches}\n]\n}}\n");
    // FNV-1a: stable over runs and toolchains.
    let number = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    std::fs::create_dir_all(regressions())?;
    let path = regressions().join(format!("{name}-{:08x}.json", number >> 32));
    std::fs::write(&path, text).with_context(|| format!("cannot keep the failure as {}", path.display()))?;
    Ok(path)
}

/// Reads a kept failure.
///
/// # Errors
/// The file is missing or is not one of those.
pub fn read_kept(path: &Path) -> anyhow::Result<History> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let kept: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut batches = Vec::new();
    let mut objects = Objects::default();
    for batch in list(kept.get("batches")) {
        let changes: Vec<Change> = list(Some(&batch)).iter().map(change_from_json).collect::<anyhow::Result<_>>()?;
        changes.iter().for_each(|change| objects.change(change));
        batches.push(changes);
    }
    let ports = list(kept.get("ports")).iter().map(port_from_json).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!probes(&objects, &ports).is_empty(), "{} probes nothing", path.display());
    Ok(History { batches, last: Scene { objects, ports } })
}

fn change_to_json(change: &Change) -> Value {
    match change {
        Change::Apply(object) => json!({ "apply": object }),
        Change::Delete { kind, name } => json!({ "delete": [kind, name.0, name.1] }),
    }
}

fn change_from_json(value: &Value) -> anyhow::Result<Change> {
    if let Some(object) = value.get("apply") {
        return Ok(Change::Apply(object.clone()));
    }
    let (kind, namespace, name): (String, String, String) =
        serde_json::from_value(value.get("delete").context("neither apply nor delete")?.clone())?;
    Ok(Change::Delete { kind, name: (namespace, name) })
}

fn port_from_json(value: &Value) -> anyhow::Result<(Protocol, u16)> {
    let (protocol, port) = value.as_str().and_then(|text| text.split_once('/')).context("no port")?;
    Ok((Protocol::from_name(protocol).context("no protocol")?, port.parse()?))
}
