//! A switch as far as flow changes go: a map. And the loop that brings it in step with an app.

use std::collections::BTreeMap;

use openflow::flow::ALL_TABLES;
use openflow::{Flow, FlowFilter, Group, Meter};
use xenflow_flow_app::pipeline::{LEARNED, cookie};
use xenflow_flow_app::sim::Switch;
use xenflow_flow_app::{App, FlowChange, FlowKey, MeterChange};

/// What a switch holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    pub flows: BTreeMap<FlowKey, Flow>,
    pub groups: BTreeMap<u32, Group>,
    pub meters: BTreeMap<u32, Meter>,
    /// Broken on purpose: it keeps what it should delete.
    pub ignores_removals: bool,
}

impl Model {
    pub fn insert(&mut self, flow: Flow) {
        self.flows.insert(FlowKey::from(&flow), flow);
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
            }
            FlowChange::RemoveRouter(id) => remove(ALL_TABLES, cookie::router(id), cookie::OWNER_MASK),
            FlowChange::ForgetLearned(vlan) => remove(LEARNED, cookie::learned(vlan), cookie::OWNER_MASK),
        }
    }

    pub fn tell_groups_and_meters(&self, app: &mut App) {
        self.groups.values().for_each(|group| app.dumped_group(group.clone()));
        self.meters.values().for_each(|meter| app.dumped_meter(meter.clone()));
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
        self.flows.values().cloned().collect()
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
            let batch = app.next_batch(max);
            assert!(batch.changes.len() <= max, "{} of {max} changes", batch.changes.len());
            if batch.meters.is_empty() && batch.changes.is_empty() && app.is_idle() {
                return changes;
            }
            changes += batch.changes.len();
            for change in batch.meters {
                self.change_meter(change);
            }
            for change in batch.changes {
                self.change(change);
            }
            look(self);
        }
        panic!("it does not settle");
    }
}

/// By key; two flows with one key are an error.
pub fn desired(app: &App) -> Result<BTreeMap<FlowKey, Flow>, String> {
    let mut flows = BTreeMap::new();
    for flow in app.desired() {
        if let Some(old) = flows.insert(FlowKey::from(&flow), flow.clone()) {
            return Err(format!("two flows with one key:\n{old:?}\n{flow:?}"));
        }
    }
    Ok(flows)
}

/// What differs between two sets of flows.
pub fn same(what: &str, got: &BTreeMap<FlowKey, Flow>, want: &BTreeMap<FlowKey, Flow>) -> Result<(), String> {
    let surplus: Vec<&Flow> = got.iter().filter(|(k, f)| want.get(k) != Some(f)).map(|(_, f)| f).collect();
    let missing: Vec<&Flow> = want.iter().filter(|(k, f)| got.get(k) != Some(f)).map(|(_, f)| f).collect();
    if surplus.is_empty() && missing.is_empty() {
        return Ok(());
    }
    Err(format!("{what}: surplus {surplus:#?}, missing {missing:#?}"))
}
