//! Debian's kernel packages, through an apt with lists, cache and status of its own: the machine's own is not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::Kernel;
use crate::shell;

const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];
/// Debian's own; also in Ubuntu's package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Depends on the kernel of its suite. "cloud": fewer drivers, a fifth of the size, and the same core.
const METAPACKAGE: &str = "linux-image-cloud-amd64";
/// What attaching needs; what a kernel has built in has no file.
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];
/// Lists this young are not fetched again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// Package lists of [`SUITES`].
pub(super) struct Packages {
    directory: PathBuf,
}

/// A kernel that can be booted.
pub(super) struct Image {
    /// Package and version.
    pub(super) package: String,
    /// `vmlinuz`.
    pub(super) kernel: PathBuf,
    /// Modules in the order in which they must be loaded.
    pub(super) modules: Vec<PathBuf>,
}

/// The Debian mirror that this machine's own apt is set up with: it serves old releases for years, so every line of
/// kernels is there.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("cannot ask apt-get for this machine's mirror")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let debian = listed.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    debian.map(str::to_owned).context("apt has no Debian archive among its sources; the kernels are Debian's: add one")
}

impl Packages {
    /// Fetches the lists, unless that was done in the last day.
    pub(super) fn update(directory: &Path) -> Result<Self> {
        let packages = Self { directory: directory.join("apt") };
        for path in ["lists/partial", "cache/archives/partial"] {
            let path = packages.directory.join(path);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let mirror = mirror()?;
        let sources: String = SUITES
            .iter()
            .map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        fs::write(packages.directory.join("sources.list"), sources)?;
        // Nothing is installed in the eyes of this apt.
        fs::write(packages.directory.join("status"), "")?;
        let stamp = packages.directory.join("updated");
        let age = fs::metadata(&stamp).and_then(|it| it.modified()).map(|time| SystemTime::now().duration_since(time));
        if !matches!(age, Ok(Ok(age)) if age < FRESH) {
            shell::run(packages.apt("apt-get").args(["--quiet=2", "update"])).context("the kernels are Debian's")?;
            fs::write(stamp, "")?;
        }
        Ok(packages)
    }

    /// Fetches and unpacks the newest kernel of a line, unless it is there already.
    pub(super) fn kernel(&self, kernel: Kernel, directory: &Path) -> Result<Image> {
        let package = self.choose(kernel)?;
        let unpacked = directory.join(package.replace('=', "_"));
        if !unpacked.join("complete").exists() {
            // An older one, or half of one.
            if directory.exists() {
                fs::remove_dir_all(directory).with_context(|| format!("cannot empty {}", directory.display()))?;
            }
            self.unpack(&package, directory, &unpacked)?;
        }
        let mut modules =
            fs::read_dir(unpacked.join("modules"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
        modules.sort();
        Ok(Image { package, kernel: unpacked.join("vmlinuz"), modules })
    }

    /// `package=version` of the newest kernel of a line.
    fn choose(&self, kernel: Kernel) -> Result<String> {
        let shown = shell::output(self.apt("apt-cache").args(["show", METAPACKAGE]))?;
        let line = match kernel {
            Kernel::Newest => None,
            Kernel::V5_10 | Kernel::V6_1 | Kernel::V6_12 => Some(kernel.name()),
        };
        newest(&shown, line).with_context(|| format!("the Debian archive has no kernel {}", kernel.name()))
    }

    fn unpack(&self, package: &str, directory: &Path, unpacked: &Path) -> Result<()> {
        let tree = directory.join("tree");
        fs::create_dir_all(&tree)?;
        shell::say(&format!("fetching {package}"));
        let shown = shell::output(self.apt("apt-cache").args(["show", package]))?;
        // `apt-get download` puts packages where it runs.
        let mut download = self.apt("apt-get");
        download.args(["--quiet=2", "download", package]).args(parts(&shown)).current_dir(directory);
        shell::output(&mut download)?;
        let mut archives = Vec::new();
        collect(directory, &mut archives)?;
        archives.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        for archive in &archives {
            shell::output(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&tree))?;
            fs::remove_file(archive)?;
        }
        let modules = unpacked.join("modules");
        fs::create_dir_all(&modules)?;
        let mut files = Vec::new();
        collect(&tree, &mut files)?;
        let kernel = files.iter().find(|path| name_of(path).starts_with("vmlinuz"));
        let kernel = kernel.with_context(|| format!("there is no vmlinuz in {package}"))?;
        fs::copy(kernel, unpacked.join("vmlinuz"))?;
        for (number, module) in in_order(&files, &modules)?.iter().enumerate() {
            fs::rename(module, modules.join(format!("{number:02}-{}", name_of(module))))?;
        }
        fs::remove_dir_all(&tree)?;
        Ok(fs::write(unpacked.join("complete"), "")?)
    }

    /// An apt program that looks at nothing of the machine's but its keys and its proxy.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = |name: &str| self.directory.join(name).display().to_string();
        for (option, value) in [
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::State::Lists", path("lists")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("cache")),
            ("APT::Architecture", "amd64".to_owned()),
            // Its user may not see our directories.
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    }
}

/// From `apt-cache show` of the metapackage: the kernel it depends on, of the newest version in `line`. The newest comes
/// first.
fn newest(shown: &str, line: Option<&str>) -> Option<String> {
    shown.split("\n\n").find_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let version = field("Version:")?;
        if line.is_some_and(|line| !version.strip_prefix(line).is_some_and(|rest| rest.starts_with('.'))) {
            return None;
        }
        // `linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1), ...`
        let image = field("Depends:")?.split(", ").find(|name| name.starts_with("linux-image-"))?;
        Some(format!("{}={version}", image.split(' ').next()?))
    })
}

