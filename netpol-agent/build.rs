//! Embeds the BPF object named by `NETPOL_BPF_OBJECT` into the agent, or an empty stub where it is not set, so that
//! `cargo check` and the pure tests need no BPF toolchain. A stubbed agent refuses to start (`datapath::loader`).
//!
//! Compiles the Hubble API's proto files into Rust, without an external compiler, and keeps their descriptors beside.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;

const OBJECT: &str = "NETPOL_BPF_OBJECT";
const PROTO_FILES: [&str; 4] = ["flow.proto", "relay.proto", "observer.proto", "peer.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    embed_object(&out)?;
    compile_protos(&out)
}

fn embed_object(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let embedded = out.join("netpol.bpf.o");
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

fn compile_protos(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTO_FILES, [Path::new("proto")])?;
    fs::write(out.join("hubble.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
