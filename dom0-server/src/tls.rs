//! TLS of the listeners for guests and for nodes: who may speak, and as whom; and of a node that connects to another ([`dial`]).
//!
//! TLS 1.3 only, both ends with certificates of the authorities in `ca`, no resumption: a resumed session would skip
//! the check of the client's certificate. Owns the handshake, the identity in a certificate and the words for what was
//! refused; [`Files`] become a [`Server`] in `credentials`, [`follow`] reads them again when they change, and
//! [`Renewals`] has certificates renewed. Does not decide what a peer may do: the daemon compares the identity with the
//! vif that the connection came from.

mod credentials;
mod database;
mod dial;
pub mod fuzz;
mod own;
mod reload;
mod renewal;
mod shown;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::{CertificateError, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::Instrument;
use x509_parser::extensions::GeneralName;
use xenflow_proto::Identity;
use xenflow_proto::identity::IdentityError;

pub use credentials::{ConfigError, Files, Lists, Server, Trust, server_config};
pub use database::database;
pub use dial::{DialError, dial};
pub use reload::{Access, Current, Distrusted, Handshaking, Peer, follow};
pub use renewal::Renewals;
pub use shown::Shown;

/// Why a certificate says nobody's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdentityError {
    /// No certificate.
    #[error("no certificate")]
    NoCertificate,
    /// Not X.509, or with extensions that do not parse.
    #[error("the certificate cannot be read")]
    Malformed,
    /// No URI of the scheme `xenflow`.
    #[error("the certificate names no xenflow:// identity")]
    NoUri,
    /// More than one URI of the scheme `xenflow`.
    #[error("the certificate names {0} xenflow: identities, not one")]
    Ambiguous(usize),
    /// The URI is no identity.
    #[error("the certificate names no identity")]
    Uri(#[from] IdentityError),
}

/// Whom a verified chain speaks for: the one `xenflow:` URI among the subject alternative names of its first
/// certificate.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<Identity, PeerIdentityError> {
    certificate_identity(certs.first().ok_or(PeerIdentityError::NoCertificate)?)
}

/// Whom one certificate, in DER, speaks for.
pub fn certificate_identity(der: &[u8]) -> Result<Identity, PeerIdentityError> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| PeerIdentityError::Malformed)?;
    let names = cert.subject_alternative_name().map_err(|_| PeerIdentityError::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris = names.iter().filter_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        // Schemes are compared without case (RFC 3986 3.1); an identity is written in lower case only.
        let scheme = uri.split(':').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case("xenflow").then_some(*uri)
    });
    match uris.collect::<Vec<_>>().as_slice() {
        [] => Err(PeerIdentityError::NoUri),
        [uri] => Ok(uri.parse()?),
        more => Err(PeerIdentityError::Ambiguous(more.len())),
    }
}

/// Why a handshake was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The peer showed no certificate.
    #[error("it showed no certificate")]
    NoCertificate,
    /// Its certificate's validity has ended.
    #[error("its certificate has expired")]
    Expired,
    /// Its certificate's validity has not begun.
    #[error("its certificate is not valid yet")]
    NotYetValid,
    /// Its certificate is of another authority.
    #[error("its certificate is of an unknown authority")]
    UnknownAuthority,
    /// Its certificate was revoked.
    #[error("its certificate was revoked")]
    Revoked,
    /// The authority's revocation list does not hold, so nobody knows.
    #[error("the revocation list of its authority cannot be used: {0:?}")]
    List(rustls::CertRevocationListError),
    /// Its certificate is not for clients.
    #[error("its certificate is not for clients (extended key usage)")]
    WrongUsage,
    /// Its certificate is not for servers.
    #[error("its certificate is not for hosts (extended key usage)")]
    NotHost,
    /// Its certificate has a signature that does not hold.
    #[error("its certificate has a bad signature")]
    BadSignature,
    /// Its certificate breaks another rule.
    #[error("its certificate is refused: {0:?}")]
    Certificate(CertificateError),
    /// It does not speak TLS 1.3.
    #[error("it does not offer what TLS 1.3 here needs")]
    Incompatible(#[source] rustls::Error),
    /// It refused the host.
    #[error("it refused this host's certificate or parameters: {0:?}")]
    Refused(rustls::AlertDescription),
    /// It does not speak TLS.
    #[error("it broke the protocol")]
    Protocol(#[source] rustls::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// Nothing more came.
    #[error("it did not finish within {seconds} s")]
    Timeout {
        /// The limit.
        seconds: f64,
    },
    /// Its certificate is of the authority, but says nobody's name.
    #[error("its identity is refused")]
    Identity(#[from] PeerIdentityError),
}

impl Refusal {
    fn from_io(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::from_tls(tls.clone()),
            None => Self::Io(error),
        }
    }

    /// The common reasons by name; everything else, also what a later version of rustls adds, as rustls says it.
    #[allow(clippy::wildcard_enum_match_arm)]
    fn from_tls(error: rustls::Error) -> Self {
        use CertificateError as C;
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(reason) => match reason {
                C::Expired | C::ExpiredContext { .. } => Self::Expired,
                C::NotValidYet | C::NotValidYetContext { .. } => Self::NotYetValid,
                C::UnknownIssuer => Self::UnknownAuthority,
                C::InvalidPurpose | C::InvalidPurposeContext { .. } => Self::WrongUsage,
                C::Revoked => Self::Revoked,
                C::BadSignature => Self::BadSignature,
                other => Self::Certificate(other),
            },
            rustls::Error::InvalidCertRevocationList(reason) => Self::List(reason),
            rustls::Error::PeerIncompatible(_) => Self::Incompatible(error),
            rustls::Error::AlertReceived(alert) => Self::Refused(alert),
            other => Self::Protocol(other),
        }
    }
}

/// A connection that was refused.
#[derive(Debug, thiserror::Error)]
#[error("{peer} is refused{}", .shown.as_ref().map(|shown| format!(" with {shown}")).unwrap_or_default())]
pub struct AcceptError {
    /// Who.
    pub peer: SocketAddr,
    /// What it showed, if it came so far. Nothing of it may be true.
    pub shown: Option<Shown>,
    /// Why.
    #[source]
    pub reason: Refusal,
}

/// Does the handshake within `limit`, and says whom the peer speaks for.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: S,
    peer: SocketAddr,
    limit: Duration,
) -> Result<(TlsStream<S>, Identity), AcceptError> {
    let handshake = async {
        let accepting = tokio::time::timeout(limit, TlsAcceptor::from(config).accept(stream));
        let stream = accepting
            .await
            .map_err(|_| Refusal::Timeout { seconds: limit.as_secs_f64() })?
            .map_err(Refusal::from_io)?;
        let identity = peer_identity(stream.get_ref().1.peer_certificates().unwrap_or_default())?;
        Ok((stream, identity))
    };
    let (done, shown) = shown::watch(handshake).instrument(tracing::debug_span!("handshake", %peer)).await;
    done.map_err(|reason| AcceptError { peer, shown, reason })
}

#[cfg(test)]
mod tests;
