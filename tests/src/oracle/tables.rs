//! Random routing tables, as lines for `ip -batch`: overlapping prefixes of all lengths, every kind of route.
//!
//! Some lines the kernel refuses (a gateway that another route hides, a next-hop object that is gone): what counts is
//! what the kernel has in the end, and the kernel is asked.

use std::net::IpAddr;

use super::plan::{LINKS, Neighbor, Plan, STUB};
use super::random::Random;
use super::{Family, Prefix, bits};

/// The table that nothing refers to.
const OTHER_TABLE: u32 = 100;
/// Next-hop objects of a family, numbered from 1 (IPv6: from 10,001).
const OBJECTS: u32 = 24;
const BLACKHOLE_OBJECT: u32 = 500;
const FIRST_GROUP: u32 = 1000;
const GROUPS: u32 = 8;
const FAMILY_STEP: u32 = 10_000;

/// What is done to the kernel's tables.
#[derive(Debug, Clone, Default)]
pub struct Tables {
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
}

const KINDS: &[(usize, Kind)] = &[
    (640, Kind::Gateway),
    (40, Kind::OnLink),
    (60, Kind::Multipath),
    (70, Kind::Object),
    (40, Kind::Group),
    (10, Kind::BlackholeObject),
    (50, Kind::Blackhole),
    (20, Kind::Unreachable),
    (20, Kind::Prohibit),
    (30, Kind::Throw),
    (20, Kind::Mtu),
    (30, Kind::OtherTable),
    (10, Kind::Tos),
    (10, Kind::ForeignGateway),
    (10, Kind::Stub),
];

/// Whether this is the id of a group of next hops.
pub fn is_group(id: u32) -> bool {
    id % FAMILY_STEP >= FIRST_GROUP
}

/// Tables of `count` routes.
pub fn generate(plan: &Plan, family: Family, count: usize, random: &mut Random) -> Tables {
    let mut make = Maker { plan, family, random, prefixes: vec![Prefix::new(family, 0, 0)] };
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

    let mut second = make.objects();
    for _ in 0..count / 4 {
        let prefix = *make.random.pick(&make.prefixes);
        let line = if make.random.percent(40) {
            format!("route del {prefix}{}", make.metric())
        } else {
            make.route(prefix)
        };
        second.push(line);
    }
    // The kernel drops the routes of an object with it, and tells nobody.
    second.push(format!("nexthop del id {}", make.id(7)));
    Tables { first, second, prefixes: make.prefixes }
}

struct Maker<'a> {
    plan: &'a Plan,
    family: Family,
    random: &'a mut Random,
    prefixes: Vec<Prefix>,
}

impl Maker<'_> {
    fn id(&self, number: u32) -> u32 {
        match self.family {
            Family::V4 => number,
            Family::V6 => FAMILY_STEP + number,
        }
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
        let own: Vec<Prefix> =
            self.plan.own.iter().map(|own| own.2).filter(|prefix| prefix.family == self.family).collect();
        let outer = *self.random.pick(&own);
        let bits = outer.first() | self.random.wide() & outer.last();
        Prefix::new(self.family, bits, self.random.between(outer.len + 1, self.family.width()))
    }

    fn neighbor(&mut self, family: Family) -> Neighbor {
        let of: Vec<&Neighbor> =
            self.plan.neighbors.iter().filter(|it| Family::of(it.addr) == family).collect();
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
        let metric = self.metric();
        let mut kind = self.random.weighted(KINDS);
        if family == Family::V6 {
            // No next-hop objects: routes of IPv6 share what the kernel caches in an object, and a FIB match then
            // answers with the prefix and the id of whichever of them was asked for first (Linux 6.1).
            if matches!(kind, Kind::Tos | Kind::ForeignGateway | Kind::Object | Kind::Group) {
                kind = Kind::Gateway;
            }
            // Without the option -6, which groups do not like, `ip` makes IPv4 objects of these.
            if matches!(kind, Kind::BlackholeObject) {
                kind = Kind::Blackhole;
            }
        }
        let (kind, target) = match kind {
            Kind::Gateway => ("", self.via(family)),
            Kind::OnLink => ("", format!("dev if{}", self.random.below(LINKS))),
            Kind::Multipath => {
                let hops = self.random.between(2, 4);
                let hop = |make: &mut Self| {
                    format!(" nexthop {} weight {}", make.via(family), make.random.between(1, 5))
                };
                ("", (0..hops).map(|_| hop(self)).collect())
            }
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
        };
        // A metric after `nexthop …` is an error to `ip`.
        format!("route replace {kind}{prefix}{metric} {target}")
    }

    fn objects(&mut self) -> Vec<String> {
        let mut lines: Vec<String> = (1..=OBJECTS)
            .map(|number| format!("nexthop replace id {} {}", self.id(number), self.via(self.family)))
            .collect();
        if self.family == Family::V4 {
            lines.push(format!("nexthop replace id {BLACKHOLE_OBJECT} blackhole"));
        }
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

/// The prefixes that have a route for a TOS, from what `ip -j route show table main` prints.
pub fn tos_prefixes(routes: &serde_json::Value) -> Vec<Prefix> {
    let with_tos = routes.as_array().into_iter().flatten().filter(|route| route.get("tos").is_some());
    with_tos
        .filter_map(|route| match route.get("dst")?.as_str()? {
            "default" => Prefix::parse("0.0.0.0/0"),
            prefix => Prefix::parse(prefix),
        })
        .collect()
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
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_tables() {
        let plan = Plan::new();
        for family in Family::ALL {
            let make = |seed| generate(&plan, family, 500, &mut Random::new(seed, 1));
            let (one, again, other) = (make(7), make(7), make(8));
            assert_eq!((&one.first, &one.second), (&again.first, &again.second));
            assert_ne!(one.first, other.first);
            for word in ["blackhole", "throw", "weight", "table 100", "mtu", "metric", "dev stub"] {
                assert!(one.first.iter().any(|line| line.contains(word)), "no {word} in {family:?}");
            }
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
