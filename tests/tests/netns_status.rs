//! `netpol` as people use it: every command by socket and through the API server's exec, tables and JSON, and what it says
//! when something is not there.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use netpol_tests::agent::{self, Agent, Options};
use netpol_tests::apiserver::{ApiServer, Executed};
use netpol_tests::level::has_agent;
use netpol_tests::node::NODE;
use netpol_tests::shop::{Shop, case};
use serde_json::{Value, json};

fn netpol() -> PathBuf {
    agent::binary().unwrap().with_file_name("netpol")
}

/// What a command printed and how it ended.
#[derive(Debug)]
struct Said {
    stdout: String,
    stderr: String,
    code: i32,
}

fn said(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code().unwrap() }
}

fn run(arguments: &[&str], more: &[&str]) -> Said {
    let mut command = Command::new(netpol());
    command.args(arguments).args(more).env_remove("NETPOL_SOCKET").env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    said(command.output().unwrap())
}

impl Said {
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        assert_eq!(self.stderr, "", "{self:?}");
        self.stdout
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails with this code and a message that has all the words.
    fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }
}

/// The columns of the row that begins so.
fn row<'t>(table: &'t str, begins: &str) -> Vec<&'t str> {
    let found = table.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("no {begins}:\n{table}"));
    found.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

struct Scene {
    agent: Agent,
    shop: Shop,
}

impl Scene {
    fn start() -> Self {
        let case = case("shop");
        let shop = Shop::build(&case, &[]).unwrap();
        shop.put_policies().unwrap();
        let options = Options { node: Some(NODE.to_owned()), ..Options::default() };
        let agent = Agent::start(&shop.node, &options).unwrap();
        Self { agent, shop }
    }

    fn socket(&self) -> &Path {
        self.shop.node.node(NODE).unwrap().socket()
    }

    fn ask(&self, arguments: &[&str]) -> Said {
        run(arguments, &["--socket", self.socket().to_str().unwrap()])
    }
}

#[test]
fn every_command_says_what_is_enforced() {
    if !has_agent() {
        return;
    }
    let scene = Scene::start();
    let status = scene.ask(&["status"]).ok();
    assert_eq!(row(&status, "node")[..2], ["node", "enforced"], "{status}");
    for words in ["manifests /", "Uplinks ", "Backstop    in force", "CNI plugin  off"] {
        assert!(status.contains(words), "no {words:?}:\n{status}");
    }
    assert!(!status.contains('\u{1b}'), "colours without a terminal");
    let json = scene.ask(&["status", "-o", "json"]).json();
    let answer = &json["nodes"][0]["answer"];
    assert_eq!((&answer["settled"], &answer["generation"]), (&json!(true), &answer["enforced"]), "{answer}");
    assert_eq!(answer["pods"]["enforced"].as_u64().unwrap(), answer["endpoints"].as_array().unwrap().len() as u64);

    let endpoints = scene.ask(&["endpoints", "-n", "production"]).ok();
    let database = row(&endpoints, "node  production/postgresql");
    assert_eq!(
        &database[5..],
        ["enforced", "allow-monitoring-scrape,database-access,default-deny-all", "allow-dns,default-deny-all"],
        "{endpoints}"
    );
    assert!(!endpoints.contains("staging/"), "{endpoints}");
    let json = scene.ask(&["endpoints", "-o", "json"]).json();
    let all = json["nodes"][0]["answer"]["endpoints"].as_array().unwrap();
    let intruder = all.iter().find(|it| it["pod"] == "staging/intruder").unwrap();
    assert_eq!(intruder["ingress"], json!({"isolated": false, "by": [], "policyId": 0}));
    assert!(intruder["since"].as_str().unwrap().ends_with('Z'));

    let list = scene.ask(&["policy", "list"]).ok();
    assert_eq!(
        row(&list, "production  database-access"),
        ["production", "database-access", "Ingress", "1", "1/1", "0"],
        "{list}"
    );
    let show = scene.ask(&["policy", "show", "production/database-access"]).ok();
    let expected = [
        "Isolates for  Ingress",
        "Selects       pods app=postgresql in namespace production",
        "Pods          postgresql on node: enforced",
        "[0] from pods tier=backend in namespace production (",
        "on TCP 5432",
    ];
    for words in expected {
        assert!(show.contains(words), "no {words:?}:\n{show}");
    }
    println!("{status}\n{endpoints}\n{list}\n{show}");
}

