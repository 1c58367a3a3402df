//! `migrate`: a router goes from node to node and back while numbered packets go through it and to it, and the
//! table of the bridge between the nodes is watched. One move is called off.
//!
//! The controls: a move that nobody has prepared loses packets, and a frame with the router's address from a third node is
//! seen in the bridge's table.

use std::time::Duration;

use anyhow::{Result, ensure};
use dom0_server::db::migration::Phase;
use serde_json::{Map, Value, json};

use crate::benches::Options;
use crate::frame;
use crate::inject;
use crate::moving::asked;
use crate::moving::measure::{self, Seen};
use crate::moving::site::{By, NODES, Site};
use crate::moving::vm::Pace;
use crate::process::{Process, wait_for};
use crate::scenario::{Lab, Scenario};
use crate::trunk::{Trunk, fabric_port};
use crate::virtual_router::vif_mac;

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "migrate",
    about: "a router moves between three nodes, there and back, under packets; a move is called off (--rounds N, --routes N, --pps N; --log 1: all flows of the datapath in the switches' logs)",
    memory_mib: 1024,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("lost", "0"),
        ("duplicated", "0"),
        ("control_lost", "0"),
        ("flaps", "0"),
        ("control_flaps", "more than 0"),
        ("control_unprepared_lost", "more than 0"),
    ],
    run,
};

/// In the suite, there and back once: it takes time and shows the same.
pub(super) const SUITE_ARGS: &[&str] = &["--rounds", "1"];

const LIMIT: Duration = Duration::from_secs(60);
/// Packets a second between neighbors.
const RATE: u32 = 400;
const ROUTES: u32 = 100;
const SHORT: Pace = Pace { copy_ms: 100, freeze_ms: 200 };
const LONG: Pace = Pace { copy_ms: 100, freeze_ms: 3000 };
/// No neighbor that asks is to be without an answer for longer: it would ask once more, a second later, before it gives up.
const SILENCE: Duration = Duration::from_secs(2);
/// Long enough to be called off.
const SLOW: Pace = Pace { copy_ms: 20_000, freeze_ms: 200 };

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let rounds = options.take("--rounds", 2)?;
    let routes = options.take("--routes", ROUTES)?;
    let rate = options.take("--pps", RATE)?;
    let log: u32 = options.take("--log", 0)?;
    options.end()?;
    ensure!((1..=20).contains(&rounds), "{rounds} rounds is not 1 to 20");
    let mut site = Site::build(lab, By::Planned, SHORT)?;
    if log > 0 {
        site.log_flows()?;
    }
    site.grow(lab, routes)?;
    lab.ready()?;
    let mut figures = Map::new();
    let mut all = Seen::default();
    let mut flaps = 0;
    for index in 0..2 * rounds {
        let (from, to) = if index % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let pace = if index == 0 { LONG } else { SHORT };
        lab.step(format!("r1 moves from {from} to {to}, frozen for {} ms", pace.freeze_ms));
        site.vm.set_pace(pace)?;
        let ((row, silence), seen) =
            measure::during(lab, &site, rate, || asked::during(&site, || site.migrate(to)))?;
        ensure!(silence <= SILENCE, "a neighbor that asked for the router had no answer for {silence:?}");
        site.check_owner(to)?;
        let changes = site.watch.changes()?;
        flaps += measure::flaps(&changes, &fabric_port(to));
        let moved = site.vm.moved(row.number)?;
        check_report(&site.report(&row, &seen)?, &seen)?;
        figures.insert(
            format!("move{}", index + 1),
            json!({
                "packets": seen.figures(), "toolstack": measure::moved(&moved), "reached": row.reached,
                "counters": row.counters, "bridge_changes": changes.len(), "silence_ms": silence.as_millis(),
            }),
        );
        ensure!(moved.is_there, "the toolstack has brought r1 back: {moved:?}");
        all.merge(&seen);
    }

    lab.step("a move to b is called off");
    let ((), seen) = measure::during(lab, &site, RATE, || call_off(lab, &site))?;
    site.check_owner("a")?;
    flaps += site.watch.changes()?.len();
    all.merge(&seen);

    let control = controls(lab, &mut site)?;
    let found = [
        ("flaps", u64::try_from(flaps)?),
        ("control_flaps", u64::try_from(control.flaps)?),
        ("control_unprepared_lost", control.lost),
    ];
    for (key, value) in all.sums().into_iter().chain(found) {
        figures.insert(key.into(), value.into());
    }
    let figures = Value::Object(figures);
    ensure!(control.flaps > 0 && control.lost > 0, "a control finds nothing: {figures}");
    // Order is the bench's: on a busy machine Open vSwitch's handler takes its time with the first packets of a flow, and later ones
    // find the flow in the datapath.
    let zeros = ["lost", "duplicated", "control_lost", "flaps"];
    let wrong: Vec<_> = zeros.into_iter().filter(|key| figures[key] != 0).collect();
    ensure!(wrong.is_empty(), "{} must be 0: {figures}", wrong.join(", "));
    Ok(figures)
}

