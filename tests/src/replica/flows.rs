//! What becomes of open connections while policy changes under them: a connection that is no longer allowed stops in both
//! directions with its next packet, one that is allowed never notices, one that is allowed again goes on.
//!
//! In: a [`History`]. Connections are opened as soon as they are allowed and stay open to its end; after every batch both
//! sides send, in turns, and each hook must say what the oracle says of the opening as things are *now*.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use netpol_common::abi::{Endpoint, Reason};

use super::{Passage, Replica};
use crate::frame::Packet;
use crate::generate::history::History;
use crate::generate::probes;
use crate::judge::{Judge, Probe, Side, Verdict};
use crate::oracle::Oracle;

/// Where a flow entry is: node and interface.
type Place = Option<(String, Endpoint)>;

/// The ends of an open connection when it was opened.
type Ends = (Place, Place);

/// What happened to the connections of a history: a property that nothing happened to proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Were opened.
    pub opened: usize,
    /// Went on through a change.
    pub went_on: usize,
    /// Were stopped.
    pub stopped: usize,
    /// Were stopped, and went on later.
    pub resumed: usize,
}

/// Follows every connection through the history.
///
/// # Errors
/// Some packet met another answer than the oracle gives, or a judge cannot take an object.
pub fn follow(history: &History) -> anyhow::Result<Fates> {
    let mut fates = Fates::default();
    let (mut oracle, mut replica) = (Oracle::default(), Replica::default());
    let mut open: BTreeMap<Probe, (Ends, bool)> = BTreeMap::new();
    for (number, batch) in history.batches.iter().enumerate() {
        oracle.change(batch)?;
        replica.change(batch)?;
        open = std::mem::take(&mut open)
            .into_iter()
            .filter_map(|(probe, (ends, went))| Some((replica.present(&probe, &ends)?, (ends, went))))
            .collect();
        // Either side may be the first to send after a change.
        let mut turns = [Packet::FromOpener, Packet::FromAnswerer];
        turns.rotate_left(number % 2);
        for (probe, (_, went)) in &mut open {
            let verdict = oracle.judge(probe);
            match (std::mem::replace(went, verdict.allowed()), verdict.allowed()) {
                (true, true) => fates.went_on += 1,
                (true, false) => fates.stopped += 1,
                (false, true) => fates.resumed += 1,
                (false, false) => {}
            }
            for packet in turns {
                compare(&replica, probe, packet, verdict).with_context(|| format!("after batch {number}"))?;
            }
        }
        for probe in probes(oracle.objects(), &history.last.ports) {
            if open.contains_key(&probe) {
                continue;
            }
            let verdict = oracle.judge(&probe);
            compare(&replica, &probe, Packet::Opening, verdict).with_context(|| format!("after batch {number}"))?;
            if verdict.allowed() {
                compare(&replica, &probe, Packet::Answer, verdict).with_context(|| format!("after batch {number}"))?;
                let ends = (replica.place(&probe.source), replica.place(&probe.destination));
                open.insert(probe, (ends, true));
                fates.opened += 1;
            }
        }
    }
    Ok(fates)
}

/// Both directions of a flow get the answer that its opening would get.
fn compare(replica: &Replica, probe: &Probe, packet: Packet, verdict: Verdict) -> anyhow::Result<()> {
    let Passage { at_source, at_destination } =
        replica.carry(probe, packet).with_context(|| format!("{packet:?} of {probe}"))?;
    for (end, reason, allowed) in
        [("source", at_source, verdict.egress), ("destination", at_destination, verdict.ingress)]
    {
        let agrees = reason.is_none_or(|reason: Reason| reason.is_drop() != allowed);
        let said = reason.map_or("nothing", Reason::name);
        ensure!(agrees, "{packet:?} of {probe}: at its {end}: oracle {allowed}, the hook {said}");
    }
    Ok(())
}

impl Replica {
    fn place(&self, side: &Side) -> Place {
        let (agent, pod) = self.local(side)?;
        Some((agent.name().to_owned(), pod.endpoint))
    }

    /// The connection as it is now: an end whose interface, slot and addresses are the same may be another pod by now,
    /// with the old one's flows. None if an end's interface is gone.
    fn present(&self, probe: &Probe, (source, destination): &Ends) -> Option<Probe> {
        Some(Probe {
            source: self.present_side(&probe.source, source)?,
            destination: self.present_side(&probe.destination, destination)?,
            ..probe.clone()
        })
    }

    fn present_side(&self, side: &Side, place: &Place) -> Option<Side> {
        let Some((node, endpoint)) = place else {
            // Nobody had an interface here. If a pod has the address now, its own entry is missing.
            let taken = self.agents.values().any(|agent| agent.has_pod_at(side.address));
            return (!taken).then_some(Side { address: side.address, pod: None });
        };
        let (name, _) = self.agents.get(node)?.pods().find(|(_, pod)| pod.endpoint == *endpoint)?;
        Some(Side { address: side.address, pod: Some(name.clone()) })
    }
}
