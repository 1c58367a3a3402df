//! `routes`: how long a guest's tables take into the switch, and one change of them, beside the switch alone.
//!
//! All of it is real: the guest's kernel holds the routes, the client reads them, TLS carries them, the daemon compiles them and
//! Open vSwitch has them. A load is from the client's start to the acknowledgement of its end-of-RIB, with which the switch has
//! confirmed the last flow. Beside it `ovs-ofctl` adds the very same flows to a bridge of the same switch from a file, and a change is
//! measured beside a flow-mod and its barrier over a connection that is open. Twice: with a flow for each prefix, and with as few as
//! it takes; changes also with a thousand routes. Then what packets meet.

mod ecmp;
mod forward;
mod halves;
mod ovn;
mod reactive;
mod routers;
mod switch;
mod table;

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use self::switch::{Alone, Bare};
use self::table::Table;
use super::{Options, percentile, round};
use crate::cpu;
use crate::node::BRIDGE;
use crate::one_router::OneRouter;
use crate::oracle::random::Random;
use crate::ovn::Ovn;
use crate::progress::say;
use crate::routes::Writer;
use crate::scenario::{Lab, Scenario};
use crate::setup;
use crate::virtual_router::Sessions;

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "routes",
    about: "a full table into the switch, and changes of it, beside the switch alone (--routes N, --hops N, --ipv6 1, --routers N, --only load|forward|routers|peers, --peers)",
    memory_mib: 12 << 10,
    limit: Duration::from_secs(3600),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("load_over_ofctl", "at most 1.05"),
        ("load_over_ofctl_aggregated", "less than 0.7 with two next hops"),
        ("change_over_bare_p99", "at most 3"),
        ("nexthop_over_change", "at most 1.2"),
        ("ecmp_over_change", "at most 1.2"),
        ("restart_over_load", "at most 0.3"),
        ("restart_flow_mods", "0"),
        ("change_over_1k", "at most 1.2"),
        ("dom0_bytes_per_route", "at most 120"),
        ("guest_bytes_per_route", "at most 64"),
        ("forward_ratio_1hop", "at least 0.97"),
        ("first_packet_ratio", "at most 1.3"),
        ("routers_load_linearity", "0.9 to 1.1"),
        ("routers_memory_linearity", "0.9 to 1.1"),
    ],
    run,
};

