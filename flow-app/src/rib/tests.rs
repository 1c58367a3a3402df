//! The digest is that of the tables, whatever was said, swept and broken off before.

use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_proto::table::{
    Hop, HopFlags, NextHopKind, ObstacleKind, Route, RouteKind, RouteTarget, TABLE_MAIN,
};

use super::*;

const BOOTS: [[u8; 16]; 2] = [*b"first boot......", *b"second boot....."];

impl Rib {
    /// All objects.
    fn objects(&self) -> Vec<Object> {
        fn all<K: Copy, V: Clone>(
            map: &BTreeMap<K, Stamped<V>>,
            object: fn(K, V) -> Object,
        ) -> impl Iterator<Item = Object> {
            map.iter().map(move |(key, entry)| object(*key, entry.value.clone()))
        }
        let links = all(&self.links, link_of).chain(all(&self.addresses, address_of));
        let routes = self.routes.iter().map(|(route, _)| Object::Route(route.to_route()));
        let routes = routes.chain(all(&self.next_hops, next_hop_of));
        let rest = all(&self.settings, settings_of).chain(all(&self.obstacles, obstacle_of));
        links.chain(routes).chain(all(&self.neighbors, neighbor_of)).chain(rest).collect()
    }
}

/// Gateways of routes without a neighbor, by looking at everything.
fn unresolved(rib: &Rib) -> BTreeSet<NeighborKey> {
    let kind = |id: u32| rib.next_hop(id).map(|object| &object.kind);
    let single = |id: u32| if let Some(NextHopKind::Single(hop)) = kind(id) { Some(*hop) } else { None };
    let hops_of = |route: RouteRef<'_>| match &route.attributes.target {
        RouteTarget::Hops(hops) => hops.clone(),
        RouteTarget::NextHop(id) => match kind(*id) {
            Some(NextHopKind::Group(members)) => members.iter().filter_map(|(id, _)| single(*id)).collect(),
            Some(NextHopKind::Single(hop)) => vec![*hop],
            Some(NextHopKind::Blackhole | NextHopKind::Unsupported) | None => Vec::new(),
        },
    };
    let usable = rib.routes().flat_map(hops_of).filter(|hop| !hop.flags.is_dead() && !hop.encap);
    let keys = usable.filter_map(|hop| Some(NeighborKey { ifindex: hop.oif?, addr: hop.gateway? }));
    keys.filter(|key| !rib.neighbor(key.ifindex, key.addr).is_some_and(MacAddr::is_unicast)).collect()
}

/// The digest of the objects under this boot id, from scratch.
fn digest(objects: &[Object], boot_id: [u8; 16]) -> Digest {
    let mut tally = Tally::new(boot_id, 0);
    objects.iter().for_each(|object| tally.add(object));
    tally.digest
}

fn object() -> impl Strategy<Value = Object> {
    let small = 1..4_u32;
    let name = "[ab]{1,15}";
    let addr = (1..4_u8).prop_map(|last| IpAddr::from([10, 0, 0, last]));
    let link = (small.clone(), any::<bool>(), name).prop_map(|(ifindex, up, name)| {
        let kind = String::new();
        let (mac, master, vrf_table, ipv6_mtu) = (None, None, None, None);
        Object::Link(Link {
            ifindex,
            name,
            mac,
            mtu: 1500,
            up,
            running: up,
            kind,
            master,
            vrf_table,
            ipv6_mtu,
        })
    });
    let address = (small.clone(), addr.clone()).prop_map(|(ifindex, addr)| {
        Object::Address(AddressKey { ifindex, address: IpNet::new(addr, 24).unwrap() })
    });
    let hop = (small.clone(), 0..5_u8, 0..6_u8).prop_map(|(oif, last, bits)| {
        let gateway = (last > 0).then(|| IpAddr::from([10, 0, 0, last]));
        let flags = HopFlags(if bits == 0 { HopFlags::DEAD } else { 0 });
        Hop { gateway, oif: Some(oif), weight: 1, flags, encap: bits == 1 }
    });
    let target = prop_oneof![
        small.clone().prop_map(RouteTarget::NextHop),
        vec(hop.clone(), 0..5).prop_map(RouteTarget::Hops),
    ];
    let route = (1..5_u8, 0..2_u32, target).prop_map(|(third, metric, target)| {
        let dst = IpNet::new([10, 9, third, 0].into(), 24).unwrap();
        let key = RouteKey { table: TABLE_MAIN, dst, tos: 0, metric };
        Object::Route(Route { key, kind: RouteKind::Unicast, protocol: 4, scope: 0, target, mtu: None })
    });
    let kind = prop_oneof![
        Just(NextHopKind::Blackhole),
        hop.prop_map(NextHopKind::Single),
        vec((small.clone(), small.clone()), 0..5).prop_map(NextHopKind::Group),
    ];
    let next_hop = (small.clone(), kind).prop_map(|(id, kind)| Object::NextHop(NextHop { id, kind }));
    let neighbor = (small.clone(), addr, 1..3_u8).prop_map(|(ifindex, addr, mac)| {
        Object::Neighbor(Neighbor {
            key: NeighborKey { ifindex, addr },
            mac: MacAddr([mac, 0, 0, 0, 0, mac]),
        })
    });
    let settings = (0..3_u8, 0..3_u8).prop_map(|(ipv4_hash_policy, ipv6_hash_policy)| {
        Object::Settings(Settings { ipv4_hash_policy, ipv6_hash_policy })
    });
    let obstacle = (small, "[ab]{0,20}").prop_map(|(ifindex, detail)| {
        let key = ObstacleKey { ifindex: Some(ifindex), family: None, kind: ObstacleKind::Netfilter };
        Object::Obstacle(Obstacle { key, detail })
    });
    prop_oneof![2 => link, 2 => address, 6 => route, 2 => next_hop, 2 => neighbor, 1 => settings, 1 => obstacle]
}

