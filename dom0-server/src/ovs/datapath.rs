//! Frames put into the kernel's datapath as if they had come in by one of its ports: `OVS_PACKET_CMD_EXECUTE` with the one action
//! to look the frame up (generic netlink; `include/uapi/linux/openvswitch.h`, `ovs_packet_cmd_execute` in
//! `net/openvswitch/datapath.c`). What the datapath has no flow for goes to Open vSwitch's handler, which makes one.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// Generic netlink's own family and what is asked of it (`linux/genetlink.h`).
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `linux/openvswitch.h`.
const FAMILY: &[u8] = b"ovs_packet\0";
const OVS_PACKET_CMD_EXECUTE: u8 = 3;
const OVS_PACKET_ATTR_PACKET: u16 = 1;
const OVS_PACKET_ATTR_KEY: u16 = 2;
const OVS_PACKET_ATTR_ACTIONS: u16 = 3;
const OVS_KEY_ATTR_IN_PORT: u16 = 3;
const OVS_ACTION_ATTR_RECIRC: u16 = 7;
/// `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;

/// A frame, and the number that the datapath has for the port that it comes in by.
pub type Received = (u32, Vec<u8>);

/// Puts frames into the datapath whose device has this name, in order. Those that it refuses are passed over.
///
/// # Errors
/// If there is no such datapath, or the kernel does not talk.
pub fn receive(device: &str, frames: &[Received]) -> io::Result<()> {
    let index = netdevice::name_to_index(socket(AddressFamily::UNIX, SocketType::DGRAM, None)?, device)?;
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = attribute(CTRL_ATTR_FAMILY_NAME, FAMILY);
    let said = ask(&socket, &message(GENL_ID_CTRL, NLM_F_REQUEST, CTRL_CMD_GETFAMILY, &family))?;
    let family = family_id(&said).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    for (port, frame) in frames {
        let mut body = index.to_ne_bytes().to_vec();
        body.extend(attribute(OVS_PACKET_ATTR_PACKET, frame));
        let port = attribute(OVS_KEY_ATTR_IN_PORT, &port.to_ne_bytes());
        body.extend(attribute(OVS_PACKET_ATTR_KEY, &port));
        // Back to the first lookup, as what comes in.
        let look = attribute(OVS_ACTION_ATTR_RECIRC, &0_u32.to_ne_bytes());
        body.extend(attribute(OVS_PACKET_ATTR_ACTIONS, &look));
        let request = message(family, NLM_F_REQUEST | NLM_F_ACK, OVS_PACKET_CMD_EXECUTE, &body);
        if let Some(error) = error(&ask(&socket, &request)?) {
            tracing::debug!(%error, "the datapath does not take a frame in");
        }
    }
    Ok(())
}

fn ask(socket: &Socket, request: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(request, 0)?;
    Ok(socket.recv_from_full()?.0)
}

/// With its header and padding (netlink(7)).
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn message(family: u16, flags: u16, command: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + body.len()).unwrap_or(u32::MAX);
    let mut out = length.to_ne_bytes().to_vec();
    out.extend([family.to_ne_bytes(), flags.to_ne_bytes()].concat());
    // One request at a time: no number tells them apart.
    out.extend([0; 8]);
    out.extend([command, 1, 0, 0]);
    out.extend_from_slice(body);
    out
}

/// What the kernel refuses with, if it does.
fn error(said: &[u8]) -> Option<io::Error> {
    let number = |at: usize| Some(i32::from_ne_bytes(*said.get(at..)?.first_chunk()?));
    let kind = u16::from_ne_bytes(*said.get(4..)?.first_chunk()?);
    let code = number(16).filter(|code| kind == NLMSG_ERROR && *code != 0)?;
    Some(io::Error::from_raw_os_error(code.checked_neg()?))
}

fn family_id(said: &[u8]) -> Option<u16> {
    let mut rest = said.get(HEADERS..).filter(|_| error(said).is_none())?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        if kind == CTRL_ATTR_FAMILY_ID {
            return Some(u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found() {
        let mut said = message(GENL_ID_CTRL, 0, 1, &attribute(CTRL_ATTR_FAMILY_NAME, b"ovs_packet\0"));
        assert_eq!((said.len(), family_id(&said)), (36, None));
        said.extend(attribute(CTRL_ATTR_FAMILY_ID, &33_u16.to_ne_bytes()));
        assert_eq!(family_id(&said), Some(33));
        assert_eq!(family_id(&said[..said.len() - 4]), None);
    }

    #[test]
    fn a_refusal_is_told_from_an_acknowledgement() {
        let said = |code: i32| {
            [&[36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &code.to_ne_bytes()].concat()
        };
        assert!(error(&said(0)).is_none());
        assert_eq!(error(&said(-22)).and_then(|error| error.raw_os_error()), Some(22));
        assert!(error(&[]).is_none() && error(&said(i32::MIN)).is_none());
    }
}
