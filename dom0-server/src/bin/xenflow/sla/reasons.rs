//! Why a network gets what it gets of each uplink, in sentences. A report in, text out.

use dom0_server::db::contract::bits;
use dom0_server::shaper::report::{LinkReport, QueueReport, Report};

use super::has;
use super::page::{capacity, name, percent, rate};
use crate::show::printable;
use crate::view::span;

/// A link that carries so much of what it can, in percent, is full: HTB counts headers and gaps that queues do not.
const FULL: u128 = 95;
/// Others who are named.
const OTHERS: usize = 5;

/// By uplink that the network has to do with, in the report's order.
pub(super) fn reasons(report: &Report, network: &str, now_ms: u64) -> Vec<(String, Vec<String>)> {
    let links = report.links.iter().filter(|link| has(link, network));
    let of = |link: &LinkReport| {
        let mut lines = vec![carries(link)];
        lines.extend(shapes(link));
        let mut own: Vec<_> = link.queues.iter().filter(|queue| queue.network == network).collect();
        own.sort_by_key(|queue| &queue.class);
        lines.extend(own.into_iter().flat_map(|queue| queue_lines(link, queue, &report.policy, now_ms)));
        lines.extend(others(link, network));
        (link.port.clone(), lines)
    };
    links.map(of).collect()
}

/// A paragraph for each uplink.
pub(super) fn text(network: &str, links: &[(String, Vec<String>)]) -> String {
    let mut text = String::new();
    for (port, lines) in links {
        text += &format!("network {network} on uplink {}:\n", printable(port));
        lines.iter().for_each(|line| text += &format!("  {}\n", printable(line)));
    }
    text
}

fn is_full(link: &LinkReport) -> bool {
    percent(link.carried_bps, link.capacity_bps) >= FULL
}

fn carries(link: &LinkReport) -> String {
    let carried = rate(link.carried_bps);
    match capacity(link) {
        None => format!("the uplink carries {carried}; nobody knows how much it can carry"),
        Some(capacity) if is_full(link) => format!("the uplink is full: it carries {carried} of {capacity}"),
        Some(capacity) => format!("the uplink is not full: it carries {carried} of {capacity}"),
    }
}

/// What is not as it was promised.
fn shapes(link: &LinkReport) -> Vec<String> {
    let why = link.problem.as_ref().map_or(String::new(), |problem| format!(": {problem}"));
    let mut lines = Vec::new();
    match link.driver.as_str() {
        "none" | "" => lines
            .push(format!("nobody shapes it{why}; packets leave as they come, and no contract is kept here")),
        "meter" => lines.push(format!("meters shape it{why}; maxima are kept, minima are not")),
        _ => lines.extend(link.problem.as_ref().map(|problem| format!("it is not as promised: {problem}"))),
    }
    if link.capacity_bps == 0 {
        let port = &link.port;
        lines.push(format!("say what it carries: xenflow uplink set NODE {port} --capacity RATE"));
    }
    lines
}

fn queue_lines(link: &LinkReport, queue: &QueueReport, policy: &str, now_ms: u64) -> Vec<String> {
    let name = match &queue.class {
        Some(class) => format!("class {class}"),
        None if link.queues.iter().any(|other| other.network == queue.network && other.class.is_some()) => {
            "what is in no class".to_owned()
        }
        None => "it".to_owned(),
    };
    let promised = match (queue.min_bps, queue.max_bps) {
        (0, None) => format!("{name} is promised nothing: it gets what those with a contract leave"),
        (0, Some(max)) => format!("{name} is promised nothing, and gets {} at most", bits(max)),
        (min, None) => format!("{name} is promised {}, and may have more", bits(min)),
        (min, Some(max)) => format!("{name} is promised {}, and gets {} at most", bits(min), bits(max)),
    };
    let since = span((now_ms / 1000).saturating_sub(queue.since_ms / 1000));
    let obtained = rate(queue.obtained_bps);
    let gets = match queue.state.as_str() {
        "idle" => format!("{name} carries nothing since {since}, so others use its part"),
        "short" => {
            let expected = rate(queue.expected_bps);
            format!("{name} gets {obtained} and wants more: less than its part of {expected}, since {since}")
        }
        _ if queue.wants_more => format!("{name} gets {obtained}, its part, and wants more"),
        _ => format!("{name} gets {obtained}, all that it wants"),
    };
    let mut lines = vec![promised, gets];
    if queue.wants_more {
        lines.push(limit(link, queue, policy));
    }
    lines
}

