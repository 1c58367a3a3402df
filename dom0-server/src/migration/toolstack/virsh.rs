//! libvirt's `virsh`.

use serde::{Deserialize, Serialize};

use super::command::{CommandError, Said};
use super::{Guest, Host, Order, Stop, Toolstack, Whereabouts};

/// libvirt: section `[migration.toolstack.virsh]`. `{host}` stands for the destination.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Virsh {
    /// The program.
    pub command: String,
    /// This host's libvirt.
    pub connect: String,
    /// The destination's libvirt, as this host's reaches it.
    pub uri: String,
    /// Where the guest's memory goes, if libvirt is not to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrate_uri: Option<String>,
}

impl Default for Virsh {
    fn default() -> Self {
        Self {
            command: "virsh".into(),
            connect: "qemu:///system".into(),
            uri: "qemu+tls://{host}/system".into(),
            migrate_uri: None,
        }
    }
}

impl Virsh {
    fn words<'a>(&'a self, words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let head = [self.command.as_str(), "--connect", self.connect.as_str()];
        head.into_iter().chain(words).map(str::to_owned).collect()
    }
}

impl Toolstack for Virsh {
    fn ask(&self, guest: &Guest) -> Vec<String> {
        self.words(["domstate", guest.as_str()])
    }

    fn hear(&self, guest: &Guest, said: &Said) -> Result<Whereabouts, CommandError> {
        // It says so whenever it was connected and the guest cannot be found; without a connection it says that.
        let absent = format!("error: failed to get domain '{guest}'");
        if !said.is_success() && said.stderr.lines().any(|line| line.trim() == absent) {
            return Ok(Whereabouts::Gone);
        }
        let output = said.success(&self.ask(guest))?;
        match output.trim() {
            "running" | "idle" | "in shutdown" => Ok(Whereabouts::Running),
            "paused" | "crashed" | "pmsuspended" => Ok(Whereabouts::Suspended),
            "shut off" => Ok(Whereabouts::Gone),
            other => Err(CommandError::unknown(&self.ask(guest), other)),
        }
    }

    fn moving(&self, order: &Order, to: &Host) -> Vec<String> {
        let (uri, migrate_uri) =
            (to.put_in(&self.uri), self.migrate_uri.as_deref().map(|uri| to.put_in(uri)));
        let flags = ["migrate", "--live", "--p2p", "--persistent", "--undefinesource"];
        let memory = migrate_uri.iter().flat_map(|uri| ["--migrateuri", uri.as_str()]);
        self.words(flags.into_iter().chain(memory).chain([order.guest.as_str(), uri.as_str()]))
    }

    /// The move is libvirt's, and goes on without who asked for it. libvirt refuses once it is too late.
    fn stopping(&self, order: &Order) -> Stop {
        Stop::Run(self.words(["domjobabort", order.guest.as_str()]))
    }
}
