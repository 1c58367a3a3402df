//! A model of a kernel, one of a host, and mirror and session between them, under random events, losses, dumps
//! and acknowledgements: the window holds, and in the end the host has what the kernel has.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;
use xenflow_guest_client::mirror::{Limits, Mirror};
use xenflow_guest_client::obstacles::Survey;
use xenflow_guest_client::session::{MIN_FRAME, Session};
use xenflow_guest_client::translate::{Event, Place};
use xenflow_proto::message::{Hello, VERSION, Welcome};
use xenflow_proto::table::{
    Hop, HopFlags, Link, MAX_HOPS, Obstacle, ObstacleKey, ObstacleKind, Route, RouteKey, RouteKind,
    RouteTarget, Settings, TABLE_MAIN,
};
use xenflow_proto::{Change, GuestMessage, HostMessage, Key, Object, Seq};

const NOW: Duration = Duration::ZERO;

#[derive(Debug, Clone, Copy)]
enum Verb {
    Add,
    Append,
    Prepend,
    Replace,
    Delete,
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Route {
        prefix: u8,
        hop: u32,
        verb: Verb,
        lost: bool,
    },
    /// A link that goes takes its routes along without a word.
    Link {
        index: u32,
        there: bool,
    },
    /// The kernel lists this many keys; they arrive at once, or after the next event.
    Dump {
        keys: usize,
        late: bool,
    },
    /// Something on a link that destination-only forwarding would overlook.
    Obstacle {
        index: u32,
        there: bool,
    },
    /// A survey looks; what it finds arrives with the next `Report`.
    Look,
    Report,
    Connect {
        window: u32,
    },
    Transmit(usize),
    Acknowledge(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let verb = prop_oneof![
        Just(Verb::Add),
        Just(Verb::Append),
        Just(Verb::Prepend),
        Just(Verb::Replace),
        Just(Verb::Delete)
    ];
    let route = (0..3u8, 1..4u32, verb, prop::bool::weighted(0.05));
    let op = prop_oneof![
        8 => route.prop_map(|(prefix, hop, verb, lost)| Op::Route { prefix, hop, verb, lost }),
        1 => (1..4u32, any::<bool>()).prop_map(|(index, there)| Op::Link { index, there }),
        4 => (1..4usize, any::<bool>()).prop_map(|(keys, late)| Op::Dump { keys, late }),
        1 => (1..4u32, any::<bool>()).prop_map(|(index, there)| Op::Obstacle { index, there }),
        1 => Just(Op::Look),
        2 => Just(Op::Report),
        1 => (1..4u32).prop_map(|window| Op::Connect { window }),
        3 => (1..4usize).prop_map(Op::Transmit),
        2 => (0..3u64).prop_map(Op::Acknowledge),
    ];
    prop::collection::vec(op, 0..120)
}

fn route(prefix: u8, hop: u32) -> Route {
    let dst = ipnet::Ipv4Net::new(Ipv4Addr::new(10, prefix, 0, 0), 16).unwrap().into();
    let gateway = Some(Ipv4Addr::new(192, 0, 2, u8::try_from(hop).unwrap()).into());
    let hop = Hop { gateway, oif: Some(hop), weight: 1, flags: HopFlags(0), encap: false };
    Route {
        key: RouteKey { table: TABLE_MAIN, dst, tos: 0, metric: 0 },
        kind: RouteKind::Unicast,
        protocol: 4,
        scope: 0,
        target: RouteTarget::Hops(vec![hop]),
        mtu: None,
    }
}

fn link(ifindex: u32) -> Object {
    let (name, kind) = (format!("p{ifindex}"), String::new());
    Object::Link(Link {
        ifindex,
        name,
        mac: None,
        mtu: 1500,
        up: true,
        running: true,
        kind,
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    })
}

/// A kernel: of several routes with one key the first counts.
#[derive(Default)]
struct Kernel {
    links: BTreeSet<u32>,
    routes: BTreeMap<u8, VecDeque<u32>>,
    /// Links with something on them.
    obstacles: BTreeSet<u32>,
}

impl Kernel {
    /// The event, if there is one.
    fn route(&mut self, prefix: u8, hop: u32, verb: Verb) -> Option<Event> {
        let hops = self.routes.entry(prefix).or_default();
        let at = hops.iter().position(|&other| other == hop);
        let route = route(prefix, hop);
        let place = match (verb, at, hops.is_empty()) {
            (Verb::Delete, at, _) => {
                hops.remove(at?);
                return Some(Event::RouteGone(route));
            }
            (_, Some(_), _) | (Verb::Add, None, false) => return None,
            (_, None, true) => {
                hops.push_back(hop);
                Place::Only
            }
            (Verb::Append, None, false) => {
                hops.push_back(hop);
                Place::Last
            }
            (Verb::Prepend, None, false) => {
                hops.push_front(hop);
                Place::First
            }
            (Verb::Replace, None, false) => {
                hops[0] = hop;
                Place::Replaced
            }
        };
        Some(Event::Route(route, place))
    }

