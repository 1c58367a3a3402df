//! What an authority has issued and revoked: one JSON object a line. Owns the records and their form; files and locks
//! are the store's.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use xenflow_proto::Identity;

/// A record is dropped so long after the certificate has ended and its revocation was published.
const KEEP: Duration = Duration::days(365);

/// Serial number of a certificate: its bytes as in the certificate (RFC 5280, 4.1.2.2), written in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

/// Text that is no serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a serial number: 1 to 20 bytes in hexadecimal, colons as you like")]
pub struct SerialError(String);

impl Serial {
    /// Of the contents of the INTEGER.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        // A zero in front only keeps the number positive.
        let start = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len().saturating_sub(1));
        Self(bytes.get(start..).unwrap_or_default().to_vec())
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || SerialError(text.chars().take(80).collect());
        let digits: Option<Vec<u8>> = text
            .chars()
            .filter(|&c| c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let digits = digits.filter(|digits| matches!(digits.len(), 1..=40)).ok_or_else(refuse)?;
        let bytes: Vec<u8> = digits
            .rchunks(2)
            .rev()
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect();
        Ok(Self::new(&bytes))
    }
}

/// Why a certificate was revoked (RFC 5280, 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Not said.
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// Another one took its place.
    Superseded,
    /// What it was for is gone.
    CessationOfOperation,
    /// Its holder may do less from now on.
    PrivilegeWithdrawn,
}

impl Reason {
    pub(super) const fn code(self) -> rcgen::RevocationReason {
        match self {
            Self::Unspecified => rcgen::RevocationReason::Unspecified,
            Self::KeyCompromise => rcgen::RevocationReason::KeyCompromise,
            Self::Superseded => rcgen::RevocationReason::Superseded,
            Self::CessationOfOperation => rcgen::RevocationReason::CessationOfOperation,
            Self::PrivilegeWithdrawn => rcgen::RevocationReason::PrivilegeWithdrawn,
        }
    }
}

/// A revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Seconds since 1970-01-01 UTC.
    pub at: i64,
    /// Why.
    pub reason: Reason,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number, unique within the authority.
    pub serial: Serial,
    /// The common name of the authority.
    pub issuer: String,
    /// Whom it speaks for; none if only its number is known.
    pub identity: Option<Identity>,
    /// Its first second, since 1970-01-01 UTC.
    pub not_before: i64,
    /// Its last second.
    pub not_after: i64,
    /// If it counts no more.
    pub revoked: Option<Revoked>,
}

/// What a certificate is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It counts.
    Valid,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

impl Record {
    /// What it is worth at this time.
    #[must_use]
    pub fn state(&self, now: OffsetDateTime) -> State {
        match self.revoked {
            Some(_) => State::Revoked,
            None if self.not_after < now.unix_timestamp() => State::Expired,
            None => State::Valid,
        }
    }

    fn is_over(&self, now: OffsetDateTime) -> bool {
        let last = self.revoked.map_or(self.not_after, |revoked| revoked.at.max(self.not_after));
        last + KEEP.whole_seconds() < now.unix_timestamp()
    }
}

/// As written.
#[derive(Serialize, Deserialize)]
struct Line {
    serial: String,
    issuer: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    identity: Option<String>,
    not_before: i64,
    not_after: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    revoked: Option<Revoked>,
}