/// Reached, as far as counters can tell.
fn reaches(obtained_bps: u64, limit: u64) -> bool {
    percent(obtained_bps, limit) >= FULL
}

/// What keeps a queue from having more.
fn limit(link: &LinkReport, queue: &QueueReport, policy: &str) -> String {
    let obtained = queue.obtained_bps;
    if let Some(max) = queue.max_bps.filter(|max| reaches(obtained, *max)) {
        return format!("that is because of its contract: {} is the most it gets", bits(max));
    }
    if matches!(link.driver.as_str(), "" | "none" | "meter") {
        return "that is because nothing keeps its part for it here".to_owned();
    }
    if is_full(link) {
        let leave = "what contracts leave of it is divided among those who want more, in proportion to what they are promised";
        return match (queue.min_bps, queue.state.as_str()) {
            (0, _) => "that is because the uplink is full, and those with a contract come first".to_owned(),
            (_, "short") => {
                format!("the uplink is full; {leave}, and it has less than its share: that should not last")
            }
            _ => format!("that is because the uplink is full; {leave}"),
        };
    }
    if let Some(ceil) = queue.ceil_bps.filter(|ceil| *ceil < link.capacity_bps && reaches(obtained, *ceil)) {
        let ceil = bits(ceil);
        return format!("that is because the policy ({policy}) lets it borrow up to {ceil} at the moment");
    }
    "the uplink has room for it: it has begun to want more just now, or sends in bursts".to_owned()
}

