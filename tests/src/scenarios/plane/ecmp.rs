//! Several next hops: shares as the weights say, flows that stay where they are, nothing lost or overtaken.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::packet::numbers;
use super::site::{LIMIT, Site};
use super::wire::Wire;
use crate::endhost::NIC;
use crate::node::BRIDGE;
use crate::process::wait_for;
use crate::scenario::Lab;

/// Flows of a measurement.
const FLOWS: u32 = 10_000;
/// Flows of a control, and of what needs no shares.
const FEW: u32 = 2_000;
/// Packets of a flow when order is looked at.
const PACKETS: u32 = 2;
/// Packets under way at most: any may be the first of its flow that the datapath knows, after a change too, when the
/// switch forgets what does not hold any more. Each of those is an upcall, and the socket of a port holds some 160.
const WINDOW: usize = 96;
/// The prefix behind all next hops.
const PREFIX: &str = "10.99.0.0/16";

/// Which next hop each flow took; none: it was lost.
type Paths = Vec<Option<usize>>;

/// What a pass over all flows found.
struct Pass {
    paths: Paths,
    /// Packets that came after a later one of their flow.
    reordered: u64,
    /// Flows that took more than one path.
    split: u64,
    /// Packets that came nowhere.
    lost: u64,
}

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step(format!("two next hops of weights 1 and 2, {FLOWS} flows"));
    route(site, "add", &[1, 2, 0])?;
    policy(site, 1)?;
    let two = pass(site, frame, (FLOWS, 1))?;
    let error_two = share_error(&two.paths, &[1, 2, 0]);

    lab.step(format!("three next hops of weights 1, 1 and 2, {FLOWS} flows of {PACKETS} packets"));
    route(site, "replace", &[1, 1, 2])?;
    site.revalidated()?;
    let three = pass(site, frame, (FLOWS, PACKETS))?;
    let error_three = share_error(&three.paths, &[1, 1, 2]);

    lab.step("the link of one next hop goes down: others' flows stay, its own find another");
    site.change("link set w3 down\n")?;
    let at_once = pass(site, frame, (FEW, 1))?;
    site.revalidated()?;
    let without = pass(site, frame, (FLOWS, 1))?;
    let moved = moved(&three.paths, &without.paths, 2);
    let homeless = without.paths.iter().filter(|path| **path == Some(2) || path.is_none()).count();
    let stale = at_once.paths.iter().filter(|path| **path == Some(2)).count();

    lab.step("it comes back: everything is as before");
    site.change("link set w3 up\n")?;
    site.resolve()?;
    site.revalidated()?;
    let again = pass(site, frame, (FEW, 1))?;
    let differ = again.paths.iter().zip(&three.paths).filter(|(now, before)| now != before).count();

    lab.step("a route without one of them replaces it");
    route(site, "replace", &[1, 0, 2])?;
    site.revalidated()?;
    let replaced = pass(site, frame, (FEW, 1))?;
    let moved_by_replace = self::moved(&three.paths, &replaced.paths, 1);

    lab.step("control: a next hop that nobody takes away loses packets");
    site.n[2].ns.ip(&["link", "set", NIC, "down"])?;
    let broken = pass(site, frame, (FEW, 1))?;
    site.n[2].ns.ip_batch(&format!("link set {NIC} up\nroute add default via 10.23.0.1\n"))?;

    lab.step(format!(
        "the guest hashes by addresses alone: {FLOWS} addresses, and one address with many ports"
    ));
    policy(site, 0)?;
    route(site, "replace", &[1, 1, 2])?;
    site.revalidated()?;
    let ports = pass(site, frame, (FEW, 1))?;
    let by_address = pass(site, to_address, (FLOWS, 1))?;
    let error_addresses = share_error(&by_address.paths, &[1, 1, 2]);
    let one = ports.paths.first().copied().flatten();
    ensure!(
        one.is_some() && ports.paths.iter().all(|path| *path == one),
        "one pair of addresses takes several ways under policy 0"
    );
    let moved_by_policy = self::moved(&three.paths, &ports.paths, usize::MAX);
    site.guest().ip(&["route", "del", PREFIX])?;

    let passes = [&two, &three, &at_once, &without, &again, &replaced, &by_address];
    let lost_by_pass: Vec<u64> = passes.iter().map(|pass| pass.lost).collect();
    let lost: u64 = lost_by_pass.iter().sum();
    let worst = error_two.max(error_three).max(error_addresses);
    let round = |value: f64| (value * 10_000.0).round() / 10_000.0;
    // Of the smallest share, relative to it: the binomial distribution's.
    let sampling = (0.75_f64 / (0.25 * f64::from(FLOWS))).sqrt();
    figures.insert("ecmp_flows".into(), FLOWS.into());
    figures.insert("ecmp_share_error_max".into(), round(worst).into());
    figures.insert("ecmp_sampling_error".into(), round(sampling).into());
    figures.insert("ecmp_moved".into(), (moved + moved_by_replace + differ).into());
    figures.insert("ecmp_not_rehomed".into(), homeless.into());
    figures.insert("ecmp_lost".into(), lost.into());
    figures.insert("ecmp_reordered".into(), (three.reordered + three.split).into());
    figures.insert(
        "ecmp".into(),
        json!({
            "share_error_1_2": round(error_two),
            "share_error_1_1_2": round(error_three),
            "share_error_by_address": round(error_addresses),
            // Barriers do not wait for the datapath's cache.
            "old_path_right_after_ack": stale,
            "control_moved_by_policy": moved_by_policy,
            "lost_by_pass": lost_by_pass,
            "moved_link_down": moved,
            "moved_back": differ,
            "moved_by_replace": moved_by_replace,
            "control_lost": broken.lost,
        }),
    );
    ensure!(broken.lost > 0, "a next hop's wire was cut and nothing was lost");
    ensure!(moved_by_policy > 0, "the guest hashes otherwise and no flow moved");
    Ok(())
}

