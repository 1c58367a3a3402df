//! Guests' sessions: who may come in, in which order they speak, and what is taken from them.

use std::net::IpAddr;

use xenflow_flow_app::{Attachment, RouterId};
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::{
    GuestMessage, Hello, HostMessage, MAX_CHANGES, RefusalReason, VERSION, Welcome,
};
use xenflow_proto::{Identity, MacAddr, Seq, control};

use super::{Core, Effect, Session, SessionId, Stage, WINDOW};

impl Core {
    pub(super) fn open(&mut self, id: SessionId, identity: Identity, peer: IpAddr, hello: &Hello) {
        let router = match self.admit(&identity, peer, hello) {
            Ok(router) => router,
            Err((reason, detail)) => {
                self.effects.push(Effect::Refuse(id, reason, detail));
                return;
            }
        };
        let older: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.router == router)
            .map(|(older, _)| *older)
            .collect();
        for older in older {
            self.refuse(older, RefusalReason::Replaced, format!("a newer session came from {peer}"));
        }
        let session = Session { router, last: Seq(0), acked: Seq(0), stage: Stage::Welcomed };
        self.sessions.insert(id, session);
        let welcome = Welcome {
            version: VERSION,
            node: self.node.clone(),
            max_frame_bytes: MAX_FRAME as u32,
            max_changes: MAX_CHANGES as u32,
            window: WINDOW,
            held: None,
        };
        self.effects.push(Effect::Tell(id, HostMessage::Welcome(welcome)));
    }

    /// Whether a guest may speak for a router: by its certificate, and by the port it speaks from.
    fn admit(
        &self,
        identity: &Identity,
        peer: IpAddr,
        hello: &Hello,
    ) -> Result<RouterId, (RefusalReason, String)> {
        let Identity::Router(name) = identity else {
            return Err((
                RefusalReason::Identity,
                format!("the certificate is of {identity}, not of a router"),
            ));
        };
        if hello.router != *name {
            let detail = format!("router {} is not the certificate's, which is of {identity}", hello.router);
            return Err((RefusalReason::Identity, detail));
        }
        if !hello.versions.contains(&VERSION) {
            let detail = format!("protocol versions {:?}, this host speaks {VERSION}", hello.versions);
            return Err((RefusalReason::Version, detail));
        }
        let Some(router) = self.desired.as_ref().and_then(|desired| desired.routers.get(name)) else {
            return Err((RefusalReason::UnknownRouter, format!("router {name} is not configured here")));
        };
        let id = RouterId(router.id.get());
        let mut vifs = self.app.topology().vifs_of(id);
        let control = vifs.find(|(_, vif)| vif.attachment == Attachment::Control && vif.port.is_some());
        let Some((_, vif)) = control else {
            let detail = format!("router {name} has no control vif plugged in here");
            return Err((RefusalReason::Identity, detail));
        };
        if !is_address_of(vif.mac, peer) {
            let detail = format!("{peer} is not the address of router {name}'s control vif {}", vif.mac);
            return Err((RefusalReason::Identity, detail));
        }
        Ok(id)
    }

    pub(super) fn said(&mut self, id: SessionId, message: GuestMessage) {
        if !self.sessions.contains_key(&id) {
            // It was refused; what it had sent before it knew is of no more use.
            return;
        }
        match self.take(id, message) {
            Ok(()) => {}
            Err((reason, detail)) => self.refuse(id, reason, detail),
        }
    }

    fn take(&mut self, id: SessionId, message: GuestMessage) -> Result<(), (RefusalReason, String)> {
        let broken = |detail: String| Err((RefusalReason::Protocol, detail));
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let router = session.router;
        let (seq, stage) = match &message {
            GuestMessage::Hello(_) => return broken("a second hello".into()),
            GuestMessage::Ping(token) => {
                self.effects.push(Effect::Tell(id, HostMessage::Pong(*token)));
                return Ok(());
            }
            GuestMessage::Pong(_) | GuestMessage::Renew => return Ok(()),
            GuestMessage::Resume(_) => return broken("nothing is held that could be resumed".into()),
            GuestMessage::SnapshotBegin(seq) => (*seq, Stage::Welcomed),
            GuestMessage::Changes { seq, .. } if session.stage == Stage::Live => (*seq, Stage::Live),
            GuestMessage::Changes { seq, .. } | GuestMessage::SnapshotEnd(seq) => (*seq, Stage::Snapshot),
        };
        if seq != session.last.next() {
            return broken(format!("sequence number {seq} after {}", session.last));
        }
        if stage != session.stage {
            return broken(format!("message {seq} is out of place: {:?}", session.stage));
        }
        if seq.0 - session.acked.0 > u64::from(WINDOW) {
            return broken(format!(
                "{seq} is more than {WINDOW} after {}, the last acknowledged",
                session.acked
            ));
        }
        session.last = seq;
        match message {
            GuestMessage::SnapshotBegin(_) => {
                session.stage = Stage::Snapshot;
                self.app.begin_snapshot(router);
            }
            GuestMessage::SnapshotEnd(_) => {
                session.stage = Stage::Live;
                self.app.end_snapshot(router);
            }
            GuestMessage::Changes { changes, .. } => {
                for change in changes {
                    if let Err(error) = self.app.apply(router, change) {
                        return Err((RefusalReason::Limit, error.to_string()));
                    }
                }
            }
            GuestMessage::Hello(_)
            | GuestMessage::Resume(_)
            | GuestMessage::Renew
            | GuestMessage::Ping(_)
            | GuestMessage::Pong(_) => {}
        }
        if self.sessions.get(&id).is_some_and(|session| session.stage == Stage::Snapshot) {
            // Within a snapshot there is nothing to confirm but that it was taken.
            self.ack(id, seq);
        } else {
            let mark = self.next_mark;
            self.next_mark += 1;
            self.marks.insert(mark, (id, seq));
            self.app.mark(router, mark);
        }
        Ok(())
    }
}

/// The address belongs to the control vif with this MAC; the switch lets no other source through.
fn is_address_of(mac: MacAddr, peer: IpAddr) -> bool {
    match peer {
        IpAddr::V4(addr) => addr == control::guest_ipv4(mac),
        IpAddr::V6(addr) => addr == control::guest_ipv6(mac),
    }
}
