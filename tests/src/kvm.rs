//! `lab kvm`: real virtual machines under two real libvirt daemons on this machine, with XenFlow as users have it: the daemon on each
//! host, the hook, the static client in a router's VM, which is moved there and back under traffic.
//!
//! Hosts are [namespaces](crate::vms::machine) with Open vSwitch in user space, since the machine's kernel may have none; QEMU
//! translates, since it may have no processor for guests. So rates and times say little, and what is lost says all. Everything goes with
//! the lab's process.

mod host;
mod site;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::site::Site;
use crate::job::Product;
use crate::probe::ProbeReport;
use crate::process::{retry, wait_for};
use crate::setup::{self, Build};
use crate::vms::guest::NAME;
use crate::vms::site::NAMES;
use crate::vms::{self, Kind, Report, Stage, Way};

/// For a router to forward where it has come to, and for its move to be over.
const SETTLED: Duration = Duration::from_secs(60);
/// Seconds that a host waits for a planned guest's tables, here; by default more.
const READY_S: u32 = 2;
/// A migration that is on its way for ever, since the daemon that would begin it stands still.
const STUCK: &str = r#"["XenFlow",{"op":"insert","table":"Migration","row":{"number":900,"router":"r1","from":"a","to":"b","via":"virsh","move_limit_s":60,"phase":"staging"}}]"#;
const UNSTUCK: &str = r#"["XenFlow",{"op":"update","table":"Migration","where":[["number","==",900]],"row":{"phase":"aborted","error":"by the test"}}]"#;
const KIND: Kind<Parts> = Kind { name: "kvm", work };

/// What it is made of, built and fetched before.
#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    product: Product,
    kernel: PathBuf,
    hook: PathBuf,
}

/// Makes what is needed, and runs all of it as root; `lab` is the lab's own program.
///
/// # Errors
/// It could not even begin.
pub fn run(lab: &Path, keep: bool) -> Result<Report> {
    let kernel = Site::prepare()?;
    let product = setup::product(Build::Checked)?;
    let hook = setup::workspace()?.join("xen-scripts/qemu");
    KIND.run(&Parts { product, kernel, hook }, lab, keep)
}

/// The part that is root: prints a [`Report`].
///
/// # Errors
/// It could not even begin.
pub fn main(parts: &str, lab: &Path, keep: bool) -> Result<()> {
    KIND.main(parts, lab, keep)
}

fn work(parts: &Parts, lab: &Path, stage: &mut Stage) -> Result<()> {
    let mut site = Site::create(&parts.product, lab, stage)?;
    stage.step("two libvirt hosts and a third node are up");
    site.boot(&parts.kernel, &parts.hook, stage)?;
    stage.figure("ready_s", json!(stage.seconds()));
    for (name, from, way) in [("there", 0, Way::Typed), ("back", 1, Way::Planned)] {
        stage.step(&format!("r1 moves {name} under {} packets a second", site::TRAFFIC.rate));
        let (report, took) = go(&mut site, from, way).with_context(|| format!("on the way {name}"))?;
        stage.moved_whole(name, &report, figure(&report, took))?;
    }
    stage.step("a planned move of which the destination is not ready");
    refused(&mut site, stage)?;
    let lost = site.rest.neighbors_lost();
    stage.figure("ospf_lost", json!(lost));
    ensure!(lost == 0, "the server has given up its neighbor {lost} times");

    stage.step("the same with packets through the VM, which must lose some");
    site.rest.xenflow(&["router", "set", NAME, "--fastpath", "never", "--wait"])?;
    let (report, took) = go(&mut site, 0, Way::Typed).context("with packets through the VM")?;
    stage.moved("through_the_vm", figure(&report, took));
    ensure!(report.lost > 0, "a move with packets through the VM lost none: the probe sees nothing");
    Ok(())
}

/// Moves the VM away from that host, under the probe; and how long the command took.
fn go(site: &mut Site, from: usize, way: Way) -> Result<(ProbeReport, Duration)> {
    let to = NAMES[1 - from];
    let probe = site.rest.probe()?;
    let begin = Instant::now();
    match way {
        Way::Planned => {
            site.rest.xenflow(&["migrate", NAME, to, "--live", "--via", "virsh"])?;
        }
        Way::Typed => {
            let said = site.migrate(from)?;
            ensure!(said.status.success(), "virsh migrate: {}", String::from_utf8_lossy(&said.stderr).trim());
        }
    }
    let took = begin.elapsed();
    ensure!(site.runs_on()? == [to], "the VM runs on {:?}, and not on {to} alone", site.runs_on()?);
    site.rest.wait_settled(&site.at(1 - from), SETTLED)?;
    Ok((site.rest.judge(probe)?, took))
}

/// A planned move whose tables never come: the guest goes on where it is, and loses nothing.
fn refused(site: &mut Site, stage: &mut Stage) -> Result<()> {
    let [a, b] = &site.hosts;
    b.node.machine.write("default/xenflow", &format!("XENFLOW_READY_S={READY_S}\n"))?;
    a.node.signal_daemon("STOP")?;
    site.rest.transact(STUCK)?;
    wait_for("b's daemon to know of the migration", SETTLED, || Ok(site.is_refused_at_b()?.then_some(())))?;
    let probe = site.rest.probe()?;
    let begin = Instant::now();
    let said = site.migrate(0)?;
    let took = begin.elapsed();
    let report = site.rest.judge(probe)?;
    site.rest.transact(UNSTUCK)?;
    site.hosts[0].node.signal_daemon("CONT")?;
    let words = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    ensure!(!said.status.success(), "a guest came to a host that was not ready for it");
    ensure!(words.contains("migration 900 from a is staging"), "libvirt says of the refusal: {words}");
    ensure!(site.runs_on()? == ["a"], "the VM runs on {:?} after a refused move", site.runs_on()?);
    retry("b to have heard that it is over", SETTLED, || {
        ensure!(!site.is_refused_at_b()?, "b still waits");
        Ok(())
    })?;
    stage.moved_whole("refused", &report, figure(&report, took))
}

fn figure(report: &ProbeReport, took: Duration) -> Value {
    vms::figure(report, "virsh", took)
}
