//! OVN of Debian's packages, as it comes: both databases, northd and a controller on each host, all over unix sockets.
//!
//! Its bridges have Open vSwitch's own datapath: the lab's kernel has no zones of conntrack, without which the kernel's takes no
//! flow of OVN. Flows go to the same program. Owns the processes; what is asked of them belongs to the benches.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::host::Host;
use crate::process::{self, Process, retry};
use crate::scenario::Lab;
use crate::setup;
use crate::trunk::Trunk;

/// The integration bridge.
pub const BRIDGE: &str = "br-int";
const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// See the module.
#[derive(Debug)]
pub struct Ovn {
    // Dropped from top to bottom.
    controllers: Vec<Process>,
    central: Vec<Process>,
    root: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
}

impl Ovn {
    /// It was fetched.
    pub fn is_here(lab: &Lab) -> Result<bool> {
        Ok(setup::ovn::is_here(&root(lab)?))
    }

    /// Its databases and northd run, beside that host's controller.
    pub fn create(lab: &Lab, host: &Host) -> Result<Self> {
        let dir = lab.work().join("ovn");
        std::fs::create_dir_all(&dir)?;
        let mut ovn = Self {
            controllers: Vec::new(),
            central: Vec::new(),
            root: root(lab)?,
            dir,
            logs: lab.results().to_owned(),
        };
        for name in ["nb", "sb"] {
            let database = ovn.dir.join(format!("{name}.db"));
            let schema = ovn.root.join(format!("usr/share/ovn/ovn-{name}.ovsschema"));
            process::output(Command::new("ovsdb-tool").arg("create").arg(&database).arg(schema))?;
            let mut command = host.command("ovsdb-server");
            command.arg(&database).arg(format!("--remote=punix:{}", ovn.socket(name)));
            command.arg(format!("--unixctl={}", ovn.file(name, "ctl")));
            let server = ovn.spawn(&format!("ovn-{name}"), command)?;
            ovn.central.push(server);
        }
        let program = ovn.root.join("usr/bin/ovn-northd");
        let mut command = host.command(program);
        command.arg(format!("--ovnnb-db=unix:{}", ovn.socket("nb")));
        command.arg(format!("--ovnsb-db=unix:{}", ovn.socket("sb")));
        let northd = ovn.spawn("ovn-northd", command)?;
        ovn.central.push(northd);
        retry("the northbound database", LIMIT, || process::output(ovn.nbctl().arg("init")))?;
        Ok(ovn)
    }

    /// A host has its switch and its controller; `at` is its number among the hosts.
    pub fn connect(&mut self, host: &mut Host, at: usize) -> Result<()> {
        host.start_vswitchd()?;
        let ip = format!("192.0.2.{}", at + 1);
        host.netns().ip(&["address", "add", &format!("{ip}/24"), "dev", Trunk::PORT])?;
        let remote = format!("external_ids:ovn-remote=unix:{}", self.dir.join("sb.sock").display());
        let encap = format!("external_ids:ovn-encap-ip={ip}");
        let kind = "external_ids:ovn-bridge-datapath-type=netdev";
        let set = ["set", "Open_vSwitch", ".", &remote, "external_ids:ovn-encap-type=geneve", &encap, kind];
        host.vsctl(&set)?;
        let kind = "datapath_type=netdev";
        host.vsctl(&["add-br", BRIDGE, "--", "set", "Bridge", BRIDGE, "fail_mode=secure", kind])?;
        let mut command = host.command(self.root.join("usr/bin/ovn-controller"));
        command.arg(format!("unix:{}", host.db_socket().display()));
        let name = format!("{}-ovn-controller", host.name());
        let controller = self.spawn(&name, command)?;
        self.controllers.push(controller);
        Ok(())
    }

    /// From now on an `ovn-nbctl` runs as a daemon, with all of the database in memory.
    pub fn start_nbctl(&self) -> Result<()> {
        let mut daemon = self.nbctl();
        daemon.arg("--detach").arg(format!("--unixctl={}", self.socket("nbctl")));
        daemon.arg(format!("--pidfile={}", self.dir.join("nbctl.pid").display()));
        daemon.arg(format!("--log-file={}", self.logs.join("ovn-nbctl.log").display()));
        process::output(&mut daemon)?;
        Ok(())
    }

    /// The same command through the daemon.
    pub fn by_daemon(&self, mut command: Command) -> Command {
        command.env("OVN_NB_DAEMON", self.socket("nbctl"));
        command
    }

    /// `ovn-nbctl`, to be given its words.
    pub fn nbctl(&self) -> Command {
        let mut command = Command::new(self.root.join("usr/bin/ovn-nbctl"));
        command.env("OVN_RUNDIR", &self.dir).env("OVN_NB_DB", format!("unix:{}", self.socket("nb")));
        command
    }

    /// To the daemons that write flows.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.controllers.iter_mut().try_for_each(|controller| controller.signal(signal))
    }

    /// All its processes: databases, northd and controllers.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.central.iter().chain(&self.controllers).map(Process::id)
    }

    fn socket(&self, name: &str) -> String {
        self.file(name, "sock")
    }

    fn file(&self, name: &str, suffix: &str) -> String {
        self.dir.join(format!("{name}.{suffix}")).display().to_string()
    }

    fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        command.env("OVN_RUNDIR", &self.dir).arg(format!("--pidfile={}", self.file(name, "pid")));
        command.args(["-vconsole:info", "-vsyslog:off", "-vfile:off"]);
        Process::spawn(name, &mut command, &self.logs.join(format!("{name}.log")))
    }
}

/// Where its programs are.
fn root(lab: &Lab) -> Result<PathBuf> {
    let target = lab.product()?.dom0.ancestors().nth(2).context("the product is in no target folder")?;
    Ok(setup::ovn::root(target))
}
