//! What calls CNI plugins, and what ours calls: a runtime that does with a configuration what libcni and containerd do, and
//! an agent that answers as a test wants.
//!
//! - [`Runtime`]: ADD, DEL, CHECK, GC, STATUS and VERSION through a whole chain, real plugins included.
//! - [`Call`]: one plugin, called with any environment and input, watched and killed at will.
//! - [`FakeAgent`]: the agent's socket without an agent.
//! - [`CniNode`]: a namespace with the directories that a node's runtime has.

mod call;
mod fake;
mod node;
mod runtime;

use std::path::PathBuf;

use anyhow::{Context, Result};

pub use self::call::{Call, Finished, Running};
pub use self::fake::{FakeAgent, Manner};
pub use self::node::{CniNode, FLANNEL, FLANNEL_FILE};
pub use self::runtime::{CniError, Container, Network, Runtime};

/// Where Debian's package containernetworking-plugins puts them.
pub const PLUGINS: &str = "/usr/lib/cni";

/// Environment variable that names our plugin's binary.
pub const BINARY_VARIABLE: &str = "NETPOL_CNI";

/// Our plugin: `$NETPOL_CNI`, or beside this program's own.
///
/// # Errors
/// If it is not there.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // A test lies in target/debug/deps, a program in target/debug.
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("netpol-cni"));
    let found = beside.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!("no netpol-cni beside {}: run `cargo xtask build`, or set {BINARY_VARIABLE}", own.display())
    })
}
