//! Acknowledgements: what the switch has confirmed, and which routes the host does not forward by.

use std::collections::BTreeSet;

use xenflow_flow_app::{Answer, RouterId};
use xenflow_proto::message::{HostMessage, MAX_REJECTED};
use xenflow_proto::{Key, Seq};

use super::{Core, Effect, SessionId};

impl Core {
    /// The switch has confirmed what stands before these marks.
    pub(super) fn acknowledge(&mut self, reached: Vec<(RouterId, u64)>) {
        let mut sessions = BTreeSet::new();
        for (router, mark) in reached {
            self.progress.router_confirmed(mark);
            let Some((id, seq)) = self.marks.remove(&mark) else { continue };
            let answers = self.app.take_answers(router, mark);
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            // A mark that was asked for again may come after a later one.
            session.confirmed = session.confirmed.max(seq);
            session.answers.extend(answers);
            sessions.insert(id);
        }
        for id in sessions {
            self.tell_acks(id);
        }
    }

    /// A message needs no confirmation of the switch.
    pub(super) fn ack(&mut self, id: SessionId, seq: Seq) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.confirmed = session.confirmed.max(seq);
            self.tell_acks(id);
        }
    }

    /// The answers last told to a guest are out: the next may follow.
    pub(super) fn told(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.is_telling = false;
            self.tell_acks(id);
        }
    }

    /// Tells a guest what there is to tell: of the answers as many as a message takes, until these are out. The
    /// number comes with the last of them: what it stands for and is not rejected by then is forwarded.
    fn tell_acks(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.is_telling) else { return };
        if session.source.is_some() {
            // Nobody asks on behalf of the guest, who is told in its own session.
            session.answers.clear();
        }
        let (mut rejected, mut accepted) = (Vec::new(), Vec::new());
        while rejected.len() + accepted.len() < MAX_REJECTED
            && let Some((key, answer)) = session.answers.pop_first()
        {
            match answer {
                Answer::Rejected(why) => rejected.push((Key::Route(key), why.to_string())),
                Answer::Accepted => accepted.push(Key::Route(key)),
            }
        }
        session.is_telling = !rejected.is_empty() || !accepted.is_empty();
        let seq = if session.answers.is_empty() { session.confirmed } else { session.acked };
        if seq > session.acked || session.is_telling {
            session.acked = seq;
            self.effects.push(Effect::Tell(id, HostMessage::Ack { seq, rejected, accepted }));
            self.look_at_source(id);
        }
    }

    /// Sets marks for answers that no message of a guest has caused.
    pub(super) fn mark_answers(&mut self) {
        let live = self.sessions.iter().filter(|(_, session)| session.is_live_guest());
        let wanting: Vec<(SessionId, RouterId)> = live
            .map(|(id, session)| (*id, session.router))
            .filter(|(_, router)| self.app.wants_mark(*router))
            .collect();
        for (id, router) in wanting {
            self.mark(id, router, Seq(0));
        }
    }

    /// Asks for a confirmation of everything up to now, which stands for that message.
    pub(super) fn mark(&mut self, id: SessionId, router: RouterId, seq: Seq) {
        let mark = self.next_mark;
        self.next_mark += 1;
        self.marks.insert(mark, (id, seq));
        self.app.mark(router, mark);
    }
}
