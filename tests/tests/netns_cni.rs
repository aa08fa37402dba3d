//! Debian's `bridge`, `portmap`, `ptp` and `host-local` with our plugin behind them, run as a container runtime runs them, and
//! a fake agent that says what it was told.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netpol_agent::cni::cache;
use netpol_agent::cni::install::{CniInstaller, uninstall};
use netpol_agent::cni::protocol::{Attachment, CniAnswer, CniRequest};
use netpol_tests::cni::{CniError, CniNode, Container, FakeAgent, Manner, Runtime};
use netpol_tests::footprint::Footprint;
use netpol_tests::level::has_kernel;
use netpol_tests::netns::Namespace;
use netpol_tests::netns::run::Run;
use serde_json::{Value, json};

const POD: (&str, &str, &str) = ("shop", "api", "6e0f5d3c-0000-4000-8000-000000000001");
const NO_DAD: &[(&str, &str)] = &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];

/// A node and a pod's namespace, with Flannel's configuration and ours.
struct Place {
    pod: Namespace,
    node: Namespace,
    run: Run,
}

impl Place {
    fn new() -> Self {
        let run = Run::start().unwrap();
        let node = Namespace::create(&run, "node").unwrap();
        let pod = Namespace::create(&run, "pod").unwrap();
        for namespace in [&node, &pod] {
            namespace.set_sysctls(NO_DAD).unwrap();
        }
        Self { pod, node, run }
    }

    fn cni(&self, version: &str) -> CniNode<'_> {
        CniNode::new(&self.run, &self.node, version).unwrap()
    }

    /// Puts plugin and configuration there, as an agent does.
    fn install(&self, cni: &CniNode<'_>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        let installer = CniInstaller::start(cni.install_options(&self.run.socket()).unwrap());
        assert_eq!(installer.problems(), []);
    }

    fn agent(&self) -> FakeAgent {
        FakeAgent::start(&self.run.socket()).unwrap()
    }

    fn container(&self, cni: &CniNode<'_>) -> Container {
        cni.container(&self.pod, "c1", POD)
    }

    /// The pod's `eth0` as the kernel has it: MAC address, and the name of its other end.
    fn kernel(&self) -> (String, String) {
        let link = |namespace: &Namespace, arguments: &[&str]| -> Value {
            let run = || std::process::Command::new("ip").args(["-j", "link", "show"]).args(arguments).output();
            let output = namespace.enter(run).unwrap().unwrap();
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        };
        let inside = link(&self.pod, &["dev", "eth0"]);
        let index = inside[0]["link_index"].as_u64().unwrap();
        let all = link(&self.node, &[]);
        let peer = all.as_array().unwrap().iter().find(|it| it["ifindex"] == index).unwrap();
        (inside[0]["address"].as_str().unwrap().to_owned(), peer["ifname"].as_str().unwrap().to_owned())
    }

    /// What is left of pods: interfaces, cached results, reserved addresses.
    fn left(&self, cni: &CniNode<'_>) -> Vec<String> {
        let mut left = Vec::new();
        let footprint = Footprint::of(&self.node, &[]).unwrap();
        left.extend(footprint.lines_with("link veth").map(str::to_owned));
        left.extend(footprint.lines_with("CNI-DN-").map(str::to_owned));
        for directory in [cni.cache_dir().join("results"), cni.data_dir().join("cbr0")] {
            let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let names = names.map(|entry| entry.file_name().into_string().unwrap());
            left.extend(names.filter(|name| !name.starts_with("last_reserved") && name != "lock"));
        }
        left
    }
}

fn error(result: anyhow::Result<impl std::fmt::Debug>) -> CniError {
    result.unwrap_err().downcast::<CniError>().unwrap()
}

