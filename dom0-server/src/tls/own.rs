//! The host's own certificate, while a third of its time is left: a host that has an authority's directory renews it,
//! any other asks for another one. Owns when; signing and recording are in `pki`, reading it again is in `reload`.

use std::path::PathBuf;
use std::time::Duration;

use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::renewal::{ReissueError, reissue};
use super::{Files, Refusal, Server};
use crate::chain::Chain;
use crate::pki::{self, FileError};

/// Between two renewals; one is read again within seconds.
const PAUSE: Duration = Duration::from_secs(20);
/// Between two attempts, and so between two warnings.
const AGAIN: Duration = Duration::from_secs(3600);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum OwnError {
    #[error("a certificate of the authority in issuer_dir would not be trusted by those that trust ca")]
    Refused(#[source] Refusal),
    #[error(transparent)]
    Reissue(#[from] ReissueError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Keeps the host's certificate from ending.
#[derive(Debug)]
pub(super) struct Own {
    issuer: Option<PathBuf>,
    /// Not before this time again.
    rest: Option<Instant>,
}

impl Own {
    /// With the directory of the authority, if the host has one.
    pub(super) const fn new(issuer: Option<PathBuf>) -> Self {
        Self { issuer, rest: None }
    }

    /// Renews the certificate if it is time, or says in the log that somebody should: from its end on no guest would
    /// begin a session. The key stays, so that the file can be replaced in one step.
    pub(super) async fn look(&mut self, files: &Files, server: &Server) {
        let Some(ends) = server.ends_soon(OffsetDateTime::now_utc()) else { return };
        if self.rest.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let pause = match self.renew(files, server).await {
            Ok(()) => {
                tracing::info!(name: "certificate-renewed", %ends, "this host's certificate would end soon: it was renewed");
                PAUSE
            }
            Err(error) => {
                tracing::warn!(
                    %ends,
                    reason = %Chain(&error),
                    "this host's certificate ends soon: 'xenflow pki renew node' replaces it"
                );
                AGAIN
            }
        };
        self.rest = Some(Instant::now() + pause);
    }

    async fn renew(&self, files: &Files, server: &Server) -> Result<(), OwnError> {
        let dir = self.issuer.as_ref().ok_or(ReissueError::NoIssuer)?;
        let new = reissue(dir, &server.chain).await?;
        server.trust.check_host(std::slice::from_ref(&new), UnixTime::now()).map_err(OwnError::Refused)?;
        Ok(pki::write_public(&files.cert, &text(&new))?)
    }
}

fn text(cert: &CertificateDer<'_>) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("CERTIFICATE", cert.to_vec()), config)
}
