//! What looks after a move while the daemon may die: `xenflow-dom0 move FOLDER`, a process of its own.
//!
//! It runs what the folder's `order` says, keeps the last of what that says, and writes how it ended. What [`run`] tells of a move
//! comes from these files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::process::Process;
use super::run::{
    self, EXIT, Ending, LOG, MAX_LOG, OLD_LOG, ORDER, Orders, PROCESS, SUPERVISOR, StateError, become_one,
};
use super::shown;

/// After its end, for what others hold of its output: an ssh that stays in the background may never let go.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of the last line.
const MAX_LINE: usize = 300;

/// Why a move is not looked after.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The files.
    #[error(transparent)]
    State(#[from] StateError),
    /// The folder has no order.
    #[error("there is no order: the daemon writes it")]
    NoOrder,
    /// A process.
    #[error("cannot run {program}")]
    Run {
        /// Of which program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl SuperviseError {
    fn run(program: &str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Run { program: shown(program), source }
    }
}

/// Has the move of this folder made, unless somebody has, and stays until it is over.
///
/// # Errors
/// [`SuperviseError`]: it may not be known how it ended.
pub fn supervise(folder: &Path) -> Result<(), SuperviseError> {
    // What ends the daemon's session does not end this. Under systemd it has one of its own already.
    let _ = rustix::process::setsid();
    let this = Process::this().map_err(SuperviseError::run("this"))?;
    if !become_one(folder, SUPERVISOR, &this)? {
        return Ok(());
    }
    // The same program, whatever has taken the place of its file since.
    let mut command = Command::new("/proc/self/exe");
    command.args(["move", "--command"]).arg(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (pid, ending) = match command.spawn() {
        Ok(child) => (child.id(), follow(child, folder)),
        Err(error) => (0, Ending { last: format!("cannot be run: {error}"), ..Ending::default() }),
    };
    // Another one: it was stopped before it began.
    if run::read::<Process>(&folder.join(PROCESS))?.is_some_and(|process| process.pid != pid) {
        return Ok(());
    }
    Ok(run::write(&folder.join(EXIT), &ending)?)
}

/// Becomes the command of this folder's order, unless somebody has.
///
/// # Errors
/// [`SuperviseError`]: it cannot be run.
pub fn command(folder: &Path) -> Result<(), SuperviseError> {
    let orders: Orders = run::read(&folder.join(ORDER))?.ok_or(SuperviseError::NoOrder)?;
    let [program, arguments @ ..] = &orders.command[..] else { return Err(SuperviseError::NoOrder) };
    let this = Process::this().map_err(SuperviseError::run("this"))?;
    if !become_one(folder, PROCESS, &this)? {
        return Ok(());
    }
    let error = Command::new(program).args(arguments).env("LC_ALL", "C").current_dir("/").exec();
    Err(SuperviseError::run(program)(error))
}

enum Event {
    Said { complains: bool, bytes: Vec<u8> },
    Ended(io::Result<ExitStatus>),
}

fn follow(mut child: std::process::Child, folder: &Path) -> Ending {
    let (tell, hear) = sync_channel(16);
    listen(child.stdout.take(), false, tell.clone());
    listen(child.stderr.take(), true, tell.clone());
    std::thread::spawn(move || tell.send(Event::Ended(child.wait())));
    let (mut log, mut last) = (Log::new(folder), LastLine::default());
    let mut ended: Option<(Instant, io::Result<ExitStatus>)> = None;
    while let Ok(event) = next(&hear, ended.as_ref().map(|(at, _)| *at + LINGER)) {
        match event {
            Event::Ended(status) => ended = Some((Instant::now(), status)),
            Event::Said { complains, bytes } => {
                // A full disk is no reason to stand in the way of a guest.
                let _ = log.write(&bytes);
                if complains {
                    last.hear(&bytes);
                }
            }
        }
    }
    let status = ended.and_then(|(_, status)| status.ok());
    Ending {
        code: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        last: last.end(),
    }
}

fn next(hear: &Receiver<Event>, until: Option<Instant>) -> Result<Event, RecvTimeoutError> {
    match until {
        None => hear.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(until) => {
            let left = until.checked_duration_since(Instant::now()).ok_or(RecvTimeoutError::Timeout)?;
            hear.recv_timeout(left)
        }
    }
}

/// Tells what comes by a pipe, until its end.
fn listen(pipe: Option<impl Read + Send + 'static>, complains: bool, tell: SyncSender<Event>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        if let Some(mut pipe) = pipe {
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                if tell.send(Event::Said { complains, bytes }).is_err() {
                    break;
                }
            }
        }
    });
}

/// The last of what was said.
struct Log<'a> {
    folder: &'a Path,
    file: Option<File>,
    bytes: u64,
}

impl<'a> Log<'a> {
    fn new(folder: &'a Path) -> Self {
        Self { folder, file: None, bytes: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = bytes.len() as u64;
        let path = self.folder.join(LOG);
        if self.bytes + more > MAX_LOG {
            fs::rename(&path, self.folder.join(OLD_LOG))?;
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                self.bytes = 0;
                none.insert(File::create(path)?)
            }
        };
        self.bytes += more;
        file.write_all(bytes)
    }
}

/// The last line with something in it, as long as lines of a log may be.
#[derive(Default)]
struct LastLine {
    last: Vec<u8>,
    line: Vec<u8>,
}

impl LastLine {
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                // Progress is written over itself.
                b'\n' | b'\r' => self.end_line(),
                _ if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        if self.line.iter().any(|byte| !byte.is_ascii_whitespace()) {
            std::mem::swap(&mut self.last, &mut self.line);
        }
        self.line.clear();
    }

    fn end(mut self) -> String {
        self.end_line();
        let text = String::from_utf8_lossy(&self.last);
        text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_what_is_told() {
        let last = |parts: &[&str]| {
            let mut line = LastLine::default();
            parts.iter().for_each(|part| line.hear(part.as_bytes()));
            line.end()
        };
        assert_eq!(last(&[]), "");
        assert_eq!(last(&["one\ntwo\n\n  \n"]), "two");
        assert_eq!(last(&["a mig", "ration\n", "fai", "led"]), "failed");
        assert_eq!(last(&["10 %\r20 %\r"]), "20 %");
        assert_eq!(last(&["\u{7}bell \u{1b}[31m\n"]), "?bell ?[31m");
        assert_eq!(last(&[&"x".repeat(100_000), "\n"]), "x".repeat(MAX_LINE));
    }
}
