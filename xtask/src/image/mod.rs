//! `image`: the container image as an archive, without a container daemon.
//!
//! In: the sources. Out: `FILE`, an OCI archive that `ctr images import`, `docker load` and `kind load image-archive` take,
//! and beside it `FILE.cdx.json`, the list of what it is made of. The steps are `arch` (what is needed to build), `programs`
//! (build and look at them), `parts` (which crates are in them), `sbom` and `licences` (of these), `layer`, `archive` (bytes to
//! bytes), `reproducible` (all of it again, elsewhere). The same sources and toolchain give the same bytes.

mod arch;
mod archive;
mod layer;
mod licences;
mod parts;
mod programs;
mod reference;
mod reproducible;
mod sbom;
mod stamp;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::arch::Arch;
use self::archive::{About, Digest};
use self::layer::File;
use self::parts::Parts;
use self::reference::Reference;
use self::stamp::Stamp;
use crate::shell;

/// Bytes that the archive may have: a node pulls it before its pods are policed.
const BUDGET: usize = 40_000_000;

/// Where the image's documents lie. Scanners find a list of parts by its name's end.
const DOCUMENTS: &str = "usr/share/doc/netpol";

/// Options of `image`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The archive; the list of its parts (CycloneDX) goes beside it, as FILE with `.cdx.json` at its end.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Processor of the nodes [default: this machine's].
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// The image's name.
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("ghcr.io/netpol/netpol:", env!("CARGO_PKG_VERSION")))]
    tag: Reference,
    /// Pack the static programs of this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Build everything a second time from a copy of the sources in another directory, and compare.
    #[arg(long, conflicts_with = "programs")]
    check_reproducible: bool,
}

/// Makes the archive. False if a second build differs.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let out = Out::at(&options.out)?;
    let arch = options.arch.or_else(Arch::of_this_machine).with_context(|| {
        format!("this machine is {}, for which there is no image: give --arch", std::env::consts::ARCH)
    })?;
    let programs = match &options.programs {
        Some(directory) => programs::read(directory, arch)?,
        None => {
            arch::ensure(arch)?;
            programs::build(arch)?
        }
    };
    let stamp = Stamp::of_sources()?;
    let parts = Parts::of(arch)?;
    let sbom = sbom::of(&parts)?;
    let own = |path: &str| fs::read(shell::root().join(path)).with_context(|| format!("cannot read {path}"));
    let documents = [
        ("netpol.cdx.json", sbom.clone()),
        ("LICENSE", own("LICENSE")?),
        ("LICENSE-BPF", own("netpol-ebpf/LICENSE")?),
        ("THIRD-PARTY-LICENSES", licences::of(&parts)?),
    ];
    let document = |(name, bytes)| File { path: format!("{DOCUMENTS}/{name}"), executable: false, bytes };
    let mut files: Vec<File> = documents.into_iter().map(document).collect();
    for (name, bytes) in programs {
        shell::say(&format!("{name:13} {}", megabytes(bytes.len())));
        files.push(File { path: name.to_owned(), executable: true, bytes });
    }
    let about = About {
        reference: options.tag.clone(),
        architecture: arch.of_oci(),
        created: stamp.time()?,
        labels: labels(&stamp),
    };
    let archive = archive::pack(&about, &layer::pack(&files)?)?;
    let size = archive.bytes.len();
    ensure!(size <= BUDGET, "the archive would have {}, and {} are its budget", megabytes(size), megabytes(BUDGET));
    out.write(&archive.bytes, &sbom)?;
    shell::say(&format!("{:13} {} linux/{}", "image", options.tag.full(), arch.of_oci()));
    shell::say(&format!("{:13} {}", "image digest", archive.digest.as_str()));
    shell::say(&format!(
        "{:13} {} {} {}",
        "archive",
        out.archive.display(),
        megabytes(size),
        Digest::of(&archive.bytes).as_str()
    ));
    shell::say(&format!("{:13} {}", "parts", out.sbom.display()));
    if options.check_reproducible {
        return reproducible::check(arch, &options.tag, &stamp, &archive.bytes);
    }
    Ok(true)
}

fn labels(stamp: &Stamp) -> Vec<(&'static str, String)> {
    let mut labels = vec![
        ("org.opencontainers.image.title", "netpol".to_owned()),
        ("org.opencontainers.image.description", "Kubernetes NetworkPolicy for Flannel, enforced by eBPF".to_owned()),
        ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY").to_owned()),
    ];
    labels.extend(stamp.revision.clone().map(|revision| ("org.opencontainers.image.revision", revision)));
    labels
}

#[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Where the results go.
struct Out {
    archive: PathBuf,
    sbom: PathBuf,
}

impl Out {
    /// Looks before minutes are spent.
    fn at(path: &Path) -> Result<Self> {
        let name = path.file_name().with_context(|| format!("--out {} is no name of a file", path.display()))?;
        // Cargo runs us where its user is, so the path is as it was typed.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(parent.is_dir(), "--out {}: there is no directory {}", path.display(), parent.display());
        ensure!(!path.is_dir(), "--out {} is a directory: name a file in it", path.display());
        Ok(Self { archive: parent.join(name), sbom: parent.join(name).with_extension("cdx.json") })
    }

    fn write(&self, archive: &[u8], sbom: &[u8]) -> Result<()> {
        replace(&self.sbom, sbom)?;
        replace(&self.archive, archive)
    }
}

/// In one step: nobody finds half a file, and an interrupted run leaves the old one.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    fs::write(&staged, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::rename(&staged, path).with_context(|| format!("cannot write {}", path.display()))
}