/// The one attachment that the agent was told of.
fn told(agent: &FakeAgent) -> Attachment {
    let asked = agent.asked();
    match &asked[..] {
        [CniRequest::Add(attachment)] => attachment.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_of_flannels_network_is_announced_as_the_kernel_has_it_in_each_version() {
    if !has_kernel() {
        return;
    }
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let place = Place::new();
        let cni = place.cni(version);
        let agent = place.agent();
        place.install(&cni);
        let runtime = cni.runtime();
        let network = runtime.network().unwrap();
        assert_eq!((network.types(), network.version.as_str()), (vec!["bridge", "portmap", "netpol-cni"], version));
        let mut container = place.container(&cni);
        let mapping = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
        container.capabilities.insert("portMappings".to_owned(), mapping);
        let result = runtime.add(&network, &container).unwrap();
        let attachment = told(&agent);
        let (mac, host_interface) = place.kernel();
        assert_eq!((&attachment.mac, &attachment.host_interface), (&mac, &host_interface));
        assert_eq!((attachment.namespace.as_str(), attachment.pod.as_str(), attachment.uid.as_str()), POD);
        assert_eq!(attachment.key.to_string(), "c1/eth0");
        let wanted: [IpAddr; 2] = ["10.244.1.2".parse().unwrap(), "fd00:10:244:1::2".parse().unwrap()];
        assert_eq!(attachment.addresses, wanted);
        assert_eq!(result["ips"].as_array().unwrap().len(), 2, "the result came through: {result}");
        // What an agent finds that was not there, is the same.
        let cached = cache::read(&cni.cache_dir().join("results"), |name| name.starts_with("veth")).unwrap();
        assert_eq!(cached.attachments, [attachment]);
        if version >= "0.4.0" {
            // Debian's `portmap` does not find its own rules of a pod with two families again.
            let mut unmapped = container.clone();
            unmapped.capabilities.clear();
            runtime.check(&network, &unmapped).unwrap();
            assert_eq!(agent.asked().len(), 1);
            agent.behave(Manner::Answer(CniAnswer::Failed { code: 11, message: "no program".to_owned() }));
            assert_eq!(error(runtime.check(&network, &unmapped)).code, 11);
            assert_eq!(agent.asked().len(), 1);
            agent.behave(Manner::Answer(CniAnswer::Done));
        }
        assert!(!place.left(&cni).is_empty());
        for _twice in 0..2 {
            runtime.del(&network, &container).unwrap();
            assert!(matches!(agent.asked()[..], [CniRequest::Del(_)]));
            assert_eq!(place.left(&cni), [""; 0]);
        }
    }
}

#[test]
fn what_the_plugins_before_do_not_say_is_looked_up_inside_the_pod() {
    if !has_kernel() {
        return;
    }
    let place = Place::new();
    let cni = place.cni("1.0.0");
    let agent = place.agent();
    place.install(&cni);
    let runtime = cni.runtime();
    let network = runtime.network().unwrap();
    let container = place.container(&cni);
    let result = runtime.add(&network, &container).unwrap();
    let whole = told(&agent);
    let without = |key: &str| {
        let mut result = result.clone();
        result.as_object_mut().unwrap().remove(key).unwrap();
        result
    };
    let mut without_mac = result.clone();
    for interface in without_mac["interfaces"].as_array_mut().unwrap() {
        interface.as_object_mut().unwrap().remove("mac");
    }
    // Two interfaces on the host that are veths: the kernel knows which.
    let mut with_two = result.clone();
    place
        .node
        .enter(|| std::process::Command::new("ip").args(["link", "add", "vethx", "type", "veth"]).status())
        .unwrap()
        .unwrap();
    with_two["interfaces"].as_array_mut().unwrap().push(json!({ "name": "vethx" }));
    for previous in [without("interfaces"), without("ips"), without_mac, with_two, json!({})] {
        let call = runtime.prepare("ADD", &network, "netpol-cni", (Some(&container), &previous)).unwrap();
        let finished = call.run(Some(&place.node)).unwrap();
        assert!(finished.status.success(), "{previous}: {finished:?}");
        assert_eq!(told(&agent), whole, "{previous}");
    }
    place.node.enter(|| std::process::Command::new("ip").args(["link", "del", "vethx"]).status()).unwrap().unwrap();
    // Not where it is forbidden, and not in a namespace that has no such interface.
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "netpol-cni", "socket": place.run.socket(),
        "enterNamespace": false, "prevResult": without("interfaces"),
    });
    let call = runtime.prepare("ADD", &network, "netpol-cni", (Some(&container), &json!({}))).unwrap();
    let finished = call.clone().input(conf.to_string()).run(Some(&place.node)).unwrap();
    assert_eq!(finished.json().unwrap()["code"], 100, "{finished:?}");
    let here = Path::new("/run/netns").join(place.node.name());
    let finished = call.with("CNI_NETNS", here).run(Some(&place.node)).unwrap();
    assert_eq!(finished.json().unwrap()["code"], 100, "{finished:?}");
    assert_eq!(agent.asked(), []);
    runtime.del(&network, &container).unwrap();
}

