//! Revocation lists: read from files, and what they say of a certificate. Who else counts is the parent's.
//!
//! They are in `crl.pem` beside the authorities, or in their file itself, as `xenflow pki export` writes it. Of two of
//! one authority the later one counts. As at the host: an authority without a list revoked nobody, and a list that is
//! older than it should be still revokes what it revokes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{CertRevocationListError, CertificateError, Error, OtherError, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::TlsError;
use crate::config::Config;
use crate::validity::{Updates, updates};

/// Of each authority the latest.
#[derive(Debug, Clone, Default)]
pub struct Lists(Vec<Arc<List>>);

#[derive(Debug)]
struct List {
    der: Vec<u8>,
    parsed: CertRevocationList<'static>,
    updates: Updates,
}

impl Lists {
    /// Those in the file of the authorities, and in that of the lists, which must hold one if it is named or there.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn read(config: &Config) -> Result<Self, TlsError> {
        let (ca, path) = (&config.ca, config.lists());
        let mut all = Self::in_file(ca)?;
        if config.crl.is_some() || std::fs::symlink_metadata(&path).is_ok() {
            let more = Self::in_file(&path)?;
            if more.is_empty() {
                return Err(TlsError::NoList(path));
            }
            all.add(more);
        }
        Ok(all)
    }

    /// All in a file, if there are any.
    pub(crate) fn in_file(path: &Path) -> Result<Self, TlsError> {
        let pem = |source| TlsError::Pem { path: path.into(), source };
        let ders = CertificateRevocationListDer::pem_file_iter(path).map_err(pem)?;
        let ders: Vec<_> = ders.collect::<Result<_, _>>().map_err(pem)?;
        let ders = ders.iter().map(|der| der.to_vec());
        Self::parse(ders).map_err(|source| TlsError::List { path: path.into(), source })
    }

    /// Of lists in DER (RFC 5280, 5.1).
    pub(crate) fn parse(ders: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, webpki::Error> {
        let mut all = Self::default();
        let lists = ders.into_iter().map(|der| {
            let parsed = OwnedCertRevocationList::from_der(&der)?.into();
            let updates = updates(&der).ok_or(webpki::Error::BadDerTime)?;
            Ok(Arc::new(List { der, parsed, updates }))
        });
        all.add(Self(lists.collect::<Result<_, webpki::Error>>()?));
        Ok(all)
    }

    /// Takes these in; of two of one authority and one scope, the later one stays.
    pub(crate) fn add(&mut self, more: Self) {
        let mut latest: BTreeMap<_, Arc<List>> = BTreeMap::new();
        for list in self.0.drain(..).chain(more.0) {
            let scope = list.parsed.issuing_distribution_point().map(<[u8]>::to_vec);
            let known =
                latest.entry((list.parsed.issuer().to_vec(), scope)).or_insert_with(|| Arc::clone(&list));
            if known.updates.this < list.updates.this {
                *known = list;
            }
        }
        self.0 = latest.into_values().collect();
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// When the first of them should have been replaced, since 1970-01-01 UTC.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.0.iter().filter_map(|list| list.updates.next).min()
    }

    /// Whose they are, as X.501 names.
    pub(super) fn issuers(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|list| list.parsed.issuer())
    }

    /// In DER.
    pub(crate) fn ders(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|list| list.der.as_slice())
    }

    /// Whether one of the lists revokes this certificate, or one between it and these authorities.
    ///
    /// # Errors
    /// [`CertificateError::Revoked`]; [`Error::InvalidCertRevocationList`] if a list that decides is not one that the
    /// authority signed; or what else is wrong with the certificate.
    pub(crate) fn check(
        &self,
        roots: &RootCertStore,
        (cert, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        usage: KeyUsage,
        at: UnixTime,
    ) -> Result<(), Error> {
        let lists: Vec<&CertRevocationList<'_>> = self.0.iter().map(|list| &list.parsed).collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let options = options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .build();
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
        let cert = EndEntityCert::try_from(cert).map_err(|_| CertificateError::BadEncoding)?;
        let checked =
            cert.verify_for_usage(algorithms, &roots.roots, intermediates, at, usage, Some(options), None);
        checked.map(|_| ()).map_err(in_rustls)
    }
}

/// rustls does not export this. What is about the certificate alone it has looked at before, and said better.
#[expect(clippy::wildcard_enum_match_arm, reason = "what else there is, now or later, is refused as well")]
fn in_rustls(error: webpki::Error) -> Error {
    use webpki::Error as E;
    let cause = match error {
        E::CertRevoked => return CertificateError::Revoked.into(),
        E::InvalidCrlSignatureForPublicKey => CertRevocationListError::BadSignature,
        E::IssuerNotCrlSigner => CertRevocationListError::IssuerInvalidForCrl,
        error @ (E::UnsupportedCrlSignatureAlgorithmContext(_)
        | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)) => {
            CertRevocationListError::Other(OtherError(Arc::new(error)))
        }
        error => return CertificateError::Other(OtherError(Arc::new(error))).into(),
    };
    cause.into()
}
