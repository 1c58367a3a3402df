//! The surroundings of the router under test: its links, their neighbors, known and unknown ones.

use std::net::IpAddr;

use super::{Family, Prefix, bits};

/// Segments, and vifs of the router.
pub const LINKS: usize = 4;
/// A device of the guest that is no vif: what leaves by it, the host cannot forward.
pub const STUB: &str = "stub";

/// The router's own addresses, by link: of different sizes, so that the connected prefixes are.
const ADDRESSES: [(Family, [&str; LINKS]); 2] = [
    (Family::V4, ["10.10.0.1/24", "10.11.0.1/16", "172.16.0.1/20", "192.0.2.1/29"]),
    (
        Family::V6,
        ["2001:db8:0:10::1/64", "2001:db8:0:11::1/64", "2001:db8:0:12::1/80", "2001:db8:0:13::1/120"],
    ),
];
/// Neighbors outside of every connected prefix: gateways by `onlink` (IPv4) and by link-local address (IPv6).
const OUTSIDE: [(Family, &str); 2] = [(Family::V4, "198.51.100.0/24"), (Family::V6, "fe80::4e:0/112")];
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

    /// Whether this is an address of the router.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.own.iter().any(|(_, own, _)| *own == addr)
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
