//! The plan of changes: keys of the guest's kernel that come and go, and the lines for `lab routes` that make them.
//!
//! None of them changes what is right for the probe's packets. No key is touched twice in a short time, so that
//! every change is one that the host is told of.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use crate::oracle::random::Random;

/// The probe's prefix.
pub(super) const STABLE: &str = "10.99.1.0/24";
/// Prefixes far off, and around the stable one.
const FAR: usize = 6000;
/// Of a hundred changes, how many are of keys near the stable prefix.
const NEAR_PERCENT: usize = 10;
/// Of a thousand changes, how many are of next-hop objects, each of which makes the client look at all tables.
const OBJECTS_PER_MILLE: usize = 1;
/// Other gateways than the stable one, with neighbors that are there for good.
const GATEWAYS: [(&str, &str); 6] = [
    ("10.1.0.20", "lan1"),
    ("10.1.0.21", "lan1"),
    ("10.1.0.22", "lan1"),
    ("10.2.0.20", "lan2"),
    ("10.2.0.21", "lan2"),
    ("10.2.0.22", "lan2"),
];

/// Which changes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All.
    All,
    /// Only those that leave no right way for the probe's packets without the stable route.
    LeavesNothing,
}

/// A key that comes and goes.
#[derive(Debug)]
struct Toggle {
    add: String,
    remove: String,
    present: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Churn {
    far: Vec<Toggle>,
    near: Vec<Toggle>,
    objects: Vec<Toggle>,
}

/// Lines for `lab routes`.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) text: String,
    pub(super) changes: u64,
}

impl Churn {
    pub(super) fn new(scope: Scope, random: &mut Random) -> Self {
        let mut near = around(random);
        let mut objects = Vec::new();
        if scope == Scope::All {
            near.extend(same_way());
            objects = next_hop_objects();
        }
        Self { far: far(random), near, objects }
    }

    /// `count` random changes, none of a key among the last `memory` ones in `recent`.
    pub(super) fn lines(
        &mut self,
        count: usize,
        recent: &mut VecDeque<(u8, usize)>,
        memory: usize,
        random: &mut Random,
    ) -> Lines {
        let mut text = String::new();
        for _ in 0..count {
            let (kind, at) = loop {
                let draw = random.below(1000);
                let kind = match draw {
                    _ if draw < OBJECTS_PER_MILLE && !self.objects.is_empty() => 2,
                    _ if draw < NEAR_PERCENT * 10 => 1,
                    _ => 0,
                };
                let key = (kind, random.below(self.pool(kind).len()));
                if !recent.contains(&key) {
                    break key;
                }
            };
            if recent.len() >= memory {
                recent.pop_front();
            }
            recent.push_back((kind, at));
            let toggle = &mut self.pool(kind)[at];
            text.push_str(if toggle.present { &toggle.remove } else { &toggle.add });
            toggle.present = !toggle.present;
        }
        Lines { text, changes: count as u64 }
    }

    fn pool(&mut self, kind: u8) -> &mut Vec<Toggle> {
        match kind {
            0 => &mut self.far,
            1 => &mut self.near,
            _ => &mut self.objects,
        }
    }

    /// How many of the prefixes far off are there.
    pub(super) fn present_far(&self) -> usize {
        self.far.iter().filter(|toggle| toggle.present).count()
    }

    /// Lines that take everything away.
    pub(super) fn removals(&mut self) -> String {
        let all = [&mut self.far, &mut self.near, &mut self.objects];
        let mut text = String::new();
        for toggle in all.into_iter().flatten().filter(|toggle| toggle.present) {
            text.push_str(&toggle.remove);
            toggle.present = false;
        }
        text
    }
}

/// Whether a flow, as `ovs-ofctl` prints it, is of a prefix far off.
pub(super) fn is_far(flow: &str) -> bool {
    let prefix = flow.split_once("nw_dst=").map_or("", |(_, rest)| rest);
    let octets: Vec<&str> = prefix.splitn(3, '.').collect();
    octets.first() == Some(&"10")
        && octets.get(1).and_then(|octet| octet.parse().ok()).is_some_and(|octet: u8| octet >= 128)
}

/// Neighbors for the gateways.
pub(super) fn neighbor_lines() -> String {
    let line = |(at, (gateway, dev)): (usize, &(&str, &str))| {
        format!("neigh add {gateway} lladdr 02:aa:00:00:00:{at:02x} dev {dev} nud permanent\n")
    };
    GATEWAYS.iter().enumerate().map(line).collect()
}

