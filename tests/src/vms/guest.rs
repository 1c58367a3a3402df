//! The router's VM: a kernel of Debian's, and an initramfs with busybox, BIRD and the static client. It has no disk.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Traffic;
use crate::process;

/// Its name for the toolstack and for XenFlow.
pub(crate) const NAME: &str = "r1";
/// Its interfaces: name in the guest and MAC address.
pub(crate) const NICS: [(&str, &str); 3] =
    [("lan", "52:54:00:01:00:01"), ("core", "52:54:00:01:00:02"), ("ctl", "52:54:00:01:00:03")];
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Process 1: @LOAD@, @COUNT@ and @NICS@ are made of what is above, and of what is loaded. A network card of Xen's is there some time after
/// its module.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
for module in @LOAD@; do insmod /modules/$module.ko; done
sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 net.ipv6.conf.default.accept_dad=0
ip link set lo up
until [ "$(ls -d /sys/class/net/eth* 2>/dev/null | wc -l)" = @COUNT@ ]; do sleep 0.1; done
for nic in /sys/class/net/eth*; do
    case $(cat $nic/address) in
@NICS@
    esac
done
ip address add 10.1.0.1/24 dev lan
ip address add 10.2.0.1/24 dev core
ip link set lan up
ip link set core up
ip link set ctl up
for nic in lan core ctl; do echo 0 >/proc/sys/net/ipv4/conf/$nic/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/$nic/send_redirects; done
bird -c /etc/bird.conf -s /run/bird.ctl
echo GUEST-UP
while :; do xenflow-guest run; done
"#;

/// OSPF on the segment with the neighbor; what is behind the client's is told as well. @DEAD@: [`Traffic::dead_s`].
const BIRD: &str = r#"
log stderr all;
router id 10.2.0.1;
protocol device { }
protocol kernel { ipv4 { export all; }; }
protocol ospf v2 {
    ipv4 { export none; };
    area 0 {
        interface "core" { type ptp; hello 2; dead @DEAD@; };
        interface "lan" { stub; };
    };
}
"#;

/// What a VM is booted with.
#[derive(Debug)]
pub(crate) struct Images {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// All else.
    pub(crate) initramfs: PathBuf,
}

impl Images {
    /// Makes the initramfs in `work`. Below `unpacked` are the kernel and its modules, of which network cards take `modules`, loaded in
    /// this order; `identity` are the files of `/etc/xenflow`.
    pub(crate) fn build(
        unpacked: &Path,
        modules: &[&str],
        client: &Path,
        identity: &[(&str, PathBuf)],
        traffic: Traffic,
        work: &Path,
    ) -> Result<Self> {
        let root = work.join("initramfs");
        for dir in ["bin", "dev", "proc", "sys", "run", "tmp", "modules", "etc/xenflow"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        let files = find(unpacked, |name| name.ends_with(".ko"))?;
        for module in modules {
            let file = files.iter().find(|path| path.file_stem().is_some_and(|stem| stem == *module));
            let file = file.with_context(|| format!("the kernel has no module {module}"))?;
            std::fs::copy(file, root.join("modules").join(format!("{module}.ko")))?;
        }
        for program in [Path::new("/bin/busybox"), Path::new("/usr/sbin/bird"), client] {
            let name = program.file_name().context("a program has no name")?;
            std::fs::copy(program, root.join("bin").join(name))
                .with_context(|| format!("cannot copy {}", program.display()))?;
        }
        for library in libraries(Path::new("/usr/sbin/bird"))? {
            let target = root.join(library.strip_prefix("/")?);
            std::fs::create_dir_all(target.parent().context("a library lies nowhere")?)?;
            std::fs::copy(&library, target)?;
        }
        for (name, file) in identity {
            std::fs::copy(file, root.join("etc/xenflow").join(name))?;
        }
        std::fs::write(root.join("etc/bird.conf"), BIRD.replace("@DEAD@", &traffic.dead_s.to_string()))?;
        let nics = NICS.map(|(name, mac)| format!("    {mac}) ip link set ${{nic##*/}} name {name} ;;"));
        let init = INIT
            .replace("@LOAD@", &modules.join(" "))
            .replace("@COUNT@", &nics.len().to_string())
            .replace("@NICS@", &nics.join("\n"));
        std::fs::write(root.join("init"), init)?;
        std::fs::set_permissions(root.join("init"), Permissions::from_mode(0o755))?;
        let initramfs = work.join("initramfs.cpio");
        let pack = format!("find . | busybox cpio -o -H newc >{}", initramfs.display());
        process::output(Command::new("sh").args(["-c", &pack]).current_dir(&root))?;
        let kernels = find(unpacked, |name| name.starts_with("vmlinuz-"))?;
        let kernel = kernels.into_iter().next().context("the kernel's package has no kernel")?;
        Ok(Self { kernel, initramfs })
    }
}

/// Files below a folder, by their names.
fn find(root: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.file_name().to_str().is_some_and(&is_wanted) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// What a program is linked with, and what loads it.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let said = process::output(Command::new("ldd").arg(program))?;
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let all: BTreeSet<PathBuf> = paths.map(PathBuf::from).collect();
    ensure!(all.contains(Path::new(LOADER)), "ldd says nothing of {LOADER}: {said}");
    Ok(all)
}
