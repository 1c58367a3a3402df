//! Real virtual machines under real hypervisors, with XenFlow as users have it, for [`kvm`](crate::kvm) and [`xen`](crate::xen).
//!
//! Here is what both have in common: machines of namespaces ([`machine`]), a node with its switch and daemon ([`node`]), the router's VM
//! ([`guest`]), all that its packets come from and go to ([`site`]), and how a run is reported.

pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod node;
pub(crate) mod site;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::probe::ProbeReport;
use crate::progress::{print, say};
use crate::scratch::{Scratch, keep_results};

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// By their names, also if something failed.
    pub figures: Value,
    /// The names of those that are a move's, in their order.
    pub moves: Vec<String>,
    /// What failed.
    pub error: Option<String>,
    /// Where the logs are, if they were kept.
    pub kept: Option<PathBuf>,
}

/// One way to run VMs, as the command line has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind<P> {
    /// Its name there, and that of its logs.
    pub(crate) name: &'static str,
    /// Does all of it as root, with parts that were made before.
    pub(crate) work: fn(&P, &Path, &mut Stage) -> Result<()>,
}

impl<P: Serialize + DeserializeOwned> Kind<P> {
    /// Runs it as root; `lab` is the lab's own program.
    pub(crate) fn run(self, parts: &P, lab: &Path, keep: bool) -> Result<Report> {
        if nix::unistd::geteuid().is_root() {
            return self.inside(parts, lab, keep);
        }
        say("lab: machines of namespaces need root: going on through sudo");
        let mut command = Command::new("sudo");
        command.arg(lab).args([&format!("{}-inside", self.name), &serde_json::to_string(parts)?]);
        command.args(keep.then_some("--keep"));
        let out = command.stderr(Stdio::inherit()).output().context("cannot run sudo")?;
        serde_json::from_slice(&out.stdout)
            .with_context(|| format!("the part that is root ended with {}", out.status))
    }

    /// The part that is root: prints a [`Report`].
    pub(crate) fn main(self, parts: &str, lab: &Path, keep: bool) -> Result<()> {
        let report = self.inside(&serde_json::from_str(parts).context("no parts")?, lab, keep)?;
        print(serde_json::to_string(&report)?);
        Ok(())
    }

    fn inside(self, parts: &P, lab: &Path, keep: bool) -> Result<Report> {
        let scratch = Scratch::create()?;
        let logs = scratch.path().join("results");
        std::fs::create_dir(&logs)?;
        let mut stage = Stage {
            scratch,
            logs,
            begin: Instant::now(),
            figures: Map::new(),
            moves: Vec::new(),
            faults: Vec::new(),
        };
        let end = (self.work)(parts, lab, &mut stage).and_then(|()| stage.judge());
        stage.figure("seconds", json!(stage.seconds()));
        let kept = if keep || end.is_err() { Some(keep_results(&stage.logs, self.name, lab)?) } else { None };
        let error = end.err().map(|error| format!("{error:#}"));
        Ok(Report { figures: Value::Object(stage.figures), moves: stage.moves, error, kept })
    }
}

/// How a VM is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By `xenflow migrate`.
    Planned,
    /// By the toolstack's own command, of which nobody knows before.
    Typed,
}

/// What is sent while VMs move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    /// Numbered packets a second, from the client to the server.
    pub(crate) rate: u32,
    /// Seconds without a word after which OSPF gives up a neighbor; it says something every two.
    pub(crate) dead_s: u32,
}

/// Where a run has its files, its clock and its figures.
#[derive(Debug)]
pub(crate) struct Stage {
    scratch: Scratch,
    logs: PathBuf,
    begin: Instant,
    figures: Map<String, Value>,
    moves: Vec<String>,
    faults: Vec<String>,
}

impl Stage {
    /// A folder that goes with the run.
    pub(crate) fn work(&self) -> &Path {
        self.scratch.path()
    }

    /// The folder of its logs.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Says what begins.
    pub(crate) fn step(&self, text: &str) {
        say(format!("lab: {:5.1} s  {text}", self.seconds()));
    }

    /// Reports that.
    pub(crate) fn figure(&mut self, name: &str, value: Value) {
        self.figures.insert(name.to_owned(), value);
    }

    /// Reports that of a move, to be seen beside the others.
    pub(crate) fn moved(&mut self, name: &str, value: Value) {
        self.moves.push(name.to_owned());
        self.figure(name, value);
    }

    /// The same of one that must lose nothing. A run that finds otherwise goes on, for other moves say more of why, and has failed.
    pub(crate) fn moved_whole(&mut self, name: &str, report: &ProbeReport, value: Value) -> Result<()> {
        if report.lost + report.duplicated > 0 {
            self.faults.push(format!("{name}: {} lost, {} duplicated", report.lost, report.duplicated));
        }
        let file = self.logs.join(format!("{name}-probe.json"));
        std::fs::write(file, serde_json::to_vec_pretty(report)?)?;
        self.moved(name, value);
        Ok(())
    }

    fn judge(&self) -> Result<()> {
        ensure!(self.faults.is_empty(), "{}", self.faults.join("; "));
        Ok(())
    }

    /// Since its begin.
    pub(crate) fn seconds(&self) -> f64 {
        (self.begin.elapsed().as_secs_f64() * 10.0).round() / 10.0
    }
}

/// What became of numbered packets while a toolstack moved the guest, which took so long.
pub(crate) fn figure(report: &ProbeReport, toolstack: &str, took: Duration) -> Value {
    json!({
        "sent": report.sent, "lost": report.lost, "duplicated": report.duplicated, "reordered": report.reordered,
        "longest_gap_ms": report.longest_gap_ms, format!("{toolstack}_s"): (took.as_secs_f64() * 100.0).round() / 100.0,
    })
}
