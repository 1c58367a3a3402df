//! What guests may cost, and nodes that connect while a router moves: how fast they may knock, how long one that broke a rule
//! waits, how many changes a guest may send, and how much of all that goes to the log. Time is an argument; nothing here waits.
//!
//! Everything is by address before a certificate was shown, and by identity after it: no guest uses up what is another's.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xenflow_proto::{Identity, Name};

/// Connections without a session at once, of one address; one more is closed. A count of all guests would let one
/// of them keep the others out.
pub(crate) const HANDSHAKES: usize = 4;
/// Handshakes a second, of one address, after as many in a row as `HANDSHAKES_BURST`. One costs about a millisecond.
pub(crate) const HANDSHAKES_RATE: u32 = 5;
const HANDSHAKES_BURST: u32 = 10;
/// Lines of the log for one address: so many in a row, then one a second.
const LINES_BURST: u32 = 128;
const LINES_RATE: u32 = 1;
/// The pause after the first broken rule; doubled each time, up to the greatest. A guest waits 5 s for its welcome.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(3200);
/// After so long without a broken rule the pauses begin anew.
const FORGIVEN: Duration = Duration::from_secs(60);
/// That changes wait goes to the log this often at most.
const TOLD: Duration = Duration::from_secs(60);
/// Seconds of changes at the configured rate that may come at once: at the default, a full table of the Internet.
const CHANGES_BURST_S: u32 = 50;
/// Addresses and identities remembered before those that have nothing against them are forgotten.
const REMEMBERED: usize = 1024;

/// Lets a number of things pass in a row, and then so many a second (a virtual schedule, as ITU-T I.371's GCRA).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    /// When everything that passed would have passed at the rate.
    even: Option<Instant>,
}

impl Bucket {
    /// Takes `count` at `rate` a second; so long the next is to wait, where more than `burst` came at once.
    fn charge(&mut self, now: Instant, count: u32, rate: u32, burst: u32) -> Duration {
        let each = Duration::from_secs(1) / rate.max(1);
        let even = self.even.map_or(now, |even| even.max(now)) + each * count;
        self.even = Some(even);
        (even - now).saturating_sub(each * burst)
    }

    /// Takes one, if it may pass now.
    fn take(&mut self, now: Instant, rate: u32, burst: u32) -> bool {
        let before = *self;
        let passes = self.charge(now, 1, rate, burst).is_zero();
        if !passes {
            *self = before;
        }
        passes
    }

    /// What went past the burst counts for nothing.
    fn forgive(&mut self, wait: Duration) {
        self.even = self.even.map(|even| even - wait);
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.even.is_none_or(|even| even <= now)
    }
}

/// A limit that a guest ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// Too many connections without a session.
    Crowded,
    /// Too many connections a second.
    Hasty,
    /// A broken rule or limit of the protocol ended a session.
    Refused,
    /// It did not read what it was told.
    Slow,
    /// Changes waited for the rate of their router.
    Delayed,
}

impl Limit {
    /// The name of its counter, which counts connections, sessions and messages.
    #[must_use]
    pub const fn counter(self) -> &'static str {
        match self {
            Self::Crowded => "guest_connections_crowded",
            Self::Hasty => "guest_connections_hasty",
            Self::Refused => "sessions_refused",
            Self::Slow => "sessions_slow",
            Self::Delayed => "messages_delayed",
        }
    }
}

/// How often each limit was run into: by router, or by nobody known yet.
pub type Hits = BTreeMap<(Option<Name>, Limit), u64>;

#[derive(Debug, Default)]
struct Peer {
    /// Connections without a session.
    open: usize,
    handshakes: Bucket,
    lines: Bucket,
    unlogged: u64,
}

#[derive(Debug, Default)]
struct Account {
    changes: Bucket,
    /// Broken rules in a row.
    broken: u32,
    free_at: Option<Instant>,
    /// When the log was told that its changes wait.
    told: Option<Instant>,
}

#[derive(Debug, Default)]
struct Books {
    peers: HashMap<IpAddr, Peer>,
    accounts: HashMap<Identity, Account>,
    hits: Hits,
}

/// See the module. Clones share what they know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    books: Arc<Mutex<Books>>,
    /// Changes a second of one router; 0: as many as it likes.
    change_rate: u32,
}

