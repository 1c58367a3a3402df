//! Real handshakes over memory, with files: whoever is no node that counts is refused, and the log says why.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::connection::{LinkError, chain};

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

const SERVER: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ServerAuth;
const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;
/// Node a's certificate has this number.
const SERIAL: u64 = 7;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, for so many years.
    fn leaf(&self, uri: &str, usage: &ExtendedKeyUsagePurpose, serial: u64, years: [i32; 2]) -> [String; 2] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.to_owned().try_into().unwrap())];
        params.extended_key_usages = vec![usage.clone()];
        params.serial_number = Some(serial.into());
        [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }

    fn node(&self) -> [String; 2] {
        self.leaf("xenflow://node/a", &SERVER, SERIAL, [2020, 2090])
    }

    /// A list of this year, for a year, that revokes these.
    fn list(&self, year: i32, serials: &[u64]) -> String {
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(year, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(year + 1, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A router's files.
struct Router {
    dir: tempfile::TempDir,
    config: Config,
    ca: Ca,
}

impl Router {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (ca, cert, key) = (at("ca.pem"), at("r1.pem"), at("r1.key"));
        let text = format!("router = \"r1\"\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n");
        let config = Config::parse(&text, Path::new("guest.toml")).unwrap();
        let router = Self { dir, config, ca: Ca::new("one") };
        let [own, secret] = router.ca.leaf("xenflow://router/r1", &CLIENT, 1, [2020, 2090]);
        router.put("ca.pem", &router.ca.pem);
        router.put("r1.pem", &own);
        router.put("r1.key", &secret);
        router
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn trust(&self) -> Result<Trust, String> {
        Trust::read(&self.config, None).map_err(|error| chain(&error))
    }

    /// What the log says when a host shows this; `Ok` if it is a node.
    async fn meet(&self, [cert, key]: &[String; 2]) -> Result<(), String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let (near, far) = duplex(64 << 10);
        let (met, _) = tokio::join!(self.connect(near), TlsAcceptor::from(Arc::new(server)).accept(far));
        met
    }

    /// As [`crate::connection`] does and says it.
    async fn connect(&self, stream: tokio::io::DuplexStream) -> Result<(), String> {
        let config = client_config(&self.config, self.trust()?).unwrap();
        let name = ServerName::IpAddress(self.config.host.into());
        let result = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let error = |source| LinkError::Handshake {
            to: self.config.host,
            device: "ctl".into(),
            source: in_words(source),
        };
        result.map(|_| ()).map_err(|source| chain(&error(source)))
    }
}

#[tokio::test]
async fn hosts_are_refused_in_these_words() {
    let router = Router::new();
    let (own, foreign) = (&router.ca, Ca::new("two"));
    let node = "xenflow://node/a";
    for (shown, said) in [
        (foreign.leaf(node, &SERVER, 7, [2020, 2090]), "invalid peer certificate: UnknownIssuer"),
        (
            own.leaf(node, &SERVER, 7, [2020, 2021]),
            "invalid peer certificate: certificate expired: verification time ",
        ),
        (
            own.leaf(node, &SERVER, 7, [2089, 2090]),
            "invalid peer certificate: certificate not valid yet: verification time ",
        ),
        (
            own.leaf(node, &CLIENT, 7, [2020, 2090]),
            "invalid peer certificate: certificate does not allow extended key usage for server authentication",
        ),
        (
            own.leaf("xenflow://router/r2", &SERVER, 7, [2020, 2090]),
            "certificate of the host: it is that of xenflow://router/r2, not of xenflow://node/NAME",
        ),
        (
            own.leaf("https://a/", &SERVER, 7, [2020, 2090]),
            "certificate of the host: 0 URIs of the form xenflow://… among its alternative names, not 1",
        ),
    ] {
        let error = router.meet(&shown).await.unwrap_err();
        assert!(error.starts_with(&format!("TLS with fe80::1 at ctl: {said}")), "{error}");
    }
    // The control: a node of the authority. Once it is revoked, it is refused too.
    let shown = own.node();
    router.meet(&shown).await.unwrap();
    router.put("crl.pem", &own.list(2026, &[SERIAL]));
    let error = router.meet(&shown).await.unwrap_err();
    assert_eq!(error, "TLS with fe80::1 at ctl: certificate of the host: it was revoked");
    // Another certificate of the same node is another certificate.
    router.meet(&own.leaf(node, &SERVER, 8, [2020, 2090])).await.unwrap();
}

/// A host that speaks TLS 1.2 at most says that it cannot (RFC 8446, 4.2.1), or goes on as if it had been asked to.
#[tokio::test]
async fn tls_1_2_is_refused() {
    let alert = vec![21, 3, 3, 0, 2, 2, 70]; // fatal: protocol_version
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.extend([0, 0xc0, 0x2b, 0]); // no session id, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression
    let length = u8::try_from(hello.len()).unwrap();
    let record = [&[22, 3, 3, 0, length + 4, 2, 0, 0, length], hello.as_slice()].concat();
    for (answer, said) in [
        (alert, "received fatal alert: ProtocolVersion"),
        (record, "peer is incompatible: ServerTlsVersionIsDisabledByOurConfig"),
    ] {
        let router = Router::new();
        let (near, mut far) = duplex(64 << 10);
        let host = async {
            far.write_all(&answer).await.unwrap();
            let _ = far.read_to_end(&mut Vec::new()).await;
        };
        let (met, ()) = tokio::join!(router.connect(near), host);
        assert_eq!(met.unwrap_err(), format!("TLS with fe80::1 at ctl: {said}"));
    }
}

/// `xenflow pki export` writes both into one text.
#[tokio::test]
async fn lists_count_wherever_they_are_and_the_latest_decides() {
    let mut router = Router::new();
    let (node, gone) = (router.ca.node(), "TLS with fe80::1 at ctl: certificate of the host: it was revoked");
    let bundle = router.ca.pem.clone() + &router.ca.list(2026, &[SERIAL]);
    router.put("ca.pem", &bundle);
    assert_eq!(router.meet(&node).await.unwrap_err(), gone);
    // An old list beside it brings nobody back; a newer one may.
    router.put("crl.pem", &router.ca.list(2025, &[]));
    assert_eq!(router.meet(&node).await.unwrap_err(), gone);
    router.put("crl.pem", &router.ca.list(2027, &[]));
    router.meet(&node).await.unwrap();
    // A list that should have been replaced years ago revokes what it revokes.
    router.put("ca.pem", &router.ca.pem);
    router.put("crl.pem", &router.ca.list(2020, &[SERIAL]));
    assert_eq!(router.meet(&node).await.unwrap_err(), gone);
    // Of an authority without a list nothing is known, and its nodes count.
    router.put("crl.pem", &Ca::new("two").list(2026, &[SERIAL]));
    router.meet(&node).await.unwrap();
    // Elsewhere, by the configuration.
    router.put("lists.pem", &router.ca.list(2026, &[SERIAL]));
    router.config.crl = Some(router.dir.path().join("lists.pem"));
    assert_eq!(router.meet(&node).await.unwrap_err(), gone);
}

#[tokio::test]
async fn lists_that_cannot_be_used_are_told_with_their_file() {
    let mut router = Router::new();
    let at = router.dir.path().display().to_string();
    // By the name of the authority, and not signed by it.
    router.put("crl.pem", &Ca::new("one").list(2026, &[]));
    let said = format!("a revocation list of an authority in {at}/ca.pem cannot be used");
    assert_eq!(router.trust().unwrap_err(), said + ": invalid certificate revocation list: BadSignature");
    for (text, said) in [
        ("", format!("{at}/crl.pem holds no revocation list")),
        (router.ca.pem.as_str(), format!("{at}/crl.pem holds no revocation list")),
        (
            "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n",
            format!("a revocation list in {at}/crl.pem cannot be used: BadDer"),
        ),
        ("-----BEGIN X509 CRL-----\nMAA=\n", format!("cannot read {at}/crl.pem: ")),
    ] {
        router.put("crl.pem", text);
        let error = router.trust().unwrap_err();
        assert!(error.starts_with(&said), "{error}");
    }
    router.config.crl = Some(router.dir.path().join("nix.pem"));
    assert!(router.trust().unwrap_err().starts_with(&format!("cannot read {at}/nix.pem: ")));
    // Where there were lists there must be some.
    router.config.crl = None;
    router.put("crl.pem", &router.ca.list(2026, &[]));
    let before = Trust::read(&router.config, None).unwrap();
    assert_eq!((before.lists().len(), before.lists().due().unwrap().as_secs()), (1, 1_798_761_600));
    std::fs::remove_file(router.config.lists()).unwrap();
    assert!(router.trust().unwrap().lists().is_empty());
    let error = Trust::read(&router.config, Some(&before)).unwrap_err();
    let gone = format!("a revocation list that was in or beside {at}/ca.pem is gone");
    assert_eq!(error.to_string(), gone);
    // That of another authority does not do; with an authority, its list goes.
    let other = Ca::new("two");
    router.put("ca.pem", &(router.ca.pem.clone() + &other.pem + &other.list(2026, &[])));
    assert_eq!(Trust::read(&router.config, Some(&before)).unwrap_err().to_string(), gone);
    router.put("ca.pem", &other.pem);
    assert!(Trust::read(&router.config, Some(&before)).unwrap().lists().is_empty());
}

#[test]
fn any_bytes_may_be_a_list() {
    use proptest::prelude::*;
    proptest!(|(data in proptest::collection::vec(any::<u8>(), 0..128))| {
        let _ = Lists::parse([data]);
    });
    let whole = Ca::new("one").list(2026, &[SERIAL]);
    let whole = rustls_pki_types::CertificateRevocationListDer::from_pem_slice(whole.as_bytes()).unwrap();
    assert_eq!(Lists::parse([whole.to_vec()]).unwrap().len(), 1);
    for length in 0..whole.len() {
        assert!(Lists::parse([whole[..length].to_vec()]).is_err(), "cut at {length}");
    }
}
