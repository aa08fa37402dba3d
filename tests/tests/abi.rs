//! What single words say that cross the kernel boundary: a packet's mark, a fragment's cell. Pure.

use std::collections::BTreeSet;

use netpol_common::abi::{FragmentCell, Mark, Reason, SLOT_NONE, Sender};

/// Masks that operators may choose, each with the position of its lowest bit.
const MASKS: [(u32, u32); 4] = [(0xff00_0000, 24), (0x000f_f000, 12), (0x0000_00ff, 0), (0x0f00_0000, 24)];

#[test]
fn a_mark_says_what_was_written_into_it_and_keeps_the_bits_of_others() {
    for (mask, shift) in MASKS {
        let mark = Mark::new(mask, shift);
        let slots = u16::try_from(Mark::slots(mask)).unwrap();
        assert_eq!(mask >> shift, u32::from(slots) + 1, "all bits set are no slot");
        let senders = (1..=slots).map(Sender::Deferred).chain([Sender::None, Sender::Judged]);
        let mut seen = BTreeSet::new();
        for sender in senders {
            for others in [0, !mask, 0x1234_5678 & !mask] {
                // Whatever was there before.
                for before in [0, mask, 0x0500_0500 & mask] {
                    let written = mark.write(others | before, sender);
                    assert_eq!(mark.read(written), sender, "{mask:#x} {sender:?}");
                    assert_eq!(written & !mask, others, "{mask:#x} {sender:?}");
                    if others == 0 {
                        seen.insert(written);
                    }
                }
            }
        }
        assert_eq!(seen.len(), usize::from(slots) + 2, "each sender has bits of its own");
        assert_eq!(mark.write(mask, Sender::None), 0);
        assert_eq!(mark.write(0, Sender::Judged), mask);
        assert_eq!(mark.read(mark.write(mask, Sender::Deferred(SLOT_NONE))), Sender::None);
    }
    assert_eq!(Mark::slots(0), 0);
}

#[test]
fn a_cell_speaks_of_its_own_datagram_while_it_is_young() {
    const LIMIT: u32 = 30_000;
    // Ticks are coarser than jiffies, and both wrap.
    for now in [0, 1_000_000, u32::MAX - 100, 0x000f_ff00] {
        let fingerprint = 0x1234_5678_9abc_def0;
        let cell = FragmentCell::new(fingerprint, now, Reason::AllowedByPolicy);
        let heard = |fingerprint, later| cell.for_later(fingerprint, now.wrapping_add(later), LIMIT);
        for later in [0, 1, LIMIT - 16] {
            assert_eq!(heard(fingerprint, later), Some(Reason::FragmentOfAllowed), "{now} {later}");
        }
        for later in [LIMIT + 16, 2 * LIMIT, 20 * LIMIT] {
            assert_eq!(heard(fingerprint, later), None, "{now} {later}");
        }
        // The low bits chose the cell; any other that differs is another datagram's.
        for bit in 24..64 {
            assert_eq!(heard(fingerprint ^ 1 << bit, 0), None, "bit {bit}");
        }
        assert_eq!(cell.older(LIMIT + 16).for_later(fingerprint, now, LIMIT), None);
    }
    assert_eq!(FragmentCell::default().for_later(0, 0, LIMIT), None, "nothing was ever written there");
}

#[test]
fn later_fragments_share_what_became_of_the_first() {
    for &reason in Reason::ALL {
        let later = FragmentCell::new(0, 77, reason).for_later(0, 77, 10).unwrap();
        // What is deferred is judged where it leaves, as the first fragment is.
        let is_deferred = matches!(reason, Reason::Deferred | Reason::ToOwnNode);
        let otherwise = if reason.is_drop() { Reason::FragmentOfDenied } else { Reason::FragmentOfAllowed };
        let expected = if is_deferred { reason } else { otherwise };
        assert_eq!(later, expected, "{reason}");
    }
}

#[test]
fn a_slot_has_cells_of_its_own() {
    let mut owners = std::collections::BTreeMap::new();
    for slot in 0..4 {
        for fingerprint in (0..100_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let index = FragmentCell::index(slot, fingerprint);
            assert_eq!(*owners.entry(index).or_insert(slot), slot, "cell {index} has two owners");
        }
    }
    assert_eq!(u32::try_from(owners.len()).unwrap(), FragmentCell::entries(4), "every cell is used");
    assert!(owners.keys().all(|index| *index < FragmentCell::entries(4)));
}
