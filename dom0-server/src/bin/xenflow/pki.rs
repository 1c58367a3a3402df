//! `xenflow pki`: says where files were written, never what is in a key.

use std::time::SystemTime;

use dom0_server::pki::{self, PkiError};
use serde_json::json;
use time::OffsetDateTime;
use xenflow_proto::Identity;

use crate::args::{Holder, PkiCommand};
use crate::{Failure, output, view};

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Self {
        match error {
            PkiError::CaExists { .. }
            | PkiError::LeafExists { .. }
            | PkiError::OtherIdentity { .. }
            | PkiError::TooLong { .. }
            | PkiError::Days { .. }
            | PkiError::Reserved(_) => Self::Input(error.into()),
            PkiError::File(_)
            | PkiError::CaCert { .. }
            | PkiError::CaKey { .. }
            | PkiError::Random
            | PkiError::Make(_) => Self::Failed(error.into()),
        }
    }
}

pub(crate) fn run(command: PkiCommand, json: bool) -> Result<(), Failure> {
    let now = OffsetDateTime::from(SystemTime::now());
    match command {
        PkiCommand::Init { dir } => {
            let cert = pki::init(&dir, now)?;
            let key = dir.join(pki::CA_KEY);
            if json {
                output::json(&json!({ "cert": cert, "key": key }));
            } else {
                output::text(&format!(
                    "created {} and {}; keep the key here\n",
                    cert.display(),
                    key.display()
                ));
            }
        }
        PkiCommand::Issue { kind, name, ca, out, days, renew } => {
            let name = name.parse()?;
            let identity = match kind {
                Holder::Router => Identity::Router(name),
                Holder::Node => Identity::Node(name),
                Holder::Operator => Identity::Operator(name),
            };
            let out = out.unwrap_or_else(|| ca.clone());
            let written = pki::issue(&ca, &out, &identity, days, now, renew)?;
            let end = view::date(written.not_after);
            if json {
                let identity = identity.to_string();
                let (cert, key) = (written.cert, written.key);
                output::json(&json!({ "identity": identity, "cert": cert, "key": key, "not_after": end }));
            } else {
                let (cert, key) = (written.cert.display(), written.key.display());
                output::text(&format!("issued {identity} until {end}: {cert} and {key}\n"));
            }
        }
    }
    Ok(())
}
