//! Network namespaces, veth pairs, addresses and sysctls, by iproute2.
//!
//! Knows nothing of switches, routers or the product.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::process;

/// A network namespace; deleted when dropped. Its interfaces go with it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates the namespace with `lo` up and duplicate-address detection off (a lab has no time for it).
    pub fn create(name: &str) -> Result<Self> {
        process::output(Command::new("ip").args(["netns", "add", name]))?;
        let ns = Self { name: name.to_owned() };
        ns.ip(&["link", "set", "lo", "up"])?;
        ns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        ns.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        Ok(ns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program inside, to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        process::output(self.command(program).args(args))
    }

    /// Runs `ip` on this namespace.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        process::output(Command::new("ip").args(["-n", &self.name]).args(args))
    }

    /// Sets a sysctl, named with dots; an interface name may contain none.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run("sh", &["-c", "printf %s \"$1\" > \"$2\"", "sh", value, &path])?;
        Ok(())
    }

    /// Reads a file as the namespace sees it, such as `/proc/net/snmp`.
    pub fn read(&self, path: &str) -> Result<String> {
        self.run("cat", &[path])
    }

    /// A counter of `/proc/net/snmp`, such as `("Ip", "ForwDatagrams")`.
    pub fn snmp(&self, group: &str, counter: &str) -> Result<u64> {
        let text = self.read("/proc/net/snmp")?;
        snmp_counter(&text, group, counter)
            .ok_or_else(|| anyhow::anyhow!("/proc/net/snmp of {} has no {group} {counter}", self.name))
    }

    /// Counter of an interface below `/sys/class/net/IF/statistics`, such as `rx_packets`.
    pub fn link_counter(&self, interface: &str, counter: &str) -> Result<u64> {
        Ok(self.read(&format!("/sys/class/net/{interface}/statistics/{counter}"))?.trim().parse()?)
    }

    /// Sets an interface's MAC, addresses (`addr/len`) and brings it up.
    pub fn configure(&self, interface: &str, mac: Option<&str>, addresses: &[&str]) -> Result<()> {
        if let Some(mac) = mac {
            self.ip(&["link", "set", interface, "address", mac])?;
        }
        for address in addresses {
            self.ip(&["address", "add", address, "dev", interface])?;
        }
        self.ip(&["link", "set", interface, "up"])?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = process::output(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

/// Joins two namespaces by a veth pair; both ends stay down.
pub fn veth(a: (&Netns, &str), b: (&Netns, &str)) -> Result<()> {
    for name in [a.1, b.1] {
        // IFNAMSIZ of linux/if.h is 16 with its closing zero.
        ensure!(!name.is_empty() && name.len() <= 15, "interface name {name:?} is not 1 to 15 bytes");
    }
    process::output(Command::new("ip").args([
        "link", "add", a.1, "netns", &a.0.name, "type", "veth", "peer", "name", b.1, "netns", &b.0.name,
    ]))?;
    Ok(())
}

/// Finds a counter in the text of `/proc/net/snmp`: two lines per group, names first, values second.
fn snmp_counter(text: &str, group: &str, counter: &str) -> Option<u64> {
    let prefix = format!("{group}:");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let position = lines.next()?.split_whitespace().position(|name| name == counter)?;
    lines.next()?.split_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::snmp_counter;

    #[test]
    fn snmp_counters_are_found_by_name() {
        let text = "Ip: Forwarding DefaultTTL ForwDatagrams\nIp: 1 64 77\nIcmp: InMsgs\nIcmp: 5\n";
        assert_eq!(snmp_counter(text, "Ip", "ForwDatagrams"), Some(77));
        assert_eq!(snmp_counter(text, "Icmp", "InMsgs"), Some(5));
        assert_eq!(snmp_counter(text, "Udp", "InDatagrams"), None);
    }
}
