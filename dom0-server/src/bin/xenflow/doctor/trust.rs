//! Checks of the host's certificate, the authorities that it trusts and what they revoked.

use super::facts::{Life, Trust};
use super::finding::{Finding, fail, ok, or_ok, span, warn};

/// An authority is replaced by hand, on every host and guest: that takes a while.
const AUTHORITY_NOTICE: i64 = 90 * 86_400;

pub(super) fn check(trust: &Trust, now: i64) -> Vec<Finding> {
    let mut all = Vec::new();
    let unread = |check, reason: &String| {
        fail(check, reason.clone(), "correct cert, ca or crl in the daemon's settings, or put the file there")
    };
    match &trust.own {
        Some(Ok(life)) => all.push(own(life, now)),
        Some(Err(reason)) => all.push(unread("certificate", reason)),
        None => {}
    }
    match &trust.authorities {
        Some(Ok(lives)) => all.extend(authorities(lives, trust.issuer.as_deref(), now)),
        Some(Err(reason)) => all.push(unread("authorities", reason)),
        None => {}
    }
    match &trust.lists {
        Some(Ok(lives)) => all.extend(lists(lives, trust, now)),
        Some(Err(reason)) => all.push(unread("revoked", reason)),
        None if trust.own.is_some() => all.push(warn(
            "revoked",
            "there is no list of what was revoked: a stolen certificate counts until it ends",
            "put the authority's crl.pem beside ca, or name it with crl",
        )),
        None => {}
    }
    all
}

/// That it begins or ends, or how long it still lasts.
fn ends(life: &Life, now: i64) -> Result<String, String> {
    match (now < life.begin, now >= life.end) {
        (true, _) => Err(format!("{} counts only in {}", life.of, span(life.begin - now))),
        (_, true) => Err(format!("{} ended {} ago", life.of, span(now - life.end))),
        _ => Ok(format!("{} ends in {}", life.of, span(life.end - now))),
    }
}

pub(super) fn own(life: &Life, now: i64) -> Finding {
    let todo =
        "xenflow pki renew node NAME and copy certificate and key here, or give the host an issuer_dir";
    match ends(life, now) {
        Err(seen) => fail("certificate", seen, format!("{todo}; if it is not over yet, set the clock")),
        Ok(seen) if life.end - now < (life.end - life.begin) / 3 => warn("certificate", seen, todo),
        Ok(seen) => ok("certificate", seen),
    }
}

pub(super) fn authorities(lives: &[Life], issuer: Option<&str>, now: i64) -> Vec<Finding> {
    let check = "authorities";
    let rotate = "xenflow pki rotate, then have ca everywhere replaced by what xenflow pki export prints";
    let mut wrong = Vec::new();
    for life in lives {
        match ends(life, now) {
            Err(seen) => wrong.push(fail(check, seen, rotate)),
            Ok(seen) if life.end - now < AUTHORITY_NOTICE => wrong.push(warn(check, seen, rotate)),
            Ok(_) => {}
        }
    }
    if let Some(issuer) = issuer {
        let unused: Vec<_> = lives.iter().map(|life| life.of.as_str()).filter(|of| *of != issuer).collect();
        if unused.len() == lives.len() {
            wrong.push(fail(
                check,
                format!("the host's certificate is of {issuer}, which is not trusted here"),
                "put that authority into ca, or issue the certificate anew",
            ));
        } else if !unused.is_empty() {
            wrong.push(warn(
                check,
                format!("trusted, and not what signed the host's certificate: {}", unused.join(", ")),
                "if a rotation is done: xenflow pki rotate --finish, and take the old authority out of ca",
            ));
        }
    }
    or_ok(wrong, check, format!("{} trusted", lives.len()))
}

pub(super) fn lists(lives: &[Life], trust: &Trust, now: i64) -> Vec<Finding> {
    let check = "revoked";
    let todo = "have the authority sign a newer list (xenflow pki export) and copy it to crl";
    let mut wrong = Vec::new();
    let known = trust.authorities.as_ref().and_then(|known| known.as_ref().ok());
    for life in lives {
        if known.is_some_and(|known| !known.iter().any(|authority| authority.of == life.of)) {
            let seen = format!("a list of {}, which is not trusted here, is idle", life.of);
            wrong.push(warn(check, seen, "take it out of crl"));
        } else if now >= life.end {
            let seen =
                format!("the list of {} should have been replaced {} ago", life.of, span(now - life.end));
            wrong.push(warn(check, seen, todo));
        }
    }
    let next = lives.iter().map(|life| life.end - now).min().unwrap_or_default();
    or_ok(wrong, check, format!("{} lists, the next one is due in {}", lives.len(), span(next)))
}
