//! The committed budget of the programs: sizes that a change may exceed by a tenth, not more.
//!
//! In: the file, and sizes as measured. Out: lines that say what is above. What the verifier walks depends on the kernel;
//! on another one than the file's only half the kernel's own limit is asked for.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

use super::Size;

/// Half of the million instructions that the verifier walks: older kernels prune less.
const HALF_THE_LIMIT: u32 = 500_000;
const HEAD: &str =
    "# What the verifier walks and the programs' sizes in bytes; `cargo xtask verifier-stats --bless` writes it.\n";

/// A budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Kernel (major and minor version) and architecture on which it was measured.
    pub kernel: String,
    /// Name, verified instructions, translated and jited bytes of each program.
    pub programs: Vec<(String, [u32; 3])>,
}

impl Budget {
    /// The budget of what was measured here.
    #[must_use]
    pub fn of(kernel: &str, sizes: &[Size]) -> Self {
        let numbers = |size: &Size| [size.verified, size.translated, size.jited];
        let programs = sizes.iter().map(|size| (size.program.to_owned(), numbers(size))).collect();
        Self { kernel: kernel.to_owned(), programs }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// With the line that is not understood.
    pub fn parse(text: &str) -> Result<Self> {
        let mut kernel = None;
        let mut programs = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, rest) =
                line.split_once(' ').with_context(|| format!("{line:?}: a name and what belongs to it"))?;
            if name == "kernel" {
                kernel = Some(rest.to_owned());
                continue;
            }
            let numbers: Vec<u32> =
                rest.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| format!("{line:?}"))?;
            let numbers =
                <[u32; 3]>::try_from(numbers.as_slice()).with_context(|| format!("{line:?}: three numbers"))?;
            programs.push((name.to_owned(), numbers));
        }
        ensure!(!programs.is_empty(), "a budget without programs");
        Ok(Self { kernel: kernel.context("a budget without a kernel")?, programs })
    }

    /// The file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{HEAD}kernel {}\n# program verified translated jited\n", self.kernel);
        for (name, [verified, translated, jited]) in &self.programs {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{name} {verified} {translated} {jited}");
        }
        text
    }

    /// What is above the budget; nothing if all is well.
    #[must_use]
    pub fn exceeded(&self, kernel: &str, sizes: &[Size]) -> Vec<String> {
        let mut above = Vec::new();
        for size in sizes {
            let Some((_, numbers)) = self.programs.iter().find(|(name, _)| name == size.program) else {
                above.push(format!("{}: no budget", size.program));
                continue;
            };
            let measured = [size.verified, size.translated, size.jited];
            for ((what, measured), budget) in ["verified", "translated", "jited"].into_iter().zip(measured).zip(numbers)
            {
                let same_kernel = kernel == self.kernel;
                let limit = match what {
                    _ if same_kernel => budget + budget / 10,
                    "verified" => HALF_THE_LIMIT,
                    _ => u32::MAX,
                };
                if measured > limit {
                    above.push(format!("{}: {what} {measured}, the budget is {budget}", size.program));
                }
            }
        }
        above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [Size; 2] = [
        Size { program: "from_pod", verified: 100_000, translated: 30_000, jited: 20_000 },
        Size { program: "to_pod", verified: 50_000, translated: 20_000, jited: 10_000 },
    ];

    #[test]
    fn a_budget_survives_being_written_and_read() {
        let budget = Budget::of("6.18 x86_64", &SIZES);
        assert_eq!(Budget::parse(&budget.text()).unwrap(), budget);
        for bad in ["", "kernel 6.18", "from_pod 1 2 3", "kernel 1\nfrom_pod 1 2", "kernel 1\nfrom_pod a b c", "word"] {
            assert!(Budget::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tenth_above_is_within_and_more_is_not() {
        let budget = Budget::of("6.18 x86_64", &SIZES);
        let [mut from_pod, to_pod] = SIZES;
        from_pod.verified = 110_000;
        assert_eq!(budget.exceeded("6.18 x86_64", &[from_pod.clone(), to_pod.clone()]), Vec::<String>::new());
        from_pod.verified += 1;
        let above = budget.exceeded("6.18 x86_64", &[from_pod.clone(), to_pod.clone()]);
        assert_eq!(above, ["from_pod: verified 110001, the budget is 100000"]);
        // Another kernel walks as it likes, up to half of what any kernel walks.
        assert_eq!(budget.exceeded("5.10 x86_64", &[from_pod.clone(), to_pod]), Vec::<String>::new());
        from_pod.verified = 500_001;
        assert_eq!(budget.exceeded("5.10 x86_64", &[from_pod]).len(), 1);
    }
}
