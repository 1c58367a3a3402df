//! The two views side by side, and the first thing in which they differ.

use openflow::Field;
use serde_json::{Value, json};
use xenflow_flow_app::pipeline::{STAGES, cookie};
use xenflow_flow_app::sim::{Packet, Step};
use xenflow_flow_app::{Explained, PortNo};
use xenflow_proto::{MacAddr, VlanId};

use super::Plan;
use super::trace::{Seen, Trace, done};
use super::words::{self, Names};
use crate::core::Core;
use crate::inspect::ofctl;

/// All that is said of a packet on this node.
pub(super) fn value(core: &Core, plan: &Plan, explained: &Explained, trace: Result<&Trace, &str>) -> Value {
    let Some(names) = Names::new(core) else { return json!({ "verdict": "unknown" }) };
    let seen = trace.map(|trace| trace.steps.as_slice()).unwrap_or_default();
    let count = explained.steps.len().max(seen.len());
    let mut first = None;
    let mut steps = Vec::new();
    for at in 0..count {
        let (own, switch) = (explained.steps.get(at), seen.get(at));
        let difference = trace.is_ok().then(|| difference(own, switch)).flatten();
        if let (None, Some(what)) = (&first, &difference) {
            let table = own.map(|step| step.table).or(switch.map(|step| step.table)).unwrap_or(0);
            first = Some(format!("table {table} ({}): {what}", stage(table)));
        }
        steps.push(json!({
            "xenflow": own.map(|step| of_xenflow(&names, step)), "switch": switch.map(of_switch),
            "differs": difference,
        }));
    }
    let mut notes = plan.notes.clone();
    notes.extend(remarks(core, &names, seen));
    let sent = explained.outcome.as_ref().map(|outcome| outcome.sent.as_slice()).unwrap_or_default();
    let outputs: Vec<Value> = sent.iter().map(|(port, packet)| output(&names, plan, *port, packet)).collect();
    json!({
        "node": core.node().to_string(),
        "from": names.port(plan.in_port),
        "packet": words::packet(plan.frame.packet()),
        "frame": plan.frame.hex(),
        "steps": steps,
        "outputs": outputs,
        "fault": explained.outcome.as_ref().err().map(ToString::to_string),
        "datapath": trace.ok().map(|trace| trace.datapath.as_str()),
        "switch_error": trace.err(),
        "difference": first,
        "verdict": match (trace.is_ok(), &first) {
            (false, _) => "unknown",
            (true, None) => "same",
            (true, Some(_)) => "different",
        },
        "notes": notes,
    })
}

fn stage(table: u8) -> &'static str {
    STAGES.iter().find(|stage| stage.table == table).map_or("none of XenFlow's", |stage| stage.name)
}

/// In what a step is not the same in both.
fn difference(own: Option<&Step>, switch: Option<&Seen>) -> Option<String> {
    let (own, switch) = match (own, switch) {
        (None, None) => return None,
        (Some(own), None) => return Some(format!("the switch does not come to table {}", own.table)),
        (None, Some(seen)) => return Some(format!("the switch goes on to table {}", seen.table)),
        (Some(own), Some(switch)) => (own, switch),
    };
    if own.table != switch.table {
        return Some(format!("the switch goes to table {} ({})", switch.table, stage(switch.table)));
    }
    let name = |flow: Option<(u16, u64)>| match flow {
        Some((priority, cookie)) => format!("the flow of priority {priority} and cookie {cookie:#x}"),
        None => "no flow".to_owned(),
    };
    let wanted = own.flow.as_ref().map(|flow| (flow.priority, flow.cookie));
    let met = switch.flow.as_ref().map(|(_, priority, cookie)| (*priority, *cookie));
    if wanted != met {
        return Some(format!("it should meet {}, and meets {}", name(wanted), name(met)));
    }
    let wanted: Vec<String> = own.actions.iter().filter_map(done).collect();
    if wanted == switch.actions {
        return None;
    }
    let pairs = wanted.iter().map(Some).chain(std::iter::repeat(None));
    let pairs = pairs.zip(switch.actions.iter().map(Some).chain(std::iter::repeat(None)));
    let most = wanted.len().max(switch.actions.len());
    let (wanted, does) = pairs.take(most).find(|(one, other)| one != other)?;
    let say = |action: Option<&String>| action.map_or_else(|| "nothing more".to_owned(), String::clone);
    Some(format!("it should do {}, and does {}", say(wanted), say(does)))
}

fn of_xenflow(names: &Names<'_>, step: &Step) -> Value {
    let flow = step.flow.as_ref();
    json!({
        "table": step.table, "name": stage(step.table), "words": names.step(step), "taken": step.is_taken,
        "priority": flow.map(|flow| flow.priority), "cookie": flow.map(|flow| format!("{:#x}", flow.cookie)),
        "flow": flow.map(ofctl::flow), "actions": step.actions.iter().filter_map(done).collect::<Vec<_>>(),
    })
}

fn of_switch(seen: &Seen) -> Value {
    let flow = seen.flow.as_ref();
    json!({
        "table": seen.table, "name": stage(seen.table), "match": flow.map(|(matching, ..)| matching.as_str()),
        "priority": flow.map(|(_, priority, _)| *priority),
        "cookie": flow.map(|(.., cookie)| format!("{cookie:#x}")),
        "actions": seen.actions, "remarks": seen.remarks,
    })
}

/// Why the two may differ without anything being wrong.
fn remarks(core: &Core, names: &Names<'_>, seen: &[Seen]) -> Vec<String> {
    let mut notes = Vec::new();
    if !core.is_in_step() {
        notes.push("changes are under way to the switch: ask again in a moment".to_owned());
    }
    let mut silent: Vec<_> =
        seen.iter().filter_map(|step| cookie::router_of(step.flow.as_ref()?.2)).collect();
    silent.sort_unstable();
    silent.dedup();
    for id in silent.into_iter().filter(|id| !core.app().is_synced(*id)) {
        notes.push(format!(
            "the guest of {} has not told its tables since the daemon began: the switch goes on with its old flows",
            names.router(id)
        ));
    }
    notes
}

/// A copy that leaves.
fn output(names: &Names<'_>, plan: &Plan, port: PortNo, packet: &Packet) -> Value {
    let topology = names.core.app().topology();
    let is_uplink = topology.uplinks.contains(&port);
    let vlan = packet.tags.first().and_then(|tag| VlanId::try_from(i64::from(tag.vid)).ok());
    let [_, _, mac @ ..] = u64::try_from(packet.header(Field::EthDst)).unwrap_or(0).to_be_bytes();
    let mac = MacAddr(mac);
    json!({
        "port": port, "name": names.port(port), "is_uplink": is_uplink, "packet": words::packet(packet),
        "frame": plan.frame.become_of(packet).hex(),
        "segment": vlan.and_then(|vlan| names.segment_name(vlan)).map(ToString::to_string),
        "mac": mac.to_string(),
        "is_elsewhere": vlan.is_some_and(|vlan| topology.is_elsewhere(vlan, mac)),
    })
}
