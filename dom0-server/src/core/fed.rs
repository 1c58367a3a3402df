//! Tables that come from the source of a move: a session like a guest's, but that another node speaks for the guest, and holds no
//! place of one. Once the guest itself speaks here, what the other node says of its tables counts no more.

use xenflow_flow_app::RouterId;
use xenflow_proto::digest::Digest;
use xenflow_proto::message::{GuestMessage, RefusalReason};
use xenflow_proto::node::{Held, SourceMessage};
use xenflow_proto::{Name, Seq};

use super::{Core, Effect, Session, SessionId, Stage, ToPeer};
use crate::migration::standby;

/// What a session of a node has beside a guest's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    /// The migration.
    pub(super) number: u64,
    /// The last end of the tables, and their digest there.
    pub(super) end: Option<(Seq, Digest)>,
    /// Their digest here, when that was taken in.
    pub(super) own: Option<Digest>,
    /// The guest speaks here itself.
    pub(super) is_void: bool,
}

impl Core {
    /// The node that a router leaves is connected, and may speak for it: the tables that are held.
    pub(super) fn open_source(&mut self, id: SessionId, router: &Name, number: u64) {
        let known = self.desired.as_ref().and_then(|desired| desired.routers.get(router));
        let known = known.map(|router| RouterId(router.id.get())).filter(|id| self.app.router(*id).is_some());
        let Some(router) = known else {
            let detail = format!("router {router} is not configured here");
            self.effects.push(Effect::Refuse(id, RefusalReason::UnknownRouter, detail));
            return;
        };
        let is_older = |session: &Session| session.router == router && session.source.is_some();
        let older: Vec<SessionId> =
            self.sessions.iter().filter(|(_, session)| is_older(session)).map(|(id, _)| *id).collect();
        for older in older {
            let detail = "a newer connection about the same router".to_owned();
            self.end(older);
            self.effects.push(Effect::Refuse(older, RefusalReason::Replaced, detail));
        }
        let boot = self.app.boot_of(router);
        let held = boot.and_then(|boot_id| Some(Held { boot_id, digest: self.app.held(router, &boot_id)? }));
        let source = Source { number, end: None, own: None, is_void: self.has_session(router) };
        let stage = Stage::Welcomed { may_resume: held.is_some() };
        let session = Session::new(router, boot.unwrap_or_default(), stage, self.now);
        self.sessions.insert(id, Session { source: Some(source), ..session });
        self.effects.push(Effect::Peer(ToPeer::Welcome(id, held)));
    }

    /// It says something of the tables.
    pub(super) fn source_said(&mut self, id: SessionId, message: SourceMessage) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(source) = &mut session.source else { return };
        let message = match message {
            SourceMessage::SnapshotBegin { seq, boot_id } => {
                session.boot_id = boot_id;
                (source.end, source.own) = (None, None);
                session.stage = Stage::Welcomed { may_resume: false };
                GuestMessage::SnapshotBegin(seq)
            }
            SourceMessage::Resume(seq) => GuestMessage::Resume(seq),
            SourceMessage::Changes { seq, changes } => GuestMessage::Changes { seq, changes },
            SourceMessage::SnapshotEnd { seq, digest } => {
                source.end = Some((seq, digest));
                GuestMessage::SnapshotEnd(seq)
            }
            SourceMessage::Hello(_)
            | SourceMessage::Punts { .. }
            | SourceMessage::EndMark(_)
            | SourceMessage::Megaflows(_)
            | SourceMessage::Ping(_)
            | SourceMessage::Pong(_) => return,
        };
        if source.is_void {
            self.skip(id, &message);
        } else {
            self.said(id, message);
        }
    }

    /// Takes notice of a message that counts for nothing.
    fn skip(&mut self, id: SessionId, message: &GuestMessage) {
        let (GuestMessage::SnapshotBegin(seq)
        | GuestMessage::Resume(seq)
        | GuestMessage::SnapshotEnd(seq)
        | GuestMessage::Changes { seq, .. }) = message
        else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.last = *seq;
        }
        self.ack(id, *seq);
        self.effects.push(Effect::Taken(id));
    }

    /// The guest speaks here from now on: nobody else does.
    pub(super) fn void_sources(&mut self, router: RouterId) {
        for session in self.sessions.values_mut().filter(|session| session.router == router) {
            if let Some(source) = &mut session.source {
                source.is_void = true;
                session.rest = Vec::new().into_iter();
                session.is_sweeping = false;
            }
        }
    }

    /// The end of a source's tables was taken in: what is held then.
    pub(super) fn source_ended(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(source) = &mut session.source {
            source.own = self.app.held(session.router, &session.boot_id);
        }
    }

    /// The switch has confirmed all up to the last acknowledgement: if that is the end of a source's tables, they are staged if they
    /// are the same here.
    pub(super) fn look_at_source(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (router, acked) = (session.router, session.acked);
        let Some(source) = &mut session.source else { return };
        let Some((seq, said)) = source.end.filter(|(seq, _)| *seq <= acked && !source.is_void) else {
            return;
        };
        source.end = None;
        if source.own == Some(said) {
            self.moves.staged.insert(router, source.number);
            if standby::is_standby(source.number) {
                let router = self.router_name(router);
                tracing::info!(name: "standby-ready", router, "the router's tables are here for when it comes");
            }
            self.effects.push(Effect::Peer(ToPeer::Staged(id, seq, said)));
            self.set_topology();
        } else {
            let (own, said) = (show(source.own), show(Some(said)));
            let detail = format!("the tables are not the same: {own} here, {said} at the source");
            self.refuse(id, RefusalReason::Protocol, detail);
        }
    }
}

fn show(digest: Option<Digest>) -> String {
    digest.map_or("incomplete".to_owned(), |it| format!("{} objects, sum {:016x}", it.objects, it.sum))
}
