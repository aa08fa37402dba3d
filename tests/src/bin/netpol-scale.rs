//! How long a large cluster takes from the API server to the compiled plan, and how much memory: 100,000 pods and 2,000
//! policies from the double in a process of its own, through the source into the compiler.
//!
//! Run it in release. Exits with 1 if a figure misses its target.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use netpol_agent::allocator::{self, Allocator};
use netpol_agent::datapath::diff::diff;
use netpol_agent::datapath::installed::Installed;
use netpol_agent::policy::{Compiler, Limits};
use netpol_agent::source::kube::{KubeOptions, KubeSource};
use netpol_tests::apiserver::ApiServer;
use netpol_tests::scale::{PODS_PER_NODE, Size, node_of, pod};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const MOST_SECONDS: f64 = 10.0;
const MOST_MEGABYTES: u64 = 200;
const MOST_TO_PLAN: Duration = Duration::from_millis(1);

/// Measures the source and the compiler with a large cluster.
#[derive(Debug, Parser)]
#[command(name = "netpol-scale")]
struct Arguments {
    /// Pods.
    #[arg(long, default_value_t = 100_000)]
    pods: usize,
    /// NetworkPolicies.
    #[arg(long, default_value_t = 2_000)]
    policies: usize,
    /// Relabelled pods, one after the other.
    #[arg(long, default_value_t = 300)]
    relabelled: usize,
    /// The server refuses streaming lists: page by page.
    #[arg(long)]
    paged: bool,
    /// Be the API server: print a kubeconfig, then relabel the pod of each number that is read.
    #[arg(long, hide = true)]
    serve: bool,
}

fn main() -> Result<ExitCode> {
    allocator::return_soon();
    let arguments = Arguments::parse();
    let size = Size { pods: arguments.pods, policies: arguments.policies };
    if arguments.serve { serve(size, arguments.paged) } else { measure(size, &arguments) }
}

#[expect(clippy::print_stdout, reason = "the kubeconfig goes to the process that measures")]
fn serve(size: Size, paged: bool) -> Result<ExitCode> {
    let server = ApiServer::start()?;
    server.faults(|faults| faults.no_streaming = paged);
    size.objects().for_each(|object| {
        server.apply(&object);
    });
    println!("{}", server.kubeconfig(None));
    for (count, line) in (1..).zip(std::io::stdin().lines()) {
        let number: usize = line?.trim().parse().context("not a pod's number")?;
        server.apply(&pod(size, number, count));
    }
    Ok(ExitCode::SUCCESS)
}

struct Served {
    child: Child,
    kubeconfig: PathBuf,
}

impl Served {
    fn start(size: Size, paged: bool) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("no path of this program")?);
        command.arg("--serve").args(["--pods", &size.pods.to_string(), "--policies", &size.policies.to_string()]);
        command.args(paged.then_some("--paged"));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the server")?;
        let mut line = String::new();
        let output = child.stdout.take().context("no output")?;
        BufReader::new(output).read_line(&mut line).context("no kubeconfig from the server")?;
        let kubeconfig = std::env::temp_dir().join(format!("netpol-scale-{}.kubeconfig", child.id()));
        std::fs::write(&kubeconfig, line).context("cannot write the kubeconfig")?;
        Ok(Self { child, kubeconfig })
    }

    fn relabel(&mut self, number: usize) -> Result<()> {
        let input = self.child.stdin.as_mut().context("no input")?;
        writeln!(input, "{number}").context("the server is gone")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.kubeconfig));
    }
}

/// The compiler, and what would be in the maps.
struct Agent {
    compiler: Compiler,
    installed: Installed,
}

impl Agent {
    /// Compiles what waits; the operations of all plans.
    fn plan(&mut self) -> usize {
        let mut operations = 0;
        while let Some(step) = self.compiler.next_step() {
            let plan = diff(&self.installed, self.compiler.desired(), &step.touched);
            for operation in plan.operations() {
                operations += 1;
                self.installed.record(&operation);
            }
            self.compiler.applied(true);
        }
        operations
    }
}

#[expect(clippy::print_stdout, reason = "a command's own output")]
fn measure(size: Size, arguments: &Arguments) -> Result<ExitCode> {
    let mut served = Served::start(size, arguments.paged)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let before = memory("VmHWM")?;
    let started = Instant::now();
    let options = KubeOptions { kubeconfig: Some(served.kubeconfig.clone()), ..KubeOptions::default() };
    let mut source = runtime.block_on(KubeSource::connect(&options))?;
    let mut agent =
        Agent { compiler: Compiler::new(Limits::default(), <_>::default()), installed: Installed::default() };
    let mut events = 0;
    runtime.block_on(async {
        while !source.is_synced() {
            source.changed().await;
            // Until then there is nothing but health.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        source.changed().await;
    });
    let synced = started.elapsed();
    for event in source.take().events {
        events += 1;
        agent.compiler.apply(event);
    }
    let taken = started.elapsed();
    let mut local = BTreeMap::new();
    let first_operations = agent.plan();
    let node = node_of(size, 0);
    let on_node = agent.compiler.state().pods().filter(|pod| *pod.node == *node).take(PODS_PER_NODE);
    for (slot, pod) in (1..).zip(on_node) {
        local.insert(slot, pod.key.clone());
    }
    let slots = local.len();
    agent.compiler.set_local(local);
    let operations = first_operations + agent.plan();
    let compiled = started.elapsed();
    println!("events {events}, slots {slots}, operations {operations}");
    println!("synced after {synced:.2?}, in the compiler after {taken:.2?}, plan after {compiled:.2?}");
    println!("processor time {:.2?}", processor_time()?);
    println!("addresses in the maps {}", agent.installed.tables.addresses.len());
    let peak = memory("VmHWM")?;
    println!("peak of memory {peak} MB ({before} MB before), now {} MB", memory("VmRSS")?);
    let mut times = Vec::new();
    for round in 0..arguments.relabelled {
        // Pods that a policy of every namespace asks for by the label that changes.
        served.relabel((7 + 97 * (round % 100)) * 10 % size.pods)?;
        let changed = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), source.changed()).await });
        ensure!(changed.is_ok(), "a relabelled pod was not heard of");
        let heard = Instant::now();
        let changes = source.take();
        ensure!(!changes.events.is_empty(), "nothing was relabelled: {:?}", changes.problems);
        changes.events.into_iter().for_each(|event| agent.compiler.apply(event));
        let operations = agent.plan();
        times.push((heard.elapsed(), operations));
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).map_or(Duration::ZERO, |(time, _)| *time);
    let worst = times.last().map_or(Duration::ZERO, |(time, _)| *time);
    let changing = times.iter().filter(|(_, operations)| *operations > 0).count();
    println!("relabelled {}, of which {changing} change the maps: median {median:.2?}, worst {worst:.2?}", times.len());
    let good = compiled.as_secs_f64() < MOST_SECONDS && peak < MOST_MEGABYTES && median < MOST_TO_PLAN;
    println!("{}", if good { "within the targets" } else { "OUTSIDE the targets" });
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Processor time of this process so far.
fn processor_time() -> Result<Duration> {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).context("no usage")?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(u64::try_from(value.tv_sec()).unwrap_or_default())
            + Duration::from_micros(u64::try_from(value.tv_usec()).unwrap_or_default())
    };
    Ok(time(used.user_time()) + time(used.system_time()))
}

/// A figure of /proc/self/status, in megabytes.
fn memory(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).context("no such line")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no figure")?.parse().context("no figure")?;
    Ok(kilobytes / 1024)
}
