//! Processes: run one to its end, keep one in the background until dropped, wait for a condition.
//!
//! Every background process writes standard output and error into a log file of the results folder and is ended
//! by its own id when its owner is dropped. No other process is ever touched.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long a process may take to end after SIGTERM before SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// The command line as one would type it, for messages.
pub fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs a command to its end and gives back what it wrote to standard output.
///
/// An exit status other than 0 is an error that carries the command line and what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", describe(command)))?;
    if !out.status.success() {
        bail!(
            "`{}` ended with {}: {}{}",
            describe(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim(),
            String::from_utf8_lossy(&out.stdout).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Like [`output`], with `input` on standard input.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    let what = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{what}`"))?;
    let mut stdin = child.stdin.take().context("no pipe to standard input")?;
    // A thread, because a child that writes before it has read everything would block us both.
    let bytes = input.as_bytes().to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let out = child.wait_with_output()?;
    let _ = writer.join();
    if !out.status.success() {
        bail!("`{what}` ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A process in the background. Dropped, it is ended: SIGTERM, two seconds of grace, SIGKILL.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output appended to the file `log`. Standard input is empty unless the caller has
    /// set it before with a pipe and takes it by [`Process::child`].
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        command.stdin(Stdio::null());
        Self::spawn_with_stdin(name, command, log)
    }

    /// Like [`Process::spawn`], but leaves standard input as the caller configured it.
    pub fn spawn_with_stdin(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        command.stdout(out.try_clone()?).stderr(out);
        let child =
            command.spawn().with_context(|| format!("cannot start {name}: `{}`", describe(command)))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal; an error if the process is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // The child has not been waited for, so the id cannot belong to somebody else.
        if let Some(status) = self.child.try_wait()? {
            bail!("{} has ended ({status}) and cannot take {signal}", self.name);
        }
        kill(self.pid()?, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Ends it at once (SIGKILL) and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Asks it to end (SIGTERM), kills it after two seconds, waits for the end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(self.pid()?, Signal::SIGTERM)?;
        match self.wait(GRACE) {
            Ok(status) => Ok(status),
            Err(_) => self.kill(),
        }
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), limit, || Ok(self.child.try_wait()?))
    }

    /// An error if it has ended, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended with {status}; its log ends: {}", self.name, tail(&self.log(), 8))
            }
        }
    }

    /// Waits until its log holds `text`; an error if it ends before.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("\"{text}\" in the log of {}", self.name);
        wait_for(&what, limit, || {
            if self.log().contains(text) {
                return Ok(Some(()));
            }
            self.check()?;
            Ok(None)
        })
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The same command, for what others leave of the processors.
pub fn behind(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.arg("--adjustment=10").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        nice.current_dir(folder);
    }
    nice
}

/// Looks at a condition until it gives a value, at most `limit`. What the condition says as an error ends the wait.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("waited {:.1} s for {what}, and it did not come", limit.as_secs_f64());
        }
        std::thread::sleep(POLL);
    }
}

/// Like [`wait_for`] for conditions that fail until they hold: every error but the last is taken as "not yet".
pub fn retry<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                return Err(error.context(format!("waited {:.1} s for {what}", limit.as_secs_f64())));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Processes with this parent.
pub fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that has ended meanwhile has no file; the name in parentheses may hold anything.
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = text.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
        if fields.split(' ').nth(1).and_then(|parent| parent.parse().ok()) == Some(parent) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    let from = all.len().saturating_sub(lines);
    all.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_tells_its_line_and_its_words() {
        let error =
            output(Command::new("sh").args(["-c", "echo sorry >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("sorry") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let log = std::env::temp_dir().join(format!("xenflow-process-{}", std::process::id()));
        let process = Process::spawn("sleep", Command::new("sleep").arg("60"), &log).unwrap();
        let pid = process.id();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn waiting_has_a_bound() {
        let error =
            wait_for::<()>("nothing", Duration::from_millis(50), || Ok(None)).unwrap_err().to_string();
        assert!(error.contains("nothing"), "{error}");
    }

    #[test]
    fn tail_takes_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\n", 5), "a");
    }
}
