//! Random hosts and guests from small numbers, so that they shrink: who is where, with which addresses, and what
//! a guest may say. Everything is drawn from few values, so that it collides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::{
    App, Attachment, FastPath, Policy, PortNo, QueueClass, RouterId, Topology, Vif, VifId,
};
use xenflow_proto::table::{
    self, AddressKey, Hop, HopFlags, Link, Neighbor, NeighborKey, NextHop, NextHopKind, Obstacle,
    ObstacleKey, Route, RouteKey, RouteKind, RouteTarget, Settings, TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{Change, Key, MacAddr, Object, VlanId};

/// Segments that there can be: the first three are of one network, the others of another, with the same addresses.
pub const SEGMENTS: u8 = 6;
pub const ROUTERS: u8 = 6;
pub const VIFS: u8 = 3;
/// Objects that an app keeps of one guest.
pub const LIMIT: usize = 160;
pub const CONTROL_PORT: PortNo = 9;

/// Six numbers that stand for anything.
pub type Dice = [u8; 6];

/// A host in few numbers.
#[derive(Debug, Clone)]
pub struct Plan {
    /// By router: there, and by vif the segment (of its network) and whether it is plugged in.
    pub routers: Vec<(bool, Vec<(u8, bool)>)>,
    /// Segment by access port; the number past the last is no access port.
    pub access: Vec<u8>,
    pub uplinks: [bool; 2],
    pub segments: [bool; SEGMENTS as usize],
    pub control: bool,
    /// What other nodes have: a host of a segment, or a router's vif where that is.
    pub elsewhere: Vec<(u8, u8)>,
    /// By router: fast path policy and limit of prefixes, in small numbers.
    pub policies: Vec<(u8, u8)>,
    /// By network: the number of its queue, if it is odd, and its classes.
    pub queues: [(u8, Vec<[u8; 4]>); 2],
    /// Each prefix has a flow.
    pub is_plain: bool,
}

pub fn plan() -> impl Strategy<Value = Plan> {
    let vifs = vec((0..3u8, prop::bool::weighted(0.85)), VIFS as usize);
    let routers = vec((prop::bool::weighted(0.8), vifs), 2..=ROUTERS as usize);
    let access = vec(0..=SEGMENTS, 6);
    let segments = prop::array::uniform6(prop::bool::weighted(0.9));
    let policies = vec((0..24u8, 0..64u8), ROUTERS as usize);
    let queues = prop::array::uniform2((any::<u8>(), vec(any::<[u8; 4]>(), 0..4)));
    let ports = (access, any::<[bool; 2]>(), any::<bool>());
    (routers, ports, segments, policies, queues, any::<bool>()).prop_map(
        |(routers, (access, uplinks, control), segments, policies, queues, is_plain)| Plan {
            elsewhere: Vec::new(),
            routers,
            access,
            uplinks,
            segments,
            control,
            policies,
            queues,
            is_plain,
        },
    )
}

impl Plan {
    /// An app that knows nothing yet.
    pub fn empty(&self) -> App {
        App::new(LIMIT).with_aggregation(!self.is_plain)
    }

    pub fn topology(&self) -> Topology {
        let is_there = |segment: u8| self.segments.get(usize::from(segment)) == Some(&true);
        let access =
            (10..).zip(&self.access).filter(|(_, s)| is_there(**s)).map(|(port, s)| (port, vlan(*s)));
        let uplinks = [1, 2].into_iter().zip(self.uplinks).filter_map(|(port, there)| there.then_some(port));
        let mut topology = Topology {
            segments: (0..SEGMENTS).filter(|s| is_there(*s)).map(vlan).collect(),
            uplinks: uplinks.collect(),
            access: access.collect(),
            access_macs: BTreeMap::new(),
            elsewhere: self.elsewhere.iter().map(|it| self.place(*it)).collect(),
            policies: (0..ROUTERS).map(|r| (router_id(r), self.policy(r))).collect(),
            queues: BTreeMap::new(),
            classes: BTreeMap::new(),
            metered: BTreeSet::new(),
            maxima: BTreeMap::new(),
            max_mtu: 0,
            vifs: BTreeMap::new(),
            control_port: self.control.then_some(CONTROL_PORT),
            stances: BTreeMap::new(),
            rehearsed: BTreeSet::new(),
            node_mac: None,
        };
        for (network, (dice, classes)) in (0..).zip(&self.queues).filter(|(_, (dice, _))| dice % 2 == 1) {
            let own = u32::from(dice % 8) + 8 * network;
            let of = |vlan: &&VlanId| u32::from(network_of(**vlan)) == network;
            topology.queues.extend(topology.segments.iter().filter(of).map(|vlan| (*vlan, own)));
            // The uplink of that number cannot shape.
            topology.metered.extend(topology.uplinks.contains(&(network + 1)).then_some(network + 1));
            let limited = classes.iter().map(|[priority, ..]| priority % 4 == 1);
            for (queue, _) in (100 + 10 * network..).zip(limited).filter(|(_, is_limited)| *is_limited) {
                topology.maxima.insert(queue, 1000);
            }
            topology.maxima.extend((dice % 16 < 8).then_some((own, 1000)));
            let classes = (100 + 10 * network..).zip(classes).map(|(queue, dice)| class(queue, *dice));
            topology.classes.insert(own, classes.collect());
        }
        for (r, (there, vifs)) in (0..).zip(&self.routers).filter(|(_, (there, _))| *there) {
            let _ = there;
            for (n, (segment, plugged)) in (0..).zip(vifs) {
                let segment = network(r) * 3 + segment;
                if is_there(segment) {
                    let port = plugged.then_some(port(r, n));
                    let attachment = Attachment::Segment(vlan(segment));
                    topology.vifs.insert(vif_id(r, n), Vif { mac: vif_mac(r, n), attachment, port });
                }
            }
            let control = Vif {
                mac: MacAddr([0x0a, 0, 0, 0, 1, r]),
                attachment: Attachment::Control,
                port: Some(200 + PortNo::from(r)),
            };
            topology.vifs.insert(vif_id(r, VIFS), control);
        }
        topology
    }

    fn place(&self, (a, b): (u8, u8)) -> (VlanId, MacAddr) {
        if b < 128 {
            return (vlan(a % SEGMENTS), host_mac(a % SEGMENTS, b % 4));
        }
        let (r, n) = (a % self.routers.len() as u8, b % VIFS);
        let (segment, _) = self.routers[usize::from(r)].1[usize::from(n)];
        (vlan(network(r) * 3 + segment), vif_mac(r, n))
    }

    pub fn policy(&self, router: u8) -> Policy {
        let (fast_path, limit) = self.policies[usize::from(router)];
        let fast_path = match fast_path {
            0 => FastPath::Never,
            1 => FastPath::Always,
            _ => FastPath::Auto,
        };
        let max_routes = if limit < 8 { usize::from(limit) } else { 1000 };
        Policy { fast_path, max_routes, ..Policy::default() }
    }

    /// Changes one thing.
    pub fn mutate(&mut self, [what, a, b, c, ..]: Dice) {
        let count = self.routers.len();
        let router = &mut self.routers[usize::from(a) % count];
        let vif = &mut router.1[usize::from(b % VIFS)];
        match what % 11 {
            0 => router.0 = !router.0,
            1 | 2 => vif.1 = !vif.1,
            3 => vif.0 = c % 3,
            4 => self.access[usize::from(a % 6)] = b % (SEGMENTS + 1),
            5 => self.uplinks[usize::from(a % 2)] ^= true,
            6 => self.segments[usize::from(a % SEGMENTS)] ^= true,
            7 => self.policies[usize::from(a % ROUTERS)] = (b % 24, c % 64),
            8 => self.policies[usize::from(a % ROUTERS)].1 = c % 64,
            9 => self.queues[usize::from(a % 2)] = (b, vec![[c, b, c / 4, b / 4]; usize::from(c % 2)]),
            _ => self.control ^= true,
        }
    }
}

/// A class of a network's traffic, with its priority.
fn class(queue: u32, [priority, dscp, protocol, ports]: [u8; 4]) -> (u16, QueueClass) {
    let (protocol, has_ports) =
        [(None, false), (Some(17), true), (Some(6), true), (Some(1), false)][usize::from(protocol % 4)];
    let dscp: &[u8] = [&[][..], &[46], &[0, 46], &[10]][usize::from(dscp % 4)];
    let ports: &[u16] = [&[][..], &[53], &[53, 80]][usize::from(ports % 3)];
    let ports = if has_ports { ports } else { &[] };
    let class = QueueClass {
        dscp: dscp.iter().copied().collect(),
        protocol,
        ports: ports.iter().copied().collect(),
        queue,
    };
    (u16::from(priority) + 1, class)
}

pub fn network(router: u8) -> u8 {
    router % 2
}

pub fn vlan(segment: u8) -> VlanId {
    VlanId::try_from(100 + i64::from(segment)).unwrap()
}

pub fn network_of(vlan: VlanId) -> u16 {
    (vlan.get() - 100) / 3
}

pub fn router_id(router: u8) -> RouterId {
    RouterId(u16::from(router) + 1)
}

pub fn vif_id(router: u8, vif: u8) -> VifId {
    VifId { router: router_id(router), number: u16::from(vif) + 1 }
}

pub fn vif_mac(router: u8, vif: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, router, vif])
}

