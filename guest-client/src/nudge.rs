//! Hears nudges: datagrams by which a host asks this guest to look whether it is the one that the guest speaks with.
//! What to do about one is for [`crate::driver`] to say. I/O.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket as StdSocket};
use std::time::Duration;

use tokio::net::UdpSocket;
use tracing::{debug, warn};
use xenflow_proto::control;

use crate::control::Listen;

/// From one nudge that counts to the next.
pub const FLOOR: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub struct Nudge {
    host: IpAddr,
    socket: Option<UdpSocket>,
    pace: Pace,
}

impl Nudge {
    /// From this address; nothing is heard before [`Self::listen`].
    #[must_use]
    pub fn new(host: IpAddr) -> Self {
        Self { host, socket: None, pace: Pace::default() }
    }

    /// Listens there from now on, and nowhere else; none: where it did. Without nudges, timers make up for them.
    pub fn listen(&mut self, place: Option<&Listen>) {
        let Some(place) = place else { return };
        // Before another one takes the port.
        self.socket = None;
        let device = match place {
            Listen::Nowhere => return,
            Listen::At(device, _) => Some(device.as_str()),
            Listen::Anywhere => None,
        };
        match open(self.host, device) {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => warn!(device, %error, "no nudges will be heard"),
        }
    }

    /// Waits for a nudge. May be dropped at any time.
    pub async fn heard(&mut self) {
        let mut datagram = [0; control::NUDGE.len() + 1];
        while let Some(socket) = &self.socket {
            match socket.recv_from(&mut datagram).await {
                Ok((len, from))
                    if from.ip().to_canonical() == self.host
                        && datagram.get(..len) == Some(control::NUDGE) =>
                {
                    return;
                }
                Ok((_, from)) => debug!(%from, "not a nudge"),
                // The interface is gone; the next one comes with a socket of its own.
                Err(error) => {
                    debug!(%error, "nudges");
                    self.socket = None;
                }
            }
        }
        std::future::pending().await
    }

    /// From when on a nudge that came now counts.
    pub fn admit(&mut self, now: Duration) -> Duration {
        self.pace.admit(now)
    }
}

/// On an IPv6 socket nudges over IPv4 are heard too.
fn open(host: IpAddr, device: Option<&str>) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if host.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = StdSocket::bind((any, control::NUDGE_PORT))?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    socket.bind_device(device.map(str::as_bytes))?;
    Ok(socket)
}

/// Lets one nudge in [`FLOOR`] count, so that many do not make the guest spin.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Duration>,
}

impl Pace {
    fn admit(&mut self, now: Duration) -> Duration {
        let due = match self.last {
            // One that waits is enough.
            Some(last) if last > now => last,
            Some(last) => now.max(last + FLOOR),
            None => now,
        };
        self.last = Some(due);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_nudges_count_as_few() {
        let mut pace = Pace::default();
        let mut counted = std::collections::BTreeSet::new();
        for ms in 0..1000 {
            let now = Duration::from_millis(ms);
            let due = pace.admit(now);
            assert!(due >= now && due <= now + FLOOR, "{due:?} at {now:?}");
            counted.insert(due);
        }
        assert_eq!(counted.len(), 11);
        assert_eq!(pace.admit(Duration::from_secs(5)), Duration::from_secs(5), "after a pause at once");
    }
}
