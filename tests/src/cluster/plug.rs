//! Pods that lose their interface and get another one, while everything else of them stays: what an agent that was away
//! finds of pods that came and went.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Cluster, PodPlace, wire};
use crate::netns::Namespace;
use crate::netns::links::Links;

/// A pod that somebody else has connected.
#[derive(Debug)]
pub struct Wired {
    /// Its namespace.
    pub namespace: Namespace,
    /// The node's end of its veth pair.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Cluster {
    /// Takes a pod's interface away, as when a pod ends. Its namespace and servers stay, for [`Self::plug`].
    ///
    /// # Errors
    /// If there is no such pod, or it has no interface.
    pub fn unplug(&self, key: &str) -> Result<()> {
        let pod = self.pod(key)?;
        let links = Links::open(&self.node(&pod.node)?.namespace, self.runtime().handle())?;
        self.block_on(links.delete(&pod.interface))
    }

    /// Gives a pod that was unplugged an interface again, of the same name and with this index (0: any). Nobody in the
    /// cluster remembers its former MAC address.
    ///
    /// # Errors
    /// If there is no such pod, or the kernel refuses.
    pub fn plug(&self, key: &str, index: u32) -> Result<()> {
        let pod = self.pod(key)?;
        let node = self.node(&pod.node)?;
        let wired = wire::Pod {
            interface: &pod.interface,
            index,
            namespace: &pod.namespace,
            addresses: &pod.addresses,
            mac: None,
            alone: pod.routed,
        };
        let wired = wire::pod((&node.namespace, node.plan), wired, self.runtime().handle());
        self.block_on(wired).with_context(|| format!("cannot wire pod {key}"))?;
        let pods = self.pods.values().map(|pod| &pod.namespace);
        pods.chain([&node.namespace]).try_for_each(|namespace| forget(namespace, &pod.addresses))
    }

    /// The index of the node's end of a pod's veth pair.
    ///
    /// # Errors
    /// If there is no such pod, or it has no interface.
    pub fn interface_index(&self, key: &str) -> Result<u32> {
        let pod = self.pod(key)?;
        Links::open(&self.node(&pod.node)?.namespace, self.runtime().handle())?.index(&pod.interface)
    }

    /// Takes a pod in that somebody else has connected: a container runtime.
    ///
    /// # Errors
    /// If there is a pod of this name, or no such node.
    pub fn adopt_pod(&mut self, node: &str, key: &str, wired: Wired) -> Result<()> {
        self.node(node)?;
        anyhow::ensure!(!self.pods.contains_key(key), "pod {key} is there already");
        let Wired { namespace, interface, addresses } = wired;
        let pod = PodPlace { node: node.to_owned(), namespace, interface, addresses, routed: false };
        self.pods.insert(key.to_owned(), pod);
        Ok(())
    }

    /// Gives a pod back that was taken in.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn hand_back_pod(&mut self, key: &str) -> Result<Wired> {
        let pod = self.pods.remove(key).with_context(|| format!("no pod {key}"))?;
        Ok(Wired { namespace: pod.namespace, interface: pod.interface, addresses: pod.addresses })
    }
}

/// Forgets MAC addresses of others. Of no more than these: packets that wait for an answer would be lost.
fn forget(namespace: &Namespace, addresses: &[IpAddr]) -> Result<()> {
    for address in addresses {
        let mut flush = Command::new("ip");
        flush.args(["neigh", "flush", "to", &address.to_string()]);
        namespace.enter(|| flush.output())?.context("cannot flush the neighbours")?;
    }
    Ok(())
}
