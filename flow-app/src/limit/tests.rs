//! The classes against a full recomputation, the law of the longest match at every step, and the cost.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::index::Node;
use super::*;

thread_local! {
    pub(super) static VISITS: Cell<usize> = const { Cell::new(0) };
}

type Wanted = BTreeSet<Prefix>;

/// Classes from the definition, each time from nothing. Without shields it is the negative control.
fn classes(wanted: &Wanted, (max, room): (usize, usize), shields: bool) -> BTreeMap<Prefix, Class> {
    let mut ranked: Vec<Prefix> = wanted.iter().copied().collect();
    ranked.sort_by_key(|p| (p.dst.prefix_len(), p.table, p.dst.addr().is_ipv6(), p.dst.addr()));
    let class = |at| match at {
        _ if at < max.min(room) => Class::Forward,
        _ if at < (2 * max).min(room) => Class::Punt,
        _ => Class::Absent,
    };
    let by_rank: BTreeMap<Prefix, Class> =
        ranked.iter().enumerate().map(|(at, prefix)| (*prefix, class(at))).collect();
    let mut classes = by_rank.clone();
    let rejected = by_rank.iter().filter(|(_, class)| shields && **class == Class::Absent);
    for (rejected, _) in rejected {
        let installed = by_rank.iter().filter(|(_, class)| **class != Class::Absent);
        let covering = installed.filter(|(prefix, _)| covers(**prefix, rejected.table, rejected.dst.addr()));
        if let Some((nearest, _)) = covering.max_by_key(|(prefix, _)| prefix.dst.prefix_len()) {
            classes.insert(*nearest, Class::Punt);
        }
    }
    classes
}

fn covers(prefix: Prefix, table: u32, addr: IpAddr) -> bool {
    prefix.table == table && prefix.dst.contains(&addr)
}

fn longest_match(prefixes: impl Iterator<Item = Prefix>, table: u32, addr: IpAddr) -> Option<Prefix> {
    prefixes.filter(|prefix| covers(*prefix, table, addr)).max_by_key(|prefix| prefix.dst.prefix_len())
}

/// What a switch holds: prefixes with a flow.
type Flows = BTreeMap<Prefix, Class>;

/// Where a packet goes: to the prefix whose verdict it meets, or to the guest.
fn lookup(flows: &Flows, table: u32, addr: IpAddr) -> Option<Prefix> {
    longest_match(flows.keys().copied(), table, addr).filter(|prefix| flows[prefix] == Class::Forward)
}

fn send(flows: &mut Flows, prefix: Prefix, class: Class) {
    match class {
        Class::Absent => flows.remove(&prefix),
        Class::Forward | Class::Punt => flows.insert(prefix, class),
    };
}

/// Every packet's verdict is that of one of the sets, or a punt.
fn law(flows: &Flows, sets: [&Wanted; 2]) -> TestCaseResult {
    for (table, addr) in destinations() {
        let got = lookup(flows, table, addr);
        let right = sets.map(|set| longest_match(set.iter().copied(), table, addr));
        prop_assert!(
            got.is_none() || right.contains(&got),
            "{addr} in table {table} goes by {got:?}, not {right:?}; flows {flows:?}"
        );
    }
    Ok(())
}

/// The prefix that these bits begin, of a small and crowded part of the address space.
fn prefix(table: u32, v6: bool, bits: u8, len: u8) -> Prefix {
    let dst = if v6 {
        let len = if len > 4 { 128 } else { len };
        IpNet::V6(Ipv6Net::new(v6_addr(bits, 0), len).unwrap())
    } else {
        let len = if len > 4 { 32 } else { len };
        IpNet::V4(Ipv4Net::new(v4_addr(bits, 0), len).unwrap())
    };
    Prefix { table, dst: dst.trunc() }
}

fn v4_addr(bits: u8, rest: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(bits) << 28 | rest)
}

fn v6_addr(bits: u8, rest: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(u128::from(bits) << 124 | rest)
}

