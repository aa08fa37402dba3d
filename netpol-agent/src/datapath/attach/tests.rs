use netpol_common::abi::map;

use super::*;
use crate::datapath::loader::{LoadOptions, Program, default_config, open};
use crate::datapath::pins::PinLock;
use crate::datapath::sizing::Sizing;
use crate::testing::{Sandbox, has_object, ifindex, in_sandbox, ip, run};

/// An agent as far as attaching goes.
struct Agent {
    hooks: Hooks,
    pins: PinDir,
    _lock: PinLock,
}

fn agent(sandbox: &Sandbox, mode: AttachMode) -> Agent {
    let sizing = Sizing { slots: 16, flows_per_pod: 64, unanswered_per_pod: 64, ..Sizing::default() };
    let options = LoadOptions { bpffs: sandbox.bpffs.clone(), config: default_config().unwrap(), sizing };
    let datapath = open(&options).unwrap();
    let hooks = Hooks::new(datapath.programs, datapath.pins.clone(), mode);
    Agent { hooks, pins: datapath.pins, _lock: datapath.lock }
}

fn with_veth(test: impl FnOnce(&Sandbox, u32) + Send) {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        ip("link add veth0 type veth peer name peer0");
        test(sandbox, ifindex("veth0"));
    });
}

fn qdiscs() -> String {
    run("tc", "qdisc show dev veth0 clsact")
}

#[test]
fn modes_are_named_as_the_flag_spells_them() {
    assert_eq!("auto".parse(), Ok(AttachMode::Auto));
    assert_eq!("tcx".parse(), Ok(AttachMode::Tcx));
    assert_eq!("clsact".parse(), Ok(AttachMode::Clsact));
    assert!("TCX".parse::<AttachMode>().is_err());
}

#[test]
fn a_new_process_takes_over_the_hooks_of_the_old_one() {
    for (mode, mechanism) in [(AttachMode::Auto, Mechanism::Tcx), (AttachMode::Clsact, Mechanism::Clsact)] {
        with_veth(|sandbox, veth| {
            let mut first = agent(sandbox, mode);
            let attachment = first.hooks.attach(veth, Role::Pod).unwrap();
            assert_eq!(attachment, Attachment { mechanism, adopted: vec![], ahead: vec![] });
            assert!(first.hooks.is_attached(veth, Role::Pod).unwrap());
            drop(first);
            let mut second = agent(sandbox, mode);
            assert!(!second.hooks.is_attached(veth, Role::Pod).unwrap());
            second.hooks.forget_vanished().unwrap();
            assert_eq!(second.pins.interfaces().unwrap(), BTreeSet::from([veth]));
            assert!(second.hooks.is_live(veth, Role::Pod).unwrap());
            assert_eq!(second.hooks.attach(veth, Role::Pod).unwrap().adopted, Role::Pod.hooks());
            assert!(second.hooks.is_attached(veth, Role::Pod).unwrap());
            // One program at each hook, not two.
            let total: usize = DIRECTIONS
                .iter()
                .map(|hook| match mechanism {
                    Mechanism::Tcx => sys::tcx_programs(veth, *hook).unwrap().len(),
                    Mechanism::Clsact => tc::count_filters(veth, *hook).unwrap(),
                })
                .sum();
            assert_eq!(total, 2);
            second.hooks.detach(veth).unwrap();
            second.hooks.detach(veth).unwrap();
            assert!(!second.hooks.is_attached(veth, Role::Pod).unwrap());
            assert_eq!(second.pins.interfaces().unwrap(), BTreeSet::new());
            assert_eq!(qdiscs(), "");
        });
    }
}

#[test]
fn a_change_of_mode_leaves_one_mechanism() {
    with_veth(|sandbox, veth| {
        for (mode, tcx, clsact) in [(AttachMode::Tcx, 1, 0), (AttachMode::Clsact, 0, 1), (AttachMode::Tcx, 1, 0)] {
            let mut agent = agent(sandbox, mode);
            agent.hooks.attach(veth, Role::Pod).unwrap();
            assert!(agent.hooks.is_attached(veth, Role::Pod).unwrap());
            for hook in DIRECTIONS {
                assert_eq!(sys::tcx_programs(veth, hook).unwrap().len(), tcx);
                assert_eq!(tc::count_filters(veth, hook).unwrap(), clsact);
            }
        }
        assert_eq!(qdiscs(), "");
    });
}

