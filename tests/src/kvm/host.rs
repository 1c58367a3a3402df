//! A node with libvirt, our hook in place; and the VM as libvirt has it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::job::Product;
use crate::process::{self, Process, retry};
use crate::vms::guest::{Images, NAME, NICS};
use crate::vms::node::Node;

/// Modules that a network card takes, in the order in which they are loaded.
pub(super) const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
const LIMIT: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct Host {
    // Dropped from top to bottom.
    libvirt: Option<Process>,
    /// What it runs on.
    pub(super) node: Node,
}

impl Host {
    /// Where libvirt does not run yet.
    pub(super) const fn new(node: Node) -> Self {
        Self { libvirt: None, node }
    }

    /// Starts it, reached by others at this address, with our hook, which finds our programs.
    pub(super) fn start(&mut self, address: &str, hook: &Path, product: &Product) -> Result<()> {
        let uuid = format!("{0}{0}{0}{0}-{0}{0}-4{1}-8{1}-{0}{0}{0}{0}{0}{0}", "a1", "a1a");
        let uuid = if self.node.name() == "b" { uuid.replace('a', "b") } else { uuid };
        self.node.machine.write(
            "libvirt/libvirtd.conf",
            &format!(
                "host_uuid = \"{uuid}\"\nlisten_tls = 0\nlisten_tcp = 1\nlisten_addr = \"{address}\"\nauth_tcp = \"none\"\n\
                 auth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0700\"\nlog_outputs = \"3:stderr\"\n"
            ),
        )?;
        self.node.machine.write(
            "libvirt/qemu.conf",
            &format!(
                "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nsecurity_driver = \"none\"\n\
                 namespaces = [ ]\nstdio_handler = \"file\"\nmigration_address = \"{address}\"\nmigration_host = \"{address}\"\n"
            ),
        )?;
        // libvirt looks for it once, when it starts.
        let installed = self.node.machine.dir().join("etc/libvirt/hooks/qemu");
        process::output(Command::new("install").args(["--mode", "755"]).args([hook, &installed]))?;
        let programs = product.xenflow.parent().context("the product is nowhere")?.display().to_string();
        let path = format!("{programs}:/usr/sbin:/usr/bin:/sbin:/bin");
        self.libvirt = Some(self.node.spawn("libvirtd", |command| {
            command.arg("--listen").env("PATH", path);
        })?);
        Ok(())
    }

    /// Runs `virsh` with this node's libvirt, once that answers.
    pub(super) fn virsh(&self, words: &[&str]) -> Result<String> {
        process::output(self.virsh_command().args(words))
    }

    /// The same, to be added to.
    pub(super) fn virsh_command(&self) -> Command {
        let mut command = self.node.machine.command("virsh");
        command.args(["--quiet", "--connect", "qemu:///system"]);
        command
    }

    /// Waits until libvirt answers.
    pub(super) fn wait_libvirt(&self) -> Result<()> {
        retry("libvirt", LIMIT, || self.virsh(&["list"])).map(drop)
    }
}

/// What libvirt is told of the VM; what its console says goes to `console`. Nothing is accelerated, and what packets are without their
/// checksums nobody in user space could tell.
pub(super) fn domain(images: &Images, console: &Path) -> String {
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
        images.kernel.display(),
        images.initramfs.display(),
        nics.collect::<String>(),
        console.display()
    )
}
