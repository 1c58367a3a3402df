//! The shell inside the lab: on the console, or fed from a file.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};

use crate::job::{COMMANDS, Event};
use crate::process;
use crate::progress::Events;

/// UML's first console.
const CONSOLE: &str = "/dev/tty0";

/// Gives the console to bash until it ends; its exit code.
pub fn interactive(events: &Events, size: Option<(u16, u16)>, term: &str) -> Result<i32> {
    if let Some((rows, columns)) = size {
        let (rows, columns) = (rows.to_string(), columns.to_string());
        process::output(Command::new("stty").args(["-F", CONSOLE, "rows", &rows, "cols", &columns]))?;
    }
    events.step("the topology is up: `ip netns` lists it, `exit` ends the lab");
    let console = std::fs::File::options().read(true).write(true).open(CONSOLE)?;
    let status = Command::new("setsid")
        .args(["--ctty", "--wait", "bash", "--norc", "-i"])
        .env("TERM", term)
        .env("PS1", r"lab:\w\$ ")
        .current_dir("/tmp")
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console)
        .status()
        .context("cannot start bash")?;
    Ok(code(status))
}

/// Runs the commands that came on standard input outside; their output goes out line by line.
pub fn commands(events: &Events, results: &Path) -> Result<i32> {
    events.step("the topology is up, running the commands");
    let mut child = Command::new("bash")
        .arg(results.join(COMMANDS))
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start bash")?;
    let out = child.stdout.take().context("no pipe")?;
    let err = child.stderr.take().context("no pipe")?;
    std::thread::scope(|scope| {
        scope.spawn(|| copy_lines(out, |line| events.send(&Event::Out { line })));
        scope.spawn(|| copy_lines(err, |line| events.send(&Event::Err { line })));
    });
    Ok(code(child.wait()?))
}

fn copy_lines(from: impl Read, mut to: impl FnMut(String)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line), Ok(len) if len > 0) {
        to(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
        line.clear();
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    // As shells do: a signal is 128 more than its number.
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
