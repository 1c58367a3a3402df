//! From rtnetlink messages to the objects of the protocol. Pure; keeps no state.
//!
//! What the protocol cannot describe (an encapsulation, a source-specific route, more hops than fit) becomes a
//! hop with `encap` set, which the host leaves to the guest: never a wrong hop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use xenflow_proto::MacAddr;
use xenflow_proto::table::{
    AddressKey, Hop, HopFlags, Key, MAX_HOPS, Neighbor, NeighborKey, Object, Route, RouteKey, RouteKind,
    RouteTarget,
};

use crate::attribute::{Attribute, Attributes, Message, NetlinkError, address, align, u16_at, u32_at};
use crate::link::link;
use crate::nexthop::{hop_flags, next_hop};

/// Message types of `linux/rtnetlink.h`.
pub mod rtm {
    #![allow(missing_docs)]
    pub const NEWLINK: u16 = 16;
    pub const DELLINK: u16 = 17;
    pub const GETLINK: u16 = 18;
    pub const NEWADDR: u16 = 20;
    pub const DELADDR: u16 = 21;
    pub const GETADDR: u16 = 22;
    pub const NEWROUTE: u16 = 24;
    pub const DELROUTE: u16 = 25;
    pub const GETROUTE: u16 = 26;
    pub const NEWNEIGH: u16 = 28;
    pub const DELNEIGH: u16 = 29;
    pub const GETNEIGH: u16 = 30;
    pub const NEWNEXTHOP: u16 = 104;
    pub const DELNEXTHOP: u16 = 105;
    pub const GETNEXTHOP: u16 = 106;
}

/// `AF_UNSPEC`.
pub const AF_UNSPEC: u8 = 0;
/// `AF_INET`.
pub const AF_INET: u8 = 2;
/// `AF_INET6`.
pub const AF_INET6: u8 = 10;

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_APPEND: u16 = 0x800;

/// What a message of the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// There is, or there is again, such an object.
    Upsert(Object),
    /// There is none.
    Remove(Key),
    /// A route came, at this place among those of its key.
    Route(Route, Place),
    /// One route went; others of its key may remain.
    RouteGone(Route),
}

/// Where a route stands among the routes with its key. The kernel uses the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There was none (`NLM_F_EXCL`).
    Only,
    /// It takes the place of the first (`NLM_F_REPLACE`).
    Replaced,
    /// Before the others, if any (IPv4 without flags).
    First,
    /// After the others, if any (`NLM_F_APPEND`, or IPv6 without flags).
    Last,
}

/// The meaning of one message; none if it is no business of the tables.
///
/// # Errors
/// [`NetlinkError`] if the kernel's message makes no sense.
pub fn translate(message: &Message<'_>) -> Result<Option<Event>, NetlinkError> {
    let payload = message.payload;
    Ok(match message.kind {
        rtm::NEWLINK => link(payload)?.map(|facts| Event::Upsert(Object::Link(facts.link))),
        rtm::DELLINK => link(payload)?.map(|facts| Event::Remove(Key::Link(facts.link.ifindex))),
        rtm::NEWADDR => interface_address(payload)?.map(|key| Event::Upsert(Object::Address(key))),
        rtm::DELADDR => interface_address(payload)?.map(|key| Event::Remove(Key::Address(key))),
        rtm::NEWNEIGH => neighbor(payload)?.map(|(key, mac)| match mac {
            Some(mac) => Event::Upsert(Object::Neighbor(Neighbor { key, mac })),
            None => Event::Remove(Key::Neighbor(key)),
        }),
        rtm::DELNEIGH => neighbor(payload)?.map(|(key, _)| Event::Remove(Key::Neighbor(key))),
        rtm::NEWNEXTHOP => Some(Event::Upsert(Object::NextHop(next_hop(payload)?))),
        rtm::DELNEXTHOP => Some(Event::Remove(Key::NextHop(next_hop(payload)?.id))),
        rtm::NEWROUTE => route(payload)?.map(|route| {
            let place = place(message.flags, &route);
            Event::Route(route, place)
        }),
        rtm::DELROUTE => route(payload)?.map(Event::RouteGone),
        _ => None,
    })
}

