//! Questions to the kernel over a netlink socket of their own, answered before the call returns. I/O only.
//!
//! For [`crate::survey`] and [`crate::refresh`], which run beside the loop and compare whole answers. What must
//! not be lost between two answers comes over [`crate::netlink`].

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname, recvfrom,
    send, socket_with,
};

use crate::attribute::{MESSAGE_HEADER, Message, Messages};

/// The kernel makes parts of a dump as large as this.
const DATAGRAM: usize = 32 << 10;
/// The kernel answers at once, or the answer was dropped.
const PATIENCE: Duration = Duration::from_secs(2);
/// A table that changes while it is listed is listed again, at most so often.
const ATTEMPTS: usize = 5;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuestionError {
    /// The kernel has no such thing.
    #[error("the kernel does not have it")]
    Absent,
    /// The kernel says no.
    #[error("{}", text(*.0))]
    Kernel(Errno),
    /// Somebody changes it all the time.
    #[error("it changed under the listing {ATTEMPTS} times")]
    Changing,
    /// There is more of it than anybody looks through.
    #[error("there are more than {0}")]
    TooMany(usize),
}

fn text(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}

impl From<Errno> for QuestionError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => Self::Absent,
            other => Self::Kernel(other),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Questions {
    socket: OwnedFd,
    buffer: Vec<u8>,
    port: u32,
    sequence: u32,
}

impl Questions {
    /// A socket of this protocol; none: rtnetlink.
    ///
    /// # Errors
    /// [`QuestionError::Absent`] if the kernel lacks the protocol.
    pub(crate) fn open(protocol: Option<Protocol>) -> Result<Self, QuestionError> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        let port = SocketAddrNetlink::try_from(getsockname(&socket)?)?.pid();
        Ok(Self { socket, buffer: vec![0; DATAGRAM], port, sequence: 0 })
    }

    /// Everything of a kind, as `decode` understands it.
    ///
    /// # Errors
    /// [`QuestionError`]: nothing of the answer can be used.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        mut decode: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, QuestionError> {
        for _ in 0..ATTEMPTS {
            let mut all = Vec::new();
            let whole = self.exchange(kind, NLM_F_DUMP, body, &mut |message| all.extend(decode(message)))?;
            if whole {
                return Ok(all);
            }
        }
        Err(QuestionError::Changing)
    }

    /// One thing asked for or told, with the kernel's answers.
    ///
    /// # Errors
    /// [`QuestionError`] if the kernel refuses.
    pub(crate) fn ask<T>(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut decode: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, QuestionError> {
        let mut all = Vec::new();
        self.exchange(kind, flags | NLM_F_ACK, body, &mut |message| all.extend(decode(message)))?;
        Ok(all)
    }

    /// False: the kernel changed something while it answered.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<bool, QuestionError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(MESSAGE_HEADER + body.len());
        let length = u32::try_from(MESSAGE_HEADER + body.len()).unwrap_or_default();
        request.extend_from_slice(&length.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&[0; 4]);
        request.extend_from_slice(body);
        send(&self.socket, &request, SendFlags::empty())?;
        let mut whole = true;
        loop {
            let received = recvfrom(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC);
            let (_, length, sender) = match received {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let kernel = sender.and_then(|s| SocketAddrNetlink::try_from(s).ok()).map(|s| s.pid());
            if kernel != Some(0) {
                continue;
            }
            let datagram = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
            for message in Messages::new(datagram) {
                let message = message.map_err(|_| Errno::BADMSG)?;
                if message.port != self.port || message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let status = message.payload.first_chunk().map_or(0, |raw| i32::from_ne_bytes(*raw));
                        if status < 0 {
                            return Err(Errno::from_raw_os_error(status.saturating_neg()).into());
                        }
                        return Ok(whole);
                    }
                    _ => each(&message),
                }
            }
        }
    }
}

/// Appends an attribute.
pub(crate) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&u16::try_from(value.len() + 4).unwrap_or_default().to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
