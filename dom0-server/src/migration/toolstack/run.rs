//! Moves that are made once and outlive the daemon.
//!
//! Each has a folder, named by its migration's number, in which it is told what happened: to whichever daemon asks later. `order` says
//! what is to be run. [`supervise`](super::supervise) runs it: `lock` is held by who does, `process` is who runs or ran, `log` and
//! `log.1` have the last that it said, and `exit` how it ended. Only one process can ever become a folder's `process`, so nothing is
//! begun twice, whoever asks and dies when.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::command::{self, CommandError, Detach};
use super::process::Process;
use super::{Order, Stop};
use crate::migration::sequencer;

/// In the daemon's directory of state.
pub const FOLDER: &str = "moves";
/// Bytes of `log`, and of `log.1`.
pub const MAX_LOG: u64 = 128 << 10;
/// Bytes of the largest other file.
const MAX_FILE: u64 = 64 << 10;

pub(super) const ORDER: &str = "order";
pub(super) const SUPERVISOR: &str = "supervisor";
pub(super) const PROCESS: &str = "process";
pub(super) const EXIT: &str = "exit";
pub(super) const LOG: &str = "log";
pub(super) const OLD_LOG: &str = "log.1";

/// What is to be run, as the file has it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Orders {
    guest: String,
    from: String,
    to: String,
    pub(super) command: Vec<String>,
}

/// How a move ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its exit code, if it had one.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The last line that it complained with.
    pub last: String,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => write!(f, "ended by signal {signal}")?,
            (None, None) => f.write_str("ended, nobody knows how")?,
        }
        if self.last.is_empty() { Ok(()) } else { write!(f, ": {}", self.last) }
    }
}

/// How far a move is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    None,
    /// Begun, and not ended.
    Running,
    /// Ended.
    Ended(Ending),
}

impl From<&State> for sequencer::Run {
    fn from(state: &State) -> Self {
        match state {
            State::None => Self::None,
            State::Running => Self::Running,
            State::Ended(_) => Self::Ended,
        }
    }
}

/// What came of stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It had not begun, and never will.
    Before,
    /// It was told; it ends, or turns out to be past its point of no return.
    Told,
    /// It is past its point of no return, and goes on.
    TooLate,
    /// It had ended.
    Ended,
}

/// Why nothing is known of a move.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refuses.
    #[error("{path} cannot be used")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else's.
    #[error("{path} is no file of this daemon: remove the folder that it is in, once nothing moves")]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// Of a migration with the same number, in another database.
    #[error("{path} is of guest {guest} from {from} to {to}: remove it, once nothing moves")]
    Other {
        /// Which folder.
        path: PathBuf,
        /// Of that move.
        guest: String,
        /// Of that move.
        from: String,
        /// Of that move.
        to: String,
    },
}

