//! The detector of leaks: one network sends whatever it can think of, captures at every port of the other count
//! what arrives.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::capture::{self, Capture};
use crate::endhost::NIC;
use crate::frame;
use crate::inject;
use crate::scenario::Lab;
use crate::virtual_router::CONTROL;

use super::{Network, Twin, host_mac};

/// What the attack came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(in crate::scenarios) struct Leaks {
    /// Frames that were sent.
    pub(in crate::scenarios) sent: usize,
    /// Of those, seen in the attacker's own network: the proof that the captures see.
    pub(in crate::scenarios) seen_at_home: usize,
    /// Of those, seen in the other network.
    pub(in crate::scenarios) leaked: usize,
}

impl std::ops::Add for Leaks {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            seen_at_home: self.seen_at_home + other.seen_at_home,
            leaked: self.leaked + other.leaked,
        }
    }
}

const RATE: u32 = 2000;
const DRAINED: Duration = Duration::from_secs(10);

/// Network `attacker` floods and spoofs from its end host and, as a guest gone bad, from its router's vifs.
pub(in crate::scenarios) fn attack(lab: &Lab, twin: &Twin, attacker: usize) -> Result<Leaks> {
    let home = twin.networks.get(attacker).context("no such network")?;
    let other = twin.networks.get(1 - attacker).context("no such network")?;
    lab.step(format!("{} floods and spoofs; captures at every port of {}", home.name, other.name));
    let mark = format!("marked by {}", home.name).into_bytes();

    let ends = other.h.iter().map(|end| (end.netns(), NIC));
    let routers = other
        .r
        .iter()
        .flat_map(|router| ["lan", "core", CONTROL].map(|interface| (router.guest().netns(), interface)));
    let mut abroad = Vec::new();
    for (ns, interface) in ends.chain(routers) {
        abroad.push(Capture::start(lab, ns, interface, "")?);
    }
    // r1 of the attacker sees what its end host floods.
    let at_home = Capture::start(lab, home.r[0].guest().netns(), "lan", "")?;

    let own = [host_mac(attacker, 0), home.r[0].mac(0), home.r[0].mac(1)];
    let sources = [
        (home.h[0].netns(), NIC, own[0].as_str(), home.vlans[0]),
        (home.r[0].guest().netns(), "lan", own[1].as_str(), home.vlans[0]),
        (home.r[0].guest().netns(), "core", own[2].as_str(), home.vlans[1]),
    ];
    let mut sent = 0;
    for (ns, interface, mac, vlan) in sources {
        let frames = frames(frame::mac(mac)?, vlan, other, 1 - attacker, &mark)?;
        inject::inject(lab, ns, interface, &frames, u32::try_from(frames.len())?, RATE)?;
        sent += frames.len();
    }
    // Whatever was on its way has come before this has gone there and back. What waits in the switch's one queue of
    // first packets is handled first: a slow machine takes its time for that.
    other.h[0].wait_reachable(super::H2, DRAINED).with_context(|| other.state())?;
    let marked = |view: frame::View<'_>| view.contains(&mark);
    let seen_at_home = capture::count(&at_home.stop()?, marked);
    let mut leaked = 0;
    for capture in abroad {
        leaked += capture::count(&capture.stop()?, marked);
    }
    Ok(Leaks { sent, seen_at_home, leaked })
}

/// Every destination that might lead there, under every tag, from every source.
fn frames(own: [u8; 6], vlan: u16, other: &Network, index: usize, mark: &[u8]) -> Result<Vec<Vec<u8>>> {
    let victims = [
        host_mac(index, 0),
        host_mac(index, 1),
        other.r[0].mac(0),
        other.r[0].mac(1),
        other.r[1].mac(0),
        other.r[1].mac(1),
        other.r[0].mac(99),
    ];
    let mut destinations = vec![
        frame::mac("ff:ff:ff:ff:ff:ff")?,
        frame::mac("01:00:5e:00:00:05")?,
        frame::mac("33:33:00:00:00:01")?,
        frame::mac("02:de:ad:00:00:01")?,
        frame::mac("aa:aa:aa:aa:aa:aa")?,
        frame::mac("0e:58:46:00:00:01")?,
    ];
    let mut sources = vec![own, frame::mac("ff:ff:ff:ff:ff:ff")?];
    for victim in &victims {
        destinations.push(frame::mac(victim)?);
        sources.push(frame::mac(victim)?);
    }
    let mut tags: Vec<Vec<u16>> = vec![vec![], vec![0], vec![vlan]];
    for foreign in other.vlans {
        tags.extend([vec![foreign], vec![vlan, foreign], vec![foreign, vlan]]);
    }
    let to_h2 = frame::udp4(("10.1.0.10".parse()?, 1), (super::H2.parse()?, 9), 64, mark)?;
    let to_core = frame::udp4(("10.0.0.1".parse()?, 1), ("10.0.0.2".parse()?, 9), 1, mark)?;
    let mut arp = frame::arp(1, (own, "10.0.0.1".parse()?), ([0; 6], "10.0.0.2".parse()?));
    arp.extend_from_slice(mark);
    let payloads = [(frame::IPV4, to_h2), (frame::IPV4, to_core), (frame::ARP, arp)];

    let mut frames = Vec::new();
    for (at, destination) in destinations.iter().enumerate() {
        for (from, source) in sources.iter().enumerate() {
            for (tag, tags) in tags.iter().enumerate() {
                // Each destination meets each tag and each source; the payloads take turns.
                let (ethertype, payload) = &payloads[(at + from + tag) % payloads.len()];
                frames.push(frame::ethernet(*destination, *source, tags, *ethertype, payload));
            }
        }
    }
    Ok(frames)
}
