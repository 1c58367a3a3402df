//! One router's frames; see [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use xenflow_flow_app::{PortNo, Punts, RouterId};
use xenflow_proto::node::{Punt, PuntKind};

use super::{AT_ONCE, Carried, Out, PAUSE, PLUGGED, Post, QUIET, out};
use crate::migration::announce::{self, Schedule};
use crate::migration::punts::{Bounds, Keeper, Queue, Ring};

/// What a router's frames are, and how far they are.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) post: Post,
    /// When its ports came.
    came: Duration,
    /// Since when nobody says how it is to stand.
    pub(super) left: Option<Duration>,
    /// There is a connection to the destination, or will be. What was relayed and ended belongs to it.
    is_streamed: bool,
    has_relayed: bool,
    pub(super) has_ended: bool,
    /// What was relayed is to come back; until it has, nothing overtakes it.
    takes_back: bool,
    copies: Ring,
    pub(super) kept: Keeper,
    pub(super) said: Queue,
    pub(super) telling: Option<Telling>,
    pub(super) heard: Duration,
    pub(super) carried: Carried,
    /// That the source was told over this connection; none: it has said nothing yet.
    pub(super) given: Option<u64>,
    /// When the next frames may be given.
    pub(super) next: Duration,
    tally: Tally,
    /// All counters as they were when the migration began.
    base: BTreeMap<&'static str, u64>,
}

/// What queues do not count.
#[derive(Debug, Default)]
struct Tally {
    copied: u64,
    relayed: u64,
    returned: u64,
    given: u64,
    late: u64,
    switched: u64,
    /// For a vif that is not plugged in; behind the end mark, or for a guest that nobody knows where to find, and not for it alone.
    lost: u64,
}

/// What is told of it.
#[derive(Debug)]
pub(super) struct Telling {
    schedule: Schedule,
    began: Duration,
    told: Told,
}

/// Whether everybody was told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    No,
    /// The switch has not said yet that it has sent it all.
    Asked,
    Yes,
}

impl Telling {
    fn new(vifs: &[announce::Vif], now: Duration) -> Self {
        Self { schedule: Schedule::new(vifs), began: now, told: Told::No }
    }
}

impl Router {
    pub(super) fn new(post: Post, is_streamed: bool, now: Duration) -> Self {
        Self {
            post,
            came: now,
            left: None,
            is_streamed,
            has_relayed: false,
            has_ended: false,
            takes_back: false,
            copies: Ring::new(Bounds::RING),
            kept: Keeper::new(Bounds::KEPT),
            said: Queue::new(Bounds::KEPT),
            telling: None,
            heard: Duration::ZERO,
            carried: Carried::default(),
            given: None,
            next: Duration::ZERO,
            tally: Tally::default(),
            base: BTreeMap::new(),
        }
    }

    /// It is to stand like this from now on.
    pub(super) fn stand(&mut self, id: RouterId, post: &Post, now: Duration, out: &mut Vec<Out>) {
        self.left = None;
        if self.post.migration != post.migration {
            if matches!(post.asked.punts, Punts::Kept | Punts::Elsewhere) {
                self.kept.leave_to_source();
            }
            if post.migration.is_some() {
                // What was told or given for another migration says nothing of this one.
                (self.telling, self.given) = (None, None);
                self.kept.begin_again();
                self.base = self.totals();
            }
        }
        if post.is_here && !self.post.is_here {
            self.came = now;
        }
        self.post.clone_from(post);
        self.turn(id, now, out);
    }

    pub(super) fn set_streamed(
        &mut self,
        id: RouterId,
        is_streamed: bool,
        now: Duration,
        out: &mut Vec<Out>,
    ) {
        if self.is_streamed && !is_streamed {
            // Behind the end mark of a migration that is over, the guest has all of it elsewhere.
            let is_open = self.post.migration.is_some() || self.post.asked.punts != Punts::Elsewhere;
            if self.has_relayed && is_open {
                self.take_back(id, out);
            }
            (self.has_relayed, self.has_ended) = (false, false);
        }
        self.is_streamed = is_streamed;
        self.turn(id, now, out);
    }

    fn take_back(&mut self, id: RouterId, out: &mut Vec<Out>) {
        (self.has_relayed, self.takes_back) = (false, true);
        self.kept.wait_for_returned();
        out.push(Out::TakeBack(id));
    }

    pub(super) fn taken_back(&mut self, id: RouterId, punts: Vec<Punt>, now: Duration, out: &mut Vec<Out>) {
        self.takes_back = false;
        self.tally.returned += punts.len() as u64;
        punts.into_iter().for_each(|punt| self.kept.returned(punt, now));
        self.turn(id, now, out);
    }