#[derive(Debug, Clone)]
enum Step {
    Upsert(Object),
    Remove(Object),
    Begin(usize),
    /// Of the snapshot, if there is one.
    End,
    Resume,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => object().prop_map(Step::Upsert),
        4 => object().prop_map(Step::Remove),
        1 => (0..BOOTS.len()).prop_map(Step::Begin),
        1 => Just(Step::End),
        1 => Just(Step::Resume),
    ]
}

proptest! {
    #[test]
    fn digest_and_gateways_are_those_of_the_tables(steps in vec(step(), 0..120), slice in 1..9_usize) {
        let mut rib = Rib::default();
        let mut boot = None;
        // Keys of another boot than the last that began, which nothing has swept or replaced yet.
        let mut foreign: BTreeSet<Key> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Upsert(object) => {
                    foreign.remove(&object.key());
                    rib.apply(Change::Upsert(object), Quota::NONE).unwrap();
                }
                Step::Remove(object) => {
                    foreign.remove(&object.key());
                    rib.apply(Change::Remove(object.key()), Quota::NONE).unwrap();
                }
                Step::Begin(which) => {
                    if boot != Some(BOOTS[which]) {
                        foreign = rib.objects().iter().map(Object::key).collect();
                    }
                    boot = Some(BOOTS[which]);
                    rib.snapshot_begin(BOOTS[which]);
                }
                Step::End => {
                    for key in unconfirmed(&mut rib, slice) {
                        foreign.remove(&key);
                        rib.apply(Change::Remove(key), Quota::NONE).unwrap();
                    }
                }
                Step::Resume => rib.resume(),
            }
            let objects = rib.objects();
            let shown: BTreeSet<NeighborKey> = (1..4)
                .flat_map(|ifindex| rib.unresolved_on(ifindex).map(move |addr| NeighborKey { ifindex, addr }))
                .collect();
            prop_assert_eq!(shown, unresolved(&rib));
            for ifindex in 0..5 {
                prop_assert_eq!(rib.count_unresolved(ifindex) as usize, rib.unresolved_on(ifindex).count());
            }
            for candidate in BOOTS {
                let is_whole = boot == Some(candidate) && foreign.is_empty();
                let expected = is_whole.then(|| digest(&objects, candidate));
                prop_assert_eq!(rib.held(&candidate), expected, "{:?} of {:?}", candidate, boot);
            }
        }
    }
}

