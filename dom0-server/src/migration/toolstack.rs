//! What moves a guest: `xl`, `virsh`, or a laboratory's own command.
//!
//! A [`Toolstack`] knows the words: what to run, and what its answers mean. [`run`] runs what moves, so that it outlives the daemon and
//! is begun once for each migration; [`command`] runs what answers at once. Which of it is due is the sequencer's business
//! ([`Drive`](super::sequencer::Drive)), and nothing here looks at the database.
//!
//! No shell sees any of it: each word is an argument. What comes from rows (guests, hosts) is of few characters and cannot be taken
//! for an option.

pub mod command;
pub mod config;
mod lab;
mod process;
pub mod run;
pub mod supervise;
mod virsh;
mod xl;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xenflow_proto::Name;

use crate::db::migration::Via;
use command::{CommandError, Detach, Said};
pub use config::Config;
use run::{Runs, StartError, State, StateError, Stopped};

pub use lab::Lab;
pub use virsh::Virsh;
pub use xl::Xl;

/// The key of a router's `external_ids` that names its guest where that is not the router's own name.
pub const GUEST_KEY: &str = "vm-name";

/// A router's guest, as its toolstack calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Guest(String);

/// No name of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no guest's name: 1 to 63 letters, digits and . _ + : @ -, the first a letter or digit, and not digits alone, \
     which toolstacks take for a number of their own"
)]
pub struct GuestError(String);

impl Guest {
    /// Of the router with this name and these `external_ids`: what [`GUEST_KEY`] says (a name, or for libvirt the UUID as well), or
    /// the router's name.
    ///
    /// # Errors
    /// [`GuestError`]: the name is none that toolstacks can be given.
    pub fn of<'a>(
        router: &'a Name,
        external_ids: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, GuestError> {
        let named = external_ids.into_iter().find(|(key, _)| *key == GUEST_KEY);
        named.map_or(router.as_str(), |(_, name)| name).parse()
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Guest {
    type Err = GuestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_usable =
            is_word(text, Name::MAX, b"._+:@-") && !text.bytes().all(|byte| byte.is_ascii_digit());
        if is_usable { Ok(Self(text.to_owned())) } else { Err(GuestError(shown(text))) }
    }
}

/// Where a host is reached: its name, or an address without brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

/// No name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no host: a name or an address of 1 to 253 letters, digits and . _ : -, the first a letter or digit"
)]
pub struct HostError(String);

impl Host {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In the place of `{host}` (RFC 3986, 3.2.2).
    fn put_in(&self, template: &str) -> String {
        let is_v6 = self.0.contains(':');
        template.replace(HOST_IN_URI, &if is_v6 { format!("[{}]", self.0) } else { self.0.clone() })
    }
}

/// Stands for the destination in a URI.
const HOST_IN_URI: &str = "{host}";

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `xl` gives it to a shell.
        let is_usable = is_word(text, 253, b"._:-") || text.parse::<std::net::Ipv6Addr>().is_ok();
        if is_usable { Ok(Self(text.to_owned())) } else { Err(HostError(shown(text))) }
    }
}

