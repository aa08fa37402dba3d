//! The node side: which interfaces are pods', whose addresses are behind them, and which addresses are the node's own.
//!
//! What the pipeline wants of it (`Node` in this module):
//! - `Node::start(&NodeConfig) -> Result<Node, NodeError>` (async): first full dump done when it returns.
//! - `node.want(BTreeSet<IpAddr>)`: addresses that pods of this node may have; looked for at once, again when links change.
//! - `node.view() -> &NodeView`: as of the last `changed()` or `settle()`.
//! - `node.changed().await`: something in the view changed (cancel safe, for `select!`).
//! - `node.settle(limit).await`: nothing is unresolved any more (found, or known not to be here), or the limit is over.

pub mod view;
