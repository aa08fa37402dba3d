//! Pods that were there before our plugin, or while the agent was away: what the runtime's libcni wrote down of them.
//!
//! In: the files of `/var/lib/cni/results` (kind `cniCacheV1`; libcni writes one after a whole chain's ADD and removes it
//! with DEL). Out: an [`Attachment`] each. A file that says something else is passed over and named: it is another
//! program's, and a pod without attachment is held rather than let go. Start at [`read`]; [`parse`] is pure.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde::Deserialize;

use super::json::Json;
use super::protocol::{Attachment, AttachmentKey};
use super::result::{self, ResultError};
use super::{POD_INTERFACE, args};

/// A cached result is one or two kilobytes.
const LARGEST: u64 = 1 << 20;
const KIND: &str = "cniCacheV1";

/// What the cache holds.
#[derive(Debug, Default)]
pub struct Cached {
    /// Pods' interfaces.
    pub attachments: Vec<Attachment>,
    /// Files that are no pod's interface, by name, and why.
    pub passed_over: BTreeMap<String, PassedOver>,
}

/// Why a file gives no attachment.
#[derive(Debug, thiserror::Error)]
pub enum PassedOver {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Half written, or something else.
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Of older libcni, or something else.
    #[error("its kind is {0:?}, not {KIND:?}")]
    Kind(String),
    /// Of a second network, or loopback.
    #[error("it is of the interface {0:?}, which is not policed")]
    Interface(String),
    /// Of a container that is no pod's.
    #[error("it names no pod")]
    NoPod,
    /// Names a pod in part only.
    #[error("it names half a pod: {0}")]
    HalfAPod(String),
    /// The result is not as the specification has it.
    #[error("its result cannot be understood: {0}")]
    Result(String),
    /// The result does not say what is needed.
    #[error("its result has no {0}")]
    Lacks(&'static str),
    /// The result has more than one candidate.
    #[error("its result has several interfaces on the host that may be the pod's: {0}")]
    Ambiguous(String),
}

impl PassedOver {
    /// True if a pod's interface may be lost by this, as against files that are none.
    #[must_use]
    pub const fn may_be_a_pod(&self) -> bool {
        match self {
            Self::Kind(_) | Self::Interface(_) | Self::NoPod => false,
            Self::Io(_) | Self::Json(_) | Self::HalfAPod(_) | Self::Result(_) | Self::Lacks(_) | Self::Ambiguous(_) => {
                true
            }
        }
    }
}

/// Reads the directory of results, `/var/lib/cni/results` as a rule; `is_pod_interface` tells pods' host veths from
/// bridges by name. One that is not there is empty.
///
/// # Errors
/// If the directory is there and cannot be listed.
pub fn read(directory: &Path, is_pod_interface: impl Fn(&str) -> bool) -> io::Result<Cached> {
    let mut cached = Cached::default();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(cached),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match read_file(&entry.path()).and_then(|text| parse(&text, &is_pod_interface)) {
            Ok(attachment) => cached.attachments.push(attachment),
            // The pod went in this moment.
            Err(PassedOver::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(why) => {
                tracing::debug!(file = name, "passed over in libcni's cache: {why}");
                cached.passed_over.insert(name, why);
            }
        }
    }
    cached.attachments.sort_by(|left, right| left.key.cmp(&right.key));
    Ok(cached)
}

fn read_file(path: &Path) -> Result<Vec<u8>, PassedOver> {
    // A pipe would never end, and opening it never begin.
    if !std::fs::metadata(path)?.is_file() {
        return Err(PassedOver::Kind("no regular file".to_owned()));
    }
    let mut text = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// The parts of libcni's `cachedInfo` that matter here.
#[derive(Deserialize)]
struct CachedInfo {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "containerId")]
    container_id: String,
    #[serde(default, rename = "ifName")]
    ifname: String,
    #[serde(default, rename = "cniArgs")]
    args: Option<Vec<(String, String)>>,
    result: Option<Json>,
}

