//! Decoder of links (`RTM_NEWLINK`, `linux/if_link.h`). Pure.

use xenflow_proto::MacAddr;
use xenflow_proto::table::{Link, MAX_LINK_NAME};

use crate::attribute::{Attribute, NetlinkError, u32_at};
use crate::translate::{AF_INET6, AF_UNSPEC, byte, header, nonzero};

/// A link, and what of it is not for the host's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFacts {
    /// For the host.
    pub link: Link,
    /// What it sends comes back to this kernel (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// An XDP program is attached, in whatever mode.
    pub xdp: bool,
    /// What IPv6 thinks of it; none: IPv6 is not on it.
    pub ipv6: Option<Ipv6>,
}

/// `net.ipv6.conf.<name>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ipv6 {
    /// `mtu`, in bytes.
    pub mtu: u32,
    /// `disable_ipv6`.
    pub disabled: bool,
}

/// The link in an `RTM_NEWLINK` or `RTM_DELLINK`; none: a notice about a part of one.
///
/// `struct ifinfomsg`: family, pad, type (2), index (4), flags (4), change (4).
///
/// # Errors
/// [`NetlinkError`] if the message is cut.
pub fn link(payload: &[u8]) -> Result<Option<LinkFacts>, NetlinkError> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_VRF_TABLE: u16 = 1;
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_ATTACHED: u16 = 2;
    const IFF_UP: u32 = 1;
    const IFF_LOOPBACK: u32 = 1 << 3;
    const IFF_LOWER_UP: u32 = 1 << 16;

    let (header, attributes) = header(payload, "ifinfomsg", 16)?;
    if byte(header, 0) != AF_UNSPEC {
        // A bridge's or IPv6's own notice about a link, which carries only a part of it.
        return Ok(None);
    }
    let flags = u32_at(header, 8).unwrap_or_default();
    let mut link = Link {
        ifindex: nonzero(u32_at(header, 4), "ifi_index")?,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags & IFF_UP != 0,
        running: flags & IFF_LOWER_UP != 0,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    };
    let (mut table, mut xdp, mut ipv6) = (None, false, None);
    for attribute in attributes {
        match attribute.kind {
            IFLA_ADDRESS => link.mac = attribute.value.try_into().ok().map(MacAddr),
            IFLA_IFNAME => link.name = attribute.text(MAX_LINK_NAME),
            IFLA_MTU => link.mtu = attribute.u32()?,
            IFLA_MASTER => link.master = Some(attribute.u32()?).filter(|&master| master != 0),
            IFLA_LINKINFO => {
                for info in attribute.nested() {
                    match info.kind {
                        IFLA_INFO_KIND => link.kind = info.text(MAX_LINK_NAME),
                        IFLA_INFO_DATA => table = info.nested().find(|data| data.kind == IFLA_VRF_TABLE),
                        _ => {}
                    }
                }
            }
            IFLA_AF_SPEC => ipv6 = ipv6_of(&attribute),
            IFLA_XDP => {
                let attached = attribute.nested().find(|xdp| xdp.kind == IFLA_XDP_ATTACHED);
                xdp = attached.is_some_and(|attached| byte(attached.value, 0) != 0);
            }
            _ => {}
        }
    }
    if link.kind == "vrf" {
        link.vrf_table = table.map(|table| table.u32()).transpose()?.filter(|&table| table != 0);
    }
    link.ipv6_mtu = ipv6.map(|ipv6| ipv6.mtu.min(link.mtu)).filter(|&mtu| mtu != 0);
    Ok(Some(LinkFacts { link, loopback: flags & IFF_LOOPBACK != 0, xdp, ipv6 }))
}

/// In `IFLA_AF_SPEC`, `IFLA_INET6_CONF` holds the numbers of `enum DEVCONF_*` (`linux/ipv6.h`).
fn ipv6_of(specific: &Attribute<'_>) -> Option<Ipv6> {
    const IFLA_INET6_CONF: u16 = 2;
    const DEVCONF_MTU6: usize = 2;
    const DEVCONF_DISABLE_IPV6: usize = 26;

    let of_family = specific.nested().find(|family| family.kind == u16::from(AF_INET6))?;
    let conf = of_family.nested().find(|conf| conf.kind == IFLA_INET6_CONF)?;
    Some(Ipv6 {
        mtu: u32_at(conf.value, DEVCONF_MTU6 * 4)?,
        disabled: u32_at(conf.value, DEVCONF_DISABLE_IPV6 * 4)? != 0,
    })
}