    /// Something changes in how the router is to stand.
    fn turn(&mut self, id: RouterId, now: Duration, out: &mut Vec<Out>) {
        match self.post.asked.punts {
            // Also when the others know already where it is: what came before was for the guest.
            Punts::Relayed | Punts::Elsewhere if self.may_relay() && !self.has_ended => {
                self.relay_kept(id, now, out);
            }
            Punts::Guest | Punts::Copied if self.has_relayed && !self.has_ended => self.take_back(id, out),
            // Nobody relays anything, or no longer.
            Punts::Guest | Punts::Copied if self.post.is_here && !self.takes_back => {
                self.kept.go_without_end_mark();
            }
            Punts::Guest
            | Punts::Copied
            | Punts::Relayed
            | Punts::Kept
            | Punts::Ordered
            | Punts::Elsewhere => {}
        }
        if self.post.asked.punts == Punts::Guest && self.post.is_here {
            // It goes on here, and reads what it was given.
            self.copies = Ring::new(Bounds::RING);
        }
        if self.post.tell && self.telling.is_none() {
            let vifs: Vec<_> = self.post.vifs.values().map(|(_, vif)| vif.clone()).collect();
            self.telling = Some(Telling::new(&vifs, now));
        } else if !self.post.tell {
            self.telling = None;
        }
    }

    /// What is kept here goes to the destination, copies first.
    fn relay_kept(&mut self, id: RouterId, now: Duration, out: &mut Vec<Out>) {
        self.kept.go_without_end_mark();
        let kept = self.copies.take(now).into_iter().chain(self.kept.release(usize::MAX, now));
        let before = out.len();
        out.extend(kept.map(|punt| Out::Relay(id, punt)));
        self.tally.relayed += (out.len() - before) as u64;
        self.has_relayed |= out.len() > before;
    }

    /// What comes goes there.
    const fn may_relay(&self) -> bool {
        self.is_streamed && !self.takes_back
    }

    /// The end mark is due, once nothing comes any more.
    pub(super) const fn may_end(&self) -> bool {
        self.post.end_mark && !self.has_ended && self.may_relay()
    }

    /// A frame for the guest, or a copy of one: it is kept, or to be relayed or switched.
    pub(super) fn take(&mut self, id: RouterId, punt: Punt, now: Duration) -> Option<Out> {
        self.tally.copied += u64::from(punt.kind == PuntKind::Copy);
        self.tally.late += u64::from(punt.kind == PuntKind::Late);
        let is_over = self.has_ended || self.post.migration.is_none();
        match self.post.asked.punts {
            // Also a copy: the guest may have been gone by then.
            Punts::Relayed | Punts::Elsewhere if self.may_relay() && !self.has_ended => {
                self.has_relayed = true;
                self.tally.relayed += 1;
                return Some(Out::Relay(id, punt));
            }
            Punts::Elsewhere if is_over && self.may_switch(&punt) => {
                let (_, vif) = self.post.vifs.get(&punt.vif)?;
                self.tally.switched += 1;
                return Some(Out::Send(out::switched(vif.vlan(), None, punt.frame)));
            }
            _ if punt.kind == PuntKind::Copy => self.copies.push(punt, now),
            Punts::Elsewhere if is_over => self.tally.lost += 1,
            Punts::Guest
            | Punts::Copied
            | Punts::Relayed
            | Punts::Kept
            | Punts::Ordered
            | Punts::Elsewhere => self.kept.own(punt, now),
        }
        None
    }

    /// The switch has handed it over long ago: however busy the machine is, it goes the way of those that come now. Only what is for this
    /// guest alone: others have had the rest. What is late came by an uplink, so it would only go back.
    fn may_switch(&self, punt: &Punt) -> bool {
        let vif = self.post.vifs.get(&punt.vif);
        let is_its = vif.is_some_and(|(_, vif)| punt.frame.starts_with(&vif.mac().0));
        is_its && punt.kind != PuntKind::Late && self.post.proven.punts == Punts::Elsewhere
    }

    /// Gives and says as much as may be now.
    pub(super) fn give(&mut self, now: Duration, out: &mut Vec<Out>) {
        let given = if self.may_give(now) { self.kept.release(AT_ONCE, now) } else { Vec::new() };
        let mut room = AT_ONCE - given.len();
        for punt in given {
            // A vif that is not plugged in takes nothing.
            let Some(port) = self.port(punt.vif) else {
                self.tally.lost += 1;
                continue;
            };
            self.tally.given += 1;
            if self.post.asked.punts == Punts::Copied {
                self.copies.push(punt.clone(), now);
            }
            out.push(Out::Send(out::given(port, punt.frame)));
        }
        while room > 0
            && self.may_say()
            && let Some(punt) = self.said.pop(now)
        {
            room -= 1;
            match self.port(punt.vif) {
                Some(port) => out.push(Out::Send(out::said(port, punt.frame))),
                None => self.tally.lost += 1,
            }
        }
        if room < AT_ONCE {
            self.next = now + PAUSE;
        }
    }

    /// The guest can take in what is for it.
    fn may_give(&self, now: Duration) -> bool {
        self.can_take() && now >= self.complete()
    }

