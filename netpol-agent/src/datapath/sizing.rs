//! How large the maps are, and what each must look like: the one table of every pinned map.
//!
//! In: the sizes the operator asks for. Out: [`MapSpec`] per map, and [`Sizing::of_pins`], the sizes that are in force.
//! A pinned map keeps its size until clean-up, since its contents are live.

use aya::maps::MapInfo;
use netpol_common::abi::{
    AllowKey, AllowValue, Backend, BackendKey, Counter, CounterIndex, Endpoint, EventGate, Flow, FlowKey, FragmentCell,
    PORT_SET_BYTES, PolicyWord, RingHeads, TokenBucket, V4, V6, capacity, map,
};

/// Sizes of the maps, in entries unless a field says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// Slots, one a local pod and one for nobody.
    pub slots: u32,
    /// Endpoints with an interface index beyond the array.
    pub far_endpoints: u32,
    /// Exact addresses with an identity, for each family.
    pub addresses: u32,
    /// ipBlock regions, for each family.
    pub cidrs: u32,
    /// (policy id, identity) pairs.
    pub allow: u32,
    /// Distinct port sets.
    pub port_sets: u32,
    /// Answered flows of one pod, for each family.
    pub flows_per_pod: u32,
    /// Unanswered flows of one pod, for each family.
    pub unanswered_per_pod: u32,
    /// Backends of one pod's deferred flows.
    pub backends_per_pod: u32,
    /// Own addresses and service addresses, for each family.
    pub address_roles: u32,
    /// Bytes of the event ring, a power of two of pages.
    pub event_ring_bytes: u32,
}

impl Default for Sizing {
    fn default() -> Self {
        Self {
            slots: capacity::SLOTS,
            far_endpoints: capacity::FAR_ENDPOINTS,
            addresses: capacity::ADDRESSES,
            cidrs: capacity::CIDRS,
            allow: capacity::ALLOW,
            port_sets: capacity::PORT_SETS,
            flows_per_pod: capacity::FLOWS_PER_POD,
            unanswered_per_pod: capacity::UNANSWERED_PER_POD,
            backends_per_pod: capacity::BACKENDS_PER_POD,
            address_roles: capacity::ADDRESS_ROLES,
            event_ring_bytes: capacity::EVENT_RING_BYTES,
        }
    }
}

/// What a pinned map must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Name in the object and of the pin.
    pub name: &'static str,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value (of one CPU).
    pub value: usize,
    /// Entries (bytes for the event ring).
    pub entries: u32,
}

/// A pinned map that this agent cannot use.
#[derive(Debug, thiserror::Error)]
pub enum SizingError {
    /// A pinned map has keys or values of another size.
    #[error(
        "the pinned map {map} has keys of {key} and values of {value} bytes, this agent needs {wanted_key} and \
         {wanted_value}: another build left it behind that calls its layout the same; run `netpol-agent cleanup` and start \
         again"
    )]
    Layout {
        /// Map name.
        map: &'static str,
        /// Key size found.
        key: u32,
        /// Value size found.
        value: u32,
        /// Key size needed.
        wanted_key: usize,
        /// Value size needed.
        wanted_value: usize,
    },
}

/// A map whose pinned size is not the one asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSize {
    /// Map name.
    pub map: &'static str,
    /// Entries it has, and keeps.
    pub kept: u32,
    /// Entries asked for.
    pub wanted: u32,
}

impl std::fmt::Display for KeptSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { map, kept, wanted } = self;
        write!(
            f,
            "map {map} is pinned with room for {kept} entries and keeps it, {wanted} were asked for; to change it run \
             `netpol-agent cleanup` first (open connections are then judged anew)"
        )
    }
}

