//! What stops a service's packet that leaves through a device where nothing of ours judges it.
//!
//! A pod's packet to a service is let go at the pod's interface with the pod's slot in its mark, to be judged where it
//! leaves. A device that is too new to have the hook, or could not get it, must not be a way around: a chain of nftables at
//! postrouting, behind source NAT, drops such packets unless their device is in a set. In: the devices with our hook, and
//! those whose packets come to another device's. Out: the table `inet netpol`, changed in one step, and its counter. It
//! stays in force when the agent stops. Start at [`Backstop::let_out`].
//!
//! Needs `CAP_NET_ADMIN`; calls block for a round trip to the kernel and act in the network namespace of the calling thread.

mod message;

use std::collections::BTreeSet;
use std::io;

use message::{Action, Batch, list_rules};

use super::nfnetlink::{Answer, Attributes, Writer, answers, connect};

/// Our table, in family `inet`.
const TABLE: &str = "netpol";
/// Its chain.
const CHAIN: &str = "leaving";
/// The set of devices that packets may leave through.
const SET: &str = "hooked";
/// What `nft list ruleset` shows beside the rule.
const COMMENT: &str = "netpol: judged nowhere, as this device lacks the hook to_uplink";

/// `NF_INET_POST_ROUTING`.
const POSTROUTING: u32 = 4;
/// Behind mangle (-150) and source NAT (100), before a connection is confirmed.
const PRIORITY: u32 = 200;
/// Data type of the set's keys as the `nft` program numbers it: interface index.
const TYPE_INTERFACE: u32 = 20;
/// Elements in one message: its length has 16 bits.
const ELEMENTS: usize = 1_000;

/// Why the backstop is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum BackstopError {
    /// The kernel has no nf_tables, or not what the chain needs.
    #[error("this kernel has no nf_tables ({0}); build it with CONFIG_NF_TABLES_INET, or load the module nf_tables")]
    Missing(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {operation} the nftables table `inet netpol`: {source}; needs CAP_NET_ADMIN")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The table, as far as this agent has made it.
#[derive(Debug)]
pub struct Backstop {
    /// The bits of the mark that are ours.
    mask: u32,
    /// The devices in the set; none before the table was made.
    devices: Option<BTreeSet<u32>>,
}

impl Backstop {
    /// Nothing is made yet; what an earlier agent made stays in force until then.
    #[must_use]
    pub const fn new(mask: u32) -> Self {
        Self { mask, devices: None }
    }

    /// True once this agent has made the table.
    #[must_use]
    pub const fn is_made(&self) -> bool {
        self.devices.is_some()
    }

    /// Lets deferred packets leave through exactly these devices.
    ///
    /// # Errors
    /// What the kernel refused; the table is then as before.
    pub fn let_out(&mut self, devices: &BTreeSet<u32>) -> Result<(), BackstopError> {
        match &self.devices {
            Some(present) if present == devices => return Ok(()),
            // A table that somebody else removed or emptied is made again.
            Some(present) if change(present, devices).is_ok() => {}
            _ => self.make(devices)?,
        }
        self.devices = Some(devices.clone());
        Ok(())
    }

    /// Makes the table again if somebody removed it: `nft flush ruleset` does.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn restore(&mut self) -> Result<(), BackstopError> {
        let Some(devices) = self.devices.clone() else { return Ok(()) };
        if dropped()?.is_none() {
            tracing::warn!("somebody removed the nftables table `inet netpol`: making it again");
            self.make(&devices)?;
        }
        Ok(())
    }

    /// Makes the table in place of one that is there, whose count goes on.
    fn make(&self, devices: &BTreeSet<u32>) -> Result<(), BackstopError> {
        let count = dropped()?.unwrap_or_default();
        let mut batch = Batch::new();
        // The removal of a table that is not there would fail.
        batch.add(Action::NewTable, |table| table.text(1, TABLE));
        batch.add(Action::DeleteTable, |table| table.text(1, TABLE));
        batch.add(Action::NewTable, |table| table.text(1, TABLE));
        batch.add(Action::NewChain, chain);
        batch.add(Action::NewSet, set);
        elements(&mut batch, Action::NewElements, devices);
        batch.add(Action::NewRule, |writer| rule(writer, self.mask, count));
        carry_out(batch).map_err(refused("make"))
    }
}

/// What the backstop has dropped; none if there is no such table.
///
/// # Errors
/// If the kernel refuses to say.
pub fn dropped() -> Result<Option<Dropped>, BackstopError> {
    let request = list_rules(|writer| {
        writer.text(1, TABLE);
        writer.text(2, CHAIN);
    });
    match ask(&request) {
        Ok(found) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        // nfnetlink does not know the subsystem.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(BackstopError::Missing(error)),
        Err(error) => Err(refused("read")(error)),
    }
}

/// A count of the backstop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Dropped {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes the table; absent is fine, and so is a kernel without nf_tables.
///
/// # Errors
/// If the kernel refuses.
pub fn remove() -> Result<(), BackstopError> {
    let mut batch = Batch::new();
    batch.add(Action::NewTable, |table| table.text(1, TABLE));
    batch.add(Action::DeleteTable, |table| table.text(1, TABLE));
    match carry_out(batch).map_err(refused("remove")) {
        Err(BackstopError::Missing(_)) => Ok(()),
        other => other,
    }
}

fn change(present: &BTreeSet<u32>, wanted: &BTreeSet<u32>) -> io::Result<()> {
    let mut batch = Batch::new();
    elements(&mut batch, Action::DeleteElements, present.difference(wanted));
    elements(&mut batch, Action::NewElements, wanted.difference(present));
    carry_out(batch)
}

