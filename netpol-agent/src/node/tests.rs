//! On real interfaces in throw-away namespaces: a bridge as Flannel makes it, routed veths, pods that come and go.

use std::fs;

use super::*;
use crate::testing::{Netns, ifindex, in_sandbox, ip, run};

const LIMIT: Duration = Duration::from_secs(10);

/// A pod in a namespace of its own.
struct Pod {
    netns: Netns,
    host_end: String,
}

impl Pod {
    /// Makes a veth pair whose pod end, `eth0`, has these addresses.
    fn new(host_end: &str, addresses: &[&str]) -> Self {
        let netns = Netns::new();
        ip(&format!("link add {host_end} type veth peer name eth0 netns {}", netns.path()));
        netns.run(|| {
            without_duplicate_detection();
            ip("link set eth0 up");
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                ip(&format!("addr add {address} dev eth0 {nodad}"));
            }
        });
        ip(&format!("link set {host_end} up"));
        Self { netns, host_end: host_end.to_owned() }
    }

    fn on_bridge(host_end: &str, addresses: &[&str]) -> Self {
        let pod = Self::new(host_end, addresses);
        ip(&format!("link set {host_end} master cni0"));
        pod
    }

    fn mac(&self) -> [u8; 6] {
        let shown = self.netns.run(|| run("ip", "-o link show eth0"));
        let address = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        let octets: Vec<u8> = address.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
        octets.try_into().unwrap()
    }

    fn ifindex(&self) -> u32 {
        ifindex(&self.host_end)
    }
}

/// IPv6 addresses work at once.
fn without_duplicate_detection() {
    for scope in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0").unwrap();
    }
}

fn bridge() {
    without_duplicate_detection();
    ip("link add cni0 type bridge");
    ip("addr add 10.244.0.1/24 dev cni0");
    ip("addr add fd00:244::1/64 dev cni0 nodad");
    ip("link set cni0 up");
}

fn with_node(prepare: impl FnOnce() + Send, test: impl AsyncFnOnce(Node) + Send) {
    in_sandbox(|_| {
        prepare();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Node::start(&NodeConfig::default()).await.unwrap()).await });
    });
}

fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

fn interface(pod: &Pod, found: &[&str]) -> PodInterface {
    let mac = (!found.is_empty()).then(|| pod.mac());
    PodInterface { ifindex: pod.ifindex(), name: pod.host_end.clone(), mac, addresses: addresses(found) }
}

/// Goes on until the view is as wanted; fails with the last view.
async fn until(node: &mut Node, wanted: impl Fn(&NodeView) -> bool) -> Duration {
    let start = Instant::now();
    while !wanted(node.view()) {
        if tokio::time::timeout(LIMIT, node.changed()).await.is_err() {
            panic!("still not as wanted: {:#?}\n{:#?}", node.view(), node.state);
        }
    }
    start.elapsed()
}

/// Follows the kernel for a while, whatever happens.
async fn follow_for(node: &mut Node, time: Duration) {
    let forever = async {
        loop {
            node.changed().await;
        }
    };
    let (): () = tokio::time::timeout(time, forever).await.unwrap_or_default();
}

#[test]
fn pods_on_a_bridge_are_found_by_either_family_and_others_are_not_here() {
    with_node(bridge, async |mut node| {
        let first = Pod::on_bridge("veth1", &["10.244.0.11/24", "fd00:244::11/64"]);
        let second = Pod::on_bridge("veth2", &["fd00:244::12/64"]);
        let idle = Pod::on_bridge("veth3", &["10.244.0.13/24"]);
        let here = ["10.244.0.11", "fd00:244::11", "fd00:244::12"];
        let elsewhere = ["10.244.1.11", "fd00:245::1", "192.0.2.1", "10.244.0.1"];
        node.want(addresses(&[&here[..], &elsewhere].concat()));
        assert!(node.settle(LIMIT).await, "{:#?}", node.view());
        let expected = [
            interface(&first, &["10.244.0.11", "fd00:244::11"]),
            interface(&second, &["fd00:244::12"]),
            interface(&idle, &[]),
        ];
        until(&mut node, |view| view.interfaces.len() == 3).await;
        assert_eq!(Vec::from_iter(node.view().interfaces.values().cloned()), expected);
        assert!(node.view().own_addresses.is_superset(&addresses(&["10.244.0.1", "fd00:244::1"])));
        assert!(!node.view().own_addresses.contains(&"127.0.0.1".parse().unwrap()));
        assert_eq!(node.view().problems, []);
    });
}

