//! The changes that an app sends lead to what it desires, whatever happens in between and whatever the switch held
//! before.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use openflow::{Action, Flow, Group, Instruction, Match};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::pipeline::{self, cookie};
use xenflow_flow_app::{Answer, App, Desired, FlowKey, Rejection, RouterId};
use xenflow_proto::table::{
    Hop, HopFlags, Link, Neighbor, NeighborKey, NextHop, NextHopKind, Route, RouteKey, RouteKind,
    RouteTarget, TABLE_MAIN,
};
use xenflow_proto::{Change, Key, MacAddr, Object};

use super::answers::{rejected, view};
use super::model::{Model, same};
use super::world::{
    Dice, LIMIT, Plan, Tables, World, chain_of, object, plan, router_id, sane, vif_mac, world,
};
use super::{finds, law};

/// No two flows of one priority may meet in one packet and disagree.
fn disagreement(flows: &BTreeMap<FlowKey, Flow>) -> Option<String> {
    let mut groups: BTreeMap<(u8, u16), Vec<(&Flow, Vec<_>)>> = BTreeMap::new();
    for flow in flows.values() {
        let group = groups.entry((flow.table, flow.priority)).or_default();
        group.push((flow, flow.matching.fields().collect()));
    }
    for group in groups.values() {
        for (i, (a, a_fields)) in group.iter().enumerate() {
            for (b, b_fields) in &group[i + 1..] {
                let apart = a_fields.iter().any(|x| {
                    b_fields.iter().any(|y| x.field == y.field && (x.value ^ y.value) & x.mask & y.mask != 0)
                });
                if !apart && a.instructions != b.instructions {
                    return Some(format!("both may match: {a:?}, {b:?}"));
                }
            }
        }
    }
    None
}

fn declared(app: &App) -> Result<(), String> {
    let flows = Model::desired(app)?.flows;
    match flows.values().find_map(pipeline::violation).or_else(|| disagreement(&flows)) {
        Some(violation) => Err(violation),
        None => Ok(()),
    }
}

#[test]
fn flows_keep_to_the_declared_pipeline_and_never_disagree() {
    law(400, world(), |world| declared(&world.app()));
}

#[test]
fn a_violation_is_noticed() {
    let any = || Flow::new(pipeline::ROUTE, 1, 0, Match::any());
    assert!(pipeline::violation(&any().goto(pipeline::NEXT_HOP)).is_none());
    for table in [pipeline::EGRESS, pipeline::ADMISSION, pipeline::ROUTE, 9] {
        assert!(pipeline::violation(&any().goto(table)).is_some(), "{table}");
    }
    assert!(pipeline::violation(&any().apply([openflow::Action::output(1)])).is_some());
    let hidden = openflow::Action::Clone(Box::new([openflow::Action::resubmit(pipeline::EGRESS)]));
    assert!(pipeline::violation(&any().apply([hidden])).is_some());
    let (set, out, pop) = (Action::SetQueue(1), Action::output(1), Action::PopQueue);
    let in_table = |table, actions: &[&Action]| {
        let actions: Vec<Action> = actions.iter().copied().cloned().collect();
        pipeline::violation(&Flow::new(table, 1, 0, Match::any()).apply(actions))
    };
    assert_eq!(in_table(pipeline::EGRESS, &[&set, &out, &pop]), None);
    assert_eq!(in_table(pipeline::QUEUE, &[&set]), None);
    let ask = Action::resubmit(pipeline::QUEUE);
    for keeps in [[&set, &out], [&ask, &out], [&pop, &set]] {
        assert_eq!(in_table(pipeline::EGRESS, &keeps).as_deref(), Some("egress keeps a queue"));
    }
    assert!(in_table(pipeline::ADMISSION, &[&set, &out, &pop]).is_some());
    assert!(in_table(pipeline::L2, &[&set]).is_some());
    let flow =
        |value, goto| Flow::new(0, 1, 0, Match::builder().reg_masked(0, value, value).build()).goto(goto);
    let set = |flows: [Flow; 2]| flows.into_iter().map(|flow| (FlowKey::from(&flow), flow)).collect();
    assert!(disagreement(&set([flow(1, 1), flow(2, 1)])).is_none());
    assert!(disagreement(&set([flow(1, 1), flow(2, 2)])).is_some());
}

