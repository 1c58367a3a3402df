//! A node on a [`Machine`]: Open vSwitch in user space and the daemon, with their own default places.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::machine::Machine;
use crate::job::Product;
use crate::node::BRIDGE;
use crate::process::{self, Process, retry};

/// The port to the other machines.
pub(crate) const TRUNK: &str = "trunk";
const LIMIT: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct Node {
    // Dropped from top to bottom.
    daemon: Option<Process>,
    switch: Vec<Process>,
    /// What it runs on.
    pub(crate) machine: Machine,
    logs: PathBuf,
}

impl Node {
    /// With its switch running, the trunk plugged in.
    pub(crate) fn start(machine: Machine, logs: &Path) -> Result<Self> {
        let mut node = Self { daemon: None, switch: Vec::new(), machine, logs: logs.to_owned() };
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        node.machine.run("ovsdb-tool", &["create", "/run/openvswitch/conf.db", schema])?;
        let server = node.spawn("ovsdb-server", |command| {
            command.args([
                "/run/openvswitch/conf.db",
                "--remote=punix:/run/openvswitch/db.sock",
                "--pidfile",
            ]);
        })?;
        node.switch.push(server);
        let vsctl = |node: &Self, words: &[&str]| node.machine.run("ovs-vsctl", words);
        retry("the switch's database", LIMIT, || vsctl(&node, &["--no-wait", "init"]))?;
        let switch = node.spawn("ovs-vswitchd", |command| {
            command.arg("--pidfile");
        })?;
        node.switch.insert(0, switch);
        // The tag is no part of what an interface's MTU counts where the kernel forwards; here it is.
        node.machine.ip(&format!("link set {TRUNK} mtu 1504 up\n"))?;
        vsctl(
            &node,
            &[
                "--timeout=20",
                "add-br",
                BRIDGE,
                "--",
                "set",
                "Bridge",
                BRIDGE,
                "datapath_type=netdev",
                "fail_mode=secure",
                "--",
                "add-port",
                BRIDGE,
                TRUNK,
            ],
        )?;
        Ok(node)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.machine.name()
    }

    /// Where its own switch's database is reached from everywhere.
    pub(crate) fn database(&self) -> PathBuf {
        self.machine.dir().join("run/openvswitch/db.sock")
    }

    /// Starts the daemon, with these settings.
    pub(crate) fn start_daemon(&mut self, product: &Product, settings: &str) -> Result<()> {
        self.machine.write("xenflow/dom0.toml", settings)?;
        let daemon = self.spawn(&product.dom0.display().to_string(), |command| {
            command.arg("run");
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// The daemon.
    pub(crate) fn daemon(&mut self) -> Result<&mut Process> {
        self.daemon.as_mut().context("the daemon was not started")
    }

    /// Sends its daemon a signal, by its name (`STOP`).
    pub(crate) fn signal_daemon(&self, signal: &str) -> Result<()> {
        // Only processes of the machine are seen there.
        let kill = format!("kill -{signal} $(pgrep --exact xenflow-dom0)");
        self.machine.run("sh", &["-c", &kill]).map(drop)
    }

    /// Asks the daemon by the command line.
    pub(crate) fn ask(&self, product: &Product, words: &[&str]) -> Result<serde_json::Value> {
        let socket = self.machine.dir().join("run/xenflow/xenflow-dom0.sock");
        let mut command = Command::new(&product.xenflow);
        command.args(["--json", words.first().copied().unwrap_or_default(), "--socket"]).arg(socket);
        Ok(serde_json::from_str(&process::output(command.args(words.iter().skip(1)))?)?)
    }

    /// Starts a program on it, with a log of its own.
    pub(crate) fn spawn(&self, program: &str, configure: impl FnOnce(&mut Command)) -> Result<Process> {
        let name = Path::new(program)
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut command = self.machine.command(program);
        configure(&mut command);
        let log = self.logs.join(format!("{}-{name}.log", self.name()));
        Process::spawn(&format!("{name} of {}", self.name()), &mut command, &log)
    }
}
