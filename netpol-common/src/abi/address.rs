//! Addresses as they lie in packets and keys: network-order bytes, held in whole words, as the BPF target loads an
//! array of bytes one by one.

use super::assert_wire_layout;

/// IPv4 address: its four network-order bytes in one word of the machine.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4(pub u32);
assert_wire_layout!(V4, size = 4, align = 4, { 0: u32 });

/// IPv6 address: its sixteen network-order bytes in four words.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6(pub [u32; 4]);
assert_wire_layout!(V6, size = 16, align = 4, { 0: [u32; 4] });

/// MAC address: its six bytes in three half words.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u16; 3]);
assert_wire_layout!(Mac, size = 6, align = 2, { 0: [u16; 3] });

impl V4 {
    /// The address with these octets.
    #[must_use]
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The octets.
    #[must_use]
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl V6 {
    /// The address with these octets.
    #[must_use]
    #[inline(always)]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The octets.
    #[must_use]
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] =
            [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes(), self.0[3].to_ne_bytes()];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

impl Mac {
    /// The address with these octets.
    #[must_use]
    #[inline(always)]
    pub const fn from_octets(o: [u8; 6]) -> Self {
        Self([u16::from_ne_bytes([o[0], o[1]]), u16::from_ne_bytes([o[2], o[3]]), u16::from_ne_bytes([o[4], o[5]])])
    }

    /// The octets.
    #[must_use]
    #[inline(always)]
    pub const fn octets(self) -> [u8; 6] {
        let [a, b, c] = [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes()];
        [a[0], a[1], b[0], b[1], c[0], c[1]]
    }

    /// True for a group address, broadcast included (IEEE 802.3: the first bit on the wire).
    #[must_use]
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 == 1
    }
}

#[cfg(feature = "user")]
mod std_conversions {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::{V4, V6};

    impl From<Ipv4Addr> for V4 {
        fn from(address: Ipv4Addr) -> Self {
            Self::from_octets(address.octets())
        }
    }

    impl From<V4> for Ipv4Addr {
        fn from(address: V4) -> Self {
            Self::from(address.octets())
        }
    }

    impl From<Ipv6Addr> for V6 {
        fn from(address: Ipv6Addr) -> Self {
            Self::from_octets(address.octets())
        }
    }

    impl From<V6> for Ipv6Addr {
        fn from(address: V6) -> Self {
            Self::from(address.octets())
        }
    }
}
