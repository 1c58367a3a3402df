//! Where prefixes with and without a flow lie: for each routing table and family a binary trie with compressed
//! paths, so that a walk visits at most one node for each bit of the prefix. Each node knows whether something below
//! it has to be shielded from above; a change is told upwards as far as the path goes.
//!
//! Knows nothing of ranks and limits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::{iter, mem};

use ipnet::IpNet;

use super::{Prefix, visit};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    pub(super) roots: BTreeMap<(u32, bool), Box<Node>>,
}

/// A prefix, or the place where two ways part.
#[derive(Debug, Clone)]
pub(super) struct Node {
    dst: IpNet,
    pub(super) mark: Mark,
    /// There is a prefix without a flow, here or below, that no flow covers, here or below.
    is_bare: bool,
    pub(super) children: [Option<Box<Node>>; 2],
}

/// What the index knows of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// It is not in the set: two ways part here.
    Branch,
    /// It has a flow.
    Flow,
    /// It has none.
    NoFlow,
}

impl Index {
    fn root(prefix: Prefix) -> (u32, bool) {
        (prefix.table, prefix.dst.addr().is_ipv6())
    }

    /// The nodes that cover a prefix, itself included, the shortest first.
    fn path(&self, prefix: Prefix) -> impl Iterator<Item = &Node> {
        let covers = move |node: &&Node| {
            visit();
            node.dst.contains(&prefix.dst)
        };
        let root = self.roots.get(&Self::root(prefix)).map(Box::as_ref);
        iter::successors(root.filter(covers), move |node| {
            if node.dst == prefix.dst {
                return None;
            }
            node.children[side(node.dst, prefix.dst)].as_deref().filter(covers)
        })
    }

    /// The longest prefix with a flow that covers a prefix and is shorter.
    pub(super) fn flow_above(&self, prefix: Prefix) -> Option<Prefix> {
        let above = self.path(prefix).filter(|node| node.mark == Mark::Flow && node.dst != prefix.dst);
        above.last().map(|node| Prefix { dst: node.dst, ..prefix })
    }

    /// Is it the longest prefix with a flow over one without?
    pub(super) fn shields(&self, prefix: Prefix) -> bool {
        let node = self.path(prefix).last();
        node.is_some_and(|node| node.dst == prefix.dst && node.mark == Mark::Flow && node.is_above_bare())
    }

    /// Marks a prefix; [`Mark::Branch`] takes it out.
    pub(super) fn put(&mut self, prefix: Prefix, mark: Mark) {
        let key = Self::root(prefix);
        let mut root = self.roots.remove(&key);
        Node::put(&mut root, prefix.dst, mark);
        if let Some(root) = root {
            self.roots.insert(key, root);
        }
    }
}

impl Node {
    fn leaf(dst: IpNet, mark: Mark) -> Box<Self> {
        Box::new(Self { dst, mark, is_bare: mark == Mark::NoFlow, children: [None, None] })
    }

    fn is_above_bare(&self) -> bool {
        self.children.iter().flatten().any(|child| child.is_bare)
    }

    fn put(slot: &mut Option<Box<Self>>, dst: IpNet, mark: Mark) {
        visit();
        let Some(node) = slot else {
            *slot = Some(Self::leaf(dst, mark)).filter(|_| mark != Mark::Branch);
            return;
        };
        if node.dst == dst {
            node.mark = mark;
        } else if node.dst.contains(&dst) {
            Self::put(&mut node.children[side(node.dst, dst)], dst, mark);
        } else {
            let fork = common(dst, node.dst);
            let lower = mem::replace(node, Self::leaf(fork, Mark::Branch));
            let lower_side = side(fork, lower.dst);
            node.children[lower_side] = Some(lower);
            if fork == dst {
                node.mark = mark;
            } else {
                Self::put(&mut node.children[1 - lower_side], dst, mark);
            }
        }
        node.is_bare = match node.mark {
            Mark::Flow => false,
            Mark::NoFlow => true,
            Mark::Branch => node.is_above_bare(),
        };
        if node.mark == Mark::Branch
            && let [None, rest] | [rest, None] = &mut node.children
        {
            let rest = rest.take();
            *slot = rest;
        }
    }
}

/// Which child of a prefix covers a longer prefix that it covers itself: the value of the first bit it lacks.
fn side(shorter: IpNet, longer: IpNet) -> usize {
    let len = shorter.prefix_len();
    usize::from(match longer.addr() {
        IpAddr::V4(addr) => (addr.to_bits() << len).leading_ones() > 0,
        IpAddr::V6(addr) => (addr.to_bits() << len).leading_ones() > 0,
    })
}

/// The longest prefix that covers both; they are of one family.
fn common(a: IpNet, b: IpNet) -> IpNet {
    let mut up = iter::successors(Some(a), IpNet::supernet);
    // The shortest prefix covers everything, so there is one.
    up.find(|up| up.contains(&b)).unwrap_or(a)
}