proptest! {
    /// Whoever follows has the same tables, whenever it is told and in whatever parts, once it was told all.
    #[test]
    fn who_follows_has_the_same_tables(
        steps in vec((step(), 0..4_usize), 0..120),
        from in 0..120_usize,
        most in 1..9_usize,
    ) {
        let (mut rib, mut other) = (Rib::default(), Rib::default());
        let tell = |rib: &mut Rib, other: &mut Rib, times| {
            for _ in 0..times {
                let told = rib.followed(most);
                prop_assert!(told.is_empty() <= rib.is_followed_up());
                for change in told {
                    other.apply(change, Quota::NONE).unwrap();
                }
            }
            Ok(())
        };
        for (at, (step, times)) in steps.into_iter().enumerate() {
            if at == from {
                rib.follow(true);
                other = Rib::default();
            }
            match step {
                Step::Upsert(object) => _ = rib.apply(Change::Upsert(object), Quota::NONE).unwrap(),
                Step::Remove(object) => _ = rib.apply(Change::Remove(object.key()), Quota::NONE).unwrap(),
                Step::Begin(which) => rib.snapshot_begin(BOOTS[which]),
                Step::End => {
                    for key in unconfirmed(&mut rib, most) {
                        rib.apply(Change::Remove(key), Quota::NONE).unwrap();
                    }
                }
                Step::Resume => rib.resume(),
            }
            tell(&mut rib, &mut other, times)?;
        }
        if rib.follow.is_none() {
            prop_assert_eq!(rib.followed(most), []);
            return Ok(());
        }
        tell(&mut rib, &mut other, 200)?;
        prop_assert!(rib.is_followed_up());
        prop_assert_eq!(other.objects(), rib.objects());
    }
}

proptest! {
    #[test]
    fn what_objects_cost_is_the_sum_of_each_whatever_came_went_and_was_refused(
        steps in vec(step(), 0..120),
        quota in (1..12_usize, 0..12_000_usize).prop_map(|(objects, bytes)| Quota { objects, bytes }),
    ) {
        let mut rib = Rib::default();
        for step in steps {
            let (change, before) = match step {
                Step::Upsert(object) => (Change::Upsert(object), rib.bytes()),
                Step::Remove(object) => (Change::Remove(object.key()), rib.bytes()),
                Step::Begin(_) | Step::End | Step::Resume => continue,
            };
            let key = change.key();
            let is_removal = matches!(change, Change::Remove(_));
            let is_there = rib.objects().iter().any(|object| object.key() == key);
            match rib.apply(change, quota) {
                Err(TooMuch::Bytes { bytes, limit }) => {
                    prop_assert!(bytes > limit && limit == quota.bytes && !is_removal);
                    prop_assert_eq!(rib.bytes(), before);
                }
                Err(TooMuch::Objects { limit }) => {
                    prop_assert!(rib.len() == limit && !is_there && !is_removal);
                    prop_assert_eq!(rib.bytes(), before);
                }
                Ok(_) => prop_assert!(rib.bytes() <= quota.bytes.max(before)),
            }
            prop_assert_eq!(rib.bytes(), rib.objects().iter().map(size::size).sum::<usize>());
            prop_assert!(rib.len() <= quota.objects);
            let said: BTreeSet<&Attributes> = rib.routes().map(|route| route.attributes).collect();
            prop_assert_eq!(rib.routes.attributes(), said.len());
        }
        for object in rib.objects() {
            rib.apply(Change::Remove(object.key()), quota).unwrap();
        }
        prop_assert_eq!(rib.bytes(), 0);
        prop_assert_eq!(&rib.gateways, &gateways::Gateways::default());
    }
}

#[test]
fn what_can_only_shrink_passes_a_full_budget() {
    let with = |hops| {
        let Object::Route(it) = route(1) else { unreachable!() };
        let hop = Hop { gateway: None, oif: None, weight: 1, flags: HopFlags::default(), encap: false };
        Change::Upsert(Object::Route(Route { target: RouteTarget::Hops(vec![hop; hops]), ..it }))
    };
    let mut rib = Rib::default();
    rib.apply(with(256), Quota::NONE).unwrap();
    let full = Quota { bytes: rib.bytes(), ..Quota::NONE };
    let one_more = Change::Upsert(route(2));
    assert!(matches!(rib.apply(one_more.clone(), full), Err(TooMuch::Bytes { .. })));
    assert!(rib.apply(with(255), full).unwrap());
    assert!(rib.apply(with(1), Quota { bytes: 0, ..full }).unwrap(), "it gives back");
    rib.apply(one_more, full).unwrap();
}

