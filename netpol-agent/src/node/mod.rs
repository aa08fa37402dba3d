//! The node side: which interfaces are pods', whose addresses are behind them, and which addresses are the node's own.
//!
//! What the pipeline wants of it (`Node` in this module):
//! - `Node::start(&NodeConfig) -> Result<Node, NodeError>` (async): first full dump done when it returns.
//! - `node.want(BTreeSet<IpAddr>)`: addresses that pods of this node may have; looked for at once, again when links change.
//! - `node.view() -> &NodeView`: as of the last `changed()` or `settle()`.
//! - `node.changed().await`: something in the view changed (cancel safe, for `select!`).
//! - `node.settle(limit).await`: nothing is unresolved any more (found, or known not to be here), or the limit is over.

pub mod view;
pub struct NodeConfig {
    pub pod_interfaces: Vec<String>,
}
pub struct Node {
    view: view::NodeView,
}
impl Node {
    pub async fn start(_: &NodeConfig) -> anyhow::Result<Self> {
        Ok(Self { view: Default::default() })
    }
    pub fn view(&self) -> &view::NodeView {
        &self.view
    }
    pub fn want(&mut self, _: std::collections::BTreeSet<std::net::IpAddr>) {}
    pub async fn changed(&mut self) {
        std::future::pending().await
    }
    pub async fn settle(&mut self, _: std::time::Duration) {}
}
