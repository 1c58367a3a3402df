//! The mirror of the kernel's tables. Pure: time is an argument.
//!
//! Events change the mirror at once; a dump (begin, entries, end) corrects it over the union of keys. What a survey
//! found ([`crate::obstacles`]) is kept here too, in the same way; dumps leave it alone. What of all this the host
//! does not know yet is for `told` to say, and where a host may be brought up to date from for `start`.
//!
//! Not here: how changes are numbered and confirmed ([`crate::session`]), when to dump ([`crate::driver`]).

mod audit;
mod marks;
mod past;
mod start;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use xenflow_proto::table::{
    Hop, HopFlags, IfIndex, Link, Obstacle, ObstacleKey, ObstacleKind, Route, RouteKey, RouteTarget,
};
use xenflow_proto::{Key, Object};

use crate::gateways::Gateways;
use crate::obstacles::Survey;
use crate::translate::{Event, Place};

pub use audit::Repaired;
use audit::{Audit, is_for_surveys};
pub use start::Start;
use told::Told;
pub use told::{Batch, Confirmed, Limits, MAX_IN_FLIGHT};

/// A key with its rank in a snapshot: what a route refers to comes before it, and what stands in the way of
/// forwarding before everything that it concerns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u8, Key);

impl From<Key> for Slot {
    fn from(key: Key) -> Self {
        let rank = match key {
            Key::Obstacle(_) => 0,
            Key::Link(_) => 1,
            Key::Address(_) => 2,
            Key::NextHop(_) => 3,
            Key::Neighbor(_) => 4,
            Key::Route(_) => 5,
            // They say that all obstacles have been told.
            Key::Settings => 6,
        };
        Self(rank, key)
    }
}

#[derive(Debug)]
struct Entry {
    object: Object,
    /// The dump during or before which it was last confirmed, by whatever message.
    seen: u32,
    /// The dump that listed it.
    dumped: u32,
    /// The dump during or before which an event told of it.
    event: u32,
    /// Hash of what the host is to be told of it.
    hash: u64,
    /// Hash of what the host was told last under this key.
    told: Option<u64>,
    /// Number of the message by which it was.
    sent: u64,
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
    entries: BTreeMap<Slot, Entry>,
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
    told: Told,
    routes: usize,
    neighbors: usize,
    gateways: Gateways,
}

impl Mirror {
    /// An empty one, not to be trusted before the first dump and the first survey. The kernel's boot id keys what
    /// this guest and its host compare their tables by.
    #[must_use]
    pub fn new(boot_id: &[u8; 16]) -> Self {
        Self {
            entries: BTreeMap::new(),
            duplicated: BTreeMap::new(),
            dump: 0,
            dumping: false,
            removed: BTreeSet::new(),
            doubtful: false,
            audit: Audit::default(),
            trusted: false,
            surveyed: None,
            unsurveyed: false,
            told: Told::new(boot_id),
            routes: 0,
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
        self.routes
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
    pub fn object(&self, key: Key) -> Option<&Object> {
        self.entries.get(&Slot::from(key)).map(|entry| &entry.object)
    }

    /// All objects; what a route refers to comes before it.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.entries.values().map(|entry| &entry.object)
    }

    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links().find(|link| link.name == name)
    }

