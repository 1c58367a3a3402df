//! What a packet did in which table, step by step, in the order in which `ofproto/trace` tells it.
//!
//! Where the datapath compares a packet's length both ways are walked, the larger one's first: the switch compiles both. Only
//! what the packet's own length leads to is sent.

use std::collections::VecDeque;

use openflow::{Action, Bucket, Field, Flow};

use super::{Fault, Op, Outcome, Packet, State, Tables, Walk};
use crate::topology::PortNo;

/// A lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// In this table.
    pub table: u8,
    /// What it met.
    pub flow: Option<Flow>,
    /// The packet as it came to the table.
    pub packet: Packet,
    /// The registers then.
    pub regs: [u32; 16],
    /// What was done for this flow, but for what later tables did; a `goto_table` as the `resubmit` that it is.
    pub actions: Vec<Action>,
    /// Copies that the actions sent.
    pub sent: Vec<(PortNo, Packet)>,
    /// False: packets of another length come here.
    pub is_taken: bool,
}

/// A bucket that the switch has picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Number of the group.
    pub group: u32,
    /// Id of the bucket.
    pub bucket: u32,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    steps: Vec<Step>,
    /// The step that does something at present.
    at: usize,
    pub(super) is_taken: bool,
    picks: VecDeque<Pick>,
}

impl Record {
    /// A lookup begins; where to go back to after it.
    pub(super) fn enter(&mut self, table: u8, flow: Option<&Flow>, state: &State) -> usize {
        self.steps.push(Step {
            table,
            flow: flow.cloned(),
            packet: state.packet.clone(),
            regs: state.regs,
            actions: Vec::new(),
            sent: Vec::new(),
            is_taken: self.is_taken,
        });
        std::mem::replace(&mut self.at, self.steps.len() - 1)
    }

    /// The bucket that the switch picked, if it did and there is one.
    pub(super) fn pick(&mut self, group: u32, buckets: &[&Bucket]) -> Option<Bucket> {
        self.picks.pop_front_if(|pick| pick.group == group).and_then(|pick| {
            buckets.iter().find(|bucket| bucket.id == pick.bucket).map(|bucket| (*bucket).clone())
        })
    }
}

/// Walks a packet, with the buckets that the switch picks.
pub(crate) fn explain(
    tables: &dyn Tables,
    in_port: PortNo,
    packet: &Packet,
    picks: &[Pick],
) -> (Vec<Step>, Result<Outcome, Fault>) {
    let mut walk = Walk::new(tables, None);
    walk.record =
        Some(Record { is_taken: true, picks: picks.iter().copied().collect(), ..Record::default() });
    let walked = walk.lookup(0, in_port, &mut State::new(in_port, packet));
    (walk.record.map(|record| record.steps).unwrap_or_default(), walked.map(|()| walk.outcome))
}

impl Walk<'_> {
    /// A lookup has ended.
    pub(super) fn leave(&mut self, before: Option<usize>) {
        if let (Some(record), Some(before)) = (&mut self.record, before) {
            record.at = before;
        }
    }

    /// The step under way does this.
    pub(super) fn note(&mut self, action: impl FnOnce() -> Action) {
        if let Some(step) = self.record.as_mut().and_then(|record| record.steps.get_mut(record.at)) {
            step.actions.push(action());
        }
    }

    /// A copy leaves, unless it is one of another length.
    pub(super) fn emit(&mut self, port: PortNo, State { packet, queue, .. }: &State) {
        if let Some(record) = &mut self.record {
            if !record.is_taken {
                return;
            }
            if let Some(step) = record.steps.get_mut(record.at) {
                step.sent.push((port, packet.clone()));
            }
        }
        self.outcome.sent.push((port, packet.clone()));
        self.outcome.queues.push(*queue);
    }

    /// The controller gets a copy, unless it is one of another length.
    pub(super) fn tell(&mut self, userdata: &[u8], state: &State) {
        if self.record.as_ref().is_none_or(|record| record.is_taken) {
            self.outcome.told.push((userdata.into(), state.packet.clone()));
        }
    }

    /// What becomes of a larger packet, then what becomes of a smaller one.
    pub(super) fn both_branches(
        &mut self,
        table: u8,
        rest: &[Op<'_>],
        state: &State,
        (field, bit): (Field, u16),
        is_larger: bool,
    ) -> Result<(), Fault> {
        for larger in [true, false] {
            let before = self.is_taken(larger == is_larger);
            let is_dropped = self.is_dropped;
            let mut branch = state.clone();
            branch.set_masked(field, u128::from(larger) << bit, 1 << bit);
            self.apply(table, rest, &mut branch)?;
            self.is_dropped = is_dropped;
            if let Some(record) = &mut self.record {
                record.is_taken = before;
            }
        }
        Ok(())
    }

    /// Goes a way that the packet takes or not; whether it was on its way before.
    fn is_taken(&mut self, takes: bool) -> bool {
        self.record.as_mut().is_none_or(|record| {
            let before = record.is_taken;
            record.is_taken &= takes;
            before
        })
    }
}
