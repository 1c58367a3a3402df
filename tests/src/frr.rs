//! FRR in a namespace: `zebra` and the daemons that a scenario wants, and their shell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Group, User, chown};

use crate::net::Netns;
use crate::process::{self, Process, wait_for};
use crate::scenario::Lab;

/// Where Debian puts FRR's daemons.
const FRR: &str = "/usr/lib/frr";
/// The bound for a daemon to answer.
const START: Duration = Duration::from_secs(15);

/// FRR's daemons of one namespace, ended in the reverse order of their start.
#[derive(Debug)]
pub struct Frr {
    daemons: Vec<Process>,
    name: String,
    dir: PathBuf,
    logs: PathBuf,
}

impl Frr {
    /// None runs yet; their sockets and configurations will be in this folder.
    pub fn new(lab: &Lab, name: &str, dir: &Path) -> Self {
        Self {
            daemons: Vec::new(),
            name: name.to_owned(),
            dir: dir.to_owned(),
            logs: lab.results().to_owned(),
        }
    }

    /// Starts `zebra` and one more daemon per `(daemon, configuration)`, such as `("ospfd", "router ospf\n…")`.
    pub fn start(&mut self, ns: &Netns, daemons: &[(&str, &str)]) -> Result<()> {
        let user = User::from_name("frr")?;
        let group = Group::from_name("frr")?;
        let (Some(user), Some(group)) = (user, group) else {
            anyhow::bail!("there is no user or group frr: is the package frr installed?");
        };
        chown(&self.dir, Some(user.uid), Some(group.gid))?;
        self.start_daemon(ns, "zebra", "")?;
        for (daemon, config) in daemons {
            self.start_daemon(ns, daemon, config)?;
        }
        Ok(())
    }

    /// Ends a daemon that [`start`](Self::start) started.
    pub fn stop_daemon(&mut self, daemon: &str) -> Result<()> {
        let before = self.daemons.len();
        self.daemons.retain(|process| process.name() != daemon);
        ensure!(self.daemons.len() < before, "{daemon} is not running in {}", self.name);
        Ok(())
    }

    /// Runs one command of FRR's shell. Lines of a configuration go as several commands: `configure`, `router …`.
    pub fn vtysh(&self, commands: &[&str]) -> Result<String> {
        let mut command = std::process::Command::new("vtysh");
        command.arg("--vty_socket").arg(&self.dir);
        for text in commands {
            command.args(["-c", text]);
        }
        process::output(&mut command)
    }

    /// As [`vtysh`](Self::vtysh), for a command that says JSON.
    pub fn json(&self, command: &str) -> Result<serde_json::Value> {
        let said = self.vtysh(&[command])?;
        serde_json::from_str(&said).with_context(|| format!("{command:?} says {said:?}"))
    }

    /// Where a daemon's log is.
    #[must_use]
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.logs.join(format!("{}-{daemon}.log", self.name))
    }

    /// Waits until OSPF has `count` neighbors in state Full.
    pub fn wait_ospf_full(&self, count: usize, limit: Duration) -> Result<()> {
        let what = format!("{count} full OSPF neighbors of {}", self.name);
        wait_for(&what, limit, || {
            let text = self.vtysh(&["show ip ospf neighbor"])?;
            Ok((text.lines().filter(|line| line.contains("Full/")).count() >= count).then_some(()))
        })
    }

    fn start_daemon(&mut self, ns: &Netns, daemon: &str, config: &str) -> Result<()> {
        let file = self.dir.join(format!("{daemon}.conf"));
        std::fs::write(&file, format!("log stdout informational\n{config}"))?;
        let mut command = ns.command(format!("{FRR}/{daemon}"));
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
        let log = self.log(daemon);
        let mut process = Process::spawn(daemon, &mut command, &log)?;
        let socket = self.dir.join(format!("{daemon}.vty"));
        wait_for(&format!("{daemon} of {} to listen", self.name), START, || {
            process.check()?;
            Ok(socket.exists().then_some(()))
        })?;
        // Newest first, so that dropping goes backwards.
        self.daemons.insert(0, process);
        Ok(())
    }
}
