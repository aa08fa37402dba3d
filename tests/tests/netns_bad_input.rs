//! Broken manifests under the running agent: each gives its line, nothing that worked stops, and nothing opens.
//!
//! Every case is put twice: as a file of its own, and over a policy that is in force. The table of who reaches whom is
//! measured on real packets after each, and must be the one from before.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use netpol_tests::agent::{Agent, Options, Settled};
use netpol_tests::level::has_agent;
use netpol_tests::shop::{Shop, case};
use netpol_tests::table::Table;
use serde_json::Value;

/// A policy of `production` that nothing but its broken part would change.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: broken, namespace: production}}\nspec: {spec}\n"
    )
}

/// Allows `peer` on `ports` into every pod of production (all of them are isolated by default deny).
fn ingress(peer: &str, ports: &str) -> String {
    policy(&format!("{{podSelector: {{}}, policyTypes: [Ingress], ingress: [{{from: [{peer}], ports: [{ports}]}}]}}"))
}

const ANYONE: &str = "{namespaceSelector: {}}";
const TCP_8080: &str = "{protocol: TCP, port: 8080}";

/// (what is broken, manifest, words that the line about it must hold).
fn cases() -> Vec<(&'static str, String, &'static [&'static str])> {
    let pod = |name: &str, status: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: staging, labels: {{app: api-gateway}}}}\nstatus: {status}\n"
        )
    };
    vec![
        ("not YAML", "kind: [NetworkPolicy\n  - {".to_owned(), &["cannot be parsed"]),
        ("an empty file", String::new(), &["empty"]),
        ("5 MB of junk", "x: [\n".repeat(1_000_000), &["4194304"]),
        (
            "an unknown kind",
            "apiVersion: v1\nkind: NetworkPolizei\nmetadata: {name: x}\n".to_owned(),
            &["NetworkPolizei"],
        ),
        ("a bad CIDR", ingress("{ipBlock: {cidr: 10.0.0.0/33}}", TCP_8080), &["cidr", "10.0.0.0/33"]),
        ("host bits", ingress("{ipBlock: {cidr: 192.0.2.77/30}}", TCP_8080), &["cidr", "192.0.2.77/30"]),
        (
            "an except outside its cidr",
            ingress("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}", TCP_8080),
            &["except", "11.0.0.0/16"],
        ),
        ("endPort without port", ingress(ANYONE, "{protocol: TCP, endPort: 9000}"), &["endPort"]),
        ("endPort below port", ingress(ANYONE, "{protocol: TCP, port: 9000, endPort: 8000}"), &["endPort", "8000"]),
        ("port 0", ingress(ANYONE, "{protocol: TCP, port: 0}"), &["port", "0"]),
        ("port 70000", ingress(ANYONE, "{protocol: TCP, port: 70000}"), &["port", "70000"]),
        ("a bad port name", ingress(ANYONE, "{protocol: TCP, port: 'no_such!'}"), &["port", "no_such!"]),
        ("an unknown protocol", ingress(ANYONE, "{protocol: ICMP, port: 8080}"), &["protocol", "ICMP"]),
        (
            "an unknown operator",
            ingress("{podSelector: {matchExpressions: [{key: app, operator: Like, values: [x]}]}}", TCP_8080),
            &["operator", "Like"],
        ),
        (
            "In without values",
            ingress("{podSelector: {matchExpressions: [{key: app, operator: In}]}}", TCP_8080),
            &["values"],
        ),
        ("a bad selector key", ingress("{podSelector: {matchLabels: {'a b': c}}}", TCP_8080), &["matchLabels", "a b"]),
        ("an unknown field in a peer", ingress("{podSelecter: {}}", TCP_8080), &["podSelecter"]),
        ("an empty peer", ingress("{}", TCP_8080), &["from[0]"]),
        (
            "an unknown field in a rule",
            policy("{podSelector: {}, policyTypes: [Ingress], ingress: [{form: [], ports: []}]}"),
            &["form"],
        ),
        (
            "an unknown policyType",
            policy("{podSelector: {}, policyTypes: [Ingres], ingress: [{}]}"),
            &["policyTypes", "Ingres"],
        ),
        (
            "a selector that is text",
            policy("{podSelector: all, policyTypes: [Ingress], ingress: [{}]}"),
            &["podSelector"],
        ),
        ("a pod without address", pod("homeless", "{}"), &["staging/homeless"]),
        ("a pod with half an address", pod("halved", "{podIPs: [{ip: 10.244.1}]}"), &["10.244.1"]),
    ]
}

