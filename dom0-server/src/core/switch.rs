//! What goes to the switch, and when: batches of what is due, dumps, and starting over when something failed.

use std::time::Duration;

use xenflow_flow_app::{Batch, MeterChange, RouterId};

use super::{BatchId, Core, Effect, InFlight, Session};

/// Changes in a bundle: more would keep the switch from everything else for too long.
const BATCH: usize = 1000;
/// The same while several guests have sessions, so that none waits long for what another has started. One router alone
/// fills a quarter of it: the switch does that in a few milliseconds. What it does after each commit, whatever is in it,
/// costs it as much as dozens of changes: smaller parts would keep it busier.
const SHARED_BATCH: usize = 256;
/// Bundles under way.
const IN_FLIGHT: usize = 2;
/// The same while several guests have sessions: what comes in meanwhile waits for no more than one.
const SHARED_IN_FLIGHT: usize = 1;
/// While others are at work, the switch rests so many times as long as it took for a batch, before it is given more of who
/// has more: they find it idle with four changes of five.
pub(super) const REST: u32 = 4;
/// But no longer: a switch that stalled is not idle for that.
const REST_MAX: Duration = Duration::from_millis(200);
/// Whose guest has said something since is at work, and likely to say more.
pub(super) const LATELY: Duration = Duration::from_secs(10);
/// The pause after a failure that starting over may not cure; doubled each time, up to the greatest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(64);

impl Core {
    pub(super) fn forget_switch(&mut self) {
        self.switch_up = false;
        self.dumping = false;
        self.repaired = None;
        self.waiting = false;
        self.start_over();
    }

    /// What was under way counts for nothing; what it would have confirmed is asked for again. The end of a dump
    /// that is being answered is still waited for: it must not be taken for the end of the next one.
    pub(super) fn start_over(&mut self) {
        self.app.switch_reset();
        self.progress.start_over();
        for batch in std::mem::take(&mut self.in_flight).into_values() {
            self.progress.again(batch.goal);
            for (router, mark) in batch.reached {
                self.app.mark(router, mark);
            }
        }
    }

    /// Starts over after a pause: what failed may fail again.
    pub(super) fn retry_later(&mut self) {
        self.start_over();
        if !self.waiting {
            self.waiting = true;
            let pause = PAUSE_MIN.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
            self.effects.push(Effect::Wait(pause.min(PAUSE_MAX)));
            self.failures = self.failures.saturating_add(1);
        }
    }

    /// Keeps the switch busy with what is due.
    pub(super) fn pump(&mut self) {
        self.is_searching = false;
        let is_early = self.whereabouts.is_none() && self.patience.is_some_and(|until| self.now < until);
        if !self.switch_up || self.waiting || self.desired.is_none() || self.ports.is_none() || is_early {
            self.release();
            return;
        }
        self.mark_answers();
        if !self.dumping
            && let Some(dump) = self.app.begin_dump()
        {
            self.dumping = true;
            self.effects.push(Effect::Dump(dump));
        }
        while self.in_flight.len() < self.most_in_flight() {
            let most = if self.is_shared() { SHARED_BATCH } else { BATCH };
            let Batch { mut meters, mut changes, reached, more, routers } = self.app.next_batch(most);
            let is_last = meters.is_empty() && changes.is_empty();
            meters.retain(|change| self.lacking.takes(change));
            for change in &mut changes {
                self.lacking.strip(change);
            }
            changes.retain(|change| !self.refused.contains(change));
            if !meters.is_empty() || !changes.is_empty() {
                self.send(meters, InFlight { changes, reached, routers, goal: None });
            } else if let Some(last) = self.in_flight.values_mut().next_back() {
                // Nothing to wait for but what is under way already.
                last.reached.extend(reached);
            } else {
                self.acknowledge(reached);
            }
            self.is_searching = more;
            if is_last || more {
                break;
            }
        }
        self.pursue();
        self.release();
        if (self.failures > 0 || self.repaired.is_some())
            && self.in_flight.is_empty()
            && !self.dumping
            && self.app.is_idle()
        {
            self.failures = 0;
            if let Some(changes) = self.repaired.take() {
                tracing::info!(name: "tables-repaired", changes, "the switch holds what it should");
            }
        }
    }

    /// It took so long to find a batch with changes of these routers and to have it in the switch. If they have more for
    /// it, it is left for some time to the others that are at work: one that is always busy would be so whenever another's
    /// change comes.
    pub(super) fn rest_after(&mut self, routers: &[RouterId], took: Duration) {
        if self.app.press(routers) && !self.app.is_resting() && self.are_others_at_work() {
            self.app.rest(true);
            self.effects.push(Effect::Rest(took.saturating_mul(REST).min(REST_MAX)));
        }
    }

    /// The guest of a router that does not press has said something lately.
    fn are_others_at_work(&self) -> bool {
        let is_at_work = |session: &Session| {
            self.now.saturating_sub(session.spoke) <= LATELY && !self.app.is_pressing(session.router)
        };
        self.sessions.values().any(is_at_work)
    }

    /// Another guest may say something at any moment than the one that the switch works for.
    fn is_shared(&self) -> bool {
        let mut sessions = self.sessions.values();
        let Some(first) = sessions.next() else { return false };
        sessions.next().is_some() || self.app.is_due_beside(first.router)
    }

    pub(super) fn most_in_flight(&self) -> usize {
        if self.app.is_wary() || self.is_shared() { SHARED_IN_FLIGHT } else { IN_FLIGHT }
    }

    fn send(&mut self, meters: Vec<MeterChange>, batch: InFlight) {
        if let Some(changes) = &mut self.repaired {
            *changes += meters.len() + batch.changes.len();
        }
        let id = self.next_batch;
        self.next_batch = BatchId(id.0 + 1);
        self.effects.push(Effect::Send(id, meters, batch.changes.clone()));
        self.in_flight.insert(id, batch);
    }
}
