//! Other programs: run them with a word on what is run, or take their output.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

/// The workspace's directory.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |set| root().join(set))
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A line on standard output.
pub(crate) fn say(text: &str) {
    // Nobody is left to tell if the output is closed; the exit code still is.
    let _closed = if STDOUT_IS_TAKEN.load(Ordering::Relaxed) {
        writeln!(io::stderr().lock(), "{text}")
    } else {
        writeln!(io::stdout().lock(), "{text}")
    };
}

/// From here on [`say`] uses standard error: standard output is for a machine.
pub(crate) fn leave_stdout_alone() {
    STDOUT_IS_TAKEN.store(true, Ordering::Relaxed);
}

static STDOUT_IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Runs a program to its end; all its output goes to standard error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    say(&format!("$ {line}"));
    let status = command.stdout(io::stderr()).status().with_context(|| format!("cannot run {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Runs a program in silence: its standard output, if it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it, with the environment that was set for it.
pub(crate) fn line_of(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs().filter(|(name, _)| *name != "PATH") {
        if let Some(value) = value {
            words.push(format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())));
        }
    }
    // The cargo that runs us is known by its full path; `cargo` is what one types.
    let program = Path::new(command.get_program());
    words.push(quoted(&program.file_name().unwrap_or(program.as_os_str()).to_string_lossy()));
    words.extend(command.get_args().map(|argument| quoted(&argument.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    if word.is_empty() || word.contains([' ', '\'', '*', '"', '$']) { format!("'{word}'") } else { word.to_owned() }
}

/// Finds a program in a search path.
pub(crate) fn find(name: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// True for root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The program as root: through sudo if we are not.
pub(crate) fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}
