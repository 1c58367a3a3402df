//! Hosts c and d with OVN: one logical switch with a port for each standing vif.
//!
//! The central part (both databases and northd) runs beside host c's controller, as XenFlow's database does beside host
//! a's daemon; all speak over unix sockets. Its bridges have Open vSwitch's own datapath: the lab's kernel has no zones of
//! conntrack, without which the kernel's takes no flow of OVN. No packet is sent here, and flows go to the same program.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{LIMIT, MAC, System, VIF, mac};
use crate::host::Host;
use crate::process::{self, Process, retry};
use crate::scenario::Lab;
use crate::setup;
use crate::trunk::Trunk;

const BRIDGE: &str = "br-int";
const SWITCH: &str = "sw";

/// See the module.
pub(super) struct Ovn {
    // Dropped from top to bottom.
    controllers: Vec<Process>,
    _central: Vec<Process>,
    hosts: [Host; 2],
    root: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
}

fn address(at: u16) -> String {
    format!("10.1.{}.{}", at / 250, at % 250 + 1)
}

impl Ovn {
    /// Its databases and northd run.
    pub(super) fn create(lab: &Lab) -> Result<Self> {
        let target = lab.product()?.dom0.ancestors().nth(2).context("the product is in no target folder")?;
        let dir = lab.work().join("ovn");
        std::fs::create_dir_all(&dir)?;
        let hosts = [Host::create(lab, "c")?, Host::create(lab, "d")?];
        let mut ovn = Self {
            controllers: Vec::new(),
            _central: Vec::new(),
            hosts,
            root: setup::ovn::root(target),
            dir,
            logs: lab.results().to_owned(),
        };
        for name in ["nb", "sb"] {
            let database = ovn.dir.join(format!("{name}.db"));
            let schema = ovn.root.join(format!("usr/share/ovn/ovn-{name}.ovsschema"));
            process::output(Command::new("ovsdb-tool").arg("create").arg(&database).arg(schema))?;
            let mut command = ovn.hosts[0].command("ovsdb-server");
            command.arg(&database).arg(format!("--remote=punix:{}", ovn.socket(name)));
            command.arg(format!("--unixctl={}", ovn.file(name, "ctl")));
            let server = ovn.spawn(&format!("ovn-{name}"), command)?;
            ovn._central.push(server);
        }
        let program = ovn.root.join("usr/bin/ovn-northd");
        let mut command = ovn.hosts[0].command(program);
        command.arg(format!("--ovnnb-db=unix:{}", ovn.socket("nb")));
        command.arg(format!("--ovnsb-db=unix:{}", ovn.socket("sb")));
        let northd = ovn.spawn("ovn-northd", command)?;
        ovn._central.push(northd);
        retry("the northbound database", LIMIT, || process::output(ovn.nbctl().arg("init")))?;
        Ok(ovn)
    }

    /// The hosts are on the trunk.
    pub(super) fn start(&mut self, standing: u16) -> Result<()> {
        for at in 0..2 {
            let host = &mut self.hosts[at];
            host.start_vswitchd()?;
            let ip = format!("192.0.2.{}", at + 1);
            host.netns().ip(&["address", "add", &format!("{ip}/24"), "dev", Trunk::PORT])?;
            let remote = format!("external_ids:ovn-remote=unix:{}", self.dir.join("sb.sock").display());
            let encap = format!("external_ids:ovn-encap-ip={ip}");
            let kind = "external_ids:ovn-bridge-datapath-type=netdev";
            let set =
                ["set", "Open_vSwitch", ".", &remote, "external_ids:ovn-encap-type=geneve", &encap, kind];
            host.vsctl(&set)?;
            let kind = "datapath_type=netdev";
            host.vsctl(&["add-br", BRIDGE, "--", "set", "Bridge", BRIDGE, "fail_mode=secure", kind])?;
            let mut command = host.command(self.root.join("usr/bin/ovn-controller"));
            command.arg(format!("unix:{}", host.db_socket().display()));
            let name = format!("{}-ovn-controller", host.name());
            let controller = self.spawn(&name, command)?;
            self.controllers.push(controller);
            super::plug(&self.hosts[at], BRIDGE, at, standing)?;
        }
        let mut words = format!("ls-add {SWITCH}");
        for at in 0..standing {
            let _ = write!(words, " -- lsp-add {SWITCH} p{at}");
        }
        let mut command = self.nbctl();
        command.args(["--wait=hv", "--timeout=60"]).args(words.split(' '));
        for at in 0..standing {
            command.args(["--", "lsp-set-addresses", &format!("p{at}")]);
            command.arg(format!("{} {}", mac(at), address(at)));
        }
        process::output(&mut command)?;
        for at in 0..standing {
            let port = format!("p{at}");
            let until = ["--timeout=30", "wait-until", "Logical_Switch_Port", &port, "up=true"];
            process::output(self.nbctl().args(until))?;
        }
        let mut daemon = self.nbctl();
        daemon.arg("--detach").arg(format!("--unixctl={}", self.socket("nbctl")));
        daemon.arg(format!("--pidfile={}", self.dir.join("nbctl.pid").display()));
        daemon.arg(format!("--log-file={}", self.logs.join("ovn-nbctl.log").display()));
        process::output(&mut daemon)?;
        Ok(())
    }

    /// The same command through the daemon.
    pub(super) fn by_daemon(&self, mut command: Command) -> Command {
        command.env("OVN_NB_DAEMON", self.socket("nbctl"));
        command
    }

    fn socket(&self, name: &str) -> String {
        self.file(name, "sock")
    }

    fn file(&self, name: &str, suffix: &str) -> String {
        self.dir.join(format!("{name}.{suffix}")).display().to_string()
    }

    fn nbctl(&self) -> Command {
        let mut command = Command::new(self.root.join("usr/bin/ovn-nbctl"));
        command.env("OVN_RUNDIR", &self.dir).env("OVN_NB_DB", format!("unix:{}", self.socket("nb")));
        command
    }

    fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        command.env("OVN_RUNDIR", &self.dir).arg(format!("--pidfile={}", self.file(name, "pid")));
        command.args(["-vconsole:info", "-vsyslog:off", "-vfile:off"]);
        Process::spawn(name, &mut command, &self.logs.join(format!("{name}.log")))
    }
}

impl System for Ovn {
    fn add(&self, is_waiting: bool) -> Command {
        let mut command = self.nbctl();
        if is_waiting {
            command.arg("--wait=hv");
        }
        command.args(["lsp-add", SWITCH, VIF, "--", "lsp-set-addresses", VIF]);
        command.arg(format!("{MAC} 10.1.255.1"));
        command
    }

    fn remove(&self) -> Command {
        let mut command = self.nbctl();
        command.args(["--wait=hv", "lsp-del", VIF]);
        command
    }

    fn hosts(&self) -> [&Host; 2] {
        self.hosts.each_ref()
    }

    fn bridge(&self) -> &'static str {
        BRIDGE
    }

    /// What sends to it. Others, as those that answer ARP for it, come when OVN has seen that it is up, and nothing waits
    /// for them.
    fn mark(&self) -> String {
        format!("dl_dst={MAC}")
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        self.controllers.iter_mut().try_for_each(|controller| controller.signal(signal))
    }
}
