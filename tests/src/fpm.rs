//! FRR 10 ([`setup::frr`]) in a namespace, and what is seen of it: what a BGP speaker heard, and when the switch got
//! its flows. Knows neither the product nor what it should do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Group, User, chown};

use crate::host::Host;
use crate::net::Netns;
use crate::process::{Process, wait_for};
use crate::scenario::Lab;
use crate::setup;

const START: Duration = Duration::from_secs(20);
/// Where `mgmtd` puts the sockets that the other daemons look for.
const RUN: &str = "/run/frr";

/// FRR's daemons of one router or speaker.
#[derive(Debug)]
pub struct Frr {
    // Dropped from top to bottom.
    daemons: Vec<Process>,
    name: String,
    dir: PathBuf,
    root: PathBuf,
    logs: PathBuf,
}

impl Frr {
    /// None runs yet. `name` is that of its folder and logs.
    pub fn create(lab: &Lab, name: &str) -> Result<Self> {
        let target = lab.product()?.dom0.ancestors().nth(2).context("the product is not in target/lab")?;
        let dir = lab.work().join(format!("frr-{name}"));
        let user = User::from_name("frr")?.context("there is no user frr")?;
        let group = Group::from_name("frr")?.context("there is no group frr")?;
        for dir in [dir.as_path(), RUN.as_ref()] {
            std::fs::create_dir_all(dir)?;
            chown(dir, Some(user.uid), Some(group.gid))?;
        }
        let root = setup::frr::root(target);
        ensure!(root.is_dir(), "FRR 10 is not in {}: it could not be fetched", root.display());
        Ok(Self { daemons: Vec::new(), name: name.to_owned(), dir, root, logs: lab.results().to_owned() })
    }

    /// Starts a daemon with a configuration (`mgmtd` has none) and more arguments, and waits until it is there.
    pub fn start(&mut self, ns: &Netns, daemon: &str, config: &str, args: &[&str]) -> Result<()> {
        let file = |suffix: &str| self.dir.join(format!("{daemon}.{suffix}"));
        let words = setup::frr::words(&self.root, daemon);
        let mut command = ns.command(words.first().context("no program")?);
        command.args(words.iter().skip(1)).arg("-i").arg(file("pid"));
        command.arg("--vty_socket").arg(&self.dir).args(["-u", "frr", "-g", "frr", "-P", "0"]);
        if daemon != "mgmtd" {
            std::fs::write(file("conf"), format!("log timestamp precision 6\n{config}"))?;
            command.arg("-f").arg(file("conf")).arg("-z").arg(self.dir.join("zserv.api"));
            command.arg("--moduledir").arg(setup::frr::modules(&self.root));
        }
        // Times are compared with those of others.
        command.args(args).env("TZ", "UTC");
        let log = self.logs.join(format!("{}-{daemon}.log", self.name));
        let mut process = Process::spawn(daemon, &mut command, &log)?;
        let socket = file("vty");
        wait_for(&format!("{daemon} of {} to listen", self.name), START, || {
            process.check()?;
            Ok(socket.exists().then_some(()))
        })?;
        self.daemons.insert(0, process);
        Ok(())
    }

    /// What a daemon has logged so far.
    pub fn log(&self, daemon: &str) -> Result<String> {
        let daemon = self.daemons.iter().find(|process| process.name() == daemon);
        Ok(daemon.with_context(|| format!("{} has no such daemon", self.name))?.log())
    }
}

/// Something that happened to a prefix; the time is text that can be compared with others of this kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `YYYY-MM-DD HH:MM:SS.fraction`, UTC.
    pub at: String,
    /// As a routing daemon writes it.
    pub prefix: String,
    /// It is there from now on, or gone.
    pub there: bool,
}

/// UPDATEs in the log of a `bgpd` with `debug bgp updates in`.
pub fn updates(log: &str) -> Vec<Seen> {
    let update = |line: &str| {
        let (head, said) = line.split_once(" rcvd ")?;
        let (prefix, there) = match said.strip_prefix("UPDATE about ") {
            Some(rest) => (rest.split(' ').next()?, !rest.ends_with("withdrawn")),
            None => (said.split(' ').next()?, true),
        };
        prefix.split_once('/')?.0.parse::<std::net::IpAddr>().ok()?;
        let mut words = head.split(' ');
        let at = format!("{} {}", words.next()?.replace('/', "-"), words.next()?);
        Some(Seen { at, prefix: prefix.to_owned(), there })
    };
    log.lines().filter_map(update).collect()
}

/// What a speaker holds after these.
pub fn held(seen: &[Seen]) -> Vec<String> {
    let last: BTreeMap<&str, bool> = seen.iter().map(|seen| (seen.prefix.as_str(), seen.there)).collect();
    last.into_iter().filter(|(_, there)| *there).map(|(prefix, _)| prefix.to_owned()).collect()
}

/// The switch's own account of its flows, as they come and change.
#[derive(Debug)]
pub struct FlowMonitor(Process);

impl FlowMonitor {
    /// Watches a bridge from now on; what is there already comes first.
    pub fn start(lab: &Lab, host: &Host, bridge: &str) -> Result<Self> {
        Self::start_at(lab, host, bridge, "")
    }