/// The attachment that a file of the cache tells of.
///
/// # Errors
/// Why it tells of none.
pub fn parse(text: &[u8], is_pod_interface: impl Fn(&str) -> bool) -> Result<Attachment, PassedOver> {
    let info: CachedInfo = serde_json::from_slice(text)?;
    if info.kind != KIND {
        return Err(PassedOver::Kind(info.kind));
    }
    if info.ifname != POD_INTERFACE {
        return Err(PassedOver::Interface(info.ifname));
    }
    let pairs = info.args.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let pod = args::pod(pairs).map_err(|error| PassedOver::HalfAPod(error.to_string()))?.ok_or(PassedOver::NoPod)?;
    if info.container_id.is_empty() {
        return Err(PassedOver::Lacks("container id"));
    }
    let result = info.result.ok_or(PassedOver::Lacks("result"))?;
    let found =
        result::read(&result, &info.ifname).map_err(|error: ResultError| PassedOver::Result(error.to_string()))?;
    let mut hosts = found.on_host.into_iter().filter(|name| is_pod_interface(name));
    let host_interface = hosts.next().ok_or(PassedOver::Lacks("interface on the host"))?;
    if let Some(other) = hosts.next() {
        return Err(PassedOver::Ambiguous(format!("{host_interface}, {other}")));
    }
    let mac = found.mac.ok_or(PassedOver::Lacks("MAC address of the pod"))?;
    if found.addresses.is_empty() {
        return Err(PassedOver::Lacks("address"));
    }
    Ok(Attachment {
        key: AttachmentKey { container_id: info.container_id, ifname: info.ifname },
        namespace: pod.namespace,
        pod: pod.pod,
        uid: pod.uid,
        host_interface,
        mac,
        addresses: found.addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd's libcni 1.1 wrote it for a pod of Flannel's.
    const FILE: &str = r#"{"kind":"cniCacheV1","containerId":"3f1c","config":"eyJhIjoxfQ==","ifName":"eth0",
        "networkName":"cbr0","netns":"/var/run/netns/cni-1","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],
        ["K8S_POD_NAME","api-0"],["K8S_POD_INFRA_CONTAINER_ID","3f1c"],["K8S_POD_UID","u-1"]],
        "capabilityArgs":{"dns":{},"portMappings":[]},
        "result":{"cniVersion":"0.3.1","dns":{},
        "interfaces":[{"mac":"4a:d1:55:00:00:01","name":"cni0"},{"mac":"6e:d1:55:00:00:02","name":"veth1a2b3c4d"},
                      {"mac":"a6:d1:55:00:00:03","name":"eth0","sandbox":"/var/run/netns/cni-1"}],
        "ips":[{"address":"10.244.0.7/24","gateway":"10.244.0.1","interface":2,"version":"4"}],
        "routes":[{"dst":"10.244.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.244.0.1"}]}}"#;

    fn is_veth(name: &str) -> bool {
        name.starts_with("veth")
    }

    #[test]
    fn a_pods_file_is_its_attachment() {
        let attachment = parse(FILE.as_bytes(), is_veth).unwrap();
        assert_eq!(attachment.to_owned().pod_key().to_string(), "shop/api-0");
        assert_eq!((attachment.uid.as_str(), attachment.mac.as_str()), ("u-1", "a6:d1:55:00:00:03"));
        assert_eq!(attachment.key.to_string(), "3f1c/eth0");
        assert_eq!(attachment.host_interface, "veth1a2b3c4d");
        assert_eq!(attachment.addresses, ["10.244.0.7".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn other_files_are_passed_over_with_the_reason() {
        for (from, to, reason, may_be_a_pod) in [
            ("cniCacheV1", "cniCacheV9", "kind", false),
            (r#""ifName":"eth0""#, r#""ifName":"lo""#, "interface \"lo\"", false),
            (r#"["K8S_POD_NAMESPACE","shop"],"#, "", "half a pod", true),
            ("K8S_POD_NAM", "X", "no pod", false),
            ("veth1a2b3c4d", "vxlan7", "interface on the host", true),
            (r#""name":"cni0""#, r#""name":"veth0""#, "several", true),
            ("a6:d1:55:00:00:03", "", "MAC", true),
            ("10.244.0.7/24", "10.244.0", "understood", true),
            (r#""interface":2"#, r#""interface":0"#, "no address", true),
            (r#"[["Ignore"#, r#"["Ignore"#, "JSON", true),
        ] {
            let changed = FILE.replace(from, to);
            assert_ne!(changed, FILE, "{from}");
            let why = parse(changed.as_bytes(), is_veth).unwrap_err();
            assert!(why.to_string().contains(reason), "{from}: {why}");
            assert_eq!(why.may_be_a_pod(), may_be_a_pod, "{why}");
        }
        for cut in 0..FILE.len() {
            assert!(parse(&FILE.as_bytes()[..cut], is_veth).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_directory_is_read_whatever_lies_in_it() {
        assert!(read(Path::new("/nonexistent/results"), is_veth).unwrap().attachments.is_empty());
        let directory = std::env::temp_dir().join(format!("netpol-cni-cache-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("a-directory")).unwrap();
        std::fs::write(directory.join("cbr0-3f1c-eth0"), FILE).unwrap();
        std::fs::write(directory.join("cbr0-0aaa-eth0"), FILE.replace("3f1c", "0aaa")).unwrap();
        std::fs::write(directory.join("cbr0-half-eth0"), &FILE[..300]).unwrap();
        nix::unistd::mkfifo(&directory.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let cached = read(&directory, is_veth).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let ids: Vec<&str> = cached.attachments.iter().map(|it| it.key.container_id.as_str()).collect();
        assert_eq!(ids, ["0aaa", "3f1c"]);
        let names: Vec<&str> = cached.passed_over.keys().map(String::as_str).collect();
        assert_eq!(names, ["a-directory", "cbr0-half-eth0", "pipe"]);
    }
}
