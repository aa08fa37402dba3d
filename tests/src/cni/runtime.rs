//! A container runtime's use of CNI: what containerd and libcni do with a directory of configurations.
//!
//! Written from the specification and from what libcni does, sharing no code with the agent: configurations in byte order,
//! `prevResult` and `runtimeConfig` injected, results cached, DEL in reverse order and to the first error, CHECK, GC and
//! STATUS where the version has them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::call::{Call, Finished};
use crate::netns::Namespace;

/// A network configuration, loaded.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version of the specification that it is used with.
    pub version: String,
    plugins: Vec<Map<String, Value>>,
    disable_check: bool,
}

/// An error that a plugin printed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{plugin}: error {code}: {message}")]
pub struct CniError {
    /// Which plugin.
    pub plugin: String,
    /// Its number.
    pub code: u64,
    /// Its text.
    pub message: String,
}

/// What a call is about: the container, the result so far, and more keys of the input.
type About<'a> = (Option<&'a Container>, &'a Value, &'a [(&'a str, Value)]);

/// A container as its runtime tells plugins of it.
#[derive(Clone, Debug)]
pub struct Container {
    /// Id of the sandbox.
    pub id: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// The interface that is made or removed.
    pub ifname: String,
    /// CNI_ARGS.
    pub args: Vec<(String, String)>,
    /// Arguments by capability, as `portMappings`.
    pub capabilities: Map<String, Value>,
}

impl Container {
    /// A pod's sandbox, with the arguments that containerd gives.
    #[must_use]
    pub fn of_pod(id: &str, netns: &Path, (namespace, pod, uid): (&str, &str, &str)) -> Self {
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", namespace),
            ("K8S_POD_NAME", pod),
            ("K8S_POD_INFRA_CONTAINER_ID", id),
            ("K8S_POD_UID", uid),
        ];
        Self {
            id: id.to_owned(),
            netns: netns.to_owned(),
            ifname: "eth0".to_owned(),
            args: args.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            capabilities: Map::new(),
        }
    }

    fn args(&self) -> String {
        self.args.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";")
    }
}

/// A node's runtime.
#[derive(Debug)]
pub struct Runtime<'a> {
    /// The namespace in which plugins run: the node's.
    pub namespace: &'a Namespace,
    /// Where configurations are.
    pub conf_dir: PathBuf,
    /// Where plugins are, first place first.
    pub path: Vec<PathBuf>,
    /// Where results are kept: `/var/lib/cni`.
    pub cache: PathBuf,
}

