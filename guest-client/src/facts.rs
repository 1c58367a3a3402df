//! Decoder of what else the kernel decides by: rules, netconf, nftables, XFRM, traffic control. Pure.
//!
//! What of it stands in the way of destination-only forwarding is for [`crate::obstacles`] to say.

use std::fmt::Write as _;
use std::net::IpAddr;

use xenflow_proto::table::{IfIndex, MAX_LINK_NAME};

use crate::attribute::{Attribute, Message, address, u16_at, u32_at};
use crate::link::LinkFacts;
use crate::translate::{AF_INET, AF_INET6, byte, header};

/// Longest name of a table or chain that is looked at; the kernel allows 255.
const MAX_NAME: usize = 64;

/// All that a survey found. What it could not find out is in `unreadable` and empty here.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// All links.
    pub links: Vec<LinkFacts>,
    /// Forwarding and `rp_filter` of IPv4, then IPv6; none: the kernel does not have it, or does not tell.
    pub netconf: [Option<Vec<Netconf>>; 2],
    /// Rules of IPv4, then IPv6, in the kernel's order; none: the kernel does not have any, or does not tell.
    pub rules: [Option<Vec<Rule>>; 2],
    /// Base chains of nftables.
    pub chains: Vec<Chain>,
    /// Names in `ip_tables_names`, then `ip6_tables_names`.
    pub legacy_tables: [Vec<String>; 2],
    /// XFRM policies.
    pub policies: Vec<Policy>,
    /// Links with something of traffic control that looks at packets, and what.
    pub filters: Vec<(IfIndex, String)>,
    /// `fib_multipath_hash_policy` of IPv4, then IPv6.
    pub hash_policies: [u8; 2],
    /// What is there and cannot be read, and why.
    pub unreadable: Vec<String>,
}

/// Whose setting it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `conf.all`.
    All,
    /// `conf.default`: of links to come.
    Default,
    /// Of a link.
    Link(IfIndex),
}

/// Settings of a link, or of all (`RTM_NEWNETCONF`, `linux/netconf.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Netconf {
    /// Whose.
    pub scope: Scope,
    /// `forwarding`.
    pub forwarding: bool,
    /// `rp_filter`; IPv6 has none.
    pub rp_filter: u32,
}

impl Netconf {
    /// One of this family.
    #[must_use]
    pub fn decode(message: &Message<'_>, family: u8) -> Option<Self> {
        const NETCONFA_IFINDEX: u16 = 1;
        const NETCONFA_FORWARDING: u16 = 2;
        const NETCONFA_RP_FILTER: u16 = 3;
        const ALL: u32 = u32::MAX;
        const DEFAULT: u32 = u32::MAX - 1;

        // `struct netconfmsg` is one byte, the attributes are aligned.
        let (header, attributes) = header(message.payload, "netconfmsg", 4).ok()?;
        if byte(header, 0) != family {
            return None;
        }
        let mut netconf = Self { scope: Scope::Default, forwarding: false, rp_filter: 0 };
        let mut ifindex = None;
        for attribute in attributes {
            match attribute.kind {
                NETCONFA_IFINDEX => ifindex = attribute.u32().ok(),
                NETCONFA_FORWARDING => netconf.forwarding = attribute.u32().ok()? != 0,
                NETCONFA_RP_FILTER => netconf.rp_filter = attribute.u32().ok()?,
                _ => {}
            }
        }
        netconf.scope = match ifindex? {
            ALL => Scope::All,
            DEFAULT => Scope::Default,
            0 => return None,
            ifindex => Scope::Link(ifindex),
        };
        Some(netconf)
    }
}

/// A rule (`ip rule`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its place; the lowest counts first.
    pub priority: u32,
    /// What it says.
    pub says: Says,
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// All packets: look into this table.
    Table(u32),
    /// Packets of a VRF: look into its table.
    L3mdev,
    /// Anything else, in words.
    Other(String),
}