/// By default the daemon keeps 1.5 GiB and 2,500,000 objects: a million routes, and as many others that a snapshot is about
/// to sweep.
#[test]
fn as_many_plain_routes_fit_as_there_may_be_and_wide_ones_do_not() {
    const DEFAULT: usize = 2 << 30;
    let by = |target| size::route_size(&target);
    let gateway = Some([10, 0, 0, 1].into());
    let hop = Hop { gateway, oif: Some(1), weight: 1, flags: HopFlags::default(), encap: false };
    let hops = |count| RouteTarget::Hops(vec![hop; count]);
    for plain in [hops(1), RouteTarget::NextHop(1)] {
        assert!(by(plain.clone()) * 2_500_000 < DEFAULT, "{} bytes by {plain:?}", by(plain.clone()));
    }
    assert!(by(hops(256)) * 200_000 > DEFAULT, "{} bytes", by(hops(256)));
}

fn route(third: u8) -> Object {
    let dst = IpNet::new([10, 9, third, 0].into(), 24).unwrap();
    let key = RouteKey { table: TABLE_MAIN, dst, tos: 0, metric: 0 };
    let target = RouteTarget::Hops(Vec::new());
    Object::Route(Route { key, kind: RouteKind::Blackhole, protocol: 4, scope: 0, target, mtu: None })
}

fn say(rib: &mut Rib, thirds: impl IntoIterator<Item = u8>) {
    for third in thirds {
        rib.apply(Change::Upsert(route(third)), Quota::NONE).unwrap();
    }
}

/// All that the snapshot did not confirm, looked for in slices.
fn unconfirmed(rib: &mut Rib, slice: usize) -> Vec<Key> {
    let mut keys = Vec::new();
    let Some(mut sweep) = rib.snapshot_end() else { return keys };
    while !matches!(sweep, Sweep::Done) {
        let some = rib.unconfirmed(&mut sweep, slice);
        assert!(some.len() <= slice);
        keys.extend(some);
    }
    keys
}

fn sweep(rib: &mut Rib) -> usize {
    let keys = unconfirmed(rib, 3);
    let swept = keys.len();
    for key in keys {
        rib.apply(Change::Remove(key), Quota::NONE).unwrap();
    }
    swept
}

#[test]
fn tables_of_two_boots_are_not_offered_to_either() {
    let [old, new] = BOOTS;
    let mut rib = Rib::default();
    rib.snapshot_begin(old);
    say(&mut rib, 0..10);
    sweep(&mut rib);
    let whole = rib.held(&old).unwrap();
    assert_eq!(whole.objects, 10);
    // The same boot breaks off: what there is stays offered.
    rib.snapshot_begin(old);
    say(&mut rib, 0..3);
    assert_eq!(rib.held(&old), Some(whole));
    // Another one breaks off, twice.
    for _ in 0..2 {
        rib.snapshot_begin(new);
        say(&mut rib, 0..3);
        assert_eq!((rib.held(&old), rib.held(&new)), (None, None));
    }
    assert_eq!(sweep(&mut rib), 7);
    assert_eq!((rib.held(&old), rib.held(&new).map(|digest| digest.objects)), (None, Some(3)));
}

#[test]
fn a_resumed_boot_sweeps_nothing_even_after_a_broken_snapshot() {
    let mut rib = Rib::default();
    rib.snapshot_begin(BOOTS[0]);
    say(&mut rib, 0..10);
    sweep(&mut rib);
    rib.snapshot_begin(BOOTS[0]);
    say(&mut rib, 0..3);
    rib.resume();
    assert_eq!(sweep(&mut rib), 0);
    assert_eq!(rib.held(&BOOTS[0]).map(|digest| digest.objects), Some(10));
}

#[test]
fn epochs_wrap() {
    let mut rib = Rib { epoch: u32::MAX - 1, ..Rib::default() };
    rib.snapshot_begin(BOOTS[0]);
    say(&mut rib, 0..3);
    rib.snapshot_begin(BOOTS[0]);
    say(&mut rib, 2..4);
    assert_eq!(rib.held(&BOOTS[0]), Some(digest(&rib.objects(), BOOTS[0])));
}

