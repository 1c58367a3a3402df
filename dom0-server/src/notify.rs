//! What the daemon tells systemd, as `sd_notify(3)` has it: that it serves, how it stands, that its loop still turns.
//!
//! Owns the words and when they are said. What they are about is the core's ([`Standing`]); where no `NOTIFY_SOCKET`
//! is set nothing is said. Without systemd's library: a datagram of lines to a socket is all there is to it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::core::Standing;

/// So long `READY=1` waits for the switch and the databases. A host whose Open vSwitch is away is told so by `STATUS=`
/// and is not started again for it: that would mend nothing, and the daemon serves as soon as they are there. To be
/// well below the unit's `TimeoutStartSec`.
pub const READY_AT_LAST: Duration = Duration::from_secs(20);
/// `STATUS=` is not said more often.
const STATUS_PERIOD: Duration = Duration::from_secs(3);
/// A watchdog that bites after so many of these is fed once in each.
const FEEDS: u32 = 4;

/// systemd, if it started this process and listens.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often the watchdog is fed; none: there is none.
    feed: Option<Duration>,
    is_ready: bool,
    /// What was said last, and when.
    status: (String, Duration),
    fed: Duration,
}

impl Notifier {
    /// Whom the environment names.
    #[must_use]
    pub fn from_env() -> Self {
        let named: Option<OsString> = std::env::var_os("NOTIFY_SOCKET");
        let socket = named.as_deref().and_then(|name| match connect(name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, ?name, "systemd cannot be told anything");
                None
            }
        });
        let text = |key| std::env::var(key).ok();
        let watchdog = watchdog(text("WATCHDOG_USEC").as_deref(), text("WATCHDOG_PID").as_deref());
        Self::new(socket, watchdog)
    }

    /// For that socket; `watchdog`: when systemd's bites.
    fn new(socket: Option<(UnixDatagram, SocketAddr)>, watchdog: Option<Duration>) -> Self {
        let feed = watchdog.map(|bite| bite / FEEDS);
        Self { socket, feed, is_ready: false, status: (String::new(), Duration::ZERO), fed: Duration::ZERO }
    }

    /// Says what is due so long after the daemon began. To be called by the core's loop, about every second, and by
    /// nobody else: a loop that is stuck must starve the watchdog.
    pub fn turn(&mut self, now: Duration, standing: &Standing) {
        if self.socket.is_none() {
            return;
        }
        let mut lines = Vec::new();
        let is_ready = self.is_ready || standing.missing.is_empty() || now >= READY_AT_LAST;
        if is_ready && !self.is_ready {
            lines.push("READY=1".to_owned());
        }
        let status = standing.to_string();
        let (said, at) = &self.status;
        let is_news = status != *said && (said.is_empty() || now.saturating_sub(*at) >= STATUS_PERIOD);
        if is_news || !lines.is_empty() {
            lines.push(format!("STATUS={status}"));
        }
        let is_hungry = self.feed.is_some_and(|feed| now.saturating_sub(self.fed) >= feed);
        if is_hungry {
            lines.push("WATCHDOG=1".to_owned());
        }
        if lines.is_empty() || !self.say(&lines.join("\n")) {
            // What did not get out is due again at the next turn.
            return;
        }
        self.is_ready = is_ready;
        if lines.iter().any(|line| line.starts_with("STATUS=")) {
            self.status = (status, now);
        }
        if is_hungry {
            self.fed = now;
        }
    }

    /// The daemon ends, as it was asked to.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=stopping: the flows stay");
    }

    /// Whether it got out. The core's loop never waits for systemd.
    fn say(&self, lines: &str) -> bool {
        let Some((socket, systemd)) = &self.socket else { return false };
        match socket.send_to_addr(lines.as_bytes(), systemd) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "systemd is not told");
                false
            }
        }
    }
}

