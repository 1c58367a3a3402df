//! The rtnetlink socket: subscription, dumps, the receive loop. I/O only; what messages mean is
//! [`crate::translate`]'s, when to dump the driver's.
//!
//! Events and dumps share one socket, so that they arrive in the order in which the kernel made them.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname, recvfrom, send,
    socket_with, sockopt,
};
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use crate::attribute::{MESSAGE_HEADER, Message, Messages};
use crate::translate::{AF_INET, AF_INET6, AF_UNSPEC, Event, rtm, translate};

/// Most bytes of a datagram: the kernel makes dump parts as large as the reader's buffer, up to 32 KiB, and
/// events of a page or little more.
const DATAGRAM: usize = 64 << 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_REQUEST_DUMP: u16 = 0x301;

/// What is dumped, in this order: what a route refers to comes first. With the size of the header that the
/// request needs.
const STEPS: [(u16, u8, usize); 8] = [
    (rtm::GETLINK, AF_UNSPEC, 16),
    (rtm::GETADDR, AF_INET, 8),
    (rtm::GETADDR, AF_INET6, 8),
    (rtm::GETNEXTHOP, AF_UNSPEC, 8),
    (rtm::GETNEIGH, AF_INET, 12),
    (rtm::GETNEIGH, AF_INET6, 12),
    (rtm::GETROUTE, AF_INET, 12),
    (rtm::GETROUTE, AF_INET6, 12),
];

/// `RTNLGRP_*`: link, neighbor, IPv4 address, IPv4 route, IPv6 address, IPv6 route, next hop.
const GROUPS: [u32; 7] = [1, 3, 5, 7, 9, 11, 32];

/// What the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Something changed.
    Event(Event),
    /// An entry of the dump.
    Dumped(Event),
    /// The dump is over. If it is not whole (the tables changed under it, or events were lost), it must be
    /// repeated.
    DumpEnded {
        /// Every entry was told.
        whole: bool,
    },
    /// Events were lost.
    Overflow,
}

