//! Body of a fuzz target: any bytes may come as a certificate or a revocation list, and nothing may panic. The corpus in
//! `corpus/certificates/` runs through it as an ordinary test.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};

use super::certificate_identity;
use super::credentials::{Lists, Trust, list_due};
use crate::pki::Serial;

/// Bytes in the place of a peer's certificate, of an authority's, and of a list. Returns the identity in them, if there
/// is one.
pub fn certificate(data: &[u8]) -> Option<xenflow_proto::Identity> {
    let _ = list_due(data);
    let cert = CertificateDer::from(data.to_vec());
    let list = CertificateRevocationListDer::from(data.to_vec());
    for lists in [Lists::default(), Lists(vec![list])] {
        let _ = lists.due();
        if let Ok(trust) = Trust::new(vec![cert.clone()], lists) {
            let _ = trust.idle_lists();
            let chain = [cert.clone(), cert.clone()];
            let _ = trust.check(&chain, UnixTime::now());
            let _ = trust.check_host(&chain, UnixTime::now());
        }
    }
    if let Ok((_, parsed)) = x509_parser::parse_x509_certificate(data) {
        let serial = Serial::new(parsed.raw_serial());
        assert_eq!(Serial::new(serial.bytes()), serial, "a number has one form");
    }
    let identity = certificate_identity(data).ok()?;
    assert_eq!(identity.to_string().parse().as_ref(), Ok(&identity), "what was accepted is accepted again");
    Some(identity)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every file (hexadecimal, `#` comments), whole, cut short anywhere, and with each byte changed; its name says
    /// whom it speaks for: `<what>.<kind>-<name>.hex`, or `<what>.none.hex`.
    #[test]
    fn corpus_names_whom_it_speaks_for() {
        let mut files = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/certificates")).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let code: String = text.lines().filter_map(|line| line.split('#').next()).collect();
            let digits: Vec<_> = code.chars().filter_map(|c| c.to_digit(16)).collect();
            let data: Vec<u8> = digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
            let name = path.file_name().unwrap().to_str().unwrap();
            let says = certificate(&data).map(|identity| identity.to_string());
            let says = says.and_then(|uri| Some(uri.strip_prefix("xenflow://")?.replace('/', "-")));
            assert_eq!(says.as_deref().unwrap_or("none"), name.split('.').nth(1).unwrap(), "{name}");
            for at in 0..data.len() {
                certificate(&data[..at]);
                let mut changed = data.clone();
                changed[at] ^= 1 << (at % 8);
                certificate(&changed);
            }
            files += 1;
        }
        assert!(files >= 5, "{files} files");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(data in proptest::collection::vec(any::<u8>(), 0..256)) {
            certificate(&data);
        }
    }
}