/// Who else is there; without queues nobody knows.
fn others(link: &LinkReport, network: &str) -> Vec<String> {
    if link.queues.is_empty() {
        return Vec::new();
    }
    let mut others: Vec<_> =
        link.queues.iter().filter(|queue| queue.network != network && queue.obtained_bps > 0).collect();
    others.sort_by_key(|queue| std::cmp::Reverse(queue.obtained_bps));
    let more = others.len().saturating_sub(OTHERS);
    let line = |queue: &&QueueReport| {
        let promised = match queue.min_bps {
            0 => "promised nothing".to_owned(),
            min => format!("promised {}", bits(min)),
        };
        let wants = if queue.wants_more { ", wants more" } else { "" };
        format!("beside it {} has {} ({promised}{wants})", name(queue), rate(queue.obtained_bps))
    };
    let mut lines: Vec<_> = others.iter().take(OTHERS).map(line).collect();
    if others.is_empty() {
        lines.push("nobody else uses it".to_owned());
    }
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 1_000_000;

    fn queue(network: &str, min: u64, obtained: u64, wants_more: bool) -> QueueReport {
        QueueReport {
            network: network.into(),
            min_bps: min * MBIT,
            obtained_bps: obtained * MBIT,
            expected_bps: obtained * MBIT,
            wants_more,
            rate_bps: Some(min * MBIT),
            ceil_bps: Some(100 * MBIT),
            since_ms: 5_000,
            state: if obtained == 0 { "idle" } else { "met" }.into(),
            ..QueueReport::default()
        }
    }

    fn link(queues: Vec<QueueReport>) -> LinkReport {
        LinkReport {
            port: "eth0".into(),
            capacity_bps: 100 * MBIT,
            capacity_from: "port".into(),
            driver: "tc".into(),
            carried_bps: queues.iter().map(|queue| queue.obtained_bps).sum(),
            queues,
            ..LinkReport::default()
        }
    }

    /// What is said of red, 60 s after the queues became as they are.
    fn said(link: LinkReport) -> Vec<String> {
        let report = Report { policy: "fair".into(), period_ms: 1000, links: vec![link] };
        reasons(&report, "red", 65_000).into_iter().flat_map(|(_, lines)| lines).collect()
    }

    #[test]
    fn a_full_uplink_is_divided_by_contract() {
        let full = "the uplink is full: it carries 99.0 Mbit/s of 100mbit (the port's speed)";
        assert_eq!(
            said(link(vec![
                queue("blue", 40, 66, true),
                queue("red", 20, 33, true),
                queue("green", 10, 0, false)
            ])),
            [
                full,
                "it is promised 20mbit, and may have more",
                "it gets 33.0 Mbit/s, its part, and wants more",
                "that is because the uplink is full; what contracts leave of it is divided among those who want more, in \
                 proportion to what they are promised",
                "beside it blue has 66.0 Mbit/s (promised 40mbit, wants more)",
            ]
        );
        let short =
            QueueReport { state: "short".into(), expected_bps: 33 * MBIT, ..queue("red", 20, 19, true) };
        let lines = said(link(vec![queue("blue", 40, 80, true), short]));
        assert_eq!(
            lines[2..4],
            [
                "it gets 19.0 Mbit/s and wants more: less than its part of 33.0 Mbit/s, since 1 min 0 s",
                "the uplink is full; what contracts leave of it is divided among those who want more, in proportion to what \
                 they are promised, and it has less than its share: that should not last",
            ]
        );
        let lines = said(link(vec![queue("blue", 40, 90, true), queue("red", 0, 9, true)]));
        assert_eq!(
            lines[1..4],
            [
                "it is promised nothing: it gets what those with a contract leave",
                "it gets 9.00 Mbit/s, its part, and wants more",
                "that is because the uplink is full, and those with a contract come first",
            ]
        );
    }

    #[test]
    fn what_is_left_over_is_said_to_be_wanted_by_nobody_or_bounded() {
        assert_eq!(
            said(link(vec![queue("red", 20, 33, false)])),
            [
                "the uplink is not full: it carries 33.0 Mbit/s of 100mbit (the port's speed)",
                "it is promised 20mbit, and may have more",
                "it gets 33.0 Mbit/s, all that it wants",
                "nobody else uses it",
            ]
        );
        assert_eq!(
            said(link(vec![queue("red", 20, 0, false)]))[2],
            "it carries nothing since 1 min 0 s, so others use its part"
        );
        let bounded = QueueReport { max_bps: Some(30 * MBIT), ..queue("red", 20, 29, true) };
        let lines = said(link(vec![bounded]));
        assert_eq!(lines[1], "it is promised 20mbit, and gets 30mbit at most");
        assert_eq!(lines[3], "that is because of its contract: 30mbit is the most it gets");
        let ceiling = QueueReport { ceil_bps: Some(40 * MBIT), ..queue("red", 20, 39, true) };
        assert_eq!(
            said(link(vec![ceiling]))[3],
            "that is because the policy (fair) lets it borrow up to 40mbit at the moment"
        );
        assert_eq!(
            said(link(vec![queue("red", 20, 39, true)]))[3],
            "the uplink has room for it: it has begun to want more just now, or sends in bursts"
        );
    }

    #[test]
    fn an_uplink_that_is_not_shaped_says_why() {
        let bare = |driver: &str, problem: &str| LinkReport {
            driver: driver.into(),
            problem: Some(problem.into()),
            ..link(vec![queue("red", 20, 5, true)])
        };
        let lines = said(bare("none", "the datapath has no queues"));
        assert_eq!(
            lines[1],
            "nobody shapes it: the datapath has no queues; packets leave as they come, and no contract is kept here"
        );
        assert_eq!(lines[4], "that is because nothing keeps its part for it here");
        assert_eq!(
            said(bare("meter", "the datapath has no queues"))[1],
            "meters shape it: the datapath has no queues; maxima are kept, minima are not"
        );
        assert_eq!(said(bare("tc", "minima are scaled"))[1], "it is not as promised: minima are scaled");
        let unknown =
            LinkReport { capacity_bps: 0, capacity_from: "unknown".into(), ..bare("none", "no speed") };
        let lines = said(unknown);
        assert_eq!(lines[0], "the uplink carries 5.00 Mbit/s; nobody knows how much it can carry");
        assert_eq!(lines[2], "say what it carries: xenflow uplink set NODE eth0 --capacity RATE");
    }

    #[test]
    fn classes_are_named_and_many_others_counted() {
        let voice = QueueReport { class: Some("voice".into()), ..queue("red", 5, 1, false) };
        let mut queues = vec![voice, queue("red", 15, 2, false)];
        queues.extend((1..=7).map(|n| queue(&format!("n{n}"), 0, n, false)));
        let lines = said(link(queues));
        assert_eq!(lines[1], "what is in no class is promised 15mbit, and may have more");
        assert_eq!(lines[3], "class voice is promised 5mbit, and may have more");
        assert_eq!(lines[5], "beside it n7 has 7.00 Mbit/s (promised nothing)");
        assert_eq!(lines.last().map(String::as_str), Some("and 2 more"));
        let report = Report { links: vec![link(vec![queue("blue", 1, 1, false)])], ..Report::default() };
        assert_eq!(reasons(&report, "red", 0), []);
    }
}
