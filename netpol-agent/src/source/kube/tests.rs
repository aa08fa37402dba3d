//! The ledger: what is given out when.
