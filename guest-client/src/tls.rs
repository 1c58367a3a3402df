//! TLS 1.3 towards the host: own certificate, and the check of the host's. Reads the PEM files.
//!
//! A host is known by the URI in its certificate, not by a name or address: every host answers the same one. What the
//! lists in [`Lists`] revoke does not count; that they are looked at again under a session is the driver's.

mod lists;

pub use lists::Lists;

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

use crate::config::Config;

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
    /// A file without a revocation list.
    #[error("{} holds no revocation list", .0.display())]
    NoList(PathBuf),
    /// A revocation list that is none, or that its authority did not sign.
    #[error("a revocation list in {} cannot be used", path.display())]
    List {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: webpki::Error,
    },
    /// A revocation list that an authority did not sign.
    #[error("a revocation list of an authority in {} cannot be used", ca.display())]
    Forged {
        /// The file of the authorities.
        ca: PathBuf,
        /// Why.
        source: Error,
    },
    /// There was a list of an authority that is still trusted.
    #[error("a revocation list that was in or beside {} is gone", .0.display())]
    ListsGone(PathBuf),
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

/// Whose certificates count: those of the authorities, but what the lists revoke.
#[derive(Debug, Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    lists: Lists,
}

impl Trust {
    /// Reads the files. Where an authority had a list, it must have one while it is trusted: whoever is revoked stays so.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn read(config: &Config, before: Option<&Self>) -> Result<Self, TlsError> {
        let ca = &config.ca;
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|source| TlsError::Ca { path: ca.into(), source })?;
        }
        let lists = Lists::read(config)?;
        let trust = Self { roots: Arc::new(roots), lists };
        if before.is_some_and(|before| trust.misses_lists_of(before)) {
            return Err(TlsError::ListsGone(ca.into()));
        }
        // The signature of a list is looked at when it is needed first, which would be a host's handshake.
        if let Ok([own, rest @ ..]) = certificates(&config.cert).as_deref() {
            let (usage, now) = (webpki::KeyUsage::client_auth(), UnixTime::now());
            match trust.lists.check(&trust.roots, (own, rest), usage, now) {
                Err(source @ Error::InvalidCertRevocationList(_)) => {
                    return Err(TlsError::Forged { ca: ca.into(), source });
                }
                Err(Error::InvalidCertificate(CertificateError::Revoked)) => {
                    tracing::warn!(cert = %config.cert.display(), "this router's own certificate was revoked");
                }
                // What else is wrong with it is for the host to say.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(trust)
    }

    /// A list was there whose authority is still trusted, and is not any more. Of one below an authority, which only its
    /// nodes show, that is said if no list is left at all.
    fn misses_lists_of(&self, before: &Self) -> bool {
        let stays = before.roots.roots.iter().any(|root| self.has_root(&root.subject));
        before.lists.issuers().filter(|issuer| !self.lists.issuers().any(|other| other == *issuer)).any(
            |issuer| match before.has_root(issuer) {
                true => self.has_root(issuer),
                false => stays && self.lists.is_empty(),
            },
        )
    }

    /// By its name, as lists have it.
    fn has_root(&self, subject: &[u8]) -> bool {
        self.roots.roots.iter().any(|root| &*root.subject == subject)
    }

    /// What is revoked.
    #[must_use]
    pub const fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Whether this chain, its own certificate first, is a node's at that time, and not revoked.
    pub(crate) fn check_node(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(cert)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, at, algorithms)?;
        self.lists.check(&self.roots, (cert, intermediates), webpki::KeyUsage::server_auth(), at)?;
        let error = match certificate_identity(cert) {
            Ok(Identity::Node(_)) => return Ok(()),
            Ok(found) => CertificateIdentityError::Other { found, wanted: "xenflow://node/NAME".into() },
            Err(error) => error,
        };
        Err(CertificateError::Other(OtherError(Arc::new(error))).into())
    }
}

/// What is needed to connect as the router of this configuration. Its certificate and key are read now.
///
/// # Errors
/// [`TlsError`] names the file.
pub fn client_config(config: &Config, trust: Trust) -> Result<ClientConfig, TlsError> {
    let Config { cert, key, router, .. } = config;
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
    let verifier = Arc::new(NodeVerifier { trust, provider: Arc::clone(&provider) });
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
    let cause = error.get_ref()?;
    let cause =
        cause.downcast_ref::<OfHost>().map(|OfHost(words)| &words.0).or_else(|| cause.downcast_ref())?;
    let Error::InvalidCertificate(cause) = cause else { return None };
    Some(cause)
}

/// What is wrong with a certificate, in words where rustls shows the structure only.
#[derive(Debug, thiserror::Error)]
pub(crate) struct InWords(pub(crate) Error);

impl std::fmt::Display for InWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(error) = self;
        if let Error::InvalidCertRevocationList(cause) = error {
            return write!(f, "the revocation list of its authority cannot be used: {cause:?}");
        }
        let Error::InvalidCertificate(cause) = error else { return error.fmt(f) };
        if let CertificateError::Other(OtherError(cause)) = cause {
            return cause.fmt(f);
        }
        match *cause == CertificateError::Revoked {
            true => f.write_str("it was revoked"),
            false => error.fmt(f),
        }
    }
}

/// The same of a host's.
#[derive(Debug, thiserror::Error)]
#[error("certificate of the host: {0}")]
struct OfHost(InWords);

/// The words of [`CertificateIdentityError`], and of what a list says, out of a failed handshake; any other error as
/// it is.
#[must_use]
pub fn in_words(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        Some(
            cause @ (Error::InvalidCertificate(CertificateError::Other(_) | CertificateError::Revoked)
            | Error::InvalidCertRevocationList(_)),
        ) => io::Error::new(error.kind(), OfHost(InWords(cause.clone()))),
        _ => error,
    }
}

/// Accepts `xenflow://node/<any name>` of the CA, for server use (RFC 5280, 4.2.1.12), while it is valid and not revoked.
#[derive(Debug)]
struct NodeVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
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
        self.trust.check_node(cert, intermediates, now).map(|()| ServerCertVerified::assertion())
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
mod tests;
