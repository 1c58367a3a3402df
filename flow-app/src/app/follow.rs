//! A router's tables for another host, which is to have the same: all that there is, and from then on what changes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use xenflow_proto::Change;

use super::App;
use crate::fib::Binding;
use crate::topology::{RouterId, VifId};

impl App {
    /// The boot of a router's guest that is telling its tables, or has told them.
    #[must_use]
    pub fn boot_of(&self, id: RouterId) -> Option<[u8; 16]> {
        self.routers.get(&id)?.router.rib.boot()
    }

    /// Follows a router's tables from now on: all that there is and then what changes, or only what changes. Beginning anew takes
    /// the place of an earlier one.
    pub fn follow(&mut self, id: RouterId, from_the_beginning: bool) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.rib.follow(from_the_beginning);
        }
    }

    /// Follows a router's tables no more.
    pub fn unfollow(&mut self, id: RouterId) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.rib.unfollow();
        }
    }

    /// About `most` changes that are to be told, in order; empty only if there is nothing.
    pub fn followed(&mut self, id: RouterId, most: usize) -> Vec<Change> {
        self.routers.get_mut(&id).map(|scoped| scoped.router.rib.followed(most)).unwrap_or_default()
    }

    /// Nothing is to be told of a router's tables.
    #[must_use]
    pub fn is_followed_up(&self, id: RouterId) -> bool {
        self.routers.get(&id).is_none_or(|scoped| scoped.router.rib.is_followed_up())
    }

    /// The addresses of a router's guest on each of its vifs, as it has told them.
    #[must_use]
    pub fn addresses_of(&self, id: RouterId) -> BTreeMap<VifId, Vec<IpAddr>> {
        let Some(scoped) = self.routers.get(&id) else { return BTreeMap::new() };
        let rib = &scoped.router.rib;
        let binding = Binding::new(rib, &self.topology, id);
        let addresses = |ifindex| rib.addresses_on(ifindex).map(|prefix| prefix.addr()).collect();
        binding.vifs().map(|(ifindex, vif)| (vif.id, addresses(ifindex))).collect()
    }
}
