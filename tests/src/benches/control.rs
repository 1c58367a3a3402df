//! `control`: how long an operator's command takes until a new vif's flows are in both switches, beside OVN.
//!
//! Two pairs of hosts on one learning bridge, each host with its own Open vSwitch: a and b run XenFlow, c and d run OVN
//! of Debian's packages as they come (Geneve, no option changed). Both have the same number of vifs and interfaces
//! standing. In every round one more is asked for, whose interface is plugged in already: by `xenflow vif add --wait`,
//! by `ovn-nbctl --wait=hv lsp-add`, and by the same through an `ovn-nbctl` that runs as a daemon. Time is from before
//! the command's start to after its end.
//!
//! When a command has returned, the daemons of its hosts are stopped at once, and the flows that name the vif's address
//! must be in both switches, all of them. The control is the same command without its waiting: there they are not.
//!
//! `ratio` is of two commands that start a process each, `ratio_daemon` of one that does and one whose process runs already:
//! in a lab, whose kernel takes half a millisecond for a page fault, more than half of a command is its start.

mod ovn;
mod xenflow;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::ovn::Ovn;
use self::xenflow::Xenflow;
use super::{Options, percentile, round};
use crate::host::Host;
use crate::node::Pki;
use crate::process::{self, wait_for};
use crate::scenario::{Lab, Scenario};
use crate::trunk::{Trunk, TrunkKind};

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "control",
    about: "from `xenflow vif add --wait` to flows in both switches, beside OVN (--rounds N, --standing N)",
    memory_mib: 2 << 10,
    limit: Duration::from_secs(600),
    needs_product: true,
    in_suite: false,
    targets: &[("ratio", "less than 1"), ("ratio_daemon", "reported"), ("control", "more than 0")],
    run,
};

const LIMIT: Duration = Duration::from_secs(20);
/// The flows of the vif that comes and goes are all there when they have stayed as they are for so long.
const SETTLED: Duration = Duration::from_secs(1);
/// The address of the vif that comes and goes.
const MAC: &str = "02:56:00:00:ff:01";
/// Its name, which is also its interface's `iface-id`.
const VIF: &str = "fresh";
/// Its port.
const PORT: &str = "fresh0";

/// One of the two that are measured.
trait System {
    /// The command that asks for the vif.
    fn add(&self, is_waiting: bool) -> Command;
    /// The command that takes it back, and waits.
    fn remove(&self) -> Command;
    /// Both hosts; the vif's interface is on the first.
    fn hosts(&self) -> [&Host; 2];
    /// The integration bridge.
    fn bridge(&self) -> &'static str;
    /// What a flow that belongs to the vif says.
    fn mark(&self) -> String;
    /// To the daemons that write flows.
    fn signal(&mut self, signal: Signal) -> Result<()>;
}

/// The address of a standing vif.
fn mac(at: u16) -> String {
    format!("02:56:00:00:{:02x}:{:02x}", at >> 8, at & 0xff)
}

/// The standing vifs on a host of a pair, 0 or 1: every other one.
fn standing(host: usize, count: u16) -> impl Iterator<Item = u16> {
    (0..count).skip(host).step_by(2)
}

