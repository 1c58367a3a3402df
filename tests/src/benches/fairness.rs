//! `fairness`: what a guest at its worst does to another router of the same host.
//!
//! Two routers on one host. The victim runs the real client; route after route is put into its kernel, and for each the
//! time until the client holds the acknowledgement that the switch has it. The other guest is a program that does one
//! thing as fast as it can ([`attack`]), with the processor time of 20 % of the lab: it is the host that is measured,
//! and the lab has one processor for all. Quiet and attacked phases take turns, in one run.
//!
//! The control is what nothing shares out: a route of the victim's behind ten thousand of its own.

pub mod attack;
mod cap;
mod memory;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

use self::attack::{Count, GO, Kind, QUIET, READY, Report};
use self::cap::Cap;
use self::memory::Peak;
use super::{Options, percentile, round};
use crate::cpu::Meter;
use crate::node::{Node, Pki};
use crate::one_router::OneRouter;
use crate::oracle::random::Random;
use crate::process::{Process, wait_for};
use crate::routes::Writer;
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::{Acked, Link, VirtualRouter};

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "fairness",
    about: "a router's route-to-flow time beside a guest at its worst (--kinds all, --routes N, --rounds N, --changes N, --cap N)",
    memory_mib: 4 << 10,
    limit: Duration::from_secs(3600),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("worst_ratio_p50", "at most 2"),
        ("control_ratio_p50", "more than 2"),
        ("kinds.memory.grown_mib.xenflow-dom0", "at most budget_mib and 96"),
    ],
    run,
};

const LIMIT: Duration = Duration::from_secs(60);
/// For an attacker to tell its tables, and for the host to come to rest after.
const LONG: Duration = Duration::from_secs(600);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 20);
/// The victim's routes, one address each, and those of the control.
const FIRST: u32 = 0x0a40_0000;
const CONTROL_FIRST: u32 = 0x0a50_0000;
const CONTROL: u32 = 10_000;
/// Between two changes, so that they meet every state of the host, in milliseconds.
const PAUSE_MS: (u8, u8) = (5, 35);
/// Busy for less than this, in percent of the processor, the host is at rest.
const REST: f64 = 4.0;
const TARGET: f64 = 2.0;
/// What the daemon may keep of one router: little enough to be reached here, and enough for `--routes` plain ones.
const BUDGET_MIB: u32 = 32;
/// Beside the budget: a message in each stage of its way, what is due, groups on their way to the switch.
const SLACK_MIB: f64 = 96.0;

struct Site {
    r1: VirtualRouter,
    evil: VirtualRouter,
    node: Node,
    pki: Pki,
    writer: Writer,
    acks: Receiver<Acked>,
    random: Random,
    made: u32,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let kinds: String = options.take("--kinds", "all".to_owned())?;
    let routes: u32 = options.take("--routes", 100_000)?;
    let rounds: u32 = options.take("--rounds", 4)?;
    let changes: u32 = options.take("--changes", 50)?;
    let cap: u32 = options.take("--cap", 20)?;
    options.end()?;
    let kinds: Vec<Kind> = match kinds.as_str() {
        "all" => Kind::value_variants().to_vec(),
        some => {
            let kinds = some.split(',').map(|name| Kind::from_str(name, false));
            kinds.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?
        }
    };
    ensure!((1..=1_000_000).contains(&routes), "{routes} routes is not 1 to 1000000");
    ensure!((1..=100).contains(&rounds) && changes >= 1, "{rounds} rounds of {changes} changes");
    // A plain route is less than 1 KiB.
    let budget_mib = BUDGET_MIB.max(routes.div_ceil(1024));
    let mut site = build(lab, budget_mib)?;
    lab.ready()?;

    let mut figures = Map::new();
    let mut worst = (0.0_f64, 0.0_f64);
    for kind in kinds {
        let (ratios, of_kind) = measure(lab, &mut site, kind, (routes, rounds, changes), (cap, budget_mib))?;
        worst = (worst.0.max(ratios.0), worst.1.max(ratios.1));
        figures.insert(name_of(kind), of_kind);
    }
    lab.step(format!("control: a route behind {CONTROL} of its own router"));
    let control = control(&mut site)?;
    let figures = json!({
        "attacker_cpu_percent": cap,
        "attacker_routes": routes,
        "budget_mib": budget_mib,
        "kinds": figures,
        "worst_ratio_p50": round(worst.0),
        "worst_ratio_p99": round(worst.1),
        "control_ratio_p50": round(control),
    });
    ensure!(control > TARGET, "what waits for ten thousand routes shows nothing: {figures}");
    ensure!(worst.0 <= TARGET, "another router's route takes more than twice as long: {figures}");
    Ok(figures)
}

