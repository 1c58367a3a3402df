//! Random events against a switch that is a map: whatever was lost, delayed or refused on the way, it ends with what
//! is desired, and every guest with the acknowledgement of the last it said.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::FlowKey;
use xenflow_flow_app::pipeline::{LEARNED, cookie};

use super::*;

const ROUTERS: [u8; 3] = [1, 2, 3];

#[derive(Debug, Clone)]
enum Step {
    /// The guest of a router connects (anew), in one of its boots.
    Open(u8, u8),
    /// It goes.
    Close(u8),
    /// It says what comes next: a snapshot with or without these, a resumption, or changes.
    Say(u8, u8, bool),
    /// A session takes its turn, and what was told to guests is out.
    Turn,
    /// The switch does one thing it was told.
    Work,
    /// It refuses the next bundle because of one of its flows, or of none.
    Refuse(Option<u8>),
    /// It refuses the next change of a meter, because it is not as it was or for good.
    RefuseMeter(bool),
    /// A pause is over.
    Wait,
    /// A rest is over.
    Rest,
    /// One of its answers arrives.
    Deliver,
    Down,
    Up,
    /// These routers are configured.
    Desire([bool; 3]),
    /// These are plugged in.
    Plug([bool; 3]),
}

fn step() -> impl Strategy<Value = Step> {
    let router = prop::sample::select(&ROUTERS[..]);
    prop_oneof![
        2 => (router.clone(), prop::sample::select(&[1, 1, 1, 2_u8][..])).prop_map(|(r, boot)| Step::Open(r, boot)),
        1 => router.clone().prop_map(Step::Close),
        12 => (router, 0..6u8, any::<bool>()).prop_map(|(r, third, more)| Step::Say(r, third, more)),
        6 => Just(Step::Turn),
        8 => Just(Step::Work),
        1 => prop::option::of(0..4u8).prop_map(Step::Refuse),
        1 => any::<bool>().prop_map(Step::RefuseMeter),
        2 => Just(Step::Wait),
        2 => Just(Step::Rest),
        8 => Just(Step::Deliver),
        1 => Just(Step::Down),
        2 => Just(Step::Up),
        1 => prop::array::uniform3(prop::bool::weighted(0.8)).prop_map(Step::Desire),
        1 => prop::array::uniform3(prop::bool::weighted(0.8)).prop_map(Step::Plug),
    ]
}

#[derive(Debug, Default)]
struct Guest {
    router: u8,
    said: u64,
    acked: u64,
    ended: bool,
    live: bool,
    /// It was told what is held.
    held: bool,
    /// Its last message has not been taken in.
    waits: bool,
    /// Messages in which it last said something else of a route.
    changed: BTreeMap<u8, u64>,
    /// Routes that it was told to keep, as they are now.
    rejected: BTreeSet<u8>,
    /// The same, if it takes no notice of numbers and of what it says itself.
    believed: BTreeSet<u8>,
    /// Those that its snapshot has named so far.
    named: BTreeSet<u8>,
    resumes: bool,
}

struct World {
    core: Core,
    flows: BTreeMap<FlowKey, Flow>,
    groups: BTreeMap<u32, Group>,
    meters: BTreeMap<u32, Meter>,
    orders: VecDeque<Effect>,
    answers: VecDeque<Event>,
    up: bool,
    refuse: Option<Option<u8>>,
    refuse_meter: Option<bool>,
    has_refused_meter: bool,
    waits: bool,
    rests: bool,
    guests: BTreeMap<u64, Guest>,
    /// What routers' tables hold.
    tables: BTreeMap<u8, BTreeSet<u8>>,
    /// Whose answers are on their way.
    telling: BTreeSet<SessionId>,
}

/// Of r2, three routes are forwarded.
fn wanted(routers: &[u8]) -> Desired {
    let mut wanted = desired(routers);
    if let Some(router) = wanted.routers.get_mut(&name("r2")) {
        router.policy.max_routes = Some(3);
    }
    wanted
}

fn third(key: &xenflow_proto::Key) -> u8 {
    let xenflow_proto::Key::Route(RouteKey { dst: ipnet::IpNet::V4(dst), .. }) = key else {
        panic!("{key:?}")
    };
    dst.addr().octets()[2]
}

fn chosen(which: [bool; 3]) -> Vec<u8> {
    ROUTERS.into_iter().zip(which).filter_map(|(router, there)| there.then_some(router)).collect()
}

