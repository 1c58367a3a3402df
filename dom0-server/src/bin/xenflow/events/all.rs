//! `xenflow events --all`: what happened on all nodes, as the rows of the database show it.
//!
//! Owns the watch on the database, and which nodes are silent. What a difference between rows means is
//! `dom0_server::db::happened`'s.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use dom0_server::clock::now_ms;
use dom0_server::db::happened::{Happened, Known, monitor};
use ovsdb::{Event as Said, Remote, Session, SessionConfig};
use xenflow_proto::Name;

use super::{LOOK, Lines, is_closed, signals};
use crate::args::Target;
use crate::{Failure, output};

/// A node that has written nothing for so long is silent; it writes every 20 s.
const SILENT: Duration = Duration::from_secs(60);

pub(super) async fn run(db: &Target, lines: Lines, follow: bool, seconds: u32) -> Result<(), Failure> {
    let remotes = Remote::parse_list(&db.remotes)?;
    let mut config = SessionConfig::new(remotes.clone()).monitor(monitor());
    config.options.tls = db.tls(&remotes)?;
    let mut session = Session::start(config);
    let mut known = Known::default();
    let mut silence = Silence::default();

    let limit = Duration::from_secs(seconds.into());
    let mut trouble = None;
    let first = async {
        loop {
            match session.next().await.context("the watch on the database has ended")? {
                Said::Snapshot { changes, .. } => return anyhow::Ok(known.take(&changes)),
                Said::Disconnected { reason } => trouble = Some(reason),
                Said::Connected { .. } | Said::Update { .. } => {}
            }
        }
    };
    let first = tokio::time::timeout(limit, first).await;
    let mut first = first.map_err(|_| match trouble {
        None => anyhow!("{db} has not answered within {seconds} s"),
        Some(trouble) => anyhow::Error::from(trouble).context(format!("no database at {db}")),
    })??;
    // How it stands: only what a row says the time of is something that happened, and what goes on.
    first.retain(|it| it.time_ms.is_some() || it.kind == "migration");
    first.extend(silence.look(&known, Instant::now(), now_ms()));
    first.sort_by_key(|it| it.time_ms);
    if !print(&lines, &first, None) || !follow {
        return Ok(());
    }

    let mut is_away = false;
    let mut look = tokio::time::interval(LOOK);
    let mut signals = signals()?;
    loop {
        let happened = tokio::select! {
            said = session.next() => match said.context("the watch on the database has ended")? {
                Said::Snapshot { changes, .. } | Said::Update { changes, .. } => {
                    if std::mem::take(&mut is_away) {
                        output::error("the database answers again");
                        silence.forgive(Instant::now());
                    }
                    known.take(&changes)
                }
                Said::Disconnected { reason } => {
                    if !std::mem::replace(&mut is_away, true) {
                        let reason = anyhow::Error::from(reason);
                        output::error(&format!("no database at {db}: {reason:#}: waiting for it to come back"));
                    }
                    continue;
                }
                Said::Connected { .. } => continue,
            },
            () = signals.any() => return Ok(()),
            _ = look.tick() => {
                if is_closed() {
                    return Ok(());
                }
                if is_away { Vec::new() } else { silence.look(&known, Instant::now(), now_ms()) }
            }
        };
        if !print(&lines, &happened, Some(now_ms())) {
            return Ok(());
        }
    }
}

/// False: nobody reads any more.
fn print(lines: &Lines, happened: &[Happened], now_ms: Option<u64>) -> bool {
    let wanted = happened.iter().map(|it| it.json(now_ms)).filter(|event| lines.wants(event));
    let text: String = wanted.map(|event| lines.line(event)).collect();
    text.is_empty() || output::part(&text)
}

/// A node's last sign of life.
#[derive(Debug)]
struct Sign {
    seen_ms: u64,
    /// When that was read here: clocks of hosts may differ.
    read: Instant,
    is_silent: bool,
}

/// Which nodes report, and which do not.
#[derive(Debug, Default)]
struct Silence(BTreeMap<Name, Sign>);

impl Silence {
    fn look(&mut self, known: &Known, now: Instant, now_ms: u64) -> Vec<Happened> {
        let mut happened = Vec::new();
        let mut signs = BTreeMap::new();
        for (node, seen_ms) in known.seen() {
            let sign = match self.0.remove(node) {
                // The first look knows no better than the clocks.
                None => {
                    let age = Duration::from_millis(now_ms.saturating_sub(seen_ms));
                    let is_silent = age > SILENT;
                    if is_silent {
                        let silence = Happened::silence(node, Some(age.as_secs()));
                        happened.push(Happened { time_ms: Some(seen_ms), ..silence });
                    }
                    Sign { seen_ms, read: now, is_silent }
                }
                Some(sign) if sign.seen_ms != seen_ms => {
                    if sign.is_silent {
                        happened.push(Happened::silence(node, None));
                    }
                    Sign { seen_ms, read: now, is_silent: false }
                }
                Some(sign) => {
                    let age = now.saturating_duration_since(sign.read);
                    let is_silent = sign.is_silent || age > SILENT;
                    if is_silent && !sign.is_silent {
                        happened.push(Happened::silence(node, Some(age.as_secs())));
                    }
                    Sign { is_silent, ..sign }
                }
            };
            signs.insert(node.clone(), sign);
        }
        self.0 = signs;
        happened
    }

    /// Nobody could be heard until now.
    fn forgive(&mut self, now: Instant) {
        self.0.values_mut().for_each(|sign| sign.read = now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dom0_server::db::{NodeStatus, table};
    use ovsdb::{Datum, Row, RowChange, Uuid};

    use super::*;

    fn seen(known: &mut Known, seen_ms: i64) {
        let value = |column: &str| match column {
            "node" => "a".into(),
            "seen_ms" => seen_ms.into(),
            "started_ms" | "cfg" => 1.into(),
            "problems" | "prepared" => Datum::empty(),
            "uplink_mtus" | "uplink_capacity" | "shaping" => Datum::map(Vec::<(&str, i64)>::new()),
            _ => "x".into(),
        };
        let row: Row = NodeStatus::COLUMNS.into_iter().map(|column| (column, value(column))).collect();
        known.take(&[RowChange {
            table: Arc::from(table::NODE_STATUS),
            uuid: Uuid(1),
            old: None,
            new: Some(Arc::new(row)),
        }]);
    }

    #[test]
    fn silence_is_told_once_and_not_while_nobody_could_be_heard() {
        let (mut known, mut silence) = (Known::default(), Silence::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut look = |known: &Known, seconds| {
            let told = silence.look(known, at(seconds), 100_000);
            told.into_iter().map(|it| (it.kind, it.text, it.time_ms)).collect::<Vec<_>>()
        };
        let silent = |seconds| format!("the node has reported nothing for {seconds} s");
        // By the clocks, for want of better.
        seen(&mut known, 30_000);
        assert_eq!(look(&known, 0), [("node-silent", silent(70), Some(30_000))]);
        assert_eq!(look(&known, 1), []);
        // Another host's clock may be years behind.
        seen(&mut known, 30_001);
        assert_eq!(look(&known, 2), [("node-back", "the node reports again".to_owned(), None)]);
        assert_eq!(look(&known, 62), []);
        assert_eq!(look(&known, 63), [("node-silent", silent(61), None)]);
        assert_eq!(look(&known, 200), []);
        seen(&mut known, 30_002);
        assert_eq!(look(&known, 201).len(), 1);
        silence.forgive(at(300));
        assert_eq!(silence.look(&known, at(301), 0), []);
    }
}
