//! What the kernels of the guests would do with a packet: written from the kernel (`fib_table_lookup`,
//! `fib_lookup_good_nhc`, `ip_route_input_slow`, `ip_forward`; `ip6_rcv_core`, `fib6_table_lookup`,
//! `find_rr_leaf`, `ip6_forward`), by looking at every route, and without the flow
//! app's own tables.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use openflow::{Field, mac_bits};
use xenflow_flow_app::pipeline::{ETH_IPV6, MAX_ROUTERS};
use xenflow_flow_app::sim::{Packet, Tag};
use xenflow_flow_app::{FastPath, PortNo, Topology, Vif};
use xenflow_proto::table::{
    Family, Hop, HopFlags, Link, NeighborKey, NextHop, NextHopKind, ObstacleKey, ObstacleKind, Route,
    RouteKind, RouteTarget, TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{Key, MacAddr, Object, VlanId};

use super::world::{Tables, VRF_TABLE, World, router_id};

/// What leaves a host: port and packet.
pub type Sent = BTreeSet<(PortNo, Packet)>;

/// The ways a packet may go: by right, every one of a set of outcomes.
#[derive(Debug, Default)]
pub struct Allowed {
    /// The guest of a router on the way gets it.
    pub punts: Vec<Sent>,
    /// As far as the kernels would bring it on this host, by whichever next hop they choose.
    pub ends: Vec<Sent>,
    /// Routers that the packet passes until then, at most.
    pub passed: u32,
    /// One of them looks in a VRF's table.
    pub in_vrf: bool,
    /// One of them hands IPv4 to an IPv6 gateway (RFC 8950).
    pub by_ipv6: bool,
}

/// What one kernel does.
enum Fate {
    /// Answers, delivers, asks, or does something else that only it can do.
    Guest,
    Drop,
    /// Any of these, by a choice of its own; with the MTU of the route.
    Hops(Vec<(u32, IpAddr)>, Option<u32>),
}

/// What may become of an IP packet that comes to a vif, on its segment. `packet` is untagged.
pub fn allowed(world: &World, topology: &Topology, segment: VlanId, packet: &Packet) -> Allowed {
    let mut allowed = Allowed::default();
    pass(world, topology, segment, packet.clone(), 0, &mut allowed);
    allowed
}

fn pass(
    world: &World,
    topology: &Topology,
    segment: VlanId,
    packet: Packet,
    passed: u32,
    allowed: &mut Allowed,
) {
    allowed.passed = allowed.passed.max(passed);
    let Some((router, vif)) = vif_of(world, topology, segment, &packet) else {
        let mut ports = topology.members(segment);
        let dst = packet.header(Field::EthDst);
        let is_there =
            topology.elsewhere.iter().any(|(vlan, mac)| *vlan == segment && mac_bits(mac.0) == dst);
        if is_there && topology.uplinks.len() == 1 {
            ports.retain(|port| topology.uplinks.contains(port));
        }
        let copies = ports.into_iter().map(|port| {
            let on_wire = topology.uplinks.contains(&port);
            (port, if on_wire { packet.clone().tagged(Tag::new(segment.get())) } else { packet.clone() })
        });
        allowed.ends.push(copies.collect());
        return;
    };
    allowed.punts.push([(vif.port.unwrap(), packet.clone())].into());
    let Some(tables) = world.tables.get(&router) else { return };
    let Some(link_in) = link_of(tables, vif.mac) else { return };
    let policy = world.plan.policy(router);
    if passed == MAX_ROUTERS || is_slow(policy.fast_path, tables, link_in, is_ipv6(&packet)) {
        return;
    }
    let table = match link_in.master {
        None => TABLE_MAIN,
        Some(_) => VRF_TABLE,
    };
    let (hops, mtu) = match fate(tables, table, &packet) {
        Fate::Guest => return,
        Fate::Drop => return allowed.ends.push(Sent::new()),
        Fate::Hops(hops, mtu) => (hops, mtu),
    };
    for (oif, next) in hops {
        let Some(Object::Link(link)) = tables.get(&Key::Link(oif)) else { continue };
        let out = topology.vifs_of(router_id(router)).find(|(_, vif)| Some(vif.mac) == link.mac);
        let Some((_, out @ Vif { port: Some(_), .. })) = out else { continue };
        let fits = packet.ip_len <= mtu_of(link, mtu, is_ipv6(&packet));
        if link_of(tables, out.mac) != Some(link) || !fits || !is_free(policy.fast_path, tables, link) {
            continue;
        }
        let neighbor = Key::Neighbor(NeighborKey { ifindex: oif, addr: next });
        let Some(Object::Neighbor(neighbor)) = tables.get(&neighbor) else { continue };
        if !neighbor.mac.is_unicast() {
            continue;
        }
        let ttl = packet.header(Field::IpTtl) - 1;
        let routed = packet
            .clone()
            .with(Field::IpTtl, ttl)
            .with(Field::EthSrc, mac_bits(out.mac.0))
            .with(Field::EthDst, mac_bits(neighbor.mac.0));
        allowed.by_ipv6 |= next.is_ipv6() && !is_ipv6(&packet);
        allowed.in_vrf |= table == VRF_TABLE;
        pass(world, topology, out.vlan().unwrap(), routed, passed + 1, allowed);
    }
}

fn mtu_of(link: &Link, route: Option<u32>, is_ipv6: bool) -> u16 {
    let mtu = if is_ipv6 { link.ipv6_mtu.unwrap_or(link.mtu) } else { link.mtu };
    route.unwrap_or(mtu).min(mtu) as u16
}

/// Obstacles of a link, of its VRF or of all, for that family.
fn obstacles(tables: &Tables, link: &Link) -> Vec<ObstacleKey> {
    let of = |key: &ObstacleKey| [None, Some(link.ifindex), link.master].contains(&key.ifindex);
    tables
        .keys()
        .filter_map(|key| if let Key::Obstacle(key) = key { Some(*key) } else { None })
        .filter(of)
        .collect()
}

/// The guest is to forward it itself, because its kernel looks at more than the destination.
fn is_slow(policy: FastPath, tables: &Tables, link: &Link, is_ipv6: bool) -> bool {
    let family = if is_ipv6 { Family::V6 } else { Family::V4 };
    let hit = || obstacles(tables, link).iter().any(|key| key.family.is_none_or(|it| it == family));
    match policy {
        FastPath::Never => true,
        FastPath::Always => false,
        FastPath::Auto => !tables.contains_key(&Key::Settings) || hit(),
    }
}

/// Nothing of the guest's is in the way out.
fn is_free(policy: FastPath, tables: &Tables, link: &Link) -> bool {
    use ObstacleKind::{ForwardingOff, ReversePathFilter, Xdp};
    let inward = |key: &ObstacleKey| matches!(key.kind, ForwardingOff | ReversePathFilter | Xdp);
    policy == FastPath::Always
        || obstacles(tables, link).iter().all(|key| key.ifindex.is_none() || inward(key))
}

/// The router that the packet is for, if it is on this host and on no other.
fn vif_of<'a>(
    world: &World,
    topology: &'a Topology,
    segment: VlanId,
    packet: &Packet,
) -> Option<(u8, &'a Vif)> {
    let dst = packet.header(Field::EthDst);
    (0..world.plan.routers.len() as u8).find_map(|router| {
        let mut vifs = topology.vifs_of(router_id(router)).map(|(_, vif)| vif);
        let here = |vif: &&Vif| {
            let is_it = vif.vlan() == Some(segment) && mac_bits(vif.mac.0) == dst;
            is_it && vif.port.is_some() && !topology.is_elsewhere(segment, vif.mac)
        };
        vifs.find(here).map(|vif| (router, vif))
    })
}

