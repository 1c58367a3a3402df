//! Xen's `xl`.

use serde::{Deserialize, Serialize};

use super::command::{CommandError, Said};
use super::{Guest, Host, Order, Stop, Toolstack, Whereabouts};

/// Xen: section `[migration.toolstack.xl]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Xl {
    /// The program.
    pub command: String,
    /// How it reaches `xl migrate-receive` on the other host, in the place of ssh: `xl migrate -s`, which adds the host and what to run
    /// there, and gives all of it to a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
}

impl Default for Xl {
    fn default() -> Self {
        Self { command: "xl".into(), transport: None }
    }
}

/// The state of a domain in `xl list`: `rbpscd`, each at its place or a dash.
const FLAGS: &[u8; 6] = b"rbpscd";

impl Toolstack for Xl {
    fn ask(&self, guest: &Guest) -> Vec<String> {
        [self.command.as_str(), "list", guest.as_str()].map(str::to_owned).to_vec()
    }

    fn hear(&self, guest: &Guest, said: &Said) -> Result<Whereabouts, CommandError> {
        let absent = [
            format!("{guest} is an invalid domain identifier (rc=-6)"),
            format!("Error: Domain '{guest}' does not exist."),
        ];
        if !said.is_success() && said.stderr.lines().any(|line| absent.iter().any(|text| text == line.trim()))
        {
            return Ok(Whereabouts::Gone);
        }
        let output = said.success(&self.ask(guest))?;
        let state = output.lines().find_map(|line| {
            // Name, number, memory, processors, state, time.
            let mut words = line.split_whitespace();
            if words.next() == Some(guest.as_str()) { words.nth(3) } else { None }
        });
        let flags: Option<&[u8; 6]> = state.and_then(|state| state.as_bytes().try_into().ok());
        let flags =
            flags.filter(|flags| flags.iter().zip(FLAGS).all(|(flag, set)| flag == set || *flag == b'-'));
        match flags {
            Some([_, _, _, _, _, b'd']) => Ok(Whereabouts::Gone),
            Some([_, _, b'-', b'-', b'-', _]) => Ok(Whereabouts::Running),
            Some(_) => Ok(Whereabouts::Suspended),
            None => Err(CommandError::unknown(&self.ask(guest), output)),
        }
    }

    fn moving(&self, order: &Order, to: &Host) -> Vec<String> {
        let transport = self.transport.iter().flat_map(|transport| ["-s", transport.as_str()]);
        let words = [self.command.as_str(), "migrate"].into_iter().chain(transport);
        words.chain([order.guest.as_str(), to.as_str()]).map(str::to_owned).collect()
    }

    /// A killed `xl` leaves the guest as it is: suspended, perhaps. It has it go on itself when the other end is lost, until it says
    /// "go" to that.
    fn stopping(&self, _: &Order) -> Stop {
        Stop::CutOff {
            but: "libxl-save-help",
            too_late: "migration sender: Giving target permission to start.",
        }
    }
}
