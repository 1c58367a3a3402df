//! Meters that the switch has not: what is sent to it goes without them.
//!
//! A datapath may support no meters, or refuse one. Its packets are forwarded all the same, unpoliced: a guest that
//! gets too many is better than one that gets none. What the flow app desires stays as it is; its flows are stripped
//! on their way to the switch.

use std::collections::BTreeSet;

use openflow::{Action, Instruction};
use xenflow_flow_app::punt::meter_of;
use xenflow_flow_app::queue;
use xenflow_flow_app::{FlowChange, MeterChange, PuntClass, RouterId};

use xenflow_proto::Name;

use super::{Core, MeterError};

/// What one connection's switch lacks.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    all: bool,
    refused: BTreeSet<u32>,
}

impl Lacking {
    /// A switch that can have meters, or none.
    pub(super) fn of(has_meters: bool) -> Self {
        Self { all: !has_meters, refused: BTreeSet::new() }
    }

    /// The switch refused a meter.
    pub(super) fn refuse(&mut self, id: u32) {
        self.refused.insert(id);
    }

    fn lacks(&self, id: u32) -> bool {
        self.all || self.refused.contains(&id)
    }

    /// Whether to send a change of a meter.
    pub(super) fn takes(&self, change: &MeterChange) -> bool {
        !self.lacks(meter_id(change))
    }

    /// The change without the meters that are not there; true if it had any.
    pub(super) fn strip(&self, change: &mut FlowChange) -> bool {
        if !self.all && self.refused.is_empty() {
            return false;
        }
        let FlowChange::Upsert(flow) = change else { return false };
        let mut found = false;
        for instruction in &mut flow.instructions {
            if let Instruction::ApplyActions(actions) | Instruction::WriteActions(actions) = instruction {
                // A meter is a flow's first action; it is refused within others.
                actions.retain(|action| {
                    let lacks = matches!(action, Action::Meter(id) if self.lacks(*id));
                    found |= lacks;
                    !lacks
                });
            }
        }
        found
    }
}

impl Core {
    /// A meter that the switch refuses is done without; one that is not as it was said to be is looked at again.
    pub(super) fn meter_refused(&mut self, change: &MeterChange, error: &MeterError) {
        let meter = meter_id(change);
        let (id, class) = meter_of(meter).unzip();
        let routers = self.desired.iter().flat_map(|desired| desired.routers.values());
        let router = routers.map(|router| (RouterId(router.id.get()), &router.name));
        let router = router.filter(|(number, _)| Some(*number) == id).map(|(_, name)| name.as_str()).next();
        let (router, class) = (router.unwrap_or("?"), class.map_or("?", PuntClass::as_str));
        // What has a maximum, where the meter is none of a router's.
        let queue = queue::meter_of(meter).and_then(|(_, queue)| self.plan()?.queues.get(&queue));
        let network = queue.map(|queue| queue.network.as_str());
        let class = queue.and_then(|queue| queue.class.as_ref()).map_or(class, Name::as_str);
        let reason = &error.reason;
        if error.is_drift {
            tracing::error!(name: "problem", meter, router, network, class, %reason, "a meter is not as it was: starting over");
        } else {
            tracing::error!(name: "problem", meter, router, network, class, %reason, "the switch refuses a meter: its packets go without a limit");
            self.lacking.refuse(meter);
        }
        self.retry_later();
    }
}

/// The number of the meter that changes.
pub(super) fn meter_id(change: &MeterChange) -> u32 {
    match change {
        MeterChange::Add(meter) | MeterChange::Modify(meter) => meter.id,
        MeterChange::Remove(id) => *id,
    }
}

#[cfg(test)]
mod tests {
    use openflow::{Flow, Match, Meter};

    use super::*;

    fn upsert(actions: &[Action]) -> FlowChange {
        FlowChange::Upsert(Flow::new(8, 1, 0, Match::any()).apply(actions.to_vec()).goto(9))
    }

    #[test]
    fn flows_lose_the_meters_that_are_not_there_and_nothing_else() {
        let (one, two, out) = (Action::Meter(1), Action::Meter(2), Action::output(7));
        let mut lacking = Lacking::of(true);
        let strip = |lacking: &Lacking, actions: &[Action]| {
            let mut change = upsert(actions);
            let found = lacking.strip(&mut change);
            (change, found)
        };
        assert_eq!(
            strip(&lacking, &[one.clone(), out.clone()]),
            (upsert(&[one.clone(), out.clone()]), false)
        );
        lacking.refuse(1);
        assert_eq!(strip(&lacking, &[one.clone(), out.clone()]), (upsert(std::slice::from_ref(&out)), true));
        assert_eq!(
            strip(&lacking, &[two.clone(), out.clone()]),
            (upsert(&[two.clone(), out.clone()]), false)
        );
        let add = |id| MeterChange::Add(Meter { id, ..Meter::default() });
        assert!(!lacking.takes(&add(1)) && lacking.takes(&add(2)) && !lacking.takes(&MeterChange::Remove(1)));
        let none = Lacking::of(false);
        assert_eq!(strip(&none, &[two, out.clone()]), (upsert(&[out]), true));
        assert!(!none.takes(&add(2)));
    }
}
