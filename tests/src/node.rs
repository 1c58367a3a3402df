//! A node: a [`Host`] that runs XenFlow: its database, its daemon `xenflow-dom0`, and the operator's `xenflow`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::host::{Host, Vif};
use crate::net::Netns;
use crate::process::{self, Process, wait_for};
use crate::scenario::Lab;
use crate::trunk::Trunk;

/// The integration bridge.
pub const BRIDGE: &str = "br-xf";
/// The bound for a daemon to come up.
const START: Duration = Duration::from_secs(20);

/// The certificate authority of a lab.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    xenflow: PathBuf,
}

impl Pki {
    /// Makes the authority.
    pub fn create(lab: &Lab) -> Result<Self> {
        let pki = Self { dir: lab.work().join("pki"), xenflow: lab.product()?.xenflow.clone() };
        process::output(Command::new(&pki.xenflow).args(["pki", "init"]).arg(&pki.dir))?;
        Ok(pki)
    }

    /// Where the authority keeps its files; `ca.pem` is the certificate that everybody trusts.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Issues a certificate to a `router` or `node`, with more arguments as `xenflow pki issue` takes them. Lines
    /// of a configuration that name it and its key come back.
    pub fn issue(&self, kind: &str, name: &str, more: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.xenflow);
        command.args(["pki", "issue", kind, name, "--ca"]).arg(&self.dir).args(more);
        process::output(&mut command)?;
        Ok(self.config(name))
    }

    /// The lines of a configuration that name a certificate of this authority.
    pub fn config(&self, name: &str) -> String {
        let file = |name: String| self.dir.join(name).display().to_string();
        format!(
            "ca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            file("ca.pem".into()),
            file(format!("{name}.pem")),
            file(format!("{name}.key"))
        )
    }
}

/// A host with XenFlow on it.
#[derive(Debug)]
pub struct Node {
    // Dropped from top to bottom: the daemon before the switch.
    daemon: Option<Process>,
    host: Host,
    xenflow: PathBuf,
    dom0: PathBuf,
    config: PathBuf,
    logs: PathBuf,
    /// The socket of the server with its XenFlow database.
    database: PathBuf,
    starts: u32,
}

impl Node {
    /// Makes the host, its XenFlow database and the daemon's configuration. Neither switch nor daemon runs yet.
    pub fn create(lab: &Lab, name: &str, pki: &Pki) -> Result<Self> {
        let node = Self::bare(lab, name, pki)?;
        node.init()?;
        Ok(node)
    }

    fn bare(lab: &Lab, name: &str, pki: &Pki) -> Result<Self> {
        let host = Host::create(lab, name)?;
        let product = lab.product()?;
        let config = host.rundir().join("dom0.toml");
        let certificate = pki.issue("node", name, &[])?;
        let text = format!(
            "node = \"{name}\"\n{certificate}ovs_db = \"unix:{0}\"\novs_rundir = \"{1}\"\ncontrol_socket = \"{1}/control.sock\"\nlog = \"debug\"\n",
            host.db_socket().display(),
            host.rundir().display()
        );
        std::fs::write(&config, text)?;
        Ok(Self {
            daemon: None,
            xenflow: product.xenflow.clone(),
            dom0: product.dom0.clone(),
            config,
            logs: lab.results().to_owned(),
            database: host.db_socket(),
            host,
            starts: 0,
        })
    }

    /// Makes a host whose daemon follows the XenFlow database of another one.
    pub fn create_with(lab: &Lab, name: &str, pki: &Pki, database: &Self) -> Result<Self> {
        let socket = database.host.db_socket();
        let remote = format!("unix:{}", socket.display());
        Self::create_at(lab, name, pki, socket, &remote)
    }

    /// Makes a host whose daemon follows the XenFlow database at `remotes`; operators use the socket.
    pub fn create_at(lab: &Lab, name: &str, pki: &Pki, socket: PathBuf, remotes: &str) -> Result<Self> {
        let mut node = Self::bare(lab, name, pki)?;
        node.database = socket;
        node.configure_daemon(&format!("xenflow_db = \"{remotes}\""))?;
        Ok(node)
    }

    /// `xenflow init`: the XenFlow database is served by the host's server afterwards.
    pub fn init(&self) -> Result<()> {
        let database = self.host.rundir().join("xenflow.db").display().to_string();
        let control = self.host.rundir().join("ovsdb-server.ctl").display().to_string();
        self.xenflow(&["init", "--db-file", &database, "--ctl", &control])?;
        Ok(())
    }

