//! Hosts a and b with XenFlow: one segment, a router for each standing vif, and one that waits for its first.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{MAC, System, VIF, mac};
use crate::host::Host;
use crate::node::{BRIDGE, Node, Pki};
use crate::process::wait_for;
use crate::scenario::Lab;
use crate::trunk::Trunk;

/// See the module.
pub(super) struct Xenflow {
    nodes: [Node; 2],
}

impl Xenflow {
    /// Nothing runs yet.
    pub(super) fn create(lab: &Lab, pki: &Pki) -> Result<Self> {
        let a = Node::create(lab, "a", pki)?;
        let b = Node::create_with(lab, "b", pki, &a)?;
        for node in [&a, &b] {
            node.host().vsctl(&["add-br", BRIDGE])?;
        }
        Ok(Self { nodes: [a, b] })
    }

    /// The hosts are on the trunk.
    pub(super) fn start(&mut self, lab: &Lab, standing: u16) -> Result<()> {
        let mut text = "owner = \"lab\"\n".to_owned();
        for node in &self.nodes {
            let _ = write!(text, "[nodes.{}]\nuplinks = [\"{}\"]\n", node.host().name(), Trunk::PORT);
        }
        text.push_str("[networks.n]\nsegments.sw = { vlan = 100 }\n[networks.n.routers.r]\n");
        for at in 0..standing {
            let mac = mac(at);
            let _ = write!(
                text,
                "[networks.n.routers.r{at}]\nvifs.p{at} = {{ segment = \"sw\", mac = \"{mac}\" }}\n"
            );
        }
        let file = lab.work().join("control.toml");
        std::fs::write(&file, text)?;
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.start()?;
            let host = node.host();
            host.add_port(BRIDGE, Trunk::PORT, &[])?;
            super::plug(host, BRIDGE, at, standing)?;
        }
        let [a, b] = &self.nodes;
        a.xenflow(&["--wait", "apply", "-f", &file.display().to_string()])?;
        for (at, node) in [a, b].into_iter().enumerate() {
            let far: Vec<_> = super::standing(1 - at, standing).map(mac).collect();
            wait_for("the addresses of the other host", super::LIMIT, || {
                let flows = node.flows()?;
                Ok(far.iter().all(|mac| flows.contains(mac.as_str())).then_some(()))
            })?;
        }
        Ok(())
    }
}

impl System for Xenflow {
    fn add(&self, is_waiting: bool) -> Command {
        let mut command = self.nodes[0].xenflow_command();
        command.args(["vif", "add", VIF, "--router", "r", "--segment", "sw", "--mac", MAC]);
        if is_waiting {
            command.arg("--wait");
        }
        command
    }

    fn remove(&self) -> Command {
        let mut command = self.nodes[0].xenflow_command();
        command.args(["--wait", "vif", "remove", VIF]);
        command
    }

    fn hosts(&self) -> [&Host; 2] {
        self.nodes.each_ref().map(Node::host)
    }

    fn bridge(&self) -> &'static str {
        BRIDGE
    }

    fn mark(&self) -> String {
        MAC.to_owned()
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.daemon()?.signal(signal))
    }
}
