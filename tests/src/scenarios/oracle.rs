//! `oracle`: the kernel as oracle, the switch as witness. A router with random tables; for each of many destinations
//! its kernel says what it would do, and a trace through the flows shows what the host does.
//!
//! Ends with its own negative controls: flows are broken on purpose, and the same comparison must see it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::net::if_::if_nametoindex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::host::Vif;
use crate::net::Netns;
use crate::node::{BRIDGE, Node, Pki};
use crate::oracle::kernel::{Answer, Kernel};
use crate::oracle::plan::{LINKS, Plan, STUB};
use crate::oracle::questions::{Asker, Question};
use crate::oracle::random::Random;
use crate::oracle::tables::{self, Tables};
use crate::oracle::verdict::{Facts, Port, Verdict};
use crate::oracle::witness::Witness;
use crate::oracle::{Family, Prefix, bits};
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
    targets: &[("wrong", "0"), ("punted_unexplained", "0"), ("leaked", "0")],
    run,
};

/// What may be said after `lab run oracle --`.
#[derive(Debug, Parser)]
#[command(name = "oracle", no_binary_name = true)]
struct Options {
    /// Destinations to compare
    #[arg(long, default_value_t = 2000)]
    destinations: usize,
    /// IPv4 routes to begin with; of IPv6 a third of it
    #[arg(long, default_value_t = 3000)]
    routes: usize,
}

const TRUNK: &str = "trunk0";
/// Forwarded by the host, at least, of the destinations of a family that it forwards: so much is forwardable.
const FORWARDED_PERCENT: usize = 20;
/// The bound for everything to be acknowledged.
const SETTLE: Duration = Duration::from_secs(60);
/// The product's tables, for the controls.
const ROUTER: &str = "table=1";
const ROUTE: &str = "table=3";
const NEXT_HOP: &str = "table=4";
/// Cookie of flows that follow from what a guest says.
const OF_ROUTERS: &str = "cookie=0x5846020000000000/0xffffff0000000000";

fn run(lab: &mut Lab) -> Result<Value> {
    let options = Options::try_parse_from(lab.args())?;
    ensure!(options.destinations > 0 && options.routes > 0, "nothing to compare: {options:?}");
    let plan = Plan::new();
    let (node, mut router) = build(lab, &plan)?;
    let prefixes = fill(lab, &plan, &mut router, options.routes)?;
    settle(lab, &node, &router)?;
    lab.ready()?;

    let mut bench = Bench::new(lab, &plan, &node, &router)?;
    lab.step(format!("asking kernel and switch about {} destinations", options.destinations));
    let start = Instant::now();
    let questions = (0..options.destinations).map(|_| bench.asker.any(&prefixes)).collect::<Vec<_>>();
    let tally = bench.compare(&questions)?;
    let compare_s = start.elapsed().as_secs_f64();
    std::fs::write(lab.results().join("oracle-findings.txt"), tally.findings.join("\n"))?;

    let mut figures = tally.figures();
    if let Some(figures) = figures.as_object_mut() {
        figures.insert("routes".into(), bench.routes.into());
        figures.insert("compare_s".into(), json!((compare_s * 100.0).round() / 100.0));
    }
    if tally.wrong + tally.leaked + tally.unexplained > 0 {
        keep_evidence(lab, &node, &router)?;
        let shown = tally.findings.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
        bail!("wrong, punted_unexplained and leaked must be 0: {figures}\n{shown}");
    }
    for (family, (asked, forwarded)) in &tally.families {
        let is_enough = forwarded * 100 >= asked * FORWARDED_PERCENT;
        ensure!(is_enough || !bench.forwards(*family), "of {family:?} too little is forwarded: {figures}");
    }
    let controls = controls(lab, &mut bench, &prefixes, &tally)?;
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
        ("flows.txt", node.flows()?),
    ];
    for (name, text) in tables {
        std::fs::write(lab.results().join(name), text)?;
    }
    Ok(())
}

/// One node with a trunk, a router on four segments, an end host's port on each.
fn build(lab: &Lab, plan: &Plan) -> Result<(Node, VirtualRouter)> {
    lab.step("making a host with a trunk, four segments and a router");
    let pki = Pki::create(lab)?;
    let mut node = Node::create(lab, "a", &pki)?;
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
    ns.ip_batch(&format!("link add {STUB} type dummy\nlink set {STUB} up\n{}", plan.address_lines()))?;
    ns.ip_batch(&plan.neighbor_lines())?;
    Ok((node, router))
}

