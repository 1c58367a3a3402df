//! `oracle`: the kernel as oracle, the switch as witness. A router with random tables; for each of many destinations
//! its kernel says what it would do, and a trace through the flows shows what the host does.
//!
//! Ends with its own negative controls: flows are broken on purpose, and the same comparison must see it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::host::Vif;
use crate::net::Netns;
use crate::node::{BRIDGE, Node, Pki};
use crate::oracle::Family;
use crate::oracle::bench::Bench;
use crate::oracle::plan::{DOWN, FLAPS, LINKS, Plan, TABLE_MAIN, TABLE_RED};
use crate::oracle::questions::Destinations;
use crate::oracle::random::Random;
use crate::oracle::tables::{self, Tables};
use crate::oracle::{controls, obstacles};
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::{Link, VirtualRouter};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "oracle",
    about: "random routing tables: where the flows send a packet against where the guest's kernel would",
    memory_mib: 1536,
    limit: Duration::from_secs(600),
    needs_product: true,
    in_suite: true,
    targets: &[("wrong", "0"), ("punted_unexplained", "0"), ("leaked", "0"), ("groups_unused_member", "0")],
    run,
};

/// What may be said after `lab run oracle --`.
#[derive(Debug, Parser)]
#[command(name = "oracle", no_binary_name = true)]
struct Options {
    /// Destinations to compare
    #[arg(long, default_value_t = 20_000)]
    destinations: usize,
    /// IPv4 routes to begin with; of IPv6 a third of it, and in the VRF a quarter of both
    #[arg(long, default_value_t = 3000)]
    routes: usize,
}

const TRUNK: &str = "trunk0";
/// Forwarded by the host, at least, of the destinations of a family that it forwards: so much is forwardable.
const FORWARDED_PERCENT: usize = 20;
/// The bound for everything to be acknowledged.
const SETTLE: Duration = Duration::from_secs(60);
fn run(lab: &mut Lab) -> Result<Value> {
    let options = Options::try_parse_from(lab.args())?;
    ensure!(options.destinations > 0 && options.routes > 0, "nothing to compare: {options:?}");
    let plan = Plan::new();
    let (node, mut router) = build(lab, &plan)?;
    let destinations = fill(lab, &plan, &mut router, options.routes)?;
    settle(lab, &node, &router)?;
    lab.ready()?;

    let mut bench = Bench::new(lab.seed(), &plan, &node, &router, TRUNK)?;
    lab.step(format!("asking kernel and switch about {} destinations", options.destinations));
    let start = Instant::now();
    let tally = bench.compare_any(options.destinations, &destinations)?;
    let compare_s = start.elapsed().as_secs_f64();
    std::fs::write(lab.results().join("oracle-findings.txt"), tally.findings.join("\n"))?;
    lab.step(format!("looking for neighbors without packets among {} that share them", tally.shares.len()));
    let usage = bench.exercise(&tally.shares)?;
    lab.step("obstacles, one after another");
    let obstacles = obstacles::exercise(&mut bench, &router, &destinations, &mut Random::new(lab.seed(), 4))?;

    let mut figures = tally.figures();
    let more = [
        ("routes", json!(bench.routes())),
        ("compare_s", json!((compare_s * 100.0).round() / 100.0)),
        ("groups", json!(usage.sets)),
        ("groups_traced", json!(usage.traced)),
        ("groups_unused_member", json!(usage.unused)),
        ("groups_wrong", json!(usage.wrong)),
        ("obstacles", json!(obstacles.obstacles)),
        ("punted_obstacle", json!(obstacles.punted)),
        ("wrong_with_obstacles", json!(obstacles.findings.len())),
    ];
    let mut put = |key: &str, value: Value| {
        if let Some(figures) = figures.as_object_mut() {
            figures.insert(key.into(), value);
        }
    };
    more.into_iter().for_each(|(key, value)| put(key, value));
    let findings: Vec<String> =
        [&tally.findings, &usage.findings, &obstacles.findings].into_iter().flatten().cloned().collect();
    std::fs::write(lab.results().join("oracle-findings.txt"), findings.join("\n"))?;
    let is_clean = tally.is_clean() && usage.unused + usage.wrong == 0 && obstacles.findings.is_empty();
    if !is_clean {
        keep_evidence(lab, &node, &router)?;
        let shown = findings.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
        bail!("the host does other than the guest's kernel: {figures}\n{shown}");
    }
    for (asked, forwarded) in tally.families.values().chain(tally.tables.values()) {
        ensure!(forwarded * 100 >= asked * FORWARDED_PERCENT, "too little is forwarded: {figures}");
    }
    ensure!(tally.shared > 0 && tally.limited > 0, "no group, or no limit, was met: {figures}");
    let controls = controls::run(lab, &mut bench, &destinations, &tally)?;
    if let Some(figures) = figures.as_object_mut() {
        figures.insert("controls".into(), controls);
    }
    Ok(figures)
}