/// What can happen to an app and its switch.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The host's configuration or ports change.
    Topology(Dice),
    /// A router goes, comes back, and says what a sane guest says.
    Flap(u8),
    Begin(u8),
    /// It says what a sane guest says.
    Sane(u8),
    Upsert(u8, Dice),
    Remove(u8, Dice),
    End(u8),
    Mark(u8),
    /// The switch was away; that part of its flows (of 8) is gone.
    Reset(u8),
    BeginDump,
    EndDump,
    Batch(u8),
    /// The switch confirms all batches.
    Confirm,
}

fn event() -> impl Strategy<Value = Event> {
    let router = || 0..6u8;
    prop_oneof![
        3 => any::<Dice>().prop_map(Event::Topology),
        2 => router().prop_map(Event::Flap),
        2 => router().prop_map(Event::Begin),
        2 => router().prop_map(Event::Sane),
        12 => (router(), any::<Dice>()).prop_map(|(r, d)| Event::Upsert(r, d)),
        8 => (router(), any::<Dice>()).prop_map(|(r, d)| Event::Remove(r, d)),
        4 => router().prop_map(Event::End),
        2 => router().prop_map(Event::Mark),
        1 => (0..9u8).prop_map(Event::Reset),
        6 => Just(Event::BeginDump),
        6 => Just(Event::EndDump),
        12 => (1..60u8).prop_map(Event::Batch),
        6 => Just(Event::Confirm),
    ]
}

/// A guest as the test remembers it.
#[derive(Debug, Default)]
struct Guest {
    tables: Tables,
    synced: bool,
    /// Keys confirmed by the snapshot that is under way.
    confirmed: Option<BTreeSet<Key>>,
    /// Asked for and not reached.
    marks: Vec<u64>,
    /// Reached and not confirmed.
    reached: Vec<u64>,
    /// As far as its session is acknowledged.
    confirmed_to: u64,
    /// The first mark of its session.
    since: u64,
    /// What its session has told it.
    rejected: BTreeMap<RouteKey, Rejection>,
    /// The last mark before it changed a route.
    changed: BTreeMap<RouteKey, u64>,
}

impl Guest {
    fn apply(&mut self, change: &Change, mark: u64) -> bool {
        let key = change.key();
        let is_same = match change {
            Change::Upsert(object) => self.tables.get(&key) == Some(object),
            Change::Remove(key) => !self.tables.contains_key(key),
        };
        match change {
            Change::Upsert(object) => {
                if self.tables.len() >= LIMIT && !self.tables.contains_key(&key) {
                    return false;
                }
                self.tables.insert(key.clone(), object.clone());
                if let Some(confirmed) = &mut self.confirmed {
                    confirmed.insert(key);
                }
            }
            Change::Remove(key) => {
                self.tables.remove(key);
            }
        }
        if let (Key::Route(key), false) = (change.key(), is_same) {
            self.rejected.remove(&key);
            self.changed.insert(key, mark);
        }
        true
    }

    /// What it is told with a mark, unless that is of a session before this one. A route that it has changed since is
    /// another one.
    fn hear(&mut self, token: u64, answers: Vec<(RouteKey, Answer)>) {
        let answers = answers.into_iter().filter(|(key, _)| {
            self.tables.contains_key(&Key::Route(*key)) && self.changed.get(key).is_none_or(|at| *at < token)
        });
        self.rejected = view(answers.collect(), std::mem::take(&mut self.rejected));
    }