/// Flags as `fib_table_insert` (IPv4) and `fib6_add_rt2node` (IPv6) set them in their events.
fn place(flags: u16, route: &Route) -> Place {
    if flags & NLM_F_REPLACE != 0 {
        Place::Replaced
    } else if route.target == RouteTarget::Hops(vec![UNDESCRIBED]) {
        // Source-specific routes share a key that the kernel knows nothing of; see `route`.
        Place::Last
    } else if flags & NLM_F_EXCL != 0 {
        Place::Only
    } else if flags & NLM_F_APPEND != 0 || route.key.dst.addr().is_ipv6() {
        Place::Last
    } else {
        Place::First
    }
}

/// The fixed part of a message, of `want` bytes, and the attributes after it.
pub(crate) fn header<'a>(
    payload: &'a [u8],
    what: &'static str,
    want: usize,
) -> Result<(&'a [u8], Attributes<'a>), NetlinkError> {
    let short = NetlinkError::Short { what, len: payload.len(), want };
    let (header, rest) = payload.split_at_checked(want).ok_or(short)?;
    Ok((header, Attributes::new(rest)))
}

/// 0 if it is not there.
pub(crate) fn byte(header: &[u8], at: usize) -> u8 {
    header.get(at).copied().unwrap_or_default()
}

