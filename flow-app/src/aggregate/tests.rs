//! Against the longest match among all prefixes, at every step of every change; and the cost.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;

type Table = BTreeMap<Prefix, Label>;

fn longest_match(table: &Table, number: u32, addr: IpAddr) -> Option<Label> {
    let covers = |prefix: &Prefix| prefix.table == number && prefix.dst.contains(&addr);
    let found = table.iter().filter(|(prefix, _)| covers(prefix));
    found.max_by_key(|(prefix, _)| prefix.dst.prefix_len()).map(|(_, label)| *label)
}

/// The first and the last address of each prefix, and those beside it.
fn addresses<'a>(prefixes: impl Iterator<Item = &'a Prefix>) -> Vec<(u32, IpAddr)> {
    let mut found = Vec::new();
    for prefix in prefixes {
        let (first, last) = (prefix.dst.network(), prefix.dst.broadcast());
        let around = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => [
                first.to_bits().wrapping_sub(1),
                first.to_bits(),
                last.to_bits(),
                last.to_bits().wrapping_add(1),
            ]
            .map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
            (IpAddr::V6(first), IpAddr::V6(last)) => [
                first.to_bits().wrapping_sub(1),
                first.to_bits(),
                last.to_bits(),
                last.to_bits().wrapping_add(1),
            ]
            .map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => continue,
        };
        found.extend(around.map(|addr| (prefix.table, addr)));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Makes the changes one by one. At each step every address meets what it met before, or what it is to meet.
fn make(held: &mut Table, changes: Vec<Change>, before: &Table, after: &Table) -> TestCaseResult {
    let mut probes = addresses(before.keys().chain(after.keys()));
    probes.extend(addresses(held.keys()));
    for (prefix, label) in changes {
        let is_new = match label {
            Some(label) => held.insert(prefix, label) != Some(label),
            None => held.remove(&prefix).is_some(),
        };
        prop_assert!(is_new, "nothing is done twice: {prefix:?}");
        for (number, addr) in &probes {
            let met = longest_match(held, *number, *addr);
            let (old, new) = (longest_match(before, *number, *addr), longest_match(after, *number, *addr));
            prop_assert!(met == old || met == new, "{addr}: {met:?} is neither {old:?} nor {new:?}");
        }
    }
    for (number, addr) in probes {
        prop_assert_eq!(longest_match(held, number, addr), longest_match(after, number, addr), "{}", addr);
    }
    Ok(())
}

/// Prefixes that often cover one another, across the borders of blocks.
fn prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (0_u32..16, 0_u8..=32, any::<bool>()).prop_map(|(bits, len, is_long)| {
        let len = if is_long { 12 + len % 8 } else { len };
        let addr = bits.reverse_bits() >> 14 | 0x0A00_0000 | (bits << 1);
        IpNet::new(Ipv4Addr::from_bits(addr).into(), len).unwrap().trunc()
    });
    let v6 = (0_u128..16, 0_u8..=128, any::<bool>()).prop_map(|(bits, len, is_long)| {
        let len = if is_long { 28 + len % 8 } else { len };
        let addr = (bits.reverse_bits() >> 30) | 0x2001_0000_u128 << 96 | bits << 1;
        IpNet::new(Ipv6Addr::from_bits(addr).into(), len).unwrap().trunc()
    });
    (254_u32..256, prop_oneof![3 => v4, 1 => v6]).prop_map(|(table, dst)| Prefix { table, dst })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_address_meets_its_label_at_every_step(
        words in vec(vec((prefix(), weighted(0.7, 0_u32..3)), 1..6), 1..24)
    ) {
        let (mut aggregate, mut held, mut wanted) = (Aggregate::default(), Table::new(), Table::new());
        for word in words {
            let before = wanted.clone();
            for (prefix, label) in word {
                aggregate.set(prefix, label);
                match label {
                    Some(label) => wanted.insert(prefix, label),
                    None => wanted.remove(&prefix),
                };
            }
            let changes = aggregate.settle();
            make(&mut held, changes, &before, &wanted)?;
            prop_assert!(held.len() <= wanted.len(), "{} entries for {} prefixes", held.len(), wanted.len());
            prop_assert_eq!(aggregate.entries_after(None).count(), held.len());
            prop_assert!(aggregate.blocks.values().all(|block| !block.prefixes.is_empty()), "nothing is left behind");
            let mut all = Aggregate::default();
            for (prefix, label) in &wanted {
                all.set(*prefix, Some(*label));
            }
            let all: Table = all.settle().into_iter().map(|(prefix, label)| (prefix, label.unwrap())).collect();
            prop_assert_eq!(&all, &held, "it depends on prefixes and labels alone");
        }
    }

    #[test]
    fn a_place_has_one_prefix(prefix in prefix()) {
        let (root, node) = place_of(prefix);
        prop_assert_eq!(prefix_of((prefix.table, root), node), prefix);
    }
}

