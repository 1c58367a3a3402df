//! The smallest set of entries of one block.

use super::STRIDE;

/// What an address meets; which ones are the same is all that counts.
pub(crate) type Label = u32;
/// A node of a block with its label.
pub(super) type Entry = (u16, Label);

/// Nodes of a block, and an unused one: 1 is the block, and 2n and 2n + 1 are the halves of n.
const NODES: usize = 2 << STRIDE;
/// The first of those that are not divided.
const LEAVES: usize = NODES / 2;
/// Labels, the context among them, that sets of one word can hold.
const MOST: usize = u64::BITS as usize;
/// In the place of a label's number: the address is none of the block's.
const HOLE: u8 = u8::MAX;

/// The entries for prefixes, both sorted by node. Addresses without a prefix meet the context; without one they are holes. The
/// block's own prefix gets an entry only if `has_root`.
pub(super) fn entries(prefixes: &[Entry], context: Option<Label>, has_root: bool) -> Vec<Entry> {
    let mut labels: Vec<Label> = prefixes.iter().map(|(_, label)| *label).chain(context).collect();
    labels.sort_unstable();
    labels.dedup();
    if labels.len() > MOST {
        // There is not much to gain.
        return prefixes.to_vec();
    }
    let number = |label: Label| labels.binary_search(&label).ok().and_then(|at| u8::try_from(at).ok());
    // What each node's prefix, or the nearest above it, says.
    let mut own = [HOLE; NODES];
    for (node, label) in prefixes {
        if let (Some(own), Some(number)) = (own.get_mut(usize::from(*node)), number(*label)) {
            *own = number;
        }
    }
    let context = context.and_then(number).unwrap_or(HOLE);
    if own[1] == HOLE {
        own[1] = context;
    }
    for node in 2..NODES {
        if own[node] == HOLE {
            own[node] = own[node / 2];
        }
    }
    // With which labels an entry at a node makes the fewest entries from there on; none: it would cover a hole.
    let mut best = [0_u64; NODES];
    for node in LEAVES..NODES {
        best[node] = if own[node] == HOLE { 0 } else { 1 << own[node] };
    }
    for node in (1..LEAVES).rev() {
        let (left, right) = (best[2 * node], best[2 * node + 1]);
        best[node] = match left & right {
            _ if left == 0 || right == 0 => 0,
            0 => left | right,
            both => both,
        };
    }
    let mut found = Vec::new();
    // What the nodes get from above.
    let mut given = [HOLE; NODES];
    given[0] = context;
    for node in 1..NODES {
        let above = given[node / 2];
        let is_well = above != HOLE && best[node] & (1 << above) != 0;
        given[node] = above;
        if best[node] == 0 || is_well || (node == 1 && !has_root) {
            continue;
        }
        given[node] = match own[node] {
            own if own != HOLE && best[node] & (1 << own) != 0 => own,
            _ => first(&best, &own, node),
        };
        if let (Ok(node), Some(label)) = (u16::try_from(node), labels.get(usize::from(given[node]))) {
            found.push((node, *label));
        }
    }
    found
}

/// Of the labels that are best at a node the one of the lowest address that has any: so it does not matter how they are numbered.
fn first(best: &[u64; NODES], own: &[u8; NODES], mut node: usize) -> u8 {
    let mut wanted = best[node];
    while node < LEAVES {
        node *= 2;
        if wanted & best[node] == 0 {
            node += 1;
        }
        wanted &= best[node];
    }
    own[node]
}
