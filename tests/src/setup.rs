//! Makes a fresh Debian machine ready: packages by apt, then the product's programs by cargo.
//!
//! Says on standard error what it is going to do before it does it, installs only what is missing, and leaves no
//! service running. With everything in place it costs milliseconds (packages) and a look by cargo (programs).

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::job::Product;
use crate::process::{describe, output_with_input};
use crate::progress::say;

pub(crate) mod dom0;
mod fetch;
pub mod frr;
pub(crate) mod kernel;
pub mod ovn;

/// Packages, each with a file that is there if and only if it is installed.
const PACKAGES: &[(&str, &str)] = &[
    ("user-mode-linux", "/usr/bin/linux.uml"),
    ("openvswitch-switch", "/usr/sbin/ovs-vswitchd"),
    ("openvswitch-common", "/usr/bin/ovs-ofctl"),
    ("frr", "/usr/lib/frr/zebra"),
    ("iproute2", "/usr/bin/ip"),
    ("iputils-ping", "/usr/bin/ping"),
    ("iperf3", "/usr/bin/iperf3"),
    ("tcpdump", "/usr/bin/tcpdump"),
    ("kmod", "/usr/bin/kmod"),
    ("procps", "/usr/bin/ps"),
    ("systemd", "/usr/bin/systemd-analyze"),
    ("util-linux", "/usr/bin/setpriv"),
    ("gcc", "/usr/bin/gcc"),
    ("libc6-dev", "/usr/lib/x86_64-linux-gnu/libc.a"),
];
/// The same for virtual machines.
pub const VM_PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("busybox-static", "/bin/busybox"),
    ("bird2", "/usr/sbin/bird"),
    ("ethtool", "/usr/sbin/ethtool"),
];
/// And for libvirt.
pub const LIBVIRT_PACKAGES: &[(&str, &str)] = &[
    ("libvirt-daemon", "/usr/sbin/libvirtd"),
    (
        "libvirt-daemon-driver-qemu",
        "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
    ),
    ("libvirt-clients", "/usr/bin/virsh"),
];
/// And for hosts with Xen.
pub const XEN_PACKAGES: &[(&str, &str)] = &[
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("e2fsprogs", "/usr/sbin/mkfs.ext4"),
    ("openssh-client", "/usr/bin/ssh"),
    ("binutils", "/usr/bin/strip"),
];
/// The guest client is built for this, to be static.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Variables in which `cargo run` tells a program what it was built from, by how they begin.
const OF_THE_CALLER: [&str; 4] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_"];
/// How many mappings a process may have.
const MAX_MAPPINGS: &str = "/proc/sys/vm/max_map_count";
/// Asked by every Debian package before it starts a service; 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The project's top folder.
pub fn workspace() -> Result<PathBuf> {
    // Set by `cargo run`; a binary started by hand falls back to where it was built.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest = PathBuf::from(manifest);
    let top = manifest.parent().with_context(|| format!("{} has no parent", manifest.display()))?;
    ensure!(top.join("Cargo.toml").is_file(), "{} is not the project's folder", top.display());
    Ok(top.to_owned())
}

/// The cargo that runs us, in the project's folder.
pub fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    // What `cargo run` says of the lab's own package. Build scripts watch it (ring's does): with it, all that depends on
    // them would be built anew whenever the caller changes.
    for (name, _) in std::env::vars_os() {
        if OF_THE_CALLER.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Installs what is missing.
pub fn packages() -> Result<()> {
    install(PACKAGES)
}

/// Installs what is missing of these: packages, each with a file that is there if and only if it is installed.
pub fn install(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let root = nix::unistd::geteuid().is_root();
    let by_hand = format!("sudo apt-get install --no-install-recommends {list}");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("these Debian packages are missing, and this machine has no apt-get: {list}");
    }
    if !root && !Path::new("/usr/bin/sudo").exists() {
        bail!("these Debian packages are missing, and there is no sudo; as root: apt-get install {list}");
    }
    say(format!(
        "lab: installing with apt{}, and starting no service: {list}",
        if root { "" } else { " through sudo" }
    ));
    let policy = Policy::forbid(root)?;
    let install = || {
        let mut args = vec!["install", "--yes", "--no-install-recommends"];
        args.extend(&missing);
        apt(root, &args)
    };
    let update = || apt(root, &["update"]);
    // Images come without lists; lists that are there may still be too old, which only a failure tells.
    let done = if has_lists() {
        install().or_else(|_| {
            say("lab: that failed, perhaps for old package lists; updating them and trying again");
            update().and_then(|()| install())
        })
    } else {
        update().and_then(|()| install())
    };
    drop(policy);
    done.with_context(|| format!("could not install the packages; try `{by_hand}` and run this again"))?;
    for (package, file) in packages {
        ensure!(Path::new(file).exists(), "package {package} is installed, but {file} is not there");
    }
    Ok(())
}

