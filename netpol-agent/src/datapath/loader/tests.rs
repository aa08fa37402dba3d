use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, fs};

use super::*;
use crate::datapath::attach::{AttachMode, Hooks, Mechanism, Role};
use crate::node::{Node, NodeConfig};
use crate::testing::{Sandbox, has_object, ifindex, in_sandbox, ip, run};

fn options(sandbox: &Sandbox) -> LoadOptions {
    LoadOptions { bpffs: sandbox.bpffs.clone(), config: default_config().unwrap(), sizing: Sizing::default() }
}

#[test]
fn the_tick_rate_is_one_that_kernels_are_built_with() {
    assert!([100, 250, 300, 1000].contains(&sys::ticks_per_second().unwrap()));
}

#[test]
fn the_tail_of_a_log_is_its_last_lines() {
    assert_eq!(tail("a\nb\nc", 2), "b\nc");
    assert_eq!(tail("a", 2), "a");
}

#[test]
fn every_pinned_map_of_the_table_is_in_the_object_and_nothing_else() {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        let datapath = open(&options(sandbox)).unwrap();
        assert!(!datapath.adopted);
        let mut pinned: Vec<String> = fs::read_dir(datapath.pins.maps())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut wanted: Vec<String> = Sizing::default()
            .maps()
            .iter()
            .map(|spec| format!("{}-v{}", spec.name, netpol_common::abi::layout(spec.name)))
            .collect();
        pinned.sort();
        wanted.sort();
        assert_eq!(pinned, wanted);
        for spec in datapath.sizing.maps() {
            let info = MapInfo::from_pin(datapath.pins.map(spec.name)).unwrap();
            assert_eq!(
                (info.key_size() as usize, info.value_size() as usize, info.max_entries()),
                (spec.key, spec.value, spec.entries),
                "{}",
                spec.name
            );
        }
    });
}

#[test]
fn a_second_start_adopts_the_maps_with_their_sizes_and_says_so() {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        let small = Sizing { slots: 64, flows_per_pod: 64, ..Sizing::default() };
        let first = open(&LoadOptions { sizing: small.clone(), ..options(sandbox) }).unwrap();
        assert!(first.kept_sizes.is_empty());
        assert!(matches!(open(&options(sandbox)), Err(LoadError::Pins(PinError::Locked { .. }))));
        drop(first);
        let second = open(&options(sandbox)).unwrap();
        assert!(second.adopted);
        assert_eq!(second.sizing, small);
        assert_eq!(second.store.slots(), 64);
        let kept: Vec<&str> = second.kept_sizes.iter().map(|kept| kept.map).collect();
        for map in [map::POLICY_WORDS, map::PODS, map::FLOWS_V4, map::FLOWS_V4_RING, map::FRAGMENTS, map::COUNTERS] {
            assert!(kept.contains(&map), "{map} is not among {kept:?}");
        }
        assert!(!kept.contains(&map::ALLOW));
    });
}

#[test]
fn a_pinned_map_of_another_layout_is_refused() {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        let pins = PinDir::create(&sandbox.bpffs).unwrap();
        let other = aya::maps::Array::<MapData, u32>::create(4, 0).unwrap();
        other.pin(pins.map(map::ALLOW)).unwrap();
        let error = open(&options(sandbox)).map(drop).unwrap_err();
        assert!(matches!(error, LoadError::Sizing(SizingError::Layout { map: map::ALLOW, .. })), "{error}");
        assert!(error.to_string().contains("netpol-agent cleanup"), "{error}");
    });
}

/// Set in the child of the next test.
const UNDER_CAPABILITIES: &str = "NETPOL_TEST_BPFFS";
const NAME: &str = "datapath::loader::tests::loading_and_attaching_need_no_more_than_the_documented_capabilities";

#[test]
fn loading_and_attaching_need_no_more_than_the_documented_capabilities() {
    if let Some(bpffs) = env::var_os(UNDER_CAPABILITIES) {
        return under_capabilities(Sandbox { bpffs: bpffs.into() });
    }
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        ip("link add veth0 type veth peer name peer0");
        ip("link add cni0 type bridge");
        ip("addr add 10.244.0.1/24 dev cni0");
        ip("link set veth0 master cni0");
        for name in ["cni0", "veth0", "peer0"] {
            ip(&format!("link set {name} up"));
        }
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", NAME, "--nocapture"]).env(UNDER_CAPABILITIES, &sandbox.bpffs);
        #[expect(unsafe_code, reason = "the capabilities must go between fork and exec")]
        // SAFETY: prctl is async-signal-safe and nothing is allocated.
        unsafe {
            child.pre_exec(keep_only_the_documented_capabilities);
        }
        assert!(child.status().unwrap().success());
    });
}

/// Drops all but CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF from the bounding set: after exec, root has no others.
fn keep_only_the_documented_capabilities() -> io::Result<()> {
    const KEPT: [libc::c_ulong; 3] = [12, 38, 39];
    const LAST: libc::c_ulong = 40;
    for capability in (0..=LAST).filter(|capability| !KEPT.contains(capability)) {
        #[expect(unsafe_code, reason = "prctl(2)")]
        // SAFETY: takes no pointers.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The pod's end of veth0 is beyond reach, so an unanswered question must do.
fn finds_a_pod() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut node = Node::start(&NodeConfig::default()).await.unwrap();
        let wanted = BTreeSet::from(["10.244.0.11".parse().unwrap()]);
        node.want(wanted.clone());
        assert_eq!(node.view().unresolved, wanted);
        node.settle(Duration::from_secs(10)).await;
        assert_eq!(node.view().unresolved, BTreeSet::new());
        assert_ne!(run("ip", "neigh show 10.244.0.11 dev cni0"), "", "the kernel was not asked");
    });
}

fn under_capabilities(sandbox: Sandbox) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find(|line| line.starts_with("CapEff:")).unwrap();
    assert_eq!(effective, "CapEff:\t000000c000001000");
    let veth = ifindex("veth0");
    for (mode, mechanism) in [(AttachMode::Auto, Mechanism::Tcx), (AttachMode::Clsact, Mechanism::Clsact)] {
        let datapath = open(&options(&sandbox)).unwrap();
        datapath.store.actual().unwrap();
        datapath.store.counters(0).unwrap();
        let mut hooks = Hooks::new(datapath.programs, datapath.pins.clone(), mode);
        assert_eq!(hooks.attach(veth, Role::Pod).unwrap().mechanism, mechanism);
        assert!(hooks.is_attached(veth, Role::Pod).unwrap());
    }
    finds_a_pod();
    crate::datapath::attach::cleanup(&PinDir::at(&sandbox.bpffs).unwrap()).unwrap();
}
