//! The demo: a small shop on two nodes of network namespaces, before and after its NetworkPolicies.
//!
//! Builds the nodes and starts the real agents; measures who reaches whom without and with the policies, directly and by
//! services; shows drops as they stream; changes a policy under two open connections. Everything is compared with what
//! `tests/cases/shop` and `tests/cases/shop-services` say by hand; [`run`] says whether all of it was so. Must not know how policies are enforced.

mod report;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use self::report::Report;
use crate::agent::{Agent, Endpoint, Lines, Options, Output, Settled};
use crate::connection::{Connection, Side};
use crate::manifests::{self, PodAddresses};
use crate::netns::run::require_root;
use crate::probe::{Outcome, PATIENCE, SILENCE};
use crate::servers::Transport;
use crate::shop::{METADATA, Shop, case};
use crate::table::{Table, Target};

/// How long to wait for the agent to report a drop that happened.
const DROP_LIMIT: Duration = Duration::from_secs(2);
/// How long nothing may arrive on a connection that is no longer allowed: TCP repeats within it, twice.
const CUT: Duration = Duration::from_millis(700);
/// The policy file that is changed under open connections.
const CHANGE: &str = "04-database-access.yaml";

/// What to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Leave everything up at the end, until Ctrl-C.
    pub keep: bool,
    /// One JSON object a line.
    pub json: bool,
    /// Over IPv6.
    pub ipv6: bool,
    /// Without an agent: shows what the network does when nothing is enforced, so the second table fails.
    pub no_agent: bool,
}

/// The demo in progress.
struct Demo {
    settings: Settings,
    report: Report,
    pods: Vec<PodAddresses>,
    // The agents end before what they run on; the first is that of the node with most pods.
    agents: Vec<Agent>,
    shop: Shop,
}

/// Runs the demo. True if everything was as expected.
///
/// # Errors
/// If it could not be run at all.
pub fn run(settings: Settings) -> Result<bool> {
    require_root()?;
    let started = Instant::now();
    let cases = [case("shop"), case("shop-services")];
    let tables = |name: &str| cases.iter().map(|case| Shop::expectation(case, name)).collect::<Result<Vec<Table>>>();
    let (before, after) = (tables("before")?, tables("after")?);
    let mut demo = build(settings, &cases, &before)?;
    demo.before(&before)?;
    demo.after(&after)?;
    demo.drops()?;
    demo.revoke()?;
    let good = demo.report.failures() == 0;
    let seconds = started.elapsed().as_secs_f32();
    let verdict = if good { "Everything was as expected" } else { "NOT everything was as expected" };
    let fields = json!({"ok": good, "failures": demo.report.failures(), "seconds": seconds});
    demo.report.done(&format!("\n{verdict}, in {seconds:.1} s."), "result", fields)?;
    if settings.keep {
        demo.keep()?;
    }
    Ok(good)
}

fn build(settings: Settings, cases: &[PathBuf], tables: &[Table]) -> Result<Demo> {
    let report = Report::new(settings.json);
    report.part("Two nodes with Flannel-shaped bridges and VXLAN, kube-proxy's rules, and the pods of a shop")?;
    let begun = Instant::now();
    let shop = Shop::build_layers(
        &cases.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
        &tables.iter().collect::<Vec<_>>(),
    )?;
    let pods = cases.iter().map(|case| manifests::pods(&case.join("cluster"))).collect::<Result<Vec<_>>>()?.concat();
    for pod in &pods {
        let place = shop.node.pod(&pod.key)?;
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        let (node, interface) = (place.node(), place.interface());
        let text = format!("    {:27} {node:7} {interface:13} {}", pod.key, addresses.join("  "));
        let fields = json!({"pod": pod.key, "node": node, "interface": interface, "addresses": addresses});
        report.done(&text, "pod", fields)?;
    }
    let text = format!(
        "{} pods with real servers, their nodes, and a host outside, in network namespaces {}-* ({} ms)",
        pods.len(),
        shop.node.run().id(),
        begun.elapsed().as_millis()
    );
    report.done(&text, "built", json!({"pods": pods.len(), "run": shop.node.run().id()}))?;
    let mut demo = Demo { settings, report, pods, agents: Vec::new(), shop };
    demo.start_agents()?;
    Ok(demo)
}

