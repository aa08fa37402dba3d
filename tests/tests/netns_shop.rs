//! The shop under the real agent: who reaches whom, what happens to open connections, and that drops are told and counted.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, Instant};

use netpol_tests::agent::{Agent, Counter, Options};
use netpol_tests::connection::{Connection, Side};
use netpol_tests::level::has_agent;
use netpol_tests::probe::{Outcome, PATIENCE, SILENCE};
use netpol_tests::servers::Transport;
use netpol_tests::shop::{Shop, case};
use netpol_tests::table::{Table, Target};

/// How long nothing may arrive on a revoked connection: TCP repeats several times within it.
const CUT: Duration = Duration::from_millis(1500);

/// A shop with its agent, policies in force.
struct Scene {
    agent: Agent,
    shop: Shop,
    after: Table,
}

fn scene() -> Scene {
    let case = case("shop");
    let before = Shop::expectation(&case, "before").unwrap();
    let after = Shop::expectation(&case, "after").unwrap();
    let shop = Shop::build(&case, &[&before, &after]).unwrap();
    for transport in [Transport::Tcp, Transport::Udp] {
        shop.node.serve("production/postgresql", transport, [6000]).unwrap();
    }
    let agent = Agent::start(&shop.node, &Options::default()).unwrap();
    shop.put_policies().unwrap();
    agent.sync().unwrap();
    Scene { agent, shop, after }
}

impl Scene {
    fn target(place: &str, port: u16, transport: Transport) -> Target {
        Target { name: place.to_owned(), port, transport }
    }

    fn connect(&self, from: &str, to: &Target) -> Connection {
        let probe = self.shop.probe(from, to, false).unwrap();
        Connection::open(&self.shop.node, &probe).unwrap()
    }

    /// Puts a policy into a file of its own, or over one of the shop's.
    fn put(&self, name: &str, yaml: &str) {
        self.shop.put_text(name, yaml).unwrap();
        self.agent.sync().unwrap();
    }

    fn remove(&self, name: &str) {
        self.shop.remove(name).unwrap();
        self.agent.sync().unwrap();
    }

    fn assert_table(&self, expected: &Table, ipv6: bool) {
        let (measured, odd) = self.shop.measure(expected, ipv6).unwrap();
        let differences: Vec<String> = expected.differences(&measured).iter().map(ToString::to_string).collect();
        assert_eq!(differences, [""; 0], "IPv6: {ipv6}\n{}{odd:?}", measured.render(false));
    }

    fn passes(&self, connection: &mut Connection, from: Side) -> bool {
        connection.passes(&self.shop.node, from, PATIENCE).unwrap()
    }

    /// Nothing passes for a while, whichever side begins.
    fn assert_closed(&self, connection: &mut Connection, first: Side) {
        let second = if first == Side::Client { Side::Server } else { Side::Client };
        for side in [first, second, first] {
            let passes = connection.passes(&self.shop.node, side, CUT).unwrap();
            assert!(!passes, "a message of the {side:?} came through: {}", connection.probe());
        }
    }

    fn drops(&self, pod: &str, direction: &str, reason: &str) -> u64 {
        let wanted = |it: &&Counter| it.pod == pod && it.direction == direction && it.reason == reason;
        self.agent.counters().unwrap().iter().filter(wanted).map(|it| it.packets).sum()
    }
}

/// Allows `from` (a pod of production) to reach the database's test port, both sides.
fn extra_access(from: &str, transport: Transport) -> String {
    let protocol = transport.name().to_uppercase();
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: extra-in, namespace: production}}
spec:
  podSelector: {{matchLabels: {{app: postgresql}}}}
  policyTypes: [Ingress]
  ingress:
    - from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]
      ports: [{{protocol: {protocol}, port: 6000}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: extra-out, namespace: production}}
spec:
  podSelector: {{matchLabels: {{app: {from}}}}}
  policyTypes: [Egress]
  egress:
    - to: [{{podSelector: {{matchLabels: {{app: postgresql}}}}}}]
      ports: [{{protocol: {protocol}, port: 6000}}]
