//! The built `xenflow-guest check`: what it finds missing, and that it says so to people, programs and shells.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    SanType, date_time_ymd,
};
use serde_json::Value;

/// Credentials that end in that year, and a configuration of nothing but the interface.
fn router(dir: &Path, last_year: i32) -> Issuer<'static, KeyPair> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI("xenflow://router/r1".to_owned().try_into().unwrap())];
    leaf.not_before = date_time_ymd(2020, 1, 1);
    leaf.not_after = date_time_ymd(last_year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    fs::write(dir.join("r1.pem"), leaf.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(dir.join("r1.key"), key.serialize_pem()).unwrap();
    fs::set_permissions(dir.join("r1.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let text = format!(
        "control_interface = \"nix0\"\nca = {:?}\ncert = {:?}\nkey = {:?}\nstatus_socket = {:?}\n",
        at("ca.pem"),
        at("r1.pem"),
        at("r1.key"),
        at("sock")
    );
    fs::write(dir.join("guest.toml"), text).unwrap();
    issuer
}

/// A list that revokes nobody, until that year.
fn list(issuer: &Issuer<'static, KeyPair>, last_year: i32) -> String {
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(last_year, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(issuer).unwrap().pem().unwrap()
}

fn run(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow-guest"));
    command.args(args).arg("--config").arg(dir.join("guest.toml")).output().unwrap()
}

fn check(dir: &Path) -> Vec<(String, String, String)> {
    let output = run(dir, &["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    for line in &lines {
        assert_eq!(line["verdict"] == "ok", line["remedy"].is_null(), "what to do about {line}");
    }
    lines.iter().map(|line| (text(line, "check"), text(line, "verdict"), text(line, "detail"))).collect()
}

fn find<'a>(lines: &'a [(String, String, String)], what: &str) -> (&'a str, &'a str) {
    let (_, verdict, detail) = lines.iter().find(|(check, ..)| check == what).unwrap();
    (verdict, detail)
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    router(dir, 2090);
    let lines = check(dir);
    assert_eq!(find(&lines, "interface"), ("fail", "interface nix0 is not there"));
    let key = dir.join("r1.key");
    assert_eq!(find(&lines, "key"), ("ok", &*format!("{} has mode 0600", key.display())));
    let (verdict, detail) = find(&lines, "certificate");
    assert!(verdict == "ok" && detail.starts_with("that of router r1, ends in 2"), "{detail}");
    assert_eq!(find(&lines, "client").0, "warn");
    let (verdict, detail) = find(&lines, "revocations");
    assert!(verdict == "warn" && detail.starts_with("no list in "), "{detail}");
    assert!(lines.iter().all(|(check, ..)| check != "host"), "there is no way to it");
    for what in ["forwarding", "redirects", "rights", "kernel"] {
        find(&lines, what);
    }

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let lines = check(dir);
    let said = format!("{} has mode 0640: others than its owner may read it", key.display());
    assert_eq!(find(&lines, "key"), ("warn", &*said));

    for (end, verdict, said) in
        [(2090, "ok", "1 list, to be replaced in 2"), (2022, "warn", "1 list, should have been replaced ")]
    {
        let issuer = router(dir, 2090);
        fs::write(dir.join("crl.pem"), list(&issuer, end)).unwrap();
        let lines = check(dir);
        let (is, detail) = find(&lines, "revocations");
        assert!(is == verdict && detail.starts_with(said), "{is}: {detail}");
    }
    fs::write(dir.join("crl.pem"), "").unwrap();
    let lines = check(dir);
    let said = format!("{} holds no revocation list", dir.join("crl.pem").display());
    assert_eq!(find(&lines, "certificate"), ("fail", &*said));
    fs::remove_file(dir.join("crl.pem")).unwrap();

    router(dir, 2021);
    let lines = check(dir);
    let (verdict, detail) = find(&lines, "certificate");
    assert!(verdict == "fail" && detail.starts_with("that of router r1, expired "), "{detail}");

    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let lines = check(dir);
    let (verdict, detail) = find(&lines, "certificate");
    assert!(verdict == "fail" && detail.starts_with("certificate and key cannot be used: "), "{detail}");

    let output = run(dir, &["check"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("\nFAIL interface: interface nix0 is not there\n     -> plug in the control vif"),
        "{text}"
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("xenflow-guest: 2 of ") && error.ends_with(" checks failed\n"), "{error}");
}

#[test]
fn a_configuration_that_cannot_be_used_is_a_failure_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (text, detail, remedy) in [
        (
            "cert = \"/nonexistent.pem\"",
            "router is not given, and the certificate does not tell it",
            "copy ca.pem",
        ),
        ("hots = 1", "", "correct the file"),
    ] {
        fs::write(dir.join("guest.toml"), text).unwrap();
        let output = run(dir, &["check", "--json"]);
        assert_eq!(output.status.code(), Some(2));
        let lines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!((&line["check"], &line["verdict"]), (&"configuration".into(), &"fail".into()));
        assert!(line["detail"].as_str().unwrap().contains(detail), "{line}");
        assert!(line["remedy"].as_str().unwrap().starts_with(remedy), "{line}");
        let output = run(dir, &["check"]);
        assert!(String::from_utf8(output.stdout).unwrap().starts_with("FAIL configuration: "));
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("xenflow-guest: "));
        assert_eq!(run(dir, &["status"]).status.code(), Some(2));
        // Without a command, it runs.
        assert_eq!(run(dir, &[]).status.code(), Some(2));
    }
}

/// The interface is looked for where none is named.
#[test]
fn without_an_interface_all_are_asked() {
    let dir = tempfile::tempdir().unwrap();
    router(dir.path(), 2090);
    let file = dir.path().join("guest.toml");
    let text = fs::read_to_string(&file).unwrap().replace("control_interface = \"nix0\"\n", "");
    fs::write(&file, text).unwrap();
    let mut command = Command::new("unshare");
    let command = command.args(["-n", env!("CARGO_BIN_EXE_xenflow-guest"), "check", "--json", "--config"]);
    let output = command.arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let line = lines.iter().find(|line| line["check"] == "interface").unwrap();
    assert_eq!(line["detail"], "no interface that may be the control network's is up");
    assert_eq!(line["remedy"], "plug in the control vif, and `ip link set NAME up`");
}

#[test]
fn the_certificate_tells_the_router_and_shells_are_served() {
    let dir = tempfile::tempdir().unwrap();
    router(dir.path(), 2090);
    let output = run(dir.path(), &["check-config"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("router = \"r1\"\n"), "{text}");
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow-guest"));
        let output = command.args(["completions", shell]).output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains("xenflow-guest"));
    }
}
