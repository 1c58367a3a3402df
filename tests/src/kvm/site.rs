//! What there is: nodes a and b with libvirt, node e, to which a client and a server are plugged in, and a switch that learns between
//! the three; network red with router r1 between the segments lan and core. The server speaks OSPF with r1, and tells it of an address
//! of its own, to which the client's packets go: so they pass only where r1's table was understood.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::guest::{self, Images, NICS};
use super::machine::Machine;
use super::node::{Node, TRUNK};
use crate::job::Product;
use crate::node::{BRIDGE, session_is_up};
use crate::probe::{Probe, ProbeReport};
use crate::process::{self, Process, wait_for};
use crate::setup;

/// Where the client's packets go.
const SERVED: &str = "10.9.0.1";
/// What a and b are called by each other.
pub(super) const HOSTS: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
/// For anything to come up on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Packets a second.
pub(super) const RATE: u32 = 500;

/// Tells r1 of the server's address. A neighbor is given up after ten seconds.
const BIRD: &str = r#"
log stderr all;
router id 10.2.0.10;
protocol device { }
protocol kernel { ipv4 { export all; }; }
protocol ospf v2 r1 {
    debug { states, events };
    ipv4 { import all; };
    area 0 {
        interface "eth0" { type ptp; hello 2; dead 10; };
        interface "lo" { stub; };
    };
}
"#;

/// See the module.
#[derive(Debug)]
pub(super) struct Site {
    // Dropped from top to bottom.
    bird: Process,
    client: Machine,
    server: Machine,
    /// a and b.
    pub(super) hosts: [Node; 2],
    /// e.
    pub(super) edge: Node,
    _switch: Machine,
    product: Product,
    lab: std::path::PathBuf,
    probes: u32,
}

impl Site {
    /// Makes all of it but the VM.
    pub(super) fn create(product: &Product, lab: &Path, work: &Path, logs: &Path) -> Result<Self> {
        let names = ["a", "b", "e", "switch", "client", "server"];
        let [a, b, e, switch, client, server] = Machine::create(names, work, logs)?;
        a.wire("mgmt", &b, "mgmt")?;
        let mut bridge = "link add br0 type bridge\nlink set br0 up\n".to_owned();
        for machine in [&a, &b, &e] {
            let port = format!("to-{}", machine.name());
            machine.wire(TRUNK, &switch, &port)?;
            bridge.push_str(&format!("link set {port} mtu 1504 master br0 up\n"));
        }
        switch.ip(&bridge)?;
        for (machine, address) in [(&a, HOSTS[0]), (&b, HOSTS[1])] {
            machine.ip(&format!("address add {address}/30 dev mgmt\nlink set mgmt up\n"))?;
        }
        for (machine, port, address) in
            [(&client, "client", "10.1.0.10/24"), (&server, "server", "10.2.0.10/24")]
        {
            e.wire(port, machine, "eth0")?;
            e.ip(&format!("link set {port} up\n"))?;
            machine.ip(&format!("address add {address} dev eth0\nlink set eth0 up\n"))?;
            // A switch in user space takes frames as they are, and nobody would write their checksums.
            machine.run("ethtool", &["--offload", "eth0", "tx", "off"])?;
        }
        client.ip("route add default via 10.1.0.1\n")?;
        server.ip(&format!("address add {SERVED}/32 dev lo\nroute add 10.1.0.0/24 via 10.2.0.1\n"))?;
        server.write("bird.conf", BIRD)?;
        let mut bird = server.command("bird");
        bird.args(["-f", "-c", "/etc/bird.conf", "-s", "/run/bird.ctl"]);
        let bird = Process::spawn("bird of server", &mut bird, &logs.join("server-bird.log"))?;

        let [edge, a, b] = [e, a, b].map(|machine| Node::start(machine, logs));
        let (edge, hosts) = (edge?, [a?, b?]);
        for machine in [&client, &server] {
            let port = machine.name();
            let mac = machine.run("cat", &["/sys/class/net/eth0/address"])?;
            let (id, mac) = (
                format!("external_ids:iface-id={port}"),
                format!("external_ids:attached-mac=\"{}\"", mac.trim()),
            );
            edge.machine.run(
                "ovs-vsctl",
                &["--timeout=20", "add-port", BRIDGE, port, "--", "set", "Interface", port, &id, &mac],
            )?;
        }
        let program = product.xenflow.display().to_string();
        edge.machine.run(&program, &["init", "--db-file", "/run/openvswitch/xenflow.db"])?;
        let mut site = Self {
            bird,
            client,
            server,
            hosts,
            edge,
            _switch: switch,
            product: product.clone(),
            lab: lab.to_owned(),
            probes: 0,
        };
        site.describe(work)?;
        site.start_daemons(work)?;
        Ok(site)
    }