impl Sizing {
    /// Every pinned map under these sizes.
    #[must_use]
    pub fn maps(&self) -> Vec<MapSpec> {
        const INDEX: usize = size_of::<u32>();
        let spec = |name, key, value, entries| MapSpec { name, key, value, entries };
        // kernel: an LPM key is the prefix length and the address.
        let (prefix_v4, prefix_v6) = (INDEX + size_of::<V4>(), INDEX + size_of::<V6>());
        let (flow_v4, flow_v6) = (size_of::<FlowKey<V4>>(), size_of::<FlowKey<V6>>());
        let counters = CounterIndex::entries(self.slots);
        let fragments = FragmentCell::entries(self.slots);
        let of_pods = |per_pod: u32| self.slots.saturating_mul(per_pod);
        let (flows, unanswered) = (of_pods(self.flows_per_pod), of_pods(self.unanswered_per_pod));
        let backends = of_pods(self.backends_per_pod);
        vec![
            spec(map::ENDPOINTS, INDEX, size_of::<Endpoint>(), capacity::NEAR_IFINDEXES),
            spec(map::ENDPOINTS_FAR, INDEX, size_of::<Endpoint>(), self.far_endpoints),
            spec(map::POLICY_WORDS, INDEX, size_of::<PolicyWord>(), self.slots),
            spec(map::PODS, INDEX, size_of::<Endpoint>(), self.slots),
            spec(map::IDENTITY_V4, size_of::<V4>(), size_of::<u32>(), self.addresses),
            spec(map::IDENTITY_V6, size_of::<V6>(), size_of::<u32>(), self.addresses),
            spec(map::CIDR_V4, prefix_v4, size_of::<u32>(), self.cidrs),
            spec(map::CIDR_V6, prefix_v6, size_of::<u32>(), self.cidrs),
            spec(map::ALLOW, size_of::<AllowKey>(), size_of::<AllowValue>(), self.allow),
            spec(map::PORT_SETS, INDEX, PORT_SET_BYTES, self.port_sets),
            spec(map::FLOWS_V4_RING, INDEX, flow_v4, flows),
            spec(map::FLOWS_V4, flow_v4, size_of::<Flow>(), flows),
            spec(map::FLOWS_V6_RING, INDEX, flow_v6, flows),
            spec(map::FLOWS_V6, flow_v6, size_of::<Flow>(), flows),
            spec(map::UNANSWERED_V4_RING, INDEX, flow_v4, unanswered),
            spec(map::UNANSWERED_V4, flow_v4, size_of::<Flow>(), unanswered),
            spec(map::UNANSWERED_V6_RING, INDEX, flow_v6, unanswered),
            spec(map::UNANSWERED_V6, flow_v6, size_of::<Flow>(), unanswered),
            spec(map::FRAGMENTS, INDEX, size_of::<FragmentCell>(), fragments),
            spec(map::BACKENDS_RING, INDEX, size_of::<BackendKey>(), backends),
            spec(map::BACKENDS, size_of::<BackendKey>(), size_of::<Backend>(), backends),
            spec(map::RING_HEADS, INDEX, size_of::<RingHeads>(), self.slots),
            spec(map::NODE_PORTS, INDEX, PORT_SET_BYTES, capacity::NODE_PORTS),
            spec(map::SECRET, INDEX, size_of::<[u32; 2]>(), 1),
            spec(map::ADDRESS_ROLES_V4, size_of::<V4>(), size_of::<u32>(), self.address_roles),
            spec(map::ADDRESS_ROLES_V6, size_of::<V6>(), size_of::<u32>(), self.address_roles),
            spec(map::COUNTERS, INDEX, size_of::<Counter>(), counters),
            spec(map::EVENT_GATES, INDEX, size_of::<EventGate>(), capacity::EVENT_GATES),
            spec(map::EVENT_TOKENS, INDEX, size_of::<TokenBucket>(), self.slots),
            spec(map::EVENTS_LOST, INDEX, size_of::<u64>(), 1),
            spec(map::EVENTS, 0, 0, self.event_ring_bytes),
        ]
    }

    /// The sizes in force where `pinned` says what is already pinned (by map name), and which of them are not as asked.
    ///
    /// # Errors
    /// A pinned map of another layout.
    pub fn of_pins(
        &self,
        pinned: impl Fn(&'static str) -> Option<MapInfo>,
    ) -> Result<(Self, Vec<KeptSize>), SizingError> {
        let mut effective = self.clone();
        let mut kept = Vec::new();
        for spec in self.maps() {
            let Some(found) = pinned(spec.name) else { continue };
            let (key, value) = (found.key_size(), found.value_size());
            if usize::try_from(key) != Ok(spec.key) || usize::try_from(value) != Ok(spec.value) {
                let (wanted_key, wanted_value) = (spec.key, spec.value);
                return Err(SizingError::Layout { map: spec.name, key, value, wanted_key, wanted_value });
            }
            if found.max_entries() != spec.entries {
                effective.keep(spec.name, found.max_entries());
                kept.push(KeptSize { map: spec.name, kept: found.max_entries(), wanted: spec.entries });
            }
        }
        Ok((effective, kept))
    }

    /// Takes over the size of one pinned map; what two maps share is the smaller of both.
    fn keep(&mut self, name: &str, entries: u32) {
        let field = match name {
            map::POLICY_WORDS | map::PODS | map::RING_HEADS | map::EVENT_TOKENS => &mut self.slots,
            map::ENDPOINTS_FAR => &mut self.far_endpoints,
            map::IDENTITY_V4 | map::IDENTITY_V6 => &mut self.addresses,
            map::CIDR_V4 | map::CIDR_V6 => &mut self.cidrs,
            map::ALLOW => &mut self.allow,
            map::PORT_SETS => &mut self.port_sets,
            map::FLOWS_V4_RING | map::FLOWS_V6_RING => return self.flows_per_pod = entries / self.slots.max(1),
            map::UNANSWERED_V4_RING | map::UNANSWERED_V6_RING => {
                return self.unanswered_per_pod = entries / self.slots.max(1);
            }
            map::BACKENDS_RING => return self.backends_per_pod = entries / self.slots.max(1),
            map::ADDRESS_ROLES_V4 | map::ADDRESS_ROLES_V6 => &mut self.address_roles,
            map::EVENTS => &mut self.event_ring_bytes,
            map::COUNTERS => {
                self.slots = self.slots.min(entries / CounterIndex::PER_SLOT);
                return;
            }
            map::FRAGMENTS => {
                self.slots = self.slots.min(entries / FragmentCell::PER_SLOT);
                return;
            }
            // Sizes that the object fixes.
            _ => return,
        };
        *field = entries;
    }
}
