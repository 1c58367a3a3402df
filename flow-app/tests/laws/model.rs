//! A switch as far as flow changes go: a map. And the loop that brings it in step with an app.

use std::collections::BTreeMap;

use openflow::flow::ALL_TABLES;
use openflow::{Flow, FlowFilter};
use xenflow_flow_app::pipeline::{LEARNED, cookie};
use xenflow_flow_app::sim::Switch;
use xenflow_flow_app::{App, FlowChange, FlowKey};

/// What a switch holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    pub flows: BTreeMap<FlowKey, Flow>,
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
            _ if self.ignores_removals => {}
            FlowChange::Remove(key) => {
                self.flows.remove(&key);
            }
            FlowChange::RemoveRouter(id) => remove(ALL_TABLES, cookie::router(id), cookie::OWNER_MASK),
            FlowChange::ForgetLearned(vlan) => remove(LEARNED, cookie::learned(vlan), cookie::OWNER_MASK),
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
            if let Some((_, filters)) = app.begin_dump() {
                for flow in self.dump(&filters) {
                    app.dumped(flow);
                }
                app.dump_end();
            }
            let batch = app.next_batch(max);
            assert!(batch.changes.len() <= max, "{} of {max} changes", batch.changes.len());
            if batch.changes.is_empty() && app.is_idle() {
                return changes;
            }
            changes += batch.changes.len();
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
