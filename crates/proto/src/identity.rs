//! Names of things and the identities that certificates carry.

use std::fmt;
use std::str::FromStr;

/// Name of a network, segment, router, vif, access port or node: 1 to 63 of `a-z 0-9 . _ -`, the first a letter
/// or digit. Safe in a URI, a file name, a log line and a shell word.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// Text that cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit")]
pub struct NameError(String);

impl Name {
    /// Longest name, in bytes.
    pub const MAX: usize = 63;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest_ok =
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if first_ok && rest_ok && text.len() <= Self::MAX {
            Ok(Self(text.into()))
        } else {
            Err(NameError(text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a certificate speaks for: the one `xenflow:` URI among its subject alternative names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// `xenflow://router/<name>`: a guest client.
    Router(Name),
    /// `xenflow://node/<name>`: a host daemon.
    Node(Name),
    /// `xenflow://operator/<name>`: somebody at the CLI.
    Operator(Name),
}

/// A URI that is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the scheme.
    #[error(
        "\"{0}\" is not an identity: xenflow://router/NAME, xenflow://node/NAME or xenflow://operator/NAME"
    )]
    Form(String),
    /// The last part is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let form = || IdentityError::Form(uri.chars().take(80).collect());
        let (kind, name) = uri.strip_prefix("xenflow://").and_then(|r| r.split_once('/')).ok_or_else(form)?;
        let make = match kind {
            "router" => Self::Router,
            "node" => Self::Node,
            "operator" => Self::Operator,
            _ => return Err(form()),
        };
        Ok(make(name.parse()?))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router(name) => write!(f, "xenflow://router/{name}"),
            Self::Node(name) => write!(f, "xenflow://node/{name}"),
            Self::Operator(name) => write!(f, "xenflow://operator/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["r1", "0", "core-1.red_a", &"a".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "R1", "a b", "a/b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn identities() {
        for good in ["xenflow://router/r1", "xenflow://node/a", "xenflow://operator/ann"] {
            assert_eq!(good.parse::<Identity>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "xenflow://router/",
            "xenflow://router/a/b",
            "https://router/r1",
            "xenflow://admin/x",
            "xenflow://router",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
