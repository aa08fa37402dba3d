//! The node on which attacks are tried, and how one is judged.
//!
//! In: how the node is to be ([`Ground`]). Out: an [`Arena`] with the agent enforcing [`POLICIES`], in which
//! [`Arena::failures`] tries attacks and says of each what was wrong. Every link has a raw end that hears what arrives.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::cast::{Cast, PODS, pod_addresses};
use super::wire::Wire;
use super::{Attack, Drops, Intent};
use crate::agent::{Agent, Options};
use crate::manifests::PodAddresses;
use crate::node::{NODE, Node, OUTSIDE};
use crate::probe::PATIENCE;

/// How long a frame that got through may take beyond the legal one that was sent after it.
const LATE: Duration = Duration::from_millis(30);

/// Who may what: `victim` is open on port 9000, and on 8080 to `friend`; `jailed` may send to the victim's 9000 and
/// nothing else; `sealed` may receive nothing.
pub const POLICIES: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: victim, namespace: arena}
spec:
  podSelector: {matchLabels: {app: victim}}
  policyTypes: [Ingress, Egress]
  ingress:
    - ports: [{protocol: TCP, port: 9000}, {protocol: UDP, port: 9000}]
    - from: [{podSelector: {matchLabels: {app: friend}}}]
      ports: [{protocol: TCP, port: 8080}, {protocol: UDP, port: 8080}]
  egress:
    - to: [{podSelector: {matchLabels: {app: mallory}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: jailed, namespace: arena}
spec:
  podSelector: {matchLabels: {app: jailed}}
  policyTypes: [Egress]
  egress:
    - to: [{podSelector: {matchLabels: {app: victim}}}]
      ports: [{protocol: TCP, port: 9000}, {protocol: UDP, port: 9000}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: sealed, namespace: arena}
spec: {podSelector: {matchLabels: {app: sealed}}, policyTypes: [Ingress], ingress: []}
";

/// Connection tracking as kube-proxy's rules bring it: bridged fragments are then put together on their way.
const CONNTRACK: &str = "table inet tracking {
  chain forward {
    type filter hook forward priority 0;
    ct state invalid counter
  }
}";

/// What a node has beside Flannel's bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// Connection tracking, and with it the reassembly of bridged fragments.
    pub conntrack: bool,
    /// Flannel's VXLAN device.
    pub vxlan: bool,
}

/// A node with hostile pods, under the agent.
#[derive(Debug)]
pub struct Arena {
    // Dropped in this order: the agent before the node that it looks after.
    agent: Agent,
    wires: BTreeMap<&'static str, Wire>,
    cast: Cast,
    /// The node.
    pub node: Node,
}

impl Arena {
    /// Makes the node and starts the agent on `policies`.
    ///
    /// # Errors
    /// Without root, or if the kernel or the agent refuses.
    pub fn start(ground: Ground, policies: &str) -> Result<Self> {
        let mut node = Node::start(&[])?;
        for pod in PODS {
            node.add_pod(&PodAddresses::new(&key(pod), &pod_addresses(pod)))?;
        }
        let mut wires = BTreeMap::from([
            (NODE, Wire::open(node.namespace(NODE)?, "cni0")?),
            (OUTSIDE, Wire::open(node.namespace(OUTSIDE)?, "eth0")?),
        ]);
        for pod in PODS {
            wires.insert(pod, Wire::open(node.pod(&key(pod))?.namespace(), "eth0")?);
        }
        if ground.vxlan {
            add_vxlan(&node)?;
        }
        if ground.conntrack {
            in_namespace(&node, NODE, "nft", &[CONNTRACK])?;
        }
        let uplink = Wire::open(node.namespace(NODE)?, "eth0")?.mac();
        let cast = Cast::new(wires.iter().map(|(place, wire)| (*place, wire.mac())).collect(), uplink);
        std::fs::write(node.run().manifests().join("pods.yaml"), pod_manifests())?;
        std::fs::write(node.run().manifests().join("policies.yaml"), policies)?;
        let agent = Agent::start(&node, &Options::default())?;
        let settled = agent.sync()?;
        ensure!(settled.endpoints.len() == PODS.len(), "{settled:?}");
        ensure!(settled.endpoints.iter().all(|it| it.state == "enforced"), "{settled:?}");
        Ok(Self { agent, wires, cast, node })
    }

    /// Who is there.
    #[must_use]
    pub const fn cast(&self) -> &Cast {
        &self.cast
    }

