//! The mirror of the kernel's tables. Pure: time is an argument.
//!
//! Events change the mirror at once; a dump (begin, entries, end) corrects it over the union of keys. What a survey
//! found ([`crate::obstacles`]) is kept here too, in the same way; dumps leave it alone. What of all this the host
//! does not know yet is for `told` to say, and where a host may be brought up to date from for `start`.
//!
//! Not here: how changes are numbered and confirmed ([`crate::session`]), when to dump ([`crate::driver`]).

mod audit;
mod entries;
mod marks;
mod past;
mod start;
mod told;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use xenflow_proto::table::{
    AddressKey, Hop, HopFlags, IfIndex, Link, Obstacle, ObstacleKey, ObstacleKind, Route, RouteKey,
    RouteTarget,
};
use xenflow_proto::{Key, Object};

use crate::gateways::Gateways;
use crate::obstacles::Survey;
use crate::translate::{Event, Place};

pub use audit::Repaired;
use audit::{Audit, is_for_surveys};
use entries::{Entries, State, Told};
pub use past::MAX_CHANGES;
pub use start::Start;
use told::Telling;
pub use told::{Batch, Confirmed, Limits, MAX_IN_FLIGHT};

/// A key with its rank in a snapshot: what a route refers to comes before it, and what stands in the way of
/// forwarding before everything that it concerns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u8, Key);

impl Slot {
    /// The rank of addresses.
    const ADDRESSES: u8 = 2;
    /// That of routes.
    const ROUTES: u8 = 5;
}

impl From<Key> for Slot {
    fn from(key: Key) -> Self {
        let rank = match key {
            Key::Obstacle(_) => 0,
            Key::Link(_) => 1,
            Key::Address(_) => Self::ADDRESSES,
            Key::NextHop(_) => 3,
            Key::Neighbor(_) => 4,
            Key::Route(_) => Self::ROUTES,
            // They say that all obstacles have been told.
            Key::Settings => 6,
        };
        Self(rank, key)
    }
}

/// Who tells of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Event,
    Dump,
}

/// See the module.
#[derive(Debug)]
pub struct Mirror {
    entries: Entries,
    /// Keys under which the kernel has, or may have, several routes; `entries` has the first. With the dump
    /// during or before which that was last seen.
    duplicated: BTreeMap<RouteKey, u32>,
    dump: u32,
    dumping: bool,
    /// What events took away during the dump.
    removed: BTreeSet<Slot>,
    /// The dump contradicts an event: the kernel may have listed first and queued last.
    doubtful: bool,
    audit: Audit,
    trusted: bool,
    /// Links that the last survey looked at; none: there was no survey.
    surveyed: Option<BTreeSet<IfIndex>>,
    /// Others came since somebody asked.
    unsurveyed: bool,
    told: Telling,
    neighbors: usize,
    gateways: Gateways,
}

impl Mirror {
    /// An empty one, not to be trusted before the first dump and the first survey. The kernel's boot id keys what
    /// this guest and its host compare their tables by.
    #[must_use]
    pub fn new(boot_id: &[u8; 16]) -> Self {
        Self {
            entries: Entries::default(),
            duplicated: BTreeMap::new(),
            dump: 0,
            dumping: false,
            removed: BTreeSet::new(),
            doubtful: false,
            audit: Audit::default(),
            trusted: false,
            surveyed: None,
            unsurveyed: false,
            told: Telling::new(boot_id),
            neighbors: 0,
            gateways: Gateways::default(),
        }
    }