impl World {
    fn new() -> Self {
        let mut core = core(100);
        core.slice = 2;
        Self {
            core,
            flows: BTreeMap::new(),
            groups: BTreeMap::new(),
            meters: BTreeMap::new(),
            orders: VecDeque::new(),
            answers: VecDeque::new(),
            up: false,
            refuse: None,
            refuse_meter: None,
            has_refused_meter: false,
            waits: false,
            rests: false,
            guests: BTreeMap::new(),
            tables: BTreeMap::new(),
            telling: BTreeSet::new(),
        }
    }

    fn handle(&mut self, event: Event) {
        for effect in self.core.handle(event) {
            match effect {
                Effect::Send(..) | Effect::Dump(_) => {
                    assert!(self.up, "an order without a switch");
                    self.orders.push_back(effect);
                }
                Effect::Wait(_) => self.waits = true,
                Effect::Rest(_) => {
                    let is_lone = self.core.app.topology().routers().len() < 2;
                    assert!(!is_lone, "a lone router rests");
                    assert!(!std::mem::replace(&mut self.rests, true), "it rests already");
                }
                Effect::Refuse(id, ..) => self.guest(id).ended = true,
                Effect::Tell(id, HostMessage::Ack { seq, rejected, accepted }) => {
                    let has_answers = !rejected.is_empty() || !accepted.is_empty();
                    let guest = self.guest(id);
                    assert!(!guest.ended, "an acknowledgement after the end");
                    assert!(guest.acked <= seq.0 && seq.0 <= guest.said, "{seq} acknowledged: {guest:?}");
                    assert!(guest.acked < seq.0 || has_answers, "{seq} acknowledged in vain: {guest:?}");
                    guest.acked = seq.0;
                    let is_of_now =
                        |guest: &Guest, third| guest.changed.get(&third).is_none_or(|at| *at <= seq.0);
                    for third in rejected.iter().map(|(key, _)| third(key)) {
                        guest.believed.insert(third);
                        if is_of_now(guest, third) {
                            guest.rejected.insert(third);
                        }
                    }
                    for third in accepted.iter().map(third) {
                        guest.rejected.remove(&third);
                        guest.believed.remove(&third);
                    }
                    if has_answers {
                        assert!(self.telling.insert(id), "answers while others are on their way");
                    }
                }
                Effect::Tell(id, HostMessage::Welcome(welcome)) => {
                    self.guest(id).held = welcome.held.is_some()
                }
                Effect::Taken(id) => {
                    let guest = self.guest(id);
                    assert!(guest.waits && !guest.ended, "taken without a message: {guest:?}");
                    guest.waits = false;
                }
                Effect::Prove(proof) => self.answers.push_back(Event::Proven(proof, true)),
                Effect::Tell(..) | Effect::Nudge(..) | Effect::Peer(_) => {}
            }
        }
    }

    fn guest(&mut self, id: SessionId) -> &mut Guest {
        self.guests.get_mut(&id.0).unwrap()
    }