impl Demo {
    fn start_agents(&mut self) -> Result<()> {
        if self.settings.no_agent {
            return self.report.text("No agent (--no-agent): nothing will be enforced.");
        }
        let names: Vec<String> = self.shop.node.nodes().map(|(name, _node)| name.to_owned()).collect();
        for name in names {
            let begun = Instant::now();
            let output = if self.settings.json { Output::Json } else { Output::Text };
            let options = Options { output, node: Some(name.clone()), ..Options::default() };
            let agent = Agent::start(&self.shop.node, &options)?;
            let text = format!(
                "netpol-agent of {name} (process {}) is ready, with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON and nothing \
                 else ({} ms)",
                agent.pid(),
                begun.elapsed().as_millis()
            );
            self.report.done(&text, "agent", json!({"node": name, "pid": agent.pid().as_raw()}))?;
            self.agents.push(agent);
        }
        Ok(())
    }

    fn before(&mut self, expected: &[Table]) -> Result<()> {
        self.report.part("Before: no NetworkPolicy. Columns connect, rows are connected to")?;
        self.measure("before", expected)
    }

    fn after(&mut self, expected: &[Table]) -> Result<()> {
        self.report.part("The shop's NetworkPolicies")?;
        for file in self.shop.put_policies()? {
            let text = fs::read_to_string(&file)?;
            let first = text.lines().next().unwrap_or_default().trim_start_matches("# ");
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.report.done(&format!("    {name:32} {first}"), "policy", json!({"file": name, "about": first}))?;
        }
        self.sync("in force")?;
        self.report.part("After: with the policies")?;
        self.measure("after", expected)
    }

    /// The shop's table, and that of its services.
    fn measure(&mut self, name: &str, expected: &[Table]) -> Result<()> {
        for (expected, of) in expected.iter().zip(["", "-services"]) {
            let begun = Instant::now();
            let (measured, odd) = self.shop.measure(expected, self.settings.ipv6)?;
            let family = if self.settings.ipv6 { "IPv6" } else { "IPv4" };
            let took = begun.elapsed().as_millis();
            self.report.table(&format!("{name}{of}"), expected, &measured, &odd)?;
            self.report
                .text(&format!("    {family}; real TCP connections and UDP datagrams, all at once, in {took} ms"))?;
        }
        Ok(())
    }

    /// Waits until the manifests are enforced, and shows what the agents could not take.
    fn sync(&mut self, what: &str) -> Result<()> {
        if self.agents.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let settled = self.agents.iter().map(Agent::sync).collect::<Result<Vec<Settled>>>()?;
        let took = begun.elapsed().as_millis();
        let generations: Vec<u64> = settled.iter().map(|it| it.generation).collect();
        let endpoints: Vec<Endpoint> = settled.iter().flat_map(|it| it.endpoints.clone()).collect();
        let text = format!("{what} on {} pods of {} nodes after {took} ms", endpoints.len(), settled.len());
        self.report.done(&text, "settled", json!({"generations": generations, "milliseconds": took}))?;
        self.check_endpoints(&endpoints)?;
        for problem in settled.iter().flat_map(|it| &it.problems) {
            self.report.check(&format!("an agent refused something: {problem}"), false)?;
        }
        Ok(())
    }

    /// Every pod must be under the agent: one that it did not find is not policed.
    fn check_endpoints(&mut self, endpoints: &[Endpoint]) -> Result<()> {
        let other = |pod: &&PodAddresses| !endpoints.iter().any(|it| it.pod == pod.key && it.state == "enforced");
        let missing: Vec<&str> = self.pods.iter().filter(other).map(|pod| pod.key.as_str()).collect();
        if missing.is_empty() { Ok(()) } else { self.report.check(&format!("enforced: {}", missing.join(", ")), false) }
    }

    /// A few forbidden attempts, one after the other, and what the agent says of each.
    fn drops(&mut self) -> Result<()> {
        self.report.part("Forbidden attempts, and the agent's word on each as it happens")?;
        let attempts = [
            ("staging/intruder", "production/user-api", 8080, 8080),
            ("production/job-runner", "production/postgresql", 5432, 5432),
            ("monitoring/grafana", "production/user-api", 9090, 9090),
            ("production/payment-service", METADATA, 443, 443),
            // Asked by the service's address and port, refused by the pod's.
            ("production/job-runner", "catalog.production.svc", 80, 8080),
        ];
        // The agent bounds how many events it passes on; the table's drops have just used up some of them.
        thread::sleep(Duration::from_millis(if self.agents.is_empty() { 0 } else { 1000 }));
        for (source, name, port, judged) in attempts {
            let target = Target { name: name.to_owned(), port, transport: Transport::Tcp };
            let probe = self.shop.probe(source, &target, self.settings.ipv6)?;
            let lines = self.drop_lines();
            let mark = lines.count();
            let outcome = self.shop.node.probe(&probe, SILENCE)?;
            self.report.check(&format!("{source} -> {target}: {outcome}"), outcome == Outcome::Silence)?;
            self.show_drop(&lines, mark, source, judged)?;
        }
        Ok(())
    }