/// From `apt-cache show` of a kernel's package: where the files are, if it only depends on them (as since Linux 7).
fn parts(shown: &str) -> Vec<String> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let is_part = |name: &&str| name.starts_with("linux-binary-") || name.starts_with("linux-modules-");
    let exact = |name: &str| name.replace(" (= ", "=").trim_end_matches(')').to_owned();
    depends.split(", ").filter(is_part).map(exact).collect()
}

/// The [`MODULES`] among `files` and what they depend on, each after what it needs, unpacked into `into`.
fn in_order(files: &[PathBuf], into: &Path) -> Result<Vec<PathBuf>> {
    // By the names that they have in the kernel.
    let present: Vec<(String, &PathBuf)> =
        files.iter().filter_map(|path| Some((name_of(path).split_once(".ko")?.0.replace('-', "_"), path))).collect();
    let mut ordered: Vec<(String, PathBuf)> = Vec::new();
    // Last in, first out; a module comes round again once what it depends on is there.
    let mut todo: Vec<String> = MODULES.iter().rev().map(|name| (*name).to_owned()).collect();
    while let Some(name) = todo.pop() {
        if ordered.iter().any(|(done, _)| *done == name) {
            continue;
        }
        let Some((_, path)) = present.iter().find(|(module, _)| *module == name) else { continue };
        let unpacked = decompress(path, into)?;
        let needs: Vec<String> = dependencies(&fs::read(&unpacked)?)
            .into_iter()
            .filter(|need| !ordered.iter().any(|(done, _)| done == need) && present.iter().any(|(it, _)| it == need))
            .collect();
        if needs.is_empty() {
            ordered.push((name, unpacked));
        } else {
            todo.push(name);
            todo.extend(needs);
        }
    }
    Ok(ordered.into_iter().map(|(_, path)| path).collect())
}

/// Every file below.
fn collect(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), into)?;
        } else {
            into.push(entry.path());
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A module as the kernel wants it. Newer packages compress them, and not every kernel unpacks them itself.
fn decompress(module: &Path, into: &Path) -> Result<PathBuf> {
    let name = name_of(module);
    let plain = into.join(name.trim_end_matches(".xz"));
    if !name.ends_with(".xz") {
        fs::copy(module, &plain)?;
        return Ok(plain);
    }
    let bytes = Command::new("xz").args(["--decompress", "--stdout"]).arg(module).output().context("cannot run xz")?;
    if !bytes.status.success() {
        bail!("cannot unpack {}: {}", module.display(), String::from_utf8_lossy(&bytes.stderr).trim());
    }
    fs::write(&plain, bytes.stdout)?;
    Ok(plain)
}

/// What a module says it depends on: `depends=a,b` between NULs in its section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    let field = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(field.unwrap_or_default()).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Package: linux-image-cloud-amd64\nVersion: 7.2.13-1\nDepends: linux-base-cloud-amd64 (= \
                         7.2.13-1), linux-image-7.2.13+deb14-cloud-amd64 (= 7.2.13-1)\n\nPackage: \
                         linux-image-cloud-amd64\nVersion: 6.12.107-1\nDepends: linux-image-6.12.107+deb13-cloud-amd64 \
                         (= 6.12.107-1)\n\nPackage: linux-image-cloud-amd64\nVersion: 6.1.176-1\nDepends: \
                         linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";

    #[test]
    fn a_line_of_kernels_is_its_own_and_the_newest_is_the_first() {
        assert_eq!(newest(SHOWN, Some("6.1")).as_deref(), Some("linux-image-6.1.0-50-cloud-amd64=6.1.176-1"));
        assert_eq!(newest(SHOWN, Some("6.12")).as_deref(), Some("linux-image-6.12.107+deb13-cloud-amd64=6.12.107-1"));
        assert_eq!(newest(SHOWN, None).as_deref(), Some("linux-image-7.2.13+deb14-cloud-amd64=7.2.13-1"));
        assert_eq!(newest(SHOWN, Some("5.10")), None);
    }

    #[test]
    fn a_kernel_in_several_packages_is_fetched_whole() {
        let shown = "Package: linux-image-7\nDepends: dracut | linux-initramfs-tool, linux-base-7 (= 7-1), linux-binary-7 \
                     (= 7-1), linux-modules-7 (= 7-1)\n";
        assert_eq!(parts(shown), ["linux-binary-7=7-1", "linux-modules-7=7-1"]);
        assert_eq!(parts("Depends: kmod, linux-base (>= 4.3~)\n"), [""; 0]);
    }

    #[test]
    fn a_module_says_what_it_depends_on() {
        assert_eq!(dependencies(b"\x7fELF\0license=GPL\0depends=nf-conntrack,llc\0name=x\0"), ["nf_conntrack", "llc"]);
        assert_eq!(dependencies(b"license=GPL\0depends=\0name=x\0"), [""; 0]);
    }
}
