//! What the parts are made of: flags -> options of the loader, and what an earlier agent left -> the enforcer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use netpol_common::abi::{Config, Mark, PORT_SET_BYTES, Prefix, V4, V6};

use crate::cli::{Pending, RunArgs, Told};
use crate::datapath::apply::Applier;
use crate::datapath::attach::Hooks;
use crate::datapath::backstop::Backstop;
use crate::datapath::desired::Tables;
use crate::datapath::flows::FlowTables;
use crate::datapath::installed::Installed;
use crate::datapath::loader::{self, LoadOptions};
use crate::datapath::sizing::Sizing;
use crate::datapath::store::KernelStore;
use crate::datapath::takeover::{self, Others};
use crate::endpoints::{Endpoints, Left};
use crate::enforcer::{Enforcer, Parts};
use crate::flow::enrich::Clock;
use crate::policy::{Compiler, Limits};

/// What to load, as the flags say.
pub(crate) fn load_options(args: &RunArgs) -> Result<LoadOptions> {
    let mut config = loader::default_config()?.with_mark_mask(args.mark_mask);
    let slots_in_mark = Mark::slots(args.mark_mask);
    if u32::from(args.max_pods) > slots_in_mark {
        bail!(
            "--max-pods {} does not fit into --mark-mask {:#x}, which holds {} pods; give a wider mask or fewer pods",
            args.max_pods,
            args.mark_mask,
            slots_in_mark
        );
    }
    set_service_ranges(&mut config, &args.service_cidr)?;
    for (set, flag) in [
        (args.strict_tcp, Config::STRICT_TCP),
        (args.enforce_own_node, Config::ENFORCE_OWN_NODE),
        (args.allow_any_source, Config::ANY_SOURCE),
        (args.flow.flows != Told::Drops, Config::TELL_ALLOWED),
        (args.flow.flows == Told::All, Config::TELL_UNPOLICED),
    ] {
        config.flags |= if set { flag } else { 0 };
    }
    let sizing = Sizing { slots: u32::from(args.max_pods) + 1, ..Sizing::default() };
    Ok(LoadOptions { bpffs: args.bpffs.clone(), config, sizing })
}

/// One service range a family.
fn set_service_ranges(config: &mut Config, ranges: &[IpNet]) -> Result<()> {
    for range in ranges {
        let taken = match range {
            IpNet::V4(range) => {
                let (address, mask) = (V4::from(range.network()), V4::from(range.netmask()));
                std::mem::replace(&mut config.services_v4, Prefix { address: [address.0], mask: [mask.0] })
                    != Prefix::NONE
            }
            IpNet::V6(range) => {
                let (address, mask) = (V6::from(range.network()), V6::from(range.netmask()));
                std::mem::replace(&mut config.services_v6, Prefix { address: address.0, mask: mask.0 }) != Prefix::NONE
            }
        };
        if taken {
            bail!("--service-cidr {range} is the second range of its family; give one IPv4 and one IPv6 range");
        }
        if range.prefix_len() == 0 {
            bail!(
                "--service-cidr {range} is every address; give the range of kube-apiserver's --service-cluster-ip-range"
            );
        }
    }
    Ok(())
}

pub(super) fn enforcer(
    args: &RunArgs,
    (mut store, flows): (KernelStore, FlowTables),
    hooks: Hooks,
    others: Others,
) -> Result<Enforcer> {
    let left = takeover::left(&mut store, &others, &hooks)?;
    let actual = store.actual()?;
    let slots = u16::try_from(store.slots()).context("more slots than a flow key can name")?;
    let numbers = actual.port_sets();
    let mut tables = Tables { addresses: actual.addresses, cidrs: actual.cidrs, ..Tables::default() };
    for (key, value) in actual.allow {
        tables.allow.entry(key.policy).or_default().insert(key.identity, value);
    }
    for number in numbers {
        let bits: Arc<[u8; PORT_SET_BYTES]> = store.port_set(number)?.into();
        tables.port_sets.insert(number, bits);
    }
    let installed = Installed { tables, words: actual.words };
    let limits = Limits { slots: u32::from(slots), ..Limits::default() };
    let mut endpoints = Endpoints::new(slots, args.pending_pods == Pending::Deny);
    let adopted = left.endpoints.iter().map(|(&ifindex, &endpoint)| Left { ifindex, endpoint });
    endpoints.adopt(adopted, installed.words.keys().copied().chain(left.freed));
    Ok(Enforcer::new(Parts {
        compiler: Compiler::new(limits, installed.numbers()),
        applier: Applier::new(installed, args.on_apply_failure.into()),
        store,
        hooks,
        endpoints,
        flows,
        backstop: Backstop::new(args.mark_mask),
        live: left.live,
        others,
    }))
}

/// Wall-clock time at the zero of CLOCK_MONOTONIC, which events are stamped with.
pub(super) fn clock() -> Result<Clock> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).context("cannot read CLOCK_MONOTONIC")?;
    let zero = SystemTime::now().checked_sub(Duration::from(now)).context("the wall clock is before the boot")?;
    Ok(Clock { zero })
}

/// What flows call this node: its name, or this machine's where it was not told.
pub(super) fn node_name(args: &RunArgs) -> String {
    if !args.node.is_empty() {
        return args.node.clone();
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map(|name| name.trim().to_owned()).unwrap_or_default()
}
