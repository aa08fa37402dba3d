//! Sets of ports as ranges, and what a policy answers in terms of them.

use std::sync::Arc;

use netpol_common::abi::PORT_SET_BYTES;

use crate::cluster::model::Protocol;
use crate::datapath::desired::PortBits;

/// Ports as sorted ranges that neither overlap nor touch, so that equal sets are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortRanges(Vec<(u16, u16)>);

impl PortRanges {
    /// Every port.
    pub(super) fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// The union of `ranges`, in normal form.
    pub(super) fn union(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
                Some(_) | None => merged.push((first, last)),
            }
        }
        // Port 0 is never used: all others are all.
        if merged == [(1, u16::MAX)] { Self::all() } else { Self(merged) }
    }

    pub(super) fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_all(&self) -> bool {
        self.0 == [(0, u16::MAX)]
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// The same as 65,536 bits.
    pub(super) fn bits(&self) -> Arc<PortBits> {
        let mut bits = [0; PORT_SET_BYTES];
        for port in self.0.iter().flat_map(|(first, last)| *first..=*last) {
            if let Some(byte) = bits.get_mut(usize::from(port / 8)) {
                *byte |= 1 << (port % 8);
            }
        }
        Arc::new(bits)
    }
}

/// One value for each protocol that NetworkPolicy knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PerProtocol<T> {
    pub(super) tcp: T,
    pub(super) udp: T,
    pub(super) sctp: T,
}

impl<T> PerProtocol<T> {
    pub(super) fn get(&self, protocol: Protocol) -> &T {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
            Protocol::Sctp => &self.sctp,
        }
    }

    pub(super) fn get_mut(&mut self, protocol: Protocol) -> &mut T {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
            Protocol::Sctp => &mut self.sctp,
        }
    }

    pub(super) fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerProtocol<U> {
        PerProtocol { tcp: f(self.tcp), udp: f(self.udp), sctp: f(self.sctp) }
    }
}

/// What a content allows a signature.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Allowed {
    pub(super) ports: PerProtocol<PortRanges>,
    /// Protocols that have no ports, ICMP included.
    pub(super) other: bool,
}

#[cfg(test)]
mod tests {
    use super::PortRanges;

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let union = PortRanges::union(vec![(80, 90), (443, 443), (85, 100), (101, 101)]);
        assert_eq!(union.ranges(), [(80, 101), (443, 443)]);
        assert!(union.contains(101) && !union.contains(102));
    }

    #[test]
    fn every_port_but_zero_is_every_port() {
        assert!(PortRanges::union(vec![(1, 1000), (1001, 65_535)]).is_all());
        assert!(!PortRanges::union(vec![(2, 65_535)]).is_all());
    }

    #[test]
    fn the_last_port_has_the_last_bit() {
        let bits = PortRanges::union(vec![(65_535, 65_535), (8, 9)]).bits();
        assert_eq!((bits[8191], bits[1], bits[0]), (0x80, 3, 0));
    }
}
