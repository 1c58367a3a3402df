//! What holds when all is quiet, and how it becomes so.

use std::collections::BTreeMap;
use std::time::Duration;

use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::{Key, Object};

use super::{COPIES, World};
use crate::guest::AUDIT_AFTER;
use crate::host::Host;

impl World {
    /// Nothing happens any more but what must, until nothing must.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        for host in 0..2 {
            // A dump would hide what was not noticed when it changed.
            if self.hosts[host].is_tainted() || self.random.percent(20) {
                let out = self.hosts[host].switch_down();
                self.send(out)?;
            }
            let out = self.hosts[host].switch_up();
            self.send(out)?;
        }
        self.kernel.speak();
        if self.kernel.is_concealing {
            self.pass(AUDIT_AFTER);
        }
        for _ in 0..2000 {
            // One that looked earlier reports, then one that looked now.
            self.guest.survey(&self.kernel, self.now);
            self.guest.survey(&self.kernel, self.now);
            self.guest.dump(&mut self.kernel, self.now);
            self.kernel.list(usize::MAX, false, &mut self.random);
            self.guest.read(&mut self.kernel, usize::MAX, self.now);
            self.guest_notices();
            self.host_notices()?;
            self.connect();
            self.transmit(8);
            (0..4).try_for_each(|_| self.deliver_up(8))?;
            self.deliver_down(16)?;
            for host in 0..2 {
                for _ in 0..4 {
                    self.hosts[host].work();
                    let mut out = self.hosts[host].answer();
                    out.extend(self.hosts[host].waited());
                    out.extend(self.hosts[host].turn());
                    self.send(out)?;
                }
            }
            self.hosts.iter_mut().try_for_each(Host::look)?;
            self.pass(Duration::from_millis(20));
            let mine = self.mine().is_some_and(|it| it.up.is_empty() && it.down.is_empty() && !it.is_cut);
            let is_audited = !self.kernel.is_concealing || self.faults.trusts_events;
            if mine && is_audited && self.guest.is_quiet() && self.hosts.iter().all(Host::is_quiet) {
                let Some(due) = self.guest.mirror.audit_deadline() else { return Ok(()) };
                // Nothing has told of what it repaired, and nothing will.
                self.pass(due.saturating_sub(self.now));
            }
        }
        Err(format!("it never becomes quiet: {:?}", self.guest))
    }

    pub(super) fn compare(&mut self) -> Result<(), String> {
        let tables = self.kernel.tables();
        let mirrored: BTreeMap<Key, Object> =
            self.guest.mirror.objects().map(|object| (object.key(), object.into_owned())).collect();
        if let Some(differs) = difference(&tables, &mirrored) {
            return Err(format!("the kernel and the mirror differ: {differs}"));
        }
        if let Some(differs) = self.hosts[self.place].difference(&tables) {
            return Err(format!("the kernel and the host differ: {differs}"));
        }
        if self.kernel.concealed == 0 && self.guest.repaired > 0 {
            return Err(format!("{} keys seem repaired, and nothing was concealed", self.guest.repaired));
        }
        self.compare_rejected(&tables)?;
        self.known.insert(self.digest(&tables));
        self.copies.truncate(COPIES - 1);
        self.copies.push_front(tables);
        Ok(())
    }

    /// The client knows which routes the host leaves to it, and takes no other for such.
    fn compare_rejected(&mut self, tables: &BTreeMap<Key, Object>) -> Result<(), String> {
        let rejected = self.hosts[self.place].rejected(tables);
        self.counts.rejected += rejected.len() as u64;
        let known = &self.guest.rejected;
        let differs = tables.keys().find(|key| known.contains(key) != rejected.contains(key));
        if differs.is_some() || known.len() != rejected.len() {
            return Err(format!(
                "rejections differ: the host has {}, the client {}; {differs:?}",
                rejected.len(),
                known.len()
            ));
        }
        Ok(())
    }

    fn digest(&self, tables: &BTreeMap<Key, Object>) -> Digest {
        let mut keyed = Keyed::new(self.guest.boot_id());
        let mut digest = Digest::default();
        tables.values().for_each(|object| digest.add(keyed.hash(object)));
        digest
    }

    /// A session that begins when all is quiet: the host holds just what the kernel has, and nothing is to be told.
    pub(super) fn return_unchanged(&mut self) -> Result<(), String> {
        let empty = self.hosts[self.place].counts.empty;
        self.cut(true);
        self.leave();
        self.settle()?;
        self.compare()?;
        let digest = self.digest(&self.kernel.tables());
        if self.held != Some(digest) {
            return Err(format!("the kernel has {digest:?}, the host {:?}", self.held));
        }
        if self.hosts[self.place].counts.empty != empty + 1 {
            return Err("something was told of tables that had not changed".to_owned());
        }
        Ok(())
    }
}

/// The first key under which two tables differ.
fn difference(a: &BTreeMap<Key, Object>, b: &BTreeMap<Key, Object>) -> Option<String> {
    let keys = a.keys().chain(b.keys());
    let differs = keys.into_iter().find(|key| a.get(key) != b.get(key))?;
    Some(format!("{:?} / {:?}", a.get(differs), b.get(differs)))
}
