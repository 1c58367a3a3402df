//! Moves under packets, and what they cost.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use dom0_server::db::migration::Phase;
use serde_json::{Value, json};

use super::bulk::{self, Bulk};
use super::{Setting, round};
use crate::drops::Drops;
use crate::endhost::EndHost;
use crate::moving::measure::{self, Seen};
use crate::moving::site::Site;
use crate::moving::vm::Moved;
use crate::node::Node;
use crate::process::wait_for;
use crate::scenario::Lab;
use crate::trunk::fabric_port;
use crate::virtual_router::SessionLine;

const LIMIT: Duration = Duration::from_secs(120);

/// A move of the router.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) at: Setting,
    pub(super) seen: Seen,
    pub(super) flaps: u64,
    moved: Moved,
    /// What became of packets that were lost, and of others.
    drops: Drops,
    /// From the thaw until the new host's data plane was proven.
    pub(super) verified_ms: Option<f64>,
    /// From its beginning until the new host had told others.
    total_ms: Option<f64>,
    row: Value,
}

/// A move of the bystander.
#[derive(Debug, Clone)]
pub(super) struct Bare {
    at: Setting,
    seen: Seen,
    moved: Moved,
}

/// What was tried of a variant.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) cells: Vec<Cell>,
    pub(super) bare: Vec<Bare>,
    /// To nodes that are no standby.
    pub(super) cold: Vec<Cell>,
    /// Of there and back with one path longer than the other.
    pub(super) uneven: Option<Seen>,
    /// TCP, with each table: while the bystander moves, and while the router does.
    pub(super) bulk: Vec<[Bulk; 2]>,
}

impl Tried {
    /// The longest delay of a move, less that of the bystander's under the same rate with the same table.
    pub(super) fn extra_delay(&self, cell: &Cell) -> Option<f64> {
        let is_like = |bare: &&Bare| (bare.at.table, bare.at.percent) == (cell.at.table, cell.at.percent);
        self.bare.iter().find(is_like).map(|bare| cell.seen.delay_ms - bare.seen.delay_ms)
    }

    /// What a move took, less what the bystander's takes whose guest is frozen for as long.
    pub(super) fn extra_total(&self, cell: &Cell) -> Option<f64> {
        let is_like = |bare: &&Bare| (bare.at.table, bare.at.freeze) == (cell.at.table, cell.at.freeze);
        let bare = self.bare.iter().find(is_like)?;
        Some(cell.total_ms? - bare.moved.took().as_secs_f64() * 1000.0)
    }
}

impl Cell {
    fn new(at: Setting, seen: Seen, moved: Moved) -> Self {
        let (verified_ms, total_ms) = (None, None);
        Self { at, seen, flaps: 0, moved, drops: Drops::default(), verified_ms, total_ms, row: Value::Null }
    }

    pub(super) fn figures(&self, tried: &Tried) -> Value {
        json!({
            "routes": self.at.routes(), "freeze_ms": self.at.pace().freeze_ms, "rate_percent": self.at.percent,
            "packets": packets(&self.seen), "drops": self.drops, "flaps": self.flaps, "toolstack": measure::moved(&self.moved),
            "thaw_to_verified_ms": self.verified_ms.map(round), "total_ms": self.total_ms.map(round),
            "delay_extra_ms": tried.extra_delay(self).map(round), "migration": self.row,
        })
    }
}

impl Bare {
    pub(super) fn figures(&self) -> Value {
        json!({
            "routes": self.at.routes(), "freeze_ms": self.at.pace().freeze_ms, "rate_percent": self.at.percent,
            "packets": packets(&self.seen), "toolstack": measure::moved(&self.moved),
        })
    }
}

/// Without the single packets, unless they say where some were lost, came again or were overtaken.
fn packets(seen: &Seen) -> Value {
    let mut figures = seen.figures();
    let is_clean = seen.lost + seen.duplicated + seen.reordered == 0;
    if let Some(figures) = figures.as_object_mut().filter(|_| is_clean) {
        figures.remove("events");
    }
    figures
}

/// The bystander goes to the other one of a and b.
pub(super) fn bare(lab: &Lab, site: &Site, at: Setting) -> Result<Bare> {
    site.bystander.set_pace(at.pace())?;
    let from = site.bystander.node()?;
    let to = if from == "a" { "b" } else { "a" };
    let (moved, seen) = measure::during(lab, site, at.rate(), || site.bystander.move_by_hand(&from, to))?;
    Ok(Bare { at, seen, moved })
}

/// TCP while the bystander moves, and while the router goes there; frozen for as long.
pub(super) fn bulk(site: &Site, at: Setting, to: &str) -> Result<[Bulk; 2]> {
    site.bystander.set_pace(at.pace())?;
    site.vm.set_pace(at.pace())?;
    let from = site.bystander.node()?;
    let other = if from == "a" { "b" } else { "a" };
    let (_, bare) = bulk::during(site, || site.bystander.move_by_hand(&from, other))?;
    let (_, bulk) = bulk::during(site, || site.migrate(to))?;
    Ok([bare, bulk])
}

