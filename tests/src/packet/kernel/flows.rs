//! Flow tables of host and kernel in one form, so that they can be compared and made older.

use std::collections::{BTreeMap, HashMap};

use netpol_common::abi::{Flow, FlowKey};
use netpol_common::host::{FamilyTables, HostTables};
use netpol_common::packet::Address;

/// In which table a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among those that nobody has answered yet.
    Unanswered,
    /// Among the answered ones.
    Answered,
}

/// Every flow, by its key in words.
#[derive(Clone, Debug, Default)]
pub struct FlowTables(pub BTreeMap<String, (Flow, Place)>);

impl FlowTables {
    /// The host's.
    #[must_use]
    pub fn of_host(host: &HostTables) -> Self {
        let mut tables = Self::default();
        tables.add_host(&host.v4);
        tables.add_host(&host.v6);
        tables
    }

    /// Makes the host's flows and fragments older.
    pub fn age_host(host: &HostTables, jiffies: u32) {
        age_family(&host.v4, jiffies);
        age_family(&host.v6, jiffies);
        host.fragments.borrow_mut().values_mut().for_each(|cell| *cell = cell.older(jiffies));
    }

    fn add_host<A: Address>(&mut self, family: &FamilyTables<A>) {
        for (table, place) in [(&family.flows, Place::Answered), (&family.unanswered, Place::Unanswered)] {
            for (key, flow) in table.borrow().iter() {
                self.add(key, *flow, place);
            }
        }
    }

    /// Adds one entry.
    pub(super) fn add<A: Address>(&mut self, key: &FlowKey<A>, flow: Flow, place: Place) {
        // A key in both tables would be a fault; it must not hide.
        let mut name = format!("{key:?}");
        while self.0.contains_key(&name) {
            name.push_str(" again");
        }
        self.0.insert(name, (flow, place));
    }
}

fn age_family<A: Address>(family: &FamilyTables<A>, jiffies: u32) {
    let age = |table: &mut HashMap<FlowKey<A>, Flow>| {
        table.values_mut().for_each(|flow| flow.last_seen = flow.last_seen.wrapping_sub(jiffies));
    };
    age(&mut family.flows.borrow_mut());
    age(&mut family.unanswered.borrow_mut());
}
