//! What one pod may take of the tables: its own share and never another pod's. Needs root and the built object: `cargo xtask
//! test packet`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use netpol_agent::datapath::loader::default_config;
use netpol_agent::datapath::sizing::Sizing;
use netpol_common::abi::{CounterIndex, Direction, Endpoint, Hook, PolicyWord, Reason};
use netpol_common::classify::Frame;
use netpol_tests::frame::datagram::flag::{ACK, PSH_ACK, SYN, SYN_ACK};
use netpol_tests::frame::datagram::{Datagram, Transport};
use netpol_tests::packet::cast::{self, BRIDGE_MAC, Cast, DNS, Family, Isolation, OTHER_POD_MAC, POD_MAC, WEB};
use netpol_tests::packet::kernel::Kernel;
use netpol_tests::packet::privilege::object_or_skip;

const PLAIN: Frame = Frame { from_host_stack: false, mark: 0, hash: 0, vlan_tagged: false };
const FLOWS: u16 = 128;
const UNANSWERED: u16 = 64;

/// The two pods, each isolated so that only known flows get answers in; tables of a small share each.
struct Pods {
    kernel: Kernel,
    cast: Cast,
}

#[derive(Clone, Copy)]
enum Who {
    Pod,
    Other,
}

impl Pods {
    fn new(family: Family) -> Option<Self> {
        let object = object_or_skip().unwrap()?;
        let sizing = Sizing {
            slots: 16,
            flows_per_pod: FLOWS.into(),
            unanswered_per_pod: UNANSWERED.into(),
            ..Sizing::default()
        };
        let mut kernel = Kernel::load_sized(&object, default_config().unwrap(), &sizing).unwrap();
        let cast = Cast::of(family);
        let mut tables = cast.tables(kernel.config());
        tables.set_identity(cast.pod, cast::CLIENT_IDENTITY);
        kernel.reset(&tables).unwrap();
        Some(Self { kernel, cast })
    }

    fn subject(&mut self, who: Who) {
        let (endpoint, policy): (Endpoint, PolicyWord) = match who {
            Who::Pod => (cast::endpoint(), Isolation::Both.word(1)),
            Who::Other => (cast::other_endpoint(), Isolation::Both.word(1)),
        };
        self.kernel.set_subject(endpoint, policy).unwrap();
    }

    fn address(&self, who: Who) -> std::net::IpAddr {
        match who {
            Who::Pod => self.cast.pod,
            Who::Other => self.cast.other_pod,
        }
    }

    fn sends(&mut self, who: Who, transport: Transport) -> bool {
        self.subject(who);
        let mac = if matches!(who, Who::Pod) { POD_MAC } else { OTHER_POD_MAC };
        let frame = Datagram::new(self.address(who), self.cast.client, transport).frame(mac, BRIDGE_MAC).unwrap();
        self.kernel.run(Hook::FromPod, &frame, &PLAIN).unwrap().passed()
    }

    fn gets(&mut self, who: Who, transport: Transport) -> bool {
        self.subject(who);
        let mac = if matches!(who, Who::Pod) { POD_MAC } else { OTHER_POD_MAC };
        let frame = Datagram::new(self.cast.client, self.address(who), transport).frame(BRIDGE_MAC, mac).unwrap();
        self.kernel.run(Hook::ToPod, &frame, &PLAIN).unwrap().passed()
    }

    fn evicted(&mut self, slot: u16) -> u64 {
        let index = CounterIndex::new(slot, Direction::Egress, Reason::FlowEvicted);
        self.kernel.moved().unwrap().iter().filter(|(at, _)| *at == index).map(|(_, counter)| counter.packets).sum()
    }
}

const fn asks(port: u16) -> Transport {
    Transport::Udp { ports: [port, DNS] }
}

const fn answers(port: u16) -> Transport {
    Transport::Udp { ports: [DNS, port] }
}

const fn tcp_out(port: u16, flags: u8) -> Transport {
    Transport::Tcp { ports: [port, WEB], flags }
}

const fn tcp_back(port: u16, flags: u8) -> Transport {
    Transport::Tcp { ports: [WEB, port], flags }
}

#[test]
fn a_flood_of_unanswered_flows_pushes_out_the_pods_own_and_no_other_pods() {
    for family in Family::BOTH {
        let Some(mut pods) = Pods::new(family) else { return };
        assert!(pods.sends(Who::Other, asks(1000)) && pods.sends(Who::Pod, asks(1000)));
        for port in 2000..12_000 {
            assert!(pods.sends(Who::Pod, asks(port)), "policy allows it, whatever the tables hold");
        }
        assert!(pods.gets(Who::Other, answers(1000)), "{family}: another pod's flow is gone");
        assert!(!pods.gets(Who::Pod, answers(1000)), "{family}: a pod has its share and no more");
        for port in 12_000 - UNANSWERED..12_000 {
            assert!(pods.gets(Who::Pod, answers(port)), "{family}: port {port} is one of the newest");
        }
        assert!(!pods.gets(Who::Pod, answers(12_000 - UNANSWERED - 1)));
        assert!(pods.evicted(cast::SLOT) > 1000, "what might still be answered had to go, and that is told");
    }
}

