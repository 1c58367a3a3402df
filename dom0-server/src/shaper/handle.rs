//! What the bandwidth loop tells those who show it: the newest report, and the last hour of every queue.
//!
//! The loop has the [`Writer`], everybody else a [`Handle`]: whoever looks holds up the loop for no longer than it takes to
//! copy an hour of one queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use xenflow_qos::history::{History, POINTS, Point, STEP_MS};

use super::report::{QueueReport, Report};

/// Queues whose hour is kept, over all uplinks: 25 MB at most. Of more, the first by port, network and class.
const MAX_KEPT: usize = 1024;

/// A queue of an uplink. Numbers of queues may be given to others in time, names stay.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueKey {
    /// Name of the OVS port.
    pub port: String,
    /// The network.
    pub network: String,
    /// The class; none: what is in no class.
    pub class: Option<String>,
}

impl QueueKey {
    /// The key of a queue of a report.
    #[must_use]
    pub fn of(port: &str, queue: &QueueReport) -> Self {
        Self { port: port.to_owned(), network: queue.network.clone(), class: queue.class.clone() }
    }
}

/// An hour, and when something was last added to it.
#[derive(Debug, Default)]
struct Kept {
    history: History,
    told_ms: u64,
}

type Histories = Arc<Mutex<BTreeMap<QueueKey, Kept>>>;

/// For who looks.
#[derive(Debug, Clone)]
pub struct Handle {
    report: watch::Receiver<Arc<Report>>,
    histories: Histories,
}

/// For the loop.
#[derive(Debug)]
pub struct Writer {
    report: watch::Sender<Arc<Report>>,
    histories: Histories,
}

/// Both ends. Until something is told, the policy is `off` and there are no links.
#[must_use]
pub fn channel() -> (Writer, Handle) {
    let off = Report { policy: "off".to_owned(), ..Report::default() };
    let (sender, report) = watch::channel(Arc::new(off));
    let histories = Histories::default();
    (Writer { report: sender, histories: Arc::clone(&histories) }, Handle { report, histories })
}

/// Of a daemon that shapes nothing.
impl Default for Handle {
    fn default() -> Self {
        channel().1
    }
}

fn lock(histories: &Histories) -> MutexGuard<'_, BTreeMap<QueueKey, Kept>> {
    histories.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// So it was in the `ms` before `now_ms` of the Unix epoch. A queue that is not in the report keeps its hour until it
    /// is over: an uplink may be away for a moment.
    pub fn tell(&self, now_ms: u64, ms: u64, report: Report) {
        let mut all = lock(&self.histories);
        let hour = POINTS as u64 * STEP_MS;
        all.retain(|_, kept| kept.told_ms + hour > now_ms);
        for link in &report.links {
            for queue in &link.queues {
                let kept = all.entry(QueueKey::of(&link.port, queue)).or_default();
                kept.history.add(now_ms, ms, queue.obtained_bps, queue.expected_bps);
                kept.told_ms = now_ms;
            }
        }
        while all.len() > MAX_KEPT {
            all.pop_last();
        }
        drop(all);
        self.report.send_replace(Arc::new(report));
    }
}

impl Handle {
    /// The newest.
    #[must_use]
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.report.borrow())
    }

    /// The first queue of a network behind `after` (none: of all) and its last hour, oldest point first.
    #[must_use]
    pub fn next_hour(&self, network: &str, after: Option<&QueueKey>) -> Option<(QueueKey, Vec<Point>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let all = lock(&self.histories);
        let from = after.map_or(Unbounded, Excluded);
        let (key, kept) = all.range((from, Unbounded)).find(|(key, _)| key.network == network)?;
        Some((key.clone(), kept.history.points().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::LinkReport;
    use super::*;

    fn report(links: &[(&str, &[&str])]) -> Report {
        let queue = |network: &&str| QueueReport {
            network: (*network).to_owned(),
            obtained_bps: 7,
            expected_bps: 9,
            ..QueueReport::default()
        };
        let link = |(port, networks): &(&str, &[&str])| LinkReport {
            port: (*port).to_owned(),
            queues: networks.iter().map(queue).collect(),
            ..LinkReport::default()
        };
        Report { links: links.iter().map(link).collect(), ..Report::default() }
    }

    /// Names and numbers of points of all queues of a network.
    fn hours(handle: &Handle, network: &str) -> Vec<(String, usize)> {
        let mut after = None;
        let mut all = Vec::new();
        while let Some((key, points)) = handle.next_hour(network, after.as_ref()) {
            all.push((key.port.clone(), points.len()));
            after = Some(key);
        }
        all
    }

    #[test]
    fn who_looks_sees_what_was_told_last_and_the_hour_before() {
        let (writer, handle) = channel();
        assert_eq!((handle.report().policy.as_str(), hours(&handle, "red")), ("off", vec![]));
        let both = report(&[("eth0", &["blue", "red"]), ("eth1", &["red"])]);
        writer.tell(10_000, 1000, both.clone());
        writer.tell(16_000, 1000, both.clone());
        assert_eq!(*handle.report(), both);
        assert_eq!(hours(&handle, "red"), [("eth0".to_owned(), 1), ("eth1".to_owned(), 1)]);
        let (_, points) = handle.next_hour("blue", None).unwrap();
        assert_eq!(points, [Point { at_ms: 10_000, obtained: 7, expected: 9 }]);
        // A link that is away for less than an hour has its hour, one that is away for longer has none.
        let one = report(&[("eth1", &["red"])]);
        writer.tell(3_600_000, 1000, one.clone());
        assert_eq!(hours(&handle, "red"), [("eth0".to_owned(), 1), ("eth1".to_owned(), 2)]);
        writer.tell(3_620_000, 1000, one);
        assert_eq!(hours(&handle, "red"), [("eth1".to_owned(), 3)]);
    }

    #[test]
    fn so_many_queues_are_kept_and_no_more() {
        let (writer, handle) = channel();
        let names: Vec<_> = (0..MAX_KEPT).map(|n| format!("n{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        writer.tell(5000, 1000, report(&[("eth0", &names), ("eth1", &["n0"])]));
        assert_eq!(lock(&handle.histories).len(), MAX_KEPT);
        assert_eq!(hours(&handle, "n0"), [("eth0".to_owned(), 0)]);
    }
}
