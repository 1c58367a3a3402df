//! A router's tables, as the guest's kernel has them: links, addresses, routes, next-hop objects, neighbors.
//!
//! Every object has a key; a table is a map from keys to objects, and a [`Change`] upserts or removes one. The
//! words and numbers are the kernel's (`linux/rtnetlink.h`, `linux/neighbour.h`, `linux/nexthop.h`).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::types::MacAddr;

/// Kernel number of an interface; never 0.
pub type IfIndex = u32;

/// Longest interface name, in bytes (`IFNAMSIZ` − 1), and longest link kind.
pub const MAX_LINK_NAME: usize = 15;
/// Most next hops of one route, and most members of one group.
pub const MAX_HOPS: usize = 256;

/// One entry of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// An interface.
    Link(Link),
    /// An address of an interface.
    Address(AddressKey),
    /// A route.
    Route(Route),
    /// A next-hop object.
    NextHop(NextHop),
    /// A resolved neighbor.
    Neighbor(Neighbor),
    /// Settings of the whole kernel.
    Settings(Settings),
    /// Something that destination-only forwarding would overlook.
    Obstacle(Obstacle),
}

/// What an [`Object`] is found by. Ordered, so that tables can be kept and compared in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// By number.
    Link(IfIndex),
    /// By interface and address.
    Address(AddressKey),
    /// By table, prefix, TOS and metric.
    Route(RouteKey),
    /// By id.
    NextHop(u32),
    /// By interface and address.
    Neighbor(NeighborKey),
    /// There is one.
    Settings,
    /// By interface, family and kind.
    Obstacle(ObstacleKey),
}

impl Object {
    /// The key it is stored under.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Link(link) => Key::Link(link.ifindex),
            Self::Address(key) => Key::Address(*key),
            Self::Route(route) => Key::Route(route.key),
            Self::NextHop(next_hop) => Key::NextHop(next_hop.id),
            Self::Neighbor(neighbor) => Key::Neighbor(neighbor.key),
            Self::Settings(_) => Key::Settings,
            Self::Obstacle(obstacle) => Key::Obstacle(obstacle.key),
        }
    }
}

/// A step from one state of the tables to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The object is there, as given, whatever was under its key.
    Upsert(Object),
    /// Nothing is under the key.
    Remove(Key),
}

impl Change {
    /// The key that changes.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Upsert(object) => object.key(),
            Self::Remove(key) => key.clone(),
        }
    }
}

/// An interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Its number.
    pub ifindex: IfIndex,
    /// Its name, at most [`MAX_LINK_NAME`] bytes.
    pub name: String,
    /// Its link-layer address, where it has one of six bytes.
    pub mac: Option<MacAddr>,
    /// Largest IP packet it sends, in bytes.
    pub mtu: u32,
    /// Switched on (`IFF_UP`).
    pub up: bool,
    /// Has carrier (`IFF_LOWER_UP`).
    pub running: bool,
    /// `IFLA_INFO_KIND`, as "vlan" or "vrf"; empty for hardware. At most [`MAX_LINK_NAME`] bytes.
    pub kind: String,
    /// The bridge, bond or VRF it belongs to.
    pub master: Option<IfIndex>,
    /// The table of a link of kind "vrf".
    pub vrf_table: Option<u32>,
    /// `net.ipv6.conf.<name>.mtu` in bytes, where it is known; never above `mtu`.
    pub ipv6_mtu: Option<u32>,
}

/// An address of an interface; the prefix keeps the host's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey {
    /// The interface.
    pub ifindex: IfIndex,
    /// The address with the length of its subnet.
    pub address: IpNet,
}

/// What tells routes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Routing table (`RT_TABLE_*`; 254 is main, 255 is local).
    pub table: u32,
    /// Destination; no bits set past its length.
    pub dst: IpNet,
    /// IPv4 type of service that it is for, 0 = any.
    pub tos: u8,
    /// Priority; the lowest of a prefix wins.
    pub metric: u32,
}

/// Table of the guest's own and broadcast addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;
/// Table of ordinary routes (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// What it is found by.
    pub key: RouteKey,
    /// What becomes of the packet.
    pub kind: RouteKind,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// How far its destination is (`RT_SCOPE_*`).
    pub scope: u8,
    /// Where to.
    pub target: RouteTarget,
    /// `RTAX_MTU` in bytes, where it has one.
    pub mtu: Option<u32>,
}

/// `RTN_*` of `linux/rtnetlink.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// To a next hop or an on-link destination.
    Unicast,
    /// For the guest itself.
    Local,
    /// A broadcast address of the guest.
    Broadcast,
    /// IPv6 anycast address of the guest.
    Anycast,
    /// A group.
    Multicast,
    /// Dropped without a word.
    Blackhole,
    /// Answered with "host unreachable".
    Unreachable,
    /// Answered with "administratively prohibited".
    Prohibit,
    /// The lookup goes on in another table.
    Throw,
    /// Anything else, by its number.
    Other(u8),
}

impl From<u8> for RouteKind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            3 => Self::Broadcast,
            4 => Self::Anycast,
            5 => Self::Multicast,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            9 => Self::Throw,
            other => Self::Other(other),
        }
    }
}

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => 1,
            RouteKind::Local => 2,
            RouteKind::Broadcast => 3,
            RouteKind::Anycast => 4,
            RouteKind::Multicast => 5,
            RouteKind::Blackhole => 6,
            RouteKind::Unreachable => 7,
            RouteKind::Prohibit => 8,
            RouteKind::Throw => 9,
            RouteKind::Other(other) => other,
        }
    }
}