#[test]
fn datagrams_push_out_no_connection_and_nothing_of_another_pod() {
    for family in Family::BOTH {
        let Some(mut pods) = Pods::new(family) else { return };
        let connect = |pods: &mut Pods, who, port| {
            assert!(pods.sends(who, tcp_out(port, SYN)) && pods.gets(who, tcp_back(port, SYN_ACK)));
            assert!(pods.sends(who, tcp_out(port, ACK)));
        };
        (1000..1010).for_each(|port| connect(&mut pods, Who::Pod, port));
        connect(&mut pods, Who::Other, 1000);
        for port in 2000..8000 {
            assert!(pods.sends(Who::Pod, asks(port)) && pods.gets(Who::Pod, answers(port)));
        }
        for port in 1000..1010 {
            assert!(pods.gets(Who::Pod, tcp_back(port, PSH_ACK)), "{family}: connection {port} is gone");
        }
        assert!(pods.gets(Who::Other, tcp_back(1000, PSH_ACK)));
        assert!(pods.gets(Who::Pod, answers(7999)) && !pods.gets(Who::Pod, answers(2000)));
        assert!(pods.evicted(cast::SLOT) > 1000, "live ones had to go, and that is told");
    }
}

#[test]
fn more_connections_than_a_pod_may_have_cost_it_the_oldest() {
    let Some(mut pods) = Pods::new(Family::V4) else { return };
    let connect = |pods: &mut Pods, who, port| {
        assert!(pods.sends(who, tcp_out(port, SYN)) && pods.gets(who, tcp_back(port, SYN_ACK)));
        assert!(pods.sends(who, tcp_out(port, ACK)));
    };
    connect(&mut pods, Who::Other, 999);
    let last = 1000 + 2 * FLOWS;
    (1000..last).for_each(|port| connect(&mut pods, Who::Pod, port));
    assert_eq!(pods.evicted(cast::SLOT), u64::from(FLOWS));
    assert!(pods.gets(Who::Other, tcp_back(999, PSH_ACK)));
    assert!(pods.gets(Who::Pod, tcp_back(last - 1, PSH_ACK)) && !pods.gets(Who::Pod, tcp_back(1000, PSH_ACK)));
    // Its own next packet opens it again, as policy still allows it.
    assert!(pods.sends(Who::Pod, tcp_out(1000, PSH_ACK)) && pods.gets(Who::Pod, tcp_back(1000, PSH_ACK)));
}

#[test]
fn fragments_of_one_pod_do_not_hide_those_of_another() {
    for family in Family::BOTH {
        let Some(mut pods) = Pods::new(family) else { return };
        let send = |pods: &mut Pods, who, id, offset| {
            pods.subject(who);
            let (mac, address) = match who {
                Who::Pod => (POD_MAC, pods.cast.pod),
                Who::Other => (OTHER_POD_MAC, pods.cast.other_pod),
            };
            let transport = if offset == 0 { asks(1000) } else { Transport::Raw { protocol: 17, bytes: vec![0; 64] } };
            let datagram = Datagram::new(address, pods.cast.client, transport).fragment(id, offset, offset == 0);
            pods.kernel.run(Hook::FromPod, &datagram.frame(mac, BRIDGE_MAC).unwrap(), &PLAIN).unwrap().passed()
        };
        assert!(send(&mut pods, Who::Other, 7, 0));
        for id in 1000..20_000 {
            assert!(send(&mut pods, Who::Pod, id, 0));
        }
        // One whose first is forgotten passes as well, for another reason.
        let mut went = |who, id| {
            pods.kernel.moved().unwrap();
            assert!(send(&mut pods, who, id, 1480));
            let slot = if matches!(who, Who::Pod) { cast::SLOT } else { cast::OTHER_SLOT };
            let index = CounterIndex::new(slot, Direction::Egress, Reason::FragmentOfAllowed);
            pods.kernel.moved().unwrap().iter().any(|(at, _)| *at == index)
        };
        assert!(went(Who::Other, 7), "{family}: another pod's datagram is forgotten");
        assert!(went(Who::Pod, 19_999) && !went(Who::Pod, 20_001));
    }
}