    fn end(&mut self, next: u64) {
        self.since = next;
        self.rejected.clear();
        if let Some(confirmed) = self.confirmed.take() {
            self.tables.retain(|key, _| confirmed.contains(key));
        }
        self.synced = true;
    }
}

/// An app with a model of its switch and of its guests.
pub(super) struct Run {
    plan: Plan,
    app: App,
    model: Model,
    guests: BTreeMap<u8, Guest>,
    dump: Option<Vec<Flow>>,
    token: u64,
    /// Broken on purpose: answers come with the mark before the one they belong to.
    hastes: bool,
}

impl Run {
    fn new(plan: Plan, model: Model) -> Self {
        Self::by(plan.empty(), plan, model)
    }

    pub(super) fn by(app: App, plan: Plan, model: Model) -> Self {
        let mut run = Self { plan, app, model, guests: BTreeMap::new(), dump: None, token: 0, hastes: false };
        run.set_topology();
        run
    }

    fn set_topology(&mut self) {
        let topology = self.plan.topology();
        let ids = topology.routers();
        self.app.set_topology(topology);
        let there = |r: &u8| ids.contains(&router_id(*r));
        self.guests.retain(|r, _| there(r));
        for r in (0..6).filter(there) {
            self.guests.entry(r).or_default();
        }
    }

    fn change(&mut self, r: u8, change: Change) -> Result<(), String> {
        let Some(guest) = self.guests.get_mut(&r) else { return Ok(()) };
        let fits = guest.apply(&change, self.token);
        match self.app.apply(router_id(r), change) {
            Ok(()) if fits => Ok(()),
            Err(_) if !fits => Ok(()),
            result => Err(format!("the limit of objects: {result:?}, but fits: {fits}")),
        }
    }

    pub(super) fn step(&mut self, event: Event) -> Result<(), String> {
        let count = self.plan.routers.len() as u8;
        match event {
            Event::Topology(dice) => {
                self.plan.mutate(dice);
                self.set_topology();
            }
            Event::Flap(r) if r < count => {
                self.plan.routers[usize::from(r)].0 = false;
                self.set_topology();
                self.plan.routers[usize::from(r)].0 = true;
                self.set_topology();
                self.step(Event::Sane(r))?;
                self.step(Event::End(r))?;
            }
            Event::Begin(r) => {
                self.app.begin_snapshot(router_id(r));
                if let Some(guest) = self.guests.get_mut(&r) {
                    guest.confirmed = Some(BTreeSet::new());
                    guest.since = self.token + 1;
                }
            }
            Event::Sane(r) if r < count => {
                for object in sane(&self.plan, r) {
                    self.change(r, Change::Upsert(object))?;
                }
            }
            Event::Upsert(r, dice) if r < count => {
                self.change(r, Change::Upsert(object(&self.plan, r, dice)))?
            }
            Event::Remove(r, dice) if r < count => {
                // Of what there is: a random key is seldom there.
                let keys = self.guests.get(&r).map(|guest| guest.tables.keys().cloned().collect::<Vec<_>>());
                let keys = keys.unwrap_or_default();
                let at = usize::from(u16::from_be_bytes([dice[0], dice[1]])).checked_rem(keys.len());
                if let Some(key) = at.and_then(|at| keys.get(at)) {
                    self.change(r, Change::Remove(key.clone()))?;
                }
            }
            Event::Flap(_) | Event::Sane(_) | Event::Upsert(..) | Event::Remove(..) => {}
            Event::End(r) => {
                self.app.end_snapshot(router_id(r));
                if let Some(guest) = self.guests.get_mut(&r) {
                    guest.end(self.token + 1);
                }
                // It has a sequence number, as every change.
                self.step(Event::Mark(r))?;
            }
            Event::Mark(r) => {
                self.token += 1;
                self.app.mark(router_id(r), self.token);
                if let Some(guest) = self.guests.get_mut(&r) {
                    guest.marks.push(self.token);
                }
            }
            Event::Reset(eighths) => {
                self.app.switch_reset();
                self.dump = None;
                // What was not confirmed is asked for again.
                for (r, guest) in &mut self.guests {
                    for token in std::mem::take(&mut guest.reached) {
                        self.app.mark(router_id(*r), token);
                        guest.marks.push(token);
                    }
                }
                let mut n = 0u8;
                self.model.flows.retain(|_, _| {
                    n = n.wrapping_add(5) % 8;
                    n >= eighths
                });
                // It counts anew, and keeps the groups of the flows that are left.
                self.model.drop_groups(eighths);
            }
            Event::BeginDump => {
                if let Some(dump) = self.app.begin_dump() {
                    if dump.groups_and_meters {
                        self.model.tell_groups_and_meters(&mut self.app);
                    }
                    self.dump = Some(self.model.dump(&dump.flows));
                }
            }
            Event::EndDump => {
                if let Some(flows) = self.dump.take() {
                    flows.into_iter().for_each(|flow| self.app.dumped(flow));
                    self.app.dump_end();
                }
            }
            Event::Confirm => self.confirm(),
            Event::Batch(max) => self.batch(max.into())?,
        }
        Ok(())
    }

