//! `lab xen`: a real virtual machine under two real Xen hosts on this machine, with XenFlow as users have it: the daemon on each host, the
//! hotplug script, the transport of `xl migrate`, the static client in a router's VM, which is moved under traffic there and back, by a
//! plan and by hand, and is refused at the last moment. At the end the same VM moves without XenFlow.
//!
//! QEMU translates all of a host, Xen and what runs on it: so rates and times say little, and what is lost says all. Everything goes with
//! the lab's process.

mod dom0;
mod payload;
mod site;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::site::{LIMIT, Site};
use crate::job::Product;
use crate::probe::ProbeReport;
use crate::process::Process;
use crate::setup::{self, Build};
use crate::vms::guest::{NAME, NICS};
use crate::vms::site::NAMES;
use crate::vms::{self, Kind, Report, Stage, Way};

const KIND: Kind<Parts> = Kind { name: "xen", work };
/// Node e, in the hosts' own network.
const EDGE: &str = "10.99.0.254";
/// The XenFlow database, from there.
const DATABASE: &str = "tcp:10.99.0.254:6640";
/// Seconds for which a guest may be on its way.
const MOVE_S: &str = "900";
/// Seconds that b waits for what does not come.
const READY_S: u32 = 5;
/// Exit code of `xenflow migrate`: the router is where it was.
const ABORTED: i32 = 3;
/// What `xl` says at the destination once all of the guest is there, and both of its copies stand still.
const RECEIVED: &str = "requesting permission to start domain";

/// What it is made of, built and fetched before.
#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    product: Product,
    image: PathBuf,
    scripts: PathBuf,
}

/// Makes what is needed, and runs all of it as root; `lab` is the lab's own program.
///
/// # Errors
/// It could not even begin.
pub fn run(lab: &Path, keep: bool) -> Result<Report> {
    setup::packages()?;
    setup::install(setup::VM_PACKAGES)?;
    setup::install(setup::XEN_PACKAGES)?;
    let image = setup::dom0::build()?;
    let product = setup::product(Build::Checked)?;
    let scripts = setup::workspace()?.join("xen-scripts");
    KIND.run(&Parts { product, image, scripts }, lab, keep)
}

/// The part that is root: prints a [`Report`].
///
/// # Errors
/// It could not even begin.
pub fn main(parts: &str, lab: &Path, keep: bool) -> Result<()> {
    KIND.main(parts, lab, keep)
}

fn work(parts: &Parts, lab: &Path, stage: &mut Stage) -> Result<()> {
    stage.step("two Xen hosts boot, and a third node");
    let mut site = Site::create(parts, lab, stage)?;
    stage.step("they are up; r1 boots on a");
    let end = moves(&mut site, stage);
    site.keep_logs(stage);
    end
}

fn moves(site: &mut Site, stage: &mut Stage) -> Result<()> {
    site.boot()?;
    stage.figure("ready_s", json!(stage.seconds()));
    for (name, from) in [("there", 0), ("back", 1)] {
        stage.step(&format!("r1 moves {name} by a plan, under {} packets a second", site::TRAFFIC.rate));
        go(site, from, Way::Planned, name, stage).with_context(|| format!("on the way {name}"))?;
    }
    stage.step("a planned move that b refuses when all of r1 is there");
    refused(site, stage).context("a move that is refused")?;
    stage.step("r1 moves there by a command that somebody types");
    site.rest.have_patience()?;
    go(site, 0, Way::Typed, "typed", stage).context("with a command that somebody types")?;
    let lost = site.rest.neighbors_lost();
    stage.figure("ospf_lost", json!(lost));
    ensure!(lost == 0, "the server has given up its neighbor {lost} times");

    stage.step("r1 boots on a with Xen's own script, and packets through it");
    site.boot_stock(1)?;
    stage.step("the same move, which must lose some");
    let probe = site.rest.probe()?;
    let begin = Instant::now();
    let said = site.migrate(0, "")?;
    let took = begin.elapsed();
    ensure!(said.status.success(), "xl migrate: {}", String::from_utf8_lossy(&said.stderr).trim());
    site.wait_alone(1)?;
    let report = site.rest.judge(probe)?;
    stage.moved("stock", figure(&report, took));
    ensure!(report.lost > 0, "a move with packets through the VM lost none: the probe sees nothing");
    Ok(())
}

