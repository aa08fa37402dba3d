//! The demo's shop as a suite of one case, so that whatever runs suites can run it: in a cluster, and on the compiler alone.
//!
//! In: `tests/cases/shop` and `shop-services`, manifests and tables as they are. Out: a [`Suite`] of the cells between pods;
//! what the tables say of nodes, hosts outside and the shop's own services stays with the tests of namespaces (a cluster's
//! pods are asked behind services by `--probe service-ip`). Nothing is stated here that the tables do not state, but for
//! the one policy that the demo replaces.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::manifests::{self, PodAddresses};
use crate::npconf::{Action, Case, Check, ClusterSpec, Labels, Plan, PodSpec, Step, Suite};
use crate::shop::{Shop, case};
use crate::table::Cell;

/// Name of the suite, its case's cluster, and the first part of the case's id.
pub const NAME: &str = "shop";
const LAYERS: [&str; 2] = ["shop", "shop-services"];
/// A policy of `changes/`, and which cell of the table is another with it.
const CHANGE: (&str, Edge) = ("04-database-access.yaml", ("production/user-api", "production/postgresql", "TCP/5432"));

/// From, to, port.
type Edge = (&'static str, &'static str, &'static str);

/// Reads the shop.
///
/// # Errors
/// If a manifest or table cannot be read.
pub fn suite() -> Result<Suite> {
    let layers: Vec<PathBuf> = LAYERS.iter().map(|name| case(name)).collect();
    let read = |part: &str| -> Result<Vec<Value>> {
        let directories = layers.iter().map(|it| it.join(part)).filter(|it| it.exists());
        let files = directories.map(|it| manifests::files(&it)).collect::<Result<Vec<_>>>()?.concat();
        Ok(files.iter().map(|it| manifests::objects(it)).collect::<Result<Vec<_>>>()?.concat())
    };
    let addresses: Vec<PodAddresses> =
        layers.iter().map(|it| manifests::pods(&it.join("cluster"))).collect::<Result<Vec<_>>>()?.concat();
    let cluster = cluster(&read("cluster")?, &addresses);
    let case = one(&cluster, read("policies")?)?;
    let plan = |ipv6: bool| -> Plan {
        let of_family = |it: &PodAddresses| it.addresses.iter().copied().find(|address| address.is_ipv6() == ipv6);
        addresses.iter().filter_map(|it| Some((it.key.clone(), of_family(it)?))).collect()
    };
    Ok(Suite {
        format: "npconf/1".to_owned(),
        suite: NAME.to_owned(),
        source: json!(LAYERS),
        ip_plans: BTreeMap::from([("v4".to_owned(), plan(false)), ("v6".to_owned(), plan(true))]),
        clusters: BTreeMap::from([(NAME.to_owned(), cluster)]),
        cases: vec![case],
    })
}

fn cluster(objects: &[Value], addresses: &[PodAddresses]) -> ClusterSpec {
    let text = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let labels = |object: &Value| -> Labels {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
        labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    };
    let of = |kind: &'static str| objects.iter().filter(move |it| it.get("kind").is_some_and(|it| it == kind));
    let key = |pod: &Value| Some(format!("{}/{}", text(pod, "/metadata/namespace")?, text(pod, "/metadata/name")?));
    let pods = of("Pod").filter_map(|pod| Some((key(pod)?, labels(pod))));
    // Those without a network of their own have no addresses.
    let pods = pods.filter(|(key, _)| addresses.iter().any(|it| it.key == *key));
    ClusterSpec {
        namespaces: of("Namespace").filter_map(|it| Some((text(it, "/metadata/name")?, labels(it)))).collect(),
        pods: pods
            .map(|(pod, labels)| PodSpec { pod, labels, ports: vec![], node: None, host_network: false })
            .collect(),
        externals: Vec::new(),
    }
}

/// Without policies, with them, with one replaced, and without again.
fn one(cluster: &ClusterSpec, policies: Vec<Value>) -> Result<Case> {
    let (before, after) = (checks(cluster, "before")?, checks(cluster, "after")?);
    let (file, (from, to, port)) = CHANGE;
    let replaced = manifests::objects(&case(NAME).join("changes").join(file))?;
    let mut changed = after.clone();
    let cell = changed.iter_mut().find(|it| (it.from.as_str(), it.to.as_str(), it.port.as_str()) == (from, to, port));
    let cell = cell.with_context(|| format!("the table says nothing of {from} -> {to} {port}"))?;
    ensure!(cell.allow, "{from} -> {to} {port} is denied already");
    cell.allow = false;
    let name = |policy: &Value, pointer: &str| policy.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let deletions = policies.iter().filter_map(|policy| {
        let (namespace, name) = (name(policy, "/metadata/namespace")?, name(policy, "/metadata/name")?);
        Some(Action::DeletePolicy { namespace, name })
    });
    let steps = vec![
        step("without policies", Vec::new(), before.clone()),
        step("with policies", policies.iter().cloned().map(|policy| Action::CreatePolicy { policy }).collect(), after),
        step(
            "the backend may no longer write",
            replaced.into_iter().map(|policy| Action::UpdatePolicy { policy }).collect(),
            changed,
        ),
        step("without them again", deletions.collect(), before),
    ];
    Ok(Case {
        id: format!("{NAME}/policies"),
        name: "the shop of `cargo xtask demo`".to_owned(),
        tags: Vec::new(),
        features: Value::Null,
        reference: String::new(),
        rule: None,
        note: None,
        cluster: NAME.to_owned(),
        needs: Vec::new(),
        ip_dependent: false,
        plans: None,
        steps,
    })
}

fn step(name: &str, actions: Vec<Action>, checks: Vec<Check>) -> Step {
    Step { name: Some(name.to_owned()), actions, probe: Value::Null, endpoints: vec![], expect: vec![], checks }
}

/// What both layers' tables of this name say of a pod and another.
fn checks(cluster: &ClusterSpec, name: &str) -> Result<Vec<Check>> {
    let is_pod = |it: &str| cluster.pods.iter().any(|pod| pod.pod == it);
    let mut checks = Vec::new();
    for layer in LAYERS {
        let table = Shop::expectation(&case(layer), name)?;
        for (source, target, cell) in table.cells() {
            let allow = match cell {
                Cell::Allowed => true,
                Cell::Denied => false,
                Cell::Odd | Cell::Skipped => continue,
            };
            if is_pod(source) && is_pod(&target.name) {
                let port = format!("{}/{}", target.transport.name().to_uppercase(), target.port);
                checks.push(Check { from: source.to_owned(), to: target.name.clone(), port, allow, plans: None });
            }
        }
    }
    ensure!(!checks.is_empty(), "the tables say nothing of two pods");
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Oracle;
    use crate::replay::walk;
    use crate::replica::Replica;

    #[test]
    fn tables_are_as_the_oracle_and_the_compiler_have_it() {
        let suite = suite().unwrap();
        let cells: usize = suite.cases[0].steps.iter().map(|step| step.checks.len()).sum();
        for report in
            [walk(&suite, |_, _| true, Oracle::default).unwrap(), walk(&suite, |_, _| true, Replica::default).unwrap()]
        {
            report.require_agreement(NAME).unwrap();
            // Both families.
            assert_eq!(report.compared, 2 * cells);
        }
        assert!(cells > 400, "{cells}");
    }

    #[test]
    fn nothing_between_pods_is_left_out() {
        let suite = suite().unwrap();
        let steps = &suite.cases[0].steps;
        let denied = |number: usize| steps[number].checks.iter().filter(|it| !it.allow).count();
        assert_eq!((denied(0), denied(3)), (0, 0));
        assert_eq!(denied(2), denied(1) + 1, "one cell changes");
        let rows = Shop::expectation(&case(NAME), "after").unwrap();
        let of_pods = rows.cells().filter(|(from, to, cell)| {
            let is_pod = |it: &str| it.contains('/');
            is_pod(from) && is_pod(&to.name) && *cell != Cell::Skipped
        });
        let services = Shop::expectation(&case("shop-services"), "after").unwrap();
        let catalog = services
            .cells()
            .filter(|(from, to, cell)| from.contains('/') && to.name.contains('/') && *cell != Cell::Skipped);
        assert_eq!(steps[1].checks.len(), of_pods.count() + catalog.count());
    }
}
