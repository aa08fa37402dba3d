//! Loads the BPF object: settings and sizes in, verified programs and pinned maps out.
//!
//! Maps that are pinned already in the layout of this version are adopted with all they hold, so that a restart or an upgrade
//! forgets no flow and changes no verdict; the others are made anew (`takeover` says what carries over). Nothing is attached
//! here. Start at [`open`].
//!
//! Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON` only.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use aya::maps::{Array, MapData, MapInfo, RingBuf};
use aya::programs::{ProgramError, ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use netpol_common::abi::{Config, Hook, map};

use super::pins::{PinDir, PinError, PinLock, program_name};
use super::sizing::{KeptSize, Sizing, SizingError};
use super::store::{KernelStore, OpenError};
use super::sys;
use super::takeover::{Others, TakeoverError, carry_revisions};
use crate::problem::chain;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol.bpf.o"));

/// The map that only a debug build of the object has.
const LOG_MAP: &str = "AYA_LOGS";
/// How often the debug log is read.
const LOG_INTERVAL: Duration = Duration::from_millis(50);
/// Lines of the verifier's log that an error carries: the end says what was refused.
const VERIFIER_LINES: usize = 30;

/// Why the datapath cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The agent was built without the BPF object.
    #[error(
        "this netpol-agent was built without its BPF programs and enforces nothing; build it with `cargo xtask build`"
    )]
    Stub,
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A pinned map cannot be adopted.
    #[error(transparent)]
    Sizing(#[from] SizingError),
    /// A map of the store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// What another version left cannot be read.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// The kernel's tick rate is unknown.
    #[error("cannot read the kernel's tick rate: {0}")]
    Ticks(#[source] io::Error),
    /// The object could not be parsed, or a map could not be made.
    #[error("cannot set up the maps of the BPF object: {}; needs CAP_BPF, and on kernels before 5.11 CAP_SYS_RESOURCE", chain(.source))]
    Object {
        /// What aya says.
        source: EbpfError,
    },
    /// The object has no such program, or it is of another type.
    #[error("the BPF object has no TC program {program}; build the agent again with `cargo xtask build`")]
    MissingProgram {
        /// Name looked for.
        program: &'static str,
    },
    /// The verifier refused a program.
    #[error(
        "the kernel refused the program {program}: {source}; it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON \
         (`netpol-agent preflight` says which is missing){}", last_words(.log)
    )]
    Refused {
        /// Program name.
        program: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// A program could not be loaded for another reason.
    #[error("cannot load the program {program}: {}", chain(.source))]
    Program {
        /// Program name.
        program: &'static str,
        /// What aya says.
        source: ProgramError,
    },
    /// The programs' secret could not be set.
    #[error("cannot set the secret of the programs' hashes in the map SECRET: {}; needs CAP_BPF", chain(.source))]
    Secret {
        /// What aya says.
        source: aya::maps::MapError,
    },
    /// The event ring could not be opened.
    #[error("cannot open the pinned map {path}: {}", chain(.source))]
    Events {
        /// Its pin.
        path: PathBuf,
        /// What aya says.
        source: aya::maps::MapError,
    },
}

/// A program that is refused for a capability alone never comes to the verifier.
fn last_words(log: &str) -> String {
    if log.trim().is_empty() { String::new() } else { format!("; the verifier's last words:\n{log}") }
}

/// What to load, and where to pin it.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Mount point of the BPF file system.
    pub bpffs: PathBuf,
    /// Settings of the programs; `slots` and what a pod may have are taken from the sizes in force.
    pub config: Config,
    /// Sizes of maps that are not pinned yet.
    pub sizing: Sizing,
}

/// The verified programs, by hook.
#[derive(Debug)]
pub struct Programs {
    from_pod: Program,
    to_pod: Program,
    to_uplink: Program,
}

/// One verified program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) fd: ProgramFd,
    pub(super) id: u32,
}

impl Programs {
    pub(super) const fn at(&self, hook: Hook) -> &Program {
        match hook {
            Hook::FromPod => &self.from_pod,
            Hook::ToPod => &self.to_pod,
            Hook::ToUplink => &self.to_uplink,
        }
    }
}

/// Everything that [`open`] yields.
pub struct Datapath {
    /// The programs, for `attach`.
    pub programs: Programs,
    /// The maps.
    pub store: KernelStore,
    /// The ring of events.
    pub events: RingBuf<MapData>,
    /// Where all is pinned.
    pub pins: PinDir,
    /// Keeps other agents away from the pins for as long as it lives.
    pub lock: PinLock,
    /// The settings in force.
    pub config: Config,
    /// The sizes in force.
    pub sizing: Sizing,
    /// Maps that kept a size other than the one asked for: worth a warning each.
    pub kept_sizes: Vec<KeptSize>,
    /// True if maps were pinned by an earlier agent: what they hold is live.
    pub adopted: bool,
    /// Maps of other layouts that an agent of another version left.
    pub others: Others,
    /// What is lost as they are of other layouts: worth a warning each.
    pub losses: Vec<&'static str>,
    /// With a debug build of the object: forwards what the programs log to `tracing`. Spawn it; it never ends.
    pub debug_log: Option<DebugLog>,
}

/// A task that reads the programs' own log.
pub type DebugLog = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The embedded BPF object.
///
/// # Errors
/// [`LoadError::Stub`] if the agent was built without one.
pub fn embedded_object() -> Result<&'static [u8], LoadError> {
    if OBJECT.is_empty() { Err(LoadError::Stub) } else { Ok(OBJECT) }
}

/// The default settings on this kernel.
///
/// # Errors
/// If the tick rate cannot be read.
pub fn default_config() -> Result<Config, LoadError> {
    sys::ticks_per_second().map(Config::for_hz).map_err(LoadError::Ticks)
}