/// There and back while what goes to b takes so many milliseconds more than what goes to a.
pub(super) fn uneven(lab: &Lab, site: &mut Site, at: Setting, ms: u32) -> Result<Seen> {
    let fabric = site.trunk.fabric()?.name().to_owned();
    let port = fabric_port("b");
    let queue = |args: &[&str]| {
        let mut command = std::process::Command::new("tc");
        crate::process::output(command.args(["-n", &fabric, "qdisc"]).args(args))
    };
    queue(&["add", "dev", &port, "root", "netem", "limit", "100000", "delay", &format!("{ms}ms")])?;
    let mut all = Seen::default();
    for _ in 0..2 {
        let to = site.elsewhere()?;
        all.merge(&planned(lab, site, at, to)?.seen);
    }
    queue(&["del", "dev", &port, "root"])?;
    Ok(all)
}

/// The router goes, and the daemons know.
pub(super) fn planned(lab: &Lab, site: &mut Site, at: Setting, to: &str) -> Result<Cell> {
    site.vm.set_pace(at.pace())?;
    let before = drops(site)?;
    let begun_ms = epoch_ms()?;
    let (row, seen) = measure::during(lab, site, at.rate(), || site.migrate(to))?;
    let drops = drops(site)?.since(before);
    site.check_owner(to)?;
    let moved = site.vm.moved(row.number)?;
    let reached = |phase: Phase| row.reached.get(phase.as_str()).map(|at_ms| *at_ms as f64);
    let mut cell = Cell { drops, ..Cell::new(at, seen, moved) };
    cell.verified_ms = reached(Phase::Verified).map(|at_ms| at_ms - cell.moved.thawed_epoch_ms);
    // The packets run for a while before the command does.
    let begun_ms = reached(Phase::Staging).unwrap_or(begun_ms);
    cell.total_ms = reached(Phase::Announced).map(|at_ms| at_ms - begun_ms);
    cell.row = json!({ "reached": row.reached, "counters": row.counters });
    watch(site, &mut cell, to)?;
    Ok(cell)
}

/// The router goes by hand, and its new host finds out.
pub(super) fn paper(lab: &Lab, site: &mut Site, at: Setting, to: &str) -> Result<Cell> {
    site.vm.set_pace(at.pace())?;
    let sessions = site.r1.watch()?.sessions()?;
    let from = site.vm.node()?;
    let before = site.migrations()?.len();
    let go = || {
        let moved = site.vm.move_by_hand(&from, to)?;
        let is_there = |line: &SessionLine| line.is_up() == Some(true) && line.node.as_deref() == Some(to);
        let (_, line) = sessions.wait(&format!("the session at {to}"), LIMIT, is_there)?;
        let seq = line.seq;
        let (told, _) = sessions.wait("all tables to be in the switch", LIMIT, |line| {
            line.state.is_none() && line.acked >= seq
        })?;
        wait_for("the new host to have the router's addresses", LIMIT, || Ok(site.check_owner(to).ok()))?;
        Ok((moved, told))
    };
    let ((moved, told), seen) = measure::during(lab, site, at.rate(), go)?;
    let told_ms = epoch_ms()? - told.elapsed().as_secs_f64() * 1000.0;
    let mut cell = Cell::new(at, seen, moved);
    cell.verified_ms = Some(told_ms - cell.moved.thawed_epoch_ms);
    let after_thaw = Duration::from_nanos(cell.moved.ended_ns.saturating_sub(cell.moved.thawed_ns));
    let bare_ms = (cell.moved.took() - after_thaw).as_secs_f64() * 1000.0;
    cell.total_ms = cell.verified_ms.map(|verified_ms| bare_ms + verified_ms);
    if let Some(row) = site.migrations()?.get(before) {
        cell.row = json!({ "reached": row.reached, "counters": row.counters });
    }
    watch(site, &mut cell, to)?;
    Ok(cell)
}

/// The router goes by hand, and forwards by itself; what it costs is until its packets go on.
pub(super) fn plain(lab: &Lab, site: &mut Site, at: Setting, to: &str) -> Result<Cell> {
    site.vm.set_pace(at.pace())?;
    let from = site.vm.node()?;
    let (moved, seen) = measure::during(lab, site, at.rate(), || site.vm.move_by_hand(&from, to))?;
    let mut cell = Cell::new(at, seen, moved);
    let on_ms = cell.seen.gap_end_ms - cell.moved.thawed_epoch_ms;
    let until_thaw = Duration::from_nanos(cell.moved.thawed_ns.saturating_sub(cell.moved.begun_ns));
    cell.verified_ms = Some(on_ms);
    cell.total_ms = Some(until_thaw.as_secs_f64() * 1000.0 + on_ms);
    watch(site, &mut cell, to)?;
    Ok(cell)
}

/// What the bridge between has thought of the move.
fn watch(site: &mut Site, cell: &mut Cell, to: &str) -> Result<()> {
    let changes = site.watch.changes()?;
    cell.flaps = u64::try_from(measure::flaps(&changes, &fabric_port(to)))?;
    Ok(())
}

fn drops(site: &Site) -> Result<Drops> {
    let hosts = site.nodes.iter().map(Node::host);
    Drops::so_far(hosts, site.h.iter().map(EndHost::netns))
}

fn epoch_ms() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs_f64()
        * 1000.0)
}
