//! A directory of a test's own and the programs that run in it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// So long a test waits for what will be, however slow the machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Whether somebody serves at a socket: its file is there a little earlier.
pub fn serves(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Gone when it is dropped.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("xenflow-cli-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Self(path),
                // Left by a process of this number that was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }

    /// A program to be run in it; those of Open vSwitch keep all they have there.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.0).args(arguments).stdin(Stdio::null());
        for key in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(key, &self.0);
        }
        command
    }

    /// Runs a program of Open vSwitch until what comes back is dropped.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(program, arguments);
        let child = command.args(["-vconsole:off", "-vsyslog:off"]).spawn();
        Running(child.unwrap_or_else(|error| panic!("{program} is needed: {error}")))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A process that is killed when it is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who has a directory, and programs in it.
pub trait Runs {
    fn dir(&self) -> &Dir;

    /// Called again and again while something is waited for.
    fn turn(&self) {}

    fn path(&self, name: &str) -> PathBuf {
        self.dir().0.join(name)
    }

    /// What the daemon has said.
    fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            self.turn();
            assert!(Instant::now() < end, "no {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a program prints, which must succeed.
    fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.dir().command(program, arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn vsctl(&self, arguments: &[&str]) -> String {
        self.tool("ovs-vsctl", &[&["--db=unix:db.sock", "--timeout=20", "--no-wait"], arguments].concat())
    }

    /// The daemon, with the settings in `dom0.toml` and a log at `daemon.log`.
    fn daemon(&self) -> Command {
        let log = fs::File::options().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow-dom0"));
        command.arg("run").arg("--config").arg(self.path("dom0.toml")).stderr(log);
        command
    }
}
