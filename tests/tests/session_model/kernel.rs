//! A kernel's tables, the netlink socket on which it tells of them, and what it does not tell.
//!
//! Silent are: IPv4 routes, next-hop objects and the state of hops when a link goes down or comes up; routes of a
//! next-hop object that goes; routes with the source address that goes; and everything that the socket has no room for.
//! What is worse, it may conceal anything at all, as a kernel with an error would. Dumps may be ahead of events of routes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use xenflow_guest_client::obstacles::Survey;
use xenflow_guest_client::translate::{Event, Place};
use xenflow_proto::table::{
    AddressKey, Hop, HopFlags, IfIndex, Link, Neighbor, NeighborKey, NextHop, NextHopKind, Obstacle,
    ObstacleKey, ObstacleKind, Route, RouteKey, RouteKind, RouteTarget, Settings, TABLE_MAIN,
};
use xenflow_proto::{Key, MacAddr, Object};
use xenflow_tests::oracle::random::Random;

/// The vifs of the router, in the order of their numbers; the last is the control vif.
pub(crate) const LINKS: [IfIndex; 3] = [2, 3, 4];
const LANS: [IfIndex; 2] = [2, 3];
/// Messages that the socket holds.
const ROOM: usize = 40;
/// `RTPROT_*` of routes that prefer the address of their link as source.
const WITH_SOURCE: u8 = 186;
/// `RTPROT_*` of those that a flush takes.
const FLUSHED: u8 = 99;

/// What the socket gives.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Event(Event),
    /// An entry of the dump with this number.
    Dumped(u32, Event),
    /// Its end; false: the tables changed under it.
    Done(u32, bool),
}

/// A netlink socket: `netlink_overrun` and `netlink_rcv_wake` of `net/netlink/af_netlink.c`.
#[derive(Debug, Default)]
pub(crate) struct Socket {
    queue: VecDeque<Message>,
    /// ENOBUFS is to be told.
    overrun: bool,
    /// Nothing more comes in before the queue was empty.
    congested: bool,
}

/// What a read brings.
#[derive(Debug)]
pub(crate) enum Read {
    Message(Message),
    NoBuffers,
    Again,
}

impl Socket {
    fn push(&mut self, message: Message) {
        // Answers wait for room, events are dropped without it.
        let is_event = matches!(message, Message::Event(_));
        if is_event && (self.congested || self.queue.len() >= ROOM) {
            self.overrun |= !self.congested;
            self.congested = true;
        } else {
            self.queue.push_back(message);
        }
    }

    pub(crate) fn read(&mut self) -> Read {
        if std::mem::take(&mut self.overrun) {
            return Read::NoBuffers;
        }
        let message = self.queue.pop_front();
        self.congested &= !self.queue.is_empty();
        message.map_or(Read::Again, Read::Message)
    }
}

/// A dump under way: the tables are listed in order, some entries at a time.
#[derive(Debug)]
struct Dump {
    number: u32,
    after: Option<(u8, Key)>,
    /// Of [`Kernel::changes`], when it began.
    changes: u64,
    /// What was listed and is queued behind the events of the next moment.
    late: Option<Vec<Event>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Kernel {
    links: BTreeMap<IfIndex, Link>,
    addresses: BTreeSet<AddressKey>,
    next_hops: BTreeMap<u32, NextHop>,
    neighbors: BTreeMap<NeighborKey, MacAddr>,
    /// Of several with one key the first counts.
    routes: BTreeMap<RouteKey, VecDeque<Route>>,
    /// Links with a filter on them.
    filters: BTreeSet<IfIndex>,
    pub(crate) socket: Socket,
    dump: Option<Dump>,
    changes: u64,
    /// Events that are made and not queued yet.
    late: Vec<Event>,
    speech: Speech,
    /// How often something was concealed, and whether no dump has begun since.
    pub(crate) concealed: u64,
    pub(crate) is_concealing: bool,
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// It is queued with the change.
    Prompt,
    /// It is queued later: a dump may list the change before. Routes only: their dumps hold no lock (Linux 6.10).
    Late,
    /// Nobody hears of it.
    Silent,
}

impl Kernel {
    /// Just booted: links, and nothing else.
    pub(crate) fn new() -> Self {
        let links = LINKS.iter().map(|&index| (index, link(index, true))).collect();
        Self {
            links,
            addresses: BTreeSet::new(),
            next_hops: BTreeMap::new(),
            neighbors: BTreeMap::new(),
            routes: BTreeMap::new(),
            filters: BTreeSet::new(),
            socket: Socket::default(),
            dump: None,
            changes: 0,
            late: Vec::new(),
            speech: Speech::Prompt,
            concealed: 0,
            is_concealing: false,
        }
    }