pub(crate) fn nonzero(value: Option<u32>, what: &'static str) -> Result<u32, NetlinkError> {
    value.filter(|&value| value != 0).ok_or(NetlinkError::Missing(what))
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index (4).
fn interface_address(payload: &[u8]) -> Result<Option<AddressKey>, NetlinkError> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;

    let (header, attributes) = header(payload, "ifaddrmsg", 8)?;
    if !matches!(byte(header, 0), AF_INET | AF_INET6) {
        return Ok(None);
    }
    let (mut local, mut peer) = (None, None);
    for attribute in attributes {
        match attribute.kind {
            IFA_LOCAL => local = Some(attribute.address()?),
            IFA_ADDRESS => peer = Some(attribute.address()?),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the peer's.
    let addr = local.or(peer).ok_or(NetlinkError::Missing("IFA_ADDRESS"))?;
    let ifindex = nonzero(u32_at(header, 4), "ifa_index")?;
    Ok(Some(AddressKey { ifindex, address: net(addr, byte(header, 1))? }))
}

fn net(addr: IpAddr, len: u8) -> Result<IpNet, NetlinkError> {
    IpNet::new(addr, len).map_err(|_| NetlinkError::Range { what: "prefix length", value: len.into() })
}

/// `struct ndmsg`: family, pad (3), ifindex (4), state (2), flags, type. The MAC is none while it is not valid.
fn neighbor(payload: &[u8]) -> Result<Option<(NeighborKey, Option<MacAddr>)>, NetlinkError> {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    const NTF_PROXY: u8 = 8;
    /// `NUD_VALID` of `net/neighbour.h`: PERMANENT, NOARP, REACHABLE, PROBE, STALE, DELAY.
    const NUD_VALID: u16 = 0x80 | 0x40 | 0x02 | 0x10 | 0x04 | 0x08;

    let (header, attributes) = header(payload, "ndmsg", 12)?;
    if !matches!(byte(header, 0), AF_INET | AF_INET6) || byte(header, 10) & NTF_PROXY != 0 {
        return Ok(None);
    }
    let (mut addr, mut mac) = (None, None);
    for attribute in attributes {
        match attribute.kind {
            NDA_DST => addr = Some(attribute.address()?),
            NDA_LLADDR => mac = attribute.value.try_into().ok().map(MacAddr),
            _ => {}
        }
    }
    let Some(addr) = addr else { return Ok(None) };
    let key = NeighborKey { ifindex: nonzero(u32_at(header, 4), "ndm_ifindex")?, addr };
    let valid = u16_at(header, 8).unwrap_or_default() & NUD_VALID != 0;
    // Not of one interface: the loopback's zero address, and what groups map to.
    Ok(Some((key, mac.filter(|mac| valid && mac.is_unicast()))))
}

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const RTA_NH_ID: u16 = 30;

/// `struct rtmsg`: family, dst_len, src_len, tos, table, protocol, scope, type, flags (4).
fn route(payload: &[u8]) -> Result<Option<Route>, NetlinkError> {
    const RTM_F_CLONED: u32 = 0x200;
    const RTAX_MTU: u16 = 2;

    let (header, attributes) = header(payload, "rtmsg", 12)?;
    let family = byte(header, 0);
    let flags = u32_at(header, 8).unwrap_or_default();
    if !matches!(family, AF_INET | AF_INET6) || flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let mut table = u32::from(byte(header, 4));
    let mut dst: IpAddr =
        if family == AF_INET { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (mut metric, mut mtu, mut hops, mut next_hop_id) = (0, None, None, None);
    let mut hop = Hop { gateway: None, oif: None, weight: 1, flags: hop_flags(flags), encap: false };
    for attribute in attributes {
        match attribute.kind {
            RTA_DST => dst = attribute.address()?,
            RTA_PRIORITY => metric = attribute.u32()?,
            RTA_TABLE => table = attribute.u32()?,
            RTA_METRICS => {
                let limit = attribute.nested().find(|metric| metric.kind == RTAX_MTU);
                mtu = limit.map(|mtu| mtu.u32()).transpose()?.filter(|&mtu| mtu != 0);
            }
            RTA_MULTIPATH => hops = Some(multipath(attribute.value)?),
            RTA_NH_ID => next_hop_id = Some(attribute.u32()?).filter(|&id| id != 0),
            _ => hop_attribute(&mut hop, &attribute)?,
        }
    }
    let mut kind = RouteKind::from(byte(header, 7));
    let mut target = match (next_hop_id, hops) {
        (Some(id), _) => RouteTarget::NextHop(id),
        (None, Some(hops)) if hops.len() > MAX_HOPS => RouteTarget::Hops(vec![UNDESCRIBED]),
        (None, Some(mut hops)) => {
            // The kernel lists the hops of one IPv6 route from any of them onward.
            if family == AF_INET6 {
                hops.sort_unstable();
            }
            RouteTarget::Hops(hops)
        }
        (None, None) if drops(kind) => RouteTarget::Hops(Vec::new()),
        (None, None) => RouteTarget::Hops(vec![hop]),
    };
    if byte(header, 2) != 0 {
        // A source-specific route counts before all others of its prefix, for some packets. No key holds a
        // source, so all of the prefix go to the guest. IPv6 routes of users never have metric 0.
        kind = RouteKind::Unicast;
        (metric, target) = (0, RouteTarget::Hops(vec![UNDESCRIBED]));
    }
    let key = RouteKey { table, dst: net(dst, byte(header, 1))?.trunc(), tos: byte(header, 3), metric };
    Ok(Some(Route { key, kind, protocol: byte(header, 5), scope: byte(header, 6), target, mtu }))
}

/// A hop that only the guest's kernel knows how to take.
pub(crate) const UNDESCRIBED: Hop =
    Hop { gateway: None, oif: None, weight: 1, flags: HopFlags(0), encap: true };

fn hop_attribute(hop: &mut Hop, attribute: &Attribute<'_>) -> Result<(), NetlinkError> {
    match attribute.kind {
        RTA_OIF => hop.oif = Some(attribute.u32()?).filter(|&oif| oif != 0),
        RTA_GATEWAY => hop.gateway = Some(attribute.address()?),
        // `struct rtvia`: family, address (RFC 8950: an IPv6 gateway of an IPv4 route).
        RTA_VIA => match attribute.value.get(2..).and_then(address) {
            Some(gateway) => hop.gateway = Some(gateway),
            None => hop.encap = true,
        },
        RTA_ENCAP | RTA_ENCAP_TYPE => hop.encap = true,
        _ => {}
    }
    Ok(())
}

/// `struct rtnexthop`: length (2), flags, hops (weight − 1), ifindex (4), attributes.
fn multipath(mut bytes: &[u8]) -> Result<Vec<Hop>, NetlinkError> {
    const HEADER: usize = 8;
    let mut hops = Vec::new();
    while !bytes.is_empty() {
        let short = NetlinkError::Short { what: "rtnexthop", len: bytes.len(), want: HEADER };
        let length = usize::from(u16_at(bytes, 0).ok_or(short)?);
        let one = bytes.get(..length).filter(|one| one.len() >= HEADER).ok_or(short)?;
        let mut hop = Hop {
            gateway: None,
            oif: u32_at(one, 4).filter(|&oif| oif != 0),
            weight: u32::from(byte(one, 3)) + 1,
            flags: hop_flags(byte(one, 2).into()),
            encap: false,
        };
        for attribute in Attributes::new(one.get(HEADER..).unwrap_or_default()) {
            hop_attribute(&mut hop, &attribute)?;
        }
        hops.push(hop);
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
    Ok(hops)
}

/// IPv6 names the loopback as the interface of these, IPv4 none.
fn drops(kind: RouteKind) -> bool {
    matches!(kind, RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Throw)
}