    /// The host below.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The host below, to stop and start its switch.
    pub fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }

    /// The socket of the XenFlow database that operators of this node use.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// The command `xenflow`, without arguments.
    pub fn program(&self) -> &Path {
        &self.xenflow
    }

    /// Where its daemon answers.
    pub fn control_socket(&self) -> PathBuf {
        self.host.rundir().join("control.sock")
    }

    /// The command `xenflow` of this node's database, to add arguments to.
    pub fn xenflow_command(&self) -> Command {
        // Only the socket matters, so it may run outside the namespace: cheaper.
        let mut command = Command::new(&self.xenflow);
        command.arg(format!("--db=unix:{}", self.database.display()));
        command
    }

    /// Runs `xenflow`; what it prints comes back.
    pub fn xenflow(&self, args: &[&str]) -> Result<String> {
        process::output(self.xenflow_command().args(args))
    }

    /// Runs `xenflow` once a line, words split at blanks.
    pub fn configure(&self, lines: &str) -> Result<()> {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            self.xenflow(&line.split_whitespace().collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// `xenflow show --json`.
    pub fn show(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.xenflow(&["show", "--json"])?)?)
    }

    /// Starts the switch, then the daemon, and waits until the daemon listens for guests.
    pub fn start(&mut self) -> Result<()> {
        self.host.start_vswitchd()?;
        self.start_daemon()
    }

    /// Starts the daemon and waits until it listens for guests.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.spawn_daemon()?;
        self.daemon()?.wait_for_log("listening for guests", START)
    }

    /// Starts the daemon and does not wait. Its log is `<node>-xenflow-dom0-<n>.log`.
    pub fn spawn_daemon(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.logs.join(format!("{}-xenflow-dom0-{}.log", self.host.name(), self.starts));
        // As its unit does.
        let mut command = self.host.command("nice");
        command.args(["-n", "-5"]).arg(&self.dom0).arg("run").arg("--config").arg(&self.config);
        let name = format!("xenflow-dom0 of {}", self.host.name());
        self.daemon = Some(Process::spawn(&name, &mut command, &log)?);
        Ok(())
    }

    /// Adds a line to the daemon's configuration, which it reads when it starts.
    pub fn configure_daemon(&self, line: &str) -> Result<()> {
        let config = std::fs::read_to_string(&self.config)?;
        Ok(std::fs::write(&self.config, format!("{config}{line}\n"))?)
    }

    /// Replaces all sections of the daemon's configuration, what is below its first `[name]`, by this one.
    pub fn configure_section(&self, section: &str) -> Result<()> {
        let config = std::fs::read_to_string(&self.config)?;
        let lines = config.lines().take_while(|line| !line.starts_with('['));
        let top: String = lines.map(|line| format!("{line}\n")).collect();
        Ok(std::fs::write(&self.config, top + section)?)
    }

    /// The daemon's settings as it will see them (`check-config`).
    pub fn settings(&self) -> Result<String> {
        process::output(Command::new(&self.dom0).args(["check-config", "--config"]).arg(&self.config))
    }

    /// The daemon, to signal it or to read its log.
    pub fn daemon(&mut self) -> Result<&mut Process> {
        self.daemon.as_mut().context("xenflow-dom0 is not running")
    }

    /// kill -9.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("xenflow-dom0 is not running")?;
        daemon.kill()?;
        Ok(())
    }

    /// Plugs a namespace into the integration bridge as a toolstack does: a veth whose end here is a port with
    /// the `external_ids` that everybody sets.
    pub fn plug(&self, ns: &Netns, interface: &str, vif: &Vif<'_>) -> Result<()> {
        self.plug_all(&[(ns, interface, vif)])
    }

    /// Like [`Node::plug`] for several at once, which takes as many processes as one.
    pub fn plug_all(&self, plugs: &[(&Netns, &str, &Vif<'_>)]) -> Result<()> {
        let (mut links, mut ups, mut ports) = (String::new(), String::new(), Vec::new());
        for (ns, interface, vif) in plugs {
            let Vif { port, iface_id, mac, vm_uuid } = vif;
            links.push_str(&format!(
                "link add {port} netns {} type veth peer name {interface} address {mac} netns {}\n",
                self.host.netns().name(),
                ns.name()
            ));
            ups.push_str(&format!("link set {port} up\n"));
            ports.extend(["--", "add-port", BRIDGE, port, "--", "set", "Interface", port].map(str::to_owned));
            ports.push(format!("external_ids:iface-id={iface_id}"));
            ports.push(format!("external_ids:attached-mac=\"{mac}\""));
            ports.push("external_ids:iface-status=active".to_owned());
            ports.extend(vm_uuid.map(|uuid| format!("external_ids:vm-uuid={uuid}")));
        }
        process::output_with_input(Command::new("ip").args(["-batch", "-"]), &links)
            .with_context(|| format!("in the batch {links:?}"))?;
        for (_, _, vif) in plugs {
            self.host.quiet(vif.port)?;
        }
        self.host.netns().ip_batch(&ups)?;
        self.host.vsctl(&ports.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(())
    }

    /// Makes the trunk a port of the integration bridge and an uplink of the node.
    pub fn add_trunk(&self) -> Result<()> {
        self.host.add_port(BRIDGE, Trunk::PORT, &[])?;
        self.xenflow(&["uplink", "add", self.host.name(), Trunk::PORT])?;
        Ok(())
    }

    /// Waits until the daemon has told the database that a router's session is up.
    pub fn wait_session(&self, router: &str, limit: Duration) -> Result<()> {
        wait_for(&format!("the session of {router} on {}", self.host.name()), limit, || {
            let shown = self.xenflow(&["--json", "show"])?;
            let shown: Value = serde_json::from_str(&shown)?;
            Ok(session_is_up(&shown, router).then_some(()))
        })
    }

    /// Flows of the integration bridge, as `ovs-ofctl` prints them; without those that end by themselves: the daemon has the
    /// switch look at its datapath by one that stays for a second.
    pub fn flows(&self) -> Result<String> {
        let all = self.host.ofctl(&["--no-stats", "dump-flows", BRIDGE])?;
        let lasting = all.lines().filter(|line| !line.contains("hard_timeout="));
        Ok(lasting.map(|line| format!("{line}\n")).collect())
    }
}

/// Looks for the router's report anywhere in what `xenflow show --json` prints.
pub(crate) fn session_is_up(shown: &Value, router: &str) -> bool {
    match shown {
        Value::Object(fields) => {
            let is = |key: &str, value: &str| fields.get(key).and_then(Value::as_str) == Some(value);
            let here = is("router", router) && is("state", "up");
            here || fields.values().any(|value| session_is_up(value, router))
        }
        Value::Array(values) => values.iter().any(|value| session_is_up(value, router)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