    /// The switch has confirmed what was sent. Marks of one session are told together.
    fn confirm(&mut self) {
        for (r, guest) in &mut self.guests {
            let reached = std::mem::take(&mut guest.reached);
            let reached = reached.into_iter().filter(|token| *token >= guest.since).collect::<Vec<_>>();
            let mut answers = BTreeMap::new();
            for token in &reached {
                answers.extend(self.app.take_answers(router_id(*r), *token));
            }
            if let Some(last) = reached.into_iter().max() {
                guest.confirmed_to = guest.confirmed_to.max(last);
                guest.hear(guest.confirmed_to - u64::from(self.hastes), answers.into_iter().collect());
            }
        }
    }

    fn batch(&mut self, max: usize) -> Result<(), String> {
        let batch = self.app.next_batch(max);
        if batch.changes.len() > max {
            return Err(format!("{} of {max} changes", batch.changes.len()));
        }
        batch.meters.into_iter().for_each(|change| self.model.change_meter(change));
        batch.changes.into_iter().for_each(|change| self.model.change(change));
        for (id, token) in batch.reached {
            let guest = self.guests.get_mut(&(id.0 as u8 - 1)).ok_or("a mark of nobody")?;
            if guest.marks.is_empty() || guest.marks.remove(0) != token {
                return Err(format!("mark {token} of router {id}, but {:?}", guest.marks));
            }
            guest.reached.push(token);
        }
        Ok(())
    }

    /// Lets everything that is under way come to its end; a router goes and comes back in the midst of a dump.
    pub(super) fn finish(&mut self, (router, at): (u8, u32)) -> Result<(), String> {
        self.step(Event::EndDump)?;
        for turn in 0..100_000 {
            self.step(Event::BeginDump)?;
            if turn == at {
                self.step(Event::Flap(router))?;
            }
            self.step(Event::EndDump)?;
            self.batch(25)?;
            if self.app.is_idle() && turn > at {
                for r in 0..6 {
                    // What was told with a mark of the session before comes with the next.
                    let is_midway = self.guests.get(&r).is_some_and(|guest| guest.confirmed.is_some());
                    if is_midway || self.app.wants_mark(router_id(r)) {
                        self.step(Event::Mark(r))?;
                    }
                }
                self.batch(25)?;
                self.confirm();
                return Ok(());
            }
        }
        Err("it does not settle".to_owned())
    }

    /// The app, the switch, and an app that knows only the end.
    pub(super) fn end(&self) -> (&App, &Model, App) {
        self.end_of(self.plan.empty())
    }

