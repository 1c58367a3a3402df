//! The questions how the networks share the node's uplinks, now and in the last hour. They cost the daemon's loop nothing:
//! the task of the client that asks answers them, from what the bandwidth loop has told last.

use serde_json::{Value, json};
use xenflow_proto::Name;
use xenflow_qos::history::STEP_MS;

use super::{Answer, RequestError};
use crate::shaper::handle::{Handle, QueueKey};
use crate::shaper::report::{LinkReport, Report};

/// Links and queues in an answer.
const PAGE: usize = 1000;
/// Queues' hours in an answer: 50 KB each.
const HOURS: usize = 8;

/// From which queue on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// A port, and how many of its queues have been told.
    after: Option<(String, usize)>,
}

impl Query {
    /// Understands a request.
    ///
    /// # Errors
    /// [`RequestError::Cursor`].
    pub fn parse(after: Option<String>) -> Result<Self, RequestError> {
        let cursor = |text: String| {
            let cursor =
                text.split_once(' ').and_then(|(told, port)| Some((port.to_owned(), told.parse().ok()?)));
            cursor.ok_or(RequestError::Cursor(text))
        };
        Ok(Self { after: after.map(cursor).transpose()? })
    }
}

/// Whose hour, and from which queue on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryQuery {
    network: Name,
    after: Option<QueueKey>,
}

impl HistoryQuery {
    /// Understands a request.
    ///
    /// # Errors
    /// [`RequestError`] says what is wrong with it.
    pub fn parse(network: &str, after: Option<String>) -> Result<Self, RequestError> {
        let key = |text: String| {
            let (port, class) = match text.split_once(' ') {
                Some((port, class)) => (port, Some(class.to_owned())),
                None => (text.as_str(), None),
            };
            match port {
                "" => Err(RequestError::Cursor(text)),
                port => Ok(QueueKey { port: port.to_owned(), network: network.to_owned(), class }),
            }
        };
        Ok(Self { network: network.parse()?, after: after.map(key).transpose()? })
    }
}

/// The newest report, or a page of it: its links with some of their queues.
#[must_use]
pub fn answer(shaped: &Handle, query: &Query) -> Answer {
    let report = shaped.report();
    let (from, mut told) = query.after.as_ref().map_or(("", 0), |(port, told)| (port.as_str(), *told));
    let mut room = PAGE;
    let mut links = Vec::new();
    let mut next = None;
    for link in report.links.iter().filter(|link| link.port.as_str() >= from) {
        let begin = if link.port == from { told } else { 0 }.min(link.queues.len());
        if room == 0 {
            next = Some(format!("0 {}", link.port));
            break;
        }
        room -= 1;
        told = link.queues.len().min(begin + room);
        room -= told - begin;
        let queues = link.queues.get(begin..told).unwrap_or_default().to_vec();
        let LinkReport { port, .. } = link;
        if told < link.queues.len() {
            next = Some(format!("{told} {port}"));
        }
        links.push(LinkReport { queues, ..link_alone(link) });
        if next.is_some() {
            break;
        }
    }
    let page = Report { policy: report.policy.clone(), period_ms: report.period_ms, links };
    let mut value = json!(page);
    value["next"] = next.into();
    Answer::Value(value)
}

/// Without its queues.
fn link_alone(link: &LinkReport) -> LinkReport {
    let LinkReport { port, capacity_bps, capacity_from, driver, problem, carried_bps, queues: _ } = link;
    LinkReport {
        port: port.clone(),
        capacity_bps: *capacity_bps,
        capacity_from: capacity_from.clone(),
        driver: driver.clone(),
        problem: problem.clone(),
        carried_bps: *carried_bps,
        queues: Vec::new(),
    }
}

