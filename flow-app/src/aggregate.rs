//! Fewer flows than prefixes: the smallest set of entries by which every address meets the same label as by all prefixes.
//!
//! What is here is ORTC (Draves, King, Venkatachary, Zill: "Constructing optimal IP routing tables", INFOCOM 1999), done over for
//! a small *block* of prefixes at a time, so that no change costs more than a few blocks. A block is a prefix of 0, 8, 16, …
//! bits with all that are up to eight bits longer.
//!
//! What the addresses of a block meet where it has no prefix of its own is its *context*: the label of the prefix that covers all
//! of it. A block counts on it if that prefix is at most [`REACH`] bits shorter than the block's, so that no prefix has more than 128
//! blocks that count on it. Shorter ones may cover a million, so a block makes nothing of them: such addresses are a *hole* that no
//! entry may cover.
//!
//! **Guarantee.** An address's longest match among the entries has the label of its longest match among the prefixes, and there is
//! one where there is one. Entries are never more than prefixes, and depend on prefixes and labels alone, not on the order in which
//! they came. While the steps of [`Aggregate::settle`] are made in their order, every address meets at every moment its label before the
//! change or the one after it: longer entries are put before shorter ones, which then stand for nothing of theirs, and those that go
//! do so behind all that, shorter ones first, since nobody meets a shorter one any more whose place a longer one does not take.
//!
//! **Cost.** One block is at most 511 nodes, passed twice: two microseconds. A change of a prefix settles its own block, and those that
//! count on it: at most two for a prefix of 15 bits, 128 for one of 9. Kept are eight bytes for a prefix, as many for an entry
//! where a block's entries are others than its prefixes, and about 100 for a block.
//!
//! Knows nothing of what labels stand for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use ipnet::IpNet;

use crate::limit::Prefix;

pub(crate) use self::block::Label;
use self::block::{Entry, entries};

mod block;
#[cfg(test)]
mod tests;

/// Bits that a block's prefixes are longer than its own.
const STRIDE: u8 = 8;
/// By how many bits a prefix may be shorter than a block that counts on it.
const REACH: u8 = 7;

/// What is to be done with the entry of a prefix: it has that label now, or goes.
pub(crate) type Change = (Prefix, Option<Label>);

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aggregate {
    /// By table and the prefix that covers them.
    blocks: BTreeMap<(u32, IpNet), Block>,
    /// Blocks whose entries may be other ones by now.
    unsettled: BTreeSet<(u32, IpNet)>,
    /// Entries are the prefixes.
    is_plain: bool,
}

/// Prefixes and their entries; both sorted, each once.
#[derive(Debug, Clone, Default)]
struct Block {
    prefixes: Vec<Entry>,
    /// As far as the switch was told; none: the prefixes.
    entries: Option<Vec<Entry>>,
}

impl Block {
    fn entries(&self) -> &[Entry] {
        self.entries.as_deref().unwrap_or(&self.prefixes)
    }
}

impl Aggregate {
    /// With an entry for each prefix.
    pub(crate) fn plain() -> Self {
        Self { is_plain: true, ..Self::default() }
    }

    /// There is an entry for each prefix.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// A prefix has that label now; none: it is gone. Gives the label that it had.
    pub(crate) fn set(&mut self, prefix: Prefix, label: Option<Label>) -> Option<Label> {
        let (root, node) = place_of(prefix);
        if label.is_none() && !self.blocks.contains_key(&(prefix.table, root)) {
            return None;
        }
        let block = self.blocks.entry((prefix.table, root)).or_default();
        let at = block.prefixes.binary_search_by_key(&node, |(node, _)| *node);
        let before = at.ok().map(|at| block.prefixes[at].1);
        if before == label {
            return before;
        }
        if block.entries.is_none() {
            block.entries = Some(block.prefixes.clone());
        }
        match (at, label) {
            (Ok(at), Some(label)) => block.prefixes[at].1 = label,
            (Err(at), Some(label)) => block.prefixes.insert(at, (node, label)),
            (Ok(at), None) => {
                block.prefixes.remove(at);
            }
            (Err(_), None) => {}
        }
        self.unsettled.insert((prefix.table, root));
        let below = root.prefix_len() + STRIDE;
        let may_count = prefix.dst.prefix_len() + REACH >= below && below < prefix.dst.max_prefix_len();
        if may_count && !self.is_plain {
            for root in prefix.dst.trunc().subnets(below).into_iter().flatten() {
                if self.blocks.contains_key(&(prefix.table, root)) {
                    self.unsettled.insert((prefix.table, root));
                }
            }
        }
        before
    }

    /// The prefix has a label.
    pub(crate) fn has(&self, prefix: Prefix) -> bool {
        let (root, node) = place_of(prefix);
        let block = self.blocks.get(&(prefix.table, root));
        block.is_some_and(|block| block.prefixes.binary_search_by_key(&node, |(node, _)| *node).is_ok())
    }

    /// The label of the entry of exactly this prefix, as it was settled last.
    pub(crate) fn entry(&self, prefix: Prefix) -> Option<Label> {
        let (root, node) = place_of(prefix);
        let entries = self.blocks.get(&(prefix.table, root))?.entries();
        entries.binary_search_by_key(&node, |(node, _)| *node).ok().map(|at| entries[at].1)
    }