/// Leaves the guest's tables and the switch's flows beside the logs.
fn keep_evidence(lab: &Lab, node: &Node, router: &VirtualRouter) -> Result<()> {
    let ns = router.guest().netns();
    let tables = [
        ("routes-4.txt", ns.ip(&["-4", "-d", "route", "show", "table", "all"])?),
        ("routes-6.txt", ns.ip(&["-6", "-d", "route", "show", "table", "all"])?),
        ("nexthops.txt", ns.ip(&["nexthop", "show"])?),
        ("neighbors.txt", ns.ip(&["neigh", "show"])?),
        ("links.txt", ns.ip(&["-d", "addr", "show"])?),
        ("flows.txt", node.flows()?),
        ("groups.txt", node.host().ofctl(&["dump-groups", BRIDGE])?),
    ];
    for (name, text) in tables {
        std::fs::write(lab.results().join(name), text)?;
    }
    Ok(())
}

/// One node with a trunk, a router with a VRF on all segments, an end host's port on each.
fn build(lab: &Lab, plan: &Plan) -> Result<(Node, VirtualRouter)> {
    lab.step("making a host with a trunk, segments and a router");
    let pki = Pki::create(lab)?;
    let mut node = Node::create(lab, "a", &pki)?;
    // Others compare flow by flow; here packets do.
    node.configure_daemon("fib_aggregation = true")?;
    node.start()?;
    node.configure("network add red")?;
    // Nobody is behind these ports: the traces tell what would leave by them.
    let ports = [TRUNK].into_iter().chain(plan.links.iter().map(|link| link.access.as_str()));
    for port in ports {
        node.host().netns().ip(&["link", "add", port, "type", "dummy"])?;
        node.host().quiet(port)?;
    }
    node.host().add_port(BRIDGE, TRUNK, &[])?;
    node.configure(&format!("uplink add a {TRUNK}"))?;
    for link in &plan.links {
        let (segment, port) = (&link.segment, &link.access);
        node.configure(&format!(
            "segment add {segment} --network red --vlan {}\naccess add {port} --segment {segment}",
            link.vlan
        ))?;
        let mac = format!("02:41:00:00:00:{:02x}", link.vlan % 256);
        node.host().attach(BRIDGE, &Vif { port, iface_id: port, mac: &mac, vm_uuid: None })?;
    }
    let own = |index: usize| plan.own.iter().find(|own| own.0 == index && own.2.family == Family::V4);
    let addresses: Vec<String> =
        (0..LINKS).filter_map(own).map(|(_, addr, prefix)| format!("{addr}/{}", prefix.len)).collect();
    let links: Vec<Link<'_>> = plan
        .links
        .iter()
        .zip(&addresses)
        .map(|(link, address)| Link { name: &link.name, segment: &link.segment, address })
        .collect();
    let router = VirtualRouter::create(lab, &node, &pki, ("red", "r1", 1), &links)?;
    let ns = router.guest().netns();
    ns.ip_batch(&(plan.link_lines() + &plan.address_lines() + &plan.neighbor_lines()))?;
    let sysctls = plan.sysctls();
    ns.sysctls(&sysctls.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect::<Vec<_>>())?;
    Ok((node, router))
}

