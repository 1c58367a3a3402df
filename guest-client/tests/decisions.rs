//! What is decided from facts: which are obstacles, and which neighbors are asked.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use xenflow_guest_client::facts::{Chain, Facts, Netconf, Policy, Rule, Says, Scope};
use xenflow_guest_client::link::{Ipv6, LinkFacts};
use xenflow_guest_client::mirror::Mirror;
use xenflow_guest_client::neighbors::{Entry, PAUSE, PROTOCOL, Pace, ROUND, Request, Wanted, wanted};
use xenflow_guest_client::obstacles::survey;
use xenflow_guest_client::translate::Event;
use xenflow_proto::message::MAX_TEXT;
use xenflow_proto::table::{Family, Link, Neighbor, NeighborKey, ObstacleKind};
use xenflow_proto::{MacAddr, Object};

fn link(ifindex: u32, kind: &str) -> LinkFacts {
    LinkFacts {
        link: Link {
            ifindex,
            name: format!("eth{ifindex}"),
            mac: None,
            mtu: 1500,
            up: true,
            running: true,
            kind: kind.into(),
            master: None,
            vrf_table: None,
            ipv6_mtu: Some(1500),
        },
        loopback: false,
        xdp: false,
        ipv6: Some(Ipv6 { mtu: 1500, disabled: false }),
    }
}

fn netconf(scope: Scope) -> Netconf {
    Netconf { scope, forwarding: true, rp_filter: 0 }
}

fn rules(rules: &[(u32, u32)]) -> Option<Vec<Rule>> {
    let rule = |&(priority, table)| Rule { priority, says: Says::Table(table) };
    Some(rules.iter().map(rule).collect())
}

/// A router with nothing in the way, and these links.
fn plain(links: &[LinkFacts]) -> Facts {
    let conf = [Scope::All, Scope::Default].into_iter();
    let conf = conf.chain(links.iter().map(|link| Scope::Link(link.link.ifindex))).map(netconf);
    let conf: Vec<Netconf> = conf.collect();
    Facts {
        links: links.to_vec(),
        netconf: [Some(conf.clone()), Some(conf)],
        rules: [rules(&[(0, 255), (32766, 254), (32767, 253)]), rules(&[(0, 255), (32766, 254)])],
        ..Facts::default()
    }
}

/// In few words: kind, family, link, detail.
fn found(facts: &Facts) -> Vec<String> {
    let text = |o: xenflow_proto::table::Obstacle| {
        let family = match o.key.family {
            Some(Family::V4) => "4",
            Some(Family::V6) => "6",
            None => "-",
        };
        format!("{:?} {family} {} {}", o.key.kind, o.key.ifindex.unwrap_or(0), o.detail)
    };
    survey(facts).obstacles.into_iter().map(text).collect()
}

#[test]
fn a_plain_router_has_no_obstacle() {
    assert_eq!(found(&plain(&[link(1, ""), link(2, "veth")])), [""; 0]);
}

#[test]
fn a_kernel_without_ipv6_has_none_of_it() {
    let mut bare = link(1, "");
    bare.ipv6 = None;
    let mut facts = plain(&[bare]);
    facts.netconf[1] = None;
    facts.rules[1] = None;
    assert_eq!(found(&facts), [""; 0]);
}

#[test]
fn ipv6_is_forwarded_by_the_setting_of_all() {
    let mut facts = plain(&[link(1, "")]);
    for conf in facts.netconf[1].as_mut().unwrap() {
        conf.forwarding = conf.scope == Scope::All;
    }
    assert_eq!(found(&facts), [""; 0]);
    for conf in facts.netconf[1].as_mut().unwrap() {
        conf.forwarding = conf.scope != Scope::All;
    }
    assert_eq!(found(&facts), ["ForwardingOff 6 1 net.ipv6.conf.all.forwarding = 0"]);
}

#[test]
fn ipv4_is_forwarded_by_the_setting_of_the_link() {
    let mut facts = plain(&[link(1, ""), link(2, "")]);
    for conf in facts.netconf[0].as_mut().unwrap() {
        conf.forwarding = conf.scope == Scope::Link(1);
    }
    assert_eq!(found(&facts), ["ForwardingOff 4 2 net.ipv4.conf.eth2.forwarding = 0"]);
    facts.netconf[0].as_mut().unwrap().retain(|conf| conf.scope != Scope::Link(1));
    assert!(found(&facts).contains(&"ForwardingOff 4 1 IPv4 is not on eth1".to_owned()));
}

