//! The scripts of `xen-scripts/`: the hotplug script with a xenstore of files and a real Open vSwitch on its dummy
//! datapath, the installer in a root of its own.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../xen-scripts");
const LIMIT: Duration = Duration::from_secs(30);
/// Where libxl keeps what it knows of a vif.
const BACKEND: &str = "backend/vif/7/0";
const UUID: &str = "0f1e2d3c-0000-4000-8000-000000000007";

/// A directory, gone when dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("xenflow-scripts-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// An executable file. Another process writes it: what another test starts meanwhile would else have it open, and
    /// then it cannot be run (execve(2), ETXTBSY).
    fn program(&self, name: &str, text: &str) {
        let mut command = Command::new("install");
        command.args(["-D", "-m", "755", "/dev/stdin"]).arg(self.0.join(name)).stdin(Stdio::piped());
        let mut install = command.spawn().unwrap();
        write!(install.stdin.take().unwrap(), "#!/bin/sh\n{text}\n").unwrap();
        assert!(install.wait().unwrap().success(), "{name}");
    }

    /// Everything in it, with what each file says.
    fn listing(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let (mut all, mut open) = (BTreeMap::new(), vec![self.0.clone()]);
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                all.insert(path.clone(), path.is_file().then(|| fs::read(&path).unwrap()));
                if path.is_dir() {
                    open.push(path);
                }
            }
        }
        all
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A host with a switch, and a xenstore.
struct Host {
    dir: Dir,
    processes: Vec<Child>,
}

impl Host {
    fn start() -> Self {
        let dir = Dir::new();
        // A key is a file; a write is of pairs. Interfaces of the dummy datapath are none of the kernel's.
        dir.program("bin/xenstore-read", "cat \"$STORE/$1\" 2>/dev/null");
        dir.program(
            "bin/xenstore-ls",
            "for key in \"$STORE/$1\"/*; do printf '%s = \"%s\"\\n' \"${key##*/}\" \"$(cat \"$key\")\"; done",
        );
        dir.program(
            "bin/xenstore-write",
            "while [ $# -gt 1 ]; do mkdir -p \"$STORE/$(dirname \"$1\")\"; printf %s \"$2\" >\"$STORE/$1\"; shift 2; done",
        );
        dir.program("bin/ip", "echo \"$*\" >>\"$STORE/../ip.log\"");
        dir.program("bin/logger", "exit 0");
        let mut host = Self { dir, processes: Vec::new() };
        let mut create = Command::new("ovsdb-tool");
        create.current_dir(&host.dir.0).args([
            "create",
            "conf.db",
            "/usr/share/openvswitch/vswitch.ovsschema",
        ]);
        assert!(create.status().expect("ovsdb-tool is needed").success());
        host.spawn("ovsdb-server", &["conf.db", "--remote=punix:db.sock", "--unixctl=db.ctl"], "db.ctl");
        host.vsctl(&["--no-wait", "init"]);
        host.spawn(
            "ovs-vswitchd",
            &["unix:db.sock", "--enable-dummy=override", "--unixctl=sw.ctl"],
            "sw.ctl",
        );
        host.vsctl(&["add-br", "br-xf", "--", "set", "Bridge", "br-xf", "datapath_type=dummy"]);
        host.write("backend/vif/7/0/mac", "52:54:00:00:00:AA");
        host.write("backend/vif/7/0/bridge", "br-xf");
        host.write("backend/vif/7/0/frontend-id", "7");
        host.write("local/domain/7/vm", &format!("/vm/{UUID}"));
        host
    }

