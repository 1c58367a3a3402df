//! Credentials in files: what is read, what is named as wrong, and what a change does to who is there.

use std::fs;
use std::path::PathBuf;

use tokio::time::timeout;

use super::*;
use crate::captured::Log;

/// A host's directory, which goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = Self(std::env::temp_dir().join(format!("xenflow-tls-{name}-{}", std::process::id())));
        crate::pki::init(&dir.0, now()).unwrap();
        dir.issue("xenflow://node/a");
        dir.issue("xenflow://router/r1");
        dir
    }

    fn store(&self) -> Store {
        Store::open(&self.0).unwrap()
    }

    fn issue(&self, uri: &str) {
        self.store().issue(&self.0, &identity(uri), DAY, now(), false).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn files(&self) -> Files {
        Files { ca: self.at("ca.pem"), cert: self.at("a.pem"), key: self.at("a.key"), crl: None }
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_file(self.at(name)).unwrap()]
    }

    fn revoke(&self, uri: &str) {
        self.store().revoke(&Which::Identity(identity(uri)), Reason::Unspecified, now()).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

const DAY: time::Duration = time::Duration::DAY;
const LONG: Duration = Duration::from_secs(20);

/// Waits until the files were read again after a change.
async fn next(current: &mut Current) -> Arc<Server> {
    timeout(LONG, current.changed()).await.expect("read again").unwrap();
    current.borrow_and_update().clone()
}

fn peer(current: &Current, chain: &[CertificateDer<'static>], issuer: Option<&Dir>) -> Peer {
    Access::new(current.clone(), issuer.map(|dir| dir.0.clone())).now().peer(Some(chain))
}

/// Past the first reading.
async fn follow_from_now(files: Files) -> Current {
    follow_with(files, None).await
}

async fn follow_with(files: Files, issuer: Option<&Dir>) -> Current {
    let mut current = follow(files.clone(), files.load().unwrap(), issuer.map(|dir| dir.0.clone()));
    next(&mut current).await;
    current
}

#[test]
fn files_are_read_and_misuse_is_named() {
    let dir = Dir::new("files");
    let files = dir.files();
    assert_eq!(files.load().unwrap().identity, identity("xenflow://node/a"));
    let said = |change: &dyn Fn(&mut Files)| {
        let mut files = dir.files();
        change(&mut files);
        line(&files.load().unwrap_err())
    };
    let at = |name: &str| dir.at(name).display().to_string();
    let router = |f: &mut Files| (f.cert, f.key) = (dir.at("r1.pem"), dir.at("r1.key"));
    let advice = "'xenflow pki issue node' makes one that is";
    assert_eq!(said(&router), format!("{} is of xenflow://router/r1, not of a node: {advice}", at("r1.pem")));
    assert_eq!(
        said(&|f| (f.cert, f.key) = (dir.at("ca.pem"), dir.at("ca.key"))),
        format!("{} is not of a node: {advice}: the certificate names no xenflow:// identity", at("ca.pem"))
    );
    assert_eq!(
        said(&|f| f.key = dir.at("r1.key")),
        format!(
            "{} and {} are no certificate and its key: keys may not be consistent: KeyMismatch",
            at("a.pem"),
            at("r1.key")
        )
    );
    assert_eq!(said(&|f| f.ca = dir.at("a.key")), format!("{} holds no certificate in PEM", at("a.key")));
    assert_eq!(said(&|f| f.key = dir.at("ca.pem")), format!("{} holds no private key in PEM", at("ca.pem")));
    assert_eq!(
        said(&|f| f.crl = Some(dir.at("ca.pem"))),
        format!("{} holds no revocation list in PEM", at("ca.pem"))
    );
    let nix = |name: &str| format!("cannot read {}: No such file or directory (os error 2)", at(name));
    assert_eq!(said(&|f| f.ca = dir.at("nix")), nix("nix"));
    assert_eq!(said(&|f| f.crl = Some(dir.at("nix.pem"))), nix("nix.pem"));
    fs::write(dir.at("crl.pem"), "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n").unwrap();
    let broken = format!("a revocation list in {} cannot be used: ", at("crl.pem"));
    assert!(said(&|_| {}).starts_with(&broken), "{}", said(&|_| {}));
    fs::remove_file(dir.at("crl.pem")).unwrap();
    assert!(files.load().unwrap().trust.lists().0.is_empty(), "without a list there is none");
}

/// A list that is too old still revokes, and cuts off nobody else.
#[test]
fn old_lists_still_count() {
    let dir = Dir::new("old");
    let long_ago = now() - time::Duration::days(100);
    let r1 = Which::Identity(identity("xenflow://router/r1"));
    dir.store().revoke(&r1, Reason::Unspecified, long_ago).unwrap();
    dir.issue("xenflow://router/r2");
    // Issuing has signed it anew; here, nobody has for 100 days.
    dir.store().publish(long_ago).unwrap();
    let server = dir.files().load().unwrap();
    assert!(server.trust.lists().due().unwrap() < now());
    let time = rustls_pki_types::UnixTime::now();
    let said = server.trust.check(&dir.chain("r1.pem"), time).unwrap_err().to_string();
    assert_eq!(said, "its certificate was revoked");
    server.trust.check(&dir.chain("r2.pem"), time).unwrap();
}

#[tokio::test]
async fn a_revoked_peer_is_told_apart_at_once_and_others_stay() {
    let dir = Dir::new("revoke");
    dir.issue("xenflow://router/r2");
    let mut current = follow_from_now(dir.files()).await;
    let mut peers = ["r1", "r2"].map(|name| peer(&current, &dir.chain(&format!("{name}.pem")), None));
    dir.revoke("xenflow://router/r1");
    let [r1, r2] = &mut peers;
    let gone = timeout(LONG, r1.distrusted(&identity("xenflow://router/r1"))).await.expect("at once");
    assert_eq!(line(&gone), "xenflow://router/r1 is trusted no more: its certificate was revoked");
    next(&mut current).await;
    let stays = timeout(Duration::from_millis(100), r2.distrusted(&identity("xenflow://router/r2"))).await;
    assert!(stays.is_err(), "r2 was not revoked");
}

#[tokio::test]
async fn broken_files_bring_nobody_back() {
    let dir = Dir::new("broken");
    dir.revoke("xenflow://router/r1");
    let log = Log::start();
    let mut current = follow_from_now(dir.files()).await;
    let list = fs::read(dir.at("crl.pem")).unwrap();
    let path = dir.at("crl.pem").display().to_string();
    let broken = [
        (Some(&b""[..]), format!("{path} holds no revocation list in PEM")),
        (
            Some(b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"),
            format!("a revocation list in {path} cannot be used: "),
        ),
        (None, format!("cannot read {path}: No such file or directory (os error 2)")),
    ];
    for (number, (contents, said)) in broken.iter().enumerate() {
        match contents {
            Some(contents) => fs::write(&path, contents).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let lines = log.wait(number + 1, "what was read before stays in force").await;
        assert!(lines[number].contains(said) && lines[number].starts_with("ERROR"), "{lines:#?}");
    }
    assert!(!current.has_changed().unwrap(), "nothing of this was taken");
    let check = |server: &Server| {
        server.trust.check(&dir.chain("r1.pem"), rustls_pki_types::UnixTime::now()).unwrap_err().to_string()
    };
    assert_eq!(check(&current.borrow()), "its certificate was revoked");
    fs::write(dir.at("crl.pem"), list).unwrap();
    assert_eq!(check(&*next(&mut current).await), "its certificate was revoked");
}

#[tokio::test]
async fn a_host_whose_certificate_ends_soon_says_so() {
    let dir = Dir::new("soon");
    let log = Log::start();
    let current = follow_from_now(dir.files()).await;
    assert_eq!(log.lines("ends soon"), Vec::<String>::new());
    let a = identity("xenflow://node/a");
    // Two days, of which less than a day and a half is over.
    let written = dir.store().issue(&dir.0, &a, DAY * 2, now() - DAY * 3 / 2, true).unwrap();
    let [line] = log.wait(1, "ends soon").await.try_into().unwrap();
    assert!(
        line.starts_with("WARN") && line.contains(&format!("ends={}", written.not_after.date())),
        "{line}"
    );
    drop(current);
}

#[tokio::test]
async fn a_host_with_an_authority_renews_its_own_certificate_in_time() {
    let dir = Dir::new("own");
    let log = Log::start();
    let a = identity("xenflow://node/a");
    let soon = dir.store().issue(&dir.0, &a, DAY * 2, now() - DAY * 3 / 2, true).unwrap();
    let (cert, key) = (dir.chain("a.pem"), fs::read(dir.at("a.key")).unwrap());
    let mut current = follow_with(dir.files(), Some(&dir)).await;
    while current.borrow().chain == cert {
        next(&mut current).await;
    }
    let server = current.borrow().clone();
    assert_eq!((server.chain.as_slice(), &server.identity), (dir.chain("a.pem").as_slice(), &a));
    let (_, new) = x509_parser::parse_x509_certificate(&server.chain[0]).unwrap();
    assert!(new.validity().not_after.to_datetime() >= soon.not_after + DAY);
    assert_eq!(fs::read(dir.at("a.key")).unwrap(), key, "the key stays");
    let [line] = log.wait(1, "would end soon").await.try_into().unwrap();
    assert!(line.starts_with("INFO") && line.contains("it was renewed"), "{line}");
    assert_eq!(server.ends_soon(now()), None, "and rests for two thirds of its time");
    server.trust.check_host(&server.chain, rustls_pki_types::UnixTime::now()).unwrap();
    assert!(dir.store().records().iter().any(|record| record.serial == Serial::new(new.raw_serial())));
}

#[tokio::test]
async fn a_revoked_host_is_not_renewed() {
    let dir = Dir::new("own-revoked");
    let log = Log::start();
    let a = identity("xenflow://node/a");
    dir.store().issue(&dir.0, &a, DAY * 2, now() - DAY * 3 / 2, true).unwrap();
    dir.revoke("xenflow://node/a");
    let before = dir.chain("a.pem");
    let current = follow_with(dir.files(), Some(&dir)).await;
    let [line] = log.wait(1, "ends soon").await.try_into().unwrap();
    assert!(line.starts_with("WARN") && line.contains("revoked"), "{line}");
    assert_eq!(dir.chain("a.pem"), before);
    drop(current);
}

#[tokio::test]
async fn rotation_keeps_everybody_until_it_is_finished() {
    let dir = Dir::new("rotate");
    let mut current = follow_from_now(dir.files()).await;
    let mut old = peer(&current, &dir.chain("r1.pem"), None);
    dir.store().rotate(now()).unwrap();
    assert_eq!(next(&mut current).await.trust.anchors().len(), 2);
    let who = identity("xenflow://router/r1");
    let stays = timeout(Duration::from_millis(100), old.distrusted(&who)).await;
    assert!(stays.is_err(), "both authorities are trusted");
    dir.store().issue(&dir.0, &who, DAY, now(), true).unwrap();
    dir.store().issue(&dir.0, &identity("xenflow://node/a"), DAY, now(), true).unwrap();
    next(&mut current).await;
    let mut new = peer(&current, &dir.chain("r1.pem"), None);
    dir.store().finish(now(), false).unwrap();
    let gone = timeout(LONG, old.distrusted(&who)).await.expect("at once");
    assert_eq!(
        line(&gone),
        "xenflow://router/r1 is trusted no more: its certificate is of an unknown authority"
    );
    let stays = timeout(Duration::from_millis(100), new.distrusted(&who)).await;
    assert!(stays.is_err(), "the new authority is trusted");
}

#[tokio::test]
async fn a_guest_gets_a_certificate_for_its_key_and_no_other() {
    let dir = Dir::new("renewal");
    let current = follow_from_now(dir.files()).await;
    let who = identity("xenflow://router/r1");
    let asking = |issuer| Renewals::new(peer(&current, &dir.chain("r1.pem"), issuer));
    assert!(asking(None).answer(&who).await.is_none(), "no authority here");
    let mut renewals = asking(Some(&dir));
    let renewed = renewals.answer(&who).await.unwrap();
    assert_eq!(renewed.anchors, [dir.chain("ca.pem")[0].to_vec()]);
    let [new] = renewed.chain.as_slice() else { panic!("{renewed:?}") };
    assert_eq!(certificate_identity(new).unwrap(), who);
    let spki = |der: &[u8]| x509_parser::parse_x509_certificate(der).unwrap().1.public_key().raw.to_vec();
    assert_eq!(spki(new), spki(&dir.chain("r1.pem")[0]));
    current.borrow().trust.check(&[new.clone().into()], rustls_pki_types::UnixTime::now()).unwrap();
    assert!(renewals.answer(&who).await.is_none(), "one a minute");

    // Revoked, and the daemon has not seen it yet.
    dir.revoke("xenflow://router/r1");
    assert!(asking(Some(&dir)).answer(&who).await.is_none());
    let records = dir.store();
    let of_r1 = records.records().iter().filter(|record| record.identity.as_ref() == Some(&who));
    assert_eq!(of_r1.map(|record| record.revoked.is_some()).collect::<Vec<_>>(), [true, true]);
}
