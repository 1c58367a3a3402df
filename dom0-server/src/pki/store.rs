//! The authority's directory: what is issued is recorded, what is revoked is published, and the authority itself is
//! rotated. Whoever has a [`Store`] has the directory for itself.

use std::fs::File;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use xenflow_proto::Identity;

use super::files::{self, PRIVATE, PUBLIC};
use super::index::{Index, Reason, Record, Revoked, Serial, State};
use super::{
    Authority, BACKDATE, CA_CERT, CA_DAYS, CA_KEY, CA_OLD_KEY, CRL, INDEX, MIN_LIFE, PkiError, Validity,
    name_of,
};

/// The lists are signed anew when something is issued and they are older than this.
const CRL_AGE: Duration = Duration::days(1);

/// Valid certificates of one holder, beyond which its own asking brings no more.
const MAX_VALID: usize = 8;

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

/// What to revoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Every certificate of a holder.
    Identity(Identity),
    /// One, which need not be known.
    Serial(Serial),
}

/// A rotation that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The new authority.
    pub new: String,
    /// The old one.
    pub old: String,
    /// Certificates of the old one that are in use.
    pub in_use: usize,
}

/// A rotation that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// The authority that nobody should trust any more.
    pub dropped: String,
}

/// An authority's directory, locked.
pub struct Store {
    dir: PathBuf,
    /// Everything in `ca.pem`, in its order.
    bundle: Vec<CertificateDer<'static>>,
    /// Those of them with a key: the one that signs, then the one that it takes over from.
    authorities: Vec<Authority>,
    index: Index,
    _lock: File,
}