fn name_of(kind: Kind) -> String {
    kind.to_possible_value().map(|value| value.get_name().replace('-', "_")).unwrap_or_default()
}

fn build(lab: &Lab, budget_mib: u32) -> Result<Site> {
    lab.step("making host a with routers r1 and evil");
    let mut site = OneRouter::create(lab)?;
    site.node.configure("network add blue\nsegment add lan3 --network blue --vlan 13\n")?;
    let links = [Link { name: "lan3", segment: "lan3", address: "10.3.0.1/24" }];
    let evil = VirtualRouter::create(lab, &site.node, &site.pki, ("blue", "evil", 2), &links)?;
    site.guest()
        .ip_batch(&format!("neigh add {GATEWAY} lladdr 02:aa:00:00:00:20 dev lan2 nud permanent\n"))?;
    site.node.configure_daemon(&format!("max_bytes_per_router = {}", u64::from(budget_mib) << 20))?;
    site.start(LIMIT)?;
    let OneRouter { r1, node, pki } = site;
    let writer = Writer::open(r1.guest().netns())?;
    let acks = r1.watch()?.into_acks()?;
    Ok(Site { r1, evil, node, pki, writer, acks, random: Random::new(lab.seed(), 1), made: 0 })
}

/// One kind of attack: the ratios of p50 and p99, and all figures.
fn measure(
    lab: &Lab,
    site: &mut Site,
    kind: Kind,
    (routes, rounds, changes): (u32, u32, u32),
    (cap, budget_mib): (u32, u32),
) -> Result<((f64, f64), Value)> {
    let name = name_of(kind);
    lab.step(format!("{name}: the attacker tells what it has"));
    let group = Cap::create("attacker", cap)?;
    let processes =
        [("xenflow-dom0", site.node.daemon()?.id()), ("ovs-vswitchd", site.node.host_mut().vswitchd()?.id())];
    let peak = Peak::start(&processes)?;
    let mut attack = start(lab, site, kind, routes, &group)?;
    attack.wait_for_log(READY, LONG)?;
    let (mut quiet, mut attacked) = (Vec::new(), Vec::new());
    let mut busy = Map::new();
    for round in 1..=rounds {
        lab.step(format!("{name}: round {round} of {rounds}"));
        tell(&mut attack, QUIET)?;
        rest(site)?;
        quiet.extend(site.route_to_flow(changes)?);
        tell(&mut attack, GO)?;
        std::thread::sleep(Duration::from_millis(500));
        let meter = Meter::start(&[
            ("attacker", attack.id()),
            ("xenflow-dom0", site.node.daemon()?.id()),
            ("ovs-vswitchd", site.node.host_mut().vswitchd()?.id()),
            ("xenflow-guest", site.r1.client()?.id()),
        ])?;
        attacked.extend(site.route_to_flow(changes)?);
        busy = meter.percent()?;
        attack.check()?;
    }
    let report = stop(attack)?;
    let memory = peak.mib()?;
    drop(group);
    rest(site)?;
    site.clear()?;
    let during = said(&report, rounds).with_context(|| format!("{name}: {report:?}"))?;
    let [quiet, attacked] = [quiet, attacked].map(|mut all| {
        all.sort_by(f64::total_cmp);
        [50, 99].map(|percent| percentile(&all, percent).unwrap_or_default())
    });
    let ratios = (attacked[0] / quiet[0], attacked[1] / quiet[1]);
    let figures = json!({
        "quiet_p50_ms": round(quiet[0]),
        "quiet_p99_ms": round(quiet[1]),
        "worst_p50_ms": round(attacked[0]),
        "worst_p99_ms": round(attacked[1]),
        "ratio_p50": round(ratios.0),
        "ratio_p99": round(ratios.1),
        "said": report.total,
        "said_while_attacking": during,
        "cpu_percent": busy,
        "peak_mib": memory.peak,
        "grown_mib": memory.grown,
    });
    lab.step(format!("{name}: {figures}"));
    if kind == Kind::Memory {
        let grown = memory.grown.get("xenflow-dom0").copied().unwrap_or(f64::MAX);
        let most = f64::from(budget_mib) + SLACK_MIB;
        ensure!(report.total.refusals > 0, "the budget was not reached: {figures}");
        ensure!(grown <= most, "the daemon grows by {grown} MiB, more than {most}");
    }
    Ok((ratios, figures))
}

/// What the attacker said in all attacked phases; in each of them it has to say something.
fn said(report: &Report, rounds: u32) -> Result<Count> {
    ensure!(report.attacked.len() == rounds as usize, "not {rounds} attacked phases");
    let mut all = Count::default();
    for (number, phase) in (1..).zip(&report.attacked) {
        let said = phase.connections + phase.messages + phase.bytes;
        ensure!(said > 0, "the attacker said nothing in attacked phase {number}");
        all = all + *phase;
    }
    Ok(all)
}

