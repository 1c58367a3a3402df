//! The tagger: frames that nobody may send get nowhere, and the switch has counted each by port and reason.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::packet::numbers;
use super::site::{LAN, LIMIT, Site, W1};
use super::wire::Wire;
use crate::frame;
use crate::node::BRIDGE;
use crate::process::wait_for;
use crate::scenario::Lab;

/// Frames of each kind.
const EACH: u32 = 20;
/// Marks them; the kind is added.
const SEQ: u32 = 1000;
/// Tags on the wire: an IEEE 802.1p priority without a VLAN, and a VLAN of no segment.
const PRIORITY: u16 = 0x2000;
const UNKNOWN: u16 = 999;

/// Packets by port and reason.
type Refused = BTreeMap<(u64, u64), u64>;

/// A frame that is not let in.
struct Kind {
    name: &'static str,
    to: [u8; 6],
    /// Of another than the port's own.
    from: Option<[u8; 6]>,
    tags: &'static [u16],
    /// As numbered in the cookie of the flow that drops it (`Refusal::number` of the flow tables).
    reason: u64,
}

const GROUP_SOURCE: u64 = 1;
const FORGED_ANNOUNCEMENT: u64 = 2;
const DOUBLE_TAG: u64 = 4;
const PRIORITY_TAG: u64 = 5;
const FOREIGN_TAG: u64 = 6;
const FOREIGN_SOURCE: u64 = 8;

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step("tags, sources and announcements that no port lets in");
    let vif = Wire::open(site.guest(), "lan")?;
    let r2 = Wire::open(site.r2.guest().netns(), "lan")?;
    let r1_mac = frame::mac(&site.r1.mac(0))?;
    let all = [0xff; 6];
    let kind = |name, to, from, tags, reason| Kind { name, to, from, tags, reason };
    let both = || {
        vec![
            kind("priority tag", all, None, &[PRIORITY], PRIORITY_TAG),
            kind("own tag", all, None, &[LAN], FOREIGN_TAG),
            kind("foreign tag", all, None, &[W1], FOREIGN_TAG),
            kind("unknown tag", all, None, &[UNKNOWN], FOREIGN_TAG),
            kind("two tags", all, None, &[LAN, W1], DOUBLE_TAG),
            kind("a group as source", all, Some([3, 0, 0, 0, 0, 1]), &[], GROUP_SOURCE),
            kind(
                "r2's source",
                all,
                Some(frame::mac(&site.r2.mac(0)).unwrap_or_default()),
                &[],
                FOREIGN_SOURCE,
            ),
            kind("an announcement", [0xaa; 6], None, &[], FORGED_ANNOUNCEMENT),
        ]
    };
    let mut of_access = both();
    of_access.push(kind("r1's source", all, Some(r1_mac), &[], FOREIGN_SOURCE));
    let mut of_vif = both();
    of_vif.push(kind("any other source", all, Some([2, 0x99, 0, 0, 0, 1]), &[], FOREIGN_SOURCE));
    let port = |name: &str| site.node.host().ofport(name).map(u64::from);
    let ports = [
        ("access", &site.h.wire, site.h.mac, port("port-h")?, of_access),
        ("vif", &vif, r1_mac, port(&site.r1.port("lan"))?, of_vif),
    ];
    let outs: [&Wire; 8] =
        [&vif, &r2, &site.h.wire, &site.h2.wire, &site.u.wire, &site.far, &site.n[0].wire, &site.n[1].wire];
    // Where each kind came.
    let take = || -> Result<BTreeMap<u32, u64>> {
        let mut came = BTreeMap::new();
        for wire in outs {
            for (_, seq) in wire.take()?.iter().filter_map(|frame| numbers(frame)) {
                if seq >= SEQ {
                    *came.entry(seq).or_default() += 1;
                }
            }
        }
        Ok(came)
    };

    let before = refused(site)?;
    let (mut wanted, mut names, mut seq) = (Refused::new(), BTreeMap::new(), SEQ);
    take()?;
    for (side, wire, own, port, kinds) in &ports {
        for Kind { name, to, from, tags, reason } in kinds {
            let mut udp = site.udp(&site.h, [10, 1, 0, 255].into());
            (udp.to_mac, udp.from_mac) = (*to, from.unwrap_or(*own));
            wire.send(&(0..EACH).map(|number| udp.frame(tags, number, seq)).collect::<Vec<_>>())?;
            *wanted.entry((*port, *reason)).or_default() += u64::from(EACH);
            names.insert(seq, format!("{side}: {name}"));
            seq += 1;
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let leaks = take()?;
    let leaked: u64 = leaks.values().sum();
    let leaks: BTreeMap<&str, u64> =
        leaks.iter().filter_map(|(seq, count)| Some((names.get(seq)?.as_str(), *count))).collect();
    // What the datapath counted comes to the flows with the next round of revalidation.
    let mut counted = Refused::new();
    let complete = wait_for("the drops to be counted", Duration::from_secs(5), || {
        site.revalidated()?;
        let now = refused(site)?;
        counted = wanted
            .keys()
            .map(|key| (*key, now.get(key).unwrap_or(&0) - before.get(key).unwrap_or(&0)))
            .collect();
        Ok((counted == wanted).then_some(()))
    });
    let miscounted = wanted.iter().filter(|(key, count)| counted.get(key) != Some(count)).count();

    lab.step("control: a good frame of each port goes to everybody in the segment");
    let mut control = Vec::new();
    for (_, wire, own, _, _) in &ports {
        let mut udp = site.udp(&site.h, [10, 1, 0, 255].into());
        (udp.to_mac, udp.from_mac) = (all, *own);
        take()?;
        wire.send(&[udp.frame(&[], 0, seq)])?;
        let mut came = 0;
        wait_for("a good frame at the other four", LIMIT, || {
            came += take()?.get(&seq).unwrap_or(&0);
            Ok((came >= 4).then_some(()))
        })?;
        control.push(came);
    }
    ensure!(control == [4, 4], "good frames reached {control:?} places, not 4 each");
    let text = |refused: &Refused| -> BTreeMap<String, u64> {
        refused
            .iter()
            .map(|((port, reason), count)| (format!("port {port} reason {reason}"), *count))
            .collect()
    };
    figures.insert("tagger_kinds".into(), names.len().into());
    figures.insert("tagger_leaked".into(), leaked.into());
    figures.insert("tagger_miscounted".into(), miscounted.into());
    let mut more = json!({ "leaks": leaks, "control_delivered": control });
    if complete.is_err() {
        more["wanted"] = json!(text(&wanted));
        more["counted"] = json!(text(&counted));
    }
    figures.insert("tagger".into(), more);
    Ok(())
}

/// What the flows that refuse have counted.
fn refused(site: &Site) -> Result<Refused> {
    let flows = site.node.host().ofctl(&["dump-flows", BRIDGE, "table=0"])?;
    let mut refused = Refused::new();
    for line in flows.lines().filter(|line| line.contains("actions=drop")) {
        let cookie = line.split_once("cookie=0x").and_then(|(_, rest)| rest.split(',').next());
        let cookie = u64::from_str_radix(cookie.context("a flow without a cookie")?, 16)?;
        let packets = line.split_once("n_packets=").and_then(|(_, rest)| rest.split(',').next());
        let packets: u64 = packets.context("a flow without a counter")?.parse()?;
        *refused.entry((cookie >> 16 & 0xffff, cookie >> 32 & 0xff)).or_default() += packets;
    }
    Ok(refused)
}