/// One for each way in which the prefixes can be told apart.
fn destinations() -> impl Iterator<Item = (u32, IpAddr)> {
    let of_bits = |bits| -> [IpAddr; 4] {
        [v4_addr(bits, 0).into(), v4_addr(bits, 1).into(), v6_addr(bits, 0).into(), v6_addr(bits, 1).into()]
    };
    (1..=2).flat_map(move |table| (0..16).flat_map(of_bits).map(move |addr| (table, addr)))
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (1..=2u32, any::<bool>(), 0..16u8, 0..=5u8)
        .prop_map(|(table, v6, bits, len)| prefix(table, v6, bits, len))
}

#[derive(Debug, Clone)]
enum Op {
    Want(Prefix),
    /// One of those that are wanted, by its place among them.
    Drop(prop::sample::Index),
    Max(usize),
    Room(Option<usize>),
}

fn any_ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        10 => any_prefix().prop_map(Op::Want),
        6 => any::<prop::sample::Index>().prop_map(Op::Drop),
        1 => (0..6usize).prop_map(Op::Max),
        1 => prop::option::of(0..8usize).prop_map(Op::Room),
    ];
    prop::collection::vec(op, 0..60)
}

/// Everything that [`Limit`] says, against the definition: so the order of arrival has no part in it.
fn check(limit: &Limit, wanted: &Wanted, (max, room): (usize, usize)) -> TestCaseResult {
    let full = classes(wanted, (max, room), true);
    for (prefix, class) in &full {
        prop_assert_eq!(limit.class(*prefix), *class, "{:?}", prefix);
    }
    let count = |class| full.values().filter(|of| **of == class).count();
    prop_assert_eq!(limit.len(), full.len());
    prop_assert_eq!(limit.is_empty(), full.is_empty());
    prop_assert_eq!(limit.forwarded(), count(Class::Forward));
    prop_assert_eq!(limit.punted(), count(Class::Punt));
    prop_assert_eq!(limit.absent(), count(Class::Absent));
    prop_assert_eq!(limit.is_near(), full.len() * 5 >= max * 4);
    let indexed = limit.index.roots.values().map(|root| marked(root)).sum::<usize>();
    let spared = (2 * max).min(room).div_ceil(2);
    prop_assert_eq!(indexed, full.len().min(2 * full.len().saturating_sub(spared)), "memory");
    Ok(())
}

/// Prefixes in a trie, whose nodes without one all have two children.
fn marked(node: &Node) -> usize {
    assert!(node.mark != Mark::Branch || node.children.iter().all(Option::is_some));
    usize::from(node.mark != Mark::Branch)
        + node.children.iter().flatten().map(|child| marked(child)).sum::<usize>()
}

