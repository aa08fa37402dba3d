//! `cargo xtask image`, as a user runs it, on programs that are given to it: the same bytes each time, an archive that an
//! independent reader takes, and refusals before minutes are spent. That a *build* comes out the same twice is shown by
//! `--check-reproducible`, which takes as long as two builds.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flate2::read::GzDecoder;
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const PROGRAMS: [&str; 3] = ["netpol", "netpol-agent", "netpol-cni"];

/// A directory of one test, with something in it that passes for static programs.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("image-{test}"));
        if place.exists() {
            fs::remove_dir_all(&place).unwrap();
        }
        fs::create_dir_all(place.join("programs")).unwrap();
        for program in PROGRAMS {
            fs::write(place.join("programs").join(program), program_for(62, program)).unwrap();
        }
        Self(place)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn image(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.current_dir(&self.0).args(["image", "--arch", "amd64", "--programs", "programs"]).args(arguments);
        command.env("SOURCE_DATE_EPOCH", "1795000000").env("NETPOL_REVISION", "c0ffee");
        command.output().unwrap()
    }

    fn refused(&self, arguments: &[&str], word: &str) {
        let output = self.image(arguments);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && told.contains(word), "{arguments:?}: {told}");
    }
}

/// The shortest ELF file of 64 bits without an interpreter, and a word behind it to tell it from others.
fn program_for(machine: u16, word: &str) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend([2, 0]);
    header.extend(machine.to_le_bytes());
    header.extend([1, 0, 0, 0]);
    header.extend([0; 24]);
    header.extend([0, 0, 0, 0, 64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    header.extend(word.as_bytes());
    header
}

/// What lies in an archive, by path; refuses what would lie outside when it is unpacked.
fn unpack(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path}");
        let header = entry.header().clone();
        assert!(header.entry_type().is_file() || header.entry_type().is_dir(), "{path} is neither file nor directory");
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0), "{path}");
        assert_eq!((header.username().unwrap(), header.groupname().unwrap()), (Some(""), Some("")), "{path}");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(files.insert(path.clone(), (header.mode().unwrap(), content)).is_none(), "{path} is there twice");
    }
    files
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The blob that a descriptor means, if it is what the descriptor says.
fn blob<'a>(files: &'a BTreeMap<String, (u32, Vec<u8>)>, descriptor: &Descriptor) -> &'a [u8] {
    let digest = descriptor.digest().digest();
    let (_mode, bytes) = &files[&format!("blobs/sha256/{digest}")];
    assert_eq!((bytes.len() as u64, sha256(bytes).as_str()), (descriptor.size(), digest));
    bytes
}

#[test]
fn packing_twice_gives_the_same_bytes() {
    let place = Place::new("twice");
    for out in ["one.tar", "two.tar", "one.tar"] {
        let output = place.image(&["--out", out]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let read = |name: &str| fs::read(place.file(name)).unwrap();
    assert!(read("one.tar") == read("two.tar"), "one.tar and two.tar differ");
    assert!(read("one.cdx.json") == read("two.cdx.json"), "the lists of parts differ");
    let left = fs::read_dir(&place.0).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.ends_with(".new")));
}

#[test]
fn the_archive_is_a_layout_of_oci_and_one_of_docker() {
    let place = Place::new("layout");
    let output = place.image(&["--out", "netpol.tar", "--tag", "netpol:dev"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let files = unpack(&fs::read(place.file("netpol.tar")).unwrap());
    let file = |name: &str| files[name].1.as_slice();

    assert_eq!(OciLayout::from_reader(file("oci-layout")).unwrap().image_layout_version(), "1.0.0");
    let index = ImageIndex::from_reader(file("index.json")).unwrap();
    let [entry] = index.manifests().as_slice() else { panic!("{index:?}") };
    assert_eq!(*entry.media_type(), MediaType::ImageManifest);
    let names = entry.annotations().as_ref().unwrap();
    assert_eq!(names["io.containerd.image.name"], "docker.io/library/netpol:dev");
    assert_eq!(names["org.opencontainers.image.ref.name"], "dev");
    assert!(told.contains(entry.digest().as_ref()), "the digest is not told: {told}");

    let manifest = ImageManifest::from_reader(blob(&files, entry)).unwrap();
    let [layer] = manifest.layers().as_slice() else { panic!("{manifest:?}") };
    assert_eq!(
        (manifest.config().media_type(), layer.media_type()),
        (&MediaType::ImageConfig, &MediaType::ImageLayerGzip)
    );
    let config = ImageConfiguration::from_reader(blob(&files, manifest.config())).unwrap();
    assert_eq!((config.architecture(), config.os()), (&Arch::Amd64, &Os::Linux));
    assert_eq!(config.created().as_deref(), Some("2026-11-18T11:06:40Z"));
    let labels = config.labels_of_config().unwrap();
    assert_eq!(labels["org.opencontainers.image.revision"], "c0ffee");

    let mut tar = Vec::new();
    GzDecoder::new(blob(&files, layer)).read_to_end(&mut tar).unwrap();
    assert_eq!(config.rootfs().diff_ids().as_slice(), [format!("sha256:{}", sha256(&tar))]);
    let inside = unpack(&tar);
    let programs: Vec<&str> = inside
        .iter()
        .filter(|(_, (mode, content))| mode & 0o111 != 0 && !content.is_empty())
        .map(|it| it.0.as_str())
        .collect();
    assert_eq!(programs, PROGRAMS);
    assert_eq!(inside["usr/share/doc/netpol/netpol.cdx.json"].1, fs::read(place.file("netpol.cdx.json")).unwrap());

    let docker: Value = serde_json::from_slice(file("manifest.json")).unwrap();
    assert_eq!(docker[0]["RepoTags"], serde_json::json!(["netpol:dev"]));
    assert_eq!(docker[0]["Config"], format!("blobs/sha256/{}", manifest.config().digest().digest()));
    assert_eq!(docker[0]["Layers"], serde_json::json!([format!("blobs/sha256/{}", layer.digest().digest())]));
}

#[test]
fn what_cannot_be_made_is_refused_in_words() {
    let place = Place::new("refused");
    place.refused(&["--out", "nowhere/netpol.tar"], "there is no directory nowhere");
    place.refused(&["--out", "programs"], "is a directory");
    fs::write(place.file("programs/netpol-cni"), program_for(183, "cni")).unwrap();
    place.refused(&["--out", "netpol.tar"], "it is for Aarch64, and the image for amd64");
    fs::write(place.file("programs/netpol-cni"), vec![0; 8]).unwrap();
    place.refused(&["--out", "netpol.tar"], "no program of 64 bits");
    let mut large = program_for(62, "cni");
    large.resize(64_000_000, 0);
    fs::write(place.file("programs/netpol-cni"), large).unwrap();
    place.refused(&["--out", "netpol.tar"], "its budget");
    fs::remove_file(place.file("programs/netpol-cni")).unwrap();
    place.refused(&["--out", "netpol.tar"], "programs/netpol-cni");
    assert!(!Path::new(&place.file("netpol.tar")).exists());
}
