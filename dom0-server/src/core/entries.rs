//! What has entered routers while they move, by segment, as their host's switch counts it: for the reports of migrations.
//!
//! A flow that is removed and comes back counts from nothing: what it has counted before stays.

use std::collections::BTreeMap;

use xenflow_flow_app::{RouterId, pipeline};
use xenflow_proto::{Name, VlanId};

use crate::counters::Poll;
use crate::migration::sequencer::Role;

/// Of one router, since its migration was first counted.
#[derive(Debug)]
struct Entries {
    number: u64,
    /// As the switch had counted at last, and how many have come since the beginning.
    by_segment: BTreeMap<VlanId, (u64, u64)>,
}

/// Of all routers with an open migration.
#[derive(Debug, Default)]
pub(super) struct Counted(BTreeMap<RouterId, Entries>);

impl Counted {
    /// The switch has counted; these migrations are open.
    pub(super) fn take(&mut self, open: &BTreeMap<RouterId, u64>, poll: &Poll) {
        self.0.retain(|id, entries| open.get(id) == Some(&entries.number));
        // A segment has a flow for each family.
        let mut sums: BTreeMap<RouterId, BTreeMap<VlanId, u64>> = BTreeMap::new();
        for described in &poll.flows {
            if let Some((id, vlan)) = pipeline::counted_entry(&described.flow)
                && open.contains_key(&id)
            {
                *sums.entry(id).or_default().entry(vlan).or_default() +=
                    described.counters.packets.unwrap_or_default();
            }
        }
        for (id, number) in open {
            let is_new = !self.0.contains_key(id);
            let entries =
                self.0.entry(*id).or_insert_with(|| Entries { number: *number, by_segment: BTreeMap::new() });
            for (vlan, now) in sums.remove(id).unwrap_or_default() {
                let (last, came) =
                    entries.by_segment.entry(vlan).or_insert((if is_new { now } else { 0 }, 0));
                *came += now.checked_sub(*last).unwrap_or(now);
                *last = now;
            }
        }
    }

    /// For the report: `source/packets/lan1`.
    pub(super) fn tally(
        &self,
        id: RouterId,
        role: Role,
        segments: &BTreeMap<VlanId, &Name>,
    ) -> BTreeMap<String, u64> {
        let role = match role {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        let of = |(vlan, (_, came)): (&VlanId, &(u64, u64))| {
            Some((format!("{role}/packets/{}", segments.get(vlan)?), *came))
        };
        self.0.get(&id).map(|entries| entries.by_segment.iter().filter_map(of).collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use openflow::{Flow, FlowCounters, FlowDesc, Match};
    use xenflow_flow_app::pipeline::{ETH_IPV4, ETH_IPV6, ROUTER, cookie};

    use super::*;

    const ID: RouterId = RouterId(3);

    fn poll(flows: &[(RouterId, u16, u16, u64)]) -> Poll {
        let described = |&(id, vlan, eth_type, packets): &(RouterId, u16, u16, u64)| {
            let matching = Match::builder().vlan(vlan).eth_dst([2; 6]).eth_type(eth_type).build();
            let flow = Flow::new(ROUTER, 200, cookie::router(id), matching);
            FlowDesc { flow, counters: FlowCounters { packets: Some(packets), ..FlowCounters::default() } }
        };
        Poll { flows: flows.iter().map(described).collect(), ..Poll::default() }
    }

    #[test]
    fn what_came_since_the_move_began_is_counted_by_segment() {
        let (lan1, lan2): (Name, Name) = ("lan1".parse().unwrap(), "lan2".parse().unwrap());
        let vlan = |vid: i64| VlanId::try_from(vid).unwrap();
        let segments = BTreeMap::from([(vlan(11), &lan1), (vlan(12), &lan2)]);
        let open = BTreeMap::from([(ID, 1)]);
        let mut counted = Counted::default();
        counted.take(
            &open,
            &poll(&[(ID, 11, ETH_IPV4, 100), (ID, 11, ETH_IPV6, 10), (RouterId(4), 11, ETH_IPV4, 7)]),
        );
        let tally = |counted: &Counted| counted.tally(ID, Role::Source, &segments);
        let expected = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(segment, count)| (format!("source/packets/{segment}"), *count)).collect()
        };
        assert_eq!(tally(&counted), expected(&[("lan1", 0)]), "what came before does not count");
        // Another segment's flow comes later: all of it came meanwhile.
        counted.take(&open, &poll(&[(ID, 11, ETH_IPV4, 130), (ID, 11, ETH_IPV6, 15), (ID, 12, ETH_IPV4, 4)]));
        assert_eq!(tally(&counted), expected(&[("lan1", 35), ("lan2", 4)]));
        // Flows are gone, and come anew.
        counted.take(&open, &Poll::default());
        counted.take(&open, &poll(&[(ID, 11, ETH_IPV4, 5)]));
        assert_eq!(tally(&counted), expected(&[("lan1", 40), ("lan2", 4)]));
        // Another migration begins anew.
        counted.take(&BTreeMap::from([(ID, 2)]), &poll(&[(ID, 11, ETH_IPV4, 9)]));
        assert_eq!(tally(&counted), expected(&[("lan1", 0)]));
        counted.take(&BTreeMap::new(), &Poll::default());
        assert_eq!(tally(&counted), BTreeMap::new());
    }
}