#[derive(Debug)]
struct Dump {
    step: usize,
    whole: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Netlink {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    port: u32,
    sequence: u32,
    dump: Option<Dump>,
    /// The kernel drops events, and tells so only once, until the queue was empty.
    congested: bool,
}

impl Netlink {
    /// Subscribes to everything that [`translate`] knows. `receive_buffer` in bytes: how much the kernel may
    /// queue before it drops events.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn open(receive_buffer: usize) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        if let Err(error) = sockopt::set_socket_recv_buffer_size_force(&socket, receive_buffer) {
            debug!(%error, "cannot force the receive buffer, needs CAP_NET_ADMIN");
            sockopt::set_socket_recv_buffer_size(&socket, receive_buffer)?;
        }
        let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        let port = SocketAddrNetlink::try_from(getsockname(&socket)?)?.pid();
        #[allow(deprecated)] // An `OwnedFd` keeps its descriptor for as long as it lives.
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM], port, sequence: 0, dump: None, congested: false })
    }

    /// Waits until [`Self::read`] has something to read.
    ///
    /// # Errors
    /// Those of the runtime.
    pub async fn readable(&self) -> io::Result<()> {
        // `read` clears the readiness when it finds nothing more.
        self.socket.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// A dump is under way.
    #[must_use]
    pub fn is_dumping(&self) -> bool {
        self.dump.is_some()
    }

    /// Events were lost, and may go on to be: what is dumped now may be wrong before its dump ends.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.congested
    }

    /// Asks for all tables. The answers come by [`Self::read`], among the events.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn start_dump(&mut self) -> io::Result<()> {
        self.dump = Some(Dump { step: 0, whole: true });
        self.request(0)
    }

    fn request(&mut self, step: usize) -> io::Result<()> {
        let Some(&(kind, family, header)) = STEPS.get(step) else { return Ok(()) };
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut request = Vec::with_capacity(MESSAGE_HEADER + 32);
        request.extend_from_slice(&[0; 4]);
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&[0; 4]);
        request.push(family);
        request.resize(MESSAGE_HEADER + header, 0);
        if kind == rtm::GETLINK {
            // IFLA_EXT_MASK = RTEXT_FILTER_SKIP_STATS: counters are most of a link's message.
            for word in [8u16, 29] {
                request.extend_from_slice(&word.to_ne_bytes());
            }
            request.extend_from_slice(&8u32.to_ne_bytes());
        }
        let length = u32::try_from(request.len()).unwrap_or_default();
        request.splice(..4, length.to_ne_bytes());
        send(&self.socket, &request, SendFlags::empty())?;
        Ok(())
    }

    /// Reads one datagram, if there is one, and hands what it says to `sink`, in order. False: there is none.
    ///
    /// # Errors
    /// Those of the system calls, overflow excepted.
    pub fn read(&mut self, mut sink: impl FnMut(Input)) -> io::Result<bool> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = recvfrom(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC);
        let result = match received {
            Ok((_, length, sender)) => {
                let kernel = sender.and_then(|s| SocketAddrNetlink::try_from(s).ok()).map(|s| s.pid());
                let datagram = buffer.get(..length);
                match (kernel, datagram) {
                    (Some(0), Some(datagram)) => self.datagram(datagram, &mut sink).map(|()| true),
                    (Some(0), None) => {
                        warn!(length, "netlink datagram longer than the buffer");
                        self.lost(&mut sink);
                        Ok(true)
                    }
                    // Some process of the guest plays kernel.
                    (_, _) => Ok(true),
                }
            }
            Err(Errno::NOBUFS) => {
                self.lost(&mut sink);
                Ok(true)
            }
            Err(Errno::INTR) => Ok(true),
            Err(Errno::AGAIN) => {
                self.congested = false;
                self.clear_ready();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        };
        self.buffer = buffer;
        result
    }

    /// Makes [`Self::readable`] wait for the next datagram.
    fn clear_ready(&self) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        if let std::task::Poll::Ready(Ok(mut guard)) = self.socket.poll_read_ready(&mut context) {
            guard.clear_ready();
        }
    }

    fn lost(&mut self, sink: &mut impl FnMut(Input)) {
        self.congested = true;
        self.give_up(sink);
        sink(Input::Overflow);
    }

    /// Ends a dump that cannot become whole any more. What the kernel still answers is not looked at.
    fn give_up(&mut self, sink: &mut impl FnMut(Input)) {
        if self.dump.take().is_some() {
            self.sequence = self.sequence.wrapping_add(1).max(1);
            sink(Input::DumpEnded { whole: false });
        }
    }

    fn datagram(&mut self, datagram: &[u8], sink: &mut impl FnMut(Input)) -> io::Result<()> {
        for message in Messages::new(datagram) {
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    warn!(%error, "netlink datagram cut short");
                    self.lost(sink);
                    break;
                }
            };
            // Events carry the port of whoever caused them, and this socket only asks.
            let answer = message.port == self.port;
            let mine = answer && message.sequence == self.sequence;
            match (&mut self.dump, message.kind) {
                (_, NLMSG_OVERRUN) => self.lost(sink),
                // The kernel may go on with a dump that it says failed, and refuses another meanwhile.
                (Some(_), NLMSG_DONE | NLMSG_ERROR) if mine && !ended_well(&message) => self.give_up(sink),
                (Some(dump), NLMSG_DONE | NLMSG_ERROR) if mine => {
                    dump.whole &= message.flags & NLM_F_DUMP_INTR == 0;
                    dump.step += 1;
                    let (step, whole) = (dump.step, dump.whole);
                    if step < STEPS.len() {
                        self.request(step)?;
                    } else {
                        self.dump = None;
                        sink(Input::DumpEnded { whole });
                    }
                }
                (_, NLMSG_DONE | NLMSG_ERROR) => {}
                // Of a dump that was given up.
                (_, _) if answer && !mine => {}
                (Some(dump), _) if mine => {
                    dump.whole &= message.flags & NLM_F_DUMP_INTR == 0;
                    let family = STEPS.get(dump.step).map_or(AF_UNSPEC, |&(_, family, _)| family);
                    // A kernel without IPv6 answers with all families instead.
                    if family == AF_UNSPEC || message.payload.first() == Some(&family) {
                        decode(&message, |event| sink(Input::Dumped(event)));
                    }
                }
                (_, _) => decode(&message, |event| sink(Input::Event(event))),
            }
        }
        Ok(())
    }
}

fn decode(message: &Message<'_>, mut sink: impl FnMut(Event)) {
    match translate(message) {
        Ok(event) => event.into_iter().for_each(&mut sink),
        Err(error) => warn!(kind = message.kind, %error, "netlink message makes no sense"),
    }
}

/// The status in a `NLMSG_DONE` or `NLMSG_ERROR`. A kernel that lacks a table (next-hop objects before Linux
/// 5.3, IPv6) has nothing in it.
fn ended_well(message: &Message<'_>) -> bool {
    let status = message.payload.first_chunk().map_or(0, |raw| i32::from_ne_bytes(*raw));
    if status >= 0 {
        return true;
    }
    match Errno::from_raw_os_error(status.saturating_neg()) {
        Errno::OPNOTSUPP | Errno::AFNOSUPPORT => true,
        error => {
            debug!(%error, "dump failed");
            false
        }
    }
}

#[cfg(test)]
mod tests;
