//! The packets that kernel and switch are asked about: destinations in, at the edges of and just outside of prefixes.

use std::net::IpAddr;

use super::plan::{DOWN, LINKS, Plan, TABLE_MAIN};
use super::random::Random;
use super::witness::Packet;
use super::{Family, Prefix};

/// MAC address of whoever sends.
pub const SENDER: &str = "02:5c:00:00:00:01";

/// Destinations worth asking about: prefixes of routes, by table.
#[derive(Debug, Clone, Default)]
pub struct Destinations(Vec<(u32, Prefix)>);

impl Destinations {
    /// Adds prefixes of a table.
    pub fn extend(&mut self, table: u32, prefixes: &[Prefix]) {
        self.0.extend(prefixes.iter().map(|prefix| (table, *prefix)));
    }

    /// Of one table alone.
    pub fn of(&self, table: u32) -> Self {
        Self(self.0.iter().filter(|it| it.0 == table).copied().collect())
    }
}

/// A packet for the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The link it comes by.
    pub link: usize,
    /// It comes by the trunk, tagged, not by the segment's access port.
    pub is_from_uplink: bool,
    /// As it arrives.
    pub packet: Packet,
}

impl Question {
    /// The family.
    pub fn family(&self) -> Family {
        Family::of(self.packet.dst)
    }
}

/// Draws questions about tables.
#[derive(Debug)]
pub struct Asker<'a> {
    plan: &'a Plan,
    /// MAC addresses of the router, by link.
    macs: [String; LINKS],
    random: Random,
}

impl<'a> Asker<'a> {
    /// An asker with numbers of its own.
    pub fn new(plan: &'a Plan, macs: [String; LINKS], random: Random) -> Self {
        Self { plan, macs, random }
    }

    /// One of everything: prefixes at random, and what is special.
    pub fn any(&mut self, destinations: &Destinations) -> Question {
        let (table, prefix) = *self.random.pick(&destinations.0);
        let family = prefix.family;
        let dst = match self.random.below(100) {
            0..82 => self.around(prefix),
            82..90 => {
                let of: Vec<IpAddr> = self
                    .plan
                    .neighbors
                    .iter()
                    .map(|it| it.addr)
                    .filter(|addr| Family::of(*addr) == family)
                    .collect();
                *self.random.pick(&of)
            }
            90..94 => {
                let of: Vec<Prefix> =
                    self.plan.own.iter().map(|own| own.2).filter(|own| own.family == family).collect();
                let own = *self.random.pick(&of);
                self.around(own)
            }
            94..97 => self.special(family),
            _ => family.address(self.random.wide()),
        };
        let mut question = match self.random.below(100) {
            // By a link that looks elsewhere, and by one that the guest has switched off.
            0..10 => {
                let link = self.random.below(LINKS);
                self.about(link, dst)
            }
            10 => self.about(DOWN, dst),
            _ => self.in_table(table, dst),
        };
        question.packet.ttl = self.random.weighted(&[(94, 64), (2, 2), (2, 1), (1, 0), (1, 255)]);
        if self.random.percent(2) {
            question.packet.src = self.special(family);
        }
        question
    }

    /// Packets to one prefix that nothing else stands against.
    pub fn inside(&mut self, prefix: Prefix) -> Question {
        let dst =
            prefix.family.address(prefix.first() | self.random.wide() & (prefix.first() ^ prefix.last()));
        self.in_table(TABLE_MAIN, dst)
    }

    /// The same packet of somebody else: where next hops share packets, it may take another one.
    pub fn of_another(&mut self, question: &Question) -> Question {
        let net = match question.family() {
            Family::V4 => "198.18.0.0/15",
            Family::V6 => "2001:db8:5ca1::/48",
        };
        let mut question = question.clone();
        if let Some(net) = Prefix::parse(net) {
            let host = self.random.wide() & (net.first() ^ net.last());
            question.packet.src = net.family.address(net.first() | host);
        }
        question.packet.port = self.random.between(0, u8::MAX).into();
        question
    }

    fn in_table(&mut self, table: u32, dst: IpAddr) -> Question {
        let links: Vec<usize> = Plan::links_of(table).into_iter().filter(|link| *link != DOWN).collect();
        let link = *self.random.pick(&links);
        self.about(link, dst)
    }

    fn about(&mut self, link: usize, dst: IpAddr) -> Question {
        let is_from_uplink = self.random.percent(30);
        let packet = Packet {
            eth_src: SENDER.to_owned(),
            eth_dst: self.macs[link].clone(),
            vlan: is_from_uplink.then_some(self.plan.links[link].vlan),
            src: self.plan.source(link, Family::of(dst)),
            dst,
            ttl: 64,
            port: self.random.between(0, u8::MAX).into(),
        };
        Question { link, is_from_uplink, packet }
    }

    fn around(&mut self, prefix: Prefix) -> IpAddr {
        let (first, last) = (prefix.first(), prefix.last());
        let bits = match self.random.below(8) {
            0 => first,
            1 => last,
            2 => first.wrapping_sub(1),
            3 => last.wrapping_add(1),
            // The middle, where two longer prefixes meet.
            4 => first + (last - first) / 2,
            _ => first | self.random.wide() & (first ^ last),
        };
        prefix.family.address(bits)
    }

    /// Addresses that are not forwarded, or nearly so.
    fn special(&mut self, family: Family) -> IpAddr {
        let own: Vec<IpAddr> =
            self.plan.own.iter().map(|own| own.1).filter(|addr| Family::of(*addr) == family).collect();
        let texts: &[&str] = match family {
            Family::V4 => &[
                "0.0.0.5",
                "127.0.0.1",
                "127.9.9.9",
                "224.0.0.5",
                "239.1.2.3",
                "240.0.0.1",
                "255.255.255.255",
                "10.10.0.255",
                "10.10.0.0",
                "169.254.1.1",
            ],
            Family::V6 => &["::", "::1", "ff02::5", "ff0e::1", "fe80::1234", "fec0::1", "::ffff:1.2.3.4"],
        };
        let at = self.random.below(texts.len() + own.len());
        own.get(at).copied().or_else(|| texts[at - own.len()].parse().ok()).unwrap_or(own[0])
    }
}
