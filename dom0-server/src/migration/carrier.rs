//! What becomes of frames of routers on their way: those that the switch hands over in a guest's place or beside it, those that
//! another node relays, and those that are said for a router.
//!
//! Pure: time is an argument, and what is to be done comes back ([`Out`]). What is kept, and how much, is [`punts`](super::punts)'
//! business; how each router stands, the sequencer's ([`Post`]). [`task`] has the channels.

pub mod out;
pub mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use xenflow_flow_app::{Heard, HeardKind, PortNo, RouterId, VifId};
use xenflow_flow_app::{Punts, Stance};
use xenflow_proto::MacAddr;
use xenflow_proto::node::{Punt, PuntKind};

use super::announce::{self, Schedule};
use super::punts::{Bounds, Keeper, Queue, Ring};

/// Frames given to a guest at a time, and how long until the next: no more than its backend's queue holds.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(2);
/// Nothing was heard for so long: what the switch had handed over before it was told otherwise has come.
const QUIET: Duration = Duration::from_millis(50);

/// What is to become of a router's frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The open row.
    pub migration: Option<u64>,
    /// How the router is to stand.
    pub asked: Stance,
    /// How it stands, as proven.
    pub proven: Stance,
    /// Its ports are here.
    pub is_here: bool,
    /// Others are to be told that it is here.
    pub tell: bool,
    /// The destination is to be told that no more frames come.
    pub end_mark: bool,
    /// Its vifs on segments by number: the port, and as others see them.
    pub vifs: BTreeMap<u16, (Option<PortNo>, announce::Vif)>,
}

/// Of all routers of which anything is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Posts {
    /// By router.
    pub routers: BTreeMap<RouterId, Post>,
    /// Trunks.
    pub uplinks: BTreeSet<PortNo>,
    /// Whose frames the node's own are.
    pub node_mac: Option<MacAddr>,
}

/// What the sequencer is to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// The migration that it is about.
    pub migration: Option<u64>,
    /// The source's last frame was given to the guest.
    pub end_mark: bool,
    /// Others were told, at least once on each segment.
    pub told: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// For the switch.
    Send(openflow::PacketOut),
    /// To the router's destination.
    Relay(RouterId, Punt),
    /// No more come.
    EndMark(RouterId),
    /// The guest is here again: what it is not known to have is to come back.
    TakeBack(RouterId),
    /// The source of this migration need not keep what it has relayed up to this number.
    Given(u64, u64),
    /// Something that the sequencer is to know.
    Carried(RouterId, Carried),
}

/// Of one router.
#[derive(Debug)]
struct Router {
    post: Post,
    /// There is a connection to the destination, or will be.
    is_streamed: bool,
    copies: Ring,
    kept: Keeper,
    said: Queue,
    telling: Option<(Schedule, Duration)>,
    has_relayed: bool,
    has_ended: bool,
    heard: Duration,
    carried: Carried,
    given: u64,
    /// When the next frames may be given.
    next: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Carrier {
    routers: BTreeMap<RouterId, Router>,
    uplinks: BTreeSet<PortNo>,
    node_mac: Option<MacAddr>,
}

impl Router {
    fn new(post: Post) -> Self {
        Self {
            post,
            is_streamed: false,
            copies: Ring::new(Bounds::RING),
            kept: Keeper::new(Bounds::KEPT),
            said: Queue::new(Bounds::KEPT),
            telling: None,
            has_relayed: false,
            has_ended: false,
            heard: Duration::ZERO,
            carried: Carried::default(),
            given: 0,
            next: Duration::ZERO,
        }
    }

    /// What is kept here goes to the destination, copies first.
    fn relay_kept(&mut self, id: RouterId, now: Duration, out: &mut Vec<Out>) {
        self.kept.go_without_end_mark();
        let kept = self.copies.take(now).into_iter().chain(self.kept.release(usize::MAX, now));
        out.extend(kept.map(|punt| Out::Relay(id, punt)));
        self.has_relayed = true;
    }

