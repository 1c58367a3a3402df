//! What becomes of frames of routers on their way: those that the switch hands over in a guest's place or beside it, those that
//! another node relays, and those that are said for a router.
//!
//! Pure: time is an argument, and what is to be done comes back ([`Out`]). What is kept, and how much, is [`punts`](super::punts)'
//! business; how each router stands, the sequencer's ([`Post`]). [`task`] has the channels.

pub mod out;
mod router;
pub mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use xenflow_flow_app::Stance;
use xenflow_flow_app::{Heard, HeardKind, PortNo, RouterId, VifId};
use xenflow_proto::MacAddr;
use xenflow_proto::node::{Punt, PuntKind};

use self::router::Router;
use super::announce;
use super::sequencer::Role;

/// Frames given to a guest at a time, and how long until the next: no more than its backend's queue holds.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(2);
/// Nothing was heard for so long: what the switch had handed over before it was told otherwise has come.
const QUIET: Duration = Duration::from_millis(50);
/// For how long a guest that has come is given nothing while one of its vifs is not plugged in: they are plugged in one by one.
const PLUGGED: Duration = Duration::from_secs(1);

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
    /// Which migrations are to be reported, and what this node is in them.
    pub roles: BTreeMap<RouterId, (u64, Role)>,
}

/// What the sequencer is to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// The migration that it is about.
    pub migration: Option<u64>,
    /// The source's last frame was given to the guest, and once all that had come here. The switch may give it what comes.
    pub end_mark: bool,
    /// Others were told, at least once on each segment.
    pub told: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// For the switch.
    Send(openflow::PacketOut),
    /// The switch is to say when it has done all of that. Always answered by [`Carrier::confirmed`] for this router and migration.
    Confirm(RouterId, u64),
    /// To the router's destination.
    Relay(RouterId, Punt),
    /// No more come.
    EndMark(RouterId),
    /// What the guest is not known to have is to come back: it is here again, or the connection ends. Always answered by
    /// [`Carrier::taken_back`], if by nothing else than that there is nothing.
    TakeBack(RouterId),
    /// The source of this migration need not keep what it has relayed up to this number.
    Given(u64, u64),
    /// Something that the sequencer is to know.
    Carried(RouterId, Carried),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Carrier {
    routers: BTreeMap<RouterId, Router>,
    /// There is a connection to their destinations, or will be; a router need not be known yet.
    streamed: BTreeSet<RouterId>,
    uplinks: BTreeSet<PortNo>,
    node_mac: Option<MacAddr>,
}

impl Carrier {
    /// Routers are to stand like this from now on.
    pub fn set(&mut self, posts: &Posts, now: Duration) -> Vec<Out> {
        let mut out = Vec::new();
        self.uplinks.clone_from(&posts.uplinks);
        self.node_mac = posts.node_mac;
        for (_, router) in self.routers.iter_mut().filter(|(id, _)| !posts.routers.contains_key(id)) {
            router.left.get_or_insert(now);
        }
        for (id, post) in &posts.routers {
            let is_streamed = self.streamed.contains(id);
            let new = || Router::new(post.clone(), is_streamed, now);
            self.routers.entry(*id).or_insert_with(new).stand(*id, post, now, &mut out);
        }
        self.settle(now, &mut out);
        out
    }

    /// There is a connection to a router's destination now, or none any more.
    pub fn set_streamed(&mut self, id: RouterId, is_streamed: bool, now: Duration) -> Vec<Out> {
        let mut out = Vec::new();
        if is_streamed {
            self.streamed.insert(id);
        } else {
            self.streamed.remove(&id);
        }
        if let Some(router) = self.routers.get_mut(&id) {
            router.set_streamed(id, is_streamed, now, &mut out);
        }
        out
    }

