//! A machine of namespaces: mounts, network, host name and processes of its own, in folders of the lab's.
//!
//! What distinguishes it from a network namespace is that programs which know one place for their files (libvirt's, Open vSwitch's, the
//! product's own defaults) can run several times. Its process 1 is ended with the lab, however that ends, and everything in it goes
//! then: processes, mounts, interfaces.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, Process, children, wait_for};

/// For a machine to be there, or to be gone.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs as process 1, with the machine's name and folder. A `/sys` of its own shows its interfaces; the old one is taken away first,
/// for libvirt reads of control groups in the list of mounts. Debian's libvirt wants its user to be there before it reads its settings.
/// The loop collects what daemons leave behind.
const FIRST: &str = r#"
set -e
mount --make-rprivate /
umount --recursive --lazy /sys
mount -t sysfs sysfs /sys
hostname "$1"
cd "$2"
mkdir run lib log cache
cp --archive /etc etc
grep --quiet ^libvirt-qemu: etc/passwd || echo libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin >>etc/passwd
grep --quiet ^libvirt-qemu: etc/group || echo libvirt-qemu:x:64055: >>etc/group
grep --quiet ^kvm: etc/group || echo kvm:x:64056: >>etc/group
mkdir -p etc/libvirt/hooks etc/xenflow run/lock run/openvswitch log/openvswitch log/libvirt/qemu lib/libvirt cache/libvirt
mount --bind etc /etc
mount --bind lib /var/lib
mount --bind log /var/log
mount --bind cache /var/cache
mount --bind run /run
ip link set lo up
sysctl --quiet --write net.ipv4.conf.all.arp_ignore=1 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
touch "$2/ready"
while :; do sleep 3600 & wait $!; done
"#;

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    dir: PathBuf,
    /// `unshare`, whose child is process 1.
    outside: Process,
    first: u32,
}

impl Machine {
    /// Makes several at once, in folders of that one.
    pub(crate) fn create<const N: usize>(names: [&str; N], work: &Path, logs: &Path) -> Result<[Self; N]> {
        let begun: Vec<(PathBuf, Process)> = names
            .iter()
            .map(|name| {
                let dir = work.join(name);
                std::fs::create_dir(&dir)?;
                let mut command = Command::new("setpriv");
                command.args([
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--mount",
                    "--net",
                    "--uts",
                    "--pid",
                    "--fork",
                ]);
                command.args(["--mount-proc", "--kill-child", "bash", "-c", FIRST, "first", name]).arg(&dir);
                let outside = Process::spawn(
                    &format!("machine {name}"),
                    &mut command,
                    &logs.join(format!("{name}-first.log")),
                )?;
                Ok((dir, outside))
            })
            .collect::<Result<_>>()?;
        let all = names.iter().zip(begun).map(|(name, (dir, mut outside))| {
            let ready = dir.join("ready");
            wait_for(&format!("machine {name}"), LIMIT, || {
                outside.check()?;
                Ok(ready.exists().then_some(()))
            })?;
            let first = children(outside.id())?.first().copied().context("unshare has no child")?;
            Ok(Self { name: (*name).to_owned(), dir, outside, first })
        });
        let all: Vec<Self> = all.collect::<Result<_>>()?;
        all.try_into().map_err(|_| anyhow::anyhow!("not as many machines as names"))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its folder: `etc`, `run`, `lib`, `log` and `cache` are what it has below `/` and `/var`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of its own `/etc`.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<PathBuf> {
        let file = self.dir.join("etc").join(path);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// A command that will run in it.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string(), "--mount", "--net", "--uts", "--pid", "--"])
            .arg(program);
        command
    }

    /// Runs a program in it to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        process::output(self.command(program).args(arguments))
    }

    /// Runs several `ip` commands, one a line.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        process::output_with_input(self.command("ip").args(["-batch", "-"]), lines)
            .with_context(|| format!("in the batch {lines:?}"))?;
        Ok(())
    }

    /// Wires an interface of this machine to one of another; both are down.
    pub(crate) fn wire(&self, own: &str, other: &Self, peer: &str) -> Result<()> {
        let there = other.first.to_string();
        // Seen from outside, where both have numbers.
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string(), "--net", "--"]);
        command
            .args(["ip", "link", "add", "name", own, "type", "veth", "peer", "name", peer, "netns", &there]);
        process::output(&mut command)?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // unshare takes no SIGTERM. The kernel ends process 1 with it, and all others with that.
        let _ = self.outside.kill();
        let first = PathBuf::from(format!("/proc/{}", self.first));
        let _ = wait_for("the end of a machine", LIMIT, || Ok((!first.exists()).then_some(())));
    }
}
