//! `crossing`: two routers change places, each moving to the node that the other one leaves, there and back, under numbered packets
//! through both and to both. The database has three members; on the way back one that was the leader is away.
//!
//! The control: the link of a node is down for a moment.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dom0_server::db::migration::{Migration, Phase};
use serde_json::{Map, Value, json};

use crate::moving::measure::{Running, Seen};
use crate::moving::site::{NODES, Site, address};
use crate::moving::vm::{Pace, Vif, Vm};
use crate::probe::Probe;
use crate::process::{Process, wait_for};
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::{CONTROL, VirtualRouter, vif_mac};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "crossing",
    about: "two routers change places, there and back, under packets; back while a member of the database is away",
    memory_mib: 1024,
    limit: Duration::from_secs(240),
    needs_product: true,
    in_suite: true,
    targets: &[("lost", "0"), ("duplicated", "0"), ("control_lost", "0"), ("lost_by_cut", "more than 0")],
    run,
};

const LIMIT: Duration = Duration::from_secs(120);
/// Packets a second: in all by r1, and by each way through r2.
const RATE: u32 = 400;
const RATE_R2: u32 = 100;
/// To r2 itself.
const CONTROL_RATE: u32 = 25;
const ROUTES: u32 = 100;
const PACE: Pace = Pace { copy_ms: 500, freeze_ms: 500 };
/// The member that is killed: that of node a.
const AWAY: usize = 0;
/// The number of r2; the bystander has that before.
const NUMBER: u16 = 3;
/// An address of h3 that others reach by r2.
const BY_R2: &str = "198.51.100.1";
const PORT: u16 = 7300;

/// Beside r1 of [`Site`], which is on a at first: one that is on b.
struct Second {
    // Dropped from top to bottom.
    _vm: Vm,
    r2: VirtualRouter,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = Site::build_clustered(lab, PACE)?;
    site.grow(lab, ROUTES)?;
    let second = Second::build(lab, &mut site)?;
    lab.ready()?;
    let mut figures = Map::new();
    let mut all = Seen::default();
    for (name, [to, r2_to]) in [("there", ["b", "a"]), ("back", ["a", "b"])] {
        lab.step(format!("r1 moves to {to} while r2 moves to {r2_to}"));
        if name == "back" {
            ensure!(site.members[AWAY].status()?["role"] == "leader", "the first member is no leader");
            site.members[AWAY].kill()?;
        }
        let running = second.start(lab, &site)?;
        let rows = cross(lab, &site, name, [("r1", to), ("r2", r2_to)])?;
        let seen = second.stop(running)?;
        site.check_owner(to)?;
        site.check_owner_of(NUMBER, r2_to)?;
        let reached: Vec<_> = rows.iter().map(|row| &row.reached).collect();
        figures.insert(name.into(), json!({ "packets": seen.figures(), "reached": reached }));
        all.merge(&seen);
    }

    site.members[AWAY].start(site.nodes[AWAY].host())?;

    lab.step("control: a node is cut off for a moment");
    let running = second.start(lab, &site)?;
    site.cut()?;
    let control = second.stop(running)?;
    for (key, value) in all.sums().into_iter().chain([("lost_by_cut", control.lost)]) {
        figures.insert(key.into(), value.into());
    }
    let figures = Value::Object(figures);
    ensure!(control.lost > 0, "the control finds nothing: {figures}");
    let wrong: Vec<_> =
        ["lost", "duplicated", "control_lost"].into_iter().filter(|key| figures[*key] != 0).collect();
    ensure!(wrong.is_empty(), "{} must be 0: {figures}", wrong.join(", "));
    Ok(figures)
}