    fn link(&mut self, index: u32, there: bool) -> Option<Event> {
        if there {
            return self.links.insert(index).then(|| Event::Upsert(link(index)));
        }
        if !self.links.remove(&index) {
            return None;
        }
        self.routes.values_mut().for_each(|hops| hops.retain(|&hop| hop != index));
        self.obstacles.remove(&index);
        Some(Event::Remove(Key::Link(index)))
    }

    /// What a dump tells of the keys from this one on.
    fn list(&self, from: usize, keys: usize) -> Vec<Event> {
        let links =
            (1..4u32).map(|i| self.links.get(&i).map(|&i| Event::Upsert(link(i))).into_iter().collect());
        let routes = (0..3u8).map(|prefix| {
            let hops = self.routes.get(&prefix).into_iter().flatten();
            hops.map(|&hop| Event::Route(route(prefix, hop), Place::First)).collect()
        });
        let all: Vec<Vec<Event>> = links.chain(routes).collect();
        all.into_iter().skip(from).take(keys).flatten().collect()
    }

    fn tables(&self) -> BTreeMap<Key, Object> {
        let links = self.links.iter().map(|&index| link(index));
        let firsts = self.routes.iter().filter_map(|(&prefix, hops)| Some((prefix, *hops.front()?)));
        let routes = firsts.map(|(prefix, hop)| Object::Route(route(prefix, hop)));
        let obstacles = self.obstacles.iter().map(|&index| Object::Obstacle(obstacle(index)));
        let settings = Object::Settings(Settings::default());
        let all = links.chain(routes).chain(obstacles).chain([settings]);
        all.map(|object| (object.key(), object)).collect()
    }

    fn survey(&self) -> Survey {
        Survey {
            settings: Settings::default(),
            obstacles: self.obstacles.iter().map(|&index| obstacle(index)).collect(),
            links: self.links.iter().map(|&index| (index, None)).collect(),
        }
    }
}

const KEYS: usize = 6;

#[derive(Default)]
struct Host {
    tables: BTreeMap<Key, Object>,
    stale: BTreeSet<Key>,
    window: u64,
    heard: u64,
    acked: u64,
    ended: bool,
}

impl Host {
    fn hear(&mut self, message: &GuestMessage) {
        let seq = match message {
            GuestMessage::Hello(_) => return,
            GuestMessage::SnapshotBegin(seq) => {
                self.stale = self.tables.keys().cloned().collect();
                *seq
            }
            GuestMessage::Changes { seq, changes } => {
                let keys: BTreeSet<Key> = changes.iter().map(Change::key).collect();
                assert_eq!(keys.len(), changes.len(), "one change per key: {changes:?}");
                for change in changes {
                    self.stale.remove(&change.key());
                    match change {
                        Change::Upsert(object) => drop(self.tables.insert(object.key(), object.clone())),
                        Change::Remove(key) => drop(self.tables.remove(key)),
                    }
                }
                *seq
            }
            GuestMessage::SnapshotEnd(seq) => {
                let stale = std::mem::take(&mut self.stale);
                self.tables.retain(|key, _| !stale.contains(key));
                self.ended = true;
                *seq
            }
            other @ (GuestMessage::Ping(_)
            | GuestMessage::Pong(_)
            | GuestMessage::Resume(_)
            | GuestMessage::Renew) => panic!("{other:?}"),
        };
        self.heard += 1;
        assert_eq!(seq, Seq(self.heard));
        assert!(self.heard - self.acked <= self.window, "the window of {} is overrun", self.window);
    }
}

fn obstacle(index: u32) -> Obstacle {
    let key = ObstacleKey { ifindex: Some(index), family: None, kind: ObstacleKind::TrafficControl };
    Obstacle { key, detail: "qdisc clsact".into() }
}

#[derive(Default)]
struct World {
    kernel: Kernel,
    mirror: Mirror,
    host: Host,
    session: Option<Session>,
    /// Keys listed by the dump that is under way, and whether nothing was lost meanwhile.
    dump: Option<(usize, bool)>,
    late: Vec<Event>,
    dump_wanted: bool,
    look: Option<Survey>,
    /// Links that a survey reported on since they came.
    looked_at: BTreeSet<u32>,
}

impl World {
    fn event(&mut self, event: Option<Event>, lost: bool) {
        if lost {
            self.mirror.distrust();
            self.dump_wanted = true;
            self.dump = self.dump.map(|(keys, _)| (keys, false));
        } else if let Some(event) = event {
            self.dump_wanted |= self.mirror.apply(event, NOW);
        }
    }

