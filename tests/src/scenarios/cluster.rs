//! `cluster`: the database on three hosts, whose members are cut off and killed while an operator writes all the time
//! and packets are routed between and inside the hosts.
//!
//! Every write that was acknowledged is there at the end, and every packet has come. A host without the database goes
//! on: its guest's routes become flows, also those of a daemon that is killed and starts while there is no database
//! anywhere; when the database is back, only differences are written. The controls are a copy of a member's file that is
//! older than the last writes, a daemon that starts without what it had kept, and a trunk that is cut.

mod reported;
mod rows;
mod site;
mod writer;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dom0_server::db::table;
use serde_json::{Map, Value, json};

use self::reported::Reported;
use self::site::{NAMES, Site, Wire};
use self::writer::{Writer, Written};
use crate::benches::Options;
use crate::node::Node;
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cluster",
    about: "the database on three hosts: members cut off and killed, under writes and packets (--one-by-one false)",
    memory_mib: 1024,
    limit: Duration::from_secs(480),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("lost_rows", "0"),
        ("probe_loss", "0"),
        ("rewritten_rows", "0"),
        ("rewritten_rows_after_restart", "0"),
        ("control_flows_without_kept", "0"),
        ("control_lost_rows", "more than 0"),
        ("control_probe_loss", "more than 0"),
    ],
    run,
};

/// In the suite, after the leader not each member is killed as well: it takes time and shows the same.
pub(super) const SUITE_ARGS: &[&str] = &["--one-by-one", "false"];

const LIMIT: Duration = Duration::from_secs(30);
/// A command that needs a database that is away is to end within so many seconds, and a little for its start.
const TIMEOUT_S: u32 = 3;
const START: Duration = Duration::from_secs(2);
/// After what a node has to say: whatever it says beside is said by then.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the trunk is cut for the control.
const CUT: Duration = Duration::from_millis(300);
/// VLANs of segments that are added while something is away.
const VLANS: [u16; 3] = [301, 302, 303];

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let is_one_by_one = options.take("--one-by-one", true)?;
    options.end()?;
    let site = Site::build(lab)?;
    lab.ready()?;
    lab.step("end hosts reach each other; the writer begins");
    site.wait_reachable()?;
    let probes = site.probes(lab)?;
    let writer = Writer::start(site.sockets());
    let mut trial = Trial { lab, site, writer, figures: Map::new(), flows: 0 };
    trial.writer.taken_after(Instant::now(), LIMIT)?;
    trial.minority_cut_off()?;
    trial.node_cut_off()?;
    let older = lab.work().join("older.db");
    trial.site.seats[0].member.copy(&older)?;
    trial.leader_killed()?;
    if is_one_by_one {
        trial.others_killed()?;
    }
    trial.all_killed()?;
    let Trial { site, writer, mut figures, flows, .. } = trial;

    lab.step("what was acknowledged is there, what was sent has come");
    let acknowledged = writer.stop()?;
    let lost = lost(&site, &acknowledged)?;
    let (mut sent, mut loss) = (0, 0);
    for probe in probes {
        let report = probe.stop()?;
        ensure!(report.duplicated == 0 && report.foreign == 0, "a probe: {report:?}");
        sent += report.sent;
        loss += report.lost;
    }
    let control_lost = absent(&acknowledged, &rows::names_in(&older)?);
    let control = site.across(lab)?;
    site.trunk.set_link(site.seats[1].node.host(), false)?;
    std::thread::sleep(CUT);
    site.trunk.set_link(site.seats[1].node.host(), true)?;
    let control = control.stop()?;

    let pause = writer::longest_pause(&acknowledged);
    let rest = json!({
        "lost_rows": lost, "acknowledged": acknowledged.len(), "control_lost_rows": control_lost,
        "probe_loss": loss, "probe_sent": sent, "control_probe_loss": control.lost,
        "flows_while_away": flows, "longest_write_pause_ms": ms(pause),
    });
    figures.extend(rest.as_object().cloned().unwrap_or_default());
    let figures = Value::Object(figures);
    ensure!(lost == 0, "acknowledged rows are lost: {figures}");
    ensure!(loss == 0 && sent > 1000, "packets are lost: {figures}");
    ensure!(control_lost > 0 && control.lost > 0, "a control finds nothing: {figures}");
    for rewritten in ["rewritten_rows", "rewritten_rows_after_restart"] {
        ensure!(figures[rewritten] == 0, "what was there was written again: {figures}");
    }
    Ok(figures)
}

/// How many of the acknowledged rows a member does not have, at most, once it has the last.
fn lost(site: &Site, acknowledged: &[Written]) -> Result<usize> {
    let last = acknowledged.last().context("nothing was acknowledged")?;
    let mut lost = 0;
    for (socket, name) in site.sockets().iter().zip(NAMES) {
        let found = wait_for(&format!("the last row at the member {name}"), LIMIT, || {
            let found = rows::names(socket)?;
            Ok(found.contains(&last.name).then_some(found))
        })?;
        lost = lost.max(absent(acknowledged, &found));
    }
    Ok(lost)
}