macro_rules! text {
    ($ty:ident, $error:ident) => {
        impl TryFrom<String> for $ty {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$ty> for String {
            fn from(value: $ty) -> Self {
                value.0
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(Guest, GuestError);
text!(Host, HostError);

fn is_word(text: &str, max: usize, others: &[u8]) -> bool {
    let first_ok = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first_ok && text.len() <= max && text.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

/// A text of somebody else for a line of the log.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A move that is to be made once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The migration's.
    pub number: u64,
    /// Who moves.
    pub guest: Guest,
    /// The node that it leaves: this one.
    pub from: Name,
    /// The node that it goes to.
    pub to: Name,
}

/// Where a guest is, as its toolstack says on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// It runs here.
    Running,
    /// It is here and does not run: it is about to leave or to come, or stands still for another reason.
    Suspended,
    /// It is not here.
    Gone,
}

/// How a move is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM to the process, which then undoes what it has done, or goes on if it is too late for that.
    Tell,
    /// SIGTERM to the processes that it began but to those of this name: so it finds its connection lost and has the guest go on here.
    /// Once its log has this text it is too late.
    CutOff {
        /// Which process is left alone.
        but: &'static str,
        /// The point of no return.
        too_late: &'static str,
    },
    /// This command.
    Run(Vec<String>),
}

/// The words of one toolstack.
pub trait Toolstack: fmt::Debug + Send + Sync {
    /// A command that says where a guest is: the program and its arguments.
    fn ask(&self, guest: &Guest) -> Vec<String>;

    /// What that has said.
    ///
    /// # Errors
    /// [`CommandError::Refused`] with its words, [`CommandError::Unknown`] if they mean nothing.
    fn hear(&self, guest: &Guest, said: &Said) -> Result<Whereabouts, CommandError>;

    /// A command that moves a guest. It ends when the guest runs there, or when it does not go.
    fn moving(&self, order: &Order, to: &Host) -> Vec<String>;

    /// How that is stopped.
    fn stopping(&self, order: &Order) -> Stop;
}

/// Why a toolstack cannot be asked or told anything.
#[derive(Debug, thiserror::Error)]
pub enum ToolstackError {
    /// Nobody has said what the command is, or there is none.
    #[error("no command moves a guest by {}: dom0.toml has none in [migration.toolstack]", .0.as_str())]
    NotConfigured(Via),
    /// A command for a moment.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The move.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What is kept of the move.
    #[error(transparent)]
    State(#[from] StateError),
}

/// This host's toolstacks, and the moves that they make.
#[derive(Debug)]
pub struct Toolstacks {
    config: Config,
    detach: Detach,
    runs: Runs,
}

impl Toolstacks {
    /// `state_dir` is the daemon's; `program` is `xenflow-dom0`, which looks after each move ([`supervise`]).
    #[must_use]
    pub fn new(config: Config, state_dir: PathBuf, program: PathBuf) -> Self {
        let detach = config.detach.resolve();
        Self { config, detach, runs: Runs::new(state_dir.join(run::FOLDER), program, detach) }
    }

    fn toolstack(&self, via: Via) -> Result<&dyn Toolstack, ToolstackError> {
        let lab = || self.config.lab.as_ref().map(|lab| lab as &dyn Toolstack);
        let found = match via {
            Via::Xl => Some(&self.config.xl as &dyn Toolstack),
            Via::Virsh => Some(&self.config.virsh as &dyn Toolstack),
            Via::Lab => lab(),
            Via::Other => None,
        };
        found.ok_or(ToolstackError::NotConfigured(via))
    }

    /// Where a guest is, as this host's toolstack says now.
    ///
    /// # Errors
    /// [`ToolstackError::NotConfigured`], or [`ToolstackError::Command`] if it does not say.
    pub async fn whereabouts(&self, via: Via, guest: &Guest) -> Result<Whereabouts, ToolstackError> {
        let toolstack = self.toolstack(via)?;
        let said = command::run(&toolstack.ask(guest), self.detach).await?;
        Ok(toolstack.hear(guest, &said)?)
    }

    /// Begins a move, if it was not begun yet: by this daemon or a former one. That it has begun is seen by [`state`](Self::state)
    /// somewhat later.
    ///
    /// # Errors
    /// [`ToolstackError`]: nothing has begun. To try again is safe.
    pub async fn start(&self, via: Via, order: &Order) -> Result<(), ToolstackError> {
        let command = self.toolstack(via)?.moving(order, &self.config.host(&order.to));
        Ok(self.runs.start(order, &command).await?)
    }

    /// How far a move is.
    ///
    /// # Errors
    /// [`ToolstackError::State`]: what is kept of it cannot be read, or is of another move.
    pub fn state(&self, order: &Order) -> Result<State, ToolstackError> {
        Ok(self.runs.state(order)?)
    }

    /// Stops a move, if it is not too late; one that has not begun never will. Where the guest goes on is seen by where it is then.
    ///
    /// # Errors
    /// [`ToolstackError`]: it was not stopped. To try again is safe.
    pub async fn stop(&self, via: Via, order: &Order) -> Result<Stopped, ToolstackError> {
        let how = self.toolstack(via)?.stopping(order);
        let stopped = self.runs.stop(order, &how)?;
        if let (Stopped::Told, Stop::Run(words)) = (stopped, &how) {
            command::run(words, self.detach).await?.success(words)?;
        }
        Ok(stopped)
    }

    /// Removes what is kept of a migration that is over, unless its move still runs; whether that is so.
    ///
    /// # Errors
    /// [`ToolstackError::State`]: it cannot be removed.
    pub fn forget(&self, number: u64) -> Result<bool, ToolstackError> {
        Ok(self.runs.forget(number)?)
    }

    /// The migrations that something is kept of.
    ///
    /// # Errors
    /// [`ToolstackError::State`]: the folder cannot be read.
    pub fn kept(&self) -> Result<Vec<u64>, ToolstackError> {
        Ok(self.runs.numbers()?)
    }
}

#[cfg(test)]
mod tests;