fn v4(text: &str) -> Prefix {
    Prefix { table: 254, dst: text.parse().unwrap() }
}

fn settled(prefixes: &[(&str, Label)]) -> Vec<(String, Label)> {
    let mut aggregate = Aggregate::default();
    for (dst, label) in prefixes {
        aggregate.set(v4(dst), Some(*label));
    }
    aggregate.settle().into_iter().map(|(prefix, label)| (prefix.dst.to_string(), label.unwrap())).collect()
}

#[test]
fn halves_become_one_and_what_says_nothing_new_goes() {
    let of = |prefixes: &[(&str, Label)]| settled(prefixes);
    assert_eq!(of(&[("10.0.0.0/24", 1), ("10.0.1.0/24", 1)]), [("10.0.0.0/23".into(), 1)]);
    assert_eq!(of(&[("10.0.0.0/20", 1), ("10.0.1.0/24", 1)]), [("10.0.0.0/20".into(), 1)]);
    assert_eq!(of(&[("10.0.0.0/16", 1), ("10.0.1.0/24", 1)]), [("10.0.0.0/16".into(), 1)]);
    // Three quarters and one: the shorter one changes its label, and another one goes.
    assert_eq!(
        of(&[("10.0.0.0/22", 2), ("10.0.0.0/24", 1), ("10.0.1.0/24", 1), ("10.0.2.0/24", 1)]),
        [("10.0.3.0/24".into(), 2), ("10.0.0.0/22".into(), 1)]
    );
    // A hole stays one, and a prefix that is much shorter may cover too many.
    assert_eq!(of(&[("10.0.0.0/24", 1), ("10.0.2.0/24", 1)]).len(), 2);
    assert_eq!(of(&[("10.0.0.0/8", 1), ("10.0.2.0/24", 1)]).len(), 2);
}

/// A change settles few blocks, however many prefixes there are.
#[test]
fn a_default_route_over_many_prefixes_costs_no_more_than_one_over_none() {
    let mut aggregate = Aggregate::default();
    for bits in 0..65_536_u32 {
        let dst = IpNet::new(Ipv4Addr::from_bits(bits << 12).into(), 24).unwrap();
        aggregate.set(Prefix { table: 254, dst }, Some(bits % 2));
    }
    aggregate.settle();
    for label in [Some(0), Some(1), None] {
        aggregate.set(v4("0.0.0.0/0"), label);
        assert_eq!(aggregate.unsettled.len(), 1, "its own block");
        assert_eq!(aggregate.settle().len(), 1);
    }
    aggregate.set(v4("10.0.0.0/13"), Some(0));
    assert_eq!(aggregate.unsettled.len(), 9, "its own, and those that count on it");
}

/// As many prefixes of each length as an IPv4 table of the Internet has, at random places, with next hops after Zipf's law. Places
/// that are close to one another have less in common here than they have there.
#[test]
fn with_two_next_hops_a_third_of_a_full_table_is_saved() {
    const LENGTHS: [(u8, u32); 17] = [
        (8, 16),
        (9, 13),
        (10, 40),
        (11, 100),
        (12, 300),
        (13, 580),
        (14, 1200),
        (15, 2000),
        (16, 13_500),
        (17, 8000),
        (18, 14_000),
        (19, 25_000),
        (20, 45_000),
        (21, 50_000),
        (22, 110_000),
        (23, 100_000),
        (24, 600_000),
    ];
    let mut seed = 1_u64;
    let mut next = |most: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(seed >> 33).unwrap() % most
    };
    for (hops, least, most) in [(1, 350, 400), (2, 600, 670), (8, 850, 880)] {
        let total: f64 = (1..=hops).map(|rank| 1.0 / f64::from(rank)).sum();
        let mut aggregate = Aggregate::default();
        for (len, count) in LENGTHS {
            for _ in 0..count {
                let addr = Ipv4Addr::from_bits((next(223) + 1) << 24 | next(1 << 24));
                let mut left = f64::from(next(1_000_000)) / 1e6 * total;
                let is_it = |rank: &Label| {
                    left -= 1.0 / f64::from(*rank);
                    left < 0.0
                };
                let label = (1..=hops).find(is_it).unwrap_or(hops);
                let dst = IpNet::new(addr.into(), len).unwrap().trunc();
                aggregate.set(Prefix { table: 254, dst }, Some(label));
            }
        }
        aggregate.settle();
        let prefixes: usize = aggregate.blocks.values().map(|block| block.prefixes.len()).sum();
        let per_mille = aggregate.entries_after(None).count() * 1000 / prefixes;
        println!("{hops} next hops: {per_mille} ‰ of {prefixes} prefixes");
        assert!((least..most).contains(&per_mille), "{hops} next hops: {per_mille} ‰");
    }
}
