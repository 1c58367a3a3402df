//! Checks of the host: settings, kernel, Open vSwitch, the bridge, clock and disk.

use super::facts::{Bridge, Disk, Facts, Switch};
use super::finding::{Finding, fail, ok, or_ok, version, warn};

/// Open vSwitch that speaks all of OpenFlow that is used, and keeps up with changes of a database in a cluster.
const MIN_SWITCH: (u32, u32) = (2, 17);
/// A kernel with the datapath's meters and `check_pkt_len`.
const MIN_KERNEL: (u32, u32) = (5, 2);
const MIB: u64 = 1 << 20;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![config(facts)];
    match &facts.switch {
        Ok(switch) => {
            all.push(switch_version(switch.version.as_deref()));
            all.push(switch_keeps_up(switch.behind));
            let bridge = switch.bridge(&facts.bridge);
            all.push(kernel(facts.kernel.as_deref(), facts.module, bridge.map(|b| b.datapath.as_str())));
            all.extend(integration_bridge(bridge, &facts.bridge));
            all.push(restore_wait(switch, &facts.bridge));
        }
        Err(reason) => all.push(fail(
            "switch",
            format!("the database of Open vSwitch cannot be read: {reason}"),
            "start openvswitch-switch; run as root; name its socket with ovs_db in the settings",
        )),
    }
    all.extend(facts.flows.as_ref().map(|counted| flows(counted, &facts.bridge)));
    all.push(clock(facts.synchronized));
    all.extend(facts.disks.iter().map(disk));
    all
}

fn config(facts: &Facts) -> Finding {
    let path = facts.config.display();
    match &facts.node {
        Some(Ok(node)) => ok("settings", format!("node {node} by {path}")),
        Some(Err(reason)) => fail("settings", reason.clone(), "correct it, then: xenflow-dom0 check-config"),
        None => warn(
            "settings",
            format!("{path} is not there: defaults are looked at, and no certificates"),
            "name the daemon's settings with --config, or run this on a node",
        ),
    }
}

pub(super) fn switch_version(seen: Option<&str>) -> Finding {
    let check = "switch-version";
    let Some(text) = seen else {
        return warn(check, "Open vSwitch does not say its version", "start it by ovs-ctl or its units");
    };
    match version(text) {
        Some(found) if found >= MIN_SWITCH => ok(check, format!("Open vSwitch {text}")),
        Some(_) => {
            fail(check, format!("Open vSwitch {text} is older than 2.17"), "upgrade openvswitch-switch")
        }
        None => warn(
            check,
            format!("Open vSwitch {text} is no version"),
            "compare it with 2.17, the oldest known",
        ),
    }
}

pub(super) fn switch_keeps_up(behind: i64) -> Finding {
    match behind {
        0 => ok("switch-config", "ovs-vswitchd has done all that its database asks"),
        _ => warn(
            "switch-config",
            format!("ovs-vswitchd is {behind} changes behind its database"),
            "look again; if it stays, see that ovs-vswitchd runs and what its log says",
        ),
    }
}

pub(super) fn kernel(release: Option<&str>, module: bool, datapath: Option<&str>) -> Finding {
    let Some(release) = release else {
        return warn("kernel", "the kernel's release cannot be read", "mount /proc");
    };
    let in_kernel = matches!(datapath, Some("" | "system"));
    if in_kernel && !module {
        let seen = format!("Linux {release} has no module openvswitch, which the bridge needs");
        return fail("kernel", seen, "modprobe openvswitch, and have it loaded at boot");
    }
    match version(release) {
        Some(found) if found < MIN_KERNEL => warn(
            "kernel",
            format!(
                "Linux {release} is older than 5.2: packets too big for the next link pass the slow path"
            ),
            "upgrade the host's kernel",
        ),
        _ => ok("kernel", format!("Linux {release}")),
    }
}

