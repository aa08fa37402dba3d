//! Answers `explain`: the loop says what its own compilation does with its pods; what it must compile anew for pods of other
//! nodes, and the writing, is done beside the loop.

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Pipeline;
use crate::explain::{Explanation, Facts, FreshCompile, Nodes, Opinions, Question, View, explain, resolve};

impl Pipeline {
    /// Explains a flow.
    pub(super) fn explain(&self, asked: (&str, &str, &str), answer: oneshot::Sender<Value>) {
        let (source, destination, namespace) = asked;
        let question = match Question::parse(source, destination, namespace) {
            Ok(question) => question,
            Err(error) => {
                let explanation = Explanation { unanswerable: Some(error.to_string()), ..Explanation::default() };
                return send(answer, &explanation);
            }
        };
        let cluster = self.enforcer.cluster().clone();
        let mut nodes = Nodes::of(&cluster);
        nodes.add(&self.node_name, self.node.view().own_addresses.iter().copied());
        let enforce_own_node = self.enforce_own_node;
        let mut opinions = Opinions::default();
        let facts = Facts { cluster: &cluster, nodes: &nodes, enforce_own_node };
        if let Ok((flows, _)) = resolve(&question, &facts) {
            opinions.collect(&self.compiled_view(), &flows);
        }
        tokio::task::spawn_blocking(move || {
            let facts = Facts { cluster: &cluster, nodes: &nodes, enforce_own_node };
            if let Ok((flows, _)) = resolve(&question, &facts) {
                let missing = opinions.missing(&flows, &cluster);
                if !missing.is_empty() {
                    opinions.collect(&FreshCompile::new(&cluster, missing).view(), &flows);
                }
            }
            send(answer, &explain(&question, &facts, &opinions));
        });
    }

    /// What this agent's compiler made of its pods.
    fn compiled_view(&self) -> View<'_> {
        let locals = self.enforcer.endpoints().iter();
        View {
            desired: self.enforcer.desired(),
            provenance: self.enforcer.provenance(),
            slots: locals.filter_map(|local| Some((local.pod.clone()?, local.slot))).collect(),
            enforced: true,
        }
    }
}

fn send(answer: oneshot::Sender<Value>, explanation: &Explanation) {
    let value = serde_json::to_value(explanation).unwrap_or_else(|error| json!({ "error": error.to_string() }));
    if answer.send(value).is_err() {
        tracing::debug!("a client did not wait for its answer");
    }
}