    /// The reader is another: nothing is queued for it yet.
    pub(crate) fn reopen(&mut self) {
        self.socket = Socket::default();
        self.late.clear();
        self.dump = None;
    }

    /// All that a host is to know.
    pub(crate) fn tables(&self) -> BTreeMap<Key, Object> {
        let filters = self.filters.iter().map(|&index| Object::Obstacle(filter(index)));
        let routes = self.routes.values().filter_map(|routes| routes.front());
        let all = self.listed().map(|(_, event)| event);
        let objects = all.filter_map(|event| match event {
            Event::Upsert(object) => Some(object),
            Event::Remove(_) | Event::Route(..) | Event::RouteGone(_) => None,
        });
        objects
            .chain(routes.cloned().map(Object::Route))
            .chain(filters)
            .chain([Object::Settings(Settings::default())])
            .map(|object| (object.key(), object))
            .collect()
    }

    pub(crate) fn survey(&self) -> Survey {
        Survey {
            settings: Settings::default(),
            obstacles: self.filters.iter().map(|&index| filter(index)).collect(),
            links: self.links.keys().map(|&index| (index, None)).collect(),
        }
    }

    pub(crate) fn begin_dump(&mut self, number: u32) {
        self.is_concealing = false;
        self.dump = Some(Dump { number, after: None, changes: self.changes, late: None });
    }

    /// Lists some more entries; with `late`, they are queued with the next call only.
    pub(crate) fn list(&mut self, entries: usize, late: bool, random: &mut Random) {
        let Some(mut dump) = self.dump.take() else { return };
        for event in dump.late.take().into_iter().flatten() {
            self.socket.push(Message::Dumped(dump.number, event));
        }
        let after = dump.after.clone();
        let rest = self.listed().filter(|(at, _)| after.as_ref().is_none_or(|after| at > after));
        // The routes of one key are one entry.
        let mut listed: Vec<((u8, Key), Event)> = Vec::new();
        let mut keys = 0;
        for (at, event) in rest {
            let is_new = listed.last().is_none_or(|(last, _)| *last != at);
            if is_new && keys == entries {
                break;
            }
            keys += usize::from(is_new);
            listed.push((at, event));
        }
        let Some((last, _)) = listed.last() else {
            // The kernel says so often, not always: what an event tells of needs no other word.
            let whole = dump.changes == self.changes || random.percent(50);
            self.socket.push(Message::Done(dump.number, whole));
            return;
        };
        dump.after = Some(last.clone());
        let events: Vec<Event> = listed.into_iter().map(|(_, event)| event).collect();
        if late {
            dump.late = Some(events);
        } else {
            for event in events {
                self.socket.push(Message::Dumped(dump.number, event));
            }
        }
        self.dump = Some(dump);
    }

    /// Everything that dumps tell, in their order.
    fn listed(&self) -> impl Iterator<Item = ((u8, Key), Event)> {
        let upsert = |rank, object: Object| ((rank, object.key()), Event::Upsert(object));
        let links = self.links.values().map(move |link| upsert(0, Object::Link(link.clone())));
        let addresses = self.addresses.iter().map(move |key| upsert(1, Object::Address(*key)));
        let next_hops = self.next_hops.values().map(move |it| upsert(2, Object::NextHop(it.clone())));
        let neighbors =
            self.neighbors.iter().map(move |(&key, &mac)| upsert(3, Object::Neighbor(Neighbor { key, mac })));
        let routes = self.routes.iter().flat_map(|(key, routes)| {
            let at = (4, Key::Route(*key));
            routes.iter().map(move |route| (at.clone(), Event::Route(route.clone(), Place::First)))
        });
        links.chain(addresses).chain(next_hops).chain(neighbors).chain(routes)
    }

    fn tell(&mut self, event: Event) {
        match self.speech {
            Speech::Prompt => self.socket.push(Message::Event(event)),
            Speech::Late => self.late.push(event),
            Speech::Silent => {}
        }
    }

    /// Queues the events that are late.
    pub(crate) fn speak(&mut self) {
        for event in std::mem::take(&mut self.late) {
            self.socket.push(Message::Event(event));
        }
    }