/// The next hops of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteTarget {
    /// Written in the route; none for blackholes and their like. At most [`MAX_HOPS`].
    Hops(Vec<Hop>),
    /// A next-hop object, by its id.
    NextHop(u32),
}

/// One next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// The gateway, of either family; none: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub oif: Option<IfIndex>,
    /// Share among the hops of its route, 1..=65536.
    pub weight: u32,
    /// `RTNH_F_*` of `linux/rtnetlink.h`.
    pub flags: HopFlags,
    /// The packet would leave encapsulated (`RTA_ENCAP`).
    pub encap: bool,
}

/// `RTNH_F_*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HopFlags(pub u8);

impl HopFlags {
    /// The next hop is dead (`RTNH_F_DEAD`).
    pub const DEAD: u8 = 1;
    /// The gateway counts as on-link (`RTNH_F_ONLINK`).
    pub const ONLINK: u8 = 4;
    /// Its interface has no carrier (`RTNH_F_LINKDOWN`).
    pub const LINKDOWN: u8 = 16;

    /// The kernel would not send by it.
    #[must_use]
    pub const fn is_dead(self) -> bool {
        self.0 & (Self::DEAD | Self::LINKDOWN) != 0
    }
}

/// A next-hop object (`ip nexthop`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Its id; never 0.
    pub id: u32,
    /// What it is.
    pub kind: NextHopKind,
}

/// Kinds of next-hop objects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHopKind {
    /// Drops.
    Blackhole,
    /// One next hop.
    Single(Hop),
    /// Ids of single next hops with their weights, 1..=65536. At most [`MAX_HOPS`].
    Group(Vec<(u32, u32)>),
    /// One that cannot be described here; its routes are the guest's own business.
    Unsupported,
}

/// What tells neighbors apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighborKey {
    /// The interface.
    pub ifindex: IfIndex,
    /// Its address.
    pub addr: IpAddr,
}

/// A neighbor whose link-layer address is known and valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbor {
    /// What it is found by.
    pub key: NeighborKey,
    /// Its link-layer address.
    pub mac: MacAddr,
}

/// Settings of the whole kernel that say how it forwards. A guest that sends them sends its [`Obstacle`]s too: without
/// them nobody knows what else decides about packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Settings {
    /// `net.ipv4.fib_multipath_hash_policy`: 0 layer 3, 1 layer 4, 2 layer 3 or inner layer 3, 3 custom.
    pub ipv4_hash_policy: u8,
    /// `net.ipv6.fib_multipath_hash_policy`.
    pub ipv6_hash_policy: u8,
}

/// One of the two versions of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Why a kernel forwards otherwise than by destination alone, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObstacleKind {
    /// `forwarding` is off.
    ForwardingOff,
    /// `rp_filter` looks at source addresses.
    ReversePathFilter,
    /// There is an `ip rule` beyond the default ones and that of VRFs.
    Rules,
    /// Something hangs in netfilter's prerouting, forward or postrouting.
    Netfilter,
    /// There is an XFRM policy (IPsec).
    Xfrm,
    /// There is a traffic-control filter.
    TrafficControl,
    /// There is an XDP program.
    Xdp,
    /// The guest client could not find out.
    Unreadable,
    /// One that this version does not know, by its number.
    Other(u8),
}

impl ObstacleKind {
    /// In a few words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ForwardingOff => "forwarding is off",
            Self::ReversePathFilter => "rp_filter is on",
            Self::Rules => "there are ip rules",
            Self::Netfilter => "netfilter has hooks",
            Self::Xfrm => "there are XFRM policies",
            Self::TrafficControl => "there are tc filters",
            Self::Xdp => "there is an XDP program",
            Self::Unreadable => "the guest client cannot find out",
            Self::Other(_) => "something that this version does not know",
        }
    }
}

impl From<u8> for ObstacleKind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::ForwardingOff,
            2 => Self::ReversePathFilter,
            3 => Self::Rules,
            4 => Self::Netfilter,
            5 => Self::Xfrm,
            6 => Self::TrafficControl,
            7 => Self::Xdp,
            8 => Self::Unreadable,
            other => Self::Other(other),
        }
    }
}

impl From<ObstacleKind> for u8 {
    fn from(kind: ObstacleKind) -> Self {
        match kind {
            ObstacleKind::ForwardingOff => 1,
            ObstacleKind::ReversePathFilter => 2,
            ObstacleKind::Rules => 3,
            ObstacleKind::Netfilter => 4,
            ObstacleKind::Xfrm => 5,
            ObstacleKind::TrafficControl => 6,
            ObstacleKind::Xdp => 7,
            ObstacleKind::Unreadable => 8,
            ObstacleKind::Other(number) => number,
        }
    }
}

/// What tells obstacles apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObstacleKey {
    /// The interface whose packets it concerns; none: all packets.
    pub ifindex: Option<IfIndex>,
    /// The packets it concerns; none: both families.
    pub family: Option<Family>,
    /// What it is.
    pub kind: ObstacleKind,
}

/// Something that decides about packets and that destination-only flows would overlook.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Obstacle {
    /// What it is found by.
    pub key: ObstacleKey,
    /// What it is, for people: "100: from 10.0.0.0/8 lookup 7". At most [`crate::message::MAX_TEXT`] bytes.
    pub detail: String,
}
