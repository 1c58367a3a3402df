//! What goes to the switch never names a meter that it has not, however the configuration changes while batches wait.

use openflow::{Action, Flow, Instruction};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::{App, FlowChange};

use super::law;
use super::model::{Model, same};
use super::world::{Dice, LIMIT, Plan, plan};

fn meters_of(flow: &Flow) -> impl Iterator<Item = u32> {
    let actions = flow.instructions.iter().filter_map(|instruction| match instruction {
        Instruction::ApplyActions(actions) => Some(actions),
        _ => None,
    });
    actions.flatten().filter_map(|action| if let Action::Meter(id) = action { Some(*id) } else { None })
}

/// Changes of the configuration, after each of them so many batches.
fn follow((mut plan, steps): (Plan, Vec<(Dice, u8)>)) -> Result<(), String> {
    let (mut app, mut model) = (App::new(LIMIT), Model::default());
    app.set_topology(plan.topology());
    model.settle(&mut app, 1000, |_| {});
    for (mut dice, batches) in steps {
        // Routers, vifs and what networks get at most come and go.
        dice[0] = [0, 1, 9][usize::from(dice[0] % 3)];
        plan.mutate(dice);
        app.set_topology(plan.topology());
        for _ in 0..batches {
            let batch = app.next_batch(200);
            batch.meters.into_iter().for_each(|change| model.change_meter(change));
            for change in batch.changes {
                if let FlowChange::Upsert(flow) = &change
                    && let Some(id) = meters_of(flow).find(|id| !model.meters.contains_key(id))
                {
                    return Err(format!("there is no meter {id} for {flow:?}"));
                }
                model.change(change);
            }
        }
    }
    model.settle(&mut app, 1000, |_| {});
    same("installed", &model, &Model::desired(&app)?)
}

#[test]
fn a_flow_comes_after_its_meter_and_never_without() {
    let steps = vec((any::<Dice>(), 0..4u8), 12);
    law(300, (plan(), steps), follow);
}
