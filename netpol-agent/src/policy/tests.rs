//! The compiler and apply together, against a judge that reads policies literally.

mod failures;
mod generated;
mod incremental;
mod judge;
mod limits;
mod node;
mod provenance;
mod restart;
mod semantics;
mod transitions;