"
    )
}

/// Everything may leave the database.
const FREE_EGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: database-may-send, namespace: production}
spec:
  podSelector: {matchLabels: {app: postgresql}}
  policyTypes: [Egress]
  egress: [{}]
";

#[test]
fn the_shop_is_reached_as_its_policies_say_in_both_families() {
    if !has_agent() {
        return;
    }
    let scene = scene();
    for ipv6 in [false, true] {
        scene.assert_table(&scene.after, ipv6);
    }
}

#[test]
fn without_policies_the_agent_is_in_nobodys_way() {
    if !has_agent() {
        return;
    }
    let case = case("shop");
    let before = Shop::expectation(&case, "before").unwrap();
    let shop = Shop::build(&case, &[&before]).unwrap();
    let agent = Agent::start(&shop.node, &Options::default()).unwrap();
    let settled = agent.sync().unwrap();
    assert!(settled.endpoints.iter().all(|endpoint| endpoint.state == "enforced"), "{settled:?}");
    assert_eq!(settled.endpoints.len(), 9);
    for ipv6 in [false, true] {
        let (measured, _odd) = shop.measure(&before, ipv6).unwrap();
        assert_eq!(before.differences(&measured), [], "IPv6: {ipv6}\n{}", measured.render(false));
    }
}

#[test]
fn removing_the_policies_opens_everything_again() {
    if !has_agent() {
        return;
    }
    let scene = scene();
    let before = Shop::expectation(&case("shop"), "before").unwrap();
    scene.assert_table(&scene.after, false);
    scene.shop.remove_policies().unwrap();
    scene.agent.sync().unwrap();
    scene.assert_table(&before, false);
}

#[test]
fn a_revoked_tcp_client_that_went_quiet_hears_nothing_its_server_pushes() {
    if !has_agent() {
        return;
    }
    let scene = scene();
    scene.put("90-extra.yaml", &extra_access("user-api", Transport::Tcp));
    let target = Scene::target("production/postgresql", 6000, Transport::Tcp);
    let mut connection = scene.connect("production/user-api", &target);
    assert!(scene.passes(&mut connection, Side::Server));
    scene.remove("90-extra.yaml");
    scene.assert_closed(&mut connection, Side::Server);
    assert!(
        scene.drops("production/postgresql", "ingress", "flow-revoked")
            + scene.drops("production/postgresql", "egress", "flow-revoked")
            > 0
    );
}

#[test]
fn a_revoked_udp_client_hears_nothing_its_server_pushes() {
    if !has_agent() {
        return;
    }
    let scene = scene();
    scene.put("90-extra.yaml", &extra_access("user-api", Transport::Udp));
    let target = Scene::target("production/postgresql", 6000, Transport::Udp);
    let mut connection = scene.connect("production/user-api", &target);
    assert!(scene.passes(&mut connection, Side::Server));
    scene.remove("90-extra.yaml");
    scene.assert_closed(&mut connection, Side::Server);
}

#[test]
fn a_server_with_free_egress_does_not_become_the_client_of_its_revoked_client() {
    if !has_agent() {
        return;
    }
    for transport in [Transport::Tcp, Transport::Udp] {
        let scene = scene();
        scene.put("80-free.yaml", FREE_EGRESS);
        scene.put("90-extra.yaml", &extra_access("user-api", transport));
        let target = Scene::target("production/postgresql", 6000, transport);
        let mut connection = scene.connect("production/user-api", &target);
        assert!(scene.passes(&mut connection, Side::Server));
        // Now the server may send anything and the client receive anything: only the memory of who opened the flow
        // stands between the server's push and the client.
        scene.put("95-open-client.yaml", OPEN_CLIENT);
        scene.remove("90-extra.yaml");
        scene.assert_closed(&mut connection, Side::Server);
    }
}

/// Anybody may send to the user API.
const OPEN_CLIENT: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: user-api-open, namespace: production}
spec:
  podSelector: {matchLabels: {app: user-api}}
  policyTypes: [Ingress]
  ingress: [{}]
";