impl Rule {
    /// One of this family. `struct fib_rule_hdr` (`linux/fib_rules.h`): family, dst_len, src_len, tos, table, 2
    /// reserved, action, flags (4).
    #[must_use]
    pub fn decode(message: &Message<'_>, family: u8) -> Option<Self> {
        const FRA_DST: u16 = 1;
        const FRA_SRC: u16 = 2;
        const FRA_IIFNAME: u16 = 3;
        const FRA_PRIORITY: u16 = 6;
        const FRA_FWMARK: u16 = 10;
        const FRA_SUPPRESS_IFGROUP: u16 = 13;
        const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
        const FRA_TABLE: u16 = 15;
        const FRA_FWMASK: u16 = 16;
        const FRA_OIFNAME: u16 = 17;
        const FRA_PAD: u16 = 18;
        const FRA_L3MDEV: u16 = 19;
        const FRA_PROTOCOL: u16 = 21;
        const FR_ACT_TO_TBL: u8 = 1;
        const FIB_RULE_INVERT: u32 = 2;

        let (header, attributes) = header(message.payload, "fib_rule_hdr", 12).ok()?;
        if byte(header, 0) != family {
            return None;
        }
        let (to, from, tos, action) = (byte(header, 1), byte(header, 2), byte(header, 3), byte(header, 7));
        let invert = u32_at(header, 8).unwrap_or_default() & FIB_RULE_INVERT != 0;
        let (mut priority, mut table, mut l3mdev) = (0, u32::from(byte(header, 4)), false);
        let (mut source, mut destination, mut more) = (None, None, String::new());
        let mut simple = to == 0 && from == 0 && tos == 0 && !invert && action == FR_ACT_TO_TBL;
        for attribute in attributes {
            let number = attribute.u32().ok();
            match attribute.kind {
                FRA_PRIORITY => priority = number?,
                FRA_TABLE => table = number?,
                FRA_L3MDEV => l3mdev = byte(attribute.value, 0) != 0,
                FRA_PAD | FRA_PROTOCOL => {}
                // Nothing is suppressed.
                FRA_SUPPRESS_IFGROUP | FRA_SUPPRESS_PREFIXLEN if number == Some(u32::MAX) => {}
                kind => {
                    simple = false;
                    match kind {
                        FRA_SRC => source = attribute.address().ok(),
                        FRA_DST => destination = attribute.address().ok(),
                        FRA_IIFNAME => more += &format!(" iif {}", attribute.text(MAX_LINK_NAME)),
                        FRA_OIFNAME => more += &format!(" oif {}", attribute.text(MAX_LINK_NAME)),
                        FRA_FWMARK => more += &format!(" fwmark {:#x}", number.unwrap_or_default()),
                        // Of the mark before it.
                        FRA_FWMASK => {}
                        _ => more += &format!(" attribute-{kind}"),
                    };
                }
            }
        }
        let says = match (simple, l3mdev) {
            (true, true) => Says::L3mdev,
            (true, false) => Says::Table(table),
            (false, _) => {
                let mut text = format!("{}from {}", if invert { "not " } else { "" }, prefix(source, from));
                // Writing to a string does not fail.
                if to != 0 {
                    let _ = write!(text, " to {}", prefix(destination, to));
                }
                if tos != 0 {
                    let _ = write!(text, " tos {tos:#x}");
                }
                text += &more;
                let _ = match action {
                    FR_ACT_TO_TBL if l3mdev => write!(text, " lookup [l3mdev]"),
                    FR_ACT_TO_TBL => write!(text, " lookup {table}"),
                    action => write!(text, " action {action}"),
                };
                Says::Other(text)
            }
        };
        Some(Self { priority, says })
    }
}

fn prefix(addr: Option<IpAddr>, len: u8) -> String {
    match addr {
        Some(addr) => format!("{addr}/{len}"),
        None => "all".into(),
    }
}

/// Where a base chain of nftables hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// `NFPROTO_*` of `linux/netfilter.h`.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `NF_INET_*` or `NF_NETDEV_*`, by the family.
    pub hook: u32,
    /// Names of links, a `*` at the end for all that begin so.
    pub devices: Vec<String>,
}

