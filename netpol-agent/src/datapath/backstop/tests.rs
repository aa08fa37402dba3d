use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::*;
use crate::testing::{Netns, ifindex, in_sandbox, ip, run};

const MASK: u32 = 0xff00_0000;

/// Sends a datagram with a mark to the other end of `device`.
fn send(device: &str, mark: u32) -> io::Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark).unwrap();
    let third = if device == "eth0" { 1 } else { 2 };
    socket.send_to(b"?", SocketAddr::from(([10, 99, third, 2], 9)))
}

/// Two devices that lead out.
fn with_devices(test: impl FnOnce() + Send) {
    in_sandbox(|_| {
        let outside = Netns::new();
        for (device, subnet) in [("eth0", 1), ("eth1", 2)] {
            ip(&format!("link add {device} type veth peer name {device} netns {}", outside.path()));
            ip(&format!("addr add 10.99.{subnet}.1/24 dev {device}"));
            ip(&format!("link set {device} up"));
            outside.run(|| {
                ip(&format!("addr add 10.99.{subnet}.2/24 dev {device}"));
                ip(&format!("link set {device} up"));
            });
        }
        test();
    });
}

fn packets() -> u64 {
    dropped().unwrap().unwrap().packets
}

#[test]
fn deferred_packets_leave_through_the_devices_of_the_set_only() {
    with_devices(|| {
        let mut backstop = Backstop::new(MASK);
        assert_eq!(dropped().unwrap(), None);
        assert!(!backstop.is_made());
        backstop.let_out(&BTreeSet::from([ifindex("eth0")])).unwrap();
        for (device, mark, refused) in [
            ("eth0", 0x0500_0000, false),
            ("eth1", 0x0500_0000, true),
            ("eth1", 0x0500_4000, true),
            ("eth1", 0xfe00_0000, true),
            ("eth1", 0, false),
            ("eth1", 0x4000, false),
            ("eth1", 0xff00_0000, false),
            ("eth1", 0xff00_4000, false),
        ] {
            let before = packets();
            assert_eq!(send(device, mark).is_err(), refused, "{device} {mark:#x}");
            assert_eq!(packets() - before, u64::from(refused), "{device} {mark:#x}");
        }
        backstop.let_out(&BTreeSet::from([ifindex("eth1")])).unwrap();
        send("eth1", 0x0500_0000).unwrap();
        send("eth0", 0x0500_0000).unwrap_err();
        // The next agent goes on with the count.
        let count = packets();
        Backstop::new(MASK).let_out(&BTreeSet::new()).unwrap();
        assert_eq!(packets(), count);
        send("eth1", 0x0500_0000).unwrap_err();
        assert_eq!(packets(), count + 1);
        remove().unwrap();
        remove().unwrap();
        assert_eq!(dropped().unwrap(), None);
        send("eth1", 0x0500_0000).unwrap();
    });
}

#[test]
fn the_rule_reads_as_it_was_meant() {
    with_devices(|| {
        let mut backstop = Backstop::new(MASK);
        backstop.let_out(&BTreeSet::from([ifindex("eth0"), ifindex("lo")])).unwrap();
        let listed = run("nft", "list ruleset");
        // The eight bits of the mask are written as a prefix.
        let rule = format!(
            "meta mark != 0x00000000/8 meta mark != 0xff000000/8 oif != @hooked counter packets 0 bytes 0 drop comment \
             \"{COMMENT}\""
        );
        for wanted in ["table inet netpol", "hook postrouting priority", "\"lo\"", "\"eth0\"", &rule] {
            assert!(listed.contains(wanted), "no {wanted:?} in\n{listed}");
        }
    });
}

#[test]
fn a_table_that_somebody_removed_or_changed_is_made_again() {
    with_devices(|| {
        let (eth0, eth1) = (ifindex("eth0"), ifindex("eth1"));
        let mut backstop = Backstop::new(MASK);
        backstop.let_out(&BTreeSet::from([eth0])).unwrap();
        run("nft", "flush ruleset");
        backstop.restore().unwrap();
        send("eth0", 0x0500_0000).unwrap();
        send("eth1", 0x0500_0000).unwrap_err();
        run("nft", "flush ruleset");
        backstop.let_out(&BTreeSet::from([eth1])).unwrap();
        send("eth1", 0x0500_0000).unwrap();
        send("eth0", 0x0500_0000).unwrap_err();
        run("nft", "flush set inet netpol hooked");
        backstop.let_out(&BTreeSet::from([eth0])).unwrap();
        send("eth0", 0x0500_0000).unwrap();
    });
}

#[test]
fn the_set_holds_as_many_devices_as_a_node_may_have() {
    with_devices(|| {
        let mut backstop = Backstop::new(MASK);
        let many: BTreeSet<u32> = (1..=5_000).collect();
        backstop.let_out(&many).unwrap();
        backstop.let_out(&many.iter().copied().filter(|device| device % 2 == 0).collect()).unwrap();
        let listed = run("nft", "list set inet netpol hooked");
        assert!(listed.contains("4998"), "{listed}");
        assert!(!listed.contains("4999"), "{listed}");
    });
}

#[test]
fn a_family_of_addresses_makes_no_difference() {
    with_devices(|| {
        let mut backstop = Backstop::new(MASK);
        backstop.let_out(&BTreeSet::new()).unwrap();
        ip("addr add fd99::1/64 dev eth1 nodad");
        ip("neigh add fd99::2 lladdr 02:00:00:00:00:02 dev eth1");
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let to: IpAddr = "fd99::2".parse().unwrap();
        socket.send_to(b"?", (to, 9)).unwrap();
        run("nft", "add table inet mangle");
        run("nft", "add chain inet mangle out { type route hook output priority mangle ; }");
        run("nft", "add rule inet mangle out ip6 daddr fd99::2 meta mark set 0x05000000");
        socket.send_to(b"?", (to, 9)).unwrap_err();
        assert_eq!(packets(), 1);
    });
}
