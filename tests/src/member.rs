//! A member of the database's cluster: made and joined by `xenflow cluster`, its server run as the unit runs it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::host::Host;
use crate::node::Pki;
use crate::process::{self, Process, wait_for};
use crate::scenario::Lab;

const SOCKET: &str = "db.sock";
const LIMIT: Duration = Duration::from_secs(60);
/// The key of its settings.
const KEY: &str = "XENFLOW_OVSDB_ARGS=";

/// See the module.
#[derive(Debug)]
pub struct Member {
    server: Option<Process>,
    name: String,
    address: String,
    dir: PathBuf,
    identity: [String; 3],
    xenflow: PathBuf,
    log: PathBuf,
}

impl Member {
    /// Where a host's member has its files.
    fn place(lab: &Lab, host: &str) -> PathBuf {
        lab.work().join(format!("member-{host}"))
    }

    /// One that is to be on that host, with its node's certificate. Other members find it at the address.
    pub fn new(lab: &Lab, pki: &Pki, host: &str, address: String) -> Result<Self> {
        let file = |kind: &str| shown(&pki.dir().join(format!("{host}.{kind}")));
        let identity = [
            format!("--private-key={}", file("key")),
            format!("--certificate={}", file("pem")),
            format!("--ca-cert={}", shown(&pki.dir().join("ca.pem"))),
        ];
        let dir = Self::place(lab, host);
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            server: None,
            name: host.to_owned(),
            address,
            dir,
            identity,
            xenflow: lab.product()?.xenflow.clone(),
            log: lab.results().join(format!("{host}-member.log")),
        })
    }

    /// Where other members find it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where operators write: no role, and only root reaches it.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// The same of a host's that is to be.
    pub fn socket_of(lab: &Lab, host: &str) -> PathBuf {
        Self::place(lab, host).join(SOCKET)
    }

    /// Its copy of the database.
    pub fn file(&self) -> PathBuf {
        self.dir.join("cluster.db")
    }

    fn settings(&self) -> String {
        shown(&self.dir.join("cluster.env"))
    }

    /// `xenflow cluster init`, or `join` if there is a member already; before and after its server starts, as it says.
    pub fn found(&mut self, host: &Host, peer: Option<&str>, clients: u16) -> Result<()> {
        let (clients, none) = (clients.to_string(), shown(&self.dir.join("none.db")));
        let embedded = format!("--db=unix:{none}");
        let command = match peer {
            None => vec!["init", "--client-port", &clients, "--from", &none, &embedded],
            Some(peer) => vec!["join", "--peer", peer],
        };
        self.cluster(host, &command)?;
        self.start(host)?;
        self.cluster(host, &command)
    }

    fn cluster(&self, host: &Host, command: &[&str]) -> Result<()> {
        let mut run = host.command(&self.xenflow);
        run.arg("cluster").args(command).args([
            "--no-systemd",
            "--timeout",
            "30",
            "--address",
            &self.address,
        ]);
        run.args(["--rundir", &shown(&self.dir), "--db-file", &shown(&self.file())]);
        run.args(["--settings", &self.settings()]).args(&self.identity);
        process::output(&mut run)?;
        Ok(())
    }

    /// Starts the server and waits until it answers.
    pub fn start(&mut self, host: &Host) -> Result<()> {
        let settings = std::fs::read_to_string(self.settings())?;
        let arguments = settings.lines().find_map(|line| line.strip_prefix(KEY));
        let arguments = arguments.with_context(|| format!("no {KEY} in {settings:?}"))?;
        let mut command = host.command("ovsdb-server");
        command.args(arguments.trim_matches('"').split(' '));
        command.args(["-vconsole:info", "-vsyslog:off", "-vfile:off"]);
        let mut server = Process::spawn(&format!("the member {}", self.name), &mut command, &self.log)?;
        let control = self.dir.join("ovsdb.ctl");
        wait_for(&format!("the member {} to answer", self.name), LIMIT, || {
            server.check()?;
            Ok(UnixStream::connect(&control).ok().map(drop))
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("the member does not run")?.kill()?;
        Ok(())
    }

    /// `xenflow cluster status`.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(&self.xenflow);
        command.args(["cluster", "status", "--json", "--settings", &self.settings()]);
        Ok(serde_json::from_str(&process::output(&mut command)?)?)
    }

    /// Copies its file as it is.
    pub fn copy(&self, to: &Path) -> Result<()> {
        std::fs::copy(self.file(), to).with_context(|| format!("cannot copy {}", self.file().display()))?;
        Ok(())
    }
}

/// A path in a setting.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}
