//! `identity`: certificates of routers and of their node are renewed and revoked, their authority is rotated and at last
//! given up for somebody else's, under sessions that live on them and a probe that crosses one of the routers.

mod external;
mod keys;
mod site;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use self::external::External;
use self::site::{LIMIT, Site, Who};
use crate::one_router::H2;
use crate::probe::Probe;
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "identity",
    about: "renewal, revocation, rotation and another authority, under live sessions and a probe",
    memory_mib: 512,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("probe_lost", "0"),
        ("renewed_before_end_s", "more than 0"),
        ("sessions_ended_by_renewal", "0"),
        ("revoked_session_ended_ms", "at most 2000"),
        ("sessions_after_revoke", "0"),
        ("sessions_after_new_certificate", "1"),
        ("sessions_of_others_ended", "0"),
        ("revoked_node_left_ms", "at most 3000"),
        ("sessions_with_revoked_node", "0"),
        ("sessions_without_that_list_control", "1"),
        ("sessions_with_node_again", "1"),
        ("keys_seen", "0"),
        ("keys_seen_control", "more than 0"),
        ("keys_open", "0"),
        ("keys_open_control", "1"),
    ],
    run,
};

const RATE: u32 = 100;
/// r1's second certificate is for so long; the client asks for the next when a third of its time is left, where the five
/// minutes count that every certificate begins early: after 20 s.
const SHORT: &str = "3";
const RENEWAL: Duration = Duration::from_secs(60);
/// A revoked session ends within: the daemon looks every second.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A guest leaves a revoked node within: it looks every second, and is one of several on the lab's processor.
const NODE_LEFT: Duration = Duration::from_secs(3);

fn run(lab: &mut Lab) -> Result<Value> {
    lab.step("making host a with the authority, r1 between h1 and h2, and r2");
    let mut site = Site::build(lab)?;
    let mut figures = Map::new();
    for who in [Who::R1, Who::R2] {
        site.issue("issue", who, &[])?;
        site.start_client(who)?;
    }
    site.wait_forwarding()?;
    lab.ready()?;
    let probe = Probe::start(lab, site.h[0].netns(), site.h[1].netns(), format!("{H2}:7000").parse()?, RATE)?;

    lab.step("a new authority beside the old one: r2 gets a certificate of it, r1's client asks for its own");
    renewal(&mut site, &mut figures)?;
    lab.step("the old authority goes");
    finish(&mut site, &mut figures)?;
    lab.step("r1 is revoked");
    revocation(&mut site, &mut figures)?;
    lab.step("node a is revoked");
    revoked_node(&mut site, &mut figures)?;
    lab.step("an authority of OpenSSL in place of the built-in one");
    let external = External::create(&mut site, lab.work().join("external"))?;
    other_authority(&mut site, &external, &mut figures)?;
    let report = probe.stop()?;
    ensure!(report.lost == 0 && report.sent > 1000, "the probe h1 → h2: {report:?}");
    figures.insert("probe_sent".into(), report.sent.into());
    figures.insert("probe_lost".into(), report.lost.into());

    lab.step("looking for keys in everything that was written");
    secrets(lab, &mut site, &external, &mut figures)?;
    Ok(Value::Object(figures))
}

/// What tells a file from the one that takes its place.
fn stamp(path: &Path) -> Result<(u64, Vec<u8>)> {
    Ok((fs::metadata(path)?.ino(), fs::read(path)?))
}

/// Both authorities are trusted: one router moves over by hand, the other over its session.
fn renewal(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    site.look_at_keys()?;
    site.issue("renew", Who::R1, &["--minutes", SHORT])?;
    site.router(Who::R1).stop_client()?;
    site.start_client(Who::R1)?;
    let begin = site.mark()?;
    let begun: Value = serde_json::from_str(&site.pki(&["rotate", "--json"])?)?;
    ensure!(begun["in_use"] == 3, "r1, r2 and node a have certificates of the old authority: {begun}");
    site.wait_read_again(begin)?;
    site.look_at_keys()?;
    let (cert, key) = (site.paper(Who::R1, "pem"), site.paper(Who::R1, "key"));
    let (old_cert, old_key) = (stamp(&cert)?, stamp(&key)?);
    let old_end = site.end_of(&cert)?;
    ensure!(site.ended(begin, None)? == 0, "a session ended when a second authority came");

    site.issue("renew", Who::R2, &[])?;
    site.export(Who::R2)?;
    site.router(Who::R2).stop_client()?;
    site.start_client(Who::R2)?;

    site.router(Who::R1).client()?.wait_for_log("the certificate was renewed", RENEWAL)?;
    let left = old_end - i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    ensure!(left > 0, "the certificate ended {} s before it was renewed", -left);
    let (new_cert, new_key) = (stamp(&cert)?, stamp(&key)?);
    ensure!(new_cert.0 != old_cert.0, "the file was written over, not replaced");
    ensure!(site.end_of(&cert)? > old_end, "the new certificate lasts no longer");
    ensure!(new_key == old_key, "a renewal is for the same key, in the same file");
    let names: Vec<_> =
        fs::read_dir(site.papers(Who::R1))?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(names.len() == 3, "something was left behind: {names:?}");
    let anchors =
        fs::read_to_string(site.papers(Who::R1).join("ca.pem"))?.matches("BEGIN CERTIFICATE").count();
    ensure!(anchors == 2, "r1 trusts {anchors} authorities and not both");
    let ended = site.ended(begin, Some(Who::R1))?;
    ensure!(ended == 0, "r1's session ended in its renewal");
    figures.insert("renewed_before_end_s".into(), left.into());
    figures.insert("sessions_ended_by_renewal".into(), ended.into());
    Ok(())
}

