//! Conformance suites as data: the format npconf/1 (`tests/corpora/README.md`), read strictly.
//!
//! In: a JSON file. Out: a [`Suite`], whose cases [`crate::replay`] walks against a judge. What the format leaves to the
//! reader is decided here: placeholders, which plans a case runs under, and which node a pod is on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Addresses by endpoint name (`namespace/pod`, `node/name`, `ext/name`).
pub type Plan = BTreeMap<String, IpAddr>;

/// One file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Always `npconf/1`.
    pub format: String,
    /// Name of the suite.
    pub suite: String,
    /// Where it comes from.
    pub source: Value,
    /// Address plans.
    pub ip_plans: BTreeMap<String, Plan>,
    /// Clusters as they are before the first step.
    pub clusters: BTreeMap<String, ClusterSpec>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// A cluster before the first step.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// Namespaces with their labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods.
    pub pods: Vec<PodSpec>,
    /// Nodes and hosts outside.
    #[serde(default)]
    pub externals: Vec<External>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// `namespace/name`.
    pub pod: String,
    /// Labels.
    pub labels: Labels,
    /// Served ports.
    pub ports: Vec<ServedPort>,
    /// `node/name`.
    pub node: Option<String>,
    /// Whether it has no network of its own.
    #[serde(default, rename = "hostNetwork")]
    pub host_network: bool,
}

/// A served port; `name` is the containerPort's name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedPort {
    /// Name.
    pub name: Option<String>,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: String,
}

/// An endpoint that is no pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// `node/name` or `ext/name`.
    pub name: String,
    /// `node` or `external`.
    pub kind: String,
    /// Node labels.
    #[serde(default)]
    pub labels: Labels,
}

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Key of the case.
    pub id: String,
    /// What it is about.
    pub name: String,
    /// Tags.
    pub tags: Vec<String>,
    /// cyclonus's feature list.
    #[serde(default)]
    pub features: Value,
    /// Where the rule is stated.
    #[serde(default, rename = "ref")]
    pub reference: String,
    /// The rule.
    pub rule: Option<String>,
    /// A remark.
    pub note: Option<String>,
    /// Name of its cluster.
    pub cluster: String,
    /// What it uses.
    pub needs: Vec<String>,
    /// Whether the tables differ by plan.
    pub ip_dependent: bool,
    /// Its plans; missing means all of the file.
    pub plans: Option<Vec<String>>,
    /// The steps, in order; state carries over.
    pub steps: Vec<Step>,
}

/// One step: actions, then probes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it is about.
    pub name: Option<String>,
    /// What happens.
    pub actions: Vec<Action>,
    /// How the suite probed; verdicts do not depend on it.
    pub probe: Value,
    /// Rows and columns of the tables.
    pub endpoints: Vec<String>,
    /// Tables.
    pub expect: Vec<Expect>,
    /// Single probes.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// Something that happens to the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of the format, named as Kubernetes names them")]
pub enum Action {
    CreatePolicy { policy: Value },
    UpdatePolicy { policy: Value },
    DeletePolicy { namespace: String, name: String },
    CreateClusterPolicy { policy: Value },
    UpdateClusterPolicy { policy: Value },
    CreateNamespace { namespace: String, labels: Labels },
    SetNamespaceLabels { namespace: String, labels: Labels },
    DeleteNamespace { namespace: String },
    CreatePod { namespace: String, pod: String, labels: Labels, ip_of: Option<String>, ports: Option<Vec<ServedPort>> },
    SetPodLabels { namespace: String, pod: String, labels: Labels },
    DeletePod { namespace: String, pod: String },
    SetPodPhase { namespace: String, pod: String, phase: String },
    SetPodTerminating { namespace: String, pod: String },
}

/// A table: `allow[i][j]` is traffic from `endpoints[i]` to `endpoints[j]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Plans, or `*`.
    pub plans: Vec<String>,
    /// Ports as `TCP/80`.
    pub ports: Vec<String>,
    /// `.` connects, `X` must not, `s` to itself, `-` no statement.
    pub allow: Vec<String>,
    /// What the source of the suite computed for the diagonal; not judged.
    #[serde(rename = "self")]
    pub diagonal: String,
    /// What destinations say, where the suite tells.
    pub ingress: Option<Vec<String>>,
    /// What sources say, where the suite tells.
    pub egress: Option<Vec<String>>,
}

