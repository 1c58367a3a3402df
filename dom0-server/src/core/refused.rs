//! What the switch refuses, and when it is asked again.
//!
//! What is refused of a router's flows the flow app decides otherwise, and its guest is told (`App::refuse`). The rest,
//! as a flow of the topology, is left out while the switch is the same one.

use std::time::Duration;

use openflow::ErrorCode;

use super::{BatchId, Core};

/// Until what was refused is tried again, which takes a dump of all that the switch holds; doubled each time, up to
/// the greatest. There may be room by then.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// When what was refused is tried again.
#[derive(Debug, Default)]
pub(super) struct Retry {
    at: Option<Duration>,
    /// How often it was in vain.
    times: u32,
}

impl Core {
    /// Of a batch that was not taken, what is to blame is decided otherwise or left out. Of the rest, some may have been
    /// overtaken by a later batch that was taken, so it is not just sent again: what the switch holds decides.
    pub(super) fn refused(&mut self, id: BatchId, culprits: &[(usize, ErrorCode)]) {
        let Some(batch) = self.in_flight.get(&id) else { return };
        for (index, reason) in culprits {
            let Some(change) = batch.changes.get(*index) else { continue };
            if self.lacking.strip(&mut change.clone()) {
                // It was sent before its meter was refused.
                continue;
            }
            if self.app.refuse(&batch.changes, *index, *reason) {
                tracing::error!(name: "problem", %reason, ?change, "the switch refuses a flow: the guest forwards in its place");
            } else {
                tracing::error!(name: "problem", %reason, ?change, "the switch refuses a flow: it is left out");
                self.refused.push(change.clone());
            }
        }
        if culprits.is_empty() {
            tracing::error!(name: "problem", batch = id.0, "the switch refuses a bundle and names no flow: starting over");
            self.retry_later();
        } else {
            self.start_over();
        }
    }

    /// Asks the switch again for what it refused, every now and then.
    pub(super) fn retry_refused(&mut self, now: Duration) {
        if !self.app.has_refused() {
            if self.is_in_step() {
                self.retry = Retry::default();
            }
            return;
        }
        let Retry { at, times } = &mut self.retry;
        match *at {
            None => {
                let pause = RETRY_MIN.saturating_mul(1_u32.checked_shl(*times).unwrap_or(u32::MAX));
                *at = Some(now + pause.min(RETRY_MAX));
            }
            Some(due) if due <= now => {
                self.retry = Retry { at: None, times: times.saturating_add(1) };
                self.app.forgive();
                self.start_over();
            }
            Some(_) => {}
        }
    }
}
