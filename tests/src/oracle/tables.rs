//! Random routing tables, as lines for `ip -batch`: overlapping prefixes of all lengths, every kind of route.
//!
//! Some lines the kernel refuses (a gateway that another route hides, a next-hop object that is gone): what counts is
//! what the kernel has in the end, and the kernel is asked.

use std::net::IpAddr;

use super::plan::{Neighbor, Plan, STUB, TABLE_MAIN, VRF};
use super::random::Random;
use super::{Family, Prefix, bits};

/// The table that nothing refers to.
const OTHER_TABLE: u32 = 100;
/// Next-hop objects of a family and table, numbered from 1 (IPv6: from 10,001; of the VRF: 5,000 more).
const OBJECTS: u32 = 24;
const BLACKHOLE_OBJECT: u32 = 500;
const FIRST_GROUP: u32 = 1000;
const GROUPS: u32 = 8;
const FAMILY_STEP: u32 = 10_000;
const TABLE_STEP: u32 = 5000;

/// What is done to the kernel's tables.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Goes first, with the family as an option: without it, `ip` makes IPv4 objects of what has no address. With it,
    /// `ip` makes no groups.
    pub of_family: Vec<String>,
    /// Next-hop objects and routes, in random order.
    pub first: Vec<String>,
    /// Later replacements, additions and deletions.
    pub second: Vec<String>,
    /// Every prefix that was ever there.
    pub prefixes: Vec<Prefix>,
}

/// How often, and the shortest and the longest.
type Lengths = (usize, (u8, u8));

#[derive(Debug, Clone, Copy)]
enum Kind {
    Gateway,
    OnLink,
    Multipath,
    Appended,
    Encapsulated,
    Object,
    Group,
    BlackholeObject,
    Blackhole,
    Unreachable,
    Prohibit,
    Throw,
    Mtu,
    OtherTable,
    Tos,
    ForeignGateway,
    Stub,
    Vrf,
}

const KINDS: &[(usize, Kind)] = &[
    (640, Kind::Gateway),
    (40, Kind::OnLink),
    (80, Kind::Multipath),
    (40, Kind::Appended),
    (5, Kind::Encapsulated),
    (70, Kind::Object),
    (60, Kind::Group),
    (10, Kind::BlackholeObject),
    (50, Kind::Blackhole),
    (20, Kind::Unreachable),
    (20, Kind::Prohibit),
    (30, Kind::Throw),
    (40, Kind::Mtu),
    (30, Kind::OtherTable),
    (10, Kind::Tos),
    (10, Kind::ForeignGateway),
    (10, Kind::Stub),
    (10, Kind::Vrf),
];

/// `count` routes of a table.
pub fn generate(plan: &Plan, family: Family, table: u32, count: usize, random: &mut Random) -> Tables {
    let mut make = Maker { plan, family, table, random, prefixes: vec![Prefix::new(family, 0, 0)] };
    let mut first = Vec::new();
    for _ in 0..count {
        let prefix = make.prefix();
        make.prefixes.push(prefix);
        let metrics = if make.random.percent(12) { 3 } else { 1 };
        for _ in 0..metrics {
            first.push(make.route(prefix));
        }
    }
    make.random.shuffle(&mut first);
    first.splice(0..0, make.objects());
    let of_family = vec![format!("nexthop replace id {} blackhole", make.id(BLACKHOLE_OBJECT))];

    let mut second = make.objects();
    for _ in 0..count / 4 {
        let prefix = *make.random.pick(&make.prefixes);
        let line = if make.random.percent(40) {
            format!("route del {prefix}{}{}", make.metric(), make.of_table())
        } else {
            make.route(prefix)
        };
        second.push(line);
    }
    // The kernel drops the routes of an object with it, and tells nobody.
    second.push(format!("nexthop del id {}", make.id(7)));
    Tables { of_family, first, second, prefixes: make.prefixes }
}

struct Maker<'a> {
    plan: &'a Plan,
    family: Family,
    table: u32,
    random: &'a mut Random,
    prefixes: Vec<Prefix>,
}

