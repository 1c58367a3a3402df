//! Real handshakes over memory: whoever should not come in does not, and is told apart. What the log says of each is in
//! `refusals`.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;
use tokio_rustls::client;
use xenflow_proto::{Identity, control};

use super::*;
use crate::chain::Chain;
use crate::pki::{Authority, Pair, Reason, Record, Revoked, Serial, Store, Validity, Which};

mod refusals;
mod reloading;

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn identity(uri: &str) -> Identity {
    uri.parse().unwrap()
}

fn pem(pair: &Pair) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
    (vec![cert], PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap())
}

/// An authority with a listening host.
struct Host {
    authority: Authority,
    anchor: CertificateDer<'static>,
    own: Pair,
    config: Arc<ServerConfig>,
}

impl Host {
    fn new() -> Self {
        let (authority, pair) = Authority::new(Validity::days(now(), 10)).unwrap();
        let anchor = pem(&pair).0.remove(0);
        let own = authority.issue(&identity("xenflow://node/a"), Validity::days(now(), 1)).unwrap();
        let config = config(vec![anchor.clone()], Lists::default(), &own);
        Self { authority, anchor, own, config }
    }

    /// With a revocation list for this pair.
    fn revoke(&mut self, pair: &Pair) {
        let (chain, _) = pem(pair);
        let (_, cert) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let record = Record {
            serial: Serial::new(cert.raw_serial()),
            issuer: cert.issuer().to_string(),
            identity: None,
            not_before: 0,
            not_after: i64::MAX,
            revoked: Some(Revoked { at: 0, reason: Reason::KeyCompromise }),
        };
        let list = self.authority.revocations([&record], now()).unwrap();
        let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
        self.config = config(vec![self.anchor.clone()], Lists(vec![list]), &self.own);
    }

    fn pair(&self, uri: &str, validity: Validity) -> Pair {
        self.authority.issue(&identity(uri), validity).unwrap()
    }

