//! When this router's certificate is renewed over the session. What is asked of it is for [`crate::renew`] to say.

use std::time::Duration;

use tracing::{debug, info, warn};
use xenflow_proto::message::Renewed;

use crate::config::Config;
use crate::connection::chain;
use crate::renew::{self, ASK_AGAIN};

/// Somebody else may put another certificate there, or set the clock.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug)]
pub(super) struct Renewal {
    due: Duration,
    asked: bool,
}

impl Renewal {
    pub(super) fn new(now: Duration) -> Self {
        Self { due: now, asked: false }
    }

    /// When [`Self::is_due`] is to be asked, while there is a session.
    pub(super) fn deadline(&self) -> Duration {
        self.due
    }

    /// The host is to be asked for another certificate now.
    pub(super) fn is_due(&mut self, config: &Config, now: Duration) -> bool {
        if now < self.due {
            return false;
        }
        match renew::current(config) {
            Ok(validity) => {
                let wait = renew::due(validity, renew::now());
                self.asked = wait.is_zero();
                self.due = now + if self.asked { ASK_AGAIN } else { wait.min(LOOK_AGAIN) };
            }
            Err(error) => {
                warn!(error = chain(&error), "nobody knows when the certificate ends");
                self.asked = false;
                self.due = now + LOOK_AGAIN;
            }
        }
        self.asked
    }

    /// The host's answer.
    pub(super) fn heard(&mut self, config: &Config, renewed: &Renewed, now: Duration) {
        if !std::mem::take(&mut self.asked) {
            debug!("a certificate that nobody asked for");
            return;
        }
        match renew::install(config, renewed, renew::now()) {
            Ok(validity) => {
                info!(not_after = validity.not_after.as_secs(), "the certificate was renewed");
                self.due = now + ASK_AGAIN;
            }
            Err(error) => warn!(error = chain(&error), "the certificate was not renewed"),
        }
    }
}