/// Why a line is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the JSON it should be.
    #[error("it is not a record")]
    Json(#[from] serde_json::Error),
    /// A number that is none.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// An identity that is none.
    #[error(transparent)]
    Identity(#[from] xenflow_proto::identity::IdentityError),
}

impl Line {
    fn parse(text: &str) -> Result<Record, RecordError> {
        let Self { serial, issuer, identity, not_before, not_after, revoked } = serde_json::from_str(text)?;
        let identity = identity.map(|uri| uri.parse()).transpose()?;
        Ok(Record { serial: serial.parse()?, issuer, identity, not_before, not_after, revoked })
    }

    fn of(record: &Record) -> Self {
        let Record { serial, issuer, identity, not_before, not_after, revoked } = record.clone();
        let identity = identity.map(|identity| identity.to_string());
        Self { serial: serial.to_string(), issuer, identity, not_before, not_after, revoked }
    }
}

/// All records, in the order of issue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index(pub(super) Vec<Record>);

impl Index {
    /// Reads what [`Self::text`] wrote; the error has the number of the line.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, RecordError)> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let records = lines.map(|(at, line)| Line::parse(line).map_err(|error| (at + 1, error)));
        records.collect::<Result<_, _>>().map(Self)
    }

    /// Without what is long over.
    pub(super) fn text(&self, now: OffsetDateTime) -> Result<String, serde_json::Error> {
        let mut text = String::new();
        for record in self.0.iter().filter(|record| !record.is_over(now)) {
            text.push_str(&serde_json::to_string(&Line::of(record))?);
            text.push('\n');
        }
        Ok(text)
    }

    pub(super) fn add(&mut self, record: Record) {
        if self.of(&record.issuer, &record.serial).is_none() {
            self.0.push(record);
        }
    }

    pub(super) fn of(&self, issuer: &str, serial: &Serial) -> Option<&Record> {
        self.0.iter().find(|record| record.issuer == issuer && record.serial == *serial)
    }

    /// The last certificate of each holder that still counts.
    pub(super) fn latest(&self, now: OffsetDateTime) -> impl Iterator<Item = &Record> {
        let valid = self.0.iter().filter(|record| record.state(now) == State::Valid);
        let by_holder: BTreeMap<_, _> =
            valid.filter_map(|record| Some((record.identity.as_ref()?, record))).collect();
        by_holder.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers() {
        for (text, shown) in [("0A:ff", "0aff"), ("a", "0a"), ("00ff", "ff"), ("0", "00"), ("123", "0123")] {
            assert_eq!(text.parse::<Serial>().unwrap().to_string(), shown);
        }
        for text in ["", ":", "0x1", "g", &"0".repeat(41), "é"] {
            assert!(text.parse::<Serial>().is_err(), "{text}");
        }
    }

    #[test]
    fn records_are_read_as_written_and_old_ones_go() {
        let record = |serial: &str, not_after, revoked| Record {
            serial: serial.parse().unwrap(),
            issuer: "one".into(),
            identity: Some("xenflow://router/r1".parse().unwrap()),
            not_before: 0,
            not_after,
            revoked,
        };
        let year = KEEP.whole_seconds();
        let revoked = Some(Revoked { at: 50, reason: Reason::KeyCompromise });
        let index = Index(vec![record("01", 10, None), record("02", 10, revoked), record("03", 100, None)]);
        let text = index.text(OffsetDateTime::from_unix_timestamp(year + 20).unwrap()).unwrap();
        assert_eq!(Index::parse(&text).unwrap().0, index.0.get(1..).unwrap());
        assert!(text.contains("\"key-compromise\""), "{text}");
        for (text, line) in [("\n\n{}", 3), (&text.replace("xenflow:", "x:"), 1), ("[1]", 1)] {
            assert_eq!(Index::parse(text).unwrap_err().0, line, "{text}");
        }
        let now = |at| OffsetDateTime::from_unix_timestamp(at).unwrap();
        let states = |at| index.0.iter().map(|record| record.state(now(at))).collect::<Vec<_>>();
        assert_eq!(states(5), [State::Valid, State::Revoked, State::Valid]);
        assert_eq!(states(11), [State::Expired, State::Revoked, State::Valid]);
        let latest = |at| index.latest(now(at)).map(|record| record.serial.to_string()).collect::<Vec<_>>();
        assert_eq!(latest(5), ["03"]);
        assert_eq!(latest(101), Vec::<String>::new());
    }
}
