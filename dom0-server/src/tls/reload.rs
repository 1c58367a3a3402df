//! Credentials that change under a running daemon: files are looked at every second, and at SIGHUP. New handshakes use
//! what is there now; a session whose peer does not count any more ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use xenflow_proto::Identity;

use super::own::Own;
use super::{Files, Refusal, Server, Trust};
use crate::chain::Chain;

/// Between two looks at the files.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two warnings of the same.
const REMIND: Duration = Duration::from_secs(86_400);

/// The credentials now, and whoever waits for others.
pub type Current = watch::Receiver<Arc<Server>>;

/// Reads the files again whenever they change, until nobody asks any more. What cannot be used is told, and the
/// credentials stay as they were: nobody who was revoked comes back because a file is broken. A host that has the
/// directory of an authority renews its own certificate.
#[must_use]
pub fn follow(files: Files, server: Server, issuer: Option<PathBuf>) -> Current {
    let (sender, receiver) = watch::channel(Arc::new(server));
    tokio::spawn(run(files, Own::new(issuer), sender));
    receiver
}

async fn run(files: Files, mut own: Own, sender: watch::Sender<Arc<Server>>) {
    // Whatever changed since the first reading is read again: the first stamp is nobody's.
    let mut seen = None;
    let mut failed = None;
    let mut reminded = None;
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !sender.is_closed() {
        let asked = tokio::select! {
            _ = tick.tick() => false,
            () = hung_up(hangup.as_mut()) => true,
        };
        let before = sender.borrow().clone();
        tell_old(&before, &mut reminded);
        own.look(&files, &before).await;
        let stamp = files.stamp();
        if seen == Some(stamp) && !asked {
            continue;
        }
        match files.load_after(Some(&before)) {
            Ok(server) if server.identity == before.identity => {
                // The first look finds what the daemon started with.
                if seen.is_some() {
                    tracing::info!(name: "certificates-read", "certificates, keys and revocation lists were read again");
                }
                tell_idle(&server);
                (seen, failed) = (Some(stamp), None);
                sender.send_replace(Arc::new(server));
            }
            Ok(server) => {
                tracing::error!(identity = %server.identity, "the certificate is of another host: it is not used");
                seen = Some(stamp);
            }
            // Certificate and key cannot be replaced in one step: the second look counts.
            Err(_) if failed != Some(stamp) => failed = Some(stamp),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "what was read before stays in force");
                seen = Some(stamp);
            }
        }
    }
}

async fn hung_up(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn tell_idle(server: &Server) {
    for issuer in server.trust.idle_lists() {
        tracing::warn!(
            issuer,
            "a revocation list is of none of the authorities in ca: it counts only for what an authority below one issued"
        );
    }
}

/// A list that should have been replaced still counts; `last` is when that was told.
fn tell_old(server: &Server, last: &mut Option<Instant>) {
    let due = server.trust.lists().due().filter(|&due| due < OffsetDateTime::now_utc());
    if let Some(due) = due
        && last.is_none_or(|at| at.elapsed() >= REMIND)
    {
        *last = Some(Instant::now());
        tracing::warn!(%due, "a revocation list is older than it should be; what it revokes stays revoked");
    }
}

/// Why a session ends although nothing is wrong with what its peer said.
#[derive(Debug, thiserror::Error)]
#[error("{identity} is trusted no more")]
pub struct Distrusted {
    /// Who.
    pub identity: Identity,
    /// Why.
    #[source]
    pub reason: Refusal,
}

/// What a listener needs of all this.
#[derive(Debug, Clone)]
pub struct Access {
    current: Current,
    issuer: Option<Arc<PathBuf>>,
}

impl Access {
    /// With the directory of the authority that renews guests' certificates, if the host has one.
    #[must_use]
    pub fn new(current: Current, issuer: Option<PathBuf>) -> Self {
        Self { current, issuer: issuer.map(Arc::new) }
    }

    /// For one handshake.
    #[must_use]
    pub fn now(mut self) -> Handshaking {
        let server = self.current.borrow_and_update().clone();
        Handshaking { access: self, server }
    }
}

/// The credentials of one handshake. A change from then on is seen by the session.
#[derive(Debug)]
pub struct Handshaking {
    access: Access,
    server: Arc<Server>,
}

impl Handshaking {
    /// For [`super::accept`].
    #[must_use]
    pub fn config(&self) -> Arc<rustls::ServerConfig> {
        self.server.config.clone()
    }

    /// For [`super::dial`].
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// After it, with the chain that the peer showed.
    #[must_use]
    pub fn peer(self, chain: Option<&[CertificateDer<'static>]>) -> Peer {
        Peer { access: self.access, chain: chain.unwrap_or_default().into(), at: UnixTime::now() }
    }
}

/// Whom a session is with, as the handshake showed it.
#[derive(Debug, Clone)]
pub struct Peer {
    access: Access,
    chain: Arc<[CertificateDer<'static>]>,
    at: UnixTime,
}

impl Peer {
    /// What it showed.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The credentials now.
    #[must_use]
    pub fn server(&self) -> Arc<Server> {
        self.access.current.borrow().clone()
    }

    /// The directory of the authority, if the host has one.
    pub(super) fn issuer(&self) -> Option<Arc<PathBuf>> {
        self.access.issuer.clone()
    }

    /// Waits until the peer would not be let in any more: revoked, or of an authority that is none now. That its
    /// certificate ends meanwhile ends no session: nobody distrusts it, and the next handshake needs a new one anyway.
    pub async fn distrusted(&mut self, identity: &Identity) -> Distrusted {
        self.distrusted_by(identity, Trust::check).await
    }

    /// [`Peer::distrusted`] of a node that this one has connected to.
    pub async fn host_distrusted(&mut self, identity: &Identity) -> Distrusted {
        self.distrusted_by(identity, Trust::check_node).await
    }

    async fn distrusted_by(
        &mut self,
        identity: &Identity,
        check: fn(&Trust, &[CertificateDer<'_>], UnixTime) -> Result<(), Refusal>,
    ) -> Distrusted {
        loop {
            if self.access.current.changed().await.is_err() {
                return std::future::pending().await;
            }
            let server = self.access.current.borrow_and_update().clone();
            if let Err(reason) = check(&server.trust, &self.chain, self.at) {
                return Distrusted { identity: identity.clone(), reason };
            }
        }
    }
}
