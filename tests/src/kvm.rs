//! `lab kvm`: real virtual machines under two real libvirt daemons on this machine, with XenFlow as users have it: the daemon on each
//! host, the hook, the static client in a router's VM, which is moved there and back under traffic.
//!
//! Hosts are namespaces ([`machine`]) with Open vSwitch in user space, since the machine's kernel may have none; QEMU translates, since it
//! may have no processor for guests. So rates and times say little, and what is lost says all. Everything goes with the lab's process.

mod guest;
mod machine;
mod node;
mod site;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::site::Site;
use crate::job::Product;
use crate::probe::ProbeReport;
use crate::process::{retry, wait_for};
use crate::progress::{print, say};
use crate::scratch::{Scratch, keep_results};
use crate::setup::{self, Build};

/// For a router to forward where it has come to, and for its move to be over.
const SETTLED: Duration = Duration::from_secs(60);
/// Seconds that a host waits for a planned guest's tables, here; by default more.
const READY_S: u32 = 2;
/// A migration that is on its way for ever, since the daemon that would begin it stands still.
const STUCK: &str = r#"["XenFlow",{"op":"insert","table":"Migration","row":{"number":900,"router":"r1","from":"a","to":"b","via":"virsh","move_limit_s":60,"phase":"staging"}}]"#;
const UNSTUCK: &str = r#"["XenFlow",{"op":"update","table":"Migration","where":[["number","==",900]],"row":{"phase":"aborted","error":"by the test"}}]"#;

/// What it is made of, built and fetched before.
#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    product: Product,
    kernel: PathBuf,
    hook: PathBuf,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// By their names, also if something failed.
    pub figures: Value,
    /// What failed.
    pub error: Option<String>,
    /// Where the logs are, if they were kept.
    pub kept: Option<PathBuf>,
}

/// Makes what is needed, and runs all of it as root; `lab` is the lab's own program.
///
/// # Errors
/// It could not even begin.
pub fn run(lab: &Path, keep: bool) -> Result<Report> {
    let kernel = Site::prepare()?;
    let product = setup::product(Build::Checked)?;
    let hook = setup::workspace()?.join("xen-scripts/qemu");
    let parts = Parts { product, kernel, hook };
    if nix::unistd::geteuid().is_root() {
        return inside(&parts, lab, keep);
    }
    say("lab: machines of namespaces need root: going on through sudo");
    let mut command = Command::new("sudo");
    command.arg(lab).args(["kvm-inside", &serde_json::to_string(&parts)?]).args(keep.then_some("--keep"));
    let out = command.stderr(Stdio::inherit()).output().context("cannot run sudo")?;
    serde_json::from_slice(&out.stdout)
        .with_context(|| format!("the part that is root ended with {}", out.status))
}

/// The part that is root: prints a [`Report`].
///
/// # Errors
/// It could not even begin.
pub fn main(parts: &str, lab: &Path, keep: bool) -> Result<()> {
    let report = inside(&serde_json::from_str(parts).context("no parts")?, lab, keep)?;
    print(serde_json::to_string(&report)?);
    Ok(())
}

fn inside(parts: &Parts, lab: &Path, keep: bool) -> Result<Report> {
    let scratch = Scratch::create()?;
    let logs = scratch.path().join("results");
    std::fs::create_dir(&logs)?;
    let begin = Instant::now();
    let mut figures = Map::new();
    let end = Site::create(&parts.product, lab, scratch.path(), &logs).and_then(|mut site| {
        step(begin, "two libvirt hosts and a third node are up");
        site.boot(&parts.kernel, &parts.hook, scratch.path(), &logs)?;
        figures.insert("ready_s".into(), json!(seconds(begin)));
        moves(&mut site, begin, &mut figures)
    });
    figures.insert("seconds".into(), json!(seconds(begin)));
    let kept = if keep || end.is_err() { Some(keep_results(&logs, "kvm", lab)?) } else { None };
    Ok(Report { figures: Value::Object(figures), error: end.err().map(|error| format!("{error:#}")), kept })
}