    /// Into the database.
    fn describe(&self, work: &Path) -> Result<()> {
        let mut text = "[networks.red]\nsegments.lan = { vlan = 11 }\nsegments.core = { vlan = 12 }\n\
                        access.client = { segment = \"lan\" }\naccess.server = { segment = \"core\" }\n"
            .to_owned();
        for node in ["a", "b", "e"] {
            text = format!("[nodes.{node}]\nuplinks = [\"{TRUNK}\"]\n\n{text}");
        }
        text = format!("owner = \"lab\"\n\n{text}\n[networks.red.routers.{}]\n", guest::NAME);
        for (nic, mac) in NICS {
            let place =
                if nic == "ctl" { "control = true".to_owned() } else { format!("segment = \"{nic}\"") };
            text.push_str(&format!("vifs.{}-{nic} = {{ {place}, mac = \"{mac}\" }}\n", guest::NAME));
        }
        let file = work.join("topology.toml");
        std::fs::write(&file, text)?;
        self.xenflow(&["apply", "-f", &file.display().to_string()])?;
        Ok(())
    }

    fn start_daemons(&mut self, work: &Path) -> Result<()> {
        let pki = work.join("pki");
        let issue = |words: &[&str]| {
            process::output(Command::new(&self.product.xenflow).arg("pki").args(words)).map(drop)
        };
        let dir = pki.display().to_string();
        issue(&["init", &dir])?;
        issue(&["issue", "router", guest::NAME, "--ca", &dir])?;
        let database = self.edge.database().display().to_string();
        for node in self.hosts.iter_mut().chain([&mut self.edge]) {
            let name = node.name().to_owned();
            issue(&["issue", "node", &name, "--ca", &dir])?;
            let address =
                HOSTS.iter().zip(["a", "b"]).find(|(_, of)| *of == name).map(|(address, _)| *address);
            let migration = address.map(|address| {
                format!(
                    "[migration]\nlisten = \"{address}:6642\"\n[migration.toolstack]\nhosts = {{ a = \"{}\", b = \"{}\" }}\n\
                     [migration.toolstack.virsh]\nuri = \"qemu+tcp://{{host}}/system\"\nmigrate_uri = \"tcp://{{host}}\"\n",
                    HOSTS[0], HOSTS[1]
                )
            });
            node.start_daemon(
                &self.product,
                &format!(
                    "node = \"{name}\"\nca = \"{dir}/ca.pem\"\ncert = \"{dir}/{name}.pem\"\nkey = \"{dir}/{name}.key\"\n\
                     xenflow_db = \"unix:{database}\"\nlog = \"debug\"\n{}",
                    migration.unwrap_or_default()
                ),
            )?;
        }
        for node in self.hosts.iter_mut().chain([&mut self.edge]) {
            node.daemon()?.wait_for_log("listening for guests", LIMIT)?;
        }
        Ok(())
    }

    /// Boots the VM on a, and waits until the hosts forward for it.
    pub(super) fn boot(&mut self, kernel: &Path, hook: &Path, work: &Path, logs: &Path) -> Result<()> {
        let pki = work.join("pki");
        let identity = [
            ("ca.pem", pki.join("ca.pem")),
            ("router.pem", pki.join(format!("{}.pem", guest::NAME))),
            ("router.key", pki.join(format!("{}.key", guest::NAME))),
        ];
        for (node, address) in self.hosts.iter_mut().zip(HOSTS) {
            node.start_libvirt(address, hook, &self.product)?;
        }
        let images = Images::build(kernel, &self.product.guest, &identity, work)?;
        let domain = work.join("r1.xml");
        std::fs::write(&domain, images.domain(&logs.join("r1-console.log")))?;
        for node in &self.hosts {
            node.wait_libvirt()?;
        }
        let [a, _] = &self.hosts;
        a.virsh(&["define", &domain.display().to_string()])?;
        a.virsh(&["start", guest::NAME])?;
        wait_for("the session of r1", LIMIT, || {
            let shown = self.xenflow(&["--json", "show"])?;
            Ok(session_is_up(&serde_json::from_str(&shown)?, guest::NAME).then_some(()))
        })?;
        wait_for("the server's address to be forwarded to", LIMIT, || Ok(self.forwards(0)?.then_some(())))
    }

    /// Whether a host forwards to the server's address.
    fn forwards(&self, host: usize) -> Result<bool> {
        let [a, b] = &self.hosts;
        let routes = [a, b][host.min(1)].ask(&self.product, &["routes", guest::NAME, SERVED])?;
        let all = routes.as_array().into_iter().flatten();
        Ok(all
            .into_iter()
            .any(|route| route["prefix"] == format!("{SERVED}/32") && route["verdict"] == "forwarded"))
    }