#[test]
fn what_is_wrong_is_said_beside_what_it_is_about() {
    if !has_agent() {
        return;
    }
    let scene = Scene::start();
    let broken = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: broken, namespace: production}\n\
                  spec: {podSelector: {matchLabels: {app: postgresql}}, ingress: [{from: [{podSelecter: {}}]}]}\n";
    scene.shop.put_text("99-broken.yaml", broken).unwrap();
    let waited = scene.ask(&["status", "--wait"]).ok();
    assert!(
        waited.contains("Not enforced as written (1):\n  NetworkPolicy production/broken: spec.ingress[0].from[0]"),
        "{waited}"
    );
    let list = scene.ask(&["policy", "list", "-n", "production"]).ok();
    assert_eq!(row(&list, "production  broken").last(), Some(&"1"), "{list}");
    let show = scene.ask(&["policy", "show", "production/broken"]).ok();
    assert!(show.contains("from nobody") && show.contains("podSelecter") && show.contains("effect: "), "{show}");
    println!("{waited}\n{show}");

    scene.ask(&["policy", "show", "production/databse-access"]).fails(1, &["did you mean production/database-access?"]);
    scene
        .ask(&["policy", "show", "database-access"])
        .fails(1, &["default/database-access", "did you mean production/database-access"]);
    let unknown = scene.ask(&["policy", "show", "x/y", "-o", "json"]);
    assert_eq!((unknown.code, &unknown.json()["nodes"][0]["answer"]["policy"]), (1, &Value::Null));

    let socket = scene.socket().to_owned();
    scene.agent.kill().unwrap();
    let ask = |arguments: &[&str]| run(arguments, &["--socket", socket.to_str().unwrap()]);
    ask(&["status"]).fails(1, &["cannot reach the agent", "starting", "stays in force"]);
    let begun = Instant::now();
    ask(&["status", "--wait", "--timeout", "1500ms"]).fails(1, &["still waiting for cannot reach the agent"]);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn wrong_usage_and_missing_places_are_told_with_what_to_do() {
    if !has_agent() {
        return;
    }
    run(&["status", "--socket", "/nonexistent"], &[]).fails(1, &["/nonexistent", "is netpol-agent running here"]);
    run(&["status", "--kubeconfig", "/nonexistent"], &[]).fails(1, &["kubeconfig /nonexistent", "No such file"]);
    run(&["status", "--all-nodes"], &[]).fails(1, &["kubeconfig"]);
    run(&["policy", "show", "a/b/c"], &[]).fails(2, &["NAMESPACE/NAME"]);
    run(&["polcy", "list"], &[]).fails(2, &["similar subcommand"]);
    run(&["status", "--timeout", "5s"], &[]).fails(2, &["--wait"]);
    run(&["status", "--wait", "--timeout", "soon"], &[]).fails(2, &["1m30s"]);
    assert!(run(&["completions", "bash"], &[]).ok().contains("_netpol()"));
    let help = run(&["--help"], &[]).ok();
    assert!(help.contains("Exit codes") && help.contains("kubectl netpol status --wait"), "{help}");
}

/// An agent's pod as the API server has it.
fn pod(name: &str, node: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "kube-system", "labels": {"app.kubernetes.io/name": "netpol"}},
        "spec": {"nodeName": node, "hostNetwork": true, "containers": [{"name": "netpol-agent", "image": "netpol"}]},
        "status": {"phase": phase},
    })
}

/// Policies as an agent of `node` lists them, or its status.
fn fake(node: &str, arguments: &[String], generation: i64) -> Executed {
    let source = json!({"kind": "kubernetes", "synced": true});
    let policy = json!({"namespace": "shop", "name": "x", "policyTypes": ["Ingress"], "pods": [{"name": "db", "state": "enforced"}],
                        "version": {"uid": "", "generation": generation}});
    let answer = match arguments.get(1).map(String::as_str) {
        Some("policy") => json!({"node": node, "settled": true, "source": source, "policies": [policy]}),
        _ => json!({"node": node, "settled": true, "source": source, "version": "1", "policies": 1}),
    };
    Executed { stdout: json!({"nodes": [{"node": node, "answer": answer}]}).to_string(), ..Executed::default() }
}