pub fn host_mac(segment: u8, host: u8) -> MacAddr {
    MacAddr([6, 0, 0, 0, segment, host])
}

fn port(router: u8, vif: u8) -> PortNo {
    100 + 10 * PortNo::from(router) + PortNo::from(vif)
}

/// What a router's guest says, as one history: last word counts.
pub type Tables = BTreeMap<Key, Object>;

/// A random word of a guest: mostly routes.
pub fn object(plan: &Plan, router: u8, dice: Dice) -> Object {
    let [what, a, b, c, d, e] = dice;
    let family = if what / 16 % 2 == 0 { V4 } else { V6 };
    match what % 16 {
        0 => Object::Link(link(router, a, b, c)),
        1 if a % 8 < 2 => Object::Settings(Settings { ipv4_hash_policy: b % 4, ipv6_hash_policy: c % 4 }),
        1 if a % 8 == 2 => Object::Obstacle(obstacle(b, c)),
        1 if a % 8 < 5 => Object::Link(vrf(b, c)),
        1 => Object::Address(AddressKey {
            ifindex: ifindex(a),
            address: IpNet::new(address(family, b, c), family.len(24)).unwrap(),
        }),
        2 | 3 => {
            let kind = next_hop_kind(family, b, [c, d, e]);
            Object::NextHop(NextHop { id: u32::from(a % 4) + 1, kind })
        }
        4..8 => Object::Neighbor(match (family, c / 16 % 8) {
            (V6, 0..3) => neighbor(plan, router, a, b, c, |_, host| link_local(host)),
            _ => neighbor(plan, router, a, b, c, |segment, host| address(family, segment, host)),
        }),
        8 => {
            let table = if d % 8 == 0 { VRF_TABLE } else { TABLE_LOCAL };
            let key = key(table, address(family, a, b), family.len(if c % 4 == 0 { 24 } else { 32 }), 0);
            let kind = match (family, c % 2) {
                (_, 0) => RouteKind::Local,
                (V4, _) => RouteKind::Broadcast,
                (V6, _) => RouteKind::Anycast,
            };
            Object::Route(Route { key, kind, ..route(family, 0, [d, e, 0]) })
        }
        _ => Object::Route(Route { key: main_key(family, a, b, c), ..route(family, c ^ d, [d, e, a]) }),
    }
}

