//! A real Xen host: QEMU that translates, Xen, and Debian as its first domain.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::payload::Payload;
use crate::process::{Process, wait_for};
use crate::vms::machine::Machine;

/// What is at the host's end of its cards, in this order: the hosts' own network, the trunk, and plain ones for the comparison.
const BRIDGES: [&str; 4] = ["mgmt", "br0", "lan", "core"];
/// Switched off at the cards: some of what is between the hosts is in user space, where nobody would write checksums.
const PLAIN: &str = "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
                     host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";
/// Xen crashes with `smap` where QEMU translates; without `eager-fpu` registers change by themselves there, and with more than one
/// processor all is slower.
const CPU: &str = "max,-smap,-rdtscp";
const XEN: &str = "com1=115200,8n1 console=com1 dom0_mem=1024M,max:1024M noreboot spec-ctrl=no,eager-fpu=1";
const LINUX: &str = "root=/dev/vda rw console=hvc0 net.ifnames=0 mitigations=off quiet";

/// See the module.
#[derive(Debug)]
pub(super) struct Dom0 {
    qemu: Process,
    /// Its name for XenFlow.
    pub(super) name: &'static str,
    /// In the hosts' own network.
    pub(super) address: &'static str,
    console: std::path::PathBuf,
}

impl Dom0 {
    /// Boots one on that machine, which has [`BRIDGES`].
    pub(super) fn start(
        [name, address]: [&'static str; 2],
        on: &Machine,
        image: &Path,
        payload: &Payload,
        logs: &Path,
    ) -> Result<Self> {
        let console = logs.join(format!("{name}-console.log"));
        let file = |name: &str| image.join(name).display().to_string();
        let mut qemu: Command = on.command("qemu-system-x86_64");
        qemu.args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            "q35",
            "-m",
            "2048",
            "-smp",
            "1",
        ]);
        qemu.args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.args(["-kernel", &file("xen.elf"), "-append", &format!("xen.elf {XEN}"), "-initrd"]);
        qemu.arg(format!(
            "{} {LINUX} lab.name={name} lab.address={address},{}",
            file("vmlinuz"),
            file("initrd.img")
        ));
        for (id, disk, how) in [
            // What it writes is gone with it.
            ("root", file("dom0.ext4"), "snapshot=on,cache=unsafe"),
            ("lab", payload.disk.display().to_string(), "readonly=on"),
        ] {
            qemu.arg("-drive").arg(format!("file={disk},format=raw,if=none,id={id},{how}"));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive={id}"));
        }
        for (number, bridge) in BRIDGES.iter().enumerate() {
            let tap = format!("{name}-{bridge}");
            on.run("ip", &["tuntap", "add", "dev", &tap, "mode", "tap"])?;
            on.ip(&format!("link set dev {tap} mtu 1504 master {bridge} up\n"))?;
            // Ends with the letter that is the host's name.
            let mac = format!("52:54:00:99:{number:02x}:{:02x}", name.as_bytes().first().unwrap_or(&0));
            qemu.arg("-netdev").arg(format!("tap,id={bridge},ifname={tap},script=no,downscript=no"));
            qemu.arg("-device").arg(format!("virtio-net-pci,netdev={bridge},mac={mac},{PLAIN}"));
        }
        let qemu =
            Process::spawn(&format!("Xen host {name}"), &mut qemu, &logs.join(format!("{name}-qemu.log")))?;
        Ok(Self { qemu, name, address, console })
    }

    /// Waits until the lab's part of its start is done.
    pub(super) fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        wait_for(&format!("the start of Xen host {}", self.name), limit, || {
            self.qemu.check()?;
            let said =
                String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned();
            ensure!(!said.contains("Failed to start lab.service"), "its start failed: see its console");
            Ok(said.lines().any(|line| line.trim_end() == "LAB-READY").then_some(()))
        })
    }

    /// A command that will run a line there: by ssh from that machine, with the lab's key. Connections are kept, for each costs a second.
    pub(super) fn command(&self, from: &Machine, payload: &Payload, line: &str) -> Command {
        let mut ssh = from.command("ssh");
        ssh.arg("-i")
            .arg(&payload.key)
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", payload.known.display()));
        for option in [
            "LogLevel=ERROR",
            "ConnectTimeout=60",
            "BatchMode=yes",
            "ControlMaster=auto",
            "ControlPersist=yes",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args([
            "-o",
            &format!("ControlPath=/run/ssh-{}", self.name),
            &format!("root@{}", self.address),
            line,
        ]);
        ssh
    }
}
