//! Which neighbors packets go to: the flows that count in the table of next hops, by the neighbors they are for.
//!
//! A guest does not see that its host sends to a neighbor; it keeps fresh what it is told of. One that nothing was sent
//! to for a while is left to the guest's kernel, as it would be without a host.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use xenflow_flow_app::{FlowKey, RouterId};
use xenflow_proto::message::MAX_IN_USE;
use xenflow_proto::table::NeighborKey;

/// A neighbor is in use for so many seconds after a packet: a kernel's is reachable for 15 to 45 (`base_reachable_time`).
pub(super) const IN_USE_S: u32 = 60;

/// Flows that have counted packets lately.
#[derive(Debug, Default)]
pub(super) struct Busy(BTreeMap<FlowKey, Last>);

/// When it was last seen to have counted any.
#[derive(Debug, Clone, Copy)]
struct Last {
    packets: u64,
    /// Of the flow, in seconds: it says the time, as it grows with it.
    age_s: u32,
}

impl Busy {
    /// A flow has counted so many packets since the poll before, and is so old. What `before` knows of it is taken.
    pub(super) fn count(&mut self, before: &mut Self, flow: FlowKey, packets: u64, age_s: u32) {
        let last = match packets {
            0 => before.0.remove(&flow).filter(|last| {
                // One that is younger is another one.
                age_s.checked_sub(last.age_s).is_some_and(|quiet_s| quiet_s < IN_USE_S)
            }),
            _ => Some(Last { packets, age_s }),
        };
        if let Some(last) = last {
            self.0.insert(flow, last);
        }
    }

    pub(super) fn neighbors(
        &self,
        neighbor_of: impl Fn(&FlowKey) -> Option<(RouterId, NeighborKey)>,
    ) -> BTreeMap<RouterId, Vec<NeighborKey>> {
        let mut packets: BTreeMap<RouterId, BTreeMap<NeighborKey, u64>> = BTreeMap::new();
        for (flow, last) in &self.0 {
            // An IPv6 neighbor has a flow for each family.
            if let Some((router, neighbor)) = neighbor_of(flow) {
                let sum = packets.entry(router).or_default().entry(neighbor).or_default();
                *sum = sum.saturating_add(last.packets);
            }
        }
        packets.into_iter().map(|(router, neighbors)| (router, busiest(neighbors))).collect()
    }
}

/// Sorted by key, so that the same neighbors make the same list.
fn busiest(neighbors: BTreeMap<NeighborKey, u64>) -> Vec<NeighborKey> {
    let mut ranked: Vec<(Reverse<u64>, NeighborKey)> =
        neighbors.into_iter().map(|(neighbor, packets)| (Reverse(packets), neighbor)).collect();
    if ranked.len() > MAX_IN_USE {
        ranked.sort_unstable();
        ranked.truncate(MAX_IN_USE);
    }
    let mut neighbors: Vec<NeighborKey> = ranked.into_iter().map(|(_, neighbor)| neighbor).collect();
    neighbors.sort_unstable();
    neighbors
}

#[cfg(test)]
mod tests {
    use openflow::Match;
    use xenflow_flow_app::pipeline::NEXT_HOP;

    use super::*;

    /// Numbered: its neighbor is the number's last byte, its router the one before.
    fn flow(number: u32) -> FlowKey {
        FlowKey { table: NEXT_HOP, priority: 200, matching: Match::builder().reg(7, number).build() }
    }

    fn number(flow: &FlowKey) -> u32 {
        flow.matching.field(openflow::Field::Xreg(3)).unwrap().value as u32
    }

    fn key(neighbor: u32) -> NeighborKey {
        NeighborKey { ifindex: 1, addr: std::net::Ipv4Addr::from_bits(neighbor).into() }
    }

    fn in_use(busy: &Busy) -> BTreeMap<RouterId, Vec<NeighborKey>> {
        busy.neighbors(|flow| Some((RouterId((number(flow) >> 16) as u16), key(number(flow) & 0xffff))))
    }

    /// One poll after another: flow, packets since the one before, age.
    fn poll(before: &mut Busy, flows: &[(u32, u64, u32)]) {
        let mut busy = Busy::default();
        for (number, packets, age_s) in flows {
            busy.count(before, flow(*number), *packets, *age_s);
        }
        *before = busy;
    }

    #[test]
    fn a_neighbor_is_in_use_until_a_while_after_its_last_packet() {
        let mut busy = Busy::default();
        let (a, b) = (1 << 16 | 5, 1 << 16 | 6);
        poll(&mut busy, &[(a, 0, 3), (b, 0, 3)]);
        assert_eq!(in_use(&busy), [].into(), "nothing went there");
        poll(&mut busy, &[(a, 1, 8), (b, 0, 8)]);
        assert_eq!(in_use(&busy), [(RouterId(1), vec![key(5)])].into());
        for age_s in [13, 40, 8 + IN_USE_S - 1] {
            poll(&mut busy, &[(a, 0, age_s), (b, 7, age_s)]);
            assert_eq!(in_use(&busy), [(RouterId(1), vec![key(5), key(6)])].into(), "{age_s}");
        }
        poll(&mut busy, &[(a, 0, 8 + IN_USE_S), (b, 0, 8 + IN_USE_S)]);
        assert_eq!(in_use(&busy), [(RouterId(1), vec![key(6)])].into());
        poll(&mut busy, &[(b, 0, 1)]);
        assert_eq!(in_use(&busy), [].into(), "a younger flow is another one");
        poll(&mut busy, &[(b, 1, 2)]);
        poll(&mut busy, &[]);
        poll(&mut busy, &[(b, 0, 3)]);
        assert_eq!(in_use(&busy), [].into(), "it was gone meanwhile");
    }

    #[test]
    fn of_too_many_the_busiest_are_told_and_each_router_has_its_own() {
        let mut busy = Busy::default();
        let many = MAX_IN_USE as u32 + 10;
        // The later, the more; but the last ten as much as the first.
        let packets = |n: u32| if n > many - 10 { 1 } else { u64::from(n) };
        let flows: Vec<_> =
            (1..=many).map(|n| (1 << 16 | n, packets(n), 1)).chain([(2 << 16 | 3, 1, 1)]).collect();
        poll(&mut busy, &flows);
        let in_use = in_use(&busy);
        assert_eq!(in_use[&RouterId(2)], [key(3)]);
        let told = &in_use[&RouterId(1)];
        assert_eq!(told.len(), MAX_IN_USE);
        assert!(told.is_sorted());
        // Of the eleven with a packet each, the ten with the greatest keys are left out.
        let expected: Vec<NeighborKey> = (1..=many - 10).map(key).collect();
        assert_eq!(*told, expected);
    }

    #[test]
    fn the_flows_of_a_neighbor_count_together() {
        let mut busy = Busy::default();
        poll(&mut busy, &[(1, 600, 1), (2, 600, 1), (3, 1000, 1)]);
        let neighbor_of = |flow: &FlowKey| match number(flow) {
            1 | 2 => Some((RouterId(1), key(1))),
            _ => None,
        };
        assert_eq!(busy.neighbors(neighbor_of), [(RouterId(1), vec![key(1)])].into());
    }
}