    /// A dump has ended, nothing was lost since, and a survey tells what the tables do not.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.trusted && self.surveyed.is_some()
    }

    /// Number of routes.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.entries.routes()
    }

    /// Gateways of all routes.
    #[must_use]
    pub fn gateways(&self) -> &Gateways {
        &self.gateways
    }

    /// Number of neighbors.
    #[must_use]
    pub fn neighbors(&self) -> usize {
        self.neighbors
    }

    /// The object under a key.
    #[must_use]
    pub fn object(&self, key: Key) -> Option<Cow<'_, Object>> {
        self.entries.get(&Slot::from(key)).map(|(object, _)| object)
    }

    /// There is an object under a key.
    #[must_use]
    pub fn contains(&self, key: Key) -> bool {
        self.entries.contains(&Slot::from(key))
    }

    /// All objects; what a route refers to comes before it.
    pub fn objects(&self) -> impl Iterator<Item = Cow<'_, Object>> {
        self.entries.range(Bound::Unbounded).map(|(object, _)| object)
    }

    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links().find(|link| link.name == name)
    }

    /// All links, by number.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.entries.others(Slot::from(Key::Link(0))).map_while(|(_, object)| match object {
            Object::Link(link) => Some(link),
            Object::Address(_)
            | Object::Route(_)
            | Object::NextHop(_)
            | Object::Neighbor(_)
            | Object::Settings(_)
            | Object::Obstacle(_) => None,
        })
    }

    /// All addresses, by link.
    pub fn addresses(&self) -> impl Iterator<Item = AddressKey> {
        let of_links = self.entries.others(Slot::from(Key::Link(0)));
        let of_links = of_links.take_while(|(slot, _)| slot.0 <= Slot::ADDRESSES);
        of_links.filter_map(|(_, object)| if let Object::Address(key) = object { Some(*key) } else { None })
    }

    /// Takes in an event of the kernel. True: other objects may have gone without a word, a dump is needed. While a dump
    /// runs, that holds of an event that changes nothing here, too: what went with an object may have been listed
    /// before, when the object itself was not known yet.
    #[must_use]
    pub fn apply(&mut self, event: Event, now: Duration) -> bool {
        self.audit.told(&Slot::from(key(&event)));
        let has_followers = self.take_in(event, now);
        if has_followers {
            self.audit.explained();
        }
        has_followers
    }

    fn take_in(&mut self, event: Event, now: Duration) -> bool {
        match event {
            Event::Upsert(object) => {
                let silent = has_silent_followers(&object.key());
                (self.put(object, now, Source::Event) || self.dumping) && silent
            }
            Event::Remove(key) => {
                let silent = has_silent_followers(&key);
                (self.take_away(&Slot::from(key), now) || self.dumping) && silent
            }
            Event::Route(route, place) => {
                self.place(route, place, now);
                false
            }
            Event::RouteGone(route) => self.route_gone(&route, now),
        }
    }

    fn place(&mut self, route: Route, place: Place, now: Duration) {
        let key = route.key;
        match (self.route(key), place) {
            (None, _) | (Some(_), Place::Replaced) => {}
            (Some(_), Place::Only) => {
                if self.duplicated.remove(&key).is_some() {
                    self.tell_again(key, now);
                }
            }
            // Routes may differ in what is not looked at, such as the preferred source.
            (Some(_), Place::First) => self.seems_duplicated(key, now),
            // An IPv6 route that got one more hop is told whole; anything else stands behind the first.
            (Some(first), Place::Last) => {
                if !extends(&route, &first) {
                    self.seems_duplicated(key, now);
                    return;
                }
            }
        }
        self.put(Object::Route(route), now, Source::Event);
    }

    /// An event is of another route than the one here under its key. What is here may be old while a dump runs, and the
    /// dump may have listed the key before: the next one tells whether there are several.
    fn seems_duplicated(&mut self, key: RouteKey, now: Duration) {
        self.doubtful |= self.dumping;
        self.duplicate(key, now);
    }

    /// The kernel has, or may have, several routes under a key.
    fn duplicate(&mut self, key: RouteKey, now: Duration) {
        if self.duplicated.insert(key, self.dump).is_none() {
            self.tell_again(key, now);
        }
    }

    fn route_gone(&mut self, route: &Route, now: Duration) -> bool {
        let Some(first) = self.route(route.key) else {
            // The dump that runs may have listed it already, and tell of it later.
            self.take_away(&Slot::from(Key::Route(route.key)), now);
            return false;
        };
        if self.duplicated.contains_key(&route.key) || !same(&first, route) {
            return true;
        }
        self.take_away(&Slot::from(Key::Route(route.key)), now);
        false
    }

    fn take_away(&mut self, slot: &Slot, now: Duration) -> bool {
        if self.dumping {
            self.removed.insert(slot.clone());
        }
        self.delete(slot, now)
    }

    /// A dump of all tables starts, or starts again.
    pub fn begin_dump(&mut self) {
        self.start_dump(false);
    }

    /// A dump of all tables starts for no other reason than that time has passed: it should change nothing.
    pub fn begin_audit(&mut self) {
        self.start_dump(true);
    }

    fn start_dump(&mut self, by_clock: bool) {
        self.audit.begin(by_clock);
        self.dump += 1;
        self.entries.begin_dump();
        self.dumping = true;
        self.removed.clear();
        self.doubtful = false;
    }

    /// Takes in an entry of the dump. Of several routes with one key, the first counts.
    pub fn apply_dumped(&mut self, event: Event, now: Duration) {
        match event {
            Event::Upsert(object) => {
                self.put(object, now, Source::Dump);
            }
            Event::Route(route, _) => {
                let slot = Slot::from(Key::Route(route.key));
                match self.entries.state(&slot).filter(|state| state.is_dumped) {
                    None => {
                        self.put(Object::Route(route), now, Source::Dump);
                    }
                    Some(listed) => {
                        if !listed.is_told && !self.duplicated.contains_key(&route.key) {
                            self.audit.found(&slot);
                        }
                        self.duplicate(route.key, now);
                    }
                }
            }
            Event::Remove(key) => {
                let slot = Slot::from(key);
                if self.entries.state(&slot).is_some_and(|state| state.is_told) {
                    self.doubtful = true;
                } else if self.delete(&slot, now) {
                    self.audit.found(&slot);
                }
            }
            Event::RouteGone(_) => {}
        }
    }

    /// The dump ended whole: what neither it nor an event since its beginning named is gone. False: it
    /// contradicts an event, and another dump must tell which of both is newer.
    #[must_use]
    pub fn end_dump(&mut self, now: Duration) -> bool {
        let dump = self.dump;
        let gone: Vec<Slot> = self.entries.unseen().filter(|slot| is_dumped(&slot.1)).collect();
        for slot in gone {
            self.delete(&slot, now);
            self.audit.found(&slot);
        }
        let alone: Vec<RouteKey> =
            self.duplicated.iter().filter(|(_, seen)| **seen != dump).map(|(key, _)| *key).collect();
        for key in alone {
            self.duplicated.remove(&key);
            self.tell_again(key, now);
        }
        if let Some(surveyed) = &mut self.surveyed {
            // One that went before the dump, and was never here, may come back as another.
            surveyed.retain(|link| self.entries.contains(&Slot::from(Key::Link(*link))));
        }
        self.dumping = false;
        self.removed.clear();
        self.trusted = true;
        self.audit.end(now, !self.doubtful);
        !self.doubtful
    }

    /// When [`Self::take_repaired`] is to be asked, once the socket is empty.
    #[must_use]
    pub fn audit_deadline(&self) -> Option<Duration> {
        self.audit.deadline()
    }

    /// What an audit repaired although no event had said so, once. To be asked when the socket has no more events.
    pub fn take_repaired(&mut self, now: Duration) -> Option<Repaired> {
        self.audit.take(now)
    }

    /// Takes in a survey: what it does not name is gone. A link that it did not look at has an obstacle until one
    /// does, for nobody knows what is on it.
    pub fn apply_survey(&mut self, survey: &Survey, now: Duration) {
        // One that is gone by now may come back as another, which nobody has looked at.
        let there = |link: &&IfIndex| !self.trusted || self.entries.contains(&Slot::from(Key::Link(**link)));
        self.surveyed = Some(survey.links.keys().filter(there).copied().collect());
        let mut objects: BTreeMap<Key, Object> = survey
            .obstacles
            .iter()
            .cloned()
            .map(Object::Obstacle)
            .chain([Object::Settings(survey.settings)])
            .map(|object| (object.key(), object))
            .collect();
        let links = self.links().map(|link| link.ifindex);
        for link in links.filter(|link| !survey.links.contains_key(link)) {
            let unknown = Object::Obstacle(not_surveyed(link));
            objects.insert(unknown.key(), unknown);
        }
        // There are settings in every survey.
        let first = Slot(0, Key::Settings);
        let known = self.entries.others(first).map(|(slot, _)| slot).take_while(|slot| slot.0 == 0);
        let gone: Vec<Slot> = known.filter(|slot| !objects.contains_key(&slot.1)).cloned().collect();
        for slot in gone {
            self.delete(&slot, now);
        }
        for object in objects.into_values() {
            self.put(object, now, Source::Event);
        }
    }

    /// Links came that no survey has looked at. True once, whatever becomes of them.
    #[must_use]
    pub fn take_unsurveyed(&mut self) -> bool {
        std::mem::take(&mut self.unsurveyed)
    }

    /// Events were lost: not to be trusted until the next dump ends.
    pub fn distrust(&mut self) {
        self.audit.explained();
        self.trusted = false;
    }

    fn route(&self, key: RouteKey) -> Option<Route> {
        let object = self.object(Key::Route(key))?.into_owned();
        if let Object::Route(route) = object { Some(route) } else { None }
    }

    /// True if that changed anything.
    fn put(&mut self, object: Object, now: Duration, source: Source) -> bool {
        let slot = Slot::from(object.key());
        // Before the link, so that no host has the one without the other.
        if let (Key::Link(link), Some(surveyed)) = (&slot.1, &self.surveyed)
            && !self.entries.contains(&slot)
            && !surveyed.contains(link)
        {
            self.unsurveyed = true;
            let unknown = Object::Obstacle(not_surveyed(*link));
            let of_unknown = Slot::from(unknown.key());
            if !self.put(unknown, now, Source::Event) {
                // It may be left over from a link before, and still to come in the snapshot.
                self.review(&of_unknown, None, now);
            }
        }
        let is_event = source == Source::Event;
        let is_duplicated = self.is_duplicated(&slot);
        if let Some(known) = self.entries.state(&slot) {
            let is_same = self.entries.holds(&object);
            let state = State {
                is_seen: true,
                is_dumped: known.is_dumped || !is_event,
                is_told: known.is_told || is_event,
                ..known
            };
            if is_same || (!is_event && known.is_told) {
                self.doubtful |= !is_same;
                self.entries.set(&slot, state);
                return false;
            }
            let Some((before, _)) = self.entries.get(&slot) else { return false };
            if !is_event && !is_for_surveys(&before, &object) {
                self.audit.found(&slot);
            }
            self.gateways.remove(&before);
            self.gateways.add(&object);
            let before = self.told.hash(&before, is_duplicated);
            let hash = self.told.hash(&object, is_duplicated);
            self.told.replace(&slot, Some(before), hash);
            let told = Told::of(state.told.hash(before), hash);
            self.entries.insert(object, State { told, ..state });
            self.review(&slot, None, now);
            return true;
        }
        if !is_event {
            self.doubtful |= self.removed.contains(&slot);
            self.audit.found(&slot);
        }
        self.count(&slot, 1);
        self.gateways.add(&object);
        let hash = self.told.hash(&object, is_duplicated);
        self.told.replace(&slot, None, hash);
        // A key that went and came back before the host was told stays one it knows.
        let told = Told::of(self.told.of_gone(&slot), hash);
        let sent = self.told.sent();
        let state = State { is_seen: true, is_dumped: !is_event, is_told: is_event, told, sent };
        self.entries.insert(object, state);
        self.review(&slot, None, now);
        true
    }

    fn delete(&mut self, slot: &Slot, now: Duration) -> bool {
        if let (Key::Link(link), Some(surveyed)) = (&slot.1, &mut self.surveyed) {
            // Another may come under the same number, also of one that only the survey has seen.
            surveyed.remove(link);
        }
        let is_duplicated = self.is_duplicated(slot);
        let Some((object, state)) = self.entries.remove(slot) else { return false };
        self.count(slot, -1);
        self.gateways.remove(&object);
        if let Key::Route(key) = &slot.1 {
            self.duplicated.remove(key);
        }
        let hash = self.told.hash(&object, is_duplicated);
        self.told.remove(slot, hash);
        self.review(slot, state.told.hash(hash), now);
        if let Key::Link(link) = slot.1 {
            self.delete(&Slot::from(Key::Obstacle(not_surveyed(link).key)), now);
        }
        true
    }

    fn count(&mut self, slot: &Slot, by: isize) {
        if let Key::Neighbor(_) = slot.1 {
            self.neighbors = self.neighbors.saturating_add_signed(by);
        }
    }

    fn is_duplicated(&self, slot: &Slot) -> bool {
        if let Key::Route(key) = &slot.1 { self.duplicated.contains_key(key) } else { false }
    }
}

