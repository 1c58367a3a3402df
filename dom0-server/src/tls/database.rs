//! TLS to the database: who its clients are, and which servers they believe.
//!
//! A server of the cluster is a node of the authority: its certificate's chain and its identity count, not its address.
//! The files are read again when they change, so that a renewed certificate is shown at the next connection.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use xenflow_proto::Identity;

use super::credentials::{Stamp, Trust, certificates, private_key};
use super::{ConfigError, Files, peer_identity};

/// What a client shows and believes: the identity may be a node's or an operator's.
///
/// # Errors
/// [`ConfigError`] names the file that cannot be used.
pub fn database(files: &Files) -> Result<ovsdb::Tls, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let stamp = files.stamp();
    let first = Loaded::read(files, &provider)?;
    let files = files.clone();
    let both =
        Arc::new(Database { files, provider: provider.clone(), now: Mutex::new((stamp, Arc::new(first))) });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConfigError::Authority)?
        .dangerous()
        .with_custom_certificate_verifier(both.clone())
        .with_client_cert_resolver(both);
    Ok(ovsdb::Tls::new(config))
}

struct Loaded {
    trust: Trust,
    own: Arc<CertifiedKey>,
}

impl Loaded {
    fn read(files: &Files, provider: &CryptoProvider) -> Result<Self, ConfigError> {
        let trust = Trust::new(certificates(&files.ca)?, files.read_lists(false)?)?;
        let key = private_key(&files.key)?;
        let own = CertifiedKey::from_der(certificates(&files.cert)?, key, provider).map_err(|source| {
            ConfigError::Pair { cert: files.cert.clone(), key: files.key.clone(), source }
        })?;
        Ok(Self { trust, own: Arc::new(own) })
    }
}

struct Database {
    files: Files,
    provider: Arc<CryptoProvider>,
    now: Mutex<(Stamp, Arc<Loaded>)>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("cert", &PathBuf::as_path(&self.files.cert)).finish_non_exhaustive()
    }
}

impl Database {
    /// The files as they are, or as they were when they last could be used.
    fn loaded(&self) -> Arc<Loaded> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if stamp != now.0 {
            match Loaded::read(&self.files, &self.provider) {
                Ok(loaded) => *now = (stamp, Arc::new(loaded)),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the database's certificates stay as they were");
                }
            }
        }
        now.1.clone()
    }
}

/// A certificate of the authority, but not of a host.
#[derive(Debug, thiserror::Error)]
#[error("the server is {0}, not a node")]
struct NotNode(Identity);

impl ServerCertVerifier for Database {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let other = |error| Error::InvalidCertificate(CertificateError::Other(OtherError(error)));
        let chain: Vec<_> = [end_entity].into_iter().chain(intermediates).cloned().collect();
        self.loaded().trust.verify_host(&chain, now)?;
        match peer_identity(&chain).map_err(|error| other(Arc::new(error)))? {
            Identity::Node(_) => Ok(ServerCertVerified::assertion()),
            identity @ (Identity::Router(_) | Identity::Operator(_)) => {
                Err(other(Arc::new(NotNode(identity))))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Database {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.loaded().own.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
