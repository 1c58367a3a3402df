//! A root like that of a small initramfs, with nothing in it but `xenflow-guest` and its three files, and the client
//! running there as process 1 of its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::net::Netns;
use crate::node::Pki;
use crate::process::{self, Process, wait_for};
use crate::scenario::Lab;
use crate::virtual_router::{Sessions, Watch};

const START: Duration = Duration::from_secs(10);
const PROGRAM: &str = "/init";

/// The root.
pub(super) struct Initramfs {
    root: PathBuf,
    logs: PathBuf,
    starts: u32,
}

impl Initramfs {
    /// Puts the program and the router's files there. `/proc` is mounted as the client starts; there is no `/sys`, no
    /// `/dev` and no shell.
    pub(super) fn create(lab: &Lab, pki: &Pki, router: &str) -> Result<Self> {
        let root = lab.work().join("initramfs");
        for dir in ["etc/xenflow", "proc", "run"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::copy(&lab.product()?.guest, root.join("init"))?;
        for (from, to) in [
            ("ca.pem", "ca.pem"),
            (&format!("{router}.pem"), "router.pem"),
            (&format!("{router}.key"), "router.key"),
        ] {
            let to = root.join("etc/xenflow").join(to);
            fs::copy(pki.dir().join(from), &to).with_context(|| to.display().to_string())?;
        }
        Ok(Self { root, logs: lab.results().to_owned(), starts: 0 })
    }

    /// Everything in it, as paths.
    pub(super) fn files(&self) -> Result<Vec<String>> {
        fn walk(dir: &Path, root: &Path, files: &mut Vec<String>) -> Result<()> {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    walk(&entry.path(), root, files)?;
                } else {
                    files.push(entry.path().strip_prefix(root)?.display().to_string());
                }
            }
            Ok(())
        }
        let mut files = Vec::new();
        walk(&self.root, &self.root, &mut files)?;
        files.sort();
        Ok(files)
    }

    /// Writes a configuration, which there is none of at first.
    pub(super) fn configure(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.root.join("etc/xenflow/guest.toml"), text)?)
    }

    /// The program in its root, as process 1.
    fn command(&self, ns: &Netns) -> Command {
        let mut command = ns.command("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--root"]);
        command.arg(&self.root).arg(PROGRAM);
        command
    }

    /// Starts the client without a word. Its log is `initramfs-<n>.log`.
    pub(super) fn start(&mut self, ns: &Netns) -> Result<Running> {
        self.starts += 1;
        let log = self.logs.join(format!("initramfs-{}.log", self.starts));
        let mut process = Process::spawn("xenflow-guest as /init", &mut self.command(ns), &log)?;
        let socket = self.root.join("run/xenflow-guest.sock");
        wait_for("the client's status socket", START, || {
            process.check()?;
            Ok(UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        let parent = process.id();
        let pid = wait_for("process 1", START, || Ok(process::children(parent)?.first().copied()))?;
        Ok(Running { process, pid, socket })
    }

    /// Runs another command of the program there: its exit code and what it printed.
    pub(super) fn run(&self, ns: &Netns, args: &[&str]) -> Result<(Option<i32>, String)> {
        let out = self.command(ns).args(args).output().context("cannot run unshare")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok((out.status.code(), text + &String::from_utf8_lossy(&out.stderr)))
    }
}

/// The running client.
pub(super) struct Running {
    process: Process,
    pid: u32,
    socket: PathBuf,
}

impl Running {
    /// What it says of its session, from now on.
    pub(super) fn watch(&self) -> Result<Sessions> {
        Watch::connect(&self.socket)?.sessions()
    }

    pub(super) fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.process.wait_for_log(text, limit)
    }

    /// Processes that it has started, or that were left to it.
    pub(super) fn children(&self) -> Result<usize> {
        Ok(process::children(self.pid)?.len())
    }

    /// Asks it to end; how long that took.
    pub(super) fn stop(mut self) -> Result<Duration> {
        let start = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.pid)?), Signal::SIGTERM)?;
        let status = self.process.wait(Duration::from_secs(3))?;
        ensure!(status.success(), "the client ended with {status}");
        Ok(start.elapsed())
    }
}
