//! Interfaces of one namespace, changed by netlink from a process that is elsewhere: a process each would take longer than
//! a guest may be frozen.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::net;

/// A socket in a namespace.
pub(super) struct Links {
    path: PathBuf,
    socket: Socket,
}

impl Links {
    /// In the namespace mounted there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let socket = net::enter(path, || {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        })?;
        Ok(Self { path: path.to_owned(), socket })
    }

    /// Cuts a port of a bridge off from its other one, which is isolated already, or joins them again: both ways, at once. (A
    /// port's state would not do: any change of the interface has the kernel enable it again.)
    pub(super) fn isolate(&self, port: &str, is_isolated: bool) -> Result<()> {
        self.port(port, InfoBridgePort::Isolated(is_isolated))
    }

    /// Has a bridge's port forward.
    ///
    /// # Errors
    /// ENETDOWN while it has no carrier, as far as the bridge knows.
    pub(super) fn forward(&self, port: &str) -> Result<()> {
        self.port(port, InfoBridgePort::State(BridgePortState::Forwarding))
    }

    fn port(&self, port: &str, setting: InfoBridgePort) -> Result<()> {
        let data = InfoPortData::BridgePort(vec![setting]);
        let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
        self.change(port, LinkMessage::default(), Some(LinkAttribute::LinkInfo(info)))
    }

    /// Takes an interface to another namespace, where it is down.
    pub(super) fn hand_over(&self, link: &str, to: &Self) -> Result<()> {
        let file = File::open(&to.path).with_context(|| format!("cannot open {}", to.path.display()))?;
        self.change(link, LinkMessage::default(), Some(LinkAttribute::NetNsFd(file.as_raw_fd())))
    }

    /// Sets an interface up, which says nothing by itself: the host's own IPv6 stays off it.
    pub(super) fn raise(&self, link: &str) -> Result<()> {
        let setting = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
        net::enter(&self.path, || {
            std::fs::write(&setting, "1").with_context(|| format!("cannot set {setting}"))
        })?;
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(link, message, None)
    }

    fn change(&self, link: &str, mut message: LinkMessage, attribute: Option<LinkAttribute>) -> Result<()> {
        message.attributes.push(LinkAttribute::IfName(link.to_owned()));
        message.attributes.extend(attribute);
        net::request(&self.socket, RouteNetlinkMessage::NewLink(message))
            .with_context(|| format!("cannot change {link} in {}", self.path.display()))
    }
}