/// A move's report says what has gone through the router at both ends of it, and what numbered packets have met.
fn check_report(report: &Value, seen: &Seen) -> Result<()> {
    let counter = |key: &str| report["counters"][key].as_u64();
    for side in ["source", "destination"] {
        for lan in ["lan1", "lan2", "lan3"] {
            let count = counter(&format!("{side}/packets/{lan}"));
            ensure!(
                count.is_some(),
                "the report does not count what came from {lan} at the {side}: {report}"
            );
        }
    }
    // Of which segment is not for sure: after a change of its tables, Open vSwitch counts what came since it last looked at a flow of its
    // datapath where such packets go now.
    let through = ["lan1", "lan2", "lan3"].map(|lan| counter(&format!("source/packets/{lan}")).unwrap_or(0));
    ensure!(through.iter().sum::<u64>() > 0, "nothing went through the source: {report}");
    ensure!(counter("probe/sent") == Some(seen.sent), "the report lacks the probes: {report}");
    Ok(())
}

/// Has r1 begin to move, and calls that off while its memory is copied.
fn call_off(lab: &Lab, site: &Site) -> Result<()> {
    site.vm.set_pace(SLOW)?;
    let log = lab.results().join("called-off.log");
    let mut command = site.nodes[0].xenflow_command();
    command.args(["migrate", "r1", "b", "--via", "lab"]);
    let mut migrate = Process::spawn("xenflow migrate", &mut command, &log)?;
    let open = |phase: Phase| {
        let all = site.migrations()?;
        Ok(all.last().filter(|row| row.phase == phase).map(|row| row.number))
    };
    let number = wait_for("the guest to be on its way", LIMIT, || open(Phase::Moving))?;
    site.nodes[0].xenflow(&["abort", "r1"])?;
    wait_for("the end of the move", LIMIT, || open(Phase::Aborted))?;
    let status = migrate.wait(LIMIT)?;
    ensure!(!status.success(), "a move that was called off ends with {status}: {}", migrate.log());
    ensure!(site.vm.moved(number).is_err() && site.vm.node()? == "a", "r1 has left");
    Ok(())
}

struct Controls {
    flaps: usize,
    lost: u64,
}

fn controls(lab: &Lab, site: &mut Site) -> Result<Controls> {
    lab.step("control: the router's address comes from a third node");
    let (mac, everyone) = (frame::mac(&vif_mac(1, 0))?, [0xff; 6]);
    let forged = frame::ethernet(everyone, mac, &[11], 0x88b5, b"forged");
    inject::inject(lab, site.nodes[2].host().netns(), Trunk::PORT, &[forged], 1, 0)?;
    let flaps = measure::flaps(&site.watch.changes()?, &fabric_port("a"));
    lab.step("control: r1 moves while no daemon runs");
    site.nodes.iter_mut().try_for_each(crate::node::Node::kill_daemon)?;
    site.vm.set_pace(SHORT)?;
    let (_, seen) = measure::during(lab, site, RATE, || site.vm.move_by_hand("a", NODES[1]))?;
    Ok(Controls { flaps, lost: seen.lost + seen.control_lost })
}