fn chain(writer: &mut Writer) {
    const ACCEPT: u32 = 1;
    writer.text(1, TABLE);
    writer.text(3, CHAIN);
    writer.nested(4, |hook| {
        hook.number(1, POSTROUTING);
        hook.number(2, PRIORITY);
    });
    writer.number(5, ACCEPT);
    writer.text(7, "filter");
}

fn set(writer: &mut Writer) {
    writer.text(1, TABLE);
    writer.text(2, SET);
    writer.number(3, 0);
    writer.number(4, TYPE_INTERFACE);
    writer.number(5, 4);
    // Names the set within the batch.
    writer.number(10, 1);
    // For `nft list` (kind, length, value): keys are in the machine's byte order.
    let [a, b, c, d] = 1_u32.to_ne_bytes();
    writer.bytes(13, &[0, 4, a, b, c, d]);
}

fn elements<'a>(batch: &mut Batch, action: Action, devices: impl IntoIterator<Item = &'a u32>) {
    let devices: Vec<u32> = devices.into_iter().copied().collect();
    for some in devices.chunks(ELEMENTS) {
        batch.add(action, |writer| {
            writer.text(1, TABLE);
            writer.text(2, SET);
            writer.nested(3, |list| {
                for device in some {
                    list.nested(1, |element| element.nested(1, |key| key.bytes(1, &device.to_ne_bytes())));
                }
            });
        });
    }
}

/// `meta mark & MASK != 0, != MASK, oif != @hooked, counter, drop`.
fn rule(writer: &mut Writer, mask: u32, count: Dropped) {
    const MARK: u32 = 3;
    const OUTPUT: u32 = 5;
    const REGISTER: u32 = 1;
    const NOT_EQUAL: u32 = 1;
    const INVERTED: u32 = 1;
    const DROP: u32 = 0;
    let load = |list: &mut Writer, key| {
        expression(list, "meta", |meta| {
            meta.number(1, REGISTER);
            meta.number(2, key);
        });
    };
    let differs = |list: &mut Writer, value: u32| {
        expression(list, "cmp", |compare| {
            compare.number(1, REGISTER);
            compare.number(2, NOT_EQUAL);
            compare.nested(3, |data| data.bytes(1, &value.to_ne_bytes()));
        });
    };
    writer.text(1, TABLE);
    writer.text(2, CHAIN);
    writer.nested(4, |list| {
        load(list, MARK);
        expression(list, "bitwise", |bitwise| {
            bitwise.number(1, REGISTER);
            bitwise.number(2, REGISTER);
            bitwise.number(3, 4);
            bitwise.nested(4, |data| data.bytes(1, &mask.to_ne_bytes()));
            bitwise.nested(5, |data| data.bytes(1, &[0; 4]));
        });
        differs(list, 0);
        differs(list, mask);
        load(list, OUTPUT);
        expression(list, "lookup", |lookup| {
            lookup.text(1, SET);
            lookup.number(2, REGISTER);
            lookup.number(4, 1);
            lookup.number(5, INVERTED);
        });
        expression(list, "counter", |counter| {
            counter.long(1, count.bytes);
            counter.long(2, count.packets);
        });
        expression(list, "immediate", |verdict| {
            verdict.number(1, 0);
            verdict.nested(2, |data| data.nested(2, |verdict| verdict.number(1, DROP)));
        });
    });
    // A comment, in the form that `nft` gives it: kind, length, text.
    let mut comment = vec![0, u8::try_from(COMMENT.len() + 1).unwrap_or_default()];
    comment.extend_from_slice(COMMENT.as_bytes());
    comment.push(0);
    writer.bytes(7, &comment);
}

fn expression(list: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    list.nested(1, |expression| {
        expression.text(1, name);
        expression.nested(2, fill);
    });
}

fn counter_of(rule: Attributes<'_>) -> Option<Dropped> {
    let counter = rule.nested(4).each().find(|expression| expression.is_text(1, "counter"))?.nested(2);
    Some(Dropped { bytes: counter.long(1)?, packets: counter.long(2)? })
}

/// Sends a batch and waits for the last acknowledgement, or the first refusal.
fn carry_out(batch: Batch) -> io::Result<()> {
    let (bytes, last) = batch.finish();
    let socket = connect()?;
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for answer in answers(&datagram) {
            match answer {
                Answer::Result { error: 0, sequence } if sequence == last => return Ok(()),
                Answer::Result { error: 0, .. } | Answer::Done { .. } | Answer::Object { .. } => {}
                Answer::Result { error, .. } => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

/// Sends a request for our rules, and reads the counter of the first that has one.
fn ask(request: &[u8]) -> io::Result<Option<Dropped>> {
    let socket = connect()?;
    socket.send(request, 0)?;
    let mut found = None;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for answer in answers(&datagram) {
            match answer {
                Answer::Done { error: 0 } | Answer::Result { error: 0, .. } => return Ok(found),
                Answer::Done { error } | Answer::Result { error, .. } => {
                    return Err(io::Error::from_raw_os_error(error));
                }
                // Kernels that do not filter by themselves list the rules of every table.
                Answer::Object { attributes: rule, .. } if rule.is_text(1, TABLE) && rule.is_text(2, CHAIN) => {
                    found = found.or_else(|| counter_of(rule));
                }
                Answer::Object { .. } => {}
            }
        }
    }
}

fn refused(operation: &'static str) -> impl FnOnce(io::Error) -> BackstopError {
    move |source| match source.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => BackstopError::Missing(source),
        // What the batch names is in it: only a part of the kernel can be absent.
        Some(libc::ENOENT) => BackstopError::Missing(source),
        _ => BackstopError::Refused { operation, source },
    }
}

#[cfg(test)]
mod tests;