/// A name that begins with `@` is in the abstract namespace.
fn connect(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// When systemd's watchdog bites, if it is this process that it watches (`sd_watchdog_enabled(3)`).
fn watchdog(usec: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let usec: u64 = usec?.parse().ok()?;
    (is_ours && usec > 0).then(|| Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCHDOG: Duration = Duration::from_secs(8);

    /// systemd's end of a socket, and the daemon's.
    fn pair(name: &str) -> (UnixDatagram, Notifier) {
        let name = format!("@xenflow-notify-{}-{name}", std::process::id());
        let systemd = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let systemd = UnixDatagram::bind_addr(&systemd).unwrap();
        systemd.set_nonblocking(true).unwrap();
        (systemd, Notifier::new(Some(connect(OsStr::new(&name)).unwrap()), Some(WATCHDOG)))
    }

    fn heard(systemd: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        match systemd.recv(&mut buffer) {
            Ok(len) => String::from_utf8(buffer[..len].to_vec()).unwrap(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => String::new(),
            Err(error) => panic!("{error}"),
        }
    }

    fn standing(missing: &[&'static str], sessions: usize) -> Standing {
        Standing {
            missing: missing.to_vec(),
            routers: 2,
            sessions,
            is_in_step: true,
            dark: 0,
            is_away: false,
            kept_ms: None,
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn ready_is_said_once_and_only_when_all_have_spoken() {
        let (systemd, mut notifier) = pair("ready");
        notifier.feed = None;
        notifier.turn(secs(0), &standing(&["the switch"], 0));
        assert_eq!(heard(&systemd), "STATUS=waiting for the switch");
        notifier.turn(secs(1), &standing(&[], 0));
        assert_eq!(heard(&systemd), "READY=1\nSTATUS=2 routers, 0 sessions, the switch in step");
        notifier.turn(secs(2), &standing(&["the switch"], 0));
        notifier.turn(secs(3), &standing(&[], 0));
        assert_eq!(heard(&systemd), "", "it was ready, and stays so");
        notifier.stopping();
        assert_eq!(heard(&systemd), "STOPPING=1\nSTATUS=stopping: the flows stay");
    }

    #[test]
    fn a_host_without_a_switch_is_ready_at_last_and_says_what_is_missing() {
        let (systemd, mut notifier) = pair("late");
        let without = standing(&["the switch", "the XenFlow database"], 0);
        let said: Vec<String> = (0..=21)
            .map(|now| {
                notifier.turn(secs(now), &without);
                heard(&systemd)
            })
            .collect();
        let ready: Vec<usize> = (0..said.len()).filter(|second| said[*second].contains("READY=1")).collect();
        assert_eq!(ready, [20]);
        assert_eq!(said[20].lines().nth(1), Some("STATUS=waiting for the switch, the XenFlow database"));
    }

    #[test]
    fn the_status_is_said_on_change_and_not_too_often() {
        let (systemd, mut notifier) = pair("status");
        notifier.feed = None;
        notifier.turn(secs(1), &standing(&[], 0));
        assert!(heard(&systemd).starts_with("READY=1\n"));
        notifier.turn(secs(2), &standing(&[], 1));
        assert_eq!(heard(&systemd), "", "3 s have not passed");
        notifier.turn(secs(4), &standing(&[], 2));
        assert_eq!(heard(&systemd), "STATUS=2 routers, 2 sessions, the switch in step");
        notifier.turn(secs(7), &standing(&[], 2));
        assert_eq!(heard(&systemd), "", "nothing has changed");
    }

    #[test]
    fn the_watchdog_is_fed_well_before_it_bites_and_only_by_turns() {
        let (systemd, mut notifier) = pair("watchdog");
        notifier.turn(secs(1), &standing(&[], 0));
        heard(&systemd);
        let fed: Vec<u64> = (2..=10)
            .filter(|now| {
                notifier.turn(secs(*now), &standing(&[], 0));
                heard(&systemd) == "WATCHDOG=1"
            })
            .collect();
        assert_eq!(fed, [2, 4, 6, 8, 10]);
    }

    #[test]
    fn what_systemd_did_not_take_is_said_again() {
        let (systemd, mut notifier) = pair("again");
        drop(systemd);
        notifier.turn(secs(1), &standing(&[], 0));
        assert!(!notifier.is_ready);
        let (systemd, again) = pair("again");
        notifier.socket = again.socket;
        notifier.turn(secs(2), &standing(&[], 0));
        assert!(heard(&systemd).starts_with("READY=1\n"));
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let own = std::process::id().to_string();
        assert_eq!(watchdog(Some("8000000"), Some(&own)), Some(WATCHDOG));
        assert_eq!(watchdog(Some("8000000"), None), Some(WATCHDOG));
        assert_eq!(watchdog(Some("8000000"), Some("1")), None);
        for usec in [None, Some("0"), Some("soon")] {
            assert_eq!(watchdog(usec, None), None);
        }
    }
}
