//! `netpol policy list`: a row a policy, the nodes' answers joined.

use std::collections::BTreeMap;

use super::{Sight, refused_lines};
use crate::client::ask::Answers;
use crate::client::table::{Cell, Style, Table};
use crate::observe::answer::{PolicyList, PolicySummary};

#[derive(Default)]
struct Joined<'a> {
    policy: Option<&'a PolicySummary>,
    nodes: usize,
    pods: usize,
    pods_behind: usize,
    problems: usize,
}

/// The table.
pub(in crate::client) fn policies(answers: &Answers<PolicyList>, sight: Sight) -> String {
    let mut joined: BTreeMap<(&str, &str), Joined<'_>> = BTreeMap::new();
    for policy in answers.given().flat_map(|(_, list)| &list.policies) {
        let one = joined.entry((&policy.namespace, &policy.name)).or_default();
        one.policy = Some(policy);
        one.nodes += 1;
        one.pods += policy.pods.len();
        one.pods_behind += policy.pods.iter().filter(|pod| pod.state != "enforced").count();
        // The same on every node that has them at all.
        one.problems = one.problems.max(policy.problems.len());
    }
    let given = answers.given().count();
    let mut table = Table::new(["NAMESPACE", "NAME", "TYPES", "PODS", "NODES", "PROBLEMS"]);
    for ((namespace, name), one) in &joined {
        let types = one.policy.map(|policy| policy.policy_types.join(",")).unwrap_or_default();
        let pods = match one.pods_behind {
            0 => one.pods.into(),
            behind => Cell::styled(format!("{} ({behind} not enforced)", one.pods), Style::Warning),
        };
        let nodes = format!("{}/{given}", one.nodes);
        table.push([
            (*namespace).into(),
            (*name).into(),
            types.into(),
            pods,
            if one.nodes == given { nodes.into() } else { Cell::styled(nodes, Style::Warning) },
            Cell::styled(one.problems, if one.problems == 0 { Style::Plain } else { Style::Bad }),
        ]);
    }
    let text = match (table.is_empty(), given) {
        (true, 0) => String::new(),
        (true, _) => "no NetworkPolicies\n".to_owned(),
        (false, _) => table.render(sight.colour),
    };
    text + &refused_lines(answers, sight)
}
