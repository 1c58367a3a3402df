//! A node that connects to another one: it shows the certificate that it listens with, and believes a chain of the same
//! authorities that was not revoked. Who is there, its identity says and not its address; that is compared with whom it
//! was to be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use xenflow_proto::{Identity, Name};

use super::{Handshaking, Peer, Refusal, Trust, peer_identity};

/// Why there is no connection to a node.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The handshake.
    #[error("the handshake with node {node} failed")]
    Handshake {
        /// Who was to be there.
        node: Name,
        /// Why.
        #[source]
        reason: Refusal,
    },
    /// Somebody else is there.
    #[error("{found} is there, not node {node}")]
    Other {
        /// Who was to be there.
        node: Name,
        /// Who is.
        found: Identity,
    },
}

/// Does the handshake within `limit` with a node at the other end of a stream.
///
/// # Errors
/// [`DialError`] says who was to be there and what was found.
pub async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    handshaking: Handshaking,
    stream: S,
    node: &Name,
    limit: Duration,
) -> Result<(TlsStream<S>, Peer), DialError> {
    let failed = |reason| {
        let reason = if matches!(reason, Refusal::WrongUsage) { Refusal::NotHost } else { reason };
        DialError::Handshake { node: node.clone(), reason }
    };
    let server = handshaking.server();
    let config = config(server.trust.clone(), server.shown.clone())
        .map_err(|error| failed(Refusal::from_tls(error)))?;
    // No address is looked at; without a DNS name nothing is sent of it either.
    let nobody = ServerName::from(std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED));
    let connecting = TlsConnector::from(Arc::new(config)).connect(nobody, stream);
    let stream = tokio::time::timeout(limit, connecting)
        .await
        .map_err(|_| failed(Refusal::Timeout { seconds: limit.as_secs_f64() }))?
        .map_err(|error| failed(Refusal::from_io(error)))?;
    let chain = stream.get_ref().1.peer_certificates();
    let found = peer_identity(chain.unwrap_or_default()).map_err(|error| failed(error.into()))?;
    if found != Identity::Node(node.clone()) {
        return Err(DialError::Other { node: node.clone(), found });
    }
    let peer = handshaking.peer(chain);
    Ok((stream, peer))
}

fn config(trust: Arc<Trust>, shown: Arc<CertifiedKey>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let both = Arc::new(Both { trust, shown, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(both.clone())
        .with_client_cert_resolver(both);
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// What is shown, and whom it believes.
struct Both {
    trust: Arc<Trust>,
    shown: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Both {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Both").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Both {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = [end_entity].into_iter().chain(intermediates).cloned().collect();
        self.trust.verify_host(&chain, now)?;
        Ok(ServerCertVerified::assertion())
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

impl ResolvesClientCert for Both {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