/// Asks for peers to be measured beside.
pub(super) const PEERS: &str = "--peers";
/// What `--only` may name.
const PARTS: [&str; 5] = ["all", "load", "forward", "routers", "peers"];
const LONG: Duration = Duration::from_secs(1800);
const SHORT: Duration = Duration::from_secs(30);
/// Routes in one call of the writer.
const CHUNK: usize = 10_000;
/// Routes of each of many routers.
const EACH: usize = 100;
/// Single changes, each beside a bare one.
const CHANGES: usize = 300;
/// Times that a next hop gets another address.
const MOVES: u8 = 30;
/// Changes must not cost more in a larger table than in one of so many routes.
const FEW: usize = 1000;
/// Loads by `ovs-ofctl`: the median counts; one of so many flows takes minutes.
const LOADS: usize = 3;
const MANY: usize = 500_000;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
struct Settings {
    routes: usize,
    hops: usize,
    is_ipv4: bool,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let routes: usize = options.take("--routes", 100_000)?;
    let hops: usize = options.take("--hops", 2)?;
    let ipv6: u8 = options.take("--ipv6", 0)?;
    let routers: usize = options.take("--routers", 1000)?;
    let has_peers = options.take_flag(PEERS);
    let only: String = options.take("--only", "all".to_owned())?;
    options.end()?;
    ensure!(PARTS.contains(&only.as_str()), "--only {only} is none of {PARTS:?}");
    ensure!((100..=4000).contains(&routers), "{routers} routers is not 100 to 4000");
    ensure!((100..=2_000_000).contains(&routes), "{routes} routes is not 100 to 2000000");
    ensure!((2..=64).contains(&hops), "{hops} next hops is not 2 to 64");
    let settings = Settings { routes, hops, is_ipv4: ipv6 == 0 };
    let mut figures = Map::new();
    figures.insert("routes".to_owned(), routes.into());
    figures.insert("hops".to_owned(), hops.into());
    let is_wanted = |part: &str| only == "all" || only == part;
    if is_wanted("load") {
        for is_aggregated in [false, true] {
            let of = measure(lab, settings, is_aggregated)?;
            lab.clear(if is_aggregated { "few" } else { "plain" })?;
            for (key, value) in of {
                figures.insert(if is_aggregated { format!("{key}_aggregated") } else { key }, value);
            }
        }
        for is_compatible in [false, true] {
            figures.extend(ecmp::measure(lab, routes, is_compatible)?);
            lab.clear(if is_compatible { "ecmp-compat" } else { "ecmp" })?;
        }
        let few = measure(lab, Settings { routes: FEW, ..settings }, false)?;
        lab.clear("1k")?;
        let p50 = |of: &Map<String, Value>| of.get("change_ms_p50").and_then(Value::as_f64);
        if let (Some(many), Some(few)) = (p50(&figures), p50(&few)) {
            figures.insert("change_ms_p50_1k".to_owned(), few.into());
            figures.insert("change_over_1k".to_owned(), round(many / few).into());
        }
    }
    if is_wanted("forward") {
        figures.extend(forward::measure(lab, routes)?);
        lab.clear("forward")?;
    }
    if is_wanted("routers") {
        figures.extend(routers::measure(lab, routers, EACH)?);
    }
    if has_peers {
        lab.clear("before-peers")?;
        peers(lab, settings, &mut figures)?;
    }
    Ok(Value::Object(figures))
}

/// Fetches the peers. One that cannot be had is left out.
pub(super) fn prepare() {
    let got =
        [("OVN", setup::ovn::unpack()), ("a reactive controller", setup::install(&[reactive::PACKAGE]))];
    for (name, got) in got {
        if let Err(error) = got {
            say(format!("lab: {name} is skipped: {error:#}"));
        }
    }
}

/// What other systems take for the same, and XenFlow with as many routes as OVN has.
fn peers(lab: &mut Lab, settings: Settings, figures: &mut Map<String, Value>) -> Result<()> {
    let few = Settings { routes: settings.routes.min(ovn::MOST), is_ipv4: true, ..settings };
    let table = |routes| Table::new(routes, true, settings.hops, lab.seed());
    let (few_routes, all_routes) = (table(few.routes), table(settings.routes));
    if reactive::is_here() {
        figures.extend(reactive::measure(lab, &all_routes)?);
        lab.clear("reactive")?;
    }
    if Ovn::is_here(lab)? {
        figures.extend(ovn::measure(lab, &few_routes, settings.hops)?);
        lab.clear("ovn")?;
        lab.step("XenFlow with as many routes as OVN has");
        let ours = measure(lab, few, false)?;
        for key in ["load_s", "change_ms_p50", "dom0_bytes_per_route"] {
            figures.insert(format!("beside_ovn_{key}"), ours.get(key).cloned().unwrap_or_default());
        }
    }
    Ok(())
}

/// The gateway of a number.
fn gateway(hop: usize, is_ipv4: bool) -> IpAddr {
    let last = 20 + hop as u8;
    if is_ipv4 {
        [10, 2, 0, last].into()
    } else {
        Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, last.into()).into()
    }
}

fn mac(hop: usize, version: u8) -> String {
    format!("02:aa:00:00:{version:02x}:{:02x}", 20 + hop)
}

