//! The router's VM: a kernel of Debian's, and an initramfs with busybox, BIRD and the static client. It has no disk.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// Its name for libvirt and for XenFlow.
pub(super) const NAME: &str = "r1";
/// Its interfaces: name in the guest and MAC address.
pub(super) const NICS: [(&str, &str); 3] =
    [("lan", "52:54:00:01:00:01"), ("core", "52:54:00:01:00:02"), ("ctl", "52:54:00:01:00:03")];
/// Modules of the kernel that a network card takes, in the order in which they are loaded.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Process 1: @LOAD@ and @NICS@ are made of what is above.
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

/// OSPF on the segment with the neighbor; what is behind the client's is told as well.
const BIRD: &str = r#"
log stderr all;
router id 10.2.0.1;
protocol device { }
protocol kernel { ipv4 { export all; }; }
protocol ospf v2 {
    ipv4 { export none; };
    area 0 {
        interface "core" { type ptp; hello 2; dead 10; };
        interface "lan" { stub; };
    };
}
"#;

/// What a VM is booted with.
#[derive(Debug)]
pub(super) struct Images {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Images {
    /// Makes the initramfs in `work`; `unpacked` has the kernel's package, `identity` are the files of `/etc/xenflow`.
    pub(super) fn build(
        unpacked: &Path,
        client: &Path,
        identity: &[(&str, PathBuf)],
        work: &Path,
    ) -> Result<Self> {
        let root = work.join("initramfs");
        for dir in ["bin", "dev", "proc", "sys", "run", "tmp", "modules", "etc/xenflow"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        let modules = find(unpacked, |name| name.ends_with(".ko"))?;
        for module in MODULES {
            let file = modules.iter().find(|path| path.file_stem().is_some_and(|stem| stem == module));
            let file = file.with_context(|| format!("the kernel's package has no module {module}"))?;
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
        std::fs::write(root.join("etc/bird.conf"), BIRD)?;
        let nics = NICS.map(|(name, mac)| format!("    {mac}) ip link set ${{nic##*/}} name {name} ;;"));
        let init = INIT.replace("@LOAD@", &MODULES.join(" ")).replace("@NICS@", &nics.join("\n"));
        std::fs::write(root.join("init"), init)?;
        std::fs::set_permissions(root.join("init"), Permissions::from_mode(0o755))?;
        let initramfs = work.join("initramfs.cpio");
        let pack = format!("find . | busybox cpio -o -H newc >{}", initramfs.display());
        process::output(Command::new("sh").args(["-c", &pack]).current_dir(&root))?;
        let kernels = find(unpacked, |name| name.starts_with("vmlinuz-"))?;
        let kernel = kernels.into_iter().next().context("the kernel's package has no kernel")?;
        Ok(Self { kernel, initramfs })
    }

    /// Its description for libvirt; what its console says goes to `console`. Nothing is accelerated, and what packets are without their
    /// checksums nobody in user space could tell.
    pub(super) fn domain(&self, console: &Path) -> String {
        let nics = NICS.iter().map(|(_, mac)| {
            format!(
                "<interface type='bridge'><mac address='{mac}'/><source bridge='br-xf'/><virtualport type='openvswitch'/>\
                 <model type='virtio'/><rom enabled='no'/><driver><host csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off' \
                 mrg_rxbuf='off'/><guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/></driver></interface>\n"
            )
        });
        format!(
            "<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>160</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 quiet panic=-1 tsc=unstable</cmdline></os><features><acpi/></features>\
             <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu><on_crash>destroy</on_crash>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{}\
             <serial type='file'><source path='{}' append='on'/></serial>\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
            self.kernel.display(),
            self.initramfs.display(),
            nics.collect::<String>(),
            console.display()
        )
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