impl Store {
    /// Waits until nobody else has the directory, and reads it. Without an index, what was issued is what lies in the
    /// directory.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let lock = files::lock(dir)?;
        let (bundle, authorities) = read_authorities(dir)?;
        let mut store =
            Self { dir: dir.to_owned(), bundle, authorities, index: Index::default(), _lock: lock };
        let path = dir.join(INDEX);
        if files::exists(&path) {
            store.index = Index::parse(&files::read(&path)?).map_err(|(line, source)| PkiError::Index {
                path,
                line,
                source,
            })?;
        } else {
            store.adopt()?;
        }
        Ok(store)
    }

    /// Certificates of this authority that lie in its directory.
    fn adopt(&mut self) -> Result<(), PkiError> {
        for path in files::certificates(&self.dir)? {
            let Ok(pem) = files::read(&path) else { continue };
            let Ok(cert) = CertificateDer::from_pem_slice(pem.as_bytes()) else { continue };
            let Some(parsed) = parse(&cert).filter(|cert| !cert.is_ca()) else { continue };
            let record = record(&parsed, crate::tls::certificate_identity(&cert).ok());
            if self.authorities.iter().any(|authority| authority.name == record.issuer) {
                self.index.add(record);
            }
        }
        Ok(())
    }

    /// Everything issued, in that order.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.index.0
    }

    /// The name of the authority that signs.
    #[must_use]
    pub fn name(&self) -> &str {
        self.authorities.first().map_or("", |authority| &authority.name)
    }

    /// The certificates of all authorities of the directory, in DER.
    #[must_use]
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// Who signs for this holder. Guests learn of a new authority when their own certificates are renewed: until all
    /// of them have, nodes must show certificates that every guest can check.
    fn signer(&self, identity: &Identity, now: OffsetDateTime) -> Option<&Authority> {
        let old = self.authorities.get(1).filter(|old| {
            let guest = |record: &Record| matches!(record.identity, Some(Identity::Router(_)));
            let waits = self.index.latest(now).any(|record| guest(record) && record.issuer == old.name);
            waits && matches!(identity, Identity::Node(_))
        });
        old.or(self.authorities.first())
    }

    fn no_key(&self) -> PkiError {
        PkiError::CaKey { path: self.dir.join(CA_KEY), cert: self.dir.join(CA_CERT) }
    }

    /// Issues `NAME.pem` and `NAME.key` into `out`. An existing pair is replaced, by one with a new key, only if
    /// `renew` is set and the certificate is of the same identity.
    pub fn issue(
        &mut self,
        out: &Path,
        identity: &Identity,
        life: Duration,
        now: OffsetDateTime,
        renew: bool,
    ) -> Result<Written, PkiError> {
        if !(MIN_LIFE..=Duration::days(CA_DAYS.into())).contains(&life) {
            return Err(PkiError::Life { life });
        }
        let name = name_of(identity);
        if [CA_CERT, CA_OLD_KEY, CRL].iter().any(|file| file.split('.').next() == Some(name.as_str())) {
            return Err(PkiError::Reserved(name.clone()));
        }
        let authority = self.signer(identity, now).ok_or_else(|| self.no_key())?;
        let validity = Validity::lasting(now, life);
        if validity.not_after > authority.not_after {
            return Err(PkiError::TooLong { life, end: authority.not_after.date() });
        }
        files::create_dir(out)?;
        let (cert, key) = (out.join(format!("{name}.pem")), out.join(format!("{name}.key")));
        if renew {
            let old = files::read(&cert)?;
            let old = CertificateDer::from_pem_slice(old.as_bytes()).ok();
            let holder = old.and_then(|der| crate::tls::certificate_identity(&der).ok());
            if holder.as_ref() != Some(identity) {
                return Err(PkiError::OtherIdentity { path: cert, identity: identity.clone() });
            }
        } else if let Some(path) = [&cert, &key].into_iter().find(|path| files::exists(path)) {
            return Err(PkiError::LeafExists { path: path.clone() });
        }
        let pair = authority.issue(identity, validity)?;
        // Recorded before anybody has it: what is not in the index cannot be revoked by name.
        let der = CertificateDer::from_pem_slice(pair.cert.as_bytes()).map_err(|_| PkiError::Malformed)?;
        self.issued(&der, identity, now)?;
        if renew {
            files::replace(&key, &pair.key, PRIVATE)?;
            files::replace(&cert, &pair.cert, PUBLIC)?;
        } else {
            files::create(&key, &pair.key, PRIVATE)?;
            files::create(&cert, &pair.cert, PUBLIC)?;
        }
        Ok(Written { cert, key, not_after: validity.not_after })
    }

    /// Issues a certificate in place of another, which may be of another authority: for the same identity and key, and
    /// for as long a time, as far as the authority lasts. One that was revoked is not renewed.
    pub fn reissue(&mut self, cert: &[u8], now: OffsetDateTime) -> Result<CertificateDer<'static>, PkiError> {
        let old = parse(cert).ok_or(PkiError::Malformed)?;
        let identity = crate::tls::certificate_identity(cert).map_err(|_| PkiError::Malformed)?;
        let serial = Serial::new(old.raw_serial());
        let known = self.index.of(&old.issuer().to_string(), &serial);
        if known.is_some_and(|record| record.revoked.is_some()) {
            return Err(PkiError::Revoked(serial));
        }
        // One that asks for ever must not fill the index.
        let mine = |record: &&Record| {
            record.identity.as_ref() == Some(&identity) && record.state(now) == State::Valid
        };
        let count = self.index.0.iter().filter(mine).count();
        if count >= MAX_VALID {
            return Err(PkiError::TooMany { identity, count });
        }
        let authority = self.signer(&identity, now).ok_or_else(|| self.no_key())?;
        let (begin, end) = (old.validity().not_before.to_datetime(), old.validity().not_after.to_datetime());
        let lifetime = (end - begin - BACKDATE).max(BACKDATE);
        let not_after = (now + lifetime).min(authority.not_after);
        let validity = Validity { not_before: now - BACKDATE, not_after };
        let new = authority.reissue(&identity, old.public_key().raw, validity)?;
        self.issued(&new, &identity, now)?;
        Ok(new)
    }

    fn issued(&mut self, cert: &[u8], identity: &Identity, now: OffsetDateTime) -> Result<(), PkiError> {
        let parsed = parse(cert).ok_or(PkiError::Malformed)?;
        self.index.add(record(&parsed, Some(identity.clone())));
        self.write_index(now)?;
        // A list that is not there or cannot be read is signed anew as well.
        let signed = files::read(&self.dir.join(CRL)).ok().and_then(|pem| oldest_list(&pem));
        if signed.is_none_or(|signed| signed + CRL_AGE < now) { self.write_lists(now) } else { Ok(()) }
    }

    /// Revokes, and says what: the certificates that were not revoked yet.
    pub fn revoke(
        &mut self,
        which: &Which,
        reason: Reason,
        now: OffsetDateTime,
    ) -> Result<Vec<Record>, PkiError> {
        if let Which::Serial(serial) = which
            && !self.index.0.iter().any(|record| record.serial == *serial)
            && let Some(authority) = self.authorities.first()
        {
            // Issued before there was an index; it counts until the authority ends, for all that is known.
            self.index.add(Record {
                serial: serial.clone(),
                issuer: authority.name.clone(),
                identity: None,
                not_before: now.unix_timestamp(),
                not_after: authority.not_after.unix_timestamp(),
                revoked: None,
            });
        }
        let mut known = false;
        let mut revoked = Vec::new();
        for record in &mut self.index.0 {
            let meant = match which {
                Which::Identity(identity) => record.identity.as_ref() == Some(identity),
                Which::Serial(serial) => record.serial == *serial,
            };
            known |= meant;
            if meant && record.revoked.is_none() {
                // Also one that has expired: a session may have begun with it and be there yet.
                record.revoked = Some(Revoked { at: now.unix_timestamp(), reason });
                revoked.push(record.clone());
            }
        }
        match which {
            Which::Identity(identity) if !known => return Err(PkiError::Unknown(identity.clone())),
            Which::Identity(identity) if revoked.is_empty() => {
                return Err(PkiError::AllRevoked(identity.clone()));
            }
            Which::Serial(serial) if revoked.is_empty() => return Err(PkiError::Revoked(serial.clone())),
            Which::Identity(_) | Which::Serial(_) => {}
        }
        self.publish(now)?;
        Ok(revoked)
    }

    /// Writes the index, and signs the lists anew.
    pub fn publish(&self, now: OffsetDateTime) -> Result<(), PkiError> {
        self.write_index(now)?;
        self.write_lists(now)
    }

    fn write_index(&self, now: OffsetDateTime) -> Result<(), PkiError> {
        Ok(files::replace(&self.dir.join(INDEX), &self.index.text(now)?, PRIVATE)?)
    }

    fn write_lists(&self, now: OffsetDateTime) -> Result<(), PkiError> {
        let lists: Result<String, _> =
            self.authorities.iter().map(|authority| authority.revocations(&self.index.0, now)).collect();
        let lists = lists? + &self.lists_of_others()?;
        Ok(files::replace(&self.dir.join(CRL), &lists, PUBLIC)?)
    }

    /// The lists, in PEM, of authorities in `ca.pem` whose key is not here: one that somebody else runs, or one whose
    /// key was lost. Without their lists, whom they revoked would come back.
    fn lists_of_others(&self) -> Result<String, PkiError> {
        let path = self.dir.join(CRL);
        if !files::exists(&path) {
            return Ok(String::new());
        }
        let text = files::read(&path)?;
        let trusted: Vec<_> =
            self.bundle.iter().filter_map(|cert| Some(parse(cert)?.subject().to_string())).collect();
        let is_other = |block: &&str| {
            let Ok(list) = CertificateRevocationListDer::from_pem_slice(block.as_bytes()) else {
                return false;
            };
            let Ok((_, list)) = x509_parser::parse_x509_crl(&list) else { return false };
            let issuer = list.issuer().to_string();
            trusted.contains(&issuer) && !self.authorities.iter().any(|authority| authority.name == issuer)
        };
        let blocks = text.split_inclusive("-----END X509 CRL-----").map(str::trim).filter(is_other);
        Ok(blocks.fold(String::new(), |all, block| all + block + "\n"))
    }

    /// What everybody may know: the authorities' certificates and their revocation lists, in PEM.
    pub fn export(&self) -> Result<String, PkiError> {
        let lists = self.dir.join(CRL);
        let lists = if files::exists(&lists) { files::read(&lists)? } else { String::new() };
        Ok(files::read(&self.dir.join(CA_CERT))? + &lists)
    }

    /// Puts a new authority in front of the present one, which is trusted until [`Store::finish`].
    pub fn rotate(&mut self, now: OffsetDateTime) -> Result<Rotation, PkiError> {
        let [present] = self.authorities.as_slice() else { return Err(PkiError::Rotating) };
        let (_, pair) = Authority::new(Validity::days(now, CA_DAYS))?;
        let old = (present.name.clone(), present.issuer.key().serialize_pem());
        let in_use = self.index.latest(now).filter(|record| record.issuer == old.0).count();
        let rest = files::read(&self.dir.join(CA_CERT))?;
        // At every moment there is a key for what stands first in ca.pem.
        files::replace(&self.dir.join(CA_OLD_KEY), &old.1, PRIVATE)?;
        files::replace(&self.dir.join(CA_KEY), &pair.key, PRIVATE)?;
        files::replace(&self.dir.join(CA_CERT), &(pair.cert + &rest), PUBLIC)?;
        self.read_again()?;
        self.publish(now)?;
        Ok(Rotation { new: self.name().to_owned(), old: old.0, in_use })
    }

    /// Drops the old authority. Refused while certificates of it are in use, unless forced.
    pub fn finish(&mut self, now: OffsetDateTime, force: bool) -> Result<Finish, PkiError> {
        let [_, old, ..] = self.authorities.as_slice() else { return Err(PkiError::NotRotating) };
        let in_use = self.index.latest(now).filter(|record| record.issuer == old.name);
        let holders: Vec<_> = in_use.filter_map(|record| record.identity.clone()).collect();
        if let Some(first) = holders.first().filter(|_| !force) {
            return Err(PkiError::OldInUse { count: holders.len(), first: first.clone() });
        }
        let dropped = old.name.clone();
        let stays = |block: &&str| match CertificateDer::from_pem_slice(block.as_bytes()) {
            Ok(cert) => parse(&cert).is_some_and(|cert| cert.subject().to_string() != dropped),
            Err(_) => false,
        };
        let text = files::read(&self.dir.join(CA_CERT))?;
        let blocks = text.split_inclusive("-----END CERTIFICATE-----").filter(stays);
        let bundle = blocks.map(str::trim).fold(String::new(), |all, block| all + block + "\n");
        files::replace(&self.dir.join(CA_CERT), &bundle, PUBLIC)?;
        files::remove(&self.dir.join(CA_OLD_KEY))?;
        self.read_again()?;
        self.publish(now)?;
        Ok(Finish { dropped })
    }

    /// After a change of the authorities; the lock is kept.
    fn read_again(&mut self) -> Result<(), PkiError> {
        (self.bundle, self.authorities) = read_authorities(&self.dir)?;
        Ok(())
    }
}

