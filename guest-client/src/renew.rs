//! Renewal of this router's certificate over the session: when to ask, and what to do with the answer. The key stays;
//! files are replaced, never written over. Asking and hearing is the driver's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use xenflow_proto::message::Renewed;

use crate::config::Config;
use crate::tls::{self, Lists, TlsError};
use crate::validity::{Validity, validity};

/// After a question without an answer, the next one waits for so long. A host answers one a minute at most.
pub const ASK_AGAIN: Duration = Duration::from_secs(90);

/// Why a renewed certificate was not taken. The files are as they were, but for [`InstallError::Write`].
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The credentials that are to be replaced.
    #[error(transparent)]
    Own(#[from] TlsError),
    /// Not of this router, or of nobody.
    #[error("the renewed certificate is not that of router \"{router}\"")]
    Identity {
        /// Whose it should be.
        router: String,
        /// What is in it.
        #[source]
        source: tls::CertificateIdentityError,
    },
    /// For another key.
    #[error("the renewed certificate is not for the key in {}", path.display())]
    Key {
        /// The file with the key.
        path: PathBuf,
        /// What rustls says.
        #[source]
        source: rustls::Error,
    },
    /// An authority that cannot be one.
    #[error("authority {0} of the answer is not usable as a CA")]
    Anchor(usize, #[source] webpki::Error),
    /// Not of these authorities, not valid now, or not for clients.
    #[error("the renewed certificate does not hold under the authorities of the answer")]
    Chain(#[source] webpki::Error),
    /// Its validity cannot be read.
    #[error("the renewed certificate does not say how long it is valid")]
    Validity,
    /// It ends before the present one, which would make an old answer count.
    #[error("the renewed certificate ends before the one that it is to replace")]
    Older,
    /// Two of the three files are one.
    #[error("{} is named twice among ca, cert and key: nothing in it is replaced", .0.display())]
    Shared(PathBuf),
    /// A file.
    #[error("cannot replace {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How long the certificate in use is valid.
///
/// # Errors
/// [`TlsError`] if it cannot be read.
pub fn current(config: &Config) -> Result<Validity, TlsError> {
    let chain = tls::certificates(&config.cert)?;
    let own = chain.first().ok_or_else(|| TlsError::Empty(config.cert.clone()))?;
    validity(own).ok_or_else(|| TlsError::Validity(config.cert.clone()))
}

/// How long to wait before the host is asked for a certificate in place of this one: until a third of its lifetime is
/// left. `now` is since 1970-01-01 UTC, as the validity is.
#[must_use]
pub fn due(validity: Validity, now: Duration) -> Duration {
    let Validity { not_before, not_after } = validity;
    let at = not_after.saturating_sub(not_after.saturating_sub(not_before) / 3);
    at.saturating_sub(now)
}

/// The clock, since 1970-01-01 UTC.
#[must_use]
pub fn now() -> Duration {
    Duration::from_secs(UnixTime::now().as_secs())
}

/// Puts a renewed certificate and the authorities in the place of the present ones, if they hold. The next handshake
/// uses them; says how long the new one is valid. Revocation lists stay.
///
/// # Errors
/// [`InstallError`] says what does not hold.
pub fn install(config: &Config, renewed: &Renewed, now: Duration) -> Result<Validity, InstallError> {
    let (ca, cert) = (target(&config.ca), target(&config.cert));
    let key = target(&config.key);
    if let Some(path) = [&cert, &key].into_iter().find(|&path| *path == ca) {
        return Err(InstallError::Shared(path.clone()));
    }
    if cert == key {
        return Err(InstallError::Shared(cert));
    }
    let present = current(config)?;
    let chain: Vec<_> = renewed.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let anchors: Vec<_> = renewed.anchors.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let valid = check(config, &chain, &anchors, now)?;
    if valid.not_after < present.not_after {
        return Err(InstallError::Older);
    }
    // What was revoked stays so: lists that the file of the authorities holds are not replaced.
    let lists = Lists::in_file(&ca)?;
    // The host takes the present certificate for a while yet, so the order of the two matters to nobody.
    replace(&ca, &(pem("CERTIFICATE", anchors.iter().map(|cert| &**cert)) + &pem("X509 CRL", lists.ders())))?;
    replace(&cert, &pem("CERTIFICATE", chain.iter().map(|cert| &**cert)))?;
    Ok(valid)
}

fn check(
    config: &Config,
    chain: &[CertificateDer<'static>],
    anchors: &[CertificateDer<'static>],
    now: Duration,
) -> Result<Validity, InstallError> {
    let (own, intermediates) = chain.split_first().ok_or_else(|| TlsError::Empty(config.cert.clone()))?;
    let identity = tls::router_identity(own, &config.router);
    identity.map_err(|source| InstallError::Identity { router: config.router.clone(), source })?;
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|source| TlsError::Pem { path: config.key.clone(), source })?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(vec![own.clone()], key, &provider)
        .map_err(|source| InstallError::Key { path: config.key.clone(), source })?;
    let mut roots = Vec::new();
    for (at, anchor) in anchors.iter().enumerate() {
        let root = webpki::anchor_from_trusted_cert(anchor);
        roots.push(root.map_err(|source| InstallError::Anchor(at + 1, source))?);
    }
    let end_entity = webpki::EndEntityCert::try_from(own).map_err(InstallError::Chain)?;
    end_entity
        .verify_for_usage(
            provider.signature_verification_algorithms.all,
            &roots,
            intermediates,
            UnixTime::since_unix_epoch(now),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(InstallError::Chain)?;
    validity(own).ok_or(InstallError::Validity)
}

/// Behind symbolic links, which stay.
fn target(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Puts a new file in the place of another in one step: whoever reads sees the one or the other, also after a crash.
fn replace(path: &Path, text: &str) -> Result<(), InstallError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        match fs::remove_file(&new) {
            // Left behind by a client that was killed in between.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&new);
        InstallError::Write { path: path.into(), source }
    })?;
    // Where that cannot be done, a crash may bring the old file back, which is as good until it is replaced again.
    if let Some(Ok(parent)) = path.parent().map(File::open) {
        let _ = parent.sync_all();
    }
    Ok(())
}

/// RFC 7468.
fn pem<'a>(label: &str, ders: impl Iterator<Item = &'a [u8]>) -> String {
    let mut text = String::new();
    for der in ders {
        text += &format!("-----BEGIN {label}-----\n");
        // 48 bytes are a line of 64 characters.
        for line in der.chunks(48) {
            base64(line, &mut text);
            text.push('\n');
        }
        text += &format!("-----END {label}-----\n");
    }
    text
}

/// RFC 4648, 4.
fn base64(bytes: &[u8], text: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte));
        let word = word << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let digit = ALPHABET.get((word >> (18 - 6 * at) & 63) as usize).filter(|_| at <= chunk.len());
            text.push(digit.map_or('=', |&digit| digit.into()));
        }
    }
}

#[cfg(test)]
mod tests;
