//! The decision on real packet bytes, told as scenes: the same [`Case`]s run on the host and, as root, in the kernel.
//!
//! - [`cast`]: who takes part, with which addresses, and what the tables say of them.
//! - [`play`]: one scene: the pod sends, the pod gets, policy changes, time passes; each packet has its expected reason.
//! - [`cases`]: the scenes. [`mutate`]: random ones, of frames that are almost valid.
//! - [`kernel`]: the loaded object behind the same few operations; [`privilege`]: whether it can be loaded here at all.
//! - [`cost`]: what the programs cost: verified instructions, sizes, nanoseconds.
//!
//! With a kernel, [`play::Play`] holds every packet of a scene against it: verdict, reason, counters, flows, fragments,
//! event, mark. Start at [`Case`].

pub mod cases;
pub mod cast;
pub mod cost;
pub mod kernel;
pub mod mutate;
pub mod play;
pub mod privilege;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use netpol_common::abi::{Config, Reason};

use self::cast::Family;
use self::kernel::Kernel;
use self::play::Play;

/// One scene.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it shows, as a sentence.
    pub name: &'static str,
    /// In which families.
    pub families: &'static [Family],
    /// `Config` flags in force.
    pub flags: u32,
    /// Why the kernel cannot play it, if it cannot.
    pub host_only: Option<&'static str>,
    /// The scene.
    pub run: fn(&mut Play<'_>) -> Result<()>,
}

impl Case {
    /// A scene of both families under the default settings.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&mut Play<'_>) -> Result<()>) -> Self {
        Self { name, families: &Family::BOTH, flags: 0, host_only: None, run }
    }

    /// The same in one family.
    #[must_use]
    pub const fn only(mut self, family: &'static [Family; 1]) -> Self {
        self.families = family;
        self
    }

    /// The same with flags set.
    #[must_use]
    pub const fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    /// The same without a kernel, and why.
    #[must_use]
    pub const fn host_only(mut self, why: &'static str) -> Self {
        self.host_only = Some(why);
        self
    }

    /// The settings of its scene: one event for each drop, so that the kernel's can be held against the host's.
    #[must_use]
    pub fn config(&self, defaults: Config) -> Config {
        cast::with_service_ranges(Config {
            flags: self.flags,
            event_interval: 0,
            events_per_second: u32::MAX,
            ..defaults
        })
    }

    /// Plays the scene in one family, and returns the reasons that packets had.
    ///
    /// # Errors
    /// The first thing that was not as it should be.
    pub fn play(&self, family: Family, kernel: Option<&mut Kernel>) -> Result<BTreeSet<Reason>> {
        let label = || format!("{} ({family})", self.name);
        let mut play = Play::new(family, self.config(Config::for_hz(250)), kernel).with_context(label)?;
        (self.run)(&mut play).with_context(label)?;
        Ok(play.reasons)
    }
}
