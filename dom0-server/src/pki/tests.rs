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

fn open(dir: &Dir) -> Store {
    Store::open(&dir.0).unwrap()
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

/// RBAC of the database knows a node by its common name.
#[test]
fn only_a_node_has_a_common_name() {
    let (authority, _) = Authority::new(Validity::days(now(), CA_DAYS)).unwrap();
    let longest = "n".repeat(63);
    for (kind, name, subject) in [
        ("node", "a", "a".to_owned()),
        ("router", "a", "router a".to_owned()),
        ("operator", "a", "operator a".to_owned()),
        ("node", &longest, longest.clone()),
        ("router", &longest, format!("router {}", &longest[..57])),
        ("operator", &longest, format!("operator {}", &longest[..55])),
    ] {
        let identity = identity(&format!("xenflow://{kind}/{name}"));
        let pair = authority.issue(&identity, Validity::days(now(), 1)).unwrap();
        let (_, pem) = parse_x509_pem(pair.cert.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        let common: Vec<_> = cert.subject().iter_common_name().map(|name| name.as_str().unwrap()).collect();
        let unit: Vec<_> =
            cert.subject().iter_organizational_unit().map(|name| name.as_str().unwrap()).collect();
        let (has, has_not) = if kind == "node" { (common, unit) } else { (unit, common) };
        assert_eq!((has.as_slice(), has_not.len()), ([subject.as_str()].as_slice(), 0));
        assert_eq!(crate::tls::certificate_identity(&pem.contents), Ok(identity));
    }
}

#[test]
fn no_leaf_outlives_the_authority() {
    let dir = Dir::new("long");
    init(&dir.0, now()).unwrap();
    let late = now() + Duration::days(i64::from(CA_DAYS) - 10);
    let try_days =
        |days| open(&dir).issue(&dir.0, &identity("xenflow://node/a"), Duration::days(days), late, false);
    let error = try_days(11).unwrap_err();
    assert!(matches!(error, PkiError::TooLong { .. }), "{error}");
    assert_eq!(try_days(10).unwrap().not_after, now() + Duration::days(CA_DAYS.into()));
}

#[test]
fn a_killed_renewal_does_not_block_the_next() {
    let dir = Dir::new("renew");
    init(&dir.0, now()).unwrap();
    let run = |renew| open(&dir).issue(&dir.0, &identity("xenflow://node/a"), MONTH, now(), renew);
    let written = run(false).unwrap();
    std::fs::write(dir.0.join("a.key.new"), "half").unwrap();
    run(true).unwrap();
    assert!(std::fs::read_to_string(&written.key).unwrap().ends_with("-----END PRIVATE KEY-----\n"));
    assert!(!dir.0.join("a.key.new").exists());
}

const MONTH: Duration = Duration::days(30);

fn router(name: &str) -> Identity {
    identity(&format!("xenflow://router/{name}"))
}

/// An authority with routers r1, r2 and node a.
fn populated(name: &str) -> Dir {
    let dir = Dir::new(name);
    init(&dir.0, now()).unwrap();
    for uri in ["xenflow://router/r1", "xenflow://router/r2", "xenflow://node/a"] {
        open(&dir).issue(&dir.0, &identity(uri), MONTH, now(), false).unwrap();
    }
    dir
}

fn der(dir: &Dir, file: &str) -> Vec<u8> {
    parse_x509_pem(&std::fs::read(dir.0.join(file)).unwrap()).unwrap().1.contents
}

/// Serial numbers on the lists of each authority, in the file's order.
fn revoked(dir: &Dir) -> Vec<Vec<String>> {
    let text = std::fs::read(dir.0.join(CRL)).unwrap();
    let lists = x509_parser::pem::Pem::iter_from_buffer(&text).map(Result::unwrap);
    let serials = |list: x509_parser::pem::Pem| {
        let (_, list) = x509_parser::parse_x509_crl(&list.contents).unwrap();
        list.iter_revoked_certificates().map(|one| Serial::new(one.raw_serial()).to_string()).collect()
    };
    lists.map(serials).collect()
}

#[test]
fn what_is_revoked_is_on_the_list_and_stays_there() {
    let dir = populated("revoke");
    assert_eq!(revoked(&dir), [Vec::<String>::new()], "there is a list from the beginning");
    let revoke =
        |which: &Which, days| open(&dir).revoke(which, Reason::KeyCompromise, now() + Duration::days(days));
    open(&dir).issue(&dir.0, &router("r1"), MONTH, now(), true).unwrap();
    let gone = revoke(&Which::Identity(router("r1")), 0).unwrap();
    let serials: Vec<_> = gone.iter().map(|record| record.serial.to_string()).collect();
    assert_eq!(serials.len(), 2, "the renewed one too");
    assert_eq!(revoked(&dir), std::slice::from_ref(&serials));
    let again = revoke(&Which::Identity(router("r1")), 0).unwrap_err();
    assert_eq!(again.to_string(), "every certificate of xenflow://router/r1 is revoked already");
    let unknown = revoke(&Which::Identity(router("r9")), 0).unwrap_err();
    assert_eq!(unknown.to_string(), "no certificate of xenflow://router/r9 is known: revoke it by --serial");

    // By number, also one that nobody has heard of.
    let r2 = Serial::new(x509_parser::parse_x509_certificate(&der(&dir, "r2.pem")).unwrap().1.raw_serial());
    assert_eq!(revoke(&Which::Serial(r2.clone()), 0).unwrap()[0].identity, Some(router("r2")));
    assert!(matches!(revoke(&Which::Serial(r2), 0), Err(PkiError::Revoked(_))));
    assert_eq!(revoke(&Which::Serial("0badcafe".parse().unwrap()), 0).unwrap()[0].identity, None);
    assert_eq!(revoked(&dir)[0].len(), 4);
    // An expired one as well: a session may have begun with it.
    assert_eq!(revoke(&Which::Identity(identity("xenflow://node/a")), 100).unwrap().len(), 1);
    assert_eq!(revoked(&dir)[0].len(), 5);
    // The name may be used again, with a certificate of its own.
    open(&dir).issue(&dir.0, &router("r1"), MONTH, now(), true).unwrap();
    assert_eq!(open(&dir).records().last().unwrap().state(now()), State::Valid);
}

/// Of an authority that is trusted here and run elsewhere, or whose key was lost.
#[test]
fn lists_of_others_stay_while_they_are_trusted() {
    let dir = populated("others");
    let (other, pair) = Authority::new(Validity::days(now(), 30)).unwrap();
    let gone = Record {
        serial: "0badcafe".parse().unwrap(),
        issuer: other.name.clone(),
        identity: None,
        not_before: 0,
        not_after: NOW,
        revoked: Some(Revoked { at: NOW, reason: Reason::Superseded }),
    };
    let list = other.revocations([&gone], now()).unwrap();
    let append = |file: &str, more: &str| {
        let text = std::fs::read_to_string(dir.0.join(file)).unwrap();
        std::fs::write(dir.0.join(file), text + more).unwrap();
    };
    append(CRL, &list);
    open(&dir).revoke(&Which::Identity(router("r1")), Reason::Superseded, now()).unwrap();
    assert_eq!(revoked(&dir).len(), 1, "it is trusted by nobody here");
    append(CA_CERT, &pair.cert);
    append(CRL, &list);
    for _ in 0..2 {
        open(&dir).publish(now()).unwrap();
        assert_eq!(revoked(&dir)[1], ["0badcafe"]);
        assert_eq!(revoked(&dir).len(), 2);
    }
}

#[test]
fn an_old_key_that_is_none_is_told_before_anything_is_published() {
    let dir = populated("oldkey");
    open(&dir).rotate(now()).unwrap();
    open(&dir).revoke(&Which::Identity(router("r1")), Reason::Superseded, now()).unwrap();
    std::fs::write(dir.0.join(CA_OLD_KEY), "").unwrap();
    let error = Store::open(&dir.0).err().unwrap().to_string();
    let at = |file| dir.0.join(file).display().to_string();
    assert_eq!(error, format!("{} is not the key of {}", at(CA_OLD_KEY), at(CA_CERT)));
    // One that is gone: what it revoked is on its last list, which stays.
    std::fs::remove_file(dir.0.join(CA_OLD_KEY)).unwrap();
    open(&dir).publish(now()).unwrap();
    assert_eq!(revoked(&dir).iter().map(Vec::len).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn lists_do_not_get_old_while_something_is_issued() {
    let dir = populated("fresh");
    let signed = || {
        let (_, pem) = parse_x509_pem(&std::fs::read(dir.0.join(CRL)).unwrap()).unwrap();
        x509_parser::parse_x509_crl(&pem.contents).unwrap().1.last_update().timestamp() - NOW
    };
    let renew = |hours| {
        open(&dir).issue(&dir.0, &router("r1"), MONTH, now() + Duration::hours(hours), true).unwrap();
    };
    renew(23);
    assert_eq!(signed(), 0);
    renew(25);
    assert_eq!(signed(), 25 * 3600);
    std::fs::write(dir.0.join(CRL), "x").unwrap();
    renew(26);
    assert_eq!(signed(), 26 * 3600);
}

#[test]
fn without_an_index_what_lies_there_is_known() {
    let dir = populated("adopt");
    let before = open(&dir).records().to_vec();
    std::fs::remove_file(dir.0.join(INDEX)).unwrap();
    std::fs::write(dir.0.join("other.pem"), "no certificate").unwrap();
    let mut after = open(&dir).records().to_vec();
    after.sort_by_key(|record| before.iter().position(|known| known == record));
    assert_eq!(after, before);
    std::fs::write(dir.0.join(INDEX), "\n{\"serial\":1}\n").unwrap();
    let error = Store::open(&dir.0).err().unwrap();
    assert_eq!(error.to_string(), format!("{}, line 2", dir.0.join(INDEX).display()));
}

#[test]
fn reissuing_keeps_key_identity_and_lifetime() {
    let dir = populated("reissue");
    let (old, late) = (der(&dir, "r1.pem"), now() + Duration::days(20));
    let new = open(&dir).reissue(&old, late).unwrap();
    let parsed = |der| x509_parser::parse_x509_certificate(der).unwrap().1;
    assert_eq!(parsed(&new).public_key(), parsed(&old).public_key());
    assert_eq!(crate::tls::certificate_identity(&new), Ok(router("r1")));
    assert_eq!(parsed(&new).validity().not_after.timestamp(), NOW + 50 * 86_400);
    assert_eq!(parsed(&new).validity().not_before.timestamp(), NOW + 20 * 86_400 - 300);
    assert!(!parsed(&new).extended_key_usage().unwrap().unwrap().value.server_auth);
    assert_eq!(open(&dir).records().last().unwrap().identity, Some(router("r1")));
    for _ in 0..6 {
        open(&dir).reissue(&old, late).unwrap();
    }
    let error = open(&dir).reissue(&old, late).unwrap_err();
    assert_eq!(
        error.to_string(),
        "xenflow://router/r1 has 8 valid certificates already, and more are not renewed"
    );
    let r2 = der(&dir, "r2.pem");
    open(&dir).revoke(&Which::Identity(router("r2")), Reason::Unspecified, late).unwrap();
    assert!(matches!(open(&dir).reissue(&r2, late), Err(PkiError::Revoked(_))));
    assert!(matches!(open(&dir).reissue(b"x", late), Err(PkiError::Malformed)));
    // Never longer than the authority.
    let end = now() + Duration::days(i64::from(CA_DAYS) - 10);
    let last = open(&dir).reissue(&old, end).unwrap();
    assert_eq!(parsed(&last).validity().not_after.timestamp(), NOW + i64::from(CA_DAYS) * 86_400);
}

#[test]
fn a_rotation_ends_when_nobody_needs_the_old_authority() {
    let dir = populated("rotate");
    let old = open(&dir).name().to_owned();
    let begun = open(&dir).rotate(now()).unwrap();
    assert_eq!((begun.old, begun.in_use), (old.clone(), 3));
    assert_ne!(begun.new, old);
    assert!(matches!(open(&dir).rotate(now()), Err(PkiError::Rotating)));
    assert_eq!(open(&dir).anchors().len(), 2);
    assert_eq!(revoked(&dir).len(), 2);
    let renew = |uri| {
        open(&dir).issue(&dir.0, &identity(uri), MONTH, now(), true).unwrap();
        open(&dir).records().last().unwrap().issuer.clone()
    };
    // A guest that knows only the old authority must still know its host.
    assert_eq!(renew("xenflow://router/r1"), begun.new);
    assert_eq!(renew("xenflow://node/a"), old);
    let error = open(&dir).finish(now(), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "2 certificates of the old authority are in use, that of xenflow://router/r2 among them: renew them first, or give \
         them up with --force"
    );
    assert_eq!(renew("xenflow://router/r2"), begun.new);
    assert_eq!(renew("xenflow://node/a"), begun.new);
    open(&dir).revoke(&Which::Identity(router("r2")), Reason::Unspecified, now()).unwrap();
    assert_eq!(
        revoked(&dir).iter().map(Vec::len).collect::<Vec<_>>(),
        [1, 1],
        "each on its authority's list"
    );
    assert_eq!(open(&dir).finish(now(), false).unwrap().dropped, old);
    assert_eq!((open(&dir).anchors().len(), revoked(&dir).len()), (1, 1));
    assert!(!dir.0.join(CA_OLD_KEY).exists());
    assert!(matches!(open(&dir).finish(now(), true), Err(PkiError::NotRotating)));
    assert_eq!(open(&dir).rotate(now()).unwrap().old, begun.new);
    open(&dir).finish(now(), true).unwrap();
}

#[test]
fn a_rotation_that_is_killed_halfway_is_none() {
    let dir = populated("killed");
    let name = open(&dir).name().to_owned();
    let cert = std::fs::read(dir.0.join(CA_CERT)).unwrap();
    open(&dir).rotate(now()).unwrap();
    // As it was just before the last step.
    std::fs::write(dir.0.join(CA_CERT), cert).unwrap();
    assert_eq!(open(&dir).name(), name);
    open(&dir).issue(&dir.0, &router("r1"), MONTH, now(), true).unwrap();
    assert_eq!(open(&dir).rotate(now()).unwrap().old, name);
    assert_eq!(open(&dir).anchors().len(), 2);
}

#[test]
fn keys_are_private_and_everything_else_is_in_place() {
    use std::os::unix::fs::PermissionsExt;
    let dir = populated("modes");
    open(&dir).rotate(now()).unwrap();
    let mut modes: Vec<_> = std::fs::read_dir(&dir.0)
        .unwrap()
        .map(Result::unwrap)
        .map(|file| {
            (file.file_name().into_string().unwrap(), file.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    modes.sort();
    let expected = [
        ("a.key", 0o600),
        ("a.pem", 0o644),
        ("ca-old.key", 0o600),
        ("ca.key", 0o600),
        ("ca.pem", 0o644),
        ("crl.pem", 0o644),
        ("index.jsonl", 0o600),
        ("r1.key", 0o600),
        ("r1.pem", 0o644),
        ("r2.key", 0o600),
        ("r2.pem", 0o644),
    ];
    assert_eq!(modes, expected.map(|(name, mode)| (name.to_owned(), mode)));
    let public = open(&dir).export().unwrap();
    assert_eq!(public.matches("-----BEGIN CERTIFICATE-----").count(), 2);
    assert_eq!(public.matches("-----BEGIN X509 CRL-----").count(), 2);
    assert!(!public.contains("PRIVATE"));
}
