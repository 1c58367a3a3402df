//! All but the hosts that a VM runs on: node e, to which a client and a server are plugged in, a switch that learns between it and the
//! hosts, and network red with router r1 between the segments lan and core. The server speaks OSPF with r1, and tells it of an address
//! of its own, to which the client's packets go: so they pass only where r1's table was understood.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::guest::{self, Images, NICS};
use super::machine::Machine;
use super::node::{Node, TRUNK};
use super::{Stage, Traffic};
use crate::job::Product;
use crate::node::{BRIDGE, session_is_up};
use crate::probe::{Probe, ProbeReport};
use crate::process::{self, Process, wait_for};

/// Where the client's packets go.
pub(crate) const SERVED: &str = "10.9.0.1";
/// The hosts, as XenFlow calls them.
pub(crate) const NAMES: [&str; 2] = ["a", "b"];
/// What they are called by each other.
pub(crate) const HOSTS: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
/// For anything to come up on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Tells r1 of the server's address. @DEAD@: [`Traffic::dead_s`].
const BIRD: &str = r#"
log stderr all;
router id 10.2.0.10;
protocol device { }
protocol kernel { ipv4 { export all; }; }
protocol ospf v2 r1 {
    debug { states, events };
    ipv4 { import all; };
    area 0 {
        interface "eth0", "plain" { type ptp; hello 2; dead @DEAD@; };
        interface "lo" { stub; };
    };
}
"#;

/// A host that a VM runs on.
pub(crate) trait Host {
    /// Its node's name.
    fn name(&self) -> &str;
    /// Asks its daemon by the command line.
    fn ask(&self, words: &[&str]) -> Result<Value>;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Site {
    // Dropped from top to bottom.
    bird: Process,
    /// In the segment lan.
    pub(crate) client: Machine,
    /// In the segment core.
    pub(crate) server: Machine,
    /// e, whose switch's database has the XenFlow database.
    pub(crate) edge: Node,
    /// What lies between the nodes.
    pub(crate) switch: Machine,
    /// What is tested.
    pub(crate) product: Product,
    lab: PathBuf,
    work: PathBuf,
    traffic: Traffic,
    probes: u32,
}

impl Site {
    /// The machines that it is made of.
    pub(crate) const MACHINES: [&str; 4] = ["e", "switch", "client", "server"];

    /// Makes all of it of these machines; `lab` is the lab's own program.
    pub(crate) fn create(
        machines: [Machine; 4],
        product: &Product,
        lab: &Path,
        traffic: Traffic,
        stage: &Stage,
    ) -> Result<Self> {
        let [e, switch, client, server] = machines;
        switch.ip("link add br0 type bridge\nlink set br0 up\n")?;
        plug(&switch, &e)?;
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
        server.write("bird.conf", &BIRD.replace("@DEAD@", &traffic.dead_s.to_string()))?;
        let mut bird = server.command("bird");
        bird.args(["-f", "-c", "/etc/bird.conf", "-s", "/run/bird.ctl"]);
        let bird = Process::spawn("bird of server", &mut bird, &stage.logs().join("server-bird.log"))?;

        let edge = Node::start(e, stage.logs())?;
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
            edge,
            switch,
            product: product.clone(),
            lab: lab.to_owned(),
            work: stage.work().to_owned(),
            traffic,
            probes: 0,
        };
        site.describe()?;
        let pki = site.pki();
        site.issue(&["init", &pki.display().to_string()])?;
        let settings = site.settings("e", &pki, &site.database())?;
        site.edge.start_daemon(product, &format!("{settings}log = \"debug\"\n"))?;
        site.edge.daemon()?.wait_for_log("listening for guests", LIMIT)?;
        Ok(site)
    }

    /// Into the database.
    fn describe(&self) -> Result<()> {
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
        let file = self.work.join("topology.toml");
        std::fs::write(&file, text)?;
        self.xenflow(&["apply", "-f", &file.display().to_string()])?;
        Ok(())
    }

    /// Plugs a machine into the switch, by an interface that has a trunk's name.
    pub(crate) fn plug(&self, machine: &Machine) -> Result<()> {
        plug(&self.switch, machine)
    }

    /// Where its authority keeps its files.
    pub(crate) fn pki(&self) -> PathBuf {
        self.work.join("pki")
    }

    /// The database, from where there is this machine's file system.
    pub(crate) fn database(&self) -> String {
        format!("unix:{}", self.edge.database().display())
    }

    fn issue(&self, words: &[&str]) -> Result<()> {
        process::output(Command::new(&self.product.xenflow).arg("pki").args(words)).map(drop)
    }

    /// The settings of a node's daemon, for which a certificate is issued; its host has the files in `pki`, and reaches the database
    /// there.
    pub(crate) fn settings(&self, node: &str, pki: &Path, database: &str) -> Result<String> {
        self.issue(&["issue", "node", node, "--ca", &self.pki().display().to_string()])?;
        let dir = pki.display();
        Ok(format!(
            "node = \"{node}\"\nca = \"{dir}/ca.pem\"\ncert = \"{dir}/{node}.pem\"\nkey = \"{dir}/{node}.key\"\n\
             xenflow_db = \"{database}\"\n"
        ))
    }

