//! What the image is made of, as CycloneDX: every crate that is linked into a program or into the BPF object, and Rust's std.
//!
//! In: [`Parts`]. Out: JSON. It goes into the image as well as beside it: a static program tells a scanner
//! nothing, and an archive is passed on without the file that lay beside it. Nothing in it depends on time or machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::archive::hex;
use super::parts::{BPF, Crate, PROGRAMS, Package, Parts};
use super::programs;
use crate::shell;

/// The list of these parts.
///
/// # Errors
/// If a linked crate says nothing of its licence.
pub(super) fn of(parts: &Parts) -> Result<Vec<u8>> {
    let checksums = checksums(&fs::read_to_string(shell::root().join("Cargo.lock"))?);
    let compiler = programs::rustc(&["--version"])?;
    // As `rustc 1.95.0 (59807616e 2026-04-14)`.
    let compiler = compiler.split_whitespace().nth(1).context("rustc does not say its version")?.to_owned();
    let mut bom = bom(parts, &checksums, &compiler)?;
    let serial = serial(&serde_json::to_vec(&bom)?);
    if let Some(bom) = bom.as_object_mut() {
        bom.insert("serialNumber".to_owned(), json!(serial));
    }
    let mut text = serde_json::to_vec_pretty(&bom)?;
    text.push(b'\n');
    Ok(text)
}

/// SHA-256 of the crates that come from a registry, by name and version.
fn checksums(lock: &str) -> BTreeMap<Crate, String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|block| Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?)))
        .collect()
}

fn bom(parts: &Parts, checksums: &BTreeMap<Crate, String>, compiler: &str) -> Result<Value> {
    let packages = parts.packages();
    let std = format!("rust-std@{compiler}");
    let mut components = vec![json!({
        "type": "library", "bom-ref": std, "name": "rust-std", "version": compiler,
        "description": "Rust's standard library and musl, as the toolchain brings them",
        "licenses": [{"expression": "(MIT OR Apache-2.0) AND MIT"}],
    })];
    for package in &packages {
        components.push(component(package, checksums)?);
    }
    let mut dependencies = dependencies(parts, &packages);
    let programs: Vec<&str> =
        packages.iter().filter(|it| it.name == PROGRAMS || it.name == BPF.0).map(|it| it.id.as_str()).collect();
    let references: BTreeMap<&str, String> = packages.iter().map(|it| (it.id.as_str(), reference(it))).collect();
    let mut roots: Vec<&str> = programs.iter().filter_map(|id| references.get(id)).map(String::as_str).collect();
    roots.push(&std);
    dependencies.push(json!({"ref": "netpol", "dependsOn": roots}));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container", "bom-ref": "netpol", "name": "netpol", "version": env!("CARGO_PKG_VERSION"),
                "licenses": [{"expression": env!("CARGO_PKG_LICENSE")}],
            },
            "tools": {"components": [{"type": "application", "name": "cargo xtask image"}]},
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn component(package: &Package, checksums: &BTreeMap<Crate, String>) -> Result<Value> {
    let Package { name, version, .. } = package;
    let license = package.license.as_ref().with_context(|| format!("{name} {version} says nothing of its licence"))?;
    let mut component = json!({
        "type": "library", "bom-ref": reference(package), "name": name, "version": version,
        // Old crates write a slash for "or".
        "licenses": [{"expression": license.replace('/', " OR ")}],
    });
    let Some(fields) = component.as_object_mut() else { return Ok(component) };
    if package.source.is_some() {
        fields.insert("purl".to_owned(), json!(reference(package)));
    }
    if let Some(checksum) = checksums.get(&(name.clone(), version.clone())) {
        fields.insert("hashes".to_owned(), json!([{"alg": "SHA-256", "content": checksum}]));
    }
    if let Some(repository) = &package.repository {
        fields.insert("externalReferences".to_owned(), json!([{"type": "vcs", "url": repository}]));
    }
    Ok(component)
}

/// A crate's package URL. The workspace's own are in no registry, where somebody else may have their names.
fn reference(package: &Package) -> String {
    let Package { name, version, source, .. } = package;
    let place = if source.is_some() { "pkg:cargo/" } else { "" };
    format!("{place}{name}@{version}")
}

fn dependencies(parts: &Parts, packages: &[&Package]) -> Vec<Value> {
    let references: BTreeMap<&str, String> = packages.iter().map(|it| (it.id.as_str(), reference(it))).collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in parts.nodes() {
        let Some(from) = references.get(node.id.as_str()) else { continue };
        let ordinary = node.deps.iter().filter(|it| it.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        let to = ordinary.filter_map(|it| references.get(it.pkg.as_str())).map(String::as_str).collect();
        edges.insert(from, to);
    }
    edges.into_iter().map(|(from, to)| json!({"ref": from, "dependsOn": to})).collect()
}

/// The list's own number, made from what it says: a random one would make every build another.
fn serial(bytes: &[u8]) -> String {
    let mut number: Vec<u8> = Sha256::digest(bytes).into_iter().take(16).collect();
    for (place, keep, set) in [(6, 0x0f, 0x80), (8, 0x3f, 0x80)] {
        if let Some(byte) = number.get_mut(place) {
            *byte = (*byte & keep) | set;
        }
    }
    let digits = hex(&number);
    let part = |from, to| digits.get(from..to).unwrap_or_default();
    format!("urn:uuid:{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::arch::Arch;

    #[test]
    fn what_is_linked_is_listed_and_what_only_builds_is_not() {
        let bom: Value = serde_json::from_slice(&of(&Parts::of(Arch::Amd64).unwrap()).unwrap()).unwrap();
        let names: BTreeSet<&str> =
            bom["components"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        for there in ["netpol-agent", "kube", "aya", "aya-ebpf", "network-types", "rust-std", "mimalloc"] {
            assert!(names.contains(there), "{there} is linked and not listed");
        }
        for not_there in ["serde_derive", "proptest", "netpol-tests", "xtask", "cc"] {
            assert!(!names.contains(not_there), "{not_there} is listed and not linked");
        }
        let references: BTreeSet<&str> =
            bom["components"].as_array().unwrap().iter().map(|it| it["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(references.len(), bom["components"].as_array().unwrap().len(), "two of one name");
        for edge in bom["dependencies"].as_array().unwrap() {
            for to in edge["dependsOn"].as_array().unwrap() {
                assert!(references.contains(to.as_str().unwrap()), "{to} is not listed");
            }
        }
    }

    #[test]
    fn a_checksum_belongs_to_its_crate() {
        let lock = "version = 4\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\n\
                    version = \"2.0.0\"\nchecksum = \"00ff\"\n";
        let found = checksums(lock);
        assert_eq!(found, BTreeMap::from([(("b".to_owned(), "2.0.0".to_owned()), "00ff".to_owned())]));
    }
}
