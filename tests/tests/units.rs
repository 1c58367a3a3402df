//! The systemd units of `xen-scripts/`, read by systemd itself: `systemd-analyze` in a root of their own, offline.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dom0_server::notify::READY_AT_LAST;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../xen-scripts");
/// The two that stay, and may be attacked.
const DAEMONS: [&str; 2] = ["xenflow-dom0.service", "xenflow-guest.service"];
/// Highest exposure, in tenths, as `systemd-analyze security` weighs it: both use the network as root.
const EXPOSURE: &str = "--threshold=25";

/// A root with systemd's own units and ours; gone when dropped.
struct Root(PathBuf);

impl Root {
    /// With each unit as `change` has it from its name and text.
    fn new(change: impl Fn(&str, String) -> String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Self(std::env::temp_dir().join(format!("xenflow-units-{}-{number}", std::process::id())));
        let units = root.0.join("etc/systemd/system");
        fs::create_dir_all(&units).unwrap();
        fs::create_dir_all(root.0.join("usr/lib/systemd")).unwrap();
        let mut copy = Command::new("cp");
        copy.args(["-r", "/usr/lib/systemd/system"]).arg(root.0.join("usr/lib/systemd"));
        assert!(copy.status().unwrap().success(), "the package systemd is needed");
        for name in names() {
            let text = change(&name, fs::read_to_string(Path::new(SCRIPTS).join(&name)).unwrap());
            for program in programs(&text) {
                let path = root.0.join(program.trim_start_matches('/'));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, "#!/bin/sh\n").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            fs::write(units.join(name), text).unwrap();
        }
        root
    }

    fn analyze(&self, arguments: &[&str], units: &[&str]) -> Output {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).arg("--no-pager").arg(format!("--root={}", self.0.display())).args(units);
        command.output().expect("systemd-analyze, of the package systemd, is needed")
    }

    /// What systemd has to say against units. It warns of a key that it does not know, and succeeds.
    fn complaints(&self, units: &[&str]) -> String {
        let output = self.analyze(&["verify", "--man=no"], units);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success() || !said.is_empty(), "{}", output.status);
        said
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn names() -> BTreeSet<String> {
    let files = fs::read_dir(SCRIPTS).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    files.filter(|name| name.ends_with(".service") || name.ends_with(".timer")).collect()
}

/// What a unit runs.
fn programs(unit: &str) -> Vec<&str> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("Exec")?.split_once('='));
    lines
        .filter_map(|(_, command)| command.split_whitespace().next())
        .map(|program| program.trim_start_matches(['+', '-', '!', '@', ':']))
        .collect()
}

#[test]
fn systemd_loads_every_unit_without_a_warning() {
    let root = Root::new(|_, text| text);
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(DAEMONS.iter().all(|daemon| names.contains(daemon)), "{names:?}");
    assert_eq!(root.complaints(&names), "");
}

#[test]
fn systemd_waits_for_the_host_daemon_and_watches_it() {
    let unit = fs::read_to_string(Path::new(SCRIPTS).join("xenflow-dom0.service")).unwrap();
    let value = |key: &str| {
        let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.next().unwrap_or_else(|| panic!("no {key}"))
    };
    assert_eq!((value("Type"), value("NotifyAccess")), ("notify", "main"));
    assert_eq!((value("Restart"), value("StartLimitIntervalSec")), ("always", "0"), "it is never given up");
    // A host without a switch is ready before systemd loses patience, which is its default's 90 s.
    assert!(!unit.contains("TimeoutStartSec") && READY_AT_LAST < Duration::from_secs(60));
    // The loop turns every second, and a busy host may be slow: the watchdog is patient with that, but no more.
    let watchdog: u64 = value("WatchdogSec").strip_suffix('s').unwrap().parse().unwrap();
    assert!((10..=60).contains(&watchdog), "{watchdog}");
    for before in ["ovsdb-server.service", "ovs-vswitchd.service"] {
        assert!(value("After").split(' ').any(|unit| unit == before), "{before}");
    }
}

#[test]
fn what_systemd_would_not_do_is_seen() {
    for (from, to, why) in [
        ("ProtectHome=yes", "ProtectHomes=yes", "Unknown key 'ProtectHomes' in section [Service]"),
        ("Restart=always", "Restart=allways", "Failed to parse service restart specifier"),
        ("ExecStart=/usr/bin/", "ExecStart=usr/bin/", "Neither a valid executable name nor an absolute path"),
        ("SystemCallFilter=@system-service", "SystemCallFilter=@system-servicing", "@system-servicing"),
    ] {
        let root = Root::new(|_, text| text.replace(from, to));
        for daemon in DAEMONS {
            let said = root.complaints(&[daemon]);
            assert!(said.contains(why) && said.contains(daemon), "{daemon} with {to}: {said:?}");
        }
    }
    // The programs are those of the units, and looked for.
    let root = Root::new(|_, text| text);
    for (daemon, program) in DAEMONS.into_iter().zip(["xenflow-dom0", "xenflow-guest"]) {
        fs::remove_file(root.0.join("usr/bin").join(program)).unwrap();
        let said = root.complaints(&[daemon]);
        assert!(said.contains(&format!("Command /usr/bin/{program} is not executable")), "{said:?}");
    }
}

#[test]
fn the_daemons_are_confined() {
    let exposed = |root: &Root, daemon| {
        let output = root.analyze(&["security", "--offline=true", EXPOSURE], &[daemon]);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains("Overall exposure level"), "{daemon}: {said}");
        (!output.status.success(), said)
    };
    let root = Root::new(|_, text| text);
    for daemon in DAEMONS {
        let (is_exposed, said) = exposed(&root, daemon);
        assert!(!is_exposed, "{daemon}: {said}");
    }
    // Without one of its walls a daemon is over the threshold.
    let root = Root::new(|_, text| text.replace("CapabilityBoundingSet=CAP_NET_ADMIN\n", ""));
    for daemon in DAEMONS {
        assert!(exposed(&root, daemon).0, "{daemon} may do anything, and that is not seen");
    }
}
