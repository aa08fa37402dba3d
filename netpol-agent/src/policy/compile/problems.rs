//! What is not enforced as written, found before anything is applied: contested addresses and what does not fit.

use std::collections::{BTreeMap, BTreeSet};

use super::Compiler;

use crate::cluster::model::PolicyKey;
use crate::policy::answers::Shortage;
use crate::policy::criteria::CriterionId;
use crate::problem::{Problem, Severity};

const ORIGIN: &str = "compiler";

/// Everything that `compiler` could not express as written.
pub(super) fn of(compiler: &Compiler) -> Vec<Problem> {
    let mut problems = contested(compiler);
    problems.extend(impossible_slots(compiler));
    problems.extend(policy_ids(compiler));
    problems.extend(addresses(compiler));
    problems.extend(blocks(compiler));
    problems.extend(entries(compiler));
    problems
}

fn refused(object: String, message: String, effect: &str) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: ORIGIN.to_owned(),
        object,
        field: String::new(),
        message,
        effect: effect.to_owned(),
    }
}

fn contested(compiler: &Compiler) -> Vec<Problem> {
    let mut problems = Vec::new();
    for address in compiler.state.contested() {
        let pods: Vec<String> = compiler.state.claimants(address).map(ToString::to_string).collect();
        problems.push(refused(
            format!("Pod {}", pods.join(", Pod ")),
            format!("address {address} is claimed by {} live pods", pods.len()),
            "as a peer, the address counts as a pod only for rules that select all of them",
        ));
    }
    problems
}

fn impossible_slots(compiler: &Compiler) -> Vec<Problem> {
    let of = |(slot, pod): (&u16, &_)| {
        let last = compiler.limits.slots.saturating_sub(1);
        refused(
            format!("Pod {pod}"),
            format!("slot {slot} is not one of 1..={last}: there are more pods on this node than the maps hold"),
            "all its traffic is denied",
        )
    };
    compiler.impossible.iter().map(of).collect()
}

fn policy_ids(compiler: &Compiler) -> Vec<Problem> {
    let pods = compiler.subjects.refused.iter().filter_map(|slot| compiler.subjects.slots.get(slot));
    pods.map(|pod| {
        refused(
            format!("Pod {pod}"),
            format!("all policy ids up to {} are in use", compiler.limits.last_policy),
            "the isolated direction of this pod is denied",
        )
    })
    .collect()
}

fn addresses(compiler: &Compiler) -> Option<Problem> {
    let first = compiler.refused_addresses.first()?;
    Some(refused(
        String::new(),
        format!(
            "{} pod addresses ({first} and others) do not fit into the {} entries of a family",
            compiler.refused_addresses.len(),
            compiler.limits.addresses
        ),
        "no pod selector matches these pods as peers",
    ))
}

fn blocks(compiler: &Compiler) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (id, block) in compiler.regions.refused() {
        problems.push(refused(
            names(&policies_asking(compiler, id)),
            format!("ipBlock {} does not fit into the {} regions of a family", block.cidr, compiler.limits.cidrs),
            "this ipBlock matches no address",
        ));
    }
    problems
}

fn entries(compiler: &Compiler) -> Vec<Problem> {
    let mut short: BTreeMap<(Shortage, u16), usize> = BTreeMap::new();
    for (key, shortage) in compiler.answers.refused() {
        *short.entry((*shortage, key.policy)).or_default() += 1;
    }
    let of = |((shortage, policy), peers): ((Shortage, u16), usize)| {
        let policies = compiler.subjects.content(policy).map(|content| content.policies.keys().cloned().collect());
        let message = match shortage {
            Shortage::AllowEntries => format!("the {} allow entries are all in use", compiler.limits.allow),
            Shortage::PortSets => {
                format!("the {} distinct port sets are all in use", compiler.limits.port_sets)
            }
        };
        let effect = match shortage {
            Shortage::AllowEntries => format!("{peers} kinds of peers that these policies allow are denied"),
            Shortage::PortSets => {
                format!("{peers} kinds of peers are denied on the protocols where these policies name ports")
            }
        };
        refused(names(&policies.unwrap_or_default()), message, &effect)
    };
    short.into_iter().map(of).collect()
}

fn policies_asking(compiler: &Compiler, id: CriterionId) -> BTreeSet<PolicyKey> {
    let asking = compiler.subjects.all().filter(|(_, content)| content.criteria.contains(&id));
    asking.flat_map(|(_, content)| content.policies_asking(id)).collect()
}

fn names(policies: &BTreeSet<PolicyKey>) -> String {
    let names: Vec<String> = policies.iter().map(|key| format!("NetworkPolicy {key}")).collect();
    names.join(", ")
}
