//! A model of a kernel, one of a host, and mirror and session between them, under random events, losses, dumps,
//! acknowledgements, broken sessions and restarts, with hosts that hold what they were told, an older copy of it,
//! nothing, or say what is not so: the window holds, a host is told nothing that it is known to have, however old what
//! it has, nothing is taken for confirmed that is not, and in the end the host has what the kernel has.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod host;
mod kernel;
mod resume;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;
use xenflow_guest_client::mirror::{Limits, Mirror, Start};
use xenflow_guest_client::obstacles::Survey;
use xenflow_guest_client::session::{Event as Said, MIN_FRAME, Session};
use xenflow_guest_client::translate::{Event, Place};
use xenflow_proto::digest::Digest;
use xenflow_proto::message::{Hello, VERSION, Welcome};
use xenflow_proto::table::{Hop, HopFlags, MAX_HOPS, Route, RouteKey, RouteTarget};
use xenflow_proto::{Change, GuestMessage, HostMessage, Key, Object};

use host::{Host, Tables, digest};
use kernel::{KEYS, Kernel, Verb, route};

const NOW: Duration = Duration::ZERO;
const BOOT: [u8; 16] = [7; 16];

/// Whom a session is with.
#[derive(Debug, Clone, Copy)]
enum To {
    /// The host of the last one.
    Same,
    /// The same, which does not say what it holds.
    Forgetful,
    /// The same, which says that it holds something else.
    Liar,
    /// One that holds what some host held before.
    Copy(usize),
    /// One that holds nothing.
    Empty,
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
        to: To,
    },
    /// The session breaks; it is some time to the next.
    Break,
    /// The client starts anew.
    Restart,
    /// What the host holds is remembered for [`To::Copy`].
    Copy,
    Transmit(usize),
    /// The host hears so many messages.
    Deliver(usize),
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
    let to = prop_oneof![
        6 => Just(To::Same),
        1 => Just(To::Forgetful),
        1 => Just(To::Liar),
        3 => (0..100usize).prop_map(To::Copy),
        1 => Just(To::Empty),
    ];
    let route = (0..3u8, 1..4u32, verb, prop::bool::weighted(0.05));
    let op = prop_oneof![
        8 => route.prop_map(|(prefix, hop, verb, lost)| Op::Route { prefix, hop, verb, lost }),
        1 => (1..4u32, any::<bool>()).prop_map(|(index, there)| Op::Link { index, there }),
        4 => (1..4usize, any::<bool>()).prop_map(|(keys, late)| Op::Dump { keys, late }),
        1 => (1..4u32, any::<bool>()).prop_map(|(index, there)| Op::Obstacle { index, there }),
        1 => Just(Op::Look),
        2 => Just(Op::Report),
        2 => (1..6u32, to).prop_map(|(window, to)| Op::Connect { window, to }),
        1 => Just(Op::Break),
        1 => prop::bool::weighted(0.3).prop_map(|restart| if restart { Op::Restart } else { Op::Break }),
        1 => Just(Op::Copy),
        4 => (1..4usize).prop_map(Op::Transmit),
        4 => (1..4usize).prop_map(Op::Deliver),
        2 => (0..3u64).prop_map(Op::Acknowledge),
    ];
    prop::collection::vec(op, 0..160)
}

pub(crate) fn hello() -> Hello {
    let router = "r1".parse().unwrap();
    Hello { versions: vec![VERSION], router, boot_id: BOOT, agent: "test".into() }
}

