//! `topology`: three hosts on a learning bridge, thirty networks and two hundred routers from one file.
//!
//! The file is applied, applied again, changed, and applied once more, while packets go between end hosts behind all
//! three hosts. Network n0 is the one that lives: hosts a, b and c have a router and an end host each, and the routers
//! meet in a segment of their own. In another one addresses are learned.

mod file;
mod learned;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use self::file::{File, LIVE};
use self::learned::Open;
use crate::endhost::{EndHost, NIC};
use crate::host::Vif;
use crate::net::Netns;
use crate::node::{BRIDGE, Node, Pki};
use crate::probe::Probe;
use crate::process::{self, wait_for};
use crate::scenario::{Lab, Scenario};
use crate::trunk::{Trunk, TrunkKind};
use crate::virtual_router::{Link, VirtualRouter};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "topology",
    about: "three hosts on a learning bridge, 30 networks and 200 routers from one file, applied and changed",
    memory_mib: 1024,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("second_apply_transactions", "0"),
        ("second_apply_differences", "0"),
        ("probe_lost", "0"),
        ("learned_lost", "0"),
        ("learned_copies", "0"),
        ("control_flooded_copies", "more than 0"),
        ("control_learned_lost", "more than 0"),
        ("missing_after_wait", "0"),
        ("control_transactions", "more than 0"),
    ],
    run,
};

const LIMIT: Duration = Duration::from_secs(30);
const RATE: u32 = 100;
/// Names and addresses of what is plugged into host b before anybody has described it.
const LATE_ACCESS: [&str; 2] = ["late", "02:48:00:00:03:00"];
const LATE_VIF: [&str; 2] = ["latevif", "02:48:00:00:03:01"];

struct Site {
    // Dropped from top to bottom.
    h: Vec<EndHost>,
    open: Open,
    /// Holds the other ends of [`LATE`].
    _late: Netns,
    r: Vec<VirtualRouter>,
    trunk: Trunk,
    nodes: Vec<Node>,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let file = File::new(lab.work().join("topology.toml"));
    let (site, applied) = build(lab, &file)?;
    lab.ready()?;
    let learned = learned::run(lab, &site)?;
    lab.step("end hosts behind each host reach those behind the others");
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        site.h[from].wait_reachable(&LIVE.end_host(to), LIMIT)?;
    }
    let to = format!("{}:7000", LIVE.end_host(2)).parse()?;
    let probe = Probe::start(lab, site.h[0].netns(), site.h[2].netns(), to, RATE)?;

    lab.step("an access port and a vif added with --wait: at once in all switches");
    let missing = site.missing_after_wait()?;
    ensure!(missing == 0, "{missing} flows came after the command's end");

    lab.step("the same file again");
    let before = site.records()?;
    let again = site.apply(&file, "")?;
    let again_differences = differences(&again)?;
    ensure!(again_differences == 0, "applied twice, it differs: {again}");
    let second = site.records()? - before;
    ensure!(second == 0, "applied twice, it writes {second} transactions");

    lab.step("a changed file: networks, routers and VLANs come, go and change");
    file.write(true)?;
    let dry = site.apply(&file, "--dry-run")?;
    let start = Instant::now();
    let changed = site.apply(&file, "")?;
    ensure!(changed["differences"] == dry["differences"], "a dry run says something else: {dry}");
    site.wait_flows(&file, true)?;
    let changed_ms = ms(start.elapsed());
    let control = site.records()? - before;
    ensure!(control == 1, "a change is one transaction, not {control}");
    let shown = site.nodes[0].show()?;
    ensure!(shown["invalid"] == json!([]), "rows are left out: {}", shown["invalid"]);
    let report = probe.stop()?;
    ensure!(report.lost == 0 && report.sent > 200, "the probe h1 → h3: {report:?}");

    let count = |what: &str| shown[what].as_array().map_or(0, Vec::len);
    let mut figures = json!({
        "networks": count("networks"), "routers": count("routers"), "vifs": count("vifs"),
        "rows_added": applied.rows, "apply_ms": applied.apply_ms, "flows_ms": applied.flows_ms,
        "second_apply_differences": again_differences, "second_apply_transactions": second,
        "changed_rows": differences(&changed)?, "changed_to_flows_ms": changed_ms, "control_transactions": control,
        "probe_sent": report.sent, "probe_lost": report.lost, "missing_after_wait": missing,
    });
    if let (Some(figures), Value::Object(learned)) = (figures.as_object_mut(), learned) {
        figures.extend(learned);
    }
    Ok(figures)
}

/// What the first application took.
struct Applied {
    rows: usize,
    apply_ms: u64,
    /// From its beginning until all hosts had the flows.
    flows_ms: u64,
}