#[test]
fn a_link_without_ipv6_drops_it() {
    let (mut none, mut disabled, mut lo) = (link(1, ""), link(2, ""), link(3, ""));
    none.ipv6 = None;
    disabled.ipv6 = Some(Ipv6 { mtu: 1500, disabled: true });
    (lo.ipv6, lo.loopback) = (None, true);
    assert_eq!(
        found(&plain(&[none, disabled, lo])),
        ["ForwardingOff 6 1 IPv6 is not on eth1", "ForwardingOff 6 2 net.ipv6.conf.eth2.disable_ipv6 = 1"]
    );
}

#[test]
fn xdp_is_in_the_way_of_its_link() {
    let mut with = link(2, "");
    with.xdp = true;
    assert_eq!(found(&plain(&[link(1, ""), with])), ["Xdp - 2 XDP program on eth2"]);
}

#[test]
fn rules_of_a_kernel_with_vrfs() {
    let l3mdev = || Rule { priority: 1000, says: Says::L3mdev };
    let vrf = || [link(1, ""), link(2, "vrf")];
    let missing = |n| format!("Rules {n} 0 VRF eth2 without a rule [l3mdev-table] before main");
    assert_eq!(found(&plain(&vrf())), [missing(4), missing(6)]);

    let mut facts = plain(&vrf());
    for rules in facts.rules.iter_mut().flatten() {
        rules.insert(1, l3mdev());
    }
    assert_eq!(found(&facts), [""; 0]);
    // The local table after those of VRFs.
    for rules in facts.rules.iter_mut().flatten() {
        rules[0].priority = 32765;
        rules.swap(0, 1);
    }
    assert_eq!(found(&facts), [""; 0]);
    facts.rules[0].as_mut().unwrap()[0].priority = 32766;
    assert_eq!(found(&facts), ["Rules 4 0 32766: from all lookup [l3mdev-table] and 1 more"]);
}

#[test]
fn tables_out_of_place() {
    let mut facts = plain(&[]);
    facts.rules[0] = rules(&[(0, 255), (32766, 254)]);
    assert_eq!(found(&facts), ["Rules 4 0 no rule 32767: from all lookup 253"]);
    facts.rules[0] = rules(&[(5, 255), (32766, 254), (32767, 253)]);
    assert_eq!(found(&facts), ["Rules 4 0 5: from all lookup 255 and 1 more"]);
    facts.rules[0] = rules(&[(0, 255), (0, 254), (32766, 254), (32767, 253)]);
    assert_eq!(found(&facts), ["Rules 4 0 0: from all lookup 254"]);
    facts.rules[0] = rules(&[(0, 255), (32766, 254), (32766, 254), (32767, 253)]);
    assert_eq!(found(&facts), ["Rules 4 0 32766: from all lookup 254"]);
    facts.rules[0] = Some(Vec::new());
    assert_eq!(found(&facts), ["Rules 4 0 no rule 0: from all lookup 255 and 2 more"]);
}

#[test]
fn chains_where_forwarded_packets_pass() {
    let chain = |family, hook, devices: &[&str]| Chain {
        family,
        table: "t".into(),
        name: "c".into(),
        hook,
        devices: devices.iter().map(|&device| device.into()).collect(),
    };
    let with = |chain| {
        let mut facts = plain(&[link(1, ""), link(2, ""), link(12, "")]);
        facts.chains.push(chain);
        found(&facts)
    };
    assert_eq!(with(chain(1, 0, &[])), ["Netfilter - 0 table inet t chain c hook prerouting"]);
    assert_eq!(with(chain(2, 2, &[])), ["Netfilter 4 0 table ip t chain c hook forward"]);
    assert_eq!(with(chain(10, 4, &[])), ["Netfilter 6 0 table ip6 t chain c hook postrouting"]);
    for (family, hook) in [(1, 1), (2, 1), (10, 1), (1, 3), (2, 3), (10, 3), (3, 0), (7, 2)] {
        assert_eq!(with(chain(family, hook, &[])), [""; 0], "family {family} hook {hook}");
    }
    assert_eq!(with(chain(5, 0, &["eth2"])), ["Netfilter - 2 table netdev t chain c hook ingress"]);
    assert_eq!(with(chain(5, 1, &["eth1*"])).len(), 2, "eth1 and eth12");
    assert_eq!(with(chain(1, 5, &["eth12"])), ["Netfilter - 12 table inet t chain c hook ingress"]);
    assert_eq!(with(chain(5, 0, &["gone0"])), [""; 0]);
    assert_eq!(with(chain(2, 9, &[])), ["Netfilter 4 0 table ip t chain c hook unknown"]);
}