    fn can_take(&self) -> bool {
        let is_asked = matches!(self.post.asked.punts, Punts::Guest | Punts::Copied | Punts::Ordered);
        is_asked && self.post.is_here
    }

    /// From when on its vifs are all that come.
    fn complete(&self) -> Duration {
        let is_complete = self.post.vifs.values().all(|(port, _)| port.is_some());
        if is_complete { self.came } else { self.came + PLUGGED }
    }

    /// What it has said may go on.
    fn may_say(&self) -> bool {
        !self.post.asked.mute && !self.post.proven.mute && self.post.is_here
    }

    fn port(&self, vif: u16) -> Option<PortNo> {
        self.post.vifs.get(&vif)?.0
    }

    /// Tells what is due.
    pub(super) fn tell(
        &mut self,
        id: RouterId,
        uplinks: &BTreeSet<PortNo>,
        now: Duration,
        out: &mut Vec<Out>,
    ) {
        let Some(telling) = &mut self.telling else { return };
        for due in telling.schedule.due(now.saturating_sub(telling.began)) {
            let own = self.post.vifs.values().find(|(_, vif)| vif.vlan() == due.vlan);
            let port = own.and_then(|(port, _)| *port);
            out.extend(out::told(due, port, uplinks).map(Out::Send));
        }
        if telling.told == Told::No
            && telling.schedule.has_told_all()
            && let Some(migration) = self.post.migration
        {
            telling.told = Told::Asked;
            out.push(Out::Confirm(id, migration));
        }
    }

    /// The switch has sent what was told for this migration; or it is gone, and nobody knows.
    pub(super) fn confirmed(&mut self, migration: u64, is_sent: bool, now: Duration) {
        let is_its = self.post.migration == Some(migration);
        if let Some(telling) = self.telling.as_mut().filter(|telling| is_its && telling.told == Told::Asked) {
            if is_sent {
                telling.told = Told::Yes;
            } else {
                let vifs: Vec<_> = self.post.vifs.values().map(|(_, vif)| vif.clone()).collect();
                *telling = Telling::new(&vifs, now);
            }
        }
    }

    /// What the sequencer may know. That everything is given holds for the whole of a migration: what comes here later waits for
    /// nothing but its turn.
    pub(super) fn carry(&self, migration: u64) -> Carried {
        let was = self.carried.migration == Some(migration) && self.carried.end_mark;
        let [_, (own, _)] = self.kept.kept();
        let told = self.telling.as_ref().is_some_and(|telling| telling.told == Told::Yes);
        Carried { migration: Some(migration), end_mark: was || (self.kept.is_through() && own == 0), told }
    }

    /// Nobody says how it is to stand, and there is nothing left to do, or what is kept is too old for anybody.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.left.is_some_and(|left| self.is_idle() || now >= left + Bounds::KEPT.age)
    }

    fn is_idle(&self) -> bool {
        let [(relayed, _), (own, _)] = self.kept.kept();
        let tells = self.telling.as_ref().is_some_and(|telling| telling.schedule.next().is_some());
        relayed == 0 && own == 0 && self.said.is_empty() && !tells && !self.takes_back
    }

    /// When there is something to do, if nothing happens before.
    pub(super) fn wake(&self) -> Option<Duration> {
        let [(relayed, _), (own, _)] = self.kept.kept();
        let has_any = relayed > 0 || (own > 0 && self.kept.is_whole());
        let give = (has_any && self.can_take()).then(|| self.next.max(self.complete()));
        let say = (!self.said.is_empty() && self.may_say()).then_some(self.next);
        let end = self.may_end().then_some(self.heard + QUIET);
        let tell = self.telling.as_ref().and_then(|telling| Some(telling.began + telling.schedule.next()?));
        let over = self.left.map(|left| left + Bounds::KEPT.age);
        [give, say, end, tell, over].into_iter().flatten().min()
    }

    fn totals(&self) -> BTreeMap<&'static str, u64> {
        let Tally { copied, relayed, returned, given, late, switched, lost } = self.tally;
        let (from_source, own, said) =
            (self.kept.relayed_counters(), self.kept.own_counters(), self.said.counters());
        BTreeMap::from([
            ("copied", copied),
            ("relayed", relayed),
            ("returned", returned),
            ("kept", from_source.came + own.came),
            ("given", given),
            ("lost", lost + from_source.all_lost() + own.all_lost() + said.all_lost()),
            ("twice", self.kept.twice()),
            ("missed", self.kept.missed()),
            ("late", late),
            ("switched", switched),
            ("mute_kept", said.came),
        ])
    }

    pub(super) fn counters(&self) -> BTreeMap<&'static str, u64> {
        let since = |what: &str, count: u64| count - self.base.get(what).copied().unwrap_or(0);
        self.totals().into_iter().map(|(what, count)| (what, since(what, count))).collect()
    }
}
