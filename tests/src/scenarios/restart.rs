//! `restart`: the switch and its database end, well or badly, under a probe through a router with many routes, and
//! all comes back by itself. At last the guest's client ends, and its tables are held for the hold time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::endhost::{EndHost, NIC};
use crate::node::Node;
use crate::one_router::{GATEWAY, H1, H2, OneRouter};
use crate::probe::Probe;
use crate::process::{self, retry, wait_for};
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::VirtualRouter;

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "restart",
    about: "ovs-vswitchd and ovsdb-server end and start again, well and by kill -9, under a probe",
    memory_mib: 1024,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("database-exit.lost", "0"),
        ("database-kill.lost", "0"),
        ("switch-exit.lost", "0"),
        ("switch-kill.lost", "0"),
        ("both-kill.lost", "0"),
        ("control-disarmed.lost", "more than 0"),
        ("hold-time.lost", "0"),
        ("hold-time.transit_while_held", "0"),
        ("hold-time.transit_after", "more than 0"),
    ],
    run,
};

const LIMIT: Duration = Duration::from_secs(30);
const ROUTES: u32 = 1000;
const RATE: u32 = 500;
/// How long something that ended is away: what a service manager takes at least.
const AWAY: Duration = Duration::from_millis(300);
/// The probe goes on for so long after all is in sync: the switch revalidates within a second.
const AFTER: Duration = Duration::from_secs(1);
/// `hold_time_s`, and how long after the session's loss all is looked at that must still be as it was.
const HOLD: Duration = Duration::from_secs(3);
const HELD: Duration = Duration::from_secs(1);
/// What `xenflow show` says of a router after that.
const OVER: &str = "no session for the hold time: nothing is forwarded for it";
/// Key of `other_config` that makes a starting switch leave the kernel's flows alone until it is told.
const RESTORE: &str = "flow-restore-wait";

struct Site {
    h: [EndHost; 2],
    r1: VirtualRouter,
    node: Node,
    /// The flows that do not come and go with traffic.
    flows: Vec<String>,
    tried: u32,
}

/// What ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Switch,
    Database,
    Both,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As a service manager ends it.
    Exit,
    /// kill -9.
    Kill,
}

const TRIES: [(&str, Part, End); 5] = [
    ("database-exit", Part::Database, End::Exit),
    ("database-kill", Part::Database, End::Kill),
    ("switch-exit", Part::Switch, End::Exit),
    ("switch-kill", Part::Switch, End::Kill),
    ("both-kill", Part::Both, End::Kill),
];

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = build(lab)?;
    lab.ready()?;
    let mut figures = Map::new();
    for (name, part, end) in wanted(lab.args())? {
        lab.step(format!("{name}, under {RATE} packets/s"));
        let seen = site.attempt(lab, part, end).with_context(|| format!("in {name}"))?;
        ensure!(seen["lost"] == 0, "{name} lost packets: {seen}");
        // Of several of one name the slowest to be in sync.
        let slower = figures
            .get(name)
            .is_none_or(|before: &Value| before["in_sync_s"].as_f64() < seen["in_sync_s"].as_f64());
        if slower {
            figures.insert(name.into(), seen);
        }
    }
    lab.step("control: kill -9 of a switch that nobody armed, with nobody to fill its tables");
    let seen = site.disarmed(lab)?;
    ensure!(
        seen["lost"].as_u64().is_some_and(|lost| lost > 0),
        "the tables were empty and nothing was lost: {seen}"
    );
    figures.insert("control-disarmed".into(), seen);
    lab.step(format!("the guest's client ends, with a hold time of {} s", HOLD.as_secs()));
    figures.insert("hold-time".into(), site.hold(lab).context("in hold-time")?);
    Ok(Value::Object(figures))
}

/// All tries, or those that the arguments name, as often as they do.
fn wanted(names: &[String]) -> Result<Vec<(&'static str, Part, End)>> {
    let find = |name: &String| TRIES.into_iter().find(|(known, _, _)| known == name);
    if names.is_empty() {
        return Ok(TRIES.to_vec());
    }
    names.iter().map(|name| find(name).with_context(|| format!("there is no try {name:?}"))).collect()
}

fn build(lab: &Lab) -> Result<Site> {
    lab.step(format!("making host a with r1 between h1 and h2, and {ROUTES} routes"));
    let mut site = OneRouter::create(lab)?;
    let h = site.end_hosts()?;
    let routes: String =
        (0..ROUTES).map(|k| format!("route add 10.{}.{}.0/24 via {H2}\n", 100 + k / 250, k % 250)).collect();
    site.guest().ip_batch(&routes)?;
    site.start(LIMIT)?;
    let OneRouter { r1, node, .. } = site;
    h[0].wait_reachable(H2, LIMIT)?;
    let routed =
        |flows: &[String]| flows.iter().filter(|flow| flow.contains("table=3,")).count() > ROUTES as usize;
    let flows = wait_for("flows of all routes, and to both neighbors", LIMIT, || {
        let flows = lasting(&node)?;
        let known = |host: &str| flows.iter().any(|flow| flow.contains(&format!("nw_dst={host} ")));
        Ok((routed(&flows) && known(H2) && known(H1)).then_some(flows))
    })?;
    Ok(Site { h, r1, node, flows, tried: 0 })
}

