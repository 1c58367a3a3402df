//! A real `ovsdb-server` in a directory of its own. A missing program fails the test that needs it.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ovsdb::{Connection, Options, Remote};

/// So long a test waits for what will be, however slow the machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const SCHEMA: &str = r#"{
  "name": "Test", "version": "1.2.3",
  "tables": {
    "Thing": {
      "isRoot": true,
      "columns": {
        "name": {"type": "string"},
        "size": {"type": {"key": {"type": "integer", "minInteger": 0, "maxInteger": 4095}}},
        "ratio": {"type": "real"},
        "on": {"type": "boolean"},
        "note": {"type": {"key": "string", "min": 0, "max": 1}},
        "numbers": {"type": {"key": "integer", "min": 0, "max": "unlimited"}},
        "ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
        "parts": {"type": {"key": {"type": "uuid", "refTable": "Part"}, "min": 0, "max": "unlimited"}}
      },
      "indexes": [["name"]]
    },
    "Part": {"columns": {"label": {"type": "string"}}},
    "Global": {"isRoot": true, "columns": {
      "managers": {"type": {"key": {"type": "uuid", "refTable": "Manager"}, "min": 0, "max": "unlimited"}}}},
    "Manager": {
      "isRoot": true,
      "columns": {
        "target": {"type": "string"},
        "inactivity_probe": {"type": {"key": "integer", "min": 0, "max": 1}},
        "status": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}, "ephemeral": true},
        "is_connected": {"type": "boolean", "ephemeral": true}
      }
    }
  }
}"#;

pub(crate) const OTHER: &str = r#"{"name": "Other", "tables": {"Item": {"isRoot": true,
  "columns": {"key": {"type": "string"}, "value": {"type": "string"}}}}}"#;

pub(crate) struct Server {
    pub(crate) dir: PathBuf,
    child: Option<Child>,
    extra: Vec<String>,
}

impl Server {
    /// A server of the databases `Test` and `Other` on `unix:DIR/db.sock`.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(extra: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ovsdb-test-{}-{n}", std::process::id()));
        // Of a process of this number that was killed.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        for (name, schema) in [("test", SCHEMA), ("other", OTHER)] {
            std::fs::write(dir.join(format!("{name}.ovsschema")), schema).unwrap();
            run("ovsdb-tool", &["create", &format!("{name}.db"), &format!("{name}.ovsschema")], &dir);
        }
        let extra = extra.iter().map(|s| s.to_string()).collect();
        let mut server = Self { dir, child: None, extra };
        server.up();
        server
    }

    pub(crate) fn up(&mut self) {
        let _ = std::fs::remove_file(self.dir.join("db.sock"));
        let child = Command::new("ovsdb-server")
            .args([
                "test.db",
                "other.db",
                "--remote=punix:db.sock",
                "--unixctl=ctl",
                "--no-chdir",
                "-vconsole:off",
            ])
            .args(&self.extra)
            .env("OVS_RUNDIR", &self.dir)
            .current_dir(&self.dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ovsdb-server must be installed");
        self.child = Some(child);
        let deadline = Instant::now() + LIMIT;
        while std::os::unix::net::UnixStream::connect(self.dir.join("db.sock")).is_err() {
            assert!(Instant::now() < deadline, "ovsdb-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn remote(&self) -> Remote {
        Remote::Unix(self.dir.join("db.sock"))
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(&self.remote(), &Options::default()).await.unwrap().0
    }

    #[allow(dead_code, reason = "every test binary has its own copy of this module")]
    /// Changes the database offline, as another client would while this one is away.
    pub(crate) fn offline(&self, database: &str, transaction: &str) {
        run("ovsdb-tool", &["transact", &format!("{database}.db"), transaction], &self.dir);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn run(program: &str, args: &[&str], dir: &Path) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| panic!("{program} must be installed: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