/// The route by n1 to n3, with weights; 0 leaves one out.
fn route(site: &Site, verb: &str, weights: &[u32; 3]) -> Result<()> {
    let hops: String = weights
        .iter()
        .zip(1..)
        .filter(|(weight, _)| **weight > 0)
        .map(|(weight, n)| format!(" nexthop via 10.2{n}.0.10 weight {weight}"))
        .collect();
    site.change(&format!("route {verb} {PREFIX}{hops}\n"))
}

/// The guest's hash policy, and the host's after it: the kernel tells nothing of it, the client looks.
fn policy(site: &Site, policy: u8) -> Result<()> {
    site.guest().sysctls(&[("net.ipv4.fib_multipath_hash_policy", &policy.to_string())])?;
    wait_for("the host to hash as the guest", LIMIT, || {
        let groups = site.node.host().ofctl(&["dump-groups", BRIDGE])?;
        let by_ports = groups.lines().any(|line| line.contains("udp_src"));
        Ok((groups.contains("hash") && by_ports == (policy == 1)).then_some(()))
    })
}

/// A frame of a flow; flows differ in their source port.
fn frame(site: &Site, flow: u32, seq: u32) -> Vec<u8> {
    let mut udp = site.udp(&site.h, [10, 99, 1, 1].into());
    udp.from.1 = (10_000 + flow) as u16;
    udp.frame(&[], flow, seq)
}

/// A frame of a flow; flows differ in their destination.
fn to_address(site: &Site, flow: u32, seq: u32) -> Vec<u8> {
    let address = u32::from_be_bytes([10, 99, 0, 2]) + flow;
    site.udp(&site.h, address.into()).frame(&[], flow, seq)
}

/// Sends and sees where everything comes out.
fn pass(site: &Site, frame: fn(&Site, u32, u32) -> Vec<u8>, (flows, packets): (u32, u32)) -> Result<Pass> {
    // Packets of an earlier pass that come late are none of this one's.
    let first = site.next_number() * PACKETS;
    let of = |packet: u32| (0..flows).map(move |flow| frame(site, flow, first + packet));
    let frames: Vec<Vec<u8>> = (0..packets).flat_map(of).collect();
    let wires: Vec<&Wire> = site.n.iter().map(|n| &n.wire).collect();
    let mut pass = Pass { paths: vec![None; flows as usize], reordered: 0, split: 0, lost: 0 };
    let mut last = vec![None; flows as usize];
    let mut arrived = vec![false; frames.len()];
    let mut missing = frames.len();
    let take = || -> Result<usize> {
        for (member, wire) in wires.iter().enumerate() {
            for (flow, seq) in wire.take()?.iter().filter_map(|frame| numbers(frame)) {
                let number = seq.checked_sub(first).map(|packet| (packet * flows + flow) as usize);
                let Some(arrived) = number.and_then(|number| arrived.get_mut(number)) else { continue };
                ensure!(!*arrived, "packet {seq} of flow {flow} came twice");
                *arrived = true;
                let (path, last) = (&mut pass.paths[flow as usize], &mut last[flow as usize]);
                pass.split += u64::from(path.is_some_and(|path| path != member));
                pass.reordered += u64::from(last.is_some_and(|last| last > seq));
                (*path, *last) = (Some(member), Some(seq));
                missing -= 1;
            }
        }
        Ok(missing)
    };
    site.h.wire.window(&frames, WINDOW, take)?;
    pass.lost = missing as u64;
    Ok(pass)
}

/// The largest relative distance of a share from its weight.
fn share_error(paths: &Paths, weights: &[u32; 3]) -> f64 {
    let total: u32 = weights.iter().sum();
    let error = |(member, weight): (usize, &u32)| {
        let share = paths.iter().filter(|path| **path == Some(member)).count() as f64 / f64::from(FLOWS);
        (share * f64::from(total) / f64::from(*weight) - 1.0).abs()
    };
    weights.iter().enumerate().filter(|(_, weight)| **weight > 0).map(error).fold(0.0, f64::max)
}

/// Flows that are elsewhere than before, though their next hop is not the one that `left`.
fn moved(before: &Paths, after: &Paths, left: usize) -> usize {
    before.iter().zip(after).filter(|(before, after)| **before != Some(left) && before != after).count()
}