pub(crate) fn welcome(
    max_frame_bytes: u32,
    max_changes: u32,
    window: u32,
    held: Option<Digest>,
) -> HostMessage {
    HostMessage::Welcome(Welcome {
        version: VERSION,
        node: "a".parse().unwrap(),
        max_frame_bytes,
        max_changes,
        window,
        held,
    })
}

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
    /// Messages under way, with the links in them that nobody looked at.
    wire: VecDeque<(GuestMessage, Vec<u32>)>,
    /// Whether the client knows of them: it had said them all to a host, which confirmed that, or went on from there.
    copies: Vec<(Tables, bool)>,
    /// The host confirmed the end of the snapshot or resume of this session.
    whole: bool,
    /// The host's tables are such that this client was in its session, or may have been.
    known: bool,
    /// What the host says that it holds, and how it must be brought up to date, if that is certain.
    held: Option<Digest>,
    must: Option<Start>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            kernel: Kernel::default(),
            mirror: Mirror::new(&BOOT),
            host: Host::default(),
            session: None,
            dump: None,
            late: Vec::new(),
            dump_wanted: false,
            look: None,
            looked_at: BTreeSet::new(),
            wire: VecDeque::new(),
            copies: Vec::new(),
            whole: false,
            known: false,
            held: None,
            must: None,
        }
    }
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

    fn connect(&mut self, window: u32, to: To) {
        self.hang_up();
        let (tables, known) = match to {
            To::Same | To::Forgetful | To::Liar => (std::mem::take(&mut self.host.tables), self.known),
            To::Copy(at) => self.copies.get(at % self.copies.len().max(1)).cloned().unwrap_or_default(),
            To::Empty => (Tables::new(), false),
        };
        (self.known, self.whole) = (known, false);
        let held = match to {
            To::Forgetful => None,
            To::Liar => Some(Digest { sum: digest(tables.values()).sum ^ 1, ..digest(tables.values()) }),
            To::Same | To::Copy(_) | To::Empty => Some(digest(tables.values())),
        };
        self.held = held;
        self.must = match to {
            _ if tables.is_empty() => Some(Start::Snapshot),
            To::Forgetful | To::Liar => Some(Start::Snapshot),
            _ if self.known => Some(Start::Resume),
            To::Same | To::Copy(_) | To::Empty => None,
        };
        self.host = Host::new(tables, window);
        let mut session = Session::new(NOW, hello());
        assert!(matches!(session.poll_transmit(&mut self.mirror), Some(GuestMessage::Hello(_))));
        session.handle_message(NOW, welcome(MIN_FRAME as u32, 2, window, held), &mut self.mirror).unwrap();
        self.session = Some(session);
    }

    /// What is under way is lost.
    fn hang_up(&mut self) {
        self.wire.clear();
        if self.session.take().is_some() {
            self.mirror.hang_up();
        }
    }

    /// The client starts anew.
    fn restart(&mut self) {
        self.hang_up();
        self.mirror = Mirror::new(&BOOT);
        (self.dump, self.look) = (None, None);
        self.late.clear();
        self.looked_at.clear();
        (self.known, self.whole) = (false, false);
        self.copies.iter_mut().for_each(|(_, known)| *known = false);
    }

    fn transmit(&mut self, messages: usize) -> bool {
        for _ in 0..messages {
            let Some(session) = &mut self.session else { return false };
            let Some(message) = session.poll_transmit(&mut self.mirror) else { return false };
            let (session, first) = (session.start(), self.host.heard == 0 && self.wire.is_empty());
            if first {
                self.started(session.unwrap(), &message);
            }
            let unseen = self.unseen(&message);
            self.wire.push_back((message, unseen));
        }
        assert!(self.mirror.backlog() <= 2 * KEYS + 1, "changes of a key coalesce");
        true
    }

    fn started(&mut self, start: Start, message: &GuestMessage) {
        let resumes = matches!(message, GuestMessage::Resume(_));
        assert!(resumes || matches!(message, GuestMessage::SnapshotBegin(_)), "{message:?}");
        assert_eq!(start == Start::Resume, resumes);
        let same = self.held.is_some_and(|held| held.objects > 0 && held == digest(self.mirror.objects()));
        let must = self.must.or(same.then_some(Start::Resume));
        assert!(must.is_none_or(|must| must == start), "{start:?} instead of {must:?}");
        self.known = start == Start::Resume || self.host.tables.is_empty();
    }

    /// Links that nobody looked at, of which the host is told.
    fn unseen(&self, message: &GuestMessage) -> Vec<u32> {
        let GuestMessage::Changes { changes, .. } = message else { return Vec::new() };
        let links = changes.iter().filter_map(|change| {
            if let Change::Upsert(Object::Link(link)) = change { Some(link.ifindex) } else { None }
        });
        links.filter(|link| !self.looked_at.contains(link)).collect()
    }

    fn deliver(&mut self, messages: usize) {
        for _ in 0..messages {
            let Some((message, unseen)) = self.wire.pop_front() else { return };
            self.host.hear(&message);
            self.known |= self.host.ended();
            for link in unseen {
                let told = |o: &Object| matches!(o, Object::Obstacle(o) if o.key.ifindex == Some(link));
                assert!(self.host.tables.values().any(told), "link {link} was never looked at");
            }
        }
    }

    fn report(&mut self) {
        let Some(survey) = self.look.take() else { return };
        // Once it is trusted, the mirror takes no word for a link that it saw go.
        let trusted = self.mirror.is_trusted();
        self.mirror.apply_survey(&survey, NOW);
        let there = |link: &&u32| !trusted || self.mirror.object(Key::Link(**link)).is_some();
        self.looked_at.extend(survey.links.keys().filter(there));
    }

    fn acknowledge(&mut self, messages: u64) {
        let Some(session) = &mut self.session else { return };
        let ack = HostMessage::Ack {
            seq: self.host.acknowledge(messages),
            rejected: Vec::new(),
            accepted: Vec::new(),
        };
        let event = session.handle_message(NOW, ack, &mut self.mirror).unwrap();
        self.whole |= matches!(event, Some(Said::Acked(step)) if step.whole);
    }

    /// What the guest takes for confirmed, the switch has.
    fn confirmed_is_installed(&self) {
        if self.session.as_ref().is_none_or(|session| session.start().is_none()) {
            return;
        }
        for object in self.mirror.objects().filter(|object| self.mirror.is_confirmed(&object.key())) {
            let installed = self.host.switch.as_ref().and_then(|tables| tables.get(&object.key()));
            assert_eq!(installed, Some(&*object), "taken for confirmed");
        }
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
            Op::Connect { window, to } => self.connect(window, to),
            Op::Break => self.hang_up(),
            Op::Restart => self.restart(),
            Op::Copy => self.copies.push((self.host.tables.clone(), self.whole)),
            Op::Transmit(messages) => {
                self.transmit(messages);
            }
            Op::Deliver(messages) => self.deliver(messages),
            Op::Acknowledge(messages) => self.acknowledge(messages),
        }
        self.confirmed_is_installed();
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
            self.connect(1, To::Same);
        }
        let mut rounds = 0;
        while !(self.host.ended() && self.mirror.backlog() == 0 && self.host.acked == self.session().sent().0)
        {
            self.transmit(1);
            self.deliver(1);
            self.acknowledge(1);
            self.confirmed_is_installed();
            rounds += 1;
            assert!(rounds < 200, "it ends");
        }
        let all = self.mirror.objects().all(|object| self.mirror.is_confirmed(&object.key()));
        assert!(all, "all is confirmed");
    }

    fn session(&self) -> &Session {
        self.session.as_ref().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_host_ends_with_what_the_kernel_has(ops in ops(), restart in any::<bool>()) {
        let mut world = World::default();
        for op in ops {
            world.step(op);
        }
        world.settle();
        let mirrored: BTreeMap<Key, Object> =
            world.mirror.objects().map(|object| (object.key(), object.into_owned())).collect();
        prop_assert_eq!(&mirrored, &world.kernel.tables(), "mirror and kernel");
        prop_assert_eq!(&world.host.tables, &mirrored, "host and mirror");

        // Nothing changed meanwhile: nothing is sent.
        if restart {
            world.restart();
        } else {
            world.hang_up();
        }
        world.settle();
        prop_assert_eq!(world.session().start(), Some(Start::Resume));
        prop_assert_eq!(world.host.changes, 0);
    }
}

