//! Which certificate a peer shows in a handshake that may come to nothing, so that the log can name it. Whether it
//! counts is for the verifier that is asked here in turn; nothing of what it says is believed.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use xenflow_proto::Identity;

use super::certificate_identity;
use crate::pki::Serial;

/// Longest serial number that a certificate may have, in bytes (RFC 5280, 4.1.2.2).
const MAX_SERIAL: usize = 20;

/// A certificate as its holder showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its number.
    pub serial: Serial,
    /// Whom it names.
    pub identity: Option<Identity>,
}

impl Shown {
    fn of(der: &[u8]) -> Option<Self> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        let raw = cert.raw_serial();
        let serial = Serial::new(raw.get(..MAX_SERIAL).unwrap_or(raw));
        Some(Self { serial, identity: certificate_identity(der).ok() })
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "certificate {} of {identity}", self.serial),
            None => write!(f, "certificate {} of nobody", self.serial),
        }
    }
}

tokio::task_local! {
    static SEEN: RefCell<Option<Shown>>;
}

/// Does a handshake; the certificate that it came to see, if any, comes back with the result.
pub(super) async fn watch<T>(handshake: impl Future<Output = T>) -> (T, Option<Shown>) {
    let both = async {
        let result = handshake.await;
        (result, SEEN.with(RefCell::take))
    };
    SEEN.scope(RefCell::default(), both).await
}

/// Keeps what is shown, and passes the question on.
#[derive(Debug)]
pub(super) struct Watching(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Watching {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Outside a handshake nobody is curious.
        let _ = SEEN.try_with(|seen| seen.replace(Shown::of(end_entity)));
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