pub(super) fn integration_bridge(bridge: Option<&Bridge>, name: &str) -> Vec<Finding> {
    let Some(bridge) = bridge else {
        let seen = format!("there is no bridge {name}");
        return vec![fail(
            "bridge",
            seen,
            "start xenflow-dom0, which makes it, or set bridge in its settings",
        )];
    };
    let mut all = Vec::new();
    match bridge.fail_mode.as_deref() {
        Some("secure") => {}
        other => all.push(fail(
            "bridge",
            format!(
                "{name} has fail_mode {}: without its flows it would flood as a plain switch",
                other.unwrap_or("standalone")
            ),
            format!("ovs-vsctl set-fail-mode {name} secure; xenflow-dom0 does it when it starts"),
        )),
    }
    // An empty set allows every version that Open vSwitch knows.
    if !bridge.protocols.is_empty() && !bridge.protocols.iter().any(|protocol| protocol == "OpenFlow15") {
        let seen = format!("{name} speaks {} and not OpenFlow15", bridge.protocols.join(", "));
        all.push(fail("bridge", seen, format!("ovs-vsctl add bridge {name} protocols OpenFlow15")));
    }
    let mut all = or_ok(all, "bridge", format!("{name}, fail_mode secure"));
    all.push(match bridge.datapath.as_str() {
        "" | "system" => ok("datapath", "in the kernel (system)"),
        other => warn(
            "datapath",
            format!("{other}: forwards in user space, so a restart of ovs-vswitchd stops all packets"),
            format!(
                "unless it is meant (DPDK, tests): ovs-vsctl set bridge {name} datapath_type=system, and take \
                 it that tap and veth ports are slow until then"
            ),
        ),
    });
    all
}

pub(super) fn restore_wait(switch: &Switch, bridge: &str) -> Finding {
    let check = "flow-restore-wait";
    if !switch.restore_wait {
        return ok(check, "not armed");
    }
    let others: Vec<_> =
        switch.bridges.iter().map(|b| b.name.as_str()).filter(|name| *name != bridge).collect();
    let owner = if switch.restore_is_ours { "by xenflow-dom0" } else { "by somebody else" };
    if others.is_empty() {
        return ok(check, format!("armed {owner}: a restart of the switch loses no packet"));
    }
    fail(
        check,
        format!(
            "armed {owner}: a restart of ovs-vswitchd stops {} too, until it is taken away",
            others.join(", ")
        ),
        "ovs-vsctl remove open_vswitch . other_config flow-restore-wait",
    )
}

pub(super) fn flows(seen: &Result<(u64, u64), String>, bridge: &str) -> Finding {
    match seen {
        Ok((all, ours)) if all == ours => ok("flows", format!("{ours} flows, all of XenFlow")),
        Ok((all, ours)) => warn(
            "flows",
            format!(
                "{} of {all} flows are not XenFlow's, which never touches them",
                all.saturating_sub(*ours)
            ),
            format!(
                "ovs-ofctl -O OpenFlow15 dump-flows {bridge} | grep -v cookie=0x5846 lists them; find out whose they are, \
                 and remove them: ovs-ofctl -O OpenFlow15 del-flows {bridge} cookie=COOKIE/-1"
            ),
        ),
        Err(reason) => fail(
            "flows",
            format!("the bridge does not answer: {reason}"),
            "see that ovs-vswitchd runs and that ovs_rundir in the settings is its directory",
        ),
    }
}

pub(super) fn clock(synchronized: Option<bool>) -> Finding {
    match synchronized {
        Some(true) => ok("clock", "synchronized"),
        Some(false) => warn(
            "clock",
            "not synchronized: certificates and the reports of nodes are judged by a clock that drifts",
            "install chrony or enable systemd-timesyncd",
        ),
        None => warn("clock", "nobody here says whether it is synchronized", "see chronyc tracking or ntpq"),
    }
}

pub(super) fn disk(disk: &Disk) -> Finding {
    let Disk { dir, free, total } = disk;
    let seen = format!("{} MiB of {} MiB free in {}", free / MIB, total / MIB, dir.display());
    let todo = "make room: a database that cannot be written takes no changes";
    match *free {
        free if free < 32 * MIB => fail("disk", seen, todo),
        free if free < 256 * MIB && free < total / 10 => warn("disk", seen, todo),
        _ => ok("disk", seen),
    }
}