    /// Makes what r1 is booted with, a certificate among it; see [`Images::build`].
    pub(crate) fn images(&self, unpacked: &Path, modules: &[&str]) -> Result<Images> {
        let pki = self.pki();
        self.issue(&["issue", "router", guest::NAME, "--ca", &pki.display().to_string()])?;
        let identity = [
            ("ca.pem", pki.join("ca.pem")),
            ("router.pem", pki.join(format!("{}.pem", guest::NAME))),
            ("router.key", pki.join(format!("{}.key", guest::NAME))),
        ];
        Images::build(unpacked, modules, &self.product.guest, &identity, self.traffic, &self.work)
    }

    /// Waits until a host forwards for the VM that was booted there.
    pub(crate) fn wait_booted(&self, host: &impl Host, limit: Duration) -> Result<()> {
        wait_for("the session of r1", limit, || {
            let shown = self.xenflow(&["--json", "show"])?;
            Ok(session_is_up(&serde_json::from_str(&shown)?, guest::NAME).then_some(()))
        })?;
        wait_for("the server's address to be forwarded to", limit, || Ok(forwards(host)?.then_some(())))
    }

    /// Runs the operator's command.
    pub(crate) fn xenflow(&self, words: &[&str]) -> Result<String> {
        process::output(self.xenflow_command().args(words))
    }

    /// The same, to be added to.
    pub(crate) fn xenflow_command(&self) -> Command {
        let mut command = Command::new(&self.product.xenflow);
        command.arg(format!("--db={}", self.database()));
        command
    }

    /// Begins numbered packets from the client to the server, and returns when the first has come.
    pub(crate) fn probe(&mut self) -> Result<Probe> {
        self.probes += 1;
        let address = format!("{SERVED}:{}", 9000 + self.probes).parse()?;
        Probe::between(
            self.client.command(&self.lab),
            self.server.command(&self.lab),
            address,
            self.traffic.rate,
            self.probes,
        )
    }

    /// Ends it.
    pub(crate) fn judge(&self, probe: Probe) -> Result<ProbeReport> {
        let report = probe.stop()?;
        ensure!(report.sent > 0, "the probe has sent nothing");
        Ok(report)
    }

    /// Has the client and the server ask for no address that they know: of a move that nobody has planned no node knows before the
    /// guest has gone, so nobody answers for one that stands still for longer than neighbors wait.
    pub(crate) fn have_patience(&self) -> Result<()> {
        for machine in [&self.client, &self.server] {
            machine
                .run("sysctl", &["--quiet", "--write", "net.ipv4.neigh.eth0.delay_first_probe_time=3600"])?;
        }
        Ok(())
    }

    /// How often the server's routing daemon has given up its neighbor.
    pub(crate) fn neighbors_lost(&self) -> usize {
        self.bird.log().lines().filter(|line| line.contains("changed state from Full")).count()
    }

    /// Waits until a host has the router of the VM that has come to it, and has said so to all, and no move of it is open.
    pub(crate) fn wait_settled(&self, host: &impl Host, limit: Duration) -> Result<()> {
        let node = host.name();
        wait_for("the router to be settled where its VM is", limit, || {
            let said = self.transact(
                r#"["XenFlow",{"op":"select","table":"Migration","where":[],"columns":["phase"]},{"op":"select","table":"Location","where":[]},{"op":"select","table":"Status","where":[]}]"#,
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
            let is_told = rows(2)
                .any(|row| row["node"] == node && row["router"] == guest::NAME && row["state"] == "up");
            Ok((is_over && has_all && is_told && has_session(host)?).then_some(()))
        })
    }

    /// Asks the XenFlow database's server.
    pub(crate) fn transact(&self, words: &str) -> Result<Value> {
        let remote = self.database();
        let said = process::output(Command::new("ovsdb-client").args(["transact", &remote, words]))?;
        let said: Value = serde_json::from_str(&said)?;
        let mut all = said.as_array().into_iter().flatten();
        ensure!(!all.any(|result| result.get("error").is_some()), "the database refuses {words}: {said}");
        Ok(said)
    }
}

/// Plugs a machine into a switch.
fn plug(switch: &Machine, machine: &Machine) -> Result<()> {
    let port = format!("to-{}", machine.name());
    machine.wire(TRUNK, switch, &port)?;
    switch.ip(&format!("link set dev {port} mtu 1504 master br0 up\n"))
}

/// Whether a host forwards to the server's address.
fn forwards(host: &impl Host) -> Result<bool> {
    let routes = host.ask(&["routes", guest::NAME, SERVED])?;
    let mut all = routes.as_array().into_iter().flatten();
    Ok(all.any(|route| route["prefix"] == format!("{SERVED}/32") && route["verdict"] == "forwarded"))
}

/// Whether a host's daemon has a session of the VM past the end of its tables.
fn has_session(host: &impl Host) -> Result<bool> {
    let status = host.ask(&["status"])?;
    let mut routers = status["routers"].as_array().into_iter().flatten();
    Ok(routers.any(|router| router["name"] == guest::NAME && router["session"] == "up"))
}
