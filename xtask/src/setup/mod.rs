//! `setup`: from a bare Debian machine with rustup to where everything builds and runs.
//!
//! An [`Item`] is something that must be there: it can be looked for, which is quick, and provided, which is not. Setup
//! looks first and touches only what is missing; `--check` only looks, and prints the line to run. Nothing that is
//! installed is removed or replaced. `demo`, `build` and `test` call [`ensure`], so that nobody has to know this command.

mod linker;
mod rust;
mod system;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::shell;

pub(crate) use self::rust::nightly;
pub(crate) use self::system::{install_packages, look_program};

/// Options of `setup`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Only report what is there and what is missing, with the line to run.
    #[arg(long)]
    check: bool,
}

/// What looking for an item found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It is there; which one.
    Ok(String),
    /// It is missing: why, and the lines that provide it.
    Missing {
        /// What was looked for and how it fell short.
        why: String,
        /// What one would type.
        lines: Vec<String>,
    },
    /// It is missing, and setup cannot provide it: why, and what to do.
    Stuck(String),
}

/// Something that must be there.
pub(crate) struct Item {
    /// In one or two words.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
    /// Looks for it.
    pub(crate) look: fn() -> State,
    /// Brings it here.
    pub(crate) provide: fn() -> Result<()>,
}

/// What to do about what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Say so, with the line to run.
    Report,
    /// Run it.
    Provide,
}

/// In the order of need: each may use those before it.
const ITEMS: &[Item] = &[
    Item { name: "rustup", purpose: "runs two toolchains", look: rust::look_rustup, provide: cannot },
    Item {
        name: "nightly",
        purpose: "compiles the BPF programs",
        look: rust::look_nightly,
        provide: rust::add_nightly,
    },
    Item { name: "rust-src", purpose: "core, for the BPF target", look: rust::look_source, provide: rust::add_source },
    Item { name: "bpf-linker", purpose: "links them", look: linker::look, provide: linker::install },
    Item {
        name: "iproute2",
        purpose: "to look around in the demo",
        look: || system::look("ip", "iproute2"),
        provide: || system::install("iproute2"),
    },
    Item {
        name: "iptables",
        purpose: "kube-proxy's rules in tests",
        look: || system::look("iptables-restore", "iptables"),
        provide: || system::install("iptables"),
    },
    Item {
        name: "nftables",
        purpose: "kube-proxy's rules in tests",
        look: || system::look("nft", "nftables"),
        provide: || system::install("nftables"),
    },
    Item {
        name: "cni plugins",
        purpose: "connect pods in tests of our own",
        // In no PATH: container runtimes look there.
        look: || system::look_for_file("/usr/lib/cni/bridge", "containernetworking-plugins"),
        provide: || system::install("containernetworking-plugins"),
    },
    Item {
        name: "runc",
        purpose: "runs the agent as a container in tests",
        look: || system::look("runc", "runc"),
        provide: || system::install("runc"),
    },
];

/// Runs the command. True if everything is there at the end.
pub(crate) fn run(options: Options) -> Result<bool> {
    provide(ITEMS, if options.check { Mode::Report } else { Mode::Provide })
}

/// Looks for items and says what came of each. True if everything is there at the end.
pub(crate) fn provide(items: &[Item], mode: Mode) -> Result<bool> {
    let mut good = true;
    for item in items {
        let state = if mode == Mode::Report { (item.look)() } else { look_or_provide(item)? };
        good &= matches!(state, State::Ok(_));
        print(item, &state);
        if !good && mode == Mode::Provide {
            break;
        }
    }
    let verdict = match (good, mode) {
        (true, _) => "everything is there",
        (false, Mode::Report) => "something is missing: cargo xtask setup provides what it can",
        (false, Mode::Provide) => "this cannot be provided from here, and what follows needs it: see above",
    };
    shell::say(verdict);
    Ok(good)
}

/// True if every item is there.
pub(crate) fn is_complete(items: &[Item]) -> bool {
    items.iter().all(|item| matches!((item.look)(), State::Ok(_)))
}

/// Provides what is missing, in silence if nothing is.
///
/// # Errors
/// If something cannot be provided.
pub(crate) fn ensure() -> Result<()> {
    if missing()?.is_empty() || run(Options { check: false })? {
        return Ok(());
    }
    bail!("the BPF toolchain is not complete: cargo xtask setup --check says what is missing")
}

/// Names of the items that are not there.
pub(crate) fn missing() -> Result<Vec<&'static str>> {
    Ok(ITEMS.iter().filter(|item| !matches!((item.look)(), State::Ok(_))).map(|item| item.name).collect())
}

/// Where tools are that need not be in `PATH`: our own, and cargo's.
pub(crate) fn tool_directories() -> Vec<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    [Some(linker::own_root()), cargo_home].into_iter().flatten().map(|root| root.join("bin")).collect()
}

fn look_or_provide(item: &Item) -> Result<State> {
    let state = (item.look)();
    let State::Missing { why, .. } = &state else { return Ok(state) };
    shell::say(&format!("{}: {why}", item.name));
    if let Err(error) = (item.provide)() {
        shell::say(&format!("{}: {error:#}", item.name));
    }
    Ok((item.look)())
}

fn print(item: &Item, state: &State) {
    let Item { name, purpose, .. } = item;
    match state {
        State::Ok(which) => shell::say(&format!("ok       {name:11} {which}")),
        State::Missing { why, lines } => {
            shell::say(&format!("missing  {name:11} {purpose}: {why}"));
            lines.iter().for_each(|line| shell::say(&format!("             run: {line}")));
        }
        State::Stuck(why) => shell::say(&format!("missing  {name:11} {purpose}: {why}")),
    }
}

fn cannot() -> Result<()> {
    bail!("this cannot be installed from here")
}