impl Maker<'_> {
    fn id(&self, number: u32) -> u32 {
        let of_table = if self.table == TABLE_MAIN { number } else { TABLE_STEP + number };
        match self.family {
            Family::V4 => of_table,
            Family::V6 => FAMILY_STEP + of_table,
        }
    }

    fn of_table(&self) -> String {
        if self.table == TABLE_MAIN { String::new() } else { format!(" table {}", self.table) }
    }

    fn prefix(&mut self) -> Prefix {
        let family = self.family;
        let known = *self.random.pick(&self.prefixes);
        let bit = |len: u8| 1_u128 << (family.width() - len);
        match self.random.below(100) {
            0..28 => self.fresh(),
            28..68 if known.len > 0 => {
                let len = (known.len + self.random.between(1, 8)).min(family.width());
                Prefix::new(family, known.first() | self.random.wide() & known.last(), len)
            }
            68..80 if known.len > 0 => Prefix::new(family, known.first() ^ bit(known.len), known.len),
            80..88 if known.len > 5 => {
                Prefix::new(family, known.first(), known.len - self.random.between(1, 4))
            }
            88..95 => self.connected(),
            95..97 => {
                let host = self.neighbor(family).addr;
                Prefix::new(family, bits(host), family.width())
            }
            97..98 => Prefix::new(family, 0, 0),
            _ => self.fresh(),
        }
    }

    /// A prefix with the lengths that the Internet's table has, in a part of the address space that is small enough
    /// for prefixes to meet.
    fn fresh(&mut self) -> Prefix {
        let (area, lengths): (u128, &[Lengths]) = match self.family {
            Family::V4 => (
                u128::from(self.random.between(20, 39)) << 24 | self.random.wide() & 0x00ff_ffff,
                &[(50, (24, 24)), (30, (16, 23)), (8, (8, 15)), (6, (25, 30)), (3, (31, 31)), (6, (32, 32))],
            ),
            Family::V6 => (
                0x2600_u128 << 112 | self.random.wide() & (u128::MAX >> 24),
                &[
                    (45, (48, 48)),
                    (20, (32, 47)),
                    (20, (49, 64)),
                    (5, (20, 31)),
                    (5, (65, 127)),
                    (5, (128, 128)),
                ],
            ),
        };
        let (shortest, longest) = self.random.weighted(lengths);
        let len = self.random.between(shortest, longest);
        Prefix::new(self.family, area, len)
    }

    /// Longer than a connected prefix, and in it.
    fn connected(&mut self) -> Prefix {
        let is_ours =
            |own: &&(usize, IpAddr, Prefix)| own.2.family == self.family && Plan::table(own.0) == self.table;
        let own: Vec<Prefix> = self.plan.own.iter().filter(is_ours).map(|own| own.2).collect();
        let outer = *self.random.pick(&own);
        let bits = outer.first() | self.random.wide() & outer.last();
        Prefix::new(self.family, bits, self.random.between(outer.len + 1, self.family.width()))
    }

    /// One on a link of the table; now and then, where a gateway needs no route, on another link: VRFs may leak.
    fn neighbor(&mut self, family: Family) -> Neighbor {
        let leaks = self.random.percent(2);
        let is_ours = |it: &&Neighbor| {
            let is_on_own_link = Plan::table(it.link) == self.table;
            Family::of(it.addr) == family && (is_on_own_link || leaks && it.is_outside)
        };
        let of: Vec<&Neighbor> = self.plan.neighbors.iter().filter(is_ours).collect();
        (*self.random.pick(&of)).clone()
    }

    /// `via … dev …`, by a neighbor of that family.
    fn via(&mut self, family: Family) -> String {
        let Neighbor { link, addr, is_outside, .. } = self.neighbor(family);
        let inet6 = if family != self.family { "inet6 " } else { "" };
        let onlink = if is_outside && family == Family::V4 { " onlink" } else { "" };
        format!("via {inet6}{addr} dev {}{onlink}", self.plan.links[link].name)
    }

    fn metric(&mut self) -> &'static str {
        self.random.weighted(&[(75, ""), (10, " metric 10"), (10, " metric 20"), (5, " metric 300")])
    }

    fn route(&mut self, prefix: Prefix) -> String {
        let family = self.family;
        let mut metric = self.metric();
        let mut kind = self.random.weighted(KINDS);
        if matches!((kind, family), (Kind::Tos | Kind::ForeignGateway, Family::V6))
            || (matches!(kind, Kind::OtherTable | Kind::Vrf) && self.table != TABLE_MAIN)
        {
            kind = Kind::Gateway;
        }
        if matches!((kind, family), (Kind::Mtu, Family::V6)) {
            // Alone: appended IPv6 routes keep an MTU each, of which the kernel tells one.
            metric = " metric 7";
        }
        if matches!(kind, Kind::Appended) {
            return self.appended(prefix, metric);
        }
        let (kind, target) = match kind {
            Kind::Gateway => ("", self.via(family)),
            Kind::OnLink => ("", format!("dev {}", self.device())),
            Kind::Multipath => {
                let hops = self.random.between(2, 4);
                ("", (0..hops).map(|_| self.share()).collect())
            }
            Kind::Appended => ("", String::new()),
            Kind::Encapsulated => ("", format!("encap mpls 100 {}", self.via(family))),
            Kind::Object => {
                let number = 1 + self.random.below(OBJECTS as usize) as u32;
                ("", format!("nhid {}", self.id(number)))
            }
            Kind::Group => {
                let number = self.random.below(GROUPS as usize) as u32;
                ("", format!("nhid {}", self.id(FIRST_GROUP + number)))
            }
            Kind::BlackholeObject => ("", format!("nhid {}", self.id(BLACKHOLE_OBJECT))),
            Kind::Blackhole => ("blackhole ", String::new()),
            Kind::Unreachable => ("unreachable ", String::new()),
            Kind::Prohibit => ("prohibit ", String::new()),
            Kind::Throw => ("throw ", String::new()),
            Kind::Mtu => ("", format!("{} mtu {}", self.via(family), 1280 + self.random.below(200))),
            Kind::OtherTable => ("", format!("{} table {OTHER_TABLE}", self.via(family))),
            Kind::Tos => ("", format!("{} tos 0x10", self.via(family))),
            Kind::ForeignGateway => ("", self.via(Family::V6)),
            Kind::Stub => ("", format!("dev {STUB}")),
            Kind::Vrf => ("", format!("dev {VRF}")),
        };
        let table = self.of_table();
        // A metric after `nexthop …` is an error to `ip`.
        format!("route replace {kind}{prefix}{metric}{table} {target}")
    }

    /// Of several routes that differ in the gateway alone IPv6 makes one with several next hops, IPv4 uses the first.
    fn appended(&mut self, prefix: Prefix, metric: &str) -> String {
        let table = self.of_table();
        let hops = self.random.between(2, 4);
        let line =
            |make: &mut Self| format!("route append {prefix}{metric}{table} {}", make.via(make.family));
        let lines: Vec<String> = (0..hops).map(|_| line(self)).collect();
        lines.join("\n")
    }

    /// One hop of several.
    fn share(&mut self) -> String {
        let weight = self.random.between(1, 5);
        let family = self.family;
        match self.random.below(100) {
            0..92 => format!(" nexthop {} weight {weight}", self.via(family)),
            92..94 => format!(" nexthop dev {} weight {weight}", self.device()),
            94..96 => format!(" nexthop encap mpls 200 {} weight {weight}", self.via(family)),
            96..98 if family == Family::V4 => format!(" nexthop {} weight {weight}", self.via(Family::V6)),
            _ => format!(" nexthop dev {STUB} weight {weight}"),
        }
    }

    fn device(&mut self) -> String {
        let links = Plan::links_of(self.table);
        let link = *self.random.pick(&links);
        self.plan.links[link].name.clone()
    }

    fn objects(&mut self) -> Vec<String> {
        let mut lines: Vec<String> = (1..=OBJECTS)
            .map(|number| format!("nexthop replace id {} {}", self.id(number), self.via(self.family)))
            .collect();
        for group in 0..GROUPS {
            // Groups of one member are groups as well.
            let members = 1 + group % 4;
            let member = |make: &mut Self, number: u32| {
                format!("{},{}", make.id(1 + group + number * 5), make.random.between(1, 9))
            };
            let members: Vec<String> = (0..members).map(|number| member(self, number)).collect();
            let id = self.id(FIRST_GROUP + group);
            lines.push(format!("nexthop replace id {id} group {}", members.join("/")));
        }
        lines
    }
}

