//! Groups: which bucket a packet takes, and what a bucket does.

use openflow::{Action, Bucket, Field, GroupType, Selection};

use super::{Fault, State, Walk};

/// One way through the groups that a packet meets: for each the bucket to take, of how many that differ.
#[derive(Debug, Default)]
pub(super) struct Way {
    picks: Vec<(usize, usize)>,
    /// Groups met so far.
    met: usize,
}

impl Way {
    /// The bucket of the next group that is met, which has this many.
    fn pick(&mut self, of: usize) -> usize {
        if self.met == self.picks.len() {
            self.picks.push((0, of));
        }
        self.met += 1;
        self.picks.get(self.met - 1).map_or(0, |(pick, _)| *pick)
    }

    /// The way after this one, which has been walked to its end.
    pub(super) fn next(mut self) -> Option<Self> {
        while let Some((pick, of)) = self.picks.pop() {
            if pick + 1 < of {
                self.picks.push((pick + 1, of));
                return Some(Self { picks: self.picks, met: 0 });
            }
        }
        None
    }
}

impl Walk<'_> {
    /// What the bucket does that the packet takes, in the order in which it is done.
    pub(super) fn bucket(&mut self, id: u32, state: &State) -> Result<Vec<Action>, Fault> {
        let group = self.tables.group(id).ok_or(Fault::NoGroup(id))?;
        let watches = |bucket: &Bucket| bucket.watch_port.is_some() || bucket.watch_group.is_some();
        let (GroupType::Select, Some(Selection::Hash { param, fields }), false) =
            (group.kind, &group.selection, group.buckets.iter().any(watches))
        else {
            return Err(Fault::Group(Box::new(group.into_owned())));
        };
        let mut buckets: Vec<&Bucket> = group.buckets.iter().filter(|bucket| bucket.weight > 0).collect();
        let picked = self.record.as_mut().and_then(|record| record.pick(id, &buckets));
        let bucket = match &mut self.way {
            _ if picked.is_some() => picked.as_ref(),
            Some(way) => {
                buckets.sort_by_key(|bucket| &bucket.actions);
                buckets.dedup_by_key(|bucket| &bucket.actions);
                buckets.get(way.pick(buckets.len())).copied()
            }
            None => by_hash(&buckets, hash(*param, fields, state)).copied(),
        };
        Ok(bucket.map_or_else(Vec::new, |bucket| action_set(&bucket.actions)))
    }
}

/// A bucket with the share of its weight.
fn by_hash<'a, 'b>(buckets: &'a [&'b Bucket], hash: u64) -> Option<&'a &'b Bucket> {
    let total: u64 = buckets.iter().map(|bucket| u64::from(bucket.weight)).sum();
    let mut left = hash.checked_rem(total)?;
    buckets.iter().find(|bucket| {
        let is_it = left < u64::from(bucket.weight);
        left = left.saturating_sub(bucket.weight.into());
        is_it
    })
}

/// FNV-1a of the fields that the packet has (`mf_are_prereqs_ok`; one that it has not is 0 here).
fn hash(param: u64, fields: &[(Field, u128)], state: &State) -> u64 {
    let values = fields.iter().map(|(field, mask)| state.get(*field) & mask);
    let bytes = values.flat_map(u128::to_be_bytes).chain(param.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // Its low bits are the poorest.
    hash ^ hash >> 32
}

/// A bucket is carried out as an action set (`ofpacts_execute_action_set`), not as a list: first all that sets
/// fields, then the last of its groups, or else of its outputs, or else of its resubmits. What can be in no action
/// set is passed over in silence: `check_pkt_larger`, `learn`, `clone` and meters among others.
fn action_set(actions: &[Action]) -> Vec<Action> {
    let sets = |action: &&Action| matches!(action, Action::SetField { .. } | Action::CopyField { .. });
    let last = |of: fn(&Action) -> bool| actions.iter().rfind(|action| of(action));
    let kinds: [fn(&Action) -> bool; 6] = [
        |action| matches!(action, Action::PopVlan),
        |action| matches!(action, Action::PushVlan(_)),
        |action| matches!(action, Action::DecTtl),
        |action| matches!(action, Action::Group(_)),
        |action| matches!(action, Action::Output { .. } | Action::OutputReg { .. }),
        |action| matches!(action, Action::Resubmit { .. }),
    ];
    let [pop, push, dec_ttl, group, output, resubmit] = kinds.map(last);
    let first = [pop, push, dec_ttl].into_iter().flatten();
    let end = group.or(output).or(resubmit);
    first.chain(actions.iter().filter(sets)).chain(end).cloned().collect()
}
