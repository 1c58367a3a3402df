//! Renewal of guests' certificates over their sessions, by a host that has an authority's directory. Owns who gets what
//! how often; signing and recording are in `pki`.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use tokio::time::Instant;
use xenflow_proto::Identity;
use xenflow_proto::message::{MAX_CERTIFICATE, MAX_CERTIFICATES, Renewed};

use super::reload::Peer;
use super::{Refusal, Server};
use crate::chain::Chain;
use crate::pki::{PkiError, Store};

/// A session gets no more than one certificate in this time.
const PAUSE: Duration = Duration::from_secs(60);

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReissueError {
    #[error("this host has no authority (issuer_dir)")]
    NoIssuer,
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the daemon stops")]
    Stopped,
}

/// Has the authority in `dir` issue a certificate in place of the first of `chain`, for the same identity and key.
pub(super) async fn reissue(
    dir: &Path,
    chain: &[CertificateDer<'static>],
) -> Result<CertificateDer<'static>, ReissueError> {
    let dir = dir.to_owned();
    let old = chain.first().cloned().ok_or(PkiError::Malformed)?;
    let signing =
        tokio::task::spawn_blocking(move || Store::open(&dir)?.reissue(&old, OffsetDateTime::now_utc()));
    Ok(signing.await.map_err(|_| ReissueError::Stopped)??)
}

/// Why a guest is not answered.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("it asked less than {} s ago", PAUSE.as_secs())]
    TooSoon,
    #[error("a certificate of the authority in issuer_dir would be refused here")]
    Refused(#[source] Refusal),
    #[error(
        "this host's own certificate is not of the authorities in ca, which the guest would trust from then on"
    )]
    Host(#[source] Refusal),
    #[error("more than {MAX_CERTIFICATES} authorities, or one of more than {MAX_CERTIFICATE} bytes")]
    TooLarge,
    #[error(transparent)]
    Reissue(#[from] ReissueError),
}

/// The renewals of one session.
#[derive(Debug)]
pub struct Renewals {
    peer: Peer,
    last: Option<Instant>,
}

impl Renewals {
    /// None yet.
    #[must_use]
    pub const fn new(peer: Peer) -> Self {
        Self { peer, last: None }
    }

    /// A certificate in place of the one that the peer showed, and whom to trust. If there is none, the log says why.
    pub async fn answer(&mut self, router: &Identity) -> Option<Renewed> {
        match self.renew().await {
            Ok(renewed) => {
                tracing::info!(name: "certificate-renewed", %router, "its certificate was renewed");
                Some(renewed)
            }
            Err(RenewalError::TooSoon) => {
                // Who asks all the time neither fills the log nor burns the processor.
                tracing::debug!(%router, "its certificate is not renewed so often");
                tokio::time::sleep(Duration::from_secs(1)).await;
                None
            }
            Err(error) => {
                tracing::warn!(%router, reason = %Chain(&error), "its certificate was not renewed");
                None
            }
        }
    }

    async fn renew(&mut self) -> Result<Renewed, RenewalError> {
        if self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            return Err(RenewalError::TooSoon);
        }
        self.last = Some(Instant::now());
        let dir = self.peer.issuer().ok_or(ReissueError::NoIssuer)?;
        let server = self.peer.server();
        let now = UnixTime::now();
        server.trust.check_host(&server.chain, now).map_err(RenewalError::Host)?;
        let new = reissue(&dir, self.peer.chain()).await?;
        answer(&server, new, now)
    }
}

/// Nothing goes out that this host would refuse tomorrow.
fn answer(server: &Server, new: CertificateDer<'static>, now: UnixTime) -> Result<Renewed, RenewalError> {
    let chain = [new];
    server.trust.check(&chain, now).map_err(RenewalError::Refused)?;
    let chain: Vec<_> = chain.iter().map(|cert| cert.to_vec()).collect();
    let anchors: Vec<_> = server.trust.anchors().iter().map(|cert| cert.to_vec()).collect();
    let fits = |certs: &[Vec<u8>]| {
        (1..=MAX_CERTIFICATES).contains(&certs.len())
            && certs.iter().all(|cert| cert.len() <= MAX_CERTIFICATE)
    };
    if fits(&chain) && fits(&anchors) { Ok(Renewed { chain, anchors }) } else { Err(RenewalError::TooLarge) }
}