    /// The agent.
    #[must_use]
    pub const fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The raw end of a place's link.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn wire(&mut self, place: &str) -> Result<&mut Wire> {
        self.wires.get_mut(place).with_context(|| format!("no wire of {place}"))
    }

    /// Packets that a counter has counted.
    ///
    /// # Errors
    /// If the agent does not answer.
    pub fn counted(&self, drops: &Drops) -> Result<u64> {
        let pod = key(drops.pod);
        let counters = self.agent.counters()?;
        let of =
            |it: &&crate::agent::Counter| it.pod == pod && it.direction == drops.direction && it.reason == drops.reason;
        Ok(counters.iter().filter(of).map(|it| it.packets).sum())
    }

    /// Tries every attack. Each that is not as it must be has a line here; empty is what a test wants.
    ///
    /// # Errors
    /// If a frame cannot be sent or the agent does not answer.
    pub fn failures(&mut self, attacks: &[Attack]) -> Result<Vec<String>> {
        let mut failures = Vec::new();
        for attack in attacks {
            let wrong = self.attempt(attack).with_context(|| attack.name.clone())?;
            failures.extend(wrong.into_iter().map(|what| format!("{}: {what}", attack.name)));
        }
        Ok(failures)
    }

    /// Tries one attack; what was wrong.
    fn attempt(&mut self, attack: &Attack) -> Result<Vec<String>> {
        for wire in self.wires.values_mut() {
            wire.forget()?;
        }
        let before = attack.drops.iter().map(|drops| self.counted(drops)).collect::<Result<Vec<_>>>()?;
        for opening in &attack.prelude {
            self.wire(opening.from)?.send(&opening.frame)?;
            let mark = opening.frame.get(14..).unwrap_or_default().to_vec();
            let arrived = self.wire(opening.to)?.wait_for(PATIENCE, |frame| frame.ends_with(&mark))?;
            ensure!(arrived, "what opens the flow did not arrive at {}", opening.to);
        }
        for frame in &attack.evil {
            self.wire(attack.from)?.send(frame)?;
        }
        for frame in &attack.legal {
            self.wire(attack.legal_from)?.send(frame)?;
        }
        let mut wrong = Vec::new();
        if !self.legal_arrived(attack)? {
            wrong.push(format!("the legal frames of the same form did not all arrive at {}", attack.arrives));
        }
        thread::sleep(LATE);
        wrong.extend(self.leaks(attack)?);
        for (drops, before) in attack.drops.iter().zip(before) {
            let counted = self.counted(drops)? - before;
            if counted != drops.packets {
                wrong.push(format!("{counted} packets counted, expected {drops:?}"));
            }
        }
        Ok(wrong)
    }

    fn legal_arrived(&mut self, attack: &Attack) -> Result<bool> {
        let wanted: usize = attack.legal.iter().map(|frame| marks(frame, Intent::Legal)).sum();
        ensure!(wanted > 0, "no legal frame carries a mark");
        self.wire(attack.arrives)?.wait_until(PATIENCE, |frames| {
            frames.iter().map(|frame| marks(frame, Intent::Legal)).sum::<usize>() >= wanted
        })
    }

    /// Where frames of the attack came out.
    fn leaks(&mut self, attack: &Attack) -> Result<Vec<String>> {
        ensure!(attack.evil.iter().any(|frame| marks(frame, Intent::Evil) > 0), "no evil frame carries a mark");
        let mut leaks = Vec::new();
        for (place, wire) in &mut self.wires {
            // What comes back to the attacker is about its packet, as an ICMP error that quotes it.
            if *place == attack.from || attack.target.is_some_and(|target| target != *place) {
                continue;
            }
            let arrived: Vec<String> =
                wire.received()?.iter().filter(|frame| marks(frame, Intent::Evil) > 0).map(|it| hex(it)).collect();
            if !arrived.is_empty() {
                leaks.push(format!("IT GOT THROUGH to {place}: {}", arrived.join(", ")));
            }
        }
        Ok(leaks)
    }
}

/// `namespace/name` of a pod.
#[must_use]
pub fn key(pod: &str) -> String {
    format!("arena/{pod}")
}

/// Runs a program in the namespace of a place.
///
/// # Errors
/// If it cannot be run, or fails.
pub fn in_namespace(node: &Node, place: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let output = node
        .namespace(place)?
        .enter(|| Command::new(program).args(arguments).output())?
        .with_context(|| format!("cannot run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?} in {place}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Flannel's device, as it makes it: VNI 1, port 8472, no learning.
fn add_vxlan(node: &Node) -> Result<()> {
    let ip = |words: &str| in_namespace(node, NODE, "ip", &words.split(' ').collect::<Vec<_>>());
    ip(
        "link add flannel.1 address 0a:00:00:00:00:01 type vxlan id 1 dstport 8472 local 192.0.2.10 dev eth0 nolearning",
    )?;
    ip("address add 10.244.1.0/32 dev flannel.1")?;
    ip("link set flannel.1 up")?;
    Ok(())
}

/// The namespace and its pods, each with its name as `app` label.
fn pod_manifests() -> String {
    let mut text =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: arena, labels: {kubernetes.io/metadata.name: arena}}\n"
            .to_owned();
    for pod in PODS {
        let addresses = pod_addresses(pod);
        let ips: Vec<String> = addresses.iter().map(|it| format!("{{ip: '{it}'}}")).collect();
        let first = addresses.first().map(ToString::to_string).unwrap_or_default();
        // Writing to a string never fails.
        let _written = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: arena, labels: {{app: {pod}}}}}
spec: {{containers: [{{name: main, image: shop/none}}]}}
status: {{phase: Running, podIP: '{first}', podIPs: [{}]}}\n",
            ips.join(", ")
        );
    }
    text
}

/// How often a frame carries the mark.
#[must_use]
pub fn marks(frame: &[u8], intent: Intent) -> usize {
    frame.windows(8).filter(|window| window == intent.mark()).count()
}

fn hex(frame: &[u8]) -> String {
    frame.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string never fails.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
