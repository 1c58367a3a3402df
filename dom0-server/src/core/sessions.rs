//! Guests' sessions: who may come in, in which order they speak, and what is taken from them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use xenflow_flow_app::{Attachment, RouterId};
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::{
    GuestMessage, Hello, HostMessage, MAX_CHANGES, RefusalReason, VERSION, Welcome,
};
use xenflow_proto::{Identity, MacAddr, Seq, control};

use super::{Core, Effect, SWEEP, Session, SessionId, Stage, WINDOW};

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
            .filter(|(_, session)| session.router == router && session.source.is_none())
            .map(|(older, _)| *older)
            .collect();
        for older in older {
            self.end(older);
            let detail = format!("a newer session came from {peer}");
            self.effects.push(Effect::Refuse(older, RefusalReason::Replaced, detail));
        }
        let held = self.app.held(router, &hello.boot_id);
        let stage = Stage::Welcomed { may_resume: held.is_some() };
        let session = Session::new(router, hello.boot_id, stage, self.now);
        self.sessions.insert(id, session);
        self.lone.remove(&router);
        let welcome = Welcome {
            version: VERSION,
            node: self.node.clone(),
            max_frame_bytes: MAX_FRAME as u32,
            max_changes: MAX_CHANGES as u32,
            window: WINDOW,
            held,
        };
        self.effects.push(Effect::Tell(id, HostMessage::Welcome(welcome)));
        self.void_sources(router);
        self.has_spoken(router);
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
        debug_assert!(!self.turns.contains(&id), "one message of a session at a time");
        match self.take(id, message) {
            Ok(true) => self.go_on(id),
            Ok(false) => self.effects.push(Effect::Taken(id)),
            Err((reason, detail)) => self.refuse(id, reason, detail),
        }
    }

    /// Tells guests which neighbors the host sends to, where these are others than before.
    pub(super) fn tell_in_use(&mut self) {
        let mut in_use = self.counters.in_use(|flow| self.app.neighbor_of(flow));
        let live = self.sessions.iter_mut().filter(|(_, session)| session.is_live_guest());
        for (id, session) in live {
            let now = in_use.remove(&session.router).unwrap_or_default();
            if now != session.in_use {
                session.in_use.clone_from(&now);
                self.effects.push(Effect::Tell(*id, HostMessage::InUse(now)));
            }
        }
    }

    /// The next session takes its turn, and the next router that is swept.
    pub(super) fn turn(&mut self) {
        if let Some(id) = self.turns.pop_front() {
            self.go_on(id);
        }
        if let Some(router) = self.sweeps.pop_front()
            && self.app.go_on_sweeping(router, SWEEP)
        {
            self.sweeps.push_back(router);
        }
    }

    /// Takes in some more of a session's last message. The rest of a long one waits for its turn.
    fn go_on(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (router, seq) = (session.router, session.last);
        for change in session.rest.by_ref().take(self.slice) {
            if let Err(error) = self.app.apply(router, change) {
                session.rest = Vec::new().into_iter();
                self.refuse(id, RefusalReason::Limit, error.to_string());
                return;
            }
        }
        if session.is_sweeping {
            session.is_sweeping = self.app.go_on_sweeping(router, SWEEP);
        }
        if session.is_sweeping || session.rest.len() > 0 {
            self.turns.push_back(id);
            return;
        }
        let (stage, is_complete) = (session.stage, std::mem::take(&mut session.is_ending_snapshot));
        if is_complete {
            let routes = self.app.router(router).map_or(0, |status| status.rib.routes);
            let router = self.router_name(router);
            tracing::info!(name: "snapshot-complete", session = id.0, router, routes, "the guest has told its tables");
            self.source_ended(id);
        }
        if matches!(stage, Stage::Snapshot | Stage::Resumed { is_synced: false }) {
            // There is nothing yet for the switch to confirm but that it was taken.
            self.ack(id, seq);
        } else {
            self.mark(id, router, seq);
        }
        self.held_back.insert(id);
    }

    /// Lets sessions go on for whose routers not too much is due, and none that presses while the switch rests: what it says
    /// costs the others time as well. While the switch is not there, nothing of that would ever be done.
    pub(super) fn release(&mut self) {
        let (app, backlog, waits) = (&self.app, self.backlog, !self.switch_up || self.waiting);
        let sessions = &self.sessions;
        let too_much = |id: &SessionId| {
            let router = sessions.get(id).map(|session| session.router);
            let is_late =
                |router| app.backlog(router) > backlog || (app.is_resting() && app.is_pressing(router));
            !waits && router.is_some_and(is_late)
        };
        let free = self.held_back.extract_if(.., |id| !too_much(id));
        self.effects.extend(free.map(Effect::Taken));
    }

    /// What is left of the last message of a session that is over. A guest knows what it holds by whole messages, so
    /// it is taken in. A sweep is left off: what is not swept yet is still held, and not confirmed.
    pub(super) fn finish(&mut self, session: Session) {
        for change in session.rest {
            if self.app.apply(session.router, change).is_err() {
                return;
            }
        }
    }

    /// Takes in a message but for its changes. True if it is a sequenced one.
    fn take(&mut self, id: SessionId, message: GuestMessage) -> Result<bool, (RefusalReason, String)> {
        let broken = |detail: String| Err((RefusalReason::Protocol, detail));
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(false) };
        let router = session.router;
        let (seq, fits) = match &message {
            GuestMessage::Hello(_) => return broken("a second hello".into()),
            GuestMessage::Ping(token) => {
                self.effects.push(Effect::Tell(id, HostMessage::Pong(*token)));
                return Ok(false);
            }
            GuestMessage::Pong(_) | GuestMessage::Renew => return Ok(false),
            GuestMessage::Resume(_) if session.stage == (Stage::Welcomed { may_resume: false }) => {
                return broken("nothing is held that could be resumed".into());
            }
            GuestMessage::SnapshotBegin(seq) | GuestMessage::Resume(seq) => {
                (*seq, matches!(session.stage, Stage::Welcomed { .. }))
            }
            GuestMessage::Changes { seq, .. } => (*seq, !matches!(session.stage, Stage::Welcomed { .. })),
            GuestMessage::SnapshotEnd(seq) => {
                (*seq, matches!(session.stage, Stage::Snapshot | Stage::Resumed { .. }))
            }
        };
        if seq != session.last.next() {
            return broken(format!("sequence number {seq} after {}", session.last));
        }
        if !fits {
            return broken(format!("message {seq} is out of place: {}", session.stage.as_str()));
        }
        if seq.0 - session.acked.0 > u64::from(WINDOW) {
            return broken(format!(
                "{seq} is more than {WINDOW} after {}, the last acknowledged",
                session.acked
            ));
        }
        session.last = seq;
        session.spoke = self.now;
        match message {
            GuestMessage::SnapshotBegin(_) => {
                session.stage = Stage::Snapshot;
                self.app.begin_snapshot_of(router, session.boot_id);
            }
            GuestMessage::Resume(_) => {
                let is_synced = self.app.router(router).is_some_and(|status| status.synced);
                session.stage = Stage::Resumed { is_synced };
                self.app.resume(router);
                let router = self.router_name(router);
                tracing::info!(
                    name: "session-resumed",
                    session = id.0,
                    router,
                    "the guest goes on from what is held, and tells what changed"
                );
            }
            GuestMessage::SnapshotEnd(_) => {
                session.stage = Stage::Live;
                session.is_sweeping = true;
                session.is_ending_snapshot = true;
                self.app.begin_sweep(router);
            }
            GuestMessage::Changes { changes, .. } => session.rest = changes.into_iter(),
            GuestMessage::Hello(_) | GuestMessage::Renew | GuestMessage::Ping(_) | GuestMessage::Pong(_) => {}
        }
        Ok(true)
    }
}