/// Moves both at the same time; the rows at their ends.
fn cross(lab: &Lab, site: &Site, name: &str, routers: [(&str, &str); 2]) -> Result<Vec<Migration>> {
    let before = site.migrations()?.len();
    let follow = |(router, to): (&str, &str)| {
        let mut command = site.nodes[2].xenflow_command();
        command.args(["migrate", router, to, "--via", "lab"]);
        let log = lab.results().join(format!("{name}-{router}.log"));
        Process::spawn(&format!("xenflow migrate {router}"), &mut command, &log)
    };
    let _followers = [follow(routers[0])?, follow(routers[1])?];
    let rows = wait_for("both moves to end", LIMIT, || {
        let rows = site.migrations()?.split_off(before);
        Ok((rows.len() == 2 && rows.iter().all(|row| row.phase.is_over())).then_some(rows))
    })?;
    for row in &rows {
        let is_right =
            routers.iter().any(|(router, to)| (row.router.as_str(), row.to.as_str()) == (router, to));
        ensure!(is_right && row.phase == Phase::Done, "a router did not go where it was to go: {row:?}");
    }
    // Neither was done before the other one began.
    let at = |row: &Migration, phase: Phase| row.reached.get(phase.as_str()).copied();
    let begun = rows.iter().filter_map(|row| at(row, Phase::Staging)).max();
    let arrived = rows.iter().filter_map(|row| at(row, Phase::Arrived)).min();
    ensure!(begun < arrived, "the routers moved one after the other: {rows:?}");
    Ok(rows)
}

impl Second {
    fn build(lab: &Lab, site: &mut Site) -> Result<Self> {
        lab.step("making r2 on b");
        let mut r2 = VirtualRouter::described(lab, &site.pki, ("r2", NUMBER))?;
        let (mut configuration, mut addresses) = ("router add r2 --network red\n".to_owned(), String::new());
        let mut vifs = Vec::new();
        let mut vif = |interface: String, index: usize| {
            let (port, iface_id) = (r2.port(&interface), format!("r2-{interface}"));
            vifs.push(Vif { interface, port, iface_id, mac: vif_mac(NUMBER, index), tag: None });
        };
        for index in 0..NODES.len() {
            let (n, mac) = (index + 1, vif_mac(NUMBER, index));
            configuration.push_str(&format!("vif add r2-lan{n} --router r2 --segment lan{n} --mac {mac}\n"));
            addresses.push_str(&format!("address add 10.{n}.0.2/24 dev lan{n}\n"));
            vif(format!("lan{n}"), index);
        }
        configuration
            .push_str(&format!("vif add r2-{CONTROL} --router r2 --control --mac {}\n", vif_mac(NUMBER, 99)));
        vif(CONTROL.to_owned(), 99);
        site.nodes[2].configure(&configuration)?;
        let hosts = [&site.nodes[1], &site.nodes[0], &site.nodes[2]].map(|node| node.host());
        let vm = Vm::create(lab, r2.guest().netns(), vifs, &hosts, PACE)?;
        r2.guest().netns().ip_batch(&format!("{addresses}route add {BY_R2}/32 via {}\n", address(2)))?;
        site.h[2].netns().ip_batch(&format!("address add {BY_R2}/32 dev lo\n"))?;
        for (index, host) in site.h.iter().take(2).enumerate() {
            host.netns().ip_batch(&format!("route add {BY_R2}/32 via 10.{}.0.2\n", index + 1))?;
        }
        r2.start_client()?;
        site.nodes[1].wait_session("r2", LIMIT)?;
        for host in site.h.iter().take(2) {
            host.wait_reachable(BY_R2, LIMIT)?;
        }
        Ok(Self { _vm: vm, r2 })
    }

    /// Packets through both routers and to both: r1's, those through r2, and those to it.
    fn start(&self, lab: &Lab, site: &Site) -> Result<(Running, Vec<Probe>)> {
        let running = Running::start(lab, site, RATE)?;
        let mut probes = Vec::new();
        for (port, host) in (PORT..).zip(site.h.iter().take(2)) {
            let at = format!("{BY_R2}:{port}").parse()?;
            probes.push(Probe::start_ahead(lab, host.netns(), site.h[2].netns(), at, RATE_R2)?);
        }
        let at = format!("10.3.0.2:{PORT}").parse()?;
        let guest = self.r2.guest().netns();
        probes.push(Probe::start_ahead(lab, site.h[2].netns(), guest, at, CONTROL_RATE)?);
        Ok((running, probes))
    }

    /// What has become of them.
    fn stop(&self, (running, probes): (Running, Vec<Probe>)) -> Result<Seen> {
        let mut seen = running.stop()?;
        let mut reports = Probe::stop_all(probes)?;
        let control = reports.pop().context("there is a probe to r2 itself")?;
        reports.iter().for_each(|report| seen.add(report));
        seen.control_sent += control.sent;
        seen.control_lost += control.lost;
        seen.control_duplicated += control.duplicated;
        Ok(seen)
    }
}
