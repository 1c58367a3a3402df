//! From facts to obstacles: what in this kernel decides about packets otherwise than by destination. Pure.
//!
//! The host forwards by destination alone, and punts to this guest what an obstacle concerns. So in doubt there
//! is one: a packet punted for nothing is forwarded here, one not punted goes past what the operator set up.

use std::collections::BTreeMap;

use xenflow_proto::message::MAX_TEXT;
use xenflow_proto::table::{
    Family, IfIndex, Obstacle, ObstacleKey, ObstacleKind, Settings, TABLE_LOCAL, TABLE_MAIN,
};

use crate::facts::{Chain, Facts, Netconf, Says, Scope};
use crate::link::LinkFacts;
use crate::translate::{AF_INET, AF_INET6};

const TABLE_DEFAULT: u32 = 253;
const PRIORITY_LOCAL: u32 = 0;
/// Where administrators of VRFs move the rule of the local table, to have it after that of the VRFs.
const PRIORITY_LOCAL_LATE: u32 = 32765;
const PRIORITY_MAIN: u32 = 32766;
const PRIORITY_DEFAULT: u32 = 32767;

/// What the host is told besides the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Of the whole kernel.
    pub settings: Settings,
    /// One per key, in order of keys.
    pub obstacles: Vec<Obstacle>,
    /// The links that were looked at, with their IPv6 MTU. Of another link nothing is known.
    pub links: BTreeMap<IfIndex, Option<u32>>,
}

/// All obstacles in these facts.
#[must_use]
pub fn survey(facts: &Facts) -> Survey {
    let mut found = Found::default();
    for reason in &facts.unreadable {
        found.add(None, None, ObstacleKind::Unreadable, || reason.clone());
    }
    // What a kernel sends to itself, no host forwards.
    for link in facts.links.iter().filter(|link| !link.loopback) {
        ipv4(link, facts, &mut found);
        ipv6(link, facts, &mut found);
        if link.xdp {
            let detail = || format!("XDP program on {}", link.link.name);
            found.add(Some(link.link.ifindex), None, ObstacleKind::Xdp, detail);
        }
    }
    rules(Family::V4, facts, &mut found);
    rules(Family::V6, facts, &mut found);
    facts.chains.iter().for_each(|chain| netfilter(chain, facts, &mut found));
    for (family, tables) in [Family::V4, Family::V6].into_iter().zip(&facts.legacy_tables) {
        for table in tables {
            found.add(None, Some(family), ObstacleKind::Netfilter, || {
                format!("iptables-legacy table {table}")
            });
        }
    }
    for policy in &facts.policies {
        let family = match policy.family {
            Some(AF_INET) => Some(Family::V4),
            Some(AF_INET6) => Some(Family::V6),
            _ => None,
        };
        found.add(None, family, ObstacleKind::Xfrm, || policy.text.clone());
    }
    for (ifindex, text) in &facts.filters {
        found.add(Some(*ifindex), None, ObstacleKind::TrafficControl, || text.clone());
    }
    let [ipv4_hash_policy, ipv6_hash_policy] = facts.hash_policies;
    Survey {
        settings: Settings { ipv4_hash_policy, ipv6_hash_policy },
        obstacles: found.obstacles(),
        links: facts.links.iter().map(|link| (link.link.ifindex, link.link.ipv6_mtu)).collect(),
    }
}

/// By key: the first of its kind, and how many more there are.
#[derive(Debug, Default)]
struct Found(BTreeMap<ObstacleKey, (String, usize)>);

impl Found {
    fn add(
        &mut self,
        ifindex: Option<IfIndex>,
        family: Option<Family>,
        kind: ObstacleKind,
        detail: impl FnOnce() -> String,
    ) {
        let key = ObstacleKey { ifindex, family, kind };
        self.0.entry(key).and_modify(|(_, more)| *more += 1).or_insert_with(|| (detail(), 0));
    }

    fn obstacles(self) -> Vec<Obstacle> {
        let obstacle = |(key, (mut detail, more)): (ObstacleKey, (String, usize))| {
            let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
            detail.truncate(detail.floor_char_boundary(MAX_TEXT - rest.len()));
            Obstacle { key, detail: detail + &rest }
        };
        self.0.into_iter().map(obstacle).collect()
    }
}

fn of_scope(netconf: &[Netconf], scope: Scope) -> Option<&Netconf> {
    netconf.iter().find(|netconf| netconf.scope == scope)
}

/// `ip_route_input_slow` asks for `forwarding` of the link alone, `fib_validate_source` for the larger
/// `rp_filter` of the link's and `conf.all`'s.
fn ipv4(LinkFacts { link, .. }: &LinkFacts, facts: &Facts, found: &mut Found) {
    let [Some(netconf), _] = &facts.netconf else { return };
    let (ifindex, name, family) = (Some(link.ifindex), &link.name, Some(Family::V4));
    let Some(conf) = of_scope(netconf, Scope::Link(link.ifindex)) else {
        found.add(ifindex, family, ObstacleKind::ForwardingOff, || format!("IPv4 is not on {name}"));
        return;
    };
    if !conf.forwarding {
        let detail = || format!("net.ipv4.conf.{name}.forwarding = 0");
        found.add(ifindex, family, ObstacleKind::ForwardingOff, detail);
    }
    let all = of_scope(netconf, Scope::All).map_or(0, |all| all.rp_filter);
    if conf.rp_filter.max(all) != 0 {
        let (whose, value) = if conf.rp_filter >= all { (&**name, conf.rp_filter) } else { ("all", all) };
        let detail = || format!("net.ipv4.conf.{whose}.rp_filter = {value}");
        found.add(ifindex, family, ObstacleKind::ReversePathFilter, detail);
    }
}