fn link(router: u8, vif: u8, flags: u8, more: u8) -> Link {
    let stacked = more.is_multiple_of(8);
    Link {
        ifindex: if stacked { 50 } else { ifindex(vif) },
        name: format!("eth{vif}"),
        // Sometimes the MAC of another one.
        mac: (!flags.is_multiple_of(16)).then(|| vif_mac(router, if more % 8 == 1 { 0 } else { vif % VIFS })),
        mtu: if more % 8 == 2 { 1400 } else { 1500 },
        up: flags % 8 != 1,
        running: flags % 8 != 2,
        kind: if stacked { "vlan".to_owned() } else { String::new() },
        master: (flags % 8 == 3).then_some(VRF),
        vrf_table: None,
        ipv6_mtu: (more % 8 == 3).then_some(1280),
    }
}

/// The VRF's device.
const VRF: u32 = 99;
/// Its routing table.
pub const VRF_TABLE: u32 = 10;

fn vrf(up: u8, kind: u8) -> Link {
    let kind = if kind.is_multiple_of(8) { "bridge" } else { "vrf" };
    Link {
        ifindex: VRF,
        name: "red".to_owned(),
        mac: None,
        mtu: 65575,
        up: !up.is_multiple_of(8),
        running: true,
        kind: kind.to_owned(),
        master: None,
        vrf_table: Some(VRF_TABLE),
        ipv6_mtu: None,
    }
}

