//! Figures of a report, as a table for each uplink.

use std::fmt::Write;

use dom0_server::db::contract::bits;
use dom0_server::shaper::report::{LinkReport, QueueReport, Report};

use crate::show::printable;
use crate::view::span;

/// Why a node may have nothing to say.
pub(super) const NOTHING: &str = "it has none, its daemon does not shape, or has not begun to";

/// A measured rate, in three digits: "19.8 Mbit/s".
pub(crate) fn rate(bps: u64) -> String {
    let units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut scaled = bps as f64;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let digits = match scaled {
        _ if unit == 0 => 0,
        scaled if scaled >= 99.95 => 0,
        scaled if scaled >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$} {}", units.get(unit).copied().unwrap_or_default())
}

/// So much of a whole, in percent.
pub(super) fn percent(part: u64, whole: u64) -> u128 {
    (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or_default()
}

/// What a link carries and who says so; none: nobody knows.
pub(super) fn capacity(link: &LinkReport) -> Option<String> {
    let from = match link.capacity_from.as_str() {
        "operator" => "set",
        "port" => "the port's speed",
        other => other,
    };
    (link.capacity_bps > 0).then(|| format!("{} ({from})", bits(link.capacity_bps)))
}

/// A network, or a class of it.
pub(super) fn name(queue: &QueueReport) -> String {
    match &queue.class {
        Some(class) => format!("{}/{class}", queue.network),
        None => queue.network.clone(),
    }
}

pub(super) fn page(report: &Report, now_ms: u64) -> String {
    if report.links.is_empty() {
        return format!("this node shares no uplink: {NOTHING}\n");
    }
    let mut page = format!(
        "policy {}, looked at every {}\n",
        printable(&report.policy),
        match report.period_ms {
            ms if ms.is_multiple_of(1000) => format!("{} s", ms / 1000),
            ms => format!("{ms} ms"),
        }
    );
    for link in &report.links {
        let carries = match capacity(link) {
            Some(capacity) => {
                format!(
                    "{} of {capacity}, {} %",
                    rate(link.carried_bps),
                    percent(link.carried_bps, link.capacity_bps)
                )
            }
            None => format!("{}, nobody knows of how much", rate(link.carried_bps)),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(page, "uplink {}: carries {carries}; shaped by {}", link.port, driver(&link.driver));
        if let Some(problem) = &link.problem {
            let _ = writeln!(page, "  problem: {problem}");
        }
        page += &table(&rows(link, now_ms));
    }
    page.lines().map(|line| printable(line) + "\n").collect()
}

/// Who shapes, in words.
pub(super) fn driver(driver: &str) -> &str {
    match driver {
        "" | "none" => "nobody",
        "ovs" => "queues of Open vSwitch",
        "meter" => "meters (only maxima are kept)",
        other => other,
    }
}

fn rows(link: &LinkReport, now_ms: u64) -> Vec<Vec<String>> {
    let heads = ["NETWORK", "CLASS", "MIN", "MAX", "OBTAINED", "EXPECTED", "FITNESS", "STATE", "SINCE"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let contract = |bps: u64| if bps == 0 { "-".to_owned() } else { bits(bps) };
    let mut queues: Vec<_> = link.queues.iter().collect();
    queues.sort_by_key(|queue| (&queue.network, &queue.class));
    rows.extend(queues.into_iter().map(|queue| {
        vec![
            queue.network.clone(),
            queue.class.clone().unwrap_or_else(|| "-".to_owned()),
            contract(queue.min_bps),
            queue.max_bps.map_or_else(|| "-".to_owned(), bits),
            rate(queue.obtained_bps),
            rate(queue.expected_bps),
            queue.fitness.map_or_else(|| "-".to_owned(), |fitness| format!("{:.0} %", fitness * 100.0)),
            queue.state.clone(),
            span((now_ms / 1000).saturating_sub(queue.since_ms / 1000)),
        ]
    }));
    let sum = |figure: fn(&QueueReport) -> u64| link.queues.iter().map(figure).fold(0, u64::saturating_add);
    rows.push(vec![
        "in all".to_owned(),
        String::new(),
        contract(sum(|queue| queue.min_bps)),
        String::new(),
        rate(sum(|queue| queue.obtained_bps)),
        rate(sum(|queue| queue.expected_bps)),
    ]);
    rows
}

/// Columns, two blanks in.
fn table(rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(at, cell)| format!("  {cell:width$}", width = width(at)));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_digits() {
        for (bps, text) in [
            (0, "0 bit/s"),
            (999, "999 bit/s"),
            (1_000, "1.00 kbit/s"),
            (19_840_000, "19.8 Mbit/s"),
            (999_499_999, "999 Mbit/s"),
            (999_600_000, "1.00 Gbit/s"),
            (u64::MAX, "18446744 Tbit/s"),
        ] {
            assert_eq!(rate(bps), text);
        }
    }

    #[test]
    fn a_page_has_a_table_for_each_uplink() {
        let queue = |network: &str, class: Option<&str>, min_bps, obtained_bps, expected_bps| QueueReport {
            network: network.into(),
            class: class.map(str::to_owned),
            min_bps,
            obtained_bps,
            expected_bps,
            fitness: (expected_bps > 0).then_some(0.99),
            since_ms: 1_000_000,
            state: "met".into(),
            ..QueueReport::default()
        };
        let eth0 = LinkReport {
            port: "eth0".into(),
            capacity_bps: 100_000_000,
            capacity_from: "operator".into(),
            driver: "tc".into(),
            carried_bps: 59_800_000,
            queues: vec![
                queue("blue", None, 40_000_000, 39_900_000, 40_000_000),
                queue("red", Some("voice"), 20_000_000, 19_900_000, 19_800_000),
                QueueReport { max_bps: Some(8_000), ..queue("green", None, 0, 0, 0) },
            ],
            ..LinkReport::default()
        };
        let eth1 = LinkReport {
            port: "eth1".into(),
            driver: "none".into(),
            problem: Some("no \u{1b}[2J speed".into()),
            ..LinkReport::default()
        };
        let report = Report { policy: "weights".into(), period_ms: 1000, links: vec![eth0, eth1] };
        assert_eq!(
            page(&report, 1_063_000),
            "policy weights, looked at every 1 s\n\
             uplink eth0: carries 59.8 Mbit/s of 100mbit (set), 59 %; shaped by tc\n\
             \x20 NETWORK  CLASS  MIN     MAX    OBTAINED     EXPECTED     FITNESS  STATE  SINCE\n\
             \x20 blue     -      40mbit  -      39.9 Mbit/s  40.0 Mbit/s  99 %     met    1 min 3 s\n\
             \x20 green    -      -       8kbit  0 bit/s      0 bit/s      -        met    1 min 3 s\n\
             \x20 red      voice  20mbit  -      19.9 Mbit/s  19.8 Mbit/s  99 %     met    1 min 3 s\n\
             \x20 in all          60mbit         59.8 Mbit/s  59.8 Mbit/s\n\
             uplink eth1: carries 0 bit/s, nobody knows of how much; shaped by nobody\n\
             \x20 problem: no \u{fffd}[2J speed\n\
             \x20 NETWORK  CLASS  MIN  MAX  OBTAINED  EXPECTED  FITNESS  STATE  SINCE\n\
             \x20 in all          -         0 bit/s   0 bit/s\n"
        );
        assert_eq!(page(&Report::default(), 0), format!("this node shares no uplink: {NOTHING}\n"));
    }
}