    /// Runs the operator's command.
    pub(super) fn xenflow(&self, words: &[&str]) -> Result<String> {
        let database = format!("--db=unix:{}", self.edge.database().display());
        process::output(Command::new(&self.product.xenflow).arg(database).args(words))
    }

    /// Begins numbered packets from the client to the server, and returns when the first has come.
    pub(super) fn probe(&mut self) -> Result<Probe> {
        self.probes += 1;
        let address = format!("{SERVED}:{}", 9000 + self.probes).parse()?;
        Probe::between(
            self.client.command(&self.lab),
            self.server.command(&self.lab),
            address,
            RATE,
            self.probes,
        )
    }

    /// Ends it.
    pub(super) fn judge(&self, probe: Probe) -> Result<ProbeReport> {
        let report = probe.stop()?;
        ensure!(report.sent > 0, "the probe has sent nothing");
        Ok(report)
    }

    /// Moves the VM from one host to the other by libvirt's own command, and says how that went.
    pub(super) fn migrate(&self, from: usize) -> Result<std::process::Output> {
        let to = HOSTS[1 - from.min(1)];
        let mut command = self.hosts[from.min(1)].virsh_command();
        command.args(["migrate", "--live", "--p2p", "--persistent", "--undefinesource", guest::NAME]);
        command.arg(format!("qemu+tcp://{to}/system")).args(["--migrateuri", &format!("tcp://{to}")]);
        command.output().context("cannot run virsh")
    }

    /// On which hosts the VM runs.
    pub(super) fn runs_on(&self) -> Result<Vec<&str>> {
        let mut found = Vec::new();
        for node in &self.hosts {
            if node.virsh(&["list", "--name", "--state-running"])?.lines().any(|line| line == guest::NAME) {
                found.push(node.name());
            }
        }
        Ok(found)
    }

    /// How often the server's routing daemon has given up its neighbor.
    pub(super) fn neighbors_lost(&self) -> usize {
        self.bird.log().lines().filter(|line| line.contains("changed state from Full")).count()
    }

    /// Waits until a host has the router of the VM that has come to it, and no move of it is open.
    pub(super) fn wait_settled(&self, host: usize, limit: Duration) -> Result<()> {
        let node = ["a", "b"][host.min(1)];
        wait_for("the router to be settled where its VM is", limit, || {
            let said = self.transact(
                r#"["XenFlow",{"op":"select","table":"Migration","where":[],"columns":["phase"]},{"op":"select","table":"Location","where":[]}]"#,
            )?;
            let rows = |at: usize| said[at]["rows"].as_array().into_iter().flatten();
            let is_over = rows(0).all(|row| row["phase"] == "done" || row["phase"] == "aborted");
            // Of those who say that they have an address, it is who has said it last.
            let owner = |mac: &str| {
                rows(1).filter(|row| row["mac"] == mac).max_by_key(|row| row["generation"].as_i64())
            };
            let has_all = NICS
                .iter()
                .filter(|(nic, _)| *nic != "ctl")
                .all(|(_, mac)| owner(mac).is_some_and(|row| row["node"] == node));
            Ok((is_over && has_all && self.session_is_on(host)?).then_some(()))
        })
    }

    /// Whether a host's daemon has a session of the VM past the end of its tables.
    fn session_is_on(&self, host: usize) -> Result<bool> {
        let status = self.hosts[host.min(1)].ask(&self.product, &["status"])?;
        let mut routers = status["routers"].as_array().into_iter().flatten();
        Ok(routers.any(|router| router["name"] == guest::NAME && router["session"] == "up"))
    }

    /// Whether b would let the VM come.
    pub(super) fn is_refused_at_b(&self) -> Result<bool> {
        let [_, b] = &self.hosts;
        let mut command = b.machine.command(&self.product.xenflow);
        command.args(["arrival", "--timeout", "1"]);
        for (_, mac) in NICS {
            command.args(["--mac", mac]);
        }
        Ok(!command.output()?.status.success())
    }

    /// Asks the XenFlow database's server.
    pub(super) fn transact(&self, words: &str) -> Result<Value> {
        let remote = format!("unix:{}", self.edge.database().display());
        let said = process::output(Command::new("ovsdb-client").args(["transact", &remote, words]))?;
        let said: Value = serde_json::from_str(&said)?;
        let mut all = said.as_array().into_iter().flatten();
        ensure!(!all.any(|result| result.get("error").is_some()), "the database refuses {words}: {said}");
        Ok(said)
    }

    /// What must be there beside the lab's own.
    pub(super) fn prepare() -> Result<std::path::PathBuf> {
        setup::packages()?;
        setup::install(setup::VM_PACKAGES)?;
        setup::kernel::unpack()
    }
}
