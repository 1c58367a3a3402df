//! Boots one lab, shows what it tells, bounds its time, and cleans up after it.
//!
//! Owns the UML process; folders are [`crate::scratch`]'s. Several labs may run at once; nothing is shared between
//! them. UML is many processes to this machine, and those it traces survive it if it is killed at a bad moment, one
//! of them at full speed: so it has a process group of its own, and a guard that ends the group if we are killed.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;

use crate::init::{PARAM_BINARY, PARAM_RESULTS};
use crate::job::{self, Event, Job, Mode, Outcome};
use crate::process::tail;
use crate::progress::{print, say};
use crate::scenario::Scenario;
use crate::scratch::{Scratch, keep_results, memory_dir};
use crate::setup;

/// What a lab may have without more mappings than a process usually may: none of its processes gets large.
const SMALL_MIB: u32 = 4096;
/// What the lab gets beyond its scenario's limit before it is ended from outside.
const OUTSIDE_MARGIN: Duration = Duration::from_secs(15);
/// Lines of a log shown when a run has failed.
const TAIL: usize = 12;
/// Lines of the console kept for the report.
const CONSOLE_LINES: usize = 400;

/// The end of a run.
#[derive(Debug)]
pub struct Report {
    /// What the lab said, or what was found instead.
    pub outcome: Outcome,
    /// Where its logs are, if they were kept.
    pub kept: Option<PathBuf>,
    /// Seconds from the start of the UML process to its end.
    pub wall_s: f64,
}

/// What happens to the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logs {
    /// Kept, and their ends shown, if the run fails.
    OnFailure,
    /// Always kept; their ends shown if the run fails.
    Keep,
    /// Never kept nor shown: for runs that are meant to fail.
    Drop,
}

/// Somebody wants us to end (Ctrl-C, or a signal by hand): the lab has been ended, and nothing else should begin.
#[derive(Debug, thiserror::Error)]
#[error("interrupted by {0}")]
pub struct Interrupted(pub Signal);

/// Boots the lab for a job and stays until it is off. `commands` is for [`Mode::Commands`].
pub fn run(
    scenario: &Scenario,
    job: &Job,
    commands: Option<&[u8]>,
    logs: Logs,
    signals: &Signals,
) -> Result<Report> {
    if scenario.memory_mib > SMALL_MIB {
        setup::mappings(scenario.memory_mib)?;
    }
    let scratch = Scratch::create()?;
    let results = scratch.path().join("results");
    std::fs::create_dir(&results)?;
    job::write(&results.join(job::JOB), job)?;
    if let Some(commands) = commands {
        std::fs::write(results.join(job::COMMANDS), commands)?;
    }
    let console = Arc::new(Mutex::new(VecDeque::new()));
    let start = Instant::now();
    let end = boot(scenario, job, scratch.path(), &results, &console, signals);
    let wall_s = start.elapsed().as_secs_f64();
    let console: Vec<String> =
        console.lock().map(|lines| lines.iter().cloned().collect()).unwrap_or_default();
    let _ = std::fs::write(results.join("console.log"), console.join("\n") + "\n");

    let result = results.join(job::RESULT);
    let outcome = match end {
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => Outcome::failure(format!("{error:#}"), wall_s),
        Ok(()) if result.exists() => job::read(&result)?,
        Ok(()) => Outcome::failure("the lab went off without a result", wall_s),
    };
    let failed = !outcome.ok && outcome.exit_code.is_none();
    let keep = match logs {
        Logs::OnFailure => failed,
        Logs::Keep => true,
        Logs::Drop => false,
    };
    let kept = if keep { Some(keep_results(&results, scenario.name, &job.lab)?) } else { None };
    if let (true, Some(kept)) = (failed, &kept) {
        show_failure(scenario.name, &outcome, kept, &console);
    }
    Ok(Report { outcome, kept, wall_s })
}

