//! A host's systemd: the machine's own, as process 1 of its own namespaces, in a copy of the machine's root that goes
//! with the lab.
//!
//! The root is an overlay: everything of the machine is there, and what is written, removed or installed is in the lab's
//! memory. The machine's own choice of services is taken out of it, so that only what a scenario starts runs. Owns the root
//! and the process; which units there are is the scenario's.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::init::HOST;
use crate::net::{NAMESPACES, Netns};
use crate::process::{self, Process, retry, wait_for};
use crate::scenario::Lab;

const START: Duration = Duration::from_secs(20);
/// Where network namespaces are seen by units: their usual place is hidden by a `/run` of systemd's own.
const NETWORKS: &str = "run/netns";
/// Directories of the root that are systemd's own.
const FRESH: [&str; 4] = ["run", "tmp", "var", "etc/openvswitch"];
/// What of the machine's systemd starts something unasked, or is the machine's choice.
const UNASKED: [&str; 4] = [
    "etc/systemd/system",
    "etc/systemd/system.conf.d",
    "usr/lib/systemd/system-generators",
    "usr/lib/systemd/system-preset",
];
/// Makes the root the root of everything, and becomes systemd. The mounts are those of a container.
const BECOME: &str = r#"
set -e
cd "$1"
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t proc proc proc
pivot_root . media
umount -l /media
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /usr/lib/systemd/systemd --system --unit=lab.target
"#;
/// Nothing but the journal. Units bring along what they need.
const TARGET: &str = "[Unit]\nDescription=The lab's services\nRequires=systemd-journald.service\n";

/// The root of a systemd that is to be.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    upper: PathBuf,
}

impl Root {
    /// Makes the root, with `/run/host` for the machine's as everywhere in a lab.
    pub fn create(lab: &Lab) -> Result<Self> {
        let dir = lab.work().join(format!("systemd-{}", lab.next_id()));
        let root = Self { path: dir.join("root"), upper: dir.join("upper") };
        let work = dir.join("work");
        for dir in [&root.path, &root.upper, &work] {
            fs::create_dir_all(dir)?;
        }
        let options = format!("lowerdir={HOST},upperdir={},workdir={}", root.upper.display(), work.display());
        let flags = MsFlags::empty();
        mount(Some("overlay"), &root.path, Some("overlay"), flags, Some(options.as_str()))
            .context("cannot mount an overlay")?;
        for dir in FRESH {
            let at = root.path.join(dir);
            fs::create_dir_all(&at)?;
            mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("mode=755")).context(dir)?;
        }
        for dir in ["run/host", NETWORKS, "run/lock", "var/lib", "var/log", "var/tmp"] {
            fs::create_dir_all(root.path.join(dir))?;
        }
        symlink("/run", root.path.join("var/run"))?;
        root.bind(Path::new(HOST), "run/host")?;
        root.bind(Path::new("/dev"), "dev")?;
        root.clear()?;
        root.unit("lab.target", TARGET)?;
        Ok(root)
    }

    /// Takes out what would start unasked.
    fn clear(&self) -> Result<()> {
        for dir in UNASKED.map(|dir| self.path.join(dir)) {
            if dir.is_dir() {
                fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
            }
            fs::create_dir_all(&dir)?;
        }
        for entry in fs::read_dir(self.path.join("usr/lib/systemd/system"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "wants") {
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shows a directory of the lab in the root.
    pub fn bind(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.path.join(to);
        fs::create_dir_all(&to)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(from), &to, None::<&str>, flags, None::<&str>)
            .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
    }

    /// Writes a file, with the directories above it.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path.join(path);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// Writes a unit, or a drop-in, as an administrator does.
    pub fn unit(&self, name: &str, text: &str) -> Result<()> {
        self.write(&format!("etc/systemd/system/{name}"), text)
    }

    /// Everything that the root has in `/etc`, `/usr` and `/var/lib` and the machine has not; directories of which only
    /// the overlay has a copy are not among it. What is gone is there as a device (overlayfs' whiteout), so seen too.
    pub fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.upper.join("etc"), self.upper.join("usr"), self.path.join("var/lib")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
                let entry = entry?;
                let path = entry.path();
                let is_dir = entry.file_type()?.is_dir();
                let inside = path.strip_prefix(&self.upper).or_else(|_| path.strip_prefix(&self.path))?;
                if !is_dir || !Path::new(HOST).join(inside).is_dir() {
                    found.insert(inside.to_owned());
                }
                if is_dir {
                    open.push(path);
                }
            }
        }
        Ok(found)
    }

    /// Starts systemd in a network namespace and waits until it serves. Its own words are in `systemd.log`.
    pub fn start(self, lab: &Lab, ns: &Netns) -> Result<Systemd> {
        self.bind(Path::new(NAMESPACES), NETWORKS)?;
        // A group of its own, which is the root of its namespace's.
        let group = format!("/sys/fs/cgroup/{}", ns.name());
        fs::create_dir_all(&group)?;
        let enter = r#"echo $$ >"$0/cgroup.procs"; exec "$@""#;
        let mut command = ns.command("sh");
        command.args(["-c", enter, &group, "unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc"]);
        command.args(["--fork", "--kill-child", "sh", "-c", BECOME, "sh"]).arg(&self.path);
        let log = lab.results().join("systemd.log");
        let mut process = Process::spawn("systemd", &mut command, &log)?;
        let parent = process.id();
        let pid = wait_for("systemd's process", START, || {
            process.check()?;
            Ok(process::children(parent)?.first().copied())
        })?;
        let mut systemd = Systemd { process, pid, root: self };
        retry("systemd to serve", START, || {
            systemd.process.check()?;
            systemd.run("systemctl", &["is-active", "lab.target"])
        })?;
        Ok(systemd)
    }
}

/// systemd, as it runs.
#[derive(Debug)]
pub struct Systemd {
    process: Process,
    pid: u32,
    root: Root,
}

impl Systemd {
    /// Its root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// A command in all of its namespaces: as an operator of that host types it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.pid.to_string(), "--", program]);
        command
    }

    /// Runs such a command to its end; what it printed comes back.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        process::output(self.command(program).args(args))
    }

    /// Runs `systemctl`, and says what the unit's journal ends with if that fails.
    pub fn ctl(&self, verb: &str, units: &[&str]) -> Result<()> {
        self.run("systemctl", &[&[verb], units].concat()).map(drop).with_context(|| {
            let journal = self.run("journalctl", &["--no-pager", "--lines=30", "--output=cat"]);
            format!("systemctl {verb}; the journal ends: {}", journal.unwrap_or_default())
        })
    }

    /// A property of a unit, as `systemctl show` prints it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let text = self.run("systemctl", &["show", "--value", "--property", name, unit])?;
        Ok(text.trim().to_owned())
    }

    /// Lines of the journal that have these fields (`NAME=value`).
    pub fn journal(&self, fields: &[&str]) -> Result<Vec<serde_json::Value>> {
        let mut args = vec!["--no-pager", "--output=json"];
        args.extend_from_slice(fields);
        let text = self.run("journalctl", &args)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // All that it started go with it: it is their process 1. Asked to end it would first end them one by one.
        let _ = self.process.kill();
    }
}
