//! The oracle: a guest's kernel says where a packet should go, the switch shows where it sends it.
//!
//! Owns the random tables ([`tables`]), the question to the kernel ([`kernel`], [`dump`]), the look into the switch
//! ([`witness`], [`actions`]) and the verdict ([`verdict`]), all of it on one [`bench`]; what makes the guest forward by
//! itself ([`obstacles`]), and the comparison's own [`controls`]. Builds no topology: `scenarios/oracle.rs` does. Shares
//! no code with the product: neither its netlink decoder nor its forwarding decision.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub mod actions;
pub mod bench;
pub mod controls;
pub mod dump;
pub mod kernel;
pub mod obstacles;
pub mod plan;
pub mod questions;
pub mod random;
pub mod tables;
pub mod tally;
pub mod verdict;
pub mod witness;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Bits of an address.
    pub fn width(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The option of `ip`.
    pub fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// The address with these bits, right-aligned; higher ones are cut off.
    pub fn address(self, bits: u128) -> IpAddr {
        match self {
            // Cut on purpose: offsets may run over the end of the address space.
            Self::V4 => Ipv4Addr::from_bits((bits & u128::from(u32::MAX)) as u32).into(),
            Self::V6 => Ipv6Addr::from_bits(bits).into(),
        }
    }
}

/// The bits of an address, right-aligned.
pub fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// A prefix; bits beyond its length are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// Its family.
    pub family: Family,
    bits: u128,
    /// Its length in bits.
    pub len: u8,
}

impl Prefix {
    /// The prefix of this length that an address is in.
    pub fn new(family: Family, bits: u128, len: u8) -> Self {
        let len = len.min(family.width());
        Self { family, bits: bits & !Self::host_mask(family, len), len }
    }

    /// Reads `address/length`, or an address alone.
    pub fn parse(text: &str) -> Option<Self> {
        let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
        let addr: IpAddr = addr.parse().ok()?;
        let family = Family::of(addr);
        let len = len.map_or(Some(family.width()), |len| len.parse().ok())?;
        Some(Self::new(family, bits(addr), len))
    }

    fn host_mask(family: Family, len: u8) -> u128 {
        let all = u128::MAX >> (128 - u32::from(family.width()));
        all & !(u128::MAX.checked_shl((family.width() - len).into()).unwrap_or(0))
    }

    /// Its first address, as bits.
    pub fn first(self) -> u128 {
        self.bits
    }

    /// Its last address, as bits.
    pub fn last(self) -> u128 {
        self.bits | Self::host_mask(self.family, self.len)
    }

    /// Whether an address is in it.
    pub fn contains(self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family && Self::new(self.family, bits(addr), self.len) == self
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.family.address(self.bits), self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_their_edges() {
        let prefix = Prefix::parse("10.1.2.3/20").unwrap();
        assert_eq!(prefix.to_string(), "10.1.0.0/20");
        assert_eq!(Family::V4.address(prefix.last()), "10.1.15.255".parse::<IpAddr>().unwrap());
        assert!(prefix.contains("10.1.15.255".parse().unwrap()));
        assert!(!prefix.contains("10.1.16.0".parse().unwrap()) && !prefix.contains("::1".parse().unwrap()));
        let whole = Prefix::new(Family::V6, u128::MAX, 0);
        assert_eq!((whole.to_string().as_str(), whole.last()), ("::/0", u128::MAX));
        let host = Prefix::parse("2001:db8::1").unwrap();
        assert_eq!((host.len, host.first()), (128, host.last()));
    }
}
