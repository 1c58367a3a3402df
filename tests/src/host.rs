//! A host: a network namespace with its own `ovsdb-server` and `ovs-vswitchd` on the kernel datapath.
//!
//! Owns the switch's processes and the `ovs-*ctl` tools pointed at them. Does not know the product's daemon.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::net::{self, Netns};
use crate::process::{self, Process, retry, wait_for};
use crate::progress::uptime_s;
use crate::scenario::Lab;

/// A clock for `ovs-vswitchd` that costs what it costs elsewhere; see there. Its bytes: where it was built there may be another folder in
/// the lab, and a switch that does not find it goes on without.
const CLOCK: &[u8] = include_bytes!(env!("CLOCK"));
/// `ovs-vswitchd` 3.1 that starts before this uptime runs with zero handler threads and loses every upcall until
/// then: it counts processors through a cache that is "fresh" while the monotonic clock is below ten seconds.
const OVS_MIN_UPTIME_S: f64 = 10.1;
/// The bound for anything a switch does at its start.
const START: Duration = Duration::from_secs(20);

/// How a toolstack describes a virtual interface in the OVS database.
#[derive(Debug, Clone)]
pub struct Vif<'a> {
    /// The port's name on the host.
    pub port: &'a str,
    /// `external_ids:iface-id`.
    pub iface_id: &'a str,
    /// `external_ids:attached-mac`, the guest's MAC.
    pub mac: &'a str,
    /// `external_ids:vm-uuid`, if the toolstack sets one.
    pub vm_uuid: Option<&'a str>,
}

/// One host of the lab.
#[derive(Debug)]
pub struct Host {
    // Order matters: fields are dropped from top to bottom, the switch before its database before its namespace.
    vswitchd: Option<Process>,
    ovsdb: Option<Process>,
    ns: Netns,
    name: String,
    run: PathBuf,
    logs: PathBuf,
}

impl Host {
    /// Makes the namespace and starts the database, not yet the switch: bridges and ports can be put into the
    /// database already, while the kernel is too young for [`Host::start_vswitchd`].
    pub fn create(lab: &Lab, name: &str) -> Result<Self> {
        let run = lab.work().join(format!("host-{name}"));
        std::fs::create_dir_all(&run)?;
        let ns = Netns::create(name)?;
        let mut host = Self {
            vswitchd: None,
            ovsdb: None,
            ns,
            name: name.to_owned(),
            run,
            logs: lab.results().to_owned(),
        };
        host.start_ovsdb()?;
        Ok(host)
    }