/// The plain link with this MAC, if it works and is the only one.
fn link_of(tables: &Tables, mac: MacAddr) -> Option<&Link> {
    let mut links = tables.values().filter_map(|object| match object {
        Object::Link(link) if link.mac == Some(mac) && link.kind.is_empty() => Some(link),
        _ => None,
    });
    let link = links.next()?;
    let is_routed = link.master.is_none_or(|master| {
        let Some(Object::Link(vrf)) = tables.get(&Key::Link(master)) else { return false };
        vrf.kind == "vrf" && vrf.up && vrf.vrf_table == Some(VRF_TABLE)
    });
    (links.next().is_none() && link.up && link.running && is_routed).then_some(link)
}

fn is_ipv6(packet: &Packet) -> bool {
    packet.header(Field::EthType) == ETH_IPV6.into()
}

/// Source and destination.
fn addresses(packet: &Packet) -> (IpAddr, IpAddr) {
    let ipv4 = |field| IpAddr::from(Ipv4Addr::from_bits(packet.header(field) as u32));
    let ipv6 = |field| IpAddr::from(Ipv6Addr::from_bits(packet.header(field)));
    if is_ipv6(packet) {
        (ipv6(Field::Ipv6Src), ipv6(Field::Ipv6Dst))
    } else {
        (ipv4(Field::Ipv4Src), ipv4(Field::Ipv4Dst))
    }
}