    /// The same, only what a match as `ovs-ofctl` takes it lets in.
    pub fn start_at(lab: &Lab, host: &Host, bridge: &str, of: &str) -> Result<Self> {
        let mut command = host.command("ovs-ofctl");
        command.args(["--timestamp", "-O", "OpenFlow15", "monitor", bridge, &format!("watch:{of}")]);
        let log = lab.results().join("flow-monitor.log");
        let mut process = Process::spawn("ovs-ofctl monitor", &mut command, &log)?;
        process.wait_for_log("OFPST_FLOW_MONITOR reply", START)?;
        Ok(Self(process))
    }

    /// How often something was said of flows.
    pub fn events(&self) -> usize {
        self.0.log().matches(" event=").count()
    }

    /// Flows of a table for prefixes of both families: `there` if what they do contains one of these actions.
    pub fn seen(&self, table: u8, actions: &[&str]) -> Vec<Seen> {
        flows(&self.0.log(), table, actions)
    }
}

/// The prefix of a word of a match.
fn destination(word: &str) -> Option<&str> {
    word.strip_prefix("nw_dst=").or_else(|| word.strip_prefix("ipv6_dst="))
}

fn flows(log: &str, table: u8, actions: &[&str]) -> Vec<Seen> {
    let table = format!("table={table}");
    let (mut at, mut all) = (String::new(), Vec::new());
    for line in log.lines() {
        let Some(event) = line.strip_prefix(" event=") else {
            // What was there at the beginning has no time, and was there before all others.
            at = line.split_once(": OFPST_FLOW_MONITOR").map(|(at, _)| at.to_owned()).unwrap_or_default();
            continue;
        };
        let Some(prefix) = event.split([' ', ',']).find_map(destination) else { continue };
        if event.split([' ', ',']).any(|word| word == table) {
            let does = |action: &&str| event.contains(*action);
            let there = !event.starts_with("DELETED") && actions.iter().any(does);
            all.push(Seen { at: at.clone(), prefix: prefix.to_owned(), there });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at: &str, prefix: &str, there: bool) -> Seen {
        Seen { at: at.into(), prefix: prefix.into(), there }
    }

    // From bgpd 10.3.
    const LOG: &str = "2026/11/21 11:39:14.185123 BGP: [XXWBM-V772F] 10.2.0.1(vm) rcvd UPDATE w/ attr: nexthop 10.2.0.1, origin i, path 65002 65001\n\
        2026/11/21 11:39:14.185301 BGP: [YCKEM-GB33T] 10.2.0.1(vm) rcvd 203.0.113.0/28 IPv4 unicast\n\
        2026/11/21 11:39:15.185000 BGP: [PAPP6-VDAWM] 10.2.0.1(vm) rcvd UPDATE about 203.0.113.0/28 IPv4 unicast -- withdrawn\n\
        2026/11/21 11:39:15.285000 BGP: [YCKEM-GB33T] 10.2.0.1(vm) rcvd 203.0.113.16/28 IPv4 unicast\n\
        2026/11/21 11:39:15.385000 BGP: [YCKEM-GB33T] fd00:2::1(vm) rcvd 3fff:100::/24 IPv6 unicast\n";

    #[test]
    fn updates_are_read_from_the_log() {
        let updates = updates(LOG);
        let wanted = [
            seen("2026-11-21 11:39:14.185301", "203.0.113.0/28", true),
            seen("2026-11-21 11:39:15.185000", "203.0.113.0/28", false),
            seen("2026-11-21 11:39:15.285000", "203.0.113.16/28", true),
            seen("2026-11-21 11:39:15.385000", "3fff:100::/24", true),
        ];
        assert_eq!(updates, wanted);
        assert_eq!(held(&updates), ["203.0.113.16/28", "3fff:100::/24"]);
    }

    // From ovs-ofctl 3.1.0.
    const FLOWS: &str = "OFPST_FLOW_MONITOR reply (OF1.5) (xid=0x6):\n\
        2026-11-21 11:56:31.891: OFPST_FLOW_MONITOR reply (OF1.5) (xid=0x0):\n \
        event=ADDED table=3 cookie=0 ip,metadata=0x5,nw_dst=10.100.1.0/24 actions=set_field:0x7->reg1,goto_table:5\n \
        event=ADDED table=4 cookie=0 ip,nw_dst=10.100.2.0/24 actions=goto_table:5\n\
        2026-11-21 11:56:31.912: OFPST_FLOW_MONITOR reply (OF1.5) (xid=0x0):\n \
        event=MODIFIED table=3 cookie=0 ip,metadata=0x5,nw_dst=10.100.1.0/24\n \
        event=ADDED table=3 cookie=0 ipv6,metadata=0x5,ipv6_dst=3fff:100::/24 actions=group:65537\n";

    #[test]
    fn flows_are_read_from_the_monitor() {
        let wanted = [
            seen("2026-11-21 11:56:31.891", "10.100.1.0/24", true),
            seen("2026-11-21 11:56:31.912", "10.100.1.0/24", false),
            seen("2026-11-21 11:56:31.912", "3fff:100::/24", true),
        ];
        assert_eq!(flows(FLOWS, 3, &["goto_table:5", "group:"]), wanted);
        // The times of the two kinds can be compared.
        assert!(wanted.iter().all(|flow| updates(LOG).iter().all(|update| update.at < flow.at)));
    }
}
