//! A cluster whose labels and policies change all the time, while the same pairs stay allowed and the same stay denied.
//!
//! Out: manifests as (file name, object) and, edit by edit, which file is written or removed next. Each single edit keeps
//! [`ALLOWED`] allowed and [`DENIED`] denied, whatever came before: pods change colour under rules for either, policies are
//! rewritten, renamed, split, merged, handed over from file to file, taken away where another holds, and identities change
//! numbers. The oracle checks that in `tests/churn.rs`; the netns level sends packets meanwhile. Pure; start at [`Churn`].

mod policies;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::node::OUTSIDE;
use crate::servers::Transport;
use policies::Ward;

/// Another address of the outside host, which no rule lets in.
pub const STRANGER: &str = "stranger";
/// The stranger's addresses.
pub const STRANGER_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7))];
/// Name of the node that the pods are on.
pub const NODE_NAME: &str = "here";

/// TCP port that allowed clients connect to.
pub const TCP_PORT: u16 = 7000;
/// UDP port that allowed clients ask.
pub const UDP_PORT: u16 = 7001;
/// UDP port that may be open to allowed clients, and hears nobody else.
pub const QUIET_UDP_PORT: u16 = 7002;
/// TCP port that may be open to allowed clients, and hears nobody else.
pub const QUIET_TCP_PORT: u16 = 7003;
/// A port that is open to nobody.
pub const CLOSED_PORT: u16 = 7009;

/// Pods with their host number: `10.244.1.N` and `fd00:10:244:1::N`.
pub const PODS: [(&str, u16); 6] =
    [("a/client", 11), ("a/server", 12), ("a/denied", 13), ("a/jailed", 14), ("b/client", 21), ("b/server", 22)];

/// Who may always connect to whom, on [`TCP_PORT`] and [`UDP_PORT`].
pub const ALLOWED: [(&str, &str); 4] =
    [("a/client", "b/server"), ("b/client", "a/server"), (OUTSIDE, "b/server"), ("a/client", OUTSIDE)];

/// Who must never reach whom.
pub const DENIED: [(&str, &str, Transport, u16); 7] = [
    ("a/denied", "b/server", Transport::Udp, QUIET_UDP_PORT),
    ("a/denied", "b/server", Transport::Tcp, QUIET_TCP_PORT),
    ("a/client", "b/server", Transport::Udp, CLOSED_PORT),
    ("a/jailed", OUTSIDE, Transport::Udp, QUIET_UDP_PORT),
    ("a/jailed", OUTSIDE, Transport::Tcp, QUIET_TCP_PORT),
    (STRANGER, "b/server", Transport::Udp, QUIET_UDP_PORT),
    ("b/client", "b/server", Transport::Udp, QUIET_UDP_PORT),
];

/// A change of one manifest file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The file holds this object (a `List`) from now on.
    Put(String, Value),
    /// The file is gone.
    Remove(String),
}

/// The cluster, and what happens to it next.
#[derive(Clone, Debug)]
pub struct Churn {
    random: Random,
    /// By pod: its colour.
    blue: BTreeMap<&'static str, bool>,
    /// By pod: a label that now and then a rule asks for.
    noise: BTreeMap<&'static str, u64>,
    /// By namespace: which of its two teams it is in.
    second_team: BTreeMap<&'static str, bool>,
    /// By ward: the file that holds its policies, if one does.
    files: BTreeMap<Ward, Option<String>>,
    /// Files that come and go whole.
    present: BTreeMap<&'static str, bool>,
    serial: u64,
    /// What is left of an edit that takes several.
    pending: Vec<Edit>,
}

const PODS_FILE: &str = "10-pods.json";
const NAMESPACES_FILE: &str = "00-namespaces.json";
const GHOSTS_FILE: &str = "12-ghosts.json";
const NOISE_FILE: &str = "60-noise.json";
const MUTE_FILE: &str = "61-mute.json";

