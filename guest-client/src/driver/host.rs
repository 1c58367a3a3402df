//! The way to the host: when to connect, what is heard and said, and how a session ends.
//!
//! Not here: what is said, which [`crate::session`] decides; what the status socket tells of it (`driver`).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::{debug, info, warn};
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::{GuestMessage, HostMessage, Key};

use super::{Driver, Phase};
use crate::connection::{Connection, Found, LinkError, attempt, chain};
use crate::control::Change;
use crate::rejected::SHOWN;
use crate::session::{Acked, Event};
use crate::status::{AckLine, Status};

/// Bytes ready to be sent beyond which no more messages are made: the socket is slower than the window.
const OUT_HIGH: usize = 64 << 10;
/// A session that lived for so long was a good one: the next attempt need not wait.
const GOOD_SESSION: Duration = Duration::from_secs(1);
/// The session's end may take this long when the client stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// After a nudge, an attempt to connect that takes longer than this is given up for a new one, and so is a session
/// whose host has not answered for so long: what they are sent may wait for TCP to repeat it.
const STUCK: Duration = Duration::from_millis(300);

impl Driver {
    /// A change at the control interface may mean another host: look at once.
    pub(super) fn watch_control(&mut self, time: Duration) {
        if !self.mirror.is_trusted() {
            return;
        }
        let change = self.control.look(&self.mirror);
        self.nudge.listen(self.control.listen(&self.mirror));
        let Some(change) = change else { return };
        debug!(control = ?self.control, "control interface changed");
        self.backoff.reset();
        match &mut self.phase {
            Phase::Waiting { until } => *until = time,
            // An attempt that is under way has found the interface before the mirror did.
            Phase::Connecting { .. } if change == Change::First => {}
            Phase::Connecting { task, .. } => {
                task.abort();
                self.phase = Phase::Waiting { until: time };
            }
            Phase::Open(_) if change == Change::Gone => self.lost(LinkError::InterfaceGone, time),
            Phase::Open(connection) => connection.session.probe(time),
        }
    }

    /// The host has no session of this guest, as far as it knew when it sent the nudge.
    pub(super) fn nudged(&mut self, time: Duration) {
        let due = self.nudge.admit(time);
        debug!(wait_ms = due.saturating_sub(time).as_millis(), "nudged");
        match &mut self.phase {
            Phase::Waiting { until } => *until = due.min(*until),
            Phase::Connecting { task, since } if *since + STUCK <= time => {
                task.abort();
                self.phase = Phase::Waiting { until: due };
            }
            Phase::Connecting { .. } => {}
            Phase::Open(connection) => match connection.session.asked() {
                Some(asked) if asked + STUCK <= time => self.lost(LinkError::Nudged, time),
                Some(_) => {}
                None if due <= time => connection.session.probe(time),
                None => {}
            },
        }
    }

    pub(super) fn connect(&mut self, time: Duration) {
        self.look_at_trust(time);
        let trust = || self.trust.current().clone();
        let places = self.control.places(&self.mirror);
        match places.and_then(|places| attempt(&self.config, trust(), places)) {
            Ok(task) => self.phase = Phase::Connecting { task, since: time },
            Err(error) => self.lost(error, time),
        }
    }

    /// A host that counts no more is left at once, and not come back to.
    pub(super) fn look_at_trust(&mut self, time: Duration) {
        let shown = match &self.phase {
            Phase::Open(connection) => Some((connection.chain.as_slice(), connection.shown)),
            Phase::Waiting { .. } | Phase::Connecting { .. } => None,
        };
        if let Some(error) = self.trust.look(&self.config, shown, time) {
            self.lost(LinkError::Distrusted(error), time);
        }
    }

    pub(super) fn connected(&mut self, result: Result<Found, LinkError>, time: Duration) {
        match result {
            Ok((stream, place)) => {
                self.control.connected(&place);
                self.phase = Phase::Open(Box::new(Connection::new(stream, self.hello.clone(), time)));
            }
            Err(error) => self.lost(error, time),
        }
    }

