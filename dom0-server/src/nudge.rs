//! Nudges: datagrams that make a guest look at once whether this host is the one it speaks with. Says when they go
//! out, and sends them; the core says to whom.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;
use xenflow_flow_app::RouterId;

use crate::core::SessionId;
use xenflow_proto::MacAddr;
use xenflow_proto::control::{self, HOST_IPV4, HOST_IPV6, HOST_PORT_NAME, NUDGE, NUDGE_PORT};

/// A guest that was just plugged in may be suspended yet, for a fraction of a second or for many: what it makes of nudges tells this
/// host that it runs. So they come like this, each so many times, until it has a session.
const GAPS: [(u32, Duration); 3] =
    [(50, Duration::from_millis(20)), (580, Duration::from_millis(50)), (30, Duration::from_secs(1))];

/// From one nudge to the next, of which so many were sent; none: it was the last.
fn gap(mut sent: u32) -> Option<Duration> {
    GAPS.iter().find_map(|(times, gap)| match sent.checked_sub(*times) {
        Some(rest) => {
            sent = rest;
            None
        }
        None => Some(*gap),
    })
}

#[derive(Debug)]
struct Asked {
    router: RouterId,
    guest: MacAddr,
    /// The session that it had when it was asked for, which may be over.
    session: Option<SessionId>,
    at: Instant,
    sent: u32,
}

/// The nudges that are still to be sent.
#[derive(Debug, Default)]
pub struct Nudges {
    asked: Vec<Asked>,
}

impl Nudges {
    /// Nudges a router's guest, by the address of its control vif, from now on; in the place of what was asked before.
    pub fn ask(&mut self, router: RouterId, guest: MacAddr, session: Option<SessionId>, now: Instant) {
        self.asked.retain(|asked| asked.router != router);
        self.asked.push(Asked { router, guest, session, at: now, sent: 0 });
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.asked.iter().map(|asked| asked.at).min()
    }

    /// Where to send one now. A guest that has another session than before needs no more.
    pub fn due(&mut self, now: Instant, session_of: impl Fn(RouterId) -> Option<SessionId>) -> Vec<MacAddr> {
        self.asked.retain(|asked| session_of(asked.router).is_none_or(|now| asked.session == Some(now)));
        let mut to = Vec::new();
        self.asked.retain_mut(|asked| {
            if asked.at > now {
                return true;
            }
            to.push(asked.guest);
            let gap = gap(asked.sent);
            asked.sent += 1;
            asked.at = now + gap.unwrap_or_default();
            gap.is_some()
        });
        to
    }
}

/// Sends one to each control address of a guest, by the control port of that number.
///
/// # Errors
/// What the kernel says of the last.
pub async fn send(ifindex: u32, guest: MacAddr) -> io::Result<()> {
    let _ = send_to(ifindex, control::guest_ipv4(guest).into()).await;
    send_to(ifindex, control::guest_ipv6(guest).into()).await
}

async fn send_to(ifindex: u32, guest: IpAddr) -> io::Result<()> {
    let (host, guest): (SocketAddr, SocketAddr) = match guest {
        IpAddr::V4(guest) => ((HOST_IPV4, 0).into(), (guest, NUDGE_PORT).into()),
        IpAddr::V6(guest) => (
            SocketAddrV6::new(HOST_IPV6, 0, 0, ifindex).into(),
            SocketAddrV6::new(guest, NUDGE_PORT, 0, ifindex).into(),
        ),
    };
    let socket = UdpSocket::bind(host).await?;
    // The addresses are link-local: there may be others like them.
    socket.bind_device(Some(HOST_PORT_NAME.as_bytes()))?;
    socket.send_to(NUDGE, guest).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_nudged_until_it_comes_and_not_for_ever() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let (one, two) = (RouterId(1), RouterId(2));
        let guest = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let mut nudges = Nudges::default();
        assert_eq!(nudges.next(), None);
        nudges.ask(one, guest(1), None, now);
        nudges.ask(two, guest(2), Some(SessionId(7)), now);
        assert_eq!(nudges.next(), Some(now));
        assert_eq!(nudges.due(now, |router| (router == two).then_some(SessionId(7))), [guest(1), guest(2)]);
        assert_eq!(nudges.next(), Some(at(20)));
        assert_eq!(nudges.due(at(19), |_| None), []);
        // The second one has come anew meanwhile.
        assert_eq!(nudges.due(at(20), |router| (router == two).then_some(SessionId(8))), [guest(1)]);
        assert_eq!(nudges.due(at(1000), |_| None), [guest(1)]);
        // Asked again, it begins anew.
        nudges.ask(one, guest(1), None, at(9000));
        assert_eq!(nudges.due(at(9000), |_| None), [guest(1)]);
        nudges.ask(one, guest(3), None, at(9100));
        assert_eq!(nudges.next(), Some(at(9100)));
        let mut sent = 0;
        while let Some(next) = nudges.next() {
            sent += nudges.due(next, |_| None).len();
            assert!(next <= at(9100) + Duration::from_secs(61));
        }
        assert_eq!(sent, 661);
    }
}
