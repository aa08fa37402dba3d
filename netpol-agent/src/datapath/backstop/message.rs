//! Messages of nf_tables, as bytes: batches and requests to write. No socket here.
//!
//! Numbers are those of include/uapi/linux/netfilter/nf_tables.h, which never change.

use crate::datapath::nfnetlink::{ACK, APPEND, CREATE, DUMP, Head, Writer};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;

/// `NFPROTO_INET`: both families in one table.
const FAMILY: u8 = 1;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    NewTable,
    DeleteTable,
    NewChain,
    NewRule,
    NewSet,
    NewElements,
    DeleteElements,
}

impl Action {
    const fn number(self) -> u8 {
        match self {
            Self::NewTable => 0,
            Self::DeleteTable => 2,
            Self::NewChain => 3,
            Self::NewRule => 6,
            Self::NewSet => 9,
            Self::NewElements => 12,
            Self::DeleteElements => 14,
        }
    }

    const fn flags(self) -> u16 {
        match self {
            Self::NewTable | Self::NewChain | Self::NewSet | Self::NewElements => CREATE,
            Self::NewRule => CREATE | APPEND,
            Self::DeleteTable | Self::DeleteElements => 0,
        }
    }
}

/// `NFT_MSG_GETRULE`.
const GET_RULE: u8 = 7;

/// Messages that the kernel carries out all together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    writer: Writer,
    sequence: u32,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { writer: Writer::default(), sequence: 0 };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// Adds a message; each is acknowledged.
    pub(super) fn add(&mut self, action: Action, fill: impl FnOnce(&mut Writer)) {
        self.sequence += 1;
        let kind = u16::from(SUBSYSTEM) << 8 | u16::from(action.number());
        let head = Head { kind, flags: ACK | action.flags(), sequence: self.sequence, family: FAMILY, resource: 0 };
        self.writer.message(head, fill);
    }

    /// The bytes to send, and the number of the message whose acknowledgement is the last.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32) {
        let last = self.sequence;
        self.sequence += 1;
        self.frame(BATCH_END);
        (self.writer.finish(), last)
    }

    fn frame(&mut self, kind: u16) {
        let head = Head { kind, flags: 0, sequence: self.sequence, family: 0, resource: u16::from(SUBSYSTEM) };
        self.writer.message(head, |_| {});
    }
}

/// A request for the rules of a chain.
pub(super) fn list_rules(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = u16::from(SUBSYSTEM) << 8 | u16::from(GET_RULE);
    writer.message(Head { kind, flags: DUMP, sequence: 1, family: FAMILY, resource: 0 }, fill);
    writer.finish()
}
