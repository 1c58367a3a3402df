//! Follows one migration until it is over, or lasts too long, or somebody interrupts.
//!
//! Owns the watch on its row, and for how long it is worth watching. Nothing here changes anything.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dom0_server::db::migration::Phase;
use dom0_server::db::{DATABASE, Migration, Rows, table};
use dom0_server::migration::sequencer::Limits;
use ovsdb::{Condition, Event, Monitor, Remote, Session, SessionConfig};
use tokio::time::{Instant, sleep_until};

use super::report;
use crate::args::Target;
use crate::events::Signals;
use crate::{Failure, output};

/// Exit code of a command that does not follow what goes on.
const NOT_FOLLOWED: u8 = 4;
/// As of a program that a signal ends: 128 and SIGINT.
const INTERRUPTED: u8 = 130;
/// Beyond what a phase may take, for those whom it has to be told.
const GRACE: Duration = Duration::from_secs(5);
/// For a database that is away to come back.
const AWAY: Duration = Duration::from_secs(60);

/// How a migration that was followed stands.
pub(super) struct Told {
    /// The row, as it was last seen.
    pub(super) last: Option<Migration>,
    /// Whether it is over; else why it is not followed any further.
    pub(super) stopped: Result<(), Failure>,
}

/// Tells each phase but those that are `known`, by a line.
pub(super) async fn to_the_end(
    db: &Target,
    number: u64,
    known: BTreeSet<String>,
    signals: &mut Signals,
    json: bool,
) -> Told {
    let mut watch = Watch { number, known, json, last: None, rows: Rows::default() };
    let stopped = watch.run(db, signals).await;
    Told { last: watch.last, stopped }
}

struct Watch {
    number: u64,
    known: BTreeSet<String>,
    json: bool,
    last: Option<Migration>,
    rows: Rows,
}

impl Watch {
    async fn run(&mut self, db: &Target, signals: &mut Signals) -> Result<(), Failure> {
        let remotes = Remote::parse_list(&db.remotes)?;
        let row = Condition::eq("number", i64::try_from(self.number).unwrap_or(i64::MAX));
        let monitor = Monitor::new(DATABASE).table_where(table::MIGRATION, &Migration::COLUMNS, [row]);
        let mut config = SessionConfig::new(remotes.clone()).monitor(monitor);
        config.options.tls = db.tls(&remotes)?;
        let mut session = Session::start(config);
        let mut is_away = false;
        let mut patience = AWAY;
        let mut deadline = Instant::now() + patience;
        loop {
            tokio::select! {
                said = session.next() => match said.context("the watch on the database has ended")? {
                    Event::Snapshot { changes, .. } | Event::Update { changes, .. } => {
                        let is_back = std::mem::take(&mut is_away);
                        if is_back {
                            output::error("the database answers again");
                        }
                        self.rows.apply(&changes);
                        let before = self.last.as_ref().map(|row| row.phase);
                        // Another member of a cluster may hear of it later.
                        let Some(row) = self.read()? else { continue };
                        if row.phase.is_over() {
                            return Ok(());
                        }
                        if is_back || before != Some(row.phase) {
                            patience = self::patience(row, &Limits::default());
                            deadline = Instant::now() + patience;
                        }
                    }
                    Event::Disconnected { reason } if !std::mem::replace(&mut is_away, true) => {
                        let reason = anyhow::Error::from(reason);
                        output::error(&format!("no database at {db}: {reason:#}: waiting for it to come back"));
                        patience = AWAY;
                        deadline = Instant::now() + patience;
                    }
                    Event::Disconnected { .. } | Event::Connected { .. } => {}
                },
                () = signals.any() => {
                    let words = format!("{} is not followed any further", self.who());
                    return Err(self.stops(INTERRUPTED, &words));
                }
                () = sleep_until(deadline) => {
                    let seconds = patience.as_secs();
                    let what = match self.last.as_ref().filter(|_| !is_away) {
                        Some(row) => format!("it has been {} for {seconds} s", row.phase),
                        None => format!("nobody has said for {seconds} s how far it is"),
                    };
                    let words = format!("{} is not followed any further: {what}", self.who());
                    return Err(self.stops(NOT_FOLLOWED, &words));
                }
            }
        }
    }

    /// Takes in the row, once there is one, and tells what is new.
    fn read(&mut self) -> anyhow::Result<Option<&Migration>> {
        let Some(row) = Migration::read(&self.rows).pop() else {
            return match self.last {
                Some(_) => Err(anyhow!("migration {} has no row any more", self.number)),
                None => Ok(None),
            };
        };
        for step in report::steps(&row).iter().filter(|step| !self.known.contains(step.phase.as_str())) {
            let line = report::step_line(&row, step);
            if self.json {
                output::progress(line.trim());
            } else {
                output::text(&format!("{line}\n"));
            }
        }
        self.known.extend(row.reached.keys().cloned());
        Ok(Some(self.last.insert(row)))
    }

    fn who(&self) -> String {
        match &self.last {
            Some(row) => format!("migration {} of router {}", row.number, row.router),
            None => format!("migration {}", self.number),
        }
    }

    fn stops(&self, code: u8, words: &str) -> Failure {
        let number = self.number;
        Failure::Ended(
            code,
            anyhow!(
                "{words}; it goes on: 'xenflow migrations show {number}' says how it is, 'xenflow abort {number}' ends it"
            ),
        )
    }
}

/// For how long a phase may last that somebody works on: twice as long as the nodes let it, as they count from when they read it.
fn patience(row: &Migration, limits: &Limits) -> Duration {
    let limit = match row.phase {
        Phase::Staging => limits.staging,
        Phase::Staged => limits.staged,
        Phase::Moving => Duration::from_secs(row.move_limit_s),
        Phase::Arrived => limits.arrived,
        Phase::Verified => limits.verified,
        Phase::Announced => limits.announced,
        Phase::Draining => limits.draining,
        Phase::Aborting => limits.aborting,
        Phase::Done | Phase::Aborted => Duration::ZERO,
    };
    limit * 2 + GRACE
}
