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
const TIME: Duration = Duration::from_millis(1500);

/// The last of growing rates at which no packet is lost.
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

/// Whether all of so many arrive, each once and in order. What comes due late is sent all the same.
fn is_carried(lab: &Lab, site: &Site, rate: u32) -> Result<bool> {
    let ((), seen) = measure::during(lab, site, rate, || {
        std::thread::sleep(TIME);
        Ok(())
    })?;
    let is_carried = seen.lost == 0 && seen.reordered == 0 && seen.duplicated == 0;
    lab.step(format!(
        "{rate} packets/s: {} of {} lost, longest delay {} ms",
        seen.lost, seen.sent, seen.delay_ms
    ));
    Ok(is_carried)
}
