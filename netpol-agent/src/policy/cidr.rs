//! ipBlocks as regions: every block and every exception is a prefix, and all addresses of a prefix that are in no smaller
//! one lie in the same blocks.
//!
//! A region's signature names *every* block that holds it, so the longest match of the trie hides nothing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::criteria::CriterionId;
use crate::cluster::model::IpBlock;
use crate::datapath::desired::longest_match;

/// The blocks in use and the regions that they make.
#[derive(Default)]
pub(super) struct Regions {
    /// Blocks by their CIDR.
    blocks: BTreeMap<IpNet, BTreeMap<CriterionId, IpBlock>>,
    /// How many blocks need each prefix.
    prefixes: BTreeMap<IpNet, usize>,
    v4: usize,
    v6: usize,
    /// Blocks that did not fit; they hold no address.
    refused: BTreeMap<CriterionId, IpBlock>,
}

impl Regions {
    /// Takes a block into use, if its regions fit into a trie of `capacity` entries, or refuses it as a whole: without
    /// one of its regions a smaller block would show the rules of a larger one.
    pub(super) fn add(&mut self, id: CriterionId, block: &IpBlock, capacity: usize) -> bool {
        let prefixes = prefixes_of(block);
        let fresh = prefixes.iter().filter(|prefix| !self.prefixes.contains_key(prefix)).count();
        let count = self.count_mut(block.cidr);
        if *count + fresh > capacity {
            self.refused.insert(id, block.clone());
            return false;
        }
        *count += fresh;
        for prefix in prefixes {
            *self.prefixes.entry(prefix).or_default() += 1;
        }
        self.refused.remove(&id);
        self.blocks.entry(block.cidr).or_default().insert(id, block.clone());
        true
    }

    /// Takes a block out of use.
    pub(super) fn remove(&mut self, id: CriterionId, block: &IpBlock) {
        if self.refused.remove(&id).is_some() {
            return;
        }
        if let Some(same) = self.blocks.get_mut(&block.cidr) {
            same.remove(&id);
            if same.is_empty() {
                self.blocks.remove(&block.cidr);
            }
        }
        for prefix in prefixes_of(block) {
            let Some(uses) = self.prefixes.get_mut(&prefix) else { continue };
            *uses -= 1;
            if *uses == 0 {
                self.prefixes.remove(&prefix);
                *self.count_mut(prefix) -= 1;
            }
        }
    }

    /// Blocks that did not fit.
    pub(super) fn refused(&self) -> impl Iterator<Item = (CriterionId, &IpBlock)> {
        self.refused.iter().map(|(id, block)| (*id, block))
    }

    pub(super) fn is_region(&self, prefix: IpNet) -> bool {
        self.prefixes.contains_key(&prefix)
    }

    /// The regions within a prefix.
    pub(super) fn within(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        let after = self.prefixes.range(prefix..).map(|(region, _)| *region);
        after.take_while(move |region| prefix.contains(region))
    }

    /// The blocks that hold all of `target`, an address or a region.
    pub(super) fn holding(&self, target: IpNet) -> BTreeSet<CriterionId> {
        let mut holding = BTreeSet::new();
        let mut probe = Some(target);
        while let Some((cidr, blocks)) = probe.and_then(|probe| longest_match(&self.blocks, probe)) {
            let holds = |block: &IpBlock| !block.except.iter().any(|except| except.contains(&target));
            holding.extend(blocks.iter().filter(|(_, block)| holds(block)).map(|(id, _)| *id));
            probe = cidr.supernet();
        }
        holding
    }

    fn count_mut(&mut self, prefix: IpNet) -> &mut usize {
        match prefix {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }
}

fn prefixes_of(block: &IpBlock) -> BTreeSet<IpNet> {
    let except = block.except.iter().filter(|except| block.cidr.contains(*except));
    except.chain([&block.cidr]).map(IpNet::trunc).collect()
}
