//! The guest client without its I/O: the real mirror and session, and what the driver does between them.

use std::time::Duration;

use xenflow_guest_client::mirror::Mirror;
use xenflow_guest_client::obstacles::Survey;
use xenflow_guest_client::rejected::Rejected;
use xenflow_guest_client::session::{Event, Session, SessionError};
use xenflow_proto::message::{Hello, RefusalReason, VERSION};
use xenflow_proto::{GuestMessage, HostMessage};

use crate::kernel::{Kernel, Message, Read};
use crate::world::Faults;

/// From the end of a dump to the audit, at most.
pub(crate) const AUDIT_AFTER: Duration = Duration::from_millis(1500);
/// At least: so often that one runs beside whatever happens.
pub(crate) const AUDIT_SOON: Duration = Duration::from_millis(100);

/// What a session's end means.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The guest tries again.
    Lost,
    /// Somebody broke a rule.
    Broken(String),
}

/// A client, and where it is wrong on purpose.
#[derive(Debug)]
pub(crate) struct Guest {
    boot_id: [u8; 16],
    pub(crate) mirror: Mirror,
    /// What the host leaves to it.
    pub(crate) rejected: Rejected,
    session: Option<Session>,
    /// The dump under way, and whether it can still become whole.
    dump: Option<u32>,
    dumps: u32,
    dump_due: bool,
    audit_after: Duration,
    /// When another one is due by the clock.
    audit_due: Duration,
    pub(crate) audits: u64,
    /// Keys that they repaired.
    pub(crate) repaired: u64,
    /// The socket said that it dropped events, and was not seen empty since.
    congested: bool,
    survey: Option<Survey>,
    faults: Faults,
}

impl Guest {
    pub(crate) fn start(
        boot: u64,
        kernel: &mut Kernel,
        now: Duration,
        audit_after: Duration,
        faults: Faults,
    ) -> Self {
        kernel.reopen();
        let boot_id = (u128::from(boot) << 64 | 0x1234_5678).to_be_bytes();
        Self {
            boot_id,
            mirror: Mirror::new(&boot_id),
            rejected: Rejected::default(),
            session: None,
            dump: None,
            dumps: 0,
            dump_due: true,
            audit_after,
            audit_due: now + audit_after,
            audits: 0,
            repaired: 0,
            congested: false,
            survey: Some(kernel.survey()),
            faults,
        }
    }

    pub(crate) fn boot_id(&self) -> &[u8; 16] {
        &self.boot_id
    }

    /// Reads some messages of the kernel.
    pub(crate) fn read(&mut self, kernel: &mut Kernel, messages: usize, now: Duration) {
        for _ in 0..messages {
            match kernel.socket.read() {
                Read::Message(message) => self.heard(message, now),
                Read::NoBuffers => {
                    self.congested = true;
                    // What the kernel still answers belongs to no dump.
                    self.dump = None;
                    self.mirror.distrust();
                    self.dump_due = true;
                }
                Read::Again => {
                    self.congested = false;
                    self.repaired += self.mirror.take_repaired(now).map_or(0, |found| found.keys);
                    return;
                }
            }
        }
    }

    fn heard(&mut self, message: Message, now: Duration) {
        match message {
            Message::Event(event) => {
                let silent = self.mirror.apply(event, now);
                self.dump_due |= silent && !self.faults.trusts_silence;
            }
            Message::Dumped(number, event) if self.dump == Some(number) => {
                self.mirror.apply_dumped(event, now);
            }
            Message::Done(number, whole) if self.dump == Some(number) => {
                self.dump = None;
                self.audit_due = now + self.audit_after;
                let sure = whole && self.mirror.end_dump(now);
                self.dump_due |= !sure;
                if self.faults.is_hasty {
                    let found = self.mirror.take_repaired(Duration::MAX);
                    self.repaired += found.map_or(0, |found| found.keys);
                }
            }
            Message::Dumped(..) | Message::Done(..) => {}
        }
    }

    /// Starts a dump, if one is due.
    pub(crate) fn dump(&mut self, kernel: &mut Kernel, now: Duration) {
        let is_needed = std::mem::take(&mut self.dump_due);
        let by_clock = self.audit_due <= now && !self.faults.trusts_events;
        if self.dump.is_some() || self.congested || !(is_needed || by_clock) {
            self.dump_due = is_needed;
            return;
        }
        if is_needed {
            self.mirror.begin_dump();
        } else {
            self.audits += 1;
            self.mirror.begin_audit();
        }
        self.dumps += 1;
        self.dump = Some(self.dumps);
        kernel.begin_dump(self.dumps);
    }

    /// A survey that looked earlier reports, and another looks.
    pub(crate) fn survey(&mut self, kernel: &Kernel, now: Duration) {
        if let Some(survey) = self.survey.replace(kernel.survey()) {
            self.mirror.apply_survey(&survey, now);
        }
    }

    /// Nothing is asked of the kernel, and nothing is missing.
    pub(crate) fn has_settled(&self) -> bool {
        self.dump.is_none() && !self.dump_due && !self.congested && self.mirror.is_trusted()
    }

    /// A connection is made.
    pub(crate) fn connect(&mut self, now: Duration) {
        let hello = Hello {
            versions: vec![VERSION],
            router: "r1".parse().unwrap(),
            boot_id: self.boot_id,
            agent: "model".into(),
        };
        self.session = Some(Session::new(now, hello));
    }

    /// The connection is gone.
    pub(crate) fn disconnect(&mut self) {
        self.session = None;
        self.mirror.hang_up();
    }

    /// Something tells that the host may be another now.
    pub(crate) fn probe(&mut self, now: Duration) {
        if let Some(session) = &mut self.session {
            session.probe(now);
        }
    }

    pub(crate) fn next_message(&mut self) -> Option<GuestMessage> {
        self.session.as_mut()?.poll_transmit(&mut self.mirror)
    }

    pub(crate) fn hear(&mut self, message: HostMessage, now: Duration) -> Result<(), Ended> {
        let Some(session) = &mut self.session else { return Ok(()) };
        match session.handle_message(now, message, &mut self.mirror) {
            Ok(Some(Event::Up(_))) => {
                self.rejected.session_began();
                Ok(())
            }
            Ok(Some(Event::Acked(mut step))) => {
                if self.faults.overlooks {
                    step.accepted.clear();
                }
                self.rejected.acknowledged(&step);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(SessionError::Refused {
                reason: RefusalReason::Replaced | RefusalReason::Identity | RefusalReason::UnknownRouter,
                ..
            }) => Err(Ended::Lost),
            Err(error) => Err(Ended::Broken(error.to_string())),
        }
    }

    /// The session is over because the host is silent.
    pub(crate) fn is_over(&mut self, now: Duration) -> bool {
        self.session.as_mut().is_some_and(|session| session.handle_timeout(now).is_err())
    }

    /// Everything was told, and the host confirmed it.
    pub(crate) fn is_quiet(&self) -> bool {
        let done = |session: &Session| session.is_live() && session.acked() == session.sent();
        self.has_settled() && self.mirror.backlog() == 0 && self.session.as_ref().is_some_and(done)
    }
}