/// An address of the kernel's documentation range for a family, for what needs any address.
pub fn sentinel(family: Family) -> (IpAddr, Prefix) {
    let text = match family {
        Family::V4 => "203.0.113.77",
        Family::V6 => "2001:db8:77::77",
    };
    let prefix = Prefix::parse(text).unwrap_or(Prefix::new(family, 0, 0));
    (family.address(prefix.first()), prefix)
}

#[cfg(test)]
mod tests {
    use super::super::plan::TABLE_RED;
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_tables() {
        let plan = Plan::new();
        let tables = [TABLE_MAIN, TABLE_RED];
        for (family, table) in Family::ALL.into_iter().flat_map(|family| tables.map(|table| (family, table)))
        {
            let make = |seed| generate(&plan, family, table, 800, &mut Random::new(seed, 1));
            let (one, again, other) = (make(7), make(7), make(8));
            assert_eq!((&one.first, &one.second), (&again.first, &again.second));
            assert_ne!(one.first, other.first);
            let words =
                ["blackhole", "throw", "weight", "mtu", "metric", "dev stub", "append", "encap", "nhid"];
            for word in words {
                assert!(one.first.iter().any(|line| line.contains(word)), "no {word} in {family:?}");
            }
            let routes = one.first.iter().filter(|line| line.starts_with("route"));
            let is_ours = |line: &&String| line.contains(&format!(" table {TABLE_RED} "));
            let ours = routes.clone().filter(is_ours).count();
            assert_eq!(ours, if table == TABLE_RED { routes.count() } else { 0 });
            let nested = |outer: &Prefix| {
                one.prefixes
                    .iter()
                    .filter(|it| outer.len < it.len && outer.contains(family.address(it.first())))
                    .count()
            };
            let deep = one.prefixes.iter().filter(|it| it.len > 0).map(nested).max();
            assert!(deep > Some(10), "{deep:?} in {family:?}");
        }
    }
}
