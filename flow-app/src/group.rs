//! Groups: the next hops that routes share, as select groups of the switch.
//!
//! Owns the numbers of a router's groups and which routes use them. Routes with the same next hops share a group, and so do those by
//! a next-hop object, whatever its hops are: when these change, one group is another, and no route. A group
//! is there before the first of its routes and goes after the last. A restarted daemon finds the groups of its former life
//! by what they do, so numbers need not be remembered.
//!
//! A packet's flow is hashed over the fields of the guest's `fib_multipath_hash_policy`. Open vSwitch scores each
//! bucket by its id and that hash, and the highest wins: a flow moves only if its own bucket goes. So each next hop
//! has as many buckets of equal weight as its weight says (Open vSwitch misses the ratio of unequal ones), with ids
//! that follow from the next hop alone.
//!
//! A router has so many numbers and so many buckets. They are given to who asks first, and who finds none left is not
//! forwarded for ([`crate::Rejection::Groups`]): a rule that did not look at the order would have to take a group that is
//! in use from flows that go by it, whenever another one comes. [`Groups::is_short`] says that somebody found none, so
//! that the router asks again when a group has gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use openflow::{Action, Bucket, Field, Group, GroupType, Selection};
use xenflow_proto::table::{Family, Settings};

use crate::fib::{Adjacency, Multipath};
use crate::limit::Prefix;
use crate::pipeline::{NEXT_HOP, count_lookup};
use crate::table;
use crate::topology::RouterId;

/// Buckets of a group, unless it has more next hops than that.
const MAX_BUCKETS: u32 = 256;
/// Buckets of all groups of a router: 1,024 groups at their widest, or as many of four as there are numbers. They take
/// about 60 MB of Open vSwitch, less than a hundred thousand routes do.
pub(crate) const MAX_ROUTER_BUCKETS: usize = 1 << 18;
/// The largest number of a group within its router: `OFPG_MAX` is 0xffff_ff00.
const MAX_INDEX: u16 = 0xfeff;

/// The groups of one router.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    router: RouterId,
    settings: Settings,
    numbers: HashMap<Shared, u16>,
    groups: BTreeMap<u16, Entry>,
    users: HashMap<Prefix, u16>,
    /// Numbers that were in use and are free again.
    free: BTreeSet<u16>,
    /// Every number from here on is free.
    next: u16,
    /// What the switch holds and nobody uses yet, by what it does.
    found: HashMap<Group, u16>,
    /// What it holds besides and is the same as another.
    surplus: Vec<u16>,
    /// Of all groups that are used; what was found and is not used goes soon.
    buckets: usize,
    max_buckets: usize,
    is_short: bool,
}

/// What the routes of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Shared {
    Hops(Multipath),
    Object(u32, Family),
}

impl From<&Multipath> for Shared {
    fn from(multipath: &Multipath) -> Self {
        match multipath.object {
            Some(object) => Self::Object(object, multipath.family),
            None => Self::Hops(multipath.clone()),
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    hops: Multipath,
    buckets: usize,
    users: usize,
}

/// What a route's change means for groups.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// The number of the route's group, if it wants one and there is a number left.
    pub(crate) id: Option<u32>,
    /// To be sent before the route.
    pub(crate) add: Option<Group>,
    /// To be removed after the route.
    pub(crate) remove: Option<u32>,
}

impl Groups {
    /// With so many buckets at most.
    pub(crate) fn new(router: RouterId, max_buckets: usize) -> Self {
        Self {
            router,
            settings: Settings::default(),
            numbers: HashMap::new(),
            groups: BTreeMap::new(),
            users: HashMap::new(),
            free: BTreeSet::new(),
            next: 1,
            found: HashMap::new(),
            surplus: Vec::new(),
            buckets: 0,
            max_buckets,
            is_short: false,
        }
    }

    /// Somebody wanted a group and there was none left, since [`Groups::ask_again`].
    pub(crate) fn is_short(&self) -> bool {
        self.is_short
    }

    /// All prefixes that have none are about to ask again.
    pub(crate) fn ask_again(&mut self) {
        self.is_short = false;
    }

    /// There is a group of these next hops, or there may be.
    pub(crate) fn may_have(&mut self, hops: &Multipath) -> bool {
        let has_number = !self.free.is_empty() || self.next <= MAX_INDEX;
        let may = self.numbers.contains_key(&Shared::from(hops))
            || (has_number && self.buckets + bucket_count(hops) <= self.max_buckets);
        self.is_short |= !may;
        may
    }

    /// The prefix has a group.
    pub(crate) fn has(&self, prefix: Prefix) -> bool {
        self.users.contains_key(&prefix)
    }