fn moves(site: &mut Site, begin: Instant, figures: &mut Map<String, Value>) -> Result<()> {
    for (name, from) in [("there", 0), ("back", 1)] {
        step(begin, &format!("r1 moves {name} under {} packets a second", site::RATE));
        let (report, took) = go(site, from).with_context(|| format!("on the way {name}"))?;
        figures.insert(name.into(), figure(&report, took));
        ensure!(report.lost + report.duplicated == 0, "on the way {name}: {}", figure(&report, took));
    }
    step(begin, "a planned move of which the destination is not ready");
    figures.insert("refused".into(), refused(site)?);
    let lost = site.neighbors_lost();
    figures.insert("ospf_lost".into(), json!(lost));
    ensure!(lost == 0, "the server has given up its neighbor {lost} times");

    step(begin, "the same with packets through the VM, which must lose some");
    site.xenflow(&["router", "set", guest::NAME, "--fastpath", "never", "--wait"])?;
    let (report, took) = go(site, 0).context("with packets through the VM")?;
    figures.insert("through_the_vm".into(), figure(&report, took));
    ensure!(report.lost > 0, "a move with packets through the VM lost none: the probe sees nothing");
    Ok(())
}

/// Moves the VM away from that host, under the probe; and how long libvirt took.
fn go(site: &mut Site, from: usize) -> Result<(ProbeReport, Duration)> {
    let probe = site.probe()?;
    let begin = Instant::now();
    let said = site.migrate(from)?;
    let took = begin.elapsed();
    ensure!(said.status.success(), "virsh migrate: {}", String::from_utf8_lossy(&said.stderr).trim());
    let to = ["b", "a"][from];
    ensure!(site.runs_on()? == [to], "the VM runs on {:?}, and not on {to} alone", site.runs_on()?);
    site.wait_settled(1 - from, SETTLED)?;
    Ok((site.judge(probe)?, took))
}

/// A planned move whose tables never come: the guest goes on where it is, and loses nothing.
fn refused(site: &mut Site) -> Result<Value> {
    let [a, b] = &site.hosts;
    b.machine.write("default/xenflow", &format!("XENFLOW_READY_S={READY_S}\n"))?;
    a.signal_daemon("STOP")?;
    site.transact(STUCK)?;
    wait_for("b's daemon to know of the migration", SETTLED, || Ok(site.is_refused_at_b()?.then_some(())))?;
    let probe = site.probe()?;
    let begin = Instant::now();
    let said = site.migrate(0)?;
    let took = begin.elapsed();
    let report = site.judge(probe)?;
    site.transact(UNSTUCK)?;
    site.hosts[0].signal_daemon("CONT")?;
    let words = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    ensure!(!said.status.success(), "a guest came to a host that was not ready for it");
    ensure!(words.contains("migration 900 from a is staging"), "libvirt says of the refusal: {words}");
    ensure!(site.runs_on()? == ["a"], "the VM runs on {:?} after a refused move", site.runs_on()?);
    ensure!(report.lost + report.duplicated == 0, "a refused move lost packets: {}", figure(&report, took));
    retry("b to have heard that it is over", SETTLED, || {
        ensure!(!site.is_refused_at_b()?, "b still waits");
        Ok(())
    })?;
    Ok(figure(&report, took))
}

fn figure(report: &ProbeReport, took: Duration) -> Value {
    json!({
        "sent": report.sent, "lost": report.lost, "duplicated": report.duplicated, "reordered": report.reordered,
        "longest_gap_ms": report.longest_gap_ms, "virsh_s": (took.as_secs_f64() * 100.0).round() / 100.0,
    })
}

fn step(begin: Instant, text: &str) {
    say(format!("lab: {:5.1} s  {text}", seconds(begin)));
}

fn seconds(begin: Instant) -> f64 {
    (begin.elapsed().as_secs_f64() * 10.0).round() / 10.0
}
