//! What a kubelet does for a pod: its sandbox by way of CNI plugins, its status to the API server.
//!
//! In: a [`Cluster`] with an [`ApiServer`] beside it. Out: pods as real ones come and go, each step on its own, so that a test
//! can look in between: an object without addresses ([`Kubelet::create`]), a sandbox ([`Kubelet::attach`]), a status with
//! addresses ([`Kubelet::report`]), and the ends of all three. Start at [`Kubelet::new`].

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::agent::Options;
use crate::apiserver::{ApiServer, Kind};
use crate::cluster::{Cluster, OUTSIDE, OUTSIDE_ADDRESSES, Wired};
use crate::cni::{CniNode, Container, FLANNEL_FILE, Runtime};
use crate::netns::Namespace;

/// Where the API server listens, as kubeadm has it.
const API_PORT: u16 = 6443;
const NO_DAD: &[(&str, &str)] = &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];

/// Starts an API server on the outside host, which every node reaches.
///
/// # Errors
/// If it cannot listen there.
pub fn api_server(cluster: &Cluster) -> Result<ApiServer> {
    let [address, _] = OUTSIDE_ADDRESSES;
    let at = SocketAddr::new(address, API_PORT);
    let listener = cluster.namespace(OUTSIDE)?.enter(|| TcpListener::bind(at))?;
    ApiServer::on(listener.with_context(|| format!("cannot listen on {at}"))?)
}

/// A pod as its author wrote it.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
}

impl PodSpec {
    /// A pod with one label.
    #[must_use]
    pub fn new(namespace: &str, name: &str, label: (&str, &str)) -> Self {
        let labels = vec![(label.0.to_owned(), label.1.to_owned())];
        Self { namespace: namespace.to_owned(), name: name.to_owned(), labels }
    }

    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A pod on its node.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// What it is for.
    pub spec: PodSpec,
    /// As its runtime knows it.
    pub container: Container,
    /// Its addresses, once it is attached.
    pub addresses: Vec<IpAddr>,
}

/// One node's kubelet and container runtime.
pub struct Kubelet {
    api: Arc<ApiServer>,
    node: String,
    number: u8,
    root: PathBuf,
}

impl Kubelet {
    /// Of a node of the cluster, the `number`th, with Flannel's CNI configuration.
    ///
    /// # Errors
    /// If its directories cannot be made.
    pub fn new(cluster: &Cluster, api: Arc<ApiServer>, node: &str, number: u8) -> Result<Self> {
        let root = cluster.run().manifests().with_file_name(format!("cni-{node}"));
        let kubelet = Self { api, node: node.to_owned(), number, root };
        kubelet.cni(cluster)?.make("1.0.0")?;
        Ok(kubelet)
    }

    /// How to start the node's agent.
    ///
    /// # Errors
    /// If its kubeconfig cannot be written.
    pub fn agent_options(&self) -> Result<Options> {
        let kubeconfig = self.root.join("kubeconfig");
        std::fs::write(&kubeconfig, self.api.kubeconfig(None))?;
        let path = |name: &str| self.root.join(name).display().to_string();
        let arguments =
            [("--cni-conf-dir", path("net.d")), ("--cni-bin-dir", path("bin")), ("--cni-cache", path("cache/results"))];
        let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        Ok(Options { node: Some(self.node.clone()), kubeconfig: Some(kubeconfig), arguments, ..Options::default() })
    }

