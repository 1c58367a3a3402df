//! Two nodes, the connection between them, and a guest that moves. Frames come with every instant, by what a switch with that
//! stance does with them.

use std::collections::VecDeque;

use xenflow_flow_app::stance::{Emission, Gate};

use super::*;
use crate::migration::punts::{Bounds, Relay};

pub(super) const ROUTER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
pub(super) const NODE: MacAddr = MacAddr([0x0e, 0, 0, 0, 0, 0xaa]);

pub(super) fn vif() -> announce::Vif {
    announce::Vif::new(VlanId::MIN, ROUTER, [router_address()])
}

pub(super) fn post(migration: Option<u64>, asked: Stance, is_here: bool) -> Post {
    let vifs = BTreeMap::from([(1, (is_here.then_some(5), vif()))]);
    Post { migration, asked, proven: asked, is_here, tell: false, end_mark: false, vifs }
}

pub(super) fn posts(post: Post) -> Posts {
    Posts { routers: BTreeMap::from([(ID, post)]), node_mac: Some(NODE), ..Posts::default() }
}

pub(super) fn frame(id: u32) -> Bytes {
    let mut bytes = vec![0; 60];
    bytes[..4].copy_from_slice(&id.to_be_bytes());
    Bytes::from(bytes)
}

pub(super) fn id(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[..4].try_into().unwrap())
}

/// Who has 192.0.2.1, tell 192.0.2.2.
pub(super) fn arp_request() -> Bytes {
    let asker = [0x52, 0x54, 0, 0, 0, 2];
    let head = [&[0xff; 6][..], &asker, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    Bytes::from([&head[..], &asker, &[192, 0, 2, 2], &[0; 6], &[192, 0, 2, 1]].concat())
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    /// A frame for the guest comes to this node.
    Comes(usize),
    /// The guest says something.
    Says,
    /// It reads what it has.
    Reads,
    Wait(u64),
    /// The source sends what it has.
    Send,
    /// The oldest message on its way arrives, and what was given is told.
    Arrive,
    /// The connection is another one; what was on its way is lost.
    Break,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..2usize).prop_map(Op::Comes),
        1 => Just(Op::Says),
        1 => Just(Op::Reads),
        2 => (0..80u64).prop_map(Op::Wait),
        2 => Just(Op::Send),
        2 => Just(Op::Arrive),
        1 => Just(Op::Break),
    ]
}

/// How a move goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Planned,
    Unannounced,
    /// The destination's daemon does not wait for the end mark any more.
    Forced,
    /// Before the source has yielded; before the guest has left; when it has.
    Aborted(u8),
}

impl End {
    pub(super) const ALL: [Self; 6] = [
        Self::Planned,
        Self::Unannounced,
        Self::Forced,
        Self::Aborted(0),
        Self::Aborted(1),
        Self::Aborted(2),
    ];
}

pub(super) fn end() -> impl Strategy<Value = End> {
    prop::sample::select(&End::ALL[..])
}

#[derive(Default)]
struct Node {
    carrier: Carrier,
    post: Option<Post>,
    carried: Carried,
    /// That came here, in order.
    came: Vec<u32>,
}

enum Message {
    Punts(u64, Vec<Punt>),
    EndMark(u64),
}

struct Link {
    relay: Relay,
    stream: u64,
    wire: VecDeque<Message>,
}

pub(super) struct World {
    now: Duration,
    nodes: [Node; 2],
    link: Option<Link>,
    migration: u64,
    /// Where the guest was last, and whether it is there.
    at: usize,
    is_there: bool,
    /// In its backend, not read yet.
    ring: VecDeque<u32>,
    got: Vec<u32>,
    copied: BTreeSet<u32>,
    pub(super) came: u32,
    said: u32,
    heard_said: Vec<u32>,
    /// Where it goes.
    to: usize,
    has_ended: bool,
    has_mark: bool,
    is_aborted: bool,
    ops: VecDeque<Op>,
}

impl World {
    pub(super) fn new(ops: Vec<Op>) -> Self {
        Self {
            now: MS,
            nodes: Default::default(),
            link: None,
            migration: 0,
            at: 0,
            is_there: true,
            ring: VecDeque::new(),
            got: Vec::new(),
            copied: BTreeSet::new(),
            came: 0,
            said: 0,
            heard_said: Vec::new(),
            to: 1,
            has_ended: false,
            has_mark: false,
            is_aborted: false,
            ops: ops.into(),
        }
    }

    fn stance(&self, node: usize) -> Stance {
        let home = if self.at == node { Stance::HOME } else { Stance::NONE };
        self.nodes[node].post.as_ref().map_or(home, |post| post.asked)
    }

    fn is_here(&self, node: usize) -> bool {
        self.at == node && self.is_there
    }