#[test]
fn a_pod_that_was_there_before_is_found_on_start() {
    let make = || {
        bridge();
        std::mem::forget(Pod::on_bridge("veth1", &["10.244.0.11/24"]));
    };
    with_node(make, async |mut node| {
        assert_eq!(node.view().interfaces.len(), 1);
        node.want(addresses(&["10.244.0.11"]));
        assert!(node.settle(LIMIT).await);
        assert_eq!(node.view().interfaces.values().next().unwrap().addresses, addresses(&["10.244.0.11"]));
        node.want(BTreeSet::new());
        assert_eq!(node.view().interfaces.values().next().unwrap().addresses, BTreeSet::new());
    });
}

#[test]
fn an_address_that_nobody_has_is_given_up_and_found_once_its_pod_comes() {
    with_node(bridge, async |mut node| {
        node.want(addresses(&["10.244.0.11"]));
        assert_eq!(node.view().unresolved, addresses(&["10.244.0.11"]));
        assert!(node.settle(LIMIT).await, "{:#?}", node.view());
        let pod = Pod::on_bridge("veth1", &["10.244.0.11/24"]);
        let expected = interface(&pod, &["10.244.0.11"]);
        until(&mut node, |view| view.interfaces.get(&expected.ifindex) == Some(&expected)).await;
    });
}

#[test]
fn an_address_that_moves_to_a_new_pod_is_found_there_quickly() {
    with_node(bridge, async |mut node| {
        let old = Pod::on_bridge("veth1", &["10.244.0.11/24"]);
        node.want(addresses(&["10.244.0.11"]));
        until(&mut node, |view| view.interfaces.values().any(|found| !found.addresses.is_empty())).await;
        ip("link del veth1");
        drop(old);
        let new = Pod::on_bridge("veth2", &["10.244.0.11/24"]);
        let expected = interface(&new, &["10.244.0.11"]);
        let took = until(&mut node, |view| view.interfaces == [(expected.ifindex, expected.clone())].into()).await;
        assert!(took < Duration::from_secs(4), "{took:?}");
    });
}

#[test]
fn a_live_pod_keeps_its_address_when_another_answers_for_it() {
    with_node(bridge, async |mut node| {
        let victim = Pod::on_bridge("veth1", &["10.244.0.11/24"]);
        let thief = Pod::on_bridge("veth2", &["10.244.0.12/24"]);
        node.want(addresses(&["10.244.0.11", "10.244.0.12"]));
        let held = |found: &PodInterface| !found.addresses.is_empty();
        until(&mut node, |view| view.interfaces.values().filter(|found| held(found)).count() == 2).await;
        thief.netns.run(|| ip("addr add 10.244.0.11/24 dev eth0"));
        ip("neigh flush dev cni0");
        ip("link set veth1 nomaster");
        follow_for(&mut node, Duration::from_secs(2)).await;
        assert_eq!(node.view().interfaces[&victim.ifindex()], interface(&victim, &["10.244.0.11"]));
        assert_eq!(node.view().interfaces[&thief.ifindex()], interface(&thief, &["10.244.0.12"]));
    });
}

#[test]
fn routed_pods_are_found_by_their_routes() {
    with_node(without_duplicate_detection, async |mut node| {
        ip("addr add 169.254.1.1/32 dev lo");
        let pod = Pod::new("veth1", &["10.9.0.7/32", "fd09::7/128"]);
        pod.netns.run(|| {
            ip("route add 169.254.1.1 dev eth0");
            ip("route add default via 169.254.1.1 dev eth0");
        });
        ip("route add 10.9.0.7/32 dev veth1");
        ip("route add fd09::7/128 dev veth1");
        node.want(addresses(&["10.9.0.7", "fd09::7", "10.9.0.8"]));
        let expected = interface(&pod, &["10.9.0.7", "fd09::7"]);
        until(&mut node, |view| view.interfaces.get(&expected.ifindex) == Some(&expected)).await;
        assert!(node.settle(LIMIT).await);
    });
}