impl Runtime<'_> {
    /// The network that containerd uses: that of the first configuration.
    ///
    /// # Errors
    /// If there is none, or the first is none.
    pub fn network(&self) -> Result<Network> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.conf_dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|name| anyhow::anyhow!("{name:?} is no UTF-8"))?;
            let extension = Path::new(&name).extension().and_then(|it| it.to_str());
            if !entry.file_type()?.is_dir() && matches!(extension, Some("conf" | "conflist" | "json")) {
                names.push(name);
            }
        }
        names.sort();
        let first = names.first().context("no network configuration")?;
        let text = fs::read_to_string(self.conf_dir.join(first))?;
        Network::load(first, &text).with_context(|| format!("{first}: {text}"))
    }

    /// Attaches a container: every plugin's ADD in order. The result is kept once all are through.
    ///
    /// # Errors
    /// A [`CniError`] if a plugin refuses. Nothing is undone then: that is for [`Self::del`], as kubelets have it.
    pub fn add(&self, network: &Network, container: &Container) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in &network.plugins {
            let finished = self.call("ADD", network, plugin, (Some(container), &result, &[]))?;
            result = finished.json()?;
            let version = result.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
            ensure!(version == network.version, "{:?} answered in version {version:?}", plugin.get("type"));
        }
        self.keep(network, container, &result)?;
        Ok(result)
    }

    /// Detaches a container: every plugin's DEL in reverse order.
    ///
    /// # Errors
    /// A [`CniError`] if a plugin refuses.
    pub fn del(&self, network: &Network, container: &Container) -> Result<()> {
        let cached = if network.version.as_str() >= "0.4.0" { self.cached(network, container)? } else { Value::Null };
        for plugin in network.plugins.iter().rev() {
            self.call("DEL", network, plugin, (Some(container), &cached, &[]))?;
        }
        match fs::remove_file(self.cache_file(network, container)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Asks every plugin whether all is well.
    ///
    /// # Errors
    /// A [`CniError`] if a plugin says that it is not.
    pub fn check(&self, network: &Network, container: &Container) -> Result<()> {
        ensure!(network.version.as_str() >= "0.4.0", "CHECK came with 0.4.0");
        if network.disable_check {
            return Ok(());
        }
        let cached = self.cached(network, container)?;
        for plugin in &network.plugins {
            self.call("CHECK", network, plugin, (Some(container), &cached, &[]))?;
        }
        Ok(())
    }

    /// Tells every plugin what is still there.
    ///
    /// # Errors
    /// A [`CniError`] if a plugin refuses.
    pub fn gc(&self, network: &Network, valid: &[&Container]) -> Result<()> {
        let valid: Vec<Value> = valid.iter().map(|it| json!({ "containerID": it.id, "ifname": it.ifname })).collect();
        let more = [("cni.dev/valid-attachments", json!(valid)), ("cni.dev/attachments", json!(valid))];
        for plugin in &network.plugins {
            self.call("GC", network, plugin, (None, &Value::Null, &more))?;
        }
        Ok(())
    }

    /// Asks every plugin whether it could serve an ADD.
    ///
    /// # Errors
    /// A [`CniError`] if a plugin could not.
    pub fn status(&self, network: &Network) -> Result<()> {
        for plugin in &network.plugins {
            self.call("STATUS", network, plugin, (None, &Value::Null, &[]))?;
        }
        Ok(())
    }

    /// The call of one plugin of the chain, ready to be run: for whoever wants to interfere.
    ///
    /// # Errors
    /// If there is no such plugin.
    pub fn prepare(
        &self,
        verb: &str,
        network: &Network,
        plugin: &str,
        (container, previous): (Option<&Container>, &Value),
    ) -> Result<Call> {
        let found = network.plugins.iter().find(|it| it.get("type").and_then(Value::as_str) == Some(plugin));
        self.prepared(verb, network, found.context("no such plugin in the chain")?, (container, previous, &[]))
    }

    /// Where the result of a container is kept.
    #[must_use]
    pub fn cache_file(&self, network: &Network, container: &Container) -> PathBuf {
        self.cache.join("results").join(format!("{}-{}-{}", network.name, container.id, container.ifname))
    }

    fn prepared(
        &self,
        verb: &str,
        network: &Network,
        plugin: &Map<String, Value>,
        (container, previous, more): About<'_>,
    ) -> Result<Call> {
        let kind = plugin.get("type").and_then(Value::as_str).context("a plugin has a type")?;
        let mut places = self.path.iter().map(|directory| directory.join(kind));
        let program = places.find(|path| path.is_file());
        let program = program.with_context(|| format!("failed to find plugin {kind:?} in path {:?}", self.path))?;
        let mut input = plugin.clone();
        input.insert("name".to_owned(), json!(network.name));
        input.insert("cniVersion".to_owned(), json!(network.version));
        if !previous.is_null() {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        input.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let path = self.path.iter().map(|it| it.display().to_string()).collect::<Vec<_>>().join(":");
        let mut call = Call::new(&program, verb).with("CNI_PATH", path);
        if let Some(container) = container {
            let wanted = plugin.get("capabilities").and_then(Value::as_object);
            let is_wanted = |name: &String| wanted.and_then(|it| it.get(name)).and_then(Value::as_bool) == Some(true);
            let given = container.capabilities.iter().filter(|(name, _)| is_wanted(name));
            let given: Map<String, Value> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
            if !given.is_empty() {
                input.insert("runtimeConfig".to_owned(), Value::Object(given));
            }
            call = call.with("CNI_CONTAINERID", &container.id).with("CNI_NETNS", &container.netns);
            call = call.with("CNI_IFNAME", &container.ifname).with("CNI_ARGS", container.args());
        }
        Ok(call.input(serde_json::to_vec(&input)?))
    }

    fn call(&self, verb: &str, network: &Network, plugin: &Map<String, Value>, about: About<'_>) -> Result<Finished> {
        let finished = self.prepared(verb, network, plugin, about)?.run(Some(self.namespace))?;
        if finished.status.success() {
            return Ok(finished);
        }
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let error = finished.json()?;
        let code = error.get("code").and_then(Value::as_u64);
        let code = code.with_context(|| format!("{kind} {verb}: {}: {finished:?}", finished.status))?;
        let message = error.get("msg").and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(CniError { plugin: kind.to_owned(), code, message }.into())
    }

    /// As libcni's `cacheAdd`.
    fn keep(&self, network: &Network, container: &Container, result: &Value) -> Result<()> {
        let file = self.cache_file(network, container);
        fs::create_dir_all(file.parent().context("the cache is a directory")?)?;
        let cached = json!({
            "kind": "cniCacheV1",
            "containerId": container.id,
            "config": "e30=",
            "ifName": container.ifname,
            "networkName": network.name,
            "netns": container.netns,
            "cniArgs": container.args,
            "capabilityArgs": container.capabilities,
            "result": result,
        });
        fs::write(file, cached.to_string()).context("cannot keep the result")
    }

    fn cached(&self, network: &Network, container: &Container) -> Result<Value> {
        match fs::read(self.cache_file(network, container)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
            text => {
                let mut cached: Value = serde_json::from_slice(&text?)?;
                Ok(cached.get_mut("result").map(Value::take).unwrap_or_default())
            }
        }
    }
}

impl Network {
    fn load(file: &str, text: &str) -> Result<Self> {
        let conf: Map<String, Value> = serde_json::from_str(text)?;
        let text_of = |key: &str| conf.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let plugins = if file.ends_with(".conflist") {
            let list = conf.get("plugins").and_then(Value::as_array).context("no plugins")?;
            list.iter().map(|it| it.as_object().cloned().context("a plugin is an object")).collect::<Result<_>>()?
        } else {
            vec![conf.clone()]
        };
        if plugins.iter().any(|plugin: &Map<String, Value>| !plugin.contains_key("type")) || plugins.is_empty() {
            bail!("a plugin without type, or no plugins");
        }
        let disable_check = conf.get("disableCheck").and_then(Value::as_bool).unwrap_or_default();
        Ok(Self { name: text_of("name"), version: text_of("cniVersion"), plugins, disable_check })
    }

    /// Types of its plugins in order.
    #[must_use]
    pub fn types(&self) -> Vec<&str> {
        self.plugins.iter().filter_map(|plugin| plugin.get("type")?.as_str()).collect()
    }
}
