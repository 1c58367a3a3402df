//! The private certificate authority: one directory with `ca.pem`, `ca.key`, `crl.pem` and `index.jsonl`.
//!
//! Owns making the authority, issuing certificates to routers, nodes and operators ([`Authority`]), and the files with
//! what was issued and revoked ([`Store`]). Who may connect is decided in `tls`. Keys are ECDSA P-256, written with
//! mode 0600, and never printed.

mod files;
mod index;
mod store;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::ParsedExtension;
use xenflow_proto::{Identity, Name, control};

pub use files::FileError;
pub(crate) use files::read_bytes;
pub use index::{Reason, Record, RecordError, Revoked, Serial, SerialError, State};
pub use store::{Finish, Rotation, Store, Which, Written};

/// File of the authority's certificate, within its directory; while it is rotated, of the new and the old one's.
pub const CA_CERT: &str = "ca.pem";
/// File of the authority's key, within its directory.
pub const CA_KEY: &str = "ca.key";
/// File of the old authority's key, while the authority is rotated.
pub const CA_OLD_KEY: &str = "ca-old.key";
/// File of the revocation lists, within the authority's directory.
pub const CRL: &str = "crl.pem";
/// File of what was issued, within the authority's directory.
pub const INDEX: &str = "index.jsonl";
/// How long an authority is valid.
pub const CA_DAYS: u32 = 3650;
/// How long a leaf is valid unless told.
pub const LEAF_DAYS: u32 = 30;
/// The shortest that a leaf is valid.
pub const MIN_LIFE: Duration = Duration::minutes(1);
/// When a revocation list says that the next one will be there. An older one still counts.
pub const CRL_DAYS: u32 = 30;
/// Certificates begin so long before they are issued, for peers whose clock is behind.
pub const BACKDATE: Duration = Duration::minutes(5);

/// Why the authority did not do it.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is an authority already.
    #[error("{path} exists already: an authority is never overwritten")]
    CaExists {
        /// The file.
        path: PathBuf,
    },
    /// Of that name there is a certificate or key already.
    #[error("{path} exists already: 'xenflow pki renew' replaces the certificate of the same identity")]
    LeafExists {
        /// The file.
        path: PathBuf,
    },
    /// The certificate to renew is another one's.
    #[error("{path} is not a certificate of {identity}, so it is not renewed")]
    OtherIdentity {
        /// The file.
        path: PathBuf,
        /// Who was asked for.
        identity: Identity,
    },
    /// The authority's certificate cannot be used.
    #[error("{path} is not the certificate of an authority")]
    CaCert {
        /// The file.
        path: PathBuf,
    },
    /// The authority's key cannot be used. Says nothing of the contents.
    #[error("{path} is not the key of {cert}")]
    CaKey {
        /// The file of the key.
        path: PathBuf,
        /// The file of the certificate.
        cert: PathBuf,
    },
    /// The leaf would outlive the authority.
    #[error("{life} is too long: the authority ends on {end}")]
    TooLong {
        /// What was asked for.
        life: Duration,
        /// Last day of the authority.
        end: time::Date,
    },
    /// No validity.
    #[error("{life} is out of range: {MIN_LIFE} to {}", Duration::days(CA_DAYS.into()))]
    Life {
        /// What was asked for.
        life: Duration,
    },
    /// A file that every name but this one may use.
    #[error("\"{0}\" is the authority's own file name: choose another name or directory")]
    Reserved(Name),
    /// The random generator gave nothing.
    #[error("the system's random generator failed")]
    Random,
    /// The certificate could not be made.
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
    /// The index cannot be used.
    #[error("{path}, line {line}")]
    Index {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// The index cannot be written.
    #[error("the index cannot be written")]
    Write(#[from] serde_json::Error),
    /// Nothing was issued to it.
    #[error("no certificate of {0} is known: revoke it by --serial")]
    Unknown(Identity),
    /// There is nothing left to revoke.
    #[error("every certificate of {0} is revoked already")]
    AllRevoked(Identity),
    /// It counts no more, and nothing takes its place.
    #[error("certificate {0} was revoked")]
    Revoked(Serial),
    /// A guest that asks again and again.
    #[error("{identity} has {count} valid certificates already, and more are not renewed")]
    TooMany {
        /// Who.
        identity: Identity,
        /// How many.
        count: usize,
    },
    /// To be renewed is what nobody can read.
    #[error("the certificate to renew cannot be read")]
    Malformed,
    /// There are two authorities already.
    #[error("the authority is rotated already: 'xenflow pki rotate --finish' ends that")]
    Rotating,
    /// There is only one authority.
    #[error("the authority is not being rotated")]
    NotRotating,
    /// The old authority is still needed.
    #[error(
        "{count} certificates of the old authority are in use, that of {first} among them: renew them first, or give them up \
         with --force"
    )]
    OldInUse {
        /// How many.
        count: usize,
        /// One of them.
        first: Identity,
    },
}

/// A certificate and its key, in PEM. Has no `Debug`: the key must not reach a log.
pub struct Pair {
    /// The certificate, PEM.
    pub cert: String,
    /// The key, PKCS #8 in PEM.
    pub key: String,
}

/// An authority that can issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its subject, as the records name it.
    name: String,
    key_id: KeyIdMethod,
    not_after: OffsetDateTime,
}

/// Validity of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First instant.
    pub not_before: OffsetDateTime,
    /// Last instant.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// From five minutes before `now`, for so long from `now` on.
    #[must_use]
    pub fn lasting(now: OffsetDateTime, life: Duration) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + life }
    }

    /// The same in days.
    #[must_use]
    pub fn days(now: OffsetDateTime, days: u32) -> Self {
        Self::lasting(now, Duration::days(days.into()))
    }
}

fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

fn params((kind, name): (DnType, &str), validity: Validity) -> Result<CertificateParams, PkiError> {
    let mut serial: [u8; 16] = random()?;
    // RFC 5280 4.1.2.2: positive, and at most 20 bytes.
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(kind, name);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    Ok(params)
}

impl Authority {
    /// A new authority. Its certificate and key come back to be stored.
    pub fn new(validity: Validity) -> Result<(Self, Pair), PkiError> {
        // No two authorities have one name: a certificate of another one is then refused as such, and not as
        // one of this authority with a bad signature.
        let name = format!("XenFlow CA {:08x}", u32::from_be_bytes(random()?));
        let mut params = params((DnType::CommonName, &name), validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = params.self_signed(&key)?;
        let pair = Pair { cert: cert.pem(), key: key.serialize_pem() };
        Ok((Self::of(cert.der(), key)?.ok_or(rcgen::Error::CouldNotParseCertificate)?, pair))
    }

    /// Of its certificate and a key; none if these two do not make an authority.
    fn of(cert: &CertificateDer<'_>, key: KeyPair) -> Result<Option<Self>, rcgen::Error> {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else { return Ok(None) };
        if !parsed.is_ca() || parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Ok(None);
        }
        let key_id = parsed.iter_extensions().find_map(|extension| {
            let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() else { return None };
            Some(KeyIdMethod::PreSpecified(id.0.to_vec()))
        });
        Ok(Some(Self {
            issuer: Issuer::from_ca_cert_der(cert, key)?,
            name: parsed.subject().to_string(),
            key_id: key_id.unwrap_or(KeyIdMethod::Sha256),
            not_after: parsed.validity().not_after.to_datetime(),
        }))
    }

    /// Issues a certificate with a key of its own. Routers and operators are clients; nodes are clients and servers,
    /// and may answer at the addresses that every host has on the control network.
    pub fn issue(&self, identity: &Identity, validity: Validity) -> Result<Pair, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = self.sign(identity, &key, validity)?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }

    /// Issues a certificate for the key that an identity has already: `spki` in DER (RFC 5280, 4.1.2.7).
    pub fn reissue(
        &self,
        identity: &Identity,
        spki: &[u8],
        validity: Validity,
    ) -> Result<CertificateDer<'static>, PkiError> {
        Ok(self.sign(identity, &SubjectPublicKeyInfo::from_der(spki)?, validity)?.der().clone())
    }

    fn sign(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<Certificate, PkiError> {
        let (kind, name) = subject(identity);
        let mut params = params((kind, &name), validity)?;
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if let Identity::Node(_) = identity {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            let addresses = [IpAddr::V6(control::HOST_IPV6), IpAddr::V4(control::HOST_IPV4)];
            params.subject_alt_names.extend(addresses.map(SanType::IpAddress));
        }
        Ok(params.signed_by(key, &self.issuer)?)
    }

    /// Signs a list, in PEM, of those of the records that this authority issued and that were revoked.
    pub fn revocations<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
        now: OffsetDateTime,
    ) -> Result<String, PkiError> {
        let revoked = |record: &Record| {
            let Revoked { at, reason } = record.revoked.filter(|_| record.issuer == self.name)?;
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(record.serial.bytes()),
                revocation_time: OffsetDateTime::from_unix_timestamp(at).unwrap_or(now),
                reason_code: (reason != Reason::Unspecified).then(|| reason.code()),
                invalidity_date: None,
            })
        };
        let number = u64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or(1);
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::days(CRL_DAYS.into()),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: records.into_iter().filter_map(revoked).collect(),
            key_identifier_method: self.key_id.clone(),
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}

/// Only a node has a common name: OVSDB's RBAC compares it with columns that hold any text, so whoever has one could
/// write rows of that text. The others' unit holds 64 characters (RFC 5280, A.1), so a long name is cut; the identity is
/// elsewhere, and whole.
fn subject(identity: &Identity) -> (DnType, String) {
    let (kind, mut text) = match identity {
        Identity::Node(name) => (DnType::CommonName, name.to_string()),
        Identity::Router(name) => (DnType::OrganizationalUnitName, format!("router {name}")),
        Identity::Operator(name) => (DnType::OrganizationalUnitName, format!("operator {name}")),
    };
    text.truncate(64);
    (kind, text)
}

/// The name within an identity.
#[must_use]
pub const fn name_of(identity: &Identity) -> &Name {
    match identity {
        Identity::Router(name) | Identity::Node(name) | Identity::Operator(name) => name,
    }
}

/// Writes what everybody may read, in one step.
pub fn write_public(path: &Path, text: &str) -> Result<(), FileError> {
    files::replace(path, text, files::PUBLIC)
}

/// Makes an authority in a directory, which is created if need be. Never overwrites one.
pub fn init(dir: &Path, now: OffsetDateTime) -> Result<PathBuf, PkiError> {
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    files::create_dir(dir)?;
    let lock = files::lock(dir)?;
    if let Some(path) = [&cert, &key].into_iter().find(|path| files::exists(path)) {
        return Err(PkiError::CaExists { path: path.clone() });
    }
    let (_, pair) = Authority::new(Validity::days(now, CA_DAYS))?;
    files::create(&key, &pair.key, files::PRIVATE)?;
    files::create(&cert, &pair.cert, files::PUBLIC)?;
    drop(lock);
    Store::open(dir)?.publish(now)?;
    Ok(cert)
}

#[cfg(test)]
mod tests;