/// Plugs the interfaces of a host's vifs in, all as ports of the switch's own: `p0`, `p1`, … and, on the first host, the one
/// that comes and goes.
fn plug(host: &Host, bridge: &str, at: usize, count: u16) -> Result<()> {
    let mut vifs: Vec<_> =
        standing(at, count).map(|at| (format!("v{at}"), format!("p{at}"), mac(at))).collect();
    if at == 0 {
        vifs.push((PORT.to_owned(), VIF.to_owned(), MAC.to_owned()));
    }
    let mut ups = String::new();
    // Open vSwitch's own datapath takes a second for a few of them.
    for some in vifs.chunks(5) {
        let mut args = Vec::new();
        for (port, id, mac) in some {
            args.extend(["--", "add-port", bridge, port, "--", "set", "Interface", port].map(str::to_owned));
            args.extend(["type=internal".to_owned(), format!("external_ids:iface-id={id}")]);
            args.push(format!("external_ids:attached-mac=\"{mac}\""));
            ups.push_str(&format!("link set {port} up\n"));
        }
        host.vsctl(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    vifs.iter().try_for_each(|(port, ..)| host.quiet(port))?;
    host.netns().ip_batch(&ups)
}

/// How many flows belong to the vif, by host.
fn flows(system: &dyn System) -> Result<[usize; 2]> {
    let mark = system.mark();
    let count = |host: &Host| -> Result<usize> {
        let flows = host.ofctl(&["--no-stats", "dump-flows", system.bridge()])?;
        Ok(flows.lines().filter(|flow| flow.contains(&mark)).count())
    };
    let [first, second] = system.hosts();
    Ok([count(first)?, count(second)?])
}

/// Until the switches have no flow of the vif.
fn clear(system: &dyn System) -> Result<()> {
    process::output(&mut system.remove())?;
    wait_for("the flows of the vif to go", LIMIT, || Ok((flows(system)? == [0, 0]).then_some(())))
}

/// How many flows there are when the vif has them all.
fn complete(system: &dyn System) -> Result<[usize; 2]> {
    process::output(&mut system.add(true))?;
    let mut last = ([0, 0], Instant::now());
    let all = wait_for("the flows of the vif to be all there", LIMIT, || {
        let now = flows(system)?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        Ok((!now.contains(&0) && last.1.elapsed() >= SETTLED).then_some(now))
    })?;
    clear(system)?;
    Ok(all)
}

/// The time that a command took, in ms, and whether all flows were there when it returned.
fn measure(system: &mut dyn System, mut add: Command, all: [usize; 2]) -> Result<(f64, bool)> {
    let start = Instant::now();
    process::output(&mut add)?;
    let took = start.elapsed().as_secs_f64() * 1000.0;
    system.signal(Signal::SIGSTOP)?;
    let there = flows(system);
    system.signal(Signal::SIGCONT)?;
    let there = there?;
    if there != all {
        // It may be asked for, but nobody has waited for it yet.
        wait_for("the flows of the vif", LIMIT, || Ok((flows(system)? == all).then_some(())))?;
    }
    clear(system)?;
    Ok((took, there == all))
}

/// Times of one way, and how often flows were missing.
#[derive(Default)]
struct Times {
    ms: Vec<f64>,
    late: u32,
}

impl Times {
    fn take(&mut self, (ms, is_complete): (f64, bool)) {
        self.ms.push(ms);
        self.late += u32::from(!is_complete);
    }

    /// Median and the 90th percentile.
    fn figures(&mut self) -> (f64, f64) {
        self.ms.sort_by(f64::total_cmp);
        let at = |percent| percentile(&self.ms, percent).unwrap_or_default();
        (at(50), at(90))
    }
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let rounds: u32 = options.take("--rounds", 30)?;
    let standing: u16 = options.take("--standing", 50)?;
    options.end()?;
    ensure!((1..=1000).contains(&rounds), "{rounds} rounds is not 1 to 1000");
    ensure!((2..=1000).contains(&standing), "{standing} standing vifs is not 2 to 1000");

    lab.step(format!("making four hosts, and {standing} vifs for each pair"));
    let pki = Pki::create(lab)?;
    let mut xenflow = Xenflow::create(lab, &pki)?;
    let mut ovn = Ovn::create(lab)?;
    let hosts: Vec<_> = xenflow.hosts().into_iter().chain(ovn.hosts()).collect();
    let _trunk = Trunk::connect(TrunkKind::Bridge, &hosts)?;
    xenflow.start(lab, standing)?;
    ovn.start(standing)?;
    lab.ready()?;

    lab.step("what flows a vif has");
    let (all, of_ovn) = (complete(&xenflow)?, complete(&ovn)?);
    let [mut own, mut other, mut daemon, mut control, mut ovn_control] = [(); 5].map(|()| Times::default());
    for round in 1..=rounds {
        lab.step(format!("round {round} of {rounds}"));
        let add = xenflow.add(true);
        own.take(measure(&mut xenflow, add, all)?);
        let add = ovn.add(true);
        other.take(measure(&mut ovn, add, of_ovn)?);
        let add = ovn.by_daemon(ovn.add(true));
        daemon.take(measure(&mut ovn, add, of_ovn)?);
        let add = xenflow.add(false);
        control.take(measure(&mut xenflow, add, all)?);
        let add = ovn.add(false);
        ovn_control.take(measure(&mut ovn, add, of_ovn)?);
    }
    let (ms, p90) = own.figures();
    let (ovn_ms, ovn_p90) = other.figures();
    let (daemon_ms, daemon_p90) = daemon.figures();
    let (ratio, ratio_daemon) = (ms / ovn_ms, ms / ovn_ms.min(daemon_ms));
    let figures = json!({
        "xenflow_ms": round(ms), "xenflow_p90_ms": round(p90),
        "ovn_ms": round(ovn_ms), "ovn_p90_ms": round(ovn_p90),
        "ovn_daemon_ms": round(daemon_ms), "ovn_daemon_p90_ms": round(daemon_p90),
        "ratio": round(ratio), "ratio_daemon": round(ratio_daemon),
        "standing": standing, "rounds": rounds,
        "flows": all, "ovn_flows": of_ovn,
        "late": own.late, "control": control.late,
        "ovn_late": other.late + daemon.late, "ovn_control": ovn_control.late,
    });
    ensure!(own.late == 0, "xenflow --wait has returned before the flows were there: {figures}");
    ensure!(control.late > 0, "without --wait flows are there as well, so this shows nothing: {figures}");
    ensure!(ratio < 1.0, "target missed: {figures}");
    Ok(figures)
}
