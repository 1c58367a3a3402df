//! A router guest: a namespace that forwards, with FRR's `zebra` and `ospfd` of its own.
//!
//! Owns the namespace, its sysctls and the routing daemons. Does not know the product's guest client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::unistd::{Group, User, chown};

use crate::net::Netns;
use crate::process::{self, Process, wait_for};
use crate::scenario::Lab;

/// Where Debian puts FRR's daemons.
const FRR: &str = "/usr/lib/frr";
/// The bound for a daemon to answer.
const START: Duration = Duration::from_secs(15);

/// A router guest.
#[derive(Debug)]
pub struct Guest {
    // Dropped from top to bottom: the daemons in the reverse order of their start, then the namespace.
    daemons: Vec<Process>,
    ns: Netns,
    dir: PathBuf,
    logs: PathBuf,
}

impl Guest {
    /// Makes the namespace with forwarding on, redirects and reverse-path filter off.
    pub fn create(lab: &Lab, name: &str) -> Result<Self> {
        let ns = Netns::create(name)?;
        ns.sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
        ])?;
        let dir = lab.work().join(format!("guest-{name}"));
        std::fs::create_dir_all(&dir)?;
        Ok(Self { daemons: Vec::new(), ns, dir, logs: lab.results().to_owned() })
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.ns
    }

    /// Its private folder (FRR's sockets, configuration, and whatever a scenario puts there).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Datagrams the guest's kernel has forwarded itself, IPv4 and IPv6 together.
    pub fn forwarded(&self) -> Result<u64> {
        Ok(self.ns.snmp("Ip", "ForwDatagrams")? + self.ns.snmp6("Ip6OutForwDatagrams")?)
    }

    /// Starts `zebra` and one more daemon per `(daemon, configuration)`, such as `("ospfd", "router ospf\n…")`.
    pub fn start_frr(&mut self, daemons: &[(&str, &str)]) -> Result<()> {
        let user = User::from_name("frr")?;
        let group = Group::from_name("frr")?;
        let (Some(user), Some(group)) = (user, group) else {
            anyhow::bail!("there is no user or group frr: is the package frr installed?");
        };
        chown(&self.dir, Some(user.uid), Some(group.gid))?;
        self.start_daemon("zebra", "")?;
        for (daemon, config) in daemons {
            self.start_daemon(daemon, config)?;
        }
        Ok(())
    }

    /// Ends a daemon that [`Guest::start_frr`] started.
    pub fn stop_daemon(&mut self, daemon: &str) -> Result<()> {
        let before = self.daemons.len();
        self.daemons.retain(|process| process.name() != daemon);
        ensure!(self.daemons.len() < before, "{daemon} is not running in {}", self.ns.name());
        Ok(())
    }

    /// Runs one command of FRR's shell. Lines of a configuration go as several commands: `configure`, `router …`.
    pub fn vtysh(&self, commands: &[&str]) -> Result<String> {
        let mut command = self.ns.command("vtysh");
        command.arg("--vty_socket").arg(&self.dir);
        for text in commands {
            command.args(["-c", text]);
        }
        process::output(&mut command)
    }

    /// Waits until OSPF has `count` neighbors in state Full.
    pub fn wait_ospf_full(&self, count: usize, limit: Duration) -> Result<()> {
        let what = format!("{count} full OSPF neighbors of {}", self.ns.name());
        wait_for(&what, limit, || {
            let text = self.vtysh(&["show ip ospf neighbor"])?;
            Ok((text.lines().filter(|line| line.contains("Full/")).count() >= count).then_some(()))
        })
    }

    /// Waits until the kernel's table has a route to `prefix`, and gives it back as `ip route` prints it.
    pub fn wait_route(&self, prefix: &str, limit: Duration) -> Result<String> {
        wait_for(&format!("a route to {prefix} in {}", self.ns.name()), limit, || {
            let text = self.ns.ip(&["route", "show", prefix])?;
            Ok((!text.trim().is_empty()).then_some(text))
        })
    }

    fn start_daemon(&mut self, daemon: &str, config: &str) -> Result<()> {
        let file = self.dir.join(format!("{daemon}.conf"));
        std::fs::write(&file, format!("log stdout informational\n{config}"))?;
        let mut command = self.ns.command(format!("{FRR}/{daemon}"));
        command
            .arg("-f")
            .arg(&file)
            .arg("-i")
            .arg(self.dir.join(format!("{daemon}.pid")))
            .arg("-z")
            .arg(self.dir.join("zserv.api"))
            .arg("--vty_socket")
            .arg(&self.dir)
            .args(["-u", "frr", "-g", "frr", "-P", "0"]);
        let log = self.logs.join(format!("{}-{daemon}.log", self.ns.name()));
        let mut process = Process::spawn(daemon, &mut command, &log)?;
        let socket = self.dir.join(format!("{daemon}.vty"));
        wait_for(&format!("{daemon} of {} to listen", self.ns.name()), START, || {
            process.check()?;
            Ok(socket.exists().then_some(()))
        })?;
        // Newest first, so that dropping goes backwards.
        self.daemons.insert(0, process);
        Ok(())
    }
}