fn obstacle(on: u8, kind: u8) -> Obstacle {
    let ifindex = match on % 8 {
        0 => None,
        1 => Some(VRF),
        _ => Some(ifindex(on / 8)),
    };
    let family = [None, Some(table::Family::V4), Some(table::Family::V6)][usize::from(on % 3)];
    Obstacle { key: ObstacleKey { ifindex, family, kind: (kind % 10).into() }, detail: String::new() }
}

fn ifindex(vif: u8) -> u32 {
    u32::from(vif % (VIFS + 1)) + 1
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}
pub use Family::{V4, V6};

impl Family {
    /// The length of an IPv4 prefix; of an IPv6 prefix the length that covers as much of the addresses in use.
    pub fn len(self, ipv4: u8) -> u8 {
        match (self, ipv4) {
            (V4, len) => len,
            (V6, 0..24) => ipv4 * 2,
            (V6, 24..32) => ipv4 + 40,
            (V6, 32..) => 128,
        }
    }
}

/// Addresses of a segment of either network: 1..=6 are the routers', the others hosts'.
pub fn address(family: Family, segment: u8, host: u8) -> IpAddr {
    let (segment, host) = (segment % 3, host % 12 + 1);
    match family {
        V4 => Ipv4Addr::new(10, segment, 0, host).into(),
        V6 => ipv6([0xfd00, segment.into(), 0, 0, 0, 0, 0, host.into()]),
    }
}

pub fn ipv6(groups: [u16; 8]) -> IpAddr {
    IpAddr::V6(groups.into())
}

/// On every segment the same.
pub fn link_local(host: u8) -> IpAddr {
    ipv6([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(host % 12) + 1])
}

/// An address of no segment.
pub fn far(family: Family, net: u8, subnet: u8, host: u8) -> IpAddr {
    match family {
        V4 => Ipv4Addr::new(192, 168, net, subnet % 4 * 64 + host % 64).into(),
        V6 => ipv6([0x2001, 0xdb8, net.into(), 0, u16::from(subnet % 4) << 14, 0, 0, host.into()]),
    }
}

fn key(table: u32, addr: IpAddr, len: u8, metric: u32) -> RouteKey {
    RouteKey { table, dst: IpNet::new(addr, len).unwrap().trunc(), tos: 0, metric }
}

fn main_key(family: Family, a: u8, b: u8, c: u8) -> RouteKey {
    let far = far(family, b % 2, a / 8, 0);
    let (addr, len) = match a % 8 {
        0 => (far, 0),
        1 => (address(family, b, 0), 8),
        2 => (address(family, b, 0), 16),
        3 => (address(family, b, 0), 24),
        4 => (address(family, b, a / 8), 32),
        5 => (far, 16),
        6 => (far, 24),
        _ => (far, 26),
    };
    let table = if c % 8 == 5 { VRF_TABLE } else { TABLE_MAIN };
    let metric = u32::from(c % 3) * 10;
    match (family, c % 32) {
        (V4, 7 | 23) => RouteKey { tos: 8, ..key(table, addr, len, metric) },
        // Point-to-point links, and what the kernel itself has.
        (V6, 9) => key(table, address(V6, b, a / 8), 127, metric),
        (V6, 11) => key(table, link_local(0), 64, metric),
        (V6, 13) => key(table, ipv6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8, metric),
        _ => key(table, addr, family.len(len), metric),
    }
}