fn boot(
    scenario: &Scenario,
    job: &Job,
    scratch: &Path,
    results: &Path,
    console: &Arc<Mutex<VecDeque<String>>>,
    signals: &Signals,
) -> Result<()> {
    let interactive = matches!(job.mode, Mode::Shell { .. });
    let binary = &job.lab;
    for path in [binary.as_path(), results] {
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        ensure!(!text.contains(|c: char| c.is_whitespace() || c == ','), "{text} has a space or a comma");
    }
    let init = scratch.join("init");
    symlink(binary, &init)?;
    let memory_dir = memory_dir(scenario.memory_mib, scratch)?;
    let processor = Processor::take()?;

    // setpriv: if this process is killed, the kernel ends the lab.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "taskset", "--cpu-list", &processor.0.to_string(), "linux.uml"])
        .arg(format!("mem={}M", scenario.memory_mib))
        .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=1", "noreboot"])
        .args(["con=null", "ssl=null", "ssl0=null,fd:2"])
        .arg(if interactive { "con0=fd:0,fd:1" } else { "con0=null,fd:1" })
        .arg(format!("uml_dir={}/", scratch.display()))
        .arg("umid=lab")
        .arg(format!("init={}", init.display()))
        .arg(format!("{PARAM_RESULTS}{}", results.display()))
        .arg(format!("{PARAM_BINARY}{}", binary.display()))
        .env("TMPDIR", memory_dir)
        .stderr(Stdio::piped());
    let terminal = if interactive {
        // It reads the terminal, so it must stay in the foreground's process group.
        Some(Terminal::save()?)
    } else {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        None
    };
    let child = command.spawn().context("cannot start linux.uml")?;
    let guard = if interactive { None } else { Some(Guard::start(binary, child.id())?) };
    let mut uml = Uml { child, guard };

    let stderr = uml.child.stderr.take().context("no pipe")?;
    let name = scenario.name;
    let lines = Arc::clone(console);
    let raw = terminal.is_some();
    let mut readers = vec![std::thread::spawn(move || {
        for_lines(stderr, |line| match serde_json::from_str(line.trim_end_matches('\r')) {
            Ok(event) => show(name, &event, raw),
            Err(_) => remember(&lines, line),
        });
    })];
    if let Some(stdout) = uml.child.stdout.take() {
        let lines = Arc::clone(console);
        readers.push(std::thread::spawn(move || for_lines(stdout, |line| remember(&lines, line))));
    }
    let limit = (!interactive).then(|| Duration::from_secs(job.limit_s) + OUTSIDE_MARGIN);
    let end = uml.wait(limit, signals);
    // Readers end when the last holder of the pipes is gone; ending the lab first makes that certain.
    drop(uml);
    for reader in readers {
        let _ = reader.join();
    }
    drop(terminal);
    drop(processor);
    end
}

/// The processor that a lab keeps to. Its kernel and the processes that this traces take turns: on two processors each turn wakes
/// the other one up, which takes three times as long as all else.
#[derive(Debug)]
struct Processor(usize);

/// Those that labs of this process have.
static TAKEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

impl Processor {
    /// One of those that this process may have: the last of the least taken.
    fn take() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let all = (0..CpuSet::count()).rev().filter(|processor| allowed.is_set(*processor) == Ok(true));
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let labs = |processor: &usize| taken.iter().filter(|other| *other == processor).count();
        let least = all.min_by_key(labs).context("this process may have no processor")?;
        taken.push(least);
        Ok(Self(least))
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = taken.iter().position(|processor| *processor == self.0) {
            taken.swap_remove(place);
        }
    }
}

/// The UML process; ended when dropped.
#[derive(Debug)]
struct Uml {
    child: Child,
    /// There if it has a process group of its own.
    guard: Option<Guard>,
}

