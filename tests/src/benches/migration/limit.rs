//! The highest rate that the lab carries without loss when nothing moves.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::moving::measure;
use crate::moving::site::Site;
use crate::scenario::Lab;

/// Packets a second in all that any lab carries, and more than any does.
const FIRST: u32 = 8000;
const LAST: u32 = 512_000;
/// From here on rates grow by a quarter: what is far too much leaves no time to end it.
const STEEP: u32 = 64_000;
const TIME: Duration = Duration::from_secs(3);
/// Senders that are late send faster later: what they send in all is at least this part of what it should be, or too much.
const REACHED: f64 = 0.99;

/// The last of growing rates that are reached, and at which no packet is lost.
pub(super) fn search(lab: &Lab, site: &Site) -> Result<u32> {
    let (mut carried, mut rate) = (0, FIRST);
    while rate <= LAST && is_carried(lab, site, rate)? {
        carried = rate;
        rate += if rate < STEEP { rate } else { rate / 4 };
    }
    ensure!(carried > 0, "the lab does not carry {FIRST} packets/s when nothing moves");
    lab.step(format!("the lab carries {carried} packets/s"));
    Ok(carried)
}

/// Whether so many are sent, and all arrive, each once and in order.
fn is_carried(lab: &Lab, site: &Site, rate: u32) -> Result<bool> {
    let ((), seen) = measure::during(lab, site, rate, || {
        std::thread::sleep(TIME);
        Ok(())
    })?;
    let is_reached = seen.pps >= REACHED * f64::from(rate);
    let is_carried = is_reached && seen.lost == 0 && seen.reordered == 0 && seen.duplicated == 0;
    lab.step(format!(
        "{rate} packets/s: {:.0} sent a second, {} of {} lost, longest delay {} ms",
        seen.pps, seen.lost, seen.sent, seen.delay_ms
    ));
    Ok(is_carried)
}