/// A single probe.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Source.
    pub from: String,
    /// Destination.
    pub to: String,
    /// Port as `TCP/80`.
    pub port: String,
    /// Whether it connects.
    pub allow: bool,
    /// Plans; missing means every plan of the case.
    pub plans: Option<Vec<String>>,
}

impl Suite {
    /// Reads a suite.
    ///
    /// # Errors
    /// The file is missing, is not npconf/1, or names a cluster or plan that it does not have.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read suite {}", path.display()))?;
        let suite: Self = serde_json::from_str(&text).with_context(|| format!("{} is not npconf/1", path.display()))?;
        ensure!(suite.format == "npconf/1", "{} has format {}, not npconf/1", path.display(), suite.format);
        for case in &suite.cases {
            ensure!(suite.clusters.contains_key(&case.cluster), "{} names no cluster: {}", case.id, case.cluster);
            for plan in suite.plans_of(case) {
                ensure!(suite.ip_plans.contains_key(plan), "{} names no plan: {plan}", case.id);
            }
        }
        Ok(suite)
    }

    /// Reads a suite of `tests/corpora` by its file name without `.json`.
    ///
    /// # Errors
    /// As [`Suite::read`].
    pub fn committed(name: &str) -> anyhow::Result<Self> {
        Self::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(format!("{name}.json")))
    }

    /// The plans that a case runs under.
    #[must_use]
    pub fn plans_of<'a>(&'a self, case: &'a Case) -> Vec<&'a str> {
        match &case.plans {
            Some(plans) => plans.iter().map(String::as_str).collect(),
            None => self.ip_plans.keys().map(String::as_str).collect(),
        }
    }
}

/// Fills in every `{{cidr NAMESPACE/POD clear=N}}` and `keep=N` in the strings of an object.
///
/// # Errors
/// A placeholder that cannot be read, or that names an endpoint without an address.
pub fn fill_in(object: &Value, plan: &Plan) -> anyhow::Result<Value> {
    Ok(match object {
        Value::String(text) => Value::String(fill_in_text(text, plan)?),
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| fill_in(item, plan)).collect::<anyhow::Result<_>>()?)
        }
        Value::Object(fields) => {
            let filled = fields.iter().map(|(name, value)| Ok((name.clone(), fill_in(value, plan)?)));
            Value::Object(filled.collect::<anyhow::Result<_>>()?)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => object.clone(),
    })
}

fn fill_in_text(text: &str, plan: &Plan) -> anyhow::Result<String> {
    let Some(inner) = text.strip_prefix("{{cidr ").and_then(|rest| rest.strip_suffix("}}")) else {
        ensure!(!text.contains("{{"), "unknown placeholder {text}");
        return Ok(text.to_owned());
    };
    let (endpoint, size) = inner.split_once(' ').with_context(|| format!("no size in placeholder {text}"))?;
    let address = *plan.get(endpoint).with_context(|| format!("{text}: the plan has no address for {endpoint}"))?;
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match size.split_once('=') {
        Some(("clear", low)) => bits - low.parse::<u8>()?,
        Some(("keep", high)) => high.parse()?,
        _ => bail!("unknown size {size} in placeholder {text}"),
    };
    Ok(IpNet::new(address, prefix)?.trunc().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_the_block_around_the_address() {
        let plan = Plan::from([
            ("z/c".to_owned(), "10.244.1.35".parse().unwrap()),
            ("z/d".to_owned(), "fd00::35".parse().unwrap()),
        ]);
        for (placeholder, block) in [
            ("{{cidr z/c clear=0}}", "10.244.1.35/32"),
            ("{{cidr z/c clear=4}}", "10.244.1.32/28"),
            ("{{cidr z/c clear=8}}", "10.244.1.0/24"),
            ("{{cidr z/c keep=4}}", "0.0.0.0/4"),
            ("{{cidr z/d clear=4}}", "fd00::30/124"),
            ("{{cidr z/d keep=4}}", "f000::/4"),
            ("10.0.0.1/8", "10.0.0.1/8"),
        ] {
            assert_eq!(fill_in(&Value::from(placeholder), &plan).unwrap(), Value::from(block));
        }
        assert!(fill_in(&Value::from("{{cidr z/e clear=0}}"), &plan).is_err());
        assert!(fill_in(&Value::from("{{node z/c}}"), &plan).is_err());
    }
}