/// What an event is about.
fn key(event: &Event) -> Key {
    match event {
        Event::Upsert(object) => object.key(),
        Event::Remove(key) => key.clone(),
        Event::Route(route, _) | Event::RouteGone(route) => Key::Route(route.key),
    }
}

/// Links, addresses and next-hop objects take routes with them that the kernel says nothing about.
fn has_silent_followers(key: &Key) -> bool {
    match key {
        Key::Link(_) | Key::Address(_) | Key::NextHop(_) => true,
        Key::Route(_) | Key::Neighbor(_) | Key::Settings | Key::Obstacle(_) => false,
    }
}

/// Dumps of the tables tell of it; of the others a survey does.
fn is_dumped(key: &Key) -> bool {
    !matches!(key, Key::Settings | Key::Obstacle(_))
}

fn not_surveyed(ifindex: IfIndex) -> Obstacle {
    let key = ObstacleKey { ifindex: Some(ifindex), family: None, kind: ObstacleKind::Unreadable };
    Obstacle { key, detail: "the link is new, and not looked at yet".into() }
}

/// The same route, whatever the state of its hops.
fn same(a: &Route, b: &Route) -> bool {
    let hops = |route: &Route| match &route.target {
        RouteTarget::NextHop(id) => Err(*id),
        RouteTarget::Hops(hops) => {
            Ok(hops.iter().map(|hop| Hop { flags: HopFlags::default(), ..*hop }).collect::<Vec<_>>())
        }
    };
    a.key == b.key && a.kind == b.kind && a.protocol == b.protocol && hops(a) == hops(b)
}

/// Has all the hops of `first`, and more.
fn extends(route: &Route, first: &Route) -> bool {
    let (RouteTarget::Hops(more), RouteTarget::Hops(hops)) = (&route.target, &first.target) else {
        return false;
    };
    route.key.dst.addr().is_ipv6()
        && more.len() > hops.len()
        && hops.iter().all(|hop| more.iter().any(|m| (m.gateway, m.oif) == (hop.gateway, hop.oif)))
}
