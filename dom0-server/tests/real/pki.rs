//! `xenflow pki`: what an authority issues, renews, revokes and hands out, as OpenSSL sees it, and what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Dir, ok, refused, run};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_authority_issues_and_never_overwrites() {
    let dir = Dir::new();
    let ca = dir.0.join("ca");
    let at = ca.display();
    let call = |line: &str| run("unix:/nowhere", line);
    let no = |line: &str, code, message: &str| refused(line, &call(line), code, message);
    let init = format!("pki init {at}");
    assert_eq!(ok(&init, call(&init)), format!("created {at}/ca.pem and {at}/ca.key; keep the key here\n"));
    assert_eq!(mode(&ca.join("ca.key")), 0o600);
    no(&init, 2, &format!("{at}/ca.pem exists already: an authority is never overwritten"));

    let issue = format!("pki issue router r1 --ca {at}");
    let said = ok(&issue, call(&issue));
    assert!(said.starts_with("issued xenflow://router/r1 until 2"), "{said}");
    assert!(said.ends_with(&format!(": {at}/r1.pem and {at}/r1.key\n")), "{said}");
    assert_eq!(mode(&ca.join("r1.key")), 0o600);
    let (cert, key) = (fs::read(ca.join("r1.pem")).unwrap(), fs::read(ca.join("r1.key")).unwrap());
    no(
        &issue,
        2,
        &format!(
            "{at}/r1.pem exists already: 'xenflow pki renew' replaces the certificate of the same identity"
        ),
    );
    let wrong = format!("pki renew node r1 --ca {at}");
    no(&wrong, 2, &format!("{at}/r1.pem is not a certificate of xenflow://node/r1, so it is not renewed"));
    assert_eq!(fs::read(ca.join("r1.pem")).unwrap(), cert);
    let renew = format!("pki renew router r1 --ca {at}");
    assert!(ok(&renew, call(&renew)).starts_with("issued xenflow://router/r1 until 2"));
    assert_ne!(fs::read(ca.join("r1.pem")).unwrap(), cert);
    assert_ne!(fs::read(ca.join("r1.key")).unwrap(), key);
    assert_eq!(mode(&ca.join("r1.key")), 0o600);

    let out = dir.0.join("out");
    let line = format!("pki issue node a --ca {at} --out {} --days 7 --json", out.display());
    let said: Value = serde_json::from_str(&ok(&line, call(&line))).unwrap();
    assert_eq!(said["identity"], "xenflow://node/a");
    assert_eq!(said["key"], out.join("a.key").to_str().unwrap());

    let text = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(out.join("a.pem"))
        .output()
        .expect("openssl is needed");
    let text = String::from_utf8(text.stdout).unwrap();
    for part in [
        "URI:xenflow://node/a",
        "IP Address:FE80:0:0:0:0:0:0:1",
        "IP Address:169.254.0.1",
        "Subject: CN = a",
        "TLS Web Client Authentication, TLS Web Server Authentication",
        "NIST CURVE: P-256",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-purpose", "sslserver", "-CAfile"]).arg(ca.join("ca.pem")).arg(out.join("a.pem"));
    let verified = verify.output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));

    for (line, code, message) in [
        (
            format!("pki issue router R --ca {at}"),
            2,
            "\"R\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit".to_owned(),
        ),
        (
            format!("pki issue router ca --ca {at}"),
            2,
            "\"ca\" is the authority's own file name: choose another name or directory".to_owned(),
        ),
        (
            format!("pki issue router crl --ca {at}"),
            2,
            "\"crl\" is the authority's own file name: choose another name or directory".to_owned(),
        ),
        (format!("pki issue router r2 --ca {at} --days 0"), 2, "0s is out of range: 1m to 3650d".to_owned()),
        (
            format!("pki issue router r2 --ca {at} --days 2 --minutes 9"),
            2,
            "the argument '--days <DAYS>' cannot be used with '--minutes <MINUTES>'".to_owned(),
        ),
        (
            format!("pki issue router r2 --ca {at}/nix"),
            1,
            format!("cannot open the directory {at}/nix: No such file or directory (os error 2)"),
        ),
        (
            format!("pki issue guest r2 --ca {at}"),
            2,
            "invalid value 'guest' for '<KIND>' [possible values: router, node, operator]".to_owned(),
        ),
    ] {
        no(&line, code, &message);
    }
    assert!(!ca.join("r2.pem").exists() && !ca.join("r2.key").exists());

    fs::copy(ca.join("r1.key"), ca.join("ca.key")).unwrap();
    no(&format!("pki issue router r2 --ca {at}"), 1, &format!("{at}/ca.key is not the key of {at}/ca.pem"));
}

