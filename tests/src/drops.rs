//! Where the lab's kernel and its switches have dropped packets.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::host::Host;
use crate::net::Netns;
use crate::process;

/// Counters of a kernel datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datapath {
    /// Flows that it has now.
    pub flows: u64,
    /// Packets so far that no flow matched.
    pub missed: u64,
    /// Which of them found no room on their way to the switch's process.
    pub lost: u64,
}

impl Datapath {
    /// That of a host.
    pub fn of(host: &Host) -> Result<Self> {
        // Not through ovs-vswitchd, which may be busy.
        let text = process::output(host.command("ovs-dpctl").arg("show"))?;
        Self::parse(&text).with_context(|| format!("ovs-dpctl show said {text:?}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| text.split_once(name)?.1.split_whitespace().next()?.parse().ok();
        Some(Self { flows: value("flows: ")?, missed: value("missed:")?, lost: value("lost:")? })
    }
}

/// Packets that were dropped, by where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Drops {
    /// Packets that no flow of a datapath matched; they are no drops yet.
    pub missed: u64,
    /// No room on the way to a switch's process.
    pub upcalls: u64,
    /// No room in the queue behind a veth pair (`net.core.netdev_max_backlog`).
    pub backlog: u64,
    /// No room in a receiver's socket.
    pub sockets: u64,
}

impl Drops {
    /// So far: by the switches of these hosts, by the kernel, and by sockets of these receivers.
    pub fn so_far<'a>(
        hosts: impl Iterator<Item = &'a Host>,
        receivers: impl Iterator<Item = &'a Netns>,
    ) -> Result<Self> {
        let mut drops = Self::default();
        for host in hosts {
            let Datapath { missed, lost, .. } = Datapath::of(host)?;
            drops.missed += missed;
            drops.upcalls += lost;
        }
        let text = std::fs::read_to_string("/proc/net/softnet_stat")?;
        drops.backlog = backlog(&text).with_context(|| format!("/proc/net/softnet_stat is {text:?}"))?;
        for receiver in receivers {
            drops.sockets += receiver.snmp("Udp", "RcvbufErrors")?;
        }
        Ok(drops)
    }

    /// Those since then.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            missed: self.missed - before.missed,
            upcalls: self.upcalls - before.upcalls,
            backlog: self.backlog - before.backlog,
            sockets: self.sockets - before.sockets,
        }
    }
}

/// The second number of each processor's line.
fn backlog(text: &str) -> Option<u64> {
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().map(dropped).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let text =
            "system@ovs-system:\n  lookups: hit:217 missed:9 lost:1\n  flows: 3\n  masks: hit:380 total:2\n";
        assert_eq!(Datapath::parse(text), Some(Datapath { flows: 3, missed: 9, lost: 1 }));
        assert_eq!(Datapath::parse("ovs-dpctl: no datapath"), None);
        assert_eq!(backlog("00000010 00000003 00000000\n00000011 0000000a 00000000\n"), Some(13));
        assert_eq!(backlog("00000010\n"), None);
    }
}