#[test]
fn only_veths_to_elsewhere_with_a_fitting_name_are_pod_interfaces() {
    with_node(bridge, async |mut node| {
        let _other_name = Pod::on_bridge("lxc0", &[]);
        ip("link add veth8 type veth peer name veth9");
        ip("link set veth8 up");
        let pod = Pod::on_bridge("veth1", &[]);
        until(&mut node, |view| view.interfaces.contains_key(&pod.ifindex())).await;
        assert_eq!(node.view().interfaces.len(), 1);
        // As a CNI plugin that moves the pod's end last.
        let netns = Netns::new();
        ip(&format!("link set veth9 netns {}", netns.path()));
        let late = ifindex("veth8");
        until(&mut node, |view| view.interfaces.contains_key(&late)).await;
        ip("link del veth1");
        until(&mut node, |view| Vec::from_iter(view.interfaces.keys().copied()) == [late]).await;
    });
}

#[test]
fn own_addresses_follow_the_interfaces_and_leave_out_those_of_services() {
    with_node(bridge, async |mut node| {
        let new: IpAddr = "192.0.2.9".parse().unwrap();
        ip("addr add 192.0.2.9/24 dev cni0");
        until(&mut node, |view| view.own_addresses.contains(&new)).await;
        ip("addr del 192.0.2.9/24 dev cni0");
        until(&mut node, |view| !view.own_addresses.contains(&new)).await;
        ip("link add kube-ipvs0 type bridge");
        ip("addr add 10.96.0.1/32 dev kube-ipvs0");
        ip("addr add 192.0.2.9/24 dev cni0");
        until(&mut node, |view| view.own_addresses.contains(&new)).await;
        assert!(!node.view().own_addresses.contains(&"10.96.0.1".parse().unwrap()));
        ip("link del cni0");
        until(&mut node, |view| view.own_addresses.is_empty()).await;
    });
}

#[test]
fn a_flushed_forwarding_table_does_not_hide_a_pod() {
    with_node(bridge, async |mut node| {
        let pod = Pod::on_bridge("veth1", &["10.244.0.11/24"]);
        node.want(addresses(&["10.244.0.11"]));
        let expected = interface(&pod, &["10.244.0.11"]);
        until(&mut node, |view| view.interfaces.get(&expected.ifindex) == Some(&expected)).await;
        node.want(BTreeSet::new());
        run("bridge", "fdb flush dev cni0 nopermanent");
        follow_for(&mut node, Duration::from_millis(100)).await;
        node.want(addresses(&["10.244.0.11"]));
        until(&mut node, |view| view.interfaces.get(&expected.ifindex) == Some(&expected)).await;
    });
}

#[test]
fn every_device_that_is_no_pods_no_bridge_and_no_loopback_is_an_uplink_and_followed() {
    with_node(bridge, async |mut node| {
        let has = |view: &NodeView, name: &str, header: bool| {
            view.uplinks.values().any(|uplink| uplink.name == name && uplink.has_link_header == header)
        };
        let loopback_and_bridge = BTreeSet::from([ifindex("lo"), ifindex("cni0")]);
        assert_eq!(node.view().passages, loopback_and_bridge);
        let _pod = Pod::on_bridge("veth1", &[]);
        let _outside = Pod::new("eth0", &[]);
        ip("link add flannel.1 type vxlan id 1 local 127.0.0.1 dstport 8472 nolearning");
        ip("tuntap add dev tun0 mode tun");
        let _port = Pod::on_bridge("lxc0", &[]);
        let wanted = [("eth0", true), ("flannel.1", true), ("tun0", false), ("lxc0", true)];
        until(&mut node, |view| wanted.iter().all(|(name, header)| has(view, name, *header))).await;
        assert!(!has(node.view(), "veth1", true));
        assert_eq!(node.view().passages, loopback_and_bridge);
        // As a CNI plugin that moves the pod's end last: an uplink until then.
        ip("link add veth8 type veth peer name veth9");
        until(&mut node, |view| has(view, "veth8", true) && has(view, "veth9", true)).await;
        let netns = Netns::new();
        ip(&format!("link set veth9 netns {}", netns.path()));
        let late = ifindex("veth8");
        until(&mut node, |view| view.interfaces.contains_key(&late) && !view.uplinks.contains_key(&late)).await;
        ip("link del flannel.1");
        ip("link set lxc0 name eth9");
        until(&mut node, |view| !has(view, "flannel.1", true) && has(view, "eth9", true)).await;
    });
}

