//! Puts the programs on interfaces and takes them off again.
//!
//! In: interface indexes and what each interface is. Out: its hooks in place, or why not. TCX links (kernel 6.6) are pinned and taken over by the
//! next agent with one atomic swap; with clsact the filter of our own priority and handle is replaced in place. Foreign
//! programs, filters and qdiscs are left alone. It knows no pods, writes no map, and acts in the network namespace of the
//! calling thread. Start at [`Hooks::attach`].

mod left;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use netpol_common::abi::{Hook, map};

use super::loader::Programs;
use super::pins::{PinDir, PinError, program_name};
use super::{sys, tc};

pub use left::cleanup;
use left::{collect_vanished, detach_clsact, detach_filters, detach_tcx, live_link, tcx_programs};

/// What an interface is to the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A pod is behind it.
    Pod,
    /// Packets leave the node through it.
    Uplink,
}

impl Role {
    /// Its hooks, in the order in which they are attached: what reaches a pod is judged before the pod may answer.
    #[must_use]
    pub const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Pod => &[Hook::ToPod, Hook::FromPod],
            Self::Uplink => &[Hook::ToUplink],
        }
    }

    /// The hooks that an interface of this role has not.
    const fn others(self) -> &'static [Hook] {
        match self {
            Self::Pod => Self::Uplink.hooks(),
            Self::Uplink => Self::Pod.hooks(),
        }
    }
}

/// Every hook, in the order in which they are attached.
const HOOKS: [Hook; 3] = [Hook::ToPod, Hook::FromPod, Hook::ToUplink];
/// A hook of each direction: what the clsact qdisc can hold filters at.
const DIRECTIONS: [Hook; 2] = [Hook::ToPod, Hook::FromPod];
/// Names the qdisc in messages.
const QDISC: Hook = Hook::ToPod;

/// How programs are to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX only.
    Tcx,
    /// clsact only.
    Clsact,
}

impl FromStr for AttachMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(format!("{other:?} is none of auto, tcx, clsact")),
        }
    }
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A pinned TCX link at each hook.
    Tcx,
    /// A filter on the clsact qdisc at each hook.
    Clsact,
}

/// Why an interface has not its hooks.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface is gone: nothing to do.
    #[error("interface {ifindex} is gone")]
    Gone {
        /// Its index.
        ifindex: u32,
    },
    /// The kernel has no TCX, and clsact was ruled out.
    #[error(
        "cannot attach {} to interface {ifindex}: the kernel lacks TCX (needs 6.6); start with --attach=auto or --attach=clsact",
        program_name(*.hook)
    )]
    NoTcx {
        /// Interface index.
        ifindex: u32,
        /// The hook.
        hook: Hook,
    },
    /// Somebody else's filter sits at our priority and handle.
    #[error(
        "cannot attach {} to interface {ifindex}: another program's filter has our priority and handle; see \
         `tc filter show dev <interface> ingress|egress`",
        program_name(*.hook)
    )]
    Taken {
        /// Interface index.
        ifindex: u32,
        /// The hook.
        hook: Hook,
    },
    /// The interface has an ingress qdisc, beside which there is no room for clsact.
    #[error(
        "cannot attach to interface {ifindex}: it has an ingress qdisc, which has no hook for egress; replace it by a clsact \
         qdisc (see `tc qdisc show dev <interface>`), or use a kernel with TCX (6.6)"
    )]
    IngressQdisc {
        /// Interface index.
        ifindex: u32,
    },
    /// The kernel refused.
    #[error("cannot {operation} {} at interface {ifindex}: {source}; needs CAP_BPF and CAP_NET_ADMIN", program_name(*.hook))]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Interface index.
        ifindex: u32,
        /// The hook.
        hook: Hook,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The interfaces are unknown.
    #[error("cannot list the interfaces of this node: {0}")]
    Interfaces(#[source] io::Error),
    /// The pin directory failed.
    #[error(transparent)]
    Pins(#[from] PinError),
}

/// How an interface is attached now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// TCX or clsact.
    pub mechanism: Mechanism,
    /// Hooks that were taken over from an earlier agent; the others are new.
    pub adopted: Vec<Hook>,
    /// Ids of programs that run before ours, by hook: one that returns `TC_ACT_OK` lets a packet pass unjudged. With
    /// clsact this is not known and empty.
    pub ahead: Vec<(Hook, Vec<u32>)>,
}

