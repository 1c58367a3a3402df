//! A switch as far as flow changes go: a map. And the loop that brings it in step with an app.

use std::collections::BTreeMap;

use openflow::flow::ALL_TABLES;
use openflow::{Action, ErrorCode, Flow, FlowFilter, Group, Instruction, Meter};
use xenflow_flow_app::pipeline::{self, LEARNED, cookie};
use xenflow_flow_app::sim::Switch;
use xenflow_flow_app::{App, Desired, FlowChange, FlowKey, MeterChange, RouterId};

/// What a switch holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    pub flows: BTreeMap<FlowKey, Flow>,
    pub groups: BTreeMap<u32, Group>,
    pub meters: BTreeMap<u32, Meter>,
    /// Changes that a switch refuses, or that it would take more with than was meant.
    pub faults: Vec<String>,
    /// Broken on purpose: it keeps what it should delete.
    pub ignores_removals: bool,
    /// What it refuses of a router.
    pub dislikes: Option<(RouterId, Dislike)>,
    /// Broken on purpose: what is refused is left out, and nothing else.
    pub leaves_out: bool,
    /// So many bundles were refused.
    pub refusals: usize,
    /// Refused changes that nothing stands in for: they are sent no more.
    pub left_out: Vec<FlowChange>,
}

/// What a switch refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dislike {
    /// More flows of prefixes than that.
    MoreThan(usize),
    /// Flows of prefixes that do anything else than to punt.
    Forwarding,
    /// Flows of that table.
    Table(u8),
    /// Groups.
    Groups,
}

impl Model {
    /// What an app desires; two flows with one key are an error.
    pub fn desired(app: &App) -> Result<Self, String> {
        let Desired { flows, groups, meters } = app.desired();
        let mut model = Self {
            groups: groups.into_iter().map(|group| (group.id, group)).collect(),
            meters: meters.into_iter().map(|meter| (meter.id, meter)).collect(),
            ..Self::default()
        };
        for flow in flows {
            if let Some(old) = model.flows.insert(FlowKey::from(&flow), flow.clone()) {
                return Err(format!("two flows with one key:\n{old:?}\n{flow:?}"));
            }
            if let Some(group) = groups_of(&flow).into_iter().find(|id| !model.groups.contains_key(id)) {
                return Err(format!("no group {group} for {flow:?}"));
            }
        }
        Ok(model)
    }

    /// As a switch takes it: to a group that is not there no flow can send.
    pub fn insert(&mut self, flow: Flow) {
        if let Some(id) = groups_of(&flow).into_iter().find(|id| !self.groups.contains_key(id)) {
            self.faults.push(format!("no group {id} for {flow:?}"));
            return;
        }
        self.flows.insert(FlowKey::from(&flow), flow);
    }

    /// Its flows with groups by their content instead of their numbers, which history decides.
    fn by_content(&self) -> (BTreeMap<FlowKey, Flow>, Vec<Group>) {
        let mut contents: Vec<Group> =
            self.groups.values().map(|group| Group { id: 0, ..group.clone() }).collect();
        contents.sort_unstable();
        let number = |id: &u32| {
            let group = Group { id: 0, ..self.groups[id].clone() };
            contents.binary_search(&group).unwrap() as u32
        };
        let flows = self.flows.iter().map(|(key, flow)| {
            let mut flow = flow.clone();
            for instruction in &mut flow.instructions {
                if let Instruction::ApplyActions(actions) = instruction {
                    for action in actions {
                        if let Action::Group(id) = action {
                            *id = number(id);
                        }
                    }
                }
            }
            (key.clone(), flow)
        });
        (flows.collect(), contents)
    }

