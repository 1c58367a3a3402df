//! What is in a certificate, as another parser reads it.

use std::collections::BTreeSet;

use x509_parser::pem::parse_x509_pem;

use super::*;

/// A directory that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("xenflow-pki-{name}-{}", std::process::id())))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A whole second: certificates hold no fraction.
const NOW: i64 = 1_800_000_000;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(NOW).unwrap()
}

fn identity(uri: &str) -> Identity {
    uri.parse().unwrap()
}

#[test]
fn usage_validity_and_serial_of_leaves() {
    let (authority, ca) = Authority::new(Validity::days(now(), CA_DAYS)).unwrap();
    let mut serials = BTreeSet::new();
    for (uri, server) in
        [("xenflow://router/r1", false), ("xenflow://operator/ann", false), ("xenflow://node/a", true)]
    {
        let pair = authority.issue(&identity(uri), Validity::days(now(), 30)).unwrap();
        let (_, pem) = parse_x509_pem(pair.cert.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        assert_eq!(cert.validity().not_before.timestamp(), NOW - 300);
        assert_eq!(cert.validity().not_after.timestamp(), NOW + 30 * 86_400);
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.any, "{uri}");
        assert_eq!(usage.server_auth, server, "{uri}");
        assert!(!cert.is_ca());
        assert_eq!(crate::tls::certificate_identity(&pem.contents), Ok(identity(uri)));
        assert!(serials.insert(cert.raw_serial().to_vec()), "a serial twice");
        assert_eq!(cert.raw_serial().len(), 16);
        let (_, ca) = parse_x509_pem(ca.cert.as_bytes()).unwrap();
        assert_eq!(cert.issuer(), ca.parse_x509().unwrap().subject());
    }
}

#[test]
fn no_leaf_outlives_the_authority() {
    let dir = Dir::new("long");
    init(&dir.0, now()).unwrap();
    let late = now() + Duration::days(i64::from(CA_DAYS) - 10);
    let try_days = |days| issue(&dir.0, &dir.0, &identity("xenflow://node/a"), days, late, false);
    let error = try_days(11).unwrap_err();
    assert!(matches!(error, PkiError::TooLong { days: 11, .. }), "{error}");
    assert_eq!(try_days(10).unwrap().not_after, now() + Duration::days(CA_DAYS.into()));
}

#[test]
fn a_killed_renewal_does_not_block_the_next() {
    let dir = Dir::new("renew");
    init(&dir.0, now()).unwrap();
    let run = |renew| issue(&dir.0, &dir.0, &identity("xenflow://node/a"), 30, now(), renew);
    let written = run(false).unwrap();
    std::fs::write(dir.0.join("a.key.new"), "half").unwrap();
    run(true).unwrap();
    assert!(std::fs::read_to_string(&written.key).unwrap().ends_with("-----END PRIVATE KEY-----\n"));
    assert!(!dir.0.join("a.key.new").exists());
}