    /// One thing that administrators, routing daemons, neighbors or cables do.
    pub(crate) fn act(&mut self, speech: Speech, random: &mut Random) {
        self.speak();
        self.speech = speech;
        if speech == Speech::Silent {
            self.concealed += 1;
            self.is_concealing = true;
        }
        self.changes += 1;
        if speech == Speech::Late {
            return if random.percent(60) { self.ipv4(random) } else { self.ipv6(random) };
        }
        match random.weighted(&[
            (50, 0),
            (25, 1),
            (10, 2),
            (8, 3),
            (4, 4),
            (5, 5),
            (1, 6),
            (4, 7),
            (2, 8),
            (1, 9),
            (1, 10),
            (1, 11),
        ]) {
            0 => self.ipv4(random),
            1 => self.ipv6(random),
            2 => self.neighbor(random),
            3 => self.next_hop(random),
            4 => self.next_hop_goes(random),
            5 => self.flap(random),
            6 => self.link_comes_or_goes(random),
            7 => self.address(random),
            8 => self.mtu(random),
            9 => self.flush(),
            10 => (0..2 * ROOM).for_each(|_| self.ipv4(random)),
            _ => {
                let index = *random.pick(&LANS);
                if self.links.contains_key(&index) && !self.filters.remove(&index) {
                    self.filters.insert(index);
                }
            }
        }
    }

    fn is_up(&self, index: IfIndex) -> bool {
        self.links.get(&index).is_some_and(|link| link.up)
    }

    /// A gateway on a link that is up.
    fn hop(&self, random: &mut Random, ipv6: bool) -> Option<Hop> {
        let oif = *random.pick(&LANS);
        let gateway = Some(gateway(oif, random.between(10, 12), ipv6)).filter(|_| random.percent(90));
        let weight = u32::from(random.between(1, 2));
        let hop = Hop { gateway, oif: Some(oif), weight, flags: HopFlags(0), encap: false };
        self.is_up(oif).then_some(hop)
    }

    fn target(&self, random: &mut Random, ipv6: bool) -> Option<(RouteKind, RouteTarget)> {
        let single = |random: &mut Random| Some(vec![Hop { weight: 1, ..self.hop(random, ipv6)? }]);
        let hops = match random.below(10) {
            0 => return Some((RouteKind::Blackhole, RouteTarget::Hops(Vec::new()))),
            1 | 2 if !self.next_hops.is_empty() => {
                let ids: Vec<u32> = self.next_hops.keys().copied().collect();
                return Some((RouteKind::Unicast, RouteTarget::NextHop(*random.pick(&ids))));
            }
            3 | 4 => {
                let mut hops = vec![self.hop(random, ipv6)?, self.hop(random, ipv6)?];
                hops.sort_unstable();
                hops.dedup_by_key(|hop| (hop.gateway, hop.oif));
                if let [one] = hops.as_mut_slice() {
                    one.weight = 1;
                }
                hops
            }
            _ => single(random)?,
        };
        Some((RouteKind::Unicast, RouteTarget::Hops(hops)))
    }

    fn ipv4(&mut self, random: &mut Random) {
        let dst = match random.below(16) {
            0 => Ipv4Net::default(),
            1 => Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 16).unwrap(),
            third => Ipv4Net::new(Ipv4Addr::new(10, 0, u8::try_from(third).unwrap(), 0), 24).unwrap(),
        };
        let metric = if random.percent(80) { 0 } else { 10 };
        let table = if random.percent(95) { TABLE_MAIN } else { 100 };
        let key = RouteKey { table, dst: dst.into(), tos: 0, metric };
        let count = self.routes.get(&key).map_or(0, VecDeque::len);
        if count > 0 && random.percent(35) {
            if let Some(route) = self.take(key, random.below(count)) {
                self.tell(Event::RouteGone(route));
            }
            return;
        }
        let Some((kind, target)) = self.target(random, false) else { return };
        let protocol = *random.pick(&[4, FLUSHED, FLUSHED, WITH_SOURCE]);
        let route = Route { key, kind, protocol, scope: 0, target, mtu: None };
        let routes = self.routes.entry(key).or_default();
        if routes.iter().any(|other| is_same(other, &route)) {
            return;
        }
        let place = if routes.is_empty() {
            routes.push_back(route.clone());
            Place::Only
        } else {
            match random.below(5) {
                0 => {
                    routes.push_back(route.clone());
                    Place::Last
                }
                1 => {
                    routes.push_front(route.clone());
                    Place::First
                }
                _ => {
                    routes[0] = route.clone();
                    Place::Replaced
                }
            }
        };
        self.tell(Event::Route(route, place));
    }

