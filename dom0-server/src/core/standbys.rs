//! Routers with a standby, as this node finds them: those whose tables it tells another, and those whose tables it keeps.

use std::collections::{BTreeMap, BTreeSet};

use xenflow_flow_app::RouterId;
use xenflow_proto::Name;
use xenflow_proto::message::RefusalReason;

use super::{Core, Effect, SessionId};
use crate::db::location::Place;
use crate::locations::Whereabouts;
use crate::migration::sequencer::Owner;
use crate::migration::standby;

/// What this node is to a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standby<'a> {
    /// It has the router, and that node is the standby.
    At(&'a Name),
    /// It is the standby, and that node has the router.
    Of(&'a Name),
}

impl<'a> Standby<'a> {
    /// By what the rows say of a router with these addresses.
    pub(super) fn find(
        router: &Name,
        (node, owner): (&Name, Owner),
        places: &BTreeSet<Place>,
        whereabouts: &'a Whereabouts,
    ) -> Option<Self> {
        let named = whereabouts.standbys.get(router)?;
        match owner {
            Owner::Nobody => None,
            Owner::Here => standby::of(named, node).map(Self::At),
            Owner::Other => {
                // Some may have a row of an earlier time.
                let mut count: BTreeMap<&Name, usize> = BTreeMap::new();
                for host in places.iter().filter_map(|place| whereabouts.hosts.get(place)) {
                    *count.entry(host).or_default() += 1;
                }
                let (host, _) = count.into_iter().max_by_key(|(_, times)| *times)?;
                (standby::of(named, host) == Some(node)).then_some(Self::Of(host))
            }
        }
    }
}

impl Core {
    /// A node is connected that says it has a router whose standby this one is.
    pub(super) fn open_standby(&mut self, id: SessionId, router: &Name, node: &Name) {
        let known = self.desired.as_ref().and_then(|desired| desired.routers.get(router));
        let of = known.map(|router| RouterId(router.id.get()));
        match of.filter(|of| self.moves.standbys.get(of) == Some(node)) {
            Some(of) => self.open_source(id, router, standby::number(of)),
            None => {
                let detail = format!("this node is no standby of router {router} while node {node} has it");
                self.effects.push(Effect::Refuse(id, RefusalReason::UnknownRouter, detail));
            }
        }
    }
}