/// Nobody needs the old authority: it goes, and a session that began under it is had again with what is new.
fn finish(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    let begin = site.mark()?;
    site.pki(&["renew", "node", "a"])?;
    site.wait_read_again(begin)?;
    let begin = site.mark()?;
    // Without --force: refused while a certificate of the old authority is in use.
    site.pki(&["rotate", "--finish"])?;
    site.wait_logged(begin, 1, &["session ended", "router/r1 is trusted no more"])?;
    let start = Instant::now();
    wait_for("r1 to come back", LIMIT, || Ok((site.opened(begin, Who::R1)? == 1).then_some(())))?;
    figures.insert("session_after_rotation_ms".into(), millis(start.elapsed())?);
    ensure!(site.logged(begin, &["is refused"])?.is_empty(), "r1 was refused with what it had been given");
    ensure!(site.ended(begin, Some(Who::R2))? == 0, "r2 had moved, and its session ended");
    Ok(())
}

fn revocation(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    let begin = site.mark()?;
    let flows = site.flows()?;
    let start = Instant::now();
    site.pki(&["revoke", "router", "r1", "--reason", "key-compromise"])?;
    let command = start.elapsed();
    let ended = site.wait_logged(
        begin,
        1,
        &["session ended", "router/r1 is trusted no more: its certificate was revoked"],
    )?;
    ensure!(ended <= AT_ONCE, "the revoked session lived on for {ended:?}");
    let refused = ["is refused with certificate", "of xenflow://router/r1: its certificate was revoked"];
    site.wait_logged(begin, 3, &refused)?;
    let told =
        site.router(Who::R1).client()?.log().contains("is trusted no more: its certificate was revoked");
    ensure!(told, "r1's client was not told why");
    let after = site.opened(begin, Who::R1)?;
    let others = site.ended(begin, Some(Who::R2))?;
    ensure!(after == 0, "r1 had {after} sessions with a revoked certificate");
    ensure!(others == 0, "r2's session ended");
    let now = site.flows()?;
    ensure!(now == flows, "other flows than before: {flows:#?} {now:#?}");

    // By the same count a session that comes is seen.
    site.issue("renew", Who::R1, &[])?;
    wait_for("r1 to come back", LIMIT, || Ok((site.opened(begin, Who::R1)? > 0).then_some(())))?;
    let again = site.opened(begin, Who::R1)?;
    ensure!(again == 1, "r1 came back {again} times");
    for (name, value) in [
        ("revoke_command_ms", millis(command)?),
        ("revoked_session_ended_ms", millis(ended)?),
        ("refused_after_revoke", site.logged(begin, &refused)?.len().into()),
        ("sessions_after_revoke", after.into()),
        ("sessions_after_new_certificate", again.into()),
        ("sessions_of_others_ended", others.into()),
    ] {
        figures.insert(name.into(), value);
    }
    Ok(())
}

/// r1 learns that its node was revoked, from a list beside its authorities; r2 has an older one, and knows nothing of it.
fn revoked_node(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    let begin = site.mark()?;
    site.pki(&["revoke", "node", "a", "--reason", "key-compromise"])?;
    let heard = site.router(Who::R1).client()?.log().len();
    let start = Instant::now();
    site.hand_lists(Who::R1)?;
    let said = |site: &mut Site, words: &str| -> Result<bool> {
        Ok(site.router(Who::R1).client()?.log().get(heard..).unwrap_or_default().contains(words))
    };
    let left = "the certificate of the host counts no more: it was revoked";
    wait_for("r1 to leave its node", LIMIT, || Ok(said(site, left)?.then_some(())))?;
    let ended = start.elapsed();
    ensure!(ended <= NODE_LEFT, "r1 stayed with a node that was revoked for {ended:?}");
    let refused = "certificate of the host: it was revoked";
    wait_for("r1 to refuse its node", LIMIT, || {
        Ok((said(site, "TLS with ")? && said(site, refused)?).then_some(()))
    })?;
    site.wait_logged(begin, 3, &["CertificateRevoked"])?;
    let after = site.opened(begin, Who::R1)?;
    ensure!(after == 0, "r1 had {after} sessions with a node that was revoked");
    ensure!(site.ended(begin, Some(Who::R2))? == 0, "r2's session ended, and its list does not say so");

    // The control: who has not that list takes the same node at the same time.
    site.router(Who::R2).stop_client()?;
    let control = site.mark()?;
    site.start_client(Who::R2)?;
    let accepted = site.opened(control, Who::R2)?;
    ensure!(accepted == 1, "r2 had {accepted} sessions");

    site.pki(&["renew", "node", "a"])?;
    wait_for("r1 to come back", LIMIT, || Ok((site.opened(begin, Who::R1)? > 0).then_some(())))?;
    let again = site.opened(begin, Who::R1)?;
    for (name, value) in [
        ("revoked_node_left_ms", millis(ended)?),
        ("sessions_with_revoked_node", after.into()),
        ("sessions_without_that_list_control", accepted.into()),
        ("sessions_with_node_again", again.into()),
    ] {
        figures.insert(name.into(), value);
    }
    Ok(())
}