/// Loads the embedded object, adopting what is pinned.
///
/// # Errors
/// If the agent is stubbed, the pin directory is unusable or in use, or the kernel refuses a map or program.
pub fn open(options: &LoadOptions) -> Result<Datapath, LoadError> {
    let object = embedded_object()?;
    let pins = PinDir::create(&options.bpffs)?;
    let lock = pins.lock()?;
    let others = Others::find(&pins)?;
    let losses = others.losses();
    let has_own = pinned_info(&pins.map(map::POLICY_WORDS)).is_some();
    let adopted = has_own || !others.is_empty();
    let mut asked = options.sizing.clone();
    // Slots carry over, so there must be as many.
    asked.slots = others.slots().filter(|_| !has_own).unwrap_or(asked.slots);
    let (sizing, mut kept_sizes) = asked.of_pins(|name| pinned_info(&pins.map(name)))?;
    if asked.slots != options.sizing.slots {
        kept_sizes.push(KeptSize { map: map::POLICY_WORDS, kept: asked.slots, wanted: options.sizing.slots });
    }
    let mut ebpf = load_object(object, &options.config, &sizing, Some(&pins))?;
    let programs = Programs {
        from_pod: load_program(&mut ebpf, program_name(Hook::FromPod))?,
        to_pod: load_program(&mut ebpf, program_name(Hook::ToPod))?,
        to_uplink: load_program(&mut ebpf, program_name(Hook::ToUplink))?,
    };
    let debug_log = debug_log(&mut ebpf);
    keep_secret(&mut ebpf)?;
    let events = open_events(&pins)?;
    let mut store = KernelStore::open(&pins)?;
    carry_revisions(&mut store, &others)?;
    let config = options.config;
    Ok(Datapath { programs, store, events, pins, lock, config, sizing, kept_sizes, adopted, others, losses, debug_log })
}

/// Parses an object, sets its settings and sizes, and makes its maps: pinned and adopted below `pins`, or private to the
/// caller without. No program is verified yet.
///
/// # Errors
/// If the object is not a BPF object of ours or the kernel refuses a map.
pub fn load_object(object: &[u8], config: &Config, sizing: &Sizing, pins: Option<&PinDir>) -> Result<Ebpf, LoadError> {
    let config = Config {
        slots: sizing.slots,
        flows_per_pod: sizing.flows_per_pod,
        unanswered_per_pod: sizing.unanswered_per_pod,
        backends_per_pod: sizing.backends_per_pod,
        ..*config
    };
    let mut loader = EbpfLoader::new();
    loader.override_global(map::CONFIG, &config, true);
    for spec in sizing.maps() {
        loader.map_max_entries(spec.name, spec.entries);
        if let Some(pins) = pins {
            loader.map_pin_path(spec.name, pins.map(spec.name));
        }
    }
    loader.load(object).map_err(|source| LoadError::Object { source })
}

/// Fills the secret that the programs' hashes are keyed with, unless an earlier agent has: what is pinned was hashed with it.
fn keep_secret(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let failed = |source| LoadError::Secret { source };
    let Some(map) = ebpf.map_mut(map::SECRET) else { return Ok(()) };
    let mut secret: Array<_, [u32; 2]> = Array::try_from(map).map_err(failed)?;
    if secret.get(&0, 0).map_err(failed)? != [0; 2] {
        return Ok(());
    }
    // Seeded by the operating system; each hasher of a new state has its own keys.
    let random = RandomState::new().build_hasher().finish();
    let [a, b, c, d, e, f, g, h] = random.to_ne_bytes();
    secret.set(0, [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]) | 1], 0).map_err(failed)
}

fn load_program(ebpf: &mut Ebpf, program: &'static str) -> Result<Program, LoadError> {
    let missing = LoadError::MissingProgram { program };
    let Some(found) = ebpf.program_mut(program) else { return Err(missing) };
    let Ok(classifier) = <&mut SchedClassifier>::try_from(found) else { return Err(missing) };
    let other = |source| LoadError::Program { program, source };
    match classifier.load() {
        Ok(()) => {}
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = tail(&verifier_log.to_string(), VERIFIER_LINES);
            return Err(LoadError::Refused { program, source: io_error, log });
        }
        Err(source) => return Err(other(source)),
    }
    let id = classifier.info().map_err(other)?.id();
    let fd = classifier.fd().map_err(other)?.try_clone().map_err(|error| other(ProgramError::IOError(error)))?;
    Ok(Program { fd, id })
}

fn debug_log(ebpf: &mut Ebpf) -> Option<DebugLog> {
    ebpf.map(LOG_MAP)?;
    let mut logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "cannot open the log of the debug programs");
            return None;
        }
    };
    Some(Box::pin(async move {
        let mut tick = tokio::time::interval(LOG_INTERVAL);
        loop {
            tick.tick().await;
            logger.flush();
        }
    }))
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.iter().skip(all.len().saturating_sub(lines)).copied().collect::<Vec<_>>().join("\n")
}

fn pinned_info(path: &Path) -> Option<MapInfo> {
    // A pin that cannot be opened is reported when the loader comes to it; here it only has no size to keep.
    path.exists().then(|| MapInfo::from_pin(path).ok()).flatten()
}

fn open_events(pins: &PinDir) -> Result<RingBuf<MapData>, LoadError> {
    let path = pins.map(map::EVENTS);
    let open = || RingBuf::try_from(aya::maps::Map::from_map_data(MapData::from_pin(&path)?)?);
    open().map_err(|source| LoadError::Events { path: path.clone(), source })
}

#[cfg(test)]
mod tests;
