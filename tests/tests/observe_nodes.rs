//! `netpol observe` over all nodes through the API server's exec: two agents' flows in one order, and what is said of nodes
//! that cannot be asked.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use netpol_agent::observe::hubble::Hub;
use netpol_agent::observe::hubble::listen::{self, Served};
use netpol_agent::observe::hubble::peers::Address;
use netpol_agent::observe::hubble::proto::flow::{Endpoint, Flow, Ip, Verdict};
use netpol_tests::agent;
use netpol_tests::apiserver::ApiServer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost_types::Timestamp;
use serde_json::json;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn netpol() -> PathBuf {
    agent::binary().unwrap().with_file_name("netpol")
}

/// Agents of nodes alpha and beta, as far as observers know them, and a cluster to ask.
struct Scene {
    server: ApiServer,
    directory: PathBuf,
    hubs: [Arc<Hub>; 2],
    /// An agent that ends closes its connections: each has a runtime of its own.
    agents: [Option<(Served, tokio::runtime::Runtime)>; 2],
}

const NODES: [&str; 2] = ["alpha", "beta"];

impl Scene {
    fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("netpol-observe-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let server = ApiServer::start().unwrap();
        std::fs::write(directory.join("kubeconfig"), server.kubeconfig(None)).unwrap();
        let hubs = NODES.map(|node| Arc::new(Hub::new(node, 63)));
        let mut scene = Self { server, directory, hubs, agents: [None, None] };
        for (at, node) in NODES.into_iter().enumerate() {
            scene.serve(at);
            scene.pod(node, "Running");
        }
        let directory = scene.directory.clone();
        scene.server.on_exec_run(move |pod, words| {
            assert_eq!(words[..2], ["/netpol", "observe"], "{words:?}");
            let mut command = Command::new(netpol());
            command.args(&words[1..]).arg("--socket").arg(directory.join(format!("{pod}.sock")));
            command
        });
        scene
    }