#[test]
fn a_program_ahead_of_ours_is_reported() {
    with_veth(|sandbox, veth| {
        let mut agent = agent(sandbox, AttachMode::Auto);
        agent.hooks.attach(veth, Role::Pod).unwrap();
        // Any program will do as the foreign one.
        let Program { fd, id } = agent.hooks.programs.at(Hook::ToPod);
        let (link, foreign) = (sys::tcx_attach_first(fd.as_fd(), veth, Hook::FromPod).unwrap(), *id);
        assert_eq!(agent.hooks.attach(veth, Role::Pod).unwrap().ahead, [(Hook::FromPod, vec![foreign])]);
        sys::link_detach(link.as_fd()).unwrap();
        assert_eq!(agent.hooks.attach(veth, Role::Pod).unwrap().ahead, []);
    });
}

#[test]
fn foreign_filters_and_their_qdisc_stay() {
    with_veth(|sandbox, veth| {
        run("tc", "qdisc add dev veth0 clsact");
        let foreign = agent(sandbox, AttachMode::Clsact);
        let pin = foreign.pins.maps().join("foreign");
        sys::pin(foreign.hooks.programs.at(Hook::FromPod).fd.as_fd(), &pin).unwrap();
        let add = format!("filter add dev veth0 ingress prio 1 handle 1 bpf direct-action pinned {}", pin.display());
        run("tc", &add);
        drop(foreign);
        let mut agent = agent(sandbox, AttachMode::Clsact);
        agent.hooks.attach(veth, Role::Pod).unwrap();
        assert!(agent.hooks.is_attached(veth, Role::Pod).unwrap());
        assert_eq!(tc::count_filters(veth, Hook::FromPod).unwrap(), 2);
        cleanup(&agent.pins).unwrap();
        assert_eq!(tc::count_filters(veth, Hook::FromPod).unwrap(), 1);
        assert_eq!(tc::count_filters(veth, Hook::ToPod).unwrap(), 0);
        assert_ne!(qdiscs(), "");
        assert!(!agent.pins.map(map::ALLOW).exists());
    });
}

#[test]
fn an_ingress_qdisc_in_the_place_of_clsact_is_refused_and_left_alone() {
    with_veth(|sandbox, veth| {
        run("tc", "qdisc add dev veth0 ingress");
        let mut agent = agent(sandbox, AttachMode::Clsact);
        for role in [Role::Pod, Role::Uplink] {
            let error = agent.hooks.attach(veth, role).unwrap_err();
            assert!(matches!(error, AttachError::IngressQdisc { .. }), "{error}");
        }
        assert_eq!(run("tc", "filter show dev veth0 ingress"), "");
        agent.hooks.detach(veth).unwrap();
        assert!(run("tc", "qdisc show dev veth0 ingress").contains("ingress"));
    });
}

#[test]
fn a_foreign_filter_in_our_place_is_not_replaced() {
    with_veth(|sandbox, veth| {
        let mut agent = agent(sandbox, AttachMode::Clsact);
        let pin = agent.pins.maps().join("foreign");
        sys::pin(agent.hooks.programs.at(Hook::FromPod).fd.as_fd(), &pin).unwrap();
        run("tc", "qdisc add dev veth0 clsact");
        let add =
            format!("filter add dev veth0 egress prio 1 handle 0x6e70 bpf direct-action pinned {}", pin.display());
        run("tc", &add);
        let error = agent.hooks.attach(veth, Role::Pod).unwrap_err();
        assert!(matches!(error, AttachError::Taken { hook: Hook::ToPod, .. }), "{error}");
        agent.hooks.detach(veth).unwrap();
        assert_eq!(tc::own_filter(veth, Hook::ToPod).unwrap(), tc::Filter::Foreign);
    });
}

#[test]
fn pins_of_a_vanished_interface_are_collected_and_its_index_can_come_back() {
    for mode in [AttachMode::Auto, AttachMode::Clsact] {
        with_veth(|sandbox, veth| {
            let mut agent = agent(sandbox, mode);
            agent.hooks.attach(veth, Role::Pod).unwrap();
            ip("link del veth0");
            let error = agent.hooks.attach(veth, Role::Pod).unwrap_err();
            assert!(matches!(error, AttachError::Gone { .. }), "{error}");
            agent.hooks.attach(veth, Role::Pod).unwrap_err();
            agent.hooks.detach(veth).unwrap();
            agent.hooks.forget_vanished().unwrap();
            assert_eq!(agent.pins.interfaces().unwrap(), BTreeSet::new());
            ip(&format!("link add veth0 index {veth} type veth peer name peer0"));
            assert!(!agent.hooks.is_live(veth, Role::Pod).unwrap());
            assert_eq!(agent.hooks.attach(veth, Role::Pod).unwrap().adopted, []);
            assert!(agent.hooks.is_live(veth, Role::Pod).unwrap());
            ip("link del veth0");
            ip(&format!("link add veth0 index {veth} type veth peer name peer0"));
            assert_eq!(agent.hooks.attach(veth, Role::Pod).unwrap().adopted, []);
            assert!(agent.hooks.is_attached(veth, Role::Pod).unwrap());
            ip("link del veth0");
            agent.hooks.forget_vanished().unwrap();
            assert_eq!(agent.pins.interfaces().unwrap(), BTreeSet::new());
        });
    }
}