/// An operator is a client without a common name, which only nodes have; with `revoke` it is one no more.
#[test]
fn the_authority_issues_to_operators() {
    let dir = Dir::new();
    let ca = dir.0.join("ca");
    let at = ca.display();
    let call = |line: &str| run("unix:/nowhere", line);
    let done = |line: &str| ok(line, call(line));
    let issue = format!("pki issue operator ann --ca {at} --minutes 90");
    done(&format!("pki init {at}"));
    let said = done(&issue);
    assert!(said.starts_with("issued xenflow://operator/ann until 2"), "{said}");
    assert!(said.ends_with(&format!(": {at}/ann.pem and {at}/ann.key\n")), "{said}");
    assert_eq!(mode(&ca.join("ann.key")), 0o600);

    let mut show = Command::new("openssl");
    show.args(["x509", "-noout", "-subject", "-ext", "subjectAltName,extendedKeyUsage", "-in"]);
    let text = show.arg(ca.join("ann.pem")).output().expect("openssl is needed").stdout;
    let text = String::from_utf8(text).unwrap();
    for part in
        ["subject=OU = operator ann\n", "URI:xenflow://operator/ann\n", "TLS Web Client Authentication\n"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    for part in ["Server", "IP Address"] {
        assert!(!text.contains(part), "{part}: {text}");
    }
    // A node of the same name has files of the same name: neither takes the other's place.
    let wrong = format!("pki renew node ann --ca {at}");
    let said = format!("{at}/ann.pem is not a certificate of xenflow://node/ann, so it is not renewed");
    refused(&wrong, &call(&wrong), 2, &said);

    let bundle = ca.join("bundle");
    let export = format!("pki export --ca {at} --out {}", bundle.display());
    done(&export);
    verify(&bundle, &ca.join("ann.pem")).unwrap();
    done(&format!("pki revoke operator ann --ca {at}"));
    done(&export);
    let error = verify(&bundle, &ca.join("ann.pem")).unwrap_err();
    assert!(error.contains("certificate revoked"), "{error}");
    let listed: Vec<Value> = serde_json::from_str(&done(&format!("pki list --ca {at} --json"))).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["identity"], "xenflow://operator/ann");
    assert_eq!(listed[0]["state"], "revoked");
}

/// Whether OpenSSL takes this certificate for a client's of this bundle, lists looked at.
fn verify(bundle: &Path, cert: &Path) -> Result<(), String> {
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-purpose", "sslclient", "-crl_check", "-CAfile"]).arg(bundle);
    let verified = verify.arg("-CRLfile").arg(bundle).arg(cert).output().expect("openssl is needed");
    let text = String::from_utf8(verified.stderr).unwrap();
    if verified.status.success() { Ok(()) } else { Err(text) }
}