struct Scene {
    shop: Shop,
    agent: Agent,
    after: Table,
}

impl Scene {
    fn start() -> Self {
        let case = case("shop");
        let after = Shop::expectation(&case, "after").unwrap();
        let shop = Shop::build(&case, &[&after]).unwrap();
        let agent = Agent::start(&shop.node, &Options::default()).unwrap();
        shop.put_policies().unwrap();
        agent.sync().unwrap();
        let scene = Self { shop, agent, after };
        scene.assert_unchanged("before anything is broken");
        scene
    }

    fn assert_unchanged(&self, when: &str) {
        let (measured, odd) = self.shop.measure(&self.after, false).unwrap();
        let differences: Vec<String> = self.after.differences(&measured).iter().map(ToString::to_string).collect();
        assert_eq!(differences, [""; 0], "{when}\n{}{odd:?}", measured.render(false));
    }
}

/// The problem lines that speak of `file`.
fn lines(settled: &Settled, file: &str) -> Vec<String> {
    let of_file = |problem: &&Value| problem["origin"].as_str().is_some_and(|origin| origin.contains(file));
    settled.problems.iter().filter(of_file).map(ToString::to_string).collect()
}

#[test]
fn broken_manifests_are_named_and_change_nothing_for_traffic() {
    if !has_agent() {
        return;
    }
    let scene = Scene::start();
    for (what, manifest, words) in cases() {
        scene.shop.put_text("99-broken.yaml", &manifest).unwrap();
        let settled = scene.agent.sync().unwrap();
        let lines = lines(&settled, "99-broken.yaml");
        assert!(
            lines.iter().any(|line| words.iter().all(|word| line.contains(word)) && line.contains("effect")),
            "{what}: no line holds {words:?}: {lines:?}"
        );
        scene.assert_unchanged(what);
    }
    scene.shop.remove("99-broken.yaml").unwrap();
    assert_eq!(scene.agent.sync().unwrap().problems, [""; 0]);
}

#[test]
fn a_broken_version_of_a_policy_in_force_leaves_the_good_one_in_force() {
    if !has_agent() {
        return;
    }
    let scene = Scene::start();
    let good = std::fs::read_to_string(case("shop").join("policies/04-database-access.yaml")).unwrap();
    for (what, from, to) in [
        ("unparsable", "spec:", "spec: ["),
        ("an unknown protocol", "TCP", "TPC"),
        ("an unknown field", "podSelector", "podSelectr"),
        ("an unknown policyType", "Ingress", "Ingres"),
        ("a port too large", "5432", "54320000"),
    ] {
        let broken = good.replace(from, to);
        assert_ne!(broken, good, "{what}: nothing was replaced");
        scene.shop.put_text("04-database-access.yaml", &broken).unwrap();
        let settled = scene.agent.sync().unwrap();
        assert!(!lines(&settled, "04-database-access.yaml").is_empty(), "{what}: nobody is told");
        scene.assert_unchanged(what);
    }
    scene.shop.put_text("04-database-access.yaml", "").unwrap();
    scene.agent.sync().unwrap();
    scene.assert_unchanged("emptied");
}

#[test]
fn an_address_that_two_pods_claim_is_named_and_opens_nothing() {
    if !has_agent() {
        return;
    }
    let scene = Scene::start();
    // The intruder would be the gateway: same labels, same namespace, the intruder's address.
    let address = scene.shop.node.address("staging/intruder", false).unwrap();
    let thief = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: thief, namespace: production, labels: {{app: api-gateway, tier: backend}}}}\n\
         status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
    );
    scene.shop.put_text("99-thief.yaml", &thief).unwrap();
    let settled = scene.agent.sync().unwrap();
    let told = settled.problems.iter().any(|problem| problem.to_string().contains(&address.to_string()));
    assert!(told, "nobody is told: {:?}", settled.problems);
    let (measured, _odd) = scene.shop.measure(&scene.after, false).unwrap();
    for difference in scene.after.differences(&measured) {
        let text = difference.to_string();
        assert!(text.contains("staging/intruder"), "another pod is concerned: {text}");
        assert!(!text.contains("production"), "the intruder reaches the shop, or the shop the intruder: {text}");
    }
}