/// The window is closed by the first message: all that happens then is one mark.
#[test]
fn changes_coalesce_while_the_window_is_closed() {
    let mut world = World::default();
    world.dump(KEYS, false);
    world.step(Op::Look);
    world.step(Op::Report);
    world.connect(1, To::Same);
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
    world.connect(100, To::Same);
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
    let mut mirror = Mirror::new(&BOOT);
    mirror.begin(None, NOW);
    let told = |mirror: &mut Mirror| mirror.take(limits).map(|batch| batch.changes);
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

/// A hop comes while a dump runs, and the mirror has missed that the route became another one: one route, which looks
/// like a second one.
#[test]
fn what_only_looks_like_several_routes_is_found_to_be_one() {
    let mut mirror = Mirror::new(&BOOT);
    mirror.begin(None, NOW);
    let ipv6 = |hops: &[u32]| {
        let key = RouteKey { dst: "2001:db8::/32".parse().unwrap(), ..route(1, 1).key };
        let hop = |gateway: &u32| match route(1, *gateway).target {
            RouteTarget::Hops(hops) => hops[0],
            RouteTarget::NextHop(_) => unreachable!(),
        };
        Route { key, target: RouteTarget::Hops(hops.iter().map(hop).collect()), ..route(1, 1) }
    };
    assert!(!mirror.apply(Event::Route(ipv6(&[1]), Place::Only), NOW));
    mirror.begin_dump();
    assert!(!mirror.apply(Event::Route(ipv6(&[2, 3]), Place::Last), NOW));
    mirror.apply_dumped(Event::Route(ipv6(&[2, 3]), Place::First), NOW);
    assert!(!mirror.end_dump(NOW), "the dump may have listed it before the other came");
    mirror.begin_dump();
    mirror.apply_dumped(Event::Route(ipv6(&[2, 3]), Place::First), NOW);
    assert!(mirror.end_dump(NOW));
    let told = mirror.take(Limits { changes: 10, bytes: 10_000 }).map(|batch| batch.changes);
    assert_eq!(told, Some(vec![Change::Upsert(Object::Route(ipv6(&[2, 3])))]));
}