/// The last hour of a network's queues, or of some of them.
#[must_use]
pub fn history(shaped: &Handle, query: &HistoryQuery) -> Answer {
    let report = shaped.report();
    let mut series = Vec::new();
    let mut after = query.after.clone();
    while series.len() < HOURS
        && let Some((key, points)) = shaped.next_hour(query.network.as_str(), after.as_ref())
    {
        let points = points.iter().map(|point| {
            json!({ "at_ms": point.at_ms, "obtained_bps": point.obtained, "expected_bps": point.expected })
        });
        let now = report
            .links
            .iter()
            .filter(|link| link.port == key.port)
            .flat_map(|link| link.queues.iter().find(|queue| QueueKey::of(&link.port, queue) == key));
        let now = now.map(|queue| (queue.min_bps, queue.max_bps)).next();
        series.push(json!({
            "port": key.port, "network": key.network, "class": key.class, "min_bps": now.map(|(min, _)| min),
            "max_bps": now.and_then(|(_, max)| max), "points": points.collect::<Value>(),
        }));
        after = Some(key);
    }
    let is_all = series.len() < HOURS;
    let next = after.filter(|_| !is_all).map(|key| match key.class {
        Some(class) => format!("{} {class}", key.port),
        None => key.port,
    });
    Answer::Value(json!({ "step_ms": STEP_MS, "series": series, "next": next }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shaper::handle::channel;
    use crate::shaper::report::QueueReport;

    fn value(answer: Answer) -> Value {
        let Answer::Value(value) = answer else { panic!("{answer:?}") };
        value
    }

    fn link(port: &str, queues: u32) -> LinkReport {
        let queue =
            |queue| QueueReport { network: format!("n{queue}"), queue, min_bps: 8000, ..Default::default() };
        LinkReport { port: port.to_owned(), queues: (0..queues).map(queue).collect(), ..Default::default() }
    }

    /// All pages put together, and how many there were.
    fn whole(handle: &Handle) -> (Vec<(String, Vec<u64>)>, usize) {
        let mut all: Vec<(String, Vec<u64>)> = Vec::new();
        let (mut after, mut pages) = (None, 0);
        loop {
            let page = value(answer(handle, &Query::parse(after).unwrap()));
            let (mut things, links) = (0, page["links"].as_array().unwrap());
            for link in links {
                let port = link["port"].as_str().unwrap().to_owned();
                let queues =
                    link["queues"].as_array().unwrap().iter().map(|queue| queue["queue"].as_u64().unwrap());
                match all.last_mut().filter(|(last, _)| *last == port) {
                    Some((_, before)) => before.extend(queues),
                    None => all.push((port, queues.collect())),
                }
                things += 1 + link["queues"].as_array().unwrap().len();
            }
            assert!(things <= PAGE);
            pages += 1;
            after = page["next"].as_str().map(str::to_owned);
            if after.is_none() {
                return (all, pages);
            }
        }
    }

    #[test]
    fn a_report_comes_in_pages() {
        let (writer, handle) = channel();
        assert_eq!(whole(&handle), (vec![], 1));
        for (sizes, pages) in
            [(&[3, 0, 2][..], 1), (&[998, 5], 2), (&[999, 5], 2), (&[2500, 1], 3), (&[999], 1)]
        {
            let name = |at: usize| format!("eth{at}");
            let links = sizes.iter().enumerate().map(|(at, size)| link(&name(at), *size)).collect();
            writer.tell(1000, 1000, Report { policy: "fair".into(), period_ms: 1000, links });
            let wanted = sizes.iter().enumerate();
            let wanted: Vec<_> =
                wanted.map(|(at, size)| (name(at), (0..u64::from(*size)).collect())).collect();
            assert_eq!(whole(&handle), (wanted, pages), "{sizes:?}");
        }
    }

    #[test]
    fn an_hour_comes_with_the_contract() {
        let (writer, handle) = channel();
        let classes: Vec<_> = [None].into_iter().chain((0..9).map(|n| Some(format!("c{n}")))).collect();
        let queues = classes.iter().map(|class| QueueReport {
            network: "red".into(),
            class: class.clone(),
            min_bps: 20,
            max_bps: Some(30),
            obtained_bps: 10,
            expected_bps: 20,
            ..Default::default()
        });
        let links = vec![LinkReport { port: "eth0".into(), queues: queues.collect(), ..Default::default() }];
        let report = Report { links, ..Default::default() };
        writer.tell(5000, 1000, report.clone());
        writer.tell(10_000, 1000, report);
        let mut after = None;
        let mut seen = Vec::new();
        for length in [8, 2] {
            let page = value(history(&handle, &HistoryQuery::parse("red", after).unwrap()));
            let series = page["series"].as_array().unwrap();
            assert_eq!(series.len(), length);
            for one in series {
                assert_eq!((&one["min_bps"], &one["max_bps"]), (&json!(20), &json!(30)));
                assert_eq!(one["points"], json!([{"at_ms": 5000, "obtained_bps": 10, "expected_bps": 20}]));
                seen.push(one["class"].as_str().map(str::to_owned));
            }
            after = page["next"].as_str().map(str::to_owned);
        }
        assert_eq!((seen, after), (classes, None));
        let none = value(history(&handle, &HistoryQuery::parse("blue", None).unwrap()));
        assert_eq!((&none["series"], &none["next"]), (&json!([]), &Value::Null));
        // The report has it no more: its hour stays, without a contract.
        writer.tell(15_000, 1000, Report::default());
        let gone = value(history(&handle, &HistoryQuery::parse("red", None).unwrap()));
        assert_eq!(gone["series"][0]["min_bps"], Value::Null);
    }
}