    /// The same, and what knows only the end is this app.
    pub(super) fn end_of(&self, app: App) -> (&App, &Model, App) {
        let guests = self.guests.iter().filter(|(_, guest)| guest.synced);
        let tables = guests.map(|(r, guest)| (*r, guest.tables.clone())).collect();
        (&self.app, &self.model, World { plan: self.plan.clone(), tables }.app_of(app))
    }

    /// What the guests of these routers were told last.
    pub(super) fn told(&self, router: RouterId) -> Option<&BTreeMap<RouteKey, Rejection>> {
        let mut guests = self.guests.iter().filter(|(r, guest)| router_id(**r) == router && guest.synced);
        guests.next().map(|(_, guest)| &guest.rejected)
    }

    /// The end is what the app desires, and what an app desires that knows only the end.
    fn verify(&mut self, flap: (u8, u32)) -> Result<usize, String> {
        self.finish(flap)?;
        let want = Model::desired(&self.app)?;
        let (_, _, mut fresh) = self.end();
        same("desired, against a fresh app's", &want, &Model::desired(&fresh)?)?;
        Model::default().settle(&mut fresh, 1000, |_| {});
        for (r, guest) in self.guests.iter().filter(|(_, guest)| guest.synced) {
            let id = router_id(*r);
            let right = rejected(&fresh, id);
            if rejected(&self.app, id) != right || guest.rejected != right {
                return Err(format!(
                    "rejected of router {id}: {right:?}, but {:?}, and told {:?}",
                    rejected(&self.app, id),
                    guest.rejected
                ));
            }
        }
        same("installed", &self.model, &want)?;
        if let Some((r, guest)) =
            self.guests.iter().find(|(_, guest)| guest.synced && !guest.marks.is_empty())
        {
            return Err(format!("marks {:?} of router {r} were not reached", guest.marks));
        }
        Ok(want.flows.values().filter(|flow| cookie::router_of(flow.cookie).is_some()).count())
    }
}

pub(super) type History = (Plan, Vec<Event>, (u8, u32));

pub(super) fn histories() -> impl Strategy<Value = History> {
    (plan(), vec(event(), 0..120), (0..6u8, 0..30u32))
}

fn replay(history: History, model: Model) -> Result<usize, String> {
    play(history, model, false)
}

fn play((plan, events, flap): History, model: Model, hastes: bool) -> Result<usize, String> {
    let mut run = Run { hastes, ..Run::new(plan, model) };
    for event in events {
        run.step(event)?;
    }
    run.verify(flap)
}

#[test]
fn step_by_step_is_all_at_once() {
    let flows = Cell::new(0);
    law(3000, histories(), |history| {
        flows.set(flows.get() + replay(history, Model::default())?);
        Ok(())
    });
    println!("{} router flows", flows.get());
    assert!(flows.get() > 30_000, "{} router flows", flows.get());
}

#[test]
fn an_ignored_removal_is_noticed() {
    let deaf = || Model { ignores_removals: true, ..Model::default() };
    finds(20, histories(), |history| replay(history, deaf()).map(|_| ()));
}

#[test]
fn an_answer_to_what_a_route_was_is_noticed() {
    finds(200, histories(), |history| play(history, Model::default(), true).map(|_| ()));
}

