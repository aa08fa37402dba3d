//! Pods that were here a moment ago: their last packets are told of after they are gone, and are to have their names.
//!
//! Bounded by number and by time; an address that a live pod has is always that pod's.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::cluster::model::{Pod, PodKey};

/// Most pods that are remembered.
const MOST: usize = 4096;
/// How long a pod is remembered.
const LIFETIME: Duration = Duration::from_secs(300);

/// Pods that are gone, by address and by name.
#[derive(Clone, Debug, Default)]
pub struct Departed {
    order: VecDeque<(SystemTime, Arc<Pod>)>,
    by_address: HashMap<IpAddr, Arc<Pod>>,
    by_name: HashMap<PodKey, Arc<Pod>>,
}

impl Departed {
    /// Remembers a pod that is gone, or has given up its addresses.
    pub fn add(&mut self, pod: &Arc<Pod>, now: SystemTime) {
        self.expire(now);
        if self.order.len() >= MOST {
            self.forget_oldest();
        }
        for address in &pod.addresses {
            self.by_address.insert(*address, pod.clone());
        }
        self.by_name.insert(pod.key.clone(), pod.clone());
        self.order.push_back((now, pod.clone()));
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: SystemTime) {
        while self.order.front().is_some_and(|(gone, _)| now.duration_since(*gone).is_ok_and(|age| age > LIFETIME)) {
            self.forget_oldest();
        }
    }

    /// The pod that had an address last.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.by_address.get(&address)
    }

    /// The pod that had a name last.
    #[must_use]
    pub fn named(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        self.by_name.get(key)
    }

    fn forget_oldest(&mut self) {
        let Some((_, pod)) = self.order.pop_front() else { return };
        // A younger one of the same address or name stays.
        for address in &pod.addresses {
            if self.by_address.get(address).is_some_and(|other| Arc::ptr_eq(other, &pod)) {
                self.by_address.remove(address);
            }
        }
        if self.by_name.get(&pod.key).is_some_and(|other| Arc::ptr_eq(other, &pod)) {
            self.by_name.remove(&pod.key);
        }
    }
}
