//! How long a certificate is valid, and from when to when a revocation list is the latest, out of their DER. Knows
//! nothing else of them: whom they are of and whether they hold is for `webpki` to say, which does not tell this.

use std::time::Duration;

/// From when to when a certificate is valid, each since 1970-01-01 UTC; what is earlier counts as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: Duration,
    /// Last second.
    pub not_after: Duration,
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0] EXPLICIT`: the version.
const VERSION: u8 = 0xa0;

/// Of a certificate in DER (RFC 5280, 4.1); none if it is not one.
#[must_use]
pub fn validity(cert: &[u8]) -> Option<Validity> {
    let certificate = Der(cert).value(SEQUENCE)?;
    let mut fields = Der(Der(certificate).value(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.next()?;
    }
    fields.value(INTEGER)?; // serial number
    fields.value(SEQUENCE)?; // signature algorithm
    fields.value(SEQUENCE)?; // issuer
    let mut times = Der(fields.value(SEQUENCE)?);
    let mut time = || times.next().and_then(|(tag, text)| time(tag, text));
    Some(Validity { not_before: time()?, not_after: time()? })
}

/// When a revocation list was made, each since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Updates {
    /// When it was.
    pub this: Duration,
    /// When the next one should be there.
    pub next: Option<Duration>,
}

/// Of a revocation list in DER (RFC 5280, 5.1); none if it is not one.
#[must_use]
pub fn updates(list: &[u8]) -> Option<Updates> {
    let list = Der(list).value(SEQUENCE)?;
    let mut fields = Der(Der(list).value(SEQUENCE)?);
    if fields.0.first() == Some(&INTEGER) {
        fields.next()?;
    }
    fields.value(SEQUENCE)?; // signature algorithm
    fields.value(SEQUENCE)?; // issuer
    let (tag, text) = fields.next()?;
    let this = time(tag, text)?;
    let next = match fields.0.first() {
        Some(&(UTC_TIME | GENERALIZED_TIME)) => {
            let (tag, text) = fields.next()?;
            Some(time(tag, text)?)
        }
        _ => None,
    };
    Some(Updates { this, next })
}

/// A run of values in DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value with its tag. Lengths are definite and of at most three bytes; a certificate is small.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk()?;
        let mut length = usize::from(first);
        if let Some(count) = first.checked_sub(0x80) {
            if !matches!(count, 1..=3) {
                return None;
            }
            let (bytes, after) = rest.split_at_checked(count.into())?;
            length = bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
            rest = after;
        }
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }

    /// The next value, which must have this tag.
    fn value(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().and_then(|(tag, value)| (tag == wanted).then_some(value))
    }
}

/// RFC 5280, 4.1.2.5: `YYMMDDhhmmssZ` of 1950 to 2049, or `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &[u8]) -> Option<Duration> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number =
        |digits: &[u8]| digits.iter().fold(0_i64, |number, digit| number * 10 + i64::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year), rest)
        }
        _ => return None,
    };
    let mut pairs = rest.chunks(2).map(number);
    let mut pair = |range: std::ops::RangeInclusive<i64>| pairs.next().filter(|value| range.contains(value));
    let (month, day) = (pair(1..=12)?, pair(1..=31)?);
    let (hour, minute, second) = (pair(0..=23)?, pair(0..=59)?, pair(0..=60)?);
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(Duration::from_secs(seconds.try_into().unwrap_or(0)))
}

/// Days since 1970-01-01 in the Gregorian calendar. A year that begins in March ends with the leap day.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_taken(data in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = (validity(&data), updates(&data));
            let _ = time(UTC_TIME, &data);
            let _ = validity(&[&[0x30, 0x84][..], &data].concat());
        }
    }

    /// Against `date -u -d … +%s`.
    #[test]
    fn both_forms_of_a_time() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "491231235959Z", 2_524_607_999),
            (UTC_TIME, "500101000000Z", 0), // 1950
            (UTC_TIME, "000229120000Z", 951_825_600),
            (UTC_TIME, "261121112058Z", 1_795_260_058),
            (GENERALIZED_TIME, "20500101000000Z", 2_524_608_000),
            (GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
            (GENERALIZED_TIME, "21000228235959Z", 4_107_542_399),
        ] {
            assert_eq!(time(tag, text.as_bytes()), Some(Duration::from_secs(seconds)), "{text}");
        }
        for (tag, text) in [
            (UTC_TIME, "700101000000"),
            (UTC_TIME, "7001010000Z"),
            (UTC_TIME, "20500101000000Z"),
            (GENERALIZED_TIME, "700101000000Z"),
            (UTC_TIME, "701301000000Z"),
            (UTC_TIME, "700100000000Z"),
            (UTC_TIME, "7001010000+1Z"),
            (UTC_TIME, "700101240000Z"),
            (INTEGER, "700101000000Z"),
        ] {
            assert_eq!(time(tag, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn cut_bytes_are_no_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2026, 11, 21), rcgen::date_time_ymd(2051, 2, 3));
        let cert = params.self_signed(&key).unwrap();
        let der: &[u8] = cert.der();
        let found = Validity {
            not_before: Duration::from_secs(1_795_219_200),
            not_after: Duration::from_secs(2_558_995_200),
        };
        assert_eq!(validity(der), Some(found));
        for length in 0..der.len() {
            assert_eq!(validity(der.get(..length).unwrap()), None);
        }
    }
}