/// `ip6_forward` asks for `conf.all.forwarding`, not for that of the link, which only makes it send no router
/// solicitations; `ip6_rcv_core` drops all that comes by a link with `disable_ipv6` or without IPv6. (Linux 6.17
/// lets `force_forwarding` of a link stand for that of all: then there is an obstacle for nothing.)
fn ipv6(LinkFacts { link, ipv6, .. }: &LinkFacts, facts: &Facts, found: &mut Found) {
    let [_, Some(netconf)] = &facts.netconf else { return };
    let name = &link.name;
    let mut off = |detail: String| {
        found.add(Some(link.ifindex), Some(Family::V6), ObstacleKind::ForwardingOff, || detail);
    };
    match of_scope(netconf, Scope::All) {
        Some(all) if all.forwarding => match ipv6 {
            None => off(format!("IPv6 is not on {name}")),
            Some(ipv6) if ipv6.disabled => off(format!("net.ipv6.conf.{name}.disable_ipv6 = 1")),
            Some(_) => {}
        },
        Some(_) => off("net.ipv6.conf.all.forwarding = 0".into()),
        None => {}
    }
}

/// The rules that every kernel begins with, and that of VRFs, are what the host knows of: a packet of a VRF looks
/// into the VRF's table, others into main.
///
/// The rule of the local table may stand first or after that of the VRFs. What the host finds in the local table
/// it punts, whichever comes first, and what is punted is decided here.
fn rules(family: Family, facts: &Facts, found: &mut Found) {
    let rules = match (family, &facts.rules) {
        (Family::V4, [Some(rules), _]) | (Family::V6, [_, Some(rules)]) => rules,
        (_, [_, _]) => return,
    };
    let mut add = |detail: String| found.add(None, Some(family), ObstacleKind::Rules, || detail);
    let mut wanted: Vec<(u32, &[u32])> =
        vec![(TABLE_LOCAL, &[PRIORITY_LOCAL, PRIORITY_LOCAL_LATE]), (TABLE_MAIN, &[PRIORITY_MAIN])];
    if family == Family::V4 {
        wanted.push((TABLE_DEFAULT, &[PRIORITY_DEFAULT]));
    }
    let mut l3mdev = false;
    for rule in rules {
        let priority = rule.priority;
        match &rule.says {
            Says::Table(table) => {
                let at = wanted.iter().position(|(of, places)| of == table && places.contains(&priority));
                match at {
                    Some(at) => drop(wanted.remove(at)),
                    None => add(format!("{priority}: from all lookup {table}")),
                }
            }
            Says::L3mdev if priority < PRIORITY_MAIN => l3mdev = true,
            Says::L3mdev => add(format!("{priority}: from all lookup [l3mdev-table]")),
            Says::Other(text) => add(format!("{priority}: {text}")),
        }
    }
    for (table, places) in wanted {
        let place = places.first().unwrap_or(&0);
        add(format!("no rule {place}: from all lookup {table}"));
    }
    if let Some(vrf) = facts.links.iter().find(|link| link.link.kind == "vrf" && !l3mdev) {
        add(format!("VRF {} without a rule [l3mdev-table] before main", vrf.link.name));
    }
}

/// `NFPROTO_*` and `NF_INET_*`, `NF_NETDEV_*` of `linux/netfilter.h`.
fn netfilter(chain: &Chain, facts: &Facts, found: &mut Found) {
    const INET: u8 = 1;
    const IPV4: u8 = 2;
    const NETDEV: u8 = 5;
    const IPV6: u8 = 10;

    let hook = match (chain.family, chain.hook) {
        (INET | IPV4 | IPV6, 0) => "prerouting",
        // What is for this guest or from it, it decides about itself.
        (INET | IPV4 | IPV6, 1 | 3) => return,
        (INET | IPV4 | IPV6, 2) => "forward",
        (INET | IPV4 | IPV6, 4) => "postrouting",
        (INET, 5) | (NETDEV, 0) => "ingress",
        (NETDEV, 1) => "egress",
        (INET | IPV4 | IPV6 | NETDEV, _) => "unknown",
        // ARP and bridges.
        _ => return,
    };
    let (family, word) = match chain.family {
        IPV4 => (Some(Family::V4), "ip"),
        IPV6 => (Some(Family::V6), "ip6"),
        INET => (None, "inet"),
        _ => (None, "netdev"),
    };
    let detail = || format!("table {word} {} chain {} hook {hook}", chain.table, chain.name);
    let mut add = |ifindex| found.add(ifindex, family, ObstacleKind::Netfilter, detail);
    if chain.devices.is_empty() {
        // One that hangs at no link yet does nothing.
        if !matches!(hook, "ingress" | "egress") {
            add(None);
        }
        return;
    }
    let named = |name: &str| {
        chain.devices.iter().any(|device| match device.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == device,
        })
    };
    facts.links.iter().filter(|link| named(&link.link.name)).for_each(|link| add(Some(link.link.ifindex)));
}

/// In one line for people, as "eth1 IPv4: rp_filter is on (net.ipv4.conf.eth1.rp_filter = 2)".
#[must_use]
pub fn describe(obstacle: &Obstacle, name: impl Fn(u32) -> String) -> String {
    let Obstacle { key: ObstacleKey { ifindex, family, kind }, detail } = obstacle;
    let family = match family {
        Some(Family::V4) => " IPv4",
        Some(Family::V6) => " IPv6",
        None => "",
    };
    let whose = ifindex.map_or_else(|| "all".into(), name);
    format!("{whose}{family}: {} ({detail})", kind.as_str())
}