#[test]
fn the_authority_revokes_lists_exports_and_rotates() {
    let dir = Dir::new();
    let ca = dir.0.join("ca");
    let at = ca.display();
    let call = |line: &str| run("unix:/nowhere", line);
    let done = |line: &str| ok(line, call(line));
    let no = |line: &str, message: &str| refused(line, &call(line), 2, message);
    done(&format!("pki init {at}"));
    for holder in ["router r1", "router r2", "node a"] {
        done(&format!("pki issue {holder} --ca {at}"));
    }
    let list =
        || -> Vec<Value> { serde_json::from_str(&done(&format!("pki list --ca {at} --json"))).unwrap() };
    let states = || {
        list()
            .iter()
            .map(|row| format!("{} {}", row["identity"].as_str().unwrap(), row["state"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        states(),
        ["xenflow://router/r1 valid", "xenflow://router/r2 valid", "xenflow://node/a valid"]
    );
    let text = done(&format!("pki list --ca {at}"));
    assert!(text.starts_with("IDENTITY             ISSUER"), "{text}");
    let serial = list()[1]["serial"].as_str().unwrap().to_owned();

    let bundle = dir.0.join("bundle.pem");
    let export = format!("pki export --ca {at} --out {}", bundle.display());
    assert_eq!(done(&export), format!("wrote {}\n", bundle.display()));
    assert_eq!(done(&format!("pki export --ca {at}")), fs::read_to_string(&bundle).unwrap());
    for cert in ["r1.pem", "r2.pem", "a.pem"] {
        assert_eq!(verify(&bundle, &ca.join(cert)), Ok(()), "{cert}");
    }

    let gone = list()[0]["serial"].as_str().unwrap().to_owned();
    assert_eq!(
        done(&format!("pki revoke router r1 --reason key-compromise --ca {at}")),
        format!("revoked {gone} of xenflow://router/r1\nsigned {at}/crl.pem\n")
    );
    no(
        &format!("pki revoke router r1 --ca {at}"),
        "every certificate of xenflow://router/r1 is revoked already",
    );
    no(
        &format!("pki revoke router r9 --ca {at}"),
        "no certificate of xenflow://router/r9 is known: revoke it by --serial",
    );
    let said: Value =
        serde_json::from_str(&done(&format!("pki revoke --serial {serial} --ca {at} --json"))).unwrap();
    assert_eq!(said["revoked"][0]["identity"], "xenflow://router/r2");
    no(&format!("pki revoke --serial {serial} --ca {at}"), &format!("certificate {serial} was revoked"));
    no(
        &format!("pki revoke --serial xyz --ca {at}"),
        "\"xyz\" is not a serial number: 1 to 20 bytes in hexadecimal, colons as you like",
    );
    assert_eq!(call(&format!("pki revoke router --ca {at}")).status.code(), Some(2));
    assert_eq!(call(&format!("pki revoke --ca {at}")).status.code(), Some(2));
    assert_eq!(
        states(),
        ["xenflow://router/r1 revoked", "xenflow://router/r2 revoked", "xenflow://node/a valid"]
    );
    done(&export);
    for (cert, counts) in [("r1.pem", false), ("r2.pem", false), ("a.pem", true)] {
        let verified = verify(&bundle, &ca.join(cert));
        assert_eq!(verified.is_ok(), counts, "{cert}: {verified:?}");
        assert!(counts || verified.unwrap_err().contains("certificate revoked"), "{cert}");
    }

    no(&format!("pki rotate --finish --ca {at}"), "the authority is not being rotated");
    done(&format!("pki renew router r1 --ca {at}"));
    let said: Value = serde_json::from_str(&done(&format!("pki rotate --ca {at} --json"))).unwrap();
    assert_eq!(said["in_use"], 2);
    no(
        &format!("pki rotate --ca {at}"),
        "the authority is rotated already: 'xenflow pki rotate --finish' ends that",
    );
    done(&format!("pki renew router r1 --ca {at}"));
    done(&export);
    for cert in ["r1.pem", "a.pem"] {
        assert_eq!(verify(&bundle, &ca.join(cert)), Ok(()), "{cert} of one of two authorities");
    }
    let finish = format!("pki rotate --finish --ca {at}");
    no(
        &finish,
        "1 certificates of the old authority are in use, that of xenflow://node/a among them: renew them first, or give them \
         up with --force",
    );
    done(&format!("pki renew node a --ca {at}"));
    assert_eq!(done(&finish), format!("{} is dropped\n", said["old"].as_str().unwrap()));
    done(&export);
    assert_eq!(verify(&bundle, &ca.join("a.pem")), Ok(()));
    assert_eq!(mode(&ca.join("ca.key")), 0o600);
}