impl Chain {
    /// A base chain; none for others. `struct nfgenmsg`: family, version, resource (2).
    #[must_use]
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        const NFTA_CHAIN_TABLE: u16 = 1;
        const NFTA_CHAIN_NAME: u16 = 3;
        const NFTA_CHAIN_HOOK: u16 = 4;
        const NFTA_HOOK_HOOKNUM: u16 = 1;
        const NFTA_HOOK_DEV: u16 = 3;
        const NFTA_HOOK_DEVS: u16 = 4;
        const NFTA_DEVICE_PREFIX: u16 = 2;

        let (header, attributes) = header(message.payload, "nfgenmsg", 4).ok()?;
        let (mut table, mut name, mut hook, mut devices) = (String::new(), String::new(), None, Vec::new());
        for attribute in attributes {
            match attribute.kind {
                NFTA_CHAIN_TABLE => table = attribute.text(MAX_NAME),
                NFTA_CHAIN_NAME => name = attribute.text(MAX_NAME),
                NFTA_CHAIN_HOOK => {
                    for of_hook in attribute.nested() {
                        match of_hook.kind {
                            NFTA_HOOK_HOOKNUM => hook = of_hook.value.first_chunk().copied(),
                            NFTA_HOOK_DEV => devices.push(of_hook.text(MAX_LINK_NAME)),
                            NFTA_HOOK_DEVS => devices.extend(of_hook.nested().map(|device| {
                                let wild = if device.kind == NFTA_DEVICE_PREFIX { "*" } else { "" };
                                device.text(MAX_LINK_NAME) + wild
                            })),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        // Numbers of nftables are in network byte order.
        Some(Self { family: byte(header, 0), table, name, hook: u32::from_be_bytes(hook?), devices })
    }
}

/// An XFRM policy, or a default that blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whose packets it is about; none: all.
    pub family: Option<u8>,
    /// In words.
    pub text: String,
}

const DIRECTIONS: [&str; 3] = ["in", "out", "fwd"];

impl Policy {
    /// `struct xfrm_userpolicy_info` of `linux/xfrm.h`: selector (56) with daddr (16), saddr (16), 8 of ports,
    /// family (2), prefix lengths (1, 1); 104 of lifetimes, priority (4), index (4), direction.
    #[must_use]
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        let info = message.payload;
        let family = match u16_at(info, 40)? {
            2 => Some(AF_INET),
            10 => Some(AF_INET6),
            _ => None,
        };
        let bytes = if family == Some(AF_INET) { 4 } else { 16 };
        let (destination, source) = (info.get(..bytes)?, info.get(16..16 + bytes)?);
        let direction = DIRECTIONS.get(usize::from(byte(info, 160))).copied().unwrap_or("?");
        let text = format!(
            "src {} dst {} dir {direction}",
            prefix(address(source), byte(info, 43)),
            prefix(address(destination), byte(info, 42)),
        );
        Some(Self { family, text })
    }

    /// `struct xfrm_userpolicy_default`: what becomes of packets without a policy, in, fwd, out.
    #[must_use]
    pub fn decode_default(message: &Message<'_>) -> Option<Self> {
        const XFRM_USERPOLICY_BLOCK: u8 = 1;
        let [inward, forward, outward] = *message.payload.first_chunk()?;
        let blocked = [(inward, "in"), (forward, "fwd"), (outward, "out")];
        let (_, direction) = blocked.iter().find(|(default, _)| *default == XFRM_USERPOLICY_BLOCK)?;
        Some(Self { family: None, text: format!("default block dir {direction}") })
    }
}

/// A queueing discipline, class or filter: `struct tcmsg`: family (1 and 3 of padding), ifindex (4), handle (4),
/// parent (4), info (4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficControl {
    /// Its link.
    pub ifindex: IfIndex,
    /// Its number.
    pub handle: u32,
    /// What it is, as "clsact", "htb", "flower".
    pub kind: String,
}

impl TrafficControl {
    /// `None` if the message is cut.
    #[must_use]
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        const TCA_KIND: u16 = 1;
        let (header, mut attributes) = header(message.payload, "tcmsg", 20).ok()?;
        let kind = attributes.find(|attribute: &Attribute<'_>| attribute.kind == TCA_KIND);
        let kind = kind.map(|kind| kind.text(MAX_LINK_NAME)).unwrap_or_default();
        Some(Self { ifindex: u32_at(header, 4)?, handle: u32_at(header, 8)?, kind })
    }
}