#[test]
fn tables_of_iptables() {
    let mut facts = plain(&[]);
    facts.legacy_tables = [vec!["nat".into(), "filter".into()], vec!["mangle".into()]];
    assert_eq!(
        found(&facts),
        ["Netfilter 4 0 iptables-legacy table nat and 1 more", "Netfilter 6 0 iptables-legacy table mangle"]
    );
}

#[test]
fn many_of_a_kind_are_one_and_no_text_is_too_long() {
    let mut facts = plain(&[]);
    let text = "ä".repeat(MAX_TEXT);
    facts.policies = vec![Policy { family: Some(2), text: text.clone() }; 1000];
    facts.unreadable = vec![text];
    let survey = survey(&facts);
    assert_eq!(survey.obstacles.len(), 2);
    for obstacle in &survey.obstacles {
        assert!(obstacle.detail.len() <= MAX_TEXT, "{} bytes", obstacle.detail.len());
    }
    assert!(survey.obstacles[1].detail.ends_with(" and 999 more"));
}

proptest! {
    /// Whatever else there is: what is wrong of one link is told of that link, and nothing of others.
    #[test]
    fn each_link_for_itself(
        all_rp in 0..3u32,
        links in prop::collection::vec((any::<bool>(), 0..3u32, any::<bool>(), any::<bool>()), 1..6),
    ) {
        let facts_of: Vec<LinkFacts> = (1u32..).zip(&links).map(|(n, (_, _, xdp, disabled))| {
            let mut link = link(n, "");
            (link.xdp, link.ipv6) = (*xdp, Some(Ipv6 { mtu: 1500, disabled: *disabled }));
            link
        }).collect();
        let mut facts = plain(&facts_of);
        for conf in facts.netconf[0].as_mut().unwrap() {
            match conf.scope {
                Scope::All => conf.rp_filter = all_rp,
                // Of links to come.
                Scope::Default => (conf.forwarding, conf.rp_filter) = (false, 2),
                Scope::Link(n) => (conf.forwarding, conf.rp_filter) =
                    (links[n as usize - 1].0, links[n as usize - 1].1),
            }
        }
        let obstacles = survey(&facts).obstacles;
        for (n, (forwarding, rp, xdp, disabled)) in (1u32..).zip(links) {
            let has = |kind, family| obstacles.iter().any(|o| {
                o.key.ifindex == Some(n) && o.key.kind == kind && o.key.family == family
            });
            prop_assert_eq!(has(ObstacleKind::ForwardingOff, Some(Family::V4)), !forwarding);
            prop_assert_eq!(has(ObstacleKind::ReversePathFilter, Some(Family::V4)), rp.max(all_rp) > 0);
            prop_assert_eq!(has(ObstacleKind::Xdp, None), xdp);
            prop_assert_eq!(has(ObstacleKind::ForwardingOff, Some(Family::V6)), disabled);
        }
        let keys: BTreeSet<_> = obstacles.iter().map(|o| o.key).collect();
        prop_assert_eq!(keys.len(), obstacles.len(), "one per key");
    }

    /// Any rule that is not one of the kernel's own is told, wherever it stands.
    #[test]
    fn no_rule_is_overlooked(at in 0..3usize, priority in 1..40_000u32, table in 1..300u32) {
        let mut facts = plain(&[]);
        facts.rules[0].as_mut().unwrap().insert(at, Rule { priority, says: Says::Table(table) });
        // Even a second of the kernel's own: nobody knows why it is there.
        prop_assert!(!found(&facts).is_empty());
    }
}

fn key(n: u8) -> NeighborKey {
    NeighborKey { ifindex: u32::from(n % 3) + 1, addr: Ipv4Addr::new(192, 0, 2, n).into() }
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let state = prop::sample::select(vec![0u16, 1, 2, 4, 4, 4, 8, 0x10, 0x20, 0x40, 0x80]);
    let flags = prop::sample::select(vec![0u8, 0, 0, 0x10, 0x80, 8]);
    let entry = (state, flags, any::<bool>(), prop::sample::select(vec![0, PROTOCOL, 186]));
    prop::collection::btree_map(any::<u8>(), entry, 0..200).prop_map(|entries| {
        let entry =
            |(n, (state, flags, managed, protocol))| Entry { key: key(n), state, flags, managed, protocol };
        entries.into_iter().map(entry).collect()
    })
}