#[test]
fn the_ptp_plugins_pod_is_announced_too() {
    if !has_kernel() {
        return;
    }
    let place = Place::new();
    let cni = place.cni("1.0.0");
    let agent = place.agent();
    let ptp = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "ptp", "mtu": 1450,
        "ipam": { "type": "host-local", "dataDir": cni.data_dir(), "ranges": [[{ "subnet": "10.244.1.0/24" }]] },
    });
    std::fs::remove_file(cni.conf_dir().join("10-flannel.conflist")).unwrap();
    std::fs::write(cni.conf_dir().join("10-ptp.conf"), ptp.to_string()).unwrap();
    place.install(&cni);
    let runtime = cni.runtime();
    let network = runtime.network().unwrap();
    assert_eq!(network.types(), ["ptp", "netpol-cni"]);
    let container = place.container(&cni);
    runtime.add(&network, &container).unwrap();
    let attachment = told(&agent);
    assert_eq!((attachment.mac, attachment.host_interface), place.kernel());
    runtime.del(&network, &container).unwrap();
    assert_eq!(place.left(&cni), [""; 0]);
}

#[test]
fn containers_that_are_no_pods_and_second_interfaces_pass_without_a_word() {
    if !has_kernel() {
        return;
    }
    let place = Place::new();
    let cni = place.cni("1.0.0");
    let agent = place.agent();
    place.install(&cni);
    let runtime = cni.runtime();
    let network = runtime.network().unwrap();
    let mut container = place.container(&cni);
    container.args.truncate(1);
    runtime.add(&network, &container).unwrap();
    runtime.check(&network, &container).unwrap();
    let mut second = place.container(&cni);
    second.ifname = "net1".to_owned();
    runtime.add(&network, &second).unwrap();
    runtime.check(&network, &second).unwrap();
    runtime.del(&network, &second).unwrap();
    assert_eq!(agent.asked(), []);
    runtime.del(&network, &container).unwrap();
    assert_eq!(place.left(&cni), [""; 0]);
}