fn measure(lab: &mut Lab, settings: Settings, is_aggregated: bool) -> Result<Map<String, Value>> {
    let Settings { routes, hops, is_ipv4 } = settings;
    lab.step(format!(
        "making host a and router r1; flows are {}",
        if is_aggregated { "few" } else { "plain" }
    ));
    let mut site = OneRouter::create(lab)?;
    site.node.configure_daemon(&format!("fib_aggregation = {is_aggregated}"))?;
    let alone = Alone::create(lab, site.node.host())?;
    site.start(SHORT)?;
    let base = sizes(&mut site)?;
    site.r1.stop_client()?;
    lab.step(format!("the guest's kernel gets {routes} routes by {hops} next hops"));
    let mut lines: String =
        if is_ipv4 { String::new() } else { "addr add fd00:2::1/64 dev lan2 nodad\n".to_owned() };
    for hop in 0..hops {
        let (gateway, mac) = (gateway(hop, is_ipv4), mac(hop, 0));
        lines.push_str(&format!("neigh add {gateway} lladdr {mac} dev lan2 nud permanent\n"));
    }
    site.guest().ip_batch(&lines)?;
    let table = Table::new(routes, is_ipv4, hops, lab.seed());
    let mut writer = Writer::open(site.guest())?;
    let line = |verb: &str, (addr, len, _): &(IpAddr, u8, usize), hop: usize| {
        format!("route {verb} {addr}/{len} via {} dev lan2 proto 99\n", gateway(hop, is_ipv4))
    };
    let begun = Instant::now();
    for chunk in table.routes.chunks(CHUNK) {
        writer.write(&chunk.iter().map(|route| line("add", route, route.2)).collect::<String>())?;
    }
    let kernel = begun.elapsed();

    lab.step("the client starts: all routes go to the switch");
    let ids = [site.node.daemon()?.id(), site.node.host_mut().vswitchd()?.id()];
    let before = [cpu::seconds(ids[0])?, cpu::seconds(ids[1])?];
    let begun = Instant::now();
    site.r1.start_client()?;
    let lines = site.r1.watch()?.sessions()?;
    let load = told(&lines, LONG)? - begun;
    let busy = json!({
        "xenflow-guest": round(cpu::seconds(site.r1.client()?.id())?),
        "xenflow-dom0": round(cpu::seconds(ids[0])? - before[0]),
        "ovs-vswitchd": round(cpu::seconds(ids[1])? - before[1]),
    });
    let full = sizes(&mut site)?;
    let flows = alone.copy(site.node.host(), BRIDGE)?;
    lab.step(format!("{load:.1?} for {routes} routes in {flows} flows; ovs-ofctl adds the same flows"));
    let mut loads = Vec::new();
    let before = cpu::seconds(ids[1])?;
    let times = if routes < MANY { LOADS } else { 1 };
    for _ in 0..times {
        loads.push(alone.load(site.node.host())?.as_secs_f64());
    }
    loads.sort_by(f64::total_cmp);
    let ofctl = percentile(&loads, 50).unwrap_or_default();
    // With the time that it takes to delete them.
    let ofctl_busy = (cpu::seconds(ids[1])? - before) / times as f64;

    lab.step(format!("{CHANGES} changes of a route, each beside a bare one"));
    let mut watch = site.r1.watch()?;
    let mut bare = Bare::connect(site.node.host())?;
    let mut random = Random::new(lab.seed(), 9);
    let ids = [site.r1.client()?.id(), ids[0], ids[1]];
    let busy_of = || ids.iter().map(|id| cpu::seconds(*id)).collect::<Result<Vec<f64>>>();
    let before = busy_of()?;
    let (mut changes, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let at = random.below(table.routes.len());
        let route = &table.routes[at];
        for hop in [(route.2 + 1) % hops, route.2] {
            writer.write(&line("replace", route, hop))?;
            let took = watch.acked(SHORT)?.took().context("a change of a snapshot")?;
            changes.push(took.as_secs_f64() * 1000.0);
            bares.push(bare.change()?.as_secs_f64() * 1000.0);
        }
    }
    let after = busy_of()?;
    let busy_of_change: Vec<f64> = before
        .iter()
        .zip(&after)
        .map(|(before, after)| round((after - before) * 500.0 / CHANGES as f64))
        .collect();
    lab.step("the next hop of most routes has another address");
    let mut moved = Vec::new();
    for version in 1..=MOVES {
        writer.write(&format!(
            "neigh replace {} dev lan2 lladdr {}\n",
            gateway(0, is_ipv4),
            mac(0, version)
        ))?;
        moved.push(watch.acked(SHORT)?.took().context("a change of a snapshot")?.as_secs_f64() * 1000.0);
    }
    drop(watch);
    let halves = if is_ipv4 {
        let added: Vec<String> = table.routes.iter().map(|route| line("add", route, route.2)).collect();
        let gateways = [0, 1].map(|hop| gateway(hop, true).to_string());
        halves::measure(lab, &site, &alone, &added, gateways)?
    } else {
        Map::new()
    };
    for times in [&mut changes, &mut bares, &mut moved] {
        times.sort_by(f64::total_cmp);
    }
    let of = |times: &[f64], percent| percentile(times, percent).unwrap_or_default();

    lab.step("the daemon is killed, and started without a memory");
    site.node.kill_daemon()?;
    // What the client has said before is not of this session.
    let lines = site.r1.watch()?.sessions()?;
    let restarted = Instant::now();
    site.node.spawn_daemon()?;
    let restart = told(&lines, LONG)? - restarted;
    let flow_mods = site.node.daemon()?.log();
    let flow_mods =
        flow_mods.lines().rev().find_map(|line| line.split("changes=").nth(1)?.trim().parse::<u64>().ok());

    let per_route = |name: usize| (full[name] - base[name]) / routes as f64;
    let (load, restart) = (load.as_secs_f64(), restart.as_secs_f64());
    let figures = json!({
        "flows": flows,
        "kernel_s": round(kernel.as_secs_f64()),
        "load_s": round(load),
        "load_cpu_s": busy,
        "ofctl_s": round(ofctl),
        "ofctl_vswitchd_cpu_s": round(ofctl_busy),
        "load_over_ofctl": round(load / ofctl),
        "load_over_kernel": round(load / kernel.as_secs_f64()),
        "change_ms_p50": round(of(&changes, 50)),
        "change_ms_p99": round(of(&changes, 99)),
        "change_cpu_ms": {
            "xenflow-guest": busy_of_change[0],
            "xenflow-dom0": busy_of_change[1],
            // The bare ones beside them, too.
            "ovs-vswitchd": busy_of_change[2],
        },
        "bare_ms_p50": round(of(&bares, 50)),
        "bare_ms_p99": round(of(&bares, 99)),
        "change_over_bare_p99": round(of(&changes, 99) / of(&bares, 99)),
        "nexthop_ms_p50": round(of(&moved, 50)),
        "nexthop_over_change": round(of(&moved, 50) / of(&changes, 50)),
        "restart_s": round(restart),
        "restart_over_load": round(restart / load),
        "restart_flow_mods": flow_mods,
        "dom0_bytes_per_route": round(per_route(0)),
        "guest_bytes_per_route": round(per_route(1)),
    });
    let Value::Object(mut figures) = figures else { unreachable!("it is one") };
    figures.extend(halves);
    Ok(figures)
}

/// When the host has acknowledged all of a session's tables.
fn told(lines: &Sessions, limit: Duration) -> Result<Instant> {
    let deadline = Instant::now() + limit;
    let mut end = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (at, line) = lines.next(left).context("no session, or no end of it")?;
        match line.state.as_deref() {
            Some("up") => end = line.seq,
            Some(_) => end = None,
            None if line.acked.is_some() && end.is_some() && line.acked >= end => return Ok(at),
            None => {}
        }
    }
}

/// Bytes that the daemon and the client have in memory.
fn sizes(site: &mut OneRouter) -> Result<[f64; 2]> {
    Ok([resident(site.node.daemon()?.id())?, resident(site.r1.client()?.id())?])
}

/// Bytes that a process has in memory.
fn resident(id: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let kib =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: f64| kib * 1024.0).context("no VmRSS")
}
