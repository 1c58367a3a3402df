//! The surroundings of the router under test: its links, their neighbors, known and unknown ones.

use std::net::IpAddr;

use super::{Family, Prefix, bits};

/// Segments, and vifs of the router.
pub const LINKS: usize = 7;
/// This link goes down before anything is asked, and stays down: its next hops are dead.
pub const DOWN: usize = 4;
/// This link goes down and up again while the tables are filled.
pub const FLAPS: usize = 3;
/// These links belong to the VRF.
pub const RED: [usize; 2] = [5, 6];
/// The VRF's device.
pub const VRF: &str = "vrf-red";
/// Where packets are looked up that come in by other links.
pub const TABLE_MAIN: u32 = 254;
/// The VRF's routing table.
pub const TABLE_RED: u32 = 10;
/// Links that take no full Ethernet frames: bytes of an IP packet.
pub const MTUS: [(usize, u32); 2] = [(2, 1400), (6, 1420)];
/// Links on which IPv6 is content with less than IPv4.
pub const IPV6_MTUS: [(usize, u32); 1] = [(1, 1380)];
/// A device of the guest that is no vif: what leaves by it, the host cannot forward.
pub const STUB: &str = "stub";

/// The router's own addresses, by link: of different sizes, so that the connected prefixes are.
const ADDRESSES: [(Family, [&str; LINKS]); 2] = [
    (
        Family::V4,
        [
            "10.10.0.1/24",
            "10.11.0.1/16",
            "172.16.0.1/20",
            "192.0.2.1/29",
            "10.12.0.1/24",
            // The prefix of the first link, and neighbors with the same addresses: another network.
            "10.10.0.65/24",
            "10.13.0.1/22",
        ],
    ),
    (
        Family::V6,
        [
            "2001:db8:0:10::1/64",
            "2001:db8:0:11::1/64",
            "2001:db8:0:12::1/80",
            "2001:db8:0:13::1/120",
            "2001:db8:0:14::1/64",
            "2001:db8:0:10::65/64",
            "2001:db8:0:15::1/96",
        ],
    ),
];
/// Neighbors outside of every connected prefix: gateways by `onlink` (IPv4) and by link-local address (IPv6).
const OUTSIDE: [(Family, &str); 2] = [(Family::V4, "198.51.100.0/24"), (Family::V6, "fe80::4e:0/112")];
/// Bytes of the largest packet that anybody sends.
pub const ETHERNET_MTU: u32 = 1500;
/// Neighbors on a link, in its prefix.
const INSIDE: u8 = 12;

/// A link of the router: a vif on a segment.
#[derive(Debug, Clone)]
pub struct PlannedLink {
    /// Name of the interface in the guest.
    pub name: String,
    /// Name of the segment.
    pub segment: String,
    /// VLAN of the segment.
    pub vlan: u16,
    /// Name of the access port, on the host.
    pub access: String,
}

/// A neighbor of the router.
#[derive(Debug, Clone)]
pub struct Neighbor {
    /// Index of the link.
    pub link: usize,
    /// Its address.
    pub addr: IpAddr,
    /// Its MAC address, where the kernel is to know it.
    pub mac: Option<String>,
    /// It is in no connected prefix.
    pub is_outside: bool,
}

/// The whole surroundings.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The links.
    pub links: Vec<PlannedLink>,
    /// The neighbors of both families.
    pub neighbors: Vec<Neighbor>,
    /// The router's own addresses with the prefixes they are in: link, address, prefix.
    pub own: Vec<(usize, IpAddr, Prefix)>,
}

impl Plan {
    /// The one plan there is.
    pub fn new() -> Self {
        let link = |index: usize| PlannedLink {
            name: format!("if{index}"),
            segment: format!("s{index}"),
            vlan: 101 + index as u16,
            access: format!("acc{index}"),
        };
        let mut plan = Self { links: (0..LINKS).map(link).collect(), neighbors: Vec::new(), own: Vec::new() };
        for (family, addresses) in ADDRESSES {
            for (index, text) in addresses.into_iter().enumerate() {
                let addr = text.split('/').next().and_then(|addr| addr.parse().ok());
                let (Some(addr), Some(prefix)) = (addr, Prefix::parse(text)) else { continue };
                plan.own.push((index, addr, prefix));
                plan.inhabit(index, prefix);
                let outside = OUTSIDE.into_iter().find(|(of, _)| *of == family);
                if let Some(prefix) = outside.and_then(|(_, prefix)| Prefix::parse(prefix)) {
                    plan.settle(index, prefix, 16 * index as u128 + 1, 0x40, true);
                    plan.settle(index, prefix, 16 * index as u128 + 3, 0x41, true);
                }
            }
        }
        plan
    }

