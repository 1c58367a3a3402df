//! The last hour of networks on each uplink beside what they are promised, as one SVG figure (as Fig. 3 of the XenFlow
//! paper).
//!
//! Owns which points are asked for and how they are drawn. The drawing is pure: points in, text out.

mod figure;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, anyhow};
use dom0_server::inspect::Request;
use serde::{Deserialize, Serialize};
use xenflow_proto::Name;

use super::report;
use crate::ask::{Daemon, members};
use crate::{Failure, output};
use figure::{COLORS, Panel, Series, svg};

/// A queue's hour, as the daemon says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Hour {
    port: String,
    network: String,
    class: Option<String>,
    min_bps: Option<u64>,
    max_bps: Option<u64>,
    points: Vec<Point>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Point {
    at_ms: u64,
    obtained_bps: u64,
    expected_bps: u64,
}

/// All pages of a network's hours, and the milliseconds of a point.
fn hours(daemon: &mut Daemon, network: &Name) -> anyhow::Result<(Vec<Hour>, u64)> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let mut page = daemon.ask(&Request::SlaHistory { network: network.to_string(), after })?;
        for hour in members(&mut page, "series") {
            all.push(serde_json::from_value(hour).context("the daemon's answer is no history")?);
        }
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            return Ok((all, page["step_ms"].as_u64().unwrap_or(5000)));
        }
    }
}

/// `xenflow sla plot`.
pub(crate) fn run(
    socket: &Path,
    seconds: u32,
    names: &[String],
    svg_to: &Path,
    as_json: bool,
) -> Result<(), Failure> {
    let mut names = names.iter().map(|name| name.parse()).collect::<Result<BTreeSet<Name>, _>>()?;
    let mut daemon = Daemon::open(socket, seconds)?;
    if names.is_empty() {
        let queues = report(&mut daemon)?.links.into_iter().flat_map(|link| link.queues);
        names = queues.filter_map(|queue| queue.network.parse().ok()).collect();
    }
    if names.len() > COLORS.len() && !as_json {
        let most = COLORS.len();
        return Err(Failure::Input(anyhow!(
            "{} networks are too many for one figure: name at most {most}, which can be told apart",
            names.len()
        )));
    }
    let mut all = Vec::new();
    let mut step_ms = 0;
    for name in &names {
        let (hours, step) = hours(&mut daemon, name)?;
        if hours.is_empty() {
            return Err(anyhow!("nothing is known of network {name} on an uplink of this node").into());
        }
        all.extend(hours);
        step_ms = step;
    }
    if as_json {
        output::json(&all);
        return Ok(());
    }
    if all.is_empty() {
        return Err(anyhow!("this node shares no uplink: {}", super::page::NOTHING).into());
    }
    let text = svg(&panels(all), step_ms);
    if svg_to == Path::new("-") {
        output::text(&text);
    } else {
        std::fs::write(svg_to, text).with_context(|| format!("cannot write {}", svg_to.display()))?;
    }
    Ok(())
}

/// By uplink; a network's classes and what is in none of them are one line.
fn panels(hours: Vec<Hour>) -> Vec<Panel> {
    let mut panels: BTreeMap<String, BTreeMap<String, Series>> = BTreeMap::new();
    for hour in hours {
        let series = panels.entry(hour.port).or_default();
        let series = series
            .entry(hour.network.clone())
            .or_insert_with(|| Series { name: hour.network, ..Series::default() });
        series.min_bps = series.min_bps.saturating_add(hour.min_bps.unwrap_or_default());
        for point in hour.points {
            let sum = series.points.entry(point.at_ms).or_default();
            *sum = sum.saturating_add(point.obtained_bps);
        }
    }
    panels.into_iter().map(|(port, series)| Panel { port, series: series.into_values().collect() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_a_network_are_one_line() {
        let hour = |port: &str, network: &str, class: Option<&str>, min_bps, points: &[(u64, u64)]| Hour {
            port: port.into(),
            network: network.into(),
            class: class.map(str::to_owned),
            min_bps,
            max_bps: None,
            points: points
                .iter()
                .map(|&(at_ms, obtained_bps)| Point { at_ms, obtained_bps, expected_bps: 0 })
                .collect(),
        };
        let drawn = panels(vec![
            hour("eth1", "red", None, Some(5), &[(0, 1)]),
            hour("eth0", "red", None, Some(15), &[(0, 1), (5000, 2)]),
            hour("eth0", "red", Some("voice"), Some(5), &[(5000, 3), (10_000, 4)]),
            hour("eth0", "blue", None, None, &[]),
        ]);
        let series = |name: &str, min_bps, points: &[(u64, u64)]| Series {
            name: name.into(),
            min_bps,
            points: points.iter().copied().collect(),
        };
        assert_eq!(
            drawn,
            [
                Panel {
                    port: "eth0".into(),
                    series: vec![
                        series("blue", 0, &[]),
                        series("red", 20, &[(0, 1), (5000, 5), (10_000, 4)])
                    ],
                },
                Panel { port: "eth1".into(), series: vec![series("red", 5, &[(0, 1)])] },
            ]
        );
    }
}