    /// The directories of its runtime.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn cni<'c>(&self, cluster: &'c Cluster) -> Result<CniNode<'c>> {
        Ok(CniNode::below(self.root.clone(), cluster.node(&self.node)?.namespace(), self.number))
    }

    /// Creates the pod at the API server, on this node, without addresses.
    pub fn create(&self, spec: &PodSpec) -> String {
        self.api.apply(&self.object(spec, &[]));
        let objects = self.api.objects(Kind::Pod);
        let is_it = |pod: &&Value| text(pod, "namespace") == spec.namespace && text(pod, "name") == spec.name;
        objects.iter().find(is_it).map(|pod| text(pod, "uid").to_owned()).unwrap_or_default()
    }

    /// Makes the namespace of a pod's sandbox, of this run-wide unique id.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn sandbox(&self, cluster: &Cluster, spec: &PodSpec, (id, uid): (&str, &str)) -> Result<(Namespace, Sandbox)> {
        let namespace = Namespace::create(cluster.run(), id)?;
        namespace.set_sysctls(NO_DAD)?;
        let container = self.cni(cluster)?.container(&namespace, id, (&spec.namespace, &spec.name, uid));
        Ok((namespace, Sandbox { spec: spec.clone(), container, addresses: Vec::new() }))
    }

    /// Runs the plugins' ADD.
    ///
    /// # Errors
    /// A [`CniError`](crate::cni::CniError) if a plugin refuses.
    pub fn attach(&self, cluster: &Cluster, sandbox: &mut Sandbox) -> Result<String> {
        attach_by(&self.cni(cluster)?.runtime(), sandbox)
    }

    /// Starts a pod as [`Self::start`] does, by Flannel's configuration alone: around our plugin.
    ///
    /// # Errors
    /// If it cannot be attached.
    pub fn start_around(&self, cluster: &mut Cluster, spec: &PodSpec, id: &str) -> Result<Sandbox> {
        let uid = self.create(spec);
        let (namespace, mut sandbox) = self.sandbox(cluster, spec, (id, &uid))?;
        let mut runtime = self.cni(cluster)?.runtime();
        let alone = self.root.join("flannel-alone");
        std::fs::create_dir_all(&alone)?;
        std::fs::copy(runtime.conf_dir.join(FLANNEL_FILE), alone.join(FLANNEL_FILE))?;
        runtime.conf_dir = alone;
        let interface = attach_by(&runtime, &mut sandbox)?;
        let addresses = sandbox.addresses.clone();
        cluster.adopt_pod(&self.node, &spec.key(), Wired { namespace, interface, addresses })?;
        Ok(sandbox)
    }

    /// Starts a pod up to where its containers run: its status is not reported yet.
    ///
    /// # Errors
    /// If it cannot be attached.
    pub fn start(&self, cluster: &mut Cluster, spec: &PodSpec, id: &str) -> Result<Sandbox> {
        let uid = self.create(spec);
        let (namespace, mut sandbox) = self.sandbox(cluster, spec, (id, &uid))?;
        let interface = self.attach(cluster, &mut sandbox)?;
        let addresses = sandbox.addresses.clone();
        cluster.adopt_pod(&self.node, &spec.key(), Wired { namespace, interface, addresses })?;
        Ok(sandbox)
    }

    /// Reports the pod's addresses.
    pub fn report(&self, sandbox: &Sandbox) {
        self.api.apply(&self.object(&sandbox.spec, &sandbox.addresses));
    }

    /// Ends a pod: its object goes, its sandbox after it.
    ///
    /// # Errors
    /// A [`CniError`](crate::cni::CniError) if a plugin refuses its DEL.
    pub fn end(&self, cluster: &mut Cluster, sandbox: &Sandbox) -> Result<()> {
        self.detach(cluster, sandbox)?;
        self.api.delete(Kind::Pod, &sandbox.spec.namespace, &sandbox.spec.name);
        cluster.hand_back_pod(&sandbox.spec.key())?.namespace.remove()
    }

    /// Runs the plugins' DEL.
    ///
    /// # Errors
    /// A [`CniError`](crate::cni::CniError) if a plugin refuses.
    pub fn detach(&self, cluster: &Cluster, sandbox: &Sandbox) -> Result<()> {
        let runtime = self.cni(cluster)?.runtime();
        runtime.del(&runtime.network()?, &sandbox.container)
    }

    fn object(&self, spec: &PodSpec, addresses: &[IpAddr]) -> Value {
        let labels: serde_json::Map<String, Value> =
            spec.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = match addresses.first() {
            None => json!({ "phase": "Pending" }),
            Some(first) => json!({ "phase": "Running", "podIP": first, "podIPs": ips }),
        };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": spec.namespace, "name": spec.name, "labels": labels },
            "spec": { "nodeName": self.node, "containers": [{ "name": "app", "image": "app" }] },
            "status": status,
        })
    }
}

/// Runs the plugins' ADD; returns the name of the interface.
fn attach_by(runtime: &Runtime<'_>, sandbox: &mut Sandbox) -> Result<String> {
    let result = runtime.add(&runtime.network()?, &sandbox.container)?;
    let list = |field: &str| result.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse().ok();
    sandbox.addresses = list("ips").iter().filter_map(address).collect();
    let name = |it: &Value| Some(it.get("name")?.as_str()?.to_owned());
    let interfaces: Vec<String> = list("interfaces").iter().filter_map(name).collect();
    interfaces.into_iter().find(|name| name.starts_with("veth")).context("a result without a veth")
}

fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    object.get("metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default()
}
