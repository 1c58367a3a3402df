//! The highest rate that the lab carries without loss when nothing moves.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::moving::measure;
use crate::moving::site::Site;
use crate::scenario::Lab;

/// Packets a second in all that any lab carries, and more than any does.
const FIRST: u32 = 8000;
const LAST: u32 = 256_000;
/// Halvings between the last rate that was carried and the first that was not.
const STEPS: u32 = 2;
const TIME: Duration = Duration::from_millis(1500);

/// Doubles the rate until packets are lost, and halves what is between.
pub(super) fn search(lab: &Lab, site: &Site) -> Result<u32> {
    let (mut carried, mut refused) = (0, 0);
    let mut rate = FIRST;
    while rate <= LAST {
        if !is_carried(lab, site, rate)? {
            refused = rate;
            break;
        }
        carried = rate;
        rate *= 2;
    }
    ensure!(carried > 0, "the lab does not carry {FIRST} packets/s when nothing moves");
    for _ in 0..STEPS {
        if refused == 0 {
            break;
        }
        let middle = u32::midpoint(carried, refused);
        if is_carried(lab, site, middle)? {
            carried = middle;
        } else {
            refused = middle;
        }
    }
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
