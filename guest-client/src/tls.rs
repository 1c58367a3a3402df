//! TLS 1.3 towards the host: own certificate, and the check of the host's. Reads the PEM files.
//!
//! A host is known by the URI in its certificate, not by a name or address: every host answers the same one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use xenflow_proto::{Identity, Name};

/// Credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read {}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A file without a certificate.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// A certificate without an end.
    #[error("the certificate in {} does not say how long it is valid", .0.display())]
    Validity(PathBuf),
    /// A certificate of something else.
    #[error("the certificate in {} is not a router's", path.display())]
    NoRouter {
        /// Which file.
        path: PathBuf,
        /// What is in it.
        source: CertificateIdentityError,
    },
    /// A CA certificate that cannot be one.
    #[error("{} is not usable as a CA", path.display())]
    Ca {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Error,
    },
    /// Own certificate without an identity, or with another one.
    #[error("the certificate in {} is not that of router \"{router}\"", path.display())]
    Own {
        /// Which file.
        path: PathBuf,
        /// Whose it should be.
        router: String,
        /// What is in it.
        source: CertificateIdentityError,
    },
    /// Certificate and key do not fit.
    #[error("certificate and key cannot be used")]
    Key(#[source] Error),
}

/// A certificate that does not say who it speaks for, or speaks for somebody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateIdentityError {
    /// Not X.509.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// No URI, or several.
    #[error("{0} URIs of the form xenflow://… among its alternative names, not 1")]
    Count(usize),
    /// Not an identity.
    #[error(transparent)]
    Uri(#[from] xenflow_proto::identity::IdentityError),
    /// An identity of the wrong kind or name.
    #[error("it is that of {found}, not of {wanted}")]
    Other {
        /// Whose it is.
        found: Identity,
        /// Whose it should be.
        wanted: String,
    },
}

/// Who a certificate speaks for: the one `xenflow:` URI among its subject alternative names.
///
/// # Errors
/// [`CertificateIdentityError`] if there is not exactly one.
pub fn certificate_identity(cert: &CertificateDer<'_>) -> Result<Identity, CertificateIdentityError> {
    let cert = webpki::EndEntityCert::try_from(cert).map_err(|_| CertificateIdentityError::Malformed)?;
    // Schemes are compared without case (RFC 3986, 3.1), here as in the host; an identity is in lower case only.
    let is_ours = |uri: &&str| {
        let (scheme, _) = uri.split_once(':').unwrap_or_default();
        scheme.eq_ignore_ascii_case("xenflow")
    };
    let uris: Vec<&str> = cert.valid_uri_names().filter(is_ours).collect();
    match uris.as_slice() {
        [uri] => Ok(uri.parse()?),
        _ => Err(CertificateIdentityError::Count(uris.len())),
    }
}

/// Whether a certificate speaks for this router.
pub(crate) fn router_identity(
    cert: &CertificateDer<'_>,
    router: &str,
) -> Result<(), CertificateIdentityError> {
    let found = certificate_identity(cert)?;
    match &found {
        Identity::Router(name) if name.as_str() == router => Ok(()),
        Identity::Router(_) | Identity::Node(_) | Identity::Operator(_) => {
            let wanted = format!("xenflow://router/{router}");
            Err(CertificateIdentityError::Other { found, wanted })
        }
    }
}

/// The router that the certificate in a file is of.
///
/// # Errors
/// [`TlsError`] names the file.
pub fn router_of(cert: &Path) -> Result<Name, TlsError> {
    let chain = certificates(cert)?;
    let own = chain.first().ok_or_else(|| TlsError::Empty(cert.into()))?;
    let identity = certificate_identity(own).and_then(|found| match found {
        Identity::Router(name) => Ok(name),
        Identity::Node(_) | Identity::Operator(_) => {
            Err(CertificateIdentityError::Other { found, wanted: "xenflow://router/NAME".into() })
        }
    });
    identity.map_err(|source| TlsError::NoRouter { path: cert.into(), source })
}

/// What is needed to connect as `router`.
///
/// # Errors
/// [`TlsError`] names the file.
pub fn client_config(ca: &Path, cert: &Path, key: &Path, router: &str) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).map_err(|source| TlsError::Ca { path: ca.into(), source })?;
    }
    let chain = certificates(cert)?;
    let own = chain.first().ok_or_else(|| TlsError::Empty(cert.into()))?;
    router_identity(own, router).map_err(|source| TlsError::Own {
        path: cert.into(),
        router: router.into(),
        source,
    })?;
    let key =
        PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Pem { path: key.into(), source })?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(NodeVerifier::new(roots, Arc::clone(&provider)));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Key)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Key)?;
    // A resumed session would not show the certificate again.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// All in a file; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.into(), source };
    let list: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if list.is_empty() { Err(TlsError::Empty(path.into())) } else { Ok(list) }
}

/// What was wrong with the host's certificate, where that made a handshake fail.
pub(crate) fn certificate_error(error: &io::Error) -> Option<&CertificateError> {
    let Error::InvalidCertificate(cause) = error.get_ref()?.downcast_ref()? else { return None };
    Some(cause)
}

/// The words of [`CertificateIdentityError`] out of a failed handshake, of which rustls shows the structure only;
/// any other error as it is.
#[must_use]
pub fn in_words(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    match cause {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))) => {
            io::Error::new(error.kind(), format!("certificate of the host: {cause}"))
        }
        _ => error,
    }
}

/// Accepts `xenflow://node/<any name>` of the CA, for server use (RFC 5280, 4.2.1.12), while it is valid.
#[derive(Debug)]
struct NodeVerifier {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl NodeVerifier {
    fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Self {
        Self { roots, provider }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(cert)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let error = match certificate_identity(cert) {
            Ok(Identity::Node(_)) => return Ok(ServerCertVerified::assertion()),
            Ok(found) => CertificateIdentityError::Other { found, wanted: "xenflow://node/NAME".into() },
            Err(error) => error,
        };
        Err(CertificateError::Other(OtherError(Arc::new(error))).into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_certificate_names_one_identity_however_its_scheme_is_written() {
        let identity = |uris: &[&str]| {
            let mut params = CertificateParams::default();
            let name = |uri: &&str| SanType::URI((*uri).to_owned().try_into().unwrap());
            params.subject_alt_names = uris.iter().map(name).collect();
            let cert = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            certificate_identity(cert.der())
        };
        let count = |number| Err(CertificateIdentityError::Count(number));
        let a = identity(&["xenflow://node/a", "https://example.net/", "xenflow-not:node"]);
        assert_eq!(a, Ok(Identity::Node("a".parse().unwrap())));
        assert_eq!(identity(&["https://example.net/"]), count(0));
        assert_eq!(identity(&["xenflow://node/a", "xenflow://router/r1"]), count(2));
        assert_eq!(identity(&["xenflow://node/a", "XenFlow://router/r1"]), count(2));
        let other = identity(&["XENFLOW://node/a"]);
        assert!(matches!(other, Err(CertificateIdentityError::Uri(_))), "{other:?}");
    }
}