proptest! {
    #[test]
    fn nobody_elses_entry_is_touched(
        entries in entries(),
        gateways in prop::collection::btree_set(any::<u8>(), 0..100),
        links in prop::collection::btree_set(1..4u32, 0..3),
        rounds in prop::collection::vec(0..40u64, 1..6),
    ) {
        let wanted = Wanted { gateways: gateways.into_iter().map(key).collect(), links };
        let by_key: BTreeMap<NeighborKey, Entry> = entries.iter().map(|e| (e.key, *e)).collect();
        let mut pace = Pace::default();
        let mut asked: BTreeMap<NeighborKey, Duration> = BTreeMap::new();
        let mut now = Duration::ZERO;
        for pause in rounds {
            now += Duration::from_secs(pause);
            let requests = pace.plan(now, &entries, &wanted);
            prop_assert!(requests.len() <= ROUND);
            for request in requests {
                let entry = by_key.get(&request.key());
                let ours = entry.is_some_and(|e| e.managed && e.protocol == PROTOCOL);
                let gateway = wanted.gateways.contains(&request.key());
                let on_link = wanted.links.contains(&request.key().ifindex);
                match request {
                    Request::Release(_) => prop_assert!(ours && !(gateway && on_link)),
                    Request::Add(_) | Request::Manage(_) | Request::Probe(_) => {
                        prop_assert!(on_link, "{:?}", request);
                        prop_assert_eq!(gateway, !matches!(request, Request::Probe(_)));
                        let free = |e: &Entry| e.state & 0xc0 == 0 && e.flags & 0x18 == 0 && !e.managed;
                        prop_assert!(entry.is_none_or(free), "{:?}", request);
                        prop_assert!(gateway || entry.is_some_and(|e| e.state == 4), "only stale ones");
                        let before = asked.insert(request.key(), now);
                        prop_assert!(before.is_none_or(|before| before + PAUSE <= now), "{:?}", request);
                    }
                }
            }
        }
    }
}

/// More than a round may ask: all get their turn.
#[test]
fn all_stale_neighbors_are_asked_in_time() {
    let stale: Vec<Entry> = (0..=u8::MAX)
        .map(|n| Entry { key: key(n), state: 4, flags: 0, managed: false, protocol: 0 })
        .collect();
    let wanted = Wanted { gateways: BTreeSet::new(), links: [1, 2, 3].into() };
    let mut pace = Pace::default();
    let mut asked = BTreeSet::new();
    for round in 0..4 {
        asked.extend(pace.plan(Duration::from_secs(2 * round), &stale, &wanted).iter().map(Request::key));
    }
    assert_eq!(asked.len(), 256);
}

/// Neighbors that the host sends to are kept like gateways, as long as they are there.
#[test]
fn neighbors_in_use_are_kept() {
    let mut mirror = Mirror::new(&[0; 16]);
    let (there, gone) = (key(1), key(2));
    let neighbor = Neighbor { key: there, mac: MacAddr([2, 0, 0, 0, 0, 1]) };
    let _ = mirror.apply(Event::Upsert(Object::Neighbor(neighbor)), Duration::ZERO);
    let mut port = link(there.ifindex, "").link;
    port.mac = Some(MacAddr([2, 0, 0, 0, 0, 2]));
    let _ = mirror.apply(Event::Upsert(Object::Link(port)), Duration::ZERO);

    let all = wanted(&mirror, "ctl0", &[there, gone]);
    assert_eq!((all.gateways.clone(), all.links.clone()), ([there].into(), [there.ifindex].into()));
    let entry = Entry { key: there, state: 2, flags: 0, managed: false, protocol: 0 };
    assert_eq!(Pace::default().plan(Duration::ZERO, &[entry], &all), [Request::Manage(there)]);
    let none = wanted(&mirror, "ctl0", &[]);
    let ours = Entry { managed: true, protocol: PROTOCOL, ..entry };
    assert_eq!(Pace::default().plan(Duration::ZERO, &[ours], &none), [Request::Release(there)]);
}