    /// Forgets everything but what the switch holds: groups of the same content are taken up again.
    pub(crate) fn adopt(&mut self, found: BTreeMap<u32, Group>) {
        *self = Self { settings: self.settings, ..Self::new(self.router, self.max_buckets) };
        for (id, group) in found {
            let index = (id & 0xffff) as u16;
            self.next = self.next.max(index.saturating_add(1));
            self.surplus.extend(self.found.insert(Group { id: 0, ..group }, index));
        }
    }

    /// What was found and is not used: to be removed. Each number is free when [`Groups::removed`] is told.
    pub(crate) fn unused(&mut self) -> Vec<u32> {
        let unused: Vec<u16> =
            self.found.drain().map(|(_, index)| index).chain(self.surplus.drain(..)).collect();
        let mut unused: Vec<u32> = unused.into_iter().map(|index| self.id(index)).collect();
        unused.sort_unstable();
        unused
    }

    /// A group of [`Groups::unused`] is gone.
    pub(crate) fn removed(&mut self, id: u32) {
        self.free.insert((id & 0xffff) as u16);
    }

    /// The route of a prefix wants these next hops, or no group.
    pub(crate) fn assign(&mut self, prefix: Prefix, wanted: Option<&Multipath>) -> Assigned {
        let mut assigned = Assigned::default();
        let old = self.users.get(&prefix).copied();
        let new = match wanted {
            None => None,
            Some(hops) => match self.numbers.get(&Shared::from(hops)).copied() {
                Some(index) => self.update(index, hops, &mut assigned.add).then_some(index),
                None => self.insert(hops, &mut assigned.add),
            },
        };
        assigned.id = new.map(|index| self.id(index));
        if new == old {
            return assigned;
        }
        match new {
            Some(index) => {
                self.users.insert(prefix, index);
                if let Some(entry) = self.groups.get_mut(&index) {
                    entry.users += 1;
                }
            }
            None => {
                self.users.remove(&prefix);
            }
        }
        if let Some(index) = old
            && let Some(entry) = self.groups.get_mut(&index)
        {
            entry.users -= 1;
            if entry.users == 0 {
                if let Some(entry) = self.groups.remove(&index) {
                    self.buckets -= entry.buckets;
                    self.numbers.remove(&Shared::from(&entry.hops));
                }
                self.free.insert(index);
                assigned.remove = Some(self.id(index));
            }
        }
        assigned
    }

    fn insert(&mut self, hops: &Multipath, add: &mut Option<Group>) -> Option<u16> {
        let buckets = bucket_count(hops);
        if self.buckets + buckets > self.max_buckets {
            self.is_short = true;
            return None;
        }
        let body = group(0, hops, self.settings);
        let index = match self.found.remove(&body) {
            Some(index) => index,
            None => {
                let index = match self.free.pop_first() {
                    Some(index) => index,
                    None if self.next <= MAX_INDEX => {
                        self.next += 1;
                        self.next - 1
                    }
                    None => {
                        self.is_short = true;
                        return None;
                    }
                };
                *add = Some(Group { id: self.id(index), ..body });
                index
            }
        };
        self.numbers.insert(Shared::from(hops), index);
        self.groups.insert(index, Entry { hops: hops.clone(), buckets, users: 0 });
        self.buckets += buckets;
        Some(index)
    }

    /// The group of that number is to have these next hops, which may be other ones; false: there are not buckets enough.
    fn update(&mut self, index: u16, hops: &Multipath, add: &mut Option<Group>) -> bool {
        let id = self.id(index);
        let Some(entry) = self.groups.get_mut(&index).filter(|entry| entry.hops != *hops) else {
            return true;
        };
        let buckets = self.buckets - entry.buckets + bucket_count(hops);
        if buckets > self.max_buckets {
            self.is_short = true;
            return false;
        }
        (entry.hops, entry.buckets) = (hops.clone(), bucket_count(hops));
        self.buckets = buckets;
        *add = Some(group(id, hops, self.settings));
        true
    }

    /// Another group for the routes of a next-hop object, which keep its number: the group as it is now. None: they have no
    /// group, or it does not fit.
    pub(crate) fn replace(&mut self, hops: &Multipath) -> Option<Group> {
        let index = self.numbers.get(&Shared::from(hops)).copied()?;
        let mut changed = None;
        self.update(index, hops, &mut changed).then_some(())?;
        changed.or_else(|| self.get(self.id(index)))
    }

    /// What routes of that family share by a next-hop object.
    pub(crate) fn of_object(&self, object: u32, family: Family) -> Option<&Multipath> {
        let index = self.numbers.get(&Shared::Object(object, family))?;
        self.groups.get(index).map(|entry| &entry.hops)
    }

