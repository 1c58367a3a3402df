//! `kernel`: what the guest's kernel does to its tables, told and untold, ends in the host's flows.
//!
//! One router without neighbors to talk to, its client with a small receive buffer. After each act the kernel's
//! main table, as `ip` lists it, must equal the prefixes and gateways of the host's route flows. Last, a client
//! that cannot hear: a comparison that finds nothing then would prove nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::net::Netns;
use crate::node::Node;
use crate::one_router::OneRouter;
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::VirtualRouter;

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "kernel",
    about: "routes, next-hop objects, links, addresses and neighbors of a guest's kernel against the host's flows",
    memory_mib: 1024,
    limit: Duration::from_secs(240),
    needs_product: true,
    in_suite: true,
    targets: &[("differences", "0"), ("control_differences", "at least 1")],
    run,
};

/// The bound for the host to follow one act.
const LIMIT: Duration = Duration::from_secs(15);
const ROUTES: u32 = 5000;
/// Small enough for the kernel to drop events of [`ROUTES`].
const RECEIVE_BUFFER: u32 = 64 << 10;
const NEXT_HOPS: &str = "nexthop add id 1 via 10.1.0.10 dev lan1\nnexthop add id 2 via 10.2.0.10 dev lan2\n";

/// Prefixes with the gateways that may be used; an empty one where there is none.
pub(super) type Table = BTreeMap<String, BTreeSet<String>>;

struct Site {
    r1: VirtualRouter,
    node: Node,
    steps: u32,
    slowest: Duration,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = build(lab)?;
    lab.ready()?;
    site.follow("what was there before the client")?;
    routes(lab, &mut site)?;
    next_hops(lab, &mut site)?;
    links_and_addresses(lab, &mut site)?;
    same_key(lab, &mut site)?;
    neighbors(lab, &mut site)?;
    let overflows = flood(lab, &mut site)?;
    let stop = restarts(lab, &mut site)?;
    let control = deaf(lab, &mut site)?;
    Ok(json!({
        "comparisons": site.steps,
        "differences": 0,
        "slowest_ms": u64::try_from(site.slowest.as_millis())?,
        "overflows": overflows,
        "client_stop_ms": u64::try_from(stop.as_millis())?,
        "control_differences": control,
    }))
}

fn build(lab: &Lab) -> Result<Site> {
    lab.step("making host a with router r1");
    let mut site = OneRouter::create(lab)?;
    site.r1.configure("receive_buffer_bytes", RECEIVE_BUFFER)?;
    site.guest().ip_batch(
        "route add default via 10.1.0.10\n\
         route add 10.49.0.0/24 via 10.2.0.10\n\
         neigh add 10.1.0.10 lladdr 02:aa:00:00:00:01 dev lan1\n",
    )?;
    site.start(LIMIT)?;
    let OneRouter { r1, node, .. } = site;
    Ok(Site { r1, node, steps: 0, slowest: Duration::ZERO })
}

fn routes(lab: &Lab, site: &mut Site) -> Result<()> {
    lab.step("routes come, change and go");
    site.act(
        "route add 10.50.0.0/24 via 10.1.0.10\nroute add 10.50.1.0/24 via 10.2.0.10\n\
         route add blackhole 10.50.2.0/24\nroute add 10.50.3.0/24 dev lan1\n\
         route add 10.50.4.0/24 nexthop via 10.1.0.10 nexthop via 10.2.0.10\n",
    )?;
    site.act("route replace 10.50.0.0/24 via 10.2.0.10\n")?;
    site.act("route del 10.50.1.0/24\nroute del default\n")?;
    lab.step("one prefix, several metrics");
    site.act("route add 10.54.0.0/24 via 10.1.0.10 metric 100\n")?;
    site.act("route replace 10.54.0.0/24 via 10.2.0.10 metric 50\n")?;
    site.act("route replace 10.54.0.0/24 via 10.1.0.11 metric 200\n")?;
    site.act("route del 10.54.0.0/24 metric 50\n")
}