/// What a switch may hold before: flows of this life altered or gone, of former routers, of others.
fn remains(world: &World, former: &World, dice: &[Dice]) -> Model {
    let mut model = Model::default();
    let alter = |mut flow: Flow, dice: Dice| {
        match dice[1] % 4 {
            0 => return None,
            1 => flow.instructions = vec![Instruction::GotoTable(pipeline::EGRESS)],
            2 => flow.idle_timeout = 7,
            _ => {}
        }
        Some(flow)
    };
    let app = world.app();
    let (flows, groups) = former_life(former);
    model.groups.extend(groups);
    flows.into_iter().for_each(|flow| model.insert(flow));
    let Desired { flows, groups, meters } = app.desired();
    model.groups.extend(groups.into_iter().map(|group| (group.id, group)));
    model.meters.extend(meters.into_iter().map(|meter| (meter.id, meter)));
    for (flow, dice) in flows.into_iter().zip(dice.iter().cycle()) {
        // Most of them are left alone.
        if let Some(flow) = if dice[0] % 4 == 0 { alter(flow, *dice) } else { Some(flow) } {
            model.insert(flow);
        }
    }
    for [what, a, b, c, ..] in dice {
        let cookie = match what % 4 {
            0 => cookie::TOPOLOGY,
            1 => cookie::router(RouterId(u16::from(a % 6) + 1)),
            _ => u64::from(*a),
        };
        let matching = Match::builder().reg(12, u32::from(*b)).build();
        // A router that is configured no more is found by its flows in these tables.
        let table = if what % 4 == 1 { pipeline::ROUTER + c % 2 } else { c % 9 };
        model.insert(Flow::new(table, 1000 + u16::from(*c), cookie, matching).goto(9));
    }
    model
}

/// Of routers that are configured no more.
fn former_life(former: &World) -> (Vec<Flow>, BTreeMap<u32, Group>) {
    const MORE: u16 = 1000;
    let Desired { flows, groups, meters: _ } = former.app().desired();
    let renumber = |id: u32| id + (u32::from(MORE) << 16);
    let groups =
        groups.into_iter().map(|group| (renumber(group.id), Group { id: renumber(group.id), ..group }));
    let owned = |flow: Flow| Some((cookie::router_of(flow.cookie)?, flow));
    let flows = flows.into_iter().filter_map(owned).map(|(id, mut flow)| {
        let id = RouterId(id.0 + MORE);
        flow.cookie = cookie::router(id);
        flow.matching = flow.matching.to_builder().reg(13, u32::from(id.0)).build();
        for instruction in &mut flow.instructions {
            if let Instruction::ApplyActions(actions) = instruction {
                actions.iter_mut().for_each(|action| {
                    if let Action::Group(id) = action {
                        *id = renumber(*id);
                    }
                });
            }
        }
        flow
    });
    (flows.collect(), groups.collect())
}

fn is_ours(flow: &Flow) -> bool {
    flow.cookie >> 48 == cookie::MAGIC >> 48
}

fn reconciles(world: &World, mut model: Model, max: usize) -> Result<usize, String> {
    let mut app = world.app();
    let want = Model::desired(&app)?;
    let others: Vec<Flow> = model.flows.values().filter(|flow| !is_ours(flow)).cloned().collect();
    // A router whose guest has said nothing yet keeps what it had.
    let silent = |id: RouterId| {
        world.plan.topology().routers().contains(&id) && !world.tables.contains_key(&(id.0 as u8 - 1))
    };
    let kept = model.flows.values().filter(|f| cookie::router_of(f.cookie).is_some_and(silent)).cloned();
    let mut end = want;
    let of_silent = |id: &u32| silent(RouterId((id >> 16) as u16));
    end.groups.extend(model.groups.iter().filter(|(id, _)| of_silent(id)).map(|(id, g)| (*id, g.clone())));
    kept.chain(others).for_each(|flow| end.insert(flow));
    let changes = model.settle(&mut app, max, |_| {});
    same("installed", &model, &end)?;
    Ok(changes)
}

#[test]
fn a_dump_leads_to_what_is_desired() {
    let total = Cell::new(0);
    law(400, (world(), world(), vec(any::<Dice>(), 1..40), 1..300usize), |(world, former, dice, max)| {
        let changes = reconciles(&world, remains(&world, &former, &dice), max)?;
        total.set(total.get() + changes);
        Ok(())
    });
    assert!(total.get() > 4000, "{} changes", total.get());
}

#[test]
fn adoption_changes_nothing() {
    law(200, world(), |world| {
        let mut model = Model::desired(&world.app())?;
        let changes = model.settle(&mut world.app(), 100, |_| {});
        if changes == 0 { Ok(()) } else { Err(format!("{changes} changes")) }
    });
}