    fn session_of(&self, router: u8) -> Option<u64> {
        let mut open = self.guests.iter().filter(|(_, guest)| guest.router == router && !guest.ended);
        open.next().map(|(id, _)| *id)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open(router, boot) => {
                let id = self.guests.len() as u64 + 1;
                self.guests.insert(id, Guest { router, ..Guest::default() });
                let text = format!("r{router}");
                let identity = Identity::Router(name(&text));
                let hello = Hello { boot_id: [boot; 16], ..hello(&text) };
                self.handle(Event::Opened(SessionId(id), identity, peer(router), hello));
            }
            Step::Close(router) => {
                if let Some(id) = self.session_of(router) {
                    self.guest(SessionId(id)).ended = true;
                    self.handle(Event::Closed(SessionId(id)));
                }
            }
            Step::Say(router, third, more) => self.say(router, third, more),
            Step::Turn => {
                if self.core.is_behind() {
                    self.handle(Event::Turn);
                }
                if let Some(id) = self.telling.pop_first() {
                    self.handle(Event::Told(id));
                }
            }
            Step::Work => self.work(),
            Step::Refuse(culprit) => self.refuse = Some(culprit),
            Step::RefuseMeter(is_drift) => self.refuse_meter = Some(is_drift),
            Step::Wait => {
                if std::mem::take(&mut self.waits) {
                    self.handle(Event::Waited);
                }
            }
            Step::Rest => {
                if std::mem::take(&mut self.rests) {
                    self.handle(Event::Rested);
                }
            }
            Step::Deliver => {
                if let Some(event) = self.answers.pop_front() {
                    self.handle(event);
                }
            }
            Step::Down => self.down(),
            Step::Up => self.up(),
            Step::Desire(which) => {
                let there = chosen(which);
                self.tables.retain(|router, _| there.contains(router));
                self.handle(Event::Desired(wanted(&there)));
            }
            Step::Plug(which) => self.handle(Event::Ports(ports(&chosen(which)))),
        }
    }

    fn say(&mut self, router: u8, third: u8, more: bool) {
        let Some(id) = self.session_of(router) else { return };
        let guest = self.guest(SessionId(id));
        if guest.waits || guest.said - guest.acked >= u64::from(WINDOW) {
            return;
        }
        guest.said += 1;
        guest.waits = true;
        let seq = Seq(guest.said);
        let (message, said) = if guest.said == 1 && guest.held && more {
            guest.resumes = true;
            (GuestMessage::Resume(seq), vec![])
        } else if guest.said == 1 {
            (GuestMessage::SnapshotBegin(seq), vec![])
        } else if !guest.live && !more {
            guest.live = true;
            (GuestMessage::SnapshotEnd(seq), vec![])
        } else if more {
            // Up to three turns.
            let thirds = third..third + 1 + 2 * (third % 3);
            (changes(seq.0, thirds.clone()), thirds.map(|third| (third, true)).collect())
        } else {
            let changes = vec![Change::Remove(route(third).key())];
            (GuestMessage::Changes { seq, changes }, vec![(third, false)])
        };
        let table = self.tables.entry(router).or_default();
        let guest = self.guests.get_mut(&id).unwrap();
        for (third, is_there) in said {
            let is_other = if is_there { table.insert(third) } else { table.remove(&third) };
            if is_there {
                guest.named.insert(third);
            } else {
                guest.named.remove(&third);
            }
            if is_other {
                guest.changed.insert(third, seq.0);
                guest.rejected.remove(&third);
            }
        }
        if matches!(message, GuestMessage::SnapshotEnd(_)) && !guest.resumes {
            table.retain(|third| guest.named.contains(third));
        }
        self.handle(Event::Said(SessionId(id), message));
    }

    fn down(&mut self) {
        if self.up {
            self.up = false;
            self.orders.clear();
            self.answers.clear();
            self.handle(Event::SwitchDown);
        }
    }

    fn up(&mut self) {
        if !self.up {
            self.up = true;
            self.handle(SWITCH_UP());
        }
    }

    /// One order, in the order they came; its answer arrives later.
    fn work(&mut self) {
        match self.orders.pop_front() {
            Some(Effect::Send(id, meters, changes)) => {
                for change in meters {
                    if let Some(is_drift) = self.refuse_meter.take() {
                        self.has_refused_meter = true;
                        let error = MeterError { is_drift, reason: "no".to_owned() };
                        self.answers.push_back(Event::MeterRefused(change, error));
                        continue;
                    }
                    let there = self.meters.contains_key(&meter_id(&change));
                    match &change {
                        MeterChange::Add(it) if !there => drop(self.meters.insert(it.id, it.clone())),
                        MeterChange::Modify(it) if there => drop(self.meters.insert(it.id, it.clone())),
                        MeterChange::Remove(id) if there => drop(self.meters.remove(id)),
                        // Only after another change was refused, while nobody knew of that yet.
                        MeterChange::Add(_) | MeterChange::Modify(_) | MeterChange::Remove(_) => {
                            assert!(self.has_refused_meter, "{change:?}");
                            let error = MeterError { is_drift: true, reason: "not so".to_owned() };
                            self.answers.push_back(Event::MeterRefused(change, error));
                        }
                    }
                }
                if !changes.is_empty()
                    && let Some(culprit) = self.refuse.take()
                {
                    let culprit =
                        culprit.map(|at| (usize::from(at) % changes.len(), ErrorCode::BAD_OUT_PORT));
                    self.answers.push_back(Event::Refused(id, culprit.into_iter().collect()));
                    return;
                }
                let lacks = |action: &openflow::Action| matches!(action, openflow::Action::Meter(id) if !self.meters.contains_key(id));
                let lacking = |it: &openflow::Instruction| matches!(it, openflow::Instruction::ApplyActions(all) if all.iter().any(lacks));
                let bad = changes.iter().position(|change| {
                    matches!(change, FlowChange::Upsert(flow) if flow.instructions.iter().any(lacking))
                });
                if let Some(at) = bad {
                    self.answers.push_back(Event::Refused(id, vec![(at, ErrorCode::BAD_METER)]));
                    return;
                }
                for change in changes {
                    match change {
                        FlowChange::Upsert(flow) => {
                            self.flows.insert(FlowKey::from(&flow), flow);
                        }
                        FlowChange::Remove(key) => {
                            self.flows.remove(&key);
                        }
                        FlowChange::RemoveRouter(id) => self
                            .flows
                            .retain(|_, flow| flow.cookie & cookie::OWNER_MASK != cookie::router(id)),
                        FlowChange::ForgetLearned(_) => {
                            self.flows.retain(|key, _| key.table != LEARNED);
                        }
                        FlowChange::UpsertGroup(group) => {
                            self.groups.insert(group.id, group);
                        }
                        FlowChange::RemoveGroup(id) => {
                            self.groups.remove(&id);
                        }
                    }
                }
                self.answers.push_back(Event::Confirmed(id, TOOK));
            }
            Some(Effect::Dump(dump)) => {
                if dump.groups_and_meters {
                    let groups = self.groups.values().cloned().collect();
                    self.answers.push_back(Event::DumpedGroups(groups));
                    let meters = self.meters.values().cloned().collect();
                    self.answers.push_back(Event::DumpedMeters(meters));
                }
                for filter in dump.flows {
                    let covers = |flow: &&Flow| {
                        flow.cookie & filter.cookie_mask == filter.cookie & filter.cookie_mask
                            && [flow.table, openflow::flow::ALL_TABLES].contains(&filter.table)
                    };
                    let flows = self.flows.values().filter(covers).cloned().collect();
                    self.answers.push_back(Event::Dumped(flows));
                }
                self.answers.push_back(Event::DumpEnd);
            }
            Some(
                Effect::Tell(..)
                | Effect::Refuse(..)
                | Effect::Wait(_)
                | Effect::Rest(_)
                | Effect::Taken(_)
                | Effect::Prove(_)
                | Effect::Peer(_)
                | Effect::Nudge(..),
            )
            | None => {}
        }
    }

    /// All databases have spoken, the switch takes everything, and all of it is done.
    fn settle(&mut self) {
        self.down();
        (self.refuse, self.refuse_meter) = (None, None);
        self.handle(Event::Desired(wanted(&ROUTERS)));
        self.handle(Event::Ports(ports(&ROUTERS)));
        self.up();
        for _ in 0..10_000 {
            if self.orders.is_empty()
                && self.answers.is_empty()
                && !self.waits
                && !self.rests
                && !self.core.is_behind()
                && self.telling.is_empty()
            {
                return;
            }
            self.step(Step::Turn);
            self.step(Step::Wait);
            self.step(Step::Rest);
            self.step(Step::Work);
            self.step(Step::Deliver);
        }
        panic!("the core never comes to rest");
    }
}