    /// Its name, which is also the namespace's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.ns
    }

    /// The folder of its sockets: `db.sock`, `<bridge>.mgmt`, pid files, the database.
    pub fn rundir(&self) -> &Path {
        &self.run
    }

    /// The database's unix socket.
    pub fn db_socket(&self) -> PathBuf {
        self.run.join("db.sock")
    }

    /// A command inside the host, with the environment that points the OVS tools at this host's switch.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.at_switch(self.ns.command(program))
    }

    /// One of the switch's daemons inside the host, with the priority that `ovs-ctl` gives them.
    fn daemon(&self, program: &str) -> Command {
        let mut command = self.command("nice");
        command.args(["-n", "-10", program]);
        command
    }

    /// The same outside the host's namespace, which is cheaper: for tools that need the switch's sockets only.
    fn tool(&self, program: &str) -> Command {
        self.at_switch(Command::new(program))
    }

    fn at_switch(&self, mut command: Command) -> Command {
        for key in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
            command.env(key, &self.run);
        }
        command
    }

    /// Runs `ovs-vsctl`; waits for the switch to take the change, if there is one.
    pub fn vsctl(&self, args: &[&str]) -> Result<String> {
        let db = format!("--db=unix:{}", self.db_socket().display());
        let mut command = self.tool("ovs-vsctl");
        command.args([&db, "--timeout=10"]);
        if self.vswitchd.is_none() {
            command.arg("--no-wait");
        }
        process::output(command.args(args))
    }

    /// Runs `ovs-ofctl` with OpenFlow 1.5.
    pub fn ofctl(&self, args: &[&str]) -> Result<String> {
        process::output(self.tool("ovs-ofctl").args(["-O", "OpenFlow15", "--timeout=10"]).args(args))
    }

    /// Runs `ovs-appctl` against the switch.
    pub fn appctl(&self, args: &[&str]) -> Result<String> {
        let target = self.run.join("ovs-vswitchd.ctl");
        process::output(self.tool("ovs-appctl").arg("--timeout=10").arg("-t").arg(target).args(args))
    }

    /// Adds an existing interface to a bridge, with settings as `ovs-vsctl` takes them after the port's name
    /// (`tag=10`, `--`, `set`, …), and brings it up.
    pub fn add_port(&self, bridge: &str, port: &str, settings: &[&str]) -> Result<()> {
        self.ns.ip(&["link", "set", port, "up"])?;
        let mut args = vec!["add-port", bridge, port];
        args.extend_from_slice(settings);
        self.vsctl(&args)?;
        Ok(())
    }

    /// Attaches a virtual interface as toolstacks do: the port and its `external_ids`, in one transaction.
    pub fn attach(&self, bridge: &str, vif: &Vif<'_>) -> Result<()> {
        self.ns.ip(&["link", "set", vif.port, "up"])?;
        self.declare(bridge, vif)
    }

    /// The same, and the interface stays as it is: down, if nobody has set it up.
    pub fn declare(&self, bridge: &str, vif: &Vif<'_>) -> Result<()> {
        let id = format!("external_ids:iface-id={}", vif.iface_id);
        let mac = format!("external_ids:attached-mac=\"{}\"", vif.mac);
        let uuid = vif.vm_uuid.map(|uuid| format!("external_ids:vm-uuid={uuid}"));
        let status = "external_ids:iface-status=active";
        let mut args =
            vec!["add-port", bridge, vif.port, "--", "set", "Interface", vif.port, &id, &mac, status];
        args.extend(uuid.as_deref());
        self.vsctl(&args)?;
        Ok(())
    }

    /// Takes a port off its bridge; the interface itself stays.
    pub fn detach(&self, bridge: &str, port: &str) -> Result<()> {
        self.vsctl(&["--if-exists", "del-port", bridge, port])?;
        Ok(())
    }

    /// Plugs a namespace in: a veth pair whose end `port` stays here and whose end `interface` goes there, with
    /// `mac`. Neither end is up, and no bridge knows of it yet.
    pub fn plug(&self, port: &str, ns: &Netns, interface: &str, mac: &str) -> Result<()> {
        net::veth((&self.ns, port), (ns, interface), Some(mac))?;
        self.quiet(port)
    }

    /// Keeps the host's own IPv6 off an interface: a switch port says nothing by itself.
    pub fn quiet(&self, interface: &str) -> Result<()> {
        self.ns.sysctls(&[(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "1")])
    }

    /// The OpenFlow number of a port, once the switch has given one.
    pub fn ofport(&self, port: &str) -> Result<u32> {
        wait_for(&format!("the OpenFlow number of {port}"), START, || {
            let text = self.vsctl(&["get", "Interface", port, "ofport"])?;
            Ok(text.trim().parse().ok())
        })
    }

    /// Empties the kernel datapath's cache, so that the next packet is a first packet.
    pub fn flush_datapath(&self) -> Result<()> {
        // Not dpctl/del-flows: it works behind the switch's back, which then installs no flow anew for a second.
        self.appctl(&["revalidator/purge"])?;
        Ok(())
    }

    /// The switch process, to stop, kill or look at.
    pub fn vswitchd(&mut self) -> Result<&mut Process> {
        self.vswitchd.as_mut().context("ovs-vswitchd is not running")
    }

    /// Ends the switch at once; the kernel datapath keeps its flows.
    pub fn kill_vswitchd(&mut self) -> Result<()> {
        let mut process = self.vswitchd.take().context("ovs-vswitchd is not running")?;
        process.kill()?;
        Ok(())
    }

    /// Starts the switch (again) and waits until it has taken what the database says.
    pub fn start_vswitchd(&mut self) -> Result<()> {
        wait_uptime()?;
        let control = self.run.join("ovs-vswitchd.ctl");
        let clock = self.run.join("clock.so");
        if !clock.exists() {
            std::fs::write(&clock, CLOCK)?;
        }
        let mut command = self.daemon("ovs-vswitchd");
        command
            .arg(format!("unix:{}", self.db_socket().display()))
            .arg(format!("--pidfile={}", self.run.join("ovs-vswitchd.pid").display()))
            .arg(format!("--unixctl={}", control.display()))
            .args(["-vconsole:info", "-vsyslog:off", "-vfile:off"])
            .env("LD_PRELOAD", &clock);
        let log = self.logs.join(format!("{}-ovs-vswitchd.log", self.name));
        let mut process = Process::spawn(&format!("ovs-vswitchd of {}", self.name), &mut command, &log)?;
        retry("ovs-vswitchd to answer", START, || {
            process.check()?;
            self.appctl(&["version"])
        })?;
        ensure!(
            !process.log().contains("cannot be preloaded"),
            "the switch has not found its clock: {}",
            process.log()
        );
        self.vswitchd = Some(process);
        // Any transaction that waits for the switch does.
        self.vsctl(&["get", "Open_vSwitch", ".", "cur_cfg"])?;
        Ok(())
    }

    /// Ends the database server at once; the files stay.
    pub fn kill_ovsdb(&mut self) -> Result<()> {
        let mut process = self.ovsdb.take().context("ovsdb-server is not running")?;
        process.kill()?;
        Ok(())
    }

    /// Starts the database server (again) with the host's own database; it remembers no other.
    pub fn start_ovsdb(&mut self) -> Result<()> {
        let db = self.run.join("conf.db");
        if !db.exists() {
            let schema = "/usr/share/openvswitch/vswitch.ovsschema";
            process::output(Command::new("ovsdb-tool").arg("create").arg(&db).arg(schema))?;
        }
        let mut command = self.daemon("ovsdb-server");
        command
            .arg(&db)
            .arg(format!("--remote=punix:{}", self.db_socket().display()))
            .arg("--remote=db:Open_vSwitch,Open_vSwitch,manager_options")
            .arg(format!("--pidfile={}", self.run.join("ovsdb-server.pid").display()))
            .arg(format!("--unixctl={}", self.run.join("ovsdb-server.ctl").display()))
            .args(["-vconsole:info", "-vsyslog:off", "-vfile:off"]);
        let log = self.logs.join(format!("{}-ovsdb-server.log", self.name));
        let process = Process::spawn(&format!("ovsdb-server of {}", self.name), &mut command, &log)?;
        self.ovsdb = Some(process);
        let system_id = format!("external_ids:system-id={}", self.name);
        retry("ovsdb-server to answer", START, || {
            self.vsctl(&["init", "--", "set", "Open_vSwitch", ".", &system_id])
        })?;
        Ok(())
    }
}

/// Waits until the kernel is old enough for `ovs-vswitchd`.
pub fn wait_uptime() -> Result<()> {
    wait_for("an uptime of 10 s, which ovs-vswitchd needs", Duration::from_secs(12), || {
        Ok((uptime_s() >= OVS_MIN_UPTIME_S).then_some(()))
    })
}