fn route(family: Family, kind: u8, dice: [u8; 3]) -> Route {
    let kind = match kind % 16 {
        0 => RouteKind::Blackhole,
        1 => RouteKind::Unreachable,
        2 => RouteKind::Throw,
        3 => RouteKind::Prohibit,
        _ => RouteKind::Unicast,
    };
    let [a, b, c] = dice;
    let target = match a % 8 {
        0 => RouteTarget::NextHop(u32::from(b % 5) + 1),
        1 => RouteTarget::Hops(vec![hop(family, [b, c, a]), hop(family, [c, a, b])]),
        _ if kind != RouteKind::Unicast => RouteTarget::Hops(Vec::new()),
        _ => RouteTarget::Hops(vec![hop(family, [b, c, a / 8])]),
    };
    let mtu = (c % 16 == 9).then_some(1300);
    Route { key: key(TABLE_MAIN, address(V4, 0, 0), 32, 0), kind, protocol: 4, scope: 0, target, mtu }
}

fn hop(family: Family, [a, b, c]: [u8; 3]) -> Hop {
    let gateway = match (family, a % 8) {
        (_, 0) => None,
        // A gateway of the other family: RFC 8950, and nonsense.
        (V4, 1) => Some(link_local(b)),
        (V4, 2) if b % 2 == 0 => Some(address(V6, a / 8, b)),
        (V6, 1) if b % 4 == 0 => Some(address(V4, a / 8, b)),
        (V6, 1..4) => Some(link_local(b)),
        _ => Some(address(family, a / 8, b)),
    };
    let flags = match c % 8 {
        0 => HopFlags::DEAD | HopFlags::LINKDOWN,
        1 => HopFlags::DEAD,
        2 => HopFlags::LINKDOWN,
        3 => HopFlags::ONLINK,
        _ => 0,
    };
    let oif = (b % 16 != 3).then(|| ifindex(b / 16));
    Hop { gateway, oif, weight: 1, flags: HopFlags(flags), encap: c / 8 % 8 == 5 }
}

fn next_hop_kind(family: Family, kind: u8, dice: [u8; 3]) -> NextHopKind {
    match kind % 8 {
        0 => NextHopKind::Blackhole,
        1 => NextHopKind::Group(vec![(1, 1), (u32::from(dice[0] % 4) + 1, 2)]),
        2 => NextHopKind::Unsupported,
        _ => NextHopKind::Single(hop(family, dice)),
    }
}

/// The router of that address on the segment of that vif if there is one, else a host.
fn neighbor(
    plan: &Plan,
    router: u8,
    vif: u8,
    host: u8,
    mac: u8,
    address: impl Fn(u8, u8) -> IpAddr,
) -> Neighbor {
    let segment = network(router) * 3 + plan.routers[usize::from(router)].1[usize::from(vif % VIFS)].0;
    let host = host % 12;
    let key = NeighborKey { ifindex: ifindex(vif), addr: address(segment, host) };
    let mac = match mac % 16 {
        0 => MacAddr([1, 0, 0x5e, 0, 0, host]),
        1 => vif_mac(mac / 16 % ROUTERS, host % VIFS),
        _ => on_segment(plan, segment, host).unwrap_or(host_mac(segment, host)),
    };
    Neighbor { key, mac }
}

/// The MAC of router `host` on a segment.
fn on_segment(plan: &Plan, segment: u8, host: u8) -> Option<MacAddr> {
    let (_, vifs) = plan.routers.get(usize::from(host))?;
    let n = (0..).zip(vifs).find(|(_, (s, _))| network(host) * 3 + s == segment)?.0;
    Some(vif_mac(host, n))
}