    /// The switch has handed a frame over.
    pub fn heard(&mut self, heard: Heard, frame: Bytes, now: Duration) -> Vec<Out> {
        let VifId { router: id, number } = heard.vif;
        let Some(router) = self.routers.get_mut(&id) else { return Vec::new() };
        // A copy as well: the guest may not read it any more.
        let is_for_guest = heard.kind != HeardKind::Mute;
        if is_for_guest
            && router.post.asked.answers
            && let (Some(node), Some((_, vif))) = (self.node_mac, router.post.vifs.get(&number))
            && let Some(answer) = announce::answer(vif, node, &frame)
        {
            router.heard = now;
            return vec![Out::Send(out::switched(vif.vlan(), None, answer.into()))];
        }
        let kind = match heard.kind {
            HeardKind::Late => PuntKind::Late,
            HeardKind::Copy => PuntKind::Copy,
            HeardKind::Punt | HeardKind::Mute => PuntKind::Punt,
        };
        let punt = Punt { vif: number, kind, frame };
        if heard.kind == HeardKind::Mute {
            // What is lost is counted.
            let _ = router.said.push(punt, now);
            return Vec::new();
        }
        router.heard = now;
        router.take(id, punt, now).into_iter().collect()
    }

    /// The source of a migration is connected: the frame that is wanted next of this stream.
    pub fn connected(&mut self, migration: u64, stream: u64) -> u64 {
        let Some((_, router)) = self.of(migration) else { return 1 };
        // What was said over the last connection may not have come there. Nothing is, before it has said something.
        router.given = None;
        router.kept.connected(stream)
    }

    /// It has relayed frames, from this number on.
    pub fn relayed(&mut self, migration: u64, first: u64, punts: Vec<Punt>, now: Duration) {
        if let Some((_, router)) = self.of(migration) {
            router.given.get_or_insert(0);
            for (number, punt) in (first..).zip(punts) {
                router.kept.relayed(number, punt, now);
            }
        }
    }

    /// No more come than up to this number.
    pub fn end_mark(&mut self, migration: u64, last: u64) {
        if let Some((_, router)) = self.of(migration) {
            router.given.get_or_insert(0);
            router.kept.end_mark(last);
        }
    }

    /// Frames that were relayed have come back; none, if they could not.
    pub fn taken_back(&mut self, id: RouterId, punts: Vec<Punt>, now: Duration) -> Vec<Out> {
        let mut out = Vec::new();
        if let Some(router) = self.routers.get_mut(&id) {
            router.taken_back(id, punts, now, &mut out);
        }
        out
    }

    /// The switch has sent all that [`Out::Confirm`] was behind, or is gone.
    pub fn confirmed(&mut self, id: RouterId, migration: u64, is_sent: bool, now: Duration) -> Vec<Out> {
        let mut out = Vec::new();
        if let Some(router) = self.routers.get_mut(&id) {
            router.confirmed(migration, is_sent, now);
        }
        self.settle(now, &mut out);
        out
    }

    /// What has become of a router's frames since its last migration began, by what it was here: `source/relayed`. None: nothing is
    /// known of it.
    #[must_use]
    pub fn counters(&self, id: RouterId, role: Role) -> BTreeMap<String, u64> {
        let role = match role {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        let counters = self.routers.get(&id).map(Router::counters).unwrap_or_default();
        counters.into_iter().map(|(what, count)| (format!("{role}/{what}"), count)).collect()
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
                router.give(now, &mut out);
            }
            if router.may_end() && now >= router.heard + QUIET {
                router.has_ended = true;
                out.push(Out::EndMark(*id));
            }
            router.tell(*id, uplinks, now, &mut out);
        }
        self.settle(now, &mut out);
        out
    }

    /// Says what the sequencer and sources do not know yet, and forgets routers of which nothing is to be done.
    fn settle(&mut self, now: Duration, out: &mut Vec<Out>) {
        self.routers.retain(|_, router| !router.is_over(now));
        for (id, router) in &mut self.routers {
            let Some(migration) = router.post.migration else { continue };
            let carried = router.carry(migration);
            if carried != router.carried {
                router.carried = carried;
                out.push(Out::Carried(*id, carried));
            }
            let given = router.kept.settled();
            if router.given.is_some_and(|said| given > said) {
                router.given = Some(given);
                out.push(Out::Given(migration, given));
            }
        }
    }
}
