//! Embeds the BPF object named by `NETPOL_BPF_OBJECT` into the agent, or an empty stub where it is not set, so that
//! `cargo check` and the pure tests need no BPF toolchain. A stubbed agent refuses to start (`datapath::loader`).

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const OBJECT: &str = "NETPOL_BPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let embedded = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?).join("netpol.bpf.o");
    match env::var_os(OBJECT).filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::copy(&path, &embedded).map_err(|error| {
                format!(
                    "cannot embed the BPF object {} ({OBJECT}): {error}; build it with `cargo xtask build-ebpf`",
                    path.display()
                )
            })?;
        }
        None => fs::write(&embedded, [])?,
    }
    Ok(())
}
