//! `Open_vSwitch.other_config:flow-restore-wait`: an `ovs-vswitchd` that starts with it leaves the kernel's flows alone,
//! and answers no upcall of any bridge, until it is told that its tables are filled again. It looks at the key at its
//! start and until it has once seen it off, never later (`bridge_run`, `ofproto_set_flow_restore_wait`).
//!
//! So the key is *armed* for the next crash, while the integration bridge is the switch's only one. After every start:
//! all flows are installed, then the key goes off together with `next_cfg`, and only when `cur_cfg` says that the switch
//! has seen that, it is armed again. Here is what to do when; doing it is `database`'s business.
//!
//! Never dark: a daemon that lives releases the switch, complete or not, within [`READY_AT_LAST`] of its connection, and
//! disarms when it ends by SIGTERM. For one that is dead, or hangs, `xen-scripts` has units that clear the key.

use std::time::Duration;

use ovsdb::{ColumnError, Condition, Datum, Mutator, Operation, Row, Until, Uuid};

const KEY: &str = "flow-restore-wait";
/// In `external_ids`: the key was armed here, and not by somebody who restores flows by other means.
const MARK: (&str, &str) = ("xenflow-flow-restore-wait", "armed");
/// A switch whose flows are in step waits no longer for guests that have not told their tables.
pub const READY_WITHOUT_GUESTS: Duration = Duration::from_secs(5);
/// A switch waits no longer for anything.
pub const READY_AT_LAST: Duration = Duration::from_secs(20);

/// What the daemon knows of the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Not connected, or its flows are not all there yet.
    #[default]
    Filling,
    /// On this connection it has what it needs.
    Ready(u64),
    /// The daemon ends.
    Stopping,
}

/// What the database says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The row of `Open_vSwitch`.
    pub uuid: Uuid,
    /// The integration bridge, if it is there and no other is.
    pub alone: Option<Uuid>,
    /// The key is on.
    pub is_armed: bool,
    /// We armed it.
    pub is_ours: bool,
    /// What the switch has seen of what is configured.
    pub cur_cfg: i64,
}

impl View {
    /// Reads the row of `Open_vSwitch`.
    ///
    /// # Errors
    /// A column is missing.
    pub fn parse(uuid: Uuid, row: &Row, integration: Option<Uuid>) -> Result<Self, ColumnError> {
        let bridges = row.set_uuid("bridges")?;
        Ok(Self {
            uuid,
            alone: integration.filter(|bridge| bridges.len() == 1 && bridges.contains(bridge)),
            is_armed: row.map_get("other_config", KEY)? == Some("true"),
            is_ours: row.map_get("external_ids", MARK.0)? == Some(MARK.1),
            cur_cfg: row.int("cur_cfg")?,
        })
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Switch the key off, and see that the switch sees it: tell [`Restore::released`] which configuration that is.
    Release,
    /// Switch it on, for the next start.
    Arm,
    /// Switch it off.
    Disarm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody knows whether the switch waits.
    Unknown,
    /// It no longer does when it has seen this configuration.
    Released(i64),
    /// It is armed; true when the database has said so.
    Armed(bool),
}

/// Where the switch is in all this.
#[derive(Debug)]
pub struct Restore {
    enabled: bool,
    connection: Option<u64>,
    phase: Phase,
}

impl Restore {
    /// `enabled`: whether it may be armed at all.
    #[must_use]
    pub fn new(enabled: bool) -> Self {
        Self { enabled, connection: None, phase: Phase::Unknown }
    }

    /// What to do, if anything. Once it is done, or was not, ask again when something has changed.
    pub fn decide(&mut self, view: &View, stage: Stage) -> Option<Step> {
        if !self.enabled || view.alone.is_none() || stage == Stage::Stopping {
            // A switch that waits goes on with what it has: it may be other bridges that wait.
            self.phase = Phase::Unknown;
            return (view.is_armed && view.is_ours).then_some(Step::Disarm);
        }
        let Stage::Ready(connection) = stage else {
            self.phase = Phase::Unknown;
            return None;
        };
        if self.connection != Some(connection) {
            self.connection = Some(connection);
            self.phase = Phase::Unknown;
        }
        match self.phase {
            Phase::Unknown => Some(Step::Release),
            Phase::Released(cfg) => (!view.is_armed && view.cur_cfg >= cfg).then_some(Step::Arm),
            Phase::Armed(seen) => {
                if seen && !view.is_armed {
                    // Somebody cleared it. A switch that has not seen that yet must not miss it.
                    self.phase = Phase::Unknown;
                    return Some(Step::Release);
                }
                self.phase = Phase::Armed(view.is_armed);
                None
            }
        }
    }

    /// [`Step::Release`] is done with this configuration.
    pub fn released(&mut self, next_cfg: i64) {
        self.phase = Phase::Released(next_cfg);
    }