#[test]
fn whatever_happens_in_the_middle_of_an_add_a_del_leaves_nothing() {
    if !has_kernel() {
        return;
    }
    let place = Place::new();
    let cni = place.cni("1.0.0");
    place.install(&cni);
    let runtime = cni.runtime();
    let network = runtime.network().unwrap();
    let container = place.container(&cni);
    let gone = |what: &str| {
        assert!(!place.left(&cni).is_empty(), "{what}");
        runtime.del(&network, &container).unwrap();
        assert_eq!(place.left(&cni), [""; 0], "{what}");
    };
    // No agent.
    let refusal = error(runtime.add(&network, &container));
    assert_eq!((refusal.plugin.as_str(), refusal.code), ("netpol-cni", 11), "{refusal}");
    gone("no agent");
    let agent = place.agent();
    // The agent dies, or refuses.
    for manner in [Manner::HangUp, Manner::Answer(CniAnswer::Failed { code: 11, message: "full".to_owned() })] {
        agent.behave(manner);
        assert_eq!(error(runtime.add(&network, &container)).code, 11);
        agent.behave(Manner::Answer(CniAnswer::Done));
        gone("a refusal");
        assert!(matches!(agent.asked()[..], [CniRequest::Add(_), CniRequest::Del(_)]));
    }
    // The plugin is killed: before it reads, and while the agent works.
    for feeds in [false, true] {
        let previous = attach_without_us(&runtime, &container);
        let call = runtime.prepare("ADD", &network, "netpol-cni", (Some(&container), &previous)).unwrap();
        agent.behave(Manner::Silence);
        let mut running = call.start(Some(&place.node)).unwrap();
        if feeds {
            running.feed().unwrap();
            agent.wait_for_a_question().unwrap();
        }
        running.kill().unwrap();
        agent.behave(Manner::Answer(CniAnswer::Done));
        gone("a killed plugin");
        assert_eq!(agent.asked().len(), if feeds { 2 } else { 1 });
    }
    drop(agent);
    // The agent is away for the DEL.
    {
        let _agent = place.agent();
        runtime.add(&network, &container).unwrap();
    }
    gone("no agent at DEL");
}

/// What the plugins before ours do; returns their result.
fn attach_without_us(runtime: &Runtime<'_>, container: &Container) -> Value {
    let network = runtime.network().unwrap();
    let mut result = Value::Null;
    for plugin in ["bridge", "portmap"] {
        let call = runtime.prepare("ADD", &network, plugin, (Some(container), &result)).unwrap();
        let finished = call.run(Some(runtime.namespace)).unwrap();
        assert!(finished.status.success(), "{finished:?}");
        result = finished.json().unwrap();
    }
    result
}

#[test]
fn with_agent_absent_allow_pods_start_without_an_agent() {
    if !has_kernel() {
        return;
    }
    let place = Place::new();
    let cni = place.cni("0.3.1");
    place.install(&cni);
    let own = cni.conf_dir().join("00-netpol.conflist");
    let text = std::fs::read_to_string(&own).unwrap().replace(r#""fail""#, r#""allow""#);
    std::fs::write(&own, text).unwrap();
    let runtime = cni.runtime();
    let network = runtime.network().unwrap();
    let container = place.container(&cni);
    runtime.add(&network, &container).unwrap();
    runtime.del(&network, &container).unwrap();
    assert_eq!(place.left(&cni), [""; 0]);
}

#[test]
fn installing_and_uninstalling_leave_the_node_as_it_was() {
    if !has_kernel() {
        return;
    }
    let place = Place::new();
    let cni = place.cni("0.3.1");
    let directories: [PathBuf; 3] = [cni.conf_dir(), cni.bin_dir(), cni.cache_dir()];
    let before = Footprint::of(&place.node, &directories).unwrap();
    place.install(&cni);
    let installed = Footprint::of(&place.node, &directories).unwrap();
    let more = installed.since(&before);
    assert!(more.len() == 2 && more.iter().all(|line| line.starts_with("+ file")), "{more:#?}");
    uninstall(&cni.conf_dir(), &cni.bin_dir()).unwrap();
    assert_eq!(Footprint::of(&place.node, &directories).unwrap().since(&before), [""; 0]);
    assert_eq!(cni.runtime().network().unwrap().types(), ["bridge", "portmap"]);
}

#[test]
fn flannel_writing_its_configuration_again_changes_ours() {
    if !has_kernel() {
        return;
    }
    let place = Place::new();
    let cni = place.cni("0.3.1");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let installer = runtime.block_on(async { CniInstaller::start(cni.install_options(&place.run.socket()).unwrap()) });
    assert_eq!(cni.runtime().network().unwrap().version, "0.3.1");
    cni.write_flannel("1.0.0").unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // Whoever reads in between reads one or the other.
    while cni.runtime().network().unwrap().version != "1.0.0" {
        assert!(std::time::Instant::now() < deadline, "ours is not derived again");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(installer);
}