#[test]
fn rules_and_settings_in_the_way_of_services_are_told_with_what_to_do() {
    with_node(bridge, async |mut node| {
        const MASK: u32 = 0xff00_0000;
        assert_eq!(node.preflight(MASK).await.unwrap(), []);
        ip("rule add fwmark 0x80000/0xff0000 table 52 priority 5210");
        assert_eq!(node.preflight(MASK).await.unwrap(), []);
        ip("rule add fwmark 0x1000000/0x1000000 table 52 priority 77");
        ip("-6 rule add fwmark 0x5 table 52 priority 78");
        let told: Vec<String> = node.preflight(MASK).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[0].contains("routing rule 77 (ip -4 rule)") && told[0].contains("--mark-mask"), "{told:#?}");
        assert!(told[1].contains("routing rule 78 (ip -6 rule)") && told[1].contains("0x5/0xffffffff"), "{told:#?}");
        let setting = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";
        if fs::metadata(setting).is_ok() {
            fs::write(setting, "1").unwrap();
            let on = node.bridge_problems().len();
            fs::write(setting, "0").unwrap();
            assert_eq!(node.bridge_problems().len(), on + 1);
        }
        ip("link del cni0");
        until(&mut node, |view| view.own_addresses.is_empty()).await;
        assert_eq!(node.bridge_problems(), [], "without a bridge the settings are of no interest");
    });
}

/// Drives a node as a loop does that always has something else to do as well.
async fn in_short_turns(node: &mut Node, wanted: impl Fn(&NodeView) -> bool) {
    let start = Instant::now();
    while !wanted(node.view()) {
        assert!(start.elapsed() < LIMIT, "{:?}", node.view());
        tokio::select! {
            biased;
            () = node.changed() => {}
            () = tokio::task::yield_now() => {}
        }
    }
}

#[test]
fn a_busy_caller_keeps_the_view_from_nothing() {
    with_node(bridge, async |mut node| {
        let pod = Pod::on_bridge("veth1", &["10.244.0.10/24"]);
        node.dumped = None;
        in_short_turns(&mut node, |view| view.interfaces.contains_key(&pod.ifindex())).await;
    });
}

#[test]
fn a_connection_that_broke_is_made_anew_by_a_busy_caller_too() {
    with_node(bridge, async |mut node| {
        node.netlink.break_off();
        let pod = Pod::on_bridge("veth1", &["10.244.0.10/24"]);
        in_short_turns(&mut node, |view| view.interfaces.contains_key(&pod.ifindex())).await;
    });
}

#[test]
fn who_asks_for_a_look_is_answered_on_a_quiet_node_too_and_many_at_once_with_one() {
    with_node(bridge, async |mut node| {
        until(&mut node, |_| true).await;
        let numbers = [node.look_anew(), node.look_anew(), node.look_anew()];
        tokio::time::timeout(LIMIT, node.changed()).await.unwrap();
        assert_eq!(node.looks(), numbers[2]);
        // One that comes while the kernel is being asked is not answered by what was asked before.
        let early = node.look_anew();
        tokio::time::timeout(Duration::ZERO, node.changed()).await.unwrap_err();
        assert!(node.dumping.is_some());
        let late = node.look_anew();
        tokio::time::timeout(LIMIT, node.changed()).await.unwrap();
        assert_eq!(node.looks(), early);
        tokio::time::timeout(LIMIT, node.changed()).await.unwrap();
        assert_eq!(node.looks(), late);
        assert!(node.catch_up(LIMIT).await);
    });
}

#[test]
fn a_kernel_that_does_not_answer_is_asked_again_and_nobody_waits_for_it_for_ever() {
    with_node(bridge, async |mut node| {
        let until = Instant::now() + Duration::from_millis(300);
        let number = node.look_anew();
        node.dumping = Some(Dumping { task: tokio::spawn(std::future::pending()), until, looks: number });
        assert!(!node.catch_up(Duration::from_millis(100)).await);
        let pod = Pod::on_bridge("veth1", &["10.244.0.10/24"]);
        in_short_turns(&mut node, |view| view.interfaces.contains_key(&pod.ifindex())).await;
        assert!(node.looks() > number, "both questions are answered");
    });
}