/// Never forwarded.
fn is_strange(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.octets()[0] == 0 || a.is_loopback() || a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => {
            a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some()
        }
    }
}

/// `table` is looked in after the local one; what it does not know is the guest's business.
fn fate(tables: &Tables, table: u32, packet: &Packet) -> Fate {
    let (src, dst) = addresses(packet);
    if packet.header(Field::IpTtl) <= 1 || is_strange(src) || is_strange(dst) {
        return Fate::Guest;
    }
    let tos = (packet.header(Field::IpDscp) << 2) as u8;
    let routes = |table, addr: IpAddr| {
        let mut routes: Vec<&Route> = tables
            .values()
            .filter_map(|object| if let Object::Route(route) = object { Some(route) } else { None })
            .filter(|r| r.key.table == table && r.key.dst.contains(&addr))
            .collect();
        routes.sort_by_key(|r| (128 - r.key.dst.prefix_len(), u8::MAX - r.key.tos, r.key.metric));
        routes
    };
    // Somebody else uses the guest's address. (An IPv6 kernel does not mind; it is its own to decide.)
    let own = |route: &&Route| matches!(route.kind, RouteKind::Local | RouteKind::Anycast);
    let is_address = |key: &Key| matches!(key, Key::Address(key) if key.address.addr() == src);
    if routes(TABLE_LOCAL, src).iter().any(own) || tables.keys().any(is_address) {
        return Fate::Guest;
    }
    'tables: for table in [TABLE_LOCAL, table] {
        for route in routes(table, dst) {
            if route.key.tos != 0 && route.key.tos != tos {
                continue;
            }
            match route.kind {
                RouteKind::Unicast => {}
                RouteKind::Blackhole => return Fate::Drop,
                RouteKind::Throw => continue 'tables,
                _ => return Fate::Guest,
            }
            let hops = match &route.target {
                RouteTarget::Hops(hops) => hops.clone(),
                RouteTarget::NextHop(id) => match object_hops(tables, *id) {
                    Ok(hops) => hops,
                    Err(fate) => return fate,
                },
            };
            // Whether a hop without carrier counts is a setting that nobody tells.
            if hops.iter().any(|h| h.flags.0 & (HopFlags::DEAD | HopFlags::LINKDOWN) == HopFlags::LINKDOWN) {
                return Fate::Guest;
            }
            // Of several hops, one whose link is down is dead whether it says so already or not.
            let is_down = |hop: &Hop| {
                let link = hop.oif.and_then(|oif| tables.get(&Key::Link(oif)));
                hops.len() > 1 && matches!(link, Some(Object::Link(link)) if !link.up)
            };
            let is_alive = |hop: &&Hop| hop.flags.0 & HopFlags::DEAD == 0 && !is_down(hop);
            let alive: Vec<&Hop> = hops.iter().filter(is_alive).collect();
            if hops.len() == 1 && alive.is_empty() {
                continue;
            }
            // Encapsulation and what no kernel takes are the guest's business.
            let hop = |hop: &&Hop| match (hop.gateway, hop.oif, hop.encap) {
                (Some(IpAddr::V4(_)), ..) if dst.is_ipv6() => None,
                (Some(gateway), Some(oif), false) => Some((oif, gateway)),
                (None, Some(oif), false) => Some((oif, dst)),
                _ => None,
            };
            return match alive.iter().map(hop).collect::<Option<Vec<_>>>() {
                Some(hops) if !hops.is_empty() => Fate::Hops(hops, route.mtu),
                _ => Fate::Guest,
            };
        }
    }
    Fate::Guest
}

/// Hops of a next-hop object; of a group all of them.
fn object_hops(tables: &Tables, id: u32) -> Result<Vec<Hop>, Fate> {
    match tables.get(&Key::NextHop(id)) {
        Some(Object::NextHop(object)) => match &object.kind {
            NextHopKind::Single(hop) => Ok(vec![*hop]),
            NextHopKind::Blackhole => Err(Fate::Drop),
            NextHopKind::Group(members) => {
                let hop = |(id, _): &(u32, u32)| match tables.get(&Key::NextHop(*id)) {
                    Some(Object::NextHop(NextHop { kind: NextHopKind::Single(hop), .. })) => Some(*hop),
                    _ => None,
                };
                members.iter().map(hop).collect::<Option<Vec<_>>>().ok_or(Fate::Guest)
            }
            NextHopKind::Unsupported => Err(Fate::Guest),
        },
        _ => Err(Fate::Guest),
    }
}