/// Whether apt has any list of packages.
fn has_lists() -> bool {
    std::fs::read_dir("/var/lib/apt/lists")
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn apt(root: bool, args: &[&str]) -> Result<()> {
    let mut command = privileged(root, "env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]).args(args);
    run(&mut command)
}

/// Lets a process of this machine have a mapping for each page of a lab of so much memory. User-Mode Linux maps the memory
/// of its processes piece by piece, and kills the one that gets no more of them: at 65,530, the kernel's default, that
/// may be one of 256 MiB. The setting stays until the machine boots.
pub fn mappings(memory_mib: u32) -> Result<()> {
    let wanted = u64::from(memory_mib) * (1 << 20) / 4096;
    let has = std::fs::read_to_string(MAX_MAPPINGS).with_context(|| format!("cannot read {MAX_MAPPINGS}"))?;
    let has: u64 = has.trim().parse().with_context(|| format!("{MAX_MAPPINGS} says {has:?}"))?;
    if has >= wanted {
        return Ok(());
    }
    let setting = format!("vm.max_map_count={wanted}");
    say(format!("lab: {memory_mib} MiB need {setting} (it is {has})"));
    let root = nix::unistd::geteuid().is_root();
    run(privileged(root, "sysctl").args(["--quiet", "--write", &setting])).with_context(|| {
        format!("could not raise it; try `sysctl --write {setting}` as root and run this again")
    })
}

fn privileged(root: bool, program: &str) -> Command {
    if root {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// A `policy-rc.d` that forbids services, while it lives; what was there before comes back.
struct Policy {
    root: bool,
    before: Option<Vec<u8>>,
}

impl Policy {
    fn forbid(root: bool) -> Result<Self> {
        let before = std::fs::read(POLICY).ok();
        Self::write(root, b"#!/bin/sh\nexit 101\n")?;
        Ok(Self { root, before })
    }

    fn write(root: bool, text: &[u8]) -> Result<()> {
        if root {
            let mut file = std::fs::File::create(POLICY).with_context(|| format!("cannot write {POLICY}"))?;
            file.write_all(text)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
            return Ok(());
        }
        let text = String::from_utf8_lossy(text).into_owned();
        output_with_input(
            privileged(false, "sh").args(["-c", &format!("cat > {POLICY} && chmod 755 {POLICY}")]),
            &text,
        )?;
        Ok(())
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let restored = match &self.before {
            Some(text) => Self::write(self.root, text),
            None => run(privileged(self.root, "rm").args(["-f", POLICY])),
        };
        if let Err(error) = restored {
            say(format!("lab: could not restore {POLICY}: {error:#}"));
        }
    }
}

/// How the host's programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// With the checks of a debug build: to see that they are right.
    Checked,
    /// As users install them: to see how fast they are.
    Released,
}

impl Build {
    /// The profile, and its folder of the target directory.
    pub(crate) const fn profile(self) -> &'static str {
        match self {
            Self::Checked => "lab",
            Self::Released => "release",
        }
    }
}

/// Builds the product's programs and says where they are.
pub fn product(build: Build) -> Result<Product> {
    say("lab: building the host daemon and the command line");
    // Of the whole workspace: with the features that everything else has been built with.
    let bins = ["--workspace", "--bin", "xenflow-dom0", "--bin", "xenflow"];
    run(cargo()?.args(["build", "--quiet", "--profile", build.profile()]).args(bins))?;
    say("lab: building the static guest client");
    run(cargo()?
        .args(["build", "--quiet", "--profile", "guest", "--target", GUEST_TARGET])
        .args(["-p", "xenflow-guest-client", "--bins"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let target = target_dir()?;
    // One scenario needs it, and fails without it.
    if let Err(error) = frr::unpack(&target) {
        say(format!("lab: {error:#}"));
    }
    let product = Product {
        dom0: target.join(build.profile()).join("xenflow-dom0"),
        xenflow: target.join(build.profile()).join("xenflow"),
        guest: target.join(GUEST_TARGET).join("guest/xenflow-guest"),
    };
    for program in [&product.dom0, &product.xenflow, &product.guest] {
        ensure!(program.is_file(), "cargo built no {}", program.display());
    }
    let bytes = std::fs::metadata(&product.guest)?.len();
    say(format!("lab: the guest client is one static file of {} KiB", bytes.div_ceil(1024)));
    Ok(product)
}

/// Where cargo puts things, as cargo itself says.
fn target_dir() -> Result<PathBuf> {
    let out = cargo()?
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo metadata")?;
    let value: serde_json::Value =
        serde_json::from_slice(&out.stdout).context("cargo metadata gave no JSON")?;
    let dir = value.get("target_directory").and_then(serde_json::Value::as_str);
    Ok(PathBuf::from(dir.context("cargo metadata names no target_directory")?))
}

/// Runs a command whose output people should see; all of it goes to standard error.
pub fn run(command: &mut Command) -> Result<()> {
    let what = describe(command);
    let stderr = std::io::stderr();
    let status = command
        .stdin(Stdio::null())
        .stdout(stderr)
        .status()
        .with_context(|| format!("cannot run `{what}`"))?;
    ensure!(status.success(), "`{what}` ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_of_the_package_that_calls_it() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "cargo has set none: this test shows nothing");
        let command = cargo().unwrap();
        let removed = |name: &str| command.get_envs().any(|(key, value)| key == name && value.is_none());
        assert!(removed("CARGO_PKG_NAME") && removed("CARGO_MANIFEST_DIR"));
        assert!(!removed("CARGO_HOME") && !removed("CARGO_INCREMENTAL"));
    }
}
