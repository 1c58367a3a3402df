//! What is told of a migration: lines while it goes on, and a report of one that has ended or not.
//!
//! Pure. Times are those of the row, by the clocks of the nodes that wrote them.

use std::collections::BTreeMap;

use anyhow::anyhow;
use dom0_server::db::Migration;
use dom0_server::db::migration::{Phase, Wanted};
use dom0_server::migration::plan::Plan;
use serde_json::{Value, json};

use crate::Failure;
use crate::show::printable;
use crate::view::{ago, instant};

/// Exit code of a migration that has ended otherwise than it was asked to.
const OTHERWISE: u8 = 3;

/// In this order a migration can reach them.
const ORDER: [Phase; 10] = [
    Phase::Staging,
    Phase::Staged,
    Phase::Moving,
    Phase::Aborting,
    Phase::Arrived,
    Phase::Verified,
    Phase::Announced,
    Phase::Draining,
    Phase::Done,
    Phase::Aborted,
];

/// A phase that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) phase: Phase,
    /// Milliseconds since the Unix epoch.
    reached_ms: u64,
    /// Since the first phase.
    at_ms: u64,
    /// Until the next; none of the last.
    took_ms: Option<u64>,
}

/// The phases that a migration has reached, in their order. Where clocks of nodes differ, no time is below 0.
pub(super) fn steps(row: &Migration) -> Vec<Step> {
    let reached = ORDER.iter().filter_map(|phase| Some((*phase, *row.reached.get(phase.as_str())?)));
    let reached: Vec<_> = reached.collect();
    let first = reached.first().map_or(0, |(_, at)| *at);
    let next = reached.iter().skip(1).map(|(_, at)| Some(*at)).chain([None]);
    let step = |(&(phase, reached_ms), next): (&(Phase, u64), Option<u64>)| Step {
        phase,
        reached_ms,
        at_ms: reached_ms.saturating_sub(first),
        took_ms: next.map(|next| next.saturating_sub(reached_ms)),
    };
    reached.iter().zip(next).map(step).collect()
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

/// "router r1 from a to b by xl".
pub(super) fn what(wanted: &Wanted) -> String {
    let Wanted { router, from, to, via, .. } = wanted;
    format!("router {router} from {from} to {to} by {}", via.as_str())
}

/// A phase that begins: "   1.204 s  staged     b has …".
pub(super) fn step_line(row: &Migration, step: &Step) -> String {
    let Migration { from, to, via, error, .. } = row;
    let words = match step.phase {
        Phase::Staging => format!("{to} gets the tables"),
        Phase::Staged => format!("{to} has the tables; {from} stops using the router's addresses"),
        Phase::Moving => format!("the guest leaves {from} by {}", via.as_str()),
        Phase::Arrived => format!("the guest runs on {to}; {from} still forwards"),
        Phase::Verified => format!("{to} forwards as well"),
        Phase::Announced => format!("{to} has the router's addresses"),
        Phase::Draining => format!("{from} takes in what still comes there"),
        Phase::Done => format!("the router is on {to}"),
        Phase::Aborting => format!("it is to stay on {from}: {}", printable(error)),
        Phase::Aborted => format!("the router is on {from}"),
    };
    format!("{:>11}  {:9}  {words}", seconds(step.at_ms), step.phase.as_str())
}

/// What a command ends with that has followed a migration to its end.
pub(super) fn verdict(row: &Migration, is_abort: bool) -> Result<(), Failure> {
    let Migration { number, router, from, to, error, .. } = row;
    let ended = |error| Err(Failure::Ended(OTHERWISE, error));
    match (row.phase, is_abort) {
        (Phase::Aborted, false) => ended(anyhow!(
            "migration {number} was aborted: {}; router {router} is on {from}",
            printable(error)
        )),
        (Phase::Done, true) => ended(anyhow!(
            "migration {number} could not be aborted any more: router {router} is on {to}; 'xenflow migrate {router} {from}' moves it back"
        )),
        _ => Ok(()),
    }
}

/// A migration in a few words, for the list.
pub(super) fn line(row: &Migration) -> Value {
    let Migration { number, router, from, to, via, phase, error, .. } = row;
    json!({
        "number": number, "router": router.as_str(), "from": from.as_str(), "to": to.as_str(), "via": via.as_str(),
        "phase": phase.as_str(), "since": row.reached.get(phase.as_str()).map(|at| ago(*at)), "error": error,
    })
}

/// The row, and its times.
pub(super) fn json(row: &Migration) -> Value {
    let step = |step: &Step| {
        let Step { phase, reached_ms, at_ms, took_ms } = step;
        json!({ "phase": phase, "reached_ms": reached_ms, "at_ms": at_ms, "took_ms": took_ms })
    };
    let steps = steps(row);
    let mut value = json!(row);
    value["phases"] = steps.iter().map(step).collect();
    value["took_ms"] = steps.last().map(|step| step.at_ms).into();
    value
}

/// The report.
pub(super) fn text(row: &Migration) -> String {
    let Migration { number, router, from, to, via, move_limit_s, phase, generation, error, digest, .. } = row;
    let mut page =
        format!("migration {number}: router {router} from {from} to {to} by {}, {phase}\n", via.as_str());
    let steps = steps(row);
    if let (Some(first), Some(last)) = (steps.first(), steps.last()) {
        let took = if phase.is_over() { format!(", took {}", seconds(last.at_ms)) } else { String::new() };
        page += &format!("began {}{took}\n", instant(first.reached_ms));
    }
    if !error.is_empty() {
        page += &format!("aborted: {}\n", printable(error));
    }
    if *move_limit_s > 0 {
        page += &format!("the guest may be on its way for {move_limit_s} s\n");
    }
    if !digest.is_empty() {
        page += &format!("tables when staged: {}\n", printable(digest));
    }
    if *generation > 0 {
        page += &format!("addresses are on {to} since generation {generation}\n");
    }
    let head = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let phases = steps.iter().map(|step| {
        vec![
            step.phase.to_string(),
            seconds(step.at_ms),
            step.took_ms.map_or_else(|| "-".to_owned(), seconds),
        ]
    });
    page += &table([head(&["PHASE", "AT", "TOOK"])].into_iter().chain(phases).collect());
    let Counted { sides, others } = counted(&row.counters);
    let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let sides = sides.iter().map(|(what, [source, destination])| {
        vec![printable(&what.replace('/', " ")), count(*source), count(*destination)]
    });
    page += &table([head(&["COUNTED", "SOURCE", "DESTINATION"])].into_iter().chain(sides).collect());
    for (group, counters) in others {
        let rows =
            counters.iter().map(|(what, count)| vec![printable(&what.replace('/', " ")), count.to_string()]);
        page += &table(
            [vec![printable(&group.to_uppercase()), "COUNT".to_owned()]].into_iter().chain(rows).collect(),
        );
    }
    page
}

/// Counters of a row, by what they are of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted<'a> {
    /// `source/WHAT` and `destination/WHAT`.
    sides: BTreeMap<&'a str, [Option<u64>; 2]>,
    /// By what stands before the first slash; what has none is of `other`.
    others: BTreeMap<&'a str, BTreeMap<&'a str, u64>>,
}