    /// The guest hashes by other fields now: these groups are others.
    pub(crate) fn set_settings(&mut self, settings: Settings) -> Vec<u32> {
        if std::mem::replace(&mut self.settings, settings) == settings {
            return Vec::new();
        }
        self.groups.keys().map(|index| self.id(*index)).collect()
    }

    /// The group of a number, as it should be.
    pub(crate) fn get(&self, id: u32) -> Option<Group> {
        let entry = self.groups.get(&((id & 0xffff) as u16))?;
        Some(group(id, &entry.hops, self.settings))
    }

    /// The next hops that the group of that number is for.
    pub(crate) fn hops_of(&self, id: u32) -> Option<&Multipath> {
        self.groups.get(&((id & 0xffff) as u16)).map(|entry| &entry.hops)
    }

    /// Numbers of the groups that routes use.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = u32> {
        self.groups.keys().map(|index| self.id(*index))
    }

    /// Numbers of all groups that the switch may hold.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.groups
            .keys()
            .chain(self.found.values())
            .chain(&self.surplus)
            .map(|index| self.id(*index))
            .collect()
    }

    fn id(&self, index: u16) -> u32 {
        u32::from(self.router.0) << 16 | u32::from(index)
    }
}

/// The router whose groups have this number; none for a number that is no router's.
pub(crate) fn router_of(id: u32) -> Option<RouterId> {
    let router = (id >> 16) as u16;
    (router != 0).then_some(RouterId(router))
}

/// How many buckets each next hop gets.
fn counts(multipath: &Multipath) -> impl Iterator<Item = u32> {
    let weights: Vec<u32> = multipath.hops.iter().map(|(_, weight)| *weight).collect();
    shares(&weights).into_iter()
}

fn bucket_count(multipath: &Multipath) -> usize {
    counts(multipath).map(|count| count as usize).sum()
}

fn group(id: u32, multipath: &Multipath, settings: Settings) -> Group {
    let mut taken = BTreeSet::new();
    let mut buckets = Vec::new();
    for ((adjacency, _), copies) in multipath.hops.iter().zip(counts(multipath)) {
        let mut actions = table::towards(*adjacency);
        actions.extend(count_lookup());
        actions.push(Action::resubmit(NEXT_HOP));
        for copy in 0..copies {
            let mut number = bucket_id(*adjacency, copy);
            while !taken.insert(number) {
                number = number.wrapping_add(1) & MAX_BUCKET_ID;
            }
            buckets.push(Bucket::weighted(number, 1, actions.clone()));
        }
    }
    let fields = hash_fields(multipath.family, settings);
    Group { id, kind: GroupType::Select, buckets, selection: Some(Selection::hash(fields)) }
}

/// Below `OFPG_BUCKET_MAX`.
const MAX_BUCKET_ID: u32 = 0x7fff_ffff;

/// A number that follows from the next hop alone, so that it stays while others come and go (FNV-1a, 32 bits).
fn bucket_id(adjacency: Adjacency, copy: u32) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    add(&adjacency.vif.number.to_be_bytes());
    match adjacency.addr {
        std::net::IpAddr::V4(addr) => add(&addr.octets()),
        std::net::IpAddr::V6(addr) => add(&addr.octets()),
    }
    add(&copy.to_be_bytes());
    hash & MAX_BUCKET_ID
}

