//! What is taken and what is not, over real files.

use std::os::unix::fs::PermissionsExt;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);
/// 2026-11-21.
const NOW: Duration = Duration::from_secs(1_795_219_200);

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn leaf(&self, key: &KeyPair, uri: &str, usage: ExtendedKeyUsagePurpose, days: i64) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.to_owned().try_into().unwrap())];
        params.extended_key_usages = vec![usage];
        params.not_before = rcgen::date_time_ymd(2026, 11, 20);
        params.not_after = rcgen::date_time_ymd(2026, 11, 21) + DAY * u32::try_from(days).unwrap();
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }
}

fn certificate(der: &[u8]) -> String {
    pem("CERTIFICATE", std::iter::once(der))
}

/// A router with credentials of ten days.
struct Router {
    dir: tempfile::TempDir,
    config: Config,
    ca: Ca,
    key: KeyPair,
}

const R1: &str = "xenflow://router/r1";
const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;

impl Router {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = format!(
            "router = \"r1\"\ncontrol_interface = \"ctl\"\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            at("ca.pem"),
            at("r1.pem"),
            at("r1.key")
        );
        let config = Config::parse(&text, Path::new("guest.toml")).unwrap();
        let (ca, key) = (Ca::new("one"), KeyPair::generate().unwrap());
        let cert = ca.leaf(&key, R1, CLIENT, 10);
        fs::write(&config.ca, certificate(&ca.der)).unwrap();
        fs::write(&config.cert, certificate(&cert)).unwrap();
        fs::write(&config.key, key.serialize_pem()).unwrap();
        Self { dir, config, ca, key }
    }

    fn answer(&self, days: i64) -> Renewed {
        let chain = vec![self.ca.leaf(&self.key, R1, CLIENT, days)];
        Renewed { chain, anchors: vec![self.ca.der.clone()] }
    }

    fn files(&self) -> [Vec<u8>; 3] {
        [&self.config.ca, &self.config.cert, &self.config.key].map(|path| fs::read(path).unwrap())
    }
}

#[test]
fn a_third_of_the_lifetime_is_left_when_it_is_due() {
    let validity = Validity { not_before: NOW, not_after: NOW + DAY * 30 };
    assert_eq!(due(validity, NOW), DAY * 20);
    assert_eq!(due(validity, NOW - DAY), DAY * 21);
    for late in [20, 29, 31, 400] {
        assert_eq!(due(validity, NOW + DAY * late), Duration::ZERO, "{late}");
    }
    // The wrong way round: at once, and no overflow.
    assert_eq!(due(Validity { not_before: NOW, not_after: Duration::ZERO }, NOW), Duration::ZERO);
}

#[test]
fn certificate_and_authorities_are_replaced_and_the_key_is_not() {
    let router = Router::new();
    let other = Ca::new("two");
    let mut answer = router.answer(30);
    answer.anchors.push(other.der.clone());
    let before = router.files();
    // Of a client that was killed in between.
    fs::write(router.dir.path().join("r1.pem.new"), "half").unwrap();
    let valid = install(&router.config, &answer, NOW).unwrap();
    assert_eq!(valid.not_after, NOW + DAY * 30);
    assert_eq!(current(&router.config).unwrap(), valid);
    let [ca, cert, key] = router.files();
    assert_ne!(cert, before[1]);
    assert_eq!(key, before[2]);
    assert_eq!(String::from_utf8(ca).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    let trust = tls::Trust::read(&router.config, None).unwrap();
    tls::client_config(&router.config, trust).unwrap();
    assert_eq!(fs::metadata(&router.config.cert).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(router.dir.path()).unwrap().count(), 3, "nothing is left over");
}

/// `xenflow pki export` writes both into one text, and an answer has certificates only.
#[test]
fn lists_among_the_authorities_stay() {
    let router = Router::new();
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 11, 20),
        next_update: rcgen::date_time_ymd(2026, 11, 27),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&router.ca.issuer).unwrap().pem().unwrap();
    fs::write(&router.config.ca, certificate(&router.ca.der) + &list).unwrap();
    let mut answer = router.answer(30);
    answer.anchors.push(Ca::new("two").der);
    install(&router.config, &answer, NOW).unwrap();
    let text = fs::read_to_string(&router.config.ca).unwrap();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(lines(&text).ends_with(&lines(&list)), "{text}");
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(tls::Trust::read(&router.config, None).unwrap().lists().len(), 1);
}