    fn dump(&mut self, keys: usize, late: bool) {
        self.arrive();
        let (from, whole) = self.dump.unwrap_or_else(|| {
            self.dump_wanted = false;
            self.mirror.begin_dump();
            (0, true)
        });
        self.late = self.kernel.list(from, keys);
        self.dump = Some((from + keys, whole));
        if !late {
            self.arrive();
        }
    }

    /// What was listed arrives; a dump that listed all ends.
    fn arrive(&mut self) {
        for event in std::mem::take(&mut self.late) {
            self.mirror.apply_dumped(event, NOW);
        }
        if let Some((keys, whole)) = self.dump
            && keys >= KEYS
        {
            self.dump = None;
            self.dump_wanted |= !(whole && self.mirror.end_dump(NOW));
        }
    }

    fn connect(&mut self, window: u32) {
        self.mirror.stop_stream();
        let tables = std::mem::take(&mut self.host.tables);
        self.host = Host { tables, window: window.into(), ..Host::default() };
        let hello = Hello {
            versions: vec![VERSION],
            router: "r1".parse().unwrap(),
            boot_id: [7; 16],
            agent: "test".into(),
        };
        let mut session = Session::new(NOW, hello);
        assert!(matches!(session.poll_transmit(&mut self.mirror), Some(GuestMessage::Hello(_))));
        let welcome = Welcome {
            version: VERSION,
            node: "a".parse().unwrap(),
            max_frame_bytes: u32::try_from(MIN_FRAME).unwrap(),
            max_changes: 2,
            window,
            held: None,
        };
        session.handle_message(NOW, HostMessage::Welcome(welcome), &mut self.mirror).unwrap();
        self.session = Some(session);
    }

    fn transmit(&mut self, messages: usize) -> bool {
        for _ in 0..messages {
            let Some(session) = &mut self.session else { return false };
            let Some(message) = session.poll_transmit(&mut self.mirror) else { return false };
            self.host.hear(&message);
            self.no_link_is_trusted_unseen(&message);
        }
        assert!(self.mirror.backlog() <= 2 * KEYS + 1, "changes of a key coalesce");
        true
    }

    fn report(&mut self) {
        let Some(survey) = self.look.take() else { return };
        // Once it is trusted, the mirror takes no word for a link that it saw go.
        let trusted = self.mirror.is_trusted();
        self.mirror.apply_survey(&survey, NOW);
        let there = |link: &&u32| !trusted || self.mirror.object(Key::Link(**link)).is_some();
        self.looked_at.extend(survey.links.keys().filter(there));
    }

    /// The host is told of a link that nobody looked at only when it knows that.
    fn no_link_is_trusted_unseen(&self, message: &GuestMessage) {
        let GuestMessage::Changes { changes, .. } = message else { return };
        for change in changes {
            if let Change::Upsert(Object::Link(Link { ifindex, .. })) = change
                && !self.looked_at.contains(ifindex)
            {
                let told = |o: &Object| matches!(o, Object::Obstacle(o) if o.key.ifindex == Some(*ifindex));
                assert!(self.host.tables.values().any(told), "link {ifindex} was never looked at");
            }
        }
    }

    fn acknowledge(&mut self, messages: u64) {
        let Some(session) = &mut self.session else { return };
        self.host.acked = (self.host.acked + messages).min(self.host.heard);
        let ack = HostMessage::Ack { seq: Seq(self.host.acked), rejected: Vec::new(), accepted: Vec::new() };
        session.handle_message(NOW, ack, &mut self.mirror).unwrap();
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Route { prefix, hop, verb, lost } => {
                let event = self.kernel.route(prefix, hop, verb);
                self.event(event, lost);
                self.arrive();
            }
            Op::Link { index, there } => {
                if !there && self.kernel.links.contains(&index) {
                    self.looked_at.remove(&index);
                }
                let event = self.kernel.link(index, there);
                self.event(event, false);
                self.arrive();
            }
            // As the driver: only when something asks for it, or the doubtful ones would be put right by chance.
            Op::Dump { keys, late } => {
                if self.dump.is_some() || self.dump_wanted || !self.mirror.is_trusted() {
                    self.dump(keys, late);
                }
            }
            Op::Obstacle { index, there: true } if self.kernel.links.contains(&index) => {
                self.kernel.obstacles.insert(index);
            }
            Op::Obstacle { index, .. } => {
                self.kernel.obstacles.remove(&index);
            }
            Op::Look => self.look = Some(self.kernel.survey()),
            Op::Report => self.report(),
            Op::Connect { window } => self.connect(window),
            Op::Transmit(messages) => {
                self.transmit(messages);
            }
            Op::Acknowledge(messages) => self.acknowledge(messages),
        }
    }

