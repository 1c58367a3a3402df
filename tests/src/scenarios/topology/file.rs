//! The description of thirty networks and two hundred routers, and of the network that lives in it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::virtual_router::vif_mac;

const NETWORKS: u16 = 30;
const ROUTERS: u16 = 200;
/// A VLAN that changes, before and after.
const MOVED: (u16, u16) = (3000, 3001);

/// A segment of n0 without a router, and its end hosts: what addresses they have is not said.
pub(super) const OPEN: [&str; 4] = ["e0", "e1", "e2", "roamer"];
const OPEN_VLAN: u16 = 110;

/// Network n0: routers r0, r1 and r2 on hosts a, b and c, numbered from 0.
pub(super) struct Live;

/// The one there is.
pub(super) const LIVE: Live = Live;

impl Live {
    const HOSTS: usize = 3;

    pub(super) fn router(&self, at: usize) -> String {
        format!("r{at}")
    }

    /// See [`crate::virtual_router::VirtualRouter::create`].
    pub(super) fn number(&self, at: usize) -> u16 {
        u16::try_from(at + 1).unwrap_or(u16::MAX)
    }

    pub(super) fn lan(&self, at: usize) -> String {
        format!("{}/24", self.gateway(at))
    }

    pub(super) fn core(&self, at: usize) -> String {
        format!("10.9.0.{}/24", at + 1)
    }

    pub(super) fn gateway(&self, at: usize) -> String {
        format!("10.{}.0.1", at + 1)
    }

    pub(super) fn end_host(&self, at: usize) -> String {
        format!("10.{}.0.10", at + 1)
    }

    pub(super) fn end_host_mac(&self, at: usize) -> String {
        format!("02:48:00:00:00:{at:02x}")
    }

    pub(super) fn access(&self, at: usize) -> String {
        format!("h{at}")
    }

    /// A line of `ip -batch`: how the others reach that end host.
    pub(super) fn route(&self, to: usize) -> String {
        format!("route add 10.{}.0.0/24 via 10.9.0.{}\n", to + 1, to + 1)
    }

    fn mac(&self, at: usize, index: usize) -> String {
        vif_mac(self.number(at), index)
    }

    fn describe(&self, text: &mut String) {
        text.push_str("[networks.n0]\nmin = \"20mbit\"\nsegments.core = { vlan = 100 }\n");
        for at in 0..Self::HOSTS {
            let (access, mac) = (self.access(at), self.end_host_mac(at));
            let _ = write!(
                text,
                "segments.lan{at} = {{ vlan = {} }}\naccess.{access} = {{ segment = \"lan{at}\", macs = [\"{mac}\"] }}\n",
                101 + at
            );
        }
        let _ = writeln!(text, "segments.open = {{ vlan = {OPEN_VLAN} }}");
        for name in OPEN {
            let _ = writeln!(text, "access.{name} = {{ segment = \"open\" }}");
        }
        for at in 0..Self::HOSTS {
            let _ = writeln!(text, "[networks.n0.routers.r{at}]");
            for (index, segment) in [format!("lan{at}"), "core".to_owned()].iter().enumerate() {
                let name = ["lan", "core"][index];
                let mac = self.mac(at, index);
                let _ = writeln!(text, "vifs.r{at}-{name} = {{ segment = \"{segment}\", mac = \"{mac}\" }}");
            }
            let _ = writeln!(text, "vifs.r{at}-ctl = {{ control = true, mac = \"{}\" }}", self.mac(at, 99));
        }
    }
}

/// The description's file.
pub(super) struct File(PathBuf);

impl File {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, is_changed: bool) -> Result<()> {
        Ok(std::fs::write(&self.0, text(is_changed))?)
    }

    /// The VLANs of all segments.
    pub(super) fn vlans(&self, is_changed: bool) -> BTreeSet<u16> {
        let text = text(is_changed);
        let numbers = text.split("vlan = ").skip(1).filter_map(|after| after.split(' ').next()?.parse().ok());
        numbers.collect()
    }
}

/// Networks but n0 are chains of six or seven routers. In the changed one, the last network is gone and another one is
/// there, a router is gone, one has a limit, and a segment has another VLAN.
fn text(is_changed: bool) -> String {
    let mut text = "owner = \"lab\"\n".to_owned();
    for node in ["a", "b", "c"] {
        let _ = write!(text, "[nodes.{node}]\nuplinks = [\"{}\"]\n", crate::trunk::Trunk::PORT);
    }
    LIVE.describe(&mut text);
    let others = ROUTERS - 3;
    let mut router = 3;
    for network in 1..NETWORKS {
        let name = if is_changed && network == NETWORKS - 1 { network + 1 } else { network };
        let routers = others / (NETWORKS - 1) + u16::from(network <= others % (NETWORKS - 1));
        let _ = write!(text, "[networks.n{name}]\nmin = \"1mbit\"\n");
        for segment in 0..=routers {
            let vlan = if (network, segment) == (1, 0) {
                if is_changed { MOVED.1 } else { MOVED.0 }
            } else {
                200 + network * 10 + segment
            };
            let _ = writeln!(text, "segments.n{name}-{segment} = {{ vlan = {vlan} }}");
        }
        for at in 0..routers {
            router += 1;
            if is_changed && network == 2 && at == 0 {
                continue;
            }
            let _ = writeln!(text, "[networks.n{name}.routers.r{router}]");
            if is_changed && network == 3 {
                text.push_str("max_routes = 1000\n");
            }
            for (vif, kind) in [
                format!("segment = \"n{name}-{at}\""),
                format!("segment = \"n{name}-{}\"", at + 1),
                "control = true".to_owned(),
            ]
            .iter()
            .enumerate()
            {
                let mac = format!("02:54:00:{vif:02x}:{:02x}:{:02x}", router >> 8, router & 0xff);
                let _ = writeln!(text, "vifs.r{router}-{vif} = {{ {kind}, mac = \"{mac}\" }}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_promised() {
        let count = |text: &str, what: &str| text.lines().filter(|line| line.starts_with(what)).count();
        for is_changed in [false, true] {
            let text = text(is_changed);
            let networks =
                text.lines().filter(|line| line.starts_with("[networks.n") && !line.contains("routers"));
            assert_eq!(networks.count(), usize::from(NETWORKS));
            let routers = text.lines().filter(|line| line.contains(".routers.")).count();
            assert_eq!(routers, usize::from(ROUTERS) - usize::from(is_changed));
            assert_eq!(count(&text, "[nodes."), 3);
        }
    }
}
