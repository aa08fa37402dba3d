//! Judges and harnesses of netpol: the naive oracle, the conformance suites, and one harness for each test level.

pub mod frame;
pub mod generate;
pub mod judge;
pub mod npconf;
pub mod oracle;
pub mod property;
pub mod replay;