/// A route that comes and goes. `metric` 0 is none.
fn route(prefix: &str, metric: usize, way: &str) -> Toggle {
    let metric = if metric == 0 { String::new() } else { format!(" metric {metric}") };
    Toggle {
        add: format!("route add {prefix}{way}{metric}\n"),
        remove: format!("route del {prefix}{metric}\n"),
        present: false,
    }
}

fn another_way(random: &mut Random) -> String {
    let (gateway, dev) = random.pick(&GATEWAYS);
    format!(" via {gateway} dev {dev}")
}

/// Prefixes of 10.128.0.0/9.
fn far(random: &mut Random) -> Vec<Toggle> {
    let mut seen = BTreeSet::new();
    let mut toggles = Vec::new();
    while toggles.len() < FAR {
        let len = random.between(12, 32);
        let bits = 0x0a80_0000 | (random.bits() as u32 & 0x007f_ffff);
        let prefix = format!("{}/{len}", Ipv4Addr::from(bits & (u32::MAX << (32 - len))));
        if !seen.insert(prefix.clone()) {
            continue;
        }
        toggles.push(match random.below(20) {
            0 => {
                let kind = random.pick(&["blackhole", "unreachable", "prohibit"]);
                route(&format!("{kind} {prefix}"), 0, "")
            }
            _ => route(&prefix, 0, &another_way(random)),
        });
    }
    toggles
}

/// Prefixes that hold the stable one or lie in it, and worse routes to it, all by another way.
fn around(random: &mut Random) -> Vec<Toggle> {
    let mut toggles = Vec::new();
    let target = u32::from(Ipv4Addr::new(10, 99, 1, 1));
    for len in 8..24_u8 {
        let prefix = format!("{}/{len}", Ipv4Addr::from(target & (u32::MAX << (32 - len))));
        for metric in [0, 20, 30] {
            toggles.push(route(&prefix, metric, &another_way(random)));
        }
    }
    for len in 25..=32_u8 {
        // The other half of what holds the target, bit by bit.
        let sibling = (target ^ (1 << (32 - len))) & (u32::MAX << (32 - len));
        let prefix = format!("{}/{len}", Ipv4Addr::from(sibling));
        for metric in [0, 20] {
            toggles.push(route(&prefix, metric, &another_way(random)));
        }
    }
    for last in 2..=200 {
        toggles.push(route(&format!("10.99.1.{last}/32"), 40, &another_way(random)));
    }
    for metric in 100..=199 {
        toggles.push(route(STABLE, metric, &another_way(random)));
    }
    toggles
}

/// What changes the route of the probe's packets, but not their way.
fn same_way() -> Vec<Toggle> {
    let mut toggles: Vec<Toggle> = (1..=20)
        .flat_map(|metric| {
            ["10.99.1.0/25", "10.99.1.0/26", "10.99.1.0/30", "10.99.1.1/32"]
                .map(|prefix| route(prefix, metric, " nhid 2"))
        })
        .collect();
    // The route itself, by either of two next-hop objects.
    toggles.push(Toggle {
        add: format!("route replace {STABLE} nhid 2\n"),
        remove: format!("route replace {STABLE} nhid 1\n"),
        present: false,
    });
    toggles
}

/// Objects that no route uses.
fn next_hop_objects() -> Vec<Toggle> {
    let object = |id| Toggle {
        add: format!("nexthop add id {id} via {} dev lan2\n", super::GATEWAY),
        remove: format!("nexthop del id {id}\n"),
        present: false,
    };
    (100..200).map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_rest_between_changes() {
        let mut random = Random::new(7, 1);
        let mut churn = Churn::new(Scope::All, &mut random);
        let mut recent = VecDeque::new();
        let text: String = (0..10).map(|_| churn.lines(100, &mut recent, 1000, &mut random).text).collect();
        let keys: BTreeSet<&str> = text.lines().collect();
        assert_eq!(keys.len(), 1000);
        // The first thousand only add.
        assert!(text.lines().all(|line| line.contains(" add ") || line.contains("nhid 2")));
        let present = churn.present_far();
        assert!((800..1000).contains(&present), "{present}");
        assert!(churn.removals().lines().count() == 1000 && churn.present_far() == 0);
    }

    #[test]
    fn prefixes_far_off_are_told_from_others() {
        assert!(is_far("table=3, priority=70,ip,reg4=0x1,nw_dst=10.128.0.0/12 actions=drop"));
        assert!(!is_far("table=3, priority=74,ip,reg4=0x1,nw_dst=10.99.1.0/24 actions=drop"));
        assert!(!is_far("table=3, priority=1 actions=drop"));
    }
}
