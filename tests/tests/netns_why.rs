//! Why was it dropped: what `netpol explain`, `/metrics` and the export say beside a real agent, of traffic that was tried.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use netpol_tests::agent::{self, Agent, Options};
use netpol_tests::level::has_agent;
use netpol_tests::node::NODE;
use netpol_tests::probe::{Outcome, PATIENCE, SILENCE};
use netpol_tests::servers::Transport;
use netpol_tests::shop::{Shop, case};
use netpol_tests::table::Target;
use serde_json::Value;

struct Scene {
    agent: Agent,
    shop: Shop,
}

impl Scene {
    fn start(arguments: &[&str]) -> Self {
        let shop = Shop::build(&case("shop"), &[]).unwrap();
        shop.node.serve("production/postgresql", Transport::Tcp, [6000]).unwrap();
        shop.put_policies().unwrap();
        let arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
        let options = Options { node: Some(NODE.to_owned()), arguments, ..Options::default() };
        let agent = Agent::start(&shop.node, &options).unwrap();
        agent.sync().unwrap();
        Self { agent, shop }
    }

    fn explain(&self, arguments: &[&str]) -> (i32, String) {
        let netpol = agent::binary().unwrap().with_file_name("netpol");
        let socket = self.shop.node.node(NODE).unwrap().socket();
        let mut command = Command::new(netpol);
        command.arg("explain").args(arguments).arg("--socket").arg(socket).env_remove("KUBECONFIG");
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    }

    fn observe(&self, arguments: &[&str]) -> (i32, String) {
        let binary = agent::binary().unwrap().with_file_name("netpol");
        let output = std::process::Command::new(binary).arg("observe").args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    fn tries(&self, from: &str, port: u16, limit: Duration) -> Outcome {
        let target = Target { name: "production/postgresql".to_owned(), port, transport: Transport::Tcp };
        let probe = self.shop.probe(from, &target, false).unwrap();
        self.shop.node.probe(&probe, limit).unwrap()
    }

    fn metrics(&self, address: &str) -> String {
        let ask = || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        self.shop.node.node(NODE).unwrap().namespace().enter(ask).unwrap()
    }
}

/// Waits for something that the agent does by and by.
fn eventually<T>(what: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it never came");
        std::thread::yield_now();
    }
}

#[test]
fn explain_says_what_packets_meet_and_its_hint_applied_lets_them_through() {
    if !has_agent() {
        return;
    }
    let scene = Scene::start(&[]);
    let denied = ["staging/intruder", "production/postgresql:6000"];
    assert_eq!(scene.tries("staging/intruder", 6000, SILENCE), Outcome::Silence);
    let (code, text) = scene.explain(&denied);
    assert_eq!(code, 4, "{text}");
    for words in ["DENIED: staging/intruder", "isolated by production/", "to allow it: ", "kubectl "] {
        assert!(text.contains(words), "no {words:?}:\n{text}");
    }
    let (_, json) = scene.explain(&[denied[0], denied[1], "-o", "json"]);
    let answer: Value = serde_json::from_str(&json).unwrap();
    let ingress = &answer["nodes"][0]["answer"]["flows"][0]["ingress"];
    assert_eq!((&ingress["verdict"], &ingress["enforced"]), (&"denied".into(), &true.into()), "{ingress}");
    let hints = ingress["hints"].as_array().unwrap();
    let manifest = hints.iter().find_map(|hint| hint["change"].get("manifest")).unwrap();
    scene.shop.put_text("99-hint.yaml", &manifest.to_string()).unwrap();
    scene.agent.sync().unwrap();
    let (code, text) = scene.explain(&denied);
    assert_eq!(code, 0, "{text}");
    assert_eq!(scene.tries("staging/intruder", 6000, PATIENCE), Outcome::Answered, "{text}");
    let (code, text) = scene.explain(&["staging/intruderr", "production/postgresql:6000"]);
    assert!(code == 1 && text.contains("there is no pod") && text.contains("staging/intruder"), "{text}");
}

#[test]
fn drops_are_in_metrics_and_in_the_export() {
    if !has_agent() {
        return;
    }
    let file = std::env::temp_dir().join(format!("netpol-why-{}.jsonl", std::process::id()));
    let path = file.to_str().unwrap();
    let scene = Scene::start(&["--metrics-address", "127.0.0.1:9964", "--export-file", path]);
    scene.tries("staging/intruder", 6000, SILENCE);
    let line = eventually(|| {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().find(|line| line.contains("\"pod_name\":\"intruder\"")).map(str::to_owned)
    });
    let line: Value = serde_json::from_str(&line).unwrap();
    let flow = &line["flow"];
    assert_eq!(
        (&flow["drop_reason_desc"], &flow["l4"]["TCP"]["destination_port"], &flow["ingress_denied_by"][0]["kind"]),
        (&"POLICY_DENIED".into(), &6000.into(), &"NetworkPolicy".into()),
        "{line}"
    );
    assert_eq!(flow["extensions"]["value"]["reason"], "policy-denied", "{line}");
    let (code, read) = scene.observe(&["--input-file", path, "--from-pod", "staging/intruder"]);
    assert!(code == 0 && read.contains("staging/intruder"), "{read}");
    std::fs::remove_file(&file).unwrap();
    let is_published =
        |text: &String| text.contains("reason=\"policy-denied\",direction=\"ingress\",namespace=\"production\"");
    let text = eventually(|| Some(scene.metrics("127.0.0.1:9964")).filter(is_published));
    for line in [
        "netpol_drops_total{reason=\"policy-denied\",direction=\"ingress\",namespace=\"production\"} ",
        "hubble_drop_total{reason=\"POLICY_DENIED\",protocol=\"TCP\"} ",
        "netpol_policy_drops_total{policy=\"production/default-deny-all\",direction=\"ingress\"} ",
        "netpol_event_to_kernel_seconds_count ",
        "netpol_map_entries{map=\"allow\"} ",
        "netpol_backstop_in_force 1",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}