impl Churn {
    /// The cluster before its first edit.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            blue: PODS.iter().map(|(pod, _)| (*pod, false)).collect(),
            noise: PODS.iter().map(|(pod, _)| (*pod, 0)).collect(),
            second_team: [("a", false), ("b", false)].into(),
            files: Ward::ALL.map(|ward| (ward, None)).into(),
            present: BTreeMap::new(),
            serial: 0,
            pending: Vec::new(),
        }
    }

    /// Every file as it is at the beginning, policies included.
    pub fn beginning(&mut self) -> Vec<Edit> {
        let mut edits = vec![self.namespaces(), self.pods(), self.ghosts()];
        edits.extend(Ward::ALL.map(|ward| self.rewrite(ward)));
        edits
    }

    /// The next edit.
    pub fn next_edit(&mut self) -> Edit {
        if let Some(edit) = self.pending.pop() {
            return edit;
        }
        match self.random.below(12) {
            0 | 1 => self.recolour(),
            2 => self.make_noise(),
            3 => self.change_team(),
            4..=6 => {
                let ward = self.any_ward();
                self.rewrite(ward)
            }
            7 => self.hand_over(),
            8 => self.ghosts(),
            9 => self.come_or_go(NOISE_FILE),
            10 => self.come_or_go(MUTE_FILE),
            _ => self.let_go_for_a_while(),
        }
    }

    fn any_ward(&mut self) -> Ward {
        let at = self.random.below(Ward::ALL.len());
        Ward::ALL.into_iter().nth(at).unwrap_or(Ward::Jail)
    }

    fn recolour(&mut self) -> Edit {
        let at = self.random.below(self.blue.len());
        if let Some(blue) = self.blue.values_mut().nth(at) {
            *blue = !*blue;
        }
        self.pods()
    }

    fn make_noise(&mut self) -> Edit {
        for noise in self.noise.values_mut() {
            *noise = self.random.number(5);
        }
        self.pods()
    }

    fn change_team(&mut self) -> Edit {
        let namespace = if self.random.coin() { "a" } else { "b" };
        if let Some(second) = self.second_team.get_mut(namespace) {
            *second = !*second;
        }
        self.namespaces()
    }

    /// Other policies with the same meaning for those who matter, in one write.
    fn rewrite(&mut self, ward: Ward) -> Edit {
        self.serial += self.random.number(2);
        let policies = ward.policies(&mut self.random, self.serial);
        let file = self.files.entry(ward).or_default().get_or_insert_with(|| ward.file(false));
        Edit::Put(file.clone(), list(&policies))
    }

    /// The same as two writes: the new policies come in another file, then the old file goes.
    fn hand_over(&mut self) -> Edit {
        let ward = self.any_ward();
        self.serial += 1;
        let policies = ward.policies(&mut self.random, self.serial);
        let old = self.files.get(&ward).cloned().flatten();
        let new = ward.file(old == Some(ward.file(false)));
        self.pending.extend(old.map(Edit::Remove));
        self.files.insert(ward, Some(new.clone()));
        Edit::Put(new, list(&policies))
    }

    /// Takes away the policies of a ward that allowed traffic does without, and the denied is denied elsewhere too.
    fn let_go_for_a_while(&mut self) -> Edit {
        let ward = if self.random.coin() { Ward::EgressOfAClient } else { Ward::EgressOfBClient };
        let Some(Some(file)) = self.files.get(&ward).cloned() else { return self.rewrite(ward) };
        let back = self.rewrite(ward);
        self.pending.push(back);
        Edit::Remove(file)
    }

    /// Policies that matter to nobody, but for the identities and policy ids of everybody.
    fn come_or_go(&mut self, file: &'static str) -> Edit {
        let present = self.present.entry(file).or_default();
        *present = !*present;
        if !*present {
            return Edit::Remove(file.to_owned());
        }
        let policies = if file == MUTE_FILE { policies::mute() } else { policies::noise(&mut self.random) };
        Edit::Put(file.to_owned(), list(&policies))
    }

    fn namespaces(&self) -> Edit {
        let objects: Vec<Value> = self.second_team.iter().map(|(name, second)| namespace(name, *second)).collect();
        Edit::Put(NAMESPACES_FILE.to_owned(), list(&objects))
    }

    fn pods(&self) -> Edit {
        let of = |(key, host): &(&'static str, u16)| {
            let (namespace, app) = key.split_once('/').unwrap_or(("", key));
            let colour = if self.blue.get(key) == Some(&true) { "blue" } else { "red" };
            let noise = self.noise.get(key).map(ToString::to_string).unwrap_or_default();
            let labels = json!({"app": app, "side": namespace, "colour": colour, "noise": noise});
            pod((namespace, app), labels, &addresses_of(*host), NODE_NAME)
        };
        Edit::Put(PODS_FILE.to_owned(), list(&PODS.iter().map(of).collect::<Vec<Value>>()))
    }

    /// Pods of another node, which take and leave identities.
    fn ghosts(&mut self) -> Edit {
        let mut ghosts = Vec::new();
        for number in 1..=6_u8 {
            if self.random.coin() {
                continue;
            }
            let namespace = if self.random.coin() { "a" } else { "b" };
            let app = if self.random.coin() { "client" } else { "ghost" };
            let labels = json!({
                "app": app, "side": namespace, "noise": self.random.number(5).to_string(),
                "colour": if self.random.coin() { "red" } else { "blue" },
            });
            let addresses = [
                Ipv4Addr::new(10, 244, 2, number).into(),
                Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, number.into()).into(),
            ];
            ghosts.push(pod((namespace, &format!("ghost-{number}")), labels, &addresses, "elsewhere"));
        }
        Edit::Put(GHOSTS_FILE.to_owned(), list(&ghosts))
    }
}

/// Both addresses of a pod of [`PODS`].
#[must_use]
pub fn addresses_of(host: u16) -> [IpAddr; 2] {
    let [_, low] = host.to_be_bytes();
    // The group is written in decimal digits, as in the IPv4 address.
    let group = host / 10 * 16 + host % 10;
    [Ipv4Addr::new(10, 244, 1, low).into(), Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, group).into()]
}

fn namespace(name: &str, second: bool) -> Value {
    let team = format!("{name}{}", if second { 2 } else { 1 });
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}})
}

fn pod((namespace, name): (&str, &str), labels: Value, addresses: &[IpAddr], node: &str) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": TCP_PORT}]}]},
        "status": {"phase": "Running", "podIPs": addresses},
    })
}

fn list(objects: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": objects})
}

/// Numbers that are the same in each run (xorshift64*).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`.
    fn number(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number(u64::try_from(end).unwrap_or(u64::MAX))).unwrap_or(0)
    }

    fn coin(&mut self) -> bool {
        self.number(2) == 1
    }
}
