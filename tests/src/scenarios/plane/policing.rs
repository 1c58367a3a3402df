//! Policing: what a guest gets is bounded by kind and router, so that no flood takes from another kind, from another
//! router, or from those who are no router at all.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::packet::numbers;
use super::site::{LIMIT, R1, Site};
use super::wire::Wire;
use crate::flood::Flood;
use crate::frame::{self, View};
use crate::process::wait_for;
use crate::scenario::Lab;

/// Packets a second of the classes that are attacked.
const POLICED: u32 = 100;
/// Packets a second of an attack.
const ATTACK: u32 = 5_000;
/// Hellos a second, and how many; of pings to r2 as many.
const HELLO_RATE: u32 = 50;
const HELLOS: u32 = 75;
/// The same pings, far over r2's rate.
const PING_RATE: u32 = 1_000;
const PINGS: u32 = 1_000;
/// A broadcast flood's.
const FLOOD_RATE: u32 = 1_000;
const FLOODED: u32 = 1_000;
/// `AllSPFRouters` (RFC 2328 A.1) and its MAC address.
const ALL_SPF: (Ipv4Addr, [u8; 6]) = (Ipv4Addr::new(224, 0, 0, 5), [1, 0, 0x5e, 0, 0, 5]);
const OSPF: u8 = 89;
const ICMP: u8 = 1;
/// r2 in `lan`.
const R2: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// What was sent last arrives within this.
const SETTLE: Duration = Duration::from_millis(200);

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    let features = site.node.host().ofctl(&["meter-features", crate::node::BRIDGE])?;
    let most = features.split("max_meter:").nth(1).and_then(|rest| rest.split_whitespace().next());
    ensure!(most.is_some_and(|most| most != "0"), "this datapath has no meters: {features}");
    let of = |classes: &[&str]| -> Vec<String> {
        classes.iter().map(|class| format!("--punt-rate={class}={POLICED}")).collect()
    };
    set_rates(site, "r1", &of(&["exception", "resolution", "host"]))?;
    set_rates(site, "r2", &of(&["host"]))?;
    let guest = Wire::open(site.guest(), "lan")?;
    let r2 = Wire::open(site.r2.guest().netns(), "lan")?;
    let wires = Wires { r1: &guest, r2: &r2 };

    let r1_mac = frame::mac(&site.r1.mac(0))?;
    let h = &site.h;
    let mut dying = site.udp(h, site.n[0].address);
    dying.ttl = 1;
    let asks =
        frame::ethernet([0xff; 6], h.mac, &[], frame::ARP, &frame::arp(1, (h.mac, h.address), ([0; 6], R1)));
    let ping = frame::ethernet(r1_mac, h.mac, &[], frame::IPV4, &ping(h.address, R1, 1));
    let is_dying = |frame: &[u8]| numbers(frame).is_some();
    let is_arp =
        |frame: &[u8]| View(frame).ethertype() == Some(frame::ARP) && View(frame).src() == Some(h.mac);
    let is_ping = |frame: &[u8]| ping_number(frame, h.address).is_some();
    let (mut lost, mut lost_by_r2, mut worst, mut attacks) = (0, 0, 0.0_f64, Map::new());
    for (name, frame, is_attack) in [
        ("ttl_1", dying.frame(&[], 1, 0), &is_dying as &dyn Fn(&[u8]) -> bool),
        ("arp_storm", asks, &is_arp),
        ("ping_flood", ping, &is_ping),
    ] {
        lab.step(format!("{name} at {ATTACK} packets/s against r1, beside {HELLO_RATE} OSPF hellos/s to r1 and r2, and as many pings to r2"));
        let attack = attack(lab, site, wires, &frame, is_attack)?;
        lost += attack.hellos_lost;
        lost_by_r2 += attack.r2_hellos_lost + attack.r2_pings_lost;
        worst = worst.max(attack.over);
        attacks.insert(name.into(), attack.json());
    }

    lab.step("control: an attack on the hellos' own class");
    set_rates(site, "r1", &of(&["routing"]))?;
    let false_hello = frame::ethernet(ALL_SPF.1, h.mac, &[], frame::IPV4, &hello(h.address, u32::MAX));
    let is_false = |frame: &[u8]| hello_number(frame) == Some(u32::MAX);
    let control = attack(lab, site, wires, &false_hello, &is_false)?;
    ensure!(
        control.hellos_lost > 0,
        "hellos got through a flood of hellos over their meter: {:?}",
        control.json()
    );
    set_rates(site, "r1", &["--punt-rate=routing=default".to_owned()])?;

    lab.step(format!("control: the pings to r2 at {PING_RATE}/s, over its own rate"));
    let pings = pings(site, PINGS)?;
    let mut pinged = vec![false; PINGS as usize];
    let mut hear = || -> Result<()> {
        r2.take()?.iter().for_each(|frame| note(&mut pinged, ping_number(frame, site.u.address)));
        Ok(())
    };
    r2.take()?;
    site.u.wire.pace(&pings, PING_RATE, &mut hear)?;
    std::thread::sleep(SETTLE);
    hear()?;
    let over = missing(&pinged);
    ensure!(
        (1..u64::from(PINGS)).contains(&over),
        "{over} of {PINGS} pings at {PING_RATE}/s were lost over a meter of {POLICED}/s"
    );
    set_rates(site, "r2", &["--punt-rate=host=default".to_owned()])?;

    lab.step("a broadcast flood over r1's meter: everybody else gets all of it");
    let mut broadcast = site.udp(h, Ipv4Addr::BROADCAST);
    broadcast.to_mac = [0xff; 6];
    let frames: Vec<_> = (0..FLOODED).map(|number| broadcast.frame(&[], number, 7)).collect();
    let others = [("r2", &r2), ("h2", &site.h2.wire), ("uplink", &site.u.wire)];
    for wire in others.iter().map(|(_, wire)| *wire).chain([&guest]) {
        wire.take()?;
    }
    h.wire.pace(&frames, FLOOD_RATE, || Ok(()))?;
    std::thread::sleep(Duration::from_millis(300));
    let count = |wire: &Wire| -> Result<u64> {
        let frames = wire.take()?;
        Ok(frames.iter().filter(|frame| numbers(frame).is_some_and(|(_, seq)| seq == 7)).count() as u64)
    };
    let of_r1 = count(&guest)?;
    let mut missed = Map::new();
    let mut flood_lost = 0;
    for (name, wire) in others {
        let came = count(wire)?;
        let gone = u64::from(FLOODED).saturating_sub(came);
        flood_lost += gone;
        missed.insert(name.into(), gone.into());
    }
    ensure!(of_r1 < u64::from(FLOODED) / 2, "r1 got {of_r1} of {FLOODED} packets of a flood over its meter");

    set_rates(
        site,
        "r1",
        &["exception", "resolution", "host"].map(|class| format!("--punt-rate={class}=default")),
    )?;
    figures.insert("police_hellos_lost".into(), lost.into());
    figures.insert("police_r2_lost".into(), lost_by_r2.into());
    figures.insert("police_over_rate_max".into(), ((worst * 100.0).round() / 100.0).into());
    figures.insert("police_flood_lost_by_others".into(), flood_lost.into());
    attacks.insert("control_own_class".into(), control.json());
    attacks.insert("control_r2_over_its_rate".into(), json!({ "sent": PINGS, "lost": over }));
    figures.insert(
        "police".into(),
        json!({ "attacks": attacks, "flood_of_r1": of_r1, "flood_missed_by": missed, "flood": FLOODED }),
    );
    Ok(())
}

