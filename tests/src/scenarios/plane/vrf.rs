//! VRFs of the guest: the same addresses in two tables, each packet by the table of the vif it came in by.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::packet::numbers;
use super::site::{End, LIMIT, Site};
use crate::frame;
use crate::process::wait_for;
use crate::scenario::Lab;

/// Packets of a measurement.
const PACKETS: u32 = 200;
/// Routed by w1 in the main table, by w3 in the VRF's.
const SHARED: [u8; 4] = [10, 95, 0, 1];

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    // Without a last route of its own, a VRF goes on to the main table (Documentation/networking/vrf.rst).
    lab.step("w2 and w3 join a VRF; one prefix is in both tables");
    site.change(
        "link add v type vrf table 10\nlink set v up\nlink set w2 master v\nlink set w3 master v\n\
         route add 10.95.0.0/16 via 10.21.0.10\nroute add 10.95.0.0/16 via 10.23.0.10 table 10\n\
         route add unreachable default metric 4278198272 table 10\n",
    )?;
    let ping = "ping -n -I v -c 1 -W 2 10.22.0.10 & ping -n -I v -c 1 -W 2 10.23.0.10 & wait";
    site.guest().run("sh", &["-c", ping])?;
    let (n1, n2, n3) = (&site.n[0], &site.n[1], &site.n[2]);
    // By n2's own vif of r1.
    let mac_w2 = frame::mac(&site.r1.mac(2))?;
    wait_for("the host to forward in the VRF", LIMIT, || {
        let (came, transit) = send(site, n2, mac_w2, SHARED, &[n3])?;
        Ok((came == [u64::from(PACKETS)] && transit == 0).then_some(()))
    })?;
    let (in_vrf, transit_vrf) = send(site, n2, mac_w2, SHARED, &[n1, n3])?;
    let (in_main, transit_main) = send(site, &site.h, frame::mac(&site.r1.mac(0))?, SHARED, &[n1, n3])?;
    // What is in one table only.
    let (to_vrf, _) = send(site, &site.h, frame::mac(&site.r1.mac(0))?, n3.address.octets(), &[n3])?;
    let (to_main, _) = send(site, n2, mac_w2, n1.address.octets(), &[n1])?;
    let all = u64::from(PACKETS);
    let lost = (all - in_vrf[1].min(all)) + (all - in_main[0].min(all));
    let leaked = in_vrf[0] + in_main[1] + to_vrf[0] + to_main[0];

    lab.step("they leave it");
    site.change(
        "route flush table 10\nroute del 10.95.0.0/16\nlink set w2 nomaster\nlink set w3 nomaster\nlink del v\n",
    )?;
    site.resolve()?;
    // The control: the isolation goes with the VRF.
    let (control, _) = send(site, &site.h, frame::mac(&site.r1.mac(0))?, n3.address.octets(), &[n3])?;
    ensure!(control[0] == all, "without a VRF {} of {all} packets reach n3", control[0]);
    figures.insert("vrf".into(), "yes".into());
    figures.insert("vrf_lost".into(), lost.into());
    figures.insert("vrf_leaked".into(), leaked.into());
    figures.insert("vrf_transit".into(), (transit_vrf + transit_main).into());
    figures.insert("vrf_packets".into(), json!({ "in_vrf": in_vrf, "in_main": in_main, "to_vrf": to_vrf, "to_main": to_main, "control": control }));
    Ok(())
}

/// Packets to an address: how many came to each end host, and how many r1 forwarded.
fn send(site: &Site, from: &End, mac: [u8; 6], to: [u8; 4], outs: &[&End]) -> Result<(Vec<u64>, u64)> {
    let mut udp = site.udp(from, to.into());
    udp.to_mac = mac;
    for out in outs {
        out.wire.take()?;
    }
    let frames: Vec<_> = (0..PACKETS).map(|number| udp.frame(&[], number, 13)).collect();
    let transit = site.transit(|| {
        from.wire.pace(&frames, 1000, || Ok(()))?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    })?;
    let came = |out: &&End| -> Result<u64> {
        let frames = out.wire.take()?;
        Ok(frames.iter().filter(|frame| numbers(frame).is_some_and(|(_, seq)| seq == 13)).count() as u64)
    };
    Ok((outs.iter().map(came).collect::<Result<_>>()?, transit))
}
