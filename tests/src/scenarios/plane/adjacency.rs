//! Neighbors: the first packet, a neighbor that changes its MAC address or dies, and one that only the host sends to.
//!
//! The guest's timers are shortened, so that what takes minutes takes seconds.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::packet::{IcmpError, icmp_error, numbers};
use super::site::{FAR, LIMIT, R1, Site};
use super::wire::Wire;
use crate::endhost::NIC;
use crate::frame::{self, View};
use crate::probe::Probe;
use crate::process::wait_for;
use crate::scenario::Lab;

/// An address in w1 that moves between n1 and u, the gateway to [`BEHIND`].
const MOVING: Ipv4Addr = Ipv4Addr::new(10, 21, 0, 77);
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 94, 0, 1);
/// Another one, that nothing was sent to before.
const FRESH: Ipv4Addr = Ipv4Addr::new(10, 21, 0, 78);
/// One that nobody has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 21, 0, 79);
/// Packets a second, from the first one.
const RATE: u32 = 1000;
const PORT: u16 = 7200;
/// Timers of neighbors in r1: reachable for 0.5 to 1.5 times the first.
const TIMERS: [(&str, &str); 4] = [
    ("base_reachable_time_ms", "1000"),
    ("delay_first_probe_time", "1"),
    ("retrans_time_ms", "300"),
    // Else the kernel believes no change right after it asked, and it asks often here.
    ("locktime", "0"),
];
/// How often a kernel asks managed neighbors: one setting, of the first network namespace.
const MANAGED: &str = "/proc/sys/net/ipv4/neigh/default/interval_probe_time_ms";
const MANAGED_MS: &str = "1000";
/// Longer than it takes to be found with the client's questions.
const QUIET: Duration = Duration::from_secs(6);
/// A look at the way of packets.
const TICK: Duration = Duration::from_millis(200);

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    for (setting, value) in TIMERS {
        site.guest().sysctls(&[(&format!("net.ipv4.neigh.w1.{setting}"), value)])?;
    }
    std::fs::write(MANAGED, MANAGED_MS).with_context(|| MANAGED.to_owned())?;
    let addresses =
        |verb: &str| format!("address {verb} {MOVING}/24 dev {NIC}\naddress {verb} {FRESH}/24 dev {NIC}\n");
    site.n[0].ns.ip_batch(&addresses("add"))?;
    site.change(&format!("route add 10.94.0.0/16 via {MOVING}\n"))?;

    lab.step(format!("{RATE} packets/s to a neighbor that nothing was ever sent to"));
    let to_fresh = (FRESH, PORT).into();
    let first = Probe::start_at_once(lab, &site.h.ns, &site.n[0].ns, to_fresh, RATE)?;
    let first = first.run_for(Duration::from_secs(1))?;

    // Beside all that follows: nothing but the host sends to this neighbor.
    let guest = Wire::open(site.guest(), "lan")?;
    let running = Probe::start(lab, &site.h.ns, &site.n[0].ns, to_fresh, RATE / 5)?;
    guest.take()?;

    lab.step("a gateway's address moves to another host, which says so");
    reach(site, &site.n[0].wire)?;
    move_address(site, true)?;
    let far = frame::mac("02:48:00:00:02:0b")?;
    // RFC 5227 3: a request for one's own address.
    let said = frame::arp(1, (far, MOVING), ([0; 6], MOVING));
    site.far.send(&[frame::ethernet([0xff; 6], far, &[], frame::ARP, &said)])?;
    let announced = reach(site, &site.far)?;

    lab.step("it moves back, and nobody says so: the guest's questions find out");
    move_address(site, false)?;
    let found = reach(site, &site.n[0].wire)?;

    lab.step("it dies: the VM says so, as it does of an address that nobody has");
    site.n[0].ns.ip(&["address", "del", &format!("{MOVING}/24"), "dev", NIC])?;
    let dead = unreachable(site)?;

    let by_vm = guest.take()?;
    let transit = by_vm.iter().filter(|frame| View(frame).ipv4_dst() == Some(FRESH)).count();
    let kept = running.stop()?;

    lab.step("for comparison: a client that keeps no neighbors fresh");
    site.n[0].ns.ip(&["address", "add", &format!("{MOVING}/24"), "dev", NIC])?;
    keep(site, false)?;
    wait_for("the kernel to keep nothing fresh", LIMIT, || {
        let list = site.guest().ip(&["neigh", "show", "dev", "w1"])?;
        Ok((!list.contains("managed")).then_some(()))
    })?;
    site.guest().ip(&["neigh", "flush", "dev", "w1"])?;
    reach(site, &site.n[0].wire)?;
    wait_for("the host to forward to it", LIMIT, || {
        let transit = site.transit(|| wait(site, &site.far, TICK).map(|_| ()))?;
        Ok((transit == 0).then_some(()))
    })?;
    // What the guest itself has sent makes it ask once more.
    std::thread::sleep(Duration::from_secs(2));
    move_address(site, true)?;
    let control = wait(site, &site.far, QUIET)?;
    move_address(site, false)?;
    keep(site, true)?;
    site.guest().ip(&["neigh", "flush", "dev", "w1"])?;

    site.n[0].ns.ip_batch(&addresses("del"))?;
    site.change("route del 10.94.0.0/16\n")?;
    site.resolve()?;
    let ms = |time: Duration| Value::from(time.as_millis() as u64);
    figures.insert("glean_lost".into(), first.lost.into());
    figures.insert("glean_reordered".into(), first.reordered.into());
    figures.insert("fresh_lost".into(), kept.lost.into());
    figures.insert("fresh_transit".into(), transit.into());
    figures.insert("moved_announced_ms".into(), ms(announced));
    figures.insert("moved_unannounced_ms".into(), ms(found));
    figures.insert("dead_unreachable_ms".into(), ms(dead));
    figures.insert(
        "adjacency".into(),
        json!({
            "glean_sent": first.sent,
            "glean_longest_gap_ms": first.longest_gap_ms,
            "fresh_sent": kept.sent,
            "fresh_seconds": (kept.seconds * 10.0).round() / 10.0,
            // None if it was not found: often, not always, something else makes the kernel ask.
            "control_found_ms": control.map(ms),
        }),
    );
    Ok(())
}

