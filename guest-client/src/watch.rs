//! When to survey: at once when the kernel tells of a change, and by the clock for what it tells nothing of.
//!
//! The kernel's notices only ring; what changed is for the survey to find, which runs on a thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink, XFRM};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tracing::{debug, error, trace};

use crate::attribute::Messages;
use crate::obstacles::{Survey, survey};
use crate::survey::{Surveyor, may_be_loaded};

/// From a notice to the survey: one burst, one survey.
const DELAY: Duration = Duration::from_millis(10);
/// Surveys are at least so far apart, and twice as far as one takes, whatever the kernel tells.
const REST: Duration = Duration::from_millis(50);
/// More than this of a notice is not looked at.
const DATAGRAM: usize = 8 << 10;
/// Notices read at a time.
const BURST: usize = 64;

const fn groups(numbers: &[u32]) -> u32 {
    let (mut mask, mut at) = (0, 0);
    while at < numbers.len() {
        #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        let number = numbers[at];
        mask |= 1 << (number - 1);
        at += 1;
    }
    mask
}

/// Protocol with the module that may bring it, multicast groups, and the message types that matter.
type Source = (Option<(Protocol, &'static str)>, u32, fn(u16) -> bool);
const SOURCES: [Source; 3] = [
    // RTNLGRP_: LINK, TC, IPV4_RULE, IPV6_IFADDR (which come and go with IPv6 on a link), IPV6_IFINFO, IPV6_RULE,
    // IPV4_NETCONF, IPV6_NETCONF.
    (None, groups(&[1, 4, 8, 9, 12, 19, 24, 25]), |_| true),
    // NFNLGRP_NFTABLES; tables and chains that come or go (NFT_MSG_*), not what changes in sets.
    (Some((NETFILTER, "nfnetlink")), groups(&[7]), |kind| {
        kind >> 8 == 10 && matches!(kind & 0xff, 0 | 2 | 3 | 5)
    }),
    // XFRMNLGRP_EXPIRE and XFRMNLGRP_POLICY.
    (Some((XFRM, "xfrm_user")), groups(&[2, 4]), |_| true),
];

/// A socket that rings; none while the kernel lacks its protocol, or refuses.
#[derive(Debug)]
struct Bell {
    source: Source,
    socket: Option<AsyncFd<OwnedFd>>,
    tried: bool,
}

impl Bell {
    fn open(&mut self) {
        let protocol = self.source.0.map(|(protocol, _)| protocol);
        // Each attempt makes the kernel look for the module.
        let there = self.source.0.is_none_or(|(_, module)| may_be_loaded(module));
        if self.socket.is_some() || (self.tried && !there) {
            return;
        }
        self.tried = true;
        let open = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
            bind(&socket, &SocketAddrNetlink::new(0, self.source.1))?;
            #[allow(deprecated)] // An `OwnedFd` keeps its descriptor for as long as it lives.
            let socket = AsyncFd::new(socket)?;
            io::Result::Ok(socket)
        };
        match open() {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => debug!(%error, ?protocol, "no notices of this protocol"),
        }
    }

    /// Waits for a notice that matters. May be dropped at any time.
    async fn rings(&self) {
        let Some(socket) = &self.socket else { return std::future::pending().await };
        while let Ok(mut guard) = socket.readable().await {
            guard.retain_ready();
            if self.read(socket) {
                return;
            }
            tokio::task::yield_now().await;
        }
        std::future::pending().await
    }

    fn read(&self, socket: &AsyncFd<OwnedFd>) -> bool {
        let mut buffer = [0; DATAGRAM];
        let mut rung = false;
        for _ in 0..BURST {
            match recv(socket, &mut buffer, RecvFlags::empty()) {
                Ok((datagram, _)) => {
                    let datagram = buffer.get(..datagram).unwrap_or_default();
                    // One that was cut short counts.
                    rung |= Messages::new(datagram).any(|m| m.map_or(true, |m| (self.source.2)(m.kind)));
                }
                Err(Errno::AGAIN) => {
                    let mut context = Context::from_waker(Waker::noop());
                    if let Poll::Ready(Ok(mut guard)) = socket.poll_read_ready(&mut context) {
                        guard.clear_ready();
                    }
                    return rung;
                }
                Err(Errno::INTR) => {}
                // Some were lost.
                Err(_) => rung = true,
            }
        }
        rung
    }
}

/// What [`Watch::heard`] brings.
#[derive(Debug)]
pub enum Heard {
    /// Something changed; a survey is due.
    Bell,
    /// A survey is done; none: it failed and is repeated.
    Surveyed(Option<Survey>),
}

type Done = (Box<Surveyor>, Survey);

/// See the module.
#[derive(Debug)]
pub struct Watch {
    bells: [Bell; 3],
    /// None while it works.
    surveyor: Option<Box<Surveyor>>,
    job: Option<JoinHandle<Done>>,
    interval: Duration,
    due: Duration,
    /// No survey before.
    rested: Duration,
    /// It rang after the survey began.
    again: bool,
    began: Duration,
}

impl Watch {
    /// Surveys at once, then every `interval` if the kernel tells nothing.
    #[must_use]
    pub fn new(interval: Duration, now: Duration) -> Self {
        let mut bells = SOURCES.map(|source| Bell { source, socket: None, tried: false });
        bells.iter_mut().for_each(Bell::open);
        Self {
            bells,
            surveyor: Some(Box::default()),
            job: None,
            interval,
            due: now,
            rested: now,
            again: false,
            began: now,
        }
    }

    /// When [`Self::start`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.job.is_none().then_some(self.due)
    }

    /// Begins a survey if one is due.
    pub fn start(&mut self, now: Duration) {
        if self.due > now || self.job.is_some() {
            return;
        }
        // The modules may be there by now. Notices before answers.
        self.bells.iter_mut().for_each(Bell::open);
        (self.again, self.began) = (false, now);
        let mut surveyor = self.surveyor.take().unwrap_or_default();
        self.job = Some(tokio::task::spawn_blocking(move || {
            let found = survey(&surveyor.facts());
            (surveyor, found)
        }));
    }

    /// Waits for something. May be dropped at any time.
    pub async fn heard(&mut self) -> Heard {
        let [route, netfilter, xfrm] = &self.bells;
        let job = &mut self.job;
        let done = async {
            match job {
                Some(job) => job.await,
                None => std::future::pending().await,
            }
        };
        let done = tokio::select! {
            done = done => done,
            () = route.rings() => return Heard::Bell,
            () = netfilter.rings() => return Heard::Bell,
            () = xfrm.rings() => return Heard::Bell,
        };
        self.job = None;
        match done {
            Ok((surveyor, found)) => {
                self.surveyor = Some(surveyor);
                Heard::Surveyed(Some(found))
            }
            Err(error) => {
                error!(%error, "the survey failed");
                Heard::Surveyed(None)
            }
        }
    }

    /// To be called with what was heard, and when.
    pub fn note(&mut self, heard: &Heard, now: Duration) {
        match heard {
            Heard::Bell if self.job.is_some() => self.again = true,
            Heard::Bell => self.due = self.due.min(self.rested.max(now + DELAY)),
            Heard::Surveyed(found) => {
                let took = now.saturating_sub(self.began);
                trace!(took_us = took.as_micros(), "survey ended");
                self.rested = now + REST.max(2 * took);
                self.due = if self.again || found.is_none() { self.rested } else { now + self.interval };
            }
        }
    }
}
