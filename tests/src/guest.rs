//! A router guest: a namespace that forwards, with routing daemons of its own.
//!
//! Owns the namespace and its sysctls. Does not know the product's guest client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::frr::Frr;
use crate::net::Netns;
use crate::process::wait_for;
use crate::scenario::Lab;

/// A router guest.
#[derive(Debug)]
pub struct Guest {
    // Dropped from top to bottom: the daemons, then the namespace.
    frr: Frr,
    ns: Netns,
    dir: PathBuf,
}

impl Guest {
    /// Makes the namespace with forwarding on, redirects and reverse-path filter off.
    pub fn create(lab: &Lab, name: &str) -> Result<Self> {
        let ns = Netns::create(name)?;
        ns.sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
        ])?;
        let dir = lab.work().join(format!("guest-{name}"));
        std::fs::create_dir_all(&dir)?;
        Ok(Self { frr: Frr::new(lab, name, &dir), ns, dir })
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.ns
    }

    /// Its private folder (FRR's sockets, configuration, and whatever a scenario puts there).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Datagrams the guest's kernel has forwarded itself, IPv4 and IPv6 together.
    pub fn forwarded(&self) -> Result<u64> {
        Ok(self.ns.snmp("Ip", "ForwDatagrams")? + self.ns.snmp6("Ip6OutForwDatagrams")?)
    }

    /// Its routing daemons.
    pub fn frr(&self) -> &Frr {
        &self.frr
    }

    /// See [`Frr::start`].
    pub fn start_frr(&mut self, daemons: &[(&str, &str)]) -> Result<()> {
        self.frr.start(&self.ns, daemons)
    }

    /// See [`Frr::stop_daemon`].
    pub fn stop_daemon(&mut self, daemon: &str) -> Result<()> {
        self.frr.stop_daemon(daemon)
    }

    /// See [`Frr::vtysh`].
    pub fn vtysh(&self, commands: &[&str]) -> Result<String> {
        self.frr.vtysh(commands)
    }

    /// See [`Frr::wait_ospf_full`].
    pub fn wait_ospf_full(&self, count: usize, limit: Duration) -> Result<()> {
        self.frr.wait_ospf_full(count, limit)
    }

    /// Waits until the kernel's table has a route to `prefix`, and gives it back as `ip route` prints it.
    pub fn wait_route(&self, prefix: &str, limit: Duration) -> Result<String> {
        wait_for(&format!("a route to {prefix} in {}", self.ns.name()), limit, || {
            let text = self.ns.ip(&["route", "show", prefix])?;
            Ok((!text.trim().is_empty()).then_some(text))
        })
    }
}
