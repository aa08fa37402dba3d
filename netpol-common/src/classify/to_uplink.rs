//! Packets that leave this node: what a service's translation made of a pod's packet is judged here.

use super::{AllTables, Decision, Frame, Stage, Subject, Tables};
use crate::abi::{Direction, Endpoint, PolicyWord, Reason, Sender};
use crate::packet::{Address, PacketBytes, Scratch, Workspace, ether_type, settle_all};

/// Judges a packet at TC egress of a device that leads away from this node's pods. `protocol` is its EtherType, which a
/// device without a link header does not write into the frame. Clear our bits of the mark afterwards.
#[inline(always)]
pub fn to_uplink<P: PacketBytes + ?Sized, T: AllTables>(
    packet: &P,
    protocol: u16,
    frame: &Frame,
    tables: &T,
    workspace: &mut Workspace,
) -> Decision {
    let nobody = Subject { endpoint: &Endpoint::default(), policy: PolicyWord::default() };
    let stage = Stage { packet, frame, subject: &nobody, tables };
    let Sender::Deferred(slot) = stage.marked_sender() else {
        return stage.decision(Reason::ForeignMark, 0, Direction::Egress);
    };
    let Some(sender) = tables.sender(slot) else {
        return stage.decision(Reason::ForeignMark, 0, Direction::Egress);
    };
    let stage = Stage { packet, frame, subject: &sender, tables };
    match protocol {
        ether_type::IPV4 => stage.leave(&mut workspace.v4),
        ether_type::IPV6 => stage.leave(&mut workspace.v6),
        // A pod's packet is deferred for its IP destination only.
        _ => stage.decision(Reason::ForeignMark, 0, Direction::Egress),
    }
}

impl<P: PacketBytes + ?Sized, T: AllTables> Stage<'_, P, T> {
    #[inline(always)]
    fn leave<A: Address>(&self, scratch: &mut Scratch<A>) -> Decision
    where
        T: Tables<A>,
    {
        let header = scratch.header.renew();
        let result = match A::parse(self.packet, header) {
            Ok(()) => self.judge_at_exit(settle_all(scratch)).into_result(),
            Err(reason) => Err(reason),
        };
        self.conclude(result, &mut scratch.header, Direction::Egress)
    }
}
