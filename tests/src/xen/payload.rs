//! What Xen hosts are given by a run, on a disk of their own: the product as `xen-scripts/install` puts it in place, settings,
//! certificates, keys of ssh, and the router's VM.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{DATABASE, Parts};
use crate::process;
use crate::vms::Stage;
use crate::vms::guest::{NAME, NICS};
use crate::vms::site::{HOSTS, Site};

const BEGIN: &str = include_str!("begin.sh");
/// Where hosts find it.
pub(super) const AT: &str = "/lab";
/// Modules that a network card of Xen's takes.
const MODULES: [&str; 1] = ["xen-netfront"];
/// A third of what a guest's move takes, where all is translated, is this; and it is the quickest there.
const SSH_CLIENT: &str = "Ciphers aes128-gcm@openssh.com\n";
const SSH_SERVER: &str = "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n";
/// Seconds for which a guest waits for its ports: a host that is translated is slow to plug them in.
pub(super) const READY_S: u32 = 120;
/// Settings of the transport.
pub(super) const TRANSPORT: &str = "etc/default/xenflow";

/// See the module.
#[derive(Debug)]
pub(super) struct Payload {
    /// The disk.
    pub(super) disk: PathBuf,
    /// A key that hosts let in.
    pub(super) key: PathBuf,
    /// The hosts' own, as ssh keeps them.
    pub(super) known: PathBuf,
}

impl Payload {
    /// Makes it.
    pub(super) fn build(parts: &Parts, site: &Site, stage: &Stage) -> Result<Self> {
        let root = stage.work().join("payload");
        install(parts, &root.join("common"), stage.work())?;
        let (key, known) = ssh(&root.join("common"), stage.work())?;
        put(&root, &format!("common/{TRANSPORT}"), &format!("XENFLOW_READY_S={READY_S}\n"))?;
        put(&root, "begin", BEGIN)?;
        std::fs::set_permissions(root.join("begin"), std::fs::Permissions::from_mode(0o755))?;
        let pki = Path::new("/etc/xenflow/pki");
        for (name, address) in ["a", "b"].into_iter().zip(HOSTS) {
            let settings = site.settings(name, pki, DATABASE)?;
            let migration = format!(
                "log = \"debug\"\n[migration]\nlisten = \"{address}:6642\"\n[migration.toolstack]\nhosts = {{ a = \"{}\", b = \"{}\" }}\n\
                 [migration.toolstack.xl]\ntransport = \"xl-migrate-transport\"\n",
                HOSTS[0], HOSTS[1]
            );
            put(&root, &format!("{name}/etc/xenflow/dom0.toml"), &format!("{settings}{migration}"))?;
            for file in ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")] {
                let text = std::fs::read_to_string(site.pki().join(&file))?;
                put(&root, &format!("{name}/etc/xenflow/pki/{file}"), &text)?;
            }
        }
        let images = site.images(&parts.image.join("guest"), &MODULES)?;
        put(&root, "guest/r1.cfg", &domain("vif-xenflow", |_| "br-xf".to_owned()))?;
        put(&root, "guest/stock.cfg", &domain("vif-openvswitch", |nic| format!("br-{nic}")))?;
        std::fs::copy(&images.kernel, root.join("guest/kernel"))?;
        std::fs::copy(&images.initramfs, root.join("guest/initramfs"))?;

        let disk = stage.work().join("payload.ext4");
        let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
        mkfs.args(["-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal", "-d"]).arg(&root);
        process::output(mkfs.arg(&disk).arg("192M"))?;
        Ok(Self { disk, key, known })
    }
}

/// Writes a file below `root`, its folders as well.
fn put(root: &Path, path: &str, text: &str) -> Result<PathBuf> {
    let file = root.join(path);
    std::fs::create_dir_all(file.parent().context("a file lies nowhere")?)?;
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// As users do, below `root`; but without symbols, for reading takes long where all is translated.
fn install(parts: &Parts, root: &Path, work: &Path) -> Result<()> {
    let programs = work.join("programs");
    std::fs::create_dir(&programs)?;
    std::fs::create_dir_all(root)?;
    for program in [&parts.product.dom0, &parts.product.xenflow, &parts.product.guest] {
        let name = program.file_name().context("a program has no name")?;
        process::output(Command::new("strip").arg("-o").arg(programs.join(name)).arg(program))?;
    }
    let mut install = Command::new(parts.scripts.join("install"));
    process::output(install.arg("--root").arg(root).arg("--programs").arg(programs))?;
    Ok(())
}

/// One key for all: the hosts' own, and that which they let in. Where it is, and what ssh knows of the hosts.
fn ssh(root: &Path, work: &Path) -> Result<(PathBuf, PathBuf)> {
    let key = work.join("ssh-key");
    process::output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    let (secret, public) =
        (std::fs::read_to_string(&key)?, std::fs::read_to_string(work.join("ssh-key.pub"))?);
    let known = format!("10.99.0.* {public}");
    for (path, text) in [
        ("etc/ssh/ssh_host_ed25519_key", &secret),
        ("etc/ssh/sshd_config.d/lab.conf", &SSH_SERVER.to_owned()),
        ("root/.ssh/id_ed25519", &secret),
        ("root/.ssh/authorized_keys", &public),
        ("root/.ssh/known_hosts", &known),
        ("root/.ssh/config", &SSH_CLIENT.to_owned()),
    ] {
        let file = put(root, path, text)?;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?;
    }
    let file = work.join("ssh-known");
    std::fs::write(&file, known)?;
    Ok((key, file))
}

/// What xl is told of the VM, its cards plugged in by that script. It must be PVH: Debian's Xen moves no other live.
fn domain(script: &str, bridge: impl Fn(&str) -> String) -> String {
    let vifs = NICS.map(|(nic, mac)| {
        format!("\"script={script},bridge={},vifname={NAME}-{nic},mac={mac}\"", bridge(nic))
    });
    format!(
        "name = \"{NAME}\"\ntype = \"pvh\"\nkernel = \"{AT}/guest/kernel\"\nramdisk = \"{AT}/guest/initramfs\"\n\
         extra = \"console=hvc0 quiet panic=-1 mitigations=off\"\nmemory = 128\nvcpus = 1\ntsc_mode = \"native\"\n\
         vif = [ {} ]\n",
        vifs.join(", ")
    )
}
