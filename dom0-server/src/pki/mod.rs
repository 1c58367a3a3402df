//! The private certificate authority: one directory with `ca.pem` and `ca.key`.
//!
//! Owns making the authority, issuing certificates to routers, nodes and operators, and the files of both.
//! Who may connect is decided in `tls`. Keys are ECDSA P-256, written with mode 0600, and never printed.

mod files;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use xenflow_proto::{Identity, Name, control};

pub use files::FileError;

/// File of the authority's certificate, within its directory.
pub const CA_CERT: &str = "ca.pem";
/// File of the authority's key, within its directory.
pub const CA_KEY: &str = "ca.key";
/// How long an authority is valid.
pub const CA_DAYS: u32 = 3650;
/// How long a leaf is valid unless told.
pub const LEAF_DAYS: u32 = 30;
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
    #[error("{path} exists already; --renew replaces the certificate of the same identity")]
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
    #[error("{days} days are too long: the authority ends on {end}")]
    TooLong {
        /// Days asked for.
        days: u32,
        /// Last day of the authority.
        end: time::Date,
    },
    /// No validity.
    #[error("{days} days are out of range: 1 to {CA_DAYS}")]
    Days {
        /// Days asked for.
        days: u32,
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
}

/// A certificate and its key, in PEM. Has no `Debug`: the key must not reach a log.
pub struct Pair {
    /// The certificate, PEM.
    pub cert: String,
    /// The key, PKCS #8 in PEM.
    pub key: String,
}

/// Where a leaf was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The certificate.
    pub cert: PathBuf,
    /// The key, mode 0600.
    pub key: PathBuf,
    /// End of validity.
    pub not_after: OffsetDateTime,
}

/// An authority that can issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
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
    /// From five minutes before `now`, for so many days from `now` on.
    #[must_use]
    pub fn days(now: OffsetDateTime, days: u32) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + Duration::days(days.into()) }
    }
}

fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

fn params(common_name: &str, validity: Validity) -> Result<CertificateParams, PkiError> {
    let mut serial: [u8; 16] = random()?;
    // RFC 5280 4.1.2.2: positive, and at most 20 bytes.
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
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
        let mut params = params(&name, validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let pair = Pair { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Ok((Self { issuer: Issuer::new(params, key), not_after: validity.not_after }, pair))
    }

    /// Reads the authority of a directory.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let (cert, path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let pem = files::read(&cert)?;
        let no_cert = || PkiError::CaCert { path: cert.clone() };
        let der = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| no_cert())?.1;
        let parsed = der.parse_x509().map_err(|_| no_cert())?;
        if !parsed.is_ca() {
            return Err(no_cert());
        }
        let no_key = || PkiError::CaKey { path: path.clone(), cert: cert.clone() };
        let key = KeyPair::from_pem(&files::read(&path)?).map_err(|_| no_key())?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(no_key());
        }
        let not_after = parsed.validity().not_after.to_datetime();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|_| no_cert())?;
        Ok(Self { issuer, not_after })
    }

    /// Issues a certificate. Routers and operators are clients; nodes are clients and servers, and may answer
    /// at the addresses that every host has on the control network.
    pub fn issue(&self, identity: &Identity, validity: Validity) -> Result<Pair, PkiError> {
        let (key, cert) = self.leaf(identity, validity)?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }

    fn leaf(&self, identity: &Identity, validity: Validity) -> Result<(KeyPair, Certificate), PkiError> {
        let mut params = params(name_of(identity).as_str(), validity)?;
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if let Identity::Node(_) = identity {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            let addresses = [IpAddr::V6(control::HOST_IPV6), IpAddr::V4(control::HOST_IPV4)];
            params.subject_alt_names.extend(addresses.map(SanType::IpAddress));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok((key, cert))
    }
}

/// The name within an identity; a certificate's common name too (OVSDB's RBAC compares that).
#[must_use]
pub const fn name_of(identity: &Identity) -> &Name {
    match identity {
        Identity::Router(name) | Identity::Node(name) | Identity::Operator(name) => name,
    }
}

/// Makes an authority in a directory, which is created if need be. Never overwrites one.
pub fn init(dir: &Path, now: OffsetDateTime) -> Result<PathBuf, PkiError> {
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    files::create_dir(dir)?;
    if let Some(path) = [&cert, &key].into_iter().find(|path| files::exists(path)) {
        return Err(PkiError::CaExists { path: path.clone() });
    }
    let (_, pair) = Authority::new(Validity::days(now, CA_DAYS))?;
    files::create(&key, &pair.key, files::PRIVATE)?;
    files::create(&cert, &pair.cert, files::PUBLIC)?;
    Ok(cert)
}

/// Issues `NAME.pem` and `NAME.key` into `out` with the authority in `dir`. An existing pair is replaced only
/// if `renew` is set and the certificate is of the same identity.
pub fn issue(
    dir: &Path,
    out: &Path,
    identity: &Identity,
    days: u32,
    now: OffsetDateTime,
    renew: bool,
) -> Result<Written, PkiError> {
    if !(1..=CA_DAYS).contains(&days) {
        return Err(PkiError::Days { days });
    }
    let name = name_of(identity);
    if name.as_str() == "ca" {
        return Err(PkiError::Reserved(name.clone()));
    }
    let authority = Authority::open(dir)?;
    let validity = Validity::days(now, days);
    if validity.not_after > authority.not_after {
        return Err(PkiError::TooLong { days, end: authority.not_after.date() });
    }
    files::create_dir(out)?;
    let (cert, key) = (out.join(format!("{name}.pem")), out.join(format!("{name}.key")));
    if renew {
        let old = files::read(&cert)?;
        let old = x509_parser::pem::parse_x509_pem(old.as_bytes()).map(|(_, pem)| pem.contents);
        if old.ok().and_then(|der| crate::tls::certificate_identity(&der).ok()).as_ref() != Some(identity) {
            return Err(PkiError::OtherIdentity { path: cert, identity: identity.clone() });
        }
    } else if let Some(path) = [&cert, &key].into_iter().find(|path| files::exists(path)) {
        return Err(PkiError::LeafExists { path: path.clone() });
    }
    let pair = authority.issue(identity, validity)?;
    if renew {
        files::replace(&key, &pair.key, files::PRIVATE)?;
        files::replace(&cert, &pair.cert, files::PUBLIC)?;
    } else {
        files::create(&key, &pair.key, files::PRIVATE)?;
        files::create(&cert, &pair.cert, files::PUBLIC)?;
    }
    Ok(Written { cert, key, not_after: validity.not_after })
}

#[cfg(test)]
mod tests;
