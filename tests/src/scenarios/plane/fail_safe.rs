//! Fail safe: what only the guest's kernel decides takes its packets to the VM and back, without losing one; and a
//! guest that does not forward is not forwarded for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::packet::numbers;
use super::site::{LIMIT, Site};
use crate::probe::Probe;
use crate::process::wait_for;
use crate::scenario::Lab;

/// Packets a second of the probe: fewer than the meter of transit lets through.
const RATE: u32 = 500;
/// How long the way of packets is looked at.
const LOOK: Duration = Duration::from_millis(300);
const PORT: u16 = 7100;
/// Packets that a guest does not forward.
const REFUSED: u32 = 300;

/// What the guest, or the operator, says; and how it is taken back.
struct Act {
    name: &'static str,
    does: fn(&Site) -> Result<()>,
    undoes: fn(&Site) -> Result<()>,
    /// What `xenflow show router` must say: a word in each.
    says: &'static [&'static str],
}

const ACTS: &[Act] = &[
    Act {
        name: "rp_filter",
        does: |site| site.guest().sysctls(&[("net.ipv4.conf.lan.rp_filter", "1")]),
        undoes: |site| site.guest().sysctls(&[("net.ipv4.conf.lan.rp_filter", "0")]),
        says: &["r1-lan", "IPv4", "rp_filter"],
    },
    Act {
        name: "rule",
        does: |site| site.guest().ip_batch("rule add from 10.1.0.99 lookup main priority 100\n"),
        undoes: |site| site.guest().ip_batch("rule del priority 100\n"),
        says: &["IPv4", "rule"],
    },
    Act {
        name: "tc",
        does: |site| {
            tc(site, "qdisc add dev lan clsact")?;
            tc(site, "filter add dev lan ingress protocol ip u32 match ip dst 192.0.2.1/32 action drop")
        },
        undoes: |site| tc(site, "qdisc del dev lan clsact"),
        says: &["r1-lan", "tc"],
    },
    Act {
        name: "never",
        does: |site| policy(site, "never"),
        undoes: |site| policy(site, "auto"),
        says: &["never"],
    },
];

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    let n1 = &site.n[0];
    let probe = Probe::start(lab, &site.h.ns, &n1.ns, (n1.address, PORT).into(), RATE)?;
    let (mut acts, mut transit_fast, mut unnamed) = (Map::new(), 0, Vec::new());
    transit_fast += looked(site)?;
    for act in ACTS {
        lab.step(format!("the VM forwards, and then no more: {}", act.name));
        (act.does)(site)?;
        let slow = wait_for("the VM to forward everything", LIMIT, || {
            let transit = looked(site)?;
            Ok((transit >= u64::from(RATE) / 5).then_some(transit))
        })
        .context(act.name)?;
        let said = wait_for("the database to say so", LIMIT, || {
            Ok(Some(reasons(site)?).filter(|it| !it.is_empty()))
        })?;
        if !act.says.iter().all(|word| said.to_lowercase().contains(&word.to_lowercase())) {
            unnamed.push(format!("{}: {said:?} does not say {:?}", act.name, act.says));
        }
        (act.undoes)(site)?;
        wait_for("the host to forward everything", LIMIT, || Ok((looked(site)? == 0).then_some(())))
            .context(act.name)?;
        transit_fast += looked(site)?;
        acts.insert(act.name.into(), json!({ "transit_while_slow": slow, "says": said }));
    }

    lab.step("`always`: the operator answers for what the guest's kernel also looks at");
    policy(site, "always")?;
    site.guest().sysctls(&[("net.ipv4.conf.lan.rp_filter", "1")])?;
    std::thread::sleep(Duration::from_millis(1500));
    let transit_always = looked(site)?;
    site.guest().sysctls(&[("net.ipv4.conf.lan.rp_filter", "0")])?;
    policy(site, "auto")?;
    wait_for("the host to forward everything", LIMIT, || Ok((looked(site)? == 0).then_some(())))?;
    let report = probe.stop()?;
    ensure!(report.sent > 2_000, "the probe sent only {} packets", report.sent);

    lab.step("the guest stops forwarding: so does the host");
    let watch = site.r1.watch()?;
    site.guest().sysctls(&[("net.ipv4.ip_forward", "0")])?;
    site.settle(watch)?;
    let at_once = delivered(site)?;
    site.revalidated()?;
    let refused = delivered(site)?;
    let said = reasons(site)?;
    if !["lan", "forwarding"].iter().all(|word| said.contains(word)) {
        unnamed.push(format!("forwarding off: {said:?}"));
    }
    let watch = site.r1.watch()?;
    site.guest().sysctls(&[("net.ipv4.ip_forward", "1")])?;
    site.settle(watch)?;
    site.resolve()?;
    let again = delivered(site)?;
    ensure!(again == u64::from(REFUSED), "{again} of {REFUSED} packets after forwarding came on again");

    figures.insert("fail_safe_lost".into(), report.lost.into());
    figures.insert("fail_safe_transit_while_fast".into(), (transit_fast + transit_always).into());
    figures.insert("fail_safe_delivered_while_off".into(), refused.into());
    figures.insert("fail_safe_unnamed".into(), unnamed.len().into());
    figures.insert(
        "fail_safe".into(),
        json!({
            "sent": report.sent,
            "reordered": report.reordered,
            "duplicated": report.duplicated,
            "longest_gap_ms": report.longest_gap_ms,
            "acts": acts,
            "unnamed": unnamed,
            "delivered_right_after_ack": at_once,
            "control_delivered_while_on": again,
        }),
    );
    Ok(())
}

fn tc(site: &Site, words: &str) -> Result<()> {
    site.guest().run("tc", &words.split(' ').collect::<Vec<_>>())?;
    Ok(())
}

fn policy(site: &Site, policy: &str) -> Result<()> {
    site.node.xenflow(&["router", "set", "r1", "--fastpath", policy])?;
    Ok(())
}

/// Packets that r1 forwards within [`LOOK`].
fn looked(site: &Site) -> Result<u64> {
    site.transit(|| {
        std::thread::sleep(LOOK);
        Ok(())
    })
}

/// Why the guest forwards, in the words of `xenflow show router`.
fn reasons(site: &Site) -> Result<String> {
    let shown = site.shown()?;
    let slow = find(&shown, "slow");
    Ok(slow
        .and_then(Value::as_array)
        .map(|slow| slow.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "))
        .unwrap_or_default())
}

/// The first member of this name, at any depth.
pub(super) fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(members) => {
            members.get(name).or_else(|| members.values().find_map(|value| find(value, name)))
        }
        Value::Array(values) => values.iter().find_map(|value| find(value, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// How many of [`REFUSED`] packets reach n1.
fn delivered(site: &Site) -> Result<u64> {
    let n1 = &site.n[0];
    n1.wire.take()?;
    let frames: Vec<_> =
        (0..REFUSED).map(|number| site.udp(&site.h, n1.address).frame(&[], number, 3)).collect();
    site.h.wire.pace(&frames, 2 * RATE, || Ok(()))?;
    std::thread::sleep(LOOK);
    let came = n1.wire.take()?;
    Ok(came.iter().filter(|frame| numbers(frame).is_some_and(|(_, seq)| seq == 3)).count() as u64)
}