fn counted(counters: &BTreeMap<String, u64>) -> Counted<'_> {
    let mut counted = Counted::default();
    for (key, count) in counters {
        match key.split_once('/') {
            Some(("source", what)) => counted.sides.entry(what).or_default()[0] = Some(*count),
            Some(("destination", what)) => counted.sides.entry(what).or_default()[1] = Some(*count),
            Some((group, what)) => {
                counted.others.entry(group).or_default().insert(what, *count);
            }
            None => {
                counted.others.entry("other").or_default().insert(key, *count);
            }
        }
    }
    counted
}

/// Behind an empty line; words to the left, numbers to the right. Nothing of a head alone.
fn table(rows: Vec<Vec<String>>) -> String {
    if rows.len() < 2 {
        return String::new();
    }
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..).map_while(width).collect();
    let mut text = String::from("\n");
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// What would be done.
pub(super) fn plan_text(plan: &Plan) -> String {
    let Plan { wanted, held, guest, routes, address } = plan;
    let mut text = format!("{}, within {} s (guest {guest})\n", what(wanted), wanted.move_limit_s);
    for (place, generation) in held {
        text += &format!(
            "  {} on {}: {} has it since generation {generation}\n",
            place.mac, place.segment, wanted.from
        );
    }
    text += &format!("  its tables ({routes} routes) go to {} at {}\n", wanted.to, printable(address));
    text + "nothing is in the way, and nothing was changed\n"
}

