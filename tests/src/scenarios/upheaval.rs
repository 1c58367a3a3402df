//! `upheaval`: a router moves while its routes change a thousand times a second, and while daemons are killed at each of its
//! phases, at both ends. Every move ends where it was to end, and no packet is lost.
//!
//! The control: the link of a node is down for a moment.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dom0_server::db::migration::{Migration, Phase};
use serde_json::{Map, Value, json};

use crate::moving::measure::{self, Running, Seen};
use crate::moving::site::{By, Site};
use crate::moving::vm::Pace;
use crate::process::{Process, wait_for};
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "upheaval",
    about: "a router moves while its routes change, and while daemons are killed at each phase",
    memory_mib: 1024,
    limit: Duration::from_secs(600),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("lost", "0"),
        ("duplicated", "0"),
        ("churn_changes_s", "at least 800"),
        ("missing_routes", "0"),
        ("control_lost_by_cut", "more than 0"),
    ],
    run,
};

const LIMIT: Duration = Duration::from_secs(120);
const RATE: u32 = 400;
const ROUTES: u32 = 1000;
const PACE: Pace = Pace { copy_ms: 500, freeze_ms: 500 };
/// Changes of routes a second.
const CHURN: u32 = 1000;
/// How long a daemon that was killed is away.
const AWAY: Duration = Duration::from_secs(1);

/// Which end's daemon is killed.
#[derive(Debug, Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// As soon as the row has come so far.
const KILLS: [(Phase, End); 8] = [
    (Phase::Staging, End::Source),
    (Phase::Staging, End::Destination),
    (Phase::Moving, End::Source),
    (Phase::Moving, End::Destination),
    (Phase::Arrived, End::Source),
    (Phase::Arrived, End::Destination),
    (Phase::Announced, End::Source),
    (Phase::Announced, End::Destination),
];

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = Site::build(lab, By::Planned, PACE)?;
    site.grow(lab, ROUTES)?;
    lab.ready()?;
    let mut figures = Map::new();
    let mut all = Seen::default();

    lab.step(format!("r1 moves while {CHURN} of its routes change a second"));
    let go = || site.churn(CHURN, || site.migrate("b"));
    let ((_, changes_s), seen) = measure::during(lab, &site, RATE, go)?;
    site.check_owner("b")?;
    all.merge(&seen);
    figures.insert("churn_changes_s".into(), changes_s.into());
    site.wait_told()?;
    let has = site.r1.client_state()?.routes;
    // Each segment has its own.
    let lost_routes = u64::from(ROUTES).saturating_sub(has);
    figures.insert("missing_routes".into(), lost_routes.into());
    figures.insert("churn".into(), seen.figures());

    for (phase, end) in KILLS {
        let to = site.elsewhere()?;
        lab.step(format!("r1 moves to {to}; the daemon of its {end:?} is killed in {phase}"));
        let running = Running::start(lab, &site, RATE)?;
        let row = kill_during(lab, &mut site, to, phase, end)?;
        let seen = running.stop()?;
        site.check_owner(to)?;
        site.nodes[index(&site, to)?].wait_session("r1", LIMIT)?;
        figures.insert(
            format!("killed_{phase}_{end:?}").to_lowercase(),
            json!({ "packets": seen.figures(), "reached": row.reached }),
        );
        all.merge(&seen);
    }

    lab.step("control: a node is cut off for a moment");
    let ((), control) = measure::during(lab, &site, RATE, || site.cut())?;
    for (key, value) in all.sums().into_iter().chain([("control_lost_by_cut", control.lost)]) {
        figures.insert(key.into(), value.into());
    }
    let figures = Value::Object(figures);
    ensure!(control.lost > 0, "the control finds nothing: {figures}");
    let wrong: Vec<_> =
        ["lost", "duplicated", "missing_routes"].into_iter().filter(|key| figures[*key] != 0).collect();
    ensure!(wrong.is_empty(), "{} must be 0: {figures}", wrong.join(", "));
    Ok(figures)
}

fn index(site: &Site, name: &str) -> Result<usize> {
    let at = site.nodes.iter().position(|node| node.host().name() == name);
    at.with_context(|| format!("no node {name}"))
}

/// Moves r1 there, kills a daemon once the row is so far, and starts it again; the row at its end.
fn kill_during(lab: &Lab, site: &mut Site, to: &str, phase: Phase, end: End) -> Result<Migration> {
    let from = site.vm.node()?;
    let killed = match end {
        End::Source => index(site, &from)?,
        End::Destination => index(site, to)?,
    };
    let log = lab.results().join(format!("killed-{phase}-{end:?}.log").to_lowercase());
    let mut command = site.nodes[0].xenflow_command();
    command.args(["migrate", "r1", to, "--via", "lab"]);
    let before = site.migrations()?.len();
    // It follows, and may be told that a node does not go on for a while.
    let _follower = Process::spawn("xenflow migrate", &mut command, &log)?;
    let newest = |site: &Site| -> Result<Option<Migration>> {
        let mut rows = site.migrations()?;
        Ok(if rows.len() > before { rows.pop() } else { None })
    };
    wait_for(&format!("{phase}"), LIMIT, || Ok(newest(site)?.filter(|row| row.phase >= phase)))?;
    site.nodes[killed].kill_daemon()?;
    std::thread::sleep(AWAY);
    site.nodes[killed].start_daemon()?;
    let row = wait_for("the end of the move", LIMIT, || Ok(newest(site)?.filter(|row| row.phase.is_over())))?;
    ensure!(row.phase == Phase::Done && row.to.as_str() == to, "r1 did not move to {to}: {row:?}");
    Ok(row)
}
