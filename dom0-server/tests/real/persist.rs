//! `xenflow init --persist` with Debian's own start script of Open vSwitch, its files in a private directory: what the
//! script opens after a restart, with the settings as `ovsdb-server.service` hands them to it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Dir, ok, run};

/// Open vSwitch of Debian without `ovs-vswitchd`, and its `/etc/default/openvswitch-switch`.
struct Debian {
    dir: Dir,
}

impl Debian {
    fn new() -> Self {
        let dir = Dir::new();
        for name in ["openvswitch", "run", "log"] {
            fs::create_dir(dir.0.join(name)).unwrap();
        }
        fs::write(dir.0.join("defaults"), "# OVS_CTL_OPTS=\nOVS_CTL_OPTS='--system-type=mine'\n").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    /// `ExecStart` or `ExecStop` of the unit, with its `EnvironmentFile`.
    fn ovs_ctl(&self, words: &str) {
        let script =
            format!(". \"$0\"; exec /usr/share/openvswitch/scripts/ovs-ctl --no-ovs-vswitchd {words}");
        // To a file: the server keeps what it inherits.
        let log = fs::File::options().create(true).append(true).open(self.path("log/ctl")).unwrap();
        let status = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(self.path("defaults"))
            .env("OVS_SYSCONFDIR", &self.dir.0)
            .env("OVS_RUNDIR", self.path("run"))
            .env("OVS_LOGDIR", self.path("log"))
            .env_remove("OVS_DBDIR")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status()
            .unwrap();
        let said = fs::read_to_string(self.path("log/ctl")).unwrap();
        assert!(status.success(), "openvswitch-switch is needed: {said}");
    }

    fn start(&self) {
        self.ovs_ctl("--no-monitor --system-id=random --no-record-hostname start $OVS_CTL_OPTS");
    }

    fn restart(&self) {
        let before = self.pid().unwrap();
        self.ovs_ctl("stop");
        assert_eq!(self.pid(), None);
        self.start();
        assert_ne!(self.pid().unwrap(), before);
    }

    /// Of the running server.
    fn pid(&self) -> Option<String> {
        let pid = fs::read_to_string(self.path("run/ovsdb-server.pid")).ok()?;
        Some(pid.trim().to_owned())
    }

    fn db(&self) -> String {
        format!("unix:{}", self.path("run/db.sock").display())
    }

    fn xenflow(&self, line: &str) -> String {
        ok(line, run(&self.db(), line))
    }

    /// With the file of the settings and the one of the database.
    fn init(&self, more: &str) -> String {
        let (defaults, file) = (self.path("defaults"), self.path("openvswitch/xenflow.db"));
        self.xenflow(&format!("init {more} --defaults {} --db-file {}", defaults.display(), file.display()))
    }

    /// What the server serves, but for its own `_Server`.
    fn served(&self) -> Vec<String> {
        let listed = Command::new("ovsdb-client").args(["list-dbs", &self.db()]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).unwrap();
        let mut names: Vec<_> = listed.lines().filter(|name| *name != "_Server").map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let Some(pid) = self.pid() else { return };
        let _ = Command::new("kill").args(["-KILL", &pid]).status();
        // Empty once it is gone, if nobody has asked for its status yet.
        let runs = || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
        let end = Instant::now() + Duration::from_secs(10);
        while runs() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn the_database_is_served_after_a_restart_until_it_is_forgotten() {
    let debian = Debian::new();
    let before = fs::read_to_string(debian.path("defaults")).unwrap();
    debian.start();
    assert_eq!(debian.served(), ["Open_vSwitch"]);
    let said = debian.init("--persist");
    assert!(said.contains("names the database from now on"), "{said}");
    debian.xenflow("network add red");
    assert_eq!(debian.served(), ["Open_vSwitch", "XenFlow"]);

    debian.restart();
    assert_eq!(debian.served(), ["Open_vSwitch", "XenFlow"]);
    let shown = debian.xenflow("show network red --json");
    assert!(shown.contains("\"red\""), "{shown}");
    // What else the settings said still counts.
    let asked = ["--db", &debian.db(), "get", "Open_vSwitch", ".", "system_type"];
    let kind = Command::new("ovs-vsctl").args(asked).output().unwrap();
    assert_eq!(String::from_utf8(kind.stdout).unwrap().trim().trim_matches('"'), "mine");
    // Once more says nothing twice.
    let said = debian.init("--persist");
    assert!(said.contains("names the database already"), "{said}");

    let said = debian.init("--forget");
    assert!(said.contains("no longer names the database"), "{said}");
    assert_eq!(fs::read_to_string(debian.path("defaults")).unwrap(), before);
    assert_eq!(debian.served(), ["Open_vSwitch", "XenFlow"], "until the next start");
    debian.restart();
    assert_eq!(debian.served(), ["Open_vSwitch"]);
}