    /// All links, by number.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.entries.range(Slot::from(Key::Link(0))..).map_while(|(_, entry)| match &entry.object {
            Object::Link(link) => Some(link),
            Object::Address(_)
            | Object::Route(_)
            | Object::NextHop(_)
            | Object::Neighbor(_)
            | Object::Settings(_)
            | Object::Obstacle(_) => None,
        })
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
                if !extends(&route, first) {
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
        if self.duplicated.contains_key(&route.key) || !same(first, route) {
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
                let listed = self.entries.get(&slot).filter(|entry| entry.dumped == self.dump);
                match listed.map(|entry| entry.object == Object::Route(route.clone())) {
                    None => {
                        self.put(Object::Route(route), now, Source::Dump);
                    }
                    Some(_) => {
                        let is_told = self.entries.get(&slot).is_some_and(|entry| entry.event == self.dump);
                        if !is_told && !self.duplicated.contains_key(&route.key) {
                            self.audit.found(&slot);
                        }
                        self.duplicate(route.key, now);
                    }
                }
            }
            Event::Remove(key) => {
                let slot = Slot::from(key);
                if self.entries.get(&slot).is_some_and(|entry| entry.event == self.dump) {
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
        let gone = self.entries.iter().filter(|(slot, entry)| entry.seen != dump && is_dumped(&slot.1));
        let gone: Vec<Slot> = gone.map(|(slot, _)| slot.clone()).collect();
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
            surveyed.retain(|link| self.entries.contains_key(&Slot::from(Key::Link(*link))));
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
        let there =
            |link: &&IfIndex| !self.trusted || self.entries.contains_key(&Slot::from(Key::Link(**link)));
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
        let known = self.entries.range(..Slot::from(Key::Link(0))).map(|(slot, _)| slot);
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

    fn route(&self, key: RouteKey) -> Option<&Route> {
        match self.object(Key::Route(key)) {
            Some(Object::Route(route)) => Some(route),
            _ => None,
        }
    }

    /// True if that changed anything.
    fn put(&mut self, object: Object, now: Duration, source: Source) -> bool {
        let slot = Slot::from(object.key());
        // Before the link, so that no host has the one without the other.
        if let (Key::Link(link), Some(surveyed)) = (&slot.1, &self.surveyed)
            && !self.entries.contains_key(&slot)
            && !surveyed.contains(link)
        {
            self.unsurveyed = true;
            let unknown = Object::Obstacle(not_surveyed(*link));
            let of_unknown = Slot::from(unknown.key());
            if !self.put(unknown, now, Source::Event)
                && let Some(told) = self.entries.get(&of_unknown).map(|entry| entry.told)
            {
                // It may be left over from a link before, and still to come in the snapshot.
                self.review(&of_unknown, told, now);
            }
        }
        let dump = self.dump;
        let (event, dumped) = match source {
            Source::Event => (dump, 0),
            Source::Dump => (0, dump),
        };
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.seen = dump;
            let told_by_event = entry.event == dump;
            entry.event = entry.event.max(event);
            entry.dumped = entry.dumped.max(dumped);
            if entry.object == object {
                return false;
            }
            if source == Source::Dump && told_by_event {
                self.doubtful = true;
                return false;
            }
            if source == Source::Dump && !is_for_surveys(&entry.object, &object) {
                self.audit.found(&slot);
            }
            self.gateways.remove(&entry.object);
            self.gateways.add(&object);
            entry.hash = self.told.replace(Some(entry.hash), &object, &self.duplicated);
            entry.object = object;
            let told = entry.told;
            self.review(&slot, told, now);
            return true;
        }
        if source == Source::Dump {
            self.doubtful |= self.removed.contains(&slot);
            self.audit.found(&slot);
        }
        self.count(&slot, 1);
        self.gateways.add(&object);
        let hash = self.told.replace(None, &object, &self.duplicated);
        // A key that went and came back before the host was told stays one it knows.
        let told = self.told.of_gone(&slot);
        let entry = Entry { object, seen: dump, dumped, event, hash, told, sent: self.told.sent() };
        self.entries.insert(slot.clone(), entry);
        self.review(&slot, told, now);
        true
    }

    fn delete(&mut self, slot: &Slot, now: Duration) -> bool {
        if let (Key::Link(link), Some(surveyed)) = (&slot.1, &mut self.surveyed) {
            // Another may come under the same number, also of one that only the survey has seen.
            surveyed.remove(link);
        }
        let Some(entry) = self.entries.remove(slot) else { return false };
        self.count(slot, -1);
        self.gateways.remove(&entry.object);
        if let Key::Route(key) = &slot.1 {
            self.duplicated.remove(key);
        }
        self.told.remove(slot, entry.hash);
        self.review(slot, entry.told, now);
        if let Key::Link(link) = slot.1 {
            self.delete(&Slot::from(Key::Obstacle(not_surveyed(link).key)), now);
        }
        true
    }

    fn count(&mut self, slot: &Slot, by: isize) {
        match slot.1 {
            Key::Route(_) => self.routes = self.routes.saturating_add_signed(by),
            Key::Neighbor(_) => self.neighbors = self.neighbors.saturating_add_signed(by),
            Key::Link(_) | Key::Address(_) | Key::NextHop(_) | Key::Settings | Key::Obstacle(_) => {}
        }
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
