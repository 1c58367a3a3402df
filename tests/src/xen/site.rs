//! Xen hosts a and b, at the [site](crate::vms::site) that the VM's packets come from and go to; and a second way from the client to the
//! server, over plain bridges of which XenFlow knows nothing.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::dom0::Dom0;
use super::payload::{AT, Payload, TRANSPORT};
use super::{EDGE, Parts};
use crate::process::{self, describe, retry, wait_for};
use crate::vms::guest::NAME;
use crate::vms::machine::Machine;
use crate::vms::site::{self, HOSTS, NAMES, SERVED};
use crate::vms::{Stage, Traffic};

/// For anything to come up where all is translated, on a busy machine.
pub(super) const LIMIT: Duration = Duration::from_secs(900);
/// A VM stands still for ten seconds, and for a minute on a busy machine.
pub(super) const TRAFFIC: Traffic = Traffic { rate: 100, dead_s: 600 };

/// See the module.
#[derive(Debug)]
pub(super) struct Site {
    // Dropped from top to bottom.
    hosts: [Dom0; 2],
    payload: Payload,
    /// All else.
    pub(super) rest: site::Site,
}

impl Site {
    /// Makes all of it but the VM; the hosts boot.
    pub(super) fn create(parts: &Parts, lab: &Path, stage: &Stage) -> Result<Self> {
        let machines = Machine::create(site::Site::MACHINES, stage.work(), stage.logs())?;
        let rest = site::Site::create(machines, &parts.product, lab, TRAFFIC, stage)?;
        let (switch, edge) = (&rest.switch, &rest.edge.machine);
        for bridge in ["mgmt", "lan", "core"] {
            switch.ip(&format!("link add name {bridge} type bridge\nlink set dev {bridge} up\n"))?;
        }
        for (machine, port, bridge) in
            [(edge, "mgmt", "mgmt"), (&rest.client, "plain", "lan"), (&rest.server, "plain", "core")]
        {
            let there = format!("{}-{port}", machine.name());
            machine.wire(port, switch, &there)?;
            switch.ip(&format!("link set dev {there} master {bridge} up\n"))?;
        }
        edge.ip(&format!("address add {EDGE}/24 dev mgmt\nlink set dev mgmt up\n"))?;
        let remote = format!("ptcp:6640:{EDGE}");
        edge.run("ovs-appctl", &["--target=ovsdb-server", "ovsdb-server/add-remote", &remote])?;
        let payload = Payload::build(parts, &rest, stage)?;
        let [a, b] = HOSTS;
        let boot = |who| Dom0::start(who, switch, &parts.image, &payload, stage.logs());
        let mut hosts = [boot(["a", a])?, boot(["b", b])?];
        for host in &mut hosts {
            host.wait_ready(LIMIT)?;
        }
        Ok(Self { hosts, payload, rest })
    }

    /// A command that will run a line on a host.
    pub(super) fn command(&self, host: usize, line: &str) -> Command {
        let [a, b] = &self.hosts;
        [a, b][host.min(1)].command(&self.rest.edge.machine, &self.payload, line)
    }

    /// Runs a line on a host.
    pub(super) fn run(&self, host: usize, line: &str) -> Result<String> {
        process::output(&mut self.command(host, line))
    }

