//! `cargo xtask verifier-stats`: what the verifier walks, how large the programs are, what a packet costs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use netpol_agent::datapath::loader::default_config;
use netpol_tests::packet::cost::budget::Budget;
use netpol_tests::packet::cost::{established, load, sizes};
use netpol_tests::packet::privilege::object;

/// Measures the BPF programs on this kernel. Exits 0 only if they are within their budget.
#[derive(Debug, Parser)]
#[command(name = "netpol-verifier-stats")]
struct Arguments {
    /// The committed budget.
    #[arg(long)]
    budget: PathBuf,
    /// Make what is measured the budget.
    #[arg(long)]
    bless: bool,
    /// Do not measure nanoseconds.
    #[arg(long)]
    sizes_only: bool,
}

#[expect(clippy::print_stdout, reason = "a command's own output")]
fn main() -> Result<ExitCode> {
    let Arguments { budget: path, bless, sizes_only } = Arguments::parse();
    let mut kernel = load(&object()?, default_config()?)?;
    let measured = sizes(&kernel)?;
    let release = release()?;
    println!("kernel {release}");
    println!("{:24} {:>9} {:>11} {:>8}", "program", "verified", "translated", "jited");
    for size in &measured {
        println!("{:24} {:>9} {:>11} {:>8}", size.program, size.verified, size.translated, size.jited);
    }
    if !sizes_only {
        println!("\n{:24} {:>9} {:>11}", "packet", "net ns", "trivial ns");
        for cost in established(&mut kernel)? {
            println!("{:24} {:>9.1} {:>11.1}", cost.packet, cost.net, cost.trivial);
        }
    }
    if bless {
        std::fs::write(&path, Budget::of(&release, &measured).text())
            .with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let above = Budget::parse(&text)?.exceeded(&release, &measured);
    for line in &above {
        println!("{line}; if that is how it must be, `cargo xtask verifier-stats --bless`");
    }
    Ok(if above.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Kernel version (major and minor) and architecture.
fn release() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let version: Vec<&str> = release.trim().split('.').take(2).collect();
    Ok(format!("{} {}", version.join("."), std::env::consts::ARCH))
}