proptest! {
    #[test]
    fn the_switch_ends_with_what_is_desired(steps in vec(step(), 0..150)) {
        let mut world = World::new();
        world.step(Step::Desire([true; 3]));
        world.step(Step::Plug([true; 3]));
        world.step(Step::Up);
        for step in steps {
            world.step(step);
        }
        world.settle();
        let mut desired: BTreeMap<FlowKey, Flow> =
            world.core.app.desired().flows.into_iter().map(|flow| (FlowKey::from(&flow), flow)).collect();
        // A router whose guest has not spoken in this life of the daemon keeps what it has.
        let silent = |flow: &Flow| {
            let router = cookie::router_of(flow.cookie);
            router.is_some_and(|id| world.core.app.router(id).is_some_and(|status| !status.synced))
        };
        let kept = world.flows.values().filter(|flow| silent(flow));
        desired.extend(kept.map(|flow| (FlowKey::from(flow), flow.clone())));
        prop_assert_eq!(&world.flows, &desired);
        for guest in world.guests.values().filter(|guest| !guest.ended) {
            prop_assert_eq!(guest.acked, guest.said, "{:?}", guest);
            if guest.live {
                let rejected = world.core.app.rejected(RouterId(guest.router.into()));
                let rejected: BTreeSet<u8> = rejected.map(|(key, _)| third(&xenflow_proto::Key::Route(key))).collect();
                prop_assert_eq!(&guest.rejected, &rejected, "{:?}", guest);
                prop_assert_eq!(&guest.believed, &rejected, "{:?}", guest);
            }
        }
        prop_assert!(world.core.marks.is_empty(), "marks are left over: {:?}", world.core.marks);
    }
}