/// The programs, and where they go.
#[derive(Debug)]
pub struct Hooks {
    programs: Programs,
    pins: PinDir,
    mode: AttachMode,
}

impl Hooks {
    /// Nothing is attached yet.
    #[must_use]
    pub const fn new(programs: Programs, pins: PinDir, mode: AttachMode) -> Self {
        Self { programs, pins, mode }
    }

    /// Puts the hooks of its role on an interface, or this agent's programs into hooks that are there; at no moment a packet
    /// sees neither. Hooks of another role go once those of this one are there. Write a pod's endpoint first: its hooks
    /// drop everything without one.
    ///
    /// # Errors
    /// [`AttachError::Gone`] if the interface vanished meanwhile; else what the kernel refused. A hook that is attached
    /// stays so.
    pub fn attach(&mut self, ifindex: u32, role: Role) -> Result<Attachment, AttachError> {
        let mut attachment = match self.mode {
            AttachMode::Clsact => self.attach_clsact(ifindex, role)?,
            AttachMode::Tcx => self.attach_tcx(ifindex, role)?,
            AttachMode::Auto => match self.attach_tcx(ifindex, role) {
                Err(AttachError::NoTcx { .. }) => {
                    tracing::info!("the kernel lacks TCX (needs 6.6): attaching with clsact");
                    self.mode = AttachMode::Clsact;
                    self.attach_clsact(ifindex, role)?
                }
                other => other?,
            },
        };
        // The other mechanism may be left from an agent that was started with another mode.
        match attachment.mechanism {
            Mechanism::Tcx => {
                detach_tcx(&self.pins, ifindex, role.others())?;
                detach_clsact(&self.pins, ifindex)?;
            }
            Mechanism::Clsact => {
                detach_filters(ifindex, role.others())?;
                detach_tcx(&self.pins, ifindex, &HOOKS)?;
            }
        }
        for &hook in role.hooks() {
            let ahead = self.ahead(ifindex, hook)?;
            if !ahead.is_empty() {
                attachment.ahead.push((hook, ahead));
            }
        }
        Ok(attachment)
    }