    /// [`Step::Arm`] is done.
    pub fn armed(&mut self) {
        self.phase = Phase::Armed(false);
    }
}

/// The transaction of a step. The last operation of a release selects `next_cfg`.
#[must_use]
pub fn operations(step: Step, view: &View) -> Vec<Operation> {
    let row = |operation: Operation| operation.filter(Condition::uuid(view.uuid));
    let put =
        |column: &str, (key, value): (&str, &str)| {
            // An insertion leaves a key that is there as it is.
            row(Operation::mutate("Open_vSwitch")
                .mutation(column, Mutator::Delete, Datum::set([key]))
                .mutation(column, Mutator::Insert, Datum::map([(key, value)])))
        };
    let bump = || row(Operation::mutate("Open_vSwitch").mutation("next_cfg", Mutator::Add, 1));
    match step {
        Step::Arm => {
            // Not if a second bridge has come meanwhile.
            let only = row(Operation::wait(
                "Open_vSwitch",
                &["bridges"],
                Until::Equal,
                [[("bridges", Datum::set(view.alone))].into_iter().collect()],
                Duration::ZERO,
            ));
            vec![only, put("other_config", (KEY, "true")), put("external_ids", MARK)]
        }
        Step::Release | Step::Disarm => vec![
            put("other_config", (KEY, "false")),
            row(Operation::mutate("Open_vSwitch").mutation(
                "external_ids",
                Mutator::Delete,
                Datum::set([MARK.0]),
            )),
            bump(),
            row(Operation::select("Open_vSwitch").columns(&["next_cfg"])),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View { uuid: Uuid::ZERO, alone: Some(Uuid(1)), is_armed: false, is_ours: false, cur_cfg: 5 }
    }

    fn armed() -> View {
        View { is_armed: true, is_ours: true, ..view() }
    }

    /// A switch on which everything went well.
    fn steady() -> Restore {
        let mut restore = Restore::new(true);
        assert_eq!(restore.decide(&view(), Stage::Ready(1)), Some(Step::Release));
        restore.released(5);
        assert_eq!(restore.decide(&view(), Stage::Ready(1)), Some(Step::Arm));
        restore.armed();
        assert_eq!(restore.decide(&armed(), Stage::Ready(1)), None);
        restore
    }

    #[test]
    fn it_is_released_first_and_armed_when_the_switch_has_seen_that() {
        let mut restore = Restore::new(true);
        // Armed by a former life, and the switch may wait: nothing before its flows are there.
        assert_eq!(restore.decide(&armed(), Stage::Filling), None);
        assert_eq!(restore.decide(&armed(), Stage::Ready(1)), Some(Step::Release));
        // It was not done: again.
        assert_eq!(restore.decide(&armed(), Stage::Ready(1)), Some(Step::Release));
        restore.released(7);
        assert_eq!(restore.decide(&armed(), Stage::Ready(1)), None, "the database does not say so yet");
        for cur_cfg in [5, 6] {
            assert_eq!(restore.decide(&View { cur_cfg, ..view() }, Stage::Ready(1)), None, "not seen yet");
        }
        assert_eq!(restore.decide(&View { cur_cfg: 7, ..view() }, Stage::Ready(1)), Some(Step::Arm));
        assert_eq!(
            restore.decide(&View { cur_cfg: 7, ..view() }, Stage::Ready(1)),
            Some(Step::Arm),
            "not done"
        );
        restore.armed();
        assert_eq!(restore.decide(&View { cur_cfg: 8, ..view() }, Stage::Ready(1)), None, "not said yet");
        assert_eq!(restore.decide(&View { cur_cfg: 9, ..armed() }, Stage::Ready(1)), None);
    }

    #[test]
    fn every_start_of_the_switch_is_released_anew() {
        let mut restore = steady();
        assert_eq!(
            restore.decide(&armed(), Stage::Filling),
            None,
            "it may wait now: not before its flows are there"
        );
        assert_eq!(restore.decide(&armed(), Stage::Ready(2)), Some(Step::Release));
        // Nobody noticed that it was away.
        let mut restore = steady();
        assert_eq!(restore.decide(&armed(), Stage::Ready(2)), Some(Step::Release));
        // It goes between release and arming: what the one before has seen counts for nothing.
        restore.released(6);
        assert_eq!(restore.decide(&View { cur_cfg: 6, ..view() }, Stage::Ready(3)), Some(Step::Release));
    }

    #[test]
    fn what_somebody_clears_is_seen_by_the_switch_before_it_is_armed_again() {
        let mut restore = steady();
        assert_eq!(restore.decide(&view(), Stage::Ready(1)), Some(Step::Release));
        restore.released(9);
        assert_eq!(restore.decide(&view(), Stage::Ready(1)), None);
        assert_eq!(restore.decide(&View { cur_cfg: 9, ..view() }, Stage::Ready(1)), Some(Step::Arm));
    }

    #[test]
    fn with_another_bridge_switched_off_or_at_the_end_it_is_disarmed_at_any_time() {
        let other = View { alone: None, ..armed() };
        for stage in [Stage::Filling, Stage::Ready(1), Stage::Stopping] {
            assert_eq!(steady().decide(&other, stage), Some(Step::Disarm));
            assert_eq!(Restore::new(false).decide(&armed(), stage), Some(Step::Disarm));
            let theirs = View { is_ours: false, ..other.clone() };
            assert_eq!(steady().decide(&theirs, stage), None, "somebody else armed it");
            assert_eq!(steady().decide(&View { is_armed: false, ..other.clone() }, stage), None);
        }
        assert_eq!(steady().decide(&armed(), Stage::Stopping), Some(Step::Disarm));
        // The other bridge goes again: from the beginning.
        let mut restore = steady();
        restore.decide(&other, Stage::Ready(1));
        assert_eq!(restore.decide(&view(), Stage::Ready(1)), Some(Step::Release));
    }
}
