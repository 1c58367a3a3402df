//! Keeps neighbors fresh: lists the kernel's, asks what [`crate::neighbors`] plans, on a thread of its own. I/O.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::io::Errno;
use tokio::task::JoinHandle;
use tracing::{debug, error, warn};

use crate::neighbors::{Entry, Pace, Wanted};
use crate::questions::{QuestionError, Questions};
use crate::translate::{AF_INET, AF_INET6, rtm};

/// From one look at the neighbors to the next.
const INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Keeper {
    pace: Pace,
    /// What was complained of already.
    complaints: BTreeSet<String>,
}

impl Keeper {
    fn round(&mut self, now: Duration, wanted: &Wanted) {
        if let Err(error) = self.ask(now, wanted) {
            self.complain(&error);
        }
    }

    fn ask(&mut self, now: Duration, wanted: &Wanted) -> Result<(), QuestionError> {
        let mut route = Questions::open(None)?;
        let mut entries = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut body = [0; 12];
            body[0] = family;
            match route.dump(rtm::GETNEIGH, &body, |message| Entry::decode(message, family)) {
                Ok(of_family) => entries.extend(of_family),
                Err(QuestionError::Absent) => {}
                Err(error) => return Err(error),
            }
        }
        debug!(entries = entries.len(), "looked at the neighbors");
        // What an operator does to an entry that is there, between the list and the request, is lost: a moment.
        for request in self.pace.plan(now, &entries, wanted) {
            debug!(?request, "neighbor");
            let (flags, body) = request.message();
            match route.ask(rtm::NEWNEIGH, flags, &body, |_| None::<()>) {
                // It went or came meanwhile, or its link went.
                Ok(_)
                | Err(QuestionError::Kernel(Errno::NOENT | Errno::EXIST | Errno::NODEV | Errno::NETDOWN)) => {
                }
                Err(error) => self.complain(&error),
            }
        }
        Ok(())
    }

    /// Once about the same thing.
    fn complain(&mut self, error: &QuestionError) {
        let text = error.to_string();
        if self.complaints.insert(text.clone()) {
            warn!(error = text, "neighbors may go stale unseen");
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Refresh {
    /// None while it works.
    keeper: Option<Box<Keeper>>,
    job: Option<JoinHandle<Box<Keeper>>>,
    due: Duration,
}

impl Refresh {
    /// One that begins at once.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { keeper: Some(Box::default()), job: None, due: now }
    }

    /// When [`Self::start`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.job.is_none().then_some(self.due)
    }

    /// Begins a round if one is due.
    pub fn start(&mut self, now: Duration, wanted: impl FnOnce() -> Wanted) {
        if self.due > now || self.job.is_some() {
            return;
        }
        self.due = now + INTERVAL;
        let mut keeper = self.keeper.take().unwrap_or_default();
        let wanted = wanted();
        self.job = Some(tokio::task::spawn_blocking(move || {
            keeper.round(now, &wanted);
            keeper
        }));
    }

    /// Waits for the end of a round. May be dropped at any time.
    pub async fn done(&mut self) {
        let Some(job) = &mut self.job else { return std::future::pending().await };
        match job.await {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) => error!(%error, "a round of neighbors failed"),
        }
        self.job = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_round_is_due_at_once_and_then_every_interval() {
        let start = Duration::from_secs(100);
        let mut refresh = Refresh::new(start);
        assert_eq!(refresh.deadline(), Some(start));
        refresh.start(start, Wanted::default);
        assert_eq!(refresh.deadline(), None, "its end wakes");
        refresh.done().await;
        assert_eq!(refresh.deadline(), Some(start + INTERVAL));
        refresh.start(start + INTERVAL / 2, || panic!("too early"));
        assert_eq!(refresh.deadline(), Some(start + INTERVAL));
    }
}