/// Why a move does not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing can be kept of it.
    #[error(transparent)]
    State(#[from] StateError),
    /// Nothing can be run.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The moves of this host.
#[derive(Debug)]
pub struct Runs {
    folder: PathBuf,
    program: PathBuf,
    detach: Detach,
}

impl Runs {
    /// In this folder; `program` is `xenflow-dom0`.
    #[must_use]
    pub const fn new(folder: PathBuf, program: PathBuf, detach: Detach) -> Self {
        Self { folder, program, detach }
    }

    fn of(&self, number: u64) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// Has a command run for a move, unless it was begun.
    ///
    /// # Errors
    /// [`StartError`]: it was not begun by this.
    pub async fn start(&self, order: &Order, words: &[String]) -> Result<(), StartError> {
        if self.state(order)? != State::None {
            return Ok(());
        }
        let folder = self.prepare(order, words)?;
        let supervise = [self.program.as_path(), Path::new("move"), &folder];
        let supervise: Vec<_> = supervise.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        if self.detach == Detach::Systemd {
            let unit = format!("--unit=xenflow-move-{}", order.number);
            let description = format!("--description=Move of {} to {}", order.guest, order.to);
            let head = [
                "systemd-run",
                "--quiet",
                "--collect",
                "--service-type=exec",
                unit.as_str(),
                description.as_str(),
                "--",
            ];
            let all: Vec<_> = head.iter().map(|word| (*word).to_owned()).chain(supervise).collect();
            let said = command::run(&all, Detach::Session).await?;
            // There is one such unit at most: another may have been quicker.
            if !said.is_success() && self.state(order)? == State::None {
                said.success(&all)?;
            }
            return Ok(());
        }
        let mut command = tokio::process::Command::new(&self.program);
        command.arg("move").arg(&folder).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // It is no service, and must not speak for this one.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM"] {
            command.env_remove(name);
        }
        let refused = |source| CommandError::Run { program: self.program.display().to_string(), source };
        let mut child = command.spawn().map_err(refused)?;
        // How it ends, its folder says.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }

    /// How far a move is.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn state(&self, order: &Order) -> Result<State, StateError> {
        let path = self.of(order.number);
        let Some(orders) = read::<Orders>(&path.join(ORDER))? else { return Ok(State::None) };
        let Orders { guest, from, to, .. } = orders;
        if (guest.as_str(), from.as_str(), to.as_str())
            != (order.guest.as_str(), order.from.as_str(), order.to.as_str())
        {
            return Err(StateError::Other { path, guest, from, to });
        }
        state_of(&path)
    }

    /// Stops a move: so that it never begins, or as its toolstack says. What [`Stop::Run`] says is left to the caller.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn stop(&self, order: &Order, how: &Stop) -> Result<Stopped, StateError> {
        if self.state(order)? == State::None {
            let folder = self.prepare(order, &[])?;
            if become_one(&folder, PROCESS, &Process::nobody())? {
                let last = "it was stopped before it began".into();
                write(&folder.join(EXIT), &Ending { last, ..Ending::default() })?;
                return Ok(Stopped::Before);
            }
        }
        let folder = self.of(order.number);
        if state_of(&folder)? != State::Running {
            return Ok(Stopped::Ended);
        }
        // Not yet: it is about to begin, and is told when the caller asks again.
        let Some(process) = read::<Process>(&folder.join(PROCESS))? else { return Ok(Stopped::Told) };
        let told = match how {
            Stop::Run(_) => Ok(()),
            Stop::Tell => process.terminate(),
            Stop::CutOff { but, too_late } => {
                if has_said(&folder, too_late)? {
                    return Ok(Stopped::TooLate);
                }
                let children = process.children().map_err(failed(Path::new("/proc")))?;
                let mut told = children.iter().filter(|(_, name)| name != but);
                told.try_for_each(|(child, _)| child.terminate())
            }
        };
        told.map_err(failed(&folder.join(PROCESS)))?;
        Ok(Stopped::Told)
    }

    /// Removes a folder, unless it is of a move that runs; whether it is gone.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn forget(&self, number: u64) -> Result<bool, StateError> {
        let folder = self.of(number);
        if state_of(&folder)? == State::Running {
            return Ok(false);
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&folder)(error)),
            _ => Ok(true),
        }
    }

    /// The numbers of which there are folders.
    ///
    /// # Errors
    /// [`StateError::Io`]
    pub fn numbers(&self) -> Result<Vec<u64>, StateError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(&self.folder))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// The folder of a move that has not begun, with what is to be run.
    fn prepare(&self, order: &Order, words: &[String]) -> Result<PathBuf, StateError> {
        let folder = self.of(order.number);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed(&folder))?;
        let text = |name: &dyn std::fmt::Display| name.to_string();
        let (guest, from, to) = (text(&order.guest), text(&order.from), text(&order.to));
        write(&folder.join(ORDER), &Orders { guest, from, to, command: words.to_vec() })?;
        Ok(folder)
    }
}

/// How far the move of a folder is.
fn state_of(folder: &Path) -> Result<State, StateError> {
    // In this order: the supervisor becomes that before its command runs, and writes `exit` before it ends.
    let process = read::<Process>(&folder.join(PROCESS))?;
    let supervisor = read::<Process>(&folder.join(SUPERVISOR))?;
    let runs = [&process, &supervisor].into_iter().flatten().any(Process::is_alive);
    if let Some(ending) = read::<Ending>(&folder.join(EXIT))? {
        return Ok(State::Ended(ending));
    }
    match (process, supervisor) {
        _ if runs => Ok(State::Running),
        (None, None) => Ok(State::None),
        (Some(_), _) => Ok(State::Ended(Ending::default())),
        // Its command may be about to run: this is the last moment to say that it does not.
        (None, Some(_)) => match become_one(folder, PROCESS, &Process::nobody())? {
            true => Ok(State::Ended(Ending::default())),
            false => state_of(folder),
        },
    }
}

/// Whether a log has this text.
fn has_said(folder: &Path, text: &str) -> Result<bool, StateError> {
    for name in [LOG, OLD_LOG] {
        let path = folder.join(name);
        let mut said = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_LOG).read_to_end(&mut said)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
            _ => {}
        }
        if String::from_utf8_lossy(&said).contains(text) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes a process the one with this part in a move; false: there is one.
pub(super) fn become_one(folder: &Path, part: &str, process: &Process) -> Result<bool, StateError> {
    let own = folder.join(format!("{part}.{}", std::process::id()));
    write(&own, process)?;
    // Whole, or not at all; and for one only.
    let linked = fs::hard_link(&own, folder.join(part));
    let _ = fs::remove_file(&own);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        linked => linked.map(|()| true).map_err(failed(&own)),
    }
}

/// Writes a file: all of it, or none.
pub(super) fn write(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let bytes = serde_json::to_vec(value).map_err(|error| failed(path)(error.into()))?;
    let new = path.with_added_extension(format!("{}.new", std::process::id()));
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(failed(path))
}

/// Reads a file; none if there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
        Ok(_) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(StateError::Foreign { path: path.into() }),
        },
    }
}

pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> StateError + '_ {
    move |source| StateError::Io { path: path.into(), source }
}
