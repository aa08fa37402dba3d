//! Where faults are judged: each is put in by the cheapest way there is, and its test run.
//!
//! In: the faults and the copy of the tree. Out: what became of each. Three ways:
//! - switched: in a function body of the agent or of what it shares with the kernel; all of them are one build,
//! - in the BPF object: only that is built again, as the tests load what the environment names,
//! - alone: everything else; the copy is built with this one fault, and each costs minutes on a slow machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};

use super::scratch::{Restored, Scratch};
use super::suite::{self, Build, Program, Ran, Suite};
use super::{Fate, Mutant, seconds, switch};
use crate::shell;

/// The sources of the BPF object that no other program has.
const OF_OBJECT: &str = "netpol-ebpf/";

/// How a fault is put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// By its number.
    Switched(u32),
    /// By building the BPF object.
    Object,
    /// By building everything.
    Alone,
}

/// Everything that faults have in common.
pub(super) struct Bench<'a> {
    scratch: &'a Scratch,
    /// In the order in which they are judged.
    faults: Vec<(Way, Mutant)>,
    /// The BPF object, if any test needs it.
    object: Option<PathBuf>,
    /// Test programs in which no fault is switched on.
    programs: BTreeMap<Suite, Vec<Program>>,
}

impl<'a> Bench<'a> {
    /// Builds what faults share, and sees that their tests pass without any.
    pub(super) fn prepare(scratch: &'a Scratch, chosen: Vec<Mutant>) -> Result<Self> {
        let mut bench = Self { scratch, faults: Vec::new(), object: None, programs: BTreeMap::new() };
        if chosen.iter().any(|mutant| mutant.suite.needs_kernel()) {
            bench.object = Some(bench.whole_object()?);
        }
        let mut number = 0;
        for mutant in chosen {
            let way = if mutant.file.starts_with(OF_OBJECT) && mutant.suite.reads_object() {
                Way::Object
            } else if mutant.suite.reads_object() || switch::body(&mutant, &scratch.text(mutant.file)?).is_none() {
                Way::Alone
            } else {
                number += 1;
                Way::Switched(number)
            };
            bench.faults.push((way, mutant));
        }
        if let Err(why) = bench.build(true)? {
            shell::say(&format!("the faults do not compile together, so that each is built alone:\n{why}"));
            for (way, _) in &mut bench.faults {
                *way = if let Way::Switched(_) = way { Way::Alone } else { *way };
            }
            if let Err(why) = bench.build(false)? {
                bail!("the tests do not compile without any fault:\n{why}");
            }
        }
        bench.require_passing_tests()?;
        // Namespaces last, and a build of the BPF object between tests that loaded the whole one and those of its faults.
        bench.faults.sort_by_key(|(way, mutant)| {
            let rank = match way {
                Way::Switched(_) => 0,
                Way::Object => 1,
                Way::Alone => 2,
            };
            (rank, mutant.suite, mutant.file)
        });
        Ok(bench)
    }

    /// The faults, in the order in which they are to be judged.
    pub(super) fn faults(&self) -> Vec<Mutant> {
        self.faults.iter().map(|(_, mutant)| *mutant).collect()
    }

    /// What becomes of a fault.
    pub(super) fn judge(&mut self, mutant: &Mutant) -> Result<Fate> {
        let way = self.faults.iter().find(|(_, known)| known.name == mutant.name).map(|(way, _)| *way);
        match way {
            Some(Way::Switched(number)) => self.run(mutant, Some(number), self.of(mutant.suite)),
            Some(Way::Object) => {
                let _original_comes_back = self.put(mutant)?;
                match suite::build_object(self.scratch)? {
                    Ok(_) => self.run(mutant, None, self.of(mutant.suite)),
                    Err(why) => Ok(does_not_compile(&why)),
                }
            }
            Some(Way::Alone) | None => self.judge_alone(mutant),
        }
    }

    fn judge_alone(&self, mutant: &Mutant) -> Result<Fate> {
        let original = self.put(mutant)?;
        if self.object.is_some()
            && let Err(why) = suite::build_object(self.scratch)?
        {
            return Ok(does_not_compile(&why));
        }
        let built = mutant.suite.build(self.scratch, self.object.as_deref())?;
        let fate = match built {
            Build::Done(programs) => self.run(mutant, None, &programs),
            Build::Failed(why) => Ok(does_not_compile(&why)),
        };
        drop(original);
        fate
    }