fn next_hops(lab: &Lab, site: &mut Site) -> Result<()> {
    lab.step("next-hop objects change, and take their routes with them");
    let routes =
        "route add 10.60.0.0/24 nhid 1\nroute add 10.60.1.0/24 nhid 1\nroute add 10.60.2.0/24 nhid 2\n";
    site.act(&format!("{NEXT_HOPS}{routes}"))?;
    site.act("nexthop replace id 1 via 10.1.0.11 dev lan1\n")?;
    site.act("nexthop add id 3 group 1/2\nroute add 10.60.3.0/24 nhid 3\n")?;
    site.act("nexthop del id 1\n")?;
    let now = kernel_table(site.ns())?;
    ensure!(!now.contains_key("10.60.0.0/24"), "the routes of a deleted next hop stayed: {now:?}");
    ensure!(now.contains_key("10.60.3.0/24"), "the route of the group went: {now:?}");
    site.act("nexthop del id 2\n")?;
    ensure!(
        !kernel_table(site.ns())?.keys().any(|prefix| prefix.starts_with("10.60.")),
        "routes without next hops"
    );
    Ok(())
}

fn links_and_addresses(lab: &Lab, site: &mut Site) -> Result<()> {
    lab.step("a link goes down with its routes, and comes up");
    site.act("link set lan2 down\n")?;
    let now = kernel_table(site.ns())?;
    ensure!(!now.contains_key("10.49.0.0/24") && !now.contains_key("10.2.0.0/24"), "routes stayed: {now:?}");
    site.act("link set lan2 up\nroute add 10.49.0.0/24 via 10.2.0.10\n")?;
    // Faster than a dump: nothing tells of these routes but the link.
    site.act("link set lan2 down\nlink set lan2 up\n")?;
    lab.step("an address goes with its routes");
    site.act("address add 10.3.0.1/24 dev lan1\nroute add 10.52.0.0/24 dev lan1 src 10.3.0.1\n")?;
    ensure!(kernel_table(site.ns())?.contains_key("10.52.0.0/24"), "the route was not added");
    site.act("address del 10.3.0.1/24 dev lan1\n")?;
    ensure!(!kernel_table(site.ns())?.contains_key("10.52.0.0/24"), "the route of a deleted address stayed");
    Ok(())
}

fn same_key(lab: &Lab, site: &mut Site) -> Result<()> {
    lab.step("several routes under one key");
    site.act("route add 10.53.0.0/24 via 10.1.0.10\nroute append 10.53.0.0/24 via 10.2.0.10\n")?;
    site.act("route del 10.53.0.0/24 via 10.1.0.10\n")?;
    site.act("route append 10.53.0.0/24 via 10.1.0.10\n")?;
    site.act("route del 10.53.0.0/24 via 10.1.0.10\n")?;
    site.act("route prepend 10.53.0.0/24 via 10.1.0.11\n")?;
    site.act("route del 10.53.0.0/24 via 10.1.0.11\n")?;
    // They differ in their preferred source only.
    site.act("route append 10.53.0.0/24 via 10.2.0.10 src 10.1.0.1\n")?;
    site.act("route del 10.53.0.0/24 via 10.2.0.10 src 10.1.0.1\n")?;
    ensure!(kernel_table(site.ns())?.contains_key("10.53.0.0/24"), "both routes went");
    site.act("route del 10.53.0.0/24\n")
}

fn neighbors(lab: &Lab, site: &mut Site) -> Result<()> {
    lab.step("a neighbor gets another MAC address, and fails");
    for mac in ["02:aa:00:00:00:02", "02:aa:00:00:00:03"] {
        site.act(&format!("neigh replace 10.1.0.10 lladdr {mac} dev lan1 nud reachable\n"))?;
        site.wait_mac(mac, true)?;
    }
    site.wait_mac("02:aa:00:00:00:02", false)?;
    site.act("neigh change 10.1.0.10 dev lan1 nud failed\n")?;
    site.wait_mac("02:aa:00:00:00:03", false)
}

/// How often the kernel dropped events.
fn flood(lab: &Lab, site: &mut Site) -> Result<u64> {
    lab.step(format!(
        "{ROUTES} routes come, and are flushed, past a receive buffer of {RECEIVE_BUFFER} bytes"
    ));
    let lines: String = (0..ROUTES)
        .map(|i| format!("route add 10.{}.{}.0/24 via 10.1.0.10 proto 99\n", 100 + i / 250, i % 250))
        .collect();
    site.act(&lines)?;
    let before = site.status()?.overflows;
    // Runs while the client cannot, as on a busy machine.
    site.r1.client()?.signal(Signal::SIGSTOP)?;
    site.ns().ip(&["route", "flush", "proto", "99"])?;
    site.r1.client()?.signal(Signal::SIGCONT)?;
    site.follow("the flush")?;
    let overflows = site.status()?.overflows;
    ensure!(overflows > before, "no event was lost: {overflows} overflows, {before} before");
    let left = site.host()?.keys().filter(|prefix| prefix.starts_with("10.1")).count();
    ensure!(left < 10, "{left} flows of the flushed prefixes are left");
    Ok(overflows)
}

