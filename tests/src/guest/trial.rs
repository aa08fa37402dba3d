//! The trial itself: verify each program, load and attach as the agent does, send a few frames.
//!
//! Each step tells its result; the first that fails ends the trial.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunOptions};
use futures_util::TryStreamExt as _;
use netpol_agent::datapath::attach::{AttachMode, Hooks, Mechanism, Role};
use netpol_agent::datapath::loader::{Datapath, LoadOptions, default_config, embedded_object, load_object, open};
use netpol_agent::datapath::pins::PinDir;
use netpol_agent::datapath::plan::MapStore as _;
use netpol_agent::datapath::sizing::Sizing;
use netpol_agent::datapath::store::KernelStore;
use netpol_common::abi::{Direction, Endpoint, EndpointFlags, Hook, Mac, program};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use serde_json::json;

use super::verifier::{self, verify};
use super::{frames, machine, tell};

/// `TC_ACT_SHOT`.
const DROP: u32 = 2;
/// `TC_ACT_UNSPEC`.
const PASS: u32 = u32::MAX;
/// The slot of the pod behind the veth pair.
const VETH_SLOT: u16 = 2;
/// The node's end of the veth pair, where the hooks go.
const NODE_END: &str = "veth0";
/// The pod's.
const POD_END: &str = "eth0";
/// For IPv6 to start on a new interface: it talks to its neighbours unasked.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(20);

/// Runs the trial.
pub(super) fn run() -> Result<()> {
    let options =
        LoadOptions { bpffs: PathBuf::from(machine::BPFFS), config: default_config()?, sizing: Sizing::default() };
    let mut ebpf = verify_each(&options, &PinDir::create(&options.bpffs)?)?;
    let start = Instant::now();
    let Datapath { programs, mut store, mut events, pins, lock: _lock, .. } = open(&options)?;
    tell(&json!({ "opened": { "seconds": start.elapsed().as_secs_f64() } }));
    let mut hooks = Hooks::new(programs, pins, AttachMode::Auto);
    attach(&mut hooks, &mut store)?;
    send(&mut ebpf, &mut store)?;
    ensure!(events.next().is_some(), "the ring buffer has no event of a dropped frame");
    Ok(())
}

/// Each program by itself, timed, with the maps that [`open`] adopts after it. Returned loaded, for test runs.
fn verify_each(options: &LoadOptions, pins: &PinDir) -> Result<Ebpf> {
    let object = embedded_object()?;
    let load = || load_object(object, &options.config, &options.sizing, Some(pins));
    let mut ebpf = load()?;
    for name in [program::FROM_POD, program::TO_POD, program::TO_UPLINK] {
        let verified = verify(&mut ebpf, name)?;
        let instructions = match verified.instructions {
            None | Some(0) => verifier::count_by_log(&mut load()?, name)?,
            told => told,
        };
        tell(&json!({ "verified": {
            "program": name, "instructions": instructions, "seconds": verified.time.as_secs_f64(),
        } }));
    }
    Ok(ebpf)
}

/// Hooks on one end of a veth pair, and the packets that the kernel itself sends over it.
fn attach(hooks: &mut Hooks, store: &mut KernelStore) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let links = runtime.block_on(async {
        let (connection, links, _messages) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        anyhow::Ok(links)
    })?;
    let (ifindex, pod_mac) = runtime.block_on(add_veth(&links))?;
    let endpoint = Endpoint {
        slot: VETH_SLOT,
        flags: EndpointFlags::HAS_V6,
        mac: Mac::from_octets(pod_mac),
        ..Endpoint::default()
    };
    store.write_endpoint(ifindex, &endpoint)?;
    let attachment = hooks.attach(ifindex, Role::Pod)?;
    ensure!(hooks.is_attached(ifindex, Role::Pod)?, "attached, and the hooks are not there");
    runtime.block_on(bring_up(&links))?;
    let start = Instant::now();
    loop {
        let counters = store.counters(VETH_SLOT)?;
        if Direction::ALL.iter().all(|wanted| counters.keys().any(|(direction, _)| direction == wanted)) {
            break;
        }
        ensure!(start.elapsed() < TRAFFIC_LIMIT, "attached, and packets were counted only for {counters:?}");
        thread::sleep(Duration::from_millis(20));
    }
    let mechanism = match attachment.mechanism {
        Mechanism::Tcx => "TCX",
        Mechanism::Clsact => "clsact",
    };
    tell(&json!({ "attached": mechanism }));
    hooks.detach(ifindex)?;
    ensure!(!hooks.is_attached(ifindex, Role::Pod)?, "detached, and the hooks are still there");
    Ok(())
}

/// Makes the pair and tells the index of the node's end and the MAC address of the pod's.
async fn add_veth(links: &Handle) -> Result<(u32, [u8; 6])> {
    links.link().add(LinkVeth::new(NODE_END, POD_END).build()).execute().await.context("cannot make a veth pair")?;
    let mut found = links.link().get().match_name(POD_END.to_owned()).execute();
    let link = found.try_next().await?.context("the pair has one end")?;
    let mac = link.attributes.iter().find_map(|attribute| {
        let LinkAttribute::Address(bytes) = attribute else { return None };
        <[u8; 6]>::try_from(bytes.as_slice()).ok()
    });
    Ok((if_nametoindex(NODE_END)?, mac.context("the pod's end has no MAC address")?))
}

async fn bring_up(links: &Handle) -> Result<()> {
    for name in [NODE_END, POD_END] {
        let up = LinkUnspec::new_with_index(if_nametoindex(name)?).up().build();
        links.link().set(up).execute().await.with_context(|| format!("cannot bring {name} up"))?;
    }
    Ok(())
}

/// Sends the frames and holds each verdict against what it must be.
fn send(ebpf: &mut Ebpf, store: &mut KernelStore) -> Result<()> {
    store.write_endpoint(frames::LOOPBACK, &frames::endpoint()?)?;
    store.apply(&frames::policy()?).map_err(|(_, error)| error)?;
    let cases = frames::cases()?;
    for case in &cases {
        let name = match case.hook {
            Hook::FromPod => program::FROM_POD,
            Hook::ToPod => program::TO_POD,
            Hook::ToUplink => program::TO_UPLINK,
        };
        let classifier = verifier::classifier(ebpf, name)?;
        let run = classifier.test_run(TestRunOptions { data_in: Some(&case.frame), ..TestRunOptions::default() });
        let code = run.with_context(|| format!("cannot run {name} on {}", case.name))?.return_value;
        let wanted = if case.passes { PASS } else { DROP };
        if code != wanted {
            let counters = store.counters(frames::SLOT)?;
            bail!("{name} returned {code:#x} and not {wanted:#x} for {}; counters of the pod: {counters:?}", case.name);
        }
    }
    tell(&json!({ "test_run": cases.len() }));
    Ok(())
}