    fn show_drop(&mut self, lines: &Lines, mark: usize, source: &str, port: u16) -> Result<()> {
        let port = port.to_string();
        let wanted = |line: &str| line.contains(source) && line.contains(&port) && line.contains("denied");
        match lines.wait_for(mark, self.drop_limit(), wanted) {
            Some(line) => self.report.agent_line(&line),
            None => self.report.check("the agent reported the drop", false),
        }
    }

    /// What the first node's agent prints; without one, nothing ever.
    fn drop_lines(&self) -> Lines {
        self.agents.first().map(|agent| agent.drops().clone()).unwrap_or_default()
    }

    fn drop_limit(&self) -> Duration {
        if self.agents.is_empty() { Duration::ZERO } else { DROP_LIMIT }
    }

    /// Two connections to the database; the policy keeps one of them.
    fn revoke(&mut self) -> Result<()> {
        self.report.part("A policy changes under two open connections to the database")?;
        let target = Target { name: "production/postgresql".to_owned(), port: 5432, transport: Transport::Tcp };
        let mut cut = self.open("production/user-api", &target)?;
        let mut kept = self.open("production/payment-service", &target)?;
        self.both_ways(&mut cut, "production/user-api", PATIENCE, true)?;
        self.both_ways(&mut kept, "production/payment-service", PATIENCE, true)?;

        let lines = self.drop_lines();
        let mark = lines.count();
        let file = self.shop.put_change(CHANGE)?;
        let text = fs::read_to_string(&file)?;
        let about = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        self.report.done(&format!("    {CHANGE:32} {about}"), "change", json!({"file": CHANGE, "about": about}))?;
        self.sync("changed")?;

        self.both_ways(&mut cut, "production/user-api", CUT, false)?;
        self.both_ways(&mut kept, "production/payment-service", PATIENCE, true)?;
        match lines.wait_for(mark, self.drop_limit(), |line| line.contains("flow-revoked")) {
            Some(line) => self.report.agent_line(&line),
            None => self.report.check("the agent reported the revoked connection", false),
        }
    }

    fn open(&self, source: &str, target: &Target) -> Result<Connection> {
        let probe = self.shop.probe(source, target, self.settings.ipv6)?;
        Connection::open(&self.shop.node, &probe).context("an allowed connection could not be opened")
    }

    fn both_ways(&mut self, connection: &mut Connection, name: &str, limit: Duration, expected: bool) -> Result<()> {
        // The server first: after a change it is the side that pushes to a client gone quiet.
        for (side, what) in [(Side::Server, "hears the database"), (Side::Client, "is heard by the database")] {
            let passes = connection.passes(&self.shop.node, side, limit)?;
            let negation = if passes { "" } else { "no longer " };
            self.report.check(&format!("{name} {negation}{what}"), passes == expected)?;
        }
        Ok(())
    }

    /// Streams drops until a signal ends the process (and removes everything).
    fn keep(&self) -> Result<()> {
        let run = self.shop.node.run();
        let id = run.id();
        self.report.part("Left up. Ctrl-C removes it")?;
        let database = self.shop.node.address("production/postgresql", self.settings.ipv6)?;
        let manifests = run.manifests();
        let bpffs = run.bpffs();
        let connect = |pod: &str| {
            format!("ip netns exec {id}-production.{pod} timeout 1 bash -c '</dev/tcp/{database}/5432' && echo open")
        };
        for (line, about) in [
            (connect("job-runner"), "a forbidden attempt"),
            (connect("payment-service"), "an allowed one"),
            (format!("ip netns exec {id}-production.user-api sh"), "a shell in a pod"),
            (format!("ip netns exec {id}-node ip -br link"), "the node's interfaces"),
            (format!("ls {}", bpffs.display()), "what the agent pinned"),
            (format!("$EDITOR {}/{CHANGE}", manifests.display()), "a policy; the agent reads it when saved"),
            (format!("rm {}/01-default-deny-all.yaml", manifests.display()), "without default deny"),
        ] {
            self.report.done(&format!("    # {about}\n    {line}"), "try", json!({"command": line, "about": about}))?;
        }
        self.report.text("\nDrops as they happen:")?;
        let mut streams: Vec<(Lines, usize)> =
            self.agents.iter().map(|agent| (agent.drops().clone(), agent.drops().count())).collect();
        loop {
            for (lines, mark) in &mut streams {
                for line in lines.since(*mark) {
                    *mark += 1;
                    self.report.agent_line(&line)?;
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}
