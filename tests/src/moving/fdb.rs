//! A watch on the table of the learning bridge between hosts: by which port it thinks that a MAC address is reached, and
//! each time that it thinks again.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, Process};
use crate::scenario::Lab;
use crate::trunk::Trunk;

/// For the watch to catch up.
const LIMIT: Duration = Duration::from_secs(10);

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    monitor: Process,
    /// A port of the bridge, and its namespace, for marks.
    port: String,
    fabric: String,
    marks: u32,
    /// Bytes of the log that were read.
    read: usize,
    ports: BTreeMap<String, String>,
}

/// The bridge thought again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Of this address.
    pub mac: String,
    /// By which port it was before.
    pub from: String,
    /// By which it is now.
    pub to: String,
}

impl Watch {
    /// Starts to watch, and knows where everybody is.
    pub fn start(lab: &Lab, trunk: &Trunk) -> Result<Self> {
        let fabric = trunk.fabric()?;
        let log = lab.results().join(format!("fabric-fdb-{}.log", lab.next_id()));
        let mut command = Command::new("bridge");
        command.args(["-n", fabric.name(), "-timestamp", "monitor", "fdb"]);
        let monitor = Process::spawn("bridge monitor", &mut command, &log)?;
        let mut watch = Self {
            monitor,
            port: trunk.ports().first().context("a trunk has ports")?.clone(),
            fabric: fabric.name().to_owned(),
            marks: 0,
            read: 0,
            ports: BTreeMap::new(),
        };
        // It listens, and what is in the table is in the log or in this.
        watch.mark_until_seen()?;
        let mut show = Command::new("bridge");
        let known = process::output(show.args(["-n", fabric.name(), "fdb", "show"]))?;
        for (mac, port) in known.lines().filter_map(learned) {
            watch.ports.entry(mac.to_owned()).or_insert_with(|| port.to_owned());
        }
        watch.changes()?;
        Ok(watch)
    }

    /// What the bridge has thought again since this was asked last.
    pub fn changes(&mut self) -> Result<Vec<Change>> {
        let mark = self.mark()?;
        self.monitor.wait_for_log(&mark, LIMIT)?;
        let log = self.monitor.log();
        let mut changes = Vec::new();
        for (mac, port) in log.get(self.read..).unwrap_or_default().lines().filter_map(learned) {
            let before = self.ports.insert(mac.to_owned(), port.to_owned());
            if let Some(from) = before.filter(|from| from != port) {
                changes.push(Change { mac: mac.to_owned(), from, to: port.to_owned() });
            }
        }
        self.read = log.len();
        Ok(changes)
    }

    /// An entry that means nothing, to know that all before it has been told.
    fn mark(&mut self) -> Result<String> {
        self.marks += 1;
        let [high, low] = u16::try_from(self.marks)?.to_be_bytes();
        let mac = format!("02:fd:b0:00:{high:02x}:{low:02x}");
        let mut add = Command::new("bridge");
        process::output(add.args([
            "-n",
            &self.fabric,
            "fdb",
            "add",
            &mac,
            "dev",
            &self.port,
            "master",
            "static",
        ]))?;
        Ok(mac)
    }

    /// Before the monitor listens it tells nothing, and it does not say when it does.
    fn mark_until_seen(&mut self) -> Result<()> {
        process::wait_for("bridge monitor to listen", LIMIT, || {
            let mark = self.mark()?;
            self.monitor.check()?;
            // It is told within the call that adds the entry; to write it may take a moment.
            let seen = process::wait_for("the mark", Duration::from_millis(500), || {
                Ok(self.monitor.log().contains(&mark).then_some(()))
            });
            Ok(seen.ok())
        })
    }
}

/// The address and the port of a line that says of a learned one where it is. `bridge` writes (iproute2, bridge/fdb.c):
/// `[Deleted ]MAC dev PORT [vlan N] master BRIDGE [permanent|static]`.
fn learned(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    let mac = words.next().filter(|word| word.len() == 17 && word.matches(':').count() == 5)?;
    let port = words.by_ref().skip_while(|word| *word != "dev").nth(1)?;
    let of_people = |word: &str| matches!(word, "permanent" | "static" | "self");
    (!words.any(of_people)).then_some((mac, port))
}

#[cfg(test)]
mod tests {
    use super::learned;

    #[test]
    fn lines_of_bridge_are_read() {
        let of = "02:52:00:00:01:00 dev to-a master fabric ";
        assert_eq!(learned(of), Some(("02:52:00:00:01:00", "to-a")));
        assert_eq!(
            learned("02:52:00:00:01:00 dev to-a vlan 1 master fabric"),
            Some(("02:52:00:00:01:00", "to-a"))
        );
        for other in [
            "Deleted 02:52:00:00:01:00 dev to-a master fabric ",
            "02:fd:b0:00:00:01 dev to-a master fabric static",
            "33:33:00:00:00:01 dev to-a self permanent",
            "Timestamp: Sun Nov 22 19:00:00 2026 123456 usec",
            "",
        ] {
            assert_eq!(learned(other), None, "{other}");
        }
    }
}