    /// One of the two, to be asked.
    pub(super) const fn at(&self, host: usize) -> At<'_> {
        At { site: self, host }
    }

    /// Boots the VM on a, and waits until the hosts forward for it.
    pub(super) fn boot(&self) -> Result<()> {
        self.run(0, &format!("xl create -q {AT}/guest/r1.cfg"))?;
        self.rest.wait_booted(&self.at(0), LIMIT)
    }

    /// Has the VM's packets go another way: through itself, its cards on plain bridges by Xen's own script. It boots anew, on a.
    pub(super) fn boot_stock(&self, host: usize) -> Result<()> {
        self.run(host, &format!("xl destroy {NAME}"))?;
        for (machine, address, to) in [
            (&self.rest.client, "10.1.0.10/24", "default via 10.1.0.1"),
            (&self.rest.server, "10.2.0.10/24", "10.1.0.0/24 via 10.2.0.1"),
        ] {
            machine.run("ethtool", &["--offload", "plain", "tx", "off"])?;
            machine.ip(&format!(
                "link set dev eth0 down\naddress flush dev eth0\naddress add {address} dev plain\nlink set dev plain up\nroute add {to}\n"
            ))?;
        }
        self.run(0, &format!("xl create -q {AT}/guest/stock.cfg"))?;
        // Once its routing daemon has heard of the server's address.
        let asked = ["-c", "1", "-W", "2", SERVED];
        retry("packets through the VM", LIMIT, || self.rest.client.run("ping", &asked)).map(drop)
    }

    /// Has guests that leave a wait for so many seconds for what must be at the other host.
    pub(super) fn wait_at_most(&self, seconds: u32) -> Result<()> {
        self.run(0, &format!("echo XENFLOW_READY_S={seconds} >/{TRANSPORT}")).map(drop)
    }

    /// Moves the VM away from that host as an operator types it, with these options of `xl migrate`.
    pub(super) fn migrate(&self, from: usize, options: &str) -> Result<Output> {
        let mut command =
            self.command(from, &format!("xl migrate {options} {NAME} {}", HOSTS[1 - from.min(1)]));
        command.output().with_context(|| format!("cannot run `{}`", describe(&command)))
    }

    /// The hosts that have the VM, or anything of it.
    pub(super) fn domains(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (number, host) in self.hosts.iter().enumerate() {
            let list = self.run(number, "xl list")?;
            let names = list.lines().filter_map(|line| line.split_whitespace().next());
            found.extend(
                names.filter(|name| name.starts_with(NAME)).map(|name| format!("{name} on {}", host.name)),
            );
        }
        Ok(found)
    }

    /// Waits until the VM is on one host alone, where it runs: a domain is named before it does, and another is there until it is taken
    /// to pieces.
    pub(super) fn wait_alone(&self, host: usize) -> Result<()> {
        let there = format!("{NAME} on {}", NAMES[host.min(1)]);
        wait_for(&format!("{there} alone"), LIMIT, || Ok((self.domains()? == [there.clone()]).then_some(())))
    }

    /// The newest migration's number.
    pub(super) fn newest(&self) -> Result<u64> {
        let said = self
            .rest
            .transact(r#"["XenFlow",{"op":"select","table":"Migration","where":[],"columns":["number"]}]"#)?;
        let rows = said[0]["rows"].as_array().into_iter().flatten();
        rows.filter_map(|row| row["number"].as_u64()).max().context("there is no migration")
    }

    /// What XenFlow itself reports of a migration; all of it is kept with the logs.
    pub(super) fn report(&self, number: u64, stage: &Stage) -> Result<Value> {
        let text = self.rest.xenflow(&["--json", "migrations", "show", &number.to_string()])?;
        std::fs::write(stage.logs().join(format!("migration-{number}.json")), &text)?;
        let row: Value = serde_json::from_str(&text)?;
        let steps = row["phases"].as_array().into_iter().flatten();
        let took: serde_json::Map<String, Value> = steps
            .filter_map(|step| Some((step["phase"].as_str()?.to_owned(), step["took_ms"].clone())))
            .collect();
        ensure!(!took.is_empty(), "migration {number} has no phases: {text}");
        Ok(
            json!({ "number": number, "took_ms": row["took_ms"], "phases_ms": took, "counters": row["counters"] }),
        )
    }

    /// What the hosts have logged.
    pub(super) fn keep_logs(&self, stage: &Stage) {
        let files = "journalctl --no-pager --output short-precise; tail --lines=+1 /var/log/xen/*.log \
                     /var/log/xen/console/*.log /var/lib/xenflow/moves/*/log; xl list; ovs-vsctl show";
        for (number, host) in self.hosts.iter().enumerate() {
            let said = self.command(number, files).output().map(|said| said.stdout).unwrap_or_default();
            let _ = std::fs::write(stage.logs().join(format!("{}-host.log", host.name)), said);
        }
    }
}

/// A host of which something is asked.
#[derive(Debug)]
pub(super) struct At<'a> {
    site: &'a Site,
    host: usize,
}

impl site::Host for At<'_> {
    fn name(&self) -> &str {
        NAMES[self.host.min(1)]
    }

    fn ask(&self, words: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.site.run(self.host, &format!("xenflow --json {}", words.join(" ")))?)?)
    }
}
