//! Network namespaces, veth pairs, addresses and sysctls.
//!
//! Namespaces are made and entered by system calls: a process costs a tenth of a second in a lab. What is in them is
//! made by iproute2. Knows nothing of switches, routers or the product.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process;

/// Where `ip netns` looks for namespaces: a mount for each, that must spread to the mount namespaces of all processes.
pub const NAMESPACES: &str = "/run/netns";

/// A network namespace; deleted when dropped. Its interfaces go with it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates the namespace with `lo` up and duplicate-address detection off (a lab has no time for it).
    pub fn create(name: &str) -> Result<Self> {
        let ns = Self { name: name.to_owned() };
        let path = ns.path();
        File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            loopback_up()
        };
        in_thread(make).with_context(|| format!("cannot make the namespace {name}"))?;
        ns.sysctls(&[("net.ipv6.conf.default.accept_dad", "0"), ("net.ipv6.conf.all.accept_dad", "0")])?;
        Ok(ns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // Half the price of `ip netns exec`, which also mounts another /sys.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
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

    /// Runs several `ip` commands on this namespace, one per line, in one process; stops at the first that fails.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        process::output_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines)
            .with_context(|| format!("in the batch {lines:?}"))?;
        Ok(())
    }

    /// Runs a function in a thread that has entered the namespace: no process is started, sockets it opens belong
    /// to the namespace. For `/proc/net` it must look into `/proc/thread-self/net`.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(&self.path(), function)
    }

    /// Sets sysctls, named with dots; an interface name in them may contain none.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                std::fs::write(format!("/proc/sys/{}", key.replace('.', "/")), value)
                    .with_context(|| format!("cannot set {key} to {value} in {}", self.name))?;
            }
            Ok(())
        })
    }

    /// Reads a file of `/proc/net` as the namespace sees it, such as `snmp`.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        self.enter(|| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))
                .with_context(|| format!("cannot read /proc/net/{file} of {}", self.name))
        })
    }

    /// A counter of `/proc/net/snmp`, such as `("Ip", "ForwDatagrams")`.
    pub fn snmp(&self, group: &str, counter: &str) -> Result<u64> {
        snmp_counter(&self.proc_net("snmp")?, group, counter)
            .with_context(|| format!("/proc/net/snmp of {} has no {group} {counter}", self.name))
    }

    /// A counter of `/proc/net/snmp6`, such as `Ip6OutForwDatagrams`.
    pub fn snmp6(&self, counter: &str) -> Result<u64> {
        let text = self.proc_net("snmp6")?;
        let value = text.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse().ok());
        value.with_context(|| format!("/proc/net/snmp6 of {} has no {counter}", self.name))
    }

    /// Packets an interface has received and sent.
    pub fn packets(&self, interface: &str) -> Result<(u64, u64)> {
        device_packets(&self.proc_net("dev")?, interface)
            .with_context(|| format!("{} has no interface {interface}", self.name))
    }

    /// Gives an interface addresses (`addr/len`) and brings it up.
    pub fn configure(&self, interface: &str, addresses: &[&str]) -> Result<()> {
        let mut lines: String =
            addresses.iter().map(|address| format!("address add {address} dev {interface}\n")).collect();
        lines.push_str(&format!("link set {interface} up\n"));
        self.ip_batch(&lines)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let path = self.path();
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(path);
    }
}

/// Runs a function in a thread that has entered the namespace mounted there; see [`Netns::enter`].
pub(crate) fn enter<T: Send>(path: &Path, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    in_thread(|| {
        setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", path.display()))?;
        function()
    })
}

/// Runs a function in a thread of its own, which ends with the namespace it has come to be in.
fn in_thread<T: Send>(function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(function).join()).map_err(|_| anyhow!("a thread panicked"))?
}

/// Sets `lo` up in the namespace of this thread.
fn loopback_up() -> Result<()> {
    let mut link = LinkMessage::default();
    // The first interface of every namespace.
    link.header.index = 1;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    request(&socket, RouteNetlinkMessage::SetLink(link)).context("cannot set lo up")
}

/// Has the kernel do what a message says, by a socket that is connected to it.
pub(crate) fn request(socket: &Socket, message: RouteNetlinkMessage) -> Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload;
    let NetlinkPayload::Error(error) = answer else {
        return Err(anyhow!("the kernel answers {answer:?}"));
    };
    error.code.map_or(Ok(()), |code| Err(std::io::Error::from_raw_os_error(-code.get()).into()))
}

/// Joins two namespaces by a veth pair; both ends stay down. `mac` is for the end in `b`.
pub fn veth(a: (&Netns, &str), b: (&Netns, &str), mac: Option<&str>) -> Result<()> {
    for name in [a.1, b.1] {
        // IFNAMSIZ of linux/if.h is 16 with its closing zero.
        ensure!(!name.is_empty() && name.len() <= 15, "interface name {name:?} is not 1 to 15 bytes");
    }
    let mut command = Command::new("ip");
    command.args(["link", "add", a.1, "netns", &a.0.name, "type", "veth", "peer", "name", b.1]);
    if let Some(mac) = mac {
        command.args(["address", mac]);
    }
    process::output(command.args(["netns", &b.0.name]))?;
    Ok(())
}

/// Finds an interface in the text of `/proc/net/dev`: packets received and sent.
fn device_packets(text: &str, interface: &str) -> Option<(u64, u64)> {
    Some((device_column(text, interface, 1)?, device_column(text, interface, 9)?))
}

/// Finds an interface in the text of `/proc/net/dev`: bytes and packets received.
pub fn device_received(text: &str, interface: &str) -> Option<(u64, u64)> {
    Some((device_column(text, interface, 0)?, device_column(text, interface, 1)?))
}

/// Eight columns for each direction, bytes and packets first (net/core/net-procfs.c).
fn device_column(text: &str, interface: &str, column: usize) -> Option<u64> {
    let numbers =
        text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(column)?.parse().ok()
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
    use super::{device_packets, device_received, snmp_counter};

    #[test]
    fn packets_are_found_by_interface() {
        let text = "Inter-| Receive\n  eth01: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n   eth0: 5 6 0 0 0 0 0 0 7 8 0 0 0 0 0 0\n";
        assert_eq!(device_packets(text, "eth0"), Some((6, 8)));
        assert_eq!(device_packets(text, "eth"), None);
        assert_eq!(device_received(text, "eth0"), Some((5, 6)));
    }

    #[test]
    fn snmp_counters_are_found_by_name() {
        let text = "Ip: Forwarding DefaultTTL ForwDatagrams\nIp: 1 64 77\nIcmp: InMsgs\nIcmp: 5\n";
        assert_eq!(snmp_counter(text, "Ip", "ForwDatagrams"), Some(77));
        assert_eq!(snmp_counter(text, "Icmp", "InMsgs"), Some(5));
        assert_eq!(snmp_counter(text, "Udp", "InDatagrams"), None);
    }
}
