//! Limits: more prefixes than a router may have still all arrive; what is over the limit, by the VM.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::fail_safe::find;
use super::packet::numbers;
use super::site::{LIMIT, Site};
use crate::process::wait_for;
use crate::scenario::Lab;

/// The limit.
const MAX: u32 = 100;
/// Routes: over the limit, and over twice the limit.
const STEPS: [u32; 2] = [150, 250];

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    let mut lost = 0;
    let mut details = Map::new();
    site.node.xenflow(&["router", "set", "r1", "--max-routes", &MAX.to_string()])?;
    let mut have = 0;
    let mut unalarmed = 0_u64;
    for routes in STEPS {
        lab.step(format!("{routes} routes for a router that may have {MAX}"));
        // More specific ones than a default by another way, which none of them may fall back to.
        let mut lines: String =
            (have..routes).map(|i| format!("route add 10.96.{i}.0/24 via 10.22.0.10\n")).collect();
        if have == 0 {
            lines.push_str("route add 10.96.0.0/16 via 10.23.0.10\n");
        }
        site.change(&lines)?;
        have = routes;
        site.revalidated()?;
        let (missing, transit) = send(site, routes)?;
        lost += missing;
        let alarmed = wait_for("the alarm", Duration::from_secs(5), || {
            let shown = site.shown()?;
            let message = find(&shown, "message").and_then(Value::as_str).unwrap_or_default().to_owned();
            Ok((!message.is_empty()).then_some(message))
        });
        unalarmed += u64::from(alarmed.is_err());
        details.insert(
            format!("routes_{routes}"),
            json!({ "lost": missing, "transit": transit, "message": alarmed.ok() }),
        );
        ensure!(transit > 0, "{routes} routes, at most {MAX}, and the VM forwarded nothing: {details:?}");
    }

    lab.step("the limit is raised: the host forwards all of it");
    site.node.xenflow(&["router", "set", "r1", "--max-routes", "default"])?;
    let mut transit = 0;
    let back = wait_for("the host to forward everything", LIMIT, || {
        let (missing, by_vm) = send(site, have)?;
        lost += missing;
        transit = by_vm;
        Ok((by_vm == 0).then_some(()))
    });
    let lines: String = (0..have).map(|i| format!("route del 10.96.{i}.0/24\n")).collect();
    site.change(&format!("{lines}route del 10.96.0.0/16\n"))?;
    back?;
    lab.step("control: without a route nothing arrives");
    let (control, _) = send(site, STEPS[1])?;
    ensure!(control == u64::from(STEPS[1]), "{control} of {} packets are lost without a route", STEPS[1]);
    figures.insert("limit_lost".into(), lost.into());
    figures.insert("limit_transit_when_raised".into(), transit.into());
    figures.insert("limit_unalarmed".into(), unalarmed.into());
    figures.insert("limit".into(), details.into());
    Ok(())
}

/// One packet to each prefix: how many did not come out at n2, and how many r1 forwarded.
fn send(site: &Site, routes: u32) -> Result<(u64, u64)> {
    let frame = |i: u32| site.udp(&site.h, Ipv4Addr::new(10, 96, i as u8, 9)).frame(&[], i, 8);
    let frames: Vec<_> = (0..routes).map(frame).collect();
    let out = &site.n[1].wire;
    out.take()?;
    let transit = site.transit(|| {
        site.h.wire.pace(&frames, 500, || Ok(()))?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    })?;
    let came = out.take()?;
    let came = came.iter().filter(|frame| numbers(frame).is_some_and(|(_, seq)| seq == 8)).count() as u64;
    Ok((u64::from(routes).saturating_sub(came), transit))
}
