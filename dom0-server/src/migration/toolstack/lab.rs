//! A command of the operator's, or of a laboratory, for guests of another kind.

use serde::{Deserialize, Serialize};

use super::command::{CommandError, Said};
use super::{Guest, Host, Order, Stop, Toolstack, Whereabouts};

/// Another toolstack: section `[migration.toolstack.lab]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lab {
    /// The program, and its first arguments. Then come `state GUEST`, to which it answers `running`, `suspended` or `gone`; or `move
    /// GUEST FROM TO NUMBER` with the names of the nodes and the number of the migration: it ends once the guest is there, or does not go.
    /// On SIGTERM it brings the guest back, unless it is too late.
    pub command: Vec<String>,
}

impl Lab {
    fn words<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        self.command.iter().cloned().chain(words.into_iter().map(str::to_owned)).collect()
    }
}

impl Toolstack for Lab {
    fn ask(&self, guest: &Guest) -> Vec<String> {
        self.words(["state", guest.as_str()])
    }

    fn hear(&self, guest: &Guest, said: &Said) -> Result<Whereabouts, CommandError> {
        match said.success(&self.ask(guest))?.trim() {
            "running" => Ok(Whereabouts::Running),
            "suspended" => Ok(Whereabouts::Suspended),
            "gone" => Ok(Whereabouts::Gone),
            other => Err(CommandError::unknown(&self.ask(guest), other)),
        }
    }

    fn moving(&self, order: &Order, _: &Host) -> Vec<String> {
        let number = order.number.to_string();
        self.words(["move", order.guest.as_str(), order.from.as_str(), order.to.as_str(), &number])
    }

    fn stopping(&self, _: &Order) -> Stop {
        Stop::Tell
    }
}