/// The flows that do not come and go with traffic, sorted: without learned ones, and without the link-local
/// neighbors, which a guest may give up and find again.
pub(super) fn lasting(node: &Node) -> Result<Vec<String>> {
    let text = node.flows()?;
    let passing = |line: &str| line.contains("table=6,") || line.contains("reg8=0xfe800000");
    let kept = text.lines().filter(|line| line.contains("table=") && !passing(line));
    let mut flows: Vec<String> = kept.map(|line| line.trim().to_owned()).collect();
    flows.sort_unstable();
    Ok(flows)
}

impl Site {
    /// Whether a switch that starts now would wait for its flows.
    fn is_armed(&self) -> Result<bool> {
        let key = format!("other_config:{RESTORE}");
        let value = self.node.host().vsctl(&["--if-exists", "get", "Open_vSwitch", ".", &key])?;
        Ok(value.trim().trim_matches('"') == "true")
    }

    fn wait_armed(&self) -> Result<()> {
        wait_for("the switch to be armed for its next start", LIMIT, || Ok(self.is_armed()?.then_some(())))
    }

    /// Sender and router know their neighbors. After 15 to 45 s each would ask, three times in three seconds, and without an answer
    /// send nothing; without a switch nobody is answered, unless the datapath happens to have a flow for that. Here a switch is away
    /// for longer than that, on a host of some load for much less.
    fn confirm_neighbors(&self) -> Result<()> {
        for (ns, address, device) in
            [(self.h[0].netns(), GATEWAY, NIC), (self.r1.guest().netns(), H2, "lan2")]
        {
            ns.ip(&["neighbor", "change", address, "dev", device, "nud", "reachable"])?;
        }
        Ok(())
    }

    fn probe(&self, lab: &Lab) -> Result<Probe> {
        let to = format!("{H2}:7000").parse()?;
        let probe = Probe::start(lab, self.h[0].netns(), self.h[1].netns(), to, RATE)?;
        Ok(probe)
    }

    /// Ends a part and starts it again as a service manager would; what the probe saw comes back.
    fn attempt(&mut self, lab: &Lab, part: Part, end: End) -> Result<Value> {
        self.wait_armed()?;
        self.confirm_neighbors()?;
        let probe = self.probe(lab)?;
        let start = Instant::now();
        self.end(part, end)?;
        std::thread::sleep(AWAY);
        if part != Part::Switch {
            self.node.host_mut().start_ovsdb()?;
            // As the daemon's unit does before it starts.
            self.node.init()?;
        }
        if part != Part::Database {
            self.node.host_mut().start_vswitchd()?;
        }
        self.observe(probe, start)
    }

    /// The same without the daemon, so that nobody arms the switch and nobody fills its tables at once.
    fn disarmed(&mut self, lab: &Lab) -> Result<Value> {
        let probe = self.probe(lab)?;
        self.node.kill_daemon()?;
        self.node.host().vsctl(&["remove", "Open_vSwitch", ".", "other_config", RESTORE])?;
        ensure!(!self.is_armed()?, "{RESTORE} was removed and is there");
        let start = Instant::now();
        self.end(Part::Switch, End::Kill)?;
        self.node.host_mut().start_vswitchd()?;
        std::thread::sleep(AWAY);
        self.node.start_daemon()?;
        self.observe(probe, start)
    }

