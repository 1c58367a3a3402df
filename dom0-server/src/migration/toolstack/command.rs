//! Commands that answer at once.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::shown;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of an answer, of either kind.
const MAX_OUTPUT: u64 = 64 << 10;

/// How commands get out of the daemon's sandbox, and moves out of its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Detach {
    /// By systemd where it has started the daemon.
    #[default]
    Auto,
    /// As units of their own, by `systemd-run`: what the daemon may not do, they may.
    Systemd,
    /// As children, moves in a session of their own.
    Session,
}

impl Detach {
    /// What that means here; never [`Detach::Auto`].
    #[must_use]
    pub fn resolve(self) -> Self {
        // systemd.exec(5) and sd_booted(3).
        let by_systemd =
            || std::env::var_os("INVOCATION_ID").is_some() && Path::new("/run/systemd/system").is_dir();
        match self {
            Self::Auto if by_systemd() => Self::Systemd,
            Self::Auto | Self::Session => Self::Session,
            Self::Systemd => Self::Systemd,
        }
    }
}

/// What a command has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Its exit code; none: a signal ended it.
    pub code: Option<i32>,
    /// Of its answer.
    pub stdout: String,
    /// Of its complaints.
    pub stderr: String,
}

impl Said {
    /// It has ended well.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Its answer, if it has ended well.
    ///
    /// # Errors
    /// [`CommandError::Refused`] with the last line of its complaints.
    pub fn success(&self, words: &[String]) -> Result<&str, CommandError> {
        if self.is_success() {
            return Ok(&self.stdout);
        }
        let how = self.code.map_or_else(|| "was killed".into(), |code| format!("exit code {code}"));
        let last = self.stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Err(CommandError::Refused { command: line(words), how, last: shown(last.trim()) })
    }
}

/// Why a command has not answered.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It does not run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("\"{command}\" has not ended after {} s", PATIENCE.as_secs())]
    Silent {
        /// Which.
        command: String,
    },
    /// It has failed.
    #[error("\"{command}\": {how}: {last}")]
    Refused {
        /// Which.
        command: String,
        /// Its exit code, or that there is none.
        how: String,
        /// The last line of what it complained of.
        last: String,
    },
    /// It says what nobody knows.
    #[error("\"{command}\" has said \"{said}\", which says nothing of a guest")]
    Unknown {
        /// Which.
        command: String,
        /// What.
        said: String,
    },
}

impl CommandError {
    pub(super) fn unknown(words: &[String], said: &str) -> Self {
        Self::Unknown { command: line(words), said: shown(said) }
    }
}

fn line(words: &[String]) -> String {
    shown(&words.join(" "))
}

/// Runs a command, given as its program and its arguments, and waits for its end.
///
/// # Errors
/// [`CommandError::Run`], [`CommandError::Silent`]. That it fails is an answer.
pub async fn run(words: &[String], detach: Detach) -> Result<Said, CommandError> {
    let by_systemd: &[&str] = match detach {
        Detach::Systemd => &[
            "systemd-run",
            "--quiet",
            "--collect",
            "--pipe",
            "--wait",
            "--service-type=exec",
            "--setenv=LC_ALL=C",
            "--",
        ],
        Detach::Auto | Detach::Session => &[],
    };
    let mut all = by_systemd.iter().copied().chain(words.iter().map(String::as_str));
    let program = all.next().unwrap_or_default();
    let mut command = tokio::process::Command::new(program);
    command.args(all).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let refused = |source| CommandError::Run { program: shown(program), source };
    let mut child = command.spawn().map_err(refused)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Who says too much finds nobody who listens, and ends.
    let all = async { tokio::join!(read(stdout), read(stderr), child.wait()) };
    let (stdout, stderr, status) = tokio::time::timeout(PATIENCE, all)
        .await
        .map_err(|_| CommandError::Silent { command: line(words) })?;
    let refused = |source| CommandError::Run { program: shown(program), source };
    Ok(Said { code: status.map_err(refused)?.code(), stdout, stderr })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What came before an error counts.
        let _ = pipe.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