/// The same for programs.
pub(super) fn plan_json(plan: &Plan) -> Value {
    let Plan { wanted, held, guest, routes, address } = plan;
    let Wanted { router, from, to, via, move_limit_s, phase: _ } = wanted;
    let held = held.iter().map(|(place, generation)| {
        json!({ "segment": place.segment.as_str(), "mac": place.mac.to_string(), "generation": generation })
    });
    json!({
        "dry_run": true, "router": router.as_str(), "from": from.as_str(), "to": to.as_str(), "via": via.as_str(),
        "move_limit_s": move_limit_s, "guest": guest.as_str(), "addresses": held.collect::<Vec<_>>(), "routes": routes,
        "address": address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(phase: Phase, reached: &[(Phase, u64)]) -> Migration {
        Migration {
            number: 7,
            router: "r1".parse().unwrap(),
            from: "a".parse().unwrap(),
            to: "b".parse().unwrap(),
            via: dom0_server::db::migration::Via::Xl,
            move_limit_s: 600,
            phase,
            generation: 0,
            yielded: false,
            left: false,
            error: String::new(),
            digest: String::new(),
            reached: reached.iter().map(|(phase, at)| (phase.to_string(), *at)).collect(),
            counters: BTreeMap::new(),
        }
    }

    #[test]
    fn phases_stand_in_the_order_of_a_move_whatever_clocks_say() {
        let row = row(
            Phase::Arrived,
            &[
                (Phase::Arrived, 5_900),
                (Phase::Staging, 1_000),
                (Phase::Moving, 2_250),
                // By another node's clock, which is behind.
                (Phase::Staged, 900),
                // It was too late for that.
                (Phase::Aborting, 6_000),
            ],
        );
        let steps: Vec<_> =
            steps(&row).into_iter().map(|step| (step.phase, step.at_ms, step.took_ms)).collect();
        assert_eq!(
            steps,
            [
                (Phase::Staging, 0, Some(0)),
                (Phase::Staged, 0, Some(1_350)),
                (Phase::Moving, 1_250, Some(3_750)),
                (Phase::Aborting, 5_000, Some(0)),
                (Phase::Arrived, 4_900, None),
            ]
        );
        // All phases have a place.
        assert!(Phase::ALL.iter().all(|(phase, _)| ORDER.contains(phase)));
    }

    #[test]
    fn counters_are_grouped_and_none_is_left_out() {
        let keys =
            ["source/packets/lan", "destination/packets/lan", "destination/late", "probe/sent", "x", "a/b/c"];
        let counters: BTreeMap<String, u64> = keys.iter().map(|key| (*key).to_owned()).zip(1..).collect();
        let Counted { sides, others } = counted(&counters);
        assert_eq!(sides, [("late", [None, Some(3)]), ("packets/lan", [Some(1), Some(2)])].into());
        let others: Vec<_> = others
            .iter()
            .flat_map(|(group, all)| all.iter().map(move |(key, n)| (*group, *key, *n)))
            .collect();
        assert_eq!(others, [("a", "b/c", 6), ("other", "x", 5), ("probe", "sent", 4)]);
        let page = text(&Migration { counters, ..row(Phase::Staging, &[(Phase::Staging, 1)]) });
        assert!(
            page.contains("\nCOUNTED      SOURCE  DESTINATION\nlate              -            3\n"),
            "{page}"
        );
        assert!(!text(&row(Phase::Staging, &[])).contains("COUNTED"));
    }

    #[test]
    fn only_the_other_end_has_a_code_of_its_own() {
        let code = |phase, is_abort| match verdict(&row(phase, &[]), is_abort) {
            Ok(()) => 0,
            Err(Failure::Ended(code, _)) => code,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!((code(Phase::Done, false), code(Phase::Aborted, false)), (0, 3));
        assert_eq!((code(Phase::Done, true), code(Phase::Aborted, true)), (3, 0));
    }
}
