//! One call of one plugin: a process with an environment and an input.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Namespace;

/// A plugin that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What a plugin is called with. Nothing of the caller's own environment but `PATH` gets through.
#[derive(Clone, Debug)]
pub struct Call {
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
    input: Vec<u8>,
}

impl Call {
    /// A call of `program` with this verb.
    #[must_use]
    pub fn new(program: &Path, verb: &str) -> Self {
        Self { program: program.to_owned(), environment: Vec::new(), input: Vec::new() }.with("CNI_COMMAND", verb)
    }

    /// Sets a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the standard input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Starts the plugin in a namespace, or in this process's, and gives it nothing yet.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn start(&self, namespace: Option<&Namespace>) -> Result<Running> {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A child is in the namespace of the thread that makes it.
        let child = match namespace {
            Some(namespace) => namespace.enter(|| command.spawn())?,
            None => command.spawn(),
        };
        let mut child = child.with_context(|| format!("cannot run {}", self.program.display()))?;
        let stdin = child.stdin.take();
        Ok(Running { child, stdin, input: self.input.clone() })
    }

    /// Calls the plugin and waits for it.
    ///
    /// # Errors
    /// If it cannot be run or hangs.
    pub fn run(&self, namespace: Option<&Namespace>) -> Result<Finished> {
        self.start(namespace)?.finish()
    }
}

/// A plugin at work.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    input: Vec<u8>,
}

impl Running {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Gives it its input, and the end of it.
    ///
    /// # Errors
    /// If it went away without reading.
    pub fn feed(&mut self) -> Result<()> {
        if let Some(mut stdin) = self.stdin.take() {
            match stdin.write_all(&self.input) {
                // It had seen enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Kills it, as the kernel does when memory is short.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Gives it its input and waits for it to end.
    ///
    /// # Errors
    /// If it hangs.
    pub fn finish(mut self) -> Result<Finished> {
        let started = Instant::now();
        self.feed()?;
        let mut stdout = self.child.stdout.take().context("its output is a pipe")?;
        let mut stderr = self.child.stderr.take().context("its errors are a pipe")?;
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text).map(|_| text)
        });
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if started.elapsed() > LIMIT {
                self.child.kill()?;
                self.child.wait()?;
                bail!("the plugin did not end within {LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let output = reader.join().map_err(|_panic| anyhow::anyhow!("the reader of its output panicked"))??;
        let mut notes = String::new();
        stderr.read_to_string(&mut notes)?;
        Ok(Finished { status, output: String::from_utf8(output)?, notes, took: started.elapsed() })
    }
}

/// A plugin that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed to standard output.
    pub output: String,
    /// What it printed to standard error.
    pub notes: String,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Its output as JSON; null if there is none.
    ///
    /// # Errors
    /// If it is something else.
    pub fn json(&self) -> Result<Value> {
        if self.output.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.output).with_context(|| format!("no JSON: {:?}; {}", self.output, self.notes))
    }
}