    fn settle(&mut self) {
        self.arrive();
        self.step(Op::Look);
        self.step(Op::Report);
        let mut dumps = 0;
        while self.dump_wanted || self.dump.is_some() || !self.mirror.is_trusted() {
            self.dump(KEYS, false);
            dumps += 1;
            assert!(dumps < 5, "a quiet kernel needs no more dumps");
        }
        if self.session.is_none() {
            self.connect(1);
        }
        while !(self.host.ended && self.mirror.backlog() == 0) {
            self.transmit(1);
            self.acknowledge(1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_host_ends_with_what_the_kernel_has(ops in ops()) {
        let mut world = World::default();
        for op in ops {
            world.step(op);
        }
        world.settle();
        let mirrored: BTreeMap<Key, Object> =
            world.mirror.objects().map(|object| (object.key(), object.clone())).collect();
        prop_assert_eq!(&mirrored, &world.kernel.tables(), "mirror and kernel");
        prop_assert_eq!(&world.host.tables, &mirrored, "host and mirror");
    }
}

/// The window is closed by the first message: all that happens then is one mark.
#[test]
fn changes_coalesce_while_the_window_is_closed() {
    let mut world = World::default();
    world.dump(KEYS, false);
    world.step(Op::Look);
    world.step(Op::Report);
    world.connect(1);
    assert!(world.transmit(1));
    for round in 0..1000 {
        world.step(Op::Route { prefix: 0, hop: 1 + round % 3, verb: Verb::Replace, lost: false });
        assert!(!world.transmit(1), "the window is closed");
    }
    assert_eq!(world.mirror.backlog(), 1);
    world.settle();
    assert_eq!(world.host.tables, world.kernel.tables());
    // Begin, one change, the settings, end.
    assert_eq!(world.host.heard, 4);
}

/// The longest routes there are, in the smallest frames a host may ask for.
#[test]
fn frames_stay_within_what_the_host_takes() {
    let mut world = World::default();
    world.mirror.begin_dump();
    for prefix in 0..20 {
        let mut long = route(prefix, 1);
        let gateway = Some(IpAddr::V6(Ipv6Addr::from(u128::MAX)));
        let hop = Hop { gateway, oif: Some(u32::MAX), weight: 65536, flags: HopFlags(21), encap: true };
        long.target = RouteTarget::Hops(vec![hop; MAX_HOPS]);
        (long.key.table, long.key.metric, long.mtu) = (u32::MAX, u32::MAX, Some(u32::MAX));
        world.mirror.apply_dumped(Event::Route(long, Place::First), NOW);
    }
    assert!(world.mirror.end_dump(NOW));
    world.step(Op::Look);
    world.step(Op::Report);
    world.connect(100);
    let session = world.session.as_mut().unwrap();
    let mut changes = 0;
    while let Some(message) = session.poll_transmit(&mut world.mirror) {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        assert!(out.len() <= MIN_FRAME, "a frame of {} bytes", out.len());
        changes += if let GuestMessage::Changes { changes, .. } = message { changes.len() } else { 0 };
    }
    assert_eq!(changes, 21, "with the settings");
}

#[test]
fn of_several_ipv6_routes_with_one_key_the_guest_itself_chooses() {
    let limits = Limits { changes: 10, bytes: 10_000 };
    let ipv6 = |hop: u32| {
        let key = RouteKey { dst: "2001:db8::/32".parse().unwrap(), ..route(1, 1).key };
        Route { key, ..route(1, hop) }
    };
    let mut mirror = Mirror::new();
    mirror.start_stream();
    let told = |mirror: &mut Mirror| mirror.take_changes(limits).map(|batch| batch.changes);
    assert!(!mirror.apply(Event::Route(ipv6(1), Place::Only), NOW));
    assert_eq!(told(&mut mirror), Some(vec![Change::Upsert(Object::Route(ipv6(1)))]));

    // The interface that a packet comes by decides from now on.
    assert!(!mirror.apply(Event::Route(ipv6(2), Place::Last), NOW));
    let changes = told(&mut mirror).unwrap();
    let [Change::Upsert(Object::Route(several))] = changes.as_slice() else { panic!("{changes:?}") };
    let RouteTarget::Hops(hops) = &several.target else { panic!("{several:?}") };
    assert!(several.key == ipv6(1).key && hops.iter().all(|hop| hop.encap), "{several:?}");

    // As before, as far as dumps tell.
    for routes in [&[1, 2][..], &[1]] {
        mirror.begin_dump();
        for hop in routes {
            mirror.apply_dumped(Event::Route(ipv6(*hop), Place::Only), NOW);
        }
        assert!(mirror.end_dump(NOW));
        let alone = (routes.len() == 1).then(|| vec![Change::Upsert(Object::Route(ipv6(1)))]);
        assert_eq!(told(&mut mirror), alone);
    }
}