    /// Takes all hooks off an interface; absent hooks and a vanished interface are fine.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        detach_tcx(&self.pins, ifindex, &HOOKS)?;
        detach_clsact(&self.pins, ifindex)
    }

    /// Every interface of this network namespace.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub fn interfaces(&self) -> Result<BTreeSet<u32>, AttachError> {
        left::interfaces()
    }

    /// Removes pins that are about interfaces which are gone.
    ///
    /// # Errors
    /// If the pin directory cannot be read or cleaned.
    pub fn forget_vanished(&self) -> Result<(), AttachError> {
        collect_vanished(&self.pins)
    }

    /// Interfaces on which an earlier agent left something; those that are gone are forgotten first.
    ///
    /// # Errors
    /// If the pin directory cannot be read or cleaned.
    pub fn left_by_earlier_agent(&self) -> Result<BTreeSet<u32>, AttachError> {
        self.forget_vanished()?;
        Ok(self.pins.interfaces()?)
    }

    /// True if a program of an earlier agent, or of this one, sits at a hook of this role of this interface of this network
    /// namespace. It was attached to this very interface, as it ends with it; an interface index alone may have been another's.
    ///
    /// # Errors
    /// If the kernel refuses to say.
    pub fn is_live(&self, ifindex: u32, role: Role) -> Result<bool, AttachError> {
        left::is_live(&self.pins, ifindex, role)
    }

    /// True if our programs are at the hooks of an interface of this role.
    ///
    /// # Errors
    /// If the kernel refuses to say.
    pub fn is_attached(&self, ifindex: u32, role: Role) -> Result<bool, AttachError> {
        for &hook in role.hooks() {
            let wanted = self.programs.at(hook).id;
            let tcx = tcx_programs(ifindex, hook)?.iter().any(|program| program.id == wanted);
            let own = tc::own_filter(ifindex, hook).map_err(refused("look for the filter of", ifindex, hook))?;
            if !tcx && own != (tc::Filter::Ours { program: wanted }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn attach_tcx(&self, ifindex: u32, role: Role) -> Result<Attachment, AttachError> {
        let mut adopted = Vec::new();
        for &hook in role.hooks() {
            if self.adopt_link(ifindex, hook)? {
                adopted.push(hook);
            } else {
                self.create_link(ifindex, hook)?;
            }
        }
        Ok(Attachment { mechanism: Mechanism::Tcx, adopted, ahead: Vec::new() })
    }

    /// Swaps our program into the pinned link, if there is a live one.
    fn adopt_link(&self, ifindex: u32, hook: Hook) -> Result<bool, AttachError> {
        let Some(link) = live_link(&self.pins, ifindex, hook)? else { return Ok(false) };
        match sys::link_update(link.as_fd(), self.programs.at(hook).fd.as_fd()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                // The interface vanished just now.
                self.pins.remove(&self.pins.link(ifindex, hook))?;
                Ok(false)
            }
            Err(error) => Err(refused("swap", ifindex, hook)(error)),
        }
    }

    fn create_link(&self, ifindex: u32, hook: Hook) -> Result<(), AttachError> {
        let link =
            sys::tcx_attach_first(self.programs.at(hook).fd.as_fd(), ifindex, hook).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EINVAL) => AttachError::NoTcx { ifindex, hook },
                    _ => refused("attach", ifindex, hook)(error),
                }
            })?;
        // Unpinned, the link would end with this process; on failure it ends here.
        sys::pin(link.as_fd(), &self.pins.link(ifindex, hook)).map_err(refused("pin the link of", ifindex, hook))
    }

    fn attach_clsact(&self, ifindex: u32, role: Role) -> Result<Attachment, AttachError> {
        let mut adopted = Vec::new();
        self.add_clsact(ifindex)?;
        for &hook in role.hooks() {
            match tc::own_filter(ifindex, hook).map_err(refused("look for the filter of", ifindex, hook))? {
                tc::Filter::Foreign => return Err(AttachError::Taken { ifindex, hook }),
                tc::Filter::Ours { .. } => adopted.push(hook),
                tc::Filter::Absent => {}
            }
            tc::set_filter(ifindex, hook, self.programs.at(hook).fd.as_fd())
                .map_err(refused("attach", ifindex, hook))?;
        }
        Ok(Attachment { mechanism: Mechanism::Clsact, adopted, ahead: Vec::new() })
    }

    /// Makes the qdisc, marked as ours before it is there: whoever finds the one without the other can tell.
    fn add_clsact(&self, ifindex: u32) -> Result<(), AttachError> {
        let mark = self.pins.clsact_mark(ifindex);
        let marked = mark.exists();
        if !marked {
            // Any small map will do.
            let pinned = sys::open_pin(&self.pins.map(map::EVENTS_LOST)).and_then(|any| sys::pin(any.as_fd(), &mark));
            pinned.map_err(refused("mark the qdisc of", ifindex, QDISC))?;
        }
        let added = tc::add_clsact(ifindex).map_err(refused("add the clsact qdisc for", ifindex, QDISC));
        if !marked && !matches!(added, Ok(tc::Added::New)) {
            self.pins.remove(&mark)?;
        }
        match added? {
            tc::Added::New | tc::Added::Present => Ok(()),
            tc::Added::Blocked => Err(AttachError::IngressQdisc { ifindex }),
        }
    }

    fn ahead(&self, ifindex: u32, hook: Hook) -> Result<Vec<u32>, AttachError> {
        let ours = self.programs.at(hook).id;
        let programs: Vec<u32> = tcx_programs(ifindex, hook)?.iter().map(|program| program.id).collect();
        if !programs.contains(&ours) {
            // With clsact ours runs after every TCX program.
            return Ok(programs);
        }
        Ok(programs.into_iter().take_while(|program| *program != ours).collect())
    }
}

fn refused(operation: &'static str, ifindex: u32, hook: Hook) -> impl FnOnce(io::Error) -> AttachError {
    move |source| match source.raw_os_error() {
        Some(libc::ENODEV) => AttachError::Gone { ifindex },
        _ => AttachError::Refused { operation, ifindex, hook, source },
    }
}

#[cfg(test)]
mod tests;