/// Runs operations on a limit and on a switch that is sent what the limit says, step by step, and looks at every
/// packet after every step; `order` may spoil the order of the steps.
fn run(max: usize, ops: Vec<Op>, order: impl Fn(Vec<Prefix>) -> Vec<Prefix>) -> TestCaseResult {
    let (mut limit, mut max) = (Limit::new(max), (max, usize::MAX));
    let (mut wanted, mut flows) = (Wanted::new(), Flows::new());
    for op in ops {
        let before = wanted.clone();
        let old = classes(&before, max, true);
        let (own, steps) = match op {
            Op::Want(prefix) => {
                wanted.insert(prefix);
                let moved = limit.set(prefix, true);
                (Some(prefix), [moved.before, vec![prefix], moved.after].concat())
            }
            Op::Drop(_) if wanted.is_empty() => continue,
            Op::Drop(at) => {
                let prefix = *wanted.iter().nth(at.index(wanted.len())).unwrap();
                wanted.remove(&prefix);
                let moved = limit.set(prefix, false);
                (Some(prefix), [moved.before, vec![prefix], moved.after].concat())
            }
            Op::Max(new) => {
                max.0 = new;
                (None, limit.set_max(new))
            }
            Op::Room(new) => {
                max.1 = new.unwrap_or(usize::MAX);
                (None, limit.set_room(new))
            }
        };
        check(&limit, &wanted, max)?;
        if own.is_some() {
            prop_assert!(steps.len() <= 5, "moved by one prefix: {:?}", steps);
        }
        let told: BTreeSet<Prefix> = steps.iter().copied().collect();
        prop_assert_eq!(told.len(), steps.len(), "each once");
        let new = classes(&wanted, max, true);
        let changed = wanted.iter().filter(|prefix| old.get(prefix) != new.get(prefix));
        let changed: BTreeSet<Prefix> = changed.copied().chain(own).collect();
        prop_assert_eq!(told, changed, "all that changed and nothing else");
        for prefix in order(steps) {
            send(&mut flows, prefix, limit.class(prefix));
            law(&flows, [&before, &wanted])?;
            prop_assert!(own.is_none() || flows.len() <= (2 * max.0).min(max.1) + 1);
        }
        let new: Flows = new.into_iter().filter(|(_, class)| *class != Class::Absent).collect();
        prop_assert_eq!(&flows, &new);
        law(&flows, [&wanted, &wanted])?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn incremental_is_full_and_every_step_is_lawful(max in 0..6usize, ops in any_ops()) {
        run(max, ops, |steps| steps)?;
    }

    #[test]
    fn all_at_once_is_one_by_one(
        max in 0..30usize,
        room in prop::option::of(0..40usize),
        prefixes in prop::collection::hash_set(any_prefix(), 0..60),
    ) {
        let bounds = (max, room.unwrap_or(usize::MAX));
        let mut wanted: Wanted = prefixes.iter().copied().collect();
        let mut limit = Limit::of(max, room, prefixes.iter().copied());
        check(&limit, &wanted, bounds)?;
        // And goes on as any other.
        for prefix in prefixes {
            wanted.remove(&prefix);
            limit.set(prefix, false);
            check(&limit, &wanted, bounds)?;
        }
    }
}

fn v4(text: &str) -> Prefix {
    Prefix { table: 1, dst: text.parse().unwrap() }
}

#[test]
fn without_shields_the_law_fails() {
    let wanted = Wanted::from(["0.0.0.0/0", "16.0.0.0/4", "32.0.0.0/4"].map(v4));
    let held = |shields| -> Flows {
        let classes = classes(&wanted, (1, usize::MAX), shields).into_iter();
        classes.filter(|(_, class)| *class != Class::Absent).collect()
    };
    assert!(law(&held(true), [&wanted, &wanted]).is_ok());
    assert!(law(&held(false), [&wanted, &wanted]).is_err());
}

#[test]
fn with_the_steps_backwards_the_law_fails() {
    let ops = || ["0.0.0.0/0", "32.0.0.0/4", "16.0.0.0/4"].map(|text| Op::Want(v4(text))).to_vec();
    assert!(run(1, ops(), |steps| steps).is_ok());
    let backwards = |steps: Vec<Prefix>| steps.into_iter().rev().collect();
    let error = run(1, ops(), backwards).unwrap_err().to_string();
    assert!(error.contains("goes by"), "{error}");
}

#[test]
fn the_last_one_in_rank_makes_room_and_its_shield_goes_first() {
    let mut limit = Limit::new(1);
    let [default, low, high] = ["0.0.0.0/0", "16.0.0.0/4", "32.0.0.0/4"].map(v4);
    assert_eq!(limit.set(default, true), Moved::default());
    assert_eq!(limit.set(high, true), Moved::default());
    assert_eq!(
        [default, low, high].map(|prefix| limit.class(prefix)),
        [Class::Forward, Class::Absent, Class::Punt]
    );
    assert_eq!(limit.set(low, true), Moved { before: vec![default], after: vec![high] });
    assert_eq!((limit.forwarded(), limit.punted(), limit.absent()), (0, 2, 1));
    assert_eq!(limit.set(low, true), Moved::default(), "it is wanted already");
    assert_eq!(limit.set(low, false), Moved { before: vec![high], after: vec![default] });
    assert_eq!(limit.set(low, false), Moved::default());
}

#[test]
fn what_takes_the_place_of_one_that_goes_is_there_before() {
    let mut limit = Limit::new(2);
    limit.set_room(Some(2));
    let [one, two, three] = ["0.0.0.0/1", "64.0.0.0/2", "64.0.0.0/3"].map(v4);
    for prefix in [one, two, three] {
        limit.set(prefix, true);
    }
    assert_eq!([one, two, three].map(|it| limit.class(it)), [Class::Forward, Class::Punt, Class::Absent]);
    // Without two, one would catch the packets of three.
    assert_eq!(limit.set(two, false), Moved { before: vec![three], after: vec![] });
}

#[test]
fn another_maximum_uncovers_longer_prefixes_first() {
    let mut limit = Limit::new(1);
    let chain = ["0.0.0.0/0", "0.0.0.0/1", "0.0.0.0/2", "0.0.0.0/3", "0.0.0.0/4"].map(v4);
    for prefix in chain {
        limit.set(prefix, true);
    }
    assert_eq!((limit.forwarded(), limit.punted(), limit.absent()), (1, 1, 3));
    let [_, one, two, three, four] = chain;
    assert_eq!(limit.set_max(5), [four, three, two, one], "the punt goes when the others are there");
    assert_eq!(limit.set_max(1), [one, two, three, four], "the punt comes before the others go");
    assert_eq!(limit.set_max(1), []);
    assert_eq!(limit.set_max(usize::MAX), [four, three, two, one]);
    assert!(!limit.is_near());
}

#[test]
fn host_bits_and_other_tables_and_families_are_told_apart() {
    let mut limit = Limit::new(1);
    limit.set(v4("10.1.2.3/8"), true);
    assert_eq!(limit.class(v4("10.0.0.0/8")), Class::Forward);
    assert_eq!(limit.class(Prefix { table: 2, ..v4("10.0.0.0/8") }), Class::Absent);
    let default = Prefix { table: 1, dst: "::/0".parse().unwrap() };
    assert_eq!(limit.set(default, true).before, [v4("10.0.0.0/8")], "the shorter one forwards");
    limit.set(v4("12.0.0.0/8"), true);
    assert_eq!(limit.class(default), Class::Forward, "an IPv6 prefix covers no IPv4 one");
    limit.set(v4("0.0.0.0/0"), true);
    assert_eq!(limit.class(v4("0.0.0.0/0")), Class::Punt, "IPv4 comes first, but has to shield");
    assert_eq!(limit.class(default), Class::Punt);
}

#[test]
fn the_alarm_begins_at_80_percent() {
    for (max, near) in [(1, 1), (5, 4), (6, 5), (9, 8), (10, 8)] {
        let mut limit = Limit::new(max);
        for at in 0..near {
            assert!(!limit.is_near(), "{at} of {max}");
            limit.set(prefix(1, false, at, 5), true);
        }
        assert!(limit.is_near(), "{near} of {max}");
    }
    assert!(!Limit::new(usize::MAX).is_near());
}

/// The most nodes and border elements that one of the changes touched.
fn most_visits(limit: &mut Limit, changes: impl Iterator<Item = (Prefix, bool)>) -> usize {
    let visits = |(prefix, wanted)| {
        VISITS.set(0);
        limit.set(prefix, wanted);
        VISITS.get()
    };
    changes.map(visits).max().unwrap()
}

fn numbered(count: u32) -> impl Iterator<Item = Prefix> {
    // Scattered over the addresses: an odd factor is a permutation of the 24 bits.
    let addr = |number: u32| Ipv4Addr::from_bits(number.wrapping_mul(0x9e_3779) << 8);
    (0..count).map(move |number| Prefix { table: 1, dst: Ipv4Net::new(addr(number), 24).unwrap().into() })
}

#[test]
fn a_change_costs_no_more_with_many_prefixes() {
    const MANY: u32 = 100_000;
    let default = v4("0.0.0.0/0");
    // All absent but two; some absent; at the border to the first absent one; at the border to the first punt.
    for max in [1, 10_000, MANY as usize / 2, MANY as usize] {
        let mut limit = Limit::new(max);
        let mut most = most_visits(&mut limit, numbered(MANY).map(|prefix| (prefix, true)));
        let flap = || (0..1_000).map(|turn| (default, turn % 2 == 0));
        most = most.max(most_visits(&mut limit, flap()));
        // The last one by rank comes and goes: at a border, others need not move.
        let last = numbered(MANY).max().unwrap();
        most = most.max(most_visits(&mut limit, (0..1_000).map(|turn| (last, turn % 2 == 1))));
        limit.set(default, true);
        let shields = limit.absent() > 0;
        assert_eq!(limit.class(default), if shields { Class::Punt } else { Class::Forward });
        most = most.max(most_visits(&mut limit, numbered(MANY).map(|prefix| (prefix, false))));
        assert_eq!(limit.len(), 1);
        // At most a dozen walks of 25 nodes.
        assert!(most <= 12 * 25, "{most} visits with a maximum of {max}");
    }
}