fn start(lab: &Lab, site: &Site, kind: Kind, routes: u32, group: &Cap) -> Result<Process> {
    let mut command = site.evil.guest().netns().command(lab.binary());
    let name = name_of(kind).replace('_', "-");
    command.args(["attack", "--router", site.evil.name(), "--kind", &name]);
    command.args(["--mac", &site.evil.mac(0), "--routes", &routes.to_string(), "--pki"]);
    command.arg(site.pki.dir()).stdin(Stdio::piped());
    let log = lab.results().join(format!("attack-{name}.log"));
    let attack = Process::spawn_with_stdin("lab attack", &mut command, &log)?;
    group.hold(attack.id())?;
    Ok(attack)
}

fn tell(attack: &mut Process, line: &str) -> Result<()> {
    let stdin = attack.child().stdin.as_mut().context("no pipe to the attacker")?;
    writeln!(stdin, "{line}").context("the attacker hears nothing")
}

fn stop(mut attack: Process) -> Result<Report> {
    drop(attack.child().stdin.take());
    attack.wait(LIMIT)?;
    attack::report(&attack.log())
}

/// Waits until the host has nothing more to do.
fn rest(site: &mut Site) -> Result<()> {
    let processes =
        [("xenflow-dom0", site.node.daemon()?.id()), ("ovs-vswitchd", site.node.host_mut().vswitchd()?.id())];
    wait_for("the host to come to rest", LONG, || {
        let meter = Meter::start(&processes)?;
        std::thread::sleep(Duration::from_millis(500));
        let busy: f64 = meter.percent()?.values().filter_map(Value::as_f64).sum();
        Ok((busy < REST).then_some(()))
    })
}

/// `CLOCK_MONOTONIC`, as the client has it.
fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// Lines for routes to these addresses.
fn lines(verb: &str, addresses: std::ops::Range<u32>) -> String {
    let line = |addr| format!("route {verb} {}/32 via {GATEWAY} proto 99\n", Ipv4Addr::from(addr));
    addresses.map(line).collect()
}

impl Site {
    /// Puts routes into the victim's kernel, one after the other; the milliseconds of each.
    fn route_to_flow(&mut self, changes: u32) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..changes {
            let pause = self.random.between(PAUSE_MS.0, PAUSE_MS.1);
            std::thread::sleep(Duration::from_millis(pause.into()));
            let line = lines("add", FIRST + self.made..FIRST + self.made + 1);
            let start = now_ns()?;
            self.writer.write(&line)?;
            self.made += 1;
            let end = loop {
                let ack = self.acks.recv_timeout(LIMIT).context("no acknowledgement")?;
                if ack.queued_ns.is_some_and(|queued| queued >= start) {
                    break ack.at_ns;
                }
            };
            times.push((end - start) as f64 / 1e6);
        }
        Ok(times)
    }

    /// Takes the victim's routes back.
    fn clear(&mut self) -> Result<()> {
        self.writer.write(&lines("del", FIRST..FIRST + self.made))?;
        let made = std::mem::take(&mut self.made);
        self.await_changes(made.into())
    }

    fn await_changes(&mut self, changes: u64) -> Result<()> {
        let mut acked = 0;
        while acked < changes {
            acked += self.acks.recv_timeout(LIMIT).context("no acknowledgement")?.changes;
        }
        Ok(())
    }
}

/// A quiet route, and one behind many others of its router: the ratio.
fn control(site: &mut Site) -> Result<f64> {
    rest(site)?;
    let mut quiet = site.route_to_flow(20)?;
    quiet.sort_by(f64::total_cmp);
    let quiet = percentile(&quiet, 50).unwrap_or_default();
    site.writer.write(&lines("add", CONTROL_FIRST..CONTROL_FIRST + CONTROL))?;
    let start = Instant::now();
    site.writer.write(&lines("add", FIRST + site.made..FIRST + site.made + 1))?;
    site.made += 1;
    site.await_changes(u64::from(CONTROL) + 1)?;
    Ok(start.elapsed().as_secs_f64() * 1000.0 / quiet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attack_that_pauses_when_it_matters_counts_for_nothing() {
        let total = Count { connections: 5, messages: 900, ..Count::default() };
        let phase = Count { bytes: 1, ..Count::default() };
        let report = |attacked: &[Count]| Report { total, attacked: attacked.to_vec() };
        assert_eq!(said(&report(&[phase, phase]), 2).unwrap().bytes, 2);
        let error = said(&report(&[phase, Count::default()]), 2).unwrap_err().to_string();
        assert_eq!(error, "the attacker said nothing in attacked phase 2");
        assert!(said(&report(&[phase]), 2).is_err(), "one was not counted");
    }
}