/// How long the client takes to stop.
fn restarts(lab: &Lab, site: &mut Site) -> Result<Duration> {
    lab.step("the client stops with a word of farewell, and sweeps what went while it was away");
    let start = Instant::now();
    site.r1.stop_client()?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(1), "the client took {took:?} to stop");
    site.node.daemon()?.wait_for_log("the guest closed the connection", LIMIT)?;
    site.ns().ip_batch("route del 10.50.3.0/24\nroute add 10.71.0.0/24 via 10.1.0.10\n")?;
    ensure!(!site.differences()?.is_empty(), "the host follows a client that does not run");
    site.r1.start_client()?;
    site.follow("the client's restart")?;
    lab.step("the daemon is killed, and learns what changed meanwhile");
    site.node.kill_daemon()?;
    site.ns().ip_batch("route del 10.71.0.0/24\nroute add 10.72.0.0/24 via 10.2.0.10\n")?;
    site.node.start_daemon()?;
    site.follow("the daemon's restart")?;
    Ok(took)
}

/// The comparison must see what a client does not tell.
fn deaf(lab: &Lab, site: &mut Site) -> Result<usize> {
    lab.step("the client is frozen: the comparison must see it");
    site.r1.client()?.signal(Signal::SIGSTOP)?;
    site.ns().ip(&["route", "del", "10.72.0.0/24"])?;
    std::thread::sleep(Duration::from_millis(500));
    let differences = site.differences()?;
    ensure!(!differences.is_empty(), "a deleted route that nobody told of makes no difference");
    site.r1.client()?.signal(Signal::SIGCONT)?;
    site.follow("the thaw")?;
    Ok(differences.len())
}

/// What the client says of itself; the fields that are looked at.
#[derive(Debug, serde::Deserialize)]
struct Status {
    state: String,
    seq: u64,
    acked: u64,
    backlog: u64,
    routes: u64,
    overflows: u64,
}

impl Site {
    fn ns(&self) -> &Netns {
        self.r1.guest().netns()
    }

    /// Lines of `ip -batch`, then [`Self::follow`].
    fn act(&mut self, lines: &str) -> Result<()> {
        self.ns().ip_batch(lines)?;
        self.follow(lines.lines().next_back().unwrap_or_default())
    }

    /// Waits until the host has what the kernel has, and everybody says so.
    fn follow(&mut self, what: &str) -> Result<()> {
        let start = Instant::now();
        let mut last = Vec::new();
        let equal = wait_for("the host to follow", LIMIT, || {
            last = self.differences()?;
            Ok(last.is_empty().then_some(()))
        });
        equal.with_context(|| format!("after \"{what}\"; kernel and host differ in {last:?}"))?;
        self.slowest = self.slowest.max(start.elapsed());
        self.steps += 1;
        wait_for("client and host to agree", LIMIT, || {
            let status = self.status()?;
            let done = status.state == "up" && status.backlog == 0 && status.seq == status.acked;
            let routes = reported_routes(&self.node.show()?);
            Ok((done && routes == Some(status.routes)).then_some(()))
        })
        .with_context(|| format!("after \"{what}\""))
    }

    fn differences(&self) -> Result<Vec<String>> {
        let (kernel, host) = (kernel_table(self.ns())?, self.host()?);
        let prefixes: BTreeSet<&String> = kernel.keys().chain(host.keys()).collect();
        let differing = prefixes.into_iter().filter(|&prefix| match (kernel.get(prefix), host.get(prefix)) {
            (Some(may), Some(does)) => !does.is_subset(may),
            (_, _) => true,
        });
        Ok(differing.map(|p| format!("{p}: {:?} / {:?}", kernel.get(p), host.get(p))).take(20).collect())
    }

    fn host(&self) -> Result<Table> {
        host_table(&self.node.flows()?)
    }

