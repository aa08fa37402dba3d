//! What the verifier thinks of each program: accepted or not, how many instructions it walked, how long that took.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::{ProgramError, SchedClassifier};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lines of the verifier's log that are worth their time on a serial port: the end says what was refused.
const LOG_LINES: usize = 60;

/// A program that the kernel accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verified {
    /// Instructions that the verifier walked.
    pub(super) instructions: Option<u64>,
    /// Time of one load.
    pub(super) time: Duration,
}

/// Loads a program and says what that cost.
pub(super) fn verify(ebpf: &mut Ebpf, program: &str) -> Result<Verified> {
    let classifier = classifier(ebpf, program)?;
    let start = Instant::now();
    match classifier.load() {
        Ok(()) => {}
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n");
            bail!("{program} refused: {io_error}; the verifier's last words:\n{end}");
        }
        Err(other) => return Err(other).with_context(|| format!("cannot load {program}")),
    }
    let time = start.elapsed();
    let instructions = classifier.info()?.verified_instruction_count().map(u64::from);
    Ok(Verified { instructions, time })
}

/// The number of instructions from the verifier's log, for kernels before 5.16, which tell it nowhere else.
///
/// The log is written only when a load fails. So it is made to fail after verification: with no descriptor left for it.
pub(super) fn count_by_log(ebpf: &mut Ebpf, program: &str) -> Result<Option<u64>> {
    let classifier = classifier(ebpf, program)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let loaded = classifier.load();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    match loaded {
        Err(ProgramError::LoadError { verifier_log, .. }) => Ok(processed(&verifier_log.to_string())),
        Err(other) => Err(other).with_context(|| format!("cannot load {program} for its log")),
        Ok(()) => Ok(None),
    }
}

/// Reads `processed 123 insns (limit 1000000) ...`.
fn processed(log: &str) -> Option<u64> {
    let counted = log.lines().rev().find_map(|line| line.strip_prefix("processed "))?;
    counted.split(' ').next()?.parse().ok()
}

/// A program of the object.
pub(super) fn classifier<'a>(ebpf: &'a mut Ebpf, program: &str) -> Result<&'a mut SchedClassifier> {
    let found = ebpf.program_mut(program).with_context(|| format!("the object has no program {program}"))?;
    found.try_into().with_context(|| format!("{program} is no TC program"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_in_the_last_line_of_the_log() {
        let log = "stack depth 248+0\nprocessed 75123 insns (limit 1000000) max_states_per_insn 4 total_states 1\n";
        assert_eq!(processed(log), Some(75_123));
        assert_eq!(processed("R1 invalid mem access 'scalar'\n"), None);
    }
}