fn build(lab: &Lab, file: &File) -> Result<(Site, Applied)> {
    lab.step("making hosts a, b and c on a learning bridge, with one database");
    let pki = Pki::create(lab)?;
    let a = Node::create(lab, "a", &pki)?;
    let b = Node::create_with(lab, "b", &pki, &a)?;
    let c = Node::create_with(lab, "c", &pki, &a)?;
    let nodes = vec![a, b, c];
    let hosts: Vec<_> = nodes.iter().map(Node::host).collect();
    let trunk = Trunk::connect(TrunkKind::Bridge, &hosts)?;
    let (mut h, mut r) = (Vec::new(), Vec::new());
    for (at, node) in nodes.iter().enumerate() {
        node.host().vsctl(&["add-br", BRIDGE])?;
        node.host().add_port(BRIDGE, Trunk::PORT, &[])?;
        let router = VirtualRouter::described(lab, &pki, (&LIVE.router(at), LIVE.number(at)))?;
        let (lan, core) = (LIVE.lan(at), LIVE.core(at));
        let links = [
            Link { name: "lan", segment: "", address: &lan },
            Link { name: "core", segment: "", address: &core },
        ];
        router.plug(node, &links)?;
        let routes: String = (0..nodes.len()).filter(|to| *to != at).map(|to| LIVE.route(to)).collect();
        router.guest().netns().ip_batch(&routes)?;
        r.push(router);
        let end = EndHost::create(&format!("h{at}"))?;
        let (id, mac) = (LIVE.access(at), LIVE.end_host_mac(at));
        node.plug(end.netns(), NIC, &Vif { port: "end", iface_id: &id, mac: &mac, vm_uuid: None })?;
        end.configure(&format!("{}/24", LIVE.end_host(at)), Some(&LIVE.gateway(at)))?;
        h.push(end);
    }
    let open = Open::build(&nodes)?;
    let late = Netns::create("late")?;
    for [name, mac] in [LATE_ACCESS, LATE_VIF] {
        nodes[1].plug(&late, name, &Vif { port: name, iface_id: name, mac, vm_uuid: None })?;
        late.ip(&["link", "set", name, "up"])?;
    }
    let mut site = Site { h, open, _late: late, r, trunk, nodes };
    for node in &mut site.nodes {
        node.start()?;
    }
    lab.step("applying the file");
    file.write(false)?;
    let start = Instant::now();
    let said = site.apply(file, "")?;
    let apply_ms = ms(start.elapsed());
    site.wait_flows(file, false)?;
    let flows_ms = ms(start.elapsed());
    for router in &mut site.r {
        router.start_client()?;
    }
    for (at, node) in site.nodes.iter().enumerate() {
        node.wait_session(&LIVE.router(at), LIMIT)?;
    }
    let rows = differences(&said)?;
    Ok((site, Applied { rows, apply_ms, flows_ms }))
}

impl Site {
    /// Adds an access port and a vif that are plugged into host b already, each with `--wait`, and says how many switches do
    /// not have its address when that ends.
    fn missing_after_wait(&self) -> Result<usize> {
        let mut missing = 0;
        for ([name, mac], what) in [
            (LATE_ACCESS, "access add late --segment lan1"),
            (LATE_VIF, "vif add latevif --router r1 --segment lan0"),
        ] {
            let without = |node: &&Node| -> Result<bool> {
                let flows = node.host().ofctl(&["--no-stats", "dump-flows", BRIDGE, "table=5"])?;
                Ok(!flows.contains(&format!("dl_dst={mac} ")))
            };
            let count = || -> Result<usize> {
                let all: Vec<bool> = self.nodes.iter().map(|node| without(&node)).collect::<Result<_>>()?;
                Ok(all.into_iter().filter(|is_without| *is_without).count())
            };
            ensure!(count()? == self.nodes.len(), "{name} is in a switch before it is configured");
            self.nodes[1].configure(&format!("--wait --timeout {} {what} --mac {mac}", LIMIT.as_secs()))?;
            missing += count()?;
        }
        Ok(missing)
    }

    /// What `xenflow apply` says.
    fn apply(&self, file: &File, option: &str) -> Result<Value> {
        let path = file.path().display().to_string();
        let args = ["--json", "apply", "-f", &path, option];
        let args: Vec<_> = args.into_iter().filter(|arg| !arg.is_empty()).collect();
        Ok(serde_json::from_str(&self.nodes[0].xenflow(&args)?)?)
    }

    /// Until each host floods in every segment of the file and in no other.
    fn wait_flows(&self, file: &File, is_changed: bool) -> Result<()> {
        let wanted = file.vlans(is_changed);
        for node in &self.nodes {
            wait_for(&format!("the segments' flows on {}", node.host().name()), LIMIT, || {
                let flows = node.host().ofctl(&["--no-stats", "dump-flows", BRIDGE, "table=7"])?;
                let vlans = flows.lines().filter_map(|flow| {
                    let (_, after) = flow.split_once("dl_vlan=")?;
                    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
                });
                Ok((vlans.collect::<std::collections::BTreeSet<u16>>() == wanted).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Transactions so far that have written desired state.
    fn records(&self) -> Result<usize> {
        let database = self.nodes[0].host().rundir().join("xenflow.db").display().to_string();
        let log =
            process::output(std::process::Command::new("ovsdb-tool").args(["-mm", "show-log", &database]))?;
        let tables = ["Node", "Network", "Segment", "Router", "Vif", "Access", "Traffic_Class"];
        let is_desired = |record: &&str| {
            record.lines().any(|line| {
                tables.iter().any(|table| line.trim_start().starts_with(&format!("table {table} ")))
            })
        };
        Ok(log.split("\nrecord ").filter(is_desired).count())
    }
}

fn differences(said: &Value) -> Result<usize> {
    Ok(said["differences"].as_array().context("no differences")?.len())
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
