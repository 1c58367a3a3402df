//! Host a with one router as in [`crate::one_router`], handed over to systemd with everything that runs on it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::restart::lasting;
use crate::endhost::EndHost;
use crate::host;
use crate::init::HOST;
use crate::node::BRIDGE;
use crate::one_router::{H1, H2, OneRouter};
use crate::probe::Probe;
use crate::process::{self, retry, wait_for};
use crate::scenario::Lab;
use crate::systemd::{Root, Systemd};

/// The host daemon's unit, and its program.
pub(super) const DOM0: &str = "xenflow-dom0";
/// The client's.
pub(super) const GUEST: &str = "xenflow-guest";

const LIMIT: Duration = Duration::from_secs(30);
/// Packets a second.
const RATE: u32 = 500;
/// Where programs come from, in the root; `other` has those of an upgrade.
const PROGRAMS: &str = "tmp/programs";
const OTHER: &str = "tmp/other";
/// Enabled as the README says.
const UNITS: [&str; 4] = [DOM0, GUEST, "xenflow-restore-start.timer", "xenflow-restore-watch.timer"];

pub(super) struct Site {
    // Dropped from top to bottom.
    pub(super) systemd: Systemd,
    h: [EndHost; 2],
    site: OneRouter,
    /// The flows that do not come and go with traffic.
    pub(super) flows: Vec<String>,
    /// What the root had before anything was installed.
    bare: BTreeSet<PathBuf>,
    tried: u32,
}

impl Site {
    /// Makes the host, installs into its root, and has systemd start everything.
    pub(super) fn build(lab: &Lab) -> Result<Self> {
        lab.step("making host a with r1 between h1 and h2, and a root for its systemd");
        let mut site = OneRouter::create(lab)?;
        let h = site.end_hosts()?;
        let root = Root::create(lab)?;
        hand_over(&mut site, &root)?;
        programs(lab, &root)?;
        // The router's machine is a namespace here.
        let networks = "[Service]\nNetworkNamespacePath=/run/netns/r1\n";
        root.unit(&format!("{GUEST}.service.d/machine.conf"), networks)?;

        lab.step("starting systemd, installing XenFlow");
        let systemd = root.start(lab, site.node.host().netns())?;
        // With what systemd itself has written, such as the machine's id.
        let bare = systemd.root().files()?;
        let mut built = Self { systemd, h, site, flows: Vec::new(), bare, tried: 0 };
        built.install(PROGRAMS, &[])?;
        built.systemd.ctl("daemon-reload", &[])?;

        host::wait_uptime()?;
        lab.step("starting Open vSwitch by its units, then XenFlow by its own");
        built.systemd.ctl("start", &["openvswitch-switch"])?;
        built.systemd.ctl("enable", &[&["--now"], UNITS.as_slice()].concat())?;
        built.site.node.wait_session("r1", LIMIT)?;
        built.h[0].wait_reachable(H2, LIMIT)?;
        built.flows = wait_for("flows to both neighbors", LIMIT, || {
            let flows = built.flows()?;
            let known = |host: &str| flows.iter().any(|flow| flow.contains(&format!("nw_dst={host} ")));
            Ok((known(H1) && known(H2)).then_some(flows))
        })?;
        Ok(built)
    }