    /// The session or the attempt is over; says why, once, and waits.
    pub(super) fn lost(&mut self, error: LinkError, time: Duration) {
        self.mirror.hang_up();
        // One that ends as soon as it is up will do so again: somebody else may use the same certificate.
        let up_since = if let Phase::Open(connection) = &self.phase { connection.up_since } else { None };
        self.control.lost(up_since.is_some());
        let good = up_since.is_some_and(|since| since + GOOD_SESSION <= time);
        if good {
            self.backoff.reset();
        }
        let wait = if good && error.is_reset() { Duration::ZERO } else { self.backoff.wait() };
        self.phase = Phase::Waiting { until: time + wait };
        let text = chain(&error);
        if self.error.as_ref() != Some(&text) {
            warn!(error = text, "no session with the host");
        } else {
            debug!(error = text, wait_ms = wait.as_millis(), "no session with the host");
        }
        self.error = Some(text);
    }

    pub(super) fn received(&mut self, result: io::Result<usize>, time: Duration) {
        let outcome = match result {
            Ok(0) => Err(LinkError::Closed),
            Ok(_) => self.messages(time),
            Err(error) => Err(LinkError::read(error)),
        };
        if let Err(error) = outcome {
            self.lost(error, time);
        }
    }

    fn messages(&mut self, time: Duration) -> Result<(), LinkError> {
        let Phase::Open(connection) = &mut self.phase else { return Ok(()) };
        while let Some(frame) = connection.decoder.next_frame()? {
            let message = HostMessage::decode(frame)?;
            match connection.session.handle_message(time, message, &mut self.mirror)? {
                None => {}
                Some(Event::Up(node)) => {
                    info!(%node, "session is up");
                    connection.decoder.set_limit(MAX_FRAME);
                    connection.node = Some(node);
                    connection.up_since = Some(time);
                    if self.control.up(&self.mirror) {
                        info!(
                            interface = self.control.name(),
                            "the control interface: a node took the session there"
                        );
                    }
                    self.nudge.listen(self.control.listen(&self.mirror));
                    self.error = None;
                    self.rejected.session_began();
                }
                Some(Event::Acked(step)) => {
                    // Every session is told all of them again.
                    tell_news(step.rejected.iter().filter(|(key, _)| !self.rejected.contains(key)));
                    self.rejected.acknowledged(&step);
                    self.fpm.acknowledged(&step);
                    acknowledged(&self.status, &step, time);
                }
                Some(Event::InUse(neighbors)) => self.in_use = neighbors,
                Some(Event::Renewed(renewed)) => self.renewal.heard(&self.config, &renewed, time),
            }
        }
        Ok(())
    }

    /// Makes messages as long as the window and the socket take them.
    pub(super) fn transmit(&mut self) {
        let Phase::Open(connection) = &mut self.phase else { return };
        while connection.out.len() < OUT_HIGH {
            let Some(message) = connection.session.poll_transmit(&mut self.mirror) else { break };
            if matches!(message, GuestMessage::SnapshotBegin(_) | GuestMessage::Resume(_)) {
                let (start, backlog) = (connection.session.start(), self.mirror.backlog());
                info!(?start, backlog, "the host is brought up to date");
            }
            message.encode(&mut connection.out);
        }
    }

    /// Says what it had begun to say and that it is the end, and hears the host out.
    pub(super) async fn close(&mut self) {
        let Phase::Open(connection) = &mut self.phase else { return };
        let Connection { reader, writer, out, .. } = &mut **connection;
        let leave = async {
            writer.write_all_buf(out).await?;
            writer.shutdown().await?;
            let mut rest = [0; 4096];
            while reader.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, leave).await {
            Ok(Ok(())) => debug!("session closed"),
            Ok(Err(error)) => debug!(%error, "session closed badly"),
            Err(_) => debug!("the host does not close the session"),
        }
    }
}

/// Says what the host does not forward by, the first of it by name.
fn tell_news<'a>(mut rejected: impl Iterator<Item = &'a (Key, String)>) {
    for (key, reason) in rejected.by_ref().take(SHOWN) {
        warn!(?key, reason, "stays with the guest");
    }
    if let more @ 1.. = rejected.count() {
        warn!(more, "stay with the guest, too");
    }
}

fn acknowledged(status: &Status, step: &Acked, time: Duration) {
    status.acked(&AckLine {
        acked: step.seq.0,
        monotonic_ns: nanos(time),
        queued_ns: step.oldest.map(nanos),
        changes: step.changes,
        rejected: step.rejected.len(),
    });
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
