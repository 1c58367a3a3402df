//! Boots one lab, shows what it tells, bounds its time, and cleans up after it.
//!
//! Owns the UML process, a scratch folder below the temporary directory, and the folder in which the logs of a
//! failed run are kept. Several labs may run at once; nothing is shared between them.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;

use crate::init::{PARAM_BINARY, PARAM_RESULTS};
use crate::job::{self, Event, Job, Mode, Outcome};
use crate::process::tail;
use crate::progress::{print, say};
use crate::scenario::Scenario;

/// What the lab gets beyond its scenario's limit before it is ended from outside.
const OUTSIDE_MARGIN: Duration = Duration::from_secs(15);
/// Lines of a log shown when a run has failed.
const TAIL: usize = 12;
/// Lines of the console kept for the report.
const CONSOLE_LINES: usize = 400;
/// First part of the names of scratch folders; the process id follows.
const SCRATCH: &str = "xenflow-lab-";

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

/// Boots the lab for a job and stays until it is off. `commands` is for [`Mode::Commands`].
pub fn run(scenario: &Scenario, job: &Job, commands: Option<&[u8]>, logs: Logs) -> Result<Report> {
    let scratch = Scratch::create()?;
    let results = scratch.0.join("results");
    std::fs::create_dir(&results)?;
    job::write(&results.join(job::JOB), job)?;
    if let Some(commands) = commands {
        std::fs::write(results.join(job::COMMANDS), commands)?;
    }
    let console = Arc::new(Mutex::new(VecDeque::new()));
    let start = Instant::now();
    let end = boot(scenario, job, &scratch.0, &results, &console);
    let wall_s = start.elapsed().as_secs_f64();
    let console: Vec<String> =
        console.lock().map(|lines| lines.iter().cloned().collect()).unwrap_or_default();
    let _ = std::fs::write(results.join("console.log"), console.join("\n") + "\n");

    let result = results.join(job::RESULT);
    let outcome = match end {
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

    // setpriv: if this process is killed, the kernel ends the lab.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "linux.uml"])
        .arg(format!("mem={}M", scenario.memory_mib))
        .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=1"])
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
    let mut uml = Uml { child: command.spawn().context("cannot start linux.uml")?, group: !interactive };

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
    let end = uml.wait(limit);
    // Readers end when the last holder of the pipes is gone; ending the lab first makes that certain.
    drop(uml);
    for reader in readers {
        let _ = reader.join();
    }
    drop(terminal);
    end
}

/// The UML process; ended when dropped.
#[derive(Debug)]
struct Uml {
    child: Child,
    group: bool,
}

impl Uml {
    fn wait(&mut self, limit: Option<Duration>) -> Result<()> {
        let start = Instant::now();
        loop {
            if self.child.try_wait()?.is_some() {
                // Its exit code says nothing: power-off, panic and SIGTERM are all alike.
                return Ok(());
            }
            if let Some(limit) = limit.filter(|limit| start.elapsed() >= *limit) {
                bail!("the lab did not end within {} s and was killed", limit.as_secs());
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
            // On SIGTERM it ends the processes it traces itself.
            let _ = kill(pid, Signal::SIGTERM);
            let start = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if self.group {
            // What is left of its own process group, if anything is.
            let _ = killpg(pid, Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
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

/// The lab's scratch folder, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> Result<Self> {
        let base = std::env::temp_dir();
        sweep(&base);
        let path = base.join(format!("{SCRATCH}{}", std::process::id()));
        // Left by a process of the same number, which is certainly gone.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes scratch folders whose process is gone (killed before it could clean up).
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Where the lab's memory is kept as a file: in memory if there is enough, which is much faster.
fn memory_dir(mib: u32, scratch: &Path) -> Result<PathBuf> {
    let shm = Path::new("/dev/shm");
    let problem = match statvfs(shm) {
        Err(error) => error.to_string(),
        Ok(stat) if stat.flags().contains(FsFlags::ST_NOEXEC) => "it is mounted noexec".to_owned(),
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size()) >> 20;
            if free >= u64::from(mib) && nix::unistd::access(shm, nix::unistd::AccessFlags::W_OK).is_ok() {
                return Ok(shm.to_owned());
            }
            format!("it has {free} MiB free for this user, and the lab needs {mib}")
        }
    };
    say(format!(
        "lab: cannot use /dev/shm: {problem}; the lab's memory goes to {}, slower",
        scratch.display()
    ));
    Ok(scratch.to_owned())
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

/// Moves the results to a place that stays.
fn keep_results(results: &Path, scenario: &str, lab: &Path) -> Result<PathBuf> {
    let base = lab.parent().context("the lab's binary has no folder")?;
    let time = utc(SystemTime::now());
    let kept = base.join(format!("{scenario}-{time}-{}", std::process::id()));
    copy_dir(results, &kept).with_context(|| format!("cannot keep the logs in {}", kept.display()))?;
    Ok(kept)
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
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
    for (_, path) in &logs {
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        if !text.trim().is_empty() {
            say(format!("--- {}", path.file_name().unwrap_or_default().to_string_lossy()));
            say(tail(&text, TAIL));
        }
    }
    say("--- console");
    say(tail(&console.join("\n"), 2 * TAIL));
    say(format!("lab: {scenario} failed: {}", outcome.error.as_deref().unwrap_or("without a reason")));
    say(format!("lab: its logs are in {}", kept.display()));
}

/// Seconds since 1970 as `20261121-042019`, in UTC (Howard Hinnant's `civil_from_days`).
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_827_696), "20000229-123456");
        assert_eq!(at(1_795_234_819), "20261121-042019");
    }
}