/// Everybody moves to an authority that this product knows nothing of, and that one revokes.
fn other_authority(site: &mut Site, external: &External, figures: &mut Map<String, Value>) -> Result<()> {
    site.look_at_keys()?;
    external.issue(site, "a", "xenflow://node/a", "serverAuth,clientAuth")?;
    for who in [Who::R1, Who::R2] {
        external.issue(site, who.name(), &who.uri(), "clientAuth")?;
        for (from, to) in [("root.pem".to_owned(), "ca.pem".to_owned()), same(who, "pem"), same(who, "key")] {
            let (new, to) = (site.papers(who).join("new"), site.papers(who).join(to));
            fs::copy(external.at(&from), &new)?;
            fs::rename(new, to)?;
        }
    }
    let file = |name: &str| Some(external.at(name));
    site.configure_daemon(&[
        ("ca", file("root.pem")),
        ("cert", file("a.pem")),
        ("key", file("a.key")),
        ("crl", file("crl.pem")),
        ("issuer_dir", None),
    ])?;
    let begin = site.restart_daemon()?;
    let start = Instant::now();
    for who in [Who::R1, Who::R2] {
        wait_for("a session by the other authority", LIMIT, || {
            Ok((site.opened(begin, who)? == 1).then_some(()))
        })?;
    }
    figures.insert("sessions_by_other_authority_ms".into(), millis(start.elapsed())?);
    site.wait_forwarding()?;

    let begin = site.mark()?;
    external.revoke(site, "r2")?;
    let ended = site.wait_logged(
        begin,
        1,
        &["session ended", "router/r2 is trusted no more: its certificate was revoked"],
    )?;
    ensure!(ended <= AT_ONCE, "the session that another authority revoked lived on for {ended:?}");
    ensure!(site.ended(begin, Some(Who::R1))? == 0, "r1's session ended");
    figures.insert("revoked_by_other_authority_ended_ms".into(), millis(ended)?);
    Ok(())
}

fn same(who: Who, ending: &str) -> (String, String) {
    let name = format!("{}.{ending}", who.name());
    (name.clone(), name)
}

/// No key is in a log, in what a command printed, or in a file that is none; and no key's file is open to others.
fn secrets(lab: &Lab, site: &mut Site, external: &External, figures: &mut Map<String, Value>) -> Result<()> {
    site.pki(&["list"])?;
    site.pki(&["export"])?;
    let [authority, r1, r2] = site.look_at_keys()?;
    site.keys.learn(&[external.dir().to_owned()])?;
    let keys = &site.keys;
    ensure!(keys.count() == 12, "{} keys", keys.count());
    let mut seen = keys.seen(&site.printed);
    for dir in [&authority, &r1, &r2, external.dir(), lab.results()] {
        seen += keys.seen_below(dir)?;
    }
    let open = keys.open();
    // Seen where there is one, and by either sign; open where it is.
    let text = fs::read_to_string(authority.join("ca.key"))?;
    let lines: Vec<&str> = text.lines().collect();
    let by_sign: Vec<usize> =
        lines.iter().take(3).map(|line| keys.seen(&format!("key=\"{line}\""))).collect();
    ensure!(by_sign == [1, 1, 1], "a key that is shown is not seen: {by_sign:?}");
    let copy = lab.work().join("copy-of-a-key");
    fs::write(&copy, &text)?;
    let open_control = usize::from(keys::is_open(&copy)?);
    ensure!(seen == 0, "{seen} lines of keys where none should be");
    ensure!(open.is_empty(), "others may read {open:?}");
    ensure!(open_control == 1, "a key of mode 0644 is not seen to be open");
    for (name, value) in [
        ("keys", keys.count()),
        ("keys_seen", seen),
        ("keys_seen_control", keys.seen(&text)),
        ("keys_open", open.len()),
        ("keys_open_control", open_control),
    ] {
        figures.insert(name.into(), json!(value));
    }
    Ok(())
}

fn millis(time: Duration) -> Result<Value> {
    Ok(u64::try_from(time.as_millis())?.into())
}