/// Fills the guest's tables under a running client, takes a link down and up in between, and changes much again.
fn fill(lab: &Lab, plan: &Plan, router: &mut VirtualRouter, routes: usize) -> Result<Vec<Prefix>> {
    router.start_client()?;
    let ns = router.guest().netns();
    let mut prefixes = Vec::new();
    let mut make = |family, count| -> Tables {
        let mut random = Random::new(lab.seed(), 1 + u64::from(Family::width(family)));
        let tables = tables::generate(plan, family, count, &mut random);
        prefixes.extend(&tables.prefixes);
        tables
    };
    let tables = [(Family::V4, make(Family::V4, routes)), (Family::V6, make(Family::V6, routes.div_ceil(3)))];
    lab.step("filling the guest's tables");
    for (family, tables) in &tables {
        batch(lab, ns, *family, &tables.first)?;
    }
    lab.step("a link down and up, which takes IPv4 routes without a word; then replacements and deletions");
    let last = &plan.links[LINKS - 1].name;
    ns.ip_batch(&format!("link set {last} down\nlink set {last} up\n{}", plan.address_lines()))?;
    ns.ip_batch(&plan.neighbor_lines())?;
    for (family, tables) in &tables {
        batch(lab, ns, *family, &tables.second)?;
    }
    Ok(prefixes)
}

/// Gives lines to one `ip -batch`; what the kernel refuses is skipped, and logged.
fn batch(lab: &Lab, ns: &Netns, family: Family, lines: &[String]) -> Result<()> {
    let log = lab.results().join(format!("ip-batch{}.log", family.option()));
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    let mut child = Command::new("ip")
        .args(["-n", ns.name(), "-force", "-batch", "-"])
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

/// What a comparison came to.
#[derive(Debug, Default)]
struct Tally {
    asked: usize,
    dropped: usize,
    punted: usize,
    unexplained: usize,
    wrong: usize,
    leaked: usize,
    /// Asked and forwarded, by family.
    families: BTreeMap<Family, (usize, usize)>,
    reasons: BTreeMap<&'static str, usize>,
    /// One line each, the first ones.
    findings: Vec<String>,
    /// Prefixes by which the host forwards.
    used: BTreeSet<Prefix>,
}

/// Findings that are written down.
const MAX_FINDINGS: usize = 200;

impl Tally {
    fn forwarded(&self) -> usize {
        self.families.values().map(|(_, forwarded)| forwarded).sum()
    }

    fn take(&mut self, question: &Question, answer: &Answer, verdict: Verdict, seen: &str) {
        self.asked += 1;
        let (asked, forwarded) = self.families.entry(question.family()).or_default();
        *asked += 1;
        match verdict {
            Verdict::Forwarded => {
                *forwarded += 1;
                if let Answer::Forward(forward) = answer {
                    let dst = bits(question.packet.dst);
                    self.used.insert(Prefix::new(question.family(), dst, forward.prefix_len));
                }
            }
            Verdict::Dropped => self.dropped += 1,
            Verdict::Punted(reason) => {
                self.punted += 1;
                *self.reasons.entry(reason).or_default() += 1;
            }
            Verdict::PuntUnexplained => {
                self.punted += 1;
                self.unexplained += 1;
            }
            Verdict::Wrong { is_leak } => {
                self.wrong += 1;
                self.leaked += usize::from(is_leak);
            }
        }
        let is_finding = matches!(verdict, Verdict::PuntUnexplained | Verdict::Wrong { .. });
        if is_finding && self.findings.len() < MAX_FINDINGS {
            self.findings.push(format!("{verdict:?}: {question:?}\n  kernel: {answer:?}\n  switch: {seen}"));
        }
    }

    fn figures(&self) -> Value {
        let by_family: BTreeMap<String, Value> = self
            .families
            .iter()
            .map(|(family, (asked, forwarded))| {
                (
                    format!("{family:?}").to_lowercase(),
                    json!({ "destinations": asked, "forwarded": forwarded }),
                )
            })
            .collect();
        json!({
            "destinations": self.asked,
            "wrong": self.wrong,
            "punted": self.punted,
            "punted_unexplained": self.unexplained,
            "leaked": self.leaked,
            "forwarded": self.forwarded(),
            "dropped": self.dropped,
            "families": by_family,
            "punt_reasons": self.reasons,
        })
    }
}

/// Oracle, witness and judge, of one router.
#[derive(Debug)]
struct Bench<'a> {
    node: &'a Node,
    kernel: Kernel,
    witness: Witness,
    facts: Facts<'a>,
    asker: Asker<'a>,
    /// Guest's interface indices, by link.
    indices: [u32; LINKS],
    /// OpenFlow numbers: of the access ports by link, of the trunk.
    access: [u32; LINKS],
    trunk: u32,
    /// Routes in the guest's main tables.
    routes: usize,
}

