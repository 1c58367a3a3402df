//! Nodes a and b with libvirt, at the [site](crate::vms::site) that the VM's packets come from and go to.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::host::{self, Host};
use crate::job::Product;
use crate::setup;
use crate::vms::guest::{NAME, NICS};
use crate::vms::machine::Machine;
use crate::vms::node::Node;
use crate::vms::site::{self, HOSTS};
use crate::vms::{Stage, Traffic};

/// For anything to come up on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// A VM stands still for less than a second.
pub(super) const TRAFFIC: Traffic = Traffic { rate: 500, dead_s: 10 };

/// See the module.
#[derive(Debug)]
pub(super) struct Site {
    // Dropped from top to bottom.
    /// a and b.
    pub(super) hosts: [Host; 2],
    /// All else.
    pub(super) rest: site::Site,
}

impl Site {
    /// Makes all of it but the VM.
    pub(super) fn create(product: &Product, lab: &Path, stage: &Stage) -> Result<Self> {
        let [e, switch, client, server] = site::Site::MACHINES;
        let names = ["a", "b", e, switch, client, server];
        let [a, b, e, switch, client, server] = Machine::create(names, stage.work(), stage.logs())?;
        let rest = site::Site::create([e, switch, client, server], product, lab, TRAFFIC, stage)?;
        a.wire("mgmt", &b, "mgmt")?;
        for (machine, address) in [(&a, HOSTS[0]), (&b, HOSTS[1])] {
            machine.ip(&format!("address add {address}/30 dev mgmt\nlink set mgmt up\n"))?;
            rest.plug(machine)?;
        }
        let [a, b] = [a, b].map(|machine| Node::start(machine, stage.logs()));
        let mut hosts = [Host::new(a?), Host::new(b?)];
        for (host, address) in hosts.iter_mut().zip(HOSTS) {
            let name = host.node.name().to_owned();
            let settings = rest.settings(&name, &rest.pki(), &rest.database())?;
            let migration = format!(
                "log = \"debug\"\nstate_dir = \"/var/lib/xenflow\"\n[migration]\nlisten = \"{address}:6642\"\n[migration.toolstack]\nhosts = {{ a = \"{}\", b = \"{}\" }}\n\
                 [migration.toolstack.virsh]\nuri = \"qemu+tcp://{{host}}/system\"\nmigrate_uri = \"tcp://{{host}}\"\n",
                HOSTS[0], HOSTS[1]
            );
            // As systemd makes it; without one no toolstack is run.
            std::fs::create_dir(host.node.machine.dir().join("lib/xenflow"))?;
            host.node.start_daemon(product, &format!("{settings}{migration}"))?;
        }
        for host in &mut hosts {
            host.node.daemon()?.wait_for_log("listening for guests", LIMIT)?;
        }
        Ok(Self { hosts, rest })
    }

    /// Boots the VM on a, and waits until the hosts forward for it.
    pub(super) fn boot(&mut self, kernel: &Path, hook: &Path, stage: &Stage) -> Result<()> {
        for (host, address) in self.hosts.iter_mut().zip(HOSTS) {
            host.start(address, hook, &self.rest.product)?;
        }
        let images = self.rest.images(kernel, &host::MODULES)?;
        let domain = stage.work().join("r1.xml");
        std::fs::write(&domain, host::domain(&images, &stage.logs().join("r1-console.log")))?;
        for host in &self.hosts {
            host.wait_libvirt()?;
        }
        let [a, _] = &self.hosts;
        a.virsh(&["define", &domain.display().to_string()])?;
        a.virsh(&["start", NAME])?;
        self.rest.wait_booted(&self.at(0), LIMIT)
    }

    /// One of the two, with what it is asked by.
    pub(super) fn at(&self, host: usize) -> At<'_> {
        let [a, b] = &self.hosts;
        At { node: &[a, b][host.min(1)].node, product: &self.rest.product }
    }

    /// Moves the VM from one host to the other by libvirt's own command, and says how that went.
    pub(super) fn migrate(&self, from: usize) -> Result<std::process::Output> {
        let to = HOSTS[1 - from.min(1)];
        let mut command = self.hosts[from.min(1)].virsh_command();
        command.args(["migrate", "--live", "--p2p", "--persistent", "--undefinesource", NAME]);
        command.arg(format!("qemu+tcp://{to}/system")).args(["--migrateuri", &format!("tcp://{to}")]);
        command.output().context("cannot run virsh")
    }

    /// On which hosts the VM runs.
    pub(super) fn runs_on(&self) -> Result<Vec<&str>> {
        let mut found = Vec::new();
        for host in &self.hosts {
            if host.virsh(&["list", "--name", "--state-running"])?.lines().any(|line| line == NAME) {
                found.push(host.node.name());
            }
        }
        Ok(found)
    }

    /// Whether b would let the VM come.
    pub(super) fn is_refused_at_b(&self) -> Result<bool> {
        let [_, b] = &self.hosts;
        let mut command = b.node.machine.command(&self.rest.product.xenflow);
        command.args(["arrival", "--timeout", "1"]);
        for (_, mac) in NICS {
            command.args(["--mac", mac]);
        }
        Ok(!command.output()?.status.success())
    }

    /// What must be there beside the lab's own.
    pub(super) fn prepare() -> Result<std::path::PathBuf> {
        setup::packages()?;
        setup::install(setup::VM_PACKAGES)?;
        setup::install(setup::LIBVIRT_PACKAGES)?;
        setup::kernel::unpack()
    }
}

/// A node of which something is asked.
#[derive(Debug)]
pub(super) struct At<'a> {
    node: &'a Node,
    product: &'a Product,
}

impl site::Host for At<'_> {
    fn name(&self) -> &str {
        self.node.name()
    }

    fn ask(&self, words: &[&str]) -> Result<Value> {
        self.node.ask(self.product, words)
    }
}
