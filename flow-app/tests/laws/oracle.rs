//! What the kernels of the guests would do with a packet: written from the kernel (`fib_table_lookup`,
//! `fib_lookup_good_nhc`, `ip_route_input_slow`, `ip_forward`; `ip6_rcv_core`, `fib6_table_lookup`,
//! `find_rr_leaf`, `ip6_forward`), by looking at every route, and without the flow
//! app's own tables.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use openflow::{Field, mac_bits};
use xenflow_flow_app::pipeline::{ETH_IPV6, MAX_ROUTERS};
use xenflow_flow_app::sim::{Packet, Tag};
use xenflow_flow_app::{PortNo, Topology, Vif};
use xenflow_proto::table::{
    Hop, HopFlags, Link, NeighborKey, NextHopKind, Route, RouteKind, RouteTarget, TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{Key, MacAddr, Object, VlanId};

use super::world::{Tables, World, router_id};

/// What leaves a host: port and packet.
pub type Sent = BTreeSet<(PortNo, Packet)>;

/// The ways a packet may go: by right, every one of a set of outcomes.
#[derive(Debug, Default)]
pub struct Allowed {
    /// The guest of a router on the way gets it.
    pub punts: Vec<Sent>,
    /// As far as the kernels would bring it on this host.
    pub end: Option<Sent>,
    /// Routers that the packet passes until then.
    pub passed: u32,
    /// One of them hands IPv4 to an IPv6 gateway (RFC 8950).
    pub by_ipv6: bool,
}

/// What one kernel does.
enum Fate {
    /// Answers, delivers, asks, or does something else that only it can do.
    Guest,
    Drop,
    /// Any of these, by a choice of its own.
    Hops(Vec<(u32, IpAddr)>),
}

/// What may become of an IP packet that comes to a vif, on its segment. `packet` is untagged.
pub fn allowed(world: &World, topology: &Topology, segment: VlanId, packet: &Packet) -> Allowed {
    let mut allowed = Allowed::default();
    let (mut segment, mut packet) = (segment, packet.clone());
    while let Some((router, vif)) = vif_of(world, topology, segment, &packet) {
        allowed.punts.push([(vif.port.unwrap(), packet.clone())].into());
        if allowed.passed == MAX_ROUTERS {
            return allowed;
        }
        let Some(tables) = world.tables.get(&router) else { return allowed };
        let Some(link_in) = link_of(tables, vif.mac) else { return allowed };
        let hops = match fate(tables, &packet) {
            Fate::Guest => return allowed,
            Fate::Drop => {
                allowed.end = Some(Sent::new());
                return allowed;
            }
            Fate::Hops(hops) => hops,
        };
        // Which of several hops a kernel takes is its own secret.
        let [(oif, next)] = hops.as_slice() else { return allowed };
        let Some(Object::Link(link)) = tables.get(&Key::Link(*oif)) else { return allowed };
        let out = topology.vifs_of(router_id(router)).find(|(_, vif)| Some(vif.mac) == link.mac);
        let Some((_, Vif { mac, attachment: _, port: Some(_) })) = out else { return allowed };
        if link_of(tables, *mac) != Some(link) || link.mtu < link_in.mtu {
            return allowed;
        }
        let neighbor = Key::Neighbor(NeighborKey { ifindex: *oif, addr: *next });
        let Some(Object::Neighbor(neighbor)) = tables.get(&neighbor) else { return allowed };
        if !neighbor.mac.is_unicast() {
            return allowed;
        }
        segment = out.and_then(|(_, vif)| vif.vlan()).unwrap();
        let ttl = packet.header(Field::IpTtl) - 1;
        packet = packet
            .with(Field::IpTtl, ttl)
            .with(Field::EthSrc, mac_bits(mac.0))
            .with(Field::EthDst, mac_bits(neighbor.mac.0));
        allowed.passed += 1;
        allowed.by_ipv6 |= next.is_ipv6() && !is_ipv6(&packet);
    }
    let copies = topology.members(segment).into_iter().map(|port| {
        let on_wire = topology.uplinks.contains(&port);
        (port, if on_wire { packet.clone().tagged(Tag::new(segment.get())) } else { packet.clone() })
    });
    allowed.end = Some(copies.collect());
    allowed
}

/// The router that the packet is for, if it is on this host.
fn vif_of<'a>(
    world: &World,
    topology: &'a Topology,
    segment: VlanId,
    packet: &Packet,
) -> Option<(u8, &'a Vif)> {
    let dst = packet.header(Field::EthDst);
    (0..world.plan.routers.len() as u8).find_map(|router| {
        let mut vifs = topology.vifs_of(router_id(router)).map(|(_, vif)| vif);
        let here =
            |vif: &&Vif| vif.port.is_some() && vif.vlan() == Some(segment) && mac_bits(vif.mac.0) == dst;
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
    (links.next().is_none() && link.up && link.running && link.master.is_none()).then_some(link)
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

fn fate(tables: &Tables, packet: &Packet) -> Fate {
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
    if routes(TABLE_LOCAL, src).iter().any(own) {
        return Fate::Guest;
    }
    'tables: for table in [TABLE_LOCAL, TABLE_MAIN] {
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
            let alive: Vec<&Hop> = hops.iter().filter(|h| h.flags.0 & HopFlags::DEAD == 0).collect();
            if hops.len() == 1 && alive.is_empty() {
                continue;
            }
            // Encapsulation, other MTUs and what no kernel takes are the guest's business.
            let hop = |hop: &&Hop| match (hop.gateway, hop.oif, hop.encap, route.mtu) {
                (Some(IpAddr::V4(_)), ..) if dst.is_ipv6() => None,
                (Some(gateway), Some(oif), false, None) => Some((oif, gateway)),
                (None, Some(oif), false, None) => Some((oif, dst)),
                _ => None,
            };
            return match alive.iter().map(hop).collect::<Option<Vec<_>>>() {
                Some(hops) if !hops.is_empty() => Fate::Hops(hops),
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
            NextHopKind::Group(_) | NextHopKind::Unsupported => Err(Fate::Guest),
        },
        _ => Err(Fate::Guest),
    }
}
