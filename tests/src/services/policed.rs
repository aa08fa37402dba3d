//! The case under policy: an agent on every node, and the policies that its tests put in force, as text.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{NODES, Services};
use crate::agent::{Agent, Options};
use crate::kube_proxy::Form;

/// The backend's port, not the service's: what a policy names.
const PORTS: &str = "[{port: 8080}, {protocol: UDP, port: 5353}]";

/// The case under policy: an agent on every node.
#[derive(Debug)]
pub struct Policed {
    // Agents end before what they run on.
    agents: BTreeMap<&'static str, Agent>,
    /// The case.
    pub services: Services,
}

impl Policed {
    /// Builds the case and starts the agents. They die with the calling thread.
    ///
    /// # Errors
    /// If the case cannot be built or an agent does not start.
    pub fn start(form: Form) -> Result<Self> {
        let services = Services::build(form)?;
        let start = |name: &'static str| {
            let options = Options { node: Some(name.to_owned()), ..Options::default() };
            Ok((name, Agent::start(&services.cluster, &options).with_context(|| format!("the agent of {name}"))?))
        };
        let agents = NODES.into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { agents, services })
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents.get(node).with_context(|| format!("no agent on {node}"))
    }

    /// Puts a manifest in force on all nodes.
    ///
    /// # Errors
    /// If an agent does not settle.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        self.services.cluster.run().put_manifest(name, text)?;
        self.sync()
    }

    /// Takes a manifest away on all nodes.
    ///
    /// # Errors
    /// If there is none of this name, or an agent does not settle.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.services.cluster.run().remove_manifest(name)?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        self.agents.values().try_for_each(|agent| agent.sync().map(drop))
    }
}

/// A policy of one direction for the pods of an app.
#[must_use]
pub fn policy(app: &str, direction: &str, rules: &str) -> String {
    let (kind, key) = if direction == "egress" { ("Egress", "egress") } else { ("Ingress", "ingress") };
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {app}-{key}, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: {app}}}}}
  policyTypes: [{kind}]
  {key}: {rules}
"
    )
}

/// The client may reach the backends of these apps and nothing else.
#[must_use]
pub fn egress(client: &str, to: &[&str]) -> String {
    let peers = to.iter().map(|app| format!("{{podSelector: {{matchLabels: {{app: {app}}}}}}}")).collect::<Vec<_>>();
    let rules = format!("[{{to: [{}], ports: {PORTS}}}]", peers.join(", "));
    policy(client, "egress", if to.is_empty() { "[]" } else { &rules })
}

/// The backend may be reached by these apps and by nobody else.
#[must_use]
pub fn ingress(backend: &str, from: &[&str]) -> String {
    let peers = from.iter().map(|app| format!("{{podSelector: {{matchLabels: {{app: {app}}}}}}}")).collect::<Vec<_>>();
    let rules = format!("[{{from: [{}], ports: {PORTS}}}]", peers.join(", "));
    policy(backend, "ingress", if from.is_empty() { "[]" } else { &rules })
}

/// Runs scenes (functions of a [`Policed`]) as tests, once under each form of kube-proxy's rules.
#[macro_export]
macro_rules! scenes {
    ($($scene:ident)*) => {
        $crate::scenes!(@in iptables Iptables $($scene)*);
        $crate::scenes!(@in nftables Nftables $($scene)*);
    };
    (@in $form:ident $variant:ident $($scene:ident)*) => {
        mod $form {
            $(
                #[test]
                fn $scene() {
                    if $crate::level::has_agent() {
                        let form = $crate::kube_proxy::Form::$variant;
                        super::$scene(&$crate::services::Policed::start(form).unwrap());
                    }
                }
            )*
        }
    };
}