    /// Something changes in how the router is to stand.
    fn turn(&mut self, id: RouterId, now: Duration, out: &mut Vec<Out>) {
        match self.post.asked.punts {
            Punts::Relayed if self.is_streamed => self.relay_kept(id, now, out),
            Punts::Guest | Punts::Copied if self.has_relayed && !self.has_ended => {
                self.has_relayed = false;
                self.kept.go_without_end_mark();
                out.push(Out::TakeBack(id));
            }
            // Nobody relays anything, or no longer.
            Punts::Guest if self.post.is_here => self.kept.go_without_end_mark(),
            Punts::Guest
            | Punts::Copied
            | Punts::Relayed
            | Punts::Kept
            | Punts::Ordered
            | Punts::Elsewhere => {}
        }
        if self.post.tell && self.telling.is_none() {
            let vifs: Vec<_> = self.post.vifs.values().map(|(_, vif)| vif.clone()).collect();
            self.telling = Some((Schedule::new(&vifs), now));
        } else if !self.post.tell {
            self.telling = None;
        }
    }

    /// The guest can take in what is for it.
    fn may_give(&self) -> bool {
        let is_asked = matches!(self.post.asked.punts, Punts::Guest | Punts::Copied | Punts::Ordered);
        is_asked && self.post.is_here
    }

    /// What it has said may go on.
    fn may_say(&self) -> bool {
        !self.post.asked.mute && !self.post.proven.mute && self.post.is_here
    }

    fn port(&self, vif: u16) -> Option<PortNo> {
        self.post.vifs.get(&vif)?.0
    }

    /// Everything that was kept before what comes now is given, whatever follows.
    fn is_idle(&self) -> bool {
        let [(relayed, _), (own, _)] = self.kept.kept();
        relayed == 0 && own == 0 && self.said.is_empty() && self.telling.is_none()
    }

    /// When there is something to do, if nothing happens before.
    fn wake(&self) -> Option<Duration> {
        let [(relayed, _), (own, _)] = self.kept.kept();
        let has_any = relayed > 0 || (own > 0 && self.kept.is_through());
        let give = (has_any && self.may_give()) || (!self.said.is_empty() && self.may_say());
        let give = give.then_some(self.next);
        let end = (self.post.end_mark && !self.has_ended && self.is_streamed).then_some(self.heard + QUIET);
        let tell = self.telling.as_ref().and_then(|(schedule, began)| Some(*began + schedule.next()?));
        [give, end, tell].into_iter().flatten().min()
    }
}

impl Carrier {
    /// Routers are to stand like this from now on.
    pub fn set(&mut self, posts: &Posts, now: Duration) -> Vec<Out> {
        let mut out = Vec::new();
        self.uplinks.clone_from(&posts.uplinks);
        self.node_mac = posts.node_mac;
        self.routers.retain(|id, router| posts.routers.contains_key(id) || !router.is_idle());
        for (id, post) in &posts.routers {
            let router = self.routers.entry(*id).or_insert_with(|| Router::new(post.clone()));
            if router.post.migration != post.migration && post.migration.is_some() {
                // What was relayed or ended for another migration says nothing of this one.
                (router.has_ended, router.telling, router.given) = (false, None, 0);
                router.kept.begin_again();
            }
            router.post.clone_from(post);
            router.turn(*id, now, &mut out);
        }
        self.settle(&mut out);
        out
    }

    /// There is a connection to a router's destination now, or none any more.
    pub fn set_streamed(&mut self, id: RouterId, is_streamed: bool, now: Duration) -> Vec<Out> {
        let mut out = Vec::new();
        if let Some(router) = self.routers.get_mut(&id) {
            router.is_streamed = is_streamed;
            router.turn(id, now, &mut out);
        }
        out
    }

    /// The switch has handed a frame over.
    pub fn heard(&mut self, heard: Heard, frame: Bytes, now: Duration) -> Vec<Out> {
        let VifId { router: id, number } = heard.vif;
        let node_mac = self.node_mac;
        let Some(router) = self.routers.get_mut(&id) else { return Vec::new() };
        router.heard = now;
        let kind = if heard.kind == HeardKind::Late { PuntKind::Late } else { PuntKind::Punt };
        let punt = Punt { vif: number, kind, frame };
        match heard.kind {
            HeardKind::Copy => router.copies.push(punt, now),
            // What is lost is counted.
            HeardKind::Mute => _ = router.said.push(punt, now),
            HeardKind::Punt | HeardKind::Late => {
                if router.post.asked.answers
                    && let (Some(node), Some((_, vif))) = (node_mac, router.post.vifs.get(&number))
                    && let Some(answer) = announce::answer(vif, node, &punt.frame)
                {
                    return vec![Out::Send(out::switched(vif.vlan(), None, answer.into()))];
                }
                match router.post.asked.punts {
                    Punts::Relayed | Punts::Elsewhere if router.is_streamed => {
                        router.has_relayed = true;
                        return vec![Out::Relay(id, punt)];
                    }
                    // It is told to whoever has the router, or to nobody.
                    Punts::Elsewhere => {}
                    Punts::Guest | Punts::Copied | Punts::Relayed | Punts::Kept | Punts::Ordered => {
                        router.kept.own(punt, now);
                    }
                }
            }
        }
        Vec::new()
    }