    pub fn change(&mut self, change: FlowChange) {
        let mut remove = |table: u8, cookie: u64, mask: u64| {
            let hit = |f: &Flow| (table == ALL_TABLES || f.table == table) && f.cookie & mask == cookie;
            self.flows.retain(|_, flow| !hit(flow));
        };
        match change {
            FlowChange::Upsert(flow) => self.insert(flow),
            FlowChange::UpsertGroup(group) => {
                self.groups.insert(group.id, group);
            }
            _ if self.ignores_removals => {}
            FlowChange::Remove(key) => {
                self.flows.remove(&key);
            }
            FlowChange::RemoveGroup(id) => {
                self.groups.remove(&id);
                // As Open vSwitch does; no flow should be left by then.
                let left = self.flows.extract_if(.., |_, flow| groups_of(flow).contains(&id));
                self.faults.extend(left.map(|(_, flow)| format!("group {id} goes, but {flow:?}")));
            }
            FlowChange::RemoveRouter(id) => remove(ALL_TABLES, cookie::router(id), cookie::OWNER_MASK),
            FlowChange::ForgetLearned(vlan) => remove(LEARNED, cookie::learned(vlan), cookie::OWNER_MASK),
        }
    }

    /// The first of these changes that it refuses.
    fn culprit(&self, changes: &[FlowChange]) -> Option<(usize, ErrorCode)> {
        let (router, dislike) = self.dislikes?;
        let is_of = |flow: &Flow| cookie::router_of(flow.cookie) == Some(router);
        let punts = |flow: &Flow| flow.instructions.contains(&Instruction::GotoTable(pipeline::L2));
        let mut trial = self.clone();
        for (index, change) in changes.iter().enumerate() {
            let is_disliked = match change {
                FlowChange::Upsert(flow) if is_of(flow) => match dislike {
                    Dislike::MoreThan(room) => {
                        let is_new = !trial.flows.contains_key(&FlowKey::from(flow));
                        flow.table == pipeline::ROUTE && is_new && trial.prefixes_of(router) >= room
                    }
                    Dislike::Forwarding => flow.table == pipeline::ROUTE && !punts(flow),
                    Dislike::Table(table) => flow.table == table,
                    Dislike::Groups => false,
                },
                FlowChange::UpsertGroup(group) => {
                    dislike == Dislike::Groups && group.id >> 16 == u32::from(router.0)
                }
                _ => false,
            };
            if is_disliked {
                let full = matches!(dislike, Dislike::MoreThan(_));
                return Some((index, if full { ErrorCode::TABLE_FULL } else { ErrorCode::BAD_OUT_PORT }));
            }
            trial.change(change.clone());
        }
        None
    }

    /// How many flows of prefixes a router has.
    pub fn prefixes_of(&self, router: RouterId) -> usize {
        let is_of =
            |flow: &&Flow| flow.table == pipeline::ROUTE && cookie::router_of(flow.cookie) == Some(router);
        self.flows.values().filter(is_of).count()
    }

    pub fn tell_groups_and_meters(&self, app: &mut App) {
        self.groups.values().for_each(|group| app.dumped_group(group.clone()));
        self.meters.values().for_each(|meter| app.dumped_meter(meter.clone()));
    }

    /// That part of the groups (of 8) is gone, with the flows that send to them.
    pub fn drop_groups(&mut self, eighths: u8) {
        let gone = |id: u32| id.wrapping_mul(5) % 8 < eighths.into();
        self.groups.retain(|id, _| !gone(*id));
        self.flows.retain(|_, flow| !groups_of(flow).into_iter().any(gone));
        self.meters.retain(|id, _| !gone(*id));
    }

    pub fn change_meter(&mut self, change: MeterChange) {
        match change {
            MeterChange::Add(meter) => {
                assert_eq!(self.meters.insert(meter.id, meter), None, "a second meter")
            }
            MeterChange::Modify(meter) => {
                assert!(self.meters.insert(meter.id, meter).is_some(), "no meter to modify");
            }
            MeterChange::Remove(id) => assert!(self.meters.remove(&id).is_some(), "no meter {id} to remove"),
        }
    }