/// Sets rates of a router, and waits until the switch has them.
fn set_rates(site: &Site, router: &str, rates: &[String]) -> Result<()> {
    let mut args = vec!["router", "set", router];
    args.extend(rates.iter().map(String::as_str));
    let before = meters(site)?;
    site.node.xenflow(&args)?;
    wait_for("the switch to have the meters", LIMIT, || Ok((meters(site)? != before).then_some(())))
}

fn meters(site: &Site) -> Result<String> {
    site.node.host().ofctl(&["dump-meters", crate::node::BRIDGE])
}

/// Where the routers are listened to.
#[derive(Clone, Copy)]
struct Wires<'a> {
    r1: &'a Wire,
    r2: &'a Wire,
}

/// What an attack on r1 did.
struct Attack {
    sent: u64,
    reached: u64,
    seconds: f64,
    hellos_lost: u64,
    r2_hellos_lost: u64,
    r2_pings_lost: u64,
    /// Packets of the attack that reached the guest, by those that the rate allows.
    over: f64,
}

impl Attack {
    fn json(&self) -> Value {
        json!({
            "sent": self.sent,
            "reached_the_guest": self.reached,
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "hellos_lost": self.hellos_lost,
            "r2_hellos_lost": self.r2_hellos_lost,
            "r2_pings_lost": self.r2_pings_lost,
        })
    }
}