impl Uml {
    fn wait(&mut self, limit: Option<Duration>, signals: &Signals) -> Result<()> {
        let start = Instant::now();
        loop {
            if self.child.try_wait()?.is_some() {
                // Its exit code says nothing: power-off, panic and SIGTERM are all alike.
                return Ok(());
            }
            if let Some(limit) = limit.filter(|limit| start.elapsed() >= *limit) {
                bail!("the lab did not end within {} s and was killed", limit.as_secs());
            }
            if let Some(signal) = signals.pending()? {
                return Err(Interrupted(signal).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Uml {
    fn drop(&mut self) {
        let Ok(id) = i32::try_from(self.child.id()) else { return };
        let pid = Pid::from_raw(id);
        if matches!(self.child.try_wait(), Ok(None)) {
            // On SIGTERM it ends most of the processes it traces itself.
            let _ = kill(pid, Signal::SIGTERM);
            let start = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if let Some(guard) = self.guard.take() {
            // What is left of its process group, if anything is.
            let _ = killpg(pid, Signal::SIGKILL);
            drop(guard);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that outlives us: when our end of its pipe closes without a word, it kills the lab's process group.
#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn start(binary: &Path, group: u32) -> Result<Self> {
        let child = Command::new(binary)
            .args(["guard", &group.to_string()])
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the guard")?;
        Ok(Self(child))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program `lab guard`: see [`Guard`].
pub fn guard(group: i32) -> Result<()> {
    // 0 and 1 would mean our own group, and everybody.
    ensure!(group > 1, "{group} is not a process group to guard");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    Ok(())
}

/// The signals that ask us to end, held back while this lives and read like a file. They end all labs that run.
#[derive(Debug)]
pub struct Signals {
    set: SigSet,
    file: SignalFd,
    came: OnceLock<Signal>,
}

impl Signals {
    /// Holds them back from this thread and those that it starts. To be done before any other thread is there that
    /// might take them in our place.
    pub fn block() -> Result<Self> {
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        set.thread_block()?;
        let file = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { set, file, came: OnceLock::new() })
    }

    /// The first that came.
    fn pending(&self) -> Result<Option<Signal>> {
        if let Some(signal) = self.file.read_signal()? {
            let _ = self.came.set(Signal::try_from(i32::try_from(signal.ssi_signo)?)?);
        }
        Ok(self.came.get().copied())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.set.thread_unblock();
    }
}

/// The terminal's settings, restored when dropped (UML makes it raw).
struct Terminal(Termios);

impl Terminal {
    fn save() -> Result<Self> {
        Ok(Self(tcgetattr(std::io::stdin()).context("standard input is not a terminal")?))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

fn for_lines(from: impl Read, mut to: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line), Ok(len) if len > 0) {
        to(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

fn remember(console: &Mutex<VecDeque<String>>, line: &str) {
    if let Ok(mut lines) = console.lock() {
        if lines.len() == CONSOLE_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

fn show(scenario: &str, event: &Event, raw: bool) {
    let end = if raw { "\r" } else { "" };
    match event {
        Event::Step { at_s, text } => say(format!("[{scenario} {at_s:6.2} s] {text}{end}")),
        Event::Out { line } => print(line),
        Event::Err { line } => say(line),
    }
}

/// The end of every log, newest last, and of the console.
fn show_failure(scenario: &str, outcome: &Outcome, kept: &Path, console: &[String]) {
    let mut logs: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(kept)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .filter(|(_, path)| !path.ends_with("console.log"))
        .collect();
    logs.sort();
    // In one piece: another lab may be telling its steps.
    let mut report = Vec::new();
    for (_, path) in &logs {
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        if !text.trim().is_empty() {
            report.push(format!("--- {}", path.file_name().unwrap_or_default().to_string_lossy()));
            report.push(tail(&text, TAIL));
        }
    }
    report.push("--- console".to_owned());
    report.push(tail(&console.join("\n"), 2 * TAIL));
    report
        .push(format!("lab: {scenario} failed: {}", outcome.error.as_deref().unwrap_or("without a reason")));
    report.push(format!("lab: its logs are in {}", kept.display()));
    say(report.join("\n"));
}

/// The terminal outside, for [`Mode::Shell`]: `None` if standard input or output is none.
pub fn terminal() -> Option<(Option<(u16, u16)>, String)> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return None;
    }
    let out = Command::new("stty").arg("size").stdin(Stdio::inherit()).output().ok();
    let size = out.and_then(|out| {
        let text = String::from_utf8(out.stdout).ok()?;
        let (rows, columns) = text.trim().split_once(' ')?;
        Some((rows.parse().ok()?, columns.parse().ok()?))
    });
    Some((size, std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned())))
}