    /// There is one route for a key; hops are added to it and taken from it.
    fn ipv6(&mut self, random: &mut Random) {
        let third = u16::try_from(random.below(6)).unwrap();
        let dst = match third {
            0 => Ipv6Net::default(),
            _ => Ipv6Net::new(Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 0), 48).unwrap(),
        };
        let metric = if random.percent(80) { 1024 } else { 512 };
        let key = RouteKey { table: TABLE_MAIN, dst: dst.into(), tos: 0, metric };
        let there = self.routes.get(&key).and_then(|routes| routes.front()).cloned();
        let Some(before) = there else {
            let Some((kind, target)) = self.target(random, true) else { return };
            let route = Route { key, kind, protocol: 4, scope: 0, target, mtu: None };
            self.routes.insert(key, [route.clone()].into());
            self.tell(Event::Route(route, Place::Only));
            return;
        };
        match (random.below(4), &before.target) {
            (0, _) => {
                self.routes.remove(&key);
                self.tell(Event::RouteGone(before));
            }
            (1, RouteTarget::Hops(hops)) if hops.len() > 1 => {
                let at = random.below(hops.len());
                self.hop_goes(&before, at);
            }
            (2, RouteTarget::Hops(hops)) if !hops.is_empty() && hops.len() < 4 => {
                let Some(hop) = self.hop(random, true) else { return };
                if hops.iter().any(|other| (other.gateway, other.oif) == (hop.gateway, hop.oif)) {
                    return;
                }
                let mut more = hops.clone();
                more.push(Hop { weight: 1, ..hop });
                more.sort_unstable();
                let route = Route { target: RouteTarget::Hops(more), ..before };
                self.routes.insert(key, [route.clone()].into());
                self.tell(Event::Route(route, Place::Last));
            }
            _ => {
                let Some((kind, target)) = self.target(random, true) else { return };
                let route = Route { kind, target, ..before };
                self.routes.insert(key, [route.clone()].into());
                self.tell(Event::Route(route, Place::Replaced));
            }
        }
    }

    /// An IPv6 route loses a hop, which is told as a route of that hop alone.
    fn hop_goes(&mut self, route: &Route, at: usize) {
        let RouteTarget::Hops(hops) = &route.target else { return };
        let mut left = hops.clone();
        let gone = left.remove(at);
        if left.is_empty() {
            self.routes.remove(&route.key);
        } else {
            let rest = Route { target: RouteTarget::Hops(left), ..route.clone() };
            self.routes.insert(route.key, [rest].into());
        }
        self.tell(Event::RouteGone(Route { target: RouteTarget::Hops(vec![gone]), ..route.clone() }));
    }

    fn take(&mut self, key: RouteKey, at: usize) -> Option<Route> {
        let routes = self.routes.get_mut(&key)?;
        let route = routes.remove(at);
        if routes.is_empty() {
            self.routes.remove(&key);
        }
        route
    }

    /// Without a word.
    fn retain_routes(&mut self, mut keep: impl FnMut(&Route) -> bool) {
        self.routes.values_mut().for_each(|routes| routes.retain(&mut keep));
        self.routes.retain(|_, routes| !routes.is_empty());
    }

    fn neighbor(&mut self, random: &mut Random) {
        let ifindex = *random.pick(&LANS);
        let key = NeighborKey { ifindex, addr: gateway(ifindex, random.between(10, 12), random.percent(50)) };
        if !self.is_up(ifindex) {
            return;
        }
        if random.percent(25) {
            self.neighbors.remove(&key);
            self.tell(Event::Remove(Key::Neighbor(key)));
        } else {
            let mac = MacAddr([2, 0xaa, 0, 0, 0, random.between(1, 4)]);
            self.neighbors.insert(key, mac);
            self.tell(Event::Upsert(Object::Neighbor(Neighbor { key, mac })));
        }
    }

    /// One comes, or changes: singles have ids up to 4, groups others.
    fn next_hop(&mut self, random: &mut Random) {
        let id = u32::from(random.between(1, 6));
        let kind = if id <= 4 {
            // IPv4 routes may have IPv6 gateways.
            let ipv6 = random.percent(50);
            let Some(hop) = self.hop(random, ipv6) else { return };
            NextHopKind::Single(Hop { weight: 1, ..hop })
        } else {
            let singles: Vec<u32> = self.next_hops.keys().copied().filter(|id| *id <= 4).collect();
            if singles.is_empty() {
                return;
            }
            let members = singles.into_iter().map(|id| (id, u32::from(random.between(1, 2))));
            NextHopKind::Group(members.collect())
        };
        let next_hop = NextHop { id, kind };
        self.next_hops.insert(id, next_hop.clone());
        self.tell(Event::Upsert(Object::NextHop(next_hop)));
    }

    fn next_hop_goes(&mut self, random: &mut Random) {
        let ids: Vec<u32> = self.next_hops.keys().copied().collect();
        if !ids.is_empty() {
            let id = *random.pick(&ids);
            self.tell(Event::Remove(Key::NextHop(id)));
            self.remove_next_hop(id, true);
        }
    }

    /// With the routes that use it, of which the kernel says nothing. Groups lose a member.
    fn remove_next_hop(&mut self, id: u32, tell: bool) {
        self.next_hops.remove(&id);
        self.retain_routes(|route| route.target != RouteTarget::NextHop(id));
        let groups: Vec<NextHop> = self.next_hops.values().cloned().collect();
        for mut group in groups {
            let NextHopKind::Group(members) = &mut group.kind else { continue };
            let before = members.len();
            members.retain(|(member, _)| *member != id);
            if members.is_empty() {
                if tell {
                    self.tell(Event::Remove(Key::NextHop(group.id)));
                }
                self.remove_next_hop(group.id, tell);
            } else if members.len() < before {
                self.next_hops.insert(group.id, group.clone());
                if tell {
                    self.tell(Event::Upsert(Object::NextHop(group)));
                }
            }
        }
    }

    fn flap(&mut self, random: &mut Random) {
        let index = *random.pick(&LANS);
        let Some(link) = self.links.get_mut(&index) else { return };
        (link.up, link.running) = (!link.up, !link.up);
        let link = link.clone();
        let is_up = link.up;
        self.tell(Event::Upsert(Object::Link(link)));
        if is_up {
            self.revive(index);
        } else {
            self.bury(index);
            if random.percent(30) {
                // Back at once.
                self.links.insert(index, self::link(index, true));
                self.tell(Event::Upsert(Object::Link(self::link(index, true))));
                self.revive(index);
            }
        }
    }

    /// `fib_sync_up`: dead hops come to life, without a word.
    fn revive(&mut self, index: IfIndex) {
        let hops = self.routes.values_mut().flatten().filter_map(|route| match &mut route.target {
            RouteTarget::Hops(hops) => Some(hops),
            RouteTarget::NextHop(_) => None,
        });
        for hop in hops.flatten().filter(|hop| hop.oif == Some(index)) {
            hop.flags = HopFlags(0);
        }
    }

    /// What goes with a link that is down: IPv4 silently (`fib_sync_down_dev`), as are next-hop objects.
    fn bury(&mut self, index: IfIndex) {
        let on_it = |hop: &Hop| hop.oif == Some(index);
        let ids: Vec<u32> = self
            .next_hops
            .values()
            .filter(|it| matches!(&it.kind, NextHopKind::Single(hop) if on_it(hop)))
            .map(|it| it.id)
            .collect();
        for id in ids {
            self.remove_next_hop(id, false);
        }
        for route in self.routes.values_mut().flatten().filter(|route| route.key.dst.addr().is_ipv4()) {
            if let RouteTarget::Hops(hops) = &mut route.target {
                hops.iter_mut().filter(|hop| on_it(hop)).for_each(|hop| hop.flags = HopFlags(HopFlags::DEAD));
            }
        }
        self.retain_routes(|route| match &route.target {
            RouteTarget::Hops(hops) => hops.is_empty() || hops.iter().any(|hop| !hop.flags.is_dead()),
            RouteTarget::NextHop(_) => true,
        });
        while let Some((route, at)) = self.ipv6_hop_on(index) {
            self.hop_goes(&route, at);
        }
        let neighbors: Vec<NeighborKey> =
            self.neighbors.keys().copied().filter(|key| key.ifindex == index).collect();
        for key in neighbors {
            self.neighbors.remove(&key);
            self.tell(Event::Remove(Key::Neighbor(key)));
        }
        let addresses: Vec<AddressKey> = self.addresses.iter().copied().collect();
        for key in addresses.into_iter().filter(|key| key.ifindex == index && key.address.addr().is_ipv6()) {
            self.addresses.remove(&key);
            self.tell(Event::Remove(Key::Address(key)));
        }
    }

    fn ipv6_hop_on(&self, index: IfIndex) -> Option<(Route, usize)> {
        let routes = self.routes.values().flatten().filter(|route| route.key.dst.addr().is_ipv6());
        routes
            .filter_map(|route| match &route.target {
                RouteTarget::Hops(hops) => {
                    let at = hops.iter().position(|hop| hop.oif == Some(index))?;
                    Some((route.clone(), at))
                }
                RouteTarget::NextHop(_) => None,
            })
            .next()
    }

    fn link_comes_or_goes(&mut self, random: &mut Random) {
        let index = *random.pick(&LANS);
        if let Entry::Vacant(entry) = self.links.entry(index) {
            let new = entry.insert(link(index, true)).clone();
            self.tell(Event::Upsert(Object::Link(new)));
            return;
        }
        self.bury(index);
        self.retain_routes(|route| match &route.target {
            // A multipath route that names the link goes whole.
            RouteTarget::Hops(hops) => hops.iter().all(|hop| hop.oif != Some(index)),
            RouteTarget::NextHop(_) => true,
        });
        self.addresses.retain(|key| key.ifindex != index);
        self.filters.remove(&index);
        self.links.remove(&index);
        self.tell(Event::Remove(Key::Link(index)));
    }

    fn address(&mut self, random: &mut Random) {
        let ifindex = *random.pick(&LANS);
        let addr = gateway(ifindex, random.between(1, 2), random.percent(30));
        let len = if addr.is_ipv4() { 24 } else { 64 };
        let key = AddressKey { ifindex, address: IpNet::new(addr, len).unwrap() };
        if self.addresses.remove(&key) {
            self.tell(Event::Remove(Key::Address(key)));
            let on_it = |hop: &Hop| hop.oif == Some(ifindex);
            self.retain_routes(|route| match &route.target {
                RouteTarget::Hops(hops) => route.protocol != WITH_SOURCE || !hops.iter().any(on_it),
                RouteTarget::NextHop(_) => true,
            });
        } else if self.is_up(ifindex) {
            self.addresses.insert(key);
            self.tell(Event::Upsert(Object::Address(key)));
        }
    }

    fn mtu(&mut self, random: &mut Random) {
        let index = *random.pick(&LANS);
        if let Some(link) = self.links.get_mut(&index) {
            link.mtu = *random.pick(&[1400, 1500]);
            let link = link.clone();
            self.tell(Event::Upsert(Object::Link(link)));
        }
    }

    /// More events than the socket holds, mostly.
    fn flush(&mut self) {
        let all: Vec<Route> =
            self.routes.values().flatten().filter(|route| route.protocol == FLUSHED).cloned().collect();
        self.retain_routes(|route| route.protocol != FLUSHED);
        for route in all {
            self.tell(Event::RouteGone(route));
        }
    }
}

