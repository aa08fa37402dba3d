//! A host behind the outside host, over a link with a smaller MTU: what path-MTU discovery and traceroute are about.
//!
//! The outside host becomes the router between the node's uplink and the far link; nothing of the node changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::arena::in_namespace;
use crate::netns::Namespace;
use crate::node::{Node, OUTSIDE};

/// The far host's addresses.
pub const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xcafe, 0, 0, 0, 0, 9))];
/// What the far link carries from the router on. The far host's own end takes more, or TCP would agree on less at once.
pub const MTU: usize = 1300;

/// The far host; it goes with its node's run.
#[derive(Debug)]
pub struct Beyond {
    /// Its namespace.
    pub namespace: Namespace,
}

impl Beyond {
    /// Adds the far host to a node.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add(node: &Node) -> Result<Self> {
        let namespace = Namespace::create(node.run(), "beyond")?;
        let router = node.namespace(OUTSIDE)?;
        router.set_sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        let near = |words: &str| in_namespace(node, OUTSIDE, "ip", &words.split(' ').collect::<Vec<_>>());
        near(&format!("link add far0 mtu {MTU} type veth peer name eth0 mtu 1500 netns {}", namespace.name()))?;
        near("address add 203.0.113.1/24 dev far0")?;
        near("address add 2001:db8:cafe::1/64 dev far0 nodad")?;
        near("link set far0 up")?;
        for words in [
            "link set lo up",
            "address add 203.0.113.9/24 dev eth0",
            "address add 2001:db8:cafe::9/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 203.0.113.1",
            "-6 route add default via 2001:db8:cafe::1",
        ] {
            let arguments = words.split(' ').collect::<Vec<_>>();
            let output = namespace.enter(|| Command::new("ip").args(&arguments).output())?.context("cannot run ip")?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "ip {words}: {errors}");
        }
        Ok(Self { namespace })
    }

    /// Its address in a family.
    #[must_use]
    pub fn address(ipv6: bool) -> IpAddr {
        let [v4, v6] = ADDRESSES;
        if ipv6 { v6 } else { v4 }
    }
}
