//! What becomes of one packet, as the tables of the host's routers and its topology have it: the flows that the switch
//! should hold are looked up one by one as the packet comes to them, and no table is compiled for it.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use openflow::{Field, Flow, Group, Match};
use xenflow_proto::{MacAddr, VlanId};

use crate::app::App;
use crate::fib::Adjacency;
use crate::flow::FlowKey;
use crate::group;
use crate::pipeline::{
    EGRESS, ETH_IPV4, LEARNED, LOCAL, NEXT_HOP, NEXT_HOP_ID, NEXT_HOP_IPV6, OUT_PORT, ROUTE, ROUTER,
    ROUTER_ID, SOURCE, TABLE_ID,
};
use crate::router::Router;
use crate::sim::steps::{self, Pick, Step};
use crate::sim::{Fault, Outcome, Packet, State, Tables};
use crate::topology::{PortNo, RouterId, VifId};

/// What only the switch knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Flows that it has learned, as far as the packet meets them.
    pub learned: Vec<Flow>,
    /// Buckets that it picks, in the order in which the packet comes to their groups.
    pub picks: Vec<Pick>,
}

/// What becomes of a packet.
#[derive(Debug)]
pub struct Explained {
    /// All lookups, in the order in which the switch makes them.
    pub steps: Vec<Step>,
    /// What comes out, or why nothing does.
    pub outcome: Result<Outcome, Fault>,
}

/// What a router knows of a segment that it has a vif on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnSegment {
    /// The vif.
    pub vif: VifId,
    /// Its address.
    pub mac: MacAddr,
    /// The guest's addresses there, each with its subnet.
    pub addresses: Vec<ipnet::IpNet>,
}

impl App {
    /// What becomes of a packet that comes in by a port, if the switch holds what it should.
    #[must_use]
    pub fn explain(&self, in_port: PortNo, packet: &Packet, hints: &Hints) -> Explained {
        let desired = Desired { app: self, hints, egress: OnceCell::new() };
        let (steps, outcome) = steps::explain(&desired, in_port, packet, &hints.picks);
        Explained { steps, outcome }
    }

    /// Routers with a vif on a segment, plugged in here or not.
    pub fn routers_on(&self, segment: VlanId) -> impl Iterator<Item = OnSegment> {
        let vifs = self.topology().vifs.iter().filter(move |(_, vif)| vif.vlan() == Some(segment));
        vifs.map(|(id, vif)| {
            let addresses = self.router_of(id.router).map(|router| router.own_on(*id)).unwrap_or_default();
            OnSegment { vif: *id, mac: vif.mac, addresses }
        })
    }

    /// The link-layer address that a router's guest knows of a neighbor on a vif.
    #[must_use]
    pub fn neighbor_on(&self, vif: VifId, addr: IpAddr) -> Option<MacAddr> {
        self.router_of(vif.router)?.neighbor_on(vif, addr)
    }

    /// An address that a router's guest knows of a neighbor on a vif, by its link-layer address.
    #[must_use]
    pub fn address_on(&self, vif: VifId, mac: MacAddr, is_ipv4: bool) -> Option<IpAddr> {
        self.router_of(vif.router)?.address_on(vif, mac, is_ipv4)
    }

    /// The next hops of a group with their weights.
    #[must_use]
    pub fn hops_of_group(&self, id: u32) -> Option<&[(Adjacency, u32)]> {
        Some(&self.router_of(group::router_of(id)?)?.hops_of_group(id)?.hops)
    }
}

/// The next hop that registers name ([`crate::pipeline::next_hop`]).
#[must_use]
pub fn next_hop_in(regs: &[u32; 16]) -> Adjacency {
    let reg = |number: u8| regs.get(usize::from(number)).copied().unwrap_or(0);
    let (id, low) = (reg(2 * NEXT_HOP_ID), reg(2 * NEXT_HOP_ID + 1));
    let ipv6 = (0..4).fold(0, |addr: u128, n| addr << 32 | u128::from(reg(4 * NEXT_HOP_IPV6 + n)));
    let vif = VifId { router: RouterId((id >> 16) as u16), number: (id & 0xffff) as u16 };
    let addr: IpAddr = match ipv6 {
        0 => Ipv4Addr::from_bits(low).into(),
        _ => Ipv6Addr::from_bits(ipv6).into(),
    };
    Adjacency { vif, addr }
}

struct Desired<'a> {
    app: &'a App,
    hints: &'a Hints,
    /// A flood looks here for each port of its segment.
    egress: OnceCell<BTreeMap<Option<PortNo>, Vec<&'a Flow>>>,
}