/// Sends behind the dead gateway, and to nobody, until r1 says of both that there is no such host: how long that took.
fn unreachable(site: &Site) -> Result<Duration> {
    site.h.wire.take()?;
    let (start, first) = (Instant::now(), site.next_number());
    let second = site.next_number();
    let (to_dead, to_nobody) = (site.udp(&site.h, BEHIND), site.udp(&site.h, NOBODY));
    let mut errors = BTreeMap::new();
    wait_for("host unreachable of a dead neighbor and of nobody", LIMIT, || {
        site.h.wire.send(&[to_dead.frame(&[], first, 0), to_nobody.frame(&[], second, 0)])?;
        std::thread::sleep(Duration::from_millis(20));
        for error in site.h.wire.take()?.iter().filter_map(|frame| icmp_error(frame)) {
            errors.insert(error.number, error);
        }
        Ok((errors.contains_key(&first) && errors.contains_key(&second)).then_some(()))
    })
    .with_context(|| format!("r1 says {errors:?}"))?;
    let is_right = |error: &IcmpError| (error.from, error.kind, error.code) == (R1.into(), 3, 1);
    ensure!(errors.values().all(is_right), "r1 says {errors:?}");
    Ok(start.elapsed())
}

/// From n1 to u, or back.
fn move_address(site: &Site, away: bool) -> Result<()> {
    let (from, to) = ((&site.n[0].ns, NIC), (&site.u.ns, FAR));
    let (from, to) = if away { (from, to) } else { (to, from) };
    from.0.ip(&["address", "del", &format!("{MOVING}/24"), "dev", from.1])?;
    to.0.ip(&["address", "add", &format!("{MOVING}/24"), "dev", to.1])?;
    Ok(())
}

/// Sends to [`BEHIND`] until a packet comes out of a wire: how long that took.
fn reach(site: &Site, out: &Wire) -> Result<Duration> {
    wait(site, out, LIMIT)?.with_context(|| format!("no packet to {BEHIND} came within {LIMIT:?}"))
}

fn wait(site: &Site, out: &Wire, limit: Duration) -> Result<Option<Duration>> {
    out.take()?;
    let (start, number) = (Instant::now(), site.next_number());
    while start.elapsed() < limit {
        site.h.wire.send(&[site.udp(&site.h, BEHIND).frame(&[], number, 5)])?;
        std::thread::sleep(Duration::from_millis(10));
        if out.take()?.iter().any(|frame| numbers(frame) == Some((number, 5))) {
            return Ok(Some(start.elapsed()));
        }
    }
    Ok(None)
}

/// Restarts the client of r1, keeping neighbors fresh or not.
fn keep(site: &mut Site, keep: bool) -> Result<()> {
    site.r1.configure("keep_neighbors", keep)?;
    site.r1.stop_client()?;
    site.r1.start_client()?;
    wait_for("the client's session", LIMIT, || {
        let state = site.r1.client_state()?;
        Ok((state.state == "up").then_some(()))
    })
}
