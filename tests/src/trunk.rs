//! The wire between hosts: a veth pair, or a learning bridge that any number of hosts plug into.
//!
//! A direct pair hides wrong MAC learning in the network between hosts (it has none); a bridge shows it.

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::net::{self, Netns};

/// How hosts are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrunkKind {
    /// One veth pair; exactly two hosts.
    Direct,
    /// A Linux bridge that learns, passes tags untouched and belongs to no host.
    Bridge,
}

/// A trunk in place. The host's end is called [`Trunk::PORT`] on every host.
#[derive(Debug)]
pub struct Trunk {
    kind: TrunkKind,
    switch: Option<Netns>,
    hosts: Vec<String>,
}

impl Trunk {
    /// Name of the trunk's interface on every host.
    pub const PORT: &'static str = "trunk";

    /// Joins the hosts; their ends are up afterwards, and not yet ports of any bridge of theirs.
    pub fn connect(kind: TrunkKind, hosts: &[&Host]) -> Result<Self> {
        let switch = match kind {
            TrunkKind::Direct => {
                let [a, b] = hosts else {
                    anyhow::bail!("a direct trunk joins 2 hosts, not {}", hosts.len());
                };
                net::veth((a.netns(), Self::PORT), (b.netns(), Self::PORT), None)?;
                None
            }
            TrunkKind::Bridge => {
                ensure!(hosts.len() >= 2, "a trunk joins at least 2 hosts, not {}", hosts.len());
                let switch = Netns::create("fabric")?;
                // Switches speak no IP.
                switch.sysctls(&[("net.ipv6.conf.default.disable_ipv6", "1")])?;
                switch.ip_batch(
                    "link add fabric type bridge stp_state 0 mcast_snooping 0\nlink set fabric up\n",
                )?;
                for host in hosts {
                    let port = fabric_port(host.name());
                    net::veth((host.netns(), Self::PORT), (&switch, &port), None)?;
                    switch.ip(&["link", "set", &port, "master", "fabric", "up"])?;
                }
                Some(switch)
            }
        };
        for host in hosts {
            host.quiet(Self::PORT)?;
            host.netns().ip(&["link", "set", Self::PORT, "up"])?;
        }
        let hosts = hosts.iter().map(|host| host.name().to_owned()).collect();
        Ok(Self { kind, switch, hosts })
    }

    /// How the hosts are joined.
    pub fn kind(&self) -> TrunkKind {
        self.kind
    }

    /// Cuts or restores the wire of one host.
    pub fn set_link(&self, host: &Host, up: bool) -> Result<()> {
        ensure!(
            self.hosts.iter().any(|name| name == host.name()),
            "host {} is not on this trunk",
            host.name()
        );
        let state = if up { "up" } else { "down" };
        match &self.switch {
            // The far side goes down, so that the host sees a carrier loss and not its own decision.
            Some(switch) => switch.ip(&["link", "set", &fabric_port(host.name()), state])?,
            None => host.netns().ip(&["link", "set", Self::PORT, state])?,
        };
        Ok(())
    }

    /// The ports of the bridge between the hosts, in their order.
    pub fn ports(&self) -> Vec<String> {
        self.hosts.iter().map(|host| fabric_port(host)).collect()
    }

    /// The namespace of the bridge between the hosts, for captures there.
    pub fn fabric(&self) -> Result<&Netns> {
        self.switch.as_ref().context("a direct trunk has no bridge")
    }
}

/// The bridge's port that leads to a host.
pub fn fabric_port(host: &str) -> String {
    format!("to-{host}")
}