    /// A session is lost: its router's flows forward for the hold time, and are withdrawn then.
    fn hold(&mut self, lab: &Lab) -> Result<Value> {
        self.node.kill_daemon()?;
        self.node.configure_daemon(&format!("hold_time_s = {}", HOLD.as_secs()))?;
        self.node.start_daemon()?;
        self.change()?;
        let probe = self.probe(lab)?;
        let forwarded = |site: &Self| site.r1.guest().forwarded();
        let before = forwarded(self)?;
        let start = Instant::now();
        self.r1.client()?.stop()?;
        std::thread::sleep(HELD);
        let (flows, shown) = (lasting(&self.node)?, self.shown()?);
        let transit_while_held = forwarded(self)? - before;
        ensure!(flows == self.flows, "a lost session has changed {} flows", flows.len());
        ensure!(shown["state"] == "down" && shown["message"] == "", "shown of a lost session: {shown}");
        wait_for("the routes to be withdrawn", LIMIT, || {
            Ok((!self.node.flows()?.contains("nw_dst=10.100.")).then_some(()))
        })?;
        let withdrawn = start.elapsed();
        ensure!(withdrawn >= HOLD, "withdrawn after {withdrawn:?}, with a hold time of {HOLD:?}");
        let shown = wait_for("show to say that nothing is held", LIMIT, || {
            Ok(Some(self.shown()?).filter(|shown| shown["message"] == OVER))
        })?;
        let age_s = shown["age_s"].as_u64().unwrap_or_default();
        ensure!(
            age_s >= HOLD.as_secs() - 1 && shown["state"] == "down",
            "shown after the hold time: {shown}"
        );
        let text = self.node.xenflow(&["show", "router", "r1"])?;
        ensure!(text.contains("session down since ") && text.contains(" s ago)"), "shown: {text}");
        let transit_before = forwarded(self)?;
        std::thread::sleep(HELD);
        let transit_after = forwarded(self)? - transit_before;
        let report = probe.stop()?;
        // It comes back as if nothing had been.
        self.r1.start_client()?;
        wait_for("the same flows as before", LIMIT, || {
            Ok((lasting(&self.node)? == self.flows).then_some(()))
        })?;
        self.change()?;
        ensure!(
            transit_while_held == 0 && transit_after > 0 && report.lost == 0,
            "the guest forwarded {transit_while_held} packets while held, {transit_after} after; {report:?}"
        );
        Ok(json!({
            "sent": report.sent,
            "lost": report.lost,
            "withdrawn_s": (withdrawn.as_secs_f64() * 1000.0).round() / 1000.0,
            "shown_age_s": age_s,
            "transit_while_held": transit_while_held,
            "transit_after": transit_after,
        }))
    }

    /// What `xenflow show --json` says of r1's session.
    fn shown(&self) -> Result<Value> {
        let shown = self.node.show()?;
        let rows = shown["status"].as_array().context("no status")?;
        Ok(rows.iter().find(|row| row["router"] == "r1").context("nothing is shown of r1")?.clone())
    }

    fn end(&mut self, part: Part, end: End) -> Result<()> {
        let host = self.node.host_mut();
        if part != Part::Database {
            match end {
                End::Exit => {
                    host.appctl(&["exit"])?;
                    host.vswitchd()?.wait(LIMIT)?;
                }
                End::Kill => host.kill_vswitchd()?,
            }
        }
        if part != Part::Switch {
            if end == End::Exit {
                let control = host.rundir().join("ovsdb-server.ctl");
                process::output(host.command("ovs-appctl").arg("-t").arg(&control).arg("exit"))?;
                wait_for("ovsdb-server to end", LIMIT, || Ok((!control.exists()).then_some(())))?;
            }
            // After a proper end this only collects it.
            host.kill_ovsdb()?;
        }
        Ok(())
    }

    /// Waits until all is as before, and a change of the guest arrives; then stops the probe.
    fn observe(&mut self, probe: Probe, start: Instant) -> Result<Value> {
        // A switch that has just been started does not listen at once.
        retry("the same flows as before", LIMIT, || {
            let now = lasting(&self.node)?;
            let only = |these: &[String], others: &[String]| {
                these.iter().find(|flow| others.binary_search(flow).is_err()).cloned()
            };
            let (gone, new) = (only(&self.flows, &now), only(&now, &self.flows));
            if gone.is_some() {
                // A neighbor that the guest asks after while no packet gets through fails. It is there again when
                // somebody sends to it.
                self.h[1].ping(H1, 1, 100)?;
            }
            ensure!(now == self.flows, "the flows are other ones: {gone:?} is gone, {new:?} has come");
            Ok(())
        })?;
        let in_sync = start.elapsed();
        self.node.daemon()?.check()?;
        self.wait_armed()?;
        self.change()?;
        std::thread::sleep(AFTER);
        let report = probe.stop()?;
        ensure!(report.duplicated == 0, "the probe: {report:?}");
        let silent = if report.lost == 0 { 0.0 } else { report.longest_gap_ms / 1000.0 };
        Ok(json!({
            "sent": report.sent,
            "lost": report.lost,
            "silent_s": (silent * 1000.0).round() / 1000.0,
            "in_sync_s": (in_sync.as_secs_f64() * 1000.0).round() / 1000.0,
        }))
    }

    /// A route comes and goes, and becomes a flow and none.
    fn change(&mut self) -> Result<()> {
        self.tried += 1;
        let prefix = format!("10.200.{}.0/24", self.tried);
        for (verb, there) in [("add", true), ("del", false)] {
            self.r1.guest().netns().ip(&["route", verb, &prefix, "via", H2])?;
            wait_for(&format!("route {verb} {prefix} in the flows"), LIMIT, || {
                Ok((self.node.flows()?.contains(&format!("nw_dst={prefix} ")) == there).then_some(()))
            })?;
        }
        Ok(())
    }
}
