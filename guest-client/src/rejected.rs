//! What the host leaves to this guest at present, as its acknowledgements tell. Pure.
//!
//! A rejection stands until the host says that the key is accepted. A host says so whenever it ends, also where the
//! guest has told something else of the key or removed it. That the switch has confirmed a key ends nothing: rejections
//! of which there are many, or which something else than the guest has caused, come with other numbers than the
//! message that they are about. So a rejection may be believed for too long, but never for too short.
//!
//! The end of a session takes nothing back. The next host tells all that it rejects by the end of the snapshot or
//! resume; until then what the one before said stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xenflow_proto::Key;

use crate::session::Acked;

/// Most keys that are remembered; of a host that rejects more, all are taken for rejected.
pub const MAX_KEYS: usize = 4 << 20;
/// Most of them that are shown.
pub const SHOWN: usize = 10;
/// Most reasons that are told apart. There are a handful, and keys by the million.
const MAX_REASONS: usize = 64;

/// With the reasons.
type Keys = BTreeMap<Key, Arc<str>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Rejected {
    /// What the host, or the one before, said it rejects.
    keys: Keys,
    /// The same of a session that has yet to tell all; it replaces `keys` then.
    fresh: Option<Keys>,
    /// There were more than are remembered.
    is_over: bool,
    reasons: BTreeSet<Arc<str>>,
    shown: Arc<[String]>,
}

impl Rejected {
    /// A host took a session.
    pub fn session_began(&mut self) {
        self.fresh = Some(Keys::new());
    }

    /// Takes in an acknowledgement.
    pub fn acknowledged(&mut self, step: &Acked) {
        let Acked { whole, rejected, accepted, .. } = step;
        let keys = self.fresh.as_mut().unwrap_or(&mut self.keys);
        for key in accepted {
            keys.remove(key);
        }
        for (key, why) in rejected {
            if keys.len() < MAX_KEYS || keys.contains_key(key) {
                keys.insert(key.clone(), reason(&mut self.reasons, why));
            } else {
                self.is_over = true;
            }
        }
        if *whole && let Some(fresh) = self.fresh.take() {
            self.is_over = fresh.len() >= MAX_KEYS;
            self.keys = fresh;
        }
        let lines: Vec<String> = self.keys.iter().take(SHOWN).map(|(key, why)| line(key, why)).collect();
        if *self.shown != *lines {
            self.shown = lines.into();
        }
    }

    /// Number of keys, up to [`MAX_KEYS`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// It is rejected, or may be.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.is_over || self.keys.contains_key(key)
    }

    /// The first of them, in words.
    #[must_use]
    pub fn shown(&self) -> Arc<[String]> {
        Arc::clone(&self.shown)
    }
}

fn reason(known: &mut BTreeSet<Arc<str>>, text: &str) -> Arc<str> {
    if let Some(reason) = known.get(text) {
        return Arc::clone(reason);
    }
    let reason: Arc<str> = if known.len() < MAX_REASONS { text.into() } else { "for another reason".into() };
    known.insert(Arc::clone(&reason));
    reason
}

fn line(key: &Key, why: &str) -> String {
    match key {
        Key::Route(key) => format!("{} table {} metric {}: {why}", key.dst, key.table, key.metric),
        Key::Link(_)
        | Key::Address(_)
        | Key::NextHop(_)
        | Key::Neighbor(_)
        | Key::Settings
        | Key::Obstacle(_) => format!("{key:?}: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenflow_proto::Seq;

    fn step(confirmed: &[u32], rejected: &[u32], accepted: &[u32]) -> Acked {
        let keys = |ids: &[u32]| ids.iter().map(|&id| Key::NextHop(id)).collect::<Vec<_>>();
        Acked {
            seq: Seq(1),
            oldest: None,
            changes: 0,
            confirmed: keys(confirmed),
            whole: false,
            rejected: keys(rejected).into_iter().map(|key| (key, "no room".into())).collect(),
            accepted: keys(accepted),
        }
    }

    fn known(rejected: &Rejected) -> Vec<u32> {
        (0..100).filter(|id| rejected.contains(&Key::NextHop(*id))).collect()
    }

    #[test]
    fn a_rejection_stands_until_the_host_says_otherwise() {
        let mut rejected = Rejected::default();
        rejected.acknowledged(&step(&[4, 5], &[1, 2, 3], &[]));
        assert_eq!((known(&rejected), rejected.len()), (vec![1, 2, 3], 3));
        // 1 is forwarded again. 2 was told with an older number than the message that is confirmed here.
        rejected.acknowledged(&step(&[2], &[], &[1]));
        assert_eq!(known(&rejected), [2, 3]);
        rejected.acknowledged(&step(&[], &[3], &[2]));
        assert_eq!(known(&rejected), [3]);
        assert_eq!(*rejected.shown(), ["NextHop(3): no room".to_owned()]);
        rejected.acknowledged(&step(&[3], &[], &[3]));
        assert!(rejected.is_empty() && rejected.shown().is_empty());
    }

    #[test]
    fn the_next_session_takes_the_place_of_the_one_before_when_it_has_told_all() {
        let mut rejected = Rejected::default();
        rejected.acknowledged(&step(&[], &[1, 2], &[]));
        rejected.session_began();
        rejected.acknowledged(&step(&[], &[2, 3, 4], &[]));
        rejected.acknowledged(&step(&[], &[], &[4]));
        assert_eq!(known(&rejected), [1, 2]);
        rejected.acknowledged(&Acked { whole: true, ..step(&[2, 4], &[5], &[]) });
        assert_eq!(known(&rejected), [2, 3, 5]);
        // A session that ends before it has told all has told nothing.
        rejected.session_began();
        rejected.acknowledged(&step(&[], &[9], &[]));
        rejected.session_began();
        rejected.acknowledged(&Acked { whole: true, ..step(&[], &[], &[]) });
        assert!(rejected.is_empty());
    }

    #[test]
    fn reasons_are_kept_once_and_not_without_end() {
        let mut rejected = Rejected::default();
        let reasons = (0..1000).map(|id| (Key::NextHop(id), format!("reason {}", id % 500)));
        let told = Acked { rejected: reasons.collect(), ..step(&[], &[], &[]) };
        rejected.acknowledged(&told);
        rejected.acknowledged(&told);
        assert_eq!((rejected.len(), rejected.shown().len()), (1000, SHOWN));
        assert!(rejected.reasons.len() <= MAX_REASONS + 1, "{:?}", rejected.reasons);
        assert_eq!(rejected.shown()[9], "NextHop(9): reason 9");
    }
}
