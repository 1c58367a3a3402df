//! Hosts c and d with OVN: one logical switch with a port for each standing vif.
//!
//! The central part runs beside host c's controller, as XenFlow's database does beside host a's daemon. No packet is sent here.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{MAC, System, VIF, mac};
use crate::host::Host;
use crate::ovn::BRIDGE;
use crate::process;
use crate::scenario::Lab;

const SWITCH: &str = "sw";

/// See the module.
pub(super) struct Ovn {
    // Dropped from top to bottom.
    ovn: crate::ovn::Ovn,
    hosts: [Host; 2],
}

fn address(at: u16) -> String {
    format!("10.1.{}.{}", at / 250, at % 250 + 1)
}

impl Ovn {
    /// Its databases and northd run.
    pub(super) fn create(lab: &Lab) -> Result<Self> {
        let hosts = [Host::create(lab, "c")?, Host::create(lab, "d")?];
        Ok(Self { ovn: crate::ovn::Ovn::create(lab, &hosts[0])?, hosts })
    }

    /// The hosts are on the trunk.
    pub(super) fn start(&mut self, standing: u16) -> Result<()> {
        for (at, host) in self.hosts.iter_mut().enumerate() {
            self.ovn.connect(host, at)?;
            super::plug(host, BRIDGE, at, standing)?;
        }
        let mut words = format!("ls-add {SWITCH}");
        for at in 0..standing {
            let _ = write!(words, " -- lsp-add {SWITCH} p{at}");
        }
        let mut command = self.ovn.nbctl();
        command.args(["--wait=hv", "--timeout=60"]).args(words.split(' '));
        for at in 0..standing {
            command.args(["--", "lsp-set-addresses", &format!("p{at}")]);
            command.arg(format!("{} {}", mac(at), address(at)));
        }
        process::output(&mut command)?;
        for at in 0..standing {
            let port = format!("p{at}");
            let until = ["--timeout=30", "wait-until", "Logical_Switch_Port", &port, "up=true"];
            process::output(self.ovn.nbctl().args(until))?;
        }
        self.ovn.start_nbctl()
    }

    /// The same command through the daemon.
    pub(super) fn by_daemon(&self, command: Command) -> Command {
        self.ovn.by_daemon(command)
    }
}

impl System for Ovn {
    fn add(&self, is_waiting: bool) -> Command {
        let mut command = self.ovn.nbctl();
        if is_waiting {
            command.arg("--wait=hv");
        }
        command.args(["lsp-add", SWITCH, VIF, "--", "lsp-set-addresses", VIF]);
        command.arg(format!("{MAC} 10.1.255.1"));
        command
    }

    fn remove(&self) -> Command {
        let mut command = self.ovn.nbctl();
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
        self.ovn.signal(signal)
    }
}