/// What is in `ca.pem`, and those of it that there is a key for; there is one for the first.
fn read_authorities(dir: &Path) -> Result<(Vec<CertificateDer<'static>>, Vec<Authority>), PkiError> {
    let (cert, key, old) = (dir.join(CA_CERT), dir.join(CA_KEY), dir.join(CA_OLD_KEY));
    let no_cert = || PkiError::CaCert { path: cert.clone() };
    let bundle: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(files::read(&cert)?.as_bytes()).collect();
    let bundle = bundle.map_err(|_| no_cert())?;
    if !bundle.first().and_then(|first| parse(first)).is_some_and(|first| first.is_ca()) {
        return Err(no_cert());
    }
    let mut keys = vec![files::read(&key)?];
    if files::exists(&old) {
        let text = files::read(&old)?;
        // Without it, what the old authority revoked would be published no more.
        if KeyPair::from_pem(&text).is_err() {
            return Err(PkiError::CaKey { path: old, cert });
        }
        keys.push(text);
    }
    // Whose a key is, the certificates say: a rotation that was killed halfway is none.
    let signer = |cert| keys.iter().find_map(|key| Authority::of(cert, KeyPair::from_pem(key).ok()?).ok()?);
    let mut authorities = bundle.iter().map(signer);
    let Some(first) = authorities.next().flatten() else { return Err(PkiError::CaKey { path: key, cert }) };
    let authorities = std::iter::once(first).chain(authorities.flatten()).collect();
    Ok((bundle, authorities))
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    Some(x509_parser::parse_x509_certificate(der).ok()?.1)
}

fn record(cert: &X509Certificate<'_>, identity: Option<Identity>) -> Record {
    Record {
        serial: Serial::new(cert.raw_serial()),
        issuer: cert.issuer().to_string(),
        identity,
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
        revoked: None,
    }
}

/// When the oldest of these lists was signed; none if one cannot be read, or there is none.
fn oldest_list(pem: &str) -> Option<OffsetDateTime> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect();
    let signed = |list: &CertificateRevocationListDer<'_>| {
        Some(x509_parser::parse_x509_crl(list).ok()?.1.last_update().to_datetime())
    };
    lists.ok()?.iter().map(signed).collect::<Option<Vec<_>>>()?.into_iter().min()
}