#[test]
fn what_cannot_be_replaced_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    // A file cannot take the place of a directory.
    let path = dir.path().join("ca.pem");
    fs::create_dir(&path).unwrap();
    let error = replace(&path, "text").unwrap_err();
    assert_eq!(error.to_string(), format!("cannot replace {}", path.display()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn symbolic_links_stay() {
    let mut router = Router::new();
    let link = router.dir.path().join("link.pem");
    std::os::unix::fs::symlink("r1.pem", &link).unwrap();
    router.config.cert = link.clone();
    install(&router.config, &router.answer(30), NOW).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(current(&router.config).unwrap().not_after, NOW + DAY * 30);
}

#[test]
fn what_does_not_hold_changes_nothing() {
    let router = Router::new();
    let before = router.files();
    let other_key = KeyPair::generate().unwrap();
    let other_ca = Ca::new("two");
    let leaf = |key, uri, usage, days| router.ca.leaf(key, uri, usage, days);
    let refused = |change: &dyn Fn(&mut Renewed)| {
        let mut answer = router.answer(30);
        change(&mut answer);
        let error = install(&router.config, &answer, NOW).unwrap_err();
        assert_eq!(router.files(), before, "{error}");
        error.to_string()
    };
    let key = &router.key;
    let stays = "the renewed certificate does not hold under the authorities of the answer";
    type Damage<'a> = &'a dyn Fn(&mut Renewed);
    let cases: [(Damage, &str); 9] = [
        (
            &|a| a.chain = vec![leaf(&other_key, R1, CLIENT, 30)],
            "the renewed certificate is not for the key in ",
        ),
        (
            &|a| a.chain = vec![leaf(key, "xenflow://router/r2", CLIENT, 30)],
            "the renewed certificate is not that of router \"r1\"",
        ),
        (
            &|a| a.chain = vec![leaf(key, "xenflow://node/r1", CLIENT, 30)],
            "the renewed certificate is not that of router \"r1\"",
        ),
        (&|a| a.chain = vec![vec![0x30, 0]], "the renewed certificate is not that of router \"r1\""),
        (&|a| a.chain = vec![leaf(key, R1, ExtendedKeyUsagePurpose::ServerAuth, 30)], stays),
        (&|a| a.chain = vec![leaf(key, R1, CLIENT, 9)], "the renewed certificate ends before the one"),
        (&|a| a.anchors = vec![other_ca.der.clone()], stays),
        (&|a| a.anchors.push(vec![1, 2, 3]), "authority 2 of the answer is not usable as a CA"),
        (&|a| a.anchors.clear(), stays),
    ];
    for (change, said) in cases {
        let error = refused(change);
        assert!(error.starts_with(said), "{error}");
    }
    let error = install(&router.config, &router.answer(30), NOW + DAY * 31).unwrap_err();
    assert!(matches!(error, InstallError::Chain(webpki::Error::CertExpired { .. })), "{error}");
}

#[test]
fn a_file_that_holds_both_is_never_replaced() {
    let mut router = Router::new();
    let both = [fs::read(&router.config.cert).unwrap(), fs::read(&router.config.key).unwrap()].concat();
    fs::write(&router.config.cert, &both).unwrap();
    router.config.key = router.config.cert.clone();
    let error = install(&router.config, &router.answer(30), NOW).unwrap_err();
    assert!(matches!(error, InstallError::Shared(_)), "{error}");
    assert_eq!(fs::read(&router.config.cert).unwrap(), both);
}
