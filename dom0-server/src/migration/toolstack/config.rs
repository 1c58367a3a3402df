//! The toolstacks' settings: section `[migration.toolstack]` of `dom0.toml`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xenflow_proto::Name;

use super::command::Detach;
use super::{HOST_IN_URI, Host, Lab, Virsh, Xl, shown};

/// How guests are moved from this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who runs the commands.
    pub detach: Detach,
    /// Where other nodes' toolstacks are reached, by the node's name, if not by that name.
    pub hosts: BTreeMap<String, Host>,
    /// Xen.
    pub xl: Xl,
    /// libvirt.
    pub virsh: Virsh,
    /// Another command; none: no migration can go by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lab: Option<Lab>,
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = \"{value}\": {rule}")]
pub struct Refused {
    /// Where it stands.
    pub key: &'static str,
    /// What stands there.
    pub value: String,
    /// What it must be.
    pub rule: &'static str,
}

const PROGRAM: &str = "a program: its path, or a name without blanks that does not begin with a dash";
const TRANSPORT: &str =
    "a command for xl migrate -s: not empty, without control characters, and not beginning with a dash";
const URI: &str = "a URI: printable characters without blanks and quotes, not beginning with a dash";
const TEMPLATE: &str = "a URI of another host needs {host} in the place of that";
const ARGUMENT: &str = "an argument has no control characters";
const NODE: &str = "a node's name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit";

impl Config {
    /// Checks what types do not say.
    ///
    /// # Errors
    /// [`Refused`] names the first value that cannot be used, and the rule.
    pub fn check(&self) -> Result<(), Refused> {
        let Self { detach: _, hosts, xl, virsh, lab } = self;
        let must = |ok: bool, key, value: &str, rule| {
            if ok { Ok(()) } else { Err(Refused { key, value: shown(value), rule }) }
        };
        for node in hosts.keys() {
            must(node.parse::<Name>().is_ok(), "migration.toolstack.hosts", node, NODE)?;
        }
        let none = String::new();
        let lab_program = lab.as_ref().map(|lab| lab.command.first().unwrap_or(&none));
        for (key, program) in [
            ("migration.toolstack.xl.command", Some(&xl.command)),
            ("migration.toolstack.virsh.command", Some(&virsh.command)),
            ("migration.toolstack.lab.command", lab_program),
        ] {
            if let Some(program) = program {
                must(is_plain(program), key, program, PROGRAM)?;
            }
        }
        for argument in lab.iter().flat_map(|lab| &lab.command) {
            let is_argument = !argument.contains(char::is_control);
            must(is_argument, "migration.toolstack.lab.command", argument, ARGUMENT)?;
        }
        if let Some(transport) = &xl.transport {
            let is_command = is_no_option(transport) && !transport.trim().is_empty();
            let is_command = is_command && !transport.contains(char::is_control);
            must(is_command, "migration.toolstack.xl.transport", transport, TRANSPORT)?;
        }
        must(is_plain(&virsh.connect), "migration.toolstack.virsh.connect", &virsh.connect, URI)?;
        let uri = ("migration.toolstack.virsh.uri", Some(&virsh.uri));
        let memory = ("migration.toolstack.virsh.migrate_uri", virsh.migrate_uri.as_ref());
        for (key, template) in [uri, memory] {
            if let Some(template) = template {
                must(is_plain(template), key, template, URI)?;
                must(template.contains(HOST_IN_URI), key, template, TEMPLATE)?;
            }
        }
        Ok(())
    }

    /// Where a node's toolstack is reached.
    #[must_use]
    pub fn host(&self, node: &Name) -> Host {
        self.hosts.get(node.as_str()).cloned().unwrap_or_else(|| Host(node.as_str().to_owned()))
    }
}

fn is_no_option(text: &str) -> bool {
    !text.starts_with('-')
}

/// One word for anybody.
fn is_plain(text: &str) -> bool {
    let is_printable = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    !text.is_empty() && is_no_option(text) && text.bytes().all(is_printable)
}