impl Limits {
    pub(super) fn new(change_rate: u32) -> Self {
        Self { books: Arc::default(), change_rate }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Books) -> T) -> T {
        look(&mut self.books.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection comes in: it may go on to the handshake, as long as the result lives, or hits a limit.
    pub(crate) fn knock(&self, from: IpAddr, now: Instant) -> Result<Handshake, Limit> {
        let admitted = self.with(|books| {
            if books.peers.len() >= REMEMBERED {
                books.peers.retain(|_, it| it.open > 0 || !it.handshakes.is_idle(now) || it.unlogged > 0);
            }
            let peer = books.peers.entry(from).or_default();
            if peer.open >= HANDSHAKES {
                Err(Limit::Crowded)
            } else if !peer.handshakes.take(now, HANDSHAKES_RATE, HANDSHAKES_BURST) {
                Err(Limit::Hasty)
            } else {
                peer.open += 1;
                Ok(())
            }
        });
        match admitted {
            Ok(()) => Ok(Handshake { limits: self.clone(), peer: from }),
            Err(limit) => {
                self.hit(None, limit);
                Err(limit)
            }
        }
    }

    /// Whether a line about an address may go to the log now, and how many did not since the last.
    pub(crate) fn line(&self, about: IpAddr, now: Instant) -> Option<u64> {
        self.with(|books| {
            let peer = books.peers.entry(about).or_default();
            if peer.lines.take(now, LINES_RATE, LINES_BURST) {
                return Some(std::mem::take(&mut peer.unlogged));
            }
            peer.unlogged += 1;
            None
        })
    }

    /// A session ended in a broken rule: its router's next one waits longer.
    pub(crate) fn broke(&self, who: &Identity, now: Instant) {
        self.with(|books| {
            let account = account(books, who, now);
            if account.free_at.is_some_and(|at| now.saturating_duration_since(at) > FORGIVEN) {
                account.broken = 0;
            }
            let pause = PAUSE_MIN.saturating_mul(1_u32.checked_shl(account.broken).unwrap_or(u32::MAX));
            account.broken = account.broken.saturating_add(1);
            account.free_at = Some(now + pause.min(PAUSE_MAX));
        });
        self.hit(Some(who), Limit::Refused);
    }

    /// How long the session of this identity still has to wait.
    pub(crate) fn pause(&self, who: &Identity, now: Instant) -> Duration {
        let free_at = self.with(|books| books.accounts.get(who).and_then(|account| account.free_at));
        free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// A message of a router came in, with so many changes: so long the next is to wait. Without others, who would
    /// wait for it, it never does.
    pub(super) fn charge(&self, who: &Identity, changes: usize, others: bool, now: Instant) -> Duration {
        if self.change_rate == 0 {
            return Duration::ZERO;
        }
        let count = u32::try_from(changes).unwrap_or(u32::MAX).max(1);
        let burst = self.change_rate.saturating_mul(CHANGES_BURST_S);
        let wait = self.with(|books| {
            let account = account(books, who, now);
            let wait = account.changes.charge(now, count, self.change_rate, burst);
            if !others {
                account.changes.forgive(wait);
            }
            let is_late = others && !wait.is_zero();
            let is_told = account.told.is_some_and(|at| now.saturating_duration_since(at) < TOLD);
            if is_late && !is_told {
                account.told = Some(now);
                let rate = self.change_rate;
                tracing::warn!(name: "limit-reached", router = %who, rate, "changes come faster than the rate a second, and wait");
            }
            if is_late { wait } else { Duration::ZERO }
        });
        if !wait.is_zero() {
            self.hit(Some(who), Limit::Delayed);
        }
        wait
    }

    /// Counts a limit that was run into.
    pub(super) fn hit(&self, who: Option<&Identity>, limit: Limit) {
        let router = match who {
            Some(Identity::Router(name)) => Some(name.clone()),
            Some(Identity::Node(_) | Identity::Operator(_)) | None => None,
        };
        self.with(|books| *books.hits.entry((router, limit)).or_default() += 1);
    }

    /// What was hit since the last call.
    pub(super) fn take_hits(&self) -> Hits {
        self.with(|books| std::mem::take(&mut books.hits))
    }
}

fn account<'a>(books: &'a mut Books, who: &Identity, now: Instant) -> &'a mut Account {
    if books.accounts.len() >= REMEMBERED {
        let is_pausing = |it: &Account| it.free_at.is_some_and(|at| at + FORGIVEN > now);
        books.accounts.retain(|_, it| is_pausing(it) || !it.changes.is_idle(now));
    }
    books.accounts.entry(who.clone()).or_default()
}