/// What a sane guest says: its links, addresses, connected routes, all neighbors, and routes by its neighbors.
pub fn sane(plan: &Plan, router: u8) -> Vec<Object> {
    let mut objects = vec![Object::Settings(Settings::default()), Object::Link(vrf(1, 1))];
    for (vif, (segment, _)) in (0..).zip(&plan.routers[usize::from(router)].1) {
        // Some have all links but the first in a VRF.
        let in_vrf = router % 3 == 1 && vif > 0;
        let master = in_vrf.then_some(VRF);
        objects.push(Object::Link(Link { master, ..link(router, vif, 5, 5) }));
        let (table, local_table) = if in_vrf { (VRF_TABLE, VRF_TABLE) } else { (TABLE_MAIN, TABLE_LOCAL) };
        let unicast = |addr, len, metric, gateway| unicast(key(table, addr, len, metric), gateway, vif);
        // By another router of the network where there is one, by a host otherwise.
        let next = (router + 2) % ROUTERS;
        for family in [V4, V6] {
            let own = address(family, *segment, router);
            let len = family.len(24);
            objects.push(Object::Address(AddressKey {
                ifindex: ifindex(vif),
                address: IpNet::new(own, len).unwrap(),
            }));
            let connected = IpNet::new(own, len).unwrap();
            let local = match family {
                V4 => vec![(own, 32, RouteKind::Local), (connected.broadcast(), 32, RouteKind::Broadcast)],
                V6 => vec![
                    (own, 128, RouteKind::Local),
                    (connected.network(), 128, RouteKind::Anycast),
                    (link_local(router), 128, RouteKind::Local),
                    (ipv6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8, RouteKind::Multicast),
                ],
            };
            for (addr, len, kind) in local {
                let target = RouteTarget::Hops(Vec::new());
                let key = key(local_table, addr, len, 0);
                objects.push(Object::Route(Route { key, kind, protocol: 2, scope: 254, target, mtu: None }));
            }
            objects.push(unicast(own, len, 0, None));
            for host in (0..12).filter(|host| *host != router) {
                let address = |segment, host| address(family, segment, host);
                objects.push(Object::Neighbor(neighbor(plan, router, vif, host, 5, address)));
            }
            let (dst, len) = [(any_of(family), 0), (far(family, 0, 0, 0), 16), (far(family, 1, 0, 0), 24)]
                [usize::from(vif % VIFS)];
            let gateway = if family == V4 { address(V4, *segment, next) } else { link_local(next) };
            let mut route = unicast(dst, family.len(len), 20, Some(gateway));
            if let (1, Object::Route(Route { target: RouteTarget::Hops(hops), .. })) =
                (vif % VIFS, &mut route)
            {
                // By a host as well, which gets three times as much.
                let host = 9;
                let gateway =
                    if family == V4 { address(V4, *segment, host) } else { address(V6, *segment, host) };
                hops.push(Hop { gateway: Some(gateway), weight: 3, ..hops[0] });
            }
            objects.push(route);
        }
        objects.push(unicast(link_local(0), 64, 256, None));
        for host in (0..ROUTERS).filter(|host| *host != router) {
            objects.push(Object::Neighbor(neighbor(plan, router, vif, host, 5, |_, host| link_local(host))));
        }
        // RFC 8950.
        objects.push(unicast(Ipv4Addr::new(172, 16 + vif, 0, 0).into(), 16, 20, Some(link_local(next))));
    }
    objects
}