/// Fills the guest's tables under a running client, takes a link down and up in between, changes much again, and takes
/// a link down for good.
fn fill(lab: &Lab, plan: &Plan, router: &mut VirtualRouter, routes: usize) -> Result<Destinations> {
    router.start_client()?;
    let ns = router.guest().netns();
    let mut destinations = Destinations::default();
    let mut all: Vec<(Family, Tables)> = Vec::new();
    for (family, routes) in [(Family::V4, routes), (Family::V6, routes.div_ceil(3))] {
        for (table, routes) in [(TABLE_MAIN, routes), (TABLE_RED, routes.div_ceil(4))] {
            let purpose = 1 + u64::from(family.width()) + 1000 * u64::from(table);
            let mut random = Random::new(lab.seed(), purpose);
            let tables = tables::generate(plan, family, table, routes, &mut random);
            destinations.extend(table, &tables.prefixes);
            all.push((family, tables));
        }
    }
    lab.step("filling the guest's tables");
    for (family, tables) in &all {
        batch(lab, ns, Some(*family), &tables.of_family)?;
        batch(lab, ns, None, &tables.first)?;
    }
    lab.step("a link down and up, which takes IPv4 routes without a word; then replacements and deletions");
    let flaps = &plan.links[FLAPS].name;
    ns.ip_batch(&format!("link set {flaps} down\nlink set {flaps} up\n{}", plan.address_lines()))?;
    ns.ip_batch(&plan.neighbor_lines())?;
    for (_, tables) in &all {
        batch(lab, ns, None, &tables.second)?;
    }
    ns.ip(&["link", "set", &plan.links[DOWN].name, "down"])?;
    Ok(destinations)
}

/// Gives lines to one `ip -batch`; what the kernel refuses is skipped, and logged.
fn batch(lab: &Lab, ns: &Netns, family: Option<Family>, lines: &[String]) -> Result<()> {
    let log = lab.results().join("ip-batch.log");
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    let mut child = Command::new("ip")
        .args(["-n", ns.name()])
        .args(family.map(Family::option))
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start ip")?;
    child.stdin.take().context("no pipe to ip")?.write_all((lines.join("\n") + "\n").as_bytes())?;
    // 1: the kernel refused something.
    let status = child.wait()?;
    ensure!(matches!(status.code(), Some(0 | 1)), "ip -batch ended with {status}");
    Ok(())
}

/// The fields of the client's status that tell whether it is done.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct State {
    state: String,
    seq: u64,
    acked: u64,
    backlog: usize,
    dumps: u64,
}

/// For so long the status must stay the same: a dump may still be under way.
const CALM: Duration = Duration::from_millis(1500);

/// Waits until the client has seen all and the switch has confirmed it.
fn settle(lab: &Lab, node: &Node, router: &VirtualRouter) -> Result<()> {
    lab.step("waiting until everything is acknowledged");
    // The kernel tells in order: once its last change is a flow, the client has seen the others.
    let (sentinel, prefix) = tables::sentinel(Family::V4);
    router.guest().netns().ip(&["route", "replace", "blackhole", &prefix.to_string()])?;
    wait_for("the flow of the last route", SETTLE, || {
        let filter = format!("ip,nw_dst={sentinel}");
        let flows = node.host().ofctl(&["dump-flows", BRIDGE, &filter])?;
        Ok(flows.contains(&format!("nw_dst={sentinel}")).then_some(()))
    })?;
    let path = router.guest().dir().join("status.sock");
    let mut last: Option<(State, Instant)> = None;
    wait_for("acknowledgements of everything", SETTLE, || {
        let mut line = String::new();
        BufReader::new(UnixStream::connect(&path)?).read_line(&mut line)?;
        let state: State = serde_json::from_str(&line).with_context(|| format!("status line {line:?}"))?;
        let is_done = state.state == "up" && state.backlog == 0 && state.acked == state.seq;
        match &last {
            Some((before, since)) if *before == state => {
                return Ok((is_done && since.elapsed() > CALM).then_some(()));
            }
            _ => last = Some((state, Instant::now())),
        }
        Ok(None)
    })
}