#[test]
fn a_reconcile_that_does_not_delete_is_noticed() {
    finds(5, (world(), world(), vec(any::<Dice>(), 1..40)), |(world, former, dice)| {
        let model = Model { ignores_removals: true, ..remains(&world, &former, &dice) };
        reconciles(&world, model, 100).map(|_| ())
    });
}

/// What one word of a guest changes is looked for a little at a time, and all of it stands before the mark behind it.
#[test]
fn a_word_about_a_whole_table_is_many_small_steps() {
    let id = router_id(0);
    let plain = App::new(LIMIT).with_aggregation(false);
    let mut app = chain_of(plain, 1, super::world::Family::V4, super::world::Family::V4);
    let mut model = Model::default();
    let hop = |last: Option<u8>| {
        let gateway = last.map(|last| [10, 0, 0, last].into());
        Hop { gateway, oif: Some(1), weight: 1, flags: HopFlags(0), encap: false }
    };
    let route = |dst: String, target| {
        let key = RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), tos: 0, metric: 0 };
        Object::Route(Route { key, kind: RouteKind::Unicast, protocol: 4, scope: 0, target, mtu: None })
    };
    let link = |ifindex, up| {
        Object::Link(Link {
            ifindex,
            name: format!("eth{ifindex}"),
            mac: (ifindex == 1).then(|| vif_mac(0, 0)),
            mtu: 1500,
            up,
            running: up,
            kind: String::new(),
            master: None,
            vrf_table: None,
            ipv6_mtu: None,
        })
    };
    let next_hop = |last| Object::NextHop(NextHop { id: 1, kind: NextHopKind::Single(hop(Some(last))) });
    let of_object = (0..40).map(|n| route(format!("172.16.{n}.0/24"), RouteTarget::NextHop(1)));
    let of_gateway =
        (0..40).map(|n| route(format!("172.17.{n}.0/24"), RouteTarget::Hops(vec![hop(Some(2))])));
    let neighbors = (10..40).map(|last| {
        let key = NeighborKey { ifindex: 1, addr: [10, 0, 0, last].into() };
        Object::Neighbor(Neighbor { key, mac: MacAddr([2, 0, 0, 0, 0, last]) })
    });
    let tables = [link(1, true), next_hop(2)].into_iter().chain(of_object).chain(of_gateway).chain(neighbors);
    tables.for_each(|object| app.apply(id, Change::Upsert(object)).unwrap());
    model.settle(&mut app, 1000, |_| {});
    let on_link = route("0.0.0.0/0".into(), RouteTarget::Hops(vec![hop(None)]));
    for (token, (object, least)) in (1..).zip([
        (link(70, false), 0),
        (link(1, false), 80),
        (link(1, true), 80),
        (next_hop(10), 40),
        (on_link, 30),
    ]) {
        app.apply(id, Change::Upsert(object.clone())).unwrap();
        app.mark(id, token);
        let (mut batches, mut changes) = (0, 0);
        let reached = loop {
            let batch = app.next_batch(4);
            assert!(batch.changes.len() <= 1 && batch.meters.is_empty(), "{batch:?}");
            assert!(batch.more || !batch.changes.is_empty() || !batch.reached.is_empty(), "it sleeps");
            batches += 1;
            changes += batch.changes.len();
            batch.changes.into_iter().for_each(|change| model.change(change));
            if !batch.reached.is_empty() {
                break batch.reached;
            }
        };
        assert_eq!((reached, app.is_idle()), (vec![(id, token)], true), "{object:?}");
        assert!(
            changes >= least && (least > 0 || changes == 0) && batches > 10,
            "{object:?}: {changes}, {batches}"
        );
        same("in the end", &model, &Model::desired(&app).unwrap()).unwrap();
    }
}