/// Flows by the only port that they are for.
fn by_port<'a>(flows: impl Iterator<Item = &'a Flow>) -> BTreeMap<Option<PortNo>, Vec<&'a Flow>> {
    let mut by_port: BTreeMap<_, Vec<&Flow>> = BTreeMap::new();
    for flow in flows {
        // A match keeps two registers as one field: the even one is its upper half.
        let pair = flow.matching.field(Field::Xreg(OUT_PORT / 2)).filter(|pair| pair.mask >> 32 == ALL_PORT);
        by_port.entry(pair.map(|pair| (pair.value >> 32) as PortNo)).or_default().push(flow);
    }
    by_port
}

/// All bits of a port's number.
const ALL_PORT: u128 = PortNo::MAX as u128;

impl<'a> Desired<'a> {
    fn of_topology(&self, table: u8) -> impl DoubleEndedIterator<Item = &'a Flow> + use<'a> {
        let key = |table| FlowKey { table, priority: 0, matching: Match::any() };
        self.app.flows.range(key(table)..key(table + 1)).map(|(_, flow)| flow)
    }

    fn router(&self, state: &State) -> Option<&Router> {
        let id = u16::try_from(state.get(Field::Reg(ROUTER_ID))).ok()?;
        self.app.router_of(RouterId(id))
    }

    /// The flow of the router that has the packet, or is to get it.
    fn of_router(&self, table: u8, state: &State) -> Option<Cow<'_, Flow>> {
        let flow = match table {
            ROUTER => {
                let mut gates = self.app.all_routers().flat_map(Router::gates);
                return gates.find(|flow| is_hit(flow, state)).map(Cow::Borrowed);
            }
            LOCAL => self.router(state)?.met_local(false, address(state, false)?),
            SOURCE => self.router(state)?.met_local(true, address(state, true)?),
            ROUTE => {
                let table = u32::try_from(state.get(Field::Reg(TABLE_ID))).ok()?;
                self.router(state)?.met_route(table, address(state, false)?)
            }
            NEXT_HOP => {
                let mut regs = [0; 16];
                for (number, reg) in (0..).zip(&mut regs) {
                    *reg = u32::try_from(state.get(Field::Reg(number))).ok()?;
                }
                let hop = next_hop_in(&regs);
                let eth_type = u16::try_from(state.get(Field::EthType)).ok()?;
                self.app.router_of(hop.vif.router)?.met_next_hop(hop, eth_type)
            }
            _ => None,
        };
        flow.filter(|flow| is_hit(flow, state)).map(Cow::Owned)
    }
}

impl Tables for Desired<'_> {
    fn find(&self, table: u8, state: &State) -> Option<Cow<'_, Flow>> {
        if table == LEARNED {
            return self.hints.learned.iter().find(|flow| is_hit(flow, state)).map(Cow::Borrowed);
        }
        let of_topology = match table {
            EGRESS => {
                let port = u32::try_from(state.get(Field::Reg(OUT_PORT))).ok();
                let by_port = self.egress.get_or_init(|| by_port(self.of_topology(EGRESS)));
                let flows = [None, port].into_iter().filter_map(|port| by_port.get(&port)).flatten().copied();
                flows.filter(|flow| is_hit(flow, state)).max_by_key(|flow| flow.priority)
            }
            _ => self.of_topology(table).rev().find(|flow| is_hit(flow, state)),
        };
        let of_topology = of_topology.map(Cow::Borrowed);
        let found = [self.of_router(table, state), of_topology].into_iter().flatten();
        found.max_by_key(|flow| flow.priority)
    }

    fn group(&self, id: u32) -> Option<Cow<'_, Group>> {
        self.app.router_of(group::router_of(id)?)?.met_group(id).map(Cow::Owned)
    }

    fn is_exhausted(&self, _: u32) -> bool {
        false
    }
}

fn is_hit(flow: &Flow, state: &State) -> bool {
    flow.matching.fields().all(|field| state.hits(&field))
}

fn address(state: &State, is_source: bool) -> Option<IpAddr> {
    let is_ipv4 = match u16::try_from(state.get(Field::EthType)).ok()? {
        ETH_IPV4 => true,
        crate::pipeline::ETH_IPV6 => false,
        _ => return None,
    };
    Some(match (is_ipv4, is_source) {
        (true, true) => Ipv4Addr::from_bits(u32::try_from(state.get(Field::Ipv4Src)).ok()?).into(),
        (true, false) => Ipv4Addr::from_bits(u32::try_from(state.get(Field::Ipv4Dst)).ok()?).into(),
        (false, true) => Ipv6Addr::from_bits(state.get(Field::Ipv6Src)).into(),
        (false, false) => Ipv6Addr::from_bits(state.get(Field::Ipv6Dst)).into(),
    })
}