/// Moves the VM away from that host, under the probe.
fn go(site: &mut Site, from: usize, way: Way, name: &str, stage: &mut Stage) -> Result<()> {
    let to = 1 - from;
    let probe = site.rest.probe()?;
    let begin = Instant::now();
    match way {
        Way::Planned => {
            site.rest.xenflow(&planned(NAMES[to]))?;
        }
        Way::Typed => {
            let said = site.migrate(from, "-s xl-migrate-transport")?;
            ensure!(said.status.success(), "xl migrate: {}", String::from_utf8_lossy(&said.stderr).trim());
        }
    }
    let took = begin.elapsed();
    site.wait_alone(to)?;
    site.rest.wait_settled(&site.at(to), LIMIT)?;
    let report = site.rest.judge(probe)?;
    let mut figures = figure(&report, took);
    figures["migration"] = site.report(site.newest()?, stage)?;
    stage.moved_whole(name, &report, figures)
}

const fn planned(to: &str) -> [&str; 8] {
    ["migrate", NAME, to, "--live", "--via", "xl", "--timeout", MOVE_S]
}

/// A planned move to a host where something else has an address of the VM's already, so that no port of that is let work: all of the guest
/// comes to b, suspended on both, and is not let in. It goes on where it was, and loses nothing.
fn refused(site: &mut Site, stage: &mut Stage) -> Result<()> {
    let [(_, mac), ..] = NICS;
    // Two, for one alone would be taken for the VM's.
    let foreign = ["foreign1", "foreign2"];
    let plug = foreign.map(|name| {
        let id = format!("external_ids:attached-mac='\"{mac}\"'");
        format!("-- add-port br-xf {name} -- set Interface {name} type=internal {id}")
    });
    site.run(1, &format!("ovs-vsctl --timeout=120 {}", plug.join(" ")))?;
    site.wait_at_most(READY_S)?;
    let number = site.newest()? + 1;
    // The daemon forgets it at the end.
    let follow = format!("tail --follow=name --retry --lines=+1 /var/lib/xenflow/moves/{number}/log");
    let log = stage.logs().join("refused-xl.log");
    let heard = Process::spawn("what xl says", &mut site.command(0, &follow), &log)?;

    let probe = site.rest.probe()?;
    let begin = Instant::now();
    let mut command = site.rest.xenflow_command();
    let said = command.args(planned(NAMES[1])).output().context("cannot run xenflow")?;
    let took = begin.elapsed();
    let words = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    ensure!(said.status.code() == Some(ABORTED), "xenflow migrate ended with {}: {words}", said.status);
    site.wait_alone(0)?;
    site.rest.wait_settled(&site.at(0), LIMIT)?;
    let report = site.rest.judge(probe)?;
    let heard = heard.log();
    for text in [RECEIVED, "router r1 is not ready here: no port of r1-lan"] {
        ensure!(heard.contains(text), "xl says nothing of \"{text}\": {heard}");
    }
    let unplug = foreign.map(|name| format!("-- del-port br-xf {name}"));
    site.run(1, &format!("ovs-vsctl --timeout=120 {}", unplug.join(" ")))?;
    site.wait_at_most(payload::READY_S)?;
    let mut figures = figure(&report, took);
    figures["migration"] = site.report(number, stage)?;
    stage.moved_whole("refused", &report, figures)
}

fn figure(report: &ProbeReport, took: Duration) -> Value {
    vms::figure(report, "xl", took)
}