    fn inhabit(&mut self, link: usize, prefix: Prefix) {
        let size = prefix.last() - prefix.first();
        // Spread over a wide prefix, beside one another in a narrow one.
        let step = if size > 4000 { 257 } else { 1 };
        for number in 1..=INSIDE {
            let offset = 1 + u128::from(number) * step;
            if offset < size {
                self.settle(link, prefix, offset, number, false);
            }
        }
    }

    fn settle(&mut self, link: usize, prefix: Prefix, offset: u128, number: u8, is_outside: bool) {
        let family = match prefix.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        // Every fifth one nobody has heard of.
        let is_known = !number.is_multiple_of(5);
        let mac = is_known.then(|| format!("02:4e:00:{family:02x}:{link:02x}:{number:02x}"));
        let addr = prefix.family.address(prefix.first() + offset);
        self.neighbors.push(Neighbor { link, addr, mac, is_outside });
    }

    /// Lines for `ip -batch`: addresses.
    pub fn address_lines(&self) -> String {
        let line = |(link, addr, prefix): &(usize, IpAddr, Prefix)| {
            format!("address replace {addr}/{} dev {}\n", prefix.len, self.links[*link].name)
        };
        self.own.iter().map(line).collect()
    }

    /// Lines for `ip -batch`: the neighbors whose MAC address is known.
    pub fn neighbor_lines(&self) -> String {
        let line = |it: &Neighbor| {
            let mac = it.mac.as_ref()?;
            let device = &self.links[it.link].name;
            Some(format!("neigh replace {} lladdr {mac} dev {device} nud permanent\n", it.addr))
        };
        self.neighbors.iter().filter_map(line).collect()
    }

    /// The MAC address of a neighbor, where the kernel knows it.
    pub fn mac_of(&self, link: usize, addr: IpAddr) -> Option<&str> {
        self.neighbors.iter().find(|it| it.link == link && it.addr == addr)?.mac.as_deref()
    }

    /// Whether this is an address of the router. The kernel takes IPv6 addresses away with their link.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.own.iter().any(|(link, own, _)| *own == addr && (addr.is_ipv4() || *link != DOWN))
    }

    /// The routing table for packets that come in by a link.
    pub fn table(link: usize) -> u32 {
        if RED.contains(&link) { TABLE_RED } else { TABLE_MAIN }
    }

    /// Links that look into a table.
    pub fn links_of(table: u32) -> Vec<usize> {
        (0..LINKS).filter(|link| Self::table(*link) == table).collect()
    }

    /// Lines for `ip -batch`: the VRF and what belongs to it, the MTUs, a device that is no vif.
    pub fn link_lines(&self) -> String {
        let mut lines = format!(
            "link add {VRF} type vrf table {TABLE_RED}\nlink set {VRF} up\nlink add {STUB} type dummy\nlink set {STUB} up\n"
        );
        for link in RED {
            lines.push_str(&format!("link set {} master {VRF}\n", self.links[link].name));
        }
        for (link, mtu) in MTUS {
            lines.push_str(&format!("link set {} mtu {mtu}\n", self.links[link].name));
        }
        lines
    }

    /// Settings that no `ip` command makes.
    pub fn sysctls(&self) -> Vec<(String, String)> {
        let setting = |(link, mtu): (usize, u32)| {
            (format!("net.ipv6.conf.{}.mtu", self.links[link].name), mtu.to_string())
        };
        IPV6_MTUS.into_iter().map(setting).collect()
    }

    /// Bytes of the largest packet of a family that leaves by a link.
    pub fn mtu(link: usize, family: Family) -> u32 {
        let of = |table: &[(usize, u32)]| table.iter().find(|it| it.0 == link).map(|it| it.1);
        let mtu = of(&MTUS).unwrap_or(ETHERNET_MTU);
        let ipv6 = of(&IPV6_MTUS).filter(|_| family == Family::V6);
        mtu.min(ipv6.unwrap_or(mtu))
    }

    /// An address on a link that sends packets: a neighbor, or one that will never be resolved.
    pub fn source(&self, link: usize, family: Family) -> IpAddr {
        let (_, addr, _) = self
            .own
            .iter()
            .find(|(index, _, prefix)| *index == link && prefix.family == family)
            .copied()
            .unwrap_or((link, family.address(1), Prefix::new(family, 0, 0)));
        family.address(bits(addr) + 1)
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}