    fn spawn(&mut self, program: &str, arguments: &[&str], socket: &str) {
        let mut command = self.command(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{program} is needed: {error}"));
        self.processes.push(child);
        let end = Instant::now() + LIMIT;
        // Its file is there a little before somebody serves at it.
        while UnixStream::connect(self.dir.0.join(socket)).is_err() {
            assert!(Instant::now() < end, "{program} does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A program in the host's world.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:{}", self.dir.0.join("bin").display(), std::env::var("PATH").unwrap());
        command.current_dir(&self.dir.0).env("PATH", path).env("STORE", self.dir.0.join("store"));
        for key in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(key, &self.dir.0);
        }
        command
    }

    fn vsctl(&self, arguments: &[&str]) -> String {
        let output = self.command("ovs-vsctl").arg("--timeout=20").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn write(&self, key: &str, value: &str) {
        let path = self.dir.0.join("store").join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }

    /// A key of the vif's backend.
    fn says(&self, key: &str) -> String {
        fs::read_to_string(self.dir.0.join("store").join(BACKEND).join(key)).unwrap_or_default()
    }

    /// Calls the script as libxl does.
    fn call(&self, vif: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(&format!("{SCRIPTS}/vif-xenflow"));
        command.args(arguments).env("XENBUS_PATH", BACKEND).env("vif", vif).output().unwrap()
    }

    fn online(&self, vif: &str) {
        let output = self.call(vif, &["online", "type_if=vif"]);
        assert!(output.status.success(), "{}: {output:?}", self.says("hotplug-error"));
        assert_eq!(self.says("hotplug-status"), "connected");
    }

    fn ports(&self) -> Vec<String> {
        let mut ports: Vec<String> =
            self.vsctl(&["list-ports", "br-xf"]).lines().map(str::to_owned).collect();
        ports.sort();
        ports
    }

    fn ids(&self, port: &str) -> String {
        self.vsctl(&["get", "Interface", port, "external_ids"])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_vif_is_plugged_in_once_with_its_ids_and_taken_away() {
    let host = Host::start();
    host.write("backend/vif/7/0/mtu", "9000");
    let expected = format!(
        "{{attached-mac=\"52:54:00:00:00:aa\", iface-id=\"52:54:00:00:00:aa\", iface-status=active, vm-id=\"{UUID}\", \
         vm-uuid=\"{UUID}\"}}"
    );
    for time in ["once", "twice"] {
        host.online("vif7.0");
        assert_eq!(host.ports(), ["vif7.0"], "{time}");
        assert_eq!(host.ids("vif7.0"), expected, "{time}");
        assert_eq!(host.vsctl(&["get", "Interface", "vif7.0", "mtu"]), "9000", "the switch has set it");
    }
    assert!(fs::read_to_string(host.dir.0.join("ip.log")).unwrap().contains("set dev vif7.0 arp off"));

    // The domain was killed and its script with it; the next one's vif has another name. The old port's netdev is
    // gone, and two of one MAC address would both stay dark.
    host.online("vif8.0");
    assert_eq!(host.ports(), ["vif8.0"]);

    for time in ["once", "twice"] {
        assert!(host.call("vif8.0", &["offline", "type_if=vif"]).status.success(), "{time}");
        assert_eq!(host.ports(), [""; 0], "{time}");
    }
}

#[test]
fn the_name_of_a_vif_is_its_iface_id() {
    let host = Host::start();
    host.write("backend/vif/7/0/vifname", "r1-lan");
    // What libxl says if the configuration says nothing.
    host.write("backend/vif/7/0/bridge", "xenbr0");
    host.dir.program("bin/ip", "case \"$*\" in *show*) exit 1 ;; esac; echo \"$*\" >>\"$STORE/../ip.log\"");
    host.online("vif7.0");
    assert_eq!(host.ports(), ["r1-lan"]);
    assert!(host.ids("r1-lan").contains("iface-id=r1-lan"), "{}", host.ids("r1-lan"));
    assert!(fs::read_to_string(host.dir.0.join("ip.log")).unwrap().contains("set dev vif7.0 name r1-lan"));
    // The card that an HVM guest is given beside it has the same address.
    assert!(host.call("r1-lan-emu", &["add", "type_if=tap"]).status.success());
    assert_eq!(host.ports(), ["r1-lan"]);
    // libxl asks by the name that it knows.
    assert!(host.call("vif7.0", &["offline", "type_if=vif"]).status.success());
    assert_eq!(host.ports(), [""; 0]);
}

#[test]
fn what_ovs_vsctl_logs_of_itself_is_no_error() {
    let host = Host::start();
    let real = host.command("sh").args(["-c", "command -v ovs-vsctl"]).output().unwrap().stdout;
    let real = String::from_utf8(real).unwrap().trim().to_owned();
    // As it does on a host that is slow; standard error has it.
    host.dir.program("bin/ovs-vsctl", &format!("exec {real} --verbose=console:info \"$@\""));
    let output = host.command("ovs-vsctl").arg("--timeout=20").arg("show").output().unwrap();
    assert!(!output.stderr.is_empty(), "it logs nothing: this test shows nothing");
    host.online("vif7.0");
    assert_eq!(host.ports(), ["vif7.0"]);
}

#[test]
fn wrong_input_is_in_xenstore_with_its_value_and_rule_and_plugs_nothing() {
    let host = Host::start();
    let online = ["online", "type_if=vif"].as_slice();
    for (key, value, arguments, message) in [
        (
            "mac",
            "52:54:00:00:00",
            online,
            "mac '52:54:00:00:00': it is six pairs of hexadecimal digits with colons",
        ),
        ("mac", "", online, "mac '': it is six pairs"),
        ("mac", "53:54:00:00:00:01", online, "mac 53:54:00:00:00:01: it is a group's, not an interface's"),
        ("mac", "52:54:00:00:00:01\" x=\"", online, "it is six pairs"),
        ("bridge", "br-other", online, "bridge br-other: vifs of XenFlow are on br-xf"),
        ("mtu", "67", online, "mtu 67: it is 68 to 65535"),
        ("mtu", "1500x", online, "mtu 1500x: it is a number of bytes, 68 to 65535"),
        ("vifname", "r1\"; lan", online, "vifname r1\"; lan: only letters, digits and . _ : - may be in it"),
        ("mac", "52:54:00:00:00:01", &["onlnie"], "command 'onlnie': it is online, offline, add or remove"),
        ("mac", "52:54:00:00:00:01", &["online", "type_if=nic"], "type_if nic: it is vif or tap"),
    ] {
        let path = format!("{BACKEND}/{key}");
        let before = fs::read(host.dir.0.join("store").join(&path)).ok();
        host.write(&path, value);
        let output = host.call("vif7.0", arguments);
        assert_eq!(output.status.code(), Some(1), "{key} {value} {arguments:?}: {output:?}");
        let said = host.says("hotplug-error");
        assert!(said.starts_with("vif-xenflow: ") && said.contains(message), "{key} {value}: {said}");
        assert_eq!(host.says("hotplug-status"), "error");
        assert_eq!(host.ports(), [""; 0], "{key} {value}");
        match before {
            Some(value) => fs::write(host.dir.0.join("store").join(path), value).unwrap(),
            None => fs::remove_file(host.dir.0.join("store").join(path)).unwrap(),
        }
    }
    // What Open vSwitch says is passed on.
    host.vsctl(&["del-br", "br-xf"]);
    assert_eq!(host.call("vif7.0", online).status.code(), Some(1));
    assert!(host.says("hotplug-error").contains("no bridge named br-xf"), "{}", host.says("hotplug-error"));
}

/// What libvirt says of a guest with two interfaces, and of a third that is somebody's hostdev.
const DOMAIN: &str = "<domain type='kvm'>\n  <name>r1</name>\n  <devices>\n    <interface type='bridge'>\n      <mac address='52:54:00:00:00:AA'/>\n\
                      <source bridge='br-xf'/></interface><interface type='bridge'><mac address=\"52:54:00:00:00:ab\"/></interface>\n\
                      <hostdev><address domain='0x0000' bus='0x06'/></hostdev></devices></domain>\n";

impl Host {
    /// Calls libvirt's hook as libvirt does.
    fn hook(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(&format!("{SCRIPTS}/qemu"));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut hook = command.spawn().unwrap();
        write!(hook.stdin.take().unwrap(), "{DOMAIN}").unwrap();
        hook.wait_with_output().unwrap()
    }
}

#[test]
fn libvirts_guest_waits_until_this_node_is_ready() {
    let host = Host::start();
    let log = host.dir.0.join("asked");
    host.dir.program(
        "bin/xenflow",
        &format!("echo \"$*\" >>{}\necho xenflow: not ready >&2\nexit 1", log.display()),
    );
    for operation in ["migrate", "prepare", "start", "stopped", "release", "reconnect", "attach"] {
        let stage = if ["stopped", "release"].contains(&operation) { "end" } else { "begin" };
        let output = host.hook(&["r1", operation, stage, "-"]);
        assert!(
            output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
            "{operation}: {output:?}"
        );
    }
    assert!(!log.exists(), "it was asked where nothing depends on it");
    let output = host.hook(&["r1", "started", "begin", "-"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b""[..], &b"xenflow: not ready\n"[..])
    );
    let asked = "arrival --plugged --timeout 20 --mac 52:54:00:00:00:AA --mac 52:54:00:00:00:ab\n";
    assert_eq!(fs::read_to_string(&log).unwrap(), asked);
    // It is nobody's business any more.
    host.dir.program("bin/xenflow", "exit 0");
    assert!(host.hook(&["r1", "started", "begin", "-"]).status.success());
}

#[test]
fn what_a_crash_has_left_of_libvirts_guest_goes_before_it_comes_again() {
    let host = Host::start();
    let add = |port: &str, mac: &str| {
        let mac = format!("external_ids:attached-mac=\"{mac}\"");
        host.vsctl(&["add-port", "br-xf", port, "--", "set", "Interface", port, &mac]);
    };
    add("vnet0", "52:54:00:00:00:aa");
    // Another guest's, and one whose device is there.
    add("vnet1", "52:54:00:00:00:ac");
    add("lo", "52:54:00:00:00:ab");
    for time in ["once", "twice"] {
        assert!(host.hook(&["r1", "prepare", "begin", "-"]).status.success(), "{time}");
        assert_eq!(host.ports(), ["lo", "vnet1"], "{time}");
    }
}

#[test]
fn xl_reaches_the_other_host_through_xenflow_there() {
    let dir = Dir::new();
    dir.program("ssh", "printf '%s|' \"$@\"; cat");
    let call = |arguments: &[&str]| {
        let mut command = Command::new(format!("{SCRIPTS}/xl-migrate-transport"));
        command.args(arguments).env("XENFLOW_SSH", format!("{} -p 2222", dir.0.join("ssh").display()));
        let mut transport =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = transport.stdin.take().unwrap().write_all(b"guest");
        transport.wait_with_output().unwrap()
    };
    let output = call(&["host-b", "xl", "-v", "migrate-receive"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "-p|2222|host-b|xenflow|--timeout|20|xl-receive|--|xl|-v|migrate-receive|guest");
    let output = call(&["host-b"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("needs the host and the command"));
}

/// Runs the installer into that root.
fn install(root: &Dir, programs: &Dir, arguments: &[&str]) -> String {
    let mut command = Command::new(format!("{SCRIPTS}/install"));
    command.arg("--root").arg(&root.0).arg("--programs").arg(&programs.0).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn built() -> Dir {
    let programs = Dir::new();
    for name in ["xenflow", "xenflow-dom0", "xenflow-guest"] {
        // The one that writes manual pages does so, too.
        let pages = r#"[ "$1" != man ] || { mkdir -p "$2"; echo page >"$2/xenflow-network.1"; }"#;
        programs.program(name, &format!("echo \"# $*\"\n{pages}"));
    }
    programs
}

#[test]
fn what_is_installed_is_taken_away_again() {
    let (root, programs) = (Dir::new(), built());
    fs::create_dir_all(root.0.join("usr/bin")).unwrap();
    fs::write(root.0.join("usr/bin/other"), "x").unwrap();
    let bare = root.listing();

    let planned = install(&root, &programs, &["--dry-run"]);
    assert_eq!(root.listing(), bare, "only said");
    assert_eq!(install(&root, &programs, &[]), planned);
    let installed = root.listing();
    let mut wanted: Vec<String> =
        ["bin/xenflow-dom0", "bin/xenflow", "bin/xenflow-guest"].map(str::to_owned).to_vec();
    wanted.push("share/bash-completion/completions/xenflow".to_owned());
    wanted.push("share/zsh/vendor-completions/_xenflow".to_owned());
    wanted.push("share/fish/vendor_completions.d/xenflow.fish".to_owned());
    wanted.push("share/man/man1/xenflow-network.1".to_owned());
    for entry in fs::read_dir(SCRIPTS).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".service") || name.ends_with(".timer") {
            wanted.push(format!("lib/systemd/system/{name}"));
        }
    }
    for path in wanted.iter().map(|path| root.0.join("usr").join(path)) {
        assert!(installed.contains_key(&path), "{}", path.display());
    }
    for script in
        ["etc/xen/scripts/vif-xenflow", "etc/libvirt/hooks/qemu.d/xenflow", "usr/bin/xl-migrate-transport"]
    {
        assert_eq!(
            fs::metadata(root.0.join(script)).unwrap().permissions().mode() & 0o777,
            0o755,
            "{script}"
        );
    }

    let again = install(&root, &programs, &[]);
    assert!(again.lines().all(|line| line.starts_with("unchanged ") || line.starts_with("keep ")), "{again}");
    assert_eq!(root.listing(), installed);
    // The daemon has run meanwhile.
    fs::write(root.0.join("var/lib/xenflow/desired.json"), "x").unwrap();
    install(&root, &programs, &["--uninstall"]);
    assert_eq!(root.listing(), bare);
}

#[test]
fn settings_are_the_operators_and_the_prefix_is_in_the_units() {
    let (root, programs) = (Dir::new(), built());
    let prefix = ["--prefix", "/usr/local"];
    install(&root, &programs, &prefix);
    let unit = fs::read_to_string(root.0.join("usr/local/lib/systemd/system/xenflow-dom0.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/xenflow-dom0 run"), "{unit}");
    let settings = root.0.join("etc/xenflow/dom0.toml");
    fs::write(&settings, "node = \"a\"\n").unwrap();
    let database = root.0.join("var/lib/xenflow/xenflow.db");
    fs::write(&database, "x").unwrap();
    assert!(install(&root, &programs, &prefix).contains("keep      /etc/xenflow/dom0.toml"));
    install(&root, &programs, &["--prefix", "/usr/local", "--uninstall"]);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "node = \"a\"\n");
    let left = root.listing();
    let expected = ["etc", "etc/xenflow", "etc/xenflow/dom0.toml", "var", "var/lib", "var/lib/xenflow"];
    let expected = expected.map(|path| root.0.join(path)).into_iter().chain([database]);
    assert_eq!(left.into_keys().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn the_installer_refuses_with_the_value_and_the_rule() {
    for (arguments, message) in [
        (["--root", "here"].as_slice(), "--root here: it must begin with /"),
        (&["--root", "/does/not/exist"], "--root /does/not/exist: there is no such directory"),
        (&["--prefix"], "--prefix needs a directory"),
        (&["--programs", "/does/not/exist", "--root", "/tmp"], "no program xenflow there"),
        (&["--force"], "--force: there is no such option; --help shows all"),
    ] {
        let output = Command::new(format!("{SCRIPTS}/install")).args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with("install: ") && said.contains(message), "{arguments:?}: {said}");
    }
}

#[test]
fn the_shell_reads_every_script() {
    for name in ["vif-xenflow", "install", "qemu", "xl-migrate-transport"] {
        let path = Path::new(SCRIPTS).join(name);
        assert!(Command::new("sh").arg("-n").arg(&path).status().unwrap().success(), "{name}");
        assert!(fs::metadata(&path).unwrap().permissions().mode() & 0o111 == 0o111, "{name} is executable");
    }
}
