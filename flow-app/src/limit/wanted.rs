//! The wanted prefixes in the order of their rank, kept by family: an IPv4 one takes twelve bytes, an IPv6 one 24.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Prefix;

/// See the module. In the order of [`Prefix`].
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    v4: BTreeSet<Rank<Ipv4Addr>>,
    v6: BTreeSet<Rank<Ipv6Addr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank<A> {
    len: u8,
    table: u32,
    addr: A,
}

enum Of {
    V4(Rank<Ipv4Addr>),
    V6(Rank<Ipv6Addr>),
}

impl From<Prefix> for Of {
    fn from(Prefix { table, dst }: Prefix) -> Self {
        let len = dst.prefix_len();
        match dst {
            IpNet::V4(net) => Self::V4(Rank { len, table, addr: net.addr() }),
            IpNet::V6(net) => Self::V6(Rank { len, table, addr: net.addr() }),
        }
    }
}

// The length is that of a prefix.
impl From<Rank<Ipv4Addr>> for Prefix {
    fn from(Rank { len, table, addr }: Rank<Ipv4Addr>) -> Self {
        Self { table, dst: Ipv4Net::new(addr, len).unwrap_or_default().into() }
    }
}

impl From<Rank<Ipv6Addr>> for Prefix {
    fn from(Rank { len, table, addr }: Rank<Ipv6Addr>) -> Self {
        Self { table, dst: Ipv6Net::new(addr, len).unwrap_or_default().into() }
    }
}

impl FromIterator<Prefix> for Wanted {
    fn from_iter<T: IntoIterator<Item = Prefix>>(prefixes: T) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix.into() {
                Of::V4(rank) => v4.push(rank),
                Of::V6(rank) => v6.push(rank),
            }
        }
        Self { v4: v4.into_iter().collect(), v6: v6.into_iter().collect() }
    }
}

impl Wanted {
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub(super) fn contains(&self, prefix: Prefix) -> bool {
        match prefix.into() {
            Of::V4(rank) => self.v4.contains(&rank),
            Of::V6(rank) => self.v6.contains(&rank),
        }
    }

    pub(super) fn insert(&mut self, prefix: Prefix) {
        match prefix.into() {
            Of::V4(rank) => _ = self.v4.insert(rank),
            Of::V6(rank) => _ = self.v6.insert(rank),
        }
    }

    pub(super) fn remove(&mut self, prefix: Prefix) {
        match prefix.into() {
            Of::V4(rank) => _ = self.v4.remove(&rank),
            Of::V6(rank) => _ = self.v6.remove(&rank),
        }
    }

    /// The first one behind a prefix, or of all.
    pub(super) fn after(&self, prefix: Option<Prefix>) -> Option<Prefix> {
        // Of one length and table IPv4 comes first.
        let (v4, v6) = match prefix.map(Of::from) {
            None => (Bound::Unbounded, Bound::Unbounded),
            Some(Of::V4(rank)) => {
                let Rank { len, table, .. } = rank;
                (Bound::Excluded(rank), Bound::Included(Rank { len, table, addr: Ipv6Addr::UNSPECIFIED }))
            }
            Some(Of::V6(rank)) => {
                let Rank { len, table, .. } = rank;
                (Bound::Excluded(Rank { len, table, addr: Ipv4Addr::BROADCAST }), Bound::Excluded(rank))
            }
        };
        let v4 = self.v4.range((v4, Bound::Unbounded)).next().map(|rank| Prefix::from(*rank));
        let v6 = self.v6.range((v6, Bound::Unbounded)).next().map(|rank| Prefix::from(*rank));
        v4.into_iter().chain(v6).min()
    }

    /// The last one before a prefix.
    pub(super) fn before(&self, prefix: Prefix) -> Option<Prefix> {
        let (v4, v6) = match prefix.into() {
            Of::V4(rank) => {
                let Rank { len, table, .. } = rank;
                (Bound::Excluded(rank), Bound::Excluded(Rank { len, table, addr: Ipv6Addr::UNSPECIFIED }))
            }
            Of::V6(rank) => {
                let Rank { len, table, .. } = rank;
                (Bound::Included(Rank { len, table, addr: Ipv4Addr::BROADCAST }), Bound::Excluded(rank))
            }
        };
        let v4 = self.v4.range((Bound::Unbounded, v4)).next_back().map(|rank| Prefix::from(*rank));
        let v6 = self.v6.range((Bound::Unbounded, v6)).next_back().map(|rank| Prefix::from(*rank));
        v4.into_iter().chain(v6).max()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = Prefix> {
        let v4 = |(bits, len)| {
            IpNet::from(Ipv4Net::new_assert(Ipv4Addr::from_bits(u32::from(bits) << 30), len).trunc())
        };
        let v6 = |(bits, len)| {
            IpNet::from(Ipv6Net::new_assert(Ipv6Addr::from_bits(u128::from(bits) << 126), len).trunc())
        };
        let dst = prop_oneof![(0..4_u8, 0..=3_u8).prop_map(v4), (0..4_u8, 0..=3_u8).prop_map(v6)];
        (prop_oneof![Just(0), Just(254), Just(u32::MAX)], dst).prop_map(|(table, dst)| Prefix { table, dst })
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_set(steps in prop::collection::vec((prefix(), any::<bool>()), 0..100), at in prefix()) {
            let (mut wanted, mut model) = (Wanted::default(), BTreeSet::new());
            for (prefix, comes) in steps {
                if comes {
                    wanted.insert(prefix);
                    model.insert(prefix);
                } else {
                    wanted.remove(prefix);
                    model.remove(&prefix);
                }
                prop_assert_eq!((wanted.len(), wanted.contains(at)), (model.len(), model.contains(&at)));
            }
            let behind = model.range((Bound::Excluded(at), Bound::Unbounded)).next().copied();
            prop_assert_eq!(wanted.after(Some(at)), behind);
            prop_assert_eq!(wanted.after(None), model.first().copied());
            prop_assert_eq!(wanted.before(at), model.range(..at).next_back().copied());
        }
    }

    #[test]
    fn one_takes_little() {
        assert_eq!((size_of::<Rank<Ipv4Addr>>(), size_of::<Rank<Ipv6Addr>>()), (12, 24));
    }
}