    fn out(&mut self, node: usize, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Send(packet) if packet == out::given(5, packet.data.clone()) => {
                    let id = id(&packet.data);
                    let punts = self.stance(node).punts;
                    assert!(self.is_here(node), "{id} is given to nobody");
                    assert!(!matches!(punts, Punts::Kept | Punts::Relayed | Punts::Elsewhere), "{punts:?}");
                    let is_own = self.nodes[node].came.contains(&id);
                    assert!(punts != Punts::Ordered || self.has_mark || !is_own, "{id} before the end mark");
                    if punts == Punts::Copied {
                        self.copied.insert(id);
                    }
                    self.ring.push_back(id);
                }
                Out::Send(packet) if packet == out::said(5, packet.data.clone()) => {
                    assert!(self.is_here(node) && !self.stance(node).mute);
                    self.heard_said.push(id(&packet.data));
                }
                // What is told.
                Out::Send(_) => {}
                Out::Relay(_, punt) => {
                    let link = self.link.as_mut().expect("there is a connection");
                    assert!(link.relay.push(punt, self.now).is_ok());
                }
                Out::EndMark(_) => {
                    self.link.as_mut().expect("there is a connection").relay.end();
                    self.has_ended = true;
                }
                Out::TakeBack(id) => {
                    let punts =
                        self.link.as_mut().map(|link| link.relay.take_back(self.now)).unwrap_or_default();
                    let out = self.nodes[node].carrier.taken_back(id, punts, self.now);
                    self.out(node, out);
                }
                Out::Given(migration, number) => {
                    if let Some(link) = self.link.as_mut().filter(|_| migration == self.migration) {
                        link.relay.given(number);
                    }
                }
                Out::Confirm(id, migration) => {
                    let out = self.nodes[node].carrier.confirmed(id, migration, true, self.now);
                    self.out(node, out);
                }
                Out::Carried(_, carried) => self.nodes[node].carried = carried,
            }
        }
    }

    fn hear(&mut self, node: usize, kind: HeardKind, id: u32) {
        let out = self.nodes[node].carrier.heard(heard(kind), frame(id), self.now);
        self.out(node, out);
    }

    fn due(&mut self) {
        for node in 0..2 {
            let out = self.nodes[node].carrier.due(self.now);
            self.out(node, out);
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Comes(node) => self.comes(node),
            Op::Says if self.is_there => {
                self.said += 1;
                if self.stance(self.at).mute {
                    self.hear(self.at, HeardKind::Mute, self.said);
                } else {
                    self.heard_said.push(self.said);
                }
            }
            Op::Says => {}
            Op::Reads if self.is_there => self.got.extend(self.ring.drain(..)),
            Op::Reads => {}
            Op::Wait(ms) => {
                self.now += MS * u32::try_from(ms).unwrap();
                self.due();
            }
            Op::Send => {
                let Some(link) = &mut self.link else { return };
                while let Some((first, punts)) = link.relay.batch(self.now) {
                    link.wire.push_back(Message::Punts(first, punts));
                }
                link.wire.extend(link.relay.end_mark().map(Message::EndMark));
            }
            Op::Arrive => {
                let message = self.link.as_mut().and_then(|link| link.wire.pop_front());
                let carrier = &mut self.nodes[self.to].carrier;
                match message {
                    Some(Message::Punts(first, punts)) => {
                        carrier.relayed(self.migration, first, punts, self.now);
                    }
                    Some(Message::EndMark(last)) => {
                        carrier.end_mark(self.migration, last);
                        self.has_mark = true;
                    }
                    None => return,
                }
                self.due();
            }
            Op::Break => {
                let to = self.to;
                let Some(link) = &mut self.link else { return };
                link.wire.clear();
                let wanted = self.nodes[to].carrier.connected(self.migration, link.stream);
                link.relay.connected(wanted);
            }
        }
    }

    /// As the switch of the node does with it.
    fn comes(&mut self, node: usize) {
        let stance = self.stance(node);
        let is_late = stance.gate == Gate::Late;
        if stance.punts == Punts::Elsewhere && !is_late
            || stance.punts == Punts::Guest && !self.is_here(node)
            // Nobody says anything as late as that.
            || is_late && self.has_ended
            // Frames for a guest that is awaited are switched to where it is; it may not come.
            || stance.punts == Punts::Kept && self.is_aborted
        {
            return;
        }
        self.came += 1;
        let id = self.came;
        self.nodes[node].came.push(id);
        match stance.punts {
            Punts::Guest => self.ring.push_back(id),
            Punts::Copied => {
                self.copied.insert(id);
                if self.is_here(node) {
                    self.ring.push_back(id);
                }
                self.hear(node, HeardKind::Copy, id);
            }
            Punts::Elsewhere => self.hear(node, HeardKind::Late, id),
            Punts::Relayed | Punts::Kept | Punts::Ordered => self.hear(node, HeardKind::Punt, id),
        }
    }

    /// Some of what comes in between.
    fn play(&mut self) {
        for _ in 0..6 {
            if let Some(op) = self.ops.pop_front() {
                self.step(op);
            }
        }
    }

    fn set(&mut self, node: usize, post: Option<Post>) {
        let all = post.clone().map(posts).unwrap_or_default();
        self.nodes[node].post = post;
        let out = self.nodes[node].carrier.set(&all, self.now);
        self.out(node, out);
    }

    /// Stands so, first as asked and then proven; something comes in between.
    fn stand(&mut self, node: usize, migration: Option<u64>, asked: Stance) {
        let end_mark = asked == Stance::LATE;
        let new = Post {
            end_mark,
            tell: node == self.to && asked.emission == Emission::Router,
            ..post(migration, asked, self.is_here(node))
        };
        let before = self.stance(node);
        self.set(node, Some(Post { proven: before, end_mark: false, ..new.clone() }));
        if before.mute == asked.mute && before.punts == asked.punts {
            self.play();
        }
        self.due();
        self.set(node, Some(new));
        // What is kept goes before the switch gives more, and what was said before it lets more out.
        if asked.punts == Punts::Guest || !asked.mute {
            self.pause();
        }
        self.play();
    }

    /// Time for the guest to be given what there is.
    fn pause(&mut self) {
        (0..20).for_each(|_| self.step(Op::Wait(3)));
    }

    fn connect(&mut self, from: usize) {
        let stream = 1000 + self.migration;
        self.link = Some(Link { relay: Relay::new(Bounds::KEPT), stream, wire: VecDeque::new() });
        let out = self.nodes[from].carrier.set_streamed(ID, true, self.now);
        self.out(from, out);
        self.step(Op::Break);
        self.play();
    }

    fn over(&mut self, from: usize) {
        for node in [self.at, 1 - self.at] {
            let stance = if node == self.at { Stance::HOME } else { Stance::NONE };
            self.set(node, Some(post(None, stance, self.is_here(node))));
        }
        let out = self.nodes[from].carrier.set_streamed(ID, false, self.now);
        self.out(from, out);
        self.link = None;
        (0..2).for_each(|node| self.set(node, None));
        self.play();
    }

    pub(super) fn go(&mut self, end: End) {
        let from = self.at;
        self.to = 1 - from;
        self.migration += 1;
        (self.has_mark, self.has_ended, self.is_aborted) = (false, false, matches!(end, End::Aborted(_)));
        let open = Some(self.migration);
        let away = Stance { mute: true, ..Stance::AWAY };
        if end == End::Unannounced {
            self.step(Op::Reads);
            self.is_there = false;
            self.stand(from, None, away);
            self.stand(self.to, None, Stance::AWAITED);
            (self.at, self.is_there) = (self.to, true);
            self.stand(self.to, None, Stance::AWAITED);
            self.stand(self.to, open, Stance::ARRIVED);
            self.stand(from, open, away);
            self.connect(from);
        } else {
            self.stand(from, open, Stance::HOME);
            self.stand(self.to, open, Stance::AWAITED);
            self.connect(from);
            if end == End::Aborted(0) {
                return self.over(from);
            }
            self.step(Op::Reads);
            self.stand(from, open, Stance::YIELDED);
            if end != End::Aborted(1) {
                self.is_there = false;
                self.ring.clear();
                self.play();
                self.stand(from, open, Stance::AWAY);
            }
            if self.is_aborted {
                self.is_there = true;
                self.stand(from, open, Stance::HOME);
                return self.over(from);
            }
            (self.at, self.is_there) = (self.to, true);
            self.stand(self.to, open, Stance::AWAITED);
            self.stand(self.to, open, Stance::ARRIVED);
            self.stand(from, open, away);
        }
        self.stand(self.to, open, Stance { punts: Punts::Ordered, ..Stance::HOME });
        self.stand(from, open, Stance::LATE);
        if end == End::Forced {
            self.stand(self.to, open, Stance::HOME);
        }
        let is_marked = |world: &Self| world.has_mark && world.nodes[world.to].carried.end_mark;
        let is_known = |world: &Self| world.link.as_ref().is_some_and(|link| link.relay.is_done());
        self.go_on_until(is_marked);
        assert!(is_marked(self), "the end mark comes");
        self.stand(self.to, open, Stance::HOME);
        self.go_on_until(is_known);
        assert!(is_known(self), "the source knows");
        assert!(self.nodes[self.to].carried.told);
        self.over(from);
    }

    fn go_on_until(&mut self, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if is_so(self) {
                return;
            }
            [Op::Wait(60), Op::Send, Op::Arrive].into_iter().for_each(|op| self.step(op));
        }
    }

    pub(super) fn check(&mut self) {
        self.pause();
        self.step(Op::Reads);
        let all: BTreeSet<u32> = self.got.iter().copied().collect();
        assert_eq!(all, (1..=self.came).collect(), "all that came was given");
        let mut seen = BTreeSet::new();
        let (first, again): (Vec<u32>, Vec<u32>) = self.got.iter().partition(|id| seen.insert(**id));
        assert!(again.iter().all(|id| self.copied.contains(id)), "{again:?} came twice");
        for node in &self.nodes {
            let own: Vec<_> = first.iter().filter(|id| node.came.contains(id)).collect();
            assert!(own.is_sorted(), "{own:?}");
        }
        assert_eq!(self.heard_said, (1..=self.said).collect::<Vec<_>>());
    }
}