    /// The source of a migration is connected: the frame that is wanted next of this stream.
    pub fn connected(&mut self, migration: u64, stream: u64) -> u64 {
        self.of(migration).map_or(1, |(_, router)| router.kept.connected(stream))
    }

    /// It has relayed frames, from this number on.
    pub fn relayed(&mut self, migration: u64, first: u64, punts: Vec<Punt>, now: Duration) {
        if let Some((_, router)) = self.of(migration) {
            for (number, punt) in (first..).zip(punts) {
                router.kept.relayed(number, punt, now);
            }
        }
    }

    /// No more come than up to this number.
    pub fn end_mark(&mut self, migration: u64, last: u64) {
        if let Some((_, router)) = self.of(migration) {
            router.kept.end_mark(last);
        }
    }

    /// Frames that were relayed have come back.
    pub fn taken_back(&mut self, id: RouterId, punts: Vec<Punt>, now: Duration) {
        if let Some(router) = self.routers.get_mut(&id) {
            punts.into_iter().for_each(|punt| router.kept.own(punt, now));
        }
    }

    fn of(&mut self, migration: u64) -> Option<(RouterId, &mut Router)> {
        let its = |router: &Router| router.post.migration == Some(migration);
        self.routers.iter_mut().find(|(_, router)| its(router)).map(|(id, router)| (*id, router))
    }

    /// When [`due`](Self::due) has something, if nothing happens before.
    #[must_use]
    pub fn wake(&self) -> Option<Duration> {
        self.routers.values().filter_map(Router::wake).min()
    }

    /// What is due by now.
    pub fn due(&mut self, now: Duration) -> Vec<Out> {
        let mut out = Vec::new();
        let uplinks = &self.uplinks;
        for (id, router) in &mut self.routers {
            if now >= router.next {
                let given = if router.may_give() { router.kept.release(AT_ONCE, now) } else { Vec::new() };
                let mut room = AT_ONCE - given.len();
                for punt in given {
                    // A vif that is not plugged in takes nothing.
                    let port = router.port(punt.vif);
                    out.extend(port.map(|port| Out::Send(out::given(port, punt.frame))));
                }
                while room > 0
                    && router.may_say()
                    && let Some(punt) = router.said.pop(now)
                {
                    room -= 1;
                    let port = router.port(punt.vif);
                    out.extend(port.map(|port| Out::Send(out::said(port, punt.frame))));
                }
                if room < AT_ONCE {
                    router.next = now + PAUSE;
                }
            }
            if router.post.end_mark && !router.has_ended && router.is_streamed && now >= router.heard + QUIET
            {
                router.has_ended = true;
                out.push(Out::EndMark(*id));
            }
            if let Some((schedule, began)) = &mut router.telling {
                for telling in schedule.due(now.saturating_sub(*began)) {
                    let own = router.post.vifs.values().find(|(_, vif)| vif.vlan() == telling.vlan);
                    let port = own.and_then(|(port, _)| *port);
                    out.extend(out::told(telling, port, uplinks).map(Out::Send));
                }
            }
        }
        self.settle(&mut out);
        out
    }

    /// Says what the sequencer and sources do not know yet.
    fn settle(&mut self, out: &mut Vec<Out>) {
        for (id, router) in &mut self.routers {
            let Some(migration) = router.post.migration else { continue };
            let told = router.telling.as_ref().is_some_and(|(schedule, _)| schedule.has_told_all());
            let end_mark = router.kept.is_through();
            let carried = Carried { migration: Some(migration), end_mark, told };
            if carried != router.carried {
                router.carried = carried;
                out.push(Out::Carried(*id, carried));
            }
            let given = router.kept.settled();
            if given > router.given {
                router.given = given;
                out.push(Out::Given(migration, given));
            }
        }
    }
}
