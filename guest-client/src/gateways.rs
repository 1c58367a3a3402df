//! The gateways that routes and next-hop objects name, counted. Pure.

use std::collections::BTreeMap;

use xenflow_proto::Object;
use xenflow_proto::table::{Hop, NeighborKey, NextHopKind, RouteTarget};

/// See the module.
#[derive(Debug, Default)]
pub struct Gateways(BTreeMap<NeighborKey, usize>);

impl Gateways {
    /// Those of an object that comes.
    pub fn add(&mut self, object: &Object) {
        for key in named(object) {
            *self.0.entry(key).or_default() += 1;
        }
    }

    /// Those of an object that was added, and goes.
    pub fn remove(&mut self, object: &Object) {
        for key in named(object) {
            if let Some(count) = self.0.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// Each once, in order.
    pub fn iter(&self) -> impl Iterator<Item = NeighborKey> {
        self.0.keys().copied()
    }
}

fn named(object: &Object) -> impl Iterator<Item = NeighborKey> {
    let hops: &[Hop] = match object {
        Object::Route(route) => match &route.target {
            RouteTarget::Hops(hops) => hops,
            // The next-hop object counts.
            RouteTarget::NextHop(_) => &[],
        },
        Object::NextHop(next_hop) => match &next_hop.kind {
            NextHopKind::Single(hop) => std::slice::from_ref(hop),
            NextHopKind::Blackhole | NextHopKind::Group(_) | NextHopKind::Unsupported => &[],
        },
        Object::Link(_)
        | Object::Address(_)
        | Object::Neighbor(_)
        | Object::Settings(_)
        | Object::Obstacle(_) => &[],
    };
    hops.iter().filter_map(|hop| Some(NeighborKey { ifindex: hop.oif?, addr: hop.gateway? }))
}