/// Attacks from h while u says hello, and pings r2.
fn attack(
    lab: &Lab,
    site: &Site,
    wires: Wires<'_>,
    frame: &[u8],
    is_attack: &dyn Fn(&[u8]) -> bool,
) -> Result<Attack> {
    wires.r1.take()?;
    let flood = Flood::start(lab, &site.h.ns, crate::endhost::NIC, frame, &[], ATTACK)?;
    wait_for("the attack", LIMIT, || {
        Ok(wires.r1.take()?.iter().any(|frame| is_attack(frame)).then_some(()))
    })?;
    wires.r2.take()?;
    let hellos = (0..HELLOS).map(|number| {
        let hello = hello(site.u.address, number);
        frame::ethernet(ALL_SPF.1, site.u.mac, &[], frame::IPV4, &hello)
    });
    let pairs: Vec<_> = hellos.zip(pings(site, HELLOS)?).flat_map(|(hello, ping)| [hello, ping]).collect();
    let none = vec![false; HELLOS as usize];
    let (mut reached, mut heard, mut r2_heard, mut r2_pinged) = (0, none.clone(), none.clone(), none);
    let mut take = || -> Result<()> {
        for frame in wires.r1.take()? {
            if let Some(heard) = hello_number(&frame).and_then(|number| heard.get_mut(number as usize)) {
                *heard = true;
            } else if is_attack(&frame) {
                reached += 1;
            }
        }
        for frame in wires.r2.take()? {
            note(&mut r2_heard, hello_number(&frame));
            note(&mut r2_pinged, ping_number(&frame, site.u.address));
        }
        Ok(())
    };
    let start = std::time::Instant::now();
    site.u.wire.pace(&pairs, 2 * HELLO_RATE, &mut take)?;
    let report = flood.stop()?;
    let seconds = start.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    take()?;
    ensure!(report.frames > u64::from(ATTACK), "the attack sent only {} packets", report.frames);
    let over = reached as f64 / (seconds * f64::from(POLICED));
    Ok(Attack {
        sent: report.frames,
        reached,
        seconds,
        hellos_lost: missing(&heard),
        r2_hellos_lost: missing(&r2_heard),
        r2_pings_lost: missing(&r2_pinged),
        over,
    })
}

/// Marks a number that was heard.
fn note(heard: &mut [bool], number: Option<u32>) {
    if let Some(heard) = number.and_then(|number| heard.get_mut(number as usize)) {
        *heard = true;
    }
}

fn missing(heard: &[bool]) -> u64 {
    heard.iter().filter(|heard| !**heard).count() as u64
}

/// Numbered pings from u to r2's own address.
fn pings(site: &Site, count: u32) -> Result<Vec<Vec<u8>>> {
    let mac = frame::mac(&site.r2.mac(0))?;
    let u = &site.u;
    Ok((0..count)
        .map(|number| frame::ethernet(mac, u.mac, &[], frame::IPV4, &ping(u.address, R2, number)))
        .collect())
}

/// An echo request; its number is in the data.
fn ping(from: Ipv4Addr, to: Ipv4Addr, number: u32) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0, 1, 0, 1];
    icmp.extend_from_slice(&number.to_be_bytes());
    let sum = frame::checksum(&icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    ipv4(ICMP, from, to, 64, &icmp)
}

/// The number of a ping from there.
fn ping_number(frame: &[u8], from: Ipv4Addr) -> Option<u32> {
    let view = View(frame);
    let is_ping = view.ethertype() == Some(frame::IPV4) && view.payload().get(9) == Some(&ICMP);
    (is_ping && view.ipv4_src() == Some(from)).then_some(())?;
    Some(u32::from_be_bytes(view.payload().get(28..32)?.try_into().ok()?))
}

/// An OSPF packet in name: version 2, a hello, and a number where the router id is.
fn hello(from: Ipv4Addr, number: u32) -> Vec<u8> {
    let mut ospf = vec![2, 1, 0, 44];
    ospf.extend_from_slice(&number.to_be_bytes());
    ospf.resize(44, 0);
    ipv4(OSPF, from, ALL_SPF.0, 1, &ospf)
}

fn hello_number(frame: &[u8]) -> Option<u32> {
    let view = View(frame);
    (view.ipv4_dst()? == ALL_SPF.0 && *view.payload().get(9)? == OSPF).then_some(())?;
    Some(u32::from_be_bytes(view.payload().get(24..28)?.try_into().ok()?))
}

/// An IPv4 packet.
fn ipv4(proto: u8, from: Ipv4Addr, to: Ipv4Addr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, ttl, proto, 0, 0]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = frame::checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend_from_slice(payload);
    packet
}