    /// Runs the installer as an operator does.
    fn install(&self, programs: &str, more: &[&str]) -> Result<String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xen-scripts/install");
        let script = format!("{HOST}{}", script.display());
        self.systemd.run("sh", &[&[script.as_str(), "--programs", &format!("/{programs}")], more].concat())
    }

    /// Installs another program of that name than there is.
    pub(super) fn install_other(&self, name: &str) -> Result<String> {
        let dir = self.systemd.root().path().join(OTHER);
        let mut file = fs::OpenOptions::new().append(true).open(dir.join(name))?;
        // What is behind its end means nothing to a program.
        file.write_all(b"another")?;
        drop(file);
        self.install(OTHER, &[])
    }

    /// Stops everything, uninstalls, and says what the root has that it had not, or has not that it had.
    pub(super) fn uninstall(&self) -> Result<BTreeSet<PathBuf>> {
        self.systemd.ctl("disable", &[&["--now"], UNITS.as_slice()].concat())?;
        let installed = self.systemd.root().files()?;
        ensure!(installed.contains(Path::new("usr/bin/xenflow-dom0")), "nothing is installed: {installed:?}");
        self.install(PROGRAMS, &["--uninstall"])?;
        self.systemd.ctl("daemon-reload", &[])?;
        let left = self.systemd.root().files()?;
        Ok(left.symmetric_difference(&self.bare).cloned().collect())
    }

    /// The unit's process, as its systemd sees it.
    pub(super) fn main_pid(&self, unit: &str) -> Result<String> {
        self.systemd.property(unit, "MainPID")
    }

    /// How often systemd has started the unit again by itself, since somebody started it.
    pub(super) fn restarts(&self, unit: &str) -> Result<u64> {
        self.systemd.property(unit, "NRestarts")?.parse().context("NRestarts is a number")
    }

    pub(super) fn flows(&self) -> Result<Vec<String>> {
        lasting(&self.site.node)
    }

    pub(super) fn delete_flows(&self) -> Result<()> {
        self.site.node.host().ofctl(&["del-flows", BRIDGE]).map(drop)
    }

    pub(super) fn probe(&self, lab: &Lab) -> Result<Probe> {
        Probe::start(lab, self.h[0].netns(), self.h[1].netns(), format!("{H2}:7000").parse()?, RATE)
    }

    /// Waits until the flows are as before and a change of the guest arrives.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.tried += 1;
        let prefix = format!("10.200.{}.0/24", self.tried);
        for (verb, there) in [("add", true), ("del", false)] {
            self.site.guest().ip(&["route", verb, &prefix, "via", H2])?;
            wait_for(&format!("route {verb} {prefix} in the flows"), LIMIT, || {
                Ok((self.site.node.flows()?.contains(&format!("nw_dst={prefix} ")) == there).then_some(()))
            })?;
        }
        retry("the same flows as before", LIMIT, || {
            ensure!(self.flows()? == self.flows, "the flows are other ones");
            Ok(())
        })
    }
}

/// Ends the lab's own database and puts its files, certificates and settings where the units expect them.
fn hand_over(site: &mut OneRouter, root: &Root) -> Result<()> {
    site.node.host_mut().kill_ovsdb()?;
    let run = site.node.host().rundir().to_owned();
    for file in ["conf.db", "xenflow.db"] {
        fs::copy(run.join(file), root.path().join("etc/openvswitch").join(file)).context(file)?;
    }
    root.write("etc/openvswitch/system-id.conf", "a\n")?;
    // Sockets and process numbers of what has ended.
    for entry in fs::read_dir(&run)? {
        fs::remove_file(entry?.path())?;
    }
    root.bind(&run, "run/openvswitch")?;
    let settings = "node = \"a\"\nca = \"/etc/xenflow/pki/ca.pem\"\ncert = \"/etc/xenflow/pki/a.pem\"\n\
                    key = \"/etc/xenflow/pki/a.key\"\n";
    root.write("etc/xenflow/dom0.toml", settings)?;
    for (from, to) in [
        ("ca.pem", "pki/ca.pem"),
        ("a.pem", "pki/a.pem"),
        ("a.key", "pki/a.key"),
        ("ca.pem", "ca.pem"),
        ("r1.pem", "router.pem"),
        ("r1.key", "router.key"),
    ] {
        root.write(&format!("etc/xenflow/{to}"), &fs::read_to_string(site.pki.dir().join(from))?)?;
    }
    Ok(())
}

/// Puts the programs to install into the root, without what only a debugger reads, and those of an upgrade.
fn programs(lab: &Lab, root: &Root) -> Result<()> {
    let product = lab.product()?;
    for dir in [PROGRAMS, OTHER] {
        fs::create_dir_all(root.path().join(dir))?;
    }
    for program in [&product.dom0, &product.xenflow, &product.guest] {
        let name = program.file_name().context("a program has a name")?;
        let stripped = root.path().join(PROGRAMS).join(name);
        process::output(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
        fs::copy(&stripped, root.path().join(OTHER).join(name))?;
    }
    Ok(())
}