#[test]
fn all_agents_are_asked_through_the_api_server_and_one_that_fails_is_a_row() {
    if !has_agent() {
        return;
    }
    let server = ApiServer::start().unwrap();
    let directory = std::env::temp_dir().join(format!("netpol-status-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let kubeconfig = directory.join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).unwrap();
    let ask = |arguments: &[&str]| run(arguments, &["--kubeconfig", kubeconfig.to_str().unwrap()]);

    ask(&["status"]).fails(1, &["no pods with label app.kubernetes.io/name=netpol in namespace kube-system"]);
    for (name, node, phase) in
        [("netpol-a", "alpha", "Running"), ("netpol-b", "beta", "Running"), ("netpol-c", "gamma", "Pending")]
    {
        server.apply(&pod(name, node, phase));
    }
    server.on_exec(|pod, arguments| match pod {
        "netpol-a" => fake("alpha", arguments, 1),
        _ => Executed { stderr: "Error: cannot reach the agent at x\n".to_owned(), code: 1, ..Executed::default() },
    });
    let status = ask(&["status"]);
    assert_eq!(status.code, 5, "{status:?}");
    assert_eq!(row(&status.stdout, "alpha")[1], "enforced", "{status:?}");
    assert_eq!(row(&status.stdout, "beta")[1..], ["no answer", "pod netpol-b: cannot reach the agent at x"]);
    assert_eq!(row(&status.stdout, "gamma")[1..], ["no answer", "pod netpol-c is Pending"]);
    let asked = server.take_requests();
    let exec = asked.iter().find(|line| line.contains("/pods/netpol-a/exec")).unwrap();
    assert!(exec.contains("command=%2Fnetpol&command=status&command=--local&command=--output&command=json"), "{exec}");
    assert!(exec.contains("container=netpol-agent"), "{exec}");
    assert_eq!(netpol_agent::access::unlisted(netpol_agent::access::CLIENT, &asked), [""; 0]);

    let json = ask(&["policy", "list", "-o", "json"]).json();
    assert_eq!(json["nodes"][0]["answer"]["policies"][0]["name"], "x", "{json}");
    assert!(json["nodes"][1]["error"].as_str().unwrap().contains("netpol-b"), "{json}");
    assert!(ask(&["status", "--node", "alpha"]).ok().contains("alpha"));
    ask(&["status", "--node", "delta"]).fails(1, &["no agent runs on node delta", "alpha, beta, gamma"]);
    server.faults(|faults| _ = faults.forbidden.insert("pods".to_owned()));
    ask(&["status"]).fails(1, &["forbidden", "needs `list` on pods"]);
    println!("{}", status.stdout);
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn waiting_ends_when_every_agent_has_the_version_that_the_api_server_has() {
    if !has_agent() {
        return;
    }
    let server = ApiServer::start().unwrap();
    let directory = std::env::temp_dir().join(format!("netpol-wait-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let kubeconfig = directory.join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).unwrap();
    server.apply(&pod("netpol-a", "alpha", "Running"));
    server.apply(&pod("netpol-b", "beta", "Running"));
    let policy = |generation| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
               "metadata": {"name": "x", "namespace": "shop", "generation": generation}, "spec": {"podSelector": {}}})
    };
    server.apply(&policy(2));
    let uid =
        server.objects(netpol_tests::apiserver::Kind::NetworkPolicy)[0]["metadata"]["uid"].as_str().unwrap().to_owned();
    // Beta sees the change after some rounds.
    let asked = std::sync::atomic::AtomicI64::new(0);
    server.on_exec(move |pod, arguments| {
        let late = pod == "netpol-b" && asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 6;
        let mut executed = fake(if pod == "netpol-a" { "alpha" } else { "beta" }, arguments, if late { 1 } else { 2 });
        executed.stdout = executed.stdout.replace("\"uid\":\"\"", &format!("\"uid\":{uid:?}"));
        executed
    });
    let ask = |timeout: &str| {
        run(&["status", "--wait", "--timeout", timeout], &["--kubeconfig", kubeconfig.to_str().unwrap()])
    };
    let waited = ask("20s");
    assert_eq!(waited.code, 0, "{waited:?}");
    assert!(waited.stderr.contains("waiting for beta: generation 2 of NetworkPolicy shop/x to be seen"), "{waited:?}");
    server.apply(&policy(3));
    ask("0s").fails(4, &["still waiting for alpha: generation 3 of NetworkPolicy shop/x", "still waiting for beta"]);
    std::fs::remove_dir_all(&directory).unwrap();
}