    fn serve(&mut self, at: usize) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let path = self.directory.join(format!("netpol-{}.sock", NODES[at]));
        let served = {
            let _guard = runtime.enter();
            listen::on_socket(&path, self.hubs[at].clone(), Address::default()).unwrap()
        };
        self.agents[at] = Some((served, runtime));
    }

    fn pod(&self, node: &str, phase: &str) {
        self.server.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("netpol-{node}"), "namespace": "kube-system",
                         "labels": {"app.kubernetes.io/name": "netpol"}},
            "spec": {"nodeName": node, "containers": [{"name": "netpol-agent", "image": "x"}]},
            "status": {"phase": phase},
        }));
    }

    /// A drop at so many seconds.
    fn drop(&self, at: usize, seconds: i64) {
        let endpoint =
            |pod: &str| Endpoint { namespace: "shop".to_owned(), pod_name: pod.to_owned(), ..Endpoint::default() };
        self.hubs[at].push(Flow {
            time: Some(Timestamp { seconds, nanos: 0 }),
            uuid: format!("{}-{seconds}", NODES[at]),
            node_name: NODES[at].to_owned(),
            verdict: Verdict::Dropped.into(),
            ip: Some(Ip { source: "10.0.0.1".to_owned(), destination: "10.0.0.2".to_owned(), ..Ip::default() }),
            source: Some(endpoint(if seconds % 2 == 0 { "even" } else { "odd" })),
            destination: Some(endpoint("db")),
            ..Flow::default()
        });
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(netpol());
        command.arg("observe").args(arguments).arg("--kubeconfig").arg(self.directory.join("kubeconfig"));
        command.env_remove("HUBBLE_SERVER").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn observe(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn follow(&self, arguments: &[&str]) -> Following {
        let mut child = self.command(&[&["-f", "-o", "jsonpb"], arguments].concat()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Following { child, lines }
    }

    /// Waits until so many commands run in pods.
    fn wait_for_processes(&self, count: usize) {
        let start = Instant::now();
        while self.server.processes() != count {
            assert!(start.elapsed() < PATIENCE, "{} commands run in pods, not {count}", self.server.processes());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn next(&self) -> String {
        uuid(&self.lines.recv_timeout(PATIENCE).expect("a flow in time"))
    }

    /// Ends it as a terminal does; its exit code and what it said.
    fn interrupt(mut self) -> (Option<i32>, String) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

fn uuid(line: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    value["flow"]["uuid"].as_str().unwrap_or(line).to_owned()
}

fn uuids(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(uuid).collect()
}

fn said(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn flows_of_all_nodes_are_shown_in_one_order_of_time() {
    let scene = Scene::start("order");
    for seconds in 1..=8 {
        scene.drop(usize::from(seconds % 3 == 0), seconds);
    }
    let all = scene.observe(&["--all", "-o", "jsonpb"]);
    assert!(all.status.success() && said(&all).is_empty(), "{all:?}");
    let expected = ["alpha-1", "alpha-2", "beta-3", "alpha-4", "alpha-5", "beta-6", "alpha-7", "alpha-8"];
    assert_eq!(uuids(&all), expected);
    let last = scene.observe(&["--last", "1", "-o", "jsonpb"]);
    assert_eq!(uuids(&last), ["beta-6", "alpha-8"], "of each node");
    let first = scene.observe(&["--first", "1", "-o", "jsonpb", "--from-pod", "shop/even"]);
    assert_eq!(uuids(&first), ["alpha-2", "beta-6"], "filters are the agents' to apply");
    let some = scene.observe(&["-o", "jsonpb", "--since", "1970-01-01T00:00:03Z", "--until", "1970-01-01T00:00:05Z"]);
    assert_eq!(uuids(&some), ["beta-3", "alpha-4", "alpha-5"]);
    let not = scene.observe(&["--all", "-o", "jsonpb", "--not", "--from-pod", "shop/odd", "--node-name", "beta"]);
    assert_eq!(uuids(&not), ["beta-6"]);
    let asked = scene.server.take_requests();
    assert_eq!(netpol_agent::access::unlisted(netpol_agent::access::CLIENT, &asked), [""; 0]);
    assert!(asked.iter().any(|line| line.contains("container=netpol-agent")), "{asked:?}");
}

#[test]
fn a_node_that_cannot_be_asked_is_named_and_the_others_are_shown() {
    let mut scene = Scene::start("away");
    scene.drop(0, 1);
    scene.agents[1] = None;
    scene.pod("gamma", "Pending");
    let output = scene.observe(&["-o", "jsonpb"]);
    assert_eq!((uuids(&output), output.status.code()), (vec!["alpha-1".to_owned()], Some(5)), "{output:?}");
    let said = said(&output);
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |node: &str| {
        let is = |line: &&serde_json::Value| line["node_status"]["node_names"] == json!([node]);
        lines.iter().find(is).unwrap_or_else(|| panic!("{node}: {said}"))["node_status"]["message"].as_str().unwrap()
    };
    assert!(of("beta").starts_with("pod netpol-beta: cannot connect to unix:///"), "{said}");
    assert_eq!((of("gamma"), lines.len()), ("pod netpol-gamma is Pending", 2));
    let compact = scene.observe(&[]);
    assert!(self::said(&compact).contains("on 1 nodes: gamma"), "{compact:?}");

    scene.agents[0] = None;
    let none = scene.observe(&[]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(self::said(&none).ends_with("Error: no agent answered\n"), "{none:?}");
    scene.server.set_away(true);
    let nobody = scene.observe(&[]);
    assert_eq!(nobody.status.code(), Some(1));
    let url =
        format!("Error: cannot list the agents' pods in namespace kube-system at http://{}", scene.server.address());
    assert!(self::said(&nobody).starts_with(&url), "{nobody:?}");
}

#[test]
fn who_follows_gets_each_nodes_flows_and_leaves_nothing_running_behind() {
    let scene = Scene::start("follow");
    for seconds in 1..=4 {
        scene.drop(usize::from(seconds % 2 == 0), seconds);
    }
    let following = scene.follow(&["--last", "2"]);
    let backlog: Vec<String> = (0..4).map(|_| following.next()).collect();
    assert_eq!(backlog, ["alpha-1", "beta-2", "alpha-3", "beta-4"]);
    assert_eq!(scene.server.processes(), 2);
    scene.drop(1, 5);
    scene.drop(0, 6);
    assert_eq!([following.next(), following.next()], ["beta-5", "alpha-6"]);
    let (code, said) = following.interrupt();
    assert_eq!((code, said.as_str()), (Some(0), ""), "Ctrl-C");
    scene.wait_for_processes(0);
}

#[test]
fn a_node_whose_agent_restarts_is_told_of_and_followed_again_and_a_new_one_too() {
    let mut scene = Scene::start("restart");
    scene.drop(0, 1);
    scene.drop(1, 2);
    let mut following = scene.follow(&["--last", "9"]);
    assert_eq!([following.next(), following.next()], ["alpha-1", "beta-2"]);
    scene.agents[1] = None;
    let mut stderr = BufReader::new(following.child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("\"beta\"") && line.contains("pod netpol-beta: "), "{line}");
    scene.serve(1);
    scene.wait_for_processes(2);
    scene.drop(0, 3);
    scene.drop(1, 4);
    let both: std::collections::BTreeSet<String> = (0..2).map(|_| following.next()).collect();
    assert_eq!(both, ["alpha-3", "beta-4"].map(str::to_owned).into(), "once each: nothing is told twice");
    following.child.kill().unwrap();
    following.child.wait().unwrap();
    scene.wait_for_processes(0);
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let scene = Scene::start("pipe");
    for seconds in 1..=60 {
        scene.drop(0, seconds);
    }
    let mut child = scene.command(&["--all", "-o", "dict"]).spawn().unwrap();
    let mut first = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("TIMESTAMP"), "{first}");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

fn netpol_says(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(netpol());
    let clean = command.env_remove("HUBBLE_SERVER").env_remove("NETPOL_SOCKET").env_remove("KUBECONFIG");
    let output = clean.env("HOME", "/nonexistent").args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn what_is_typed_wrong_is_wrong_usage_and_every_error_has_one_form() {
    let usage: [&[&str]; 8] = [
        &["observe", "--verdict", "NOPE"],
        &["observe", "--ip", "10.0.0.256", "--input-file", "/dev/null"],
        &["observe", "--since", "yesterday"],
        &["observe", "--last", "x"],
        &["observe", "-f", "-o", "table"],
        &["explain", "a", "b:http:80"],
        &["explain", "a", "b:70000"],
        &["status", "--nope"],
    ];
    for arguments in usage {
        let (code, out, said) = netpol_says(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {said}");
        assert!(said.to_lowercase().starts_with("error: "), "{arguments:?}: {said}");
    }
    let failures: [&[&str]; 4] = [
        &["observe", "--server", "127.0.0.1:1"],
        &["observe", "--input-file", "/nonexistent"],
        &["status", "--socket", "/nonexistent"],
        &["observe", "--kubeconfig", "/nonexistent"],
    ];
    for arguments in failures {
        let (code, out, said) = netpol_says(arguments);
        assert_eq!((code, out.as_str(), said.lines().count()), (Some(1), "", 1), "{arguments:?}: {said}");
        assert!(said.starts_with("Error: ") && said.contains(arguments[2]), "{arguments:?}: {said}");
    }
}

#[test]
fn lines_of_a_file_that_are_no_flows_are_counted_and_a_file_without_flows_is_an_error() {
    let path = std::env::temp_dir().join(format!("netpol-observe-file-{}", std::process::id()));
    let file = path.to_str().unwrap();
    let flow = r#"{"flow":{"uuid":"one","verdict":"DROPPED"},"node_name":"a"}"#;
    std::fs::write(&path, format!("{flow}\nlog line\n\n{{\"a\":1}}\n")).unwrap();
    let (code, out, said) = netpol_says(&["observe", "--input-file", file, "-o", "jsonpb"]);
    assert_eq!((code, out.trim_end()), (Some(0), flow));
    assert_eq!(said, "Warning: 2 lines are no flow as -o jsonpb writes them, and passed over\n");
    std::fs::write(&path, "a log\nof something else\n").unwrap();
    let (code, out, said) = netpol_says(&["observe", "--input-file", file]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{said}");
    assert!(said.starts_with(&format!("Error: {file}: no line of it is a flow")), "{said}");
    std::fs::write(&path, "").unwrap();
    assert_eq!(
        netpol_says(&["observe", "--input-file", file]),
        (Some(0), String::new(), String::new()),
        "nothing is no flow"
    );
    std::fs::remove_file(&path).unwrap();
}
