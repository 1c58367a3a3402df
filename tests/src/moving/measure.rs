//! What packets meet while a router moves: numbered ones on the paths between its neighbors, and to the router itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::fdb::Change;
use super::site::{BY_ROUTE, Site, address, gateway};
use super::vm::Moved;
use crate::probe::{Event, Probe, ProbeReport};
use crate::scenario::Lab;

/// Paths between end hosts, by their indices; those to h3 go by one of the routes. Each neighbor sends and gets.
const PATHS: [(usize, usize); 4] = [(0, 2), (2, 0), (1, 2), (2, 1)];
/// Who speaks to the router itself, and how many packets a second: a routing protocol at its busiest.
const SPEAKERS: [usize; 2] = [0, 2];
const CONTROL_RATE: u32 = 25;
const PORT: u16 = 7000;
const CONTROL_PORT: u16 = 7100;
/// Of packets before what happens, and after it.
const AROUND: Duration = Duration::from_millis(700);

/// What came of the packets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Sent between neighbors.
    pub sent: u64,
    /// So many a second.
    pub pps: f64,
    /// Which of them never came.
    pub lost: u64,
    /// Which came again.
    pub duplicated: u64,
    /// Which came after one that was sent later.
    pub reordered: u64,
    /// The longest time that one of them was under way, in ms.
    pub delay_ms: f64,
    /// The longest time in which none came on a path, in ms, and when that ended: milliseconds since the Unix epoch.
    pub gap_ms: f64,
    /// See there.
    pub gap_end_ms: f64,
    /// Sent to the router itself.
    pub control_sent: u64,
    /// Which of them it never got.
    pub control_lost: u64,
    /// Which it got again.
    pub control_duplicated: u64,
    /// What was out of the ordinary, by path.
    pub events: Vec<Vec<Event>>,
}

impl Seen {
    /// Counts what a probe between neighbors has seen as well.
    pub fn add(&mut self, report: &ProbeReport) {
        self.sent += report.sent;
        self.pps += report.sent as f64 / report.seconds;
        self.lost += report.lost;
        self.duplicated += report.duplicated;
        self.reordered += report.reordered;
        self.delay_ms = self.delay_ms.max(report.longest_delay_ms);
        self.events.push(report.events.clone());
        if report.longest_gap_ms > self.gap_ms {
            (self.gap_ms, self.gap_end_ms) = (report.longest_gap_ms, report.gap_end_ms);
        }
    }

    /// Counts what another has seen as well.
    pub fn merge(&mut self, other: &Self) {
        let Self { sent, lost, duplicated, reordered, delay_ms, gap_ms, gap_end_ms, .. } = *other;
        self.sent += sent;
        self.lost += lost;
        self.duplicated += duplicated;
        self.reordered += reordered;
        self.delay_ms = self.delay_ms.max(delay_ms);
        if gap_ms > self.gap_ms {
            (self.gap_ms, self.gap_end_ms) = (gap_ms, gap_end_ms);
        }
        self.control_sent += other.control_sent;
        self.control_lost += other.control_lost;
        self.control_duplicated += other.control_duplicated;
    }

    /// As counters of a migration's report.
    #[must_use]
    pub fn tally(&self) -> BTreeMap<String, u64> {
        self.sums()
            .into_iter()
            .map(|(what, count)| (format!("probe/{}", what.replace('_', "-")), count))
            .collect()
    }