impl<'a> Bench<'a> {
    fn new(lab: &Lab, plan: &'a Plan, node: &'a Node, router: &VirtualRouter) -> Result<Self> {
        let ns = router.guest().netns();
        let mut witness = Witness::connect(&node.host().rundir().join("ovs-vswitchd.ctl"), BRIDGE)?;
        let mut ports = BTreeMap::new();
        let (trunk, number) = witness.port(TRUNK)?;
        ports.insert(number, Port::Uplink);
        let (mut access, mut indices) = ([0; LINKS], [0; LINKS]);
        for (index, link) in plan.links.iter().enumerate() {
            let (openflow, number) = witness.port(&link.access)?;
            access[index] = openflow;
            ports.insert(number, Port::Access(index));
            let (_, number) = witness.port(&router.port(&link.name))?;
            ports.insert(number, Port::Vif(index));
            indices[index] = ns.enter(|| Ok(if_nametoindex(link.name.as_str())?))?;
        }
        let macs: [String; LINKS] = std::array::from_fn(|index| router.mac(index));
        let (mut routes, mut tos) = (0, Vec::new());
        for family in Family::ALL {
            let shown: Value =
                serde_json::from_str(&ns.ip(&["-j", family.option(), "route", "show", "table", "main"])?)?;
            routes += shown.as_array().map_or(0, Vec::len);
            if family == Family::V4 {
                tos = tables::tos_prefixes(&shown);
            }
        }
        let gates = node.host().ofctl(&["dump-flows", BRIDGE, &format!("{ROUTER},ipv6,{OF_ROUTERS}")])?;
        let facts = Facts {
            plan,
            macs: macs.clone(),
            ports,
            links: indices.into_iter().zip(0..).collect(),
            tos,
            forwards_v6: gates.contains("goto_table"),
        };
        let asker = Asker::new(plan, macs, Random::new(lab.seed(), 3));
        Ok(Self { node, kernel: Kernel::open(ns)?, witness, facts, asker, indices, access, trunk, routes })
    }

    /// Whether the host forwards this family at all.
    fn forwards(&self, family: Family) -> bool {
        family == Family::V4 || self.facts.forwards_v6
    }

    fn compare(&mut self, questions: &[Question]) -> Result<Tally> {
        let mut tally = Tally::default();
        for question in questions {
            let Question { link, is_from_uplink, packet } = question;
            let answer = self.kernel.ask(self.indices[*link], packet.src, packet.dst)?;
            let port = if *is_from_uplink { self.trunk } else { self.access[*link] };
            let emits = self.witness.trace(port, packet)?;
            let verdict = self.facts.judge(question, &answer, &emits);
            tally.take(question, &answer, verdict, &format!("{emits:?}"));
        }
        Ok(tally)
    }

    fn compare_inside(&mut self, prefix: Prefix) -> Result<Tally> {
        let questions: Vec<Question> = (0..40).map(|_| self.asker.inside(prefix)).collect();
        self.compare(&questions)
    }

    fn compare_any(&mut self, prefixes: &[Prefix]) -> Result<Tally> {
        let questions: Vec<Question> = (0..200).map(|_| self.asker.any(prefixes)).collect();
        self.compare(&questions)
    }

    fn add_flow(&self, flow: &str) -> Result<()> {
        self.node.host().ofctl(&["add-flow", BRIDGE, flow]).map(drop)
    }

    fn delete_flow(&self, flow: &str) -> Result<()> {
        self.node.host().ofctl(&["--strict", "del-flows", BRIDGE, flow]).map(drop)
    }

    fn dump(&self, filter: &str) -> Result<Vec<String>> {
        let text = self.node.host().ofctl(&["--no-stats", "dump-flows", BRIDGE, filter])?;
        Ok(text.lines().filter(|line| line.contains("actions=")).map(|line| line.trim().to_owned()).collect())
    }
}

/// A flow of the route table.
#[derive(Debug, Clone)]
struct RouteFlow {
    line: String,
    matching: String,
    actions: String,
}

