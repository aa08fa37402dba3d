//! Why a packet passed or was dropped: one enum for datapath, counters, events, CLI and documentation.

/// A number that is no [`Reason`] of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason(pub u8);

macro_rules! reasons {
    ($($(#[doc = $doc:expr])+ $name:ident = $number:literal, $text:literal, hubble = $hubble:literal;)+) => {
        /// Why a packet passed (below [`Reason::FIRST_DROP`]) or was dropped. Numbers are never used again.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in text, JSON, metrics and documentation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Hubble's `DropReason` number; 0 for a reason to pass.
            #[must_use]
            pub const fn hubble(self) -> u32 {
                match self { $(Self::$name => $hubble,)+ }
            }

            /// One sentence on what happened.
            #[must_use]
            pub const fn summary(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }

        impl TryFrom<u8> for Reason {
            type Error = UnknownReason;

            fn try_from(number: u8) -> Result<Self, UnknownReason> {
                match number {
                    $($number => Ok(Self::$name),)+
                    other => Err(UnknownReason(other)),
                }
            }
        }
    };
}

reasons! {
    /// Belongs to a flow that was opened in this direction and is allowed.
    Established = 1, "established", hubble = 0;
    /// Reply of an allowed flow.
    Reply = 2, "reply", hubble = 0;
    /// Opened a flow that a policy allows.
    AllowedByPolicy = 3, "allowed-by-policy", hubble = 0;
    /// Opened a flow in a direction in which nothing isolates the pod.
    NotIsolated = 4, "not-isolated", hubble = 0;
    /// Comes from the pod's own node, which may always reach its pods (kubelet probes).
    FromOwnNode = 5, "from-own-node", hubble = 0;
    /// Goes to the pod's own node.
    ToOwnNode = 6, "to-own-node", hubble = 0;
    /// ARP, neighbour discovery, MLD or DHCP.
    Neighbour = 7, "neighbour", hubble = 0;
    /// ICMP error about a live flow.
    RelatedIcmp = 8, "related-icmp", hubble = 0;
    /// TCP packet in mid-stream of an unknown flow that policy allows.
    PickedUp = 9, "picked-up", hubble = 0;
    /// Goes to a service address or a service's port of the node: judged where it leaves, after translation.
    Deferred = 10, "deferred", hubble = 0;
    /// Allowed, but the flow table took no entry for it.
    FlowNotRecorded = 11, "flow-not-recorded", hubble = 0;
    /// Later fragment of a datagram whose first fragment passed.
    FragmentOfAllowed = 12, "fragment-of-allowed", hubble = 0;
    /// No policy is enforced yet: first install before the first full sync.
    PassThrough = 13, "pass-through", hubble = 0;
    /// Left the node, or reached a local pod, after a service's translation, and policy allows that backend.
    AllowedAfterTranslation = 14, "allowed-after-translation", hubble = 0;
    /// A pod's packet to itself, through a service.
    ToSelf = 15, "to-self", hubble = 0;
    /// Carries a mark that no pod's packet has.
    ForeignMark = 16, "foreign-mark", hubble = 0;
    /// Opened or answered a flow that took the place of another live one of the same pod, as the pod has more flows than
    /// it may (counted beside the packet's own reason).
    FlowEvicted = 17, "flow-evicted", hubble = 0;
    /// Later fragment that came before its first one, to or from a peer with which policy allows some port of the protocol.
    FragmentAhead = 18, "fragment-ahead", hubble = 0;

    /// The pod is isolated in this direction and no rule allows the packet.
    PolicyDenied = 32, "policy-denied", hubble = 133;
    /// Belongs to a flow that policy allowed once and no longer does.
    FlowRevoked = 33, "flow-revoked", hubble = 133;
    /// The pod of this interface is not known yet.
    EndpointPending = 34, "endpoint-pending", hubble = 203;
    /// The source address is not the pod's.
    SpoofedAddress = 35, "spoofed-address", hubble = 132;
    /// The source MAC address is not the pod's.
    SpoofedMac = 36, "spoofed-mac", hubble = 132;
    /// ARP sender or neighbour advertisement for an address that is not the pod's.
    SpoofedNeighbour = 37, "spoofed-neighbour", hubble = 132;
    /// The headers end before they should.
    Truncated = 38, "truncated", hubble = 135;
    /// The headers contradict themselves.
    Malformed = 39, "malformed", hubble = 134;
    /// IPv6 extension header that is not understood, or too many of them.
    UnknownExtensionHeader = 40, "unknown-extension-header", hubble = 156;
    /// Later fragment of a datagram whose first fragment was not seen.
    FragmentWithoutFirst = 41, "fragment-without-first", hubble = 175;
    /// Later fragment of a datagram whose first fragment was denied.
    FragmentOfDenied = 42, "fragment-of-denied", hubble = 133;
    /// First fragment too small for its ports, or a fragment that would overwrite them.
    FragmentTooSmall = 43, "fragment-too-small", hubble = 134;
    /// VLAN-tagged frame from a pod.
    VlanTagged = 44, "vlan-tagged", hubble = 139;
    /// EtherType that is neither IP nor ARP, from or to an isolated pod.
    UnsupportedEtherType = 45, "unsupported-ethertype", hubble = 139;
    /// Flooded frame for another MAC address (not reported as an event).
    NotForThisPod = 46, "not-for-this-pod", hubble = 134;
    /// Address of the pod's interface that is not the pod's, in a frame for the pod.
    UnknownDestination = 47, "unknown-destination", hubble = 134;
    /// Unicast IP packet in a multicast or broadcast frame.
    UnicastInMulticastFrame = 48, "unicast-in-multicast-frame", hubble = 134;
    /// IPv4 source routing or an IPv6 routing header with segments left.
    SourceRouted = 49, "source-routed", hubble = 134;
    /// Router advertisement or redirect from a pod.
    RouterMessage = 50, "router-message", hubble = 134;
    /// TCP packet in mid-stream of an unknown flow, in strict mode.
    MidStream = 51, "mid-stream", hubble = 163;
    /// Tunnel packet from a pod towards a node.
    TunnelFromPod = 52, "tunnel-from-pod", hubble = 134;
    /// Reply from a service of which no backend that policy allows was reached.
    UnconfirmedReply = 53, "unconfirmed-reply", hubble = 133;
    /// After a service's translation: the pod is isolated for egress and no rule allows this backend.
    DeniedAfterTranslation = 54, "denied-after-translation", hubble = 133;
    /// ICMP error from a pod about a packet that was not sent to it.
    ForgedError = 55, "forged-error", hubble = 132;
}

impl Reason {
    /// Counters are indexed by reason: numbers stay below this (a power of two).
    pub const SLOTS: u32 = 64;
    /// Numbers from here on drop the packet.
    pub const FIRST_DROP: u8 = 32;

    /// True if a packet with this reason is dropped.
    #[must_use]
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        self as u8 >= Self::FIRST_DROP
    }

    /// True if the drop is counted only: frames that the bridge floods to every pod would drown all else.
    #[must_use]
    #[inline(always)]
    pub const fn is_quiet(self) -> bool {
        matches!(self, Self::NotForThisPod)
    }
}

impl Default for Reason {
    /// What nobody judged is dropped.
    fn default() -> Self {
        Self::Malformed
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