#[test]
fn a_connection_that_stays_allowed_does_not_notice_other_changes() {
    if !has_agent() {
        return;
    }
    let scene = scene();
    let target = Scene::target("production/postgresql", 5432, Transport::Tcp);
    let mut connection = scene.connect("production/payment-service", &target);
    for round in 0..20 {
        if round % 2 == 0 {
            scene.put("90-extra.yaml", &extra_access("user-api", Transport::Tcp));
        } else {
            scene.remove("90-extra.yaml");
        }
        for side in [Side::Client, Side::Server] {
            assert!(scene.passes(&mut connection, side), "round {round}, from the {side:?}");
        }
    }
}

#[test]
fn a_denied_attempt_is_reported_with_names_and_counted_once_a_packet() {
    if !has_agent() {
        return;
    }
    let scene = scene();
    let target = Scene::target("production/postgresql", 5432, Transport::Tcp);
    let probe = scene.shop.probe("monitoring/grafana", &target, false).unwrap();
    let (mark, counted) =
        (scene.agent.drops().count(), scene.drops("production/postgresql", "ingress", "policy-denied"));
    assert_eq!(scene.shop.node.probe(&probe, SILENCE).unwrap(), Outcome::Silence);
    let wanted = |line: &str| line.contains("monitoring/grafana") && line.contains("policy-denied");
    let line = scene.agent.drops().wait_for(mark, Duration::from_secs(3), wanted);
    let line = line.expect("a line about the drop");
    for part in ["production/postgresql", "5432", "database-access", "default-deny-all"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    // One SYN: the next would come after a second.
    assert_eq!(scene.drops("production/postgresql", "ingress", "policy-denied"), counted + 1);
}

#[test]
fn an_agent_that_is_killed_leaves_verdicts_and_connections_as_they_are() {
    if !has_agent() {
        return;
    }
    let Scene { agent, shop, after } = scene();
    let target = Scene::target("production/postgresql", 5432, Transport::Tcp);
    let probe = shop.probe("production/payment-service", &target, false).unwrap();
    let mut connection = Connection::open(&shop.node, &probe).unwrap();
    agent.kill().unwrap();
    for side in [Side::Client, Side::Server] {
        assert!(connection.passes(&shop.node, side, PATIENCE).unwrap(), "without an agent, from the {side:?}");
    }
    let (measured, _odd) = shop.measure(&after, false).unwrap();
    assert_eq!(after.differences(&measured), [], "without an agent\n{}", measured.render(false));

    let agent = Agent::start(&shop.node, &Options::default()).unwrap();
    for side in [Side::Client, Side::Server] {
        assert!(connection.passes(&shop.node, side, PATIENCE).unwrap(), "under the new agent, from the {side:?}");
    }
    let scene = Scene { agent, shop, after };
    scene.assert_table(&scene.after, true);
    scene.put("90-extra.yaml", &extra_access("user-api", Transport::Tcp));
    let target = Scene::target("production/postgresql", 6000, Transport::Tcp);
    assert!(scene.passes(&mut scene.connect("production/user-api", &target), Side::Client));
}

#[test]
fn a_pod_that_comes_back_under_another_interface_is_isolated_again() {
    if !has_agent() {
        return;
    }
    let mut scene = scene();
    let target = Scene::target("production/user-api", 8080, Transport::Tcp);
    scene.shop.restart_pod("production/user-api").unwrap();
    scene.shop.node.serve("production/user-api", Transport::Tcp, [8080]).unwrap();
    // Without a CNI plugin a veth is open until netlink told of it, and an answer may be from then.
    scene.agent.sync().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let allowed = scene.shop.probe("production/api-gateway", &target, false).unwrap();
    while scene.shop.node.probe(&allowed, SILENCE).unwrap() != Outcome::Answered {
        assert!(Instant::now() < deadline, "the pod is not enforced after five seconds");
        scene.agent.sync().unwrap();
    }
    let denied = scene.shop.probe("staging/intruder", &target, false).unwrap();
    assert_eq!(scene.shop.node.probe(&denied, SILENCE).unwrap(), Outcome::Silence);
}
