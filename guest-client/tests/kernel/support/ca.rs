//! An authority of the tests' own.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, SerialNumber,
};

pub struct Ca {
    pub(super) key: KeyPair,
    pub(super) params: CertificateParams,
    /// The number of each certificate, by its PEM.
    pub(super) issued: Mutex<BTreeMap<String, SerialNumber>>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        Self { key: KeyPair::generate().unwrap(), params, issued: Mutex::default() }
    }

    /// Certificate and key in PEM.
    pub fn issue(&self, uri: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (self.issue_for(&key, uri, usage, 4000).pem(), key.serialize_pem())
    }

    /// A certificate until this year.
    pub(super) fn issue_for(
        &self,
        key: &KeyPair,
        uri: &str,
        usage: ExtendedKeyUsagePurpose,
        end: i32,
    ) -> Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![usage];
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let mut issued = self.issued.lock().unwrap();
        let number = SerialNumber::from(issued.len() as u64 + 1);
        params.serial_number = Some(number.clone());
        let issuer = Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(key, &issuer).unwrap();
        issued.insert(cert.pem(), number);
        cert
    }

    pub fn pem(&self) -> String {
        self.params.clone().self_signed(&self.key).unwrap().pem()
    }
}
