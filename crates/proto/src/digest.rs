//! Digests of a guest's tables, by which both ends of a session know that they hold the same.
//!
//! Construction: every object is hashed by itself, and the hashes are summed modulo 2^64 beside a count. A sum does not
//! depend on the order, and an object is put in or taken out in one step. A sum of hashes that others can compute
//! would be easy to forge by whoever chooses the objects (a BGP neighbor chooses routes); so the hash is keyed, by
//! the guest's boot id: 122 random bits that no neighbor of the guest knows. Tables of another boot never compare equal.

use prost::Message as _;
use siphasher::sip::SipHasher24;

use crate::table::Object;
use crate::wire;

/// Of a set of objects under one [`Keyed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Digest {
    /// How many.
    pub objects: u64,
    /// Sum of their hashes modulo 2^64.
    pub sum: u64,
}

impl Digest {
    /// Puts in an object with this hash.
    pub const fn add(&mut self, hash: u64) {
        self.objects = self.objects.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash);
    }

    /// Takes out an object with this hash, which is in.
    pub const fn remove(&mut self, hash: u64) {
        self.objects = self.objects.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash);
    }
}

/// What hashes the objects of one boot of a guest.
#[derive(Debug, Clone)]
pub struct Keyed {
    hasher: SipHasher24,
    /// Kept for the next object.
    buffer: Vec<u8>,
}

impl Keyed {
    /// Under the guest's boot id.
    #[must_use]
    pub fn new(boot_id: &[u8; 16]) -> Self {
        Self { hasher: SipHasher24::new_with_key(boot_id), buffer: Vec::new() }
    }

    /// The hash of an object: of its message in the frozen schema, whose encoding is one for each value.
    pub fn hash(&mut self, object: &Object) -> u64 {
        self.buffer.clear();
        let encoded = wire::object_to_wire(object).encode(&mut self.buffer);
        debug_assert!(encoded.is_ok(), "a vector grows");
        self.hasher.hash(&self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{NextHop, NextHopKind};

    fn object(id: u32) -> Object {
        Object::NextHop(NextHop { id, kind: NextHopKind::Blackhole })
    }

    #[test]
    fn order_does_not_count_and_removal_undoes() {
        let mut keyed = Keyed::new(b"0123456789abcdef");
        let hashes: Vec<u64> = (1..100).map(|id| keyed.hash(&object(id))).collect();
        let (mut forward, mut backward) = (Digest::default(), Digest::default());
        hashes.iter().for_each(|hash| forward.add(*hash));
        hashes.iter().rev().for_each(|hash| backward.add(*hash));
        assert_eq!(forward, backward);
        assert_ne!(forward, Digest::default());
        hashes.iter().for_each(|hash| forward.remove(*hash));
        assert_eq!(forward, Digest::default());
    }

    /// Frozen with the schema: both ends must agree, whatever their release.
    #[test]
    fn the_hash_is_that_of_the_message() {
        let hash = Keyed::new(b"0123456789abcdef").hash(&object(7));
        // Object { next_hop { id: 7, blackhole: true } }
        let message = [0x22, 4, 0x08, 7, 0x10, 1];
        assert_eq!(hash, SipHasher24::new_with_key(b"0123456789abcdef").hash(&message));
        assert_ne!(hash, Keyed::new(b"another boot id.").hash(&object(7)), "another boot, another hash");
    }
}
