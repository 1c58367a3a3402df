//! A private `ovsdb-server` and the built `xenflow`. A missing program fails the test that needs it.

mod dir;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::net::TcpSocket;
use xenflow_proto::table::Link;
use xenflow_proto::{MacAddr, Object};

pub use dir::{Dir, LIMIT, Running, Runs, serves};

/// A port that nobody has, below those that systems give out by themselves; tests that run now begin elsewhere.
///
/// It is tried without listening: a process that another test begins just now has a copy of the socket until its `exec`,
/// and a copy that listens would keep the port.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id() * 8 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + u16::try_from(number % 20_000).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        if socket.bind(SocketAddr::from(([0, 0, 0, 0], port))).is_ok() {
            return port;
        }
    }
}

/// A private ovsdb-server that serves `Other` (as a host's serves `Open_vSwitch`) until it is dropped.
pub struct Server {
    process: Running,
    pub dir: Dir,
}

impl Runs for Server {
    fn dir(&self) -> &Dir {
        &self.dir
    }
}

pub const OTHER: &str =
    r#"{"name": "Other", "version": "1.0.0", "tables": {"T": {"columns": {"c": {"type": "string"}}}}}"#;

impl Server {
    pub fn start() -> Self {
        let dir = Dir::new();
        fs::write(dir.0.join("other.ovsschema"), OTHER).unwrap();
        let mut create = dir.command("ovsdb-tool", &["create", "other.db", "other.ovsschema"]);
        assert!(create.status().expect("ovsdb-tool is needed").success());
        let arguments = ["--no-chdir", "--remote=punix:db.sock", "--pidfile=ovsdb-server.pid", "other.db"];
        let server = Self { process: dir.spawn("ovsdb-server", &arguments), dir };
        server.until("ovsdb-server", |server| serves(&server.ctl()) && serves(&server.path("db.sock")));
        server
    }

    /// With the XenFlow database.
    pub fn ready() -> Self {
        let server = Self::start();
        server.ok(&server.init());
        server
    }

    pub fn ctl(&self) -> PathBuf {
        self.dir.0.join(format!("ovsdb-server.{}.ctl", self.process.0.id()))
    }

    pub fn db(&self) -> String {
        format!("unix:{}", self.dir.0.join("db.sock").display())
    }

    pub fn init(&self) -> String {
        format!("init --db-file {}", self.dir.0.join("xenflow.db").display())
    }

    pub fn run(&self, line: &str) -> Output {
        run(&self.db(), line)
    }

    pub fn ok(&self, line: &str) -> String {
        ok(line, self.run(line))
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    pub fn refused(&self, line: &str, code: i32, message: &str) {
        refused(line, &self.run(line), code, message);
    }

    /// A transaction behind the back of `xenflow`.
    pub fn transact(&self, operations: &Value) -> String {
        let mut all = vec![json!("XenFlow")];
        all.extend(operations.as_array().unwrap().iter().cloned());
        let ran = Command::new("ovsdb-client")
            .args(["transact", &self.db(), &Value::from(all).to_string()])
            .output()
            .expect("ovsdb-client is needed");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    /// One that succeeds.
    pub fn write(&self, operations: &Value) {
        let said = self.transact(operations);
        assert!(!said.contains("error"), "{operations}: {said}");
    }
}

pub fn run(db: &str, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
    command.env("XENFLOW_DB", db).args(line.split(' ')).output().unwrap()
}

pub fn ok(line: &str, output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{line}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn refused(line: &str, output: &Output, code: i32, message: &str) {
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("xenflow: {message}\n"), "{line}");
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert!(output.stdout.is_empty(), "{line}");
}

/// Two networks: red with a router of two vifs and an access port, blue with a segment.
pub fn populate(server: &Server) {
    for line in [
        "network add red",
        "network add blue",
        "segment add red-core --network red --vlan 100",
        "segment add red-lan1 --network red --vlan 101",
        "segment add blue-core --network blue --vlan 200",
        "router add r1 --network red",
        "vif add r1-core --router r1 --segment red-core --mac 52:54:00:00:00:01",
        "vif add r1-ctl --router r1 --control --mac 52:54:00:00:00:0A",
        "access add red-h1 --segment red-lan1 --mac 52:54:00:00:01:01",
        "uplink add a trunk0",
    ] {
        assert_eq!(server.ok(line), "", "{line}");
    }
}

/// A link of a guest, up, that stands for no other.
pub fn link(ifindex: u32, name: &str, mac: MacAddr, mtu: u32) -> Object {
    Object::Link(Link {
        ifindex,
        name: name.to_owned(),
        mac: Some(mac),
        mtu,
        up: true,
        running: true,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    })
}

/// A switch's ends of frames that nobody carries.
pub fn no_frames() -> dom0_server::migration::shell::Frames {
    let ((heard, _), (_, sends)) = (tokio::sync::mpsc::channel(1), tokio::sync::mpsc::channel(1));
    dom0_server::migration::shell::Frames { heard, sends }
}