    pub fn dump(&self, filters: &[FlowFilter]) -> Vec<Flow> {
        let hit = |flow: &Flow| {
            filters.iter().any(|filter| {
                (filter.table == ALL_TABLES || filter.table == flow.table)
                    && flow.cookie & filter.cookie_mask == filter.cookie
            })
        };
        self.flows.values().filter(|flow| hit(flow)).cloned().collect()
    }

    pub fn switch(&self) -> Switch {
        let mut switch: Switch = self.flows.values().cloned().collect();
        self.groups.values().for_each(|group| switch.insert_group(group.clone()));
        switch
    }

    /// Runs an app to its end in batches; gives the number of changes. `look` sees the switch after each batch.
    pub fn settle(&mut self, app: &mut App, max: usize, mut look: impl FnMut(&Model)) -> usize {
        let mut changes = 0;
        for _ in 0..100_000 {
            if let Some(dump) = app.begin_dump() {
                for flow in self.dump(&dump.flows) {
                    app.dumped(flow);
                }
                if dump.groups_and_meters {
                    self.tell_groups_and_meters(app);
                }
                app.dump_end();
            }
            let mut batch = app.next_batch(max);
            assert!(batch.changes.len() <= max, "{} of {max} changes", batch.changes.len());
            if batch.meters.is_empty() && batch.changes.is_empty() && app.is_idle() {
                return changes;
            }
            changes += batch.changes.len();
            for change in batch.meters {
                self.change_meter(change);
            }
            batch.changes.retain(|change| !self.left_out.contains(change));
            if let Some((index, why)) = self.culprit(&batch.changes) {
                self.refusals += 1;
                // What it would have reached is asked for again by who sends; here nobody waits for it.
                assert!(batch.reached.is_empty());
                if self.leaves_out || !app.refuse(&batch.changes, index, why) {
                    self.left_out.push(batch.changes[index].clone());
                }
                app.switch_reset();
                continue;
            }
            for change in batch.changes {
                self.change(change);
            }
            look(self);
        }
        panic!("it does not settle");
    }
}

/// The switch that an app desires, flows changed or left out.
pub fn switch(app: &App, change: impl FnMut(Flow) -> Option<Flow>) -> Switch {
    let Desired { flows, groups, meters: _ } = app.desired();
    let mut switch: Switch = flows.into_iter().filter_map(change).collect();
    groups.into_iter().for_each(|group| switch.insert_group(group));
    switch
}

fn groups_of(flow: &Flow) -> Vec<u32> {
    let actions = flow.instructions.iter().flat_map(|instruction| match instruction {
        Instruction::ApplyActions(actions) => actions.as_slice(),
        _ => &[],
    });
    actions.filter_map(|action| if let Action::Group(id) = action { Some(*id) } else { None }).collect()
}

/// What differs between two switches.
pub fn same(what: &str, got: &Model, want: &Model) -> Result<(), String> {
    if let Some(fault) = got.faults.first() {
        return Err(format!("{what}: {fault}"));
    }
    let ((got_flows, got_groups), (want_flows, want_groups)) = (got.by_content(), want.by_content());
    if got_groups != want_groups {
        return Err(format!("{what}: groups {got_groups:#?}, not {want_groups:#?}"));
    }
    if got.meters != want.meters {
        return Err(format!("{what}: meters {:?}, not {:?}", got.meters, want.meters));
    }
    let (got, want) = (got_flows, want_flows);
    let surplus: Vec<&Flow> = got.iter().filter(|(k, f)| want.get(k) != Some(f)).map(|(_, f)| f).collect();
    let missing: Vec<&Flow> = want.iter().filter(|(k, f)| got.get(k) != Some(f)).map(|(_, f)| f).collect();
    if surplus.is_empty() && missing.is_empty() {
        return Ok(());
    }
    Err(format!("{what}: surplus {surplus:#?}, missing {missing:#?}"))
}