#[test]
fn the_routes_and_groups_of_a_next_hop_are_known() {
    let mut rib = Rib::default();
    let by = |third, id| {
        let Object::Route(route) = route(third) else { unreachable!() };
        Object::Route(Route { target: RouteTarget::NextHop(id), ..route })
    };
    let group = |members: &[u32]| {
        let members = members.iter().map(|id| (*id, 1)).collect();
        Object::NextHop(NextHop { id: 9, kind: NextHopKind::Group(members) })
    };
    for object in [by(1, 1), by(2, 1), by(3, 9), group(&[1, 2])] {
        rib.apply(Change::Upsert(object), Quota::NONE).unwrap();
    }
    assert_eq!(rib.users_of(1), [1, 9].into());
    assert_eq!(rib.users_of(2), [9].into());
    let all: Vec<RouteKey> = rib.routes_by(1, None).collect();
    assert_eq!(all.len(), 2);
    assert_eq!(rib.routes_by(1, all.first().copied()).collect::<Vec<_>>(), all[1..]);
    for object in [by(1, 2), group(&[2])] {
        rib.apply(Change::Upsert(object), Quota::NONE).unwrap();
    }
    assert_eq!((rib.users_of(1), rib.users_of(2)), ([1].into(), [2, 9].into()));
    for key in [by(2, 1).key(), group(&[]).key()] {
        rib.apply(Change::Remove(key), Quota::NONE).unwrap();
    }
    assert_eq!((rib.users_of(1), rib.users_of(2)), ([].into(), [2].into()));
}

#[test]
fn neighbors_of_a_prefix_are_found_from_any_of_them_on() {
    let mut rib = Rib::default();
    let key = |ifindex, last: u8| NeighborKey { ifindex, addr: [10, 0, 0, last].into() };
    for (ifindex, last) in [(1, 3), (1, 4), (1, 5), (1, 9), (2, 4)] {
        let neighbor = Neighbor { key: key(ifindex, last), mac: MacAddr([2, 0, 0, 0, 0, last]) };
        rib.apply(Change::Upsert(Object::Neighbor(neighbor)), Quota::NONE).unwrap();
    }
    let prefix: IpNet = "10.0.0.4/30".parse().unwrap();
    let found = |after| rib.neighbors_in(1, prefix, after).collect::<Vec<_>>();
    assert_eq!(found(None), [key(1, 4), key(1, 5)]);
    assert_eq!(found(Some(key(1, 3))), [key(1, 4), key(1, 5)]);
    assert_eq!(found(Some(key(1, 4))), [key(1, 5)]);
    assert_eq!(found(Some(key(1, 7))), []);
    assert_eq!(found(Some(key(2, 4))), []);
}

#[test]
fn a_gateway_is_unresolved_while_routes_name_it_and_no_neighbor_stands_for_it() {
    let gateway: IpAddr = [10, 0, 0, 7].into();
    let hop =
        Hop { gateway: Some(gateway), oif: Some(2), weight: 1, flags: HopFlags::default(), encap: false };
    let by = |target: RouteTarget| {
        let Object::Route(it) = route(1) else { unreachable!() };
        Object::Route(Route { target, ..it })
    };
    let object = |id, kind| Object::NextHop(NextHop { id, kind });
    let neighbor = Object::Neighbor(Neighbor {
        key: NeighborKey { ifindex: 2, addr: gateway },
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
    });
    let mut rib = Rib::default();
    let mut after = |change| {
        rib.apply(change, Quota::NONE).unwrap();
        assert_eq!(rib.count_unresolved(2) as usize, rib.unresolved_on(2).count());
        rib.count_unresolved(2)
    };
    assert_eq!(after(Change::Upsert(by(RouteTarget::Hops(vec![hop, hop])))), 1);
    assert_eq!(after(Change::Upsert(neighbor.clone())), 0);
    assert_eq!(after(Change::Remove(neighbor.key())), 1);
    // By a group of objects, one of which is not used.
    assert_eq!(after(Change::Upsert(by(RouteTarget::NextHop(9)))), 0);
    let other = Hop { gateway: Some([10, 0, 0, 8].into()), ..hop };
    assert_eq!(after(Change::Upsert(object(1, NextHopKind::Single(hop)))), 0);
    assert_eq!(after(Change::Upsert(object(2, NextHopKind::Single(other)))), 0);
    assert_eq!(after(Change::Upsert(object(9, NextHopKind::Group(vec![(1, 1)])))), 1);
    assert_eq!(after(Change::Upsert(object(9, NextHopKind::Group(vec![(1, 1), (2, 1)])))), 2);
    let dead = Hop { flags: HopFlags(HopFlags::DEAD), ..other };
    assert_eq!(after(Change::Upsert(object(2, NextHopKind::Single(dead)))), 1);
    assert_eq!(after(Change::Remove(by(RouteTarget::NextHop(9)).key())), 0);
}