    fn run(&self, mutant: &Mutant, number: Option<u32>, programs: &[Program]) -> Result<Fate> {
        if let Some(guard) = mutant.suite.guard() {
            let ran = mutant.suite.run(self.scratch, programs, number, &[guard])?;
            if !matches!(ran.of(guard), Ran::Passed) {
                let why = format!("{guard} fails too, so nothing may work at all:\n{}", ran.output);
                return Ok(Fate::Broken(why));
            }
        }
        let ran = mutant.suite.run(self.scratch, programs, number, &[mutant.test])?;
        Ok(match ran.of(mutant.test) {
            Ran::Failed => Fate::Killed,
            Ran::Passed => Fate::Survived,
            Ran::Absent => Fate::Broken(format!("its test did not come to an end:\n{}", ran.output)),
        })
    }

    fn put(&self, mutant: &Mutant) -> Result<Restored> {
        let faulty = mutant.applied_to(&self.scratch.text(mutant.file)?)?;
        self.scratch.put(mutant.file, &faulty)
    }

    fn of(&self, suite: Suite) -> &[Program] {
        self.programs.get(&suite).map_or(&[], Vec::as_slice)
    }

    fn whole_object(&self) -> Result<PathBuf> {
        match suite::build_object(self.scratch)? {
            Ok(object) => Ok(object),
            Err(why) => bail!("the BPF object does not compile without any fault:\n{why}"),
        }
    }

    /// Builds the programs of every suite, with all faults in them that can be switched, or with none. The BPF object is
    /// there already, and has none of them.
    fn build(&mut self, with_faults: bool) -> Result<Result<(), String>> {
        let mut restored = Vec::new();
        if with_faults {
            let switched = self.faults.iter().filter_map(|(way, mutant)| match way {
                Way::Switched(number) => Some((*number, *mutant)),
                Way::Object | Way::Alone => None,
            });
            let switched: Vec<(u32, Mutant)> = switched.collect();
            for (file, text) in switch::with_switches(&switched, |file| self.scratch.text(file))? {
                restored.push(self.scratch.put(file, &text)?);
            }
        }
        let suites: BTreeSet<Suite> = self.faults.iter().map(|(_, mutant)| mutant.suite).collect();
        for suite in suites {
            let at = Instant::now();
            match suite.build(self.scratch, self.object.as_deref())? {
                Build::Done(programs) => _ = self.programs.insert(suite, programs),
                Build::Failed(why) => return Ok(Err(why)),
            }
            shell::say(&format!("built: {suite} ({})", seconds(at.elapsed())));
        }
        drop(restored);
        Ok(Ok(()))
    }

    /// A test that fails without any fault, or does not exist, judges nothing.
    fn require_passing_tests(&self) -> Result<()> {
        let mut wanted: BTreeMap<Suite, BTreeSet<&str>> = BTreeMap::new();
        for (_, mutant) in &self.faults {
            wanted.entry(mutant.suite).or_default().insert(mutant.test);
        }
        for (suite, tests) in wanted {
            let at = Instant::now();
            let tests: Vec<&str> = tests.into_iter().collect();
            // A guard is run by itself, as then.
            let guard: Vec<&str> = suite.guard().into_iter().filter(|guard| !tests.contains(guard)).collect();
            let mut ran = suite.run(self.scratch, self.of(suite), None, &tests)?;
            if !guard.is_empty() {
                ran.add(suite.run(self.scratch, self.of(suite), None, &guard)?);
            }
            for test in tests.iter().chain(&guard) {
                match ran.of(test) {
                    Ran::Passed => {}
                    Ran::Failed => bail!("{suite} {test} fails without any fault:\n{}", ran.output),
                    Ran::Absent => {
                        bail!("{suite} {test}: there is no such test, or it did not come to an end:\n{}", ran.output)
                    }
                }
            }
            shell::say(&format!("without a fault: {suite}, {} tests pass ({})", tests.len(), seconds(at.elapsed())));
        }
        Ok(())
    }
}

fn does_not_compile(why: &str) -> Fate {
    Fate::Broken(format!("it does not compile:\n{why}"))
}