fn any_of(family: Family) -> IpAddr {
    match family {
        V4 => Ipv4Addr::UNSPECIFIED.into(),
        V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn unicast(key: RouteKey, gateway: Option<IpAddr>, vif: u8) -> Object {
    let hop = Hop { gateway, oif: Some(ifindex(vif)), weight: 1, flags: HopFlags(0), encap: false };
    let target = RouteTarget::Hops(vec![hop]);
    Object::Route(Route { key, kind: RouteKind::Unicast, protocol: 4, scope: 0, target, mtu: None })
}

/// A host with its guests' tables, by the number of the router; no tables: the guest has said nothing yet.
#[derive(Debug, Clone)]
pub struct World {
    pub plan: Plan,
    pub tables: BTreeMap<u8, Tables>,
}

pub fn world() -> impl Strategy<Value = World> {
    let noise = vec(vec(any::<Dice>(), 0..14), ROUTERS as usize);
    let silent = vec(prop::bool::weighted(0.1), ROUTERS as usize);
    (plan(), noise, silent).prop_map(|(plan, noise, silent)| {
        let mut tables = BTreeMap::new();
        for router in (0..plan.routers.len() as u8).filter(|r| !silent[usize::from(*r)]) {
            let noise = noise[usize::from(router)].iter().map(|dice| object(&plan, router, *dice));
            let said = sane(&plan, router).into_iter().chain(noise);
            tables.insert(router, said.map(|object| (object.key(), object)).take(LIMIT).collect());
        }
        World { plan, tables }
    })
}

/// A host in a world where other nodes have addresses of its segments.
pub fn among_others() -> impl Strategy<Value = World> {
    (world(), vec(any::<(u8, u8)>(), 1..6)).prop_map(|(mut world, elsewhere)| {
        world.plan.elsewhere = elsewhere;
        world
    })
}

impl World {
    /// An app that has been told all of it, and has seen nothing of the switch.
    pub fn app(&self) -> App {
        self.app_of(self.plan.empty())
    }

    /// The same on this host.
    pub fn app_on(&self, topology: Topology) -> App {
        self.tell_all(self.plan.empty(), topology)
    }

    /// The same by an app that knows nothing yet.
    pub fn app_of(&self, app: App) -> App {
        self.tell_all(app, self.plan.topology())
    }

    fn tell_all(&self, mut app: App, topology: Topology) -> App {
        app.set_topology(topology);
        self.tell(&mut app);
        app
    }

    /// A snapshot of every guest.
    pub fn tell(&self, app: &mut App) {
        for (router, tables) in &self.tables {
            let id = router_id(*router);
            app.begin_snapshot(id);
            for object in tables.values() {
                app.apply(id, Change::Upsert(object.clone())).unwrap();
            }
            app.end_snapshot(id);
        }
    }
}

/// Routers in a row on one segment, each with its default route of a family by the next, the last by a host; the
/// gateways may be of the other family. Ports: 1 is the host's, 100 and up the routers'.
pub fn chain(count: u8, packets: Family, gateways: Family) -> App {
    chain_of(App::new(LIMIT), count, packets, gateways)
}

/// [`chain`] in an app that knows nothing yet.
pub fn chain_of(mut app: App, count: u8, packets: Family, gateways: Family) -> App {
    let vlan = vlan(0);
    let mut topology =
        Topology { segments: [vlan].into(), access: [(1, vlan)].into(), ..Topology::default() };
    for r in 0..count {
        let attachment = Attachment::Segment(vlan);
        let vif = Vif { mac: vif_mac(r, 0), attachment, port: Some(100 + PortNo::from(r)) };
        topology.vifs.insert(vif_id(r, 0), vif);
    }
    app.set_topology(topology);
    for r in 0..count {
        let next = if r + 1 < count { vif_mac(r + 1, 0) } else { host_mac(0, 1) };
        let addr = match gateways {
            V4 => Ipv4Addr::new(10, 0, 0, r + 2).into(),
            V6 => ipv6([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(r) + 2]),
        };
        let route = unicast(key(TABLE_MAIN, any_of(packets), 0, 0), Some(addr), 0);
        let neighbor = Neighbor { key: NeighborKey { ifindex: 1, addr }, mac: next };
        app.begin_snapshot(router_id(r));
        let settings = Object::Settings(Settings::default());
        for object in [settings, Object::Link(link(r, 0, 5, 5)), route, Object::Neighbor(neighbor)] {
            app.apply(router_id(r), Change::Upsert(object)).unwrap();
        }
        app.end_snapshot(router_id(r));
    }
    app
}