    /// What was counted, by name.
    #[must_use]
    pub fn sums(&self) -> [(&'static str, u64); 7] {
        [
            ("sent", self.sent),
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("control_sent", self.control_sent),
            ("control_lost", self.control_lost),
            ("control_duplicated", self.control_duplicated),
        ]
    }

    /// As figures.
    #[must_use]
    pub fn figures(&self) -> Value {
        json!({
            "sent": self.sent, "pps": self.pps.round(), "lost": self.lost, "duplicated": self.duplicated, "reordered": self.reordered,
            "delay_ms": self.delay_ms, "gap_ms": self.gap_ms, "control_sent": self.control_sent,
            "control_lost": self.control_lost, "control_duplicated": self.control_duplicated,
            "events": self.events,
        })
    }
}

/// Packets that are under way.
#[derive(Debug)]
pub struct Running {
    data: Vec<Probe>,
    control: Vec<Probe>,
}

impl Running {
    /// Sends so many packets a second in all from now on.
    pub fn start(lab: &Lab, site: &Site, rate: u32) -> Result<Self> {
        let each = (rate / u32::try_from(PATHS.len())?).max(1);
        let mut data = Vec::new();
        for (index, (from, to)) in PATHS.into_iter().enumerate() {
            let target = if to == 2 { BY_ROUTE.to_owned() } else { address(to) };
            let to = site.h[to].netns();
            let at = format!("{target}:{}", PORT + u16::try_from(index)?).parse()?;
            data.push(Probe::prepare_ahead(lab, site.h[from].netns(), to, at, each)?);
        }
        let mut control = Vec::new();
        for from in SPEAKERS {
            let at = format!("{}:{}", gateway(from), CONTROL_PORT + u16::try_from(from)?).parse()?;
            let guest = site.r1.guest().netns();
            control.push(Probe::prepare_ahead(lab, site.h[from].netns(), guest, at, CONTROL_RATE)?);
        }
        let go_on = |probes: Vec<Probe>| probes.into_iter().map(Probe::go_on).collect::<Result<Vec<_>>>();
        let (control, data) = (go_on(control)?, go_on(data)?);
        std::thread::sleep(AROUND);
        Ok(Self { data, control })
    }

    /// Ends them, a moment later.
    pub fn stop(self) -> Result<Seen> {
        std::thread::sleep(AROUND);
        let mut seen = Seen::default();
        let paths = self.data.len();
        let reports = Probe::stop_all(self.data.into_iter().chain(self.control).collect())?;
        let (data, control) = reports.split_at(paths);
        for report in data {
            // Packets of another stream, or of none.
            ensure!(report.foreign == 0, "a path carries what is not its own: {report:?}");
            seen.add(report);
        }
        for report in control {
            seen.control_sent += report.sent;
            seen.control_lost += report.lost;
            seen.control_duplicated += report.duplicated;
        }
        Ok(seen)
    }
}

/// Sends so many packets a second in all while something happens.
pub fn during<T>(lab: &Lab, site: &Site, rate: u32, what: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
    let running = Running::start(lab, site, rate)?;
    let done = what()?;
    Ok((done, running.stop()?))
}

/// Of these changes of the bridge's table, how many are none that a move to this port makes once for each address.
#[must_use]
pub fn flaps(changes: &[Change], to: &str) -> usize {
    let mut right = BTreeMap::new();
    for change in changes.iter().filter(|change| change.to == to) {
        right.entry(&change.mac).or_insert(());
    }
    changes.len() - right.len()
}

/// A move's figures.
#[must_use]
pub fn moved(moved: &Moved) -> Value {
    let ms = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
    let steps: serde_json::Map<String, Value> =
        moved.steps.iter().map(|(name, ms)| (name.clone(), (*ms).into())).collect();
    json!({ "frozen_ms": ms(moved.frozen()), "took_ms": ms(moved.took()), "steps_ms": steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_an_address_is_no_flap() {
        let change =
            |mac: &str, from: &str, to: &str| Change { mac: mac.into(), from: from.into(), to: to.into() };
        let right = [change("m1", "to-a", "to-b"), change("m2", "to-a", "to-b")];
        assert_eq!(flaps(&right, "to-b"), 0);
        assert_eq!(flaps(&right, "to-a"), 2);
        let back = [&right[..], &[change("m1", "to-b", "to-a"), change("m1", "to-a", "to-b")]].concat();
        assert_eq!(flaps(&back, "to-b"), 2);
    }
}