fn absent(acknowledged: &[Written], found: &BTreeSet<String>) -> usize {
    acknowledged.iter().filter(|row| !found.contains(&row.name)).count()
}

struct Trial<'a> {
    lab: &'a Lab,
    site: Site,
    writer: Writer,
    figures: Map<String, Value>,
    /// Routes that became flows and were withdrawn again while a host was without the database.
    flows: usize,
}

impl Trial<'_> {
    fn took(&mut self, what: &str, time: Duration) {
        self.figures.insert(what.to_owned(), ms(time).into());
    }

    /// The network of the members is cut off one host: its member is out of contact, its daemon goes to another.
    fn minority_cut_off(&mut self) -> Result<()> {
        let (at, others) = (2, [0, 1]);
        self.lab.step("the member of host c is cut off");
        let begun = Instant::now();
        self.site.set(at, Wire::Raft, false)?;
        let taken = self.writer.taken_after(begun, LIMIT)?;
        self.took("minority_cut_off_ms", taken);
        self.site.wait_contact(at, false)?;
        let said = self.refused(&[at], &["network", "add", "nobody"])?;
        ensure!(said.contains("has no contact with the cluster"), "at a member cut off: {said}");
        let begun = Instant::now();
        self.segment(&others, 0, LIMIT)?;
        self.took("minority_cut_off_change_ms", begun.elapsed());
        self.site.wait_vlan(at, VLANS[0])?;
        let begun = Instant::now();
        self.site.set(at, Wire::Raft, true)?;
        self.site.wait_contact(at, true)?;
        self.took("minority_healed_ms", begun.elapsed());
        Ok(())
    }

    /// Both networks are cut off one host: its daemon has no database. Its guest's routes become flows all the same.
    fn node_cut_off(&mut self) -> Result<()> {
        let (at, others) = (1, [0, 2]);
        self.lab.step("host b is cut off from the database");
        let begun = Instant::now();
        self.site.set(at, Wire::Raft, false)?;
        self.site.set(at, Wire::Clients, false)?;
        let taken = self.writer.taken_after(begun, LIMIT)?;
        self.took("node_cut_off_ms", taken);
        self.said(at, "no XenFlow database: going on with what is known")?;
        self.flows += self.site.updates(at)?;
        let late = self.late_segment(&others, 1)?;
        ensure!(late.contains("not in every switch") && late.contains("b (has "), "who is late: {late}");
        self.lab.step("host b is back");
        let reported = Reported::follow(self.site.sockets()[0].clone(), LIMIT)?;
        let begun = Instant::now();
        self.site.set(at, Wire::Raft, true)?;
        self.site.set(at, Wire::Clients, true)?;
        self.site.wait_vlan(at, VLANS[1])?;
        self.took("node_healed_ms", begun.elapsed());
        let is_report = |change: &ovsdb::RowChange| {
            &*change.table == table::STATUS
                && change.new.as_ref().is_some_and(|row| row.str("router") == Ok("r1"))
        };
        let changes = reported.changes(&[NAMES[at]], ("b's report of r1", LIMIT), is_report, SETTLE)?;
        self.figures.insert("written_rows_after_return".to_owned(), changes.len().into());
        self.figures.insert("rewritten_rows".to_owned(), reported::rewritten(&changes).into());
        self.site.wait_contact(at, true)
    }

    fn leader_killed(&mut self) -> Result<()> {
        let leader = self.site.leader()?;
        self.lab.step(format!("kill -9 of the leader, on host {}", NAMES[leader]));
        let taken = self.kill(leader)?;
        self.took("leader_killed_ms", taken);
        Ok(())
    }

    fn others_killed(&mut self) -> Result<()> {
        for (at, name) in NAMES.into_iter().enumerate() {
            self.lab.step(format!("kill -9 of the member of host {name}"));
            let taken = self.kill(at)?;
            self.took(&format!("{name}_killed_ms"), taken);
        }
        Ok(())
    }

    /// Kills a member and starts it again once writes are taken without it; how long that took.
    fn kill(&mut self, at: usize) -> Result<Duration> {
        let begun = Instant::now();
        self.site.seats[at].member.kill()?;
        let taken = self.writer.taken_after(begun, LIMIT)?;
        self.site.revive(at)?;
        Ok(taken)
    }

    fn all_killed(&mut self) -> Result<()> {
        self.lab.step("kill -9 of all members");
        let reported = Reported::follow(self.site.sockets()[0].clone(), LIMIT)?;
        for seat in &mut self.site.seats {
            seat.member.kill()?;
        }
        for at in 0..NAMES.len() {
            self.flows += self.site.updates(at)?;
        }
        let said = self.refused(&[0, 1, 2], &["network", "add", "nobody"])?;
        ensure!(said.contains("cannot connect to unix:"), "without any member: {said}");
        let (kept, bare) = (1, 2);
        self.daemons_killed(kept, bare)?;
        self.lab.step("all members start again");
        let begun = Instant::now();
        for seat in &mut self.site.seats {
            seat.member.start(seat.node.host())?;
        }
        let taken = self.writer.taken_after(begun, LIMIT)?;
        self.took("all_restarted_ms", taken);
        for at in 0..NAMES.len() {
            self.site.wait_contact(at, true)?;
        }
        let begun = Instant::now();
        self.segment(&[0, 1, 2], 2, LIMIT)?;
        self.took("all_restarted_change_ms", begun.elapsed());
        self.flows += self.site.remove_routes(bare)?;
        let has_started = |change: &ovsdb::RowChange| {
            let started =
                |row: &Option<Arc<ovsdb::Row>>| row.as_ref().and_then(|row| row.int("started_ms").ok());
            &*change.table == table::NODE_STATUS && started(&change.old) != started(&change.new)
        };
        let changes = reported.changes(&NAMES, ("the report of a start", LIMIT), has_started, SETTLE)?;
        self.figures.insert("written_rows_after_restart".to_owned(), changes.len().into());
        self.figures.insert("rewritten_rows_after_restart".to_owned(), reported::rewritten(&changes).into());
        Ok(())
    }

    /// Two daemons are killed and start while there is no database anywhere. One has what it had kept, and goes on with
    /// that. The other has not: it leaves the switch as it is, and its guest's routes wait for the database.
    fn daemons_killed(&mut self, kept: usize, bare: usize) -> Result<()> {
        self.lab.step("kill -9 of the daemons of b and c; that of c loses what it had kept");
        let last = format!("late{}", VLANS[1]);
        for at in [kept, bare] {
            let file = self.site.seats[at].kept();
            wait_for(&format!("{last} in {}", file.display()), LIMIT, || {
                Ok(std::fs::read_to_string(&file)?.contains(&last).then_some(()))
            })?;
            self.site.seats[at].node.kill_daemon()?;
        }
        std::fs::remove_file(self.site.seats[bare].kept())?;
        self.site.seats[bare].node.spawn_daemon()?;
        self.site.add_routes(bare)?;
        let begun = Instant::now();
        self.site.seats[kept].node.start_daemon()?;
        self.said(kept, "works with the desired state of")?;
        self.flows += self.site.updates(kept)?;
        self.took("daemon_restarted_while_away_ms", begun.elapsed());
        self.site.seats[bare].node.daemon()?.check()?;
        let flows = self.site.flows(bare)?;
        self.figures.insert("control_flows_without_kept".to_owned(), flows.into());
        ensure!(flows == 0, "{flows} routes are flows of a daemon that knows of no router");
        Ok(())
    }

    fn command(&self, members: &[usize], seconds: u64) -> Command {
        let mut command = Command::new(self.site.seats[0].node.program());
        command.args(["--db", &self.site.remotes(members), "--timeout", &seconds.to_string()]);
        command
    }

    /// Adds a segment and waits until every switch floods in it.
    fn segment(&self, members: &[usize], number: usize, limit: Duration) -> Result<()> {
        let mut command = self.command(members, limit.as_secs());
        crate::process::output(command.arg("--wait").args(segment(number)))?;
        Ok(())
    }

    /// The same, when one host does not get to know of it: what is said.
    fn late_segment(&self, members: &[usize], number: usize) -> Result<String> {
        let mut command = self.command(members, TIMEOUT_S.into());
        failed(command.arg("--wait").args(segment(number)))
    }

    /// What a command says that these members cannot do.
    fn refused(&self, members: &[usize], command: &[&str]) -> Result<String> {
        failed(self.command(members, TIMEOUT_S.into()).args(command))
    }

    /// Until a host's daemon has said so once more.
    fn said(&mut self, at: usize, text: &str) -> Result<()> {
        let node: &mut Node = &mut self.site.seats[at].node;
        node.daemon()?.wait_for_log(text, LIMIT)
    }
}

fn segment(number: usize) -> Vec<String> {
    let vlan = VLANS[number].to_string();
    ["segment", "add", &format!("late{vlan}"), "--network", "red", "--vlan", &vlan].map(str::to_owned).into()
}

/// Runs a command that must fail with exit code 1 and a message, within its time.
fn failed(command: &mut Command) -> Result<String> {
    let begun = Instant::now();
    let ran = command.output().context("cannot run xenflow")?;
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    ensure!(ran.status.code() == Some(1), "a command that cannot work ended with {}: {said}", ran.status);
    ensure!(took < Duration::from_secs(TIMEOUT_S.into()) + START, "it took {took:?} to say: {said}");
    Ok(said)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