/// How many buckets each weight gets: the weights themselves where their sum is small, so that one that leaves
/// changes nothing for the others; else their ratio, as well as [`MAX_BUCKETS`] can say it.
fn shares(weights: &[u32]) -> Vec<u32> {
    let sum = |weights: &[u32]| weights.iter().map(|weight| u64::from(*weight)).sum::<u64>();
    if sum(weights) <= MAX_BUCKETS.into() {
        return weights.to_vec();
    }
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<u32> = weights.iter().map(|weight| weight / divisor).collect();
    let total = sum(&weights);
    if total <= MAX_BUCKETS.into() {
        return weights;
    }
    let rounded = |weight: &u32| (u64::from(*weight) * u64::from(MAX_BUCKETS) + total / 2) / total;
    weights.iter().map(|weight| rounded(weight).max(1) as u32).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The fields of `fib_multipath_hash_policy` (`fib_multipath_hash`, `rt6_multipath_hash`). The fields of policy 3 are
/// another setting; any choice is one of the kernel's.
fn hash_fields(family: Family, settings: Settings) -> Vec<Field> {
    let ports = [Field::IpProto, Field::TcpSrc, Field::TcpDst, Field::UdpSrc, Field::UdpDst];
    let (addresses, policy) = match family {
        Family::V4 => (vec![Field::Ipv4Src, Field::Ipv4Dst], settings.ipv4_hash_policy),
        Family::V6 => (vec![Field::Ipv6Src, Field::Ipv6Dst], settings.ipv6_hash_policy),
    };
    let more: &[Field] = match (policy, family) {
        (0 | 2, Family::V4) => &[],
        (0 | 2, Family::V6) => &[Field::Ipv6Flabel, Field::IpProto],
        _ => &ports,
    };
    addresses.into_iter().chain(more.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::VifId;

    const ROUTER: RouterId = RouterId(7);

    fn multipath(hosts: &[(u8, u32)]) -> Multipath {
        let vif = VifId { router: ROUTER, number: 1 };
        let hop = |host: u8| Adjacency { vif, addr: [10, 0, 0, host].into() };
        let hops = hosts.iter().map(|(host, weight)| (hop(*host), *weight)).collect();
        Multipath { family: Family::V4, hops, object: None }
    }

    fn prefix(net: u8) -> Prefix {
        Prefix { table: 254, dst: format!("10.{net}.0.0/16").parse().unwrap() }
    }

    #[test]
    fn routes_share_groups_that_come_before_and_go_after_them() {
        let mut groups = Groups::new(ROUTER, MAX_ROUTER_BUCKETS);
        let (two, three) = (multipath(&[(1, 1), (2, 1)]), multipath(&[(1, 1), (2, 1), (3, 1)]));
        let first = groups.assign(prefix(1), Some(&two));
        assert_eq!(first.id, Some(7 << 16 | 1));
        assert_eq!(first.add.unwrap().buckets.len(), 2);
        let second = groups.assign(prefix(2), Some(&two));
        assert_eq!((second.id, second.add, second.remove), (first.id, None, None));
        assert_eq!(groups.assign(prefix(1), Some(&three)).remove, None, "another route uses it");
        let moved = groups.assign(prefix(2), Some(&three));
        assert_eq!((moved.id, moved.add, moved.remove), (Some(7 << 16 | 2), None, first.id));
        assert_eq!(groups.assign(prefix(1), None), Assigned::default());
        assert_eq!(groups.assign(prefix(2), None).remove, Some(7 << 16 | 2));
        assert!(groups.ids().is_empty());
    }

    #[test]
    fn buckets_are_counted_and_who_finds_none_left_may_ask_again() {
        let mut groups = Groups::new(ROUTER, 5);
        let (two, three) = (multipath(&[(1, 1), (2, 1)]), multipath(&[(1, 1), (2, 1), (3, 1)]));
        let weighted = multipath(&[(1, 3), (2, 1)]);
        assert!(groups.assign(prefix(1), Some(&two)).add.is_some());
        assert!(groups.assign(prefix(2), Some(&three)).add.is_some());
        assert!(!groups.is_short());
        assert_eq!(groups.assign(prefix(3), Some(&weighted)), Assigned::default());
        assert!(groups.is_short() && !groups.has(prefix(3)));
        // A group that is there costs nothing more.
        assert!(groups.assign(prefix(4), Some(&two)).id.is_some());
        // It wants another one and finds none: what it had goes.
        assert!(groups.assign(prefix(2), Some(&weighted)).remove.is_some());
        groups.ask_again();
        assert_eq!(groups.assign(prefix(3), Some(&weighted)).id, None, "four, and three are left");
        assert!(groups.is_short());
        assert!(groups.assign(prefix(2), Some(&three)).id.is_some());
        for net in [1, 2, 4] {
            groups.assign(prefix(net), None);
        }
        assert_eq!(groups.buckets, 0);
        assert_eq!(groups.assign(prefix(3), Some(&weighted)).add.unwrap().buckets.len(), 4);
    }

    #[test]
    fn routes_by_an_object_keep_their_group_whatever_its_hops() {
        let mut groups = Groups::new(ROUTER, 5);
        let by = |hosts: &[(u8, u32)]| Multipath { object: Some(30), ..multipath(hosts) };
        let first = groups.assign(prefix(1), Some(&by(&[(1, 1), (2, 1)])));
        assert_eq!(groups.assign(prefix(2), Some(&by(&[(1, 1), (2, 1)]))).id, first.id);
        assert_ne!(groups.assign(prefix(3), Some(&multipath(&[(1, 1), (2, 1)]))).id, first.id);
        let one = groups.replace(&by(&[(1, 1)])).unwrap();
        assert_eq!((Some(one.id), one.buckets.len()), (first.id, 1));
        assert_eq!(groups.of_object(30, Family::V4), Some(&by(&[(1, 1)])));
        assert_eq!(groups.buckets, 3);
        // A route that looks again finds what the others have.
        let again = groups.assign(prefix(2), Some(&by(&[(1, 1)])));
        assert_eq!(again, Assigned { id: first.id, ..Assigned::default() });
        assert_eq!(groups.replace(&by(&[(1, 4)])), None, "two and four are more than five");
        assert_eq!(groups.replace(&Multipath { object: Some(31), ..multipath(&[(1, 1)]) }), None);
        // As when the binding changes: the first one that looks brings the others' group, too.
        let changed = groups.assign(prefix(1), Some(&by(&[(1, 1), (3, 1)])));
        assert_eq!((changed.id, changed.add.map(|group| group.buckets.len())), (first.id, Some(2)));
        assert_eq!(groups.assign(prefix(1), None).remove, None);
        assert_eq!(groups.assign(prefix(2), None).remove, first.id);
        assert_eq!(groups.of_object(30, Family::V4), None);
    }

    #[test]
    fn a_new_life_takes_up_what_it_finds() {
        let (two, three) = (multipath(&[(1, 1), (2, 1)]), multipath(&[(1, 1), (2, 1), (3, 1)]));
        let mut groups = Groups::new(ROUTER, MAX_ROUTER_BUCKETS);
        let held: BTreeMap<u32, Group> = [&multipath(&[(8, 1), (9, 1)]), &three, &two]
            .into_iter()
            .zip(1..)
            .filter_map(|(hops, net)| groups.assign(prefix(net), Some(hops)).add)
            .map(|group| (group.id, group))
            .collect();
        let mut groups = Groups::new(ROUTER, MAX_ROUTER_BUCKETS);
        groups.adopt(held);
        let two = groups.assign(prefix(5), Some(&two));
        assert_eq!((two.id, two.add), (Some(7 << 16 | 3), None));
        let new = groups.assign(prefix(6), Some(&multipath(&[(1, 1), (9, 1)])));
        assert_eq!(new.id, Some(7 << 16 | 4), "no number that the switch holds");
        assert_eq!(groups.unused(), [7 << 16 | 1, 7 << 16 | 2]);
        groups.removed(7 << 16 | 1);
        assert_eq!(groups.assign(prefix(7), Some(&three)).id, Some(7 << 16 | 1));
    }

    #[test]
    fn buckets_of_the_others_stay_when_a_next_hop_leaves() {
        let settings = Settings::default();
        let ids = |hosts: &[(u8, u32)]| -> BTreeSet<u32> {
            group(1, &multipath(hosts), settings).buckets.iter().map(|bucket| bucket.id).collect()
        };
        let all = ids(&[(1, 2), (2, 4), (3, 10)]);
        assert_eq!(all.len(), 16);
        assert!(ids(&[(1, 2), (3, 10)]).is_subset(&all));
        assert!(ids(&[(2, 4), (3, 10)]).is_subset(&all));
    }

    #[test]
    fn weights_become_numbers_of_buckets() {
        assert_eq!(shares(&[1, 1]), [1, 1]);
        assert_eq!(shares(&[2, 4]), [2, 4], "one that leaves must not change the others");
        assert_eq!(shares(&[256, 256, 128]), [2, 2, 1]);
        assert_eq!(shares(&[65536, 1]), [256, 1]);
        assert_eq!(shares(&[1; 300]), [1; 300]);
        for weights in [[300, 500, 77], [65536, 65535, 40000], [1000, 999, 1001]] {
            let counts = shares(&weights);
            let (sum, total) = (weights.iter().sum::<u32>(), counts.iter().sum::<u32>());
            for (weight, count) in weights.iter().zip(counts) {
                let ratio = f64::from(count) / f64::from(total) / (f64::from(*weight) / f64::from(sum));
                assert!((0.95..1.05).contains(&ratio), "{weights:?}: {ratio}");
            }
        }
    }

    #[test]
    fn a_guest_that_hashes_otherwise_has_other_groups() {
        let mut groups = Groups::new(ROUTER, MAX_ROUTER_BUCKETS);
        let two = groups.assign(prefix(1), Some(&multipath(&[(1, 1), (2, 1)])));
        let layer4 = Settings { ipv4_hash_policy: 1, ipv6_hash_policy: 0 };
        assert_eq!(groups.set_settings(Settings::default()), []);
        assert_eq!(groups.set_settings(layer4), [two.id.unwrap()]);
        assert_ne!(groups.get(two.id.unwrap()), two.add);
    }
}