impl Session {
    /// One that begins now.
    pub(super) fn new(router: RouterId, boot_id: [u8; 16], stage: Stage, now: Duration) -> Self {
        Self {
            router,
            boot_id,
            last: Seq(0),
            confirmed: Seq(0),
            acked: Seq(0),
            answers: BTreeMap::new(),
            is_telling: false,
            in_use: Vec::new(),
            stage,
            rest: Vec::new().into_iter(),
            is_sweeping: false,
            is_ending_snapshot: false,
            spoke: now,
            source: None,
        }
    }

    /// A guest speaks in it, and has told its tables.
    pub(super) fn is_live_guest(&self) -> bool {
        self.stage == Stage::Live && self.source.is_none()
    }
}

impl Stage {
    /// For the log and the guest.
    fn as_str(self) -> &'static str {
        match self {
            Self::Welcomed { .. } => "neither a snapshot nor a resumption has begun",
            Self::Snapshot => "in a snapshot",
            Self::Resumed { .. } => "in a resumption",
            Self::Live => "after the end of the snapshot",
        }
    }
}

/// The address belongs to the control vif with this MAC; the switch lets no other source through.
fn is_address_of(mac: MacAddr, peer: IpAddr) -> bool {
    match peer {
        IpAddr::V4(addr) => addr == control::guest_ipv4(mac),
        IpAddr::V6(addr) => addr == control::guest_ipv6(mac),
    }
}