    fn status(&self) -> Result<Status> {
        let stream = UnixStream::connect(self.r1.guest().dir().join("status.sock"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("status line {line:?}"))
    }

    /// Waits until a next-hop flow rewrites to this MAC address, or none does.
    fn wait_mac(&self, mac: &str, there: bool) -> Result<()> {
        wait_for(&format!("a flow to {mac}: {there}"), LIMIT, || {
            let flows = self.node.flows()?;
            let found = flows.lines().any(|flow| flow.contains("table=4,") && flow.contains(mac));
            Ok((found == there).then_some(()))
        })
    }
}

/// The IPv4 route flows of a host with one router.
pub(super) fn host_table(flows: &str) -> Result<Table> {
    let mut table = Table::new();
    for flow in flows.lines().filter(|flow| flow.contains("table=3,")) {
        // Without a router: what stands in for a miss.
        if !flow.contains("reg4=") || flow.contains("ipv6") {
            continue;
        }
        let prefix = after(flow, "nw_dst=").unwrap_or("0.0.0.0/0");
        // A punt sets another register: its class.
        let hop = flow.split_once("->xreg3").and_then(|(before, _)| before.rsplit_once("set_field:0x"));
        let gateway = match hop.map(|(_, hex)| hex) {
            Some(hex) => {
                let value = hex.split("->").next().unwrap_or_default();
                // The lower half is the address.
                let value = u64::from_str_radix(value.split('/').next().unwrap_or_default(), 16)?;
                Ipv4Addr::from(u32::try_from(value & 0xffff_ffff)?).to_string()
            }
            None => String::new(),
        };
        table.entry(full(prefix)).or_default().insert(gateway);
    }
    Ok(table)
}

/// What follows `key` up to a blank or comma.
fn after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_once(key)?.1.split([' ', ',']).next()
}

/// A prefix with its length.
fn full(prefix: &str) -> String {
    match prefix {
        "default" => "0.0.0.0/0".into(),
        net if net.contains('/') => net.into(),
        host => format!("{host}/32"),
    }
}

/// The IPv4 routes that count and the resolved neighbors on segments.
pub(super) fn kernel_table(ns: &Netns) -> Result<Table> {
    let list = |args: &[&str]| -> Result<Vec<Value>> {
        let text = ns.ip(&[&["-json"], args].concat())?;
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&text).with_context(|| format!("ip {args:?} said {text:?}"))
    };
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut groups = BTreeSet::new();
    // Groups are of no family.
    for object in list(&["nexthop", "show"])? {
        if object["group"].is_array() {
            groups.extend(object["id"].as_u64());
        }
    }
    let mut table = Table::new();
    let mut best: BTreeMap<String, u64> = BTreeMap::new();
    for route in list(&["-4", "route", "show", "table", "main"])? {
        let prefix = full(&text(&route, "dst"));
        let metric = route["metric"].as_u64().unwrap_or(0);
        // Of several under one key the first counts, and the list has them in the kernel's order.
        if best.get(&prefix).is_some_and(|&other| other <= metric) {
            continue;
        }
        best.insert(prefix.clone(), metric);
        let mut gateways = match route["nexthops"].as_array() {
            Some(hops) => hops.iter().map(|hop| text(hop, "gateway")).collect(),
            None => BTreeSet::from([text(&route, "gateway")]),
        };
        // Groups are not looked into here: the oracle does.
        if route["nexthops"].is_array() || route["nhid"].as_u64().is_some_and(|id| groups.contains(&id)) {
            gateways.insert(String::new());
        }
        table.insert(prefix, gateways);
    }
    for neighbor in list(&["-4", "neigh", "show"])? {
        if text(&neighbor, "dev").starts_with("lan") && !text(&neighbor, "lladdr").is_empty() {
            let address = text(&neighbor, "dst");
            table.insert(full(&address), BTreeSet::from([address]));
        }
    }
    Ok(table)
}

/// Routes of r1, as the daemon reports them to the database.
fn reported_routes(shown: &Value) -> Option<u64> {
    match shown {
        Value::Object(fields) => {
            let own = fields.get("router").and_then(Value::as_str) == Some("r1");
            let here = fields.get("routes").and_then(Value::as_u64).filter(|_| own);
            here.or_else(|| fields.values().find_map(reported_routes))
        }
        Value::Array(values) => values.iter().find_map(reported_routes),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}
