//! What the host leaves to this guest at present, as its acknowledgements tell. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use xenflow_proto::Key;

use crate::session::Acked;

/// Most keys that are remembered.
pub const MAX_KEYS: usize = 16 << 10;
/// Most of them that are shown.
pub const SHOWN: usize = 10;

/// See the module.
#[derive(Debug, Default)]
pub struct Rejected {
    keys: BTreeMap<Key, String>,
    shown: Arc<[String]>,
}

impl Rejected {
    /// Takes in an acknowledgement. What was rejected and is told anew is rejected again, or no more.
    pub fn step(&mut self, step: &Acked) {
        if self.keys.is_empty() && step.rejected.is_empty() {
            return;
        }
        for key in step.confirmed.iter().chain(&step.accepted) {
            self.keys.remove(key);
        }
        for (key, reason) in &step.rejected {
            if self.keys.len() < MAX_KEYS || self.keys.contains_key(key) {
                self.keys.insert(key.clone(), reason.clone());
            }
        }
        self.show();
    }

    /// A new session: its host tells all that it rejects.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.show();
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

    /// It is rejected, as far as is remembered.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    /// The first of them, in words.
    #[must_use]
    pub fn shown(&self) -> Arc<[String]> {
        Arc::clone(&self.shown)
    }

    fn show(&mut self) {
        let lines: Vec<String> = self.keys.iter().take(SHOWN).map(|(key, why)| line(key, why)).collect();
        if *self.shown != *lines {
            self.shown = lines.into();
        }
    }
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

    #[test]
    fn a_rejection_stands_until_the_host_or_the_key_says_otherwise() {
        let mut rejected = Rejected::default();
        rejected.step(&step(&[4, 5], &[1, 2, 3], &[]));
        assert_eq!(rejected.len(), 3);
        // 1 is forwarded again, 2 was told anew and is forwarded, 3 was told anew and is rejected anew.
        rejected.step(&step(&[2], &[3], &[1]));
        assert!(rejected.contains(&Key::NextHop(3)) && rejected.len() == 1);
        assert_eq!(*rejected.shown(), ["NextHop(3): no room".to_owned()]);
        rejected.clear();
        assert!(rejected.is_empty() && rejected.shown().is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut rejected = Rejected::default();
        let many: Vec<u32> = (1..20_000).collect();
        rejected.step(&step(&[], &many, &[]));
        assert_eq!((rejected.len(), rejected.shown().len()), (MAX_KEYS, SHOWN));
    }
}