    /// The entry that an address meets.
    pub(crate) fn longest_match(&self, table: u32, addr: IpAddr) -> Option<(Prefix, Label)> {
        let lengths = (0..=IpNet::from(addr).max_prefix_len()).rev();
        let mut prefixes = lengths.filter_map(|len| IpNet::new(addr, len).ok());
        prefixes.find_map(|dst| {
            let prefix = Prefix { table, dst: dst.trunc() };
            Some((prefix, self.entry(prefix)?))
        })
    }

    /// Entries behind one, in an order of their own.
    pub(crate) fn entries_after(&self, after: Option<Prefix>) -> impl Iterator<Item = (Prefix, Label)> {
        let after = after.map(|after| (place_of(after), after.table));
        let first = after.map_or(Bound::Unbounded, |((root, _), table)| Bound::Included((table, root)));
        self.blocks.range((first, Bound::Unbounded)).flat_map(move |(key, block)| {
            let entries = block.entries().iter();
            let is_behind = move |node: u16| match after {
                Some(((root, last), table)) => *key != (table, root) || node > last,
                None => true,
            };
            let behind = entries.filter(move |(node, _)| is_behind(*node));
            behind.map(|(node, label)| (prefix_of(*key, *node), *label))
        })
    }

    /// What changes since it was asked last, in an order in which it can be made.
    pub(crate) fn settle(&mut self) -> Vec<Change> {
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.unsettled) {
            let now = self.desired(key);
            let Some(block) = self.blocks.get_mut(&key) else { continue };
            let before = block.entries.take().unwrap_or_else(|| block.prefixes.clone());
            let mut before = before.into_iter().peekable();
            for entry in &now {
                while let Some((node, _)) = before.next_if(|(node, _)| *node < entry.0) {
                    gone.push((prefix_of(key, node), None));
                }
                if before.next_if(|(node, _)| *node == entry.0) != Some(*entry) {
                    put.push((prefix_of(key, entry.0), Some(entry.1)));
                }
            }
            gone.extend(before.map(|(node, _)| (prefix_of(key, node), None)));
            if block.prefixes.is_empty() && now.is_empty() {
                self.blocks.remove(&key);
            } else if now != block.prefixes {
                block.entries = Some(now);
            }
        }
        put.sort_unstable_by_key(|(prefix, _)| Reverse(*prefix));
        gone.sort_unstable_by_key(|(prefix, _)| *prefix);
        put.extend(gone);
        put
    }

    /// The entries that a block should have.
    fn desired(&self, key: (u32, IpNet)) -> Vec<Entry> {
        let Some(block) = self.blocks.get(&key) else { return Vec::new() };
        if block.prefixes.is_empty() || self.is_plain {
            return block.prefixes.clone();
        }
        entries(&block.prefixes, self.context(key), key.1.prefix_len() == 0)
    }

    /// What the block's addresses meet without it, if it counts on that.
    fn context(&self, (table, root): (u32, IpNet)) -> Option<Label> {
        let mut covering = Some(root).filter(|root| root.prefix_len() > 0);
        for _ in 0..=REACH {
            let dst = covering?;
            let (above, node) = place_of(Prefix { table, dst });
            let prefixes = &self.blocks.get(&(table, above))?.prefixes;
            if let Ok(at) = prefixes.binary_search_by_key(&node, |(node, _)| *node) {
                return Some(prefixes[at].1);
            }
            covering = dst.supernet();
        }
        None
    }
}

/// The block of a prefix, by its table and the prefix that covers all of it.
pub(crate) fn block_of(prefix: Prefix) -> (u32, IpNet) {
    (prefix.table, place_of(prefix).0)
}

/// The block of a prefix, and its node there: 1 for the block's own prefix, and 2n and 2n + 1 for the two halves of what n is.
fn place_of(prefix: Prefix) -> (IpNet, u16) {
    let len = prefix.dst.prefix_len();
    let root = len.saturating_sub(1) / STRIDE * STRIDE;
    let (bits, below) = match prefix.dst.addr() {
        IpAddr::V4(addr) => (u128::from(addr.to_bits()) << 96, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(addr) => (addr.to_bits(), IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let own = bits.checked_shl(root.into()).unwrap_or(0).checked_shr((128 - (len - root)).into());
    let node = (1 << (len - root)) | own.unwrap_or(0);
    let net = IpNet::new(prefix.dst.addr(), root).unwrap_or_else(|_| IpNet::from(below));
    // At most nine bits.
    (net.trunc(), u16::try_from(node).unwrap_or(u16::MAX))
}

/// The other way round.
fn prefix_of((table, root): (u32, IpNet), node: u16) -> Prefix {
    let len = u8::try_from(node.checked_ilog2().unwrap_or(0)).unwrap_or(0);
    let own = u128::from(node) ^ (1 << len);
    let len = root.prefix_len() + len;
    let bits = own.checked_shl((128 - len).into()).unwrap_or(0);
    let addr = match root.addr() {
        IpAddr::V4(addr) => {
            IpAddr::from(Ipv4Addr::from_bits(addr.to_bits() | u32::try_from(bits >> 96).unwrap_or(0)))
        }
        IpAddr::V6(addr) => IpAddr::from(Ipv6Addr::from_bits(addr.to_bits() | bits)),
    };
    Prefix { table, dst: IpNet::new(addr, len).unwrap_or(root) }
}