    /// A client that checks the host against the authority and shows this pair.
    fn client(&self, pair: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.anchor.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        match pair {
            Some(pair) => {
                let (chain, key) = pem(pair);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        }
    }
}

fn config(anchors: Vec<CertificateDer<'static>>, lists: Lists, own: &Pair) -> Arc<ServerConfig> {
    let (chain, key) = pem(own);
    Arc::new(server_config(&Trust::new(anchors, lists).unwrap(), chain, key).unwrap())
}

type Accepted = Result<(TlsStream<DuplexStream>, Identity), AcceptError>;
type Connected = io::Result<client::TlsStream<DuplexStream>>;

fn peer() -> SocketAddr {
    "[fe80::5054:ff:fe00:1]:1234".parse().unwrap()
}

async fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> (Accepted, Connected) {
    let (near, far) = duplex(64 << 10);
    let name = ServerName::from(std::net::IpAddr::from(control::HOST_IPV6));
    tokio::join!(
        accept(server.clone(), near, peer(), Duration::from_secs(10)),
        TlsConnector::from(client.clone()).connect(name, far)
    )
}

/// As the log has it.
fn line(error: &dyn std::error::Error) -> String {
    Chain(error).to_string()
}

/// Why a client that shows this pair is refused.
async fn refusal(host: &Host, pair: Option<&Pair>) -> String {
    let (accepted, connected) = handshake(&host.config, &Arc::new(host.client(pair))).await;
    // In TLS 1.3 a client is done before the host has seen its certificate: it learns of the refusal when it reads.
    if let Ok(mut far) = connected {
        assert!(far.read_u8().await.is_err(), "nothing is said to who is refused");
    }
    line(&accepted.expect_err("must be refused").reason)
}

#[tokio::test]
async fn every_kind_of_identity_is_known_and_bytes_pass() {
    let host = Host::new();
    for uri in ["xenflow://router/r1", "xenflow://node/b", "xenflow://operator/ann"] {
        let pair = host.pair(uri, Validity::days(now(), 1));
        let (accepted, connected) = handshake(&host.config, &Arc::new(host.client(Some(&pair)))).await;
        let ((mut near, who), mut far) = (accepted.unwrap(), connected.unwrap());
        assert_eq!(who, identity(uri));
        assert_eq!(near.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let certs = far.get_ref().1.peer_certificates().unwrap();
        assert_eq!(peer_identity(certs).unwrap(), identity("xenflow://node/a"));
        far.write_all(b"hello").await.unwrap();
        far.flush().await.unwrap();
        let mut read = [0; 5];
        near.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
    }
}

#[tokio::test]
async fn a_revocation_is_of_one_certificate() {
    let r1 = "xenflow://router/r1";
    let mut host = Host::new();
    let gone = host.pair(r1, Validity::days(now(), 1));
    let foreign = Host::new().pair(r1, Validity::days(now(), 1));
    host.revoke(&gone);
    assert_eq!(refusal(&host, Some(&gone)).await, "its certificate was revoked");
    // Another certificate of the same holder is another certificate.
    let other = host.pair(r1, Validity::days(now(), 1));
    let (accepted, _) = handshake(&host.config, &Arc::new(host.client(Some(&other)))).await;
    assert_eq!(accepted.unwrap().1, identity(r1));
    // What comes first counts: the list is of nobody who signed this.
    assert_eq!(refusal(&host, Some(&foreign)).await, "its certificate is of an unknown authority");
}

/// A list by the name of the authority that somebody else signed lets nobody in, and says so.
#[tokio::test]
async fn a_forged_list_lets_nobody_in() {
    let mut host = Host::new();
    let pair = host.pair("xenflow://router/r1", Validity::days(now(), 1));
    let (_, parsed) = x509_parser::parse_x509_certificate(&host.anchor).unwrap();
    let name = parsed.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned();
    let mut forged = CertificateParams::default();
    forged.distinguished_name = rcgen::DistinguishedName::new();
    forged.distinguished_name.push(rcgen::DnType::CommonName, name);
    let list = rcgen::CertificateRevocationListParams {
        this_update: now(),
        next_update: now() + time::Duration::days(1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&Issuer::new(forged, KeyPair::generate().unwrap())).unwrap();
    host.config = config(vec![host.anchor.clone()], Lists(vec![list.der().clone()]), &host.own);
    let said = "the revocation list of its authority cannot be used: BadSignature";
    assert_eq!(refusal(&host, Some(&pair)).await, said);
}

/// A leaf that the authority of this product would never make, and its host.
fn odd(sans: &[&str], usage: ExtendedKeyUsagePurpose) -> (Host, Pair) {
    let mut host = Host::new();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let anchor = ca.self_signed(&ca_key).unwrap().der().clone();
    host.config = config(vec![anchor], Lists::default(), &host.own);

    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names =
        sans.iter().map(|uri| SanType::URI((*uri).to_owned().try_into().unwrap())).collect();
    leaf.extended_key_usages = vec![usage];
    let leaf_key = KeyPair::generate().unwrap();
    let cert = leaf.signed_by(&leaf_key, &Issuer::new(ca, ca_key)).unwrap();
    let pair = Pair { cert: cert.pem(), key: leaf_key.serialize_pem() };
    (host, pair)
}

#[tokio::test]
async fn a_certificate_names_exactly_one_identity() {
    for (sans, reason) in [
        (&[][..], "the certificate names no xenflow:// identity"),
        (&["https://router/r1"], "the certificate names no xenflow:// identity"),
        (
            &["xenflow://router/r1", "xenflow://router/r2"],
            "the certificate names 2 xenflow: identities, not one",
        ),
        (&["xenflow://router/r1", "XENFLOW://x"], "the certificate names 2 xenflow: identities, not one"),
        (
            &["xenflow://admin/r1"],
            "the certificate names no identity: \"xenflow://admin/r1\" is not an identity: xenflow://router/NAME, \
             xenflow://node/NAME or xenflow://operator/NAME",
        ),
        (
            &["xenflow://router/R1"],
            "the certificate names no identity: \"R1\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit",
        ),
        (
            &["xenflow:router/r1"],
            "the certificate names no identity: \"xenflow:router/r1\" is not an identity: xenflow://router/NAME, \
             xenflow://node/NAME or xenflow://operator/NAME",
        ),
    ] {
        let (host, pair) = odd(sans, ExtendedKeyUsagePurpose::ClientAuth);
        let said = refusal(&host, Some(&pair)).await;
        assert_eq!(said, format!("its identity is refused: {reason}"), "{sans:?}");
    }
    let (host, pair) = odd(&["https://x/y", "xenflow://router/r1"], ExtendedKeyUsagePurpose::ClientAuth);
    let (accepted, _) = handshake(&host.config, &Arc::new(host.client(Some(&pair)))).await;
    assert_eq!(accepted.unwrap().1, identity("xenflow://router/r1"));
}

/// A ClientHello of a client that speaks TLS 1.2 at most (RFC 5246 7.4.1.2), in one record.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.extend([0]); // session id
    body.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    body.extend([1, 0]); // compression: none
    let groups = [0, 10, 0, 4, 0, 2, 0, 23]; // secp256r1
    let formats = [0, 11, 0, 2, 1, 0];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3]; // ecdsa_secp256r1_sha256
    let extensions = [&groups[..], &formats, &signatures].concat();
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u16::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(body);
    record
}

async fn raw(bytes: &[u8]) -> (Accepted, Vec<u8>) {
    let host = Host::new();
    let (near, mut far) = duplex(64 << 10);
    let client = async {
        far.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        answer
    };
    tokio::join!(accept(host.config, near, peer(), Duration::from_millis(300)), client)
}

#[tokio::test]
async fn noise_and_silence_are_refused() {
    let (accepted, _) = raw(b"GET / HTTP/1.1\r\n\r\n").await;
    let said = "it broke the protocol: received corrupt message of type InvalidContentType";
    assert_eq!(line(&accepted.unwrap_err().reason), said);
    let (accepted, _) = raw(&hello_of_tls_1_2()[..20]).await;
    assert_eq!(line(&accepted.unwrap_err().reason), "it did not finish within 0.3 s");
}

#[tokio::test]
async fn no_session_is_resumed() {
    let host = Host::new();
    let pair = host.pair("xenflow://router/r1", Validity::days(now(), 1));
    // The same configuration, with its store of tickets, for both connections; resumption is on by default.
    let client = Arc::new(host.client(Some(&pair)));
    for round in 0..2 {
        let (accepted, connected) = handshake(&host.config, &client).await;
        let ((mut near, _), mut far) = (accepted.unwrap(), connected.unwrap());
        near.write_all(b"x").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        assert_eq!(near.get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "{round}");
        assert_eq!(far.get_ref().1.tls13_tickets_received(), 0, "{round}");
    }
}

#[tokio::test]
async fn a_client_that_distrusts_the_host_is_named_so() {
    let (host, other) = (Host::new(), Host::new());
    let pair = host.pair("xenflow://router/r1", Validity::days(now(), 1));
    let (accepted, connected) = handshake(&host.config, &Arc::new(other.client(Some(&pair)))).await;
    assert!(connected.is_err());
    let said = "it refused this host's certificate or parameters: UnknownCA";
    assert_eq!(line(&accepted.unwrap_err().reason), said);
}
