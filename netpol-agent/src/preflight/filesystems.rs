//! The BPF file system, and the directories of the container network interface.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};

use super::Finding;

/// netpol's own configuration: it sorts before what is usual.
const OURS: &str = "00-netpol.conflist";
/// What libcni reads.
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

pub(super) fn bpf(mount: &Path) -> Vec<Finding> {
    const CHECK: &str = "bpffs";
    let place = mount.display();
    let mounting = format!(
        "mount it on the node (`mount -t bpf bpf {place}`; systemd does so by itself) and hand it to the container, or name \
         another with --bpffs"
    );
    vec![match statfs(mount) {
        Err(error) => Finding::fail(CHECK, format!("{place}: {error}"), mounting),
        Ok(found) if found.filesystem_type() != BPF_FS_MAGIC => {
            Finding::fail(CHECK, format!("{place} is no BPF file system"), mounting)
        }
        Ok(_) => match try_to_write(mount) {
            Ok(()) => Finding::ok(CHECK, format!("{place} is mounted, and takes pins")),
            Err(error) => Finding::fail(
                CHECK,
                format!("{place} does not take pins: {error}"),
                "mount it without `ro`; below /sys the AppArmor profile of container runtimes forbids writing: mount it \
                 elsewhere in the container, as the chart does",
            ),
        },
    }]
}

/// Makes a directory and takes it away.
fn try_to_write(mount: &Path) -> io::Result<()> {
    let place = mount.join(format!("netpol-preflight-{}", std::process::id()));
    fs::create_dir(&place)?;
    fs::remove_dir(&place)
}

pub(super) fn cni(configurations: &Path, plugins: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (check, place, value) in
        [("cni conf dir", configurations, "cni.confDir"), ("cni bin dir", plugins, "cni.binDir")]
    {
        findings.push(match access(place, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) => Finding::ok(check, format!("{} can be written", place.display())),
            Err(error) => Finding::note(
                check,
                format!("{}: {error}", place.display()),
                format!(
                    "without the CNI plugin, pods wait a moment for their first packets; name the directory of your \
                     distribution ({value}, see deploy/helm/examples) and mount it writable"
                ),
            ),
        });
    }
    findings.push(match names(configurations) {
        Ok(names) => sorted(&names),
        Err(error) => {
            let advice = "see above: the plugin cannot be put behind a configuration that cannot be read";
            Finding::note("cni configuration", format!("{}: {error}", configurations.display()), advice)
        }
    });
    findings
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The runtime takes the first in lexical order.
fn sorted(names: &[String]) -> Finding {
    const CHECK: &str = "cni configuration";
    let Some(source) = names.iter().find(|name| *name != OURS) else {
        return Finding::note(
            CHECK,
            "there is none",
            "install Flannel: netpol puts its plugin behind Flannel's configuration",
        );
    };
    if source.as_str() < OURS {
        return Finding::note(
            CHECK,
            format!("{source} sorts before {OURS}, so the runtime takes it instead"),
            format!("rename {source} so that it sorts behind {OURS}, or set cni.install=false"),
        );
    }
    match names.iter().any(|name| name == OURS) {
        true => Finding::ok(CHECK, format!("{OURS} is in force, made from {source}")),
        false => Finding::ok(CHECK, format!("{source} is there to build on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Standing;

    #[test]
    fn what_the_runtime_would_take_is_told() {
        let standing = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
            sorted(&names).standing
        };
        assert_eq!(standing(&["10-flannel.conflist"]), Standing::Ok);
        assert_eq!(standing(&[OURS, "10-flannel.conflist"]), Standing::Ok);
        assert_eq!(standing(&["00-multus.conf", OURS, "10-flannel.conflist"]), Standing::Note);
        assert_eq!(standing(&[]), Standing::Note);
        assert_eq!(standing(&[OURS]), Standing::Note);
    }

    #[test]
    fn a_directory_that_is_not_there_or_is_no_bpf_file_system_fails() {
        assert_eq!(bpf(Path::new("/nonexistent")).first().unwrap().standing, Standing::Fail);
        let proc = bpf(Path::new("/proc"));
        assert!(proc.first().unwrap().found.contains("no BPF file system"));
        assert!(cni(Path::new("/nonexistent"), Path::new("/tmp")).iter().any(|it| it.standing == Standing::Note));
    }
}