fn is_same(a: &Route, b: &Route) -> bool {
    let alive = |route: &Route| match &route.target {
        RouteTarget::NextHop(id) => Err(*id),
        RouteTarget::Hops(hops) => {
            Ok(hops.iter().map(|hop| Hop { flags: HopFlags(0), ..*hop }).collect::<Vec<_>>())
        }
    };
    (a.kind, a.protocol, alive(a)) == (b.kind, b.protocol, alive(b))
}

fn gateway(oif: IfIndex, last: u8, ipv6: bool) -> IpAddr {
    let third = u8::try_from(oif).unwrap();
    if ipv6 {
        Ipv6Addr::new(0xfd00, third.into(), 0, 0, 0, 0, 0, last.into()).into()
    } else {
        Ipv4Addr::new(192, 168, third, last).into()
    }
}

/// The address of the vif that a link is.
pub(crate) fn mac(index: IfIndex) -> MacAddr {
    MacAddr([2, 0x52, 0, 0, 1, u8::try_from(index).unwrap()])
}

fn link(ifindex: IfIndex, up: bool) -> Link {
    Link {
        ifindex,
        name: format!("eth{ifindex}"),
        mac: Some(mac(ifindex)),
        mtu: 1500,
        up,
        running: up,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    }
}

fn filter(index: IfIndex) -> Obstacle {
    let key = ObstacleKey { ifindex: Some(index), family: None, kind: ObstacleKind::TrafficControl };
    Obstacle { key, detail: "clsact".into() }
}