/// A connection without a session, until it is dropped.
#[derive(Debug)]
pub(crate) struct Handshake {
    limits: Limits,
    peer: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.limits.with(|books| {
            if let Some(peer) = books.peers.get_mut(&self.peer) {
                peer.open -= 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 1, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 1, 2));

    fn router(name: &str) -> Identity {
        Identity::Router(name.parse().unwrap())
    }

    #[test]
    fn an_address_that_knocks_too_fast_waits_and_no_other_does() {
        let limits = Limits::default();
        let mut now = Instant::now();
        let knock = |from, now| limits.knock(from, now).map(drop);
        for _ in 0..HANDSHAKES_BURST {
            assert_eq!(knock(HOST, now), Ok(()));
        }
        assert_eq!(knock(HOST, now), Err(Limit::Hasty));
        assert_eq!(knock(OTHER, now), Ok(()));
        // What was refused costs nothing: the rate is kept, no less.
        let mut passed = 0;
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            passed += u32::from(knock(HOST, now).is_ok());
        }
        assert_eq!(passed, HANDSHAKES_RATE);
        let hits = limits.take_hits();
        assert_eq!(hits, [((None, Limit::Hasty), u64::from(1001 - HANDSHAKES_RATE))].into());
        assert_eq!(limits.take_hits(), Hits::new());
    }

    #[test]
    fn connections_without_a_session_are_few_until_they_go() {
        let limits = Limits::default();
        let now = Instant::now();
        let mut open: Vec<Handshake> = (0..HANDSHAKES).map(|_| limits.knock(HOST, now).unwrap()).collect();
        assert_eq!(limits.knock(HOST, now).map(drop), Err(Limit::Crowded));
        open.pop();
        assert_eq!(limits.knock(HOST, now).map(drop), Ok(()));
    }

    #[test]
    fn whoever_breaks_rules_waits_ever_longer_until_it_is_forgiven() {
        let limits = Limits::default();
        let (evil, good) = (router("evil"), router("good"));
        let mut now = Instant::now();
        for ms in [100, 200, 400, 800, 1600, 3200, 3200] {
            limits.broke(&evil, now);
            assert_eq!(limits.pause(&evil, now), Duration::from_millis(ms));
            assert_eq!(limits.pause(&good, now), Duration::ZERO);
            now += Duration::from_millis(ms);
            assert_eq!(limits.pause(&evil, now), Duration::ZERO);
        }
        now += FORGIVEN + Duration::from_millis(1);
        limits.broke(&evil, now);
        assert_eq!(limits.pause(&evil, now), PAUSE_MIN);
        assert_eq!(limits.take_hits(), [((Some("evil".parse().unwrap()), Limit::Refused), 8)].into());
    }

    #[test]
    fn changes_keep_the_rate_after_a_table_of_them() {
        let limits = Limits::new(1000);
        let who = router("r1");
        let now = Instant::now();
        let charge = |who: &Identity, changes, now| limits.charge(who, changes, true, now);
        assert_eq!(charge(&who, 50_000, now), Duration::ZERO, "the burst");
        assert_eq!(charge(&who, 500, now), Duration::from_millis(500));
        assert_eq!(charge(&who, 500, now + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(charge(&router("r2"), 50_000, now), Duration::ZERO, "each its own");
        assert_eq!(limits.take_hits(), [((Some("r1".parse().unwrap()), Limit::Delayed), 1)].into());
        assert_eq!(Limits::new(0).charge(&who, usize::MAX, true, now), Duration::ZERO);
    }

    #[test]
    fn a_router_alone_does_not_wait_nor_pay_for_it_later() {
        let limits = Limits::new(1000);
        let who = router("r1");
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(limits.charge(&who, 50_000, false, now), Duration::ZERO);
        }
        assert_eq!(limits.take_hits(), Hits::new());
        // Another router comes: the rate holds from now on.
        assert_eq!(limits.charge(&who, 500, true, now), Duration::from_millis(500));
    }

    #[test]
    fn the_log_is_not_flooded_and_says_what_it_left_out() {
        let limits = Limits::default();
        let now = Instant::now();
        let said = (0..1000).filter(|_| limits.line(HOST, now).is_some()).count();
        assert_eq!(said as u32, LINES_BURST);
        let later = now + Duration::from_secs(1);
        assert_eq!(limits.line(HOST, later), Some(u64::from(1000 - LINES_BURST)));
        assert_eq!(limits.line(HOST, later), None);
        assert_eq!(limits.line(OTHER, now), Some(0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limits = Limits::new(1000);
        let now = Instant::now();
        for number in 0..3 * REMEMBERED as u32 {
            let from = IpAddr::from(number.to_be_bytes());
            // Each comes long after the one before.
            let now = now + Duration::from_secs(number.into());
            drop(limits.knock(from, now));
            limits.charge(&router(&format!("r{number}")), 1, true, now);
        }
        limits.with(|books| {
            assert!(books.peers.len() <= REMEMBERED, "{}", books.peers.len());
            assert!(books.accounts.len() <= REMEMBERED, "{}", books.accounts.len());
        });
    }
}