/// The IPv4 flows of the route table that lead to a next hop, by prefix.
fn route_flows(bench: &Bench<'_>) -> Result<BTreeMap<Prefix, RouteFlow>> {
    let mut flows = BTreeMap::new();
    for line in bench.dump(&format!("{ROUTE},ip,{OF_ROUTERS}"))? {
        let Some((matching, actions)) = line.split_once(" actions=") else { continue };
        let Some(prefix) = matching.split("nw_dst=").nth(1).and_then(Prefix::parse) else { continue };
        // Without its cookie, which would be another condition.
        let matching = matching.split_once(", ").map_or(matching, |(_, rest)| rest).to_owned();
        let flow = RouteFlow { matching, actions: actions.to_owned(), line: line.clone() };
        flows.insert(prefix, flow);
    }
    flows.retain(|_, flow| flow.actions.contains("goto_table:4"));
    Ok(flows)
}

/// Breaks flows on purpose; what the comparison then says comes back.
fn controls(lab: &Lab, bench: &mut Bench<'_>, prefixes: &[Prefix], tally: &Tally) -> Result<Value> {
    let flows = route_flows(bench)?;
    let used: Vec<Prefix> = tally.used.iter().copied().filter(|prefix| flows.contains_key(prefix)).collect();

    lab.step("control: a prefix with the next hop of another");
    let swap = |prefix: &Prefix| {
        let flow = flows.get(prefix)?;
        let other = flows.values().find(|other| other.actions != flow.actions)?;
        Some((*prefix, flow.clone(), other.actions.clone()))
    };
    let (prefix, flow, actions) = used.iter().find_map(swap).context("no two next hops to swap")?;
    bench.add_flow(&flow.line.replace(&flow.actions, &actions))?;
    let swapped = bench.compare_inside(prefix)?;
    bench.add_flow(&flow.line)?;
    ensure!(swapped.wrong + swapped.unexplained > 0, "{prefix} has another next hop, and nothing is wrong");
    let after = bench.compare_inside(prefix)?;
    ensure!(after.wrong + after.unexplained == 0, "{prefix} is whole again and wrong: {:?}", after.findings);

    lab.step("control: a prefix without its flow, so that a shorter one catches");
    let mut caught = 0;
    for prefix in &used {
        let Some(flow) = flows.get(prefix) else { continue };
        let first = prefix.family.address(prefix.first());
        let covering = flows.iter().filter(|(of, _)| of.len < prefix.len && of.contains(first));
        let parent = covering.max_by_key(|(of, _)| of.len);
        if parent.is_none_or(|(_, parent)| parent.actions == flow.actions) {
            continue;
        }
        bench.delete_flow(&flow.matching)?;
        caught = bench.compare_inside(*prefix)?.wrong;
        bench.add_flow(&flow.line)?;
        if caught > 0 {
            break;
        }
    }
    ensure!(caught > 0, "flows are missing, and nothing is wrong");

    lab.step("control: everything routed leaves on one segment; everything routed is dropped");
    let hole = format!("{NEXT_HOP},priority=60000");
    bench.add_flow(&format!("{hole},actions=output:{}", bench.access[0]))?;
    let leak = bench.compare_any(prefixes)?;
    ensure!(leak.leaked > 0, "everything leaves on one segment, and no leak is seen: {}", leak.figures());
    bench.add_flow(&format!("{hole},actions=drop"))?;
    let drop = bench.compare_any(prefixes)?;
    ensure!(drop.wrong > 0 && drop.leaked == 0, "all is dropped, and that is right: {}", drop.figures());
    bench.delete_flow(&hole)?;

    lab.step("control: closed gates, so that everything is punted");
    let gates = format!("{ROUTER},{OF_ROUTERS}");
    bench.node.host().ofctl(&["del-flows", BRIDGE, &gates])?;
    let closed = bench.compare_any(prefixes)?;
    ensure!(
        closed.unexplained > 0 && closed.forwarded() == 0,
        "the gates are closed, and all is well: {}",
        closed.figures()
    );
    Ok(json!({
        "wrong_with_a_foreign_next_hop": swapped.wrong + swapped.unexplained,
        "wrong_without_a_route": caught,
        "leaked_with_a_hole": leak.leaked,
        "wrong_with_all_dropped": drop.wrong,
        "unexplained_with_closed_gates": closed.unexplained,
    }))
}
