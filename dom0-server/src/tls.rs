//! TLS of the guest listener: who may speak, and as whom.
//!
//! TLS 1.3 only, both ends with certificates of the one authority, no resumption: a resumed session would skip
//! the check of the client's certificate. Owns the configuration, the handshake, the identity in a certificate
//! and the words for what was refused. Does not decide what a peer may do: the daemon compares the identity
//! with the vif that the connection came from.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::GeneralName;
use xenflow_proto::Identity;
use xenflow_proto::identity::IdentityError;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file without certificate.
    #[error("{path} holds no certificate in PEM")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file without key. Says nothing of the contents.
    #[error("{path} holds no private key in PEM")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The authority's certificate cannot be a trust anchor.
    #[error("the authority's certificate cannot be used")]
    Authority(#[source] rustls::Error),
    /// The verifier could not be made.
    #[error("clients cannot be verified against the authority")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key are not a pair, or unusable.
    #[error("the certificate and its key cannot be used")]
    Pair(#[source] rustls::Error),
    /// The host's own certificate names no node.
    #[error("the host's certificate is refused")]
    Own(#[from] PeerIdentityError),
    /// The host's own certificate is of somebody else.
    #[error("the host's certificate is of {0}, not of a node")]
    NotNode(Identity),
}

/// What the daemon needs to listen.
#[derive(Debug, Clone)]
pub struct Server {
    /// For [`accept`].
    pub config: Arc<ServerConfig>,
    /// Who the host's certificate says it is: always a node.
    pub identity: Identity,
}

/// Reads the authority's certificate and the host's own pair from PEM files.
pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Server, ConfigError> {
    let read =
        |path: &Path| fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source });
    let certs = |path: &Path| {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
        all.ok()
            .filter(|all| !all.is_empty())
            .ok_or_else(|| ConfigError::NoCertificate { path: path.to_owned() })
    };
    let anchors = certs(ca)?;
    let chain = certs(cert)?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| ConfigError::NoKey { path: key.to_owned() })?;
    let identity = peer_identity(&chain)?;
    let Identity::Node(_) = identity else { return Err(ConfigError::NotNode(identity)) };
    Ok(Server { config: Arc::new(server_config(anchors, chain, secret)?), identity })
}

/// The listener's configuration: TLS 1.3, a client certificate of one of `anchors`, nothing ever resumed.
pub fn server_config(
    anchors: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor).map_err(ConfigError::Authority)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConfigError::Pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(ConfigError::Pair)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

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
    /// Its certificate is not for clients.
    #[error("its certificate is not for clients (extended key usage)")]
    WrongUsage,
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
                C::BadSignature => Self::BadSignature,
                other => Self::Certificate(other),
            },
            rustls::Error::PeerIncompatible(_) => Self::Incompatible(error),
            rustls::Error::AlertReceived(alert) => Self::Refused(alert),
            other => Self::Protocol(other),
        }
    }
}

/// A connection that was refused.
#[derive(Debug, thiserror::Error)]
#[error("{peer} is refused")]
pub struct AcceptError {
    /// Who.
    pub peer: SocketAddr,
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
    handshake.await.map_err(|reason| AcceptError { peer, reason })
}

#[cfg(test)]
mod tests;
