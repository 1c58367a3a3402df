//! `xenflow pki`: says what was done and where files were written, never what is in a key.

use std::path::Path;
use std::time::SystemTime;

use dom0_server::clock::utc;
use dom0_server::pki::{self, FileError, PkiError, Reason, Record, Serial, SerialError, State, Store, Which};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use xenflow_proto::Identity;
use xenflow_proto::identity::NameError;

use crate::args::{Holder, IssueArgs, PkiCommand, Why};
use crate::{Failure, output, view};

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Self {
        match error {
            PkiError::CaExists { .. }
            | PkiError::LeafExists { .. }
            | PkiError::OtherIdentity { .. }
            | PkiError::TooLong { .. }
            | PkiError::Life { .. }
            | PkiError::Reserved(_)
            | PkiError::Unknown(_)
            | PkiError::AllRevoked(_)
            | PkiError::Revoked(_)
            | PkiError::Rotating
            | PkiError::NotRotating
            | PkiError::OldInUse { .. } => Self::Input(error.into()),
            PkiError::File(_)
            | PkiError::CaCert { .. }
            | PkiError::CaKey { .. }
            | PkiError::Random
            | PkiError::Make(_)
            | PkiError::Index { .. }
            | PkiError::Write(_)
            | PkiError::Malformed
            | PkiError::TooMany { .. } => Self::Failed(error.into()),
        }
    }
}

impl From<SerialError> for Failure {
    fn from(error: SerialError) -> Self {
        Self::Input(error.into())
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        PkiError::from(error).into()
    }
}

pub(crate) fn run(command: PkiCommand, json: bool) -> Result<(), Failure> {
    let now = OffsetDateTime::from(SystemTime::now());
    match command {
        PkiCommand::Init { dir } => {
            let cert = pki::init(&dir, now)?;
            let (key, crl) = (dir.join(pki::CA_KEY), dir.join(pki::CRL));
            if json {
                output::json(&json!({ "cert": cert, "key": key, "crl": crl }));
            } else {
                let (cert, key) = (cert.display(), key.display());
                output::text(&format!("created {cert} and {key}; keep the key here\n"));
            }
        }
        PkiCommand::Issue(args) => issue(&args, now, json, false)?,
        PkiCommand::Renew(args) => issue(&args, now, json, true)?,
        PkiCommand::Revoke { kind, name, serial, reason, authority } => {
            let which = match (kind, name, serial) {
                (Some(kind), Some(name), _) => Which::Identity(identity(kind, &name)?),
                (_, _, Some(serial)) => Which::Serial(serial.parse::<Serial>()?),
                // The command line was refused already.
                (_, _, None) => return Ok(()),
            };
            let revoked = Store::open(&authority.ca)?.revoke(&which, why(reason), now)?;
            revocations(&revoked, &authority.ca, now, json);
        }
        PkiCommand::List { authority } => {
            let store = Store::open(&authority.ca)?;
            let rows: Vec<_> = store.records().iter().map(|record| row(record, now)).collect();
            if json { output::json(&rows) } else { output::text(&view::columns(&rows)) }
        }
        PkiCommand::Export { out, authority } => {
            let bundle = Store::open(&authority.ca)?.export()?;
            match out {
                Some(out) => {
                    pki::write_public(&out, &bundle)?;
                    let path = out.display();
                    if json {
                        output::json(&json!({ "out": out }));
                    } else {
                        output::text(&format!("wrote {path}\n"));
                    }
                }
                None if json => output::json(&json!({ "pem": bundle })),
                None => output::text(&bundle),
            }
        }
        PkiCommand::Rotate { finish: false, force: _, authority } => {
            let begun = Store::open(&authority.ca)?.rotate(now)?;
            let (new, old, in_use) = (&begun.new, &begun.old, begun.in_use);
            if json {
                output::json(&json!({ "new": new, "old": old, "in_use": in_use }));
            } else {
                output::text(&format!(
                    "{new} signs now, {old} is trusted until 'rotate --finish'; {in_use} certificates of it are in use\n"
                ));
            }
        }
        PkiCommand::Rotate { finish: true, force, authority } => {
            let dropped = Store::open(&authority.ca)?.finish(now, force)?.dropped;
            if json {
                output::json(&json!({ "dropped": dropped }));
            } else {
                output::text(&format!("{dropped} is dropped\n"));
            }
        }
    }
    Ok(())
}

fn identity(kind: Holder, name: &str) -> Result<Identity, NameError> {
    let name = name.parse()?;
    Ok(match kind {
        Holder::Router => Identity::Router(name),
        Holder::Node => Identity::Node(name),
        Holder::Operator => Identity::Operator(name),
    })
}

const fn why(reason: Why) -> Reason {
    match reason {
        Why::Unspecified => Reason::Unspecified,
        Why::KeyCompromise => Reason::KeyCompromise,
        Why::Superseded => Reason::Superseded,
        Why::CessationOfOperation => Reason::CessationOfOperation,
        Why::PrivilegeWithdrawn => Reason::PrivilegeWithdrawn,
    }
}

fn issue(args: &IssueArgs, now: OffsetDateTime, json: bool, renew: bool) -> Result<(), Failure> {
    let identity = identity(args.kind, &args.name)?;
    let ca = &args.authority.ca;
    let out = args.out.as_ref().unwrap_or(ca);
    let days = Duration::days(args.days.into());
    let life = args.minutes.map_or(days, |minutes| Duration::minutes(minutes.into()));
    let written = Store::open(ca)?.issue(out, &identity, life, now, renew)?;
    let end = utc(written.not_after);
    if json {
        let identity = identity.to_string();
        let (cert, key) = (written.cert, written.key);
        output::json(&json!({ "identity": identity, "cert": cert, "key": key, "not_after": end }));
    } else {
        let (cert, key) = (written.cert.display(), written.key.display());
        output::text(&format!("issued {identity} until {end}: {cert} and {key}\n"));
    }
    Ok(())
}

fn row(record: &Record, now: OffsetDateTime) -> Value {
    let date = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map(utc).ok();
    let state = match record.state(now) {
        State::Valid => "valid",
        State::Expired => "expired",
        State::Revoked => "revoked",
    };
    json!({
        "identity": record.identity.as_ref().map(ToString::to_string),
        "serial": record.serial.to_string(),
        "not_after": date(record.not_after),
        "state": state,
        "issuer": record.issuer,
    })
}

fn revocations(revoked: &[Record], ca: &Path, now: OffsetDateTime, json: bool) {
    let crl = ca.join(pki::CRL);
    if json {
        let rows: Vec<_> = revoked.iter().map(|record| row(record, now)).collect();
        output::json(&json!({ "revoked": rows, "crl": crl }));
        return;
    }
    for record in revoked {
        let of = record.identity.as_ref().map(|identity| format!(" of {identity}")).unwrap_or_default();
        output::text(&format!("revoked {}{of}\n", record.serial));
    }
    output::text(&format!("signed {}\n", crl.display()));
}