/// Programs of ours at the hooks, in the order of `HOOKS`.
fn ours(agent: &Agent, ifindex: u32) -> [bool; 3] {
    HOOKS.map(|hook| {
        let program = agent.hooks.programs.at(hook).id;
        let by_tcx = sys::tcx_programs(ifindex, hook).unwrap().iter().any(|it| it.id == program);
        by_tcx || tc::own_filter(ifindex, hook).unwrap() == tc::Filter::Ours { program }
    })
}

#[test]
fn an_interface_has_the_hooks_of_its_present_role_and_no_others() {
    for mode in [AttachMode::Auto, AttachMode::Clsact] {
        with_veth(|sandbox, veth| {
            let mut first = agent(sandbox, mode);
            first.hooks.attach(veth, Role::Uplink).unwrap();
            assert_eq!(ours(&first, veth), [false, false, true]);
            assert!(first.hooks.is_attached(veth, Role::Uplink).unwrap());
            assert!(!first.hooks.is_attached(veth, Role::Pod).unwrap());
            drop(first);
            let mut second = agent(sandbox, mode);
            assert_eq!(second.hooks.attach(veth, Role::Uplink).unwrap().adopted, [Hook::ToUplink]);
            assert_eq!(second.hooks.left_by_earlier_agent().unwrap(), BTreeSet::from([veth]));
            second.hooks.attach(veth, Role::Pod).unwrap();
            assert_eq!(ours(&second, veth), [true, true, false]);
            second.hooks.attach(veth, Role::Uplink).unwrap();
            assert_eq!(ours(&second, veth), [false, false, true]);
            second.hooks.detach(veth).unwrap();
            assert_eq!(ours(&second, veth), [false; 3]);
            second.hooks.attach(veth, Role::Uplink).unwrap();
            cleanup(&second.pins).unwrap();
            assert_eq!(ours(&second, veth), [false; 3]);
            assert_eq!(qdiscs(), "");
        });
    }
}

#[test]
fn a_program_in_another_network_namespace_is_neither_taken_over_nor_ended() {
    with_veth(|sandbox, veth| {
        let mut first = agent(sandbox, AttachMode::Auto);
        first.hooks.attach(veth, Role::Pod).unwrap();
        drop(first);
        let lower = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip(&format!("link add veth0 index {veth} type veth peer name peer0"));
        let mut second = agent(sandbox, AttachMode::Auto);
        assert!(!second.hooks.is_live(veth, Role::Pod).unwrap());
        assert_eq!(second.hooks.attach(veth, Role::Pod).unwrap().adopted, []);
        second.hooks.detach(veth).unwrap();
        assert_eq!(second.pins.set_aside_earlier().unwrap().len(), Role::Pod.hooks().len());
        nix::sched::setns(&lower, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for &hook in Role::Pod.hooks() {
            assert_eq!(sys::tcx_programs(veth, hook).unwrap().len(), 1, "it goes on");
        }
        ip("link del veth0");
        second.hooks.forget_vanished().unwrap();
        assert_eq!(second.pins.set_aside_earlier().unwrap(), [""; 0].map(std::path::PathBuf::from));
    });
}

#[test]
fn a_start_that_ended_between_mark_and_qdisc_is_cleaned_up() {
    with_veth(|sandbox, veth| {
        let agent = agent(sandbox, AttachMode::Clsact);
        let any = sys::open_pin(&agent.pins.map(map::EVENTS_LOST)).unwrap();
        sys::pin(any.as_fd(), &agent.pins.clsact_mark(veth)).unwrap();
        cleanup(&agent.pins).unwrap();
        run("tc", "qdisc add dev veth0 clsact");
        assert_ne!(qdiscs(), "");
    });
}
